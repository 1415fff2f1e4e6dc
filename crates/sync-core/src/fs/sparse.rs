//! Content on disk in pieces: zero runs are left out when it is written, and skipped when a file is copied.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::zeros::are_zeros;

/// The unit of holes in bytes: the block size of almost every file system, and the page size of a tmpfs.
pub(crate) const BLOCK: usize = 4096;

/// How much is read and written at a time.
const PIECE: usize = 1 << 20;

/// Copies up to this size are read and written: sharing blocks would cost more calls than it saves bytes.
const SMALL: u64 = 64 << 10;

/// Writes all that an empty file shall hold, leaving out aligned blocks of zeros.
pub(crate) fn write_whole(fd: impl AsFd, bytes: &[u8]) -> Result<(), Errno> {
    if has_hole(bytes) {
        write_sparse(&fd, 0, bytes)?;
        return rustix::fs::ftruncate(fd, bytes.len() as u64);
    }
    write_at(fd, 0, bytes)
}

/// Writes `bytes` at `offset`, a multiple of [`BLOCK`], leaving out aligned blocks of zeros. The caller sets the length
/// of the file in the end: a hole at the end leaves it too short.
pub(crate) fn write_sparse(fd: impl AsFd, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
    let mut from = 0;
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + BLOCK).min(bytes.len());
        if are_zeros(&bytes[at..end]) {
            write_at(&fd, offset + from as u64, &bytes[from..at])?;
            from = end;
        }
        at = end;
    }
    write_at(&fd, offset + from as u64, &bytes[from..])
}

/// Whether there is a block of zeros to leave out, so that the length of the file must be set.
fn has_hole(bytes: &[u8]) -> bool {
    bytes.len() >= BLOCK && bytes.chunks_exact(BLOCK).any(are_zeros)
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_at(fd: impl AsFd, mut offset: u64, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&fd, bytes, offset) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Fills `buffer` from `offset` as far as the file goes; tells how far.
pub(crate) fn read_at(fd: impl AsFd, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::pread(&fd, &mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(filled)
}

/// Fills `buffer` from `offset`; [`Errno::NODATA`] if the file ends before.
pub(crate) fn read_exact_at(fd: impl AsFd, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
    let n = read_at(fd, offset, buffer)?;
    if n == buffer.len() { Ok(()) } else { Err(Errno::NODATA) }
}

/// Makes `to`, an empty file, a copy of `from`: sharing its blocks where the file system can, else reading and writing
/// what is no hole. Both may be on different file systems.
pub(crate) fn copy_file(from: impl AsFd, to: impl AsFd, size: u64) -> Result<(), Errno> {
    if size <= SMALL {
        let mut bytes = vec![0; size as usize];
        let len = read_at(&from, 0, &mut bytes)?;
        return write_whole(&to, &bytes[..len]);
    }
    if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    let mut at = 0;
    while at < size {
        let (start, end) = data_after(&from, at, size)?;
        copy_range(&from, &to, start, end)?;
        at = end;
    }
    rustix::fs::ftruncate(to, size)
}

/// The next stretch of data at or after `at`; empty at `size` if only a hole is left.
fn data_after(fd: impl AsFd, at: u64, size: u64) -> Result<(u64, u64), Errno> {
    let start = match rustix::fs::seek(&fd, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok((size, size)),
        // A file system that knows no holes.
        Err(Errno::INVAL) => return Ok((at, size)),
        Err(errno) => return Err(errno),
    };
    let end = rustix::fs::seek(&fd, SeekFrom::Hole(start))?;
    Ok((start.min(size), end.min(size)))
}

fn copy_range(from: impl AsFd, to: impl AsFd, start: u64, end: u64) -> Result<(), Errno> {
    let mut buffer = vec![0; PIECE.min(usize::try_from(end - start).unwrap_or(PIECE))];
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        let n = read_at(&from, at, &mut buffer[..want])?;
        if n == 0 {
            break;
        }
        // Data starts at a block's beginning, so blocks of zeros inside become holes as well.
        if at.is_multiple_of(BLOCK as u64) {
            write_sparse(&to, at, &buffer[..n])?;
        } else {
            write_at(&to, at, &buffer[..n])?;
        }
        at += n as u64;
    }
    Ok(())
}

/// Hashes the first `limit` bytes of a file, or all if it is shorter; [`Errno::CANCELED`] once `stop` is raised.
pub(crate) fn hash(fd: impl AsFd, limit: u64, stop: &AtomicBool) -> Result<blake3::Hasher, Errno> {
    let mut hasher = blake3::Hasher::new();
    each_piece(fd, limit, stop, |piece| {
        hasher.update(piece);
    })?;
    Ok(hasher)
}

/// Shows the first `limit` bytes of a file, or all if it is shorter, from its beginning; [`Errno::CANCELED`] once `stop`
/// is raised.
pub(crate) fn each_piece(
    fd: impl AsFd,
    limit: u64,
    stop: &AtomicBool,
    mut visit: impl FnMut(&[u8]),
) -> Result<(), Errno> {
    let mut buffer = vec![0; usize::try_from(limit).map_or(PIECE, |limit| limit.min(PIECE))];
    let mut at = 0;
    while at < limit {
        if stop.load(Ordering::Relaxed) {
            return Err(Errno::CANCELED);
        }
        let want = usize::try_from(limit - at).map_or(PIECE, |left| left.min(PIECE));
        let n = read_at(&fd, at, &mut buffer[..want])?;
        visit(&buffer[..n]);
        at += n as u64;
        if n < want {
            break;
        }
    }
    Ok(())
}
