//! What a session leaves of a share for the next one, of whichever master.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use super::Opened;
use crate::fs::{Root, mounted_beneath};
use crate::hash::Prefixes;
use crate::index::{Index, Stamp};
use crate::manifest::{Holds, TreeHash};
use crate::options::Policy;
use crate::path::RelPath;
use crate::roles::replica::drift::Drift;
use crate::roles::replica::error::OpenError;
use crate::roles::replica::share::Share;
use crate::roles::survey::Names;
use crate::roles::tree::Remembered;

/// What a look at all of a share would find, and then hash, once more, as long as nothing has changed since. Who keeps it knows that, or at
/// which names something may have: by a watch that has not been broken.
pub struct Rest {
    policy: Policy,
    root: (u64, u64),
    index: Stamp,
    tree: TreeHash,
    remembered: Remembered,
    entries: u64,
    contents: Prefixes,
    went: u64,
    unmade: Vec<RelPath>,
}

impl Opened {
    /// Whether single names of the tree can be looked at from here on, and all else is known. The names of a file that has several may be
    /// outside the tree, where nobody hears of what is written to it.
    fn is_at_rest(&self) -> bool {
        let is_known =
            self.is_current && self.complete && self.is_plain && self.holds.is_empty() && self.names.is_empty();
        /// Contents that seem to be here are asked for late, when the plan misses them.
        const MOST_GONE: u64 = 256;
        let is_known = is_known && self.went <= MOST_GONE;
        let Policy { dry_run, checksum, no_delete, .. } = self.policy;
        is_known && !self.is_partial && !dry_run && !checksum && !no_delete
    }

    /// Closes the index. Returns what still keeps others out, what the next session can go on from, and what takes a while to be dropped.
    pub(super) fn come_to_rest(self) -> (impl Sized, (Option<Rest>, impl Sized)) {
        let root = self.root.as_ref().filter(|_| self.is_at_rest()).map(|root| root.identity());
        let Self { index, staging, policy, tree, remembered, entries, contents, went, unmade, names, asked, .. } = self;
        let dir = index.dir().map(ToOwned::to_owned);
        let open = (staging, self.made, self.admission, self._presence, self._lock);
        drop(index);
        let stamp = dir.as_deref().and_then(Index::stamp);
        let remembered = remembered.into_inner().unwrap_or_default();
        match root.zip(stamp) {
            Some((root, index)) => {
                let rest = Rest { policy, root, index, tree, remembered, entries, contents, went, unmade };
                (open, (Some(rest), (None, names, asked)))
            }
            None => (open, (None, (Some((tree, contents, remembered)), names, asked))),
        }
    }

    /// Looks at these names alone, and takes all else as it was left. `None` if only a look at everything can tell.
    pub(super) fn go_on_from(
        &mut self,
        rest: Rest,
        share: &Share,
        names: &mut Names,
        stop: &AtomicBool,
    ) -> Result<Option<Drift>, OpenError> {
        let Some(root) = self.root.clone() else { return Ok(None) };
        let stamp = self.index.dir().and_then(Index::stamp);
        let is_same = self.policy == rest.policy && root.identity() == rest.root && stamp == Some(rest.index);
        // Of what was mounted a moment ago nobody may have told yet.
        if !is_same || mounted_beneath(root.path()).unwrap_or(true) || !self.looks_known(&root, &rest.tree, names)? {
            return Ok(None);
        }
        // Nobody tells of those who stage in it.
        names.alone.insert(RelPath::root());
        self.recall()?;
        if self.index.intent()?.is_some() || self.reached.is_some() {
            return Ok(None);
        }
        self.is_plain = true;
        (self.tree, self.entries, self.apart) = (rest.tree, rest.entries, Holds::default());
        (self.remembered, self.contents, self.unmade) = (Mutex::new(rest.remembered), rest.contents, rest.unmade);
        self.went = rest.went;
        let Some(found) = self.found_at(share, names, stop)? else {
            (self.is_plain, self.contents, self.remembered) = (false, Prefixes::default(), Mutex::default());
            return Ok(None);
        };
        let drift = self.drift_in(&found, None)?;
        self.take_over(found)?;
        let names = names.whole.len() + names.alone.len();
        tracing::info!(share = share.name, names, "watched since the last push: what changed was looked at");
        Ok(Some(drift))
    }

    /// Whether the first entries of some directories are what their rows say. Of another name that a file gets no watch tells: who
    /// makes a snapshot of hard links changes all of them so.
    fn looks_known(&self, root: &Root, tree: &TreeHash, names: &Names) -> Result<bool, OpenError> {
        const SOME: usize = 32;
        for (dir, _) in tree.dirs.iter().take(SOME) {
            let mut rows = self.index.cursor_from(dir)?;
            rows.next()?;
            let first = rows.next()?.filter(|row| row.path.parent().as_ref() == Some(dir) && !names.covers(&row.path));
            if let Some(row) = first
                && row.tuple.is_some()
                && !root.stat(&row.path).is_ok_and(|found| found.map(|found| found.tuple) == row.tuple)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
