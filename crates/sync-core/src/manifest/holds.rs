//! Paths that a push must leave alone because their source could not be read.

use std::collections::BTreeSet;

use crate::path::RelPath;

/// A set of paths, each standing for itself and all beneath it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holds(BTreeSet<RelPath>);

impl Holds {
    /// The paths and all beneath them.
    pub fn new(paths: impl IntoIterator<Item = RelPath>) -> Self {
        Self(paths.into_iter().collect())
    }

    /// Adds a path.
    pub fn insert(&mut self, path: RelPath) {
        self.0.insert(path);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The paths themselves, in tree order.
    pub fn iter(&self) -> impl Iterator<Item = &RelPath> {
        self.0.iter()
    }

    /// Whether `path` is held, itself or through a directory above it.
    pub fn covers(&self, path: &RelPath) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let mut at = Some(path.clone());
        while let Some(here) = at {
            if self.0.contains(&here) {
                return true;
            }
            at = here.parent();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_itself_and_beneath() {
        let path = |p: &str| RelPath::new(p).unwrap();
        let holds = Holds::new([path("a/b")]);
        assert!(holds.covers(&path("a/b")) && holds.covers(&path("a/b/c/d")));
        assert!(!holds.covers(&path("a")) && !holds.covers(&path("a/bc")));
        assert!(Holds::new([RelPath::root()]).covers(&path("x")));
    }
}
