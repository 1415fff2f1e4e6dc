//! Reading content: only of the file that was seen, and only if it stayed the same while it was read.

mod blocks;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, Mode, OFlags, copy_file_range, fadvise, openat};
use rustix::io::{Errno, pread};

use super::error::{FsError, ReadError, is_gone};
use super::root::Root;
use super::stat::Stat;
use super::{clock, probe};
use crate::chunk::{ChunkRef, Chunking, Lister, MIN_DELTA, chunks_of};
use crate::delta::{Copies, CopyRange};
use crate::hash::Digest;
use crate::manifest::{Tuple, Xattrs};
use crate::path::RelPath;

/// How much is read at once, and so how long a cancelled reading may go on.
const PIECE: u64 = 1 << 20;

/// Files of more bytes than this are read by several threads: such a file is often the only one.
const BESIDE: u64 = 64 << 20;

/// A file's content, read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// BLAKE3 of the content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// The chunks, if they were asked for and the file has at least [`MIN_DELTA`] bytes.
    pub chunks: Option<Vec<ChunkRef>>,
    /// The content itself, if it was small enough to keep.
    pub content: Option<Vec<u8>>,
    /// The extended attributes, if they were asked for.
    pub xattrs: Option<Xattrs>,
    /// What it was before and after the reading.
    pub tuple: Tuple,
    /// Whether the tuple proves the digest: any later write must change it.
    pub proven: bool,
}

/// How to read a content, and what to make of it.
pub struct Reading<'a> {
    /// Contents of at most this many bytes are kept.
    pub keep: u64,
    /// Whether to cut it into chunks, if it has at least [`MIN_DELTA`] bytes.
    pub chunked: bool,
    /// The content that it probably still is: then chunks are of no use.
    pub old: Option<Digest>,
    /// The chunks of what it was before, if that was cut with the same sizes: where it is the same, it is cut faster.
    pub follow: Option<Arc<[ChunkRef]>>,
    /// Is told what of it is in the content with those chunks, as it is found, if the two differ and the file is a large
    /// one.
    pub draft: &'a dyn Fn(Vec<CopyRange>),
    /// Whether to read the extended attributes as well.
    pub xattrs: bool,
    /// Ends the reading within a mebibyte when it turns true.
    pub cancel: &'a AtomicBool,
    /// Is told the bytes of each piece.
    pub progress: &'a dyn Fn(u64),
}

/// Reads and hashes the file at `path`, which was seen as `expected`.
///
/// A store through an `mmap` into a page that is already dirty changes no time stamp, and so is not noticed here.
///
/// Four system calls for a file of up to a mebibyte: open, read, statx, close; for extended attributes flistxattr.
///
/// # Errors
/// [`ReadError::Changed`] if the file is not `expected`, before or after; retrying is up to the caller.
pub fn hash_file(root: &Root, path: &RelPath, expected: &Tuple, how: &Reading<'_>) -> Result<Hashed, ReadError> {
    // Before the file is opened: a write at this moment or later leaves a younger stamp than this.
    let start = clock::now();
    let file = SourceFile::open_unseen(root, path, expected)?;
    let size = expected.size;
    if size > PIECE {
        // Only a hint: without it the reading is slower.
        let _ = fadvise(&file.fd, 0, None, Advice::Sequential);
    }
    let Read { digest, chunks, content } = match size <= how.keep {
        true => read_whole(root, &file, how)?,
        false => read_through(root, &file, how)?,
    };
    let xattrs = if how.xattrs { Some(probe::xattrs_of(file.fd.as_fd(), path)?) } else { None };
    // The look before the reading was the one that gave `expected`: whatever came between shows now.
    let stat = file.look(root)?;
    let proven = clock::settled(expected.ctime, start, root.is_remote(&stat));
    Ok(Hashed { digest, size, chunks, content, xattrs, tuple: *expected, proven })
}

/// What was made of a content.
struct Read {
    digest: Digest,
    chunks: Option<Vec<ChunkRef>>,
    content: Option<Vec<u8>>,
}

