//! The hash of a whole tree, and of every directory in it, from entries in tree order.

use std::collections::HashMap;

use crate::hash::Digest;
use crate::path::RelPath;

/// The hash of each directory with everything beneath it. Directories only, so it stays small beside the entries.
pub type DirHashes = HashMap<RelPath, Digest>;

/// The hash of a tree and of its directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeHash {
    /// Names the whole tree.
    pub root: Digest,
    /// The same for each directory below, and for the top under the empty path.
    pub dirs: DirHashes,
}

/// Folds entries, given in tree order, into a [`TreeHash`]. Memory: the open directories and one hash each.
///
/// A directory's hash covers its own entry and, for each child in order, name and hash. Entries beneath a path that
/// was never given as a directory hang on their nearest given ancestor by the rest of their path, so that a partial
/// tree (its top missing) still has a well-defined hash.
#[derive(Default)]
pub struct Merkle {
    open: Vec<(RelPath, blake3::Hasher)>,
    done: DirHashes,
}

impl Merkle {
    /// An empty fold.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next entry by its hash. Paths must come in tree order.
    pub fn push(&mut self, path: &RelPath, entry: Digest, is_dir: bool) {
        while self.open.last().is_some_and(|(dir, _)| !path.is_beneath(dir)) {
            self.close();
        }
        if is_dir {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&entry.0);
            self.open.push((path.clone(), hasher));
        } else {
            self.add(path, entry);
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
            let hash = Digest::from(hasher.finalize());
            self.add(&dir, hash);
            self.done.insert(dir, hash);
        }
    }

    /// Adds a child to the innermost open directory.
    fn add(&mut self, path: &RelPath, hash: Digest) {
        if let Some((dir, hasher)) = self.open.last_mut() {
            let start = if dir.is_root() { 0 } else { dir.as_bytes().len() + 1 };
            add_child(hasher, &path.as_bytes()[start..], hash);
        }
    }
}

/// The hash of one directory from the hash of its own entry and those of its children, sorted by name.
pub fn dir_hash<'a>(own: Digest, children: impl IntoIterator<Item = (&'a [u8], Digest)>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&own.0);
    for (name, hash) in children {
        add_child(&mut hasher, name, hash);
    }
    hasher.finalize().into()
}

fn add_child(hasher: &mut blake3::Hasher, name: &[u8], hash: Digest) {
    hasher.update(&(name.len() as u32).to_le_bytes());
    hasher.update(name);
    hasher.update(&hash.0);
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
}
