//! The top of a tree, and the only way beneath it: every directory below is opened through here and cannot lie outside.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::HashMap;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, RawDir, ResolveFlags, flock, openat, openat2};
use rustix::io::Errno;

use super::error::FsError;
use super::stat::{FileSystems, Stat};
use crate::path::RelPath;

/// Most directories the cache of a [`Root`] holds open.
const CACHED: usize = 128;

/// Longest piece of a path given to the kernel at once; `PATH_MAX` is 4096 with its NUL.
const PIECE: usize = 4000;

/// The top directory of a source or replica tree, held open.
///
/// It is opened once, ordinarily: the way to it may lead through links. Beneath it no link is ever followed.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    fd: Arc<OwnedFd>,
    identity: (u64, u64),
    file_systems: FileSystems,
    cache: Mutex<Cache>,
    /// Kernels before 5.6 (and some sandboxes) lack `openat2`: then every name costs an open of its own.
    stepwise: AtomicBool,
}

/// Directories opened lately, the least recently used given up first.
#[derive(Debug, Default)]
struct Cache {
    dirs: HashMap<RelPath, (Arc<OwnedFd>, u64)>,
    clock: u64,
    /// How many it holds.
    most: usize,
}

/// An exclusive lock on the inode of a root; given back when dropped, or when the process ends however it ends.
#[derive(Debug)]
pub struct RootLock {
    _fd: OwnedFd,
}

impl Root {
    /// Opens the directory at `path`.
    ///
    /// # Errors
    /// The kernel's, `ENOTDIR` for anything but a directory (or a link to one).
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self::held(fd, path.to_owned(), CACHED)?)
    }

    /// The directory `name` in the directory `fd`, as the top of a tree of its own, of which up to `held` directories are
    /// kept open. It is opened as it is, not through a link.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn within(fd: BorrowedFd<'_>, name: &str, path: PathBuf, held: usize) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Self::held(openat(fd, name, flags, Mode::empty())?, path, held)
    }

    fn held(fd: OwnedFd, path: PathBuf, most: usize) -> Result<Self, Errno> {
        let file_systems = FileSystems::default();
        let identity = file_systems.stat_fd(fd.as_fd())?.identity();
        Ok(Self {
            path,
            fd: Arc::new(fd),
            identity,
            file_systems,
            cache: Mutex::new(Cache { most, ..Cache::default() }),
            stepwise: AtomicBool::new(false),
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode number.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// The open top directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether the path still leads to the directory that was opened.
    pub fn still_there(&self) -> bool {
        rustix::fs::stat(&self.path).is_ok_and(|now| (now.st_dev, now.st_ino) == self.identity)
    }

    /// Locks the inode against every other push and daemon on this machine; `None` if one of them has it.
    ///
    /// # Errors
    /// The kernel's, such as `ENOLCK`.
    pub fn lock(&self) -> io::Result<Option<RootLock>> {
        // A descriptor of its own: the lock belongs to the open file, and must go when the lock goes.
        let fd = openat(&self.fd, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        loop {
            match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(RootLock { _fd: fd })),
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Looks at a single `name` in an open directory, not following a link. The name is a `&[u8]` or `&CStr`, without
    /// slashes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stat_at(&self, dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<Stat, Errno> {
        name.into_with_c_str(|name| self.file_systems.stat_at(dir, name))
    }

    /// Looks at an open descriptor (`O_PATH` suffices).
    ///
    /// # Errors
    /// The kernel's.
    pub fn stat_fd(&self, fd: impl AsFd) -> Result<Stat, Errno> {
        self.file_systems.stat_fd(fd.as_fd())
    }

    /// Looks at the entry at `path`; `None` if it, or a directory on the way, does not exist (any more).
    ///
    /// # Errors
    /// [`FsError`] for everything but absence.
    pub fn stat(&self, path: &RelPath) -> Result<Option<Stat>, FsError> {
        let found = match path.parent() {
            None => self.stat_fd(&*self.fd),
            Some(parent) => match self.dir(&parent) {
                Ok(dir) => self.stat_at(dir.as_fd(), path.name()),
                Err(error) if error.is_gone() => return Ok(None),
                Err(error) => return Err(FsError { path: path.clone(), ..error }),
            },
        };
        match found {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(FsError::new("look at", path, errno)),
        }
    }

    /// Whether another machine's clock stamps the inodes of the file system that `stat` is on.
    pub(crate) fn is_remote(&self, stat: &Stat) -> bool {
        self.file_systems.is_remote(stat)
    }

    /// The directory at `path`, from the cache or opened. It can be read and walked; one that may not be read comes as
    /// an `O_PATH` descriptor, which suffices for `*at` calls.
    ///
    /// A cached descriptor keeps to its inode when the directory is renamed: after renaming or removing one, call
    /// [`Root::forget`]; where somebody else may have done it and it matters, call [`Root::dir_now`].
    ///
    /// # Errors
    /// [`FsError`]; [`FsError::is_gone`] tells a name that is absent, no directory or a link.
    pub fn dir(&self, path: &RelPath) -> Result<Arc<OwnedFd>, FsError> {
        if path.is_root() {
            return Ok(Arc::clone(&self.fd));
        }
        if let Some(fd) = self.cache().find(path) {
            return Ok(fd);
        }
        self.dir_now(path)
    }

    /// The directory that is at `path` now, past the cache (which then holds it).
    ///
    /// # Errors
    /// As [`Root::dir`].
    pub fn dir_now(&self, path: &RelPath) -> Result<Arc<OwnedFd>, FsError> {
        if path.is_root() {
            return Ok(Arc::clone(&self.fd));
        }
        let fd = Arc::new(self.open_dir(path)?);
        self.cache().keep(path, &fd);
        Ok(fd)
    }

    /// The names in the directory that is at `path` now, and whether each may be a directory. They prove nothing about
    /// what is absent.
    ///
    /// # Errors
    /// As [`Root::dir`].
    pub fn names(&self, path: &RelPath) -> Result<Vec<(Vec<u8>, bool)>, FsError> {
        let fail = |errno| FsError::new("list the directory", path, errno);
        let fd = self.open_dir(path)?;
        let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(&fd, &mut buffer);
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Err(Errno::INTR) => continue,
                other => other.map_err(fail)?,
            };
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let may_be_dir = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
                names.push((name.to_vec(), may_be_dir));
            }
        }
        Ok(names)
    }

    /// Makes [`Root::dir`] give this directory, which the caller has just opened at `path`.
    pub(crate) fn keep(&self, path: &RelPath, fd: &Arc<OwnedFd>) {
        self.cache().keep(path, fd);
    }

    /// Makes [`Root::dir`] give the directory that is at `path` now, or fail if there is none any more.
    pub(crate) fn renew(&self, path: &RelPath) {
        if self.dir_now(path).is_err() {
            self.forget(path);
        }
    }

    /// A descriptor of the directory at `path` that nobody else has: its reading position is the caller's.
    ///
    /// # Errors
    /// As [`Root::dir`].
    pub fn open_dir(&self, path: &RelPath) -> Result<OwnedFd, FsError> {
        let read = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = match self.walk(path, read) {
            Err(Errno::ACCESS) => {
                self.walk(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW)
            }
            other => other,
        };
        // Descriptors are ours to give back before anybody else's work fails for want of one.
        let fd = match fd {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.cache().dirs.clear();
                self.walk(path, read)
            }
            other => other,
        };
        fd.map_err(|errno| FsError::new("open the directory", path, errno))
    }

    /// Drops `path` and everything beneath it from the cache: to be called when a directory was renamed or removed.
    pub fn forget(&self, path: &RelPath) {
        self.cache().dirs.retain(|dir, _| dir != path && !dir.is_beneath(path));
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // A panic elsewhere leaves the map whole: every change is a single insert or remove.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Walks from the top to `path` in pieces that the kernel accepts, following no link.
    fn walk(&self, path: &RelPath, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut at: Option<OwnedFd> = None;
        let mut rest = if path.is_root() { b"." } else { path.as_bytes() };
        loop {
            let (piece, left) = cut(rest);
            let from = at.as_ref().map_or_else(|| self.fd(), AsFd::as_fd);
            let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let fd = self.open_beneath(from, piece, if left.is_empty() { flags } else { step })?;
            if left.is_empty() {
                return Ok(fd);
            }
            (at, rest) = (Some(fd), left);
        }
    }

    /// Opens a clean relative path shorter than `PATH_MAX` beneath `from`.
    fn open_beneath(&self, from: BorrowedFd<'_>, piece: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        while !self.stepwise.load(Ordering::Relaxed) {
            match openat2(from, piece, flags, Mode::empty(), resolve) {
                Err(Errno::NOSYS) => self.stepwise.store(true, Ordering::Relaxed),
                // A sandbox may refuse a system call it does not know with EPERM, and so may the entry itself.
                Err(Errno::PERM) => break,
                Err(Errno::INTR | Errno::AGAIN) => {}
                other => return other,
            }
        }
        open_stepwise(from, piece, flags)
    }
}

