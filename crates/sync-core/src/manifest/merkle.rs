//! The hash of a whole tree, and of every directory in it, from entries in tree order.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::hash::Digest;
use crate::path::{Key, RelPath};

/// The hash of each directory with everything beneath it. Directories only, so it stays small beside the entries.
///
/// A copy shares what was there before: a tree that is mirrored has a few new hashes with each version, and keeps those of
/// the version before until it is sure.
#[derive(Clone, Debug, Default)]
pub struct DirHashes {
    shared: Arc<HashMap<RelPath, Digest>>,
    /// What is otherwise here: `None` for what went.
    changed: HashMap<RelPath, Option<Digest>>,
}

impl DirHashes {
    /// So many may differ from what copies share, beside one in [`Self::CHANGED_OF`]: a copy takes those with it.
    const CHANGED: usize = 64;
    const CHANGED_OF: usize = 32;

    /// The hash of a directory.
    pub fn get(&self, dir: &RelPath) -> Option<&Digest> {
        match self.changed.get(dir) {
            Some(changed) => changed.as_ref(),
            None => self.shared.get(dir),
        }
    }

    /// Gives a directory a hash.
    pub fn insert(&mut self, dir: RelPath, hash: Digest) {
        self.change(dir, Some(hash));
    }

    /// Forgets a directory.
    pub fn remove(&mut self, dir: &RelPath) {
        if self.get(dir).is_some() {
            self.change(dir.clone(), None);
        }
    }

    /// All directories, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&RelPath, &Digest)> {
        let same = self.shared.iter().filter(|(dir, _)| !self.changed.contains_key(*dir));
        same.chain(self.changed.iter().filter_map(|(dir, hash)| Some((dir, hash.as_ref()?))))
    }

    /// How many there are, or were: what went may count.
    pub fn about(&self) -> usize {
        self.shared.len() + self.changed.len()
    }

    fn change(&mut self, dir: RelPath, hash: Option<Digest>) {
        self.changed.insert(dir, hash);
        if self.changed.len() > Self::CHANGED + self.shared.len() / Self::CHANGED_OF {
            let shared = Arc::make_mut(&mut self.shared);
            for (dir, hash) in self.changed.drain() {
                match hash {
                    Some(hash) => drop(shared.insert(dir, hash)),
                    None => drop(shared.remove(&dir)),
                }
            }
        }
    }
}

impl From<HashMap<RelPath, Digest>> for DirHashes {
    fn from(hashes: HashMap<RelPath, Digest>) -> Self {
        Self { shared: Arc::new(hashes), changed: HashMap::new() }
    }
}

/// The hash of a tree and of its directories. Of no tree at all by default.
#[derive(Clone, Debug)]
pub struct TreeHash {
    /// Names the whole tree.
    pub root: Digest,
    /// The same for each directory below, and for the top under the empty path.
    pub dirs: DirHashes,
}

impl Default for TreeHash {
    fn default() -> Self {
        Self { root: Digest::empty(), dirs: DirHashes::default() }
    }
}

/// Folds entries, given in tree order, into a [`TreeHash`]. Memory: the open directories, and one hash for each.
///
/// A directory's hash covers its own entry and, for each child in order, name and hash. Entries beneath a path that
/// was never given as a directory hang on their nearest given ancestor by the rest of their path, so that a partial
/// tree (its top missing) still has a well-defined hash.
#[derive(Default)]
pub struct Merkle {
    /// Each with the key of its directory.
    open: Vec<(Vec<u8>, DirHasher)>,
    done: HashMap<RelPath, Digest>,
}

impl Merkle {
    /// An empty fold.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next entry by its hash. Paths must come in tree order.
    pub fn push(&mut self, path: &RelPath, entry: Digest, is_dir: bool) {
        self.push_key(Key::new(&path.to_key()), entry, is_dir);
    }

    /// The same for a path by its key, which must be that of one.
    pub fn push_key(&mut self, key: Key<'_>, entry: Digest, is_dir: bool) {
        while self.open.last().is_some_and(|(dir, _)| !key.is_beneath(Key::new(dir))) {
            self.close();
        }
        if is_dir {
            self.open.push((key.as_bytes().to_vec(), DirHasher::new(entry)));
        } else {
            self.add(key, entry);
        }
    }

    /// Closes every directory.
    pub fn finish(mut self) -> TreeHash {
        while !self.open.is_empty() {
            self.close();
        }
        let root = self.done.get(&RelPath::root()).copied().unwrap_or_else(Digest::empty);
        TreeHash { root, dirs: self.done.into() }
    }

    fn close(&mut self) {
        if let Some((dir, hasher)) = self.open.pop() {
            let hash = hasher.finish();
            let key = Key::new(&dir);
            self.add(key, hash);
            // What is no path has no place among them; nobody can ask for it either.
            self.done.extend(key.to_path().ok().map(|path| (path, hash)));
        }
    }

