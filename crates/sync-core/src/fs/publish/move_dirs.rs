//! Directories that are renamed whole: one call for all they hold, if they hold just what the index says.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{RawDir, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::metadata::blank;
use super::{Fate, Known, Publisher, Work, drift, inode};
use crate::fs::error::FsError;
use crate::manifest::{Row, Tuple};
use crate::path::RelPath;
use crate::plan::{Action, MovedDir, Step};

/// Bytes of names that are read at once.
const LISTING: usize = 32 << 10;

impl Publisher {
    /// Whether the directory was renamed.
    pub fn has_renamed(&self, dir: &MovedDir) -> bool {
        self.renamed.contains(&dir.to)
    }

    /// A publisher for the steps that were left out because a directory could not be renamed whole: it holds something
    /// that the index does not know, something in it changed, or the kernel refused. It makes the directory anew and moves
    /// what is known entry by entry, as if there were no short cut, and then removes what is above the old one. To be
    /// carried out from its preparation on, after this one.
    pub fn follow_up(self) -> Option<Self> {
        let left_out = |(step, work): &(&Step, &Work)| work.fate == Fate::LeftOut && step.action == Action::Delete;
        let others = self.steps.iter().zip(&self.work).filter(left_out).map(|(step, _)| step.clone());
        let mut steps: Vec<Step> = self.not_moved().flat_map(MovedDir::steps).chain(others).collect();
        if steps.is_empty() {
            return None;
        }
        steps.sort_by(|a, b| a.path.cmp(&b.path));
        let (staging, stop) = (Arc::clone(&self.staging), Arc::clone(&self.stop));
        let mut next = Self::new(staging, steps, Box::new(After(self)));
        next.stop_on(stop);
        Some(next)
    }

    /// What it carries out.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Directories that are left to another publisher.
    fn not_moved(&self) -> impl Iterator<Item = &MovedDir> {
        let left_out = |i: usize| self.work[i].fate == Fate::LeftOut;
        self.moved.iter().filter(move |dir| self.step_of(&dir.to).is_some_and(left_out))
    }

    fn moved_dir(&self, to: &RelPath) -> Option<&MovedDir> {
        self.moved.binary_search_by(|dir| dir.to.cmp(to)).ok().map(|i| &self.moved[i])
    }

    /// Looks whether the directory holds just what the index says. Whatever is the matter, entry by entry it is dealt
    /// with, and told.
    pub(super) fn prepare_dir_move(&mut self, i: usize, step: &Step) {
        if let Some(home) = self.home_of(&step.path) {
            self.work[home.step].late = true;
        }
        let is_known = self.moved_dir(&step.path).map(|dir| self.is_as_known(dir));
        if !matches!(is_known, Some(Ok(true))) {
            self.work[i].fate = Fate::LeftOut;
        }
    }

    /// Renames the directory; `false` if it is left out.
    pub(super) fn place_dir(&mut self, i: usize, step: &Step, from: &RelPath) -> Result<bool, FsError> {
        self.root.renew(&from.parent().unwrap_or_default());
        self.enter(&step.path);
        // What appeared in it or went since the look shows at its directories, and what only changed moves along.
        let listings_hold = self.moved_dir(&step.path).is_some_and(|dir| self.directories_are_as_known(dir));
        let renamed = if listings_hold { self.rename_dir(from, &step.path) } else { Err(Errno::AGAIN) };
        match renamed {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(drift("create", &step.path)),
            // Another file system after all, a quota, a lower layer, somebody else's directory: the kernel has many
            // reasons, and most do not hold for what is in it.
            Err(_) => {
                self.work[i].fate = Fate::LeftOut;
                return Ok(false);
            }
        }
        self.renamed.insert(step.path.clone());
        self.staging.thaw.rename(from, &step.path);
        self.root.forget(from);
        self.root.forget(&step.path);
        self.touch_dir(from);
        self.touch_dir(&step.path);
        Ok(true)
    }

