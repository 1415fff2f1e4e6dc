use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use super::*;
use crate::chunk::covered;

struct Place {
    top: tempfile::TempDir,
    root: Root,
}

fn place() -> Place {
    let top = tempfile::tempdir().unwrap();
    let root = Root::open(top.path()).unwrap();
    Place { top, root }
}

fn x() -> RelPath {
    RelPath::new("x").unwrap()
}

fn reading<'a>(keep: u64, cancel: &'a AtomicBool, progress: &'a dyn Fn(u64)) -> Reading<'a> {
    Reading { keep, chunked: true, old: None, follow: None, draft: &|_| {}, xattrs: true, cancel, progress }
}

impl Place {
    fn write(&self, bytes: &[u8]) -> Tuple {
        fs::write(self.top.path().join("x"), bytes).unwrap();
        self.tuple()
    }

    fn tuple(&self) -> Tuple {
        self.root.stat(&x()).unwrap().unwrap().tuple
    }

    fn hash(&self, expected: &Tuple, keep: u64, progress: &dyn Fn(u64)) -> Result<Hashed, ReadError> {
        hash_file(&self.root, &x(), expected, &reading(keep, &AtomicBool::new(false), progress))
    }
}

#[test]
fn sizes_around_every_bound() {
    let place = place();
    let piece = PIECE as usize;
    // Nothing, one byte, what is chunked at all, one piece, several pieces.
    for size in [0, 1, MIN_DELTA as usize - 1, MIN_DELTA as usize, piece - 1, piece, piece + 1, 3 * piece + 17] {
        let bytes: Vec<u8> = (0..size).map(|i| (i * i / 255) as u8).collect();
        let tuple = place.write(&bytes);
        let told = std::cell::Cell::new(0);
        let hashed = place.hash(&tuple, MIN_DELTA, &|n| told.set(told.get() + n)).unwrap();
        assert_eq!(hashed.digest, Digest::of(&bytes), "{size}");
        assert_eq!((hashed.size, told.get(), hashed.tuple), (size as u64, size as u64, tuple));
        assert_eq!(hashed.content, (size as u64 <= MIN_DELTA).then_some(bytes), "{size}");
        let chunked = hashed.chunks.as_deref().map(covered);
        assert_eq!(chunked, (size as u64 >= MIN_DELTA).then_some(size as u64));
    }
}

#[test]
fn a_young_stamp_proves_nothing_an_old_one_does() {
    let place = place();
    let mut young = 0;
    for i in 0..20 {
        let tuple = place.write(&[i]);
        let hashed = place.hash(&tuple, 0, &|_| {}).unwrap();
        young += u32::from(!hashed.proven);
    }
    assert!(young > 0, "written and read within a tick, and yet believed, twenty times");
    let tuple = place.tuple();
    assert!(clock::wait_past(tuple.ctime, Duration::from_secs(5)));
    assert!(place.hash(&tuple, 0, &|_| {}).unwrap().proven);
}

#[test]
fn whatever_is_not_what_was_seen_is_a_change() {
    let place = place();
    let path = place.top.path().join("x");
    let tuple = place.write(b"old");
    let changed = |label: &str| {
        assert!(matches!(place.hash(&tuple, 9, &|_| {}), Err(ReadError::Changed)), "{label}");
    };
    fs::write(&path, "new and longer").unwrap();
    changed("grown");
    fs::write(&path, "n").unwrap();
    changed("shrunk");
    fs::remove_file(&path).unwrap();
    changed("gone");
    symlink("/etc/passwd", &path).unwrap();
    changed("a link");
    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    changed("a fifo");
    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Socket, Mode::from_raw_mode(0o600), 0).unwrap();
    changed("a socket");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    changed("a directory");
}

#[test]
fn a_change_while_it_is_read_is_noticed() {
    let place = place();
    let big = vec![1; 3 << 20];
    type Edit = fn(&std::path::Path);
    let edits: [(&str, Edit); 3] = [
        ("truncated", |path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 20).unwrap()),
        ("appended", |path| {
            use std::io::Write;
            fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"x").unwrap();
        }),
        ("edited in place", |path| {
            use std::os::unix::fs::FileExt;
            fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"x", 5).unwrap();
        }),
    ];
    for (label, edit) in edits {
        let tuple = place.write(&big);
        // Past its tick, so that the edit shows even where stamps are coarse.
        assert!(clock::wait_past(tuple.ctime, Duration::from_secs(5)));
        let first = std::cell::Cell::new(true);
        let result = place.hash(&tuple, 0, &|_| {
            if first.replace(false) {
                edit(&place.top.path().join("x"));
            }
        });
        assert!(matches!(result, Err(ReadError::Changed)), "{label}: {result:?}");
    }
}

#[test]
fn cancelled_before_it_is_done() {
    let place = place();
    let tuple = place.write(&vec![0; 4 << 20]);
    let cancel = AtomicBool::new(false);
    let told = std::cell::Cell::new(0);
    let progress = |n| {
        told.set(told.get() + n);
        cancel.store(true, Ordering::Relaxed);
    };
    let result = hash_file(&place.root, &x(), &tuple, &reading(0, &cancel, &progress));
    assert!(matches!(result, Err(ReadError::Cancelled)));
    assert_eq!(told.get(), PIECE);
}

