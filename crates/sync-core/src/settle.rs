//! Hints about names become batches: what is at rest goes at once, what is being written waits until it rests.
//!
//! Sans-IO: hints in, batches out, and when to ask again. No clock: `now` is any monotonic time. A batch says where to
//! look and no more; what changed is found by looking, so a hint too many costs a look, and a hint of a watcher that lost
//! some is [`Hint::Overflow`].
//!
//! Each name waits for itself alone. A name that is published and hinted at again before it has rested waits longer each
//! time, up to [`SettleOptions::settle_max`]: a log costs a version every ten seconds, not twenty a second.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::path::RelPath;

/// What a watcher tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// The entry is being changed, and may be again in a moment: a write without a close.
    Changed(RelPath),
    /// The entry changed and is at rest: closed after writing, made, moved, removed, given other attributes.
    AtRest(RelPath),
    /// Anything may have changed: events were lost, or cannot be had.
    Overflow,
    /// The top of the tree was moved, deleted or unmounted, or the path to it leads elsewhere. As a hint it proves nothing
    /// about any name, as [`Hint::Overflow`].
    RootGone,
}

/// What to look at now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// These names, and what is beneath those that are new; none if `everything` is to be looked at.
    pub names: BTreeSet<RelPath>,
    /// The whole tree.
    pub everything: bool,
}

/// How long names wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettleOptions {
    /// A name that is written rests when nothing was heard of it for so long.
    pub quiet: Duration,
    /// No name waits longer than this for its first hint that no batch has served. At least `quiet`.
    pub settle_max: Duration,
    /// Most names that wait at a time; with one more everything is looked at. Each takes some hundred bytes.
    pub names: usize,
}

impl Default for SettleOptions {
    fn default() -> Self {
        Self { quiet: Duration::from_millis(100), settle_max: Duration::from_secs(10), names: 100_000 }
    }
}

impl SettleOptions {
    /// For how long nothing may be heard of a name with this wait until it has rested.
    fn rest(&self, wait: Duration) -> Duration {
        wait.saturating_mul(REST).min(self.settle_max)
    }
}

/// A name has rested when nothing was heard of it for so many times its present wait (at most `settle_max`): a file saved
/// twice a second goes at once each time, one written ten times a second soon does not.
const REST: u32 = 4;

/// Most waiting names that [`Settle::explains`] compares.
const COMPARED: usize = 1000;

/// Hints that no batch has served yet, and what of the batches before still matters.
#[derive(Clone, Debug, Default)]
pub struct Settle {
    options: SettleOptions,
    waiting: HashMap<RelPath, Waiting>,
    /// When each waiting name is due.
    due: BTreeSet<(Duration, RelPath)>,
    /// Names that were in a batch and have not rested since.
    restless: HashMap<RelPath, Restless>,
    /// When the rested were last taken out of `restless`.
    swept: Duration,
    /// The whole tree waits, and keeps to the same rules as a name.
    everything: Option<Waiting>,
    everything_restless: Option<Restless>,
}

/// A name with hints that no batch has served.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    first: Duration,
    due: Duration,
}

/// A name that was in a batch not long ago.
#[derive(Clone, Copy, Debug)]
struct Restless {
    /// When it was in a batch.
    published: Duration,
    /// When it was last heard of.
    heard: Duration,
    /// How long after `published` it goes again.
    wait: Duration,
}

impl Restless {
    fn has_rested(&self, now: Duration, rest: Duration) -> bool {
        now.saturating_sub(self.heard) >= rest
    }
}

impl Settle {
    /// Nothing waits.
    pub fn new(options: SettleOptions) -> Self {
        let settle_max = options.settle_max.max(options.quiet);
        Self { options: SettleOptions { settle_max, ..options }, ..Self::default() }
    }

    /// Takes a hint that was made at `now`.
    pub fn hint(&mut self, now: Duration, hint: Hint) {
        match hint {
            Hint::Changed(path) => self.name(now, path, self.options.quiet),
            Hint::AtRest(path) => self.name(now, path, Duration::ZERO),
            Hint::Overflow | Hint::RootGone => self.all(now, now),
        }
    }

    /// What is to be looked at now, taken out; `None` if nothing is due.
    pub fn poll(&mut self, now: Duration) -> Option<Batch> {
        self.take(now, now)
    }

    /// All that waits, due or not, taken out; `None` if nothing waits. For who wants to know now where to look.
    pub fn take_all(&mut self, now: Duration) -> Option<Batch> {
        self.take(now, Duration::MAX)
    }

