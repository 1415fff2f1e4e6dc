//! Making a plan true on a replica's disk: prepared out of sight, then made visible name by name.
//!
//! [`Publisher::prepare`] does everything that takes time, in staging, where new directories take shape with all that is
//! in them. After a flush, [`Publisher::publish`] only renames, links, unlinks and sets metadata, so that a crash in
//! between leaves each visible file old or new. After another flush, [`Publisher::observe`] looks at every name that was
//! touched and tells what an index may believe; with [`Publisher::tell_early`] an [`Observer`] looks at most of them
//! before, while others are still being renamed. What is in its place in a new directory is told by
//! [`Publisher::tell_ready`] while others are still being prepared, and not looked at again.
//!
//! Both can be asked to stop, and look for that between two steps: [`Publisher::stop_on`]. What is visible by then is
//! whole, and the caller gives the rest up with the staging, as after a crash.
//!
//! The disk alone decides: before each change the entry is compared with what the index said about it, and where they
//! differ the entry is left alone and reported. One failed path never stops the others.
//!
//! System calls for a new regular file of a small size, staging included: open, write, utimensat, close; chown and chmod
//! if a file cannot be made with its owner and mode; statx, and renameat2 where its directory is not new. One that
//! replaces a file costs another statx, and so does what gets its name by itself, or gets attributes in a new directory: one to
//! know what it was left as, so that what somebody else does to it before it is observed is not taken for ours. Opening directories comes on top once per
//! directory.

mod copy;
mod link;
mod metadata;
mod move_dirs;
mod names;
mod new_dirs;
mod observe;
mod prepare;
mod replaced;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

pub use observe::{Observed, Observer};

use new_dirs::TOLD_AT_ONCE;
use replaced::Replaced;

use super::attributes::Failed;
use super::error::FsError;
use super::root::Root;
use super::staging::{Stage, Staging};
use super::stat::Stat;
use crate::manifest::{Entry, Refused, Row, Time, Tuple};
use crate::path::RelPath;
use crate::plan::{Action, MovedDir, Step};

/// What the replica's index says, as it was when the plan was made.
pub trait Known: Send {
    /// The row of a path; a directory's row tells what its metadata should be after something in it changed.
    fn row(&self, path: &RelPath) -> Option<Row>;
    /// Every path whose row has this inode (`fs` and `ino`), for inodes with more than one name.
    fn names(&self, tuple: &Tuple) -> Cow<'_, [RelPath]>;
}

/// Carries one plan out. Every method blocks; call them in the order `prepare`, [`Staging::flush`], `publish`,
/// [`Staging::flush`], `observe`.
pub struct Publisher {
    root: Arc<Root>,
    staging: Arc<Staging>,
    steps: Arc<Vec<Step>>,
    /// Directories that are renamed whole, in the order of where they shall be.
    moved: Arc<Vec<MovedDir>>,
    /// Where those are that were renamed.
    renamed: HashSet<RelPath>,
    known: Box<dyn Known>,
    /// One for each step.
    work: Vec<Work>,
    failures: Vec<FsError>,
    inodes: Inodes,
    /// The `ctime` that steps left their entries with.
    left: foldhash::HashMap<usize, Time>,
    /// Directories with other extended attributes than the index says, which we did not look for when we changed them.
    strange: HashSet<RelPath>,
    /// Directories whose listing was changed, with what the kernel refused of those that are no step.
    touched: BTreeMap<RelPath, Refused>,
    /// The directory whose entries are being changed.
    here: Option<RelPath>,
    /// Is told which steps are done while the others are still being published.
    tell: Option<Tell>,
    /// Is told what is in its place in a new directory while others are still being prepared.
    tell_ready: Option<TellReady>,
    /// After how many steps what has settled is told.
    tell_every: usize,
    /// What is to be told next, in the order of its time stamps.
    ready: VecDeque<Ready>,
    /// The directory that was looked up last, and what it is in staging if it is new.
    home: Option<(RelPath, Option<Home>)>,
    /// Large files that lost their names.
    replaced: Replaced,
    stop: Arc<AtomicBool>,
    /// Whether steps were left out because of it.
    stopped: bool,
}

/// Is told steps that are done, some at a time.
pub type Tell = Box<dyn FnMut(Vec<Placed>) + Send>;

