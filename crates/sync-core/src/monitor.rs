//! How the library tells a caller what is happening, without printing anything itself.

use crate::path::RelPath;

/// What one push does, step by step. Every method may be called from any thread; none may block for long.
pub trait Monitor: Send + Sync {
    /// Something worth one line to a person, such as an index that was rebuilt.
    fn notice(&self, dest: Option<usize>, text: &str) {
        let _ = (dest, text);
    }
    /// An entry or a destination failed. `dest` counts destinations from 0; `None` is the source.
    fn problem(&self, dest: Option<usize>, problem: &Problem) {
        let _ = (dest, problem);
    }
    /// What was told as a problem of a destination, or of the source as a whole, is over. May be told more often than problems.
    fn recovered(&self, dest: Option<usize>) {
        let _ = dest;
    }
    /// One entry that changes (or would, in a dry run) at destination `dest`.
    fn item(&self, dest: usize, item: &Item) {
        let _ = (dest, item);
    }
    /// Work done so far.
    fn progress(&self, progress: &Progress) {
        let _ = progress;
    }
}

/// A failure that was contained: it names its place, what was being done, and why it failed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Problem {
    /// The entry; `None` if the whole source or destination is meant.
    pub path: Option<RelPath>,
    /// What was being done and why it failed, ready for a person: `cannot read: Permission denied (os error 13)`.
    pub reason: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{path}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

/// One changed entry, for `--itemize-changes`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Item {
    /// rsync's eleven letters, or `*deleting  `.
    pub code: String,
    /// The entry.
    pub path: RelPath,
    /// A symlink's target or a hard link's first name, as rsync shows them after an arrow.
    pub target: Option<(Arrow, Vec<u8>)>,
    /// How it gets what it lacks.
    pub how: How,
    /// Content bytes that would be sent for it, if that was asked for: none where another file of that content is told
    /// first. Only the master knows.
    #[serde(skip)]
    pub literal: Option<u64>,
}

/// How a changed entry becomes what it should be.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum How {
    /// The inode stays.
    Metadata,
    /// Content is sent, as far as the old file does not have it.
    Content {
        /// Bytes.
        size: u64,
        /// Bytes of the file that has the name now, if one has.
        old: Option<u64>,
    },
    /// The inode that has another name now gets this one.
    Moved {
        /// That name, which goes away or becomes something else.
        from: RelPath,
        /// Bytes.
        size: u64,
    },
    /// The replica copies a file that it has.
    Copied {
        /// Which.
        from: RelPath,
        /// Bytes.
        size: u64,
    },
    /// It becomes another name of a file.
    Linked,
    /// There is no content to it: a directory, a link, a device, an empty file.
    Made,
    /// It goes away.
    Deleted {
        /// Whether it is a directory.
        dir: bool,
        /// The new name of its inode, if it has one.
        moved_to: Option<RelPath>,
    },
}

impl How {
    /// Bytes of the names in it.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Moved { from, .. } | Self::Copied { from, .. } => from.as_bytes().len(),
            Self::Deleted { moved_to, .. } => moved_to.as_ref().map_or(0, |to| to.as_bytes().len()),
            Self::Metadata | Self::Content { .. } | Self::Linked | Self::Made => 0,
        }
    }
}

/// Which arrow follows an itemized name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Arrow {
    /// ` -> `: a symlink's target.
    Symlink,
    /// ` => `: the first name of a hard-link group.
    HardLink,
}

/// Work so far, summed over the push. A total is `None` until it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Entries looked at on the master.
    pub scanned: u64,
    /// Bytes read and hashed on the master.
    pub hashed: u64,
    /// How many bytes will have to be read and hashed.
    pub to_hash: Option<u64>,
    /// For each destination: content bytes made available there.
    pub sent: Vec<u64>,
    /// For each destination: content bytes wanted, as far as known.
    pub to_send: Vec<u64>,
}

/// The steps of a push, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Looking at the source tree.
    #[default]
    Scan,
    /// Reading and hashing what is not proven.
    Hash,
    /// Sending content.
    Send,
    /// Making the version visible and durable.
    Publish,
}

/// A monitor that ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Monitor for Silent {}
