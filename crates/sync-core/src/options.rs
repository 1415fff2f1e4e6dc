//! What a push is asked to do, and what it reports when it is done. No I/O: arguments and results.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::filter::Rule;
use crate::manifest::Version;

/// The policy of one push that both sides must know; it travels in the hello.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Say what would change and change nothing.
    pub dry_run: bool,
    /// Report every changed entry.
    pub itemize: bool,
    /// In a dry run, find out how much content of each entry would be sent: as in a push, but that none is.
    pub estimate: bool,
    /// Believe no metadata on either side: read and compare everything.
    pub checksum: bool,
    /// Leave out, and leave alone, what is mounted below the top.
    pub one_file_system: bool,
    /// Keep entries that the source does not have.
    pub no_delete: bool,
    /// Remove what the filter excludes at the destination.
    pub delete_excluded: bool,
    /// Refuse the whole plan if it would remove more entries than this.
    pub max_delete: Option<u64>,
    /// Filter rules in the order given; the last match wins.
    pub rules: Vec<Rule>,
}

/// When content is compressed on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compress {
    /// Only while the link is slower than the compressor.
    #[default]
    Auto,
    /// Never.
    Never,
    /// Always, at this zstd level (1 to 19).
    Zstd(i32),
}

/// Where a tree goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A directory on this machine: an embedded replica.
    Path(PathBuf),
    /// A share of a running `syncd`.
    Remote {
        /// Host name or address, without brackets.
        host: String,
        /// UDP port.
        port: u16,
        /// The share's name.
        share: String,
        /// Further addresses of the same machine, tried after the first, which names it.
        also: Vec<HostPort>,
    },
}

/// `HOST[:PORT]`: a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Without brackets.
    pub host: String,
    /// UDP.
    pub port: u16,
}

/// The UDP port `syncd` listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 7373;

/// One push: a tree and where it goes.
#[derive(Clone, Debug)]
pub struct PushRequest {
    /// A directory, possibly reached through a link.
    pub source: PathBuf,
    /// One or more destinations, served at once.
    pub destinations: Vec<Destination>,
    /// Where indexes and the identity live.
    pub state_dir: PathBuf,
    /// What both sides must know.
    pub policy: Policy,
    /// Whether shares of daemons become this master's if they are another one's.
    pub adopt: bool,
    /// Bytes per second on the wire for each destination.
    pub bandwidth: Option<u64>,
    /// Compression on the wire.
    pub compress: Compress,
    /// Most bytes of previous contents to keep in the state directory; `None` to keep and use none.
    pub history: Option<u64>,
}

impl PushRequest {
    /// Whether the same entries of the same tree are meant, kept in the same way, and as fast, wherever they go.
    pub fn is_same_tree(&self, other: &Self) -> bool {
        let kept = |request: &Self| (request.history, request.bandwidth);
        self.source == other.source && self.policy == other.policy && kept(self) == kept(other)
    }
}

/// Counts of one push to one destination. Bytes are content bytes unless they say wire.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Entries of the source tree that were looked at.
    pub scanned: u64,
    /// Entries that did not exist.
    pub created: u64,
    /// Entries whose content or kind changed.
    pub updated: u64,
    /// Entries of which only metadata changed.
    pub metadata_only: u64,
    /// Entries that got another name at the destination, with their content if they have any.
    pub moved: u64,
    /// Entries removed.
    pub deleted: u64,
    /// Content taken from what the destination already had: the sum of the next four.
    pub reused_bytes: u64,
    /// Parts of changed files that were in the old file of that name.
    pub old_file_bytes: u64,
    /// Content of files that were copied from another file of the destination.
    pub copied_bytes: u64,
    /// Content of files that got another name.
    pub moved_bytes: u64,
    /// Content that an interrupted push had sent.
    #[serde(default)]
    pub resumed_bytes: u64,
    /// Content that crossed the wire, before compression. In an estimate, that would.
    pub literal_bytes: u64,
    /// What that took after compression, without heads of messages.
    pub compressed_bytes: u64,
    /// UDP payload bytes sent by the master, handshake included.
    pub wire_sent: u64,
    /// UDP payload bytes received by the master.
    pub wire_received: u64,
    /// Seconds looking at the source.
    pub scan_seconds: f64,
    /// Seconds reading and hashing the source.
    pub hash_seconds: f64,
    /// Seconds from the first content request to the last content byte verified.
    pub send_seconds: f64,
    /// Seconds from publish to acknowledgement.
    pub publish_seconds: f64,
}

