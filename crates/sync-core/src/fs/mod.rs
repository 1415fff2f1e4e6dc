//! The file system adapter: the only place that touches disks, through `rustix`, `std::fs` and `notify`
//! and nothing else.
//!
//! The read side: [`Root`] opens directories beneath a tree and never leaves it, [`scan`] walks it, [`probe`] and
//! [`hash_file`] look closer at one entry, [`watch`] hears of changes, [`StateDir`] keeps identities and invitations. The
//! write side stages and publishes on a replica. Everything here blocks; the roles move it off their async threads. It
//! decides nothing: what to do comes from the pure layer, and what was seen goes back to it.

// Everywhere else `clippy.toml` bans these, so that no I/O and no clock slips into the pure layer. This is the adapter.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod error;
pub mod history;
mod probe;
mod read;
mod root;
mod scan;
mod stat;
mod state_dir;

mod attributes;
mod basis_file;
pub mod clock;
mod copying;
mod draft;
mod durable;
mod entropy;
mod incoming;
mod mounts;
pub mod place;
mod publish;
mod sharing;
mod sparse;
mod staging;
mod thaw;
pub mod watch;

pub use basis_file::BasisFile;
pub use draft::{Draft, Drafted};
pub use entropy::random;
pub use error::{FsError, IncomingError, ReadError};
pub use history::{History, Kept, Unkept};
pub use incoming::{Incoming, Part};
pub use mounts::mounted_beneath;
pub use probe::{plain_file, probe, probe_at, probe_restless};
pub use publish::{Known, Observed, Observer, Placed, Publisher, Ready};
pub use read::{Hashed, Reading, SourceFile, hash_file};
pub use root::{Root, RootLock};
pub use scan::{LeftOut, Reserved, ScanOptions, Scanned, Seen, scan};
pub use staging::{PART_MIN, Staging};
pub use stat::{FileType, Stat};
pub use state_dir::{MAX_INVITATIONS, StateDir, StateError};

pub use crate::path::STAGING_NAME;
