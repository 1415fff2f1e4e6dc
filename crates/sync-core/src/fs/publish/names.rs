//! Names: what was prepared becomes visible, one system call for each entry.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, RenameFlags, accessat, linkat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

use super::prepare::same_attributes;
use super::replaced::LARGE;
use super::{Fate, Placed, Publisher, Staged, Told, drift, failed, inode, is_delete, old_of, was_dir};
use crate::fs::attributes::{self, Before, Target};
use crate::fs::error::FsError;
use crate::fs::stat::{Stat, is_fixed};
use crate::manifest::{Entry, Refused, Tuple};
use crate::path::RelPath;
use crate::plan::{Action, Step};

/// Steps that are told at once, when as many after them are done: the clock of time stamps has moved on since.
#[cfg(not(test))]
const TOLD_AT_ONCE: usize = 2048;
#[cfg(test)]
const TOLD_AT_ONCE: usize = 1;

/// What stands at a name before.
enum There {
    Nothing,
    Dir,
    /// Held if it has other names, so that what it is without this one can be seen.
    Other(Option<OwnedFd>),
}

impl Publisher {
    /// Makes the plan visible, removes staging and sets the times of directories. To be called after what was prepared
    /// is flushed and the intent is recorded. Failures are kept for [`Publisher::take_failures`].
    ///
    /// The order: what stands in the way of a type change goes first; then everything new, directories before what
    /// they hold; then the other deletions, deepest first; then metadata, directories last and deepest first. If it is
    /// stopped, only what would be lost otherwise is done yet.
    pub fn publish(&mut self) {
        let steps = Arc::clone(&self.steps);
        // Directories that were opened before may have been renamed by somebody since.
        self.root.forget(&RelPath::root());
        let in_the_way = in_the_way(&steps);
        self.keep_what_cannot_be_replaced(&steps, &in_the_way);
        for (i, step) in steps.iter().enumerate().rev().filter(|(i, _)| in_the_way[*i].is_some()) {
            if self.work[i].fate == Fate::Open && !self.is_stopped() {
                self.delete_step(i, step);
            }
        }
        self.here = None;
        self.place_all(&steps);
        self.here = None;
        self.leave_out_above();
        let rest = steps.iter().enumerate().rev().filter(|(i, step)| is_delete(step) && in_the_way[*i].is_none());
        let stranded = self.stranded(&steps);
        for (i, step) in rest {
            if self.is_stopped() {
                break;
            }
            if self.work[i].fate == Fate::LeftOut {
                continue;
            }
            match stranded.get(&step.path) {
                // What could not be moved is not lost for that: the next push moves it without sending it again.
                Some(to) => self.fail(i, FsError::because("delete", &step.path, format!("moving it to {to} failed"))),
                None => self.delete_step(i, step),
            }
        }
        self.drop_staged();
        self.set_metadata(&steps);
        // Whoever listens need not wait for the rest.
        self.tell = None;
        if self.stopped {
            return;
        }
        let tops: Vec<_> = self.staging.mounts().into_iter().filter(|mount| mount.stage_if_open().is_some()).collect();
        self.touched.extend(tops.into_iter().map(|mount| (mount.top.clone(), Refused::default())));
        self.staging.remove_for_now();
        self.failures.extend(self.staging.take_problems());
        self.finish_dirs();
    }

