//! What a mirror has to say, as log lines.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sync_core::monitor::{Monitor, Problem};
use sync_core::path::escape;

/// How long a problem that comes again and again is not logged again. The status always tells it.
const QUIET: Duration = Duration::from_secs(3600);

/// Of how many problems that is remembered.
const KNOWN: usize = 1000;

/// Logs for one share, or one of its replicas.
pub struct Log {
    share: String,
    /// The replica; the share's own tree without one.
    replica: Option<String>,
    /// What was logged last, and when, the oldest first.
    last: Mutex<VecDeque<(Problem, Instant)>>,
}

impl Log {
    /// For this one.
    pub fn new(share: String, replica: Option<String>) -> Self {
        Self { share, replica, last: Mutex::default() }
    }

    /// Whether that was logged not long ago.
    fn is_known(&self, problem: &Problem) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|(_, at)| at.elapsed() < QUIET);
        if last.iter().any(|(known, _)| known == problem) {
            return true;
        }
        if last.len() == KNOWN {
            last.pop_front();
        }
        last.push_back((problem.clone(), Instant::now()));
        false
    }

    fn place(&self) -> &str {
        self.replica.as_deref().unwrap_or("here")
    }
}

impl Monitor for Log {
    fn notice(&self, _: Option<usize>, text: &str) {
        tracing::info!(share = self.share, at = self.place(), "{text}");
    }

    fn recovered(&self, _: Option<usize>) {
        let had_any = !std::mem::take(&mut *self.last.lock().unwrap_or_else(PoisonError::into_inner)).is_empty();
        if had_any {
            tracing::info!(share = self.share, at = self.place(), "all is well again");
        }
    }

    fn problem(&self, _: Option<usize>, problem: &Problem) {
        if self.is_known(problem) {
            return;
        }
        let path = problem.path.as_ref().map(|path| escape(path.as_bytes()));
        let path = path.as_ref().map(tracing::field::display);
        tracing::warn!(share = self.share, at = self.place(), path, "{}", problem.reason);
    }
}
