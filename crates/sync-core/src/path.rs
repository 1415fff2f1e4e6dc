//! Paths of entries: bytes, relative to the top of a tree, validated once at the edge.
//!
//! A [`RelPath`] is the proof that a path stays beneath its root: no empty, `.` or `..` component, no NUL, no leading
//! slash. The only way to a file system is through the `fs` adapter, which walks it name by name.

mod key;

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use key::{Key, KeyBuf};

/// Longest name in bytes that Linux file systems hold (`NAME_MAX`).
pub const MAX_NAME: usize = 255;

/// Longest path in bytes that we carry. It is well beyond `PATH_MAX` (4096), and bounds what a peer can make us store.
pub const MAX_PATH: usize = 65_535;

/// The name of the private staging directory at the top of a replica and of every mount below it. It is reserved: no
/// entry of a source has it, at any level.
pub const STAGING_NAME: &str = ".synccli-staging";

/// Why bytes are not a path of an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// An empty component, `.` or `..`.
    #[error("path {0:?} has an empty, `.` or `..` component")]
    Component(String),
    /// A NUL byte.
    #[error("path {0:?} holds a NUL byte")]
    Nul(String),
    /// A component over [`MAX_NAME`] bytes.
    #[error("a name in path {0:?} is longer than {MAX_NAME} bytes")]
    NameTooLong(String),
    /// A path over [`MAX_PATH`] bytes.
    #[error("a path is longer than {MAX_PATH} bytes")]
    TooLong,
}

/// The path of an entry below the top of its tree; the empty path is the top directory itself.
///
/// The order is *tree order*: a directory comes before what it holds, and all it holds comes before its next sibling.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct RelPath(Arc<[u8]>);

impl RelPath {
    /// The top directory of a tree.
    pub fn root() -> Self {
        Self::default()
    }

