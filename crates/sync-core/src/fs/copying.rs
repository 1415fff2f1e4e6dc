//! The copying for a draft, and all that is under way in a staging.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use rustix::fs::ftruncate;

use super::error::FsError;
use crate::delta::CopyRange;
use crate::hash::BlockHash;

/// A block that was copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Its number.
    pub(super) i: u64,
    /// Where it was in the old file.
    pub(super) from: u64,
    /// Its hash.
    pub(super) hash: BlockHash,
}

/// What was copied, in order.
pub(super) type Blocks = VecDeque<Block>;

/// The work on a draft. Dropped, it has ended.
#[derive(Debug)]
pub(super) struct Copying {
    pub given_up: Arc<AtomicBool>,
    /// `None` once somebody has waited for its end.
    threads: Mutex<Option<Threads>>,
}

/// Who does it.
#[derive(Debug)]
pub(super) struct Threads {
    /// When this is gone, and all that was told is copied, they end.
    pub ranges: SyncSender<CopyRange>,
    pub reading: JoinHandle<Result<(), FsError>>,
    pub writing: JoinHandle<Result<(OwnedFd, Blocks), FsError>>,
}

/// The drafts of a staging that may be under way, with their sizes.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<Vec<(u64, Weak<Copying>)>>);

impl UnderWay {
    /// All of them.
    pub fn all(&self) -> MutexGuard<'_, Vec<(u64, Weak<Copying>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Copying {
    /// By these threads, until `given_up` is raised.
    pub fn new(given_up: Arc<AtomicBool>, threads: Threads) -> Self {
        Self { given_up, threads: Mutex::new(Some(threads)) }
    }

    /// Who does it, until somebody has waited for them.
    pub fn threads(&self) -> MutexGuard<'_, Option<Threads>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all that was to be copied; `None` if somebody has waited before.
    pub fn join(&self) -> Option<(Result<(), FsError>, Result<(OwnedFd, Blocks), FsError>)> {
        let Threads { ranges, reading, writing } = self.threads().take()?;
        drop(ranges);
        let (read, written) = (reading.join(), writing.join());
        read.ok().zip(written.ok())
    }

    /// Copies no more, and takes back what was copied.
    pub fn end(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        if let Some((_, Ok((fd, _)))) = self.join() {
            let _ = ftruncate(&fd, 0);
        }
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.end();
    }
}
