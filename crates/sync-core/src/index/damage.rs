//! The files of an index: the lock that keeps a second opener out, and moving a damaged database aside.
//!
//! The only place in this adapter that touches files without SQLite. It never opens the database itself: closing any
//! descriptor of a file drops the POSIX locks that SQLite holds on it through another one.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "locking, creating and moving the database's own files is below what SQLite offers"
)]

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::error::IndexError;

/// How long one look at a lock that is taken waits before the next.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// What every write of a closed index changes, once it is folded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

/// Where the files of an index are.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) dir: PathBuf,
    pub(super) db: PathBuf,
}

/// What was found where the database belongs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Something with bytes in it.
    Database,
    /// Nothing at all.
    Nothing,
    /// An empty file, or a log whose database is gone.
    Remains,
}

/// Who holds the lock of an index that is only to be looked at.
pub(super) enum Holder {
    /// Nobody, and nobody can until this is dropped (`None`: there is no lock file).
    Nobody { _lock: Option<Lock> },
    /// A live process.
    Somebody,
}

/// Held while an index is open; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Files {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), db: dir.join("index.db") }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = OsString::from(self.db.as_os_str());
        name.push(suffix);
        name.into()
    }

    /// SQLite's write-ahead log.
    fn log(&self) -> PathBuf {
        self.beside("-wal")
    }

    /// Where the last damaged database is kept, for somebody who wants to find out why.
    pub(super) fn aside(&self) -> PathBuf {
        self.beside(".damaged")
    }

    /// Makes the directory if need be and takes the lock, waiting up to `wait`. The lock goes with the file returned.
    pub(super) fn lock(&self, wait: Duration) -> Result<Lock, IndexError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(|source| IndexError::File { doing: "make the directory", path: self.dir.clone(), source })?;
        let path = self.dir.join("index.lock");
        let failed = |source| IndexError::File { doing: "lock", path: path.clone(), source };
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(failed)?;
        let mut left = wait;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
                Err(TryLockError::WouldBlock) if left.is_zero() => return Err(IndexError::Busy(self.dir.clone())),
                Err(TryLockError::WouldBlock) => {
                    thread::sleep(left.min(LOCK_POLL));
                    left = left.saturating_sub(LOCK_POLL);
                }
            }
        }
    }

    /// Looks at the lock without making or changing any file.
    pub(super) fn holder(&self) -> Result<Holder, IndexError> {
        let path = self.dir.join("index.lock");
        let failed = |source| IndexError::File { doing: "lock", path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Holder::Nobody { _lock: None }),
            Err(error) => return Err(failed(error)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(Holder::Nobody { _lock: Some(Lock { _file: file }) }),
            Err(TryLockError::WouldBlock) => Ok(Holder::Somebody),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// What is there, by `stat` alone.
    pub(super) fn found(&self) -> Result<Found, IndexError> {
        Ok(match size(&self.db)? {
            None if self.has_log()? => Found::Remains,
            None => Found::Nothing,
            Some(0) => Found::Remains,
            Some(_) => Found::Database,
        })
    }

    /// Whether a log with bytes in it lies beside the database: it was not closed in order.
    pub(super) fn has_log(&self) -> Result<bool, IndexError> {
        Ok(size(&self.log())?.is_some_and(|size| size > 0))
    }

    /// See [`super::Index::stamp`].
    pub(super) fn stamp(&self) -> Option<Stamp> {
        let found = fs::metadata(&self.db).ok()?;
        Some(Stamp {
            inode: (found.dev(), found.ino()),
            size: found.len(),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// Bytes of the database and its log.
    pub(super) fn bytes(&self) -> u64 {
        [&self.db, &self.log()].into_iter().filter_map(|path| size(path).ok().flatten()).sum()
    }

    /// Makes an empty file for a new database, readable by its owner only (SQLite gives its other files the same mode),
    /// after whatever an earlier one left is gone.
    pub(super) fn create(&self) -> Result<(), IndexError> {
        self.remove_logs()?;
        let made = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&self.db);
        made.map_err(|source| IndexError::File { doing: "make", path: self.db.clone(), source })?;
        Ok(())
    }

    /// Moves the database aside, in place of an earlier one, and removes its logs. No connection may be open.
    ///
    /// The rename comes first: a crash in between leaves logs without a database, which [`Files::create`] removes.
    pub(super) fn move_aside(&self) -> Result<(), IndexError> {
        match fs::rename(&self.db, self.aside()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(IndexError::File { doing: "move aside", path: self.db.clone(), source: error });
            }
            _ => {}
        }
        self.remove_logs()
    }

    fn remove_logs(&self) -> Result<(), IndexError> {
        for suffix in ["-wal", "-shm", "-journal"] {
            let path = self.beside(suffix);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(IndexError::File { doing: "remove", path, source: error });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn size(path: &Path) -> Result<Option<u64>, IndexError> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        Err(source) => Err(IndexError::File { doing: "look at", path: path.to_owned(), source }),
    }
}