#[test]
fn ranges_are_of_the_same_file_or_refused() {
    let place = place();
    let tuple = place.write(b"0123456789");
    let file = SourceFile::open(&place.root, &x(), &tuple).unwrap();
    let mut four = [0; 4];
    file.read_exact_at(3, &mut four).unwrap();
    assert_eq!(&four, b"3456");
    file.verify(&place.root).unwrap();
    assert!(matches!(file.read_exact_at(8, &mut four), Err(ReadError::Changed)));
    assert!(clock::wait_past(tuple.ctime, Duration::from_secs(5)));
    place.write(b"0123456780");
    assert!(matches!(file.verify(&place.root), Err(ReadError::Changed)));
    assert!(matches!(SourceFile::open(&place.root, &x(), &tuple), Err(ReadError::Changed)));
}

#[test]
fn a_directory_flipped_to_a_link_never_leads_a_reading_outside() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let place = place();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("f"), "secret").unwrap();
    let (dir, link) = (place.top.path().join("d"), place.top.path().join("l"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("f"), "public").unwrap();
    symlink(outside.path(), &link).unwrap();
    let path = RelPath::new("d/f").unwrap();
    let ours = place.root.stat(&path).unwrap().unwrap().tuple;
    let stop = AtomicBool::new(false);
    let (mut read, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &dir, CWD, &link, RenameFlags::EXCHANGE).unwrap();
            }
        });
        // The scheduler may let one of the two threads run alone for long.
        let start = std::time::Instant::now();
        while (read < 200 || refused < 200) && start.elapsed() < Duration::from_secs(20) {
            place.root.forget(&RelPath::root());
            // What a look finds there at this moment: ours or nothing, and never what is outside.
            let seen = place.root.stat(&path).ok().flatten().map_or(ours, |stat| stat.tuple);
            match hash_file(&place.root, &path, &seen, &reading(100, &AtomicBool::new(false), &|_| {})) {
                Ok(hashed) if hashed.content.as_deref() == Some(b"public") => read += 1,
                Err(ReadError::Changed) => refused += 1,
                other => {
                    stop.store(true, Ordering::Relaxed);
                    panic!("led outside: {other:?}");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(read > 0 && refused > 0, "{read} read, {refused} refused: nothing was flipped");
}

#[test]
fn nothing_is_taken_out_of_a_fifo_that_took_the_name() {
    let place = place();
    let tuple = place.write(&[7; 100]);
    let path = place.top.path().join("x");
    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let both = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    rustix::io::write(&both, b"for somebody else").unwrap();
    assert!(matches!(place.hash(&tuple, 1000, &|_| {}), Err(ReadError::Changed)));
    let mut left = [0; 100];
    assert_eq!(rustix::io::read(&both, &mut left).unwrap(), b"for somebody else".len());
}

/// A file that another thread cuts has the chunks that it would have had.
#[test]
fn a_large_file_is_cut_beside_the_reading() {
    let place = place();
    let bytes = crate::chunk::noise(BESIDE as usize + 4321, 3);
    let tuple = place.write(&bytes);
    let hashed = place.hash(&tuple, 0, &|_| {}).unwrap();
    assert_eq!(hashed.digest, Digest::of(&bytes));
    let sizes = Chunking::for_size(bytes.len() as u64);
    assert_eq!(hashed.chunks, Some(crate::chunk::chunks_of(&bytes, sizes)));
}

/// A content that several threads read: mostly a hole, so that it costs little.
fn large(place: &Place) -> (Vec<u8>, Tuple) {
    let mut content = crate::chunk::noise(5 << 20, 3);
    content.resize(BESIDE as usize + (5 << 20) + 17, 0);
    content.extend(crate::chunk::noise(300_000, 4));
    (content.clone(), place.write(&content))
}

#[test]
fn a_large_file_read_by_several_threads_is_what_it_is() {
    let place = place();
    let (mut content, tuple) = large(&place);
    let told = std::cell::Cell::new(0);
    let hashed = place.hash(&tuple, 0, &|n| told.set(told.get() + n)).unwrap();
    let chunks = |content: &[u8]| chunks_of(content, Chunking::for_size(content.len() as u64));
    assert_eq!((hashed.digest, hashed.size), (Digest::of(&content), content.len() as u64));
    assert_eq!((told.get(), hashed.chunks.as_deref()), (hashed.size, Some(&chunks(&content)[..])));

    content.insert(1 << 20, 7);
    let tuple = place.write(&content);
    let cancel = AtomicBool::new(false);
    let ranges = std::cell::RefCell::new(Vec::new());
    let draft = |told| ranges.borrow_mut().extend(told);
    let how = Reading { follow: hashed.chunks.map(Into::into), draft: &draft, ..reading(0, &cancel, &|_| {}) };
    let hashed = hash_file(&place.root, &x(), &tuple, &how).unwrap();
    // What it has in common with the one before, told in order: nearly all, one byte further back.
    let ranges = ranges.into_inner();
    assert!(ranges.iter().all(|range| range.at == range.from || range.at == range.from + 1), "{ranges:?}");
    assert!(ranges.iter().map(|range| range.len).sum::<u64>() > hashed.size - (2 << 20), "{ranges:?}");
    assert_eq!((hashed.digest, hashed.chunks), (Digest::of(&content), Some(chunks(&content))));
}

#[test]
fn a_large_file_that_changes_or_is_cancelled_is_given_up() {
    let place = place();
    let (_, tuple) = large(&place);
    let path = place.top.path().join("x");
    let cancel = AtomicBool::new(false);
    let stop = |_| cancel.store(true, Ordering::Relaxed);
    let result = hash_file(&place.root, &x(), &tuple, &reading(0, &cancel, &stop));
    assert!(matches!(result, Err(ReadError::Cancelled)), "{result:?}");
    // Cut off while it is read.
    let cut = |_| fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(9 << 20).unwrap();
    assert!(matches!(place.hash(&tuple, 0, &cut), Err(ReadError::Changed)));
}
