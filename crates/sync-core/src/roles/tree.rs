//! A whole tree as an index holds it: its hash with changes laid over it, and the children of its directories.

use std::collections::{BTreeMap, BTreeSet};

use crate::diff::Child;
use crate::hash::Digest;
use crate::index::{Index, IndexError, Leaf};
use crate::manifest::{DirHashes, Holds, Merkle, Row, TreeHash, dir_hash};
use crate::path::RelPath;

/// What changes make of each path: the entry's hash and whether it is a directory, or nothing.
pub type Overlay<'a> = BTreeMap<&'a RelPath, Option<(Digest, bool)>>;

/// Up to this many changes, hashing the directories above them is cheaper than a pass over all rows.
const FEW: usize = 64;

/// The same as [`hash_with`] without holds, for a tree whose hash before the changes is known: with few changes only
/// the directories above them are hashed.
///
/// # Errors
/// [`IndexError`] if the rows cannot be read.
pub fn rehash(
    index: &Index,
    mut before: TreeHash,
    changes: &Overlay<'_>,
    skip: &dyn Fn(&Leaf) -> bool,
) -> Result<TreeHash, IndexError> {
    if changes.len() > FEW {
        return hash_with(index, changes, &Holds::default(), skip);
    }
    let mut above: BTreeSet<RelPath> = BTreeSet::new();
    for (path, wanted) in changes {
        above.extend(wanted.filter(|(_, is_dir)| *is_dir).map(|_| (*path).clone()));
        let mut at = path.parent();
        while let Some(dir) = at {
            at = dir.parent();
            above.insert(dir);
        }
    }
    // Deepest first: a directory's hash needs those of the directories in it.
    for dir in above.into_iter().rev() {
        let own = match changes.get(&dir) {
            Some(wanted) => wanted.filter(|(_, is_dir)| *is_dir).map(|(own, _)| own),
            None => index.row(&dir)?.map(leaf).filter(|dir| dir.is_dir && !skip(dir)).map(|dir| dir.hash),
        };
        let Some(own) = own else {
            before.dirs.remove(&dir);
            continue;
        };
        let mut children: BTreeMap<RelPath, Digest> = BTreeMap::new();
        let unchanged =
            index.leaves_in(&dir)?.into_iter().filter(|leaf| !skip(leaf) && !changes.contains_key(&leaf.path));
        children.extend(unchanged.map(|leaf| {
            let beneath = if leaf.is_dir { before.dirs.get(&leaf.path).copied() } else { None };
            (leaf.path, beneath.unwrap_or(leaf.hash))
        }));
        for (path, wanted) in changes.iter().filter(|(path, _)| path.parent().as_ref() == Some(&dir)) {
            if let Some((hash, is_dir)) = wanted {
                let beneath = if *is_dir { before.dirs.get(*path).copied() } else { None };
                children.insert((*path).clone(), beneath.unwrap_or(*hash));
            }
        }
        let hash = dir_hash(own, children.iter().map(|(path, hash)| (path.name(), *hash)));
        before.dirs.insert(dir, hash);
    }
    before.root = before.dirs.get(&RelPath::root()).copied().unwrap_or_else(Digest::empty);
    Ok(before)
}

/// The hash of the tree that the rows make once `changes` are laid over them. Rows that `skip` names, and what is held,
/// stay out of it; so does all beneath a path that goes away or stops being a directory.
///
/// # Errors
/// [`IndexError`] if the rows cannot be read.
pub fn hash_with(
    index: &Index,
    changes: &Overlay<'_>,
    holds: &Holds,
    skip: &dyn Fn(&Leaf) -> bool,
) -> Result<TreeHash, IndexError> {
    let mut merkle = Merkle::new();
    let mut changes = changes.iter().filter(|(path, _)| !holds.covers(path)).peekable();
    // The topmost path that is no directory any more: its old rows do not count.
    let mut closed: Option<RelPath> = None;
    index.leaves(&mut |leaf| {
        while let Some((path, wanted)) = changes.next_if(|(path, _)| ***path < leaf.path) {
            lay(&mut merkle, &mut closed, path, *wanted);
        }
        if let Some((path, wanted)) = changes.next_if(|(path, _)| ***path == leaf.path) {
            lay(&mut merkle, &mut closed, path, *wanted);
        } else if !skip(&leaf) && !holds.covers(&leaf.path) && !closed.as_ref().is_some_and(|c| leaf.path.is_beneath(c))
        {
            merkle.push(&leaf.path, leaf.hash, leaf.is_dir);
        }
    })?;
    for (path, wanted) in changes {
        lay(&mut merkle, &mut closed, path, *wanted);
    }
    Ok(merkle.finish())
}

