//! Why a replica could not be opened.

use crate::index::IndexError;
use crate::roles::survey::SurveyError;

/// Why a replica could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// In words for the pushing side.
    #[error("{0}")]
    Refused(String),
    /// The top directory is empty, and not what it was: of which share, in words.
    #[error(
        "{0} is empty and not the directory that it was at the last push: is it not mounted? nothing was changed; \
         mount it, or push once with --checksum to take it as it is"
    )]
    Unmounted(String),
    /// The share is another master's, in words for the pushing side.
    #[error("{0}")]
    NotOwner(String),
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The tree.
    #[error(transparent)]
    Survey(#[from] SurveyError),
}
