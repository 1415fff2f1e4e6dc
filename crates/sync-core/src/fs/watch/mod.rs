//! Watches the directories of a tree, and tells [`Hint`]s of what may have changed. The only user of `notify`.
//!
//! A hint is no truth. The caller watches first and looks then: for each directory, [`Watch::add`], then a listing, then
//! the same for what the listing shows. For each name that is hinted at, [`Watch::add`] again: it says whether there is a
//! directory that is new here, whose contents nobody has looked at yet. Done like this, a change is either seen by a look
//! that comes after it or told by a hint, as long as the kernel drops nothing. When it does, [`Hint::Overflow`] comes, and
//! with it what is watched under which path is as unproven as the names: [`Watch::restart`], then look at everything.
//!
//! What no watch tells, by the nature of inotify: what happens on a file system that another machine or process writes to
//! ([`events_at`]), stores through an `mmap`, a directory above the top that is renamed ([`Watch::is_in_place`] finds that),
//! and the other names of a file with several: only the one that it was changed through is told. A directory that is in the
//! tree twice, by a bind mount, tells under one of its paths. What is mounted, or taken away, another thread hears of.

mod error;
mod events;
mod hear;
mod mounts;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::{Config, EventKindMask, INotifyWatcher, PathOp, RecursiveMode, WatchPathConfig, Watcher};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use rustix::io::Errno;

use self::hear::{Ear, Shared, Tell};
use self::mounts::Mounts;
use super::error::{FsError, is_gone};
use crate::path::RelPath;
use crate::settle::Hint;

pub use self::error::{Limit, WatchError};
pub use self::events::{Events, events_at};

/// Longest path that the kernel takes, in bytes (`PATH_MAX` without its NUL).
const LONGEST: usize = 4095;

/// How often a directory is watched that is not the one that was there before.
const TRIES: u32 = 4;

/// Links that may lead to a top directory, as many as the kernel follows.
const MOST_LINKS: usize = 40;

/// The watched directories of one tree, with an inotify instance of their own: an overflow names no path.
pub struct Watch {
    /// The top without links: what is watched, whatever becomes of the links to it.
    top: PathBuf,
    /// The path it was asked for by.
    asked: PathBuf,
    links: Arc<[PathBuf]>,
    identity: Identity,
    tell: Tell,
    instance: Mutex<Instance>,
    _mounts: Option<Mounts>,
}

/// What [`Watch::add`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The directory is watched from now on: list it, and add what it holds.
    New,
    /// This directory has been watched under this path all the time. What is beneath it was looked at when it was new,
    /// and what happened since was hinted at.
    Known,
    /// There is no directory at this path (any more).
    NotADirectory,
}

impl Watch {
    /// Begins to listen at the directory `top`, and at the links that the path to it leads through. No directory counts
    /// as added yet.
    ///
    /// `tell` is called on a thread of its own, also while another thread is in [`Watch::add`], which waits for it: it
    /// must not call back, and while it blocks so does that; with [`Hint::Overflow`] it must not block, for the drop waits for
    /// who tells of mounts. After the watch is dropped no more is told than what was being told.
    ///
    /// # Errors
    /// [`WatchError`]; of the file system's own if there is no directory.
    pub fn new(top: &Path, tell: impl Fn(Hint) + Send + Sync + 'static) -> Result<Self, WatchError> {
        let failed = |error: io::Error| WatchError::Fs(FsError::new("watch", &RelPath::root(), error));
        let asked = std::path::absolute(top).map_err(failed)?;
        let links = links_to(&asked).map_err(failed)?.into();
        let top = std::fs::canonicalize(&asked).map_err(failed)?;
        let identity = match Identity::of_dir(&top) {
            Ok(Some(identity)) => identity,
            Ok(None) => return Err(failed(Errno::NOTDIR.into())),
            Err(errno) => return Err(failed(errno.into())),
        };
        let tell: Tell = Arc::new(tell);
        let untold = |error: &io::Error| tracing::warn!("mounts that come or go are only found by looking: {error}");
        let mounts = Mounts::listen(&top, &tell).inspect_err(untold).ok();
        let instance = Mutex::new(Instance::start(&top, &links, &tell)?);
        let watch = Self { top, asked, links, identity, tell, instance, _mounts: mounts };
        // A link that was turned between the steps above tells nobody.
        if watch.is_in_place() { Ok(watch) } else { Err(WatchError::RootGone) }
    }

    /// The path of the top directory, without links.
    pub fn top(&self) -> &Path {
        &self.top
    }

    /// Whether the path that was asked for still leads to the directory that is watched.
    pub fn is_in_place(&self) -> bool {
        let here = |path| Identity::of_dir(path).is_ok_and(|found| found == Some(self.identity));
        here(&self.top) && std::fs::canonicalize(&self.asked).is_ok_and(|path| path == self.top)
    }

