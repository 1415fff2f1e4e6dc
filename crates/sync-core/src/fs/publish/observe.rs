//! What is on disk after publishing, for the index.

use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::{Fate, Placed, Publisher, inode, is_delete};
use crate::fs::clock;
use crate::fs::error::FsError;
use crate::fs::root::Root;
use crate::fs::stat::Stat;
use crate::manifest::{Entry, Kind, Refused, Row, Time, Tuple};
use crate::path::RelPath;
use crate::plan::{Action, Step};

/// How long to wait at most for the clock of time stamps to move on. It ticks at least 100 times a second.
const PATIENCE: Duration = Duration::from_millis(50);

/// One path as it is after publishing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Where: a step of the plan, a directory in which something changed, or another name of an inode that did.
    pub path: RelPath,
    /// `None`: nothing is there, because it was deleted or is a refused device.
    pub tuple: Option<Tuple>,
    /// What the kernel refused.
    pub refused: Refused,
    /// Whether the tuple proves the entry: nothing written later can leave it equal.
    pub proven: bool,
    /// Whether another file system is mounted here.
    pub mount: bool,
}

impl Publisher {
    /// Looks at every path that was touched and is as wanted, in tree order. A path that failed is not among them: its
    /// old row stands if its tuple still does. To be called after the second flush.
    ///
    /// It first waits, some milliseconds at most, until the clock has moved past the last change: a write in the same
    /// tick as the look would not show.
    pub fn observe(&mut self) -> Vec<Observed> {
        let now = wait_for_tick();
        // What was opened before may have been renamed by somebody since: look at what the names lead to.
        self.root.forget(&RelPath::root());
        let steps = Arc::clone(&self.steps);
        let mut seen = Vec::new();
        for (i, step) in steps.iter().enumerate() {
            if self.work[i].fate != Fate::Done {
                continue;
            }
            match self.look_at_step(i, step, now) {
                Ok(observed) => seen.push(observed),
                Err(error) => self.fail(i, error),
            }
        }
        let mut others = self.touched.clone();
        for path in &self.inodes.siblings {
            others.entry(path.clone()).or_default();
        }
        for (path, refused) in others {
            let Some(row) = self.known.row(&path).filter(|_| self.step_of(&path).is_none()) else { continue };
            match self.look_again(&path, &row, refused, now) {
                Ok(observed) => seen.push(observed),
                Err(error) => self.failures.push(error),
            }
        }
        seen.sort_by(|a, b| a.path.cmp(&b.path));
        seen
    }

    /// Whether what was done to a path leaves it proven.
    fn is_proven(&self, observed: &Observed) -> bool {
        observed.proven && !self.strange.contains(&observed.path)
    }

    /// Looks at the outcome of a step.
    fn look_at_step(&self, i: usize, step: &Step, now: Time) -> Result<Observed, FsError> {
        let mut refused = self.work[i].refused;
        refused.add(self.refused_with(step, refused));
        let gone = is_delete(step) || refused.has(Refused::DEVICE);
        let Some(entry) = step.new.as_deref().filter(|_| !gone) else {
            return Ok(Observed { path: step.path.clone(), tuple: None, refused, proven: true, mount: false });
        };
        let (observed, _) = look(&self.root, &step.path, entry, refused, now, |seen| self.left_as_of(seen, Some(i)))?;
        let mount = step.old.as_ref().is_some_and(|row| row.mount) && entry.is_dir();
        Ok(Observed { mount, proven: self.is_proven(&observed), ..observed })
    }

    /// What the kernel refused of the inode that the step linked to: its attributes are those of every name.
    fn refused_with(&self, step: &Step, own: Refused) -> Refused {
        let Action::Link { first } = &step.action else { return Refused::default() };
        if own.has(Refused::LINK) {
            // A copy stands in, with attributes of its own.
            return Refused::default();
        }
        let first = match self.step_of(first) {
            Some(j) => self.work[j].refused,
            None => self.known.row(first).map(|row| row.refused).unwrap_or_default(),
        };
        Refused(first.0 & !Refused::LINK.0)
    }

    /// Looks at a path that the plan says nothing about: it keeps its entry, and its proof if it had one.
    fn look_again(&self, path: &RelPath, row: &Row, mut refused: Refused, now: Time) -> Result<Observed, FsError> {
        refused.add(row.refused);
        let (observed, _) = look(&self.root, path, &row.entry, refused, now, |seen| self.left_as_of(seen, None))?;
        Ok(Observed { proven: self.is_proven(&observed) && row.proven, mount: row.mount, ..observed })
    }