    /// Validates `bytes`.
    ///
    /// # Errors
    /// [`PathError`] for anything that is not a clean relative path.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let bytes = bytes.into();
        if bytes.len() > MAX_PATH {
            return Err(PathError::TooLong);
        }
        if bytes.is_empty() {
            return Ok(Self::root());
        }
        for name in bytes.split(|&b| b == b'/') {
            check_name(name)?;
        }
        Ok(Self(bytes.into()))
    }

    /// The path of `name` in the directory `self`.
    ///
    /// # Errors
    /// [`PathError`] if `name` is no single clean name or the whole gets too long.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        check_name(name)?;
        if name.contains(&b'/') {
            return Err(PathError::Component(escape(name)));
        }
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        if !self.is_root() {
            bytes.extend_from_slice(&self.0);
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        if bytes.len() > MAX_PATH {
            return Err(PathError::TooLong);
        }
        Ok(Self(bytes.into()))
    }

    /// Whether this is the top directory.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes, components separated by `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The last component; empty for the top directory.
    pub fn name(&self) -> &[u8] {
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => &self.0[slash + 1..],
            None => &self.0,
        }
    }

    /// The directory that holds this entry; `None` for the top directory.
    pub fn parent(&self) -> Option<Self> {
        (!self.is_root()).then(|| Self(self.parent_bytes().into()))
    }

    /// The path of the directory that holds this entry, which for the top directory is itself.
    pub fn parent_bytes(&self) -> &[u8] {
        &self.0[..self.0.iter().rposition(|&b| b == b'/').unwrap_or(0)]
    }

    /// The paths on the way down from `top`, which lies above, to this one, which is the last of them.
    pub fn way_from(&self, top: &Self) -> impl Iterator<Item = Self> {
        let slashes = (top.0.len() + 1..self.0.len()).filter(|&i| self.0[i] == b'/');
        let end = (top.0.len() < self.0.len()).then_some(self.0.len());
        slashes.chain(end).map(|end| Self(self.0[..end].into()))
    }

    /// The components from the top down; none for the top directory.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|name| !name.is_empty())
    }

    /// Whether one of the components is [`STAGING_NAME`].
    pub fn is_reserved(&self) -> bool {
        self.components().any(|name| name == STAGING_NAME.as_bytes())
    }

    /// How many components the path has.
    pub fn depth(&self) -> usize {
        self.components().count()
    }

    /// Whether `self` lies beneath the directory `top` (not `top` itself).
    pub fn is_beneath(&self, top: &Self) -> bool {
        match self.0.strip_prefix(&*top.0) {
            Some(rest) if top.is_root() => !rest.is_empty(),
            Some(rest) => rest.first() == Some(&b'/'),
            None => false,
        }
    }

    /// Whether `self` is an entry of the directory `dir` itself.
    pub fn is_in(&self, dir: &Self) -> bool {
        let cut = self.0.iter().rposition(|&b| b == b'/').unwrap_or(0);
        !self.is_root() && self.0[..cut] == *dir.0
    }

    /// Up to `most` of these paths, which come in tree order, as text, and how many there are besides; what lies in one of them
    /// goes without saying.
    pub fn tops<'a>(paths: impl IntoIterator<Item = &'a Self>, most: usize) -> String {
        let (mut last, mut names, mut more): (Option<&Self>, Vec<String>, usize) = (None, Vec::new(), 0);
        for path in paths {
            if last.is_some_and(|top| path.is_beneath(top)) {
                continue;
            }
            last = Some(path);
            if names.len() < most { names.push(path.display()) } else { more += 1 }
        }
        if more > 0 {
            names.push(format!("and {more} more"));
        }
        names.join(", ")
    }

    /// The path as text that is safe on a terminal: see [`escape`]. The top directory is `./`.
    pub fn display(&self) -> String {
        if self.is_root() { "./".to_owned() } else { escape(&self.0) }
    }

    /// A key whose byte order is tree order: `/` becomes NUL, which no name holds.
    pub fn to_key(&self) -> Vec<u8> {
        self.0.iter().map(|&b| if b == b'/' { 0 } else { b }).collect()
    }

    /// The inverse of [`RelPath::to_key`].
    ///
    /// # Errors
    /// [`PathError`] if the key is not that of a clean path.
    pub fn from_key(key: &[u8]) -> Result<Self, PathError> {
        if key.contains(&b'/') {
            return Err(PathError::Component(escape(key)));
        }
        Self::new(key.iter().map(|&b| if b == 0 { b'/' } else { b }).collect::<Vec<_>>())
    }
}

fn check_name(name: &[u8]) -> Result<(), PathError> {
    match name {
        b"" | b"." | b".." => Err(PathError::Component(escape(name))),
        _ if name.len() > MAX_NAME => Err(PathError::NameTooLong(escape(name))),
        _ if name.contains(&0) => Err(PathError::Nul(escape(name))),
        _ => Ok(()),
    }
}

/// Bytes as text that cannot harm a terminal or a log: valid printable UTF-8 stays, a backslash is doubled, control
/// characters and bytes that are no UTF-8 become `\n`, `\t`, `\r`, or `\xNN` for each byte. Bidirectional and
/// invisible format characters are escaped too, so that two names never look alike on the screen.
pub fn escape(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(bytes.len());
    let hex = |out: &mut String, bytes: &[u8]| {
        for b in bytes {
            let _ = write!(out, "\\x{b:02x}");
        }
    };
    for piece in bytes.utf8_chunks() {
        for c in piece.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if is_unsafe(c) => hex(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => out.push(c),
            }
        }
        hex(&mut out, piece.invalid());
    }
    out
}

/// Characters that a terminal obeys or does not show: C0, C1, line separators, and Unicode's format characters that
/// reorder or hide text.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> Ordering {
        match first_difference(&self.0, &other.0) {
            None => self.0.len().cmp(&other.0.len()),
            Some(i) => {
                let rank = |b: u8| if b == b'/' { 0 } else { b };
                rank(self.0[i]).cmp(&rank(other.0[i]))
            }
        }
    }
}

