//! What a version changes, told some at a time: from memory while its difference is at hand, else from the index as it was at
//! that version, so that neither a tree nor a week's changes are ever held as a whole.

use std::collections::VecDeque;
use std::sync::Arc;

use super::difference::Difference;
use crate::index::{Change as IndexedChange, ChangeCursor, IndexError, RowCursor, Rows as _, Snapshot};
use crate::manifest::{Row, VersionId};
use crate::path::RelPath;
use crate::session::{Load, Told};
use crate::wire::{Change, Stand};

/// Changes in one message.
const CHANGES_PER_MESSAGE: usize = 512;

/// Changes that are being told.
pub enum Telling {
    /// From the version before, from that place on.
    Difference(Arc<Difference>, usize),
    /// Some entries, then all of a range.
    Rows(VecDeque<Row>, RowCursor),
    /// One entry.
    Entry(Option<Row>),
    /// What came and went since a version.
    Since {
        /// What is left of it.
        changes: ChangeCursor,
        /// The last that is gone: what it held goes with it.
        gone: Option<RelPath>,
    },
}

/// Why a load cannot be answered.
pub enum Unknown {
    /// The history does not have that version.
    Version(VersionId),
    /// What changed since is forgotten or damaged, or is not all: the trees themselves tell what differs.
    Changes,
}

impl Telling {
    /// The answer to a load from the rows of a version, for a replica that stands there.
    ///
    /// # Errors
    /// [`IndexError`] if they cannot be read.
    pub fn from_rows(rows: &Snapshot, load: &Load, stand: Option<&Stand>) -> Result<Result<Self, Unknown>, IndexError> {
        Ok(Ok(match load {
            Load::Entry(path) => Self::Entry(rows.row(path)?),
            Load::Subtree(top) => Self::Rows(VecDeque::new(), rows.cursor_beneath(top)?),
            Load::Behind(path) => {
                // What it lies in may be a directory only since.
                let top = RelPath::root();
                let above = path.way_from(&top).filter(|dir| dir != path).filter_map(|dir| rows.row(&dir).transpose());
                Self::Rows(above.collect::<Result<_, _>>()?, rows.cursor_from(path)?)
            }
            Load::Since(version) => {
                let Some(published) = rows.version(*version)? else { return Ok(Err(Unknown::Version(*version))) };
                // It was at that version, and somebody changed its tree: what it lacks is not what changed since.
                if stand.is_some_and(|stand| stand.root != published.version.root) {
                    return Ok(Err(Unknown::Changes));
                }
                match rows.changes_since(published.version.number) {
                    Ok(Some(changes)) => Self::Since { changes, gone: None },
                    Ok(None) | Err(IndexError::Damaged(_)) => return Ok(Err(Unknown::Changes)),
                    Err(error) => return Err(error),
                }
            }
        }))
    }

    /// The next changes, and whether they are the last.
    ///
    /// # Errors
    /// [`IndexError`] if rows cannot be read.
    pub fn next(&mut self) -> Result<(Told, bool), IndexError> {
        let mut told = Vec::new();
        match self {
            Self::Difference(difference, from) => {
                let (told, next) = difference.changes(*from, CHANGES_PER_MESSAGE);
                *from = next.unwrap_or(*from);
                return Ok((told, next.is_none()));
            }
            Self::Entry(row) => told.extend(row.take().map(upsert)),
            Self::Rows(some, rows) => {
                while told.len() < CHANGES_PER_MESSAGE {
                    let next = some.pop_front().map_or_else(|| rows.next(), |row| Ok(Some(row)))?;
                    let Some(row) = next else { break };
                    told.push(upsert(row));
                }
            }
            Self::Since { changes, gone } => {
                while told.len() < CHANGES_PER_MESSAGE {
                    told.push(match changes.next()? {
                        None => break,
                        Some(IndexedChange::Upsert(row)) => upsert(row),
                        Some(IndexedChange::Delete(path)) => {
                            if gone.as_ref().is_some_and(|top| path.is_beneath(top)) {
                                continue;
                            }
                            *gone = Some(path.clone());
                            Change { path, entry: None }
                        }
                    });
                }
            }
        }
        let is_last = told.len() < CHANGES_PER_MESSAGE;
        Ok((told.into(), is_last))
    }
}

fn upsert(row: Row) -> Change {
    Change { path: row.path, entry: Some(row.entry) }
}
