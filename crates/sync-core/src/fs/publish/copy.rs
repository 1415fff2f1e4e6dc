//! Copies of files that the replica has, or has staged.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::{Publisher, Staged, drift};
use crate::fs::error::FsError;
use crate::fs::sparse;
use crate::fs::staging::create_as;
use crate::hash::Digest;
use crate::manifest::{Entry, Metadata, Row, Tuple};
use crate::path::RelPath;
use crate::plan::Step;

impl Publisher {
    /// A copy of a visible file with the content of `entry`. If the source is what its row says, so is the content; else
    /// the copy's digest decides.
    pub(super) fn copy_checked(
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
        // A step that was begun is ended.
        let never = AtomicBool::new(false);
        let found = openat(staged.dir(), &*staged.name, flags, Mode::empty());
        let found = found.and_then(|fd| sparse::hash(&fd, size, &never));
        if found.is_ok_and(|hasher| Digest::from(hasher.finalize()) == digest) {
            return Ok(staged);
        }
        staged.remove();
        Err(drift("copy the source of", &step.path))
    }

    /// A new file with the first `size` bytes of `from`.
    pub(super) fn copy(&self, from: impl AsFd, to: &Staged, size: u64, path: &RelPath) -> Result<(), FsError> {
        self.copy_dressed(from, to, size, path, None).map(drop)
    }

    /// The same, which also gets what it will probably have, and is told to have got it; with its tuple if nothing else
    /// about it will change.
    pub(super) fn copy_dressed(
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
    pub(super) fn open_visible(&self, path: &RelPath) -> Result<OwnedFd, FsError> {
        let stat = self.staging.look_at(path).map_err(|errno| FsError::new("look at", path, errno))?;
        if !stat.is_file() {
            return Err(drift("read", path));
        }
        let dir = self.staging.thaw.open(&self.root, &path.parent().unwrap_or_default())?;
        open_readable(dir.as_fd(), path.name()).map_err(|errno| FsError::new("read", path, errno))
    }
}

pub(super) fn open_readable(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}
