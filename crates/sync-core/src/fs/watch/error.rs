//! Why a directory, or a whole tree, cannot be watched, and what to do about it.

use std::io;

use notify::ErrorKind;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Added;
use crate::fs::error::{FsError, is_gone};
use crate::path::RelPath;

/// Why something is not watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The user has as many inotify watches as they may.
    #[error("cannot watch {path}: all inotify watches are in use{}; raise fs.inotify.max_user_watches (sysctl)", shown(.limit))]
    Watches {
        /// The first directory that is left out.
        path: RelPath,
        /// How many there may be now.
        limit: Option<u64>,
    },
    /// The user has as many inotify instances as they may.
    #[error("cannot watch: all inotify instances are in use{}; raise fs.inotify.max_user_instances (sysctl)", shown(.limit))]
    Instances {
        /// How many there may be now.
        limit: Option<u64>,
    },
    /// The path is longer than the kernel takes, and there is no other way to name a directory to it.
    #[error("cannot watch {0}: its path is longer than 4095 bytes")]
    TooLong(RelPath),
    /// The kernel refused this directory. It must be readable.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The path of the tree leads to another directory than it did, or to none: watch it anew.
    #[error("the top of the tree was moved, deleted, unmounted or replaced")]
    RootGone,
    /// The thread that listens is gone: [`super::Watch::restart`] makes another.
    #[error("cannot watch: {0}")]
    Broken(String),
}

impl WatchError {
    /// Whether other directories can still be watched.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::TooLong(_) | Self::Fs(_))
    }
}

/// What `error` means for the directory at `path`, that it was to be watched.
pub fn of_directory(error: notify::Error, path: &RelPath) -> Result<Added, WatchError> {
    Err(match error.kind {
        ErrorKind::PathNotFound => return Ok(Added::NotADirectory),
        ErrorKind::Io(error) => match Errno::from_io_error(&error) {
            Some(errno) if is_gone(errno) => return Ok(Added::NotADirectory),
            Some(Errno::NAMETOOLONG) => WatchError::TooLong(path.clone()),
            _ => FsError::new("watch", path, error).into(),
        },
        ErrorKind::MaxFilesWatch => {
            WatchError::Watches { path: path.clone(), limit: limit("/proc/sys/fs/inotify/max_user_watches") }
        }
        ErrorKind::Generic(reason) => WatchError::Broken(reason),
        ErrorKind::WatchNotFound | ErrorKind::InvalidConfig(_) => WatchError::Broken(error.to_string()),
    })
}

/// What `error` means, that an inotify instance was to be made.
pub fn of_instance(error: notify::Error) -> WatchError {
    let ErrorKind::Io(error) = error.kind else { return WatchError::Broken(error.to_string()) };
    if Errno::from_io_error(&error) == Some(Errno::MFILE) && has_descriptors() {
        return WatchError::Instances { limit: limit("/proc/sys/fs/inotify/max_user_instances") };
    }
    FsError::new("watch", &RelPath::root(), error).into()
}

/// The kernel has one number for two limits, `EMFILE`; whether it is not the process's own.
fn has_descriptors() -> bool {
    !matches!(rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()), Err(Errno::MFILE))
}

fn limit(path: &str) -> Option<u64> {
    let read: io::Result<String> = std::fs::read_to_string(path);
    read.ok()?.trim().parse().ok()
}

fn shown(limit: &Option<u64>) -> String {
    limit.map_or_else(String::new, |limit| format!(" (there may be {limit})"))
}
