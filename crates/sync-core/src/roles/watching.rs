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

/// A tree's watch, and how far it can be relied on.
pub struct Watched {
    /// `None` if events cannot be had, or not of all of it.
    watch: Option<Watch>,
    /// Why not every change is heard of.
    unheard: Option<String>,
}

impl Watched {
    /// By a watch, if there is one, and it tells of all changes.
    pub fn by(watch: Result<Watch, WatchError>, root: &Root) -> Self {
        let why = match (watch, events_at(root.path())) {
            (Ok(watch), Ok(Events::Complete)) => return Self { watch: Some(watch), unheard: None },
            (Ok(_), Ok(Events::Incomplete { file_system })) => format!("{file_system} does not tell of all of them"),
            (Ok(_), Err(error)) => error.to_string(),
            (Err(error), _) => error.to_string(),
        };
        Self::not_at_all(&why)
    }

    fn not_at_all(why: &str) -> Self {
        Self { watch: None, unheard: Some(format!("changes are not heard of: {why}")) }
    }

    /// Whether there is a watch, as far as it goes.
    pub fn is_on(&self) -> bool {
        self.watch.is_some()
    }

    /// Whether every change is heard of: else the tree has to be looked at from time to time.
    pub fn hears_all(&self) -> bool {
        self.unheard.is_none()
    }

    /// Why not every change is heard of, if that is so.
    pub fn unheard(&self) -> Option<&str> {
        self.unheard.as_deref()
    }

    /// Returns when all that the kernel has heard of was told. Whether it hears of every directory.
    pub fn catches_up(&self) -> bool {
        self.hears_all() && self.watch.as_ref().is_some_and(|watch| watch.catch_up().is_ok())
    }

    /// Whether the path of the tree still leads to the directory that is watched, if one is.
    pub fn is_in_place(&self) -> bool {
        self.watch.as_ref().is_none_or(Watch::is_in_place)
    }

    /// Watches all that a batch names, and what is beneath where that is new. Returns the names to look at, with all that new
    /// directories hold; `None` if it is to be everything, as it is `everything`, where nothing is watched, or after events were
    /// lost. A directory that has been watched all the time is looked at alone. `leaves_out` tells of directories that are not
    /// watched.
    ///
    /// # Errors
    /// [`RootGone`].
    pub fn names_of(
        &mut self,
        hints: &Hints,
        root: &Root,
        batch: Batch,
        everything: bool,
        leaves_out: &dyn Fn(&RelPath) -> bool,
    ) -> Result<Option<Names>, RootGone> {
        let Some(watch) = &self.watch else { return Ok(None) };
        let mut unwatched = Unwatched { first: None, count: 0 };
        // Of those there are, each is tried again.
        let all = batch.everything;
        match names_of(watch, hints, root, batch, everything, leaves_out, &mut unwatched) {
            Ok(names) => {
                if all || unwatched.count > 0 {
                    self.unheard = unwatched.first.map(|first| match unwatched.count {
                        1 => format!("some changes are not heard of: {first}"),
                        count => format!("some changes are not heard of: {first}, as {count} directories in all"),
                    });
                }
                Ok(names)
            }
            Err(WatchError::RootGone) => Err(RootGone),
            Err(error) => {
                *self = Self::not_at_all(&error.to_string());
                Ok(None)
            }
        }
    }
}

/// The tree was moved, deleted, unmounted or replaced.
#[derive(Debug)]
pub struct RootGone;

/// Directories that cannot be watched, though what is in them may change.
struct Unwatched {
    first: Option<WatchError>,
    count: u64,
}

/// [`Watched::names_of`], of what is watched.
fn names_of(
    watch: &Watch,
    hints: &Hints,
    root: &Root,
    batch: Batch,
    everything: bool,
    leaves_out: &dyn Fn(&RelPath) -> bool,
    unwatched: &mut Unwatched,
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
        let is_known = cover(watch, root, top.clone(), throughout, leaves_out, unwatched, &mut |name| match name {
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
    unwatched: &mut Unwatched,
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
                // One that cannot be read is told of by whoever tries, and its parent hears if that changes.
                if error.is_unheard() {
                    unwatched.count += 1;
                    unwatched.first.get_or_insert(error);
                }
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

    use rustix::fs::{Mode, OFlags};

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
        let mut watched = Watched::by(watch, &root);
        let all = || Batch { everything: true, ..Batch::default() };
        let mut look = |batch: Batch| watched.names_of(&hints, &root, batch, false, &|_| false).unwrap();
        assert_eq!(look(all()), None);

        // Batches until all of the names have come.
        let mut heard = |wanted: &[&str]| {
            let mut names = Names::default();
            let until = Instant::now() + Duration::from_secs(20);
            while !set(wanted).iter().all(|name| names.covers(name)) {
                assert!(Instant::now() < until, "{names:?}");
                std::thread::sleep(Duration::from_millis(5));
                let batch = hints.settle().poll(hints.now());
                names.extend(batch.and_then(&mut look).unwrap_or_default());
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

    #[test]
    fn a_directory_that_cannot_be_watched_is_said_to_be_for_as_long_as_it_is_there() {
        let top = tempfile::tempdir().unwrap();
        let root = Root::open(top.path()).unwrap();
        // The kernel takes no path as long as this; a directory is made step by step.
        let name = "x".repeat(255);
        let mut at = rustix::fs::open(top.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..18 {
            rustix::fs::mkdirat(&at, name.as_str(), Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, name.as_str(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        fs::create_dir(top.path().join("closed")).unwrap();
        let hints = Hints::new(SettleOptions::default());
        let mut watched = Watched::by(Watch::new(top.path(), |_| {}), &root);
        assert!(watched.hears_all());
        let mut look = |batch: Batch| {
            watched.names_of(&hints, &root, batch, false, &|_| false).unwrap();
            watched.unheard().map(str::to_owned)
        };
        let all = || Batch { everything: true, ..Batch::default() };
        let why = look(all()).unwrap();
        assert!(why.starts_with("some changes are not heard of: cannot watch x"), "{why}");
        assert!(why.contains("longer than 4095 bytes"), "{why}");
        let one = Batch { names: set(&["closed"]), ..Batch::default() };
        assert_eq!(look(one), Some(why), "another batch says nothing of it");
        fs::rename(top.path().join(&name), top.path().join("short")).unwrap();
        let short = top.path().join("short");
        fs::rename(short.join(&name).join(&name), top.path().join("moved")).unwrap();
        assert_eq!(look(all()), None);
    }
}
