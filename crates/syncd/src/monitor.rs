//! What a mirror has to say, as log lines.

use sync_core::monitor::{Monitor, Problem};
use sync_core::path::escape;

/// Logs for one share, or one of its replicas.
pub struct Log {
    share: String,
    /// The replica; the share's own tree without one.
    replica: Option<String>,
}

impl Log {
    /// For this one.
    pub fn new(share: String, replica: Option<String>) -> Self {
        Self { share, replica }
    }

    fn place(&self) -> &str {
        self.replica.as_deref().unwrap_or("here")
    }
}

impl Monitor for Log {
    fn notice(&self, _: Option<usize>, text: &str) {
        tracing::info!(share = self.share, at = self.place(), "{text}");
    }

    fn problem(&self, _: Option<usize>, problem: &Problem) {
        let path = problem.path.as_ref().map(|path| escape(path.as_bytes()));
        let path = path.as_ref().map(tracing::field::display);
        tracing::warn!(share = self.share, at = self.place(), path, "{}", problem.reason);
    }
}
