//! A file of the replica that content is taken from.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::error::FsError;
use super::root::Root;
use super::{sharing, sparse};
use crate::manifest::Tuple;
use crate::path::RelPath;

/// A file of the replica that content is taken from.
#[derive(Debug)]
pub struct BasisFile {
    fd: OwnedFd,
    path: RelPath,
    size: u64,
}

impl BasisFile {
    /// Opens the file at `path`, if it still is what the index says.
    ///
    /// # Errors
    /// [`FsError`] if it cannot be opened or has changed.
    pub fn open(root: &Root, path: &RelPath, expected: &Tuple) -> Result<Self, FsError> {
        let dir = root.dir(&path.parent().unwrap_or_default())?;
        // Opening a fifo that took the file's place must not wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fail = |errno| FsError::new("open", path, errno);
        let fd = openat(&dir, path.name(), flags, Mode::empty()).map_err(fail)?;
        let stat = root.stat_fd(&fd).map_err(fail)?;
        if stat.tuple != *expected || !stat.is_file() {
            return Err(FsError::because("use", path, "it was changed meanwhile"));
        }
        Ok(Self { fd, path: path.clone(), size: expected.size })
    }

    /// Bytes it had when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// [`FsError`], also if the file ends before.
    pub fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FsError> {
        match sparse::read_at(&self.fd, offset, buffer) {
            Ok(n) if n == buffer.len() => Ok(()),
            Ok(_) => Err(FsError::because("read", &self.path, "it became shorter meanwhile")),
            Err(errno) => Err(FsError::new("read", &self.path, errno)),
        }
    }

    /// Makes `len` bytes of `to` at `at` the same as these from `offset`, by sharing their blocks where that can be done;
    /// tells whether, as [`sharing::share_blocks`]. Since nobody keeps others from changing this file, what they are is to be read in `to`.
    pub(super) fn share(&self, offset: u64, to: impl AsFd, at: u64, len: u64) -> Result<bool, Errno> {
        sharing::share_blocks(&self.fd, offset, to, at, len)
    }
}
