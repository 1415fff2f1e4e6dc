//! Why a push could not even be started, in words that tell what to do next.

use std::path::PathBuf;

use crate::fs::FsError;
use crate::index::IndexError;
use crate::roles::survey::SurveyError;

/// Nothing was changed at any destination.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The source is not there, or not a directory.
    #[error("cannot read {} as a source: {reason}", crate::path::escape(path.as_os_str().as_encoded_bytes()))]
    Source {
        /// As given.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A destination and the source, or two destinations, overlap.
    #[error("{0}")]
    Overlap(String),
    /// A filter pattern that cannot be understood.
    #[error("{0}")]
    Filter(String),
    /// The state directory cannot be used.
    #[error("{0}")]
    State(String),
    /// The index cannot be used.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The top of the source cannot be read.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The source is empty, and not on the file system it was on.
    #[error(
        "{0} is empty and on another file system than at the last push: is it not mounted? nothing was changed; \
         mount it, or push once with --checksum to take it as it is"
    )]
    Unmounted(String),
    /// The process was asked to stop.
    #[error("interrupted")]
    Stopped,
    /// A defect of this program.
    #[error("internal error: {0}; please report it")]
    Internal(String),
}

impl PushError {
    /// Whether the request itself is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Source { .. } | Self::Overlap(_) | Self::Filter(_))
    }
}

impl From<SurveyError> for PushError {
    fn from(error: SurveyError) -> Self {
        match error {
            SurveyError::Index(error) => Self::Index(error),
            SurveyError::Fs(error) => Self::Fs(error),
            SurveyError::Stopped => Self::Stopped,
        }
    }
}
