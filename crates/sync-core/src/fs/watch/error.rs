//! Why a directory, or a whole tree, cannot be watched, and what to do about it.

use std::fmt;

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
    #[error("cannot watch {path}: all inotify watches are in use; raise {limit} (sysctl)")]
    Watches {
        /// The first directory that is left out.
        path: RelPath,
        /// What there may be.
        limit: Limit,
    },
    /// The user has as many inotify instances as they may.
    #[error("cannot watch: all inotify instances are in use; raise {limit} (sysctl)")]
    Instances {
        /// What there may be.
        limit: Limit,
    },
    /// The path is longer than the kernel takes, and there is no other way to name a directory to it.
    #[error("cannot watch {}: its path is longer than 4095 bytes", beginning(.0))]
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

/// A limit of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What `sysctl` calls it.
    pub sysctl: &'static str,
    /// What it is now, if that can be read.
    pub now: Option<u64>,
}

impl Limit {
    /// The one of two that is in force: a user namespace, as of a container, has limits of its own.
    fn of(kernel: &'static str, namespace: &'static str) -> Self {
        let read = |sysctl: &'static str| {
            let text = std::fs::read_to_string(format!("/proc/sys/{}", sysctl.replace('.', "/")));
            Self { sysctl, now: text.ok().and_then(|text| text.trim().parse().ok()) }
        };
        let (kernel, namespace) = (read(kernel), read(namespace));
        if namespace.now.is_some() && namespace.now < kernel.now { namespace } else { kernel }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.now {
            Some(now) => write!(f, "{}, now {now}", self.sysctl),
            None => f.write_str(self.sysctl),
        }
    }
}

/// What fits into a line of a path that does not.
fn beginning(path: &RelPath) -> String {
    let text = path.to_string();
    let some: String = text.chars().take(60).collect();
    if some.len() < text.len() { some + "..." } else { text }
}

impl WatchError {
    /// Whether other directories can still be watched.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::TooLong(_) | Self::Fs(_))
    }

    /// Whether what is in the directory can still be read: then it may change, and nobody hears of it.
    pub fn is_unheard(&self) -> bool {
        match self {
            Self::Fs(error) => error.errno() != Some(Errno::ACCESS),
            _ => true,
        }
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
        ErrorKind::MaxFilesWatch => WatchError::Watches {
            path: path.clone(),
            limit: Limit::of("fs.inotify.max_user_watches", "user.max_inotify_watches"),
        },
        ErrorKind::Generic(reason) => WatchError::Broken(reason),
        ErrorKind::WatchNotFound | ErrorKind::InvalidConfig(_) => WatchError::Broken(error.to_string()),
    })
}

/// What `error` means, that an inotify instance was to be made.
pub fn of_instance(error: notify::Error) -> WatchError {
    let ErrorKind::Io(error) = error.kind else { return WatchError::Broken(error.to_string()) };
    if Errno::from_io_error(&error) == Some(Errno::MFILE) && has_descriptors() {
        return WatchError::Instances {
            limit: Limit::of("fs.inotify.max_user_instances", "user.max_inotify_instances"),
        };
    }
    FsError::new("watch", &RelPath::root(), error).into()
}

/// The kernel has one number for two limits, `EMFILE`; whether it is not the process's own.
fn has_descriptors() -> bool {
    !matches!(rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()), Err(Errno::MFILE))
}