impl Stats {
    /// Whether anything changed (or would) at the destination.
    pub fn changes(&self) -> u64 {
        self.created + self.updated + self.metadata_only + self.moved + self.deleted
    }

    /// The sums of two rounds of one push; `scanned` is the later round's.
    #[must_use]
    pub fn plus(&self, later: &Self) -> Self {
        Self {
            scanned: later.scanned,
            created: self.created + later.created,
            updated: self.updated + later.updated,
            metadata_only: self.metadata_only + later.metadata_only,
            moved: self.moved + later.moved,
            deleted: self.deleted + later.deleted,
            reused_bytes: self.reused_bytes + later.reused_bytes,
            old_file_bytes: self.old_file_bytes + later.old_file_bytes,
            copied_bytes: self.copied_bytes + later.copied_bytes,
            moved_bytes: self.moved_bytes + later.moved_bytes,
            resumed_bytes: self.resumed_bytes + later.resumed_bytes,
            literal_bytes: self.literal_bytes + later.literal_bytes,
            compressed_bytes: self.compressed_bytes + later.compressed_bytes,
            wire_sent: self.wire_sent + later.wire_sent,
            wire_received: self.wire_received + later.wire_received,
            scan_seconds: self.scan_seconds + later.scan_seconds,
            hash_seconds: self.hash_seconds + later.hash_seconds,
            send_seconds: self.send_seconds + later.send_seconds,
            publish_seconds: self.publish_seconds + later.publish_seconds,
        }
    }
}

/// How a push ended at one destination.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationReport {
    /// Whether the destination is identical to the version, and durable (in a dry run: whether the plan was made). What
    /// could not be read of the source is no part of a version: see [`PushReport::source_problems`].
    pub exact: bool,
    /// How many problems were reported for it through the monitor.
    pub problems: u64,
    /// Whether it was told to publish and never said what came of that: then what was changed there is not counted.
    pub unheard: bool,
    /// Counts.
    pub stats: Stats,
    /// What the kernel there refused: how many entries of each kind of [`crate::manifest::Refused::KINDS`], in order.
    pub refused: [u64; 6],
}

/// How a push ended.
#[derive(Clone, Debug, PartialEq)]
pub struct PushReport {
    /// The version that was pushed; `None` if the source could not be made into one, or in a dry run.
    pub version: Option<Version>,
    /// How many problems were reported for the source through the monitor.
    pub source_problems: u64,
    /// One for each destination, in the order given.
    pub destinations: Vec<DestinationReport>,
}

impl PushReport {
    /// Whether every destination is identical and durable, and nothing of the source was left out by a failure.
    pub fn is_exact(&self) -> bool {
        self.source_problems == 0 && self.destinations.iter().all(|d| d.exact && d.problems == 0)
    }
}

/// Longest name of a share in bytes.
pub const MAX_SHARE_NAME: usize = 64;

/// Whether `name` can name a share: 1 to [`MAX_SHARE_NAME`] of `A-Z a-z 0-9 . _ -`, and neither `.` nor `..`, since
/// the name becomes that of a directory.
pub fn is_share_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=MAX_SHARE_NAME).contains(&name.len()) && name.bytes().all(allowed) && !matches!(name, "." | "..")
}

/// Where the state directory is unless told otherwise: `/var/lib/syncd` for root, else `syncd` in the user's state
/// directory (XDG Base Directory Specification: `$XDG_STATE_HOME` if absolute, else `$HOME/.local/state`).
/// `None` if neither variable helps.
pub fn default_state_dir(root: bool, xdg_state_home: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    if root {
        return Some(PathBuf::from("/var/lib/syncd"));
    }
    xdg_state_home
        .filter(|dir| dir.is_absolute())
        .or_else(|| home.filter(|dir| dir.is_absolute()).map(|dir| dir.join(".local/state")))
        .map(|dir| dir.join("syncd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_name_is_one_plain_directory_name() {
        for good in ["www", "a", "site.v2", "A_b-9", "...", &"x".repeat(MAX_SHARE_NAME)] {
            assert!(is_share_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\n", &"x".repeat(MAX_SHARE_NAME + 1)] {
            assert!(!is_share_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_state_directory_follows_the_user() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(default_state_dir(true, path("/x"), path("/root")), path("/var/lib/syncd"));
        assert_eq!(default_state_dir(false, path("/x"), path("/home/a")), path("/x/syncd"));
        assert_eq!(default_state_dir(false, path("relative"), path("/home/a")), path("/home/a/.local/state/syncd"));
        assert_eq!(default_state_dir(false, None, None), None);
    }
}
