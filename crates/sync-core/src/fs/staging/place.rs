//! Which mount a path belongs to, and its staging directory, made when it is first needed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags, fchmod, fremovexattr, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use super::adopt::{self, BORN};
use super::{Mount, Stage, Staging, TopTime, create_as};
use crate::fs::STAGING_NAME;
use crate::fs::attributes::Target;
use crate::fs::error::FsError;
use crate::fs::stat::Stat;
use crate::manifest::Time;
use crate::path::RelPath;

/// What is known of a directory: the mount it is on, and whether it is there yet.
#[derive(Clone, Debug)]
pub(super) struct Place {
    mount: Arc<Mount>,
    exists: bool,
}

impl Staging {
    /// The staging directory of the file system that an entry at `near` will be on, made if need be.
    pub(crate) fn stage_near(&self, near: &RelPath) -> Result<Arc<Stage>, FsError> {
        let mount = self.mount_near(near)?;
        self.open_stage(&mount)
    }

    /// The mount that an entry at `near` will be on: that of the nearest directory above it that exists.
    pub(crate) fn mount_near(&self, near: &RelPath) -> Result<Arc<Mount>, FsError> {
        self.place_near(near).map(|place| place.mount)
    }

    /// As [`Staging::stage_near`]; also tells whether the directory that holds `near` is new.
    pub(super) fn stage_for(&self, near: &RelPath) -> Result<(Arc<Stage>, bool), FsError> {
        let Place { mount, exists } = self.place_near(near)?;
        Ok((self.open_stage(&mount)?, !exists))
    }

    fn place_near(&self, near: &RelPath) -> Result<Place, FsError> {
        let bytes = near.as_bytes();
        let dir = &bytes[..bytes.iter().rposition(|&b| b == b'/').unwrap_or(0)];
        // The common case costs no allocation: every entry of a directory after the first.
        if let Some(place) = self.places.read().unwrap_or_else(PoisonError::into_inner).get(dir) {
            return Ok(place.clone());
        }
        let dir = near.parent().unwrap_or_default();
        self.place_of(&dir)
    }

    /// The mount that the directory `dir` is on, or the nearest one above it that exists.
    pub(crate) fn mount_of(&self, dir: &RelPath) -> Result<Arc<Mount>, FsError> {
        self.place_of(dir).map(|place| place.mount)
    }

    /// Remembers `dir`, and on the way there what exists and the topmost that does not: beneath that all is absent too. A
    /// path has up to half as many directories above it as it has bytes, and their paths would be its square.
    fn place_of(&self, dir: &RelPath) -> Result<Place, FsError> {
        // In tree order that is known.
        let parent = dir.parent().and_then(|parent| Some((self.known_place(&parent)?, parent)));
        let (mut place, above) = match parent {
            Some(known) => known,
            None => (self.top_place()?, RelPath::root()),
        };
        for next in dir.way_from(&above) {
            if !place.exists {
                break;
            }
            place = match self.known_place(&next) {
                Some(place) => place,
                None => {
                    let place = self.look(&next, &place)?;
                    self.remember(next, &place);
                    place
                }
            };
        }
        self.remember(dir.clone(), &place);
        Ok(place)
    }

    fn remember(&self, dir: RelPath, place: &Place) {
        self.places.write().unwrap_or_else(PoisonError::into_inner).entry(dir).or_insert_with(|| place.clone());
    }

    fn known_place(&self, dir: &RelPath) -> Option<Place> {
        self.places.read().unwrap_or_else(PoisonError::into_inner).get(dir).cloned()
    }

    fn top_place(&self) -> Result<Place, FsError> {
        let top = RelPath::root();
        if let Some(place) = self.known_place(&top) {
            return Ok(place);
        }
        let stat = self.root.stat_fd(self.root.fd()).map_err(|errno| FsError::new("look at", &top, errno))?;
        let place = Place { mount: self.mount(&top, &stat)?, exists: true };
        self.remember(top, &place);
        Ok(place)
    }

    /// Looks whether `dir`, in a directory that is known to exist, is there, and whether something is mounted on it.
    fn look(&self, dir: &RelPath, above: &Place) -> Result<Place, FsError> {
        let absent = Place { mount: Arc::clone(&above.mount), exists: false };
        match self.look_at(dir) {
            Ok(stat) if !stat.is_dir() => Ok(absent),
            Ok(stat) if stat.mount == above.mount.id => Ok(Place { exists: true, ..absent }),
            Ok(stat) => Ok(Place { mount: self.mount(dir, &stat)?, exists: true }),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(absent),
            Err(errno) => Err(FsError::new("look at", dir, errno)),
        }
    }

    /// Looks at a visible entry; a directory of ours that may not be passed is made passable.
    pub(crate) fn look_at(&self, path: &RelPath) -> Result<Stat, Errno> {
        match path.parent() {
            None => self.root.stat_fd(self.root.fd()),
            Some(parent) => self.thaw.within(&self.root, &parent, |dir| self.root.stat_at(dir, path.name())),
        }
    }

