//! What the disk holds after publishing, on its way into the index.

use std::collections::BTreeMap;

use crate::fs::{Observed, Ready};
use crate::index::{Commit, IndexError};
use crate::manifest::{Refused, Row};
use crate::path::RelPath;
use crate::plan::Step;

/// Turns observations into rows.
pub struct Ledger<'a> {
    /// In tree order.
    steps: &'a [Step],
    /// Paths whose row gets another mark, whatever else happens to it: whether it is an extra.
    marks: BTreeMap<RelPath, bool>,
    refused: [u64; 6],
}

impl<'a> Ledger<'a> {
    /// A ledger for the outcome of these steps.
    pub fn new(steps: &'a [Step], marks: BTreeMap<RelPath, bool>) -> Self {
        Self { steps, marks, refused: [0; 6] }
    }

    /// Writes the row of one path.
    pub fn write(&mut self, commit: &mut Commit<'_>, seen: Observed) -> Result<(), IndexError> {
        let step = self.steps.binary_search_by(|step| step.path.cmp(&seen.path)).ok().map(|i| &self.steps[i]);
        let (entry, extra) = match step {
            Some(step) => (step.new.as_deref().cloned(), false),
            None => commit.row(&seen.path)?.map_or((None, false), |row| (Some(row.entry), row.extra)),
        };
        let mark = self.marks.remove(&seen.path);
        let Some(entry) = entry else { return commit.delete(&seen.path).map(drop) };
        if step.is_some() {
            for (count, (kind, _)) in self.refused.iter_mut().zip(Refused::KINDS) {
                *count += u64::from(seen.refused.has(kind));
            }
        }
        let Observed { path, tuple, refused, proven, mount } = seen;
        commit.upsert(&Row { path, entry, tuple, proven, refused, extra: mark.unwrap_or(extra), mount })
    }

    /// Writes the row of a step that has its place in a new directory.
    pub fn write_ready(&mut self, commit: &mut Commit<'_>, ready: Ready) -> Result<(), IndexError> {
        let step = &self.steps[ready.step];
        let Some(entry) = step.new.as_deref().cloned() else { return Ok(()) };
        let (tuple, refused) = (Some(ready.tuple), Refused::default());
        commit.upsert(&Row { path: step.path.clone(), entry, tuple, proven: true, refused, extra: false, mount: false })
    }

    /// Writes the marks of what was not observed. Returns how many steps met each kind of refusal.
    pub fn finish(self, commit: &mut Commit<'_>) -> Result<[u64; 6], IndexError> {
        for (path, extra) in self.marks {
            if let Some(row) = commit.row(&path)? {
                commit.upsert(&Row { extra, ..row })?;
            }
        }
        Ok(self.refused)
    }
}
