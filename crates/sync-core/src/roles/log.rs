//! The history of what was pushed from this machine.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::fs::{StateDir, StateError, place};
use crate::index::{Index, IndexError};
use crate::manifest::{Time, Version};
use crate::roles::master::SOURCE_PATH;

/// A version, with what became of it.
#[derive(Clone, Debug)]
pub struct LoggedVersion {
    /// The source's path, as bytes.
    pub tree: Vec<u8>,
    /// The version.
    pub version: Version,
    /// Entries that came with it.
    pub created: u64,
    /// Entries that changed.
    pub updated: u64,
    /// Entries that went.
    pub deleted: u64,
    /// Who acknowledged it.
    pub acks: Vec<LoggedAck>,
}

/// An acknowledgement.
#[derive(Clone, Debug)]
pub struct LoggedAck {
    /// A path, or `HOST:PORT/SHARE`.
    pub replica: String,
    /// Whether it was identical then.
    pub exact: bool,
    /// When it came.
    pub time: Time,
}

/// Why the history cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// An index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Nothing of that name was ever pushed.
    #[error(
        "{0} is no source or share that was pushed with this state directory, by the name it goes by there; `synccli log` alone lists all there is"
    )]
    Unknown(String),
}

/// Versions by tree, oldest first: of every tree, or of one, named by its path or by a share it was pushed to.
///
/// # Errors
/// [`LogError`].
pub fn versions(state_dir: &Path, which: Option<&OsStr>) -> Result<Vec<LoggedVersion>, LogError> {
    let state = StateDir::at(state_dir);
    let wanted = which.map(|which| (which, place::resolve(Path::new(which)).ok()));
    let mut all = Vec::new();
    for dir in state.source_index_dirs()? {
        let index = Index::scratch_copy(&dir)?.index;
        let tree = index.meta(SOURCE_PATH)?.unwrap_or_default();
        let logged = logged(&index, &tree)?;
        let is_wanted = wanted.as_ref().is_none_or(|(name, path)| {
            let same_path = path.as_ref().is_some_and(|path| path.as_os_str().as_encoded_bytes() == tree);
            same_path || logged.iter().flat_map(|v| &v.acks).any(|ack| pushed_to(&ack.replica, name))
        });
        if is_wanted {
            all.extend(logged);
        }
    }
    match which {
        Some(which) if all.is_empty() => Err(LogError::Unknown(crate::path::escape(which.as_encoded_bytes()))),
        _ => Ok(all),
    }
}

/// The one tree that was pushed to a share of this name, if there is just one.
pub(super) fn tree_of_share(state_dir: &Path, share: &OsStr) -> Option<PathBuf> {
    let trees: BTreeSet<Vec<u8>> =
        versions(state_dir, Some(share)).ok()?.into_iter().map(|logged| logged.tree).collect();
    let mut trees = trees.into_iter();
    let only = trees.next().filter(|_| trees.next().is_none())?;
    Some(OsString::from_vec(only).into())
}

/// Whether a destination is meant by `name`: the whole of it, or its share.
fn pushed_to(replica: &str, name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    replica == name || (!replica.starts_with(['/', '.']) && replica.rsplit('/').next() == Some(name))
}

fn logged(index: &Index, tree: &[u8]) -> Result<Vec<LoggedVersion>, IndexError> {
    let acks = index.acks()?;
    let log = |published: crate::index::Published| {
        let id = published.version.id();
        let of = acks.iter().filter(|ack| ack.version == id);
        let acks = of.map(|ack| LoggedAck { replica: ack.replica.clone(), exact: ack.exact, time: ack.time });
        LoggedVersion {
            tree: tree.to_vec(),
            acks: acks.collect(),
            created: published.counts.created,
            updated: published.counts.updated,
            deleted: published.counts.deleted,
            version: published.version,
        }
    };
    Ok(index.versions()?.into_iter().map(log).collect())
}
