//! Everything that takes time, out of sight: contents, links and directories in staging, with their attributes.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use foldhash::HashMap;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, linkat, makedev, mkdirat, mknodat, openat, renameat, renameat_with,
    symlinkat,
};
use rustix::io::Errno;

use super::{Fate, Home, Publisher, Ready, Staged, Told, Work, drift, failed, inode};
use crate::fs::attributes::{self, Before, Target};
use crate::fs::clock;
use crate::fs::error::FsError;
use crate::fs::sparse;
use crate::fs::staging::{Content, Stage, create, create_as};
use crate::fs::stat::Stat;
use crate::hash::Digest;
use crate::manifest::{Entry, Kind, Metadata, Refused, Row, Time, Tuple};
use crate::path::RelPath;
use crate::plan::{Action, Step};

/// How many steps still need each content: the last one takes the staged file itself.
type Users = HashMap<Digest, usize>;

/// Steps after which what has settled is told.
#[cfg(not(test))]
const TOLD_AT_ONCE: usize = 512;
#[cfg(test)]
const TOLD_AT_ONCE: usize = 1;

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
        (self.home, self.ready) = (None, VecDeque::new());
        // Most of it was taken, and its room is wanted for what comes.
        self.staging.contents().shrink_to_fit();
    }

    fn prepare_all(&mut self) {
        let steps = Arc::clone(&self.steps);
        let mut users = Users::default();
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
                Ok(Some(staged)) if staged.home.is_some() => self.work[i].fate = Fate::InPlace,
                Ok(staged) => {
                    if let Some(home) = self.home_of(&step.path).filter(|_| staged.is_some()) {
                        self.work[home.step].late = true;
                    }
                    self.work[i].staged = staged;
                }
                Err(error) => self.fail(i, error),
            }
            if i.is_multiple_of(TOLD_AT_ONCE) {
                self.tell_settled();
            }
        }
        self.staging.take_out_unclaimed();
        self.finish_new_dirs(&steps);
        self.tell_settled();
    }

    fn prepare_step(&mut self, i: usize, step: &Step, users: &mut Users) -> Result<Option<Staged>, FsError> {
        let Some(entry) = &step.new else { return Ok(None) };
        match &step.action {
            Action::Delete | Action::Metadata => Ok(None),
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

    /// Where what is made for a step gets its name: its place in a new directory, or a name of the moment.
    fn spot(&mut self, step: &Step) -> Result<Staged, FsError> {
        match self.home_of(&step.path) {
            Some(Home { stage, dir, .. }) => {
                Ok(Staged { stage, home: Some(dir), name: step.path.name().into(), linked: None })
            }
            None => Ok(Staged::apart(self.staging.stage_near(&step.path)?, self.staging.fresh_name())),
        }
    }

    /// The new directory that holds `path`, if it is new.
    fn home_of(&mut self, path: &RelPath) -> Option<Home> {
        if let Some((_, home)) = self.home.as_ref().filter(|(dir, _)| path.is_in(dir)) {
            return home.clone();
        }
        let parent = path.parent()?;
        let open = |step: usize| {
            let is_new = is_new_dir(&self.steps[step]) && self.work[step].fate != Fate::Failed;
            let stage = self.staging.stage_near(path).ok().filter(|_| is_new)?;
            let dir = self.staging.home(&stage, &parent).ok()?;
            Some(Home { step, stage, dir })
        };
        let home = self.step_of(&parent).and_then(open);
        self.home = Some((parent, home.clone()));
        home
    }

    /// Makes a name in staging. Another content may have taken its place in a new directory: it gives way.
    fn make_at<T>(
        &self,
        spot: &Staged,
        path: &RelPath,
        call: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match call(spot.dir(), &spot.name) {
            Err(Errno::EXIST) if spot.home.is_some() => {
                self.staging.evict(&spot.stage, path)?;
                call(spot.dir(), &spot.name)
            }
            other => other,
        }
    }

    /// Makes a new directory in the tree of new ones, if it is not there already, and leaves the rest for later.
    fn begin_dir(&mut self, step: &Step) -> Result<Option<Staged>, FsError> {
        let above = self.home_of(&step.path);
        let stage = self.staging.stage_near(&step.path)?;
        let made = self.staging.home(&stage, &step.path).or_else(|error| {
            // A content may have taken its place.
            self.staging.evict(&stage, &step.path).map_err(|_| error)?;
            self.staging.home(&stage, &step.path)
        });
        made?;
        stage.claim_home(&step.path);
        Ok(above.map(|above| Staged { stage, home: Some(above.dir), name: step.path.name().into(), linked: None }))
    }

    /// Gives new directories their attributes, deepest first, and takes the topmost out of the tree: they wait for their
    /// names. Only the topmost, and those in which names come later, are not yet as they will be.
    fn finish_new_dirs(&mut self, steps: &[Step]) {
        for (i, step) in steps.iter().enumerate().rev() {
            if !is_new_dir(step) || self.work[i].fate == Fate::Failed {
                continue;
            }
            if self.is_stopped() {
                return;
            }
            if let Err(error) = self.finish_new_dir(i, step) {
                self.fail(i, error);
                // What is in it is not published either.
                if let Ok(stage) = self.staging.stage_near(&step.path) {
                    let _ = self.staging.take_top(&stage, &step.path);
                }
            }
            if i.is_multiple_of(TOLD_AT_ONCE) {
                self.tell_settled();
            }
        }
    }

    fn finish_new_dir(&mut self, i: usize, step: &Step) -> Result<(), FsError> {
        let Some(entry) = &step.new else { return Ok(()) };
        let stage = self.staging.stage_near(&step.path)?;
        let home = self.staging.home(&stage, &step.path.parent().unwrap_or_default())?;
        let staged =
            Staged { stage: Arc::clone(&stage), home: Some(home), name: step.path.name().into(), linked: None };
        self.dress(i, step, entry, &staged, 0o700)?;
        if self.work[i].fate != Fate::InPlace {
            let name = self.staging.take_top(&stage, &step.path)?;
            self.work[i].staged = Some(Staged::apart(stage, name));
            return Ok(());
        }
        if self.work[i].late || entry.mode & 0o700 != 0o700 {
            return Ok(());
        }
        let refused = attributes::apply_time(Target::Staged(staged.dir(), &staged.name), entry.mtime);
        self.work[i].refused.add(refused.map_err(failed(&step.path))?);
        let stat =
            self.root.stat_at(staged.dir(), &*staged.name).map_err(|e| FsError::new("look at", &step.path, e))?;
        let found = Metadata { mode: stat.mode, uid: stat.uid, gid: stat.gid, mtime: stat.tuple.mtime };
        if found == entry.metadata() && self.work[i].refused == Refused::default() && !self.root.is_remote(&stat) {
            self.ready.push_back(Ready { step: i, tuple: stat.tuple });
        }
        Ok(())
    }

    /// Tells what is in its place and old enough that a later change would show.
    fn tell_settled(&mut self) {
        let Some(tell) = &mut self.tell_ready else { return self.ready.clear() };
        #[cfg(test)]
        clock::wait_past(clock::now(), std::time::Duration::from_millis(20));
        let now = clock::now();
        let mut some = Vec::new();
        while let Some(ready) = self.ready.front().copied().filter(|g| clock::settled(g.tuple.ctime, now, false)) {
            self.ready.pop_front();
            let work = &mut self.work[ready.step];
            if work.told == Told::No && work.fate == Fate::InPlace {
                work.told = Told::Yes;
                some.push(ready);
            }
        }
        if !some.is_empty() {
            tell(some);
        }
    }

    fn prepare_content(&mut self, i: usize, step: &Step, entry: &Entry, users: &mut Users) -> Result<Staged, FsError> {
        let Some((size, digest)) = entry.content() else {
            return Err(FsError::because("prepare", &step.path, "the plan gives content to what is no file"));
        };
        let mut staged = self.spot(step)?;
        let left = users.entry(digest).or_insert(1);
        *left = left.saturating_sub(1);
        let last = *left == 0;
        let is_free = |content: &Content| {
            let placed = content.in_place.as_ref().is_some_and(|place| place.placed);
            Arc::ptr_eq(&content.stage, &staged.stage) && !placed
        };
        let in_place = |_| self.staging.keep_in_place(&digest, &staged.stage, &step.path, last);
        if let Some((dressed, seen)) = staged.home.as_ref().and_then(in_place) {
            let tuple = dressed.zip(seen).map(|(dressed, seen)| staged.stage.tuple(size, &dressed, seen));
            self.dress_content(i, step, entry, &staged, dressed, tuple)?;
            return Ok(staged);
        }
        let (dressed, tuple) = match self.staging.find(&digest) {
            Some(content) if last && is_free(&content) => {
                if content.in_place.is_none() && staged.home.is_none() {
                    staged.name = digest.to_hex().into_bytes().into();
                } else {
                    let rename = |from: BorrowedFd<'_>, name: &[u8]| {
                        self.make_at(&staged, &step.path, |to, new| rename_to_free(from, name, to, new))
                    };
                    self.staging.at_content(&digest, &content, rename)?;
                }
                self.staging.contents().remove(&digest);
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
        self.dress_content(i, step, entry, &staged, dressed, tuple)?;
        Ok(staged)
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

    fn copy_checked(
        &mut self,
        step: &Step,
        entry: &Entry,
        source: &OwnedFd,
        row: Option<&Row>,
    ) -> Result<Staged, FsError> {
        let Some((size, digest)) = entry.content() else {
            return Err(FsError::because("copy", &step.path, "the plan copies what is no file"));
        };
        let staged = self.spot(step)?;
        let is_as_known = || {
            let tuple = row.filter(|row| row.proven && row.entry.content() == Some((size, digest)))?.tuple?;
            let stat = self.root.stat_fd(source).ok()?;
            self.is_unchanged(&stat, &tuple).then_some(())
        };
        let before = is_as_known();
        self.copy(source, &staged, size, &step.path)?;
        if before.is_some() && is_as_known().is_some() {
            return Ok(staged);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found =
            openat(staged.dir(), &*staged.name, flags, Mode::empty()).and_then(|fd| crate::fs::sparse::hash(&fd, size));
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
            return self.make(i, step, entry)?.ok_or_else(|| FsError::new("make", &step.path, Errno::PERM));
        }
        let source = self.open_visible(from)?;
        let staged = self.copy_checked(step, entry, &source, Some(&row))?;
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
        let linked = Some(inode(&stat.tuple));
        let staged = Staged { linked, ..Staged::apart(Arc::clone(stage), name) };
        let linked = self.root.stat_at(stage.fd(), &*staged.name).map_err(|e| FsError::new("look at", path, e));
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
            if let Some((from, from_name)) = self.made(j)? {
                let name = self.staging.fresh_name();
                return match linkat(&from, &*from_name, stage.fd(), &name, AtFlags::empty()) {
                    Ok(()) => self.linked_to(j, stage, name).map(Some),
                    Err(errno) if is_link_refusal(errno) => {
                        let source = entry.content().map(|_| open_readable(from.as_fd(), &*from_name)).transpose();
                        let source = source.map_err(|errno| FsError::new("copy", &step.path, errno))?;
                        self.stand_in(i, step, entry, source)
                    }
                    Err(errno) => Err(FsError::new("link", &step.path, errno)),
                };
            }
        }
        self.link_to_visible(i, step, entry, first, stage)
    }

    /// Where in staging the inode of step `j` is: the directory and its name there.
    fn made(&mut self, j: usize) -> Result<Option<(OwnedFd, Box<[u8]>)>, FsError> {
        let steps = Arc::clone(&self.steps);
        let path = &steps[j].path;
        let staged = match &self.work[j] {
            Work { staged: Some(staged), .. } => staged,
            Work { fate: Fate::InPlace, .. } => &self.spot(&steps[j])?,
            _ => return Ok(None),
        };
        let dir = rustix::io::dup(staged.dir()).map_err(|errno| FsError::new("look at", path, errno))?;
        Ok(Some((dir, staged.name.clone())))
    }

    /// Records a link in staging to the inode that step `j` staged.
    fn linked_to(&mut self, j: usize, stage: Arc<Stage>, name: String) -> Result<Staged, FsError> {
        let path = &self.steps[j].path;
        let stat = self.root.stat_at(stage.fd(), &name[..]).map_err(|errno| FsError::new("look at", path, errno))?;
        self.inodes.count(inode(&stat.tuple), 1);
        self.inodes.ours.entry(inode(&stat.tuple)).or_insert(stat.tuple.mtime);
        if self.work[j].told == Told::Yes {
            self.work[j].told = Told::Outdated;
        }
        Ok(Staged { linked: Some(inode(&stat.tuple)), ..Staged::apart(stage, name) })
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
        self.stand_in(i, step, entry, source)
    }

    /// A copy in place of a hard link that the kernel refuses: across mounts, or one too many.
    fn stand_in(
        &mut self,
        i: usize,
        step: &Step,
        entry: &Entry,
        source: Option<OwnedFd>,
    ) -> Result<Option<Staged>, FsError> {
        self.work[i].refused.add(Refused::LINK);
        let (Some(source), Some((size, _))) = (source, entry.content()) else {
            return self.make(i, step, entry);
        };
        let staged = self.spot(step)?;
        self.copy(&source, &staged, size, &step.path)?;
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
        if entry.content().is_none() {
            return self.make(i, step, entry);
        }
        let source = self.open_visible(&step.path)?;
        let staged = self.copy_checked(step, entry, &source, step.old.as_deref())?;
        self.dress(i, step, entry, &staged, 0o600)?;
        Ok(Some(staged))
    }

    /// Makes a new inode that holds no content; `None` if the kernel refuses to make the device.
    fn make(&mut self, i: usize, step: &Step, entry: &Entry) -> Result<Option<Staged>, FsError> {
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
        let target = Target::Staged(staged.dir(), &staged.name);
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

    /// A new file with the first `size` bytes of `from`.
    fn copy(&self, from: impl AsFd, to: &Staged, size: u64, path: &RelPath) -> Result<(), FsError> {
        self.copy_dressed(from, to, size, path, None).map(drop)
    }

    /// The same, which also gets what it will probably have, and is told to have got it; with its tuple if nothing else
    /// about it will change.
    fn copy_dressed(
        &self,
        from: impl AsFd,
        to: &Staged,
        size: u64,
        path: &RelPath,
        likely: Option<&Metadata>,
    ) -> Result<(Option<Metadata>, Option<Tuple>), FsError> {
        let fail = |errno| FsError::new("stage", path, errno);
        let born = to.stage.mode_at_birth(likely);
        let fd = self.make_at(to, path, |dir, name| create_as(dir, name, born)).map_err(fail)?;
        let copied = sparse::copy_file(from, &fd, size).and_then(|()| to.stage.dress_ahead(fd.as_fd(), born, likely));
        match copied {
            Ok(dressed) => Ok((dressed, self.staging.tuple_of(&fd, size, dressed.as_ref()))),
            Err(errno) => {
                to.remove();
                Err(fail(errno))
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

/// Renames what is not to be lost: if something has the new name, nothing happens.
fn rename_to_free(from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> Result<(), Errno> {
    match renameat_with(from, name, to, new, RenameFlags::NOREPLACE) {
        // A file system that does not know the flag: nobody else makes names here.
        Err(Errno::INVAL) => renameat(from, name, to, new),
        other => other,
    }
}

/// Whether the step makes a directory where none is.
fn is_new_dir(step: &Step) -> bool {
    step.action == Action::MakeDir && !step.path.is_root() && !super::was_dir(step)
}

fn is_gone(step: &Step) -> bool {
    step.new.is_none()
}

/// Whether two entries have the same metadata, whatever their content.
pub(super) fn same_attributes(a: &Entry, b: &Entry) -> bool {
    (a.mode, a.uid, a.gid, a.mtime) == (b.mode, b.uid, b.gid, b.mtime) && a.xattrs == b.xattrs
}
