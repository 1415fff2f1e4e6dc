//! A whole tree as an index holds it: its hash with changes laid over it, and the children of its directories.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::diff::Child;
use crate::hash::Digest;
use crate::index::{Index, IndexError, Leaf, Rows};
use crate::manifest::{DirHashes, Holds, Merkle, Preimage, TreeHash};
use crate::path::{Key, RelPath};

/// What a change makes of a path: the entry's hash and whether it is a directory, or nothing.
pub type Wanted = Option<(Digest, bool)>;

/// What changes make of each path.
pub type Overlay<'a> = BTreeMap<&'a RelPath, Wanted>;

/// Up to this many changes, hashing the directories above them is cheaper than a pass over all rows.
const FEW: usize = 64;

/// With more changes it is while they lie in no more than one of so many directories.
const SPREAD: usize = 8;

/// Bytes of children that are remembered of the directories that changed last, twice: at some 50 bytes for each, a directory of
/// 150,000 names is remembered, and one of more is read from the rows at each change to it.
const REMEMBERED: usize = 8 << 20;

/// What a directory takes beside its children.
const EACH: usize = 200;

/// The children of directories that changed not long ago, as their hashes cover them: another change there costs no reading
/// of the rows of all. What is remembered is believed if it led to the hash that the directory has.
#[derive(Debug, Default)]
pub struct Remembered {
    recent: Generation,
    /// Used no more since `recent` was begun.
    older: Generation,
    /// Whether nothing is kept.
    forgets: bool,
}

#[derive(Debug, Default)]
struct Generation {
    dirs: HashMap<RelPath, (Digest, Preimage)>,
    bytes: usize,
}

impl Generation {
    fn take(&mut self, dir: &RelPath) -> Option<(Digest, Preimage)> {
        let taken = self.dirs.remove(dir)?;
        self.bytes -= EACH + taken.1.bytes();
        Some(taken)
    }
}

impl Remembered {
    /// Nothing, and nothing is kept: for changes that are many, after which it would be full of what will not change soon.
    pub fn nothing() -> Self {
        Self { forgets: true, ..Self::default() }
    }

    /// The children of a directory with this hash.
    fn take(&mut self, dir: &RelPath, hash: &Digest) -> Option<Preimage> {
        let taken = self.recent.take(dir).or_else(|| self.older.take(dir));
        taken.filter(|(led_to, _)| led_to == hash).map(|(_, preimage)| preimage)
    }

    fn keep(&mut self, dir: RelPath, hash: Digest, preimage: Preimage) {
        drop(self.recent.take(&dir).or_else(|| self.older.take(&dir)));
        let bytes = EACH + preimage.bytes();
        if bytes > REMEMBERED || self.forgets {
            return;
        }
        if self.recent.bytes + bytes > REMEMBERED {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.bytes += bytes;
        self.recent.dirs.insert(dir, (hash, preimage));
    }
}

/// Whether changes of these paths, in a tree of about so many directories, are few enough, or lie in few enough directories,
/// for [`rehash`] to cost less than [`hash_with`].
pub fn are_few<'a>(paths: impl Iterator<Item = &'a RelPath> + Clone, dirs: usize) -> bool {
    let most = dirs / SPREAD;
    let mut above: HashSet<&[u8]> = HashSet::new();
    paths.clone().nth(FEW).is_none()
        || paths.map(RelPath::parent_bytes).all(|dir| {
            above.insert(dir);
            above.len() <= most
        })
}

