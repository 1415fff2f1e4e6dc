use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::room::Size;
use super::*;
use crate::chunk::noise;
use crate::fs::Root;
use crate::path::RelPath;

const K: usize = 1 << 10;
const M: u64 = 1 << 20;

/// On a file system with room for all.
fn open(dir: &tempfile::TempDir, most: u64) -> History {
    open_with(dir, Bounds::of(most), || None)
}

fn open_with(
    dir: &tempfile::TempDir,
    bounds: Bounds,
    look: impl Fn() -> Option<Size> + Send + Sync + 'static,
) -> History {
    History::open_with(dir.path().join("history"), bounds, Room::with(Box::new(look), 0)).unwrap()
}

/// The packs by name, which is by age.
fn packs(dir: &tempfile::TempDir) -> Vec<PathBuf> {
    let items = fs::read_dir(dir.path().join("history")).unwrap();
    let mut packs: Vec<PathBuf> = items.map(|item| item.unwrap().path()).collect();
    packs.sort();
    packs
}

/// A content of its own for each number.
fn content(number: u64) -> Vec<u8> {
    noise(10 * K, number)
}

fn put(history: &History, numbers: impl IntoIterator<Item = u64>) {
    numbers.into_iter().for_each(|number| history.put(Digest::of(&content(number)), &content(number)));
}

fn has(history: &History, number: u64) -> bool {
    let kept = history.find(Digest::of(&content(number)).prefix());
    kept.is_some_and(|kept| kept.read() == Some(content(number)) && kept.verify(&mut |_| {}))
}

fn current(numbers: impl IntoIterator<Item = u64>) -> HashSet<u64> {
    numbers.into_iter().map(|number| Digest::of(&content(number)).prefix()).collect()
}

fn on_disk(dir: &tempfile::TempDir) -> u64 {
    let items = fs::read_dir(dir.path().join("history")).unwrap();
    items.map(|item| item.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn what_is_put_in_is_there_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(&dir, M);
    assert!(history.is_empty() && history.is_to_be_filled());
    history.begin_filling();
    put(&history, 1..20);
    assert!(!history.is_empty() && !history.is_to_be_filled());
    history.finish(HashSet::default);
    drop(history);
    // Whoever began it did not come to the end.
    let history = open(&dir, M);
    assert!(history.is_to_be_filled());
    put(&history, 30..32);
    history.filled();
    drop(history);
    // What is not sealed is not there.
    let history = open(&dir, M);
    assert!(history.is_to_be_filled() && !has(&history, 30));
    history.filled();
    history.finish(HashSet::default);
    drop(history);
    let history = open(&dir, M);
    assert!(!history.is_to_be_filled() && (1..20).all(|number| has(&history, number)) && !has(&history, 20));
    assert!(!history.wants(&Digest::of(&content(3)), 10 * K as u64));
}

/// A content is put in when it is read, and tried again when its version is there.
#[test]
fn what_is_put_in_twice_is_there_once() {
    let dir = tempfile::tempdir().unwrap();
    // In the pack under way, and in those before it.
    for numbers in [1..4, 1..40] {
        let history = open(&dir, M);
        put(&history, numbers.clone());
        put(&history, numbers.clone());
        assert!(numbers.clone().all(|number| !history.wants(&Digest::of(&content(number)), 10 * K as u64)));
        history.finish(HashSet::default);
        let bytes = numbers.count() as u64 * (10 * K as u64 + 40) + packs(&dir).len() as u64 * 48;
        assert_eq!(on_disk(&dir), bytes);
    }
}

#[test]
fn small_and_very_large_contents_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(&dir, M);
    let sizes = [0, 1023, 1024, 256 * K, 256 * K + 1];
    for size in sizes {
        history.put(Digest::of(&noise(size, 77)), &noise(size, 77));
    }
    history.finish(HashSet::default);
    let kept = sizes.map(|size| history.find(Digest::of(&noise(size, 77)).prefix()).is_some());
    assert_eq!(kept, [false, false, true, true, false]);
}

