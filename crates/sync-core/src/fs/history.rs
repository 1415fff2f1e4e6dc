//! Previous contents of one source: a bounded store in the state directory, so that the old content of a changed file is
//! at hand when its new one is sent.
//!
//! A cache and no more: nothing is flushed, and what is lost or damaged costs bytes on the wire. Contents lie one behind
//! the other in packs, each written under another name and renamed when its table is complete; a pack without a sound
//! table is removed. What is read is compared with its digest. Whoever holds the lock of the source's index is alone here.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::{HashMap, HashSet};

use super::read::SourceFile;
use crate::hash::Digest;

/// Smaller contents are sent whole in any case.
const LEAST: u64 = 1 << 10;

/// Bytes of a pack, unless one content has more: a part of the store, so that some can go while most stays.
const PACK: std::ops::RangeInclusive<u64> = 64 << 10..=64 << 20;

/// Bytes read or written at once.
const PIECE: usize = 1 << 20;

/// What ends a pack behind its table.
const MAGIC: &[u8; 8] = b"synchis1";

/// Bytes behind the table: their digest, how many contents, what ends a pack.
const TRAILER: u64 = 32 + 8 + 8;

/// Bytes of a content in the table: its digest and how long it is.
const ENTRY: u64 = 32 + 8;

/// The name of the pack that is being written.
const WRITING: &str = "writing";

/// The store. Memory: some 60 bytes for each content.
pub struct History {
    dir: PathBuf,
    most: u64,
    was_empty: bool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By number, the oldest first.
    packs: BTreeMap<u64, Pack>,
    /// By the first bytes of the digest.
    places: HashMap<u64, Place>,
    writing: Option<Writing>,
    /// Bytes put in since it was opened.
    put: u64,
    /// Writing failed: nothing more is put in.
    failed: bool,
}

struct Pack {
    file: Arc<File>,
    bytes: u64,
}

#[derive(Clone, Copy)]
struct Place {
    digest: Digest,
    pack: u64,
    offset: u64,
    len: u64,
}

/// A pack on its way: it has no table yet, and nothing in it is found.
struct Writing {
    file: File,
    /// Bytes in the file.
    written: u64,
    /// What is to be written next.
    buffer: Vec<u8>,
    contents: Vec<(Digest, u64)>,
}

/// One content of the store. What is read of it is to be compared with its digest before it is used.
#[derive(Clone)]
pub struct Kept {
    file: Arc<File>,
    offset: u64,
    len: u64,
    digest: Digest,
}

impl Kept {
    /// Which content.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// How many bytes.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// The whole content, verified; `None` if it is lost.
    pub fn read(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.len).ok()?];
        self.file.read_exact_at(&mut bytes, self.offset).ok()?;
        (Digest::of(&bytes) == self.digest).then_some(bytes)
    }

    /// Shows the content piece by piece to `see`, and tells whether it is what it was.
    pub fn verify(&self, see: &mut dyn FnMut(&[u8])) -> bool {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; PIECE];
        let mut done = 0;
        while done < self.len {
            let now = usize::try_from(self.len - done).unwrap_or(PIECE).min(PIECE);
            if self.read_exact_at(done, &mut buffer[..now]).is_err() {
                return false;
            }
            hasher.update(&buffer[..now]);
            see(&buffer[..now]);
            done += now as u64;
        }
        Digest::from(hasher.finalize()) == self.digest
    }

    /// Fills `buffer` from `offset` of the content, which was verified before.
    ///
    /// # Errors
    /// What the system says; also if the content ends before.
    pub fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(buffer, self.offset + offset)
    }
}

impl History {
    /// Opens the store in `dir`, which is made if it is missing, for at most `most` bytes.
    ///
    /// # Errors
    /// What the system says about the directory. A pack that cannot be read is removed.
    pub fn open(dir: PathBuf, most: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut inner = Inner::default();
        for item in fs::read_dir(&dir)? {
            let path = item?.path();
            let pack = number_of(&path).and_then(|number| Some((number, read_table(&path)?)));
            let Some((number, (pack, contents))) = pack else {
                // A crash left it, or it is damaged; nobody else writes here.
                let _ = fs::remove_file(&path);
                continue;
            };
            inner.add(number, pack, contents);
        }
        Ok(Self { dir, most, was_empty: inner.places.is_empty(), inner: Mutex::new(inner) })
    }

    /// Whether there was nothing in it when it was opened.
    pub fn was_empty(&self) -> bool {
        self.was_empty
    }

