//! The shares that a process serves: names, where they are, where their indexes are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::lookout::Lookout;
use crate::fs::place;
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

/// All shares by name, each with what watches its tree, if anything does.
#[derive(Clone, Default)]
pub struct Shares(BTreeMap<String, (Share, Option<Arc<Lookout>>)>);

impl Shares {
    /// These shares.
    pub fn new(shares: impl IntoIterator<Item = (Share, Option<Arc<Lookout>>)>) -> Self {
        Self(shares.into_iter().map(|(share, lookout)| (share.name.clone(), (share, lookout))).collect())
    }

    /// Just this one, which nobody watches.
    pub fn only(share: Share) -> Self {
        Self::new([(share, None)])
    }

    /// What watches the tree of the share with this name.
    pub fn lookout(&self, name: &str) -> Option<Arc<Lookout>> {
        self.0.get(name).and_then(|(_, lookout)| lookout.clone())
    }

    /// All that watch.
    pub fn lookouts(&self) -> impl Iterator<Item = Arc<Lookout>> {
        self.0.values().filter_map(|(_, lookout)| lookout.clone())
    }

    /// The share of this name.
    ///
    /// # Errors
    /// In words for the pushing side.
    pub fn find(&self, name: &str) -> Result<&Share, String> {
        self.0.get(name).map(|(share, _)| share).ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            format!("there is no share named {:?} here; there are: {}", escape(name.as_bytes()), known.join(", "))
        })
    }
}
