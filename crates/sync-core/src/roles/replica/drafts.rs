//! Contents that are begun before they are known.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::basis::{MOST_GROWTH, OldFile};
use crate::delta::CopyRange;
use crate::fs::{BasisFile, Draft, Drafted, PART_MIN, Root, Staging};
use crate::hash::Digest;
use crate::index::Index;
use crate::path::RelPath;
use crate::wire::{self, Offered};

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
    /// The number of the content that it is for, once that was asked for.
    content: Option<u64>,
    draft: Draft,
}

impl Drafts {
    /// Copies what a master told, if the old file is what it takes it for. What goes wrong here costs time and nothing
    /// else: the content is sent all the same.
    pub fn take(&self, root: &Root, index: &Index, staging: &Arc<Staging>, told: wire::Draft) {
        let wire::Draft { ranges, path, size, old } = told;
        let mut drafts = self.known();
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
            let Some(tuple) = row.tuple.filter(|tuple| is_old && is_worthwhile(size, tuple.size, staging)) else {
                return;
            };
            let begun = BasisFile::open(root, &path, &tuple).and_then(|basis| staging.draft(&path, size, basis));
            match begun {
                Ok(draft) => drafts.push(Known { old: (path.clone(), tuple), digest: old, size, content: None, draft }),
                Err(error) => tracing::debug!(%error, "nothing can be drafted"),
            }
        }
        if let Some(known) = drafts.iter_mut().find(|known| same(known)) {
            ranges.into_iter().for_each(|range: CopyRange| known.draft.copy(range));
        }
    }

    /// The content of that file is about to be asked for, to be made of `old`. What was drafted there is kept for it, if
    /// that is of its size and from the same old file, and else goes.
    pub fn claim(&self, seq: u64, file: &Offered, old: Option<&OldFile>) {
        self.known().retain_mut(|known| {
            let is_there = known.old.0 == file.path && known.content.is_none();
            let fits = known.size == file.size && old == Some(&known.old);
            if is_there && fits {
                known.content = Some(seq);
            }
            fits || !is_there
        });
    }

    /// The content at that path is not asked for, or was before: then what is kept for it stays.
    pub fn forget(&self, path: &RelPath) {
        self.known().retain(|known| known.old.0 != *path || known.content.is_some());
    }

    /// That content does not come.
    pub fn give_up(&self, seq: u64) {
        self.known().retain(|known| known.content != Some(seq));
    }

    /// What was drafted of that content, once all that was told is copied. Blocks.
    pub fn finish(&self, seq: u64) -> Option<Drafted> {
        let known = {
            let mut drafts = self.known();
            let i = drafts.iter().position(|known| known.content == Some(seq))?;
            drafts.swap_remove(i)
        };
        known.draft.finish()
    }

    /// Forgets what nobody came for.
    pub fn clear(&self) {
        self.known().clear();
    }

    fn known(&self) -> MutexGuard<'_, Vec<Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a content of that size, of which a master says that it has much of the old file, is to be begun.
fn is_worthwhile(size: u64, old: u64, staging: &Staging) -> bool {
    // After an interrupted push most of what is read again is at hand in part, and that leaves no use for a draft.
    size > PART_MIN && size / old.max(1) <= MOST_GROWTH && !staging.has_parts()
}
