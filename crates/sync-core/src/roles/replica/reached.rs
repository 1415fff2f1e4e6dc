//! How far a tree has come that is told in stretches.

use crate::hash::Digest;
use crate::index::{Commit, Index, IndexError};
use crate::manifest::Lineage;
use crate::path::RelPath;

/// Under this key an index keeps it: root, lineage, the number of entries that were there before, and the bytes of the path.
const KEY: &str = "replica.stretches";

/// What a replica has that stands at no version yet, because stretches are to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The root of what was there then.
    pub root: Digest,
    /// Whose versions the stretches were of: that master knows what the others hold.
    pub lineage: Lineage,
    /// How many entries were there before the first: nobody has counted what of those is to go.
    pub before: u64,
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
        let encode = |this: &Self| {
            [&this.root.0[..], &this.lineage.0, &this.before.to_le_bytes(), this.path.as_bytes()].concat()
        };
        let value = this.map(encode);
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
        let (lineage, rest) = rest.split_first_chunk()?;
        let (before, path) = rest.split_first_chunk()?;
        let before = u64::from_le_bytes(*before);
        Some(Self { root: Digest(*root), lineage: Lineage(*lineage), before, path: RelPath::new(path).ok()? })
    }
}
