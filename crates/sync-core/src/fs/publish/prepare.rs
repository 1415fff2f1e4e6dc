//! Everything that takes time, out of sight: contents, links and directories in staging, with their attributes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, linkat, makedev, mkdirat, mknodat, openat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::{Fate, Publisher, Staged, drift, failed, inode};
use crate::fs::attributes::{self, Before, Target};
use crate::fs::error::FsError;
use crate::fs::sparse;
use crate::fs::staging::{Stage, create};
use crate::fs::stat::Stat;
use crate::hash::Digest;
use crate::manifest::{Entry, Kind, Metadata, Refused, Row, Time};
use crate::path::RelPath;
use crate::plan::{Action, Step};

/// How many steps still need each content: the last one takes the staged file itself.
type Users = HashMap<Digest, usize>;

impl Publisher {
    /// Stages what the plan needs, with its attributes. Contents must be staged by digest already. Failures are kept
    /// for [`Publisher::take_failures`].
    pub fn prepare(&mut self) {
        let steps = Arc::clone(&self.steps);
        let mut users = Users::new();
        for step in steps.iter().filter(|step| step.action == Action::Content) {
            if let Some((_, digest)) = step.new.as_ref().and_then(Entry::content) {
                *users.entry(digest).or_default() += 1;
            }
        }
        for (i, step) in steps.iter().enumerate() {
            if self.is_stopped() {
                return;
            }
            match self.prepare_step(i, step, &mut users) {
                Ok(staged) => self.work[i].staged = staged,
                Err(error) => self.fail(i, error),
            }
        }
        // Most of it was taken, and its room is wanted for what comes.
        self.staging.contents().shrink_to_fit();
    }

    fn prepare_step(&mut self, i: usize, step: &Step, users: &mut Users) -> Result<Option<Staged>, FsError> {
        let Some(entry) = &step.new else { return Ok(None) };
        // The top is there in any case, and so may be another directory: then only its metadata is left to set.
        let is_dir_already = step.path.is_root() || super::was_dir(step);
        match &step.action {
            Action::Delete | Action::Metadata => Ok(None),
            Action::MakeDir if is_dir_already => Ok(None),
            Action::Content => self.prepare_content(i, step, entry, users).map(Some),
            Action::Copy { from } => self.prepare_copy(i, step, entry, from).map(Some),
            Action::Move { from } => self.prepare_move(i, step, entry, from).map(Some),
            Action::Link { first } => self.prepare_link(i, step, entry, first),
            Action::Make | Action::MakeDir => {
                let stage = self.staging.stage_near(&step.path)?;
                self.make(i, step, entry, &stage)
            }
        }
    }

