//! A path as an index stores it.

use std::cmp::Ordering;

use super::{PathError, RelPath};

/// The bytes of a path with NUL, which no name holds, in place of `/`: their order is tree order, so comparing two keys is
/// comparing bytes. Borrowed, because a pass over a whole tree makes no path of most of them; what is in it was checked
/// when it was stored, and is again by [`Key::to_path`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key<'a>(&'a [u8]);

impl<'a> Key<'a> {
    /// Takes `bytes` for a key.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The last component; empty for the top directory.
    pub fn name(self) -> &'a [u8] {
        match self.0.iter().rposition(|&byte| byte == 0) {
            Some(slash) => &self.0[slash + 1..],
            None => self.0,
        }
    }

    /// Whether this lies beneath the directory `top` (not `top` itself).
    pub fn is_beneath(self, top: Key<'_>) -> bool {
        match self.0.strip_prefix(top.0) {
            Some(rest) if top.0.is_empty() => !rest.is_empty(),
            Some(rest) => rest.first() == Some(&0),
            None => false,
        }
    }

    /// The path it stands for.
    ///
    /// # Errors
    /// [`PathError`] if it is not the key of a clean path.
    pub fn to_path(self) -> Result<RelPath, PathError> {
        RelPath::from_key(self.0)
    }

    /// Compares a path with the one that this stands for, in tree order.
    pub fn cmp_path(self, path: &RelPath) -> Ordering {
        let (key, path) = (self.0, path.as_bytes());
        let as_key = |byte: u8| if byte == b'/' { 0 } else { byte };
        let mut pairs = key.iter().zip(path).map(|(&a, &b)| (a, as_key(b)));
        match pairs.find(|(a, b)| a != b) {
            Some((a, b)) => a.cmp(&b),
            None => key.len().cmp(&path.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_orders_nests_and_names_as_its_path_does() {
        let paths = ["", "a", "a/b", "a/b/c", "a/b!", "a-", "a.b", "b"].map(|path| RelPath::new(path).unwrap());
        for a in &paths {
            let a_key = a.to_key();
            let key = Key::new(&a_key);
            assert_eq!((key.to_path().unwrap(), key.name()), (a.clone(), a.name()));
            for b in &paths {
                let b_key = b.to_key();
                assert_eq!(key.cmp_path(b), a.cmp(b), "{a} and {b}");
                assert_eq!(key.cmp(&Key::new(&b_key)), a.cmp(b), "{a} and {b}");
                assert_eq!(key.is_beneath(Key::new(&b_key)), a.is_beneath(b), "{a} beneath {b}");
            }
        }
        assert!(Key::new(b"a/b").to_path().is_err() && Key::new(b"a\0\0b").to_path().is_err());
    }
}
