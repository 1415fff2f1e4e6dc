//! What a content that is still being read will copy from an old one.

use serde::{Deserialize, Serialize};

use super::Basis;
use crate::chunk::{ChunkRef, covered};
use crate::hash::BLOCK;

/// A range of a content that is in an old file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRange {
    /// Where in the content.
    pub at: u64,
    /// Where in the old file.
    pub from: u64,
    /// Bytes.
    pub len: u64,
}

/// Bytes that are told at once, about: first, so that the copying begins, and then, each time twice as many, at most.
const AT_ONCE: (u64, u64) = (32 << 20, 128 << 20);

/// Finds, chunk by chunk, the ranges of a content that are in an old one, and gives those that hold a whole [`BLOCK`]:
/// the same that [`super::delta`] copies, but for where they are cut. Nothing is given as long as the content may be
/// just what it was.
pub struct Copies {
    basis: Basis<[u8; 16]>,
    next: usize,
    at: u64,
    differs: bool,
    /// Grows as long as what comes goes on in the old content.
    last: Option<CopyRange>,
    /// In order, with how many bytes they are.
    found: Vec<CopyRange>,
    bytes: u64,
    at_once: u64,
}

impl Copies {
    /// For a content of `size` bytes, and the chunks of the old one.
    pub fn new(size: u64, old: &[ChunkRef]) -> Self {
        let basis = Basis::of_chunks(old);
        let differs = size != covered(old);
        Self { basis, next: 0, at: 0, differs, last: None, found: Vec::new(), bytes: 0, at_once: AT_ONCE.0 }
    }

    /// Takes the next chunk of the content; returns what is to be told now, in order.
    pub fn push(&mut self, chunk: &ChunkRef) -> Vec<CopyRange> {
        let len = u64::from(chunk.len);
        match self.basis.find(chunk.digest, chunk.len, self.next) {
            Some(i) => {
                self.differs |= i != self.next;
                self.next = i + 1;
                self.copy(CopyRange { at: self.at, from: self.basis.parts[i].offset, len });
            }
            None => {
                self.differs = true;
                self.next += 1;
                self.end_range();
            }
        }
        self.at += len;
        if self.differs && self.bytes + self.last.map_or(0, |range| range.len) >= self.at_once {
            self.tell()
        } else {
            Vec::new()
        }
    }

    fn copy(&mut self, range: CopyRange) {
        match &mut self.last {
            Some(last) if last.at + last.len == range.at && last.from + last.len == range.from => last.len += range.len,
            _ => {
                self.end_range();
                self.last = Some(range);
            }
        }
    }

    fn end_range(&mut self) {
        if let Some(range) = self.last.take().filter(CopyRange::has_block) {
            self.bytes += range.len;
            self.found.push(range);
        }
    }

    /// Gives what was found, up to the last block that is whole.
    fn tell(&mut self) -> Vec<CopyRange> {
        if let Some(CopyRange { at, from, len }) = self.last {
            let whole = ((at + len) / BLOCK * BLOCK).saturating_sub(at);
            self.last = Some(CopyRange { at, from, len: whole });
            self.end_range();
            self.last = Some(CopyRange { at: at + whole, from: from + whole, len: len - whole });
        }
        self.bytes = 0;
        self.at_once = (2 * self.at_once).min(AT_ONCE.1);
        std::mem::take(&mut self.found)
    }

    /// The content has ended; returns what is still to be told.
    pub fn finish(mut self) -> Vec<CopyRange> {
        self.end_range();
        if self.differs { self.found } else { Vec::new() }
    }
}

impl CopyRange {
    /// The blocks of the content that lie in it whole: their numbers, and where each begins in the old file.
    pub fn blocks(self) -> impl Iterator<Item = (u64, u64)> {
        self.pieces(1).map(|block| (block.at / BLOCK, block.from))
    }

    /// The same, so many blocks at a time; there may be fewer at the end.
    pub fn pieces(self, blocks: u64) -> impl Iterator<Item = CopyRange> {
        let Self { at, from, len } = self;
        let (first, end) = (at.div_ceil(BLOCK), at.saturating_add(len) / BLOCK);
        let most = blocks.max(1);
        (0..end.saturating_sub(first).div_ceil(most)).map(move |n| {
            let i = first + n * most;
            let begins = i * BLOCK;
            CopyRange { at: begins, from: from.saturating_add(begins - at), len: most.min(end - i) * BLOCK }
        })
    }

