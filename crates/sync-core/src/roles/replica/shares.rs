//! The shares that a process serves: names, where they are, where their indexes are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::lookout::Lookout;
use super::owner::Ownership;
use crate::fs::place;
use crate::guard::{DeleteGuard, MaxDelete, Step, TooMuch};
use crate::path::escape;
use crate::region::Region;

/// One share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Where the replica is.
    pub path: PathBuf,
    /// The state directory; the index's place in it follows from the name or path.
    pub state_dir: PathBuf,
    /// Its name; empty for an embedded replica.
    pub name: String,
}

impl Share {
    /// A replica in the process of its master, at a path.
    pub fn embedded(path: PathBuf, state_dir: PathBuf) -> Self {
        Self { path, state_dir, name: String::new() }
    }

    /// How it lies to a source on the same machine, if they are not apart.
    pub fn lies(&self, source: &Region, with_mounts: bool) -> Option<&'static str> {
        let place = place::resolve(&self.path).ok()?;
        place::region(&place, with_mounts)?.lies(source)
    }

    /// What to call it in messages.
    pub fn describe(&self) -> String {
        let path = escape(self.path.as_os_str().as_encoded_bytes());
        if self.name.is_empty() { path } else { format!("the share {} ({path})", self.name) }
    }
}

/// A share and who cares for it.
#[derive(Clone)]
pub struct Held {
    /// The share.
    pub share: Share,
    /// What watches its tree, if anything does.
    pub lookout: Option<Arc<Lookout>>,
    /// What a master that follows its tree may delete.
    pub guard: Arc<Guard>,
    /// Whose it is; `None` for an embedded replica, which is whose the process is.
    pub ownership: Option<Arc<Ownership>>,
}

/// A [`DeleteGuard`] with its clock.
pub struct Guard {
    guard: Mutex<DeleteGuard>,
    began: Instant,
}

impl Guard {
    /// Nothing is known of the tree yet.
    pub fn new(most: MaxDelete) -> Arc<Self> {
        Arc::new(Self { guard: Mutex::new(DeleteGuard::new(most)), began: Instant::now() })
    }

    /// As [`DeleteGuard::check`].
    pub fn check(&self, step: Step) -> Result<(), TooMuch> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner).check(self.began.elapsed(), step)
    }

    /// As [`DeleteGuard::passed`].
    pub fn passed(&self, step: Step, released: bool) {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner).passed(self.began.elapsed(), step, released);
    }
}

/// All shares by name.
#[derive(Clone, Default)]
pub struct Shares(BTreeMap<String, Held>);

impl Shares {
    /// These shares.
    pub fn new(shares: impl IntoIterator<Item = Held>) -> Self {
        Self(shares.into_iter().map(|held| (held.share.name.clone(), held)).collect())
    }

    /// Just this one, which nobody watches, and nobody follows.
    pub fn only(share: Share) -> Self {
        Self::new([Held { share, lookout: None, guard: Guard::new(MaxDelete::Unlimited), ownership: None }])
    }

    /// What watches the tree of the share with this name.
    pub fn lookout(&self, name: &str) -> Option<Arc<Lookout>> {
        self.0.get(name).and_then(|held| held.lookout.clone())
    }

    /// What may be deleted of the share with this name.
    pub fn guard(&self, name: &str) -> Option<Arc<Guard>> {
        self.0.get(name).map(|held| Arc::clone(&held.guard))
    }

    /// Whose the share with this name is.
    pub fn ownership(&self, name: &str) -> Option<Arc<Ownership>> {
        self.0.get(name).and_then(|held| held.ownership.clone())
    }

    /// All that watch.
    pub fn lookouts(&self) -> impl Iterator<Item = Arc<Lookout>> {
        self.0.values().filter_map(|held| held.lookout.clone())
    }

    /// The share of this name.
    ///
    /// # Errors
    /// In words for the pushing side.
    pub fn find(&self, name: &str) -> Result<&Share, String> {
        self.0.get(name).map(|held| &held.share).ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            format!("there is no share named {:?} here; there are: {}", escape(name.as_bytes()), known.join(", "))
        })
    }
}