    /// The `ctime` that we left an inode with, or a step its entry.
    fn left_as_of(&self, seen: &Tuple, step: Option<usize>) -> Option<Time> {
        match self.inodes.ours.get(&inode(seen)) {
            Some(left) => left.ctime,
            None => step.and_then(|i| self.left.get(&i).copied()),
        }
    }
}

/// Looks at names that were published, apart from the publisher and on another thread if need be.
pub struct Observer {
    root: Arc<Root>,
    steps: Arc<Vec<Step>>,
}

impl Observer {
    pub(super) fn new(root: Arc<Root>, steps: Arc<Vec<Step>>) -> Self {
        Self { root, steps }
    }

    /// Looks at some names. Returns those that are as wanted and proven, with what was seen; the others are for
    /// [`Publisher::observe`].
    pub fn look(&self, some: &[Placed]) -> Vec<(Placed, Observed)> {
        let now = clock::now();
        let look = |placed: &Placed| {
            let step = &self.steps[placed.step];
            let entry = step.new.as_deref().filter(|_| !placed.refused.has(Refused::DEVICE))?;
            let (observed, nlink) = look(&self.root, &step.path, entry, placed.refused, now, |_| placed.left).ok()?;
            // An inode with several names changes once more when the others are made.
            (observed.proven && nlink == 1).then_some((*placed, observed))
        };
        some.iter().filter_map(look).collect()
    }
}

/// Looks at a path, which shall be `entry` but for what was refused; also tells how many names the inode has. `left` says
/// with which `ctime` we left the inode, if that is known.
fn look(
    root: &Root,
    path: &RelPath,
    entry: &Entry,
    mut refused: Refused,
    now: Time,
    left: impl FnOnce(&Tuple) -> Option<Time>,
) -> Result<(Observed, u32), FsError> {
    let drift = || FsError::because("keep", path, "it was changed there while it was published");
    let stat = root.stat(path)?.ok_or_else(drift)?;
    let owner = (stat.uid, stat.gid) == (entry.uid, entry.gid) || refused.has(Refused::OWNER);
    if !owner || !is_of_kind(&stat, &entry.kind) {
        return Err(drift());
    }
    if !matches!(entry.kind, Kind::Symlink { .. }) && stat.mode != entry.mode {
        // The kernel drops setid bits without a word where we have no right to them. A directory of somebody else
        // keeps its mode.
        let kept = entry.is_dir() && refused.has(Refused::MODE);
        if !kept && (stat.mode & !0o6000 != entry.mode & !0o6000 || stat.mode & !entry.mode != 0) {
            return Err(drift());
        }
        refused.add(Refused::MODE);
    }
    if stat.tuple.mtime != entry.mtime {
        if !refused.has(Refused::TIME) && !is_rounded(&stat, entry.mtime) {
            return Err(drift());
        }
        refused.add(Refused::TIME);
    }
    // A write sets both times to the same tick. If they are equal nothing tells such a write from ours.
    let written = stat.is_file() && stat.tuple.mtime == stat.tuple.ctime;
    // Attributes, and contents whose time was set back, show at no other place.
    let untouched = left(&stat.tuple).is_none_or(|ctime| ctime == stat.tuple.ctime);
    let proven = untouched && !written && clock::settled(stat.tuple.ctime, now, root.is_remote(&stat));
    let observed = Observed { path: path.clone(), tuple: Some(stat.tuple), refused, proven, mount: false };
    Ok((observed, stat.nlink))
}

fn is_of_kind(stat: &Stat, kind: &Kind) -> bool {
    use rustix::fs::FileType as T;
    match (stat.kind, kind) {
        (T::Directory, Kind::Dir)
        | (T::Symlink, Kind::Symlink { .. })
        | (T::Fifo, Kind::Fifo)
        | (T::Socket, Kind::Socket) => true,
        (T::RegularFile, Kind::File { size, .. }) => stat.tuple.size == *size,
        (T::CharacterDevice, Kind::CharDev { major, minor }) | (T::BlockDevice, Kind::BlockDev { major, minor }) => {
            stat.rdev == (*major, *minor)
        }
        _ => false,
    }
}

/// Whether the time on disk is the wanted one as far as a file system with whole (or every other) seconds can hold it.
fn is_rounded(stat: &Stat, wanted: Time) -> bool {
    let coarse = stat.tuple.ctime.nsec == 0 && stat.tuple.mtime.nsec == 0;
    coarse && wanted.sec.abs_diff(stat.tuple.mtime.sec) <= 2
}

/// Waits until the coarse clock, which stamps inodes, has passed the present moment; gives its time.
fn wait_for_tick() -> Time {
    let now = clock_gettime(ClockId::Realtime);
    let start = Time { sec: now.tv_sec, nsec: u32::try_from(now.tv_nsec).unwrap_or(0) };
    clock::wait_past(start, PATIENCE);
    clock::now()
}
