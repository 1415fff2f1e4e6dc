//! How far a tree has come that is told in stretches.

use crate::hash::Digest;
use crate::index::{Commit, Index, IndexError};
use crate::manifest::Lineage;
use crate::path::RelPath;

/// Under this key an index keeps it: root, lineage, and the bytes of the path.
const KEY: &str = "replica.reached";

/// Under this key it keeps how many entries were there before the first stretch, from before that is published until the replica is
/// at a version: nobody has counted what of those is to go, whatever happens to the tree or the master meanwhile.
const BEFORE: &str = "replica.before-stretches";

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

    /// Forgets it, and what was there before, with whatever else is written.
    ///
    /// # Errors
    /// [`IndexError`] if that cannot be done.
    pub fn forget(commit: &mut Commit<'_>) -> Result<(), IndexError> {
        commit.set_meta(KEY, None)?;
        commit.set_meta(BEFORE, None)
    }

    /// How many entries were there before the first stretch, if there was one and the replica is at no version since.
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be read.
    pub fn read_before(index: &Index) -> Result<Option<u64>, IndexError> {
        let value = index.meta(BEFORE)?;
        Ok(value.and_then(|value| value.try_into().ok()).map(u64::from_le_bytes))
    }

    /// Writes it down, with whatever else is written.
    ///
    /// # Errors
    /// [`IndexError`] if that cannot be done.
    pub fn write_before(entries: u64, commit: &mut Commit<'_>) -> Result<(), IndexError> {
        commit.set_meta(BEFORE, Some(&entries.to_le_bytes()))
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let (root, rest) = value.split_first_chunk()?;
        let (lineage, path) = rest.split_first_chunk()?;
        Some(Self { root: Digest(*root), lineage: Lineage(*lineage), path: RelPath::new(path).ok()? })
    }
}