    fn rename_dir(&self, from: &RelPath, to: &RelPath) -> Result<(), Errno> {
        let thaw = &self.staging.thaw;
        let (above, new_above) = (from.parent().unwrap_or_default(), to.parent().unwrap_or_default());
        let rename = || {
            thaw.within(&self.root, &above, |old| {
                let rename =
                    |new: BorrowedFd<'_>| renameat_with(old, from.name(), new, to.name(), RenameFlags::NOREPLACE);
                thaw.within(&self.root, &new_above, rename)
            })
        };
        match rename() {
            // A directory that gets another parent must be writable itself, because its `..` changes.
            Err(Errno::ACCESS) if thaw.thaw(&self.root, from) => rename(),
            other => other,
        }
    }

    /// Compares a fresh look at all that a directory holds with its rows. Nothing is read, and nothing made readable:
    /// that would show as a change.
    fn is_as_known(&self, dir: &MovedDir) -> Result<bool, FsError> {
        let mount = self.staging.mount_near(&dir.from)?;
        if self.staging.mount_near(&dir.to)?.id != mount.id {
            return Ok(false);
        }
        // Of inodes with several names: how many they have, and how many of those are in here.
        let mut names: HashMap<(u64, u64), (u32, u32)> = HashMap::new();
        let mut buffer = vec![MaybeUninit::uninit(); LISTING];
        let mut listed = 0;
        for moved in &dir.entries {
            let path = &moved.old.path;
            let Some(stat) = self.root.stat(path)? else { return Ok(false) };
            if moved.old.tuple != Some(stat.tuple) || stat.mount != mount.id {
                return Ok(false);
            }
            if stat.is_dir() {
                listed += self.count_names(path, &mut buffer)?;
            } else if stat.nlink > 1 {
                names.entry(inode(&stat.tuple)).or_insert((stat.nlink, 0)).1 += 1;
            }
        }
        // As many names as are known, and all that are known are there: no other one is.
        Ok(listed + 1 == dir.entries.len() && names.values().all(|(all, here)| all == here))
    }

    fn count_names(&self, path: &RelPath, buffer: &mut [MaybeUninit<u8>]) -> Result<usize, FsError> {
        let fail = |errno| FsError::new("read the directory", path, errno);
        let fd = self.root.open_dir(path)?;
        let mut names = RawDir::new(fd.as_fd(), buffer);
        let mut count = 0;
        while let Some(name) = names.next() {
            match name {
                Ok(name) if matches!(name.file_name().to_bytes(), b"." | b"..") => {}
                Ok(_) => count += 1,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(fail(errno)),
            }
        }
        Ok(count)
    }

    fn directories_are_as_known(&self, dir: &MovedDir) -> bool {
        let is_same = |path: &RelPath, tuple| self.root.stat(path).is_ok_and(|stat| stat.map(|s| s.tuple) == tuple);
        dir.entries.iter().filter(|moved| moved.new.is_dir()).all(|moved| is_same(&moved.old.path, moved.old.tuple))
    }

    /// Leaves out, for now, the deletion of what is above a directory that has not been moved out of it.
    pub(super) fn leave_out_above(&mut self) {
        let mut above: HashSet<RelPath> = HashSet::new();
        for dir in self.not_moved() {
            let mut at = dir.from.parent();
            while let Some(dir) = at {
                at = dir.parent();
                above.insert(dir);
            }
        }
        if above.is_empty() {
            return;
        }
        for (step, work) in self.steps.iter().zip(&mut self.work) {
            if step.action == Action::Delete && work.fate == Fate::Open && above.contains(&step.path) {
                work.fate = Fate::LeftOut;
            }
        }
    }
}

/// What is known once a first publisher has done its part.
struct After(Publisher);

impl Known for After {
    fn row(&self, path: &RelPath) -> Option<Row> {
        let Self(first) = self;
        let Some(i) = first.step_of(path) else { return first.known.row(path) };
        let (step, work) = (&first.steps[i], &first.work[i]);
        if !matches!(work.fate, Fate::Done | Fate::Observed) {
            return first.row_of(path);
        }
        let entry = step.new.as_deref().cloned()?;
        let old = step.old.as_deref().cloned().unwrap_or(Row { path: path.clone(), ..blank() });
        // Which inode it is now is not known here.
        Some(Row { entry, tuple: None, proven: true, refused: work.refused, extra: false, ..old })
    }

    fn names(&self, tuple: &Tuple) -> Cow<'_, [RelPath]> {
        self.0.known.names(tuple)
    }
}
