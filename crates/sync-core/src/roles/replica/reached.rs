//! How far a tree has come that is told in stretches.

use super::share::Share;
use crate::fs::{StateDir, StateError};
use crate::hash::Digest;
use crate::index::{Commit, Index, IndexError};
use crate::manifest::Lineage;
use crate::path::{RelPath, escape};

/// Under this key an index keeps it: root, lineage, and the bytes of the path.
const KEY: &str = "replica.reached";

/// What a replica has that stands at no version yet, because stretches are to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The root of what was there then.
    pub root: Digest,
    /// Whose versions the stretches were of: that master knows what the others hold.
    pub lineage: Lineage,
    /// The last path that was told.
    pub path: RelPath,
}

impl Reached {
    /// What the index keeps; `None` if it has nothing, or something that cannot be this.
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be read.
    pub fn read(index: &Index) -> Result<Option<Self>, IndexError> {
        Ok(index.meta(KEY)?.and_then(|value| Self::decode(&value)))
    }

    /// Writes it down, or that there is nothing any more.
    ///
    /// # Errors
    /// [`IndexError`] if that cannot be done.
    pub fn write(this: Option<&Self>, index: &Index) -> Result<(), IndexError> {
        let value = this.map(|this| [&this.root.0[..], &this.lineage.0, this.path.as_bytes()].concat());
        index.set_meta(KEY, value.as_deref())
    }

    /// Forgets it, with whatever else is written.
    ///
    /// # Errors
    /// [`IndexError`] if that cannot be done.
    pub fn forget(commit: &mut Commit<'_>) -> Result<(), IndexError> {
        commit.set_meta(KEY, None)
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let (root, rest) = value.split_first_chunk()?;
        let (lineage, path) = rest.split_first_chunk()?;
        Some(Self { root: Digest(*root), lineage: Lineage(*lineage), path: RelPath::new(path).ok()? })
    }
}

/// How many entries a share had before the first stretch: from before that is published until the replica was brought to a version.
/// Nobody has counted what of those is to go, whatever happens to the tree, the master or the index meanwhile; so it is kept beside
/// the keys, as whose the share is.
#[derive(Debug)]
pub struct Before {
    state: StateDir,
    /// Its name; of a replica in the process of its master, its path.
    share: String,
    entries: Option<u64>,
}

impl Before {
    /// What is kept of a share.
    ///
    /// # Errors
    /// [`StateError`] if it cannot be read.
    pub fn read(of: &Share) -> Result<Self, StateError> {
        let share = match &*of.name {
            "" => escape(of.path.as_os_str().as_encoded_bytes()),
            name => name.to_owned(),
        };
        let state = StateDir::at(&of.state_dir);
        let entries = state.before_stretches(&share)?;
        Ok(Self { state, share, entries })
    }

    /// How many, if a stretch came or is about to, and no version since.
    pub fn entries(&self) -> Option<u64> {
        self.entries
    }

    /// A stretch is about to come to a share with so many.
    pub fn note(&mut self, entries: u64) {
        self.entries.get_or_insert(entries);
    }

    /// Writes it down, durably, if there is something.
    ///
    /// # Errors
    /// [`StateError`] if that cannot be done.
    pub fn write(&self) -> Result<(), StateError> {
        match self.entries {
            entries @ Some(_) if self.state.before_stretches(&self.share)? != entries => {
                self.state.set_before_stretches(&self.share, entries)
            }
            _ => Ok(()),
        }
    }

    /// It was brought to a version: what was to go is gone, or was let pass.
    ///
    /// # Errors
    /// [`StateError`] if what is kept cannot be removed.
    pub fn forget(&mut self) -> Result<(), StateError> {
        match self.entries.take() {
            Some(_) => self.state.set_before_stretches(&self.share, None),
            None => Ok(()),
        }
    }
}
