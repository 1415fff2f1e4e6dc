//! A tree that is watched, for either role: hints settle into batches, and every directory is watched before it is looked
//! at. What a batch means is for the role to find out by looking.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::fs::Root;
use crate::fs::watch::{Added, Events, Watch, WatchError, events_at};
use crate::path::RelPath;
use crate::settle::{Batch, Hint, Settle, SettleOptions};

/// From this many names on a look at the whole tree costs less than one at each.
const MANY: usize = 2000;

/// What the watch has told and nobody has looked at yet.
pub struct Hints {
    settle: Mutex<Settle>,
    /// Whether the watch lost some: what is watched under which path is not known any more.
    lost: AtomicBool,
    /// Told of each.
    pub more: Notify,
    began: Instant,
}

impl Hints {
    /// None yet.
    pub fn new(options: SettleOptions) -> Arc<Self> {
        let settle = Mutex::new(Settle::new(options));
        Arc::new(Self { settle, lost: AtomicBool::new(false), more: Notify::new(), began: Instant::now() })
    }

    /// The time that hints are counted in.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// What waits.
    pub fn settle(&self) -> MutexGuard<'_, Settle> {
        self.settle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one of the watch.
    pub fn hear(&self, hint: Hint) {
        self.lost.fetch_or(hint == Hint::Overflow, Ordering::Relaxed);
        self.add(hint);
    }

    /// Takes one of the role's own.
    pub fn add(&self, hint: Hint) {
        self.settle().hint(self.now(), hint);
        self.more.notify_one();
    }
}

/// The watch of a tree, if it tells of all changes.
///
/// # Errors
/// Why it does not.
pub fn complete(watch: Result<Watch, WatchError>, root: &Root) -> Result<Watch, String> {
    match (watch, events_at(root.path())) {
        (Ok(watch), Ok(Events::Complete)) => Ok(watch),
        (Ok(_), Ok(Events::Incomplete { file_system })) => Err(format!("{file_system} does not tell of all of them")),
        (Ok(_), Err(error)) => Err(error.to_string()),
        (Err(error), _) => Err(error.to_string()),
    }
}

/// Watches all that a batch names, and what is beneath where that is new. Returns the names to look at, with all that new
/// directories hold; `None` if it is to be everything, as it is `everything` or after events were lost. `leaves_out` tells
/// of directories that are not watched, `tell` hears of those that cannot be.
///
/// # Errors
/// [`WatchError`] if the tree cannot be watched any more.
pub fn names_of(
    watch: &Watch,
    hints: &Hints,
    root: &Root,
    batch: Batch,
    everything: bool,
    leaves_out: &dyn Fn(&RelPath) -> bool,
    tell: &dyn Fn(&str),
) -> Result<Option<BTreeSet<RelPath>>, WatchError> {
    let everything = everything || batch.everything || batch.names.len() > MANY;
    let lost = hints.lost.swap(false, Ordering::Relaxed);
    let mut names = batch.names;
    let tops: Vec<RelPath> = std::iter::once(RelPath::root()).chain(names.iter().cloned()).collect();
    // Which names were told of is not known, and some may be directories that nobody watches yet.
    let throughout = batch.everything && !lost;
    if lost {
        watch.restart()?;
    }
    tops.into_iter().try_for_each(|top| {
        cover(watch, root, top, throughout, leaves_out, tell, &mut |name| {
            if names.len() <= MANY {
                names.insert(name);
            }
        })
    })?;
    Ok((!everything && !lost && names.len() <= MANY).then_some(names))
}

/// Watches all directories from `top` down that are not watched yet; `found` gets what is in those. What is beneath one
/// that is watched was covered when it was new, but for what was made there since: that is looked for `throughout`.
fn cover(
    watch: &Watch,
    root: &Root,
    top: RelPath,
    throughout: bool,
    leaves_out: &dyn Fn(&RelPath) -> bool,
    tell: &dyn Fn(&str),
    found: &mut dyn FnMut(RelPath),
) -> Result<(), WatchError> {
    let mut tops = vec![top];
    while let Some(dir) = tops.pop() {
        if !dir.is_root() && leaves_out(&dir) {
            continue;
        }
        match watch.add(&dir) {
            Ok(Added::New) => {}
            Ok(Added::Known) if throughout => {}
            Ok(Added::Known | Added::NotADirectory) => continue,
            Err(error) if error.is_local() => {
                tell(&format!("changes in {dir} are only found by looking: {error}"));
                continue;
            }
            Err(error) => return Err(error),
        }
        // What cannot be listed is found by the look, which tells why.
        for (name, may_be_dir) in root.names(&dir).unwrap_or_default() {
            let Ok(path) = dir.join(&name) else { continue };
            if may_be_dir {
                tops.push(path.clone());
            }
            found(path);
        }
    }
    Ok(())
}
