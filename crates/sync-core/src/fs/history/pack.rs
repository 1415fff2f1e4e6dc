//! The format of a pack: contents one behind the other, a table of them, and a trailer that vouches for the table.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use foldhash::HashMap;

use super::super::read::SourceFile;
use crate::hash::Digest;

/// Bytes read or written at once.
pub(super) const PIECE: usize = 1 << 20;

/// What ends a pack behind its table.
const MAGIC: &[u8; 8] = b"synchis1";

/// Bytes behind the table: their digest, how many contents, what ends a pack.
pub(super) const TRAILER: u64 = 32 + 8 + 8;

/// Bytes of a content in the table: its digest and how long it is.
pub(super) const ENTRY: u64 = 32 + 8;

/// The name of the pack that is being written.
pub(super) const WRITING: &str = "writing";

/// The name of an empty file: what the source had when the store was made was put in.
pub(super) const FILLED: &str = "filled";

/// A content and how many bytes it has.
pub(super) type Content = (Digest, u64);

pub(super) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.pack"))
}

pub(super) fn number_of(path: &Path) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_suffix(".pack").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// How many bytes a pack has, and what its table says it has; `None` if that is not sound.
///
/// # Errors
/// The pack cannot be opened or read, which says nothing about what is in it.
pub(super) fn read_table(path: &Path) -> io::Result<Option<(u64, Vec<Content>)>> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let Some(end) = bytes.checked_sub(TRAILER) else { return Ok(None) };
    let mut trailer = [0; TRAILER as usize];
    file.read_exact_at(&mut trailer, end)?;
    let Some((digest, len)) = parse_trailer(&trailer).filter(|(_, len)| *len <= end) else { return Ok(None) };
    let Ok(room) = usize::try_from(len) else { return Ok(None) };
    let mut table = vec![0; room];
    file.read_exact_at(&mut table, end - len)?;
    if Digest::of(&table) != digest {
        return Ok(None);
    }
    let contents = parse_table(&table).filter(|(_, total)| *total == end - len);
    Ok(contents.map(|(contents, _)| (bytes, contents)))
}

/// The digest of the table and how many bytes it has.
fn parse_trailer(trailer: &[u8]) -> Option<(Digest, u64)> {
    let (digest, rest) = trailer.split_first_chunk::<32>()?;
    let (count, magic) = rest.split_first_chunk::<8>()?;
    let len = u64::from_le_bytes(*count).checked_mul(ENTRY)?;
    (magic == MAGIC).then_some((Digest(*digest), len))
}

/// The contents, and how many bytes they have together.
fn parse_table(table: &[u8]) -> Option<(Vec<Content>, u64)> {
    let entry = |entry: &[u8]| {
        let (digest, len) = entry.split_first_chunk::<32>()?;
        Some((Digest(*digest), u64::from_le_bytes(*len.first_chunk::<8>()?)))
    };
    let contents: Vec<Content> = table.chunks_exact(ENTRY as usize).map(entry).collect::<Option<_>>()?;
    let total = contents.iter().try_fold(0u64, |sum, (_, len)| sum.checked_add(*len))?;
    Some((contents, total))
}

/// A pack on its way: it has no table yet, and nothing in it is found by who opens the store anew.
pub(super) struct Writing {
    file: Arc<File>,
    /// Bytes in the file that count.
    written: u64,
    /// What is to be written next.
    buffer: Vec<u8>,
    contents: Vec<Content>,
    /// By the first bytes of their digests: which it is, and where it begins.
    known: HashMap<u64, (usize, u64)>,
}

impl Writing {
    pub(super) fn create(dir: &Path) -> io::Result<Self> {
        let path = dir.join(WRITING);
        // A crash may have left one.
        let _ = fs::remove_file(&path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let file = Arc::new(file);
        Ok(Self { file, written: 0, buffer: Vec::new(), contents: Vec::new(), known: HashMap::default() })
    }

    /// Bytes of its contents.
    pub(super) fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.contents.is_empty()
    }

