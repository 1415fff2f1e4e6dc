//! New directories: what belongs into one that the replica does not have yet takes its place at once, in staging, in a
//! tree of the same shape, so that one rename makes all of it visible.
//!
//! That tree lies under [`TREE`] in the staging directory, with the same paths as the replica. A directory that the
//! replica has already is in it only as a way to those that it has not. Files get there as their contents come, before
//! anybody knows the plan; so [`Publisher`](crate::fs::Publisher) takes out again what the plan does not have.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use indexmap::map::Entry;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, mkdirat, openat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

use super::{Content, Contents, Stage, Staging, is_big};
use crate::fs::error::FsError;
use crate::fs::root::Root;
use crate::hash::Digest;
use crate::manifest::{Metadata, Time, Tuple};
use crate::path::RelPath;

/// The name of the tree in a staging directory.
pub(super) const TREE: &str = "tree";

/// Levels below the top down to which contents take their places ahead of the plan.
const MOST_AHEAD: usize = 64;

/// Directories of the tree that are held open.
const HELD: usize = 16;

/// The tree of one staging directory.
#[derive(Debug)]
pub(crate) struct NewTree {
    root: Root,
    /// Directories made in it and not yet claimed by a plan.
    made: Mutex<BTreeSet<RelPath>>,
}

/// What is known of a content that has its place in a new directory.
#[derive(Clone, Debug)]
pub(crate) struct InPlace {
    /// Where it will be visible.
    pub path: RelPath,
    /// Whether a plan has it there.
    pub placed: bool,
    /// Inode and ctime, if everything else about the file is as it was dressed.
    seen: Option<(u64, Time)>,
}