/// Hashes a content at once, which for a small file is cheaper.
fn read_whole(root: &Root, file: &SourceFile, how: &Reading<'_>) -> Result<Read, ReadError> {
    let size = file.expected.size;
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    let mut done = 0;
    file.each_piece(root, how.cancel, &mut content, |content| {
        (how.progress)((content.len() - done) as u64);
        done = content.len();
    })?;
    let digest = Digest::of(&content);
    let chunked = how.chunked && size >= MIN_DELTA && how.old != Some(digest);
    let chunks = chunked.then(|| chunks_of(&content, Chunking::for_size(size)));
    Ok(Read { digest, chunks, content: Some(content) })
}

/// Hashes a content while it streams by.
fn read_through(root: &Root, file: &SourceFile, how: &Reading<'_>) -> Result<Read, ReadError> {
    let size = file.expected.size;
    let chunking = Chunking::for_size(size);
    let mut lister = (how.chunked && size >= MIN_DELTA).then(|| match &how.follow {
        Some(old) => Lister::following(chunking, Arc::clone(old)),
        None => Lister::new(chunking),
    });
    let mut copies = how.follow.as_ref().filter(|_| size > BESIDE).map(|old| Copies::new(size, old));
    let mut take = |piece: &[u8]| {
        if let Some(lister) = &mut lister {
            let before = lister.list().len();
            lister.push(piece);
            let told =
                |copies: &mut Copies| lister.list()[before..].iter().flat_map(|chunk| copies.push(chunk)).collect();
            tell(how, copies.as_mut().map(told));
        }
        (how.progress)(piece.len() as u64);
    };
    let in_blocks = if size > BESIDE { blocks::hash(root, file, how.cancel, &mut take)? } else { None };
    let digest = match in_blocks {
        Some(digest) => digest,
        None => {
            let mut hasher = blake3::Hasher::new();
            let mut piece = Vec::with_capacity(usize::try_from(size.min(PIECE)).unwrap_or(1));
            file.each_piece(root, how.cancel, &mut piece, |piece| {
                hasher.update(piece);
                take(piece);
                piece.clear();
            })?;
            hasher.finalize().into()
        }
    };
    tell(how, copies.map(Copies::finish));
    Ok(Read { digest, chunks: lister.map(Lister::finish), content: None })
}

fn tell(how: &Reading<'_>, ranges: Option<Vec<CopyRange>>) {
    if let Some(ranges) = ranges.filter(|ranges| !ranges.is_empty()) {
        (how.draft)(ranges);
    }
}

/// A regular file that was opened as the one that had been seen.
#[derive(Debug)]
pub struct SourceFile {
    fd: OwnedFd,
    path: RelPath,
    expected: Tuple,
}

impl SourceFile {
    /// Opens the file at `path`, if it still is `expected`.
    ///
    /// # Errors
    /// [`ReadError::Changed`] if there is something else or nothing there.
    pub fn open(root: &Root, path: &RelPath, expected: &Tuple) -> Result<Self, ReadError> {
        let file = Self::open_unseen(root, path, expected)?;
        file.verify(root)?;
        Ok(file)
    }

    /// What it was when it was seen.
    pub fn tuple(&self) -> &Tuple {
        &self.expected
    }

    /// Opens whatever is at `path` now: to be verified after the reading at the latest.
    fn open_unseen(root: &Root, path: &RelPath, expected: &Tuple) -> Result<Self, ReadError> {
        let Some(parent) = path.parent() else { return Err(ReadError::Changed) };
        let dir = match root.dir(&parent) {
            Ok(dir) => dir,
            Err(error) if error.is_gone() => return Err(ReadError::Changed),
            Err(error) => return Err(FsError { doing: "open", path: path.clone(), ..error }.into()),
        };
        // Should a fifo or a device have taken the name by now, then NONBLOCK keeps the open from waiting.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = |flags| openat(&dir, path.name(), flags, Mode::empty());
        let fd = loop {
            let mut opened = open(flags | OFlags::NOATIME);
            if matches!(opened, Err(Errno::PERM)) {
                // Only the owner may leave the access time alone.
                opened = open(flags);
            }
            match opened {
                Ok(fd) => break fd,
                Err(Errno::INTR) => {}
                Err(errno) if is_gone(errno) || matches!(errno, Errno::NXIO | Errno::NODEV) => {
                    return Err(ReadError::Changed);
                }
                Err(errno) => return Err(FsError::new("open", path, errno).into()),
            }
        };
        Ok(Self { fd, path: path.clone(), expected: *expected })
    }