#[test]
fn it_keeps_within_its_bound_and_first_loses_what_no_file_has() {
    let dir = tempfile::tempdir().unwrap();
    // Forty contents of ten kilobytes, then thirty of them replaced, five at a time.
    let mut now: Vec<u64> = (1..=40).collect();
    let history = open(&dir, M);
    put(&history, now.clone());
    history.finish(|| current(now.clone()));
    drop(history);
    let mut next = 41;
    for _ in 0..30 {
        let history = open(&dir, M);
        for place in &mut now[..5] {
            *place = next;
            put(&history, [next]);
            next += 1;
        }
        history.finish(|| current(now.clone()));
        assert!(on_disk(&dir) <= M, "{}", on_disk(&dir));
        assert!(now.iter().all(|number| has(&history, *number)), "what files have stays");
    }
    let history = open(&dir, M);
    assert!(!has(&history, 1) && has(&history, next - 1) && has(&history, next - 6), "the oldest is gone first");
}

#[test]
fn a_source_larger_than_the_store_leaves_what_came_last() {
    let dir = tempfile::tempdir().unwrap();
    for begin in [1, 91, 181] {
        let history = open(&dir, M);
        put(&history, begin..begin + 90);
        history.finish(|| current(1..271));
        assert!(on_disk(&dir) <= M);
    }
    let history = open(&dir, M);
    assert!(!has(&history, 1) && has(&history, 270));
}

#[test]
fn damage_costs_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(&dir, M);
    put(&history, 1..=30);
    history.finish(HashSet::default);
    drop(history);
    let packs = packs(&dir);
    assert!(packs.len() > 3);
    // One byte of a content, a table, and a pack cut short.
    let flip = |path: &Path, at: u64| {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    flip(&packs[0], 5);
    flip(&packs[1], fs::metadata(&packs[1]).unwrap().len() - 60);
    let short = OpenOptions::new().write(true).open(&packs[2]).unwrap();
    short.set_len(5000).unwrap();
    fs::write(dir.path().join("history/writing"), b"half a pack").unwrap();
    let history = open(&dir, M);
    let damaged = history.find(Digest::of(&content(1)).prefix()).unwrap();
    assert!(damaged.read().is_none() && !damaged.verify(&mut |_| {}));
    assert!(has(&history, 2) && has(&history, 30));
    assert!((1..=30).filter(|number| has(&history, *number)).count() < 30 - 2 * 5);
    assert!(!packs[1].exists() && !packs[2].exists() && !dir.path().join("history/writing").exists());
}

#[test]
fn a_store_that_cannot_be_written_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(&dir, M);
    fs::remove_dir_all(dir.path().join("history")).unwrap();
    put(&history, 1..200);
    let wants = || history.wants(&Digest::of(&content(1)), 10 * K as u64);
    assert!(!wants());
    assert!(matches!(history.finish(HashSet::default), Some(Unkept::Io(_))));
    // Another time, perhaps.
    assert!(!has(&history, 1) && wants());
}

#[test]
fn a_pack_that_cannot_be_read_now_stays_for_another_time() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(&dir, M);
    put(&history, 1..=30);
    history.finish(HashSet::default);
    drop(history);
    let packs = packs(&dir);
    // Such as where descriptors are short: this one cannot be opened, whoever tries.
    let (pack, aside) = (&packs[0], dir.path().join("aside"));
    let hide = || {
        fs::rename(pack, &aside).unwrap();
        std::os::unix::fs::symlink(pack, pack).unwrap();
    };
    let show = || {
        assert!(fs::symlink_metadata(pack).is_ok_and(|meta| meta.is_symlink()), "it was removed");
        fs::rename(&aside, pack).unwrap();
    };
    hide();
    let history = open(&dir, M);
    assert!(!history.is_empty() && !has(&history, 1) && has(&history, 30));
    put(&history, 31..=60);
    assert!(history.finish(|| current(1..=60)).is_none());
    drop(history);
    show();
    // The same while the store is in use: what is lost meanwhile is back.
    let history = open(&dir, M);
    assert!((1..=60).all(|number| has(&history, number)));
    drop(history);
    let history = open(&dir, M);
    hide();
    assert!(history.find(Digest::of(&content(1)).prefix()).is_none());
    show();
    assert!(has(&history, 1));
}

