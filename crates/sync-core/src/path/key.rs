//! A path as an index stores it.

use std::cmp::Ordering;

use super::{MAX_PATH, PathError, RelPath, check_name, escape};

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

/// The key of a path that names are added to and taken from.
#[derive(Clone, Debug, Default)]
pub struct KeyBuf(Vec<u8>);

impl KeyBuf {
    /// That of the top directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// That of a path.
    pub fn of(path: &RelPath) -> Self {
        Self(path.to_key())
    }

    /// Goes down to `name`.
    ///
    /// # Errors
    /// [`PathError`] if `name` is no single clean name or the whole gets too long; nothing has changed then.
    pub fn push(&mut self, name: &[u8]) -> Result<(), PathError> {
        check_name(name)?;
        if name.contains(&b'/') {
            return Err(PathError::Component(escape(name)));
        }
        let slash = usize::from(!self.0.is_empty());
        if self.0.len() + slash + name.len() > MAX_PATH {
            return Err(PathError::TooLong);
        }
        self.0.extend_from_slice(&[0][..slash]);
        self.0.extend_from_slice(name);
        Ok(())
    }

    /// Goes up by one name; from the top directory, nowhere.
    pub fn pop(&mut self) {
        self.0.truncate(self.0.iter().rposition(|&byte| byte == 0).unwrap_or(0));
    }

    /// The key.
    pub fn key(&self) -> Key<'_> {
        Key(&self.0)
    }

    /// The path.
    pub fn path(&self) -> RelPath {
        // Every name was checked when it was added.
        RelPath(self.0.iter().map(|&byte| if byte == 0 { b'/' } else { byte }).collect())
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

    #[test]
    fn a_key_goes_down_by_clean_names_and_up_again() {
        let mut at = KeyBuf::new();
        for (name, path) in [("a", "a"), ("b c", "a/b c"), ("d", "a/b c/d")] {
            at.push(name.as_bytes()).unwrap();
            assert_eq!(at.path(), RelPath::new(path).unwrap());
            assert_eq!(at.key().to_path().unwrap(), at.path());
        }
        for bad in ["", ".", "..", "x/y", "x\0y", &"x".repeat(256)] {
            assert!(at.push(bad.as_bytes()).is_err(), "{bad:?}");
            assert_eq!(at.path(), RelPath::new("a/b c/d").unwrap());
        }
        for path in ["a/b c", "a", "", ""] {
            at.pop();
            assert_eq!(at.path(), RelPath::new(path).unwrap());
        }
        let long = "x".repeat(255);
        for _ in 0..256 {
            at.push(long.as_bytes()).unwrap();
        }
        assert_eq!(at.path().as_bytes().len(), MAX_PATH);
        assert_eq!(at.push(b"x"), Err(PathError::TooLong));
    }
}
