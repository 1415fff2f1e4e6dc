//! What `notify` reports becomes hints. This runs on its thread.

use std::ffi::OsStr;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RenameMode};
use notify::{Event, EventHandler};

use super::Dirs;
use crate::path::RelPath;
use crate::settle::Hint;

/// The caller's ear.
pub type Tell = Arc<dyn Fn(Hint) + Send + Sync>;

/// What the thread of `notify` and its owner both know.
#[derive(Default)]
pub struct Shared {
    dirs: Mutex<Dirs>,
    /// What is heard is told.
    pub is_open: AtomicBool,
    /// The thread is gone.
    pub has_ended: AtomicBool,
}

impl Shared {
    /// The directories that are watched, under the paths that events tell for them.
    pub fn dirs(&self) -> MutexGuard<'_, Dirs> {
        self.dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `path` and what is beneath it out of the watched directories.
    pub fn drop_beneath(&self, path: &RelPath) -> Vec<RelPath> {
        let mut dirs = self.dirs();
        let from = (Bound::Included(path), Bound::Unbounded);
        let beneath = dirs.range::<RelPath, _>(from).map(|(dir, _)| dir);
        let gone: Vec<_> = beneath.take_while(|dir| *dir == path || dir.is_beneath(path)).cloned().collect();
        for dir in &gone {
            dirs.remove(dir);
        }
        gone
    }
}

/// Takes the events of one inotify instance.
pub struct Ear {
    top: PathBuf,
    links: Arc<[PathBuf]>,
    shared: Arc<Shared>,
    tell: Tell,
}

impl Ear {
    pub fn new(top: PathBuf, links: Arc<[PathBuf]>, shared: Arc<Shared>, tell: Tell) -> Self {
        Self { top, links, shared, tell }
    }

    fn hear(&self, event: &Event) {
        // First: an overflow may carry other things, and says more than they do.
        if event.need_rescan() || event.paths.is_empty() {
            return (self.tell)(Hint::Overflow);
        }
        for path in &event.paths {
            if let Some(hint) = self.hint(event, path) {
                (self.tell)(hint);
            }
        }
    }

    /// What `event` says about `full`, one of its paths; `None` for what concerns nobody.
    fn hint(&self, event: &Event, full: &Path) -> Option<Hint> {
        let goes = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
        if self.links.iter().any(|link| link == full) {
            return goes.then_some(Hint::RootGone);
        }
        let Some(path) = relative(&self.top, full) else { return Some(Hint::Overflow) };
        if path.is_root() && goes {
            return Some(Hint::RootGone);
        }
        // An event that leaves a name makes notify forget its watches there and beneath, but not the one with which a
        // moved directory reports itself, perhaps under its new name already: that carries no cookie.
        let is_left = match event.kind {
            EventKind::Remove(_) => true,
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) => event.tracker().is_some(),
            _ => false,
        };
        if is_left {
            self.shared.drop_beneath(&path);
        }
        Some(if is_at_rest(&event.kind, full) { Hint::AtRest(path) } else { Hint::Changed(path) })
    }
}

/// Whether nothing more is to be expected of the entry at `full` for now.
fn is_at_rest(kind: &EventKind, full: &Path) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Remove(_) => true,
        EventKind::Create(CreateKind::Folder) => true,
        // A new file is opened, and will be written and closed; nothing of the sort follows for a link, a hard link or a
        // device.
        EventKind::Create(_) => {
            !std::fs::symlink_metadata(full).is_ok_and(|found| found.is_file() && found.nlink() == 1)
        }
        EventKind::Modify(ModifyKind::Name(_) | ModifyKind::Metadata(_)) => true,
        EventKind::Modify(_) | EventKind::Access(_) | EventKind::Any | EventKind::Other => false,
    }
}

impl EventHandler for Ear {
    fn handle_event(&mut self, event: notify::Result<Event>) {
        if !self.shared.is_open.load(Ordering::Acquire) {
            return;
        }
        match event {
            Ok(event) => self.hear(&event),
            // Whatever could not be read was an event.
            Err(_) => (self.tell)(Hint::Overflow),
        }
    }
}

impl Drop for Ear {
    /// With its ear the thread of `notify` ends. If nobody asked for that, events are lost from here on.
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::Release);
        if self.shared.is_open.load(Ordering::Acquire) {
            (self.tell)(Hint::Overflow);
        }
    }
}

/// The path that the kernel is given for `path`.
pub fn join(top: &Path, path: &RelPath) -> PathBuf {
    if path.is_root() { top.to_owned() } else { top.join(OsStr::from_bytes(path.as_bytes())) }
}

/// The inverse of [`join`]; `None` if `full` is no clean path in `top`.
pub fn relative(top: &Path, full: &Path) -> Option<RelPath> {
    RelPath::new(full.strip_prefix(top).ok()?.as_os_str().as_bytes()).ok()
}
