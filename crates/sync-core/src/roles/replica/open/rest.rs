//! What a session leaves of a share for the next one, of whichever master.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use foldhash::HashSet;

use super::Opened;
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
    apart: Holds,
    entries: u64,
    contents: HashSet<u64>,
    unmade: Vec<RelPath>,
}

impl Opened {
    /// Whether single names of the tree can be looked at from here on, and all else is known. The names of a file that has several may be
    /// outside the tree, where nobody hears of what is written to it.
    fn is_at_rest(&self) -> bool {
        let is_known =
            self.is_current && self.complete && self.is_plain && self.holds.is_empty() && self.names.is_empty();
        is_known && !self.is_partial && !self.policy.dry_run && !self.policy.checksum
    }

    /// Closes the index. Returns what still keeps others out, what the next session can go on from, and what takes a while to be dropped.
    pub(super) fn come_to_rest(self) -> (impl Sized, (Option<Rest>, impl Sized)) {
        let root = self.root.as_ref().filter(|_| self.is_at_rest()).map(|root| root.identity());
        let Self { index, staging, policy, tree, remembered, apart, entries, contents, unmade, names, asked, .. } =
            self;
        let dir = index.dir().map(ToOwned::to_owned);
        let open = (staging, self.made, self.admission, self._presence, self._lock);
        drop(index);
        let stamp = dir.as_deref().and_then(Index::stamp);
        let remembered = remembered.into_inner().unwrap_or_default();
        match root.zip(stamp) {
            Some((root, index)) => {
                let rest = Rest { policy, root, index, tree, remembered, apart, entries, contents, unmade };
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
        names: &Names,
        stop: &AtomicBool,
    ) -> Result<Option<Drift>, OpenError> {
        let root = self.root.as_ref().map(|root| root.identity());
        let stamp = self.index.dir().and_then(Index::stamp);
        if self.policy != rest.policy || root != Some(rest.root) || stamp != Some(rest.index) {
            return Ok(None);
        }
        self.recall()?;
        if self.index.intent()?.is_some() || self.reached.is_some() {
            return Ok(None);
        }
        self.is_plain = true;
        (self.tree, self.entries, self.apart) = (rest.tree, rest.entries, rest.apart);
        (self.remembered, self.contents, self.unmade) = (Mutex::new(rest.remembered), rest.contents, rest.unmade);
        let Some(found) = self.found_at(share, names, stop)? else {
            (self.is_plain, self.contents, self.remembered) = (false, HashSet::default(), Mutex::default());
            return Ok(None);
        };
        let drift = self.drift_in(&found, None)?;
        self.take_over(found)?;
        let names = names.whole.len() + names.alone.len();
        tracing::info!(share = share.name, names, "watched since the last push: what changed was looked at");
        Ok(Some(drift))
    }
}
