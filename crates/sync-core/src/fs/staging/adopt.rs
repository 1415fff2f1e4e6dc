//! What earlier sessions left in a staging directory: taken over, or cleared away.
//!
//! Only names that we make are ever removed. Anything else was put there by somebody, is reported, and stays.

use std::os::fd::{AsFd, BorrowedFd};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, openat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

use super::new_tree::TREE;
use super::{Content, Leave, PART, PART_MIN, Stage, Staging, State, is_big};
use crate::chunk::Chunking;
use crate::fs::STAGING_NAME;
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
const PORTION_OF_DIRS: usize = 10;

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
                    self.remove_tree(stage, name, &|dir, name| self.take_over(stage, dir, name));
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
            if usable && stage.make_plain(name) {
                self.contents().entry(digest).or_insert(Content::new(stage, state));
            } else {
                self.discard(stage, name);
            }
        }
    }

    /// Hashes a content that an interrupted push left whole; one that is not what its name says is removed. Once the session is
    /// asked to stop, it stays what it is and is not believed.
    pub(super) fn verify(&self, digest: &Digest, stage: &Arc<Stage>) -> bool {
        let name = digest.to_hex();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found =
            openat(stage.fd(), &name, flags, Mode::empty()).and_then(|fd| sparse::hash(&fd, u64::MAX, &self.stop));
        if matches!(found, Err(Errno::CANCELED)) {
            return false;
        }
        let good = found.is_ok_and(|hasher| Digest::from(hasher.finalize()) == *digest);
        if good {
            self.settle(digest, State::Whole);
        } else {
            self.discard(stage, name.as_bytes());
            self.contents().swap_remove(digest);
        }
        good
    }

    /// Removes what is ours and not to be left; tells whether the directory is empty now.
    pub(super) fn empty(&self, stage: &Arc<Stage>, leave: Leave) -> bool {
        let names = match names(stage.fd()) {
            Ok(names) => names,
            Err(errno) => {
                self.note(FsError::new("list", &stage.mount.staging_path(), errno));
                return false;
            }
        };
        // First of all temporaries, as in `adopt_names`: one may be another name of a content that is to be left.
        let (temporaries, rest): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| matches!(Name::parse(name), Name::Temporary));
        let clear = |names: &[Vec<u8>]| in_portions(names, PORTION, &|names| self.clear_names(stage, names, leave));
        [clear(&temporaries), clear(&rest)].into_iter().flatten().all(|empty| empty)
    }

    /// Removes those of the names that are ours and not to be left; tells whether that is all of them.
    fn clear_names(&self, stage: &Stage, names: &[Vec<u8>], leave: Leave) -> bool {
        let mut empty = true;
        for name in names {
            let keep = match Name::parse(name) {
                Name::Temporary => false,
                // Taken apart by the next session: it may be large, and who interrupts does not wait.
                Name::Tree if leave == Leave::Whole => true,
                Name::Tree => {
                    empty &= self.remove_tree(stage, name, &|_, _| true);
                    continue;
                }
                Name::Content(digest) | Name::Part(digest) if self.is_of_no_use(&digest) => false,
                Name::Content(_) => match leave {
                    Leave::Nothing => false,
                    Leave::Big => self.is(stage, name, |stat| is_usable(stat) && is_big(stat.tuple.size)),
                    Leave::Whole => self.is(stage, name, is_usable),
                },
                Name::Part(_) => leave != Leave::Nothing && self.is(stage, name, is_usable_part),
                Name::Foreign => true,
            };
            if keep || !self.discard(stage, name) {
                empty = false;
            }
        }
        empty
    }

    /// Takes over a file of a new directory that an earlier push left: it gets its digest as a name. Once the session is asked
    /// to stop, it stays what it is; tells whether whatever still has the name may go.
    fn take_over(&self, stage: &Arc<Stage>, dir: BorrowedFd<'_>, name: &[u8]) -> bool {
        if self.is_stopped() {
            return false;
        }
        let is_file = |stat: Stat| is_usable(&stat) && stat.tuple.size > 0;
        if !self.root.stat_at(dir, name).is_ok_and(is_file) {
            return true;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let hashed = openat(dir, name, flags, Mode::empty()).and_then(|file| sparse::hash(&file, u64::MAX, &self.stop));
        let digest = match hashed {
            Ok(hasher) => Digest::from(hasher.finalize()),
            Err(errno) => return errno != Errno::CANCELED,
        };
        let hex = digest.to_hex();
        if renameat_with(dir, name, stage.fd(), &hex, RenameFlags::NOREPLACE).is_ok() {
            if stage.make_plain(hex.as_bytes()) {
                self.contents().insert(digest, Content::new(stage, State::Whole));
            } else {
                self.discard(stage, hex.as_bytes());
            }
        }
        true
    }

    /// Whether an earlier session left the content and this one has no use for it: it has not asked for it, and has a plan; or
    /// needs the room.
    fn is_of_no_use(&self, digest: &Digest) -> bool {
        let is_left = |content: &Content| matches!(content.state, State::Unverified | State::Part);
        (self.had_plan.load(Ordering::Relaxed) || self.is_full.load(Ordering::Relaxed))
            && self.contents().get(digest).is_some_and(is_left)
    }

    /// Removes a directory of ours with all that is in it, after `each` saw the files; tells whether it is gone.
    fn remove_tree(&self, stage: &Stage, name: &[u8], each: Each<'_>) -> bool {
        let failed = take_apart(stage.fd(), name, &self.counter, each);
        let gone = failed.is_empty();
        for (name, errno) in failed {
            let path = stage.mount.staging_path().join(&name).unwrap_or_default();
            self.note(FsError::new("remove", &path, errno));
        }
        gone
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
    let numbers = AtomicU64::new(0);
    for name in names.iter().filter(|name| !matches!(Name::parse(name), Name::Foreign)) {
        if matches!(Name::parse(name), Name::Tree) {
            take_apart(dir, name, &numbers, &|_, _| true);
            continue;
        }
        let is_dir = root.stat_at(dir, &name[..]).is_ok_and(|stat| stat.is_dir());
        let _ = unlinkat(dir, &name[..], if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() });
    }
}

