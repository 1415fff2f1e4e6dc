//! The state directory: identity, invitations, trusted keys, and where the indexes live. Never inside a tree.
//!
//! Every file is replaced whole: written beside, flushed, renamed, and the directory flushed. Whoever writes holds the
//! lock file meanwhile, so that two programs that start at once agree on one identity and an invitation is redeemed
//! once. The clock and the randomness are the caller's. Losing an index costs time; losing this costs pairing again, and
//! whose each share is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::error::explain;
use crate::hash::Digest;

/// Longest file that we read from the state directory; ours are far shorter.
const MAX_FILE: u64 = 1 << 20;

/// Most invitations that may be open at once.
pub const MAX_INVITATIONS: usize = 1000;

const IDENTITY: &str = "identity.key";
const INVITATIONS: &str = "invitations";
const TRUSTED: &str = "trusted";
const KNOWN: &str = "known";
const OWNERS: &str = "owners";
const BEFORE_STRETCHES: &str = "before-stretches";
const INDEXES: &str = "index";
const HISTORY: &str = "history";
const LOCK: &str = "lock";

/// A path for people, with nothing in it that a terminal would obey.
fn shown(path: &Path) -> String {
    crate::path::escape(path.as_os_str().as_encoded_bytes())
}

/// What went wrong in the state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system refused.
    #[error("cannot {doing} {}: {}", shown(path), explain(source))]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file holds what we never wrote, or lets others read what is secret, or a directory lets everybody write.
    #[error("{}: {reason}", shown(path))]
    Bad {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with the line if there is one, and what to do about it.
        reason: String,
    },
}

/// An open state directory.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
    identity: (u64, u64),
}

/// Held while something is read and replaced; given back when dropped.
struct Lock {
    _file: File,
}

