//! Whatever becomes of the old file meanwhile, a content comes out exact or not at all.

use std::fs;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::chunk::{Chunking, chunks_of, noise};
use crate::delta::tests::{edit, edited};
use crate::delta::{CopyRange, Op, delta};
use crate::fs::{PART_MIN, Root, STAGING_NAME};
use crate::path::RelPath;

/// What somebody does to the old file.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index),
    Overwrite(Index, usize, u64),
    Cut(Index),
    Append(usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = any::<Index>();
    prop_oneof![
        place.clone().prop_map(Damage::Flip),
        (place.clone(), 1usize..50_000, any::<u64>()).prop_map(|(i, n, seed)| Damage::Overwrite(i, n, seed)),
        place.prop_map(Damage::Cut),
        (1usize..50_000).prop_map(Damage::Append),
    ]
}

struct Bed {
    top: tempfile::TempDir,
    staging: Arc<Staging>,
}

impl Bed {
    /// A replica with this old file.
    fn new(old: &[u8]) -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("x"), old).unwrap();
        let staging = Arc::new(Staging::new(Arc::new(Root::open(top.path()).unwrap())));
        Self { top, staging }
    }

    fn basis(&self) -> BasisFile {
        let root = Root::open(self.top.path()).unwrap();
        BasisFile::open(&root, &x(), &root.stat(&x()).unwrap().unwrap().tuple).unwrap()
    }

    fn damage(&self, damage: &Damage) {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.top.path().join("x")).unwrap();
        let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
        match damage {
            Damage::Flip(at) if len > 0 => {
                let (mut byte, at) = ([0], at.index(len) as u64);
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            }
            Damage::Flip(_) => {}
            Damage::Overwrite(at, n, seed) => {
                file.write_all_at(&noise(*n, seed | 1), at.index(len + 1) as u64).unwrap();
            }
            Damage::Cut(at) => file.set_len(at.index(len + 1) as u64).unwrap(),
            Damage::Append(n) => file.write_all_at(&noise(*n, 3), len as u64).unwrap(),
        }
    }

    /// Takes in `new` as these operations have it, with some damage before those with these numbers.
    fn take(
        &self,
        incoming: Option<Incoming>,
        basis: &BasisFile,
        new: &[u8],
        ops: &[Op],
        damages: &[(Index, Damage)],
    ) -> Result<(), IncomingError> {
        let mut incoming = incoming.unwrap();
        for (i, op) in ops.iter().enumerate() {
            damages.iter().filter(|(at, _)| at.index(ops.len()) == i).for_each(|(_, damage)| self.damage(damage));
            match *op {
                Op::Literal { offset, len } => incoming.write(&new[offset as usize..(offset + len) as usize])?,
                Op::Copy { offset, len } => incoming.copy_from(basis, offset, len)?,
            }
        }
        incoming.finish(None)
    }

    /// Whether it came out, which it did exact.
    fn is_there(&self, new: &[u8]) -> bool {
        let staged = fs::read(self.top.path().join(STAGING_NAME).join(Digest::of(new).to_hex()));
        assert!(staged.as_ref().is_ok_and(|staged| staged == new) || staged.is_err(), "staged, and wrong");
        staged.is_ok()
    }

    /// Exact or not at all; and then it is sent whole.
    fn outcome(&self, new: &[u8], taken: &Result<(), IncomingError>) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.is_there(new), taken.is_ok());
        if taken.is_err() {
            prop_assert!(matches!(taken, Err(IncomingError::Mismatch)), "{taken:?}");
            let mut again = self.staging.begin(&Digest::of(new), new.len() as u64, &x()).unwrap().unwrap();
            again.write(new).unwrap();
            again.finish(None).unwrap();
            prop_assert!(self.is_there(new));
        }
        Ok(())
    }
}

fn x() -> RelPath {
    RelPath::new("x").unwrap()
}

/// What the operations lead to now.
fn leads_to(ops: &[Op], old: &[u8], new: &[u8]) -> bool {
    crate::delta::tests::apply(ops, old, new) == new
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_content_is_exact_or_sent_again(
        len in 1usize..400_000,
        seed in any::<u64>(),
        edits in proptest::collection::vec(edit(), 0..6),
        damages in proptest::collection::vec((any::<Index>(), damage()), 0..3),
        // A copy that a short hash took for another.
        wrong in proptest::option::weighted(0.3, (any::<Index>(), any::<Index>())),
    ) {
        let old = noise(len, seed | 1);
        let new = edited(old.clone(), &edits);
        let chunks = Chunking::try_from(13).unwrap();
        let mut ops = delta(&chunks_of(&new, chunks), &chunks_of(&old, chunks));
        if let Some((which, place)) = wrong
            && !ops.is_empty()
            && let i = which.index(ops.len())
            && let Op::Copy { offset, len } = &mut ops[i]
        {
            *offset = place.index(old.len() - *len as usize + 1) as u64;
        }
        let bed = Bed::new(&old);
        let basis = bed.basis();
        let incoming = bed.staging.begin(&Digest::of(&new), new.len() as u64, &x()).unwrap();
        let taken = bed.take(incoming, &basis, &new, &ops, &damages);
        if damages.is_empty() {
            prop_assert_eq!(taken.is_ok(), leads_to(&ops, &old, &new));
        }
        bed.outcome(&new, &taken)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// The same for a content that was drafted: there the old file may change before the draft, within it and behind it.
    #[test]
    fn a_content_that_was_drafted_is_exact_or_sent_again(
        more in 1usize..3_000_000,
        seed in any::<u64>(),
        edits in proptest::collection::btree_set(0usize..60_000_000, 0..5),
        damages in proptest::collection::vec((any::<Index>(), damage()), 0..2),
        early in proptest::option::of(damage()),
        hints in any::<bool>(),
    ) {
        let old = noise(PART_MIN as usize + more, seed | 1);
        let mut new = old.clone();
        edits.iter().for_each(|&at| new[at..at + 22].copy_from_slice(b"twenty-two other bytes"));
        // Around each edit a literal, and what is in between is copied.
        let mut ops = Vec::new();
        let mut at = 0;
        for &edit in edits.iter().filter(|&&edit| edit > 100) {
            if edit < at {
                continue;
            }
            ops.push(Op::Copy { offset: at as u64, len: (edit - at) as u64 });
            ops.push(Op::Literal { offset: edit as u64, len: 100 });
            at = edit + 100;
        }
        ops.push(Op::Copy { offset: at as u64, len: (new.len() - at) as u64 });
        let bed = Bed::new(&old);
        let size = new.len() as u64;
        let basis = bed.basis();
        let mut draft = bed.staging.draft(&x(), size, bed.basis()).unwrap();
        let mut begin = 0;
        for op in &ops {
            if let Op::Copy { offset, len } = *op {
                // A hint may be wrong.
                let from = if hints { offset } else { offset / 2 };
                draft.copy(CopyRange { at: begin, from, len });
            }
            begin += op.len();
        }
        early.iter().for_each(|damage| bed.damage(damage));
        let drafted = draft.finish();
        prop_assert!(drafted.is_some() || early.is_some());
        let digest = Digest::of(&new);
        let incoming = match drafted {
            Some(drafted) => bed.staging.begin_drafted(&digest, size, &x(), drafted).unwrap(),
            None => bed.staging.begin(&digest, size, &x()).unwrap(),
        };
        let taken = bed.take(incoming, &basis, &new, &ops, &damages);
        if damages.is_empty() && early.is_none() {
            prop_assert_eq!(taken.is_ok(), leads_to(&ops, &old, &new));
        }
        bed.outcome(&new, &taken)?;
    }
}
