//! A changed file as instructions: which ranges the replica copies from an old file of its own, and which are sent.
//!
//! Pure comparison of chunk lists that were made with equal [`Chunking`](crate::chunk::Chunking), then of the pieces of
//! what does not match. Nothing here reads content, and nothing here is proof: a false match of truncated digests gives a wrong file, which fails
//! against its own digest and is sent whole.

mod copies;
mod gaps;
pub mod patch;

use std::hash::Hash;

use foldhash::HashMap;
use serde::{Deserialize, Serialize};

pub use copies::{Copies, CopyRange};
pub use gaps::{Gap, MOST_DESCRIBED_TIMES, gaps, refine};

use crate::chunk::ChunkRef;

/// The next bytes of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// They are in the basis.
    Copy {
        /// Where in the basis.
        offset: u64,
        /// Bytes, at least 1.
        len: u64,
    },
    /// They have to be sent.
    Literal {
        /// Where in the target.
        offset: u64,
        /// Bytes, at least 1.
        len: u64,
    },
}

impl Op {
    /// How many bytes of the target this gives.
    pub fn len(self) -> u64 {
        match self {
            Self::Copy { len, .. } | Self::Literal { len, .. } => len,
        }
    }

    /// Whether this gives nothing; [`delta`] makes no such operation.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// The chunks, or pieces, of what a replica has, to be searched by what identifies them.
#[derive(Debug)]
pub struct Basis<K> {
    parts: Vec<Part<K>>,
    places: HashMap<(K, u32), u32>,
}

#[derive(Clone, Copy, Debug)]
struct Part<K> {
    key: K,
    len: u32,
    offset: u64,
}

impl<K: Copy + Eq + Hash> Basis<K> {
    /// Parts with their offsets and lengths; at most `u32::MAX` of them.
    pub fn new(parts: impl IntoIterator<Item = (K, u64, u32)>) -> Self {
        let parts: Vec<_> = parts.into_iter().map(|(key, offset, len)| Part { key, len, offset }).collect();
        let mut places = HashMap::with_capacity_and_hasher(parts.len(), Default::default());
        for (i, part) in (0..).zip(&parts) {
            places.entry((part.key, part.len)).or_insert(i);
        }
        Self { parts, places }
    }

    /// Where such a part is: at `next` if that is one, else at its first place.
    fn find(&self, key: K, len: u32, next: usize) -> Option<usize> {
        let goes_on = self.parts.get(next).is_some_and(|part| part.key == key && part.len == len);
        if goes_on { Some(next) } else { self.places.get(&(key, len)).map(|i| *i as usize) }
    }
}

impl Basis<[u8; 16]> {
    /// A whole file.
    pub fn of_chunks(chunks: &[ChunkRef]) -> Self {
        let mut at = 0;
        Self::new(chunks.iter().map(|chunk| {
            let offset = at;
            at += u64::from(chunk.len);
            (chunk.digest, offset, chunk.len)
        }))
    }
}

/// Finds part after part of a target in a basis.
///
/// A copy goes on where the one before ended as long as that matches, so that runs of equal parts stay whole. Other
/// matches are taken at their first place in the basis, whichever their number: a file of one repeated block costs no
/// more than any other. Time is linear in the number of parts.
#[derive(Debug)]
pub struct Matcher<'a, K> {
    basis: &'a Basis<K>,
    next: usize,
    at: u64,
    ops: Vec<Op>,
    /// How far from `next` a match is believed on its own.
    reach: usize,
    /// A match beyond that, with the bytes and the place of its part in the target: the next part may confirm it.
    alone: Option<(usize, Op)>,
}

/// Where short hashes are believed: this many parts from where they should be.
const NEAR: usize = 16;

impl<'a, K: Copy + Eq + Hash> Matcher<'a, K> {
    /// For a target whose first part lies at `at`.
    pub fn new(basis: &'a Basis<K>, at: u64) -> Self {
        Self { basis, next: 0, at, ops: Vec::new(), reach: usize::MAX, alone: None }
    }

    /// The same for short hashes, each of which may well be somewhere in a large basis by chance. The first part is
    /// probably the one with the number `next`. A match is believed only near the end of the copy before, or with
    /// another next to it.
    pub fn cautious(basis: &'a Basis<K>, at: u64, next: usize) -> Self {
        Self { next, reach: NEAR, ..Self::new(basis, at) }
    }

    /// The next part of the target.
    pub fn push(&mut self, key: K, len: u32) {
        let bytes = u64::from(len);
        if let Some((i, op)) = self.alone.take() {
            match self.basis.parts.get(i + 1).is_some_and(|part| part.key == key && part.len == len) {
                true => {
                    push(&mut self.ops, Op::Copy { offset: self.basis.parts[i].offset, len: op.len() });
                    self.next = i + 1;
                }
                false => push(&mut self.ops, op),
            }
        }
        let op = Op::Literal { offset: self.at, len: bytes };
        self.at += bytes;
        match self.basis.find(key, len, self.next) {
            Some(i) if i.abs_diff(self.next) <= self.reach => {
                push(&mut self.ops, Op::Copy { offset: self.basis.parts[i].offset, len: bytes });
                self.next = i + 1;
                return;
            }
            Some(i) => self.alone = Some((i, op)),
            None => push(&mut self.ops, op),
        }
        // What comes next in the basis was probably in its place.
        self.next += 1;
    }