/// A file of the source that is put in from where it is.
fn put_file(history: &History, dir: &tempfile::TempDir, content: &[u8], left: Option<u64>) {
    let at = dir.path().join("source/file");
    fs::create_dir_all(dir.path().join("source")).unwrap();
    fs::write(&at, content).unwrap();
    let root = Root::open(&dir.path().join("source")).unwrap();
    let path = RelPath::new("file").unwrap();
    let source = SourceFile::open(&root, &path, &root.stat(&path).unwrap().unwrap().tuple).unwrap();
    if let Some(left) = left {
        OpenOptions::new().write(true).open(&at).unwrap().set_len(left).unwrap();
    }
    history.put_file(Digest::of(content), &source, content.len() as u64);
}

#[test]
fn contents_from_files_share_packs_unless_they_are_large() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = || Bounds { most: 64 * M, contents: LEAST..=64 * M, pack: 236 << 10, alone: 200 << 10 };
    // With what is put in between, the third ends a pack to the byte.
    let sizes = [300 * K, 30 * K, 200 * K, 10 * K, 2000 * K, 500 * K, 500 * K, 500 * K, 24 * K, 201 * K, 100 * K];
    let contents: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(i, size)| noise(*size, i as u64)).collect();
    let history = open_with(&dir, bounds(), || None);
    for (i, content) in contents.iter().enumerate() {
        put_file(&history, &dir, content, None);
        history.put(Digest::of(&noise(2 * K, 100 + i as u64)), &noise(2 * K, 100 + i as u64));
        // It has become shorter, which leaves no trace.
        put_file(&history, &dir, &noise(150 * K, 200 + i as u64), Some(70 << 10));
    }
    history.finish(HashSet::default);
    drop(history);
    let history = open_with(&dir, bounds(), || None);
    for (i, content) in contents.iter().enumerate() {
        let kept = |content: &[u8]| history.find(Digest::of(content).prefix()).map(|kept| kept.read());
        assert_eq!(kept(content), Some(Some(content.clone())), "{i}");
        assert!(kept(&noise(2 * K, 100 + i as u64)).is_some_and(|kept| kept.is_some()), "{i}");
        assert!(kept(&noise(150 * K, 200 + i as u64)).is_none(), "{i}");
    }
    let lens: Vec<u64> = packs(&dir).iter().map(|pack| pack.metadata().unwrap().len() >> 10).collect();
    assert_eq!(lens, [300, 236, 12, 2000, 2, 500, 2, 500, 2, 500, 28, 201, 104]);
}

#[test]
fn many_small_packs_make_room_together() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = || Bounds { most: M, contents: LEAST..=M, pack: 64 << 10, alone: ALONE };
    let small = |number: u64| noise(K, number);
    let kept = |history: &History, number: u64| {
        history.find(Digest::of(&small(number)).prefix()).is_some_and(|kept| kept.read() == Some(small(number)))
    };
    // One pack for each push, of two contents.
    for number in (0..600).step_by(2) {
        let history = open_with(&dir, bounds(), || None);
        [number, number + 1].iter().for_each(|number| history.put(Digest::of(&small(*number)), &small(*number)));
        history.finish(HashSet::default);
    }
    assert_eq!(packs(&dir).len(), 300);
    // A quarter is still what files have.
    let now = || (0..600).step_by(4);
    let bounds = || Bounds { most: M / 4, ..bounds() };
    let history = open_with(&dir, bounds(), || None);
    assert!(history.finish(|| now().map(|number| Digest::of(&small(number)).prefix()).collect()).is_none());
    drop(history);
    let history = open_with(&dir, bounds(), || None);
    assert!(on_disk(&dir) <= M / 4);
    assert!(now().all(|number| kept(&history, number)), "what files have stays");
    assert!(!kept(&history, 1) && kept(&history, 597) && kept(&history, 599), "the oldest is gone first");
    let left = packs(&dir).len();
    assert!(left < 75, "{left} packs are left: what was carried over is in packs of its own");
}

