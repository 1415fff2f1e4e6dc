//! Where content waits, verified and out of sight, until it is published: one private directory on each file system
//! of a replica.
//!
//! What belongs into a directory that the replica does not have yet takes its place there at once: see [`new_tree`]. The rest
//! waits under names of its own.
//!
//! The directory lies at the top of the replica, and at the top of every mount below it that is written to, under
//! [`STAGING_NAME`]: a rename from there into the tree never crosses a file system. Nobody but us may enter it, so
//! that names in it lead where we made them lead. A completed push removes it; an interrupted one leaves the parts of
//! big files, one that is cut off all that is whole, and a killed one whatever it was doing, which the next one adopts or
//! clears away.

mod adopt;
mod new_tree;
mod place;

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use foldhash::HashMap;
use foldhash::fast::RandomState;
use indexmap::IndexMap;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchmod, fchown, openat, unlinkat};
use rustix::io::Errno;

use super::STAGING_NAME;
use super::attributes::Target;
use super::copying::UnderWay;
use super::durable::Durable;
use super::error::{FsError, IncomingError, is_full};
use super::root::Root;
use super::sparse;
use super::thaw::Thaw;
use crate::hash::Digest;
use crate::manifest::{Metadata, Time};
use crate::path::RelPath;
pub(crate) use new_tree::InPlace;
use new_tree::NewTree;
use place::Place;

/// Files of more bytes than this keep what was received of them when a push is interrupted, for the next one.
pub const PART_MIN: u64 = 64 << 20;

/// What the name of an unfinished big content ends with. It tells the next session which beginnings are worth keeping;
/// a smaller content is received under a name of the moment, and its beginning is never kept.
pub(crate) const PART: &str = ".part";

/// The staging of one push session into one replica. It may be used from several threads at once.
#[derive(Debug)]
pub struct Staging {
    pub(crate) root: Arc<Root>,
    pub(crate) durable: Durable,
    pub(crate) thaw: Thaw,
    mounts: RwLock<Vec<Arc<Mount>>>,
    /// For each directory that was asked about: the mount that its entries belong to.
    places: RwLock<HashMap<RelPath, Place>>,
    contents: Mutex<Contents>,
    pub(super) drafts: UnderWay,
    /// What took its place ahead of the plan, by place: made of the contents when something is in the way for the first
    /// time, since a plan has nothing new take its place.
    ahead: Mutex<Option<BTreeMap<RelPath, Digest>>>,
    problems: Mutex<Vec<FsError>>,
    counter: AtomicU64,
    /// Whether something did not fit on the disk.
    is_full: AtomicBool,
    /// Whether the session came to have a plan: what that needs of what an earlier one left was asked for.
    had_plan: AtomicBool,
    /// Whether there will be further sessions before all is there.
    goes_on_later: AtomicBool,
    pub(crate) stop: Arc<AtomicBool>,
    /// Held while a content's file is made, written or named, so that clearing away sees all of them, and nothing is
    /// written to a part that a later session has taken over.
    pub(super) phase: RwLock<Phase>,
}

/// What the end of a session leaves in a staging directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Nothing,
    /// Contents over [`PART_MIN`], whole or not.
    Big,
    /// Those, and whatever else is whole.
    Whole,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Contents come, and take their places in new directories.
    Gathering,
    /// There is a plan: what comes now waits apart.
    Planned,
    /// Nothing is staged any more.
    Over,
}

/// One mount of the replica: the file system that the top is on, or one below it.
#[derive(Debug)]
pub(crate) struct Mount {
    /// The top directory of the mount.
    pub top: RelPath,
    pub id: u64,
    dev: u64,
    /// `None` until something is staged.
    stage: Mutex<Option<Arc<Stage>>>,
}

/// A staging directory that exists.
#[derive(Debug)]
pub(crate) struct Stage {
    pub fd: OwnedFd,
    pub mount: Arc<Mount>,
    /// Owner and group that files get when they are made here.
    pub uid: u32,
    pub gid: u32,
    /// Permissions that files do not get when they are made here.
    masked: u32,
    /// The file system, as in a tuple.
    fs: u64,
    top: TopTime,
    /// `None` until something is put into a new directory.
    new_tree: Mutex<Option<Arc<NewTree>>>,
}

/// The time of the directory that holds a staging directory: making and removing that one moves it.
#[derive(Clone, Copy, Debug)]
struct TopTime {
    /// Before this session made (or found) the staging directory.
    before: Time,
    /// Right after. If it is another one later, somebody has changed the directory, and that should show.
    ours: Time,
}

