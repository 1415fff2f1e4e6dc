//! Everything that takes time, out of sight: contents, links and directories in staging, with their attributes.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use rustix::fs::{
    AtFlags, FileType, Mode, RenameFlags, makedev, mkdirat, mknodat, renameat, renameat_with, statat, symlinkat,
};
use rustix::io::Errno;

use super::new_dirs::is_new_dir;
use super::{Fate, Publisher, Ready, Staged, drift, failed};
use crate::fs::attributes::{self, Before, Target};
use crate::fs::error::FsError;
use crate::fs::staging::{Content, create, is_big};
use crate::hash::Digest;
use crate::manifest::{Entry, Kind, Metadata, Refused, Time, Tuple};
use crate::path::RelPath;
use crate::plan::{Action, Step};

/// How many steps still need each content, of those that several may need: the last one takes the staged file itself.
pub(super) type Users<'a> = HashMap<&'a Digest, u32>;

/// In a first copy nearly all contents have but one user, so that a list of their beginnings comes before the map.
fn users(steps: &[Step]) -> Users<'_> {
    let digests = || {
        let contents = steps.iter().filter(|step| step.action == Action::Content).filter_map(|step| step.new.as_ref());
        contents.filter_map(|new| if let Kind::File { digest, .. } = &new.kind { Some(digest) } else { None })
    };
    let mut beginnings: Vec<u64> = digests().map(Digest::prefix).collect();
    beginnings.sort_unstable();
    let several: HashSet<u64> = beginnings.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    let mut users = Users::default();
    for digest in digests().filter(|digest| several.contains(&digest.prefix())) {
        *users.entry(digest).or_default() += 1;
    }
    users
}

impl Publisher {
    /// Stages what the plan needs, with its attributes. Contents must be staged by digest already. Failures are kept
    /// for [`Publisher::take_failures`].
    ///
    /// What belongs into a new directory gets its place there, and the directory its attributes, so that publishing the
    /// topmost of them publishes all.
    pub fn prepare(&mut self) {
        self.staging.begin_plan();
        self.prepare_all();
        // Whoever listens need not wait any more.
        self.tell_ready = None;
        self.leave_ready();
        (self.home, self.ready) = (None, VecDeque::new());
        // Most of it was taken, and its room is wanted for what comes.
        self.staging.contents().shrink_to_fit();
    }

    fn prepare_all(&mut self) {
        let steps = Arc::clone(&self.steps);
        let mut users = users(&steps);
        for (i, step) in steps.iter().enumerate() {
            if self.is_stopped() {
                return;
            }
            match self.prepare_step(i, step, &mut users) {
                Ok(Some(staged)) if staged.home.is_some() => self.work[i].fate = Fate::InPlace,
                Ok(staged) => {
                    if let Some(home) = self.home_of(&step.path).filter(|_| staged.is_some()) {
                        self.work[home.step].late = true;
                    }
                    self.work[i].staged = staged.map(Box::new);
                }
                Err(error) => self.fail(i, error),
            }
            if i.is_multiple_of(self.tell_every) {
                self.tell_settled();
            }
        }
        self.staging.take_out_unclaimed();
        self.finish_new_dirs(&steps);
        self.tell_settled();
    }

    pub(super) fn prepare_step(
        &mut self,
        i: usize,
        step: &Step,
        users: &mut Users<'_>,
    ) -> Result<Option<Staged>, FsError> {
        let Some(entry) = step.new.as_deref() else { return Ok(None) };
        match &step.action {
            Action::Delete | Action::Metadata => Ok(None),
            Action::MoveDir { .. } => {
                self.prepare_dir_move(i, step);
                Ok(None)
            }
            Action::MakeDir if is_new_dir(step) => self.begin_dir(step),
            // It is there: only its metadata is left to set.
            Action::MakeDir => Ok(None),
            Action::Content => self.prepare_content(i, step, entry, users).map(Some),
            Action::Copy { from } => self.prepare_copy(i, step, entry, from).map(Some),
            Action::Move { from } => self.prepare_move(i, step, entry, from).map(Some),
            Action::Link { first } => self.prepare_link(i, step, entry, first),
            Action::Make => self.make(i, step, entry),
        }
    }

