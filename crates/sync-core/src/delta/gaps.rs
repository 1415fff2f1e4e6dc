//! What chunks leave open: ranges of the target that match no chunk, and where in the old file their pieces may be.

use super::{Op, push};

/// Old content that is described for one gap, beyond some times the gap's own length.
const MARGIN: u64 = 128 << 10;

/// How many times as long as a gap the old content may be that is described for it: what was cut out leaves little to
/// be found again.
const TIMES: u64 = 8;

/// How many times the length of the old file its described ranges may have in all: each is looked at once, twice where
/// blocks moved, and again where the new file repeats what is around it.
pub const MOST_DESCRIBED_TIMES: u64 = 4;

/// A range of the target that has to be sent, as far as its pieces are not in the old file either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Where in the target.
    pub at: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// Ranges of the old file, offset and bytes, that took this place before; none empty.
    pub old: Vec<(u64, u64)>,
}

/// The literals among `ops`, each with what was in its place in an old file of `old` bytes: all between what is copied
/// before and after it. Where that is not in the old order, as much behind the one and before the other as the literal has.
/// Once all of that is [`MOST_DESCRIBED_TIMES`] the old file, further literals have nothing in their place.
pub fn gaps(ops: &[Op], old: u64) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let mut room = old.saturating_mul(MOST_DESCRIBED_TIMES);
    for (i, op) in ops.iter().enumerate() {
        let Op::Literal { offset: at, len } = *op else { continue };
        let copied = |op: Option<&Op>| match op {
            Some(Op::Copy { offset, len }) => Some((*offset, offset + len)),
            _ => None,
        };
        let begin = copied(i.checked_sub(1).and_then(|i| ops.get(i))).map_or(0, |(_, end)| end);
        let end = copied(ops.get(i + 1)).map_or(old, |(begin, _)| begin);
        let ranges = if begin > end {
            [(begin, begin.saturating_add(len).min(old)), (end.saturating_sub(len), end)]
        } else if end - begin > len.saturating_mul(TIMES).saturating_add(MARGIN) {
            let most = len.saturating_mul(TIMES / 2).saturating_add(MARGIN / 2);
            [(begin, begin + most), (end - most, end)]
        } else {
            [(begin, end), (end, end)]
        };
        let ranges = ranges.into_iter().filter(|(begin, end)| begin < end).map(|(begin, end)| (begin, end - begin));
        let mut old: Vec<(u64, u64)> = ranges.collect();
        match old.iter().try_fold(room, |room, (_, len)| room.checked_sub(*len)) {
            Some(left) => room = left,
            None => old.clear(),
        }
        gaps.push(Gap { at, len, old });
    }
    gaps
}

