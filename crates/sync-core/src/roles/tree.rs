//! A whole tree as an index holds it: its hash with changes laid over it, and the children of its directories.

use std::collections::BTreeMap;

use crate::diff::Child;
use crate::hash::Digest;
use crate::index::{Index, IndexError};
use crate::manifest::{DirHashes, Holds, Merkle, Row, TreeHash};
use crate::path::RelPath;

/// What changes make of each path: the entry's hash and whether it is a directory, or nothing.
pub type Overlay<'a> = BTreeMap<&'a RelPath, Option<(Digest, bool)>>;

/// The hash of the tree that the rows make once `changes` are laid over them. Rows that `skip` names, and what is held,
/// stay out of it; so does all beneath a path that goes away or stops being a directory.
///
/// # Errors
/// [`IndexError`] if the rows cannot be read.
pub fn hash_with(
    index: &Index,
    changes: &Overlay<'_>,
    holds: &Holds,
    skip: &dyn Fn(&Row) -> bool,
) -> Result<TreeHash, IndexError> {
    let mut merkle = Merkle::new();
    let mut rows = index.cursor()?;
    let mut changes = changes.iter().filter(|(path, _)| !holds.covers(path)).peekable();
    // The topmost path that is no directory any more: its old rows do not count.
    let mut closed: Option<RelPath> = None;
    while let Some(row) = rows.next()? {
        while let Some((path, wanted)) = changes.next_if(|(path, _)| ***path < row.path) {
            lay(&mut merkle, &mut closed, path, *wanted);
        }
        if let Some((path, wanted)) = changes.next_if(|(path, _)| ***path == row.path) {
            lay(&mut merkle, &mut closed, path, *wanted);
        } else if !skip(&row) && !holds.covers(&row.path) && !closed.as_ref().is_some_and(|c| row.path.is_beneath(c)) {
            merkle.push(&row.path, row.entry.hash(), row.entry.is_dir());
        }
    }
    for (path, wanted) in changes {
        lay(&mut merkle, &mut closed, path, *wanted);
    }
    Ok(merkle.finish())
}

fn lay(merkle: &mut Merkle, closed: &mut Option<RelPath>, path: &RelPath, wanted: Option<(Digest, bool)>) {
    if let Some((hash, is_dir)) = wanted {
        merkle.push(path, hash, is_dir);
    }
    let already = closed.as_ref().is_some_and(|above| path.is_beneath(above));
    if !already && !matches!(wanted, Some((_, true))) {
        *closed = Some(path.clone());
    }
}

/// The children of `dir` with their hashes, and the hash of the directory's own entry; `None` if there is no such
/// directory.
///
/// # Errors
/// [`IndexError`] if the rows cannot be read.
pub fn children(
    index: &Index,
    dirs: &DirHashes,
    dir: &RelPath,
    skip: &dyn Fn(&Row) -> bool,
) -> Result<Option<(Digest, Vec<Child>)>, IndexError> {
    let Some(own) = index.row(dir)?.filter(|row| row.entry.is_dir() && !skip(row)) else { return Ok(None) };
    let child = |row: Row| {
        let own = row.entry.hash();
        let is_dir = row.entry.is_dir();
        let hash = if is_dir { dirs.get(&row.path).copied().unwrap_or(own) } else { own };
        Child { name: row.path.name().into(), hash, own, is_dir }
    };
    let children = index.children(dir)?.into_iter().filter(|row| !skip(row)).map(child).collect();
    Ok(Some((own.entry.hash(), children)))
}