    /// Watches the directory at `path`, if there is one that is not yet. What it holds is not watched with it.
    ///
    /// To be called before each listing, and for each name that a hint tells, of a directory or not: after a directory
    /// was renamed or replaced, this makes events come under the path that it has now.
    ///
    /// # Errors
    /// [`WatchError`]. Where [`WatchError::is_local`], only this directory, and what is beneath it, is left unwatched:
    /// look at it from time to time.
    pub fn add(&self, path: &RelPath) -> Result<Added, WatchError> {
        let full = self.full(path)?;
        for _ in 0..TRIES {
            let Some(found) = look(path, &full)? else {
                // What was here and beneath has gone by a name that is watched: the event does the rest.
                return if path.is_root() { Err(WatchError::RootGone) } else { Ok(Added::NotADirectory) };
            };
            if path.is_root() && found != self.identity {
                return Err(WatchError::RootGone);
            }
            let added = self.instance().add(&self.top, path, &full, found)?;
            // The kernel is given a path and follows links on the way: a directory above that became one meanwhile led it
            // to another directory, which would tell of itself under this path.
            if added != Added::New || look(path, &full)? == Some(found) {
                return Ok(added);
            }
            self.forget_beneath(path);
        }
        Err(FsError::because("watch", path, "it keeps changing").into())
    }

    /// Stops watching the directory at `path` and what is beneath it. For directories that are there and no longer
    /// wanted: of those that go, nothing is left to forget. It costs `notify` a pass over all its watches for each.
    pub fn forget_beneath(&self, path: &RelPath) {
        self.instance().forget(&self.top, path);
    }

    /// Returns when all that happened before was told.
    ///
    /// # Errors
    /// [`WatchError`] if its thread has ended: then that is not known.
    pub fn catch_up(&self) -> Result<(), WatchError> {
        self.instance().catch_up().map_err(error::of_instance)
    }

    /// How many directories are watched.
    pub fn len(&self) -> usize {
        self.instance().shared.dirs().len()
    }

    /// Whether no directory has been added.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Begins again with an inotify instance of its own and no directory added: after [`Hint::Overflow`], before
    /// everything is looked at. Hints of the old one that were not told are dropped.
    ///
    /// # Errors
    /// [`WatchError`]; the old instance goes on then.
    pub fn restart(&self) -> Result<(), WatchError> {
        let fresh = Instance::start(&self.top, &self.links, &self.tell)?;
        *self.instance() = fresh;
        if self.is_in_place() { Ok(()) } else { Err(WatchError::RootGone) }
    }

    fn full(&self, path: &RelPath) -> Result<PathBuf, WatchError> {
        let full = hear::join(&self.top, path);
        if full.as_os_str().len() > LONGEST { Err(WatchError::TooLong(path.clone())) } else { Ok(full) }
    }

    fn instance(&self) -> MutexGuard<'_, Instance> {
        // What a panic elsewhere may leave behind is a directory that counts as added and is not: nothing panics there.
        self.instance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A directory that was found at a path: the mount that it was reached through, its device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    mount: u64,
    dev: (u32, u32),
    ino: u64,
}

impl Identity {
    /// The directory at `path`, which is absolute; `None` if there is something else or nothing, or a link on the way.
    fn of_dir(path: &Path) -> Result<Option<Self>, Errno> {
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = loop {
            match openat2(CWD, path, flags, Mode::empty(), resolve) {
                Ok(fd) => break Self::of(fd.as_fd(), Path::new("")),
                Err(Errno::INTR | Errno::AGAIN) => {}
                // A kernel before 5.6, or a sandbox that does not know the call.
                Err(Errno::NOSYS | Errno::PERM) => break Self::stepwise(path),
                Err(errno) => break Err(errno),
            }
        };
        match found {
            Err(errno) if is_gone(errno) => Ok(None),
            found => found,
        }
    }

    fn stepwise(path: &Path) -> Result<Option<Self>, Errno> {
        let mut above: Vec<_> = path.ancestors().collect();
        above.reverse();
        let mut found = None;
        for path in above {
            found = Self::of(CWD, path)?;
            if found.is_none() {
                break;
            }
        }
        Ok(found)
    }

    fn of(fd: BorrowedFd<'_>, path: &Path) -> Result<Option<Self>, Errno> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let raw = statx(fd, path, flags, StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID)?;
        let is_dir = FileType::from_raw_mode(u32::from(raw.stx_mode)) == FileType::Directory;
        let dev = (raw.stx_dev_major, raw.stx_dev_minor);
        Ok(is_dir.then_some(Self { mount: raw.stx_mnt_id, dev, ino: raw.stx_ino }))
    }
}

/// The directory at `full`, which is `path`.
fn look(path: &RelPath, full: &Path) -> Result<Option<Identity>, FsError> {
    Identity::of_dir(full).map_err(|errno| FsError::new("watch", path, errno))
}

