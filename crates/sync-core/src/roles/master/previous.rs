//! Previous contents of a source: kept where that was asked for, and in every push the first to give way when the file
//! system of the state directory has no room.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::difference::Difference;
use super::error::PushError;
use super::source::{BUSY, KEEP, Source};
use crate::fs::{History, SourceFile, history};
use crate::index::{Index, IndexError, Locked, Opened};
use crate::manifest::Row;
use crate::monitor::Monitor;
use crate::options::{Destination, PushRequest};

/// Largest content that is kept of a tree that is mirrored: a log of a hundred megabytes that grows all day would be copied
/// with each version, and push out all else. What is larger is compared by its chunks.
const MIRRORED: u64 = 16 << 20;

/// Where a source's previous contents are, whether they are in use or not. For whoever has the lock of its index.
pub struct Previous {
    dir: PathBuf,
    /// Bytes that indexes may need beside them.
    indexes: u64,
}

impl Previous {
    /// Takes the lock of the source's index in `index_dir`, and opens that. Before, previous contents in `dir` go as far as
    /// they take the room that indexes need.
    pub fn open_index(
        index_dir: &Path,
        dir: PathBuf,
        request: &PushRequest,
        monitor: &dyn Monitor,
    ) -> Result<(Opened, Self), IndexError> {
        let locked = match Index::lock(index_dir, Duration::ZERO) {
            Err(IndexError::Busy(_)) => {
                let minutes = BUSY.as_secs() / 60;
                let text = format!(
                    "another push of this source is under way, or a daemon mirrors it: waits for it, {minutes} minutes at most"
                );
                monitor.notice(None, &text);
                Index::lock(index_dir, BUSY)?
            }
            locked => locked?,
        };
        let previous = Self { dir, indexes: needed(&locked, &request.destinations) };
        let removed = history::leave_room(&previous.dir, previous.indexes);
        if removed > 0 {
            notice_removed(monitor, "the file system of the state directory is nearly full", removed);
        }
        let opened = previous.giving_room(None, monitor, || locked.open())?;
        Ok((opened, previous))
    }

    /// Opens what is kept, for at most `most` bytes.
    pub fn open(&self, most: u64, monitor: &dyn Monitor) -> Option<History> {
        let opened = History::open(self.dir.clone(), most, self.indexes);
        opened.inspect_err(|error| notice_not_kept(monitor, &error.to_string())).ok()
    }

    /// Does something with the index, and once more if there is no space left for it and removing previous contents gives
    /// some. `open` are the contents, if they are in use.
    ///
    /// # Errors
    /// Those of `work`; [`IndexError::Full`] also if nothing was kept.
    pub fn giving_room<T, E: From<IndexError> + AsIndexError>(
        &self,
        open: Option<&History>,
        monitor: &dyn Monitor,
        work: impl Fn() -> Result<T, E>,
    ) -> Result<T, E> {
        match work() {
            Err(error) if matches!(error.as_index_error(), Some(IndexError::Full(_))) => {
                let removed = match open {
                    Some(history) => history.give_up(),
                    None => history::remove_all(&self.dir),
                };
                if removed == 0 {
                    return Err(error);
                }
                notice_removed(monitor, "no space left for the index", removed);
                work()
            }
            done => done,
        }
    }
}

/// An error that may be one of the index.
pub trait AsIndexError {
    /// The error of the index, if it is one.
    fn as_index_error(&self) -> Option<&IndexError>;
}

impl AsIndexError for IndexError {
    fn as_index_error(&self) -> Option<&IndexError> {
        Some(self)
    }
}

impl AsIndexError for PushError {
    fn as_index_error(&self) -> Option<&IndexError> {
        if let Self::Index(error) = self { Some(error) } else { None }
    }
}

/// Twice the source's index, which a change of all rows writes into a log, and as much for each replica beside it.
fn needed(index: &Locked, destinations: &[Destination]) -> u64 {
    let beside = destinations.iter().filter(|destination| matches!(destination, Destination::Path(_))).count();
    index.bytes().saturating_mul(2).saturating_mul(1 + beside as u64)
}

impl Source {
    /// Keeps those contents of the committed version that were too large to keep when they were read; of a store that
    /// was empty, all.
    pub fn keep_contents(&self, difference: &Difference) -> Result<(), PushError> {
        match &self.history {
            Some(history) if history.is_to_be_filled() => self.fill_history(&AtomicBool::new(false)),
            Some(history) => {
                difference.pending.iter().for_each(|pending| self.keep_file(history, &pending.row));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Keeps the contents of all files, until it is to stop.
    pub fn fill_history(&self, stop: &AtomicBool) -> Result<(), PushError> {
        let Some(history) = &self.history else { return Ok(()) };
        history.begin_filling();
        let mut rows = self.index.cursor()?;
        while let Some(row) = rows.next()? {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.keep_file(history, &row);
        }
        history.filled();
        Ok(())
    }

    fn keep_file(&self, history: &History, row: &Row) {
        let fits = |size: u64| !self.fills_later || size <= MIRRORED;
        let content = row.entry.content().filter(|(size, digest)| fits(*size) && history.wants(digest, *size));
        let (Some((size, digest)), Some(tuple)) = (content, row.tuple) else { return };
        // A file that changed meanwhile is not what is to be kept.
        let Ok(file) = SourceFile::open(&self.root, &row.path, &tuple) else { return };
        if size > KEEP {
            history.put_file(digest, &file, size);
        } else if let Ok(content) = file.read_at(0, usize::try_from(size).unwrap_or(0)) {
            history.put(digest, &content);
        }
    }

    /// Removes what was kept, by who keeps nothing any more.
    pub fn remove_history(&self, monitor: &dyn Monitor) {
        let removed = self.previous.as_ref().map_or(0, |previous| history::remove_all(&previous.dir));
        if removed > 0 {
            notice_removed(monitor, "none are to be kept", removed);
        }
    }

    /// Ends what was kept, and makes room in the history.
    pub fn tidy_history(&self, monitor: &dyn Monitor) {
        let Some(history) = &self.history else { return };
        let unkept = history.finish(|| {
            let mut current = foldhash::HashSet::default();
            let Ok(mut rows) = self.index.cursor() else { return current };
            while let Ok(Some(row)) = rows.next() {
                current.extend(row.entry.content().map(|(_, digest)| digest.prefix()));
            }
            current
        });
        if let Some(why) = unkept {
            notice_not_kept(monitor, &why.to_string());
        }
    }
}

fn notice_removed(monitor: &dyn Monitor, why: &str, bytes: u64) {
    let mebibytes = bytes.div_ceil(1 << 20);
    monitor.notice(None, &format!("{why}: {mebibytes} MiB of previous contents were removed; more is sent, once"));
}

fn notice_not_kept(monitor: &dyn Monitor, why: &str) {
    monitor.notice(None, &format!("not all previous contents are kept: {why}; more is sent than need be"));
}