    /// Adds a child to the innermost open directory.
    fn add(&mut self, key: Key<'_>, hash: Digest) {
        if let Some((dir, hasher)) = self.open.last_mut() {
            let start = if dir.is_empty() { 0 } else { dir.len() + 1 };
            let name = &key.as_bytes()[start..];
            match name.contains(&0) {
                // The rest of a path, as that is written.
                true => hasher.add(&name.iter().map(|&b| if b == 0 { b'/' } else { b }).collect::<Vec<_>>(), hash),
                false => hasher.add(name, hash),
            }
        }
    }
}

/// Bytes that are gathered before they are hashed: several chunks of BLAKE3, which hashes them side by side, at a fraction
/// of the time that name after name takes. Not many, because every open directory has its own.
const GATHERED: usize = 4 << 10;

/// The hash of one directory, from the hash of its own entry and those of its children, sorted by name.
pub struct DirHasher {
    hasher: blake3::Hasher,
    gathered: Vec<u8>,
}

impl DirHasher {
    /// A directory whose own entry has this hash.
    pub fn new(own: Digest) -> Self {
        Self { hasher: blake3::Hasher::new(), gathered: own.0.to_vec() }
    }

    /// Adds the next child.
    pub fn add(&mut self, name: &[u8], hash: Digest) {
        lay_out(&mut self.gathered, name, hash);
        if self.gathered.len() >= GATHERED {
            self.hasher.update(&self.gathered);
            self.gathered.clear();
        }
    }

    /// The hash of the directory with these children.
    pub fn finish(mut self) -> Digest {
        self.hasher.update(&self.gathered);
        self.hasher.finalize().into()
    }
}

/// A child as the hash of its directory covers it.
fn lay_out(bytes: &mut Vec<u8>, name: &[u8], hash: Digest) {
    bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&hash.0);
}

/// All bytes that a [`DirHasher`] would hash, kept for a directory of which one child after the other changes: hashing them
/// again takes a fraction of the time that reading what all the other children are does. Some 36 bytes and the name for each
/// child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preimage(Vec<u8>);

const HASH: usize = size_of::<Digest>();

impl Preimage {
    /// Of a directory whose own entry has this hash, without children.
    pub fn new(own: Digest) -> Self {
        Self(own.0.to_vec())
    }

    /// Adds a child that comes after all others.
    pub fn add(&mut self, name: &[u8], hash: Digest) {
        lay_out(&mut self.0, name, hash);
    }

    /// The hash of the directory's own entry.
    pub fn own(&self) -> Digest {
        let mut own = Digest::empty();
        own.0.copy_from_slice(&self.0[..HASH]);
        own
    }

    /// The directory's own entry changed.
    pub fn set_own(&mut self, own: Digest) {
        self.0[..HASH].copy_from_slice(&own.0);
    }