    /// Holds a visible entry without any right to it.
    pub(crate) fn hold(&self, path: &RelPath) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match path.parent() {
            None => rustix::io::dup(self.root.fd()),
            Some(parent) => self.thaw.within(&self.root, &parent, |dir| openat(dir, path.name(), flags, Mode::empty())),
        }
    }

    /// The mount whose top is `top`; watched for flushing from now on, before anything is written to it.
    fn mount(&self, top: &RelPath, stat: &Stat) -> Result<Arc<Mount>, FsError> {
        let mut mounts = self.mounts.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(mount) = mounts.iter().find(|mount| mount.top == *top) {
            return Ok(Arc::clone(mount));
        }
        let dir = self.thaw.open(&self.root, top)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = self
            .thaw
            .within(&self.root, top, |top| openat(top, c".", flags, Mode::empty()))
            .or_else(|errno| if top.is_root() { rustix::io::dup(&dir) } else { Err(errno) })
            .map_err(|errno| FsError::new("open the directory", top, errno))?;
        self.durable.watch(stat.dev, top, fd);
        let mount = Arc::new(Mount { top: top.clone(), id: stat.mount, dev: stat.dev, stage: Default::default() });
        mounts.push(Arc::clone(&mount));
        Ok(mount)
    }

    /// The staging directory of a mount, made or adopted if this session has not done so yet.
    pub(super) fn open_stage(&self, mount: &Arc<Mount>) -> Result<Arc<Stage>, FsError> {
        let mut slot = mount.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stage) = &*slot {
            return Ok(Arc::clone(stage));
        }
        let path = mount.staging_path();
        let fail = |doing, errno| FsError::new(doing, &path, errno);
        let look = || self.look_at_top(&mount.top).map_err(|errno| FsError::new("look at", &mount.top, errno));
        let before = look()?.tuple.mtime;
        let fd = self.make_stage(mount).map_err(|errno| fail("make the staging directory", errno))?;
        let fd = match fd {
            Some(fd) => fd,
            None => self.existing_stage(mount)?,
        };
        let stat = self.root.stat_fd(&fd).map_err(|errno| fail("look at", errno))?;
        let born = self.born(&fd, &stat, mount).map_err(|errno| {
            // It would outlive this push, since nothing knows of it. One with parts in it is not empty and stays.
            let gone = self.thaw.within(&self.root, &mount.top, |top| unlinkat(top, STAGING_NAME, AtFlags::REMOVEDIR));
            if gone.is_ok() {
                self.restore_time(&mount.top, before);
            }
            fail("write to", errno)
        })?;
        let top = TopTime { before, ours: look()?.tuple.mtime };
        let stage = Arc::new(Stage {
            fd,
            mount: Arc::clone(mount),
            uid: born.uid,
            gid: born.gid,
            masked: 0o777 & !born.mode,
            fs: born.tuple.fs,
            top,
            new_tree: Mutex::default(),
        });
        self.adopt_names(&stage);
        *slot = Some(Arc::clone(&stage));
        Ok(stage)
    }

    /// Looks at the top directory of a mount: what is mounted there, not what lies beneath.
    pub(super) fn look_at_top(&self, top: &RelPath) -> Result<Stat, Errno> {
        self.root.stat_fd(self.hold(top)?)
    }

    /// Gives the top directory of a mount its time back. Where that is not ours to set, it stays as it is.
    pub(super) fn restore_time(&self, top: &RelPath, time: Time) {
        let restored = self.hold(top).and_then(|fd| Target::Open(fd.as_fd()).set_mtime(time));
        match restored {
            Ok(()) | Err(Errno::PERM | Errno::ACCESS | Errno::NOENT) => {}
            Err(errno) => self.note(FsError::new("set the time of", top, errno)),
        }
    }

    /// Makes the directory; `None` if something of that name is there already.
    fn make_stage(&self, mount: &Mount) -> Result<Option<OwnedFd>, Errno> {
        self.thaw.within(&self.root, &mount.top, |top| match mkdirat(top, STAGING_NAME, Mode::RWXU) {
            Ok(()) => open_private(top).map(Some),
            Err(Errno::EXIST) => Ok(None),
            Err(errno) => Err(errno),
        })
    }

    /// A directory left by an earlier session. One that is not ours alone could be changed under our hands, so it is
    /// cleared away and made anew.
    fn existing_stage(&self, mount: &Mount) -> Result<OwnedFd, FsError> {
        let path = mount.staging_path();
        let fail = |errno| match errno {
            Errno::NOTDIR | Errno::LOOP => {
                FsError::because("use", &path, "this name is reserved and is no directory: rename or remove it")
            }
            errno => FsError::new("open the staging directory", &path, errno),
        };
        let top = self.thaw.open(&self.root, &mount.top)?;
        let fd = open_private(top.as_fd()).map_err(fail)?;
        let stat = self.root.stat_fd(&fd).map_err(fail)?;
        if stat.uid == rustix::process::geteuid().as_raw() && stat.mode & 0o077 == 0 && stat.dev == mount.dev {
            return Ok(fd);
        }
        adopt::empty_foreign(&self.root, fd.as_fd());
        let renewed = unlinkat(&top, STAGING_NAME, AtFlags::REMOVEDIR).and_then(|()| self.make_stage(mount));
        match renewed {
            Ok(Some(fd)) => Ok(fd),
            Ok(None) => Err(fail(Errno::EXIST)),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Err(FsError::because(
                "use",
                &path,
                "this name is reserved and holds what we did not put there: look at it, and remove it",
            )),
            Err(errno) => Err(fail(errno)),
        }
    }

    /// Makes the directory plain, without inherited setgid bit and ACLs, and tells what new files in it are born with.
    fn born(&self, fd: &OwnedFd, stat: &Stat, mount: &Mount) -> Result<Stat, Errno> {
        for acl in [c"system.posix_acl_default", c"system.posix_acl_access"] {
            let _ = fremovexattr(fd, acl);
        }
        if stat.mode != 0o700 {
            fchmod(fd, Mode::RWXU)?;
        }
        let _ = unlinkat(fd, BORN, AtFlags::empty());
        let file = self.thaw.within(&self.root, &mount.top, |_| create_as(fd.as_fd(), BORN.as_bytes(), 0o777))?;
        let stat = self.root.stat_fd(&file)?;
        unlinkat(fd, BORN, AtFlags::empty())?;
        Ok(stat)
    }
}

fn open_private(top: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(top, STAGING_NAME, flags, Mode::empty())
}
