//! Directories of our own that may not be written: made writable for the moment, and given back as they were.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::attributes::Target;
use super::error::FsError;
use super::root::Root;
use crate::path::RelPath;

/// Which directories were made writable, with the mode each had.
#[derive(Debug, Default)]
pub(crate) struct Thaw(Mutex<HashMap<RelPath, u32>>);

impl Thaw {
    /// Opens the directory at `path`, making directories on the way passable if they are ours.
    pub fn open(&self, root: &Root, path: &RelPath) -> Result<Arc<OwnedFd>, FsError> {
        match root.dir(path) {
            Err(error) if error.errno() == Some(Errno::ACCESS) => {}
            other => return other,
        }
        let mut at = RelPath::root();
        for name in path.components() {
            self.thaw(root, &at);
            let Ok(next) = at.join(name) else { break };
            at = next;
        }
        root.dir(path)
    }

    /// Runs `call` in the directory `dir`; if it may not be written and is ours, makes it writable and tries again.
    pub fn within<T>(
        &self,
        root: &Root,
        dir: &RelPath,
        mut call: impl FnMut(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let open = || self.open(root, dir).map_err(|error| error.errno().unwrap_or(Errno::IO));
        let first = call(open()?.as_fd());
        if matches!(first, Err(Errno::ACCESS)) && self.thaw(root, dir) {
            return call(open()?.as_fd());
        }
        first
    }

    /// The directories that were made writable, with their modes; they are forgotten here.
    pub fn take(&self) -> HashMap<RelPath, u32> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A directory has got another name.
    pub fn rename(&self, from: &RelPath, to: &RelPath) {
        let mut thawed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mode) = thawed.remove(from) {
            thawed.insert(to.clone(), mode);
        }
    }

    /// Gives every directory its mode back, deepest first.
    pub fn restore(&self, root: &Root) {
        let mut dirs: Vec<_> = self.take().into_iter().collect();
        dirs.sort();
        for (path, mode) in dirs.into_iter().rev() {
            if let Ok(dir) = root.dir_now(&path) {
                let _ = Target::Open(dir.as_fd()).chmod(mode);
            }
        }
    }

    /// Makes the directory writable if it is not; tells whether it did.
    pub fn thaw(&self, root: &Root, path: &RelPath) -> bool {
        let Ok(fd) = hold(root, path) else { return false };
        let Ok(stat) = root.stat_fd(&fd) else { return false };
        if stat.mode & 0o700 == 0o700 || Target::Open(fd.as_fd()).chmod(stat.mode | 0o700).is_err() {
            return false;
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(path.clone()).or_insert(stat.mode);
        // What is cached may be a descriptor that can only be looked at.
        root.forget(path);
        true
    }
}

/// Holds a directory without any right to it.
fn hold(root: &Root, path: &RelPath) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match path.parent() {
        None => openat(root.fd(), c".", flags, Mode::empty()).or_else(|_| rustix::io::dup(root.fd())),
        Some(parent) => {
            // Not one from the cache, which may have been moved out of the tree: its mode is about to change.
            let dir = root.dir_now(&parent).map_err(|error| error.errno().unwrap_or(Errno::IO))?;
            openat(&dir, path.name(), flags, Mode::empty())
        }
    }
}
