use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use rustix::fs::{Timespec, Timestamps};

use super::*;
use crate::chunk::{ChunkRef, Chunker, Chunking};
use crate::fs::{BasisFile, Incoming};

struct Bed {
    top: tempfile::TempDir,
    root: Arc<Root>,
}

impl Bed {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let root = Arc::new(Root::open(top.path()).unwrap());
        Self { top, root }
    }

    fn session(&self) -> Arc<Staging> {
        let staging = Arc::new(Staging::new(Arc::clone(&self.root)));
        staging.adopt(&RelPath::root()).unwrap();
        staging
    }

    fn dir(&self) -> PathBuf {
        self.top.path().join(STAGING_NAME)
    }

    fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir()) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// In a directory that is there.
fn near() -> RelPath {
    RelPath::new("name").unwrap()
}

/// In one that is not.
fn beneath_new() -> RelPath {
    RelPath::new("not/there/yet").unwrap()
}

/// Bytes without structure, the same every time.
fn noise(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new_derive_key("noise").finalize_xof().fill(&mut out);
    out
}

fn begin(staging: &Arc<Staging>, bytes: &[u8]) -> Incoming {
    staging.begin(&Digest::of(bytes), bytes.len() as u64, &near()).unwrap().unwrap()
}

#[test]
fn nothing_is_touched_until_something_is_staged() {
    let bed = Bed::new();
    let staging = bed.session();
    assert!(!bed.dir().exists());
    staging.store(&Digest::of(b"x"), b"x", &near(), None).unwrap();
    assert!(staging.has(&Digest::of(b"x")));
    let meta = fs::metadata(bed.dir()).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(bed.dir().join(Digest::of(b"x").to_hex())).unwrap().mode() & 0o7777, 0o600);
    staging.remove();
    assert!(!bed.dir().exists() && staging.take_problems().is_empty());
}

#[test]
fn what_does_not_match_is_never_there() {
    let bed = Bed::new();
    let staging = bed.session();
    assert!(matches!(staging.store(&Digest::of(b"x"), b"y", &near(), None), Err(IncomingError::Mismatch)));
    let bytes = noise(300_000);
    let mut incoming = begin(&staging, &bytes);
    incoming.write(&bytes[..299_999]).unwrap();
    assert!(matches!(incoming.write(b"zz"), Err(IncomingError::Mismatch)), "longer than announced");
    incoming.write(&[bytes[299_999] ^ 1]).unwrap();
    assert!(matches!(incoming.finish(None), Err(IncomingError::Mismatch)));
    let mut incoming = begin(&staging, &bytes);
    incoming.write(&bytes[..5]).unwrap();
    assert!(matches!(incoming.finish(None), Err(IncomingError::Mismatch)), "shorter than announced");
    assert!(!staging.has(&Digest::of(&bytes)));
    assert_eq!(bed.names(), Vec::<String>::new());
    // Given up, nothing is left, and it can be received again.
    let mut incoming = begin(&staging, &bytes);
    incoming.write(&bytes[..5]).unwrap();
    drop(incoming);
    assert_eq!(bed.names(), Vec::<String>::new());
    let mut incoming = begin(&staging, &bytes);
    incoming.write(&bytes).unwrap();
    incoming.finish(None).unwrap();
    assert!(staging.has(&Digest::of(&bytes)));
}

#[test]
fn pieces_zeros_and_ranges_of_a_basis_add_up() {
    let bed = Bed::new();
    let staging = bed.session();
    let basis = noise(900_001);
    fs::write(bed.top.path().join("basis"), &basis).unwrap();
    let path = RelPath::new("basis").unwrap();
    let tuple = bed.root.stat(&path).unwrap().unwrap().tuple;
    let file = BasisFile::open(&bed.root, &path, &tuple).unwrap();
    let mut want = basis[123..700_000].to_vec();
    want.extend_from_slice(&[0; 1_000_003]);
    want.extend_from_slice(b"abc");
    want.extend_from_slice(&[0; 20_000]);
    let mut incoming = begin(&staging, &want);
    incoming.copy_from(&file, 123, 700_000 - 123).unwrap();
    incoming.zeros(1_000_003).unwrap();
    for byte in b"abc" {
        incoming.write(&[*byte]).unwrap();
    }
    incoming.zeros(20_000).unwrap();
    incoming.finish(None).unwrap();
    let staged = bed.dir().join(Digest::of(&want).to_hex());
    assert_eq!(fs::read(&staged).unwrap(), want);
    assert!(fs::metadata(&staged).unwrap().blocks() * 512 < 800_000);
    // A range beyond the end, and a basis that is not the file it was.
    let mut incoming = begin(&staging, &[1; 10]);
    assert!(matches!(incoming.copy_from(&file, 900_000, 2), Err(IncomingError::Mismatch)));
    fs::write(bed.top.path().join("basis"), "other").unwrap();
    assert!(BasisFile::open(&bed.root, &path, &tuple).is_err());
}

