//! What a plan is decided from: rows, sources of contents, and the root that the changes lead to.

use std::collections::{BTreeMap, HashMap};

use super::open::Opened;
use crate::hash::Digest;
use crate::index::{Index, IndexError};
use crate::manifest::{Entry, Holds, Row};
use crate::path::RelPath;
use crate::plan::{self, Changes, Rename};
use crate::roles::tree;

/// From this number of changes on, their rows are found in one pass over all.
const MANY: usize = 5000;

/// The rows of every changed path, and of all beneath one that goes away or stops being a directory.
pub fn touched_rows(index: &Index, changes: &Changes) -> Result<BTreeMap<RelPath, Row>, IndexError> {
    if changes.len() >= MANY {
        return touched_of_all(index, changes);
    }
    let found = rows_at(index, changes.keys())?;
    let mut rows: BTreeMap<RelPath, Row> = found.into_iter().map(|row| (row.path.clone(), row)).collect();
    let mut closed: Option<RelPath> = None;
    let mut beneath = Vec::new();
    for (path, wanted, row) in plan::beside(changes, &rows) {
        let inside = closed.as_ref().is_some_and(|top| path.is_beneath(top));
        if !inside && closes(wanted, row) {
            let mut cursor = index.cursor_beneath(path)?;
            while let Some(row) = cursor.next()? {
                beneath.push(row);
            }
            closed = Some(path.clone());
        }
    }
    rows.extend(beneath.into_iter().map(|row| (row.path.clone(), row)));
    Ok(rows)
}

/// The rows that there are of these paths, which are in tree order, as the rows are then.
pub fn rows_at<'a>(index: &Index, paths: impl ExactSizeIterator<Item = &'a RelPath>) -> Result<Vec<Row>, IndexError> {
    if paths.len() < MANY {
        let paths: Vec<RelPath> = paths.cloned().collect();
        return Ok(index.rows_for(&paths)?.into_iter().flatten().collect());
    }
    // One pass over all rows is cheaper than looking up so many.
    let mut rows = Vec::new();
    let mut wanted = paths.peekable();
    let mut cursor = index.cursor()?;
    while let Some(row) = cursor.next()? {
        while wanted.next_if(|path| **path < row.path).is_some() {}
        if wanted.next_if(|path| **path == row.path).is_some() {
            rows.push(row);
        }
    }
    Ok(rows)
}

/// The same in one pass over all rows, which is cheaper than looking up so many.
fn touched_of_all(index: &Index, changes: &Changes) -> Result<BTreeMap<RelPath, Row>, IndexError> {
    let mut found = Vec::new();
    let mut wanted = changes.iter().peekable();
    let mut closed: Option<RelPath> = None;
    let mut cursor = index.cursor()?;
    while let Some(row) = cursor.next()? {
        while wanted.next_if(|(path, _)| **path < row.path).is_some() {}
        let change = wanted.next_if(|(path, _)| **path == row.path);
        let inside = closed.as_ref().is_some_and(|top| row.path.is_beneath(top));
        if !inside && change.is_some_and(|(_, new)| closes(new.as_deref(), Some(&row))) {
            closed = Some(row.path.clone());
        }
        if inside || change.is_some() {
            found.push((row.path.clone(), row));
        }
    }
    Ok(found.into_iter().collect())
}

/// Whether a directory goes away or becomes something else.
fn closes(wanted: Option<&Entry>, row: Option<&Row>) -> bool {
    !wanted.is_some_and(Entry::is_dir) && row.is_some_and(|row| row.entry.is_dir())
}

/// For every content that is needed and not staged: the files of the replica that hold it. And whether there is one for
/// each. What is renamed with its directory needs none.
pub fn sources(
    index: &Index,
    changes: &Changes,
    rows: &BTreeMap<RelPath, Row>,
    renames: &[Rename],
    staged: &dyn Fn(&Digest) -> bool,
) -> Result<(HashMap<Digest, Vec<RelPath>>, bool), IndexError> {
    let mut needed: HashMap<Digest, Vec<RelPath>> = HashMap::new();
    let mut renames = renames.iter().peekable();
    let mut renamed: Option<&RelPath> = None;
    for (path, wanted, row) in plan::beside(changes, rows) {
        renamed = renames.next_if(|rename| rename.to == *path).map(|rename| &rename.to).or(renamed);
        if renamed.is_some_and(|top| path.is_beneath(top)) {
            continue;
        }
        let Some(new) = wanted.as_ref().filter(|new| new.needs_content()) else { continue };
        let Some((_, digest)) = new.content() else { continue };
        let there = row
            .is_some_and(|row| row.tuple.is_some() && row.entry.content() == new.content() && row.entry.link.is_none());
        if !there && !staged(&digest) {
            needed.entry(digest).or_default();
        }
    }
    if needed.is_empty() {
        return Ok((needed, true));
    }
    let mut cursor = index.cursor()?;
    while let Some(row) = cursor.next()? {
        if let (Some((_, digest)), Some(_)) = (row.entry.content(), row.tuple)
            && let Some(paths) = needed.get_mut(&digest)
        {
            paths.push(row.path);
        }
    }
    let complete = needed.values().all(|paths| !paths.is_empty());
    Ok((needed, complete))
}

/// The hash of the tree that the changes lead to.
pub fn root_after(opened: &Opened, changes: &Changes, holds: &Holds) -> Result<Digest, IndexError> {
    if changes.is_empty() && holds.is_empty() {
        return Ok(opened.tree.root);
    }
    let overlay: tree::Overlay<'_> =
        changes.iter().map(|(path, new)| (path, new.as_ref().map(|e| (e.hash(), e.is_dir())))).collect();
    let ignore_extras = opened.policy.no_delete;
    match holds.is_empty() {
        true => Ok(tree::rehash(&opened.index, opened.tree.clone(), &overlay, ignore_extras)?.root),
        false => Ok(tree::hash_with(&opened.index, &overlay, holds, ignore_extras)?.root),
    }
}