impl StateDir {
    /// Opens the directory; one that is missing is made, with its parents, for the owner alone (0700).
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let fail = |source| StateError::Io { doing: "open the state directory", path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail)?;
        let path = fs::canonicalize(path).map_err(fail)?;
        let meta = fs::metadata(&path).map_err(fail)?;
        if meta.mode() & 0o002 != 0 {
            let reason = "everybody may write to this state directory, which holds keys: chmod o-w it".to_owned();
            return Err(StateError::Bad { path, reason });
        }
        Ok(Self { identity: (meta.dev(), meta.ino()), path })
    }

    /// A state directory that is only looked at: nothing is made, and it may not even exist.
    pub fn at(path: &Path) -> Self {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let identity = fs::metadata(&path).map_or((0, 0), |meta| (meta.dev(), meta.ino()));
        Self { identity, path }
    }

    /// Its absolute path, links resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode number, for leaving it out of a tree.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// The secret bytes of the identity; `generate` makes them at the first start. Of several programs that start at
    /// once one generates, and all get its bytes.
    ///
    /// # Errors
    /// [`StateError`]; also if others than the owner may read the file, because then it is no secret any more.
    pub fn identity_key(&self, generate: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, StateError> {
        if let Some(key) = self.read_key()? {
            return Ok(key);
        }
        let _lock = self.lock()?;
        if let Some(key) = self.read_key()? {
            return Ok(key);
        }
        let key = generate();
        self.replace(&self.path, IDENTITY, &key)?;
        Ok(key)
    }

    fn read_key(&self) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path.join(IDENTITY);
        let Some((key, mode)) = read(&path)? else { return Ok(None) };
        if mode & 0o077 != 0 {
            let reason = format!(
                "others may read this secret (mode {:04o}): chmod 600 it if nobody did; if in doubt, remove it and pair again",
                mode & 0o7777
            );
            return Err(StateError::Bad { path, reason });
        }
        if key.is_empty() {
            let reason = "the identity is empty: restore the file from a backup, or remove it and pair again".into();
            return Err(StateError::Bad { path, reason });
        }
        Ok(Some(key))
    }

    /// Records an invitation by the digest of its secret, open until `expires` (seconds since 1970). Forgets those
    /// that are no longer open at `now`.
    ///
    /// # Errors
    /// [`StateError`]; also if [`MAX_INVITATIONS`] are open.
    pub fn add_invitation(&self, secret: &Digest, expires: u64, now: u64) -> Result<(), StateError> {
        let _lock = self.lock()?;
        let mut open = self.invitations()?;
        open.retain(|(_, until)| *until > now);
        if open.len() >= MAX_INVITATIONS {
            let reason = format!("{MAX_INVITATIONS} invitations are open: wait until they expire, or remove this file");
            return Err(StateError::Bad { path: self.path.join(INVITATIONS), reason });
        }
        open.push((*secret, expires));
        self.write_invitations(&open)
    }

    /// Whether any invitation is open at `now`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn invitation_open(&self, now: u64) -> Result<bool, StateError> {
        Ok(self.invitations()?.iter().any(|(_, until)| *until > now))
    }

    /// Redeems the invitation whose secret has this digest: `true` once, if it is open at `now`. It is gone from the
    /// disk before this returns.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn consume_invitation(&self, secret: &Digest, now: u64) -> Result<bool, StateError> {
        let _lock = self.lock()?;
        let mut open = self.invitations()?;
        let before = open.len();
        let redeemed = open.iter().any(|(known, until)| known == secret && *until > now);
        open.retain(|(known, until)| known != secret && *until > now);
        if open.len() != before {
            self.write_invitations(&open)?;
        }
        Ok(redeemed)
    }

    fn invitations(&self) -> Result<Vec<(Digest, u64)>, StateError> {
        let path = self.path.join(INVITATIONS);
        let Some((bytes, _)) = read(&path)? else { return Ok(Vec::new()) };
        let parse = |line: &[u8]| {
            let (secret, expires) = line.split_at_checked(64)?;
            let expires = std::str::from_utf8(expires.strip_prefix(b" ")?).ok()?.parse().ok()?;
            Some((Digest::from_hex(secret)?, expires))
        };
        let lines = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        if lines.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for (i, line) in lines.split(|&b| b == b'\n').enumerate() {
            found.push(parse(line).ok_or_else(|| StateError::Bad {
                path: path.clone(),
                reason: format!("line {} is no invitation: remove the file and invite again", i + 1),
            })?);
        }
        Ok(found)
    }

    fn write_invitations(&self, open: &[(Digest, u64)]) -> Result<(), StateError> {
        let text: String = open.iter().map(|(secret, expires)| format!("{secret} {expires}\n")).collect();
        self.replace(&self.path, INVITATIONS, text.as_bytes())
    }

    /// Accepts the master with this id (its text form) from now on.
    ///
    /// # Errors
    /// [`StateError`]; also if `id` is no id.
    pub fn trust(&self, id: &str) -> Result<(), StateError> {
        let dir = self.path.join(TRUSTED);
        if !is_id(id) {
            return Err(StateError::Bad { path: dir, reason: "that is no id of a peer".into() });
        }
        let _lock = self.lock()?;
        self.make(&dir)?;
        self.replace(&dir, id, format!("{id}\n").as_bytes())
    }

    /// Whether the master with this id is accepted.
    ///
    /// # Errors
    /// [`StateError`]; also if its file does not hold its name, because then somebody else wrote it.
    pub fn is_trusted(&self, id: &str) -> Result<bool, StateError> {
        if !is_id(id) {
            return Ok(false);
        }
        let path = self.path.join(TRUSTED).join(id);
        match read(&path)? {
            None => Ok(false),
            Some((bytes, _)) if bytes.strip_suffix(b"\n") == Some(id.as_bytes()) => Ok(true),
            Some(_) => {
                let reason = "line 1 is not the id that the file is named by: remove the file and pair again".into();
                Err(StateError::Bad { path, reason })
            }
        }
    }

    /// Remembers which replica (its id in text form) answers at an address, as `host:port`. A later call replaces it.
    ///
    /// # Errors
    /// [`StateError`]; also if either is malformed.
    pub fn remember(&self, address: &str, id: &str) -> Result<(), StateError> {
        let dir = self.path.join(KNOWN);
        if !is_id(id) || address.is_empty() || address.contains(char::is_whitespace) {
            return Err(StateError::Bad { path: dir, reason: "that is no address and id of a replica".into() });
        }
        let _lock = self.lock()?;
        self.make(&dir)?;
        self.replace(&dir, &file_name(address), format!("{address} {id}\n").as_bytes())
    }

    /// The id of the replica that answered at `address` when we paired; `None` if we never did.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn known(&self, address: &str) -> Result<Option<String>, StateError> {
        let path = self.path.join(KNOWN).join(file_name(address));
        let Some((bytes, _)) = read(&path)? else { return Ok(None) };
        let line = std::str::from_utf8(&bytes).ok().and_then(|text| text.strip_suffix('\n'));
        match line.and_then(|line| line.rsplit_once(' ')) {
            Some((to, id)) if to == address && is_id(id) => Ok(Some(id.to_owned())),
            _ => {
                let reason = format!("line 1 is not `{address} ID`: remove the file and pair again");
                Err(StateError::Bad { path, reason })
            }
        }
    }

    /// Makes the master with this id (its text form) the owner of a share, in place of any other.
    ///
    /// # Errors
    /// [`StateError`]; also if either is malformed.
    pub fn set_owner(&self, share: &str, id: &str) -> Result<(), StateError> {
        let dir = self.path.join(OWNERS);
        if !is_id(id) || share.is_empty() || share.contains(char::is_whitespace) {
            return Err(StateError::Bad { path: dir, reason: "that is no share and id of a master".into() });
        }
        let _lock = self.lock()?;
        self.make(&dir)?;
        self.replace(&dir, &file_name(share), format!("{share} {id}\n").as_bytes())
    }

    /// The id of the master that owns a share; `None` if it is nobody's yet.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn owner(&self, share: &str) -> Result<Option<String>, StateError> {
        let path = self.path.join(OWNERS).join(file_name(share));
        let Some((bytes, _)) = read(&path)? else { return Ok(None) };
        let line = std::str::from_utf8(&bytes).ok().and_then(|text| text.strip_suffix('\n'));
        match line.and_then(|line| line.split_once(' ')) {
            Some((of, id)) if of == share && is_id(id) => Ok(Some(id.to_owned())),
            _ => {
                let reason = format!(
                    "line 1 is not `{share} ID`: write the id of its master there, or remove the file, and the next master \
                     that publishes owns it"
                );
                Err(StateError::Bad { path, reason })
            }
        }
    }

    /// Keeps how many entries a share had before the first stretch of a tree came to it, durably; or forgets it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn set_before_stretches(&self, share: &str, entries: Option<u64>) -> Result<(), StateError> {
        let (dir, name) = (self.path.join(BEFORE_STRETCHES), file_name(share));
        let _lock = self.lock()?;
        let Some(entries) = entries else {
            let path = dir.join(name);
            return match fs::remove_file(&path) {
                Ok(()) => flush_dir(&dir),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(source) => Err(StateError::Io { doing: "remove", path, source }),
            };
        };
        self.make(&dir)?;
        self.replace(&dir, &name, format!("{share} {entries}\n").as_bytes())
    }

    /// How many entries a share had then, if that is kept.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn before_stretches(&self, share: &str) -> Result<Option<u64>, StateError> {
        let path = self.path.join(BEFORE_STRETCHES).join(file_name(share));
        let Some((bytes, _)) = read(&path)? else { return Ok(None) };
        let line = std::str::from_utf8(&bytes).ok().and_then(|text| text.strip_suffix('\n'));
        match line.and_then(|line| line.rsplit_once(' ')).map(|(of, entries)| (of, entries.parse())) {
            Some((of, Ok(entries))) if of == share => Ok(Some(entries)),
            _ => {
                let reason = format!(
                    "line 1 is not `{share} N`: write there how many entries of its own it had before this master's, or remove the \
                     file, and they may be deleted"
                );
                Err(StateError::Bad { path, reason })
            }
        }
    }

    /// Where the index of a source lives, by its canonical path.
    pub fn source_index_dir(&self, canonical: &Path) -> PathBuf {
        self.index_dir("source", canonical)
    }

    /// Where previous contents of a source live, by its canonical path.
    pub fn history_dir(&self, canonical: &Path) -> PathBuf {
        let index = self.source_index_dir(canonical);
        self.path.join(HISTORY).join(index.file_name().unwrap_or_default())
    }

    /// Where the index of an embedded replica lives, by its canonical path.
    pub fn replica_index_dir(&self, canonical: &Path) -> PathBuf {
        self.index_dir("replica", canonical)
    }

    /// Where the index of a share lives. The name must be one that the configuration accepted.
    pub fn share_index_dir(&self, name: &str) -> PathBuf {
        self.path.join(INDEXES).join(format!("share-{}", file_name(name)))
    }

    /// The directories of all sources' indexes, sorted.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn source_index_dirs(&self) -> Result<Vec<PathBuf>, StateError> {
        let path = self.path.join(INDEXES);
        let fail = |source| StateError::Io { doing: "list", path: path.clone(), source };
        let items = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(fail)?,
        };
        let mut dirs = Vec::new();
        for item in items {
            let item = item.map_err(fail)?;
            if item.file_name().as_encoded_bytes().starts_with(b"source-") {
                dirs.push(item.path());
            }
        }
        dirs.sort();
        Ok(dirs)
    }

    fn index_dir(&self, role: &str, canonical: &Path) -> PathBuf {
        let digest = Digest::of(canonical.as_os_str().as_encoded_bytes()).to_hex();
        self.path.join(INDEXES).join(format!("{role}-{}", &digest[..32]))
    }

    fn lock(&self) -> Result<Lock, StateError> {
        let path = self.path.join(LOCK);
        let fail = |source| StateError::Io { doing: "lock", path: path.clone(), source };
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(fail)?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                other => return other.map(|()| Lock { _file: file }).map_err(|errno| fail(errno.into())),
            }
        }
    }

    /// Makes a directory in the state directory, unless it is there.
    fn make(&self, dir: &Path) -> Result<(), StateError> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => flush_dir(&self.path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(source) => Err(StateError::Io { doing: "create", path: dir.to_owned(), source }),
        }
    }

    /// Makes `bytes` the content of `dir/name`, whole and durable, readable by the owner alone. The caller holds the
    /// lock, so one fixed temporary name serves, and what a crash left of it is overwritten.
    fn replace(&self, dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let (temporary, path) = (self.path.join("replacing"), dir.join(name));
        let write = || -> io::Result<()> {
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|source| {
            // Best effort: the next write removes it too.
            let _ = fs::remove_file(&temporary);
            StateError::Io { doing: "write", path: path.clone(), source }
        })?;
        flush_dir(dir)
    }
}

/// The content and mode of a file; `None` if there is none.
fn read(path: &Path) -> Result<Option<(Vec<u8>, u32)>, StateError> {
    let fail = |source| StateError::Io { doing: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        // A name that no file system can hold was never written.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename) => {
            return Ok(None);
        }
        other => other.map_err(fail)?,
    };
    let mode = file.metadata().map_err(fail)?.mode();
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE {
        let reason = format!("it is longer than {MAX_FILE} bytes, and not ours: remove it");
        return Err(StateError::Bad { path: path.to_owned(), reason });
    }
    Ok(Some((bytes, mode)))
}

fn flush_dir(dir: &Path) -> Result<(), StateError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| StateError::Io {
        doing: "flush",
        path: dir.to_owned(),
        source,
    })
}

/// Whether `id` can be the text form of a peer's id: such a text is a safe file name.
fn is_id(id: &str) -> bool {
    (1..=200).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// A file name for an address or a share: itself where that is safe, and else a digest.
fn file_name(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    let safe = (1..=200).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(plain);
    if safe { text.to_owned() } else { format!("={}", Digest::of(text.as_bytes()).to_hex()) }
}

#[cfg(test)]
mod tests;
