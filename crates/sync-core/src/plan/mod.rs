//! What a replica will do to its tree, as data: decided here, executed by the `fs` adapter.

mod decide;
mod rename;
#[cfg(test)]
mod tests;

pub use decide::{Changes, Plan, Situation, beside, decide, take_out_stale_links};
pub use rename::{Moved, MovedDir, Rename, find_renames, take_renamed};

use crate::manifest::{Entry, Row};
use crate::path::RelPath;

/// How one path gets from what it is to what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The inode stays; owner, mode, xattrs or times change.
    Metadata,
    /// A new inode whose content is staged under its digest.
    Content,
    /// The inode now at `from` gets this name as well; `from` itself is deleted or replaced by the same plan.
    Move {
        /// Where the inode is now.
        from: RelPath,
    },
    /// The directory now at `from` is renamed, with all it holds: see [`MovedDir`].
    MoveDir {
        /// Where the directory is now.
        from: RelPath,
    },
    /// A new inode with the content of `from`, which stays.
    Copy {
        /// A file of equal content.
        from: RelPath,
    },
    /// A new symlink, fifo, socket, device, or empty file.
    Make,
    /// A new directory.
    MakeDir,
    /// Another name for the inode that `first` has once the plan is done.
    Link {
        /// The group's first name, which comes earlier in the plan or is untouched.
        first: RelPath,
    },
    /// The name goes away.
    Delete,
}

/// One path of a plan. Steps come in tree order, each path once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which entry.
    pub path: RelPath,
    /// What the index says is there; the executor rechecks its tuple, and a mismatch is drift.
    /// Boxed, because a first push has tens of thousands of steps and no rows.
    pub old: Option<Box<Row>>,
    /// What shall be there; `None` exactly for [`Action::Delete`].
    pub new: Option<Box<Entry>>,
    /// How.
    pub action: Action,
}