/// One inotify instance, with its thread.
struct Instance {
    watcher: Option<INotifyWatcher>,
    shared: Arc<Shared>,
}

impl Instance {
    /// Listens at the top and at the links to it.
    fn start(top: &Path, links: &Arc<[PathBuf]>, tell: &Tell) -> Result<Self, WatchError> {
        let shared = Arc::new(Shared::default());
        let ear = Ear::new(top.to_owned(), Arc::clone(links), Arc::clone(&shared), Arc::clone(tell));
        // All but opens, reads and closes without a write: web servers do nothing else all day.
        let kinds = EventKindMask::CORE | EventKindMask::ACCESS_CLOSE;
        let config = Config::default().with_event_kinds(kinds).with_follow_symlinks(false);
        let watcher = INotifyWatcher::new(ear, config).map_err(error::of_instance)?;
        shared.is_open.store(true, Ordering::Release);
        let mut instance = Self { watcher: Some(watcher), shared };
        for path in links.iter().map(PathBuf::as_path).chain([top]) {
            instance.watch(path).map_err(|error| match error::of_directory(error, &RelPath::root()) {
                Ok(_) => WatchError::RootGone,
                Err(error) => error,
            })?;
        }
        Ok(instance)
    }

    /// Watches the directory that was found at `path`, if that is another than before.
    fn add(&mut self, top: &Path, path: &RelPath, full: &Path, found: Identity) -> Result<Added, WatchError> {
        // Before the kernel is asked, so that an event in between takes it out again.
        let before = self.shared.dirs().insert(path.clone(), found);
        if before == Some(found) {
            return Ok(Added::Known);
        }
        if before.is_some_and(|before| (before.mount, before.dev) != (found.mount, found.dev)) {
            // Something was mounted here or taken away, and no event tells notify so: it would take the old directory
            // for this one, here and beneath.
            self.forget(top, path);
            self.shared.dirs().insert(path.clone(), found);
        }
        self.watch(full).map_or_else(
            |error| {
                self.shared.dirs().remove(path);
                error::of_directory(error, path)
            },
            |()| Ok(Added::New),
        )
    }

    fn watch(&mut self, path: &Path) -> notify::Result<()> {
        let one = WatchPathConfig::new(RecursiveMode::NonRecursive).with_dereference_symlinks(false);
        match &mut self.watcher {
            Some(watcher) if !self.shared.has_ended.load(Ordering::Acquire) => watcher.watch_with(path, one),
            _ => Err(ended()),
        }
    }

    /// With every list of paths, of none as well, `notify` reads all that the kernel holds; what it read it tells when it has
    /// answered, and before it takes up the next one.
    fn catch_up(&mut self) -> notify::Result<()> {
        for _ in 0..2 {
            match &mut self.watcher {
                Some(watcher) if !self.shared.has_ended.load(Ordering::Acquire) => {
                    watcher.update_paths(Vec::new()).map_err(|error| error.source)?;
                }
                _ => return Err(ended()),
            }
        }
        Ok(())
    }

    /// Ends the watches at `path` and beneath it.
    fn forget(&mut self, top: &Path, path: &RelPath) {
        let gone = self.shared.drop_beneath(path);
        let mut ops: Vec<_> = gone.iter().map(|path| PathOp::Unwatch(hear::join(top, path))).collect();
        while let Some(watcher) = &mut self.watcher
            && !ops.is_empty()
            && !self.shared.has_ended.load(Ordering::Acquire)
        {
            // It stops at the first that has ended by itself.
            ops = watcher.update_paths(ops).err().map_or_else(Vec::new, |error| error.remaining);
        }
    }
}

fn ended() -> notify::Error {
    notify::Error::generic("its thread has ended")
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.shared.is_open.store(false, Ordering::Release);
        if self.shared.has_ended.load(Ordering::Acquire) {
            // Dropping a watcher whose thread is gone panics.
            let _ = self.watcher.take().map(|watcher| Box::leak(Box::new(watcher)));
        }
    }
}

/// The links that the kernel follows on the way to `path`, which is absolute.
fn links_to(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut links = Vec::new();
    let mut at = PathBuf::new();
    let mut left: Vec<_> = path.components().rev().map(|name| name.as_os_str().to_owned()).collect();
    while let Some(name) = left.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        at.push(&name);
        if !std::fs::symlink_metadata(&at)?.file_type().is_symlink() {
            continue;
        }
        if links.len() == MOST_LINKS {
            return Err(Errno::LOOP.into());
        }
        let target = std::fs::read_link(&at)?;
        links.push(at.clone());
        at.pop();
        // An absolute target begins with the root directory, which replaces all that `at` holds.
        left.extend(target.components().rev().map(|name| name.as_os_str().to_owned()));
    }
    Ok(links)
}

/// What is watched, under the paths that it has.
type Dirs = BTreeMap<RelPath, Identity>;

#[cfg(test)]
mod tests;