    /// Where content still is whose move failed, with where it should have gone.
    fn stranded<'s>(&self, steps: &'s [Step]) -> HashMap<&'s RelPath, &'s RelPath> {
        let failed = steps.iter().zip(&self.work).filter(|(_, work)| work.fate == Fate::Failed);
        let from = failed.filter_map(|(step, _)| match &step.action {
            Action::Move { from } => Some((from, &step.path)),
            _ => None,
        });
        from.collect()
    }

    /// Before anything beneath a directory goes that becomes something else: proves as far as possible that this will
    /// succeed, and that what moves out of it will arrive. Where not, all of it stays.
    fn keep_what_cannot_be_replaced(&mut self, steps: &[Step], in_the_way: &[Option<usize>]) {
        let mut reasons: HashMap<usize, String> = HashMap::new();
        for (i, step) in steps.iter().enumerate() {
            let Action::Move { from } = &step.action else { continue };
            let Some(top) = self.step_of(from).and_then(|from| in_the_way[from]) else { continue };
            let placeable = match self.work[i].fate {
                Fate::Failed => Err(format!("moving {from} to {} failed", step.path)),
                _ => self.check_changeable(&step.path).map_err(|error| error.to_string()),
            };
            if let Err(reason) = placeable {
                reasons.entry(top).or_insert(reason);
            }
        }
        let mut looked = None;
        for (i, step) in steps.iter().enumerate() {
            let Some(top) = in_the_way[i] else { continue };
            if looked != Some(top) && self.work[top].fate == Fate::Open {
                looked = Some(top);
                if let Err(error) = self.check_changeable(&steps[top].path) {
                    reasons.entry(top).or_insert_with(|| error.to_string());
                }
            }
            if let Err(error) = self.check_removable(&step.path) {
                reasons.entry(top).or_insert_with(|| error.to_string());
            }
        }
        let mut tops: Vec<_> = reasons.into_iter().filter(|(top, _)| self.work[*top].fate == Fate::Open).collect();
        tops.sort();
        for (top, reason) in tops {
            self.fail(top, FsError::because("replace", &steps[top].path, reason));
        }
        for (i, step) in steps.iter().enumerate() {
            if let Some(top) = in_the_way[i].filter(|top| self.work[*top].fate == Fate::Failed) {
                let reason = format!("replacing {} failed", steps[top].path);
                self.fail(i, FsError::because("delete", &step.path, reason));
            }
        }
    }

    /// Whether the name can be given to another inode, as far as that can be known without trying.
    fn check_changeable(&self, path: &RelPath) -> Result<(), FsError> {
        let parent = path.parent().unwrap_or_default();
        let fail = |errno| FsError::new("change", path, errno);
        let looked = self.staging.thaw.within(&self.root, &parent, |dir| {
            match accessat(dir, c".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
                // Not every kernel can be asked for the effective user.
                Ok(()) | Err(Errno::NOSYS | Errno::INVAL) => {}
                Err(errno) => return Err(errno),
            }
            Ok((is_fixed(dir, b"")?, self.root.stat_fd(dir)?))
        });
        let (fixed, above) = match looked {
            Ok(looked) => looked,
            // The plan makes it, or what is in the way fails for itself.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(fail(errno)),
        };
        let stat = match self.staging.look_at(path) {
            Ok(stat) => stat,
            Err(_) if fixed => return Err(fail(Errno::PERM)),
            Err(_) => return Ok(()),
        };
        let euid = rustix::process::geteuid();
        let others = ![stat.uid, above.uid].contains(&euid.as_raw()) && !euid.is_root();
        if fixed || (above.mode & 0o1000 != 0 && others) {
            return Err(fail(Errno::PERM));
        }
        if stat.mount != above.mount {
            return Err(fail(Errno::BUSY));
        }
        self.check_removable(path)
    }

    /// Whether the entry, if it is there, has no flag that keeps it from being removed.
    fn check_removable(&self, path: &RelPath) -> Result<(), FsError> {
        let parent = path.parent().unwrap_or_default();
        match self.staging.thaw.within(&self.root, &parent, |dir| is_fixed(dir, path.name())) {
            Ok(true) => Err(FsError::new("change", path, Errno::PERM)),
            _ => Ok(()),
        }
    }

    /// Keeps an inode that lost its old name to a move whose new name failed, and has no other: by the old name, or else
    /// in the nearest directory that is left. Tells whether it did.
    fn keep_last_name(&mut self, i: usize, staged: &Staged) -> bool {
        let steps = Arc::clone(&self.steps);
        let moved = match &steps[i].action {
            Action::Link { first } => self.step_of(first).unwrap_or(i),
            _ => i,
        };
        let Action::Move { from } = &steps[moved].action else { return false };
        let Some(old) = self.step_of(from).filter(|old| is_delete(&steps[*old])) else { return false };
        let is_last = self.root.stat_at(staged.dir(), &*staged.name).is_ok_and(|stat| stat.nlink == 1);
        if !is_last || self.work[old].fate != Fate::Done {
            return false;
        }
        let rename = |to: &RelPath| {
            let parent = to.parent().unwrap_or_default();
            self.root.renew(&parent);
            self.staging.thaw.within(&self.root, &parent, |dir| {
                let named = renameat_with(staged.dir(), &*staged.name, dir, to.name(), RenameFlags::NOREPLACE);
                match named {
                    // A file system without the flag: a link replaces nothing either.
                    Err(Errno::INVAL) => linkat(staged.dir(), &*staged.name, dir, to.name(), AtFlags::empty()),
                    other => other,
                }
            })
        };
        let mut kept = rename(from).is_ok().then(|| from.clone());
        let mut at = from.parent();
        while let (None, Some(dir)) = (&kept, at) {
            let names = (0..100).filter_map(|n| dir.join(format!("synccli-kept-{n}").as_bytes()).ok());
            for to in names {
                match rename(&to) {
                    Ok(()) => kept = Some(to),
                    Err(Errno::EXIST) => continue,
                    Err(_) => {}
                }
                break;
            }
            at = dir.parent();
        }
        let Some(kept) = kept else { return false };
        self.touch_dir(&kept);
        let reason = format!("moving it to {} failed; it is kept as {kept}", steps[moved].path);
        self.fail(old, FsError::because("delete", from, reason));
        true
    }

    /// Removes what waited in staging in vain. An extra link left behind would move its inode's `ctime` later.
    fn drop_staged(&mut self) {
        for i in 0..self.work.len() {
            if let Some(staged) = self.work[i].staged.take() {
                // Whatever happens to its name here, one that somebody changed stays unproven.
                let look = self.root.stat_at(staged.dir(), &*staged.name);
                let as_left = look.is_ok_and(|stat| self.is_as_left(&stat));
                let kept = self.keep_last_name(i, &staged);
                // After a stop, a whole content may be of use to the next push: that is not decided here.
                if !self.stopped {
                    staged.remove();
                }
                if let Some(inode) = staged.linked {
                    if let Some(left) = self.inodes.ours.get_mut(&inode).filter(|_| as_left) {
                        left.ctime = None;
                    }
                    self.inodes.count(inode, if kept { 0 } else { -1 });
                }
            }
        }
    }

    pub(super) fn place_all(&mut self, steps: &[Step]) {
        let mut blocked: Option<RelPath> = None;
        for (i, step) in steps.iter().enumerate() {
            if self.is_stopped() {
                return;
            }
            self.tell_some(i, |step| matches!(step.action, Action::Content | Action::Copy { .. } | Action::Make));
            let Some(entry) = step.new.as_deref() else { continue };
            if let Some(dir) = blocked.as_ref().filter(|dir| step.path.is_beneath(dir)) {
                if matches!(self.work[i].fate, Fate::Open | Fate::InPlace) {
                    let reason = format!("the directory {dir} could not be made");
                    self.fail(i, FsError::because("create", &step.path, reason));
                }
                continue;
            }
            match self.work[i].fate {
                Fate::Open => match self.place(i, step) {
                    Ok(true) => self.work[i].fate = Fate::Done,
                    Ok(false) => {}
                    Err(error) => self.fail(i, error),
                },
                // It became visible with the directory that it is in.
                Fate::InPlace => {
                    self.work[i].fate = if self.work[i].told == Told::Yes { Fate::Observed } else { Fate::Done }
                }
                Fate::Failed | Fate::Done | Fate::Observed | Fate::LeftOut => {}
            }
            if self.work[i].fate == Fate::Failed && entry.is_dir() && step.action == Action::MakeDir {
                blocked = Some(step.path.clone());
            }
        }
    }

    /// Every so often, tells which steps some way before step `i` are done, of those that nothing will touch again.
    pub(super) fn tell_some(&mut self, i: usize, is_last: fn(&Step) -> bool) {
        let Some(tell) = self.tell.as_mut().filter(|_| i.is_multiple_of(TOLD_AT_ONCE)) else { return };
        let some = i.saturating_sub(2 * TOLD_AT_ONCE)..i.saturating_sub(TOLD_AT_ONCE);
        let done = some.filter(|&i| self.work[i].fate == Fate::Done && is_last(&self.steps[i]));
        let placed = |step| Placed { step, refused: self.work[step].refused, left: self.left.get(&step).copied() };
        tell(done.map(placed).collect());
    }

    /// Gives what is staged for a step its name; `false` if only metadata is left to do.
    fn place(&mut self, i: usize, step: &Step) -> Result<bool, FsError> {
        if let Action::MoveDir { from } = &step.action {
            return self.place_dir(i, step, from);
        }
        let Some(staged) = self.work[i].staged.take() else {
            if self.work[i].refused.has(Refused::DEVICE) {
                // What was there is no longer wanted, and what is wanted cannot be made.
                self.delete(step)?;
                return Ok(true);
            }
            return Ok(false);
        };
        let placed = self.place_staged(i, step, &staged);
        if placed.is_err() {
            self.work[i].staged = Some(staged);
        }
        placed.map(|()| true)
    }

    fn place_staged(&mut self, i: usize, step: &Step, staged: &Staged) -> Result<(), FsError> {
        if let Action::Move { from } = &step.action
            && staged.linked.is_some()
        {
            self.dress_moved(i, step, from, staged)?;
        } else if staged.linked.is_some() {
            self.check_left(staged.dir(), &staged.name, "link", &step.path)?;
        }
        let parent = step.path.parent().unwrap_or_default();
        self.enter(&step.path);
        let there = self.check_old(step)?;
        let rename = |flags: RenameFlags| {
            self.staging.thaw.within(&self.root, &parent, |dir| {
                if flags.is_empty() {
                    return renameat(staged.dir(), &*staged.name, dir, step.path.name());
                }
                renameat_with(staged.dir(), &*staged.name, dir, step.path.name(), flags)
            })
        };
        let is_dir = step.new.as_deref().is_some_and(Entry::is_dir);
        if old_of(step).is_some_and(|(_, old)| old.size > LARGE) && !is_dir && matches!(there, There::Other(_)) {
            let hold = |dir: BorrowedFd<'_>| self.replaced.hold(dir, step.path.name());
            // It only costs time if it fails.
            let _ = self.staging.thaw.within(&self.root, &parent, hold);
        }
        let fail = |errno| match errno {
            Errno::EXIST => drift("create", &step.path),
            errno => FsError::new("put in place", &step.path, errno),
        };
        match there {
            There::Nothing => match rename(RenameFlags::NOREPLACE) {
                // A file system that does not know the flag: look, then rename.
                Err(Errno::INVAL) => match self.root.stat(&step.path)? {
                    None => rename(RenameFlags::empty()).map_err(fail)?,
                    Some(_) => return Err(drift("create", &step.path)),
                },
                other => other.map_err(fail)?,
            },
            // What is written here between the look and this call is lost, as with every rename over a file: an exchange
            // would show that the inode is another one, but not a write through a descriptor that somebody holds.
            There::Other(_) if !is_dir => rename(RenameFlags::empty()).map_err(fail)?,
            There::Other(_) | There::Dir => match rename(RenameFlags::EXCHANGE) {
                Err(Errno::INVAL) => self.remove_then_rename(step, &rename)?,
                exchanged => {
                    exchanged.map_err(fail)?;
                    self.remove_exchanged(step, staged, &rename)?;
                }
            },
        }
        if matches!(there, There::Dir) || is_dir {
            self.root.forget(&step.path);
        }
        if staged.linked.is_some() {
            // Renaming onto another name of the same inode does nothing and leaves the temporary.
            let _ = unlinkat(staged.dir(), &*staged.name, AtFlags::empty());
        }
        if let (There::Other(held), Some((_, old))) = (there, old_of(step)) {
            self.inodes.count(inode(&old), -1);
            self.let_go(held);
        }
        self.touch_dir(&step.path);
        // A directory is left when all that is in it is.
        if !is_dir {
            self.leave(i, &step.path);
        }
        Ok(())
    }

    /// Compares what stands at the name with what the index says.
    fn check_old(&mut self, step: &Step) -> Result<There, FsError> {
        let Some((row, tuple)) = old_of(step) else { return Ok(There::Nothing) };
        let stat = match self.staging.look_at(&step.path) {
            Ok(stat) => stat,
            // Nothing is lost by putting something where there is nothing.
            Err(Errno::NOENT) => return Ok(There::Nothing),
            Err(errno) => return Err(FsError::new("look at", &step.path, errno)),
        };
        if row.entry.is_dir() {
            // Its times moved when what it held went away.
            let same = stat.is_dir() && inode(&stat.tuple) == inode(&tuple);
            return if same { Ok(There::Dir) } else { Err(drift("replace", &step.path)) };
        }
        if !self.is_unchanged(&stat, &tuple) {
            return Err(drift("replace", &step.path));
        }
        if stat.nlink > 1 {
            self.touch_inode(&tuple);
        }
        Ok(There::Other(self.hold_shared(&step.path, &stat)))
    }

    /// Holds what is about to lose this name, if it has others.
    fn hold_shared(&self, path: &RelPath, stat: &Stat) -> Option<OwnedFd> {
        (stat.nlink > 1).then(|| self.staging.hold(path).ok()).flatten()
    }

    /// Looks at what has lost a name.
    fn let_go(&mut self, held: Option<OwnedFd>) {
        if let Some(stat) = held.and_then(|fd| self.root.stat_fd(&fd).ok()) {
            self.inodes.left_as(&stat);
        }
    }

    /// After an exchange: the old entry is in staging and goes. What is another one after all comes back, and so does a
    /// directory that is not empty.
    pub(super) fn remove_exchanged(
        &self,
        step: &Step,
        staged: &Staged,
        rename: &dyn Fn(RenameFlags) -> Result<(), Errno>,
    ) -> Result<(), FsError> {
        let put_back = || rename(RenameFlags::EXCHANGE).map_err(|errno| FsError::new("put back", &step.path, errno));
        let is_expected = |stat: Stat| {
            let Some((row, tuple)) = old_of(step) else { return false };
            if row.entry.is_dir() {
                return stat.is_dir() && inode(&stat.tuple) == inode(&tuple);
            }
            // The exchange itself may have moved its ctime.
            !stat.is_dir()
                && self.is_unchanged(&Stat { tuple: Tuple { ctime: tuple.ctime, ..stat.tuple }, ..stat }, &tuple)
        };
        if !self.root.stat_at(staged.dir(), &*staged.name).is_ok_and(is_expected) {
            put_back()?;
            return Err(drift("replace", &step.path));
        }
        let flags = if was_dir(step) { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match unlinkat(staged.dir(), &*staged.name, flags) {
            Ok(()) => Ok(()),
            Err(errno) => {
                put_back()?;
                Err(not_removable("replace", &step.path, errno))
            }
        }
    }

    /// The same on a file system without exchange: for a moment nothing is there.
    fn remove_then_rename(
        &self,
        step: &Step,
        rename: &dyn Fn(RenameFlags) -> Result<(), Errno>,
    ) -> Result<(), FsError> {
        let flags = if was_dir(step) { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let parent = step.path.parent().unwrap_or_default();
        let removed = self.staging.thaw.within(&self.root, &parent, |dir| unlinkat(dir, step.path.name(), flags));
        removed.map_err(|errno| not_removable("replace", &step.path, errno))?;
        rename(RenameFlags::empty()).map_err(|errno| FsError::new("put in place", &step.path, errno))
    }

    /// A moved inode gets the attributes of its new name at the last moment: its old name shows them too.
    fn dress_moved(&mut self, i: usize, step: &Step, from: &RelPath, staged: &Staged) -> Result<(), FsError> {
        let (Some(entry), Some(row)) = (&step.new, self.row_of(from)) else { return Ok(()) };
        let look = self.root.stat_at(staged.dir(), &*staged.name);
        let stat = look.map_err(|errno| FsError::new("look at", &step.path, errno))?;
        // Its old name is still visible, and somebody may have written to it since it was pinned.
        if !row.tuple.is_some_and(|tuple| self.is_unchanged(&stat, &tuple)) {
            return Err(drift("move", from));
        }
        self.work[i].refused = row.refused;
        if same_attributes(&row.entry, entry) {
            return Ok(());
        }
        let known = !row.refused.has(Refused::XATTR);
        let xattrs = known.then_some(&*row.entry.xattrs);
        let before = Before { uid: stat.uid, gid: stat.gid, mode: stat.mode, xattrs };
        let target = Target::Staged(staged.dir(), &staged.name);
        let mut refused = attributes::apply(target, before, entry).map_err(failed(&step.path))?;
        refused.add(attributes::apply_time(target, entry.mtime).map_err(failed(&step.path))?);
        self.work[i].refused = refused;
        let look = self.root.stat_at(staged.dir(), &*staged.name);
        let stat = look.map_err(|errno| FsError::new("look at", &step.path, errno))?;
        self.inodes.moved(&stat.tuple);
        Ok(())
    }

    /// A name whose inode had names outside gets the copy that another name of the group got already.
    pub(super) fn link_detached(&mut self, step: &Step, copy: &RelPath) -> Result<(), FsError> {
        let fail = |errno| FsError::new("link", &step.path, errno);
        let stage = self.staging.stage_near(&step.path)?;
        let name = self.staging.fresh_name();
        self.root.renew(&copy.parent().unwrap_or_default());
        let dir = self.staging.thaw.open(&self.root, &copy.parent().unwrap_or_default())?;
        linkat(&dir, copy.name(), stage.fd(), &name, AtFlags::empty()).map_err(fail)?;
        let staged = Staged::apart(stage, name);
        let placed = match self.check_old(step) {
            Ok(_) => self.staging.thaw.within(&self.root, &step.path.parent().unwrap_or_default(), |dir| {
                renameat(staged.dir(), &*staged.name, dir, step.path.name())
            }),
            Err(error) => {
                staged.remove();
                return Err(error);
            }
        };
        staged.remove();
        self.touch_dir(&step.path);
        self.inodes.siblings.insert(copy.clone());
        if let Ok(Stat { tuple, .. }) = self.staging.look_at(copy) {
            self.inodes.moved(&tuple);
        }
        placed.map_err(fail)
    }

    /// Puts a copy made at the last moment in place; it is flushed here, since the batch has been flushed already.
    pub(super) fn place_late(&mut self, i: usize, step: &Step, staged: &Staged) -> Result<(), FsError> {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
        if step.new.as_deref().is_some_and(|entry| entry.content().is_some()) {
            rustix::fs::openat(staged.dir(), &*staged.name, flags, rustix::fs::Mode::empty())
                .and_then(rustix::fs::fsync)
                .map_err(|errno| FsError::new("flush", &step.path, errno))?;
        }
        self.place_staged(i, step, staged)
    }

    pub(super) fn delete_step(&mut self, i: usize, step: &Step) {
        match self.delete(step) {
            Ok(()) => self.work[i].fate = Fate::Done,
            Err(error) => self.fail(i, error),
        }
    }

    /// Removes the step's old entry, if it still is what the index says.
    fn delete(&mut self, step: &Step) -> Result<(), FsError> {
        let Some((row, tuple)) = old_of(step) else { return Ok(()) };
        let parent = step.path.parent().unwrap_or_default();
        self.enter(&step.path);
        let stat = match self.staging.look_at(&step.path) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(FsError::new("look at", &step.path, errno)),
        };
        let is_dir = row.entry.is_dir();
        let same = if is_dir {
            stat.is_dir() && inode(&stat.tuple) == inode(&tuple)
        } else {
            self.is_unchanged(&stat, &tuple)
        };
        if !same {
            return Err(drift("delete", &step.path));
        }
        let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        // The file system is flushed in the end even if nothing was staged on it.
        self.staging.mount_near(&step.path)?;
        let held = if is_dir { None } else { self.hold_shared(&step.path, &stat) };
        let removed = self.staging.thaw.within(&self.root, &parent, |dir| unlinkat(dir, step.path.name(), flags));
        removed.map_err(|errno| not_removable("delete", &step.path, errno))?;
        if is_dir {
            self.root.forget(&step.path);
        } else if stat.nlink > 1 {
            self.touch_inode(&tuple);
            self.let_go(held);
            self.inodes.count(inode(&tuple), -1);
        }
        self.touch_dir(&step.path);
        Ok(())
    }
}

fn not_removable(doing: &'static str, path: &RelPath, errno: Errno) -> FsError {
    match errno {
        Errno::NOTEMPTY | Errno::EXIST => {
            FsError::because(doing, path, "not empty: it holds entries that are not part of the push")
        }
        errno => FsError::new(doing, path, errno),
    }
}

/// For each deletion beneath a directory that becomes something else: the step of that directory.
fn in_the_way(steps: &[Step]) -> Vec<Option<usize>> {
    let mut marks = vec![None; steps.len()];
    let mut top: Option<usize> = None;
    for (i, step) in steps.iter().enumerate() {
        if let Some(top) = top.filter(|top| step.path.is_beneath(&steps[*top].path)) {
            marks[i] = is_delete(step).then_some(top);
            continue;
        }
        let stays_dir = step.new.as_deref().is_none_or(Entry::is_dir);
        top = (was_dir(step) && !stays_dir).then_some(i);
    }
    marks
}
