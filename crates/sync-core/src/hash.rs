//! BLAKE3 digests: the identity of content, entries, directories, trees and versions.

mod prefixes;

use std::fmt;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};

pub use prefixes::Prefixes;

/// A 256-bit BLAKE3 digest (<https://github.com/BLAKE3-team/BLAKE3-specs>).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of no bytes at all: every empty file has it.
    pub fn empty() -> Self {
        Self::of(b"")
    }

    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The first eight bytes as a number: a compact key for look-ups whose hits are then compared whole.
    pub fn prefix(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Lower-case hexadecimal, 64 characters.
    pub fn to_hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// The inverse of [`Digest::to_hex`]; `None` for anything else.
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER.decode(text).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", data_encoding::HEXLOWER.encode(&self.0[..6]))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// Bytes of a content that are hashed apart: a power of two, so that the hash tree has a node for just them.
pub const BLOCK: u64 = 256 << 10;

/// What a block adds to the digest of the content that it is of.
#[derive(Clone, Copy, Debug)]
pub struct BlockHash(ChainingValue);

impl BlockHash {
    /// Of the `i`th block of a content, counted from 0. `bytes` are [`BLOCK`], or at least one if it is the last.
    pub fn of(i: u64, bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(i.saturating_mul(BLOCK)).update(bytes);
        Self(hasher.finalize_non_root())
    }

    /// Of each block of `bytes`, which begin with the `first`th.
    pub fn of_each(first: u64, bytes: &[u8]) -> Vec<Self> {
        (first..).zip(bytes.chunks(BLOCK as usize)).map(|(i, block)| Self::of(i, block)).collect()
    }
}

/// The digest of a content whose blocks were hashed apart, by several threads say: the root of BLAKE3's tree over them
/// (section 2.1 of its specification).
#[derive(Debug, Default)]
pub struct BlockTree {
    /// Whole subtrees to the left of the last block, ever smaller ones.
    left: Vec<ChainingValue>,
    /// Blocks in them.
    blocks: u64,
    /// No node with what is to its left before it is known whether more follows: that may be the root.
    last: Option<ChainingValue>,
}

impl BlockTree {
    /// Takes the next block, in order.
    pub fn push(&mut self, block: BlockHash) {
        let Some(mut node) = self.last.replace(block.0) else { return };
        self.blocks += 1;
        // As many subtrees are complete now as a binary counter carries.
        for _ in 0..self.blocks.trailing_zeros() {
            if let Some(left) = self.left.pop() {
                node = merge_subtrees_non_root(&left, &node, Mode::Hash);
            }
        }
        self.left.push(node);
    }

    /// The digest of all blocks; `None` if there were fewer than two, which have no node above them.
    pub fn finish(self) -> Option<Digest> {
        let mut left = self.left.into_iter();
        let first = left.next()?;
        let right = left.rev().fold(self.last?, |right, left| merge_subtrees_non_root(&left, &right, Mode::Hash));
        Some(merge_subtrees_root(&first, &right, Mode::Hash).into())
    }
}

/// Hashes a content from its beginning to its end, some of its blocks by what was hashed of them elsewhere.
#[derive(Debug, Default)]
pub struct ContentHasher {
    tree: BlockTree,
    /// Blocks in it.
    blocks: u64,
    /// The block under way: not ended before more comes, since it may be the only one.
    current: blake3::Hasher,
    /// Its bytes.
    len: u64,
}

impl ContentHasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.end_block();
            let room = usize::try_from(BLOCK - self.len).unwrap_or(usize::MAX);
            let (now, after) = rest.split_at(rest.len().min(room));
            self.current.update(now);
            self.len += now.len() as u64;
            rest = after;
        }
    }

    /// Takes the next [`BLOCK`] bytes, which have that hash. To be called where a block begins, and then it is `true`;
    /// else nothing is taken.
    #[must_use]
    pub fn take_block(&mut self, hash: BlockHash) -> bool {
        self.end_block();
        let begins = self.len == 0;
        if begins {
            self.begin_block(hash);
        }
        begins
    }

    /// Begins the next block if this one is whole.
    fn end_block(&mut self) {
        if self.len == BLOCK {
            self.begin_block(BlockHash(self.current.finalize_non_root()));
        }
    }

    fn begin_block(&mut self, before: BlockHash) {
        self.tree.push(before);
        self.blocks += 1;
        self.len = 0;
        self.current = blake3::Hasher::new();
        self.current.set_input_offset(self.blocks.saturating_mul(BLOCK));
    }

    /// The digest of all that came; `None` for a single block that was taken by its hash, which does not tell it.
    pub fn finish(mut self) -> Option<Digest> {
        if self.blocks == 0 {
            return Some(self.current.finalize().into());
        }
        if self.len > 0 {
            self.tree.push(BlockHash(self.current.finalize_non_root()));
        }
        self.tree.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_hashed_in_any_slices_and_by_its_blocks() {
        let block = BLOCK as usize;
        let content = crate::chunk::noise(3 * block + 77, 2);
        for size in [0, 1, block - 1, block, block + 1, 2 * block, 3 * block, 3 * block + 77] {
            for slice in [1000, block, block + 1, 4 * block] {
                let mut hasher = ContentHasher::default();
                content[..size].chunks(slice).for_each(|bytes| hasher.update(bytes));
                assert_eq!(hasher.finish(), Some(Digest::of(&content[..size])), "{size} by {slice}");
            }
        }
        let mut hasher = ContentHasher::default();
        let hash = |i: usize| BlockHash::of(i as u64, &content[i * block..][..block]);
        hasher.update(&content[..block]);
        assert!(hasher.take_block(hash(1)));
        hasher.update(&content[2 * block..3 * block - 1]);
        assert!(!hasher.take_block(hash(2)));
        hasher.update(&content[3 * block - 1..]);
        assert_eq!(hasher.finish(), Some(Digest::of(&content)));
        let mut hasher = ContentHasher::default();
        assert!(hasher.take_block(hash(0)) && hasher.take_block(hash(1)));
        assert_eq!(hasher.finish(), Some(Digest::of(&content[..2 * block])));
        let mut hasher = ContentHasher::default();
        assert!(hasher.take_block(hash(0)));
        assert_eq!(hasher.finish(), None);
    }

    #[test]
    fn blocks_have_the_digest_of_the_whole() {
        let block = BLOCK as usize;
        let content = crate::chunk::noise(9 * block + 1, 8);
        for size in (2..=9).flat_map(|n| [n * block - 1023, n * block - 1, n * block, n * block + 1]) {
            let mut tree = BlockTree::default();
            (0..).zip(content[..size].chunks(block)).for_each(|(i, bytes)| tree.push(BlockHash::of(i, bytes)));
            assert_eq!(tree.finish(), Some(Digest::of(&content[..size])), "{size}");
        }
    }

    #[test]
    fn a_single_block_is_no_tree() {
        let mut tree = BlockTree::default();
        assert_eq!(BlockTree::default().finish(), None);
        tree.push(BlockHash::of(0, b"x"));
        assert_eq!(tree.finish(), None);
    }
}