/// A step that is done: its name is what the plan wants, and nothing will touch it again, unless it gets further names.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    step: usize,
    refused: Refused,
    left: Option<Time>,
}

/// Is told what is in its place, some at a time.
pub type TellReady = Box<dyn FnMut(Vec<Ready>) + Send>;

/// A step whose entry is in its place in a new directory, just as the plan wants it, and the tuple that proves it.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// Which step.
    pub step: usize,
    /// What it will be seen as.
    pub tuple: Tuple,
}

/// A new directory, which takes shape in staging.
#[derive(Clone, Debug)]
struct Home {
    step: usize,
    stage: Arc<Stage>,
    dir: Arc<OwnedFd>,
}

/// How far a step got.
#[derive(Debug, Default)]
struct Work {
    fate: Fate,
    /// What waits in staging for its name. Boxed, because in a first copy nothing does.
    staged: Option<Box<Staged>>,
    refused: Refused,
    /// Of a new directory: whether something gets its name in it only when it is published.
    late: bool,
    told: Told,
}

/// Whether [`TellReady`] was told of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Told {
    #[default]
    No,
    Yes,
    /// It may have been, and the tuple has changed since; it is not told again.
    Outdated,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fate {
    #[default]
    Open,
    Failed,
    /// In its place in a new directory, and done once that is.
    InPlace,
    Done,
    /// Done, and looked at already.
    Observed,
    /// For another publisher: see [`Publisher::follow_up`].
    LeftOut,
}

/// An inode in staging.
#[derive(Debug)]
struct Staged {
    stage: Arc<Stage>,
    /// The new directory in which it has its place, under its own name; `None`: it waits apart.
    home: Option<Arc<OwnedFd>>,
    name: Box<[u8]>,
    /// Which inode it is, if it is a further name of one that has others, in the tree or in staging.
    linked: Option<(u64, u64)>,
}

/// Inodes with several names, on which one change shows at all of them.
#[derive(Debug, Default)]
struct Inodes {
    /// Those whose `ctime` we moved ourselves.
    ours: HashMap<(u64, u64), Left>,
    /// How many names each has more than the index knew, or less, because we made and removed some.
    more: HashMap<(u64, u64), i64>,
    /// Paths that are no part of the plan and whose inode was touched.
    siblings: BTreeSet<RelPath>,
    /// Inodes whose names in the index are all among those.
    gathered: HashSet<(u64, u64)>,
    /// Inodes that had names outside, with the path of the copy that stands in for them now.
    detached: HashMap<(u64, u64), RelPath>,
}

/// What we left an inode as.
#[derive(Clone, Copy, Debug)]
struct Left {
    mtime: Time,
    /// `None`: nobody has looked since.
    ctime: Option<Time>,
}

impl Publisher {
    /// A publisher of `steps`, which come in tree order, each path once.
    pub fn new(staging: Arc<Staging>, steps: impl Into<Arc<Vec<Step>>>, known: Box<dyn Known>) -> Self {
        let steps: Arc<Vec<Step>> = steps.into();
        let work = steps.iter().map(|_| Work::default()).collect();
        Self {
            root: Arc::clone(&staging.root),
            staging,
            steps,
            moved: Arc::default(),
            renamed: HashSet::new(),
            known,
            work,
            failures: Vec::new(),
            inodes: Inodes::default(),
            left: foldhash::HashMap::default(),
            strange: HashSet::new(),
            touched: BTreeMap::new(),
            here: None,
            tell: None,
            tell_ready: None,
            tell_every: TOLD_AT_ONCE,
            ready: VecDeque::new(),
            home: None,
            stop: Arc::default(),
            replaced: Replaced::default(),
            stopped: false,
        }
    }

    /// Tells what the directories hold that the plan renames whole: see [`crate::plan::Plan::moved`].
    pub fn move_dirs(&mut self, moved: Arc<Vec<MovedDir>>) {
        self.moved = moved;
    }

    /// Has [`Publisher::publish`] tell which names are done while it goes on with others, so that an [`Observer`] can
    /// look at them meanwhile. What is made of that must not outlive a failure of the last flush.
    pub fn tell_early(&mut self, tell: Tell) {
        self.tell = Some(tell);
    }

