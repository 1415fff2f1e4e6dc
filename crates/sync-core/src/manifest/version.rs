//! Versions: what one published manifest is called, and how ids chain.

use serde::{Deserialize, Serialize};

use super::entry::Time;
use crate::hash::Digest;

/// 128 random bits minted with an index: numbers compare only within one lineage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lineage(pub [u8; 16]);

/// The identity of a version: BLAKE3(lineage, number, parent id, root).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VersionId(pub Digest);

/// One published manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Which index minted it.
    pub lineage: Lineage,
    /// 1, 2, 3, … for people.
    pub number: u64,
    /// The version before, or the id a new lineage grew from.
    pub parent: Option<VersionId>,
    /// The hash of the whole tree.
    pub root: Digest,
    /// When it was committed, by the master's clock.
    pub time: Time,
}

impl Version {
    /// The id that everything compares: two versions numbered 10 of two lineages never match.
    pub fn id(&self) -> VersionId {
        let mut h = blake3::Hasher::new();
        h.update(&self.lineage.0);
        h.update(&self.number.to_le_bytes());
        match self.parent {
            None => h.update(&[0; 32]),
            Some(VersionId(parent)) => h.update(&parent.0),
        };
        h.update(&self.root.0);
        VersionId(h.finalize().into())
    }
}