impl NewTree {
    /// The directory that will be visible as `dir`, made with those above it if need be.
    fn home(&self, dir: &RelPath) -> Result<Arc<OwnedFd>, FsError> {
        match self.root.dir(dir) {
            Err(error) if error.is_gone() => {}
            other => return other,
        }
        let mut top = dir.parent().unwrap_or_default();
        let mut above = loop {
            match self.root.dir(&top) {
                Err(error) if error.is_gone() && !top.is_root() => top = top.parent().unwrap_or_default(),
                found => break found?,
            }
        };
        for dir in dir.way_from(&top) {
            match mkdirat(&above, dir.name(), Mode::RWXU) {
                Ok(()) => drop(self.made().insert(dir.clone())),
                // Another thread was here first, or a file is: then it does not open.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(FsError::new("stage", &dir, errno)),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = openat(&above, dir.name(), flags, Mode::empty());
            above = Arc::new(opened.map_err(|errno| FsError::new("stage", &dir, errno))?);
            self.root.keep(&dir, &above);
        }
        Ok(above)
    }

    /// The unclaimed directories at `top` and beneath, deepest first; they are forgotten.
    fn take_made(&self, top: &RelPath) -> Vec<RelPath> {
        let mut made = self.made();
        let here = made.range(top.clone()..).take_while(|dir| *dir == top || dir.is_beneath(top));
        let mut dirs: Vec<RelPath> = here.cloned().collect();
        for dir in &dirs {
            made.remove(dir);
        }
        dirs.reverse();
        dirs
    }

    /// Removes directories that are empty.
    fn remove_dirs(&self, dirs: Vec<RelPath>) {
        for dir in dirs {
            let parent = self.root.dir(&dir.parent().unwrap_or_default());
            if parent.is_ok_and(|parent| unlinkat(&parent, dir.name(), AtFlags::REMOVEDIR).is_ok()) {
                self.root.forget(&dir);
            }
        }
    }

    fn made(&self) -> std::sync::MutexGuard<'_, BTreeSet<RelPath>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Staging {
    /// The directory in which the entry at `path` takes its place now; `None` if it is not to be in a new directory, or
    /// cannot be.
    pub(super) fn home_ahead(&self, path: &RelPath, stage: &Stage, is_new: bool, size: u64) -> Option<Arc<OwnedFd>> {
        // A big content has a name by which an interrupted push is resumed. What is deep would cost as much as it is deep,
        // before anything but an offer tells of it.
        let parent = path.parent().filter(|_| is_new && !is_big(size) && path.depth() <= MOST_AHEAD)?;
        self.home(stage, &parent).ok()
    }

    /// Gives a file that was received under `name` its place in a new directory, if it is to have one and nothing else
    /// is there; tells whether it did.
    pub(crate) fn take_place(&self, path: &RelPath, stage: &Stage, name: &str, gathering: bool, size: u64) -> bool {
        let is_new = gathering && self.stage_for(path).is_ok_and(|(_, is_new)| is_new);
        let Some(home) = self.home_ahead(path, stage, is_new, size) else { return false };
        renameat_with(stage.fd(), name, &home, path.name(), RenameFlags::NOREPLACE).is_ok()
    }

    /// The directory in staging that will be visible as `dir`.
    pub(crate) fn home(&self, stage: &Stage, dir: &RelPath) -> Result<Arc<OwnedFd>, FsError> {
        self.new_tree(stage).map_err(|errno| FsError::new("stage", dir, errno))?.home(dir)
    }

    /// Nothing takes its place in new directories any more until the session ends: a plan is being prepared.
    pub(crate) fn begin_plan(&self) {
        let mut phase = self.phase.write().unwrap_or_else(PoisonError::into_inner);
        *phase = (*phase).max(super::Phase::Planned);
        self.had_plan.store(!self.goes_on_later.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Makes room at the place of `path` in a new directory, where something is that came there ahead of the plan: a
    /// content, or a directory with contents. What a plan has placed is never touched.
    pub(crate) fn evict(&self, stage: &Stage, path: &RelPath) -> Result<(), Errno> {
        let errno = |error: FsError| error.errno().unwrap_or(Errno::IO);
        let new_tree = self.new_tree(stage)?;
        let mut contents = self.contents();
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = ahead.get_or_insert_with(|| by_place(&contents));
        let mut any = false;
        while let Some((at, digest)) =
            ahead.range(path.clone()..).next().filter(|(at, _)| *at == path || at.is_beneath(path))
        {
            let (at, digest) = (at.clone(), *digest);
            // Unless a plan has placed it since.
            if let Some(content) = contents.get_mut(&digest).filter(|content| content.is_at(&at)) {
                let home = new_tree.home(&at.parent().unwrap_or_default()).map_err(errno)?;
                renameat(&home, at.name(), stage.fd(), digest.to_hex())?;
                // Only now: what could not be moved is still known to be there, and is taken out in the end.
                content.in_place = None;
                any = true;
            }
            ahead.remove(&at);
        }
        let dirs = new_tree.take_made(path);
        any |= !dirs.is_empty();
        new_tree.remove_dirs(dirs);
        if any { Ok(()) } else { Err(Errno::EXIST) }
    }

    /// Takes out of new directories what no plan has claimed. What cannot be taken out is among the problems.
    pub(crate) fn take_out_unclaimed(&self) {
        let mut contents = self.contents();
        let unclaimed = |content: &mut Content| content.in_place.as_ref().is_some_and(|in_place| !in_place.placed);
        for (digest, content) in contents.extract_if(.., |_, content| unclaimed(content)).collect::<Vec<_>>() {
            let removed = self.at_content(&digest, &content, |dir, name| unlinkat(dir, name, AtFlags::empty()));
            removed.err().into_iter().for_each(|error| self.note(error));
        }
        drop(contents);
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = None;
        for stage in self.mounts().into_iter().filter_map(|mount| mount.stage_if_open()) {
            let Some(new_tree) = stage.new_tree_if_open() else { continue };
            // One that leads to a new directory is not empty, and goes with the whole staging.
            new_tree.remove_dirs(new_tree.take_made(&RelPath::root()));
        }
    }

    /// Takes the new directory at `path`, with all that is in it, out of the tree, under a name of the moment.
    pub(crate) fn take_top(&self, stage: &Stage, path: &RelPath) -> Result<String, FsError> {
        let home = self.home(stage, &path.parent().unwrap_or_default())?;
        let mut name = self.fresh_name();
        name.replace_range(..1, "d");
        renameat(&home, path.name(), stage.fd(), &name).map_err(|errno| FsError::new("stage", path, errno))?;
        if let Some(new_tree) = stage.new_tree_if_open() {
            new_tree.root.forget(path);
        }
        Ok(name)
    }

    fn new_tree(&self, stage: &Stage) -> Result<Arc<NewTree>, Errno> {
        let mut slot = stage.new_tree.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(new_tree) = &*slot {
            return Ok(Arc::clone(new_tree));
        }
        match mkdirat(stage.fd(), TREE, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let path = self.root.path().join(crate::fs::STAGING_NAME).join(TREE);
        let new_tree = Arc::new(NewTree { root: Root::within(stage.fd(), TREE, path, HELD)?, made: Mutex::default() });
        *slot = Some(Arc::clone(&new_tree));
        Ok(new_tree)
    }

    /// What there is to say of a file that was just given its place at `path`, with `dressed` for its attributes.
    pub(crate) fn in_place(
        &self,
        path: &RelPath,
        stage: &Stage,
        fd: impl AsFd,
        size: u64,
        dressed: Option<&Metadata>,
    ) -> Box<InPlace> {
        let tuple = self.tuple_of(fd, size, dressed).filter(|tuple| tuple.fs == stage.fs);
        Box::new(InPlace { path: path.clone(), placed: false, seen: tuple.map(|tuple| (tuple.ino, tuple.ctime)) })
    }

    /// The tuple of a file in staging, if everything about it is as it was dressed, and our own clock stamps it.
    pub(crate) fn tuple_of(&self, fd: impl AsFd, size: u64, dressed: Option<&Metadata>) -> Option<Tuple> {
        let stat = self.root.stat_fd(fd).ok()?;
        let found = Metadata { mode: stat.mode, uid: stat.uid, gid: stat.gid, mtime: stat.tuple.mtime };
        let same = Some(&found) == dressed && stat.nlink == 1 && stat.tuple.size == size;
        (same && !self.root.is_remote(&stat)).then_some(stat.tuple)
    }

    /// If the content is in its place at `path`, leaves it there for good; `last`: and wants it nowhere else. Returns what
    /// it was dressed as, and what more is known of the file.
    pub(crate) fn keep_in_place(
        &self,
        digest: &Digest,
        stage: &Arc<Stage>,
        path: &RelPath,
        last: bool,
    ) -> Option<(Option<Metadata>, Option<(u64, Time)>)> {
        let mut contents = self.contents();
        let Entry::Occupied(mut content) = contents.entry(*digest) else { return None };
        if !content.get().is_at(path) || !Arc::ptr_eq(&content.get().stage, stage) {
            return None;
        }
        let dressed = content.get().dressed;
        let in_place = content.get_mut().in_place.as_mut()?;
        in_place.placed = true;
        let seen = in_place.seen;
        if last {
            content.swap_remove();
        }
        Some((dressed, seen))
    }

    /// Takes a content that was kept in its place, and is wanted elsewhere too, out again, as it was when it came; `false`
    /// if that cannot be done: then it is not staged any more.
    pub(crate) fn take_back(&self, digest: &Digest) -> bool {
        let mut contents = self.contents();
        let Some(content) = contents.get_mut(digest) else { return false };
        let (stage, hex) = (Arc::clone(&content.stage), digest.to_hex());
        let moved = self.at_content(digest, content, |home, name| renameat(home, name, stage.fd(), &hex));
        (content.dressed, content.in_place) = (None, None);
        let done = moved.is_ok() && stage.make_plain(hex.as_bytes());
        if !done {
            contents.swap_remove(digest);
        }
        done
    }
}

/// The contents that took their places ahead of a plan.
fn by_place(contents: &Contents) -> BTreeMap<RelPath, Digest> {
    let place =
        |content: &Content| content.in_place.as_ref().filter(|place| !place.placed).map(|place| place.path.clone());
    contents.iter().filter_map(|(digest, content)| Some((place(content)?, *digest))).collect()
}

impl Content {
    /// Whether its file is at `path` in a new directory, and free.
    pub fn is_at(&self, path: &RelPath) -> bool {
        self.in_place.as_ref().is_some_and(|in_place| !in_place.placed && in_place.path == *path)
    }
}

impl Stage {
    /// The tuple of a file in a new directory.
    pub fn tuple(&self, size: u64, dressed: &Metadata, (ino, ctime): (u64, Time)) -> Tuple {
        Tuple { fs: self.fs, ino, size, mtime: dressed.mtime, ctime }
    }

    /// A plan makes this directory; it need not be taken out again. `false` if it is not one that was made for this name,
    /// or is claimed already.
    pub fn claim_home(&self, dir: &RelPath) -> bool {
        self.new_tree_if_open().is_some_and(|new_tree| new_tree.made().remove(dir))
    }

    pub fn new_tree_if_open(&self) -> Option<Arc<NewTree>> {
        self.new_tree.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
