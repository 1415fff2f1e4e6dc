//! A row of an index: one fact about one path, true on its own.

use serde::{Deserialize, Serialize};

use super::entry::{Entry, Time};
use crate::path::RelPath;

/// What `stat` says about an inode, as far as it proves that nothing about it changed.
///
/// Equal tuples mean an unchanged inode: any write, chmod, chown, rename of the inode, link or xattr change moves
/// `ctime`, which no user can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tuple {
    /// File system identity: `f_fsid` where the file system has one, else its device number.
    pub fs: u64,
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Last modification.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
}

/// What the kernel refused when an entry was applied. Wanted and applied differ in these, and that is no failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused(pub u8);

impl Refused {
    /// Owner or group (not privileged).
    pub const OWNER: Self = Self(1);
    /// A device node that could not be made; the name does not exist.
    pub const DEVICE: Self = Self(2);
    /// An extended attribute or ACL.
    pub const XATTR: Self = Self(4);
    /// A hard link (too many links, or across mounts): a copy stands in.
    pub const LINK: Self = Self(8);
    /// A time outside what the file system can hold.
    pub const TIME: Self = Self(16);
    /// Mode bits (setid without the right to it).
    pub const MODE: Self = Self(32);
    /// Each kind with the words that name it to a person.
    pub const KINDS: [(Self, &'static str); 6] = [
        (Self::OWNER, "owner or group"),
        (Self::DEVICE, "device node"),
        (Self::XATTR, "extended attribute"),
        (Self::LINK, "hard link"),
        (Self::TIME, "time stamp"),
        (Self::MODE, "mode bit"),
    ];

    /// Whether nothing was refused.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` is in `self`.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Adds `other`.
    pub fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// One path of an index: the entry it should be, and the proof of what is on disk.
///
/// A row is believed only while the disk shows its tuple; then it stands for the entry without reading anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where.
    pub path: RelPath,
    /// What it is: on a replica what was *wanted*, with `refused` telling what the kernel did not allow.
    pub entry: Entry,
    /// The inode that was seen; `None` if nothing is on disk (a refused device).
    pub tuple: Option<Tuple>,
    /// Whether the tuple proves the digest: it was equal before and after the reading, and old enough that a later
    /// write must show. Otherwise the file is read again next time.
    pub proven: bool,
    /// What the kernel refused.
    pub refused: Refused,
    /// On a replica: not in the master's manifest, and kept because the push was told not to delete.
    pub extra: bool,
    /// Whether another file system was mounted here.
    pub mount: bool,
}
