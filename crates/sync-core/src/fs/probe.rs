//! Everything about one entry but its content: what `stat` cannot say.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{fgetxattr, flistxattr, lgetxattr, llistxattr, readlinkat};
use rustix::io::Errno;

use super::error::{FsError, ReadError};
use super::root::Root;
use super::scan::Seen;
use super::stat::{FileType, Stat};
use crate::hash::Digest;
use crate::manifest::{Entry, Kind, MAX_XATTRS_BYTES, Xattrs};
use crate::path::RelPath;

/// Largest list of xattr names and largest value that Linux hands out (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MOST: usize = 64 << 10;

/// How often an entry is read whose xattrs change meanwhile.
const TRIES: u32 = 8;

/// The entry that was seen, with its xattrs and a symlink's target.
///
/// A regular file gets the digest of no bytes as a placeholder, and the caller fills in `link`. Nothing is opened: the
/// xattrs of every kind are read by name through `/proc/self/fd`.
///
/// # Errors
/// [`ReadError::Changed`] if the entry is not what was seen any more. For a regular file only reading the content
/// ([`super::hash_file`]), afterwards, confirms that.
pub fn probe(root: &Root, seen: &Seen<'_>) -> Result<Entry, ReadError> {
    probe_at(root, seen.path(), seen.dir, seen.name, &seen.stat)
}

/// The same for an entry that was seen earlier: `name` in `dir`, which was `stat`.
///
/// # Errors
/// As [`probe`].
pub fn probe_at(
    root: &Root,
    path: &RelPath,
    dir: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
) -> Result<Entry, ReadError> {
    let entry = probe_restless(path, dir, name, stat)?;
    if !stat.is_file() {
        let now = root.stat_at(dir, name).map_err(|errno| failed("look at", path, errno))?;
        if now.tuple != stat.tuple {
            return Err(ReadError::Changed);
        }
    }
    Ok(entry)
}

