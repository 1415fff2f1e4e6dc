//! Small files: the new content against the hashes of the old one's pieces, which are all that is known of it.

use foldhash::HashMap;
use serde::{Deserialize, Serialize};

use crate::chunk::pieces::each_small;

/// Pieces of the old file that follow some literal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Literal bytes before it, since the run before.
    pub after: u32,
    /// How many pieces are left out since the run before; negative where it goes back.
    pub skip: i32,
    /// Pieces.
    pub count: u32,
}

/// The hashes of the pieces of a small file, as they travel: three bytes each if there are few, else four. So at most one
/// file in some thousands is made wrong by a false match, and sent again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceHashes {
    is_wide: bool,
    bytes: Vec<u8>,
}

/// Most pieces whose hashes have three bytes.
const FEW: usize = 64;

impl PieceHashes {
    /// Of this content; and where it was cut.
    pub fn of(content: &[u8]) -> (Self, Cuts) {
        let (mut hashes, mut cuts) = (Vec::<u32>::new(), Vec::new());
        each_small(content, &mut |piece, hash| {
            hashes.push(hash);
            cuts.push(length(piece));
        });
        let is_wide = hashes.len() > FEW;
        let bytes = hashes.iter().flat_map(|hash| hash.to_le_bytes().into_iter().take(width(is_wide))).collect();
        (Self { is_wide, bytes }, Cuts(cuts.into()))
    }

    /// Bytes that they take.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// As much of a hash as travels.
    fn cut(&self, hash: u32) -> u32 {
        if self.is_wide { hash } else { hash & 0xff_ffff }
    }

    fn get(&self, i: usize) -> Option<u32> {
        let width = width(self.is_wide);
        let begin = i.checked_mul(width)?;
        let some = self.bytes.get(begin..begin.checked_add(width)?)?;
        Some(some.iter().rev().fold(0, |hash, byte| hash << 8 | u32::from(*byte)))
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        (0..).map_while(|i| self.get(i))
    }
}

/// Where a small content is cut into pieces, so that it need not be cut again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cuts(Box<[u16]>);

impl Cuts {
    /// Of this content.
    pub fn of(content: &[u8]) -> Self {
        let mut cuts = Vec::new();
        each_small(content, &mut |piece, _| cuts.push(length(piece)));
        Self(cuts.into())
    }

    /// Bytes that they take.
    pub fn size(&self) -> usize {
        size_of_val(&*self.0)
    }

    /// The pieces of the content that these were made of. Of another one, some ranges, which are no pieces.
    fn pieces<'a>(&self, content: &'a [u8]) -> Vec<&'a [u8]> {
        let mut rest = content;
        let next = |len: &u16| {
            let (piece, after) = rest.split_at_checked(usize::from(*len))?;
            rest = after;
            Some(piece)
        };
        self.0.iter().map_while(next).collect()
    }
}

/// No piece of a small content is longer than 2 KiB.
fn length(piece: &[u8]) -> u16 {
    u16::try_from(piece.len()).unwrap_or(u16::MAX)
}

fn width(is_wide: bool) -> usize {
    if is_wide { 4 } else { 3 }
}

/// What to send of `new`: appends its literal bytes to `literals`, and returns the runs of old pieces between them.
///
/// A run goes on as long as it matches; else a piece is taken at its first place.
pub fn diff(new: &[u8], old: &PieceHashes, literals: &mut Vec<u8>) -> Vec<Run> {
    let mut places: HashMap<u32, usize> = HashMap::default();
    for (i, hash) in old.iter().enumerate() {
        places.entry(hash).or_insert(i);
    }
    runs(new, literals, |next, _, hash| {
        let hash = old.cut(hash);
        (old.get(next) == Some(hash)).then_some(next).or_else(|| places.get(&hash).copied())
    })
}