    fn prepare_content(
        &mut self,
        i: usize,
        step: &Step,
        entry: &Entry,
        users: &mut Users<'_>,
    ) -> Result<Staged, FsError> {
        let Some((size, digest)) = entry.content() else {
            return Err(FsError::because("prepare", &step.path, "the plan gives content to what is no file"));
        };
        // Under its digest a big content outlives an interrupted push: it gets its name when all is published.
        let mut staged = match is_big(size) {
            true => Staged::apart(self.staging.stage_near(&step.path)?, self.staging.fresh_name()),
            false => self.spot(step)?,
        };
        let last = users.get_mut(&digest).is_none_or(|left| {
            *left = left.saturating_sub(1);
            *left == 0
        });
        let is_free = |content: &Content| {
            let placed = content.in_place.as_ref().is_some_and(|place| place.placed);
            Arc::ptr_eq(&content.stage, &staged.stage) && !placed
        };
        // From a file that we may not read ourselves the others could not be copied.
        let keep = last || entry.mode & 0o400 != 0;
        let in_place = |_| self.staging.keep_in_place(&digest, &staged.stage, &step.path, last);
        if let Some((dressed, seen)) = staged.home.as_ref().filter(|_| keep).and_then(in_place) {
            let tuple = dressed.zip(seen).map(|(dressed, seen)| staged.stage.tuple(size, &dressed, seen));
            return match self.dress_content(i, step, entry, &staged, dressed, tuple) {
                // What else wants it does not fail because of this.
                Err(error) if !last && self.staging.take_back(&digest) => Err(error),
                done => done.inspect_err(|_| staged.remove()).map(|()| staged),
            };
        }
        let (dressed, tuple) = match self.staging.find(&digest) {
            Some(content) if last && is_free(&content) => {
                if content.in_place.is_none() && staged.home.is_none() {
                    staged.name = digest.to_hex().into_bytes().into();
                } else {
                    self.take_content(&digest, &content, &staged, &step.path)?;
                }
                self.staging.contents().swap_remove(&digest);
                (content.dressed, None)
            }
            Some(content) => {
                let from = self.staging.open_content(&digest, &content)?;
                self.copy_dressed(&from, &staged, size, &step.path, Some(&entry.metadata()))?
            }
            None if size == 0 => {
                self.copy(staged.stage.fd(), &staged, 0, &step.path)?;
                (None, None)
            }
            None => return Err(FsError::because("prepare", &step.path, "its content was not received")),
        };
        let dressed = self.dress_content(i, step, entry, &staged, dressed, tuple);
        dressed.inspect_err(|_| staged.remove()).map(|()| staged)
    }

    /// Gives the file of a content the name of a step.
    fn take_content(&self, digest: &Digest, content: &Content, spot: &Staged, path: &RelPath) -> Result<(), FsError> {
        let take = |content: &Content| {
            let rename = |from: BorrowedFd<'_>, name: &[u8]| rename_to_free(from, name, spot.dir(), &spot.name);
            self.staging.at_content(digest, content, rename)
        };
        match take(content) {
            Err(error) if error.errno() == Some(Errno::EXIST) && spot.home.is_some() => {
                self.staging.evict(&spot.stage, path).map_err(|errno| FsError::new("stage", path, errno))?;
                // It may be what was in the way itself, in a directory of that name.
                let content = self.staging.find(digest);
                take(&content.ok_or_else(|| FsError::because("prepare", path, "its content was not received"))?)
            }
            other => other,
        }
    }

    /// Gives the file of a content what it has not got yet. If that is nothing, and it is in its place, what it is now is
    /// what it will be.
    fn dress_content(
        &mut self,
        i: usize,
        step: &Step,
        entry: &Entry,
        staged: &Staged,
        dressed: Option<Metadata>,
        tuple: Option<Tuple>,
    ) -> Result<(), FsError> {
        if dressed != Some(entry.metadata()) || !entry.xattrs.is_empty() {
            let born = Metadata { mode: 0o600, uid: staged.stage.uid, gid: staged.stage.gid, mtime: Time::default() };
            let Metadata { mode, uid, gid, .. } = dressed.unwrap_or(born);
            self.dress_from(i, step, entry, staged, Before { uid, gid, mode, xattrs: Some(&[]) })?;
        } else if let Some(tuple) = tuple.filter(|tuple| staged.home.is_some() && tuple.mtime != tuple.ctime) {
            // (A write would set both times to the same tick: if they are equal nothing tells it from ours.)
            self.ready.push_back(Ready { step: i, tuple });
        }
        Ok(())
    }

    /// A copy of a file that the replica has. If it is the file that the index knows, its content is what the row
    /// says; else the copy's digest decides.
    fn prepare_copy(&mut self, i: usize, step: &Step, entry: &Entry, from: &RelPath) -> Result<Staged, FsError> {
        let row = self.row_of(from);
        let source = self.open_visible(from)?;
        let staged = self.copy_checked(step, entry, &source, row.as_ref())?;
        self.dress(i, step, entry, &staged, 0o600)?;
        Ok(staged)
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
        let outside = !same_attributes(&row.entry, entry) && self.has_names_outside(&stat);
        if !outside && let Some(staged) = self.pin(from, &stat, &stage)? {
            return Ok(staged);
        }
        if entry.content().is_none() {
            return self.make(i, step, entry)?.ok_or_else(|| FsError::new("make", &step.path, Errno::PERM));
        }
        let source = self.open_visible(from)?;
        let staged = self.copy_checked(step, entry, &source, Some(&row))?;
        self.dress(i, step, entry, &staged, 0o600)?;
        Ok(staged)
    }