/// What is in staging. A list with a small table beside it: a table of all would be there twice whenever it grows.
pub(crate) type Contents = IndexMap<Digest, Content, RandomState>;

/// What is known of a content in staging.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub stage: Arc<Stage>,
    pub state: State,
    /// What its file was given ahead of its publication; `None`: it is as it was born.
    pub dressed: Option<Metadata>,
    /// Where its file is, if that is in a new directory and not under its digest.
    pub in_place: Option<Box<InPlace>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Being received now.
    Receiving,
    /// The beginning of a big file, from a push that was interrupted.
    Part,
    /// Whole as far as its name says: from a push that was killed, to be hashed before it is believed.
    Unverified,
    /// Whole and verified.
    Whole,
}

impl Staging {
    /// The staging of the replica at `root`. Nothing is touched before something is staged or adopted.
    pub fn new(root: Arc<Root>) -> Self {
        Self {
            root,
            durable: Durable::default(),
            thaw: Thaw::default(),
            mounts: RwLock::default(),
            places: RwLock::default(),
            contents: Mutex::default(),
            drafts: UnderWay::default(),
            ahead: Mutex::default(),
            problems: Mutex::default(),
            counter: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
            had_plan: AtomicBool::new(false),
            goes_on_later: AtomicBool::new(false),
            stop: Arc::default(),
            phase: RwLock::new(Phase::Gathering),
        }
    }

    /// The plan of this session is not all that will come: what an earlier session left, and this one has not asked for, may be
    /// wanted by a later one.
    pub fn goes_on_later(&self) {
        self.goes_on_later.store(true, Ordering::Relaxed);
    }