    fn prepare_content(&mut self, i: usize, step: &Step, entry: &Entry, users: &mut Users) -> Result<Staged, FsError> {
        let Some((size, digest)) = entry.content() else {
            return Err(FsError::because("prepare", &step.path, "the plan gives content to what is no file"));
        };
        let stage = self.staging.stage_near(&step.path)?;
        let left = users.entry(digest).or_insert(1);
        *left = left.saturating_sub(1);
        let last = *left == 0;
        let (name, dressed) = match self.staging.find(&digest) {
            Some(content) if last && Arc::ptr_eq(&content.stage, &stage) => {
                self.staging.contents().remove(&digest);
                (digest.to_hex(), content.dressed)
            }
            Some(content) => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let from = openat(content.stage.fd(), digest.to_hex(), flags, Mode::empty())
                    .map_err(|errno| FsError::new("open the staged content of", &step.path, errno))?;
                self.copy_dressed(&from, &stage, size, &step.path, Some(&entry.metadata()))?
            }
            None if size == 0 => (self.copy(stage.fd(), &stage, 0, &step.path)?, None),
            None => return Err(FsError::because("prepare", &step.path, "its content was not received")),
        };
        let staged = Staged { stage, name, linked: None };
        if dressed != Some(entry.metadata()) || !entry.xattrs.is_empty() {
            let born = Metadata { mode: 0o600, uid: staged.stage.uid, gid: staged.stage.gid, mtime: Time::default() };
            let Metadata { mode, uid, gid, .. } = dressed.unwrap_or(born);
            self.dress_from(i, step, entry, &staged, Before { uid, gid, mode, xattrs: Some(&[]) })?;
        }
        Ok(staged)
    }

    /// A copy of a file that the replica has. If it is the file that the index knows, its content is what the row
    /// says; else the copy's digest decides.
    fn prepare_copy(&mut self, i: usize, step: &Step, entry: &Entry, from: &RelPath) -> Result<Staged, FsError> {
        let row = self.row_of(from);
        let stage = self.staging.stage_near(&step.path)?;
        let source = self.open_visible(from)?;
        let staged = self.copy_checked(step, entry, &source, row.as_ref(), stage)?;
        self.dress(i, step, entry, &staged, 0o600)?;
        Ok(staged)
    }

    fn copy_checked(
        &self,
        step: &Step,
        entry: &Entry,
        source: &OwnedFd,
        row: Option<&Row>,
        stage: Arc<Stage>,
    ) -> Result<Staged, FsError> {
        let Some((size, digest)) = entry.content() else {
            return Err(FsError::because("copy", &step.path, "the plan copies what is no file"));
        };
        let is_as_known = || {
            let tuple = row.filter(|row| row.proven && row.entry.content() == Some((size, digest)))?.tuple?;
            let stat = self.root.stat_fd(source).ok()?;
            self.is_unchanged(&stat, &tuple).then_some(())
        };
        let before = is_as_known();
        let name = self.copy(source, &stage, size, &step.path)?;
        let staged = Staged { stage, name, linked: None };
        if before.is_some() && is_as_known().is_some() {
            return Ok(staged);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = openat(staged.stage.fd(), &staged.name, flags, Mode::empty())
            .and_then(|fd| crate::fs::sparse::hash(&fd, size));
        if found.is_ok_and(|hasher| Digest::from(hasher.finalize()) == digest) {
            return Ok(staged);
        }
        staged.remove();
        Err(drift("copy the source of", &step.path))
    }

    /// Pins the inode at `from` before any name changes, so that swaps and rotations need no order.
    fn prepare_move(&mut self, i: usize, step: &Step, entry: &Entry, from: &RelPath) -> Result<Staged, FsError> {
        let Some((row, tuple)) = self.row_of(from).and_then(|row| Some((row.tuple?, row)).map(|(t, r)| (r, t))) else {
            return Err(FsError::because("move", &step.path, "nothing is known of where it comes from"));
        };
        let stage = self.staging.stage_near(&step.path)?;
        let stat = self.staging.look_at(from).map_err(|errno| FsError::new("look at", from, errno))?;
        if stat.is_dir() || !self.is_unchanged(&stat, &tuple) {
            return Err(drift("move", from));
        }
        let outside = self.has_names_outside(&stat) && !same_attributes(&row.entry, entry);
        if !outside && let Some(staged) = self.pin(from, &stat, &stage)? {
            return Ok(staged);
        }
        if entry.content().is_none() {
            return self.make(i, step, entry, &stage)?.ok_or_else(|| FsError::new("make", &step.path, Errno::PERM));
        }
        let source = self.open_visible(from)?;
        let staged = self.copy_checked(step, entry, &source, Some(&row), stage)?;
        self.dress(i, step, entry, &staged, 0o600)?;
        Ok(staged)
    }

    /// Gives a visible inode a further name in staging; `None` if the kernel refuses that.
    fn pin(&mut self, path: &RelPath, stat: &Stat, stage: &Arc<Stage>) -> Result<Option<Staged>, FsError> {
        let name = self.staging.fresh_name();
        let dir = self.staging.thaw.open(&self.root, &path.parent().unwrap_or_default())?;
        match linkat(&dir, path.name(), stage.fd(), &name, AtFlags::empty()) {
            Ok(()) => {}
            Err(errno) if is_link_refusal(errno) => return Ok(None),
            Err(errno) => return Err(FsError::new("link", path, errno)),
        }
        let staged = Staged { stage: Arc::clone(stage), name, linked: Some(inode(&stat.tuple)) };
        let linked = self.root.stat_at(stage.fd(), &staged.name[..]).map_err(|e| FsError::new("look at", path, e));
        if !linked.is_ok_and(|linked| linked.identity() == stat.identity()) {
            staged.remove();
            return Err(drift("link", path));
        }
        self.inodes.count(inode(&stat.tuple), 1);
        self.inodes.ours.entry(inode(&stat.tuple)).or_insert(stat.tuple.mtime);
        self.inodes.siblings.insert(path.clone());
        if stat.nlink > 1 {
            self.touch_inode(&stat.tuple);
        }
        Ok(Some(staged))
    }

    fn prepare_link(
        &mut self,
        i: usize,
        step: &Step,
        entry: &Entry,
        first: &RelPath,
    ) -> Result<Option<Staged>, FsError> {
        let stage = self.staging.stage_near(&step.path)?;
        let before = self.step_of(first);
        if let Some(j) = before {
            if self.work[j].fate == Fate::Failed || is_gone(&self.steps[j]) {
                return Err(FsError::because("link", &step.path, format!("{first}, which it is a link to, failed")));
            }
            if self.work[j].refused.has(Refused::DEVICE) {
                self.work[i].refused.add(Refused::DEVICE);
                return Ok(None);
            }
            if self.work[j].staged.is_none() {
                self.detach_if_outside(j)?;
            }
            if let Some(made) = &self.work[j].staged {
                let name = self.staging.fresh_name();
                let (from, from_name) = (made.stage.fd(), made.name.clone());
                return match linkat(from, &from_name, stage.fd(), &name, AtFlags::empty()) {
                    Ok(()) => self.linked_to(j, stage, name).map(Some),
                    Err(errno) if is_link_refusal(errno) => {
                        let source = entry.content().map(|_| open_readable(from, &from_name)).transpose();
                        let source = source.map_err(|errno| FsError::new("copy", &step.path, errno))?;
                        self.stand_in(i, step, entry, source, stage)
                    }
                    Err(errno) => Err(FsError::new("link", &step.path, errno)),
                };
            }
        }
        self.link_to_visible(i, step, entry, first, stage)
    }

    /// Records a link in staging to the inode that step `j` staged.
    fn linked_to(&mut self, j: usize, stage: Arc<Stage>, name: String) -> Result<Staged, FsError> {
        let path = &self.steps[j].path;
        let stat = self.root.stat_at(stage.fd(), &name[..]).map_err(|errno| FsError::new("look at", path, errno))?;
        self.inodes.count(inode(&stat.tuple), 1);
        self.inodes.ours.entry(inode(&stat.tuple)).or_insert(stat.tuple.mtime);
        Ok(Staged { stage, name, linked: Some(inode(&stat.tuple)) })
    }

    /// Links to a first name that the plan leaves where it is.
    fn link_to_visible(
        &mut self,
        i: usize,
        step: &Step,
        entry: &Entry,
        first: &RelPath,
        stage: Arc<Stage>,
    ) -> Result<Option<Staged>, FsError> {
        let row = self.row_of(first);
        let Some(tuple) = row.as_ref().and_then(|row| row.tuple) else {
            let refused = row.is_some_and(|row| row.refused.has(Refused::DEVICE));
            if refused {
                self.work[i].refused.add(Refused::DEVICE);
                return Ok(None);
            }
            return Err(FsError::because("link", &step.path, format!("{first}, which it is a link to, is not there")));
        };
        let stat = self.staging.look_at(first).map_err(|errno| FsError::new("look at", first, errno))?;
        if stat.is_dir() || !self.is_unchanged(&stat, &tuple) {
            return Err(drift("link to", first));
        }
        if let Some(staged) = self.pin(first, &stat, &stage)? {
            return Ok(Some(staged));
        }
        let source = entry.content().map(|_| self.open_visible(first)).transpose()?;
        self.stand_in(i, step, entry, source, stage)
    }

    /// A copy in place of a hard link that the kernel refuses: across mounts, or one too many.
    fn stand_in(
        &mut self,
        i: usize,
        step: &Step,
        entry: &Entry,
        source: Option<OwnedFd>,
        stage: Arc<Stage>,
    ) -> Result<Option<Staged>, FsError> {
        self.work[i].refused.add(Refused::LINK);
        let (Some(source), Some((size, _))) = (source, entry.content()) else {
            return self.make(i, step, entry, &stage);
        };
        let name = self.copy(&source, &stage, size, &step.path)?;
        let staged = Staged { stage, name, linked: None };
        self.dress(i, step, entry, &staged, 0o600)?;
        Ok(Some(staged))
    }

    /// Before a link is made to an inode whose metadata will change: if it has names outside, a copy takes its place.
    fn detach_if_outside(&mut self, j: usize) -> Result<(), FsError> {
        let steps = Arc::clone(&self.steps);
        let step = &steps[j];
        let Some(tuple) = step.old.as_ref().and_then(|row| row.tuple) else { return Ok(()) };
        if step.action != Action::Metadata {
            return Ok(());
        }
        let stat = self.staging.look_at(&step.path).map_err(|errno| FsError::new("look at", &step.path, errno))?;
        if self.is_unchanged(&stat, &tuple) && self.has_names_outside(&stat) {
            self.work[j].staged = self.detach(j, step)?;
            self.inodes.detached.insert(inode(&tuple), step.path.clone());
        }
        Ok(())
    }

    /// A copy of the inode at the step's path, with the wanted attributes.
    pub(super) fn detach(&mut self, i: usize, step: &Step) -> Result<Option<Staged>, FsError> {
        let Some(entry) = &step.new else { return Ok(None) };
        let stage = self.staging.stage_near(&step.path)?;
        if entry.content().is_none() {
            return self.make(i, step, entry, &stage);
        }
        let source = self.open_visible(&step.path)?;
        let staged = self.copy_checked(step, entry, &source, step.old.as_deref(), stage)?;
        self.dress(i, step, entry, &staged, 0o600)?;
        Ok(Some(staged))
    }

    /// Makes a new inode that holds no content; `None` if the kernel refuses to make the device.
    fn make(&mut self, i: usize, step: &Step, entry: &Entry, stage: &Arc<Stage>) -> Result<Option<Staged>, FsError> {
        let name = self.staging.fresh_name();
        let node = |kind, dev| mknodat(stage.fd(), &name, kind, Mode::RUSR | Mode::WUSR, dev);
        let (made, mode) = match &entry.kind {
            Kind::Dir => (mkdirat(stage.fd(), &name, Mode::RWXU), 0o700),
            Kind::Symlink { target } => (symlinkat(&**target, stage.fd(), &name), 0o777),
            Kind::Fifo => (node(FileType::Fifo, 0), 0o600),
            Kind::Socket => (node(FileType::Socket, 0), 0o600),
            Kind::CharDev { major, minor } => (node(FileType::CharacterDevice, makedev(*major, *minor)), 0o600),
            Kind::BlockDev { major, minor } => (node(FileType::BlockDevice, makedev(*major, *minor)), 0o600),
            // The only file that needs no content to be sent.
            Kind::File { size: 0, .. } => (create(stage.fd(), &name).map(drop), 0o600),
            Kind::File { .. } => return Err(FsError::because("make", &step.path, "the plan makes a file of nothing")),
        };
        let is_device = matches!(entry.kind, Kind::CharDev { .. } | Kind::BlockDev { .. });
        match made {
            Ok(()) => {}
            Err(Errno::PERM) if is_device => {
                self.work[i].refused.add(Refused::DEVICE);
                return Ok(None);
            }
            Err(errno) => return Err(FsError::new("make", &step.path, errno)),
        }
        let staged = Staged { stage: Arc::clone(stage), name, linked: None };
        self.dress(i, step, entry, &staged, mode)?;
        Ok(Some(staged))
    }

    /// Gives an inode born in staging its attributes. A directory gets its time, and a mode that would keep us out,
    /// when everything in it is done.
    fn dress(&mut self, i: usize, step: &Step, entry: &Entry, staged: &Staged, mode: u32) -> Result<(), FsError> {
        let before = Before { uid: staged.stage.uid, gid: staged.stage.gid, mode, xattrs: Some(&[]) };
        self.dress_from(i, step, entry, staged, before)
    }

    fn dress_from(
        &mut self,
        i: usize,
        step: &Step,
        entry: &Entry,
        staged: &Staged,
        before: Before<'_>,
    ) -> Result<(), FsError> {
        let target = Target::Staged(staged.stage.fd(), &staged.name);
        let mut entry = Cow::Borrowed(entry);
        if entry.is_dir() && entry.mode & 0o700 != 0o700 {
            entry.to_mut().mode |= 0o700;
        }
        let dressed = attributes::apply(target, before, &entry).and_then(|refused| {
            self.work[i].refused.add(refused);
            if entry.is_dir() { Ok(Refused::default()) } else { attributes::apply_time(target, entry.mtime) }
        });
        match dressed {
            Ok(refused) => {
                self.work[i].refused.add(refused);
                Ok(())
            }
            Err(error) => {
                staged.remove();
                Err(failed(&step.path)(error))
            }
        }
    }

    /// A new file in `stage` with the first `size` bytes of `from`.
    fn copy(&self, from: impl AsFd, stage: &Stage, size: u64, path: &RelPath) -> Result<String, FsError> {
        self.copy_dressed(from, stage, size, path, None).map(|(name, _)| name)
    }

    /// The same, which also gets what it will probably have, and is told to have got it.
    fn copy_dressed(
        &self,
        from: impl AsFd,
        stage: &Stage,
        size: u64,
        path: &RelPath,
        likely: Option<&Metadata>,
    ) -> Result<(String, Option<Metadata>), FsError> {
        let name = self.staging.fresh_name();
        let copied = create(stage.fd(), &name).and_then(|to| {
            sparse::copy_file(from, &to, size)?;
            stage.dress_ahead(to.as_fd(), likely)
        });
        match copied {
            Ok(dressed) => Ok((name, dressed)),
            Err(errno) => {
                let _ = unlinkat(stage.fd(), &name, AtFlags::empty());
                Err(FsError::new("stage", path, errno))
            }
        }
    }

    /// Opens a visible file for reading. A fifo or device that took its place is not waited for, nor read: only a
    /// regular file opens.
    fn open_visible(&self, path: &RelPath) -> Result<OwnedFd, FsError> {
        let stat = self.staging.look_at(path).map_err(|errno| FsError::new("look at", path, errno))?;
        if !stat.is_file() {
            return Err(drift("read", path));
        }
        let dir = self.staging.thaw.open(&self.root, &path.parent().unwrap_or_default())?;
        open_readable(dir.as_fd(), path.name()).map_err(|errno| FsError::new("read", path, errno))
    }
}

fn open_readable(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

/// Too many links, another mount, protected links (`fs.protected_hardlinks`), or a file system without links.
fn is_link_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::NOTSUP | Errno::NOSYS)
}

fn is_gone(step: &Step) -> bool {
    step.new.is_none()
}

/// Whether two entries have the same metadata, whatever their content.
pub(super) fn same_attributes(a: &Entry, b: &Entry) -> bool {
    (a.mode, a.uid, a.gid, a.mtime) == (b.mode, b.uid, b.gid, b.mtime) && a.xattrs == b.xattrs
}
