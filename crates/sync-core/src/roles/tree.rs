//! A whole tree as an index holds it: its hash with changes laid over it, and the children of its directories.

use std::collections::{BTreeMap, BTreeSet};

use crate::diff::Child;
use crate::hash::Digest;
use crate::index::{Index, IndexError, Leaf};
use crate::manifest::{DirHasher, DirHashes, Holds, Merkle, TreeHash};
use crate::path::{Key, RelPath};

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
    ignore_extras: bool,
) -> Result<TreeHash, IndexError> {
    if changes.len() > FEW {
        return hash_with(index, changes, &Holds::default(), ignore_extras);
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
            None => own_hash(index, &dir, ignore_extras)?,
        };
        match own {
            Some(own) => {
                let hash = rehash_dir(index, &dir, own, &before.dirs, changes, ignore_extras)?;
                before.dirs.insert(dir, hash);
            }
            None => drop(before.dirs.remove(&dir)),
        }
    }
    before.root = before.dirs.get(&RelPath::root()).copied().unwrap_or_else(Digest::empty);
    Ok(before)
}

/// The hash of one directory with the changes to what is directly in it. `dirs` has those of the directories in it.
fn rehash_dir(
    index: &Index,
    dir: &RelPath,
    own: Digest,
    dirs: &DirHashes,
    changes: &Overlay<'_>,
    ignore_extras: bool,
) -> Result<Digest, IndexError> {
    let mut hasher = DirHasher::new(own);
    let beneath = |path: Option<&RelPath>, hash: Digest| path.and_then(|path| dirs.get(path)).copied().unwrap_or(hash);
    let lay = |hasher: &mut DirHasher, path: &RelPath, wanted: Option<(Digest, bool)>| {
        if let Some((hash, is_dir)) = wanted {
            hasher.add(path.name(), beneath(is_dir.then_some(path), hash));
        }
    };
    let mut changes = changes.iter().filter(|(path, _)| path.is_in(dir)).peekable();
    index.leaves_in(dir, &mut |leaf| {
        while let Some((path, wanted)) = changes.next_if(|(path, _)| leaf.key.cmp_path(path).is_gt()) {
            lay(&mut hasher, path, *wanted);
        }
        if let Some((path, wanted)) = changes.next_if(|(path, _)| leaf.key.cmp_path(path).is_eq()) {
            lay(&mut hasher, path, *wanted);
        } else if !(leaf.extra && ignore_extras) {
            let path = if leaf.is_dir { leaf.key.to_path().ok() } else { None };
            hasher.add(leaf.key.name(), beneath(path.as_ref(), leaf.hash));
        }
    })?;
    changes.for_each(|(path, wanted)| lay(&mut hasher, path, *wanted));
    Ok(hasher.finish())
}

/// The hash of a directory's own entry; `None` if there is no such directory.
fn own_hash(index: &Index, dir: &RelPath, ignore_extras: bool) -> Result<Option<Digest>, IndexError> {
    let row = index.row(dir)?.filter(|row| row.entry.is_dir() && !(row.extra && ignore_extras));
    Ok(row.map(|row| row.entry.hash()))
}

/// The hash of the tree that the rows make once `changes` are laid over them. What is held stays out of it, and so do
/// extras if they are ignored, and all beneath a path that goes away or stops being a directory.
///
/// # Errors
/// [`IndexError`] if the rows cannot be read.
pub fn hash_with(
    index: &Index,
    changes: &Overlay<'_>,
    holds: &Holds,
    ignore_extras: bool,
) -> Result<TreeHash, IndexError> {
    let mut merkle = Merkle::new();
    let mut changes = changes.iter().filter(|(path, _)| !holds.covers(path)).peekable();
    // The key of the topmost path that is no directory any more: its old rows do not count.
    let mut closed: Option<Vec<u8>> = None;
    index.leaves(&mut |leaf| {
        while let Some((path, wanted)) = changes.next_if(|(path, _)| leaf.key.cmp_path(path).is_gt()) {
            lay(&mut merkle, &mut closed, path, *wanted);
        }
        if let Some((path, wanted)) = changes.next_if(|(path, _)| leaf.key.cmp_path(path).is_eq()) {
            lay(&mut merkle, &mut closed, path, *wanted);
            return;
        }
        let is_closed = closed.as_ref().is_some_and(|above| leaf.key.is_beneath(Key::new(above)));
        let is_held = !holds.is_empty() && leaf.key.to_path().is_ok_and(|path| holds.covers(&path));
        if !(is_closed || is_held || (leaf.extra && ignore_extras)) {
            merkle.push_key(leaf.key, leaf.hash, leaf.is_dir);
        }
    })?;
    for (path, wanted) in changes {
        lay(&mut merkle, &mut closed, path, *wanted);
    }
    Ok(merkle.finish())
}

fn lay(merkle: &mut Merkle, closed: &mut Option<Vec<u8>>, path: &RelPath, wanted: Option<(Digest, bool)>) {
    let key = path.to_key();
    if let Some((hash, is_dir)) = wanted {
        merkle.push_key(Key::new(&key), hash, is_dir);
    }
    let already = closed.as_ref().is_some_and(|above| Key::new(&key).is_beneath(Key::new(above)));
    if !already && !matches!(wanted, Some((_, true))) {
        *closed = Some(key);
    }
}

/// The children of `dir` with their hashes, and the hash of the directory's own entry; `None` if there is no such
/// directory. What is held is left out, and so are extras if they are ignored.
///
/// # Errors
/// [`IndexError`] if the rows cannot be read.
pub fn children(
    index: &Index,
    dirs: &DirHashes,
    dir: &RelPath,
    holds: &Holds,
    ignore_extras: bool,
) -> Result<Option<(Digest, Vec<Child>)>, IndexError> {
    let own = own_hash(index, dir, ignore_extras)?.filter(|_| !holds.covers(dir));
    let Some(own) = own else { return Ok(None) };
    let mut children = Vec::new();
    index.leaves_in(dir, &mut |Leaf { key, hash: own, is_dir, extra }| {
        let path = if is_dir || !holds.is_empty() { key.to_path().ok() } else { None };
        if (extra && ignore_extras) || path.as_ref().is_some_and(|path| holds.covers(path)) {
            return;
        }
        let hash = path.filter(|_| is_dir).and_then(|path| dirs.get(&path).copied()).unwrap_or(own);
        children.push(Child { name: key.name().into(), hash, own, is_dir });
    })?;
    Ok(Some((own, children)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::{Entry, Kind, Refused, Row, Time};

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
            let all = hash_with(&index, &Overlay::new(), &Holds::default(), false).unwrap();
            let mut overlay: Overlay<'_> = old.keys().filter(|p| !new.contains_key(*p)).map(|p| (p, None)).collect();
            for (path, row) in new.iter().filter(|(path, row)| old.get(*path) != Some(*row)) {
                overlay.insert(path, Some((row.entry.hash(), row.entry.is_dir())));
            }
            let whole = hash_with(&index, &overlay, &Holds::default(), false).unwrap();
            let quick = rehash(&index, all, &overlay, false).unwrap();
            prop_assert_eq!(whole.root, quick.root);
            for (dir, hash) in whole.dirs {
                prop_assert_eq!(quick.dirs.get(&dir), Some(&hash));
            }
        }
    }
}
