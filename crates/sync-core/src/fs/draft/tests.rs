use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::mpsc::TrySendError;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::*;
use crate::fs::{IncomingError, PART_MIN, Root, STAGING_NAME};
use crate::hash::Digest;

struct Bed {
    // Before the directory that it is on.
    mounted: Option<Mounted>,
    top: tempfile::TempDir,
    staging: Arc<Staging>,
    old: Vec<u8>,
}

/// A tmpfs for the time of a test.
struct Mounted(CString);

impl Mounted {
    fn new(at: &Path, options: &str) -> Option<Self> {
        let at = CString::new(at.to_str()?).unwrap();
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), Some(CString::new(options).unwrap().as_c_str())).ok()?;
        Some(Self(at))
    }

    fn becomes(&self, options: &str) {
        mount_remount(&self.0, MountFlags::empty(), CString::new(options).unwrap().as_c_str()).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A replica with a file that is large enough for parts, and one hole in it.
fn bed() -> Bed {
    bed_in(tempfile::tempdir().unwrap(), None)
}

/// The same on a tmpfs of its own; `None` where that may not be mounted, which is said.
fn bed_on_tmpfs(options: &str) -> Option<Bed> {
    let top = tempfile::tempdir().unwrap();
    let mounted = Mounted::new(top.path(), options);
    if mounted.is_none() {
        let _ = writeln!(std::io::stderr(), "SKIPPED a test of drafts: may not mount");
    }
    mounted.map(|mounted| bed_in(top, Some(mounted)))
}

fn bed_in(top: tempfile::TempDir, mounted: Option<Mounted>) -> Bed {
    let mut old = crate::chunk::noise(12 << 20, 5);
    old.resize(PART_MIN as usize + 77, 0);
    old.extend(crate::chunk::noise(3 << 20, 6));
    let file = fs::File::create(top.path().join("x")).unwrap();
    for at in [0..12 << 20, PART_MIN as usize..old.len()] {
        file.write_all_at(&old[at.clone()], at.start as u64).unwrap();
    }
    let staging = Arc::new(Staging::new(Arc::new(Root::open(top.path()).unwrap())));
    Bed { mounted, top, staging, old }
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
    let blocks: Vec<u64> = drafted.blocks.iter().map(|block| block.i).collect();
    let before = [0, 3_600_000u64.div_ceil(BLOCK), 9_100_000u64.div_ceil(BLOCK)];
    let after = [3_400_000 / BLOCK, 8_900_000 / BLOCK, size as u64 / BLOCK];
    let expected: Vec<u64> = before.into_iter().zip(after).flat_map(|(first, end)| first..end).collect();
    assert_eq!(blocks, expected);
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
    file.write_all_at(b"other", first as u64 + 1000).unwrap();
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
    assert!(metadata.blocks() * 512 < 20 << 20, "{metadata:?}");
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
    // What has no whole block is passed over, also when it comes to what is behind it.
    let drafted = bed.drafted(bed.old.len(), &[(128 << 10, 0, 300 << 10), (600 << 10, 0, 3 << 20)]).unwrap();
    assert!(drafted.blocks.iter().map(|block| block.i).eq(3..14));
    drop(drafted);
    // What is out of order or outside is passed over.
    let drafted = bed.drafted(bed.old.len(), &[(1 << 20, 0, 2 << 20), (0, 0, size), (size, 0, 9 << 20)]).unwrap();
    assert!(drafted.blocks.iter().map(|block| block.i).eq((1 << 20) / BLOCK..(3 << 20) / BLOCK));
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

/// It takes no room that others will need, and what is still to come of other drafts counts as taken.
#[test]
fn a_draft_is_begun_only_where_there_is_room_to_spare() {
    // The old file takes 15 MiB, and a draft 67; 64 are left free.
    for (options, count) in [("size=140m", 0), ("size=160m", 1), ("size=240m", 2)] {
        let Some(bed) = bed_on_tmpfs(options) else { return };
        let drafts = [1, 2, 3].map(|_| bed.staging.draft(&x(), bed.old.len() as u64, bed.basis()));
        assert_eq!(drafts.iter().flatten().count(), count, "{options}");
        assert_eq!(bed.names().len(), count, "{options}");
        // One that is gone takes none.
        drop(drafts);
        assert_eq!(bed.staging.draft(&x(), bed.old.len() as u64, bed.basis()).is_ok(), count > 0);
    }
}

#[test]
fn what_is_wanted_takes_the_room_of_drafts() {
    type Way = fn(&Bed, &[u8]) -> Result<(), IncomingError>;
    let store: Way = |bed, bytes| bed.staging.store(&Digest::of(bytes), bytes, &x(), None);
    let write: Way = |bed, bytes| {
        let mut incoming = bed.staging.begin(&Digest::of(bytes), bytes.len() as u64, &x()).unwrap().unwrap();
        bytes.chunks(100_000).try_for_each(|some| incoming.write(some))?;
        incoming.finish(None)
    };
    for way in [store, write] {
        let Some(bed) = bed_on_tmpfs("size=200m") else { return };
        let size = bed.old.len() as u64;
        let mut draft = bed.staging.draft(&x(), size, bed.basis()).unwrap();
        draft.copy(CopyRange { at: 0, from: 0, len: size });
        let [name] = &bed.names()[..] else { panic!("{:?}", bed.names()) };
        let held = || fs::metadata(bed.top.path().join(STAGING_NAME).join(name)).unwrap().blocks() * 512;
        let begun = Instant::now();
        while held() < 14 << 20 {
            assert!(begun.elapsed() < Duration::from_secs(30), "nothing is copied");
            std::thread::sleep(Duration::from_millis(1));
        }
        // 30 MiB are taken.
        bed.mounted.as_ref().unwrap().becomes("size=32m");
        way(&bed, &crate::chunk::noise(8 << 20, 9)).unwrap();
        assert_eq!(held(), 0);
        assert!(draft.finish().is_none());
        let full = way(&bed, &crate::chunk::noise(20 << 20, 10));
        assert!(matches!(&full, Err(IncomingError::Fs(error)) if error.errno() == Some(Errno::NOSPC)), "{full:?}");
    }
}

/// A peer may tell more than can be copied in the time.
#[test]
fn few_ranges_wait() {
    let Some(bed) = bed_on_tmpfs("size=0") else { return };
    let mut draft = bed.staging.draft(&x(), 2 * QUEUE as u64 * BLOCK, bed.basis()).unwrap();
    // Nothing is written for as long as somebody clears away.
    let clearing = bed.staging.phase.write().unwrap();
    let range = |i| CopyRange { at: i * BLOCK, from: 0, len: BLOCK };
    (0..QUEUE as u64).for_each(|i| draft.copy(range(i)));
    // Beside those that wait there is one at hand of each thread, and what is between the two.
    let refused = {
        let threads = draft.copying.threads();
        let mut more = (0..AHEAD + 3).map(|_| threads.as_ref().unwrap().ranges.try_send(range(0)));
        more.any(|sent| matches!(sent, Err(TrySendError::Full(_))))
    };
    assert!(refused);
    draft.copying.given_up.store(true, Ordering::Relaxed);
    drop(clearing);
}