    /// Whether there is any.
    pub fn has_block(&self) -> bool {
        self.blocks().next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chunk of as many kibibytes.
    fn chunk(id: u8, kib: u32) -> ChunkRef {
        ChunkRef { digest: [id; 16], len: kib << 10 }
    }

    fn told(size: u64, new: &[ChunkRef], old: &[ChunkRef]) -> Vec<CopyRange> {
        let mut copies = Copies::new(size, old);
        let mut told: Vec<_> = new.iter().flat_map(|chunk| copies.push(chunk)).collect();
        told.extend(copies.finish());
        told
    }

    fn range(at: u64, from: u64, len: u64) -> CopyRange {
        CopyRange { at: at << 10, from: from << 10, len: len << 10 }
    }

    #[test]
    fn what_may_be_the_same_is_not_told() {
        let old: Vec<_> = (0..200).map(|id| chunk(id, 1024)).collect();
        assert_eq!(told(200 << 20, &old, &old), []);
        // But with the first difference, be it the last chunk.
        let mut new = old.clone();
        new[199] = chunk(255, 1024);
        assert_eq!(told(200 << 20, &new, &old), [range(0, 0, 199 << 10)]);
    }

    #[test]
    fn ranges_are_told_as_they_are_found() {
        let old: Vec<_> = (0..200).map(|id| chunk(id, 1000)).collect();
        let mut new = old.clone();
        new.insert(0, chunk(255, 1));
        let told = told((200_000 << 10) + 1024, &new, &old);
        // Cut where blocks end, which is where nothing is lost.
        assert_eq!(told[0], range(1, 0, 32 * 1024 - 1));
        assert!(told[..2].iter().all(|range| (range.at + range.len).is_multiple_of(BLOCK)));
        assert!((64 << 20..66 << 20).contains(&told[1].len));
        let mut at = 1;
        for CopyRange { at: begin, from, len } in &told {
            assert_eq!((begin >> 10, from >> 10), (at, at - 1));
            at += len >> 10;
        }
        assert_eq!(at, 200_001);
    }

    #[test]
    fn short_ranges_are_of_no_use() {
        let old: Vec<_> = (0..100).map(|id| chunk(id, 100)).collect();
        let new: Vec<_> = (0..100).rev().map(|id| chunk(id, 100)).collect();
        assert_eq!(told(10_000 << 10, &new, &old), []);
    }

    #[test]
    fn blocks_lie_in_their_range() {
        let blocks = |at, from, len| CopyRange { at, from, len }.blocks().collect::<Vec<_>>();
        assert_eq!(blocks(0, 5, 2 * BLOCK), [(0, 5), (1, 5 + BLOCK)]);
        assert_eq!(blocks(1, 0, 2 * BLOCK), [(1, BLOCK - 1)]);
        assert_eq!(blocks(1, 0, BLOCK), []);
        assert_eq!(blocks(u64::MAX, u64::MAX, u64::MAX).len(), 0);

        for (at, from, len) in [(0, 5, 9 * BLOCK), (1, 0, 9 * BLOCK), (3, 7, BLOCK), (BLOCK - 1, 0, 4 * BLOCK + 1)] {
            let range = CopyRange { at, from, len };
            for most in [0, 1, 2, 4, 100] {
                let pieces: Vec<_> = range.pieces(most).collect();
                let lies = |piece: &CopyRange| piece.at.is_multiple_of(BLOCK) && piece.len <= most.max(1) * BLOCK;
                assert!(pieces.iter().all(lies), "{range:?} by {most}: {pieces:?}");
                let blocks: Vec<_> = pieces.into_iter().flat_map(CopyRange::blocks).collect();
                assert_eq!(blocks, range.blocks().collect::<Vec<_>>(), "{range:?} by {most}");
            }
        }
        let wild = CopyRange { at: u64::MAX, from: u64::MAX, len: u64::MAX };
        assert_eq!(wild.pieces(u64::MAX).count(), 0);
    }
}
