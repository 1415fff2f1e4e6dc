//! Previous contents of one source: a bounded store in the state directory, so that the old content of a changed file is
//! at hand when its new one is sent.
//!
//! A cache and no more: nothing is flushed, and what is lost or damaged costs bytes on the wire. Contents lie one behind
//! the other in packs, each written under another name and renamed when its table is complete. A pack with a table that is
//! not sound is removed; one that cannot be opened or read just now stays, and its contents are missing meanwhile. What is
//! read is compared with its digest. Whoever holds the lock of the source's index is alone here.
//!
//! It gives way to all else on its file system: it leaves some of it free, and a full one gets room from it.

mod handles;
mod pack;
mod plan;
mod room;
mod store;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::HashSet;

use super::read::SourceFile;
use crate::hash::Digest;

pub use room::{leave_room, remove_all};

use pack::{FILLED, PIECE, number_of, read_table};
use room::Room;
use store::Store;

/// Smaller contents are sent whole in any case.
const LEAST: u64 = 1 << 10;

/// Bytes of a pack of several contents: a part of the store, so that some can go while most stays.
const PACK: RangeInclusive<u64> = 64 << 10..=256 << 20;

/// Larger contents are alone in a pack, which goes with them.
const ALONE: u64 = 64 << 20;

/// The store. Memory: some 75 to 150 bytes for each content, and up to 3 MiB while it is written, with some 60 bytes for
/// each content of the pack under way; while room is made, some 60 bytes more for each content that files have. Open files: the
/// packs used last, at most 16, those of each [`Kept`], and the one that is being written.
pub struct History {
    to_be_filled: AtomicBool,
    /// Known without waiting for who works on the store.
    is_empty: AtomicBool,
    store: Mutex<Store>,
}

/// Sizes in bytes.
#[derive(Clone)]
struct Bounds {
    /// Of the store.
    most: u64,
    /// Of a content.
    contents: RangeInclusive<u64>,
    /// Of a pack with several contents.
    pack: u64,
    /// Of a content beside others.
    alone: u64,
}

impl Bounds {
    fn of(most: u64) -> Self {
        Self { most, contents: LEAST..=most / 4, pack: *PACK.end(), alone: ALONE }.fit(most)
    }

    /// The same for a store that finds room for no more than so many bytes.
    fn fit(self, bytes: u64) -> Self {
        Self { pack: self.pack.min(bytes / 32).max(*PACK.start()), ..self }
    }
}

/// Why not everything was kept that is to be.
#[derive(Debug, thiserror::Error)]
pub enum Unkept {
    /// Some room must be left for the indexes and for others.
    #[error("the file system of the state directory is nearly full")]
    NoRoom,
    /// A pack could not be written or removed.
    #[error(transparent)]
    Io(io::Error),
}

/// One content of the store. What is read of it is to be compared with its digest before it is used.
#[derive(Clone)]
pub struct Kept {
    file: Arc<File>,
    offset: u64,
    len: u64,
    digest: Digest,
}

impl Kept {
    /// Which content.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// How many bytes.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// The whole content, verified; `None` if it is lost.
    pub fn read(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.len).ok()?];
        self.file.read_exact_at(&mut bytes, self.offset).ok()?;
        (Digest::of(&bytes) == self.digest).then_some(bytes)
    }

    /// Shows the content piece by piece to `see`, and tells whether it is what it was.
    pub fn verify(&self, see: &mut dyn FnMut(&[u8])) -> bool {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; PIECE];
        let mut done = 0;
        while done < self.len {
            let now = usize::try_from(self.len - done).unwrap_or(PIECE).min(PIECE);
            if self.read_exact_at(done, &mut buffer[..now]).is_err() {
                return false;
            }
            hasher.update(&buffer[..now]);
            see(&buffer[..now]);
            done += now as u64;
        }
        Digest::from(hasher.finalize()) == self.digest
    }

    /// Fills `buffer` from `offset` of the content, which was verified before.
    ///
    /// # Errors
    /// What the system says; also if the content ends before.
    pub fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(buffer, self.offset + offset)
    }
}

