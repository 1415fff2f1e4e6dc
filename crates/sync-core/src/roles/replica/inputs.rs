//! What a plan is decided from: rows, sources of contents, and the root that the changes lead to.

use std::collections::{BTreeMap, HashMap};

use super::open::Opened;
use crate::hash::Digest;
use crate::index::{Encoded, Index, IndexError, RowCursor};
use crate::manifest::{Entry, Holds, Row, TreeHash};
use crate::path::{Key, RelPath};
use crate::plan::{self, Changes, Rename};
use crate::roles::tree::{self, Remembered};

/// From this number of changes on, their rows are found in one pass over all.
const MANY: usize = 5000;

/// Rows that are passed one by one before the next that is wanted is looked up.
const PASSED: u32 = 2000;

/// Up to this many contents are looked for among the rows that change before all rows are read.
const FEW: usize = 1000;

/// The rows of every changed path, and of all beneath one that goes away or stops being a directory. `known` are some that
/// were read already, in tree order; there may be others among them.
pub fn touched_rows(index: &Index, changes: &Changes, known: Vec<Row>) -> Result<BTreeMap<RelPath, Row>, IndexError> {
    if changes.len() >= MANY {
        return touched_of_all(index, changes, known);
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

/// The same in one pass over all rows that lie between, which is cheaper than looking up so many. Only what is not known is
/// decoded.
fn touched_of_all(index: &Index, changes: &Changes, known: Vec<Row>) -> Result<BTreeMap<RelPath, Row>, IndexError> {
    let mut found = Vec::new();
    let mut wanted = changes.iter().peekable();
    let mut known = known.into_iter().peekable();
    let mut closed: Option<Vec<u8>> = None;
    let mut passed = 0;
    let mut cursor = match changes.keys().next() {
        Some(first) => index.cursor_from(first)?,
        None => RowCursor::empty(),
    };
    while let Some(Encoded { key, .. }) = cursor.peek()? {
        while wanted.next_if(|(path, _)| key.cmp_path(path).is_gt()).is_some() {}
        let change = wanted.next_if(|(path, _)| key.cmp_path(path).is_eq());
        let inside = closed.as_ref().is_some_and(|top| key.is_beneath(Key::new(top)));
        if !inside && change.is_none() {
            let Some((next, _)) = wanted.peek() else { break };
            passed += 1;
            if passed < PASSED {
                cursor.pass();
            } else {
                // There may be millions between, and looking one up costs as much as some hundred of them.
                (cursor, passed) = (index.cursor_from(next)?, 0);
            }
            continue;
        }
        passed = 0;
        while known.next_if(|row| key.cmp_path(&row.path).is_gt()).is_some() {}
        let row = match known.next_if(|row| key.cmp_path(&row.path).is_eq()) {
            Some(row) => {
                cursor.pass();
                row
            }
            None => match cursor.next()? {
                Some(row) => row,
                None => break,
            },
        };
        if !inside && change.is_some_and(|(_, new)| closes(new.as_deref(), Some(&row))) {
            closed = Some(row.path.to_key());
        }
        found.push((row.path.clone(), row));
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
    // What moved has its old name among the rows that change.
    let add = |needed: &mut HashMap<Digest, Vec<RelPath>>, row: &Row| {
        if let (Some((_, digest)), Some(_)) = (row.entry.content(), row.tuple)
            && let Some(paths) = needed.get_mut(&digest)
        {
            paths.push(row.path.clone());
        }
    };
    if needed.len() <= FEW {
        rows.values().for_each(|row| add(&mut needed, row));
        if needed.values().all(|paths| !paths.is_empty()) {
            return Ok((needed, true));
        }
        needed.values_mut().for_each(Vec::clear);
    }
    let mut cursor = index.cursor()?;
    while let Some(row) = cursor.next()? {
        add(&mut needed, &row);
    }
    let complete = needed.values().all(|paths| !paths.is_empty());
    Ok((needed, complete))
}

/// The hash of the tree that the changes lead to.
pub fn tree_after(opened: &Opened, changes: &Changes, holds: &Holds) -> Result<TreeHash, IndexError> {
    if changes.is_empty() && holds.is_empty() {
        return Ok(opened.tree.clone());
    }
    let overlay = changes.iter().map(|(path, new)| (path, new.as_ref().map(|e| (e.hash(), e.is_dir()))));
    let (index, before, ignore_extras) = (&opened.index, &opened.tree, opened.policy.no_delete);
    match holds.is_empty() && tree::are_few(changes.keys(), before.dirs.about()) {
        true => {
            let overlay: tree::Overlay<'_> = overlay.collect();
            if overlay.len() > MANY {
                tree::rehash(index, &mut Remembered::nothing(), before.clone(), &overlay, ignore_extras)
            } else {
                tree::rehash(index, &mut opened.remembered(), before.clone(), &overlay, ignore_extras)
            }
        }
        false => tree::hash_with(index, overlay, holds, ignore_extras),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::{Kind, Refused, Time};

    /// A tree in which `a`, `a/b` and `c` are directories.
    const PATHS: [&str; 10] = ["", "a", "a/b", "a/b/c", "a/b!", "a/d", "a-", "b", "c", "c/d"];

    fn entry(path: &str) -> Entry {
        let kind = if matches!(path, "" | "a" | "a/b" | "c") { Kind::Dir } else { Kind::Fifo };
        Entry { kind, mode: 0o600, uid: 0, gid: 0, mtime: Time::default(), xattrs: Box::default(), link: None }
    }

    fn row(path: &str) -> Row {
        let (tuple, refused) = (None, Refused::default());
        let path_of = RelPath::new(path).unwrap();
        Row { path: path_of, entry: entry(path), tuple, proven: true, refused, extra: false, mount: false }
    }

    proptest! {
        /// With few changes rows are looked up, with many they are read in one pass, and some are known before.
        #[test]
        fn the_rows_of_changes_are_the_same_however_they_are_read(
            wanted in prop::collection::btree_map(0..PATHS.len() + 2, 0..3u8, 0..8),
            known in prop::collection::btree_set(0..PATHS.len(), 0..6),
        ) {
            let index = Index::in_memory().unwrap();
            index.write(0, |writer| PATHS.iter().try_for_each(|path| writer.upsert(&row(path)))).unwrap();
            let paths: Vec<&str> = PATHS.into_iter().chain(["a/b/new", "new"]).collect();
            let changes: Changes = wanted.iter().map(|(i, how)| {
                let new = match how {
                    0 => None,
                    1 => Some(Box::new(entry(paths[*i]))),
                    _ => Some(Box::new(entry("b"))),
                };
                (RelPath::new(paths[*i]).unwrap(), new)
            }).collect();
            let known: Vec<Row> = known.iter().map(|i| row(PATHS[*i])).collect();
            let looked_up = touched_rows(&index, &changes, Vec::new()).unwrap();
            prop_assert_eq!(&touched_of_all(&index, &changes, Vec::new()).unwrap(), &looked_up);
            prop_assert_eq!(&touched_of_all(&index, &changes, known).unwrap(), &looked_up);
        }
    }
}