/// The operations with each gap replaced by those that give it.
pub fn refine(ops: Vec<Op>, mut within: impl FnMut(u64) -> Option<Vec<Op>>) -> Vec<Op> {
    let mut refined = Vec::with_capacity(ops.len());
    for op in ops {
        let finer = match op {
            Op::Literal { offset, .. } => within(offset),
            Op::Copy { .. } => None,
        };
        match finer {
            Some(finer) => finer.into_iter().for_each(|op| push(&mut refined, op)),
            None => push(&mut refined, op),
        }
    }
    refined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::pieces::Form;
    use crate::chunk::{Chunking, chunks_of, cut, noise};
    use crate::delta::tests::{apply, edit, edited, is_sound};
    use crate::delta::{Basis, Matcher, delta};

    fn copy(offset: u64, len: u64) -> Op {
        Op::Copy { offset, len }
    }

    fn literal(offset: u64, len: u64) -> Op {
        Op::Literal { offset, len }
    }

    #[test]
    fn a_gap_is_searched_for_in_what_it_replaced() {
        const M: u64 = 1 << 20;
        let table: &[(&[Op], u64, &[&[(u64, u64)]])] = &[
            // Nothing matches: all of the old file.
            (&[literal(0, 100)], 90, &[&[(0, 90)]]),
            // At the front, in the middle, at the end.
            (
                &[literal(0, 5), copy(7, 10), literal(15, 5), copy(20, 5), literal(25, 9)],
                30,
                &[&[(0, 7)], &[(17, 3)], &[(25, 5)]],
            ),
            // Something was inserted: nothing was there.
            (&[copy(0, 10), literal(10, 5), copy(10, 10)], 20, &[&[]]),
            // Blocks that moved: what followed the one and what came before the other.
            (&[copy(100, 10), literal(10, 5), copy(50, 10)], 200, &[&[(110, 5), (45, 5)]]),
            (&[copy(190, 10), literal(10, 5), copy(2, 10)], 200, &[&[(0, 2)]]),
            // Much was cut out around little that is new: only its ends.
            (
                &[copy(0, 10), literal(10, M), copy(100 * M, 5)],
                101 * M,
                &[&[(10, 4 * M + M / 16), (100 * M - 4 * M - M / 16, 4 * M + M / 16)]],
            ),
        ];
        for (ops, old, expected) in table {
            let gaps = gaps(ops, *old);
            assert_eq!(gaps.iter().map(|gap| &gap.old[..]).collect::<Vec<_>>(), *expected, "{ops:?}");
            assert!(gaps.iter().all(|gap| gap.old.iter().all(|(at, len)| *len > 0 && at + len <= *old)));
        }
    }

    /// A replica refuses to describe more.
    #[test]
    fn a_file_that_repeats_what_is_around_its_gaps_asks_for_four_times_the_old_one_at_most() {
        let one = |i: u64| [literal(300 * i, 100), copy(0, 100), literal(300 * i + 200, 100)];
        let ops: Vec<Op> = (0..50).flat_map(one).collect();
        let gaps = gaps(&ops, 1000);
        let described: u64 = gaps.iter().flat_map(|gap| &gap.old).map(|(_, len)| len).sum();
        assert!((3000..=4000).contains(&described), "{described}");
        assert_eq!(gaps.len(), 100, "all are sent");
    }

    #[test]
    fn refined_gaps_join_their_neighbours() {
        let ops = vec![copy(0, 10), literal(10, 9), copy(20, 5), literal(24, 3)];
        let within = |at| (at == 10).then(|| vec![copy(10, 4), literal(14, 2), copy(17, 3)]);
        assert_eq!(refine(ops, within), [copy(0, 14), literal(14, 2), copy(17, 8), literal(24, 3)]);
    }

    /// Both levels, as a master and a replica go through them.
    fn two_levels(old: &[u8], new: &[u8]) -> Vec<Op> {
        let (chunks, form) = (Chunking::try_from(13).unwrap(), Form::of_ranges(1));
        let ops = delta(&chunks_of(new, chunks), &chunks_of(old, chunks));
        let gaps = gaps(&ops, old.len() as u64);
        let mut described = Vec::new();
        for (begin, len) in gaps.iter().flat_map(|gap| &gap.old) {
            let mut at = *begin;
            cut(&old[at as usize..(at + len) as usize], form.sizes(), &mut |bytes| {
                let piece = form.piece(bytes);
                described.push((piece.hash, at, piece.len));
                at += u64::from(piece.len);
            });
        }
        let basis = Basis::new(described.iter().copied());
        refine(ops, |at| {
            let gap = gaps.iter().find(|gap| gap.at == at && !gap.old.is_empty())?;

            let first = described.iter().filter(|(_, begin, _)| *begin < gap.old[0].0).count();
            let mut matcher = Matcher::cautious(&basis, at, first);
            cut(&new[at as usize..(at + gap.len) as usize], form.sizes(), &mut |bytes| {
                let piece = form.piece(bytes);
                matcher.push(piece.hash, piece.len);
            });
            Some(matcher.finish())
        })
    }

    fn literals(ops: &[Op]) -> u64 {
        let literal = |op: &Op| if let Op::Literal { len, .. } = op { *len } else { 0 };
        ops.iter().map(literal).sum()
    }

    #[test]
    fn the_finer_level_cuts_an_edit_down_to_its_pieces() {
        let old = noise(1 << 20, 7);
        let mut new = old.clone();
        new.splice(500_000..500_010, *b"inserted and longer");
        assert!(literals(&two_levels(&old, &new)) < 3 * 4096);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn two_levels_give_the_target(
            len in 0usize..600_000,
            seed in any::<u64>(),
            edits in proptest::collection::vec(edit(), 0..8),
        ) {
            let old = noise(len, seed | 1);
            let new = edited(old.clone(), &edits);
            let ops = two_levels(&old, &new);
            prop_assert!(is_sound(&ops, new.len() as u64, old.len() as u64));
            prop_assert!(apply(&ops, &old, &new) == new);
        }

        /// The old file is another one by now: what is made of it has the right length, and its digest tells the rest.
        #[test]
        fn damage_between_comparison_and_use_makes_another_file_of_the_same_length(
            len in 1usize..300_000,
            seed in any::<u64>(),
            edits in proptest::collection::vec(edit(), 0..5),
            damage in any::<prop::sample::Index>(),
        ) {
            let old = noise(len, seed | 1);
            let new = edited(old.clone(), &edits);
            let ops = two_levels(&old, &new);
            let mut damaged = old.clone();
            let at = damage.index(len);
            damaged[at] ^= 1;
            let made = apply(&ops, &damaged, &new);
            prop_assert_eq!(made.len(), new.len());
            let copied = |op: &Op| matches!(op, Op::Copy { offset, len } if (*offset..offset + len).contains(&(at as u64)));
            prop_assert_eq!(made == new, !ops.iter().any(copied));
        }
    }
}