    /// The content whose digest begins in that way. What was put in since the store was opened need not be found.
    pub fn find(&self, prefix: u64) -> Option<Kept> {
        let inner = self.inner();
        let Place { digest, pack, offset, len } = *inner.places.get(&prefix)?;
        Some(Kept { file: Arc::clone(&inner.packs.get(&pack)?.file), offset, len, digest })
    }

    /// Whether a content of so many bytes is to be put in.
    pub fn wants(&self, digest: &Digest, size: u64) -> bool {
        self.inner().wants(digest, size, self.most)
    }

    /// Puts a content in.
    pub fn put(&self, digest: Digest, content: &[u8]) {
        let mut inner = self.inner();
        if inner.wants(&digest, content.len() as u64, self.most) {
            let appended = inner.append(&self.dir, self.pack(), digest, content);
            inner.check(appended);
        }
    }

    /// Puts a large content in, from a file that had it when it was last read: should it have changed, that shows when the
    /// content is needed. On file systems that can do so, the blocks are shared.
    pub fn put_file(&self, digest: Digest, source: &SourceFile, size: u64) {
        let mut inner = self.inner();
        if inner.wants(&digest, size, self.most) {
            let copied = inner.copy(&self.dir, digest, source, size);
            inner.check(copied);
        }
    }

    /// Keeps what was put in, and makes room: `current` tells the contents that files of the source have now. First
    /// goes what no file has any more, the oldest first; then what was put in first.
    pub fn finish(&self, current: impl FnOnce() -> HashSet<u64>) {
        let mut inner = self.inner();
        let finished = inner.seal(&self.dir).and_then(|()| match inner.bytes() > self.most {
            true => inner.shrink(&self.dir, self.most, self.pack(), &current()),
            false => Ok(()),
        });
        inner.check(finished);
        inner.writing = None;
        let _ = fs::remove_file(self.dir.join(WRITING));
    }

    fn pack(&self) -> u64 {
        (self.most / 32).clamp(*PACK.start(), *PACK.end())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn bytes(&self) -> u64 {
        self.packs.values().map(|pack| pack.bytes).sum()
    }

    fn wants(&self, digest: &Digest, size: u64, most: u64) -> bool {
        let fits = (LEAST..=most / 4).contains(&size) && self.put.saturating_add(size) <= most;
        fits && !self.failed && self.places.get(&digest.prefix()).is_none_or(|place| place.digest != *digest)
    }

    /// A store that cannot be written is of less use, and no reason to fail.
    fn check(&mut self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            tracing::warn!(%error, "previous contents cannot be kept");
            (self.failed, self.writing) = (true, None);
        }
    }

    fn add(&mut self, number: u64, pack: Pack, contents: Vec<(Digest, u64)>) {
        let mut offset = 0;
        for (digest, len) in contents {
            self.places.insert(digest.prefix(), Place { digest, pack: number, offset, len });
            offset += len;
        }
        self.packs.insert(number, pack);
    }