/// The same as [`hash_with`] without holds, for a tree whose hash before the changes is known: only the directories above the
/// changes are hashed.
///
/// # Errors
/// [`IndexError`] if the rows cannot be read.
pub fn rehash(
    index: &Index,
    remembered: &mut Remembered,
    mut before: TreeHash,
    changes: &Overlay<'_>,
    ignore_extras: bool,
) -> Result<TreeHash, IndexError> {
    let mut above = dirs_above(changes);
    forget_gone(&mut before.dirs, changes);
    // Deepest first: a directory's hash needs those of the directories in it.
    while let Some((dir, children)) = above.pop_last() {
        let known = before.dirs.get(&dir).and_then(|hash| remembered.take(&dir, hash));
        let own = match (changes.get(&dir), &known) {
            (Some(wanted), _) => wanted.filter(|(_, is_dir)| *is_dir).map(|(own, _)| own),
            (None, Some(known)) => Some(known.own()),
            (None, None) => own_hash(index, &dir, ignore_extras)?,
        };
        let hash = match own {
            Some(own) => {
                let mut preimage = match known {
                    Some(known) => known,
                    None => read_dir(index, &dir, own, &before.dirs, ignore_extras)?,
                };
                preimage.set_own(own);
                preimage.change(children.iter().map(|(name, hash)| (&**name, *hash)));
                let hash = preimage.hash();
                before.dirs.insert(dir.clone(), hash);
                remembered.keep(dir.clone(), hash, preimage);
                Some(hash)
            }
            None => {
                before.dirs.remove(&dir);
                None
            }
        };
        // What is told of it is told of it alone; and if nothing is, and it is no directory, it is what the rows say.
        let is_other = match changes.get(&dir) {
            Some(wanted) => matches!(wanted, Some((_, false))),
            None => hash.is_none(),
        };
        if let (Some(parent), false) = (dir.parent(), is_other) {
            above.entry(parent).or_default().insert(dir.name().into(), hash);
        }
    }
    before.root = before.dirs.get(&RelPath::root()).copied().unwrap_or_else(Digest::empty);
    Ok(before)
}

/// Forgets directories that went, and all beneath them: one that comes in their place has nothing of what they had.
fn forget_gone(dirs: &mut DirHashes, changes: &Overlay<'_>) {
    let mut tops: Vec<&RelPath> = Vec::new();
    let gone = changes.iter().filter(|(_, wanted)| !matches!(wanted, Some((_, true)))).map(|(path, _)| *path);
    for path in gone.filter(|path| dirs.get(path).is_some()) {
        if tops.last().is_none_or(|top| !path.is_beneath(top)) {
            tops.push(path);
        }
    }
    if tops.is_empty() {
        return;
    }
    let goes = |dir: &RelPath| {
        let after = tops.partition_point(|top| *top <= dir);
        after.checked_sub(1).is_some_and(|last| dir == tops[last] || dir.is_beneath(tops[last]))
    };
    let gone: Vec<RelPath> = dirs.iter().map(|(dir, _)| dir).filter(|dir| goes(dir)).cloned().collect();
    gone.iter().for_each(|dir| dirs.remove(dir));
}

/// Names in a directory with what becomes of their hashes.
type Children = BTreeMap<Box<[u8]>, Option<Digest>>;

/// The directories whose hashes change, each with what changes directly in it; of directories in it this is not the last word.
fn dirs_above(changes: &Overlay<'_>) -> BTreeMap<RelPath, Children> {
    let mut above: BTreeMap<RelPath, Children> = BTreeMap::new();
    for (path, wanted) in changes {
        if wanted.is_some_and(|(_, is_dir)| is_dir) {
            above.entry((*path).clone()).or_default();
        }
        let Some(parent) = path.parent() else { continue };
        let mut next = parent.parent();
        let children = above.entry(parent).or_default();
        // Where there are changes already, all above is there, too.
        let is_first = children.is_empty();
        children.insert(path.name().into(), wanted.map(|(hash, _)| hash));
        while let Some(dir) = next.filter(|_| is_first) {
            next = dir.parent();
            above.entry(dir).or_default();
        }
    }
    above
}

/// What the hash of a directory covers, as the rows are; `dirs` has the hashes of the directories in it.
fn read_dir(
    index: &Index,
    dir: &RelPath,
    own: Digest,
    dirs: &DirHashes,
    ignore_extras: bool,
) -> Result<Preimage, IndexError> {
    let mut preimage = Preimage::new(own);
    index.leaves_in(dir, &mut |leaf| {
        if leaf.extra && ignore_extras {
            return;
        }
        let path = if leaf.is_dir { leaf.key.to_path().ok() } else { None };
        let whole = path.and_then(|path| dirs.get(&path)).copied();
        preimage.add(leaf.key.name(), whole.unwrap_or(leaf.hash));
    })?;
    Ok(preimage)
}

