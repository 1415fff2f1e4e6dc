//! Metadata of what keeps its inode, and in the end of directories: their modes and times.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::{Fate, Publisher, drift, failed, inode, old_of, was_dir};
use crate::fs::attributes::{self, Before, Target};
use crate::fs::error::FsError;
use crate::fs::probe::xattrs_of_dir;
use crate::fs::stat::Stat;
use crate::manifest::{Entry, Refused, Row};
use crate::path::RelPath;
use crate::plan::{Action, Step};

impl Publisher {
    /// Changes the metadata of entries that are no directories and keep their inode.
    pub(super) fn set_metadata(&mut self, steps: &[Step]) {
        let mut done = HashMap::new();
        self.here = None;
        for (i, step) in steps.iter().enumerate() {
            if self.is_stopped() {
                return;
            }
            // A directory is not done before the end.
            self.tell_some(i, |step| {
                step.action == Action::Metadata && !step.new.as_deref().is_some_and(Entry::is_dir)
            });
            let Some(entry) = step.new.as_deref() else { continue };
            if self.work[i].fate != Fate::Open || entry.is_dir() {
                continue;
            }
            match self.set_metadata_of(i, step, entry, &mut done) {
                Ok(()) => self.work[i].fate = Fate::Done,
                Err(error) => self.fail(i, error),
            }
        }
    }

    fn set_metadata_of(
        &mut self,
        i: usize,
        step: &Step,
        entry: &Entry,
        done: &mut HashMap<(u64, u64), Refused>,
    ) -> Result<(), FsError> {
        let Some((row, tuple)) = old_of(step) else {
            // A device that is still refused: nothing is there to change.
            return Ok(());
        };
        self.staging.mount_near(&step.path)?;
        self.enter(&step.path);
        if let Some(copy) = self.inodes.detached.get(&inode(&tuple)).cloned() {
            self.work[i].refused = self.step_of(&copy).map(|j| self.work[j].refused).unwrap_or_default();
            return self.link_detached(step, &copy);
        }
        let (fd, stat) = self.hold(&step.path)?;
        if !self.is_unchanged(&stat, &tuple) {
            return Err(drift("change", &step.path));
        }
        if let Some(&refused) = done.get(&inode(&tuple)) {
            // The first name of the group changed the inode for all of them.
            self.work[i].refused = refused;
            return Ok(());
        }
        if self.has_names_outside(&stat) {
            let Some(staged) = self.detach(i, step)? else { return Ok(()) };
            self.place_late(i, step, &staged)?;
            self.inodes.detached.insert(inode(&tuple), step.path.clone());
            return Ok(());
        }
        if stat.nlink > 1 {
            self.touch_inode(&tuple);
        }
        let mut refused = change(&fd, &stat, Some(row), entry).map_err(failed(&step.path))?;
        let now = self.root.stat_fd(&fd).map_err(|errno| FsError::new("look at", &step.path, errno))?;
        self.left_as(i, &now);
        if stat.nlink > 1 {
            self.inodes.moved(&now.tuple);
            done.insert(inode(&tuple), refused);
        }
        // What stands in for a refused link still does.
        if row.refused.has(Refused::LINK) {
            refused.add(Refused::LINK);
        }
        self.work[i].refused = refused;
        Ok(())
    }

    /// Ends all directories whose entry or listing changed, deepest first: only now nothing in them changes any more.
    pub(super) fn finish_dirs(&mut self) {
        let thawed = self.staging.thaw.take();
        let mut dirs = std::mem::take(&mut self.touched);
        dirs.extend(thawed.keys().map(|path| (path.clone(), Refused::default())));
        for (i, step) in self.steps.iter().enumerate() {
            let is_dir = step.new.as_deref().is_some_and(Entry::is_dir);
            if is_dir && !matches!(self.work[i].fate, Fate::Failed | Fate::Observed | Fate::LeftOut) {
                dirs.insert(step.path.clone(), Refused::default());
            }
        }
        self.here = None;
        for (path, refused_here) in dirs.iter_mut().rev() {
            let step = self.step_of(path);
            self.enter(path);
            let finished = self.finish_dir(path, thawed.get(path).copied());
            match (finished, step) {
                (Ok(refused), Some(i)) if !matches!(self.work[i].fate, Fate::Failed | Fate::LeftOut) => {
                    self.work[i].fate = Fate::Done;
                    self.work[i].refused.add(refused);
                }
                (Ok(refused), _) => *refused_here = refused,
                // It was touched and then removed, by the plan or by somebody.
                (Err(error), None) if error.is_gone() => {}
                (Err(error), Some(i)) if error.is_gone() && self.steps[i].new.is_none() => {}
                (Err(error), Some(i)) => self.fail(i, error),
                (Err(error), None) => self.failures.push(error),
            }
        }
        self.touched = dirs;
    }