    fn writing(&mut self, dir: &Path) -> io::Result<&mut Writing> {
        if self.writing.is_none() {
            let path = dir.join(WRITING);
            // A crash may have left one.
            let _ = fs::remove_file(&path);
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            self.writing = Some(Writing { file, written: 0, buffer: Vec::new(), contents: Vec::new() });
        }
        self.writing.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn append(&mut self, dir: &Path, pack: u64, digest: Digest, content: &[u8]) -> io::Result<()> {
        let len = content.len() as u64;
        if self.writing.as_ref().is_some_and(|writing| writing.bytes() + len > pack) {
            self.seal(dir)?;
        }
        self.put += len;
        let writing = self.writing(dir)?;
        writing.buffer.extend_from_slice(content);
        writing.contents.push((digest, len));
        if writing.buffer.len() >= PIECE { writing.flush() } else { Ok(()) }
    }

    /// A large content is a pack of its own.
    fn copy(&mut self, dir: &Path, digest: Digest, source: &SourceFile, size: u64) -> io::Result<()> {
        self.seal(dir)?;
        self.put += size;
        let writing = self.writing(dir)?;
        if source.copy_to(&writing.file, size)? {
            writing.written = size;
            writing.contents.push((digest, size));
            self.seal(dir)
        } else {
            self.writing = None;
            Ok(())
        }
    }

    /// Ends the pack that is being written, if there is one.
    fn seal(&mut self, dir: &Path) -> io::Result<()> {
        let Some(mut writing) = self.writing.take() else { return Ok(()) };
        if writing.contents.is_empty() {
            return Ok(());
        }
        let mut table = Vec::with_capacity(writing.contents.len() * 40);
        for (digest, len) in &writing.contents {
            table.extend_from_slice(&digest.0);
            table.extend_from_slice(&len.to_le_bytes());
        }
        writing.buffer.extend_from_slice(&table);
        writing.buffer.extend_from_slice(&Digest::of(&table).0);
        writing.buffer.extend_from_slice(&(writing.contents.len() as u64).to_le_bytes());
        writing.buffer.extend_from_slice(MAGIC);
        writing.flush()?;
        let number = self.packs.last_key_value().map_or(1, |(last, _)| last.saturating_add(1));
        fs::rename(dir.join(WRITING), path_of(dir, number))?;
        let pack = Pack { file: Arc::new(writing.file), bytes: writing.written };
        self.add(number, pack, writing.contents);
        Ok(())
    }

    /// Removes packs until there are at most `most` bytes. What files have now is carried over into new packs, as long as
    /// at least a quarter of the store is anything else: then less than four bytes are written for each that is freed.
    fn shrink(&mut self, dir: &Path, most: u64, pack: u64, current: &HashSet<u64>) -> io::Result<()> {
        let carries = self.needed(current, None) <= most / 4 * 3;
        while self.bytes() > most {
            let idle = |(number, pack): &(&u64, &Pack)| {
                (pack.bytes - self.needed(current, Some(**number)).min(pack.bytes)) * 4 >= pack.bytes
            };
            let oldest = self.packs.keys().next().copied();
            let victim = if carries { self.packs.iter().find(idle).map(|(number, _)| *number) } else { None };
            let Some(number) = victim.or(oldest) else { return Ok(()) };
            let Some(removed) = self.packs.remove(&number) else { return Ok(()) };
            let places = self.places.extract_if(|_, place| place.pack == number);
            let mut carried: Vec<Place> = places.map(|(_, place)| place).collect();
            if victim.is_some() {
                carried.retain(|place| current.contains(&place.digest.prefix()));
                carried.sort_by_key(|place| place.offset);
                for Place { digest, offset, len, .. } in carried {
                    let mut content = vec![0; usize::try_from(len).unwrap_or(0)];
                    if removed.file.read_exact_at(&mut content, offset).is_ok() {
                        self.append(dir, pack, digest, &content)?;
                    }
                }
                self.seal(dir)?;
            }
            fs::remove_file(path_of(dir, number))?;
        }
        Ok(())
    }

    /// Bytes of the contents that files have now, in one pack or all.
    fn needed(&self, current: &HashSet<u64>, pack: Option<u64>) -> u64 {
        let places = self.places.iter().filter(|(_, place)| pack.is_none_or(|pack| pack == place.pack));
        places.filter(|(prefix, _)| current.contains(*prefix)).map(|(_, place)| place.len).sum()
    }
}

impl Writing {
    fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.pack"))
}

fn number_of(path: &Path) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_suffix(".pack").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// What a pack says it has; `None` if that is not sound.
fn read_table(path: &Path) -> Option<(Pack, Vec<(Digest, u64)>)> {
    let file = File::open(path).ok()?;
    let bytes = file.metadata().ok()?.len();
    let mut trailer = [0; TRAILER as usize];
    let end = bytes.checked_sub(TRAILER)?;
    file.read_exact_at(&mut trailer, end).ok()?;
    let (digest, rest) = trailer.split_first_chunk::<32>()?;
    let (count, magic) = rest.split_first_chunk::<8>()?;
    let len = u64::from_le_bytes(*count).checked_mul(ENTRY).filter(|len| *len <= end)?;
    let mut table = vec![0; usize::try_from(len).ok()?];
    file.read_exact_at(&mut table, end - len).ok()?;
    if magic != MAGIC || Digest::of(&table).0 != *digest {
        return None;
    }
    let entry = |entry: &[u8]| {
        let (digest, len) = entry.split_first_chunk::<32>()?;
        Some((Digest(*digest), u64::from_le_bytes(*len.first_chunk::<8>()?)))
    };
    let contents: Vec<(Digest, u64)> = table.chunks_exact(ENTRY as usize).map(entry).collect::<Option<_>>()?;
    let total = contents.iter().try_fold(0u64, |sum, (_, len)| sum.checked_add(*len))?;
    (total == end - len).then(|| (Pack { file: Arc::new(file), bytes }, contents))
}

#[cfg(test)]
mod tests;
