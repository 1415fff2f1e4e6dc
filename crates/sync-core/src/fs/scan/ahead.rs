//! Directories that a walk will come to, listed by other threads before it does: a look at a tree is mostly system calls, and one
//! processor is seldom all that there is.
//!
//! What comes next in tree order comes first. The walk takes what is listed, lists itself what nobody has begun, and what
//! comes next while it would have to wait.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope, available_parallelism};

use super::{Children, Entered, Found, LISTING_BYTES, Lister, Listing};
use crate::fs::stat::Stat;
use crate::path::RelPath;

/// Most threads beside the walk.
const THREADS: usize = 3;

/// Most directories that are listed and not taken: each holds a descriptor.
const DIRECTORIES: usize = 64;

/// Names in them from which on no more are listed.
const NAMES: usize = 32_000;

/// Most directories that wait to be listed. Of more the walk takes care when it comes to them.
const WAITING: usize = 128;

/// Where the threads meet.
pub struct Ahead<'a> {
    lister: &'a Lister<'a>,
    state: Mutex<State>,
    /// There is something to list, and room for it.
    more: Condvar,
    /// Something was listed.
    listed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<RelPath, Task>,
    under_way: BTreeSet<RelPath>,
    done: BTreeMap<RelPath, Entered>,
    /// Names in those.
    names: usize,
    /// Threads that wait for more.
    idle: usize,
    /// Whether the walk waits.
    is_awaited: bool,
    over: bool,
}

/// A directory as its parent's listing shows it.
struct Task {
    dir: Arc<OwnedFd>,
    name: CString,
    stat: Stat,
}

impl State {
    fn has_room(&self) -> bool {
        self.done.len() < DIRECTORIES && self.names < NAMES
    }

    /// The walk is at a path: it never came to what lies before that, because it could not, or was told not to.
    fn pass_by(&mut self, path: &RelPath) {
        while let Some(first) = self.done.first_entry().filter(|first| first.key() < path) {
            self.names -= first.remove().names();
        }
        while let Some(first) = self.waiting.first_entry().filter(|first| first.key() < path) {
            first.remove();
        }
    }

    fn begin(&mut self) -> Option<(RelPath, Task)> {
        let (path, task) = self.waiting.pop_first()?;
        self.under_way.insert(path.clone());
        Some((path, task))
    }
}

/// Ends the threads when the walk is over, whichever way.
pub struct Walking<'a, 'b>(&'a Ahead<'b>);

impl Drop for Walking<'_, '_> {
    fn drop(&mut self) {
        self.0.state().over = true;
        self.0.more.notify_all();
    }
}

impl<'a> Ahead<'a> {
    pub fn new(lister: &'a Lister<'a>) -> Self {
        Self { lister, state: Mutex::default(), more: Condvar::new(), listed: Condvar::new() }
    }

    /// Begins to list, until what is returned is dropped. Without a second processor nothing is listed here.
    pub fn begin<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> Walking<'scope, 'a> {
        let others = available_parallelism().map_or(1, NonZero::get) - 1;
        let begin = || Builder::new().name("look ahead".to_owned()).spawn_scoped(scope, || self.list_all()).is_ok();
        // With fewer than there might be, the walk does more.
        let begun = (0..others.min(THREADS)).filter(|_| begin()).count();
        self.state().over = begun == 0;
        Walking(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The walk will come to these children of a directory.
    pub fn coming(&self, path: &RelPath, fd: &Arc<OwnedFd>, children: &Children, around: u64) {
        let mut dirs = children.left().filter_map(|(name, found)| match found {
            Found::Stat(stat)
                if stat.is_dir() && stat.mount == around && self.lister.left_out(&stat, false).is_none() =>
            {
                Some((name, stat))
            }
            _ => None,
        });
        let Some(first) = dirs.next() else { return };
        let mut state = self.state();
        if state.over {
            return;
        }
        for (name, stat) in std::iter::once(first).chain(dirs) {
            if state.waiting.len() >= WAITING {
                break;
            }
            let Ok(path) = path.join(name.to_bytes()) else { continue };
            state.waiting.insert(path, Task { dir: Arc::clone(fd), name: name.to_owned(), stat });
        }
        let wakes = state.idle > 0 && state.has_room();
        drop(state);
        if wakes {
            self.more.notify_all();
        }
    }

    /// What there is at a path that the walk has come to, found by `enter` unless somebody has begun to.
    pub fn take(
        &self,
        path: &RelPath,
        buffer: &mut [MaybeUninit<u8>],
        enter: impl FnOnce(&mut [MaybeUninit<u8>]) -> Entered,
    ) -> Entered {
        let mut state = self.state();
        state.pass_by(path);
        loop {
            if let Some(entered) = state.done.remove(path) {
                state.names -= entered.names();
                let is_worth_it = state.has_room() && state.done.len() <= DIRECTORIES / 2;
                let wakes = state.idle > 0 && !state.waiting.is_empty() && is_worth_it;
                drop(state);
                if wakes {
                    self.more.notify_all();
                }
                return entered;
            }
            if !state.under_way.contains(path) {
                state.waiting.remove(path);
                drop(state);
                return enter(buffer);
            }
            let next = if state.has_room() { state.begin() } else { None };
            state = match next {
                Some((path, task)) => {
                    drop(state);
                    self.list(path, &task, buffer)
                }
                None => {
                    state.is_awaited = true;
                    self.listed.wait(state).unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    /// A thread that lists what waits.
    fn list_all(&self) {
        let mut buffer = vec![MaybeUninit::uninit(); LISTING_BYTES];
        let mut state = self.state();
        while !state.over {
            let next = if state.has_room() { state.begin() } else { None };
            state = match next {
                Some((path, task)) => {
                    drop(state);
                    self.list(path, &task, &mut buffer)
                }
                None => {
                    state.idle += 1;
                    let mut state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.idle -= 1;
                    state
                }
            };
        }
    }

    fn list(
        &self,
        path: RelPath,
        Task { dir, name, stat }: &Task,
        buffer: &mut [MaybeUninit<u8>],
    ) -> MutexGuard<'_, State> {
        let under_way = UnderWay(self, &path);
        let mut entered = self.lister.enter(&path, dir.as_fd(), name, *stat, buffer);
        if let Entered::Dir(fd, listing) = &mut entered {
            self.coming(&path, fd, &listing.children, listing.stat.mount);
            listing.is_ahead = true;
        }
        let mut state = self.state();
        state.names += entered.names();
        state.done.insert(path.clone(), entered);
        drop(state);
        drop(under_way);
        self.state()
    }
}

/// A directory that is being listed. Nobody waits for it for ever, also if that ends with a panic.
struct UnderWay<'a, 'b>(&'a Ahead<'b>, &'a RelPath);

impl Drop for UnderWay<'_, '_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way.remove(self.1);
        if std::mem::take(&mut state.is_awaited) {
            self.0.listed.notify_all();
        }
    }
}

impl Entered {
    fn names(&self) -> usize {
        match self {
            Self::Dir(_, Listing { children, .. }) => children.order.len(),
            _ => 0,
        }
    }
}

impl Children {
    /// Those that were not taken.
    fn left(&self) -> impl Iterator<Item = (&CStr, Found)> {
        let left = self.order.iter().skip(self.taken);
        left.filter_map(|child| Some((child.name(&self.names)?, self.found[child.found])))
    }
}
