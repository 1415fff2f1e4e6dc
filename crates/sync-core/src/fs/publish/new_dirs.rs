//! New directories take shape in staging, with all that is in them, before anything of them is visible.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::{Fate, Home, Publisher, Ready, Staged, Told, failed};
use crate::fs::attributes::{self, Target};
use crate::fs::clock;
use crate::fs::error::FsError;
use crate::manifest::{Metadata, Refused};
use crate::path::RelPath;
use crate::plan::{Action, Step};

/// Steps after which what has settled is told.
pub(super) const TOLD_AT_ONCE: usize = 512;

impl Publisher {
    /// Where what is made for a step gets its name: its place in a new directory, or a name of the moment.
    pub(super) fn spot(&mut self, step: &Step) -> Result<Staged, FsError> {
        match self.home_of(&step.path) {
            Some(Home { stage, dir, .. }) => {
                Ok(Staged { stage, home: Some(dir), name: step.path.name().into(), linked: None })
            }
            None => Ok(Staged::apart(self.staging.stage_near(&step.path)?, self.staging.fresh_name())),
        }
    }

    /// The new directory that holds `path`, if it is new.
    pub(super) fn home_of(&mut self, path: &RelPath) -> Option<Home> {
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
    pub(super) fn make_at<T>(
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
    pub(super) fn begin_dir(&mut self, step: &Step) -> Result<Option<Staged>, FsError> {
        let above = self.home_of(&step.path);
        if above.is_none() {
            // Directories that nobody has, as many as the path is deep, are not made to find that out.
            let there = self.staging.look_at(&step.path.parent().unwrap_or_default());
            there.map_err(|errno| FsError::new("create", &step.path, errno))?;
        }
        let stage = self.staging.stage_near(&step.path)?;
        let made = self.staging.home(&stage, &step.path).or_else(|error| {
            // A content may have taken its place.
            self.staging.evict(&stage, &step.path).map_err(|_| error)?;
            self.staging.home(&stage, &step.path)
        });
        made?;
        if !stage.claim_home(&step.path) {
            let why = "another new name is the same to the file system there, perhaps but for its case";
            return Err(FsError::because("create", &step.path, why));
        }
        Ok(above.map(|above| Staged { stage, home: Some(above.dir), name: step.path.name().into(), linked: None }))
    }

    /// Gives new directories their attributes, deepest first, and takes the topmost out of the tree: they wait for their
    /// names. Only the topmost, and those in which names come later, are not yet as they will be.
    pub(super) fn finish_new_dirs(&mut self, steps: &[Step]) {
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
            if i.is_multiple_of(self.tell_every) {
                self.tell_settled();
            }
        }
    }

    fn finish_new_dir(&mut self, i: usize, step: &Step) -> Result<(), FsError> {
        let Some(entry) = step.new.as_deref() else { return Ok(()) };
        let stage = self.staging.stage_near(&step.path)?;
        let home = self.staging.home(&stage, &step.path.parent().unwrap_or_default())?;
        let staged =
            Staged { stage: Arc::clone(&stage), home: Some(home), name: step.path.name().into(), linked: None };
        self.dress(i, step, entry, &staged, 0o700)?;
        if self.work[i].fate != Fate::InPlace {
            let name = self.staging.take_top(&stage, &step.path)?;
            self.work[i].staged = Some(Box::new(Staged::apart(stage, name)));
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
    pub(super) fn tell_settled(&mut self) {
        let Some(tell) = &mut self.tell_ready else { return self.leave_ready() };
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

    /// What was not told is observed once it is visible: this is what it was before.
    pub(super) fn leave_ready(&mut self) {
        self.left.extend(self.ready.drain(..).map(|ready| (ready.step, ready.tuple.ctime)));
    }
}

/// Whether the step makes a directory where none is.
pub(super) fn is_new_dir(step: &Step) -> bool {
    step.action == Action::MakeDir && !step.path.is_root() && !super::was_dir(step)
}