    /// Reads all of the file, each time into the room that is left in `piece`, and shows that to `take`, which may make room.
    fn each_piece(
        &self,
        root: &Root,
        cancel: &AtomicBool,
        piece: &mut Vec<u8>,
        mut take: impl FnMut(&mut Vec<u8>),
    ) -> Result<(), ReadError> {
        let mut total = 0;
        while total < self.expected.size {
            if cancel.load(Ordering::Relaxed) {
                return Err(ReadError::Cancelled);
            }
            let begin = piece.len();
            // By position, which a fifo or socket that took the name refuses, so that nothing is taken out of it.
            match pread(&self.fd, spare_capacity(piece), total) {
                Ok(0) => return Err(ReadError::Changed),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    // What cannot be read may be something else by now, a directory say.
                    self.verify(root)?;
                    return Err(FsError::new("read", &self.path, errno).into());
                }
            }
            total += (piece.len() - begin) as u64;
            if total > self.expected.size {
                return Err(ReadError::Changed);
            }
            take(piece);
        }
        Ok(())
    }

    /// Fills `buffer` with what the file holds from `offset` on. Believe it only after [`SourceFile::verify`].
    ///
    /// # Errors
    /// [`ReadError::Changed`] if the file ends before.
    pub fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let mut done = 0;
        while done < buffer.len() {
            match pread(&self.fd, &mut buffer[done..], offset.saturating_add(done as u64)) {
                Ok(0) => return Err(ReadError::Changed),
                Ok(len) => done += len,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(FsError::new("read", &self.path, errno).into()),
            }
        }
        Ok(())
    }

    /// The `len` bytes of the file from `offset` on. Believe them only after [`SourceFile::verify`].
    ///
    /// # Errors
    /// [`ReadError::Changed`] if the file ends before.
    pub fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>, ReadError> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset.saturating_add(bytes.len() as u64);
            match pread(&self.fd, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(ReadError::Changed),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(FsError::new("read", &self.path, errno).into()),
            }
        }
        // There may have been more room than was asked for.
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Copies the first `len` bytes to `out` at `at`, if the file has so many; by the kernel where it can, which may share
    /// the blocks. Believe them only after [`SourceFile::verify`].
    pub(super) fn copy_to(&self, out: &File, at: u64, len: u64) -> io::Result<bool> {
        let mut done = 0;
        while done < len {
            let (mut from, mut to) = (done, at + done);
            let most = usize::try_from(len - done).unwrap_or(usize::MAX);
            match copy_file_range(&self.fd, Some(&mut from), out, Some(&mut to), most) {
                Ok(0) => return Ok(false),
                Ok(copied) => done += copied as u64,
                Err(Errno::INTR) => {}
                // Other file systems, or a kernel that cannot.
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                    let now = usize::try_from(PIECE.min(len - done)).unwrap_or(0);
                    let Ok(bytes) = self.read_at(done, now) else { return Ok(false) };
                    out.write_all_at(&bytes, at + done)?;
                    done += now as u64;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    /// Whether what was read is of the file as it was seen: it still is the same.
    ///
    /// # Errors
    /// [`ReadError::Changed`] if not.
    pub fn verify(&self, root: &Root) -> Result<(), ReadError> {
        self.look(root).map(drop)
    }

    fn look(&self, root: &Root) -> Result<Stat, ReadError> {
        match root.stat_fd(self.fd.as_fd()) {
            Ok(stat) if stat.is_file() && stat.tuple == self.expected => Ok(stat),
            Ok(_) => Err(ReadError::Changed),
            Err(errno) => Err(FsError::new("look at", &self.path, errno).into()),
        }
    }
}

#[cfg(test)]
mod tests;
