//! A share: its name, where it is, where its index is.

use std::path::PathBuf;

use crate::fs::place;
use crate::path::escape;
use crate::region::Region;

/// One share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Where the replica is.
    pub path: PathBuf,
    /// The state directory; the index's place in it follows from the name or path.
    pub state_dir: PathBuf,
    /// Its name; empty for an embedded replica.
    pub name: String,
}

impl Share {
    /// A replica in the process of its master, at a path.
    pub fn embedded(path: PathBuf, state_dir: PathBuf) -> Self {
        Self { path, state_dir, name: String::new() }
    }

    /// How it lies to a source on the same machine, if they are not apart.
    pub fn lies(&self, source: &Region, with_mounts: bool) -> Option<&'static str> {
        let place = place::resolve(&self.path).ok()?;
        place::region(&place, with_mounts)?.lies(source)
    }

    /// What to call it in messages.
    pub fn describe(&self) -> String {
        let path = escape(self.path.as_os_str().as_encoded_bytes());
        if self.name.is_empty() { path } else { format!("the share {} ({path})", self.name) }
    }
}
