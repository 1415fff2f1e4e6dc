//! Reading content: only of the file that was seen, and only if it stayed the same while it was read.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, Mode, OFlags, fadvise, openat};
use rustix::io::{Errno, pread, read};

use super::clock;
use super::error::{FsError, is_gone};
use super::root::Root;
use crate::chunk::{ChunkRef, Chunker, Chunking, MIN_DELTA};
use crate::hash::Digest;
use crate::manifest::Tuple;
use crate::path::RelPath;

/// How much is read at once, and so how long a cancelled reading may go on.
const PIECE: u64 = 1 << 20;

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not what was seen before, or did not stay so: look again.
    #[error("it changed")]
    Changed,
    /// The caller gave it up.
    #[error("cancelled")]
    Cancelled,
    /// It cannot be read.
    #[error(transparent)]
    Fs(#[from] FsError),
}

/// A file's content, read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// BLAKE3 of the content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// The chunks, for a file of at least [`MIN_DELTA`] bytes.
    pub chunks: Option<Vec<ChunkRef>>,
    /// The content itself, if it was small enough to keep.
    pub content: Option<Vec<u8>>,
    /// What it was before and after the reading.
    pub tuple: Tuple,
    /// Whether the tuple proves the digest: any later write must change it.
    pub proven: bool,
}

/// Reads and hashes the file at `path`, which was seen as `expected`; keeps the content if it has at most `keep`
/// bytes. `progress` is told the bytes of each piece; `cancel` ends the reading within a mebibyte.
///
/// A store through an `mmap` into a page that is already dirty changes no time stamp, and so is not noticed here.
///
/// # Errors
/// [`ReadError::Changed`] if the file is not `expected`, before or after; retrying is up to the caller.
pub fn hash_file(
    root: &Root,
    path: &RelPath,
    expected: &Tuple,
    keep: u64,
    cancel: &AtomicBool,
    progress: &dyn Fn(u64),
) -> Result<Hashed, ReadError> {
    // Before the first look at the file: a write at this moment or later leaves a younger stamp than this.
    let start = clock::now();
    let file = SourceFile::open(root, path, expected)?;
    let size = expected.size;
    let mut sink = Sink::new(size, keep);
    let capacity = usize::try_from(size.saturating_add(1).min(PIECE)).unwrap_or(1);
    let mut piece = Vec::with_capacity(capacity);
    if size > PIECE {
        // Only a hint: without it the reading is slower.
        let _ = fadvise(&file.fd, 0, None, Advice::Sequential);
    }
    let mut total = 0;
    while total < size {
        if cancel.load(Ordering::Relaxed) {
            return Err(ReadError::Cancelled);
        }
        piece.clear();
        let len = match read(&file.fd, spare_capacity(&mut piece)) {
            Ok(0) => return Err(ReadError::Changed),
            Ok(len) => len as u64,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(FsError::new("read", path, errno).into()),
        };
        total += len;
        if total > size {
            return Err(ReadError::Changed);
        }
        sink.take(&piece);
        progress(len);
    }
    file.verify(root)?;
    let (digest, chunks, content) = sink.finish();
    let proven = clock::settled(expected.ctime, start, file.remote);
    Ok(Hashed { digest, size, chunks, content, tuple: *expected, proven })
}

/// Everything that is made of a content while it streams by.
struct Sink {
    hasher: blake3::Hasher,
    chunker: Option<(Chunker, Vec<ChunkRef>)>,
    content: Option<Vec<u8>>,
}

impl Sink {
    fn new(size: u64, keep: u64) -> Self {
        let kept = if size <= keep { usize::try_from(size).ok() } else { None };
        Self {
            hasher: blake3::Hasher::new(),
            chunker: (size >= MIN_DELTA).then(|| (Chunker::new(Chunking::for_size(size)), Vec::new())),
            content: kept.map(Vec::with_capacity),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        if let Some((chunker, chunks)) = &mut self.chunker {
            chunker.push(bytes, &mut |chunk| chunks.push(chunk));
        }
        if let Some(content) = &mut self.content {
            content.extend_from_slice(bytes);
        }
    }

    fn finish(self) -> (Digest, Option<Vec<ChunkRef>>, Option<Vec<u8>>) {
        let chunks = self.chunker.map(|(mut chunker, mut chunks)| {
            chunker.finish(&mut |chunk| chunks.push(chunk));
            chunks
        });
        (self.hasher.finalize().into(), chunks, self.content)
    }
}

/// A regular file that was opened as the one that had been seen.
#[derive(Debug)]
pub struct SourceFile {
    fd: OwnedFd,
    path: RelPath,
    expected: Tuple,
    remote: bool,
}

impl SourceFile {
    /// Opens the file at `path`, if it still is `expected`.
    ///
    /// # Errors
    /// [`ReadError::Changed`] if there is something else or nothing there.
    pub fn open(root: &Root, path: &RelPath, expected: &Tuple) -> Result<Self, ReadError> {
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
        let mut file = Self { fd, path: path.clone(), expected: *expected, remote: false };
        let stat = root.stat_fd(&file.fd).map_err(|errno| FsError::new("look at", path, errno))?;
        if !stat.is_file() || stat.tuple != *expected {
            return Err(ReadError::Changed);
        }
        file.remote = root.is_remote(&stat);
        Ok(file)
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

    /// Whether what was read is of the file as it was seen: it still is the same.
    ///
    /// # Errors
    /// [`ReadError::Changed`] if not.
    pub fn verify(&self, root: &Root) -> Result<(), ReadError> {
        match root.stat_fd(self.fd.as_fd()) {
            Ok(stat) if stat.tuple == self.expected => Ok(()),
            Ok(_) => Err(ReadError::Changed),
            Err(errno) => Err(FsError::new("look at", &self.path, errno).into()),
        }
    }
}

#[cfg(test)]
mod tests;
