//! Contents that are begun before they are known.

use std::sync::{Arc, Mutex, PoisonError};

use super::basis::OldFile;
use crate::delta::CopyRange;
use crate::fs::{BasisFile, Draft, Drafted, Root, Staging};
use crate::hash::Digest;
use crate::index::Index;
use crate::wire;

/// Drafts that are worked on at once; what is told of others is forgotten. Each takes two threads and a few MiB.
const MOST: usize = 4;

/// The drafts of a session.
#[derive(Debug, Default)]
pub struct Drafts(Mutex<Vec<Known>>);

#[derive(Debug)]
struct Known {
    old: OldFile,
    /// What the old file is.
    digest: Digest,
    size: u64,
    draft: Draft,
}

impl Drafts {
    /// Copies what a master told, if the old file is what it takes it for. What goes wrong here costs time and nothing
    /// else: the content is sent all the same.
    pub fn take(&self, root: &Root, index: &Index, staging: &Arc<Staging>, told: wire::Draft) {
        let wire::Draft { ranges, path, size, old } = told;
        let mut drafts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &Known| known.old.0 == path && known.size == size && known.digest == old;
        // The same path again, and something else there: the file changed while it was read.
        drafts.retain(|known| known.old.0 != path || same(known));
        if !drafts.iter().any(same) && drafts.len() < MOST {
            let Ok(Some(row)) =
                index.rows_for(std::slice::from_ref(&path)).map(|rows| rows.into_iter().next().flatten())
            else {
                return;
            };
            let is_old = row.entry.content().is_some_and(|(_, digest)| digest == old);
            let Some(tuple) = row.tuple.filter(|_| is_old) else { return };
            let begun = BasisFile::open(root, &path, &tuple).and_then(|basis| staging.draft(&path, size, basis));
            match begun {
                Ok(draft) => drafts.push(Known { old: (path.clone(), tuple), digest: old, size, draft }),
                Err(error) => tracing::debug!(%error, "nothing can be drafted"),
            }
        }
        if let Some(known) = drafts.iter_mut().find(|known| same(known)) {
            ranges.into_iter().for_each(|range: CopyRange| known.draft.copy(range));
        }
    }

    /// What was drafted of a content of `size` bytes from that file, once all that was told is copied. Blocks.
    pub fn finish(&self, old: &OldFile, size: u64) -> Option<Drafted> {
        let known = {
            let mut drafts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let i = drafts.iter().position(|known| known.old.0 == old.0)?;
            drafts.swap_remove(i)
        };
        if known.old == *old && known.size == size { known.draft.finish() } else { None }
    }

    /// Forgets what nobody came for.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
