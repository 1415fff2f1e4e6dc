//! Fills an empty history beside a mirror: with what there was before anybody watched.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_blocking};

use super::source::Source;
use crate::monitor::Monitor;

/// How long it waits: a first copy, which takes much memory as well, is often over by then.
const COPIED: Duration = Duration::from_secs(10);

/// How often a thread that waits looks whether it is to end.
const TICK: Duration = Duration::from_millis(100);

/// The thread that does it.
pub struct Filling {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Filling {
    /// Begins, in a while. Must be called within a tokio runtime.
    pub fn start(source: &Arc<Source>, monitor: &Arc<dyn Monitor>) -> Self {
        let stop: Arc<AtomicBool> = Arc::default();
        let thread = spawn_blocking({
            let (source, monitor, stop) = (Arc::clone(source), Arc::clone(monitor), Arc::clone(&stop));
            move || fill(&source, &stop, &*monitor)
        });
        Self { stop, thread }
    }

    /// Ends it, wherever it is. What is missing then is put in another time.
    pub async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = (&mut self.thread).await;
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn fill(source: &Source, stop: &AtomicBool, monitor: &dyn Monitor) {
    let begun = Instant::now();
    while begun.elapsed() < COPIED && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(TICK);
    }
    match source.fill_history(stop) {
        Ok(()) => source.tidy_history(monitor),
        Err(error) => monitor.notice(None, &format!("not all previous contents are kept: {error}")),
    }
}