/// The same where the old content itself is at hand, with its cuts: no match is false.
pub fn diff_known(new: &[u8], old: &[u8], cuts: &Cuts, literals: &mut Vec<u8>) -> Vec<Run> {
    let pieces = cuts.pieces(old);
    let mut places: HashMap<&[u8], usize> = HashMap::default();
    for (i, piece) in pieces.iter().enumerate() {
        places.entry(piece).or_insert(i);
    }
    runs(new, literals, |next, bytes, _| {
        (pieces.get(next) == Some(&bytes)).then_some(next).or_else(|| places.get(bytes).copied())
    })
}

/// `find` says where a piece is in the old content, if it is, given where the run before it would go on.
fn runs(new: &[u8], literals: &mut Vec<u8>, find: impl Fn(usize, &[u8], u32) -> Option<usize>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let (mut next, mut after) = (0, 0);
    each_small(new, &mut |bytes, hash| match (find(next, bytes, hash), runs.last_mut()) {
        (Some(i), Some(run)) if i == next && after == 0 => {
            run.count += 1;
            next = i + 1;
        }
        (Some(i), _) => {
            runs.push(Run { after, skip: i as i32 - next as i32, count: 1 });
            (next, after) = (i + 1, 0);
        }
        (None, _) => {
            literals.extend_from_slice(bytes);
            after += bytes.len() as u32;
        }
    });
    runs
}

/// Appends to `gaps` the pieces of the old content that no run takes, as far as they fit into `most` bytes in all. Runs may
/// come from a peer: what they take beyond the content is nothing.
pub fn gaps(old: &[u8], cuts: &Cuts, runs: &[Run], most: usize, gaps: &mut Vec<u8>) {
    let pieces = cuts.pieces(old);
    let mut is_taken = vec![false; pieces.len()];
    let mut next = 0i64;
    for Run { skip, count, .. } in runs {
        let first = next.saturating_add(i64::from(*skip));
        next = first.saturating_add(i64::from(*count));
        let place = |i: i64| usize::try_from(i).unwrap_or(0).min(pieces.len());
        is_taken[place(first)..place(next).max(place(first))].fill(true);
    }
    for (piece, _) in pieces.iter().zip(is_taken).filter(|(_, is_taken)| !is_taken) {
        if gaps.len() + piece.len() <= most {
            gaps.extend_from_slice(piece);
        }
    }
}