/// The hash of a directory's own entry; `None` if there is no such directory.
fn own_hash(rows: &impl Rows, dir: &RelPath, ignore_extras: bool) -> Result<Option<Digest>, IndexError> {
    let row = rows.row(dir)?.filter(|row| row.entry.is_dir() && !(row.extra && ignore_extras));
    Ok(row.map(|row| row.entry.hash()))
}

/// The hash of the tree that the rows make once `changes`, in tree order, are laid over them. What is held stays out of it, and so do
/// extras if they are ignored, and all beneath a path that goes away or stops being a directory.
///
/// # Errors
/// [`IndexError`] if the rows cannot be read.
pub fn hash_with<'a>(
    index: &Index,
    changes: impl Iterator<Item = (&'a RelPath, Wanted)>,
    holds: &Holds,
    ignore_extras: bool,
) -> Result<TreeHash, IndexError> {
    let mut merkle = Merkle::new();
    let mut changes = changes.filter(|(path, _)| !holds.covers(path)).peekable();
    // The key of the topmost path that is no directory any more: its old rows do not count.
    let mut closed: Option<Vec<u8>> = None;
    index.leaves(&mut |leaf| {
        while let Some((path, wanted)) = changes.next_if(|(path, _)| leaf.key.cmp_path(path).is_gt()) {
            lay(&mut merkle, &mut closed, path, wanted);
        }
        if let Some((path, wanted)) = changes.next_if(|(path, _)| leaf.key.cmp_path(path).is_eq()) {
            lay(&mut merkle, &mut closed, path, wanted);
            return;
        }
        let is_closed = closed.as_ref().is_some_and(|above| leaf.key.is_beneath(Key::new(above)));
        let is_held = !holds.is_empty() && leaf.key.to_path().is_ok_and(|path| holds.covers(&path));
        if !(is_closed || is_held || (leaf.extra && ignore_extras)) {
            merkle.push_key(leaf.key, leaf.hash, leaf.is_dir);
        }
    })?;
    for (path, wanted) in changes {
        lay(&mut merkle, &mut closed, path, wanted);
    }
    Ok(merkle.finish())
}