fn leaf(row: Row) -> Leaf {
    Leaf { hash: row.entry.hash(), is_dir: row.entry.is_dir(), extra: row.extra, path: row.path }
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
    skip: &dyn Fn(&Leaf) -> bool,
) -> Result<Option<(Digest, Vec<Child>)>, IndexError> {
    let Some(own) = index.row(dir)?.map(leaf).filter(|own| own.is_dir && !skip(own)) else { return Ok(None) };
    let child = |leaf: Leaf| {
        let Leaf { path, hash: own, is_dir, .. } = leaf;
        let hash = if is_dir { dirs.get(&path).copied().unwrap_or(own) } else { own };
        Child { name: path.name().into(), hash, own, is_dir }
    };
    let children = index.leaves_in(dir)?.into_iter().filter(|leaf| !skip(leaf)).map(child).collect();
    Ok(Some((own.hash, children)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::{Entry, Kind, Refused, Time};

    fn row(path: &RelPath, is_dir: bool, seed: u32) -> Row {
        let kind = if is_dir { Kind::Dir } else { Kind::File { size: 1, digest: Digest::of(&seed.to_le_bytes()) } };
        let entry = Entry {
            kind,
            mode: seed & 0o777,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Box::default(),
            link: None,
        };
        Row {
            path: path.clone(),
            entry,
            tuple: None,
            proven: true,
            refused: Refused::default(),
            extra: false,
            mount: false,
        }
    }

    /// A tree of some of 3 * 3 * 3 names; what has something beneath it is a directory.
    fn tree(picks: &BTreeMap<(u8, u8, u8), u32>) -> BTreeMap<RelPath, Row> {
        let mut rows = BTreeMap::from([(RelPath::root(), row(&RelPath::root(), true, 0))]);
        for ((a, b, c), seed) in picks {
            let names = [Some(*a), (*b > 0).then_some(*b), (*b > 0 && *c > 0).then_some(*c)];
            let mut path = RelPath::root();
            for (i, name) in names.iter().flatten().enumerate() {
                path = path.join(format!("n{name}").as_bytes()).unwrap();
                let leaf = i + 1 == names.iter().flatten().count();
                let made = row(&path, !leaf, *seed);
                let old = rows.entry(path.clone()).or_insert_with(|| made.clone());
                if !leaf && !old.entry.is_dir() {
                    *old = made;
                }
            }
        }
        rows
    }

    fn picks() -> impl Strategy<Value = BTreeMap<(u8, u8, u8), u32>> {
        proptest::collection::btree_map((0..3u8, 0..3u8, 0..3u8), 1..5u32, 0..12)
    }

    proptest! {
        #[test]
        fn rehashing_what_changed_is_hashing_everything(old in picks(), new in picks()) {
            let (old, new) = (tree(&old), tree(&new));
            let index = Index::in_memory().unwrap();
            index.write(0, |writer| old.values().try_for_each(|row| writer.upsert(row))).unwrap();
            let all = hash_with(&index, &Overlay::new(), &Holds::default(), &|_| false).unwrap();
            let mut overlay: Overlay<'_> = old.keys().filter(|p| !new.contains_key(*p)).map(|p| (p, None)).collect();
            for (path, row) in new.iter().filter(|(path, row)| old.get(*path) != Some(*row)) {
                overlay.insert(path, Some((row.entry.hash(), row.entry.is_dir())));
            }
            let whole = hash_with(&index, &overlay, &Holds::default(), &|_| false).unwrap();
            let quick = rehash(&index, all, &overlay, &|_| false).unwrap();
            prop_assert_eq!(whole.root, quick.root);
            for (dir, hash) in whole.dirs {
                prop_assert_eq!(quick.dirs.get(&dir), Some(&hash));
            }
        }
    }
}