/// The new content of `size` bytes, from the old one, with its cuts, and the literal bytes; `None` if they do not give just
/// as many.
pub fn apply(old: &[u8], cuts: &Cuts, runs: &[Run], literals: &[u8], size: usize) -> Option<Vec<u8>> {
    let pieces = cuts.pieces(old);
    let mut new = Vec::with_capacity(size);
    let (mut rest, mut next) = (literals, 0i64);
    for Run { after, skip, count } in runs {
        let (before, behind) = rest.split_at_checked(usize::try_from(*after).ok()?)?;
        new.extend_from_slice(before);
        rest = behind;
        let first = next.checked_add(i64::from(*skip))?;
        next = first.checked_add(i64::from(*count))?;
        for piece in pieces.get(usize::try_from(first).ok()?..usize::try_from(next).ok()?)? {
            if new.len() + piece.len() > size {
                return None;
            }
            new.extend_from_slice(piece);
        }
    }
    new.extend_from_slice(rest);
    (new.len() == size).then_some(new)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::noise;
    use crate::delta::tests::{edit, edited};

    #[test]
    fn an_edit_costs_about_a_piece() {
        let old = noise(60_000, 3);
        let new = [&old[..30_000], b"inserted", &old[30_000..]].concat();
        let mut literals = Vec::new();
        let runs = diff(&new, &PieceHashes::of(&old).0, &mut literals);
        assert!(runs.len() == 2 && literals.len() < 2100, "{} runs, {} bytes", runs.len(), literals.len());
        assert_eq!(apply(&old, &Cuts::of(&old), &runs, &literals, new.len()), Some(new));
    }

    #[test]
    fn a_file_of_one_repeated_piece_costs_no_more() {
        let old = vec![7; 250_000];
        let mut literals = Vec::new();
        let runs = diff(&old, &PieceHashes::of(&old).0, &mut literals);
        assert_eq!((runs.len(), literals.len()), (1, 0));
    }

    #[test]
    fn gaps_are_what_no_run_takes() {
        let old = noise(60_000, 3);
        let cuts = PieceHashes::of(&old).1;
        assert_eq!(cuts, Cuts::of(&old));
        let pieces = cuts.pieces(&old);
        let run = |skip, count| Run { after: 0, skip, count };
        let of = |runs: &[Run], most| {
            let mut found = Vec::new();
            gaps(&old, &cuts, runs, most, &mut found);
            found
        };
        assert_eq!(of(&[], 60_000), old);
        assert_eq!(of(&[run(0, pieces.len() as u32)], 60_000), []);
        // Backwards, and the same pieces twice.
        assert_eq!(of(&[run(3, 2), run(-5, 1), run(0, 2)], 60_000), pieces[5..].concat());
        assert!(of(&[], 5000).len() <= 5000);
        // From a peer.
        for runs in [[run(i32::MIN, u32::MAX); 3], [run(i32::MAX, u32::MAX); 3], [run(-7, 2); 3]] {
            assert!(of(&runs, 60_000).len() <= old.len());
        }
    }

    /// Runs come from a peer: what they do not fit is no content.
    #[test]
    fn runs_that_do_not_fit_give_nothing() {
        let old = noise(5000, 9);
        let run = |after, skip, count| Run { after, skip, count };
        for runs in [
            vec![run(1, 0, 1)],
            vec![run(0, -1, 1)],
            vec![run(0, 0, u32::MAX)],
            vec![run(0, i32::MAX, u32::MAX), run(0, i32::MAX, u32::MAX)],
            vec![run(0, 0, 1), run(0, i32::MIN, 1)],
        ] {
            assert_eq!(apply(&old, &Cuts::of(&old), &runs, &[], 5000), None, "{runs:?}");
        }
        // Many times the same pieces: no more memory than was announced.
        assert_eq!(apply(&old, &Cuts::of(&old), &vec![run(0, -4, 4); 1000], &[], 5000), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_patch_gives_the_new_content(
            len in 0usize..200_000,
            seed in any::<u64>(),
            edits in proptest::collection::vec(edit(), 0..6),
        ) {
            let old = noise(len, seed | 1);
            let new = edited(old.clone(), &edits);
            let mut literals = Vec::new();
            let runs = diff(&new, &PieceHashes::of(&old).0, &mut literals);
            prop_assert_eq!(apply(&old, &Cuts::of(&old), &runs, &literals, new.len()), Some(new.clone()));
            let mut known = Vec::new();
            let runs = diff_known(&new, &old, &Cuts::of(&old), &mut known);
            prop_assert_eq!(apply(&old, &Cuts::of(&old), &runs, &known, new.len()), Some(new));
        }

        /// Damage of the old file gives something else or nothing, and never a panic: the digest decides.
        #[test]
        fn a_patch_of_a_damaged_file_is_harmless(
            len in 1usize..100_000,
            seed in any::<u64>(),
            damage in proptest::collection::vec(edit(), 1..4),
            edits in proptest::collection::vec(edit(), 0..4),
        ) {
            let old = noise(len, seed | 1);
            let new = edited(old.clone(), &edits);
            let mut literals = Vec::new();
            let runs = diff(&new, &PieceHashes::of(&old).0, &mut literals);
            let (cuts, damaged) = (Cuts::of(&old), edited(old, &damage));
            let made = apply(&damaged, &cuts, &runs, &literals, new.len());
            prop_assert!(made.is_none_or(|made| made.len() == new.len()));
            let made = apply(&damaged, &Cuts::of(&damaged), &runs, &literals, new.len());
            prop_assert!(made.is_none_or(|made| made.len() == new.len()));
        }
    }
}
