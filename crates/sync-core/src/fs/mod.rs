//! The file system adapter (placeholder until the read side lands).
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod error;
mod root;
mod stat;

pub mod attributes;
pub mod durable;
pub mod incoming;
pub mod publish;
pub mod sparse;
pub mod staging;
mod thaw;

pub use error::FsError;
pub use root::{Root, RootLock};
pub use stat::{FileType, Stat};

/// The name of the private staging directory at the top of a replica and of every mount below it. It is reserved:
/// a source must not hold it.
pub const STAGING_NAME: &str = ".synccli-staging";
