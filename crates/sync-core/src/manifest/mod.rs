//! What a tree is: entries with everything that makes two of them identical, and the one hash that names the whole.

mod entry;
mod holds;
mod merkle;
mod row;
mod version;

pub use entry::{Entry, EntryError, Kind, MAX_XATTRS, MAX_XATTRS_BYTES, Metadata, Time, Xattrs};
pub use holds::Holds;
pub use merkle::{DirHasher, DirHashes, Merkle, Preimage, TreeHash};
pub use row::{Refused, Row, Tuple};
pub use version::{Lineage, Version, VersionId};
