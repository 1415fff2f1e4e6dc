//! How a row's entry, tuple and marks are laid out in the column `fact`.
//!
//! Our own layout rather than a derived one: adding a field to a type must not silently change what is on disk, and
//! decoding 44,000 rows is on the path of every push. All numbers little-endian.
//!
//! ```text
//! format u8 = 1 | kind u8 | flags u8 | refused u8 | mode u16 | uid u32 | gid u32 | mtime (sec i64, nsec u32)
//! file: size u64, digest [32]   symlink: length u16, bytes   device: major u32, minor u32
//! flag TUPLE: fs u64, ino u64, size u64, mtime, ctime
//! flag LINK: length u16, bytes
//! flag XATTRS: count u32, then for each: name length u8, name, value length u32, value
//! ```

use super::error::Fault;
use crate::hash::Digest;
use crate::manifest::{Entry, Kind, Refused, Row, Time, Tuple};
use crate::path::RelPath;

#[allow(clippy::type_complexity, reason = "it is the type of the field in `Entry`")]
type Xattrs = Box<[(Box<[u8]>, Box<[u8]>)]>;

const FORMAT: u8 = 1;

const TUPLE: u8 = 1;
const PROVEN: u8 = 2;
const EXTRA: u8 = 4;
const MOUNT: u8 = 8;
const LINK: u8 = 16;
const XATTRS: u8 = 32;

/// Lays out everything of `row` but its path. The entry must have passed [`Entry::validate`], which bounds every length
/// written here.
pub(super) fn encode(row: &Row, out: &mut Vec<u8>) {
    let entry = &row.entry;
    let flag = |on: bool, bit: u8| if on { bit } else { 0 };
    let flags = flag(row.tuple.is_some(), TUPLE)
        | flag(row.proven, PROVEN)
        | flag(row.extra, EXTRA)
        | flag(row.mount, MOUNT)
        | flag(entry.link.is_some(), LINK)
        | flag(!entry.xattrs.is_empty(), XATTRS);
    out.clear();
    out.extend_from_slice(&[FORMAT, tag(&entry.kind), flags, row.refused.0]);
    out.extend_from_slice(&(entry.mode as u16).to_le_bytes());
    out.extend_from_slice(&entry.uid.to_le_bytes());
    out.extend_from_slice(&entry.gid.to_le_bytes());
    put_time(out, entry.mtime);
    match &entry.kind {
        Kind::Dir | Kind::Fifo | Kind::Socket => {}
        Kind::File { size, digest } => {
            out.extend_from_slice(&size.to_le_bytes());
            out.extend_from_slice(&digest.0);
        }
        Kind::Symlink { target } => put_short(out, target),
        Kind::CharDev { major, minor } | Kind::BlockDev { major, minor } => {
            out.extend_from_slice(&major.to_le_bytes());
            out.extend_from_slice(&minor.to_le_bytes());
        }
    }
    if let Some(tuple) = &row.tuple {
        out.extend_from_slice(&tuple_bytes(tuple));
    }
    if let Some(first) = &entry.link {
        put_short(out, first.as_bytes());
    }
    if !entry.xattrs.is_empty() {
        out.extend_from_slice(&(entry.xattrs.len() as u32).to_le_bytes());
        for (name, value) in &entry.xattrs {
            out.push(name.len() as u8);
            out.extend_from_slice(name);
            out.extend_from_slice(&(value.len() as u32).to_le_bytes());
            out.extend_from_slice(value);
        }
    }
}

fn tag(kind: &Kind) -> u8 {
    match kind {
        Kind::Dir => 0,
        Kind::File { .. } => 1,
        Kind::Symlink { .. } => 2,
        Kind::Fifo => 3,
        Kind::Socket => 4,
        Kind::CharDev { .. } => 5,
        Kind::BlockDev { .. } => 6,
    }
}

/// Whether the entry is a directory, and whether the row is an extra.
pub(super) fn kind_of(key: &[u8], fact: &[u8]) -> Result<(bool, bool), Fault> {
    match fact {
        [FORMAT, kind, flags, ..] => Ok((*kind == tag(&Kind::Dir), flags & EXTRA != 0)),
        _ => Err(bad(key, "its layout is wrong")),
    }
}

/// Bytes before those that only some kinds of entries have.
const HEAD: usize = 26;

/// What a stored row tells without being decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Whether the entry is a directory.
    pub is_dir: bool,
    /// The digest of a regular file.
    pub digest: Option<Digest>,
}

/// What the row says, if its inode had `tuple` and nothing but that and, maybe, a mount is marked: see
/// [`super::Encoded::shown_by`].
pub(super) fn shown_by(fact: &[u8], tuple: &Tuple, mount: bool) -> Option<Shown> {
    let marks = TUPLE | PROVEN | if mount { MOUNT } else { 0 };
    let (&[format, kind, flags, refused, ..], rest) = fact.split_first_chunk::<HEAD>()?;
    if format != FORMAT || flags & !XATTRS != marks || refused != 0 {
        return None;
    }
    let mut rest = Reader(rest);
    let kind = rest.kind(kind)?;
    let digest = match kind {
        Kind::File { digest, .. } => Some(digest),
        _ => None,
    };
    rest.0.starts_with(&tuple_bytes(tuple)).then_some(Shown { is_dir: kind == Kind::Dir, digest })
}