/// The same as `openat2` with a call for each name: a single name with `O_NOFOLLOW` cannot leave its directory.
fn open_stepwise(from: BorrowedFd<'_>, piece: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut at: Option<OwnedFd> = None;
    let mut names = piece.split(|&b| b == b'/').peekable();
    while let Some(name) = names.next() {
        let dir = at.as_ref().map_or(from, AsFd::as_fd);
        let flags = if names.peek().is_some() { step } else { flags };
        at = Some(openat(dir, name, flags, Mode::empty())?);
    }
    at.ok_or(Errno::NOENT)
}

/// The longest beginning of whole names that the kernel accepts, and the rest.
fn cut(path: &[u8]) -> (&[u8], &[u8]) {
    if path.len() <= PIECE {
        return (path, b"");
    }
    // A name has at most 255 bytes, so there is a slash.
    match path[..PIECE].iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (path, b""),
    }
}

impl Cache {
    fn find(&mut self, path: &RelPath) -> Option<Arc<OwnedFd>> {
        self.clock += 1;
        let (fd, used) = self.dirs.get_mut(path)?;
        *used = self.clock;
        Some(Arc::clone(fd))
    }

    fn keep(&mut self, path: &RelPath, fd: &Arc<OwnedFd>) {
        self.clock += 1;
        if self.dirs.len() >= self.most && !self.dirs.contains_key(path) {
            let oldest = self.dirs.iter().min_by_key(|(_, (_, used))| *used).map(|(path, _)| path.clone());
            if let Some(oldest) = oldest {
                self.dirs.remove(&oldest);
            }
        }
        self.dirs.insert(path.clone(), (Arc::clone(fd), self.clock));
    }
}

#[cfg(test)]
mod tests;
