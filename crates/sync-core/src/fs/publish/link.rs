//! Further names of an inode, or a copy where the kernel refuses one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, linkat};
use rustix::io::Errno;

use super::copy::open_readable;
use super::{Fate, Publisher, Staged, Told, Work, drift, inode};
use crate::fs::error::FsError;
use crate::fs::staging::Stage;
use crate::fs::stat::Stat;
use crate::manifest::{Entry, Refused};
use crate::path::RelPath;
use crate::plan::{Action, Step};

impl Publisher {
    /// Gives a visible inode a further name in staging; `None` if the kernel refuses that.
    pub(super) fn pin(&mut self, path: &RelPath, stat: &Stat, stage: &Arc<Stage>) -> Result<Option<Staged>, FsError> {
        let name = self.staging.fresh_name();
        let dir = self.staging.thaw.open(&self.root, &path.parent().unwrap_or_default())?;
        match linkat(&dir, path.name(), stage.fd(), &name, AtFlags::empty()) {
            Ok(()) => {}
            Err(errno) if is_link_refusal(errno) => return Ok(None),
            Err(errno) => return Err(FsError::new("link", path, errno)),
        }
        let linked = Some(inode(&stat.tuple));
        let staged = Staged { linked, ..Staged::apart(Arc::clone(stage), name) };
        let linked = self.root.stat_at(stage.fd(), &*staged.name).ok();
        let Some(linked) = linked.filter(|linked| linked.identity() == stat.identity()) else {
            staged.remove();
            return Err(drift("link", path));
        };
        self.inodes.count(inode(&stat.tuple), 1);
        self.inodes.siblings.insert(path.clone());
        match stat.nlink {
            1 => self.inodes.moves(&stat.tuple),
            _ => self.touch_inode(&stat.tuple),
        }
        self.inodes.left_as(&linked);
        Ok(Some(staged))
    }

    pub(super) fn prepare_link(
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
                if matches!(self.steps[j].action, Action::Move { .. }) {
                    // It has its old name still.
                    self.check_left(from.as_fd(), &from_name, "link to", first)?;
                }
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

    /// What has a name in staging and others in the tree must be what we left it as.
    pub(super) fn check_left(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        doing: &'static str,
        path: &RelPath,
    ) -> Result<(), FsError> {
        let stat = self.root.stat_at(dir, name).map_err(|errno| FsError::new("look at", path, errno))?;
        if self.is_as_left(&stat) { Ok(()) } else { Err(drift(doing, path)) }
    }

    /// Records a link in staging to the inode that step `j` staged.
    fn linked_to(&mut self, j: usize, stage: Arc<Stage>, name: String) -> Result<Staged, FsError> {
        let path = &self.steps[j].path;
        let stat = self.root.stat_at(stage.fd(), &name[..]).map_err(|errno| FsError::new("look at", path, errno))?;
        self.inodes.count(inode(&stat.tuple), 1);
        self.inodes.moves(&stat.tuple);
        self.inodes.left_as(&stat);
        // Whether it was told or was about to be.
        self.work[j].told = Told::Outdated;
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
            self.work[j].staged = self.detach(j, step)?.map(Box::new);
            self.inodes.detached.insert(inode(&tuple), step.path.clone());
        }
        Ok(())
    }
}

fn is_gone(step: &Step) -> bool {
    step.new.is_none()
}

/// Too many links, another mount, protected links (`fs.protected_hardlinks`), or a file system without links.
fn is_link_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::NOTSUP | Errno::NOSYS)
}