    /// What is due until `until`.
    fn take(&mut self, now: Duration, until: Duration) -> Option<Batch> {
        self.sweep(now);
        if self.everything.is_some_and(|waiting| waiting.due <= until) {
            self.everything = None;
            let wait = self.next_wait(self.everything_restless);
            self.everything_restless = Some(Restless { published: now, heard: now, wait });
            self.waiting.clear();
            self.due.clear();
            return Some(Batch { names: BTreeSet::new(), everything: true });
        }
        let mut names = BTreeSet::new();
        while self.due.first().is_some_and(|(due, _)| *due <= until) {
            let Some((_, path)) = self.due.pop_first() else { break };
            self.waiting.remove(&path);
            let wait = self.next_wait(self.restless.get(&path).copied());
            self.restless.insert(path.clone(), Restless { published: now, heard: now, wait });
            names.insert(path);
        }
        (!names.is_empty()).then_some(Batch { names, everything: false })
    }

    /// When [`Settle::poll`] has something, which may be in the past; `None` if only a hint can change that.
    pub fn timeout(&self) -> Option<Duration> {
        let name = self.due.first().map(|(due, _)| *due);
        let everything = self.everything.map(|waiting| waiting.due);
        name.into_iter().chain(everything).min()
    }

    /// Whether a hint waits that leads to a look at `path`, at what is beneath it or at what it is in: then a change of it
    /// was told of. Also if so many wait that nobody compares them.
    pub fn explains(&self, path: &RelPath) -> bool {
        let related = |name: &RelPath| name == path || name.is_beneath(path) || path.is_beneath(name);
        self.everything.is_some() || self.waiting.len() > COMPARED || self.waiting.keys().any(related)
    }

    /// A hint at `path`, which rests if nothing is heard of it for `quiet`.
    fn name(&mut self, now: Duration, path: RelPath, quiet: Duration) {
        let settle_max = self.options.settle_max;
        let earliest = match self.restless.get_mut(&path) {
            Some(known) if known.has_rested(now, self.options.rest(known.wait)) => {
                self.restless.remove(&path);
                Duration::ZERO
            }
            Some(known) => {
                known.heard = now;
                known.published.saturating_add(known.wait)
            }
            None => Duration::ZERO,
        };
        let before = self.waiting.get(&path).copied();
        if before.is_none() && self.waiting.len() >= self.options.names {
            let first = self.waiting.values().map(|waiting| waiting.first).min();
            self.waiting.clear();
            self.due.clear();
            return self.all(now, first.unwrap_or(now));
        }
        let first = before.map_or(now, |before| before.first);
        let due = now.saturating_add(quiet).max(earliest).min(first.saturating_add(settle_max));
        if let Some(before) = before {
            if before.due == due {
                return;
            }
            self.due.remove(&(before.due, path.clone()));
        }
        self.due.insert((due, path.clone()));
        self.waiting.insert(path, Waiting { first, due });
    }

    /// A hint at the whole tree, for what has waited since `first`. Names that wait go on waiting: if a look at everything
    /// was not long ago, they come first.
    fn all(&mut self, now: Duration, first: Duration) {
        let settle_max = self.options.settle_max;
        let earliest = match &mut self.everything_restless {
            // Looking at everything is dear: it has rested only when all was quiet for as long as can be.
            Some(known) if known.has_rested(now, settle_max) => {
                self.everything_restless = None;
                now
            }
            Some(known) => {
                known.heard = now;
                known.published.saturating_add(known.wait)
            }
            None => now,
        };
        let first = self.everything.map_or(first, |waiting| waiting.first.min(first));
        let due = now.max(earliest).min(first.saturating_add(settle_max));
        self.everything = Some(Waiting { first, due });
    }

    fn next_wait(&self, before: Option<Restless>) -> Duration {
        before.map_or(self.options.quiet, |before| before.wait.saturating_mul(2).min(self.options.settle_max))
    }

    /// Forgets the names that have rested, from time to time: each batch adds some.
    fn sweep(&mut self, now: Duration) {
        let options = self.options;
        if now.saturating_sub(self.swept) < options.settle_max && self.restless.len() <= options.names {
            return;
        }
        self.swept = now;
        self.restless.retain(|_, known| !known.has_rested(now, options.rest(known.wait)));
        if self.restless.len() > options.names {
            // Then the next hint at one of them is served at once, and nothing else is lost.
            self.restless.clear();
        }
    }
}

#[cfg(test)]
mod tests;
