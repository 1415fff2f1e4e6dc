//! What a store leaves free on its file system, which the indexes beside it need more than the store does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

use super::pack::number_of;

/// The least that is left free.
const LEAST: u64 = 16 << 20;

/// The most that is left free of a large file system for its size.
const MOST: u64 = 1 << 30;

/// A file system as it is now, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// What whoever is not root may still write.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

/// How much is left free, and how much there is.
pub(super) struct Room {
    look: Box<dyn Fn() -> Option<Size> + Send + Sync>,
    /// Bytes that are left free whatever the size of the file system.
    least: u64,
}

impl Room {
    /// On the file system of `dir`, where indexes need `indexes` bytes.
    pub(super) fn at(dir: PathBuf, indexes: u64) -> Self {
        Self::with(Box::new(move || look(&dir)), indexes)
    }

    /// The same by another way to look.
    pub(super) fn with(look: Box<dyn Fn() -> Option<Size> + Send + Sync>, indexes: u64) -> Self {
        Self { look, least: LEAST.max(indexes) }
    }

    /// Bytes that may be written. A file system that tells nothing has room until it refuses.
    pub(super) fn spare(&self) -> u64 {
        (self.look)().map_or(u64::MAX, |now| now.free.saturating_sub(self.reserve(now)))
    }

    /// Bytes that are to be given back: none while there is half of what is left free, so that an index may grow without
    /// taking a pack away each time.
    pub(super) fn lack(&self) -> u64 {
        let Some(now) = (self.look)() else { return 0 };
        let reserve = self.reserve(now);
        if now.free < reserve / 2 { reserve - now.free } else { 0 }
    }

    fn reserve(&self, now: Size) -> u64 {
        self.least.max((now.total / 100).min(MOST))
    }
}

fn look(dir: &Path) -> Option<Size> {
    let now = statvfs(dir).ok()?;
    // A tmpfs without a limit says that it has no blocks at all.
    let size =
        Size { free: now.f_bavail.saturating_mul(now.f_frsize), total: now.f_blocks.saturating_mul(now.f_frsize) };
    (now.f_blocks > 0).then_some(size)
}

/// Whether an error says that the file system, or what one user may have of it, is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Removes the oldest packs of the store in `dir`, which need not be there, until its file system has what is to be left
/// free, where indexes need `indexes` bytes. Returns how many bytes were removed. For whoever holds the lock of the
/// source's index and has not opened the store.
pub fn leave_room(dir: &Path, indexes: u64) -> u64 {
    remove(dir, Room::at(dir.to_owned(), indexes).lack())
}

/// Removes the store in `dir`, which need not be there. Returns how many bytes were removed. For whoever holds the lock
/// of the source's index and has not opened the store.
pub fn remove_all(dir: &Path) -> u64 {
    remove(dir, u64::MAX)
}

/// Removes at least so many bytes, as far as there are so many. They are counted, not looked for: some file systems free
/// them a while later.
fn remove(dir: &Path, bytes: u64) -> u64 {
    if bytes == 0 {
        return 0;
    }
    let Ok(items) = fs::read_dir(dir) else { return 0 };
    // What is no pack was left by a crash, and comes first.
    let mut files: Vec<(Option<u64>, PathBuf, u64)> = items
        .filter_map(|item| {
            let item = item.ok()?;
            Some((number_of(&item.path()), item.path(), item.metadata().ok()?.len()))
        })
        .collect();
    files.sort_unstable();
    let mut removed: u64 = 0;
    for (_, path, len) in files {
        if removed >= bytes {
            break;
        }
        if fs::remove_file(path).is_ok() {
            removed = removed.saturating_add(len);
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1 << 20;
    const G: u64 = 1 << 30;

    fn room(free: u64, total: u64, indexes: u64) -> Room {
        Room::with(Box::new(move || Some(Size { free, total })), indexes)
    }

    #[test]
    fn what_is_left_free() {
        // Free, total, for indexes; to spare, to be given back.
        let cases = [
            (12 * M, 12 * M, 0, 0, 0),
            (7 * M, 12 * M, 0, 0, 9 * M),
            (20 * M, 64 * M, 0, 4 * M, 0),
            (20 * M, 64 * M, 30 * M, 0, 0),
            (20 * M, 64 * M, 60 * M, 0, 40 * M),
            // One part in a hundred, up to a gibibyte.
            (100 * G, 100 * G, 0, 99 * G, 0),
            (600 * M, 1000 * G, 0, 0, 0),
            (500 * M, 1000 * G, 0, 0, G - 500 * M),
        ];
        for (free, total, indexes, spare, lack) in cases {
            let room = room(free, total, indexes);
            assert_eq!((room.spare(), room.lack()), (spare, lack), "{free} of {total}, {indexes} for indexes");
        }
        let silent = Room::with(Box::new(|| None), 0);
        assert_eq!((silent.spare(), silent.lack()), (u64::MAX, 0));
    }

    #[test]
    fn the_oldest_go_first_and_no_more_than_must() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["writing", "0000000000000001.pack", "0000000000000002.pack", "0000000000000010.pack"];
        names.iter().for_each(|name| fs::write(dir.path().join(name), [0; 100]).unwrap());
        let left = || names.iter().filter(|name| dir.path().join(name).exists()).count();
        assert_eq!((remove(dir.path(), 0), left()), (0, 4));
        assert_eq!((remove(dir.path(), 101), left()), (200, 2));
        assert!(dir.path().join(names[2]).exists() && dir.path().join(names[3]).exists());
        assert_eq!((remove_all(dir.path()), left()), (200, 0));
        assert_eq!(remove_all(&dir.path().join("none")), 0);
    }
}
