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
use crate::roles::survey::Names;
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
/// directories hold; `None` if it is to be everything, as it is `everything` or after events were lost. A directory that has
/// been watched all the time is looked at alone. `leaves_out` tells of directories that are not watched, `tell` hears of those
/// that cannot be.
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
) -> Result<Option<Names>, WatchError> {
    let mut everything = everything || batch.everything || batch.names.len() > MANY;
    let lost = hints.lost.swap(false, Ordering::Relaxed);
    let tops: Vec<RelPath> = std::iter::once(RelPath::root()).chain(batch.names.iter().cloned()).collect();
    let mut names = Names { whole: batch.names, ..Names::default() };
    let mut new = BTreeSet::new();
    // Which names were told of is not known, and some may be directories that nobody watches yet.
    let throughout = batch.everything && !lost;
    if lost {
        watch.restart()?;
    }
    tops.into_iter().try_for_each(|top| {
        let is_known = cover(watch, root, top.clone(), throughout, leaves_out, tell, &mut |name| match name {
            Some(name) if new.len() <= MANY => drop(new.insert(name)),
            Some(_) => {}
            None => everything = true,
        })?;
        // In a directory that is new it is known since a moment ago.
        if is_known && !new.contains(&top) && names.whole.remove(&top) {
            names.alone.insert(top);
        }
        Ok::<_, WatchError>(())
    })?;
    names.whole.extend(new);
    Ok((!everything && !lost && names.whole.len() <= MANY).then_some(names))
}

/// Watches all directories from `top` down that are not watched yet; `found` gets what is in those, and `None` for one that
/// cannot be listed. What is beneath one that is watched was covered when it was new, but for what was made there since: that
/// is looked for `throughout`. Says whether the top was watched under its name all the time.
fn cover(
    watch: &Watch,
    root: &Root,
    top: RelPath,
    throughout: bool,
    leaves_out: &dyn Fn(&RelPath) -> bool,
    tell: &dyn Fn(&str),
    found: &mut dyn FnMut(Option<RelPath>),
) -> Result<bool, WatchError> {
    let mut is_known = false;
    let mut tops = vec![top.clone()];
    while let Some(dir) = tops.pop() {
        if !dir.is_root() && leaves_out(&dir) {
            continue;
        }
        match watch.add(&dir) {
            Ok(Added::New) => {}
            Ok(Added::Known) if throughout => {}
            Ok(Added::Known) => {
                is_known |= dir == top;
                continue;
            }
            Ok(Added::NotADirectory) => continue,
            Err(error) if error.is_local() => {
                tell(&format!("changes in {dir} are only found by looking: {error}"));
                continue;
            }
            Err(error) => return Err(error),
        }
        // Only a look at everything tells why it cannot be listed, and of what is in it.
        let listed = root.names(&dir).or_else(|error| if error.is_gone() { Ok(Vec::new()) } else { Err(error) });
        let Ok(listed) = listed else {
            found(None);
            continue;
        };
        for (name, may_be_dir) in listed {
            let Ok(path) = dir.join(&name) else { continue };
            if may_be_dir {
                tops.push(path.clone());
            }
            found(Some(path));
        }
    }
    Ok(is_known)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the test changes the directories that are watched")]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn set(names: &[&str]) -> BTreeSet<RelPath> {
        names.iter().map(|name| RelPath::new(*name).unwrap()).collect()
    }

    /// Else each change in a directory of a hundred thousand files would take a look at all of them.
    #[test]
    fn only_a_directory_that_came_by_its_name_is_looked_at_with_what_it_holds() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        fs::create_dir_all(at("d/sub")).unwrap();
        fs::write(at("d/sub/f"), "f").unwrap();
        let root = Root::open(top.path()).unwrap();
        let hints = Hints::new(SettleOptions::default());
        let watch = Watch::new(top.path(), {
            let hints = Arc::clone(&hints);
            move |hint| hints.hear(hint)
        });
        let watch = watch.unwrap();
        let all = || Batch { everything: true, ..Batch::default() };
        let look =
            |batch: Batch| names_of(&watch, &hints, &root, batch, false, &|_| false, &|why| panic!("{why}")).unwrap();
        assert_eq!(look(all()), None);

        // Batches until all of the names have come.
        let heard = |wanted: &[&str]| {
            let mut names = Names::default();
            let until = Instant::now() + Duration::from_secs(20);
            while !set(wanted).iter().all(|name| names.covers(name)) {
                assert!(Instant::now() < until, "{names:?}");
                std::thread::sleep(Duration::from_millis(5));
                let batch = hints.settle().poll(hints.now());
                names.extend(batch.and_then(look).unwrap_or_default());
            }
            names
        };
        fs::set_permissions(at("d"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(at("d/new"), "new").unwrap();
        let names = heard(&["d", "d/new"]);
        assert_eq!((names.whole, names.alone), (set(&["d/new"]), set(&["d"])));

        fs::rename(at("d"), at("e")).unwrap();
        fs::rename(at("e"), at("d")).unwrap();
        let names = heard(&["d", "e"]);
        assert!(names.whole.is_superset(&set(&["d", "d/new", "d/sub", "d/sub/f"])), "{names:?}");
    }
}