/// Read by another thread than the one that writes: in the same order, between other bytes, and with the same errors.
#[test]
fn a_long_range_of_a_basis_is_read_beside_the_writing() {
    let bed = Bed::new();
    let staging = bed.session();
    let basis = noise(20_000_003);
    fs::write(bed.top.path().join("basis"), &basis).unwrap();
    let path = RelPath::new("basis").unwrap();
    let tuple = bed.root.stat(&path).unwrap().unwrap().tuple;
    let file = BasisFile::open(&bed.root, &path, &tuple).unwrap();
    let want = [b"before", &basis[77..19_000_000], b"between", &basis[..9_000_001], b"after"].concat();
    let mut incoming = begin(&staging, &want);
    incoming.write(b"before").unwrap();
    incoming.copy_from(&file, 77, 19_000_000 - 77).unwrap();
    incoming.write(b"between").unwrap();
    incoming.copy_from(&file, 0, 9_000_001).unwrap();
    incoming.write(b"after").unwrap();
    incoming.finish(None).unwrap();
    let staged = bed.dir().join(Digest::of(&want).to_hex());
    assert!(fs::read(&staged).unwrap() == want);
    // More than the content has, and a basis that became shorter.
    let mut incoming = begin(&staging, &basis[..10_000_000]);
    assert!(matches!(incoming.copy_from(&file, 0, 10_000_001), Err(IncomingError::Mismatch)));
    let mut incoming = begin(&staging, &basis);
    fs::OpenOptions::new().write(true).open(bed.top.path().join("basis")).unwrap().set_len(12_000_000).unwrap();
    assert!(matches!(incoming.copy_from(&file, 0, 20_000_003), Err(IncomingError::Mismatch)));
}

