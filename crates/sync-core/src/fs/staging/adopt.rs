//! What earlier sessions left in a staging directory: taken over, or cleared away.
//!
//! Only names that we make are ever removed. Anything else was put there by somebody, is reported, and stays.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, openat, renameat_with, unlinkat};
use rustix::io::Errno;

use super::new_tree::TREE;
use super::{Content, PART, PART_MIN, Stage, Staging, State, is_big};
use crate::chunk::Chunking;
use crate::fs::STAGING_NAME;
use crate::fs::attributes::Target;
use crate::fs::error::FsError;
use crate::fs::root::Root;
use crate::fs::sparse;
use crate::fs::stat::Stat;
use crate::hash::Digest;
use crate::path::RelPath;

/// A file made and removed at once to learn which owner new files get: a mount option or a setgid directory decides.
pub(super) const BORN: &str = "born";

/// Threads that remove what a push left, and the least that is worth one.
const REMOVERS: usize = 8;
const PORTION: usize = 500;

/// What a name in a staging directory stands for.
enum Name {
    /// A content, whole.
    Content(Digest),
    /// The beginning of a big content: smaller ones are received as temporaries.
    Part(Digest),
    /// An inode that was about to be published, or the beginning of a content that is not big.
    Temporary,
    /// New directories, or one that was about to be published, with what is in them.
    Tree,
    /// Not one of ours.
    Foreign,
}

impl Name {
    fn parse(name: &[u8]) -> Self {
        if let Some(digest) = Digest::from_hex(name) {
            return Self::Content(digest);
        }
        if let Some(digest) = name.strip_suffix(PART.as_bytes()).and_then(Digest::from_hex) {
            return Self::Part(digest);
        }
        let is_number = |digits: &[u8]| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        match name {
            [b't', digits @ ..] if is_number(digits) => Self::Temporary,
            [b'd', digits @ ..] if is_number(digits) => Self::Tree,
            name if name == BORN.as_bytes() => Self::Temporary,
            name if name == TREE.as_bytes() => Self::Tree,
            _ => Self::Foreign,
        }
    }
}

impl Staging {
    /// Takes over what an earlier session left at `top`: the top of the replica, or of a mount below it. To be called
    /// for each before the tree is scanned, since clearing it away changes the time of that directory; without
    /// leftovers it costs one system call.
    ///
    /// # Errors
    /// [`FsError`] if a staging directory is there and cannot be used.
    pub fn adopt(&self, top: &RelPath) -> Result<(), FsError> {
        let dir = self.thaw.open(&self.root, top)?;
        match self.root.stat_at(dir.as_fd(), STAGING_NAME) {
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(FsError::new("look at", top, errno)),
            Ok(_) => {
                let mount = self.mount_of(top)?;
                self.open_stage(&mount).map(drop)
            }
        }
    }

    /// Registers contents and parts, and removes the rest.
    pub(super) fn adopt_names(&self, stage: &Arc<Stage>) {
        let names = match names(stage.fd()) {
            Ok(names) => names,
            Err(errno) => return self.note(FsError::new("list", &stage.mount.staging_path(), errno)),
        };
        // Temporaries go first: a content may have been linked to one, and then counts as published if a link is left.
        for name in &names {
            match Name::parse(name) {
                Name::Temporary => drop(self.discard(stage, name)),
                Name::Tree => {
                    self.take_over_tree(stage, name);
                    self.remove_tree(stage, name);
                }
                _ => {}
            }
        }
        for name in &names {
            let (digest, state, usable) = match Name::parse(name) {
                Name::Content(digest) => (digest, State::Unverified, self.is(stage, name, is_usable)),
                Name::Part(digest) => (digest, State::Part, self.is(stage, name, is_usable_part)),
                Name::Temporary | Name::Tree => continue,
                Name::Foreign => {
                    let path = stage.mount.staging_path().join(name).unwrap_or_default();
                    self.note(FsError::because("clear", &path, "it is in the reserved directory but not ours"));
                    continue;
                }
            };
            if usable && make_plain(stage, name) {
                self.contents().entry(digest).or_insert(Content::new(stage, state));
            } else {
                self.discard(stage, name);
            }
        }
    }