    /// A copy of the inode at the step's path, with the wanted attributes.
    pub(super) fn detach(&mut self, i: usize, step: &Step) -> Result<Option<Staged>, FsError> {
        let Some(entry) = step.new.as_deref() else { return Ok(None) };
        if entry.content().is_none() {
            return self.make(i, step, entry);
        }
        let source = self.open_visible(&step.path)?;
        let staged = self.copy_checked(step, entry, &source, step.old.as_deref())?;
        self.dress(i, step, entry, &staged, 0o600)?;
        Ok(Some(staged))
    }

    /// Makes a new inode that holds no content; `None` if the kernel refuses to make the device.
    pub(super) fn make(&mut self, i: usize, step: &Step, entry: &Entry) -> Result<Option<Staged>, FsError> {
        let staged = self.spot(step)?;
        let node = |dir: BorrowedFd<'_>, name: &[u8], kind, dev| {
            mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, dev).map(|()| 0o600)
        };
        let make = |dir: BorrowedFd<'_>, name: &[u8]| match &entry.kind {
            Kind::Dir => mkdirat(dir, name, Mode::RWXU).map(|()| 0o700),
            Kind::Symlink { target } => symlinkat(&**target, dir, name).map(|()| 0o777),
            Kind::Fifo => node(dir, name, FileType::Fifo, 0),
            Kind::Socket => node(dir, name, FileType::Socket, 0),
            Kind::CharDev { major, minor } => node(dir, name, FileType::CharacterDevice, makedev(*major, *minor)),
            Kind::BlockDev { major, minor } => node(dir, name, FileType::BlockDevice, makedev(*major, *minor)),
            Kind::File { .. } => create(dir, name).map(|_| 0o600),
        };
        // The only file that needs no content to be sent is an empty one.
        if matches!(entry.kind, Kind::File { size: 1.., .. }) {
            return Err(FsError::because("make", &step.path, "the plan makes a file of nothing"));
        }
        let made = self.make_at(&staged, &step.path, make);
        let is_device = matches!(entry.kind, Kind::CharDev { .. } | Kind::BlockDev { .. });
        let mode = match made {
            Ok(mode) => mode,
            Err(Errno::PERM) if is_device => {
                self.work[i].refused.add(Refused::DEVICE);
                return Ok(None);
            }
            Err(errno) => return Err(FsError::new("make", &step.path, errno)),
        };
        self.dress(i, step, entry, &staged, mode)?;
        Ok(Some(staged))
    }

    /// Gives an inode born in staging its attributes. A directory gets its time, and a mode that would keep us out,
    /// when everything in it is done.
    pub(super) fn dress(
        &mut self,
        i: usize,
        step: &Step,
        entry: &Entry,
        staged: &Staged,
        mode: u32,
    ) -> Result<(), FsError> {
        let before = Before { uid: staged.stage.uid, gid: staged.stage.gid, mode, xattrs: Some(&[]) };
        self.dress_from(i, step, entry, staged, before).inspect_err(|_| staged.remove())
    }

    fn dress_from(
        &mut self,
        i: usize,
        step: &Step,
        entry: &Entry,
        staged: &Staged,
        before: Before<'_>,
    ) -> Result<(), FsError> {
        let target = Target::Staged(staged.dir(), &staged.name);
        let mut entry = Cow::Borrowed(entry);
        if entry.is_dir() && entry.mode & 0o700 != 0o700 {
            entry.to_mut().mode |= 0o700;
        }
        let dressed = attributes::apply(target, before, &entry).and_then(|refused| {
            self.work[i].refused.add(refused);
            if entry.is_dir() { Ok(Refused::default()) } else { attributes::apply_time(target, entry.mtime) }
        });
        self.work[i].refused.add(dressed.map_err(failed(&step.path))?);
        if staged.home.is_some() && !entry.is_dir() {
            // Nobody else has seen it, and it becomes visible without a further change.
            let look = self.root.stat_at(staged.dir(), &*staged.name);
            self.left_as(i, &look.map_err(|errno| FsError::new("look at", &step.path, errno))?);
        }
        Ok(())
    }
}

/// Renames what is not to be lost: if something has the new name, nothing happens.
fn rename_to_free(from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> Result<(), Errno> {
    match renameat_with(from, name, to, new, RenameFlags::NOREPLACE) {
        // A file system that does not know the flag: look, then rename. Nobody else makes names here.
        Err(Errno::INVAL) => match statat(to, new, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => renameat(from, name, to, new),
            Err(errno) => Err(errno),
        },
        other => other,
    }
}

/// Whether two entries have the same metadata, whatever their content.
pub(super) fn same_attributes(a: &Entry, b: &Entry) -> bool {
    (a.mode, a.uid, a.gid, a.mtime) == (b.mode, b.uid, b.gid, b.mtime) && a.xattrs == b.xattrs
}