    /// Lays changes over the children: each name, in order, with its hash, or without if it is no child any more.
    pub fn change<'a>(&mut self, changes: impl IntoIterator<Item = (&'a [u8], Option<Digest>)>) {
        let mut at = HASH;
        // What comes and goes is moved in one go: there may be thousands.
        let mut moves = Vec::new();
        for (name, hash) in changes {
            let (place, is_there) = self.find(name, at);
            at = place.start;
            match hash {
                Some(hash) if is_there => self.0[place.end - HASH..place.end].copy_from_slice(&hash.0),
                Some(hash) => moves.push((at..at, Some((name, hash)))),
                None if is_there => moves.push((place, None)),
                None => {}
            }
        }
        if moves.is_empty() {
            return;
        }
        let old = std::mem::take(&mut self.0);
        self.0.reserve_exact(
            old.len() + moves.iter().filter_map(|(_, came)| Some(4 + came.as_ref()?.0.len() + HASH)).sum::<usize>(),
        );
        let mut taken = 0;
        for (place, came) in moves {
            self.0.extend_from_slice(&old[taken..place.start]);
            came.into_iter().for_each(|(name, hash)| self.add(name, hash));
            taken = place.end;
        }
        self.0.extend_from_slice(&old[taken..]);
    }

    /// The hash of the directory.
    pub fn hash(&self) -> Digest {
        Digest::of(&self.0)
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.0.capacity()
    }

    /// Where the child is, or the one before which it belongs; nothing before `from` is looked at.
    fn find(&self, name: &[u8], from: usize) -> (Range<usize>, bool) {
        let mut at = from;
        while let Some(len) = self.0[at..].first_chunk() {
            let start = at + size_of::<u32>();
            let end = start + u32::from_le_bytes(*len) as usize;
            let order = self.0[start..end].cmp(name);
            if order.is_ge() {
                return (at..end + HASH, order.is_eq());
            }
            at = end + HASH;
        }
        (at..at, false)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn tree(entries: &[(&str, bool, u8)]) -> TreeHash {
        let mut merkle = Merkle::new();
        for (path, is_dir, seed) in entries {
            merkle.push(&RelPath::new(*path).unwrap(), Digest::of(&[*seed]), *is_dir);
        }
        merkle.finish()
    }

    #[test]
    fn a_change_moves_its_ancestors_and_nothing_else() {
        let base = [("", true, 0), ("a", true, 1), ("a/x", false, 2), ("b", true, 3), ("b/y", false, 4)];
        let mut edited = base;
        edited[2].2 = 9;
        let (one, two) = (tree(&base), tree(&edited));
        let at = |t: &TreeHash, p: &str| *t.dirs.get(&RelPath::new(p).unwrap()).unwrap();
        assert_ne!(one.root, two.root);
        assert_ne!(at(&one, "a"), at(&two, "a"));
        assert_eq!(at(&one, "b"), at(&two, "b"));
    }

    #[test]
    fn names_and_nesting_count() {
        let flat = tree(&[("", true, 0), ("a", true, 1), ("b", false, 2)]);
        let nested = tree(&[("", true, 0), ("a", true, 1), ("a/b", false, 2)]);
        let renamed = tree(&[("", true, 0), ("a", true, 1), ("c", false, 2)]);
        assert_ne!(flat.root, nested.root);
        assert_ne!(flat.root, renamed.root);
    }

    /// The layout that the protocol tells, also where children are gathered to be hashed.
    #[test]
    fn a_directory_is_hashed_over_its_own_entry_and_each_name_with_its_hash() {
        for count in [0, 1, 50, 100, 1000] {
            let own = Digest::of(b"own");
            let (mut hasher, mut bytes) = (DirHasher::new(own), own.0.to_vec());
            for i in 0..count {
                let (name, hash) = (format!("name{i:04}"), Digest::of(&[i as u8]));
                hasher.add(name.as_bytes(), hash);
                bytes.extend([&8u32.to_le_bytes()[..], name.as_bytes(), &hash.0].concat());
            }
            assert_eq!(hasher.finish(), Digest::of(&bytes), "{count} children");
        }
    }

    #[test]
    fn what_has_no_directory_hangs_on_the_one_above_by_the_rest_of_its_path() {
        let mut hasher = DirHasher::new(Digest::of(&[0]));
        hasher.add(b"a/b", Digest::of(&[1]));
        assert_eq!(tree(&[("", true, 0), ("a/b", false, 1)]).root, hasher.finish());
    }

    fn names() -> impl Strategy<Value = Vec<u8>> {
        // Some begin with others, and one byte of a length may look like the beginning of a name.
        prop_oneof!["[ab]{1,3}", "a{250,255}"].prop_map(String::into_bytes)
    }

    proptest! {
        #[test]
        fn a_preimage_that_was_changed_is_that_of_what_it_became(
            before in prop::collection::btree_map(names(), any::<u8>(), 0..12),
            changes in prop::collection::btree_map(names(), any::<Option<u8>>(), 0..12),
        ) {
            let of = |seed: u8| Digest::of(&[seed]);
            let mut preimage = Preimage::new(of(0));
            before.iter().for_each(|(name, seed)| preimage.add(name, of(*seed)));
            preimage.set_own(of(1));
            preimage.change(changes.iter().map(|(name, seed)| (&**name, seed.map(of))));

            let mut after: BTreeMap<_, _> = before;
            for (name, seed) in changes {
                match seed {
                    Some(seed) => drop(after.insert(name, seed)),
                    None => drop(after.remove(&name)),
                }
            }
            let mut hasher = DirHasher::new(of(1));
            after.iter().for_each(|(name, seed)| hasher.add(name, of(*seed)));
            prop_assert_eq!(preimage.hash(), hasher.finish());
            prop_assert_eq!(preimage.own(), of(1));
        }

        #[test]
        fn copies_of_hashes_differ_in_what_changed_since(
            changes in prop::collection::vec((0..200u8, any::<Option<u8>>(), any::<bool>()), 0..400),
        ) {
            let dir = |i: u8| RelPath::new(format!("d{i}")).unwrap();
            let mut hashes = DirHashes::default();
            let mut expected: BTreeMap<RelPath, Digest> = BTreeMap::new();
            let mut copies = Vec::new();
            for (i, seed, copy) in changes {
                if copy {
                    copies.push((hashes.clone(), expected.clone()));
                }
                match seed.map(|seed| Digest::of(&[seed])) {
                    Some(hash) => {
                        hashes.insert(dir(i), hash);
                        expected.insert(dir(i), hash);
                    }
                    None => {
                        hashes.remove(&dir(i));
                        expected.remove(&dir(i));
                    }
                }
            }
            copies.push((hashes, expected));
            for (hashes, expected) in copies {
                prop_assert_eq!(hashes.iter().map(|(dir, hash)| (dir.clone(), *hash)).collect::<BTreeMap<_, _>>(), expected.clone());
                for i in 0..200 {
                    prop_assert_eq!(hashes.get(&dir(i)), expected.get(&dir(i)));
                }
            }
        }
    }
}