    /// Hashes a content that a killed push left whole; one that is not what its name says is removed.
    pub(super) fn verify(&self, digest: &Digest, stage: &Arc<Stage>) -> bool {
        let name = digest.to_hex();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = openat(stage.fd(), &name, flags, Mode::empty()).and_then(|fd| sparse::hash(&fd, u64::MAX));
        let good = found.is_ok_and(|hasher| Digest::from(hasher.finalize()) == *digest);
        if good {
            self.settle(digest, State::Whole);
        } else {
            self.discard(stage, name.as_bytes());
            self.contents().remove(digest);
        }
        good
    }

    /// Removes what is ours; tells whether the directory is empty now.
    pub(super) fn empty(&self, stage: &Arc<Stage>, keep_parts: bool) -> bool {
        let names = match names(stage.fd()) {
            Ok(names) => names,
            Err(errno) => {
                self.note(FsError::new("list", &stage.mount.staging_path(), errno));
                return false;
            }
        };
        let clear = |names: &[Vec<u8>]| self.clear_names(stage, names, keep_parts);
        // A file system may take milliseconds for each, such as one that discards the blocks of a file when it goes; a
        // push that is interrupted has seconds.
        std::thread::scope(|scope| {
            let portions = names.chunks(names.len().div_ceil(REMOVERS).max(PORTION));
            let threads: Vec<_> = portions.map(|names| scope.spawn(move || clear(names))).collect();
            threads.into_iter().all(|thread| thread.join().unwrap_or(false))
        })
    }

    /// Removes those of the names that are ours and not to be kept; tells whether that is all of them.
    fn clear_names(&self, stage: &Stage, names: &[Vec<u8>], keep_parts: bool) -> bool {
        let mut empty = true;
        for name in names {
            let keep = match Name::parse(name) {
                Name::Temporary => false,
                Name::Tree => {
                    empty &= self.remove_tree(stage, name);
                    continue;
                }
                Name::Content(_) => {
                    keep_parts && self.is(stage, name, |stat| is_usable(stat) && is_big(stat.tuple.size))
                }
                Name::Part(_) => keep_parts && self.is(stage, name, is_usable_part),
                Name::Foreign => true,
            };
            if keep || !self.discard(stage, name) {
                empty = false;
            }
        }
        empty
    }

    /// Takes over the files of new directories that a killed push left: each is hashed, and gets its digest as a name.
    fn take_over_tree(&self, stage: &Arc<Stage>, name: &[u8]) {
        let Ok(tree) = self.tree_in(stage, name) else { return };
        for dir in directories(&tree) {
            let Ok(fd) = tree.open_dir(&dir) else { continue };
            for name in names(fd.as_fd()).unwrap_or_default() {
                let is_file = |stat: Stat| is_usable(&stat) && stat.tuple.size > 0;
                if !tree.stat_at(fd.as_fd(), &name[..]).is_ok_and(is_file) {
                    continue;
                }
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let hashed =
                    openat(&fd, &name[..], flags, Mode::empty()).and_then(|file| sparse::hash(&file, u64::MAX));
                let Ok(digest) = hashed.map(|hasher| Digest::from(hasher.finalize())) else { continue };
                let hex = digest.to_hex();
                let taken = renameat_with(&fd, &name[..], stage.fd(), &hex, RenameFlags::NOREPLACE).is_ok();
                if taken && make_plain(stage, hex.as_bytes()) {
                    self.contents().insert(digest, Content::new(stage, State::Whole));
                }
            }
        }
    }