/// Sees what is about to be removed or taken apart, by its directory and name, and tells whether that may go.
type Each<'a> = &'a (dyn Fn(BorrowedFd<'_>, &[u8]) -> bool + Sync);

/// Names that could not be removed, and why.
type Left = Vec<(Vec<u8>, Errno)>;

/// Removes what is at `name` in `stage`, a directory with all that is in it but for what is not to go. Directories in it are moved up next to it
/// first, under numbers that are free: so it needs no paths, however deep it is.
fn take_apart(stage: BorrowedFd<'_>, name: &[u8], numbers: &AtomicU64, each: Each<'_>) -> Left {
    let mut level = vec![name.to_vec()];
    let mut left = Left::new();
    while !level.is_empty() {
        let apart = |names: &[Vec<u8>]| -> (Vec<Vec<u8>>, Left) {
            let mut found = (Vec::new(), Left::new());
            names.iter().for_each(|name| take_one_apart(stage, name, numbers, each, &mut found));
            found
        };
        let taken = in_portions(&level, PORTION_OF_DIRS, &apart);
        level.clear();
        for (deeper, failed) in taken {
            level.extend(deeper);
            left.extend(failed);
        }
    }
    left
}

/// A file with no other name: a content that is published under another name already must not be touched again.
fn is_usable(stat: &Stat) -> bool {
    stat.is_file() && stat.nlink == 1
}

/// Shorter than the shortest chunk of any big file, there is nothing in it to go on from.
fn is_usable_part(stat: &Stat) -> bool {
    is_usable(stat) && stat.tuple.size >= Chunking::for_size(PART_MIN).min() as u64
}

/// Removes a directory and the files in it. Adds the new names of the directories in it to the first of `found`, and what
/// could not be removed to the second.
fn take_one_apart(
    stage: BorrowedFd<'_>,
    name: &[u8],
    numbers: &AtomicU64,
    each: Each<'_>,
    found: &mut (Vec<Vec<u8>>, Left),
) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match openat(stage, name, flags, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return,
        Err(_) => {
            let removed = unlinkat(stage, name, AtFlags::empty());
            return found.1.extend(removed.err().map(|errno| (name.to_vec(), errno)));
        }
    };
    let spares = AtomicBool::new(false);
    let remove = |names: &[Vec<u8>]| -> (Vec<Vec<u8>>, Left) {
        let (mut deeper, mut left) = (Vec::new(), Left::new());
        for entry in names {
            if !each(dir.as_fd(), entry) {
                spares.store(true, Ordering::Relaxed);
                continue;
            }
            match unlinkat(&dir, &entry[..], AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => match move_up(dir.as_fd(), entry, stage, numbers) {
                    Ok(moved) => deeper.push(moved),
                    Err(errno) => left.push((name.to_vec(), errno)),
                },
                Err(errno) => left.push((name.to_vec(), errno)),
            }
        }
        (deeper, left)
    };
    for (deeper, left) in in_portions(&names(dir.as_fd()).unwrap_or_default(), PORTION, &remove) {
        found.0.extend(deeper);
        found.1.extend(left);
    }
    if spares.into_inner() {
        return;
    }
    let removed = unlinkat(stage, name, AtFlags::REMOVEDIR);
    found.1.extend(removed.err().filter(|errno| *errno != Errno::NOENT).map(|errno| (name.to_vec(), errno)));
}

fn move_up(dir: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, numbers: &AtomicU64) -> Result<Vec<u8>, Errno> {
    loop {
        let free = format!("d{}", numbers.fetch_add(1, Ordering::Relaxed)).into_bytes();
        match renameat_with(dir, name, to, &free[..], RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(free),
            Err(Errno::EXIST) => {}
            // A file system that does not know the flag: a directory replaces no other that is not empty.
            Err(Errno::INVAL) => return renameat(dir, name, to, &free[..]).map(|()| free),
            Err(errno) => return Err(errno),
        }
    }
}

/// Does something with each portion of the names, on several threads if there are more than `least`: a file system may take
/// milliseconds for each, such as one that discards the blocks of a file when it goes, and a push that is interrupted has
/// seconds.
fn in_portions<T: Send>(names: &[Vec<u8>], least: usize, work: &(dyn Fn(&[Vec<u8>]) -> T + Sync)) -> Vec<T> {
    if names.len() <= least {
        return vec![work(names)];
    }
    std::thread::scope(|scope| {
        let portions = names.chunks(names.len().div_ceil(REMOVERS).max(least));
        let threads: Vec<_> = portions.map(|names| scope.spawn(move || work(names))).collect();
        let joined = |thread: ScopedJoinHandle<'_, T>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        threads.into_iter().map(joined).collect()
    })
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
