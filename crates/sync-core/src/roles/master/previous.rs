//! Previous contents of a source: kept where that was asked for, and in every push the first to give way when the file
//! system of the state directory has no room.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::PushError;
use crate::fs::{History, history};
use crate::index::{Index, IndexError, Locked, Opened};
use crate::monitor::Monitor;
use crate::options::{Destination, PushRequest};

/// How long to wait for another push of the same source.
const BUSY: Duration = Duration::from_secs(600);

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

    /// Removes all that is kept; how many bytes that were.
    pub fn remove_all(&self) -> u64 {
        history::remove_all(&self.dir)
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

/// Says how much of what was kept is gone, and why.
pub(super) fn notice_removed(monitor: &dyn Monitor, why: &str, bytes: u64) {
    let mebibytes = bytes.div_ceil(1 << 20);
    monitor.notice(None, &format!("{why}: {mebibytes} MiB of previous contents were removed; more is sent, once"));
}

/// Says that not all is kept that should be, and why.
pub(super) fn notice_not_kept(monitor: &dyn Monitor, why: &str) {
    monitor.notice(None, &format!("not all previous contents are kept: {why}; more is sent than need be"));
}
