//! A disk without room: said as that, nothing is lost, and what was refused may be tried again.

use std::fs;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;

/// An index's own disk, of so many bytes.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(test: &str, bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={bytes},mode=700")).unwrap();
        if mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(options.as_c_str())).is_err() {
            eprintln!("SKIPPED: {test}: may not mount");
            return None;
        }
        Some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves no room; the file that takes it.
    fn fill(&self) -> std::path::PathBuf {
        let filler = self.path().join("filler");
        let mut file = fs::File::create(&filler).unwrap();
        while std::io::Write::write(&mut file, &[1; 4096]).is_ok_and(|written| written > 0) {}
        filler
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

fn fifo(number: u64) -> Row {
    row(&format!("fifo{number:06}"), Kind::Fifo, number)
}

#[test]
fn an_index_that_finds_no_room_opens_and_writes_once_there_is_some() {
    let Some(disk) = Disk::new("an_index_that_finds_no_room_opens_and_writes_once_there_is_some", 2 << 20) else {
        return;
    };
    let dir = disk.path().join("index");
    let write = |index: &Index, numbers: std::ops::Range<u64>| {
        index.write::<(), IndexError>(0, |writer| numbers.clone().try_for_each(|n| writer.upsert(&fifo(n))))
    };
    write(&open(&dir).index, 0..10).unwrap();
    let filler = disk.fill();
    let locked = Index::lock(&dir, FORK).unwrap();
    assert!(locked.bytes() > 0);
    let refused = locked.open().map(drop).unwrap_err();
    assert!(matches!(refused, IndexError::Full(_)), "{refused}");
    fs::remove_file(&filler).unwrap();
    let opened = locked.open().unwrap();
    assert!(opened.rebuilt.is_none());
    // The lock is the index's as well as ours.
    drop(locked);
    assert!(matches!(Index::lock(&dir, Duration::ZERO), Err(IndexError::Busy(_))));
    let index = opened.index;
    let filler = disk.fill();
    let refused = write(&index, 10..2000).unwrap_err();
    assert!(matches!(refused, IndexError::Full(_)), "{refused}");
    fs::remove_file(filler).unwrap();
    write(&index, 10..2000).unwrap();
    assert_eq!(index.row(&path("fifo001999")).unwrap(), Some(fifo(1999)));
    drop(index);
    assert!(Index::lock(&dir, FORK).is_ok());
}

#[test]
fn what_is_committed_is_no_failure_because_the_log_cannot_be_folded_in() {
    let rows = crate::index::CHECKPOINT_ROWS as u64 + 1;
    let write = |index: &Index| {
        index.write::<(), IndexError>(0, |writer| (0..rows).try_for_each(|number| writer.insert(&fifo(number))))
    };
    // How much that is.
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path()).index;
    write(&index).unwrap();
    let log = fs::metadata(dir.path().join("index.db-wal")).unwrap().len();
    drop(index);
    let database = fs::metadata(dir.path().join("index.db")).unwrap().len();
    let name = "what_is_committed_is_no_failure_because_the_log_cannot_be_folded_in";
    let Some(disk) = Disk::new(name, log + database / 2) else { return };
    let index = open(disk.path()).index;
    write(&index).unwrap();
    assert_eq!(index.row(&path("fifo000077")).unwrap(), Some(fifo(77)));
}
