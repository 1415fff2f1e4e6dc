//! What a mirror has to say, as log lines.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sync_core::monitor::{Monitor, Problem};
use sync_core::path::escape;

/// How long a problem that comes again and again is not logged again. The status always tells it.
const QUIET: Duration = Duration::from_secs(3600);

/// Of how many problems that is remembered. Of entries, no more are logged in that time.
const KNOWN: usize = 1000;

/// Logs for one share, or one of its replicas.
pub struct Log {
    share: String,
    /// The replica; the share's own tree without one.
    replica: Option<String>,
    last: Mutex<Last>,
}

/// What was logged not long ago.
#[derive(Default)]
struct Last {
    /// By a hash of each, and when, the oldest first.
    problems: VecDeque<(u64, Instant)>,
    salt: RandomState,
    /// Whether it was said that there are more.
    is_full: bool,
}

/// Whether a problem is logged.
#[derive(Debug, PartialEq, Eq)]
enum Logs {
    Yes,
    No,
    /// Only that there are more than are logged.
    Full,
}

impl Last {
    fn logs(&mut self, problem: &Problem, now: Instant) -> Logs {
        while self.problems.front().is_some_and(|(_, at)| now.saturating_duration_since(*at) >= QUIET) {
            self.problems.pop_front();
            self.is_full = false;
        }
        let hash = self.salt.hash_one((&problem.path, &problem.reason));
        if self.problems.iter().any(|(known, _)| *known == hash) {
            return Logs::No;
        }
        if self.problems.len() >= KNOWN {
            if problem.path.is_some() {
                return if std::mem::replace(&mut self.is_full, true) { Logs::No } else { Logs::Full };
            }
            self.problems.pop_front();
        }
        self.problems.push_back((hash, now));
        Logs::Yes
    }
}

impl Log {
    /// For this one.
    pub fn new(share: String, replica: Option<String>) -> Self {
        Self { share, replica, last: Mutex::default() }
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
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
        let had_any = std::mem::take(&mut *self.last());
        if !had_any.problems.is_empty() {
            tracing::info!(share = self.share, at = self.place(), "all is well again");
        }
    }

    fn problem(&self, _: Option<usize>, problem: &Problem) {
        match self.last().logs(problem, Instant::now()) {
            Logs::Yes => {}
            Logs::No => return,
            Logs::Full => {
                let text = "more than 1000 entries have problems: no more are logged within the hour";
                return tracing::warn!(share = self.share, at = self.place(), "{text}");
            }
        }
        let path = problem.path.as_ref().map(|path| escape(path.as_bytes()));
        let path = path.as_ref().map(tracing::field::display);
        tracing::warn!(share = self.share, at = self.place(), path, "{}", problem.reason);
    }
}

#[cfg(test)]
mod tests {
    use sync_core::path::RelPath;

    use super::*;

    #[test]
    fn each_problem_is_logged_once_an_hour_and_of_entries_no_more_than_a_thousand() {
        let problem = |i: usize| Problem { path: Some(RelPath::new(i.to_string()).unwrap()), reason: "x".to_owned() };
        let begun = Instant::now();
        let mut last = Last::default();
        for _ in 0..2 {
            let logged: Vec<Logs> = (0..1500).map(|i| last.logs(&problem(i), begun)).collect();
            let count = |what| logged.iter().filter(|logs| **logs == what).count();
            assert!([(1000, 1), (0, 0)].contains(&(count(Logs::Yes), count(Logs::Full))), "{logged:?}");
        }
        let link = Problem { path: None, reason: "the link is cut".to_owned() };
        assert_eq!([&link, &link].map(|link| last.logs(link, begun)), [Logs::Yes, Logs::No]);
        assert_eq!(last.problems.len(), KNOWN);
        assert_eq!([0, 0].map(|i| last.logs(&problem(i), begun + QUIET)), [Logs::Yes, Logs::No]);
    }
}