#[test]
fn a_killed_session_is_adopted() {
    let bed = Bed::new();
    let staging = bed.session();
    for text in ["good", "bad", "linked", "dressed"] {
        staging.store(&Digest::of(text.as_bytes()), text.as_bytes(), &near(), None).unwrap();
    }
    // Dropped without a word, as by a kill: dropping clears nothing.
    drop(staging);
    let name = |text: &str| bed.dir().join(Digest::of(text.as_bytes()).to_hex());
    fs::write(name("bad"), "worse").unwrap();
    // Published already under another name: it must not be touched again.
    fs::hard_link(name("linked"), bed.top.path().join("visible")).unwrap();
    // Linked to a temporary only.
    fs::hard_link(name("good"), bed.dir().join("t7")).unwrap();
    fs::set_permissions(name("dressed"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::create_dir(bed.dir().join("t8")).unwrap();
    fs::write(bed.dir().join(part_name(&Digest::of(b"short"))), "less than a chunk").unwrap();
    fs::write(bed.dir().join("thesis"), "somebody's").unwrap();

    let staging = bed.session();
    assert!(staging.has(&Digest::of(b"good")) && staging.has(&Digest::of(b"dressed")));
    assert!(!staging.has(&Digest::of(b"bad")) && !staging.has(&Digest::of(b"linked")));
    assert_eq!(fs::metadata(name("dressed")).unwrap().mode() & 0o7777, 0o600);
    let problems: Vec<_> = staging.take_problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("thesis"), "{problems:?}");
    assert_eq!(bed.names().len(), 3);
    staging.remove();
    assert_eq!(bed.names(), ["thesis"]);
}

#[test]
fn an_interrupted_big_file_resumes() {
    let bed = Bed::new();
    let bytes = noise(usize::try_from(PART_MIN).unwrap() + 3_000_000);
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let received = 10_000_000;
    let staging = bed.session();
    staging.store(&Digest::of(b"small"), b"small", &near(), None).unwrap();
    let mut incoming = begin(&staging, &bytes);
    incoming.write(&bytes[..received]).unwrap();
    drop(incoming);
    staging.keep_parts();
    assert!(staging.take_problems().is_empty());
    assert_eq!(bed.names(), [part_name(&digest)]);

    let staging = bed.session();
    let part = staging.part(&digest, size).unwrap().unwrap();
    // All that has arrived but for a chunk whose end has not.
    let longest = Chunking::for_size(size).max() as u64;
    assert!(part.size <= received as u64 && part.size + longest > received as u64, "{}", part.size);
    let mut chunks = Vec::new();
    let mut chunker = Chunker::new(Chunking::for_size(size));
    chunker.push(&bytes, &mut |chunk| chunks.push(ChunkRef::of(chunk)));
    chunker.finish(&mut |chunk| chunks.push(ChunkRef::of(chunk)));
    assert!(chunks.starts_with(&part.chunks), "a part's chunks begin the whole's");
    // The peer confirms all but the last chunk, so that the offset is odd.
    let offset = part.size - u64::from(part.chunks.last().unwrap().len);
    let at = usize::try_from(offset).unwrap();
    let mut incoming = staging.begin_at(&digest, size, &near(), offset).unwrap().unwrap();
    assert_eq!(incoming.position(), offset);
    incoming.write(&bytes[at..]).unwrap();
    incoming.finish(None).unwrap();
    assert!(fs::read(bed.dir().join(digest.to_hex())).unwrap() == bytes);
    // Whole but unpublished, it is kept as well, and believed after hashing.
    staging.keep_parts();
    let staging = bed.session();
    assert!(staging.has(&digest));
    assert!(staging.part(&digest, size).unwrap().is_none());
    staging.remove();
    assert!(!bed.dir().exists());
}

#[test]
fn only_of_files_over_64_mib_is_what_arrived_kept() {
    let over = PART_MIN + 1;
    let chunk = Chunking::for_size(over).max();
    // Size of the file, how much of it arrives, whether that is kept.
    let table = [
        (PART_MIN, PART_MIN as usize - 1, false),
        (10 << 20, 5 << 20, false),
        (over, 1, false),
        (over, Chunking::for_size(over).min() - 1, false),
        (over, chunk, true),
        (over, 10 << 20, true),
        (over, over as usize - 1, true),
    ];
    let bytes = noise(over as usize);
    for (size, arrived, kept) in table {
        let digest = Digest::of(&bytes[..size as usize]);
        let part = part_name(&digest);
        // Interrupted, and killed: as when nothing is dropped, and the next session finds what is there.
        for killed in [false, true] {
            let told = format!("{arrived} of {size} bytes, killed: {killed}");
            let bed = Bed::new();
            let staging = bed.session();
            let mut incoming = staging.begin(&digest, size, &near()).unwrap().unwrap();
            incoming.write(&bytes[..arrived]).unwrap();
            if killed {
                let _ = std::mem::ManuallyDrop::new(incoming);
                assert_eq!(bed.names().len(), 1, "{told}");
                drop(bed.session());
            } else {
                drop(incoming);
                staging.keep_parts();
                assert_eq!(bed.dir().exists(), kept, "{told}");
            }
            // What was gathered and not written yet is lost in a kill.
            let kept = kept && (!killed || arrived >= 256 << 10);
            assert_eq!(bed.names(), if kept { vec![part.clone()] } else { vec![] }, "{told}");
            let found = bed.session().part(&digest, size).unwrap();
            assert_eq!(found.is_some(), kept, "{told}");
        }
    }
}

#[test]
fn a_part_loses_nothing_where_a_resume_is_cut_at_once() {
    let bed = Bed::new();
    let bytes = noise(PART_MIN as usize + 1);
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let staging = bed.session();
    let mut incoming = begin(&staging, &bytes);
    incoming.write(&bytes[..3_000_000]).unwrap();
    drop(incoming);
    let part = staging.part(&digest, size).unwrap().unwrap();
    // The peer confirms all but the last chunk. That one is now at the end, and so left out, but nothing before it.
    let confirmed = &part.chunks[..part.chunks.len() - 1];
    let offset = crate::chunk::covered(confirmed);
    assert_ne!(offset % 4096, 0, "not at a block's end");
    staging.keep_parts();
    for _ in 0..2 {
        let staging = bed.session();
        drop(staging.begin_at(&digest, size, &near(), offset).unwrap().unwrap());
        staging.keep_parts();
        let name = bed.dir().join(part_name(&digest));
        assert_eq!(fs::metadata(name).unwrap().len(), offset);
    }
    let cut = bed.session().part(&digest, size).unwrap().unwrap();
    assert_eq!(cut.chunks, confirmed[..confirmed.len() - 1]);
}

#[test]
fn what_is_on_its_way_is_not_taken_for_staged() {
    let bed = Bed::new();
    let staging = bed.session();
    let bytes = noise(300_000);
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let incoming = begin(&staging, &bytes);
    assert!(matches!(staging.begin(&digest, size, &near()), Err(IncomingError::Elsewhere)));
    assert!(matches!(staging.begin_at(&digest, size, &near(), 1), Err(IncomingError::Elsewhere)));
    assert!(matches!(staging.store(&digest, &bytes, &near(), None), Err(IncomingError::Elsewhere)));
    drop(incoming);
    staging.store(&digest, &bytes, &near(), None).unwrap();
    assert!(staging.begin(&digest, size, &near()).unwrap().is_none(), "it is there");
}

/// What takes long to read is neither waited for by the end of the session nor read on after it.
#[test]
fn reading_what_an_earlier_session_left_can_be_stopped() {
    let bed = Bed::new();
    // Sparse, and so long that no machine reads it in this time.
    let (size, digest) = (256 << 30, Digest::of(b"whatever"));
    bed.session().store(&Digest::of(b"x"), b"x", &near(), None).unwrap();
    let part = bed.dir().join(part_name(&digest));
    fs::File::create(&part).unwrap().set_len(size).unwrap();
    let stop: Arc<AtomicBool> = Arc::default();
    let session = || {
        let staging = Arc::new(Staging::new(Arc::clone(&bed.root)).stop_on(Arc::clone(&stop)));
        staging.adopt(&RelPath::root()).unwrap();
        staging
    };
    let staging = session();
    std::thread::scope(|scope| {
        let reading =
            scope.spawn(|| staging.begin_at(&digest, size + 1, &near(), size).map(|incoming| incoming.is_some()));
        while staging.contents().get(&digest).is_none_or(|content| content.state != State::Receiving) {
            std::thread::yield_now();
        }
        staging.keep_parts();
        assert!(!reading.is_finished(), "the end has waited for it");
        stop.store(true, Ordering::Relaxed);
        assert!(reading.join().unwrap().is_err());
    });
    assert_eq!(fs::metadata(&part).unwrap().len(), size, "nothing of it is cut off");
    // The same for what is read in the session's own task.
    for whole in [false, true] {
        if whole {
            fs::rename(&part, bed.dir().join(digest.to_hex())).unwrap();
        }
        let staging = session();
        assert!(staging.part(&digest, size + 1).unwrap().is_none() && !staging.has(&digest));
        staging.keep_parts();
        assert_eq!(bed.names().len(), 1, "it stays for another time");
    }
}

#[test]
fn the_directory_that_held_staging_keeps_its_time() {
    let bed = Bed::new();
    let time = || fs::metadata(bed.top.path()).map(|meta| (meta.mtime(), meta.mtime_nsec())).unwrap();
    let times = Timestamps {
        last_access: Timespec { tv_sec: 3, tv_nsec: 3 },
        last_modification: Timespec { tv_sec: 3, tv_nsec: 3 },
    };
    rustix::fs::utimensat(rustix::fs::CWD, bed.top.path(), &times, AtFlags::empty()).unwrap();
    let big = noise(usize::try_from(PART_MIN).unwrap() + 1);
    let store = |staging: &Staging, bytes: &[u8]| staging.store(&Digest::of(bytes), bytes, &near(), None).unwrap();
    let ends: [(fn(&Staging), &[u8]); 4] =
        [(Staging::keep_parts, b"x"), (Staging::remove, b"x"), (Staging::keep_parts, &big), (Staging::remove, b"x")];
    for (i, (end, bytes)) in ends.into_iter().enumerate() {
        // The last one adopts what the one before kept.
        let staging = bed.session();
        store(&staging, bytes);
        assert!(bed.dir().exists());
        end(&staging);
        assert_eq!(bed.dir().exists(), i == 2);
        assert_eq!(time(), (3, 3), "after end {i}");
        assert!(staging.take_problems().is_empty());
    }
    // What somebody else did meanwhile goes on showing.
    let staging = bed.session();
    store(&staging, b"x");
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(bed.top.path().join("new"), "x").unwrap();
    staging.remove();
    assert_ne!(time(), (3, 3));
}

#[test]
fn nothing_is_staged_or_touched_after_the_end() {
    let bed = Bed::new();
    let big = noise(usize::try_from(PART_MIN).unwrap() + 1_000_000);
    let kept = 10 << 20;
    let staging = bed.session();
    let mut late = begin(&staging, &big);
    late.write(&big[..kept]).unwrap();
    let mut small = begin(&staging, &big[..500_000]);
    small.write(&big[..400_000]).unwrap();
    staging.keep_parts();
    assert_eq!(bed.names(), [part_name(&Digest::of(&big))]);
    // A later session goes on with the part, while a stream of the one before has not heard of its end.
    let next = bed.session();
    let part = || fs::metadata(bed.dir().join(part_name(&Digest::of(&big)))).unwrap().len();
    let mut incoming = next.begin_at(&Digest::of(&big), big.len() as u64, &near(), kept as u64).unwrap().unwrap();
    incoming.write(&big[kept..kept + 600_000]).unwrap();
    let received = part();
    assert!(received > kept as u64);
    assert!(late.write(&big[kept..kept + 600_000]).is_err());
    drop(late);
    assert_eq!(part(), received);
    small.write(&big[400_000..500_000]).unwrap();
    assert!(small.finish(None).is_err());
    assert!(staging.store(&Digest::of(b"x"), b"x", &near(), None).is_err());
    assert!(staging.begin(&Digest::of(b"x"), 1, &near()).is_err());
    incoming.write(&big[kept + 600_000..]).unwrap();
    incoming.finish(None).unwrap();
    assert!(fs::read(bed.dir().join(Digest::of(&big).to_hex())).unwrap() == big);
    next.remove();
    assert!(staging.store(&Digest::of(b"x"), b"x", &near(), None).is_err());
    assert!(!bed.dir().exists());
}

#[test]
fn many_threads_store_at_once() {
    let bed = Bed::new();
    let staging = bed.session();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let staging = &staging;
            scope.spawn(move || {
                for i in 0..200 {
                    // Half of the contents come from every thread.
                    let text = if i % 2 == 0 { format!("{i}") } else { format!("{thread} {i}") };
                    match staging.store(&Digest::of(text.as_bytes()), text.as_bytes(), &near(), None) {
                        Ok(()) | Err(IncomingError::Elsewhere) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    assert_eq!(bed.names().len(), 100 + 4 * 100);
}

#[test]
fn much_is_cleared_as_little_is() {
    let bed = Bed::new();
    let staging = bed.session();
    // Several portions, and what is not ours in one of them only.
    for i in 0..2100 {
        let text = i.to_string();
        staging.store(&Digest::of(text.as_bytes()), text.as_bytes(), &near(), None).unwrap();
    }
    fs::write(bed.dir().join("thesis"), "somebody's").unwrap();
    staging.keep_parts();
    assert_eq!(bed.names(), ["thesis"]);
    assert!(staging.take_problems().is_empty());
    fs::remove_file(bed.dir().join("thesis")).unwrap();
    let staging = bed.session();
    for i in 0..2100 {
        let text = i.to_string();
        staging.store(&Digest::of(text.as_bytes()), text.as_bytes(), &near(), None).unwrap();
    }
    staging.keep_parts();
    assert!(!bed.dir().exists() && staging.take_problems().is_empty());
}

#[test]
fn a_file_of_the_reserved_name_is_refused() {
    let bed = Bed::new();
    fs::write(bed.dir(), "mine").unwrap();
    let staging = Arc::new(Staging::new(Arc::clone(&bed.root)));
    let refused = staging.adopt(&RelPath::root()).unwrap_err().to_string();
    assert!(refused.contains("reserved"), "{refused}");
    assert_eq!(fs::read(bed.dir()).unwrap(), b"mine");
}

#[test]
fn setgid_and_default_acls_do_not_reach_staging() {
    let bed = Bed::new();
    fs::set_permissions(bed.top.path(), fs::Permissions::from_mode(0o2777)).unwrap();
    let acl =
        [2u8, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 7, 0, 255, 255, 255, 255, 32, 0, 7, 0, 255, 255, 255, 255];
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(bed.top.path(), "system.posix_acl_default", &acl, flags).is_err() {
        return eprintln!("SKIPPED: setgid_and_default_acls_do_not_reach_staging: no ACLs here");
    }
    let staging = bed.session();
    staging.store(&Digest::of(b"x"), b"x", &near(), None).unwrap();
    assert_eq!(fs::metadata(bed.dir()).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(bed.dir().join(Digest::of(b"x").to_hex())).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(rustix::fs::llistxattr(bed.dir(), &mut vec![0u8; 4096][..]).unwrap_or(0), 0);
    staging.store(&Digest::of(b"y"), b"y", &beneath_new(), None).unwrap();
    let new = bed.dir().join("tree/not/there");
    assert_eq!(fs::metadata(&new).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(rustix::fs::llistxattr(&new, &mut vec![0u8; 4096][..]).unwrap_or(0), 0);
    assert_eq!(fs::metadata(new.join("yet")).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn what_belongs_into_new_directories_takes_its_place_there() {
    let bed = Bed::new();
    let staging = bed.session();
    let place = bed.dir().join("tree/not/there/yet");
    staging.store(&Digest::of(b"first"), b"first", &beneath_new(), None).unwrap();
    assert_eq!(fs::read(&place).unwrap(), b"first");
    // Another content of the same name, sent because the file changed, waits apart.
    staging.store(&Digest::of(b"second"), b"second", &beneath_new(), None).unwrap();
    assert_eq!(fs::read(&place).unwrap(), b"first");
    assert_eq!(fs::read(bed.dir().join(Digest::of(b"second").to_hex())).unwrap(), b"second");
    let bytes = noise(2_000_000);
    let path = RelPath::new("not/large").unwrap();
    let mut incoming = staging.begin(&Digest::of(&bytes), bytes.len() as u64, &path).unwrap().unwrap();
    incoming.write(&bytes).unwrap();
    assert!(!bed.dir().join("tree/not/large").exists(), "not before it is whole");
    incoming.finish(None).unwrap();
    assert_eq!(fs::read(bed.dir().join("tree/not/large")).unwrap(), bytes);
    // With a plan under way nothing slips into a directory that is about to be published.
    staging.begin_plan();
    staging.store(&Digest::of(b"late"), b"late", &RelPath::new("not/late").unwrap(), None).unwrap();
    assert!(bed.dir().join(Digest::of(b"late").to_hex()).exists() && !bed.dir().join("tree/not/late").exists());
    // What no plan wants there goes, contents and directories.
    staging.take_out_unclaimed();
    assert_eq!(fs::read_dir(bed.dir().join("tree")).unwrap().count(), 0);
    assert!(!staging.has(&Digest::of(b"first")) && !staging.has(&Digest::of(&bytes)));
    assert!(staging.has(&Digest::of(b"second")) && staging.has(&Digest::of(b"late")));
    staging.remove();
    assert!(!bed.dir().exists() && staging.take_problems().is_empty());
}

#[test]
fn what_a_killed_session_left_in_new_directories_is_not_sent_again() {
    let bed = Bed::new();
    let staging = bed.session();
    let inside = RelPath::new("a/b/c/file").unwrap();
    staging.store(&Digest::of(b"good"), b"good", &inside, None).unwrap();
    staging.store(&Digest::of(b"torn"), b"torn", &RelPath::new("a/b/torn").unwrap(), None).unwrap();
    staging.store(&Digest::of(b"seen"), b"seen", &RelPath::new("a/seen").unwrap(), None).unwrap();
    drop(staging);
    let tree = bed.dir().join("tree/a");
    fs::write(tree.join("b/torn"), "to").unwrap();
    fs::set_permissions(tree.join("b/c/file"), fs::Permissions::from_mode(0o4755)).unwrap();
    // Published under another name: it must not be touched again.
    fs::hard_link(tree.join("seen"), bed.top.path().join("visible")).unwrap();
    // One that was taken out to be published.
    fs::create_dir(bed.dir().join("d3")).unwrap();
    fs::write(bed.dir().join("d3/moved"), "moved").unwrap();

    let staging = bed.session();
    assert!(staging.has(&Digest::of(b"good")) && staging.has(&Digest::of(b"moved")));
    assert!(!staging.has(&Digest::of(b"torn")) && !staging.has(&Digest::of(b"seen")));
    let good = bed.dir().join(Digest::of(b"good").to_hex());
    assert_eq!(fs::metadata(good).unwrap().mode() & 0o7777, 0o600);
    assert!(!bed.dir().join("tree").exists() && !bed.dir().join("d3").exists());
    assert_eq!(fs::read(bed.top.path().join("visible")).unwrap(), b"seen");
    staging.keep_parts();
    assert!(!bed.dir().exists(), "an interrupted push keeps the parts of big files only");
    assert!(staging.take_problems().is_empty());
}

#[test]
fn a_session_that_is_cut_off_keeps_all_that_is_whole() {
    let bed = Bed::new();
    let staging = bed.session();
    staging.store(&Digest::of(b"small"), b"small", &near(), None).unwrap();
    staging.store(&Digest::of(b"in its place"), b"in its place", &beneath_new(), None).unwrap();
    let bytes = noise(2_000_000);
    let mut incoming = begin(&staging, &bytes);
    incoming.write(&bytes[..1_000_000]).unwrap();
    staging.keep_what_came();
    drop(incoming);
    // Twice, since what was in its place has its digest for a name since the first time.
    for _ in 0..2 {
        let staging = bed.session();
        assert!(staging.has(&Digest::of(b"small")) && staging.has(&Digest::of(b"in its place")));
        assert!(!staging.has(&Digest::of(&bytes)), "it has not come to its end");
        staging.keep_what_came();
        assert_eq!(bed.names().len(), 2);
        assert!(staging.take_problems().is_empty());
    }
    bed.session().remove();
    assert!(!bed.dir().exists());
}

#[test]
fn what_is_cut_off_while_it_takes_over_leaves_what_it_has_not_come_to() {
    let bed = Bed::new();
    let paths = ["a/b/c/file", "a/other", "d/file"];
    let staging = bed.session();
    for name in paths {
        staging.store(&Digest::of(name.as_bytes()), name.as_bytes(), &RelPath::new(name).unwrap(), None).unwrap();
    }
    staging.keep_what_came();
    let stopped = Staging::new(Arc::clone(&bed.root)).stop_on(Arc::new(AtomicBool::new(true)));
    stopped.adopt(&RelPath::root()).unwrap();
    assert!(paths.iter().all(|name| !stopped.has(&Digest::of(name.as_bytes()))));
    stopped.keep_what_came();
    assert!(stopped.take_problems().is_empty());
    let staging = bed.session();
    assert!(paths.iter().all(|name| staging.has(&Digest::of(name.as_bytes()))));
    staging.remove();
    assert!(!bed.dir().exists());
}

/// Nobody asks for it any more: else it would be there for ever, or in the way.
#[test]
fn what_an_earlier_session_left_goes_once_a_plan_needs_it_not_or_the_disk_is_full() {
    let big = noise(usize::try_from(PART_MIN).unwrap() + 2);
    let has_a_first_plan = |staging: &Staging| {
        staging.goes_on_later();
        staging.begin_plan();
    };
    let meets: [fn(&Staging); 4] = [Staging::begin_plan, Staging::met_full_disk, |_| {}, has_a_first_plan];
    for (i, meets) in meets.into_iter().enumerate() {
        for is_cut in [false, true] {
            let bed = Bed::new();
            let staging = bed.session();
            staging.store(&Digest::of(&big), &big, &near(), None).unwrap();
            staging.store(&Digest::of(b"asked for"), b"asked for", &near(), None).unwrap();
            staging.store(&Digest::of(b"forgotten"), b"forgotten", &near(), None).unwrap();
            let mut incoming = begin(&staging, &big[1..]);
            incoming.write(&big[1..10 << 20]).unwrap();
            drop(incoming);
            staging.keep_what_came();
            let next = bed.session();
            assert_eq!(bed.names().len(), 4);
            assert!(next.has(&Digest::of(b"asked for")));
            meets(&next);
            if is_cut {
                next.keep_what_came();
            } else {
                next.keep_parts();
            }
            let small = i != 1 && is_cut;
            let left = bed.names();
            assert_eq!(left.contains(&Digest::of(b"asked for").to_hex()), small, "{i}");
            assert_eq!(left.contains(&Digest::of(b"forgotten").to_hex()), small && i >= 2, "{i}");
            assert_eq!(left.contains(&Digest::of(&big).to_hex()), i >= 2, "{i}");
            assert_eq!(left.contains(&part_name(&Digest::of(&big[1..]))), i >= 2, "{i}");
        }
    }
}

#[test]
fn a_content_that_a_temporary_is_another_name_of_is_kept() {
    let bed = Bed::new();
    let staging = bed.session();
    let names: Vec<String> = (0..40u32)
        .map(|i| {
            staging.store(&Digest::of(&i.to_le_bytes()), &i.to_le_bytes(), &near(), None).unwrap();
            let name = Digest::of(&i.to_le_bytes()).to_hex();
            fs::hard_link(bed.dir().join(&name), bed.dir().join(format!("t{}", 100 + i))).unwrap();
            name
        })
        .collect();
    staging.keep_what_came();
    assert!(staging.take_problems().is_empty());
    let mut names = names;
    names.sort();
    assert_eq!(bed.names(), names);
}

#[test]
fn where_the_disk_is_full_only_what_is_big_is_kept_and_after_a_failed_flush_nothing() {
    let big = noise(usize::try_from(PART_MIN).unwrap() + 1);
    let ends: [(fn(&Staging), Vec<String>); 2] =
        [(Staging::met_full_disk, vec![Digest::of(&big).to_hex()]), (|staging| staging.durable.fail(), Vec::new())];
    for (meets, left) in ends {
        let bed = Bed::new();
        let staging = bed.session();
        for (bytes, path) in [(&big[..], near()), (b"small", near()), (b"in its place", beneath_new())] {
            staging.store(&Digest::of(bytes), bytes, &path, None).unwrap();
        }
        meets(&staging);
        staging.keep_what_came();
        assert_eq!(bed.names(), left);
        assert_eq!(bed.dir().exists(), !left.is_empty());
        assert!(staging.take_problems().is_empty());
    }
}

#[test]
fn only_a_file_that_is_as_it_was_dressed_has_a_tuple() {
    let bed = Bed::new();
    let file = bed.top.path().join("file");
    fs::write(&file, "12345").unwrap();
    let fd = fs::File::open(&file).unwrap();
    let staging = bed.session();
    let meta = fd.metadata().unwrap();
    let mtime = Time { sec: meta.mtime(), nsec: u32::try_from(meta.mtime_nsec()).unwrap() };
    let is = Metadata { mode: meta.mode() & 0o7777, uid: meta.uid(), gid: meta.gid(), mtime };
    assert!(staging.tuple_of(&fd, 5, Some(&is)).is_some());
    // A file system may cut a time; the kernel may drop a setid bit without a word.
    let cut = Metadata { mtime: Time { sec: mtime.sec, nsec: mtime.nsec ^ 1 }, ..is };
    for other in [Metadata { mode: is.mode | 0o2000, ..is }, Metadata { uid: is.uid + 1, ..is }, cut] {
        assert_eq!(staging.tuple_of(&fd, 5, Some(&other)), None);
    }
    assert_eq!(staging.tuple_of(&fd, 5, None), None);
    assert_eq!(staging.tuple_of(&fd, 6, Some(&is)), None);
    fs::hard_link(&file, bed.top.path().join("other")).unwrap();
    assert_eq!(staging.tuple_of(&fd, 5, Some(&is)), None);
}

/// On a file system that folds case, `d/a` finds `d/A` in its place.
#[test]
fn what_a_plan_has_placed_is_never_evicted() {
    let bed = Bed::new();
    let staging = bed.session();
    let path = RelPath::new("d/A").unwrap();
    staging.store(&Digest::of(b"x"), b"x", &path, None).unwrap();
    staging.begin_plan();
    let stage = staging.stage_near(&path).unwrap();
    staging.keep_in_place(&Digest::of(b"x"), &stage, &path, true).unwrap();
    let _ = staging.evict(&stage, &path);
    assert!(bed.dir().join("tree/d/A").exists());
}

/// A path of 64 KiB has half as many directories above it: what is remembered of each must not be its whole path, or a
/// master that offers a file there takes a gibibyte for it.
#[test]
fn a_deep_path_that_is_only_offered_costs_about_what_it_is_long() {
    let bed = Bed::new();
    let staging = bed.session();
    let deep = RelPath::new("a/".repeat(2000) + "f").unwrap();
    staging.store(&Digest::of(b"x"), b"x", &deep, None).unwrap();
    let held: usize = staging.places.read().unwrap().keys().map(|dir| dir.as_bytes().len()).sum();
    assert!(held <= 16 * deep.as_bytes().len(), "{held} bytes for a path of {}", deep.as_bytes().len());
}

/// What is in the way is found by its path: all that is staged is looked through once.
#[test]
fn many_contents_that_give_way_are_each_looked_for_once() {
    let bed = Bed::new();
    let staging = bed.session();
    let at = |i: usize| RelPath::new(format!("new/{i}")).unwrap();
    let digest = |i: usize| Digest::of(i.to_string().as_bytes());
    for i in 0..20 {
        staging.store(&digest(i), i.to_string().as_bytes(), &at(i), None).unwrap();
    }
    let beside = RelPath::new("new.txt").unwrap();
    staging.store(&Digest::of(b"beside"), b"beside", &beside, None).unwrap();
    staging.begin_plan();
    let stage = staging.stage_near(&at(0)).unwrap();
    assert!(staging.ahead.lock().unwrap().is_none(), "made although nothing is in the way");
    staging.keep_in_place(&digest(19), &stage, &at(19), false).unwrap();
    for i in 0..10 {
        staging.evict(&stage, &at(i)).unwrap();
        assert_eq!(staging.ahead.lock().unwrap().as_ref().unwrap().len(), 18 - i);
        assert_eq!(staging.evict(&stage, &at(i)), Err(rustix::io::Errno::EXIST), "there is nothing any more");
    }
    // All that is left in the directory goes with it, but for what a plan has placed.
    staging.keep_in_place(&digest(18), &stage, &at(18), false).unwrap();
    staging.evict(&stage, &RelPath::new("new").unwrap()).unwrap();
    assert!(staging.ahead.lock().unwrap().as_ref().unwrap().is_empty());
    for i in 0..18 {
        let content = staging.find(&digest(i)).unwrap();
        assert!(content.in_place.is_none() && staging.open_content(&digest(i), &content).is_ok());
    }
    assert_eq!(bed.names().iter().filter(|name| Digest::from_hex(name.as_bytes()).is_some()).count(), 19);
    assert_eq!(fs::read_dir(bed.dir().join("tree/new")).unwrap().count(), 2);
}

/// Places are remembered, and not looked at again: each is what it was at first, in whatever order they are asked for.
#[test]
fn where_a_path_will_be_does_not_depend_on_what_was_asked_before() {
    let paths = ["f", "d/f", "d/e/f", "d/e/new/f", "d/e/new/deep/f", "n/f", "n/o/f", "d/file/f", "d/link/f"];
    for turn in 0..paths.len() {
        let bed = Bed::new();
        fs::create_dir_all(bed.top.path().join("d/e")).unwrap();
        fs::write(bed.top.path().join("d/file"), "").unwrap();
        std::os::unix::fs::symlink("e", bed.top.path().join("d/link")).unwrap();
        let staging = bed.session();
        for i in (0..2 * paths.len()).map(|i| (i + turn) % paths.len()) {
            let (_, is_new) = staging.stage_for(&RelPath::new(paths[i]).unwrap()).unwrap();
            assert_eq!(is_new, i >= 3, "{}", paths[i]);
        }
    }
}