    /// Removes a directory of ours with all that is in it; tells whether it is gone.
    fn remove_tree(&self, stage: &Stage, name: &[u8]) -> bool {
        let Ok(tree) = self.tree_in(stage, name) else { return self.discard(stage, name) };
        let mut dirs = directories(&tree);
        let clear = |dirs: &[RelPath]| {
            for dir in dirs {
                let Ok(fd) = tree.open_dir(dir) else { continue };
                for name in names(fd.as_fd()).unwrap_or_default() {
                    // What stays, such as a directory, is told when its own directory cannot go.
                    let _ = unlinkat(&fd, &name[..], AtFlags::empty());
                }
            }
        };
        std::thread::scope(|scope| {
            for dirs in dirs.chunks(dirs.len().div_ceil(REMOVERS).max(PORTION / 10)) {
                scope.spawn(move || clear(dirs));
            }
        });
        while let Some(dir) = dirs.pop() {
            let Some(parent) = dir.parent() else { continue };
            if let Ok(parent) = tree.open_dir(&parent) {
                let _ = unlinkat(parent, dir.name(), AtFlags::REMOVEDIR);
            }
        }
        self.discard(stage, name)
    }

    fn tree_in(&self, stage: &Stage, name: &[u8]) -> Result<Root, Errno> {
        let name = std::str::from_utf8(name).map_err(|_| Errno::INVAL)?;
        Root::within(stage.fd(), name, self.root.path().join(STAGING_NAME).join(name))
    }

    fn is(&self, stage: &Stage, name: &[u8], wanted: impl Fn(&Stat) -> bool) -> bool {
        self.root.stat_at(stage.fd(), name).is_ok_and(|stat| wanted(&stat))
    }

    /// Removes a name of ours. A directory goes only if it is empty: what somebody put into it is not ours to lose.
    fn discard(&self, stage: &Stage, name: &[u8]) -> bool {
        let done = match unlinkat(stage.fd(), name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => unlinkat(stage.fd(), name, AtFlags::REMOVEDIR),
            other => other,
        };
        match done {
            Ok(()) | Err(Errno::NOENT) => true,
            Err(errno) => {
                let path = stage.mount.staging_path().join(name).unwrap_or_default();
                self.note(FsError::new("remove", &path, errno));
                false
            }
        }
    }
}

/// Removes what bears our names from a directory that belongs to somebody else.
pub(super) fn empty_foreign(root: &Root, dir: BorrowedFd<'_>) {
    let Ok(names) = names(dir) else { return };
    for name in names.iter().filter(|name| !matches!(Name::parse(name), Name::Foreign)) {
        let is_dir = root.stat_at(dir, &name[..]).is_ok_and(|stat| stat.is_dir());
        let _ = unlinkat(dir, &name[..], if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() });
    }
}

/// A file with no other name: a content that is published under another name already must not be touched again.
fn is_usable(stat: &Stat) -> bool {
    stat.is_file() && stat.nlink == 1
}

/// Shorter than the shortest chunk of any big file, there is nothing in it to go on from.
fn is_usable_part(stat: &Stat) -> bool {
    is_usable(stat) && stat.tuple.size >= Chunking::for_size(PART_MIN).min() as u64
}

/// Takes back what an earlier session gave the file for its publication: the owner, the mode, extended attributes.
fn make_plain(stage: &Stage, name: &[u8]) -> bool {
    let target = Target::Staged(stage.fd(), name);
    target.chown(Some(stage.uid), Some(stage.gid)).is_ok()
        && target.chmod(0o600).is_ok()
        && target.strip_xattrs().is_ok()
}

/// Every directory of a tree, each after the one that holds it.
fn directories(tree: &Root) -> Vec<RelPath> {
    let mut dirs = vec![RelPath::root()];
    let mut next = 0;
    while let Some(dir) = dirs.get(next).cloned() {
        next += 1;
        let Ok(fd) = tree.open_dir(&dir) else { continue };
        for name in names(fd.as_fd()).unwrap_or_default() {
            let is_dir = tree.stat_at(fd.as_fd(), &name[..]).is_ok_and(|stat| stat.is_dir());
            dirs.extend(dir.join(&name).ok().filter(|_| is_dir));
        }
    }
    dirs
}

fn names(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir.as_fd())? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}
