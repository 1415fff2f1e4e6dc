//! What those who follow a mirror are told of.

use std::sync::Arc;

use super::difference::Difference;
use super::source::Decided;
use crate::manifest::VersionId;

/// The newest version, which is in the master's index, and how it differs from the one before.
pub struct News {
    /// The version.
    pub decided: Arc<Decided>,
    /// From the one before, unless that is better read from the index.
    pub difference: Option<Arc<Difference>>,
}

/// Most changes that are kept in memory for those who follow, until the next version; those of more, which are read from
/// the index, would take tens of megabytes.
const MOST_KEPT: usize = 50_000;

impl News {
    /// Of a version that is in the index.
    pub fn new(decided: Arc<Decided>, difference: &Arc<Difference>) -> Self {
        // Only the difference knows what moved.
        let is_kept = difference.len() <= MOST_KEPT || difference.has_moves();
        Self { decided, difference: is_kept.then(|| Arc::clone(difference)) }
    }

    /// The version's identity.
    pub fn id(&self) -> VersionId {
        self.decided.id
    }
}
