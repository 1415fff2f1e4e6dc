//! What a mirror has to say, as log lines.

use sync_core::monitor::{Monitor, Problem};
use sync_core::path::escape;

/// Logs for one share.
pub struct Log {
    share: String,
    /// By their number.
    replicas: Vec<String>,
}

impl Log {
    /// For a share with these replicas.
    pub fn new(share: String, replicas: Vec<String>) -> Self {
        Self { share, replicas }
    }

    /// The replica of this number; the share's own tree without one.
    fn name(&self, dest: Option<usize>) -> &str {
        dest.and_then(|dest| self.replicas.get(dest)).map_or("here", String::as_str)
    }
}

impl Monitor for Log {
    fn notice(&self, dest: Option<usize>, text: &str) {
        tracing::info!(share = self.share, at = self.name(dest), "{text}");
    }

    fn problem(&self, dest: Option<usize>, problem: &Problem) {
        let path = problem.path.as_ref().map(|path| escape(path.as_bytes()));
        let path = path.as_ref().map(tracing::field::display);
        tracing::warn!(share = self.share, at = self.name(dest), path, "{}", problem.reason);
    }
}