/// Where the shorter of two differs from the other, if it does. Eight bytes at a time, because paths have long beginnings in
/// common, and everything that is sorted is sorted by them.
fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let (words_a, words_b) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
    let words = words_a.iter().zip(words_b).position(|(a, b)| a != b);
    let start = words.unwrap_or(words_a.len().min(words_b.len())) * 8;
    let rest = a[start..].iter().zip(&b[start..]).position(|(a, b)| a != b)?;
    Some(start + rest)
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl TryFrom<Vec<u8>> for RelPath {
    type Error = PathError;
    fn try_from(bytes: Vec<u8>) -> Result<Self, PathError> {
        Self::new(bytes)
    }
}

impl From<RelPath> for Vec<u8> {
    fn from(path: RelPath) -> Self {
        path.0.to_vec()
    }
}

impl Borrow<[u8]> for RelPath {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.display())
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    #[test]
    fn refuses_what_could_leave_the_tree() {
        for bad in ["/", "/etc", "a//b", "a/", "..", "a/../b", ".", "a/./b", "a\0b"] {
            assert!(RelPath::new(bad).is_err(), "{bad:?}");
        }
        assert!(RelPath::new(vec![b'a'; MAX_NAME + 1]).is_err());
        assert!(RelPath::new(vec![b'a'; MAX_NAME]).is_ok());
        assert!(RelPath::root().join(b"a/b").is_err());
    }

    #[test]
    fn tree_order_keeps_a_directory_with_what_it_holds() {
        let mut paths = ["a.b", "a/b", "a", "", "a/b/c", "a-", "b", "a/a"].map(path);
        paths.sort();
        assert_eq!(paths, ["", "a", "a/a", "a/b", "a/b/c", "a-", "a.b", "b"].map(path));
        let mut keys: Vec<_> = paths.iter().rev().map(RelPath::to_key).collect();
        keys.sort();
        assert_eq!(keys.iter().map(|k| RelPath::from_key(k).unwrap()).collect::<Vec<_>>(), paths);
    }

    #[test]
    fn beneath_is_about_components() {
        assert!(path("a/b").is_beneath(&path("a")));
        assert!(!path("ab").is_beneath(&path("a")));
        assert!(!path("a").is_beneath(&path("a")));
        assert!(path("a").is_beneath(&RelPath::root()));
        assert!(!RelPath::root().is_beneath(&RelPath::root()));
    }

    #[test]
    fn some_are_named_and_the_others_counted() {
        let paths = ["a", "a/b", "a/b/c", "ab", "b/a", "b/b", "c"].map(path);
        assert_eq!(RelPath::tops(&paths, 3), "a, ab, b/a, and 2 more");
        assert_eq!(RelPath::tops(&paths[..4], 3), "a, ab");
    }

    #[test]
    fn parent_and_name() {
        assert_eq!(path("a/b").parent(), Some(path("a")));
        assert_eq!(path("a").parent(), Some(RelPath::root()));
        assert_eq!(RelPath::root().parent(), None);
        assert_eq!(path("a/b").name(), b"b");
    }

    #[test]
    fn the_way_down_leads_through_every_directory() {
        let way = |to: &str, from: &str| path(to).way_from(&path(from)).collect::<Vec<_>>();
        assert_eq!(way("a/bc/d", ""), ["a", "a/bc", "a/bc/d"].map(path));
        assert_eq!(way("a/bc/d", "a"), ["a/bc", "a/bc/d"].map(path));
        assert_eq!(way("a/bc/d", "a/bc"), ["a/bc/d"].map(path));
        assert_eq!(way("a", ""), [path("a")]);
        assert!(way("a", "a").is_empty() && way("", "").is_empty());
    }

    #[test]
    fn nothing_harmful_reaches_the_screen() {
        assert_eq!(escape("é\\ \u{1b}[31m\n".as_bytes()), "é\\\\ \\x1b[31m\\n");
        assert_eq!(escape(b"\xff\xc2\x9b"), "\\xff\\xc2\\x9b");
        assert_eq!(escape("\u{202e}".as_bytes()), "\\xe2\\x80\\xae");
    }
}