    /// Has [`Publisher::prepare`] tell what is in its place in new directories, so that its rows can be written
    /// meanwhile. They are true once the plan is published, but for those of [`Publisher::withdrawn`].
    pub fn tell_ready(&mut self, tell: TellReady) {
        self.tell_ready = Some(tell);
    }

    /// Paths that were told to be in their place, and are not.
    pub fn withdrawn(&self) -> impl Iterator<Item = &RelPath> {
        let withdrawn = |work: &Work| work.fate == Fate::Failed && work.told != Told::No;
        self.steps.iter().zip(&self.work).filter(move |(_, work)| withdrawn(work)).map(|(step, _)| &step.path)
    }

    /// From now on, no step is begun once `stop` is raised.
    pub fn stop_on(&mut self, stop: Arc<AtomicBool>) {
        self.stop = stop;
    }

    /// Whether steps were left out because of that: then nothing may follow but [`Staging::keep_parts`] and, some time,
    /// a new look at the tree.
    pub fn was_stopped(&self) -> bool {
        self.stopped
    }

    fn is_stopped(&mut self) -> bool {
        self.stopped |= self.stop.load(Ordering::Relaxed);
        self.stopped
    }

    /// Looks at what is done early.
    pub fn observer(&self) -> Observer {
        Observer::new(Arc::clone(&self.root), Arc::clone(&self.steps))
    }

    /// Leaves out of [`Publisher::observe`] what was observed early.
    pub fn skip(&mut self, observed: &[Placed]) {
        for placed in observed {
            // Another name of the inode may have been made after the look.
            if !self.inodes.siblings.contains(&self.steps[placed.step].path) {
                self.work[placed.step].fate = Fate::Observed;
            }
        }
    }

    /// What failed since this was last called; each failure is told once.
    pub fn take_failures(&mut self) -> Vec<FsError> {
        std::mem::take(&mut self.failures)
    }

    fn fail(&mut self, i: usize, error: FsError) {
        self.work[i].fate = Fate::Failed;
        // Wherever exactly it showed, in staging perhaps: it is this entry that failed.
        self.failures.push(FsError { path: self.steps[i].path.clone(), ..error });
    }

    /// The step for `path`, if the plan has one.
    fn step_of(&self, path: &RelPath) -> Option<usize> {
        self.steps.binary_search_by(|step| step.path.cmp(path)).ok()
    }

    /// What the index said about `path` before the plan; of a directory that was renamed, what it said at its old name.
    fn row_of(&self, path: &RelPath) -> Option<Row> {
        match self.step_of(path).map(|i| &self.steps[i]) {
            Some(Step { action: Action::MoveDir { from }, .. }) => self.known.row(from),
            Some(step) => step.old.as_deref().cloned(),
            None => self.known.row(path),
        }
    }

    /// What `path` should be after the plan, for a path that exists then.
    fn wanted(&self, path: &RelPath) -> Option<Entry> {
        match self.step_of(path) {
            Some(i) => self.steps[i].new.as_deref().cloned(),
            None => self.known.row(path).map(|row| row.entry),
        }
    }

    /// Whether what is on disk is what the index said, or, of an inode whose `ctime` we moved ourselves, by linking or
    /// unlinking another of its names, what we left it as.
    fn is_unchanged(&self, stat: &Stat, tuple: &Tuple) -> bool {
        let ours = || self.inodes.ours.get(&inode(tuple));
        let same = |left: &Left| {
            stat.tuple == Tuple { mtime: left.mtime, ctime: left.ctime.unwrap_or(stat.tuple.ctime), ..*tuple }
        };
        stat.tuple == *tuple || ours().is_some_and(same)
    }

    /// Whether an inode whose `ctime` we moved is still what we left it as.
    fn is_as_left(&self, stat: &Stat) -> bool {
        let left = self.inodes.ours.get(&inode(&stat.tuple)).and_then(|left| left.ctime);
        left.is_none_or(|ctime| ctime == stat.tuple.ctime)
    }

    /// Records that the `ctime` of an inode moves at every name it has.
    fn touch_inode(&mut self, tuple: &Tuple) {
        self.inodes.moves(tuple);
        // Once: an inode of 60,000 names is touched as often.
        if self.inodes.gathered.insert(inode(tuple)) {
            self.inodes.siblings.extend(self.known.names(tuple).iter().cloned());
        }
    }

