//! The file system adapter: the only place that touches disks, through `rustix` and `std::fs` and nothing else.
//!
//! The read side: [`Root`] opens directories beneath a tree and never leaves it, [`scan`] walks it, [`probe`] and
//! [`hash_file`] look closer at one entry, [`StateDir`] keeps identities and invitations. The write side stages and
//! publishes on a replica. Everything here blocks; the roles move it off their async threads. It decides nothing: what
//! to do comes from the pure layer, and what was seen goes back to it.

// Everywhere else `clippy.toml` bans these, so that no I/O and no clock slips into the pure layer. This is the adapter.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod error;
mod probe;
mod read;
mod root;
mod scan;
mod stat;
mod state_dir;

mod attributes;
pub mod clock;
mod durable;
mod incoming;
mod publish;
mod sparse;
mod staging;
mod thaw;

pub use error::FsError;
pub use incoming::{BasisFile, Incoming, IncomingError, Part};
pub use publish::{Known, Observed, Publisher};
pub use root::{Root, RootLock};
pub use staging::{PART_MIN, Staging};
pub use stat::{FileType, Stat};

/// The name of the private staging directory at the top of a replica and of every mount below it. It is reserved:
/// a source must not hold it.
pub const STAGING_NAME: &str = ".synccli-staging";
