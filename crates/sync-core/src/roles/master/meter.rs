//! Work done so far, counted from many threads and told to the monitor now and then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::monitor::{Monitor, Phase, Progress};

/// How often the monitor hears of progress.
const EVERY: Duration = Duration::from_millis(100);

/// The counters of one push.
pub struct Meter {
    monitor: Arc<dyn Monitor>,
    scanned: AtomicU64,
    hashed: AtomicU64,
    to_hash: AtomicU64,
    sent: Vec<AtomicU64>,
    to_send: Vec<AtomicU64>,
    told: Mutex<Instant>,
}

impl Meter {
    /// Counters at zero for `destinations` destinations.
    pub fn new(monitor: Arc<dyn Monitor>, destinations: usize) -> Self {
        let counters = || (0..destinations).map(|_| AtomicU64::new(0)).collect();
        Self {
            monitor,
            scanned: AtomicU64::new(0),
            hashed: AtomicU64::new(0),
            to_hash: AtomicU64::new(u64::MAX),
            sent: counters(),
            to_send: counters(),
            told: Mutex::new(Instant::now()),
        }
    }

    /// Entries looked at, in all.
    pub fn scanned(&self, entries: u64) {
        self.scanned.store(entries, Ordering::Relaxed);
        self.tell(Phase::Scan);
    }

    /// There are so many more bytes to hash.
    pub fn to_hash(&self, bytes: u64) {
        let more = |before: u64| Some(if before == u64::MAX { bytes } else { before.saturating_add(bytes) });
        let _ = self.to_hash.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// More bytes were hashed.
    pub fn hashed(&self, bytes: u64) {
        self.hashed.fetch_add(bytes, Ordering::Relaxed);
        self.tell(Phase::Hash);
    }

    /// A destination wants more bytes.
    pub fn wanted(&self, dest: usize, bytes: u64) {
        if let Some(counter) = self.to_send.get(dest) {
            counter.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// More bytes were sent to a destination.
    pub fn sent(&self, dest: usize, bytes: u64) {
        if let Some(counter) = self.sent.get(dest) {
            counter.fetch_add(bytes, Ordering::Relaxed);
        }
        self.tell(Phase::Send);
    }

    /// A destination publishes.
    pub fn publishing(&self) {
        self.monitor.progress(&self.progress(Phase::Publish));
    }

    fn tell(&self, phase: Phase) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() >= EVERY {
            *told = Instant::now();
            drop(told);
            self.monitor.progress(&self.progress(phase));
        }
    }

    fn progress(&self, phase: Phase) -> Progress {
        let all = |counters: &[AtomicU64]| counters.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        let to_hash = self.to_hash.load(Ordering::Relaxed);
        Progress {
            phase,
            scanned: self.scanned.load(Ordering::Relaxed),
            hashed: self.hashed.load(Ordering::Relaxed),
            to_hash: (to_hash != u64::MAX).then_some(to_hash),
            sent: all(&self.sent),
            to_send: all(&self.to_send),
        }
    }
}