    /// Hashes nothing that an earlier session left once `stop` is raised.
    #[must_use]
    pub fn stop_on(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop, ..self }
    }

    /// Stages a whole content in one go: for files small enough to be held in memory. `near` is a path that will have
    /// it, which chooses the file system; `likely` is what that will have. The digest is verified here, so the caller
    /// need not.
    ///
    /// Four system calls: open, write, utimensat, close; chown and chmod if an owner or mode is wanted that files cannot be
    /// made with. In a directory that is new to the replica a statx besides, after which the file need not be
    /// touched again.
    ///
    /// # Errors
    /// [`IncomingError::Mismatch`] if `bytes` are not what `digest` says; [`IncomingError::Elsewhere`] if they are being
    /// received; [`IncomingError::Fs`] if they cannot be written, also without any drafts beside them, and then nothing of
    /// them is left.
    pub fn store(
        &self,
        digest: &Digest,
        bytes: &[u8],
        near: &RelPath,
        likely: Option<&Metadata>,
    ) -> Result<(), IncomingError> {
        if Digest::of(bytes) != *digest {
            return Err(IncomingError::Mismatch);
        }
        match self.try_store(digest, bytes, near, likely) {
            Err(IncomingError::Fs(error)) if error.errno().is_some_and(is_full) => {
                self.end_drafts();
                let stored = self.try_store(digest, bytes, near, likely);
                if stored.is_err() {
                    self.met_full_disk();
                }
                stored
            }
            stored => stored,
        }
    }

    /// Something did not fit.
    pub(super) fn met_full_disk(&self) {
        self.is_full.store(true, Ordering::Relaxed);
    }

    fn try_store(
        &self,
        digest: &Digest,
        bytes: &[u8],
        near: &RelPath,
        likely: Option<&Metadata>,
    ) -> Result<(), IncomingError> {
        let phase = self.going_on(near)?;
        let (stage, is_new) = self.stage_for(near)?;
        if !self.claim(digest, &stage)? {
            return Ok(());
        }
        let size = bytes.len() as u64;
        let home = self.home_ahead(near, &stage, is_new && *phase == Phase::Gathering, size);
        let born = stage.mode_at_birth(likely);
        let in_place = home.and_then(|home| Some((create_as(home.as_fd(), near.name(), born).ok()?, home)));
        let hex = digest.to_hex();
        // Where it cannot take its place, another content has been offered for the same name, and it waits apart.
        let made = match in_place {
            Some((fd, home)) => Ok((fd, Some(home))),
            None => create_as(stage.fd(), hex.as_bytes(), born).map(|fd| (fd, None)),
        };
        let written = made.and_then(|(fd, home)| {
            let dressed = sparse::write_whole(&fd, bytes).and_then(|()| stage.dress_ahead(fd.as_fd(), born, likely));
            match (dressed, &home) {
                (Ok(dressed), None) => Ok((dressed, None)),
                (Ok(dressed), Some(_)) => Ok((dressed, Some(self.in_place(near, &stage, &fd, size, dressed.as_ref())))),
                (Err(errno), home) => {
                    let (dir, name) = match home {
                        Some(home) => (home.as_fd(), near.name()),
                        None => (stage.fd(), hex.as_bytes()),
                    };
                    let _ = unlinkat(dir, name, AtFlags::empty());
                    Err(errno)
                }
            }
        });
        match written {
            Ok((dressed, in_place)) => {
                self.complete(digest, dressed, in_place);
                Ok(())
            }
            Err(errno) => {
                self.contents().swap_remove(digest);
                Err(FsError::new("stage", near, errno).into())
            }
        }
    }

    /// Whether an interrupted push has left the beginning of anything.
    pub fn has_parts(&self) -> bool {
        self.contents().values().any(|content| content.state == State::Part)
    }

    /// Whether the whole content is staged. One left by a killed push is hashed first.
    pub fn has(&self, digest: &Digest) -> bool {
        let unverified = match self.contents().get(digest) {
            Some(Content { state: State::Whole, .. }) => return true,
            Some(Content { state: State::Unverified, stage, .. }) => Arc::clone(stage),
            _ => return false,
        };
        self.verify(digest, &unverified)
    }

    /// Whole contents that are there, as far as their names say. Asked before anything is staged, those of an earlier push.
    pub fn whole(&self) -> HashSet<Digest> {
        let is_whole = |content: &Content| matches!(content.state, State::Whole | State::Unverified);
        self.contents().iter().filter(|(_, content)| is_whole(content)).map(|(digest, _)| *digest).collect()
    }

    /// The whole content, if it is staged.
    pub(crate) fn find(&self, digest: &Digest) -> Option<Content> {
        let is_whole = self.has(digest);
        self.contents().get(digest).filter(|_| is_whole).cloned()
    }

    /// Opens the file of a whole content.
    pub(crate) fn open_content(&self, digest: &Digest, content: &Content) -> Result<OwnedFd, FsError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.at_content(digest, content, |dir, name| openat(dir, name, flags, Mode::empty()))
    }

    /// Does something with the name that a content has in staging.
    pub(crate) fn at_content<T>(
        &self,
        digest: &Digest,
        content: &Content,
        call: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, FsError> {
        let fail = |path: &RelPath, errno| FsError::new("open the staged content of", path, errno);
        match &content.in_place {
            Some(in_place) => {
                let home = self.home(&content.stage, &in_place.path.parent().unwrap_or_default())?;
                call(home.as_fd(), in_place.path.name()).map_err(|errno| fail(&in_place.path, errno))
            }
            None => call(content.stage.fd(), digest.to_hex().as_bytes())
                .map_err(|errno| fail(&content.stage.mount.staging_path(), errno)),
        }
    }

    /// What went wrong without failing a call, such as a foreign file in a staging directory; each is told once.
    pub fn take_problems(&self) -> Vec<FsError> {
        std::mem::take(&mut *self.problems.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes directories of our own passable in which something could not be looked at, for the time of the session;
    /// tells whether there were any.
    pub fn make_passable(&self, failures: &[FsError]) -> bool {
        let denied = failures.iter().filter(|failure| failure.errno() == Some(Errno::ACCESS));
        // The directory itself could not be listed, or the one above it not be searched.
        let thaw = |failure: &FsError| {
            let above = failure.path.parent().is_some_and(|parent| self.thaw.thaw(&self.root, &parent));
            above | self.thaw.thaw(&self.root, &failure.path)
        };
        denied.fold(false, |any, failure| any | thaw(failure))
    }

    /// Includes the file system of a directory in every flush, although nothing is staged on it: somebody else wrote
    /// there, and it shall be durable all the same.
    ///
    /// # Errors
    /// [`FsError`] if the directory cannot be opened.
    pub fn include(&self, top: &RelPath) -> Result<(), FsError> {
        let fd = self.root.open_dir(top)?;
        let stat = self.root.stat_fd(&fd).map_err(|errno| FsError::new("look at", top, errno))?;
        self.durable.watch(stat.dev, top, fd);
        Ok(())
    }

    /// Flushes every file system that was written to: see `durable.rs` for what that promises.
    ///
    /// # Errors
    /// [`FsError`]: then everything staged or published since the last flush counts as lost.
    pub fn flush(&self) -> Result<(), FsError> {
        self.durable.flush()
    }

    /// Ends a push that somebody interrupts: leaves the parts of files over [`PART_MIN`] bytes, whole ones too, and gives
    /// read-only directories their modes back, and the directories that held staging their times. After a flush that failed
    /// nothing can be relied on, and nothing is left. What cannot be removed is among the problems. Nothing can be staged any
    /// more.
    pub fn keep_parts(&self) {
        self.keep(Leave::Big);
    }

    /// Ends a push that was cut off, and is probably taken up again soon: leaves whatever is whole as well, unless the disk was
    /// full. It is flushed first: who uses it finds no trace of a write that failed before. Else as [`Staging::keep_parts`].
    pub fn keep_what_came(&self) {
        if self.is_full.load(Ordering::Relaxed) {
            return self.keep(Leave::Big);
        }
        if let Err(error) = self.flush() {
            self.note(error);
        }
        self.keep(Leave::Whole);
    }

    /// What an earlier session left and this one has no use for goes in any case, once there is a plan, and where the disk was
    /// full: it would be there for ever, or in the way.
    fn keep(&self, leave: Leave) {
        self.clear(if self.durable.has_failed() { Leave::Nothing } else { leave }, true);
        self.thaw.restore(&self.root);
    }

    /// Removes everything staged, and the directories, and ends the session: nothing can be staged any more. What cannot
    /// be removed is among the problems.
    ///
    /// The directories that held them get the time back that they had before, unless they were changed otherwise.
    pub fn remove(&self) {
        self.clear(Leave::Nothing, true);
    }

    /// As [`Staging::remove`], but the session goes on: what was published may have to be followed by more.
    pub(crate) fn remove_for_now(&self) {
        self.clear(Leave::Nothing, false);
    }

    /// To be held while a file in staging is made, written or named.
    ///
    /// # Errors
    /// [`FsError`] if the session is over: the caller came too late.
    pub(crate) fn going_on(&self, near: &RelPath) -> Result<RwLockReadGuard<'_, Phase>, FsError> {
        let phase = self.phase.read().unwrap_or_else(PoisonError::into_inner);
        if *phase == Phase::Over { Err(FsError::because("stage", near, "the session is over")) } else { Ok(phase) }
    }

    /// Takes the right to write the content; `false` if it is there already. A part or an unverified content of that
    /// digest gives way.
    ///
    /// # Errors
    /// [`IncomingError::Elsewhere`] if somebody else has that right.
    pub(crate) fn claim(&self, digest: &Digest, stage: &Arc<Stage>) -> Result<bool, IncomingError> {
        let mut contents = self.contents();
        if let Some(old) = contents.get(digest) {
            match old.state {
                State::Whole => return Ok(false),
                State::Receiving => return Err(IncomingError::Elsewhere),
                State::Part => remove_name(old.stage.fd(), &part_name(digest)),
                State::Unverified => remove_name(old.stage.fd(), &digest.to_hex()),
            }
        }
        contents.insert(*digest, Content::new(stage, State::Receiving));
        Ok(true)
    }

    /// Records that the content is whole and verified.
    pub(crate) fn complete(&self, digest: &Digest, dressed: Option<Metadata>, in_place: Option<Box<InPlace>>) {
        if let Some(content) = self.contents().get_mut(digest) {
            *content = Content { state: State::Whole, dressed, in_place, stage: Arc::clone(&content.stage) };
        }
    }

    /// Records how the content stands now.
    pub(crate) fn settle(&self, digest: &Digest, state: State) {
        if let Some(content) = self.contents().get_mut(digest) {
            content.state = state;
        }
    }

    pub(crate) fn contents(&self) -> MutexGuard<'_, Contents> {
        // A panic elsewhere leaves the map whole: every change is a single insert, remove or store.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn note(&self, problem: FsError) {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
    }

    /// A name that nothing in a staging directory has.
    pub(crate) fn fresh_name(&self) -> String {
        format!("t{}", self.counter.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn mounts(&self) -> Vec<Arc<Mount>> {
        self.mounts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn clear(&self, leave: Leave, for_good: bool) {
        let mut phase = self.phase.write().unwrap_or_else(PoisonError::into_inner);
        *phase = (*phase).max(if for_good { Phase::Over } else { Phase::Planned });
        for mount in self.mounts() {
            let Some(stage) = mount.stage.lock().unwrap_or_else(PoisonError::into_inner).take() else { continue };
            // Looked at before the removal, which moves the time in any case.
            let only_ours = self.look_at_top(&mount.top).is_ok_and(|stat| stat.tuple.mtime == stage.top.ours);
            if self.empty(&stage, leave) {
                let gone =
                    self.thaw.within(&self.root, &mount.top, |top| unlinkat(top, STAGING_NAME, AtFlags::REMOVEDIR));
                match gone {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => self.note(FsError::new("remove", &mount.staging_path(), errno)),
                }
            }
            if only_ours {
                self.restore_time(&mount.top, stage.top.before);
            }
        }
        self.contents().clear();
    }
}

impl Content {
    fn new(stage: &Arc<Stage>, state: State) -> Self {
        Self { stage: Arc::clone(stage), state, dressed: None, in_place: None }
    }
}

impl Stage {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The permissions with which a file is made that will probably have `likely`: its own, as far as the process's mask
    /// lets them, or only ours. Nobody else gets into a staging directory.
    pub fn mode_at_birth(&self, likely: Option<&Metadata>) -> u32 {
        self.to_dress(likely).map_or(0o600, |likely| likely.mode & 0o777 & !self.masked)
    }

    /// Takes back what the file was given for its publication: the owner, the mode, extended attributes.
    fn make_plain(&self, name: &[u8]) -> bool {
        let target = Target::Staged(self.fd(), name);
        target.chown(Some(self.uid), Some(self.gid)).is_ok()
            && target.chmod(0o600).is_ok()
            && target.strip_xattrs().is_ok()
    }

    /// Gives a whole file that was made with these permissions owner, mode and time while it is open, which is cheaper
    /// than by its name later. Returns what it got: nothing if that needs more care than a call each, and then only we
    /// may open it.
    pub fn dress_ahead(
        &self,
        fd: BorrowedFd<'_>,
        born: u32,
        likely: Option<&Metadata>,
    ) -> Result<Option<Metadata>, Errno> {
        let Some(likely) = self.to_dress(likely) else { return Ok(None) };
        let (uid, gid) = (Uid::from_raw(likely.uid), Gid::from_raw(likely.gid));
        if self.is_foreign(likely) && fchown(fd, Some(uid), Some(gid)).is_err() {
            return fchmod(fd, Mode::RUSR | Mode::WUSR).map(|()| None);
        }
        if likely.mode != born {
            fchmod(fd, Mode::from_raw_mode(likely.mode))?;
        }
        Target::Open(fd).set_mtime(likely.mtime)?;
        Ok(Some(*likely))
    }

    /// The attributes, if a call each suffices for them.
    fn to_dress<'m>(&self, likely: Option<&'m Metadata>) -> Option<&'m Metadata> {
        let likely = likely?;
        // It may have to be read again, for a copy.
        let plain =
            likely.mode & !0o7777 == 0 && likely.mode & 0o400 != 0 && (0..1 << 31).contains(&{ likely.mtime.sec });
        let may = !self.is_foreign(likely) || rustix::process::geteuid().is_root();
        (plain && likely.mtime.nsec < 1_000_000_000 && may).then_some(likely)
    }

    fn is_foreign(&self, likely: &Metadata) -> bool {
        (likely.uid, likely.gid) != (self.uid, self.gid)
    }
}

impl Mount {
    pub fn stage_if_open(&self) -> Option<Arc<Stage>> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where its staging directory is, for messages.
    pub fn staging_path(&self) -> RelPath {
        self.top.join(STAGING_NAME.as_bytes()).unwrap_or_else(|_| self.top.clone())
    }
}

/// The name of an unfinished big content.
pub(crate) fn part_name(digest: &Digest) -> String {
    let mut name = digest.to_hex();
    name.push_str(PART);
    name
}

/// Whether what arrived of a content of this size is kept for a resume, however little it is.
pub(crate) fn is_big(size: u64) -> bool {
    size > PART_MIN
}

/// Makes a new file that only we can open.
pub(crate) fn create(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    create_as(dir, name, 0o600)
}

/// Makes a new file with these permissions, but for those that the process's mask takes away.
pub(crate) fn create_as(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::from_raw_mode(mode))
}

fn remove_name(dir: BorrowedFd<'_>, name: &str) {
    let _ = unlinkat(dir, name, AtFlags::empty());
}

#[cfg(test)]
mod tests;