/// The same for an entry that may change meanwhile, such as a directory in which names come and go all the time: its xattrs may
/// be later than the rest of it.
///
/// # Errors
/// [`ReadError::Changed`] if it is gone, or not a link any more.
pub fn probe_restless(path: &RelPath, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<Entry, ReadError> {
    let (major, minor) = stat.rdev;
    let kind = match stat.kind {
        FileType::RegularFile => Kind::File { size: stat.tuple.size, digest: Digest::empty() },
        FileType::Directory => Kind::Dir,
        FileType::Symlink => match readlinkat(dir, name, Vec::new()) {
            Ok(target) => Kind::Symlink { target: target.into_bytes().into() },
            Err(Errno::INVAL) => return Err(ReadError::Changed),
            Err(errno) => return Err(failed("read the link", path, errno)),
        },
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::CharDev { major, minor },
        FileType::BlockDevice => Kind::BlockDev { major, minor },
        FileType::Unknown => {
            return Err(FsError::because("look at", path, "it is of a kind that we do not know").into());
        }
    };
    let xattrs = by_name(dir, name).map_err(|errno| unreadable(path, errno))?;
    // Linux has no modes of symlinks; what a file system reports for them means nothing.
    let mode = if stat.kind == FileType::Symlink { 0o777 } else { stat.mode };
    Ok(Entry { kind, mode, uid: stat.uid, gid: stat.gid, mtime: stat.tuple.mtime, xattrs, link: None })
}

fn failed(doing: &'static str, path: &RelPath, errno: Errno) -> ReadError {
    match errno {
        Errno::NOENT => ReadError::Changed,
        errno => ReadError::Fs(FsError::new(doing, path, errno)),
    }
}

/// The entry of a regular file as far as its `stat` tells, for the caller to add digest and xattrs.
pub fn plain_file(stat: &Stat) -> Entry {
    let kind = Kind::File { size: stat.tuple.size, digest: Digest::empty() };
    let Stat { mode, uid, gid, .. } = *stat;
    Entry { kind, mode, uid, gid, mtime: stat.tuple.mtime, xattrs: Box::default(), link: None }
}

/// The xattrs of an open file, sorted.
///
/// # Errors
/// [`ReadError`]; that they belong together only a look at the file afterwards confirms.
pub(crate) fn xattrs_of(file: BorrowedFd<'_>, path: &RelPath) -> Result<Xattrs, ReadError> {
    let list = |buffer: &mut [u8]| flistxattr(file, buffer);
    let get = |name: &CStr, buffer: &mut [u8]| fgetxattr(file, name, buffer);
    read(&list, &get).map_err(|errno| unreadable(path, errno))
}

/// The xattrs of a directory, sorted. `O_PATH` suffices.
///
/// # Errors
/// As those of an open file.
pub(crate) fn xattrs_of_dir(dir: BorrowedFd<'_>, path: &RelPath) -> Result<Xattrs, ReadError> {
    by_name(dir, c".").map_err(|errno| unreadable(path, errno))
}

fn unreadable(path: &RelPath, errno: Errno) -> ReadError {
    let because = |reason: String| ReadError::Fs(FsError::because("read the xattrs of", path, reason));
    match errno {
        // That the name is there now tells nothing: it may have been away for the moment.
        Errno::NOENT if std::fs::metadata("/proc/self/fd").is_err() => {
            because("/proc is not mounted, and there is no other safe way to read xattrs: mount it".to_owned())
        }
        Errno::NOENT => ReadError::Changed,
        Errno::TOOBIG => because(format!("they take more than {MAX_XATTRS_BYTES} bytes")),
        errno => ReadError::Fs(FsError::new("read the xattrs of", path, errno)),
    }
}

/// The xattrs of `name` in `dir`, sorted. `E2BIG` if there are more bytes than an entry may have.
fn by_name(dir: BorrowedFd<'_>, name: &CStr) -> Result<Xattrs, Errno> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    read(&|buffer| llistxattr(&path, buffer), &|name, buffer| lgetxattr(&path, name, buffer))
}

type List<'a> = dyn Fn(&mut [u8]) -> Result<usize, Errno> + 'a;
type Get<'a> = dyn Fn(&CStr, &mut [u8]) -> Result<usize, Errno> + 'a;

fn read(list: &List<'_>, get: &Get<'_>) -> Result<Xattrs, Errno> {
    for _ in 0..TRIES {
        let names = match grown(list) {
            // The file system has none at all.
            Err(Errno::OPNOTSUPP) => return Ok(Box::default()),
            other => other?,
        };
        if let Some(xattrs) = values(get, &names)? {
            return Ok(xattrs);
        }
    }
    Err(Errno::BUSY)
}

/// The value of each attribute in `list`; `None` if one of them is gone.
fn values(get: &Get<'_>, list: &[u8]) -> Result<Option<Xattrs>, Errno> {
    let mut found = Vec::new();
    let mut bytes = 0;
    for name in list.split_inclusive(|&b| b == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if !is_ours(name.to_bytes()) {
            continue;
        }
        let value = match grown(|buffer| get(name, buffer)) {
            Err(Errno::NODATA) => return Ok(None),
            // Listed, but not to be had by anybody: some network file systems do that.
            Err(Errno::OPNOTSUPP) => continue,
            other => other?,
        };
        bytes += name.to_bytes().len() + value.len();
        if bytes > MAX_XATTRS_BYTES {
            return Err(Errno::TOOBIG);
        }
        found.push((name.to_bytes().into(), value.into()));
    }
    found.sort_unstable();
    Ok(Some(found.into()))
}

/// Whether an attribute belongs to the tree. What a file system shows about itself under `system.` does not; the
/// POSIX ACLs do.
fn is_ours(name: &[u8]) -> bool {
    !name.is_empty() && (!name.starts_with(b"system.") || name.starts_with(b"system.posix_acl_"))
}

/// What `read` fills in: a small buffer first, because most lists and values are, then the largest there can be.
fn grown(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0; 1024];
    match read(&mut small) {
        Ok(len) => Ok(small.get(..len).ok_or(Errno::RANGE)?.to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; MOST];
            let len = read(&mut large)?;
            large.truncate(len);
            Ok(large)
        }
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests;