    /// The operations that give what was pushed, in its order, with neighbours merged.
    pub fn finish(mut self) -> Vec<Op> {
        if let Some((_, op)) = self.alone {
            push(&mut self.ops, op);
        }
        self.ops
    }
}

/// The operations that make the target from the basis, chunk by chunk.
///
/// Lists may come from a peer: any content gives operations that cover the target and stay within the basis list.
pub fn delta(target: &[ChunkRef], basis: &[ChunkRef]) -> Vec<Op> {
    let basis = Basis::of_chunks(basis);
    let mut matcher = Matcher::new(&basis, 0);
    target.iter().for_each(|chunk| matcher.push(chunk.digest, chunk.len));
    matcher.finish()
}

/// Appends `op`, merged into the last one if it continues that.
fn push(ops: &mut Vec<Op>, op: Op) {
    match (ops.last_mut(), op) {
        (_, op) if op.is_empty() => {}
        (Some(Op::Copy { offset, len }), Op::Copy { offset: more, len: added }) if *offset + *len == more => {
            *len += added;
        }
        (Some(Op::Literal { len, .. }), Op::Literal { len: added, .. }) => *len += added,
        _ => ops.push(op),
    }
}

/// How many bytes at the beginning of the target a partial copy already has, as whole chunks. The last chunk of a part
/// was cut by its end and seldom matches; it is sent again.
pub fn common_prefix(target: &[ChunkRef], part: &[ChunkRef]) -> u64 {
    target.iter().zip(part).take_while(|(a, b)| a == b).map(|(a, _)| u64::from(a.len)).sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::chunk::{Chunking, chunks_of, covered, noise};
    use proptest::prelude::*;

    fn chunk(id: u8, len: u32) -> ChunkRef {
        ChunkRef { digest: [id; 16], len }
    }

    fn copy(offset: u64, len: u64) -> Op {
        Op::Copy { offset, len }
    }

    fn literal(offset: u64, len: u64) -> Op {
        Op::Literal { offset, len }
    }

    /// Whether `ops` give exactly `target` bytes in order and take nothing from beyond `basis` bytes.
    pub fn is_sound(ops: &[Op], target: u64, basis: u64) -> bool {
        let mut at: u64 = 0;
        for op in ops {
            let fits = match *op {
                Op::Copy { offset, len } => offset.checked_add(len).is_some_and(|end| end <= basis),
                Op::Literal { offset, .. } => offset == at,
            };
            match at.checked_add(op.len()) {
                Some(end) if fits && !op.is_empty() && end <= target => at = end,
                _ => return false,
            }
        }
        at == target
    }

    pub fn apply(ops: &[Op], basis: &[u8], target: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for op in ops {
            let (from, offset, len) = match *op {
                Op::Copy { offset, len } => (basis, offset, len),
                Op::Literal { offset, len } => (target, offset, len),
            };
            out.extend_from_slice(&from[offset as usize..(offset + len) as usize]);
        }
        out
    }

    #[test]
    fn neighbours_are_merged_and_copies_go_on() {
        let (a, b, c, d) = (chunk(1, 10), chunk(2, 20), chunk(3, 30), chunk(4, 40));
        let table: &[(&[ChunkRef], &[ChunkRef], &[Op])] = &[
            (&[], &[a], &[]),
            (&[a, b], &[], &[literal(0, 30)]),
            (&[a, b, c], &[a, b, c], &[copy(0, 60)]),
            (&[a, d, b, c], &[a, b, c], &[copy(0, 10), literal(10, 40), copy(10, 50)]),
            (&[c, a, b], &[a, b, c], &[copy(30, 30), copy(0, 30)]),
            // The second run of a goes on from its first chunk instead of starting over.
            (&[b, a, a, c], &[a, b, a, a, c], &[copy(10, 70)]),
            // The same digest with another length is another chunk.
            (&[chunk(1, 11)], &[a], &[literal(0, 11)]),
            // What no chunker makes: empty chunks.
            (&[chunk(0, 0), a], &[chunk(0, 0), a], &[copy(0, 10)]),
        ];
        for (i, (target, basis, ops)) in table.iter().enumerate() {
            assert_eq!(delta(target, basis), *ops, "case {i}");
            assert!(is_sound(ops, covered(target), covered(basis)), "case {i}");
        }
    }

    #[test]
    fn a_file_of_one_repeated_block_costs_no_more() {
        let blocks = vec![chunk(7, 4096); 400_000];
        assert_eq!(delta(&blocks, &blocks), [copy(0, 400_000 * 4096)]);
        let mut edited = blocks.clone();
        edited[200_000] = chunk(8, 1);
        // 400,000 candidates for each of 199,999 chunks would take minutes.
        assert_eq!(delta(&edited, &blocks).len(), 3);
    }

    #[test]
    fn a_short_hash_is_believed_near_its_place_or_beside_another() {
        let parts: Vec<_> = (0..100).map(|i| (i, u64::from(i) * 10, 10)).collect();
        let basis = Basis::new(parts);
        let ops = |first, target: &[u32]| {
            let mut matcher = Matcher::cautious(&basis, 0, first);
            target.iter().for_each(|key| matcher.push(*key, 10));
            matcher.finish()
        };
        let far = NEAR as u32 + 1;
        // Near, too far, and the last one alone.
        assert_eq!(ops(0, &[far - 1]), [copy(160, 10)]);
        assert_eq!(ops(0, &[far]), [literal(0, 10)]);
        assert_eq!(ops(3, &[far, 50]), [copy(170, 10), literal(10, 10)]);
        // Two beside each other, and what follows them.
        assert_eq!(ops(0, &[70, 71, 72]), [copy(700, 30)]);
        assert_eq!(ops(90, &[1, 2, 60, 3]), [copy(10, 20), literal(20, 10), copy(30, 10)]);
        // Each alone: where the first should have been goes on.
        assert_eq!(ops(0, &[0, 70, 30, 3]), [copy(0, 10), literal(10, 20), copy(30, 10)]);
        // The second match confirms the first, but not if it is elsewhere.
        assert_eq!(ops(0, &[70, 72]), [literal(0, 20)]);
    }

    #[test]
    fn a_part_counts_up_to_its_first_difference() {
        let (a, b, c) = (chunk(1, 10), chunk(2, 20), chunk(3, 30));
        assert_eq!(common_prefix(&[a, b, c], &[a, b]), 30);
        assert_eq!(common_prefix(&[a, b, c], &[a, c, c]), 10);
        assert_eq!(common_prefix(&[a], &[a, b]), 10);
        assert_eq!(common_prefix(&[a], &[]), 0);
    }

    #[derive(Clone, Debug)]
    pub enum Edit {
        Insert(prop::sample::Index, usize, u64),
        Remove(prop::sample::Index, usize),
        Overwrite(prop::sample::Index, usize, u64),
        Duplicate(prop::sample::Index, usize),
    }

    pub fn edit() -> impl Strategy<Value = Edit> {
        let place = any::<prop::sample::Index>();
        prop_oneof![
            (place.clone(), 1usize..9000, any::<u64>()).prop_map(|(i, n, seed)| Edit::Insert(i, n, seed)),
            (place.clone(), 1usize..60_000).prop_map(|(i, n)| Edit::Remove(i, n)),
            (place.clone(), 1usize..500, any::<u64>()).prop_map(|(i, n, seed)| Edit::Overwrite(i, n, seed)),
            (place, 1usize..60_000).prop_map(|(i, n)| Edit::Duplicate(i, n)),
        ]
    }

    pub fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
        for edit in edits {
            let (Edit::Insert(i, ..) | Edit::Remove(i, _) | Edit::Overwrite(i, ..) | Edit::Duplicate(i, _)) = edit;
            let at = i.index(bytes.len() + 1);
            let upto = |n: usize| (at + n).min(bytes.len());
            match *edit {
                Edit::Insert(_, n, seed) => drop(bytes.splice(at..at, noise(n, seed | 1))),
                Edit::Remove(_, n) => drop(bytes.drain(at..upto(n))),
                Edit::Overwrite(_, n, seed) => drop(bytes.splice(at..upto(n), noise(n, seed | 1))),
                Edit::Duplicate(_, n) => {
                    let again = bytes[at..upto(n)].to_vec();
                    drop(bytes.splice(at..at, again));
                }
            }
        }
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn operations_on_the_basis_give_the_target(
            len in 0usize..400_000,
            seed in any::<u64>(),
            edits in proptest::collection::vec(edit(), 0..6),
        ) {
            let basis = noise(len, seed | 1);
            let target = edited(basis.clone(), &edits);
            let sizes = Chunking::for_size(target.len() as u64);
            let ops = delta(&chunks_of(&target, sizes), &chunks_of(&basis, sizes));
            prop_assert!(is_sound(&ops, target.len() as u64, basis.len() as u64));
            prop_assert!(apply(&ops, &basis, &target) == target);
            if edits.is_empty() && len > 0 {
                prop_assert_eq!(ops, [copy(0, len as u64)]);
            }
        }

        /// Lists from a peer hold anything.
        #[test]
        fn any_lists_give_sound_operations(
            target in proptest::collection::vec((0u8..4, prop_oneof![0u32..3, Just(u32::MAX)]), 0..60),
            basis in proptest::collection::vec((0u8..4, prop_oneof![0u32..3, Just(u32::MAX)]), 0..60),
        ) {
            let list = |raw: &[(u8, u32)]| raw.iter().map(|&(id, len)| chunk(id, len)).collect::<Vec<_>>();
            let (target, basis) = (list(&target), list(&basis));
            prop_assert!(is_sound(&delta(&target, &basis), covered(&target), covered(&basis)));
        }
    }
}