    fn finish_dir(&mut self, path: &RelPath, frozen: Option<u32>) -> Result<Refused, FsError> {
        let steps = Arc::clone(&self.steps);
        let step = self.step_of(path).map(|i| &steps[i]);
        let (fd, stat) = self.hold(path)?;
        let wanted = self.wanted(path).filter(Entry::is_dir);
        if !stat.is_dir() {
            // The plan made something else of a directory that it emptied before.
            return if wanted.is_some() { Err(drift("change", path)) } else { Ok(Refused::default()) };
        }
        let target = Target::Open(fd.as_fd());
        let Some(entry) = wanted else {
            // Nothing is known of it, or it should have gone and could not: at least its mode is given back.
            let restored = frozen.map_or(Ok(()), |mode| target.chmod(mode));
            return restored.map(|()| Refused::default()).map_err(|e| FsError::new("set the mode of", path, e));
        };
        let row = self.row_of(path);
        let fresh = step.is_some_and(|step| step.action == Action::MakeDir && !path.is_root() && !was_dir(step));
        if let Some(tuple) = row.as_ref().and_then(|row| row.tuple).filter(|_| !fresh)
            && inode(&tuple) != inode(&stat.tuple)
        {
            return Err(drift("change", path));
        }
        let as_known = row.as_ref().filter(|row| !fresh && !row.refused.has(Refused::XATTR));
        if !as_known.is_none_or(|row| xattrs_of_dir(fd.as_fd(), path).is_ok_and(|seen| seen == row.entry.xattrs)) {
            self.strange.insert(path.clone());
        }
        let mut refused = Refused::default();
        if step.is_some() || frozen.is_some() {
            let made = Row { path: path.clone(), entry: entry.clone(), ..blank() };
            // A directory made by this plan has its attributes from staging, except for the mode.
            let before = if fresh { Some(&made) } else { row.as_ref() };
            refused.add(change_dir(&fd, &stat, before, &entry).map_err(failed(path))?);
        }
        match attributes::apply_time(target, entry.mtime) {
            Err((_, Errno::PERM)) if attributes::is_foreign(stat.uid) => refused.add(Refused::TIME),
            applied => refused.add(applied.map_err(failed(path))?),
        }
        if let Ok(Stat { tuple, .. }) = self.root.stat_fd(&fd) {
            self.inodes.moved(&tuple);
        }
        Ok(refused)
    }

    /// Holds the inode at `path`, with what it is now.
    fn hold(&self, path: &RelPath) -> Result<(OwnedFd, Stat), FsError> {
        let fail = |errno| FsError::new("look at", path, errno);
        let fd = self.staging.hold(path).map_err(fail)?;
        let stat = self.root.stat_fd(&fd).map_err(fail)?;
        Ok((fd, stat))
    }
}

pub(super) fn blank() -> Row {
    let entry = Entry {
        kind: crate::manifest::Kind::Dir,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: Default::default(),
        xattrs: Box::default(),
        link: None,
    };
    Row {
        path: RelPath::root(),
        entry,
        tuple: None,
        proven: false,
        refused: Refused::default(),
        extra: false,
        mount: false,
    }
}

fn change(fd: &OwnedFd, stat: &Stat, row: Option<&Row>, entry: &Entry) -> Result<Refused, attributes::Failed> {
    let mut refused = change_dir(fd, stat, row, entry)?;
    if stat.tuple.mtime != entry.mtime {
        refused.add(attributes::apply_time(Target::Open(fd.as_fd()), entry.mtime)?);
    }
    Ok(refused)
}

/// Everything but the time.
fn change_dir(fd: &OwnedFd, stat: &Stat, row: Option<&Row>, entry: &Entry) -> Result<Refused, attributes::Failed> {
    let known = row.filter(|row| !row.refused.has(Refused::XATTR)).map(|row| &*row.entry.xattrs);
    let before = Before { uid: stat.uid, gid: stat.gid, mode: stat.mode, xattrs: known };
    attributes::apply(Target::Open(fd.as_fd()), before, entry)
}
