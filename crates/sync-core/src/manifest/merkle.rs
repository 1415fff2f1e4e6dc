//! The hash of a whole tree, and of every directory in it, from entries in tree order.

use std::collections::HashMap;

use crate::hash::Digest;
use crate::path::{Key, RelPath};

/// The hash of each directory with everything beneath it. Directories only, so it stays small beside the entries.
pub type DirHashes = HashMap<RelPath, Digest>;

/// The hash of a tree and of its directories. Of no tree at all by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeHash {
    /// Names the whole tree.
    pub root: Digest,
    /// The same for each directory below, and for the top under the empty path.
    pub dirs: DirHashes,
}

impl Default for TreeHash {
    fn default() -> Self {
        Self { root: Digest::empty(), dirs: DirHashes::new() }
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
    done: DirHashes,
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
        TreeHash { root, dirs: self.done }
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
        self.gathered.extend_from_slice(&(name.len() as u32).to_le_bytes());
        self.gathered.extend_from_slice(name);
        self.gathered.extend_from_slice(&hash.0);
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

#[cfg(test)]
mod tests {
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
        let at = |t: &TreeHash, p: &str| t.dirs[&RelPath::new(p).unwrap()];
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
}
