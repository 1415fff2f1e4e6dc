//! One name in a tree: its kind, metadata and content identity.

use serde::{Deserialize, Serialize};

use crate::hash::Digest;
use crate::path::RelPath;

/// Most bytes of extended attributes (names and values together) that one entry may have.
pub const MAX_XATTRS_BYTES: usize = 1 << 20;

/// Most extended attributes of one entry. The kernel lists at most 64 KiB of names (xattr(7)), of two bytes at least.
pub const MAX_XATTRS: usize = 1 << 15;

/// Longest symlink target in bytes (`PATH_MAX` with its NUL is 4096; file systems hold at most 4095).
const MAX_TARGET: usize = 4095;

/// A point in time as file systems keep it: seconds since 1970 (negative before) and nanoseconds in `0..1e9`.
///
/// Packed: every entry has one and every tuple two, by the hundred thousand, and a quarter would be padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(Rust, packed(4))]
pub struct Time {
    /// Seconds since 1970-01-01 00:00:00 UTC; negative before.
    pub sec: i64,
    /// Nanoseconds, always counted forward from `sec`.
    pub nsec: u32,
}

/// What an entry is, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file: its size in bytes and the BLAKE3 of its content, holes read as zeros.
    File {
        /// Bytes.
        size: u64,
        /// BLAKE3 of the whole content.
        digest: Digest,
    },
    /// A symbolic link and the bytes it holds, never interpreted.
    Symlink {
        /// The link's text.
        target: Box<[u8]>,
    },
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device.
    CharDev {
        /// Device numbers.
        major: u32,
        /// Device numbers.
        minor: u32,
    },
    /// A block device.
    BlockDev {
        /// Device numbers.
        major: u32,
        /// Device numbers.
        minor: u32,
    },
}

/// Everything about one name that a replica must have identical, except the name itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The kind and what belongs to it.
    pub kind: Kind,
    /// Permission, setid and sticky bits (`0o7777`); 0o777 for a symlink, where Linux has none.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Extended attributes sorted by name, ACLs and capabilities among them as the kernel stores them.
    pub xattrs: Xattrs,
    /// For a member of a hard-link group other than its first name in tree order: that first name.
    pub link: Option<RelPath>,
}

/// Names and values of extended attributes.
pub type Xattrs = Box<[(Box<[u8]>, Box<[u8]>)]>;

/// What an inode has beside content and extended attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// As [`Entry::mode`].
    pub mode: u32,
    /// As [`Entry::uid`].
    pub uid: u32,
    /// As [`Entry::gid`].
    pub gid: u32,
    /// As [`Entry::mtime`].
    pub mtime: Time,
}

/// Why a received entry is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Bits outside `0o7777`.
    #[error("mode bits outside 07777")]
    Mode,
    /// Nanoseconds outside `0..1e9`.
    #[error("nanoseconds out of range")]
    Time,
    /// Names unsorted, doubled, empty, with NUL or over 255 bytes, or too many or too many bytes in all.
    #[error("extended attributes are unsorted, malformed, over {MAX_XATTRS} or over {MAX_XATTRS_BYTES} bytes")]
    Xattrs,
    /// A symlink target that is empty, too long or holds NUL.
    #[error("a symlink's target is empty, too long or holds a NUL byte")]
    Target,
    /// A directory that claims to be a hard link.
    #[error("a directory cannot be a hard link")]
    Link,
}

impl Metadata {
    /// Checks what the type cannot express.
    ///
    /// # Errors
    /// [`EntryError`] names the first rule that is broken.
    pub fn validate(&self) -> Result<(), EntryError> {
        if self.mode & !0o7777 != 0 {
            return Err(EntryError::Mode);
        }
        if self.mtime.nsec >= 1_000_000_000 {
            return Err(EntryError::Time);
        }
        Ok(())
    }
}

