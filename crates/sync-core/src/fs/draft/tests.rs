use std::fs;

use super::*;
use crate::fs::{IncomingError, PART_MIN, Root, STAGING_NAME};
use crate::hash::Digest;

struct Bed {
    top: tempfile::TempDir,
    staging: Arc<Staging>,
    old: Vec<u8>,
}

/// A replica with a file that is large enough for parts, and one hole in it.
fn bed() -> Bed {
    let top = tempfile::tempdir().unwrap();
    let mut old = crate::chunk::noise(12 << 20, 5);
    old.resize(PART_MIN as usize + 77, 0);
    old.extend(crate::chunk::noise(3 << 20, 6));
    fs::write(top.path().join("x"), &old).unwrap();
    let staging = Arc::new(Staging::new(Arc::new(Root::open(top.path()).unwrap())));
    Bed { top, staging, old }
}

fn x() -> RelPath {
    RelPath::new("x").unwrap()
}

impl Bed {
    fn basis(&self) -> BasisFile {
        let root = Root::open(self.top.path()).unwrap();
        BasisFile::open(&root, &x(), &root.stat(&x()).unwrap().unwrap().tuple).unwrap()
    }

    fn drafted(&self, size: usize, ranges: &[(u64, u64, u64)]) -> Option<Drafted> {
        let mut draft = self.staging.draft(&x(), size as u64, self.basis()).unwrap();
        ranges.iter().for_each(|&(at, from, len)| draft.copy(CopyRange { at, from, len }));
        draft.finish()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.top.path().join(STAGING_NAME)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// What is made of a draft by these operations: literals, or where to copy from.
fn made(bed: &Bed, drafted: Drafted, want: &[u8], ops: &[Result<&[u8], (usize, usize)>]) -> Result<(), IncomingError> {
    let digest = Digest::of(want);
    let mut incoming = bed.staging.begin_drafted(&digest, want.len() as u64, &x(), drafted).unwrap().unwrap();
    for op in ops {
        match *op {
            Ok(bytes) => incoming.write(bytes)?,
            Err((from, len)) => incoming.copy_from(&bed.basis(), from as u64, len as u64)?,
        }
    }
    incoming.finish(None)?;
    assert!(fs::read(bed.top.path().join(STAGING_NAME).join(digest.to_hex())).unwrap() == want);
    Ok(())
}

/// The whole of a content, as one range of the old file.
fn all(size: u64) -> [(u64, u64, u64); 1] {
    [(0, 0, size)]
}

#[test]
fn edits_in_place_leave_the_blocks_around_them_drafted() {
    let bed = bed();
    let size = bed.old.len();
    let (a, b) = (3_500_000, 9_000_000);
    let mut want = bed.old.clone();
    want[a..a + 22].copy_from_slice(b"twenty-two other bytes");
    want[b..b + 22].copy_from_slice(b"twenty-two other bytes");
    let rest = size as u64 - 9_100_000;
    let ranges = [(0, 0, 3_400_000), (3_600_000, 3_600_000, 5_300_000), (9_100_000, 9_100_000, rest)];
    let drafted = bed.drafted(size, &ranges).unwrap();
    let blocks: Vec<u64> = drafted.blocks.keys().copied().collect();
    assert_eq!(blocks[..8], [0, 1, 2, 4, 5, 6, 7, 9]);
    let (c, d) = (a + 22, b + 22);
    let ops = [Err((0, a)), Ok(&want[a..c]), Err((c, b - c)), Ok(&want[b..d]), Err((d, size - d))];
    made(&bed, drafted, &want, &ops).unwrap();
}

/// What was drafted is not copied again: here the old file changed in between, and the content still is what it was made of.
#[test]
fn what_is_drafted_is_not_read_again() {
    let bed = bed();
    let want = [b"X", &bed.old[..]].concat();
    let drafted = bed.drafted(want.len(), &[(1, 0, bed.old.len() as u64)]).unwrap();
    let first = BLOCK as usize - 1;
    let file = fs::OpenOptions::new().write(true).open(bed.top.path().join("x")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"other", first as u64 + 1000).unwrap();
    made(&bed, drafted, &want, &[Ok(b"X"), Err((0, bed.old.len()))]).unwrap();
}

/// Everything else that was drafted goes: also beneath zeros, which are not written.
#[test]
fn what_was_drafted_and_is_not_wanted_leaves_no_trace() {
    let bed = bed();
    let size = bed.old.len();
    let zeros = vec![0; 3 << 20];
    let mut want = bed.old.clone();
    want[5 << 20..8 << 20].fill(0);
    let ops = [Err((0, 5 << 20)), Ok(&zeros[..]), Err((8 << 20, size - (8 << 20)))];
    made(&bed, bed.drafted(size, &all(size as u64)).unwrap(), &want, &ops).unwrap();
    // Copied from elsewhere than was thought.
    let want = [&bed.old[..4 << 20], &bed.old[3 << 20..size - (1 << 20)]].concat();
    let ops = [Err((0, 4 << 20)), Err((3 << 20, size - (4 << 20)))];
    made(&bed, bed.drafted(size, &all(size as u64)).unwrap(), &want, &ops).unwrap();
    // Of another size.
    let want = bed.old[..size - 1].to_vec();
    made(&bed, bed.drafted(size, &all(size as u64)).unwrap(), &want, &[Err((0, size - 1))]).unwrap();
    // Holes stay holes.
    let name = Digest::of(&want).to_hex();
    let metadata = fs::metadata(bed.top.path().join(STAGING_NAME).join(name)).unwrap();
    assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 < 20 << 20, "{metadata:?}");
}

#[test]
fn a_wrong_content_is_found_as_without_a_draft() {
    let bed = bed();
    let size = bed.old.len();
    let mut want = bed.old.clone();
    want[0] ^= 1;
    let drafted = bed.drafted(size, &all(size as u64)).unwrap();
    let wrong = made(&bed, drafted, &want, &[Err((0, size))]);
    assert!(matches!(wrong, Err(IncomingError::Mismatch)), "{wrong:?}");
    assert!(bed.names().is_empty());
}

#[test]
fn an_interrupted_content_keeps_what_it_came_to_and_nothing_of_the_draft() {
    let bed = bed();
    let size = bed.old.len();
    let digest = Digest::of(b"whatever");
    let drafted = bed.drafted(size, &all(size as u64)).unwrap();
    let mut incoming = bed.staging.begin_drafted(&digest, size as u64, &x(), drafted).unwrap().unwrap();
    incoming.copy_from(&bed.basis(), 0, 9 << 20).unwrap();
    incoming.write(b"more").unwrap();
    drop(incoming);
    let [name] = &bed.names()[..] else { panic!("{:?}", bed.names()) };
    let left = fs::read(bed.top.path().join(STAGING_NAME).join(name)).unwrap();
    assert!(left == [&bed.old[..9 << 20], b"more"].concat());
    bed.staging.keep_parts();
    assert_eq!(bed.names().len(), 1);
}

#[test]
fn a_draft_that_fails_or_that_nobody_wants_leaves_nothing() {
    let bed = bed();
    let size = bed.old.len() as u64;
    drop(bed.drafted(bed.old.len(), &all(size)));
    assert!(bed.names().is_empty());
    let mut draft = bed.staging.draft(&x(), size, bed.basis()).unwrap();
    draft.copy(CopyRange { at: 0, from: 0, len: size });
    drop(draft);
    assert!(bed.names().is_empty());
    // Beyond the old file.
    assert!(bed.drafted(bed.old.len(), &[(0, 0, 3 << 20), (3 << 20, size, size - (3 << 20))]).is_none());
    assert!(bed.names().is_empty());
    // What is out of order or outside is passed over.
    let drafted = bed.drafted(bed.old.len(), &[(1 << 20, 0, 2 << 20), (0, 0, size), (size, 0, 9 << 20)]).unwrap();
    assert_eq!(drafted.blocks.keys().copied().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn nothing_is_drafted_once_the_session_is_over() {
    let bed = bed();
    let size = bed.old.len() as u64;
    let mut draft = bed.staging.draft(&x(), size, bed.basis()).unwrap();
    bed.staging.remove();
    draft.copy(CopyRange { at: 0, from: 0, len: size });
    assert!(draft.finish().is_none());
    assert!(bed.staging.draft(&x(), size, bed.basis()).is_err());
}