fn tuple_bytes(tuple: &Tuple) -> [u8; 48] {
    let mut bytes = [0; 48];
    for (at, number) in bytes.chunks_exact_mut(8).zip([tuple.fs, tuple.ino, tuple.size]) {
        at.copy_from_slice(&number.to_le_bytes());
    }
    for (at, time) in bytes[24..].chunks_exact_mut(12).zip([tuple.mtime, tuple.ctime]) {
        let Time { sec, nsec } = time;
        at[..8].copy_from_slice(&sec.to_le_bytes());
        at[8..].copy_from_slice(&nsec.to_le_bytes());
    }
    bytes
}

fn put_time(out: &mut Vec<u8>, time: Time) {
    out.extend_from_slice(&time.sec.to_le_bytes());
    out.extend_from_slice(&time.nsec.to_le_bytes());
}

fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Whether the entry is a further name of a hard-link group.
pub(super) fn is_link(fact: &[u8]) -> bool {
    fact.get(2).is_some_and(|flags| flags & LINK != 0)
}

/// The inverse of [`encode`], with the path from its key; everything is checked as if it came from a stranger.
pub(super) fn decode(key: &[u8], fact: &[u8]) -> Result<Row, Fault> {
    let path = path_of(key)?;
    let row = Reader(fact).row(path).ok_or_else(|| bad(key, "its layout is wrong"))?;
    row.entry.validate().map_err(|rule| bad(key, &rule.to_string()))?;
    Ok(row)
}

/// The path a key stands for.
pub(super) fn path_of(key: &[u8]) -> Result<RelPath, Fault> {
    RelPath::from_key(key).map_err(|error| Fault::Damaged(format!("a stored path is none: {error}")))
}

fn bad(key: &[u8], why: &str) -> Fault {
    Fault::Damaged(format!("the row of {}: {why}", crate::path::escape(key)))
}

/// What is left to decode. `None` anywhere means that the bytes are not what [`encode`] writes.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn row(mut self, path: RelPath) -> Option<Row> {
        let [format, tag, flags, refused] = self.array()?;
        if format != FORMAT || flags & !(TUPLE | PROVEN | EXTRA | MOUNT | LINK | XATTRS) != 0 {
            return None;
        }
        let mode = u32::from(u16::from_le_bytes(self.array()?));
        let uid = self.u32()?;
        let gid = self.u32()?;
        let mtime = self.time()?;
        let kind = self.kind(tag)?;
        let tuple = if flags & TUPLE != 0 { Some(self.tuple()?) } else { None };
        let link = if flags & LINK != 0 { Some(RelPath::new(self.short()?).ok()?) } else { None };
        let xattrs = if flags & XATTRS != 0 { self.xattrs()? } else { Box::default() };
        let entry = Entry { kind, mode, uid, gid, mtime, xattrs, link };
        self.0.is_empty().then_some(Row {
            path,
            entry,
            tuple,
            proven: flags & PROVEN != 0,
            refused: Refused(refused),
            extra: flags & EXTRA != 0,
            mount: flags & MOUNT != 0,
        })
    }

    fn kind(&mut self, tag: u8) -> Option<Kind> {
        Some(match tag {
            0 => Kind::Dir,
            1 => Kind::File { size: self.u64()?, digest: Digest(self.array()?) },
            2 => Kind::Symlink { target: self.short()?.into() },
            3 => Kind::Fifo,
            4 => Kind::Socket,
            5 => Kind::CharDev { major: self.u32()?, minor: self.u32()? },
            6 => Kind::BlockDev { major: self.u32()?, minor: self.u32()? },
            _ => return None,
        })
    }

    fn tuple(&mut self) -> Option<Tuple> {
        Some(Tuple { fs: self.u64()?, ino: self.u64()?, size: self.u64()?, mtime: self.time()?, ctime: self.time()? })
    }

    fn xattrs(&mut self) -> Option<Xattrs> {
        let count = self.u32()?;
        // Grown while reading, not reserved: the count is not believed before the bytes are there.
        let mut xattrs = Vec::new();
        for _ in 0..count {
            let [name] = self.array()?;
            let name = self.bytes(usize::from(name))?.into();
            let value = self.u32()?;
            xattrs.push((name, self.bytes(value as usize)?.into()));
        }
        Some(xattrs.into_boxed_slice())
    }

    fn time(&mut self) -> Option<Time> {
        Some(Time { sec: i64::from_le_bytes(self.array()?), nsec: self.u32()? })
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn short(&mut self) -> Option<&[u8]> {
        let length = u16::from_le_bytes(self.array()?);
        self.bytes(usize::from(length))
    }

    fn bytes(&mut self, count: usize) -> Option<&[u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }
}