impl Entry {
    /// Owner, mode and time.
    pub fn metadata(&self) -> Metadata {
        Metadata { mode: self.mode, uid: self.uid, gid: self.gid, mtime: self.mtime }
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir)
    }

    /// Size and digest of a regular file; `None` for other kinds.
    pub fn content(&self) -> Option<(u64, Digest)> {
        match self.kind {
            Kind::File { size, digest } => Some((size, digest)),
            _ => None,
        }
    }

    /// Whether content has to be somewhere before this entry can be made: a regular file with bytes in it, and not just
    /// another name of one.
    pub fn needs_content(&self) -> bool {
        self.link.is_none() && matches!(self.kind, Kind::File { size: 1.., .. })
    }

    /// Checks what the type cannot express; a decoded entry goes through here before anything believes it.
    ///
    /// # Errors
    /// [`EntryError`] names the first rule that is broken.
    pub fn validate(&self) -> Result<(), EntryError> {
        self.metadata().validate()?;
        let sorted = self.xattrs.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let clean = self.xattrs.iter().all(|(name, _)| (1..=255).contains(&name.len()) && !name.contains(&0));
        let bytes: usize = self.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        if !sorted || !clean || self.xattrs.len() > MAX_XATTRS || bytes > MAX_XATTRS_BYTES {
            return Err(EntryError::Xattrs);
        }
        if let Kind::Symlink { target } = &self.kind
            && (target.is_empty() || target.len() > MAX_TARGET || target.contains(&0))
        {
            return Err(EntryError::Target);
        }
        if self.is_dir() && self.link.is_some() {
            return Err(EntryError::Link);
        }
        Ok(())
    }

    /// The identity of this entry. The bytes hashed are laid out here and nowhere else, apart from any encoding on the
    /// wire or on disk, so that those may change; golden vectors in the tests pin it.
    pub fn hash(&self) -> Digest {
        self.hash_with(&self.metadata())
    }

    /// The identity that this entry would have with other metadata.
    pub fn hash_with(&self, metadata: &Metadata) -> Digest {
        // Laid out in one piece: to hash that at once takes half as long as field after field.
        let mut h: Vec<u8> = Vec::with_capacity(128);
        let field = |h: &mut Vec<u8>, bytes: &[u8]| {
            h.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            h.extend_from_slice(bytes);
        };
        match &self.kind {
            Kind::Dir => field(&mut h, b"d"),
            Kind::File { size, digest } => {
                field(&mut h, b"f");
                h.extend_from_slice(&size.to_le_bytes());
                h.extend_from_slice(&digest.0);
            }
            Kind::Symlink { target } => {
                field(&mut h, b"l");
                field(&mut h, target);
            }
            Kind::Fifo => field(&mut h, b"p"),
            Kind::Socket => field(&mut h, b"s"),
            Kind::CharDev { major, minor } | Kind::BlockDev { major, minor } => {
                field(&mut h, if matches!(self.kind, Kind::CharDev { .. }) { b"c" } else { b"b" });
                h.extend_from_slice(&major.to_le_bytes());
                h.extend_from_slice(&minor.to_le_bytes());
            }
        }
        for number in [metadata.mode, metadata.uid, metadata.gid, metadata.mtime.nsec] {
            h.extend_from_slice(&number.to_le_bytes());
        }
        h.extend_from_slice(&metadata.mtime.sec.to_le_bytes());
        h.extend_from_slice(&(self.xattrs.len() as u64).to_le_bytes());
        for (name, value) in &self.xattrs {
            field(&mut h, name);
            field(&mut h, value);
        }
        match &self.link {
            None => h.push(0),
            Some(first) => {
                h.push(1);
                field(&mut h, first.as_bytes());
            }
        }
        Digest::of(&h)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Entry {
        Entry {
            kind: Kind::File { size: 3, digest: Digest::of(b"abc") },
            mode: 0o644,
            uid: 1000,
            gid: 100,
            mtime: Time { sec: -1, nsec: 999_999_999 },
            xattrs: Box::new([(b"user.a"[..].into(), b"1"[..].into())]),
            link: None,
        }
    }

    /// A golden vector: every index and every announced root in the field depends on it. Never edit it once released.
    #[test]
    fn the_hash_is_pinned() {
        assert_eq!(file().hash().to_hex(), "1f980f923377a0c1b304fbc5990495f1a8fe4c9b45ce9024b783d95f96011260");
    }

    #[test]
    fn every_field_is_in_the_hash() {
        let base = file();
        let edits: [fn(&mut Entry); 10] = [
            |e| e.kind = Kind::File { size: 4, digest: Digest::of(b"abc") },
            |e| e.kind = Kind::File { size: 3, digest: Digest::of(b"abd") },
            |e| e.kind = Kind::Fifo,
            |e| e.mode = 0o4644,
            |e| e.uid = 0,
            |e| e.gid = 0,
            |e| e.mtime.sec = 0,
            |e| e.mtime.nsec = 0,
            |e| e.xattrs = Box::new([(b"user.a"[..].into(), b"2"[..].into())]),
            |e| e.link = Some(RelPath::new("x").unwrap()),
        ];
        for (i, edit) in edits.iter().enumerate() {
            let mut changed = base.clone();
            edit(&mut changed);
            assert_ne!(changed.hash(), base.hash(), "edit {i} is invisible");
        }
    }

    #[test]
    fn refuses_malformed_entries() {
        let with = |edit: fn(&mut Entry)| {
            let mut e = file();
            edit(&mut e);
            e.validate()
        };
        assert_eq!(file().validate(), Ok(()));
        assert_eq!(with(|e| e.mode = 0o10_000), Err(EntryError::Mode));
        assert_eq!(with(|e| e.mtime.nsec = 1_000_000_000), Err(EntryError::Time));
        assert_eq!(with(|e| e.kind = Kind::Symlink { target: Box::default() }), Err(EntryError::Target));
        assert_eq!(with(|e| e.xattrs = Box::new([(Box::default(), Box::default())])), Err(EntryError::Xattrs));
        assert_eq!(
            with(|e| {
                e.kind = Kind::Dir;
                e.link = Some(RelPath::root());
            }),
            Err(EntryError::Link)
        );
    }
}