fn lay(merkle: &mut Merkle, closed: &mut Option<Vec<u8>>, path: &RelPath, wanted: Wanted) {
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
    rows: &impl Rows,
    dirs: &DirHashes,
    dir: &RelPath,
    holds: &Holds,
    ignore_extras: bool,
) -> Result<Option<(Digest, Vec<Child>)>, IndexError> {
    let own = own_hash(rows, dir, ignore_extras)?.filter(|_| !holds.covers(dir));
    let Some(own) = own else { return Ok(None) };
    let mut children = Vec::new();
    rows.leaves_in(dir, &mut |Leaf { key, hash: own, is_dir, extra }| {
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

    /// What makes one tree of the other; beneath what goes, nothing is told if `tops` says so.
    fn overlay<'a>(
        old: &'a BTreeMap<RelPath, Row>,
        new: &'a BTreeMap<RelPath, Row>,
        tops: bool,
    ) -> BTreeMap<&'a RelPath, Option<(Digest, bool)>> {
        let mut overlay: Overlay<'_> = new
            .iter()
            .filter(|(path, row)| old.get(*path) != Some(*row))
            .map(|(path, row)| (path, Some((row.entry.hash(), row.entry.is_dir()))))
            .collect();
        let is_dir = |path: &RelPath| new.get(path).is_some_and(|row| row.entry.is_dir());
        let gone = old.keys().filter(|path| !new.contains_key(*path));
        let told = |path: &RelPath| !tops || path.parent().is_none_or(|parent| is_dir(&parent));
        overlay.extend(gone.filter(|path| told(path)).map(|path| (path, None)));
        overlay
    }

    fn write(index: &Index, old: &BTreeMap<RelPath, Row>, new: &BTreeMap<RelPath, Row>) {
        let gone = old.keys().filter(|path| !new.contains_key(*path));
        let written = index.write(0, |writer| -> Result<(), IndexError> {
            gone.clone().try_for_each(|path| writer.delete(path).map(drop))?;
            new.values().try_for_each(|row| writer.upsert(row))
        });
        written.unwrap();
    }

    proptest! {
        /// Version after version, each of which is kept or given up.
        #[test]
        fn rehashing_what_changed_is_hashing_everything(
            first in picks(),
            versions in prop::collection::vec((picks(), any::<bool>(), any::<bool>()), 1..6),
        ) {
            let index = Index::in_memory().unwrap();
            let mut old = tree(&first);
            write(&index, &BTreeMap::new(), &old);
            let mut hash = hash_with(&index, std::iter::empty(), &Holds::default(), false).unwrap();
            let mut remembered = Remembered::default();
            for (new, tops, is_kept) in versions {
                let new = tree(&new);
                let overlay = overlay(&old, &new, tops);
                let whole = hash_with(&index, overlay.iter().map(|(path, wanted)| (*path, *wanted)), &Holds::default(), false).unwrap();
                let quick = rehash(&index, &mut remembered, hash.clone(), &overlay, false).unwrap();
                prop_assert_eq!(whole.root, quick.root);
                let sorted = |tree: &TreeHash| tree.dirs.iter().map(|(d, h)| (d.clone(), *h)).collect::<BTreeMap<_, _>>();
                prop_assert_eq!(sorted(&whole), sorted(&quick));
                if is_kept {
                    write(&index, &old, &new);
                    (old, hash) = (new, quick);
                }
            }
        }
    }

    /// What is held stays in the index, be it in a directory that is a file by now.
    #[test]
    fn a_row_in_no_directory_takes_nothing_with_it() {
        let [root, file, orphan] = ["", "n", "n/x"].map(|path| RelPath::new(path).unwrap());
        let [root, file, orphan] = [row(&root, true, 0), row(&file, false, 1), row(&orphan, false, 2)];
        let index = Index::in_memory().unwrap();
        let rows = [&root, &file, &orphan].map(|row| (row.path.clone(), row.clone()));
        write(&index, &BTreeMap::new(), &BTreeMap::from(rows));
        let before = hash_with(&index, std::iter::empty(), &Holds::default(), false).unwrap();
        let goes: Overlay<'_> = BTreeMap::from([(&orphan.path, None)]);
        let whole = hash_with(&index, goes.iter().map(|(path, to)| (*path, *to)), &Holds::default(), false).unwrap();
        let quick = rehash(&index, &mut Remembered::default(), before, &goes, false).unwrap();
        assert_eq!(whole.root, quick.root);
        assert!(quick.dirs.get(&file.path).is_none());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let dir = |i: usize| RelPath::new(format!("d{i}")).unwrap();
        let children = |count: usize| {
            let mut preimage = Preimage::new(Digest::empty());
            (0..count).for_each(|i| preimage.add(format!("name{i:08}").as_bytes(), Digest::empty()));
            preimage
        };
        let mut remembered = Remembered::default();
        for i in 0..100 {
            remembered.keep(dir(i), Digest::empty(), children(10_000));
            assert!(remembered.recent.bytes <= REMEMBERED && remembered.older.bytes <= REMEMBERED);
        }
        assert!(remembered.take(&dir(99), &Digest::of(b"another")).is_none());
        assert!(remembered.take(&dir(98), &Digest::empty()).is_some());
        assert!(remembered.take(&dir(0), &Digest::empty()).is_none());
        remembered.keep(dir(0), Digest::empty(), children(1_000_000));
        assert!(remembered.take(&dir(0), &Digest::empty()).is_none());
        let held: Vec<_> = (0..100).filter_map(|i| remembered.take(&dir(i), &Digest::empty())).collect();
        assert!(!held.is_empty());
        assert_eq!((remembered.recent.bytes, remembered.older.bytes), (0, 0));
    }
}