impl History {
    /// Opens the store in `dir`, which is made if it is missing, for at most `most` bytes. Of its file system it leaves
    /// `indexes` bytes free, and in any case 16 MiB and one part in a hundred, of which not more than 1 GiB.
    ///
    /// # Errors
    /// What the system says about the directory. A damaged pack is removed; one that cannot be read is left alone.
    pub fn open(dir: PathBuf, most: u64, indexes: u64) -> io::Result<Self> {
        let room = Room::at(dir.clone(), indexes);
        Self::open_with(dir, Bounds::of(most), room)
    }

    fn open_with(dir: PathBuf, bounds: Bounds, room: Room) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut store = Store::new(dir.clone(), bounds, room);
        for item in fs::read_dir(&dir)? {
            let path = item?.path();
            if path.file_name() == Some(FILLED.as_ref()) {
                continue;
            }
            match number_of(&path).map(|number| (number, read_table(&path))) {
                Some((number, Ok(Some((bytes, contents))))) => store.add(number, bytes, Some(contents)),
                // A crash left it, or it is damaged; nobody else writes here.
                None | Some((_, Ok(None))) => drop(fs::remove_file(&path)),
                Some((number, Err(error))) => {
                    tracing::debug!(%error, pack = number, "previous contents cannot be read");
                    // It takes room all the same, and its number.
                    store.add(number, fs::symlink_metadata(&path).map_or(0, |meta| meta.len()), None);
                }
            }
        }
        store.fit();
        let (is_empty, to_be_filled) = (store.is_empty().into(), (store.is_empty() || !store.is_filled()).into());
        Ok(Self { is_empty, to_be_filled, store: Mutex::new(store) })
    }

    /// Whether there is nothing in it that could be found. Waits for nobody.
    pub fn is_empty(&self) -> bool {
        self.is_empty.load(Ordering::Relaxed)
    }

    /// Whether what the source has was never put in as a whole, and nobody is about it.
    pub fn is_to_be_filled(&self) -> bool {
        self.to_be_filled.load(Ordering::Relaxed)
    }

    /// What the source has is put in from here on.
    pub fn begin_filling(&self) {
        self.to_be_filled.store(false, Ordering::Relaxed);
    }

    /// What the source had when that began was put in, as far as it is wanted: also for who opens the store again, once
    /// [`History::finish`] was called.
    pub fn filled(&self) {
        self.store().filled();
    }

    /// The content whose digest begins in that way; `None` also if it cannot be opened.
    pub fn find(&self, prefix: u64) -> Option<Kept> {
        self.store().find(prefix)
    }

    /// Whether a content of so many bytes is to be put in.
    pub fn wants(&self, digest: &Digest, size: u64) -> bool {
        self.store().wants(digest, size)
    }

    /// Puts a content in.
    pub fn put(&self, digest: Digest, content: &[u8]) {
        self.changing(|store| store.put(digest, content));
    }

    /// Puts a content in from a file that had it when it was last read: should it have changed, that shows when the
    /// content is needed. On file systems that can do so, the blocks of one that is alone in a pack are shared.
    pub fn put_file(&self, digest: Digest, source: &SourceFile, size: u64) {
        self.changing(|store| store.put_file(digest, source, size));
    }

    /// Keeps what was put in, and makes room: `current` tells the contents that files of the source have now. First
    /// goes what no file has any more, the oldest first; then what was put in first. Says why if not all could be kept
    /// that was put in.
    pub fn finish(&self, current: impl FnOnce() -> HashSet<u64>) -> Option<Unkept> {
        self.changing(|store| store.finish(current))
    }

    /// Removes all contents, for something that needs the room more; nothing is put in any more. Returns how many bytes
    /// were removed. What a [`Kept`] still holds is free after that.
    pub fn give_up(&self) -> u64 {
        self.changing(Store::give_up)
    }

    fn changing<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let done = change(&mut store);
        self.is_empty.store(store.is_empty(), Ordering::Relaxed);
        done
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
