//! What chunks leave open: ranges of the target that match no chunk, and where in the old file their pieces may be.

use super::{Op, push};

/// Old content that is described for one gap, beyond some times the gap's own length.
const MARGIN: u64 = 128 << 10;

/// How many times as long as a gap the old content may be that is described for it: what was cut out leaves little to
/// be found again.
const TIMES: u64 = 8;

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
pub fn gaps(ops: &[Op], old: u64) -> Vec<Gap> {
    let mut gaps = Vec::new();
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
        let old =
            ranges.into_iter().filter(|(begin, end)| begin < end).map(|(begin, end)| (begin, end - begin)).collect();
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
    use super::*;

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

    #[test]
    fn refined_gaps_join_their_neighbours() {
        let ops = vec![copy(0, 10), literal(10, 9), copy(20, 5), literal(24, 3)];
        let within = |at| (at == 10).then(|| vec![copy(10, 4), literal(14, 2), copy(17, 3)]);
        assert_eq!(refine(ops, within), [copy(0, 14), literal(14, 2), copy(17, 8), literal(24, 3)]);
    }
}
