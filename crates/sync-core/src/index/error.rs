//! What can go wrong with an index, and how SQLite's answers are told apart.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{ErrorCode, ffi};

use crate::manifest::EntryError;
use crate::path::RelPath;

/// A path for people, with nothing in it that a terminal would obey.
fn shown(path: &Path) -> String {
    crate::path::escape(path.as_os_str().as_encoded_bytes())
}

/// Why an index could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Somebody else has it open, and did not let go in the time given.
    #[error("the index in {} is in use by another process; wait for it or end it", shown(.0))]
    Busy(PathBuf),
    /// What is stored is not what was written. [`super::Index::rebuild`] starts afresh; that costs time and history.
    #[error("the index is damaged: {0}")]
    Damaged(String),
    /// The disk that holds the state directory is full.
    #[error("no space left for the index in {}; free some and push again", shown(.0))]
    Full(PathBuf),
    /// A file of the index could not be made, locked or moved.
    #[error("cannot {doing} {}: {source}", shown(path))]
    File {
        /// What was being done, as a verb.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite failed for a reason that is neither damage nor a full disk.
    #[error("cannot {doing} the index in {}: {source}", shown(dir))]
    Failed {
        /// What was being done, as a verb.
        doing: &'static str,
        /// Where the index lives.
        dir: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A row that could never be read back was offered.
    #[error("refused to index {path}: {source}")]
    Entry {
        /// Which entry.
        path: RelPath,
        /// The rule it breaks.
        source: EntryError,
    },
    /// A version was offered whose number does not follow.
    #[error("version {number} cannot follow version {latest}")]
    Order {
        /// The number offered.
        number: u64,
        /// The highest number there is.
        latest: u64,
    },
    /// A number that SQLite's 63 bits do not hold.
    #[error("{0} is too large for the index")]
    Range(u64),
}

/// An error inside this module, before it is known what was being done and where.
#[derive(Debug)]
pub(super) enum Fault {
    Damaged(String),
    Sqlite(rusqlite::Error),
    Named(IndexError),
}

impl Fault {
    /// Adds what was being done and where.
    pub(super) fn at(self, doing: &'static str, dir: &Path) -> IndexError {
        match self {
            Self::Named(error) => error,
            Self::Damaged(reason) => IndexError::Damaged(reason),
            Self::Sqlite(error) => match error.sqlite_error_code() {
                _ if is_full(&error) => IndexError::Full(dir.to_owned()),
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => IndexError::Busy(dir.to_owned()),
                _ => IndexError::Failed { doing, dir: dir.to_owned(), source: Box::new(error) },
            },
        }
    }
}

/// Whether the disk is full. What connections share lies in a file beside the database, which is only ever written to
/// make it larger.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    let rusqlite::Error::SqliteFailure(failure, _) = error else { return false };
    failure.code == ErrorCode::DiskFull || failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE
}

impl From<IndexError> for Fault {
    fn from(error: IndexError) -> Self {
        Self::Named(error)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        if means_damage(&error) { Self::Damaged(error.to_string()) } else { Self::Sqlite(error) }
    }
}

/// Whether an error says that the stored bytes are wrong, rather than that the machine failed us.
///
/// Statements and schema are ours and checked at opening: a missing table, a wrong column type, a broken constraint or
/// an absurd size can only come from changed bytes.
fn means_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            matches!(
                failure.code,
                ErrorCode::DatabaseCorrupt
                    | ErrorCode::NotADatabase
                    | ErrorCode::ConstraintViolation
                    | ErrorCode::TypeMismatch
                    | ErrorCode::TooBig
                    | ErrorCode::SchemaChanged
            ) || matches!(
                failure.extended_code,
                ffi::SQLITE_IOERR_SHORT_READ
                    | ffi::SQLITE_ERROR
                    // It could be written when it was opened: now its header says otherwise, or it is gone from its place.
                    | ffi::SQLITE_READONLY
                    | ffi::SQLITE_READONLY_DBMOVED
            )
        }
        rusqlite::Error::SqlInputError { .. }
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::Utf8Error(..)
        | rusqlite::Error::QueryReturnedNoRows => true,
        _ => false,
    }
}

/// A number as SQLite keeps it.
pub(super) fn to_sql(number: u64) -> Result<i64, Fault> {
    i64::try_from(number).map_err(|_| Fault::Named(IndexError::Range(number)))
}

/// The inverse of [`to_sql`]: nothing we wrote is negative.
pub(super) fn from_sql(number: i64) -> Result<u64, Fault> {
    u64::try_from(number).map_err(|_| Fault::Damaged("a count is negative".to_owned()))
}
