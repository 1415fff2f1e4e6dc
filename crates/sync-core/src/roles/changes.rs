//! What changed in a source from one pushed version to another, as far as its index can tell.
//!
//! An index keeps one row for each path, with the version in which the entry changed last, and tombstones. So it knows for
//! certain what is the same in two versions: what did not change since the older one. It does not know what an entry was
//! before, nor whether it was there; nor what a path was like at a version after which it changed once more.

use std::path::Path;

use crate::fs::{StateDir, place};
use crate::index::{Change, Index, IndexError};
use crate::path::{RelPath, escape};
use crate::roles::log;

/// The changes from one version to another.
#[derive(Clone, Debug)]
pub struct Changes {
    /// The older version.
    pub from: u64,
    /// The newer one.
    pub to: u64,
    /// In tree order. What is not among them is the same in both.
    pub changes: Vec<ChangedPath>,
}

/// A path that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedPath {
    /// Which.
    pub path: RelPath,
    /// Whether it is a directory now.
    pub is_dir: bool,
    /// The version in which it changed last.
    pub version: u64,
    /// What is known of it.
    pub known: Known,
}

/// What is known of a path that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It was added, or changed, after the older version, and is the same since.
    AddedOrChanged,
    /// It was removed after the older version. It may have been added after that as well.
    Removed,
    /// It changed after the newer version, and nobody knows whether it did before.
    No,
}

/// Why changes cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// An index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The directory is not there.
    #[error("cannot find {0}: {1}")]
    Place(String, std::io::Error),
    /// There are no versions of it.
    #[error("{0} was never pushed with this state directory: it has no versions")]
    NeverPushed(String),
    /// There is no such version.
    #[error("{0} has no version {1}; `synccli log {0}` lists them")]
    NoVersion(String, u64),
    /// Too many paths were removed since.
    #[error("version {0} is too long ago: what was removed soon after it has been forgotten")]
    Forgotten(u64),
}

/// What changed in `source` from version `from` to version `to`, or to the last one.
///
/// # Errors
/// [`ChangesError`].
pub fn between(state_dir: &Path, source: &Path, from: u64, to: Option<u64>) -> Result<Changes, ChangesError> {
    let name = escape(source.as_os_str().as_encoded_bytes());
    let index_of = |tree: &Path| Index::scratch_copy(&StateDir::at(state_dir).source_index_dir(tree));
    let resolved = place::resolve(source);
    let mut index = resolved.as_deref().ok().map(index_of).transpose()?.map(|opened| opened.index);
    let mut versions = index.as_ref().map(Index::versions).transpose()?.unwrap_or_default();
    if versions.is_empty()
        && let Some(tree) = log::tree_of_share(state_dir, source.as_os_str())
    {
        let named = index_of(&tree)?.index;
        versions = named.versions()?;
        index = Some(named);
    }
    let Some(index) = index else {
        return Err(resolved.err().map_or(ChangesError::NeverPushed(name.clone()), |e| ChangesError::Place(name, e)));
    };
    let Some(last) = versions.last() else { return Err(ChangesError::NeverPushed(name)) };
    let to = to.unwrap_or(last.version.number);
    let is_there = |number: u64| versions.iter().any(|published| published.version.number == number);
    if let Some(absent) = [from, to].into_iter().find(|number| !is_there(*number)) {
        return Err(ChangesError::NoVersion(name, absent));
    }
    let mut cursor = index.changes_since(from)?.ok_or(ChangesError::Forgotten(from))?;
    let mut changes = Vec::new();
    if from == to {
        return Ok(Changes { from, to, changes });
    }
    while let Some((change, version)) = cursor.next_numbered()? {
        let (path, is_dir, known) = match change {
            Change::Upsert(row) => (row.path, row.entry.is_dir(), Known::AddedOrChanged),
            Change::Delete(path) => (path, false, Known::Removed),
        };
        let known = if version > to { Known::No } else { known };
        changes.push(ChangedPath { path, is_dir, version, known });
    }
    Ok(Changes { from, to, changes })
}