#[test]
fn it_leaves_room_and_gives_back_what_others_need() {
    let dir = tempfile::tempdir().unwrap();
    // Of 64 MiB, 16 are left free.
    static OTHERS: AtomicU64 = AtomicU64::new(0);
    let at = dir.path().join("history");
    let look = move || {
        let own: u64 = fs::read_dir(&at).ok()?.map(|item| item.unwrap().metadata().unwrap().len()).sum();
        let free = (64 * M).saturating_sub(own).saturating_sub(OTHERS.load(Ordering::Relaxed));
        Some(Size { free, total: 64 * M })
    };
    let open = || open_with(&dir, Bounds::of(400 * M), look.clone());
    OTHERS.store(45 * M, Ordering::Relaxed);
    let history = open();
    put(&history, 1..=1000);
    assert!(!history.wants(&Digest::of(&content(1001)), 10 << 10));
    // A quarter of the three mebibytes goes again, for what comes next.
    assert!(matches!(history.finish(|| current(1..=1000)), Some(Unkept::NoRoom)));
    assert!(history.finish(HashSet::default).is_none(), "it is told once");
    drop(history);
    let kept = on_disk(&dir);
    assert!(kept <= 9 * M / 4 && kept > 2 * M, "{kept}");
    // Nothing is written for more than half of what was left free, and nothing given back.
    OTHERS.store(50 * M, Ordering::Relaxed);
    assert!(open().finish(HashSet::default).is_none() && on_disk(&dir) == kept);
    OTHERS.store(57 * M, Ordering::Relaxed);
    assert!(matches!(open().finish(HashSet::default), Some(Unkept::NoRoom)));
    assert_eq!(on_disk(&dir), 0);
}

#[test]
fn a_store_that_is_given_up_leaves_nothing_and_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(&dir, M);
    put(&history, 1..=30);
    history.finish(HashSet::default);
    drop(history);
    let history = open(&dir, M);
    put(&history, 31..=33);
    let in_use = history.find(Digest::of(&content(1)).prefix()).unwrap();
    assert!(history.give_up() >= 33 * (10 << 10));
    assert_eq!(in_use.read(), Some(content(1)));
    assert!(packs(&dir).is_empty() && !has(&history, 2));
    put(&history, 1..=30);
    assert_eq!((history.give_up(), history.finish(HashSet::default).is_none()), (0, true));
    assert!(packs(&dir).is_empty());
}

#[test]
fn a_full_disk_gets_back_what_was_being_written_and_the_oldest() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("history");
    fs::create_dir(&at).unwrap();
    if mount("tmpfs", &at, "tmpfs", MountFlags::empty(), Some(c"size=2m,mode=700")).is_err() {
        eprintln!("SKIPPED: a_full_disk_gets_back_what_was_being_written_and_the_oldest: may not mount");
        return;
    }
    let _unmounted = Unmounted(&at);
    // One that does not know how much there is.
    let history = open(&dir, 40 * M);
    put(&history, 1..=100);
    assert!(history.finish(HashSet::default).is_none());
    drop(history);
    let history = open(&dir, 40 * M);
    put(&history, 101..=300);
    assert!(on_disk(&dir) < 3 * M / 4, "{} bytes", on_disk(&dir));
    let unkept = history.finish(HashSet::default);
    assert!(matches!(&unkept, Some(Unkept::Io(error)) if error.kind() == io::ErrorKind::StorageFull), "{unkept:?}");
}

struct Unmounted<'a>(&'a Path);

impl Drop for Unmounted<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

/// As a daemon does it, which opens it once.
#[test]
fn it_goes_on_after_it_was_finished() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(&dir, M);
    for round in 0..20 {
        let numbers = round * 20..(round + 1) * 20;
        put(&history, numbers.clone());
        // Not only once it is in a pack that is complete.
        assert!(numbers.clone().all(|number| has(&history, number)), "round {round}");
        assert!(history.finish(|| current(numbers.clone())).is_none());
        assert!(numbers.clone().all(|number| has(&history, number)), "round {round}");
        assert!(on_disk(&dir) <= M, "round {round}");
    }
    // More than it may hold, at once: it takes no more until it is finished.
    put(&history, 1000..1200);
    assert!(!history.wants(&Digest::of(&content(1)), 10 * K as u64));
    history.finish(HashSet::default);
    assert!(history.wants(&Digest::of(&content(1)), 10 * K as u64));
    history.give_up();
    history.finish(HashSet::default);
    assert!(!history.wants(&Digest::of(&content(1)), 10 * K as u64));
}