    /// Whether it has a content whose digest begins in that way.
    pub(super) fn has(&self, prefix: u64) -> bool {
        self.known.contains_key(&prefix)
    }

    /// Such a content, with the file and where it begins in that.
    ///
    /// # Errors
    /// It was still to be written, and that failed.
    pub(super) fn find(&mut self, prefix: u64) -> io::Result<Option<(Arc<File>, u64, Content)>> {
        let Some((which, offset)) = self.known.get(&prefix).copied() else { return Ok(None) };
        let (digest, len) = self.contents[which];
        if offset + len > self.written {
            self.flush()?;
        }
        Ok(Some((Arc::clone(&self.file), offset, (digest, len))))
    }

    fn add(&mut self, digest: Digest, len: u64, offset: u64) {
        self.known.insert(digest.prefix(), (self.contents.len(), offset));
        self.contents.push((digest, len));
    }

    /// Bytes that are to be written, with the table.
    pub(super) fn unwritten(&self) -> u64 {
        (self.buffer.len() + self.contents.len() * ENTRY as usize) as u64 + TRAILER
    }

    /// Whether its content has more bytes than contents beside others have.
    pub(super) fn is_alone(&self, beside: u64) -> bool {
        self.contents.first().is_some_and(|(_, len)| *len > beside)
    }

    pub(super) fn append(&mut self, digest: Digest, content: &[u8]) -> io::Result<()> {
        self.add(digest, content.len() as u64, self.bytes());
        self.buffer.extend_from_slice(content);
        if self.buffer.len() >= PIECE { self.flush() } else { Ok(()) }
    }

    /// Appends the first bytes of a file of the source; nothing if it has become shorter.
    pub(super) fn copy_source(&mut self, digest: Digest, source: &SourceFile, len: u64) -> io::Result<()> {
        self.flush()?;
        if source.copy_to(&self.file, self.written, len)? {
            self.add(digest, len, self.written);
            self.written += len;
            Ok(())
        } else {
            // What was copied before that was noticed would be behind the trailer.
            self.file.set_len(self.written)
        }
    }

    /// Appends a content of another pack; nothing, and false, if it cannot be read there.
    ///
    /// # Errors
    /// This one cannot be written.
    pub(super) fn copy_pack(&mut self, digest: Digest, from: &File, offset: u64, len: u64) -> io::Result<bool> {
        let mut piece = vec![0; usize::try_from(len).unwrap_or(PIECE).min(PIECE)];
        if len <= PIECE as u64 {
            return match from.read_exact_at(&mut piece, offset) {
                Ok(()) => self.append(digest, &piece).map(|()| true),
                Err(_) => Ok(false),
            };
        }
        self.flush()?;
        let mut done = 0;
        while done < len {
            let now = usize::try_from(len - done).unwrap_or(PIECE).min(PIECE);
            if from.read_exact_at(&mut piece[..now], offset + done).is_err() {
                return self.file.set_len(self.written).map(|()| false);
            }
            self.file.write_all_at(&piece[..now], self.written + done)?;
            done += now as u64;
        }
        self.add(digest, len, self.written);
        self.written += len;
        Ok(true)
    }

    /// Writes the table, and gives the pack its name: how many bytes it has, and its contents.
    pub(super) fn seal(mut self, dir: &Path, number: u64) -> io::Result<(u64, Vec<Content>)> {
        let mut table = Vec::with_capacity(self.contents.len() * ENTRY as usize);
        for (digest, len) in &self.contents {
            table.extend_from_slice(&digest.0);
            table.extend_from_slice(&len.to_le_bytes());
        }
        self.buffer.extend_from_slice(&table);
        self.buffer.extend_from_slice(&Digest::of(&table).0);
        self.buffer.extend_from_slice(&(self.contents.len() as u64).to_le_bytes());
        self.buffer.extend_from_slice(MAGIC);
        self.flush()?;
        fs::rename(dir.join(WRITING), path_of(dir, number))?;
        Ok((self.written, self.contents))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