    /// Looks at what a step has just put in place or changed.
    fn leave(&mut self, i: usize, path: &RelPath) {
        // If nothing is there any more, that shows when it is observed.
        if let Ok(stat) = self.staging.look_at(path) {
            self.left_as(i, &stat);
        }
    }

    fn left_as(&mut self, i: usize, stat: &Stat) {
        self.left.insert(i, stat.tuple.ctime);
        self.inodes.left_as(stat);
    }

    /// Whether an inode has names that neither the index knows nor we made: those lie outside the tree, and must not
    /// change.
    fn has_names_outside(&self, stat: &Stat) -> bool {
        let more = self.inodes.more.get(&inode(&stat.tuple)).copied().unwrap_or(0);
        let known = || i64::try_from(self.known.names(&stat.tuple).len()).unwrap_or(i64::MAX).max(1);
        stat.nlink > 1 && i64::from(stat.nlink) > known().saturating_add(more)
    }

    /// To be called before the entry at `path` changes. An open directory is followed wherever somebody moves it, out of
    /// the tree too: for each run of siblings it is looked up again.
    fn enter(&mut self, path: &RelPath) {
        let Some(parent) = path.parent() else { return };
        if self.here.as_ref() != Some(&parent) {
            self.root.renew(&parent);
            self.here = Some(parent);
        }
    }

    fn touch_dir(&mut self, path: &RelPath) {
        let Some(parent) = path.parent() else { return };
        self.touched.entry(parent).or_default();
    }
}

impl Inodes {
    /// Records that the `ctime` of an inode moves, to what nobody knows yet.
    fn moves(&mut self, tuple: &Tuple) {
        self.ours.entry(inode(tuple)).or_insert(Left { mtime: tuple.mtime, ctime: None }).ctime = None;
    }

    /// Records an inode whose `ctime` we moved, as it was seen since.
    fn moved(&mut self, tuple: &Tuple) {
        self.ours.insert(inode(tuple), Left { mtime: tuple.mtime, ctime: Some(tuple.ctime) });
    }

    /// Records how an inode was seen after we changed it, if it is one whose `ctime` we move.
    fn left_as(&mut self, stat: &Stat) {
        if let Some(left) = self.ours.get_mut(&inode(&stat.tuple)) {
            left.ctime = Some(stat.tuple.ctime);
        }
    }

    /// Records that an inode got names (or lost them).
    fn count(&mut self, inode: (u64, u64), names: i64) {
        *self.more.entry(inode).or_default() += names;
    }
}

impl Staged {
    /// An inode that waits apart.
    fn apart(stage: Arc<Stage>, name: String) -> Self {
        Self { stage, home: None, name: name.into_bytes().into(), linked: None }
    }

    /// The directory that its name is in.
    fn dir(&self) -> BorrowedFd<'_> {
        self.home.as_ref().map_or_else(|| self.stage.fd(), AsFd::as_fd)
    }

    /// Removes it. A directory that is not empty goes with the staging.
    fn remove(&self) {
        if unlinkat(self.dir(), &*self.name, AtFlags::empty()) == Err(Errno::ISDIR) {
            let _ = unlinkat(self.dir(), &*self.name, AtFlags::REMOVEDIR);
        }
    }
}

fn inode(tuple: &Tuple) -> (u64, u64) {
    (tuple.fs, tuple.ino)
}

fn drift(doing: &'static str, path: &RelPath) -> FsError {
    FsError::because(doing, path, "it was changed there meanwhile; the next push looks again")
}

fn failed(path: &RelPath) -> impl Fn(Failed) -> FsError + '_ {
    |(doing, errno)| FsError::new(doing, path, errno)
}

/// The row of what the step finds on disk; `None` if nothing is there.
fn old_of(step: &Step) -> Option<(&Row, Tuple)> {
    step.old.as_deref().and_then(|row| Some((row, row.tuple?)))
}

/// Whether the step finds a directory on disk.
fn was_dir(step: &Step) -> bool {
    old_of(step).is_some_and(|(row, _)| row.entry.is_dir())
}

fn is_delete(step: &Step) -> bool {
    step.action == Action::Delete
}
