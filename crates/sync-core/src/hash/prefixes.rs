//! Which contents there are, by the first eight bytes of their digests: some more than 8 bytes for each, of millions.

use foldhash::HashSet;

use super::Digest;

/// Of fewer it does not matter what they take.
const FEW: usize = 1 << 16;

/// So many times fewer are in a table, where each takes twice to three times as much, than in the list.
const FEWER: usize = 16;

/// A set of the first eight bytes of digests. What it has is to be compared whole: it may be another's.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    /// In order. A table would have twice as many places as it needs, and three times as many while it grows.
    sorted: Vec<u64>,
    /// Those that came since.
    recent: HashSet<u64>,
}

impl Prefixes {
    /// Whether it has those of the digest.
    pub fn has(&self, digest: &Digest) -> bool {
        self.has_prefix(digest.prefix())
    }

    fn has_prefix(&self, prefix: u64) -> bool {
        self.recent.contains(&prefix) || self.sorted.binary_search(&prefix).is_ok()
    }

    /// Adds those of a digest.
    pub fn add(&mut self, digest: &Digest) {
        let prefix = digest.prefix();
        if self.sorted.binary_search(&prefix).is_err() {
            self.recent.insert(prefix);
        }
        if self.recent.len() >= FEW.max(self.sorted.len() / FEWER) {
            self.sorted.reserve_exact(self.recent.len());
            self.sorted.extend(self.recent.drain());
            self.sorted.sort_unstable();
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many it has.
    pub fn len(&self) -> usize {
        self.sorted.len() + self.recent.len()
    }
}

impl Extend<Digest> for Prefixes {
    fn extend<T: IntoIterator<Item = Digest>>(&mut self, digests: T) {
        digests.into_iter().for_each(|digest| self.add(&digest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_what_was_added_once_however_many_there_are() {
        let digest = |i: usize| Digest::of(&i.to_le_bytes());
        let mut prefixes = Prefixes::default();
        for count in [10, FEW - 1, FEW, 3 * FEW] {
            // Some again that are in the list by now, or in the table.
            prefixes.extend((0..count).map(digest));
            assert_eq!(prefixes.len(), count);
            assert!((0..count).all(|i| prefixes.has(&digest(i))));
            assert!(!(count..2 * count).any(|i| prefixes.has(&digest(i))));
            assert!(prefixes.sorted.is_sorted() && prefixes.recent.len() <= FEW);
        }
    }
}
