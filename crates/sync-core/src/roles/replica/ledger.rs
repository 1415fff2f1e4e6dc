//! What the disk holds after publishing, on its way into the index.

use std::collections::BTreeMap;

use crate::fs::{Observed, Publisher, Ready};
use crate::index::{Commit, IndexError};
use crate::manifest::{Refused, Row};
use crate::path::RelPath;
use crate::plan::{MovedDir, Step};

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
            self.count(seen.refused);
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

    /// The rows of a directory that was renamed are written already: those of its old name go, or those of its new name
    /// if it was not.
    pub fn move_dirs(
        &mut self,
        commit: &mut Commit<'_>,
        moved: &[MovedDir],
        publisher: &Publisher,
    ) -> Result<(), IndexError> {
        for dir in moved {
            if !publisher.has_renamed(dir) {
                commit.delete_beneath(&dir.to)?;
                continue;
            }
            commit.delete_beneath(&dir.from)?;
            // The directory itself was observed.
            for moved in dir.entries.iter().skip(1) {
                self.count(moved.old.refused);
            }
        }
        Ok(())
    }

    fn count(&mut self, refused: Refused) {
        for (count, (kind, _)) in self.refused.iter_mut().zip(Refused::KINDS) {
            *count += u64::from(refused.has(kind));
        }
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
