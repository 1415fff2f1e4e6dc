//! What a survey found: what is pending, what is gone, and what both make of the tree.

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::RandomState;

use super::SurveyError;
use crate::fs::{FsError, Root};
use crate::hash::{Digest, Prefixes};
use crate::index::{Index, IndexError, Rows as _};
use crate::manifest::{Holds, Kind, Metadata, Row, TreeHash, Tuple, Xattrs};
use crate::path::RelPath;
use crate::roles::tree::{self, Remembered};

/// A path whose row is missing, or no longer true.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The row as it shall be; without a digest yet if `needs_hash`.
    pub row: Row,
    /// Whether the content must be read.
    pub needs_hash: bool,
    /// Whether the extended attributes must be read with it.
    pub needs_xattrs: bool,
    /// What the index has for this path. Boxed, because a first look finds tens of thousands of paths and it has none.
    pub before: Option<Box<Before>>,
}

/// What an index has for a path.
#[derive(Clone, Debug)]
pub struct Before {
    /// The hash of the entry.
    pub hash: Digest,
    /// Its owner, mode and time.
    pub metadata: Metadata,
    /// Size and digest of the content.
    pub content: Option<(u64, Digest)>,
    /// The hash of the entry as it is now, once that is known: it is asked for several times.
    pub now: Option<Digest>,
}

impl Pending {
    /// The hash of the entry.
    pub fn hash(&self) -> Digest {
        self.before.as_ref().and_then(|before| before.now).unwrap_or_else(|| self.row.entry.hash())
    }

    /// Whether the entry itself differs from the index, not only the proof of it.
    pub fn changes_entry(&self) -> bool {
        self.before.as_ref().is_none_or(|before| before.hash != self.hash())
    }

    /// Whether what changed of the entry is its metadata and nothing else.
    pub fn changes_metadata(&self) -> bool {
        let same_but_for_that = |before: &Before| self.row.entry.hash_with(&before.metadata) == before.hash;
        // Most of the others differ in content, which costs no hashing.
        self.before.as_ref().is_some_and(|b| b.content == self.row.entry.content() && same_but_for_that(b))
    }

    /// Takes over the content, and the attributes if they are not known, of an inode that is the same.
    pub(super) fn take_over(&mut self, kind: &Kind, xattrs: &Xattrs) {
        self.row.entry.kind = kind.clone();
        if self.needs_xattrs {
            self.row.entry.xattrs.clone_from(xattrs);
        }
        (self.needs_hash, self.needs_xattrs) = (false, false);
    }

    /// Size and digest of the content that the index has for this path.
    pub fn old_content(&self) -> Option<(u64, Digest)> {
        self.before.as_ref().and_then(|before| before.content)
    }
}

/// Contents and extended attributes of inodes, by what proves them.
pub type KnownContents = HashMap<Tuple, (Kind, Xattrs)>;

/// What a look at a tree found.
#[derive(Debug, Default)]
pub struct Survey {
    /// In tree order.
    pub pending: Vec<Pending>,
    /// Rows whose path is not there any more, in tree order.
    pub gone: Vec<Row>,
    /// What could not be looked at: it is neither changed nor gone.
    pub failures: Vec<FsError>,
    /// Entries seen.
    pub entries: u64,
    /// The hash of the tree as the index had it, unless something is held.
    pub before: Option<TreeHash>,
    /// State directories that were left out.
    pub left_out: Vec<RelPath>,
    /// Everything that was left out, mounts among it: what corresponds to it elsewhere is left alone.
    pub apart: Vec<RelPath>,
    /// Entries that are not there because the kernel refused to make them.
    pub unmade: Vec<RelPath>,
    /// Files that were listed and then were not there: their directories' listings are no longer true.
    pub vanished: Vec<RelPath>,
    /// Whether it ended where there was much, and not where the tree does.
    pub is_cut: bool,
    /// Whether whoever looks is told of all that comes.
    pub(super) is_watched: bool,
    /// Directories that changed whenever they were listed.
    pub(super) restless: BTreeSet<RelPath>,
    /// Names of files that changed between the looks at two of their names, so that these would seem to differ.
    pub torn: Vec<RelPath>,
    /// Directories, and what they were when they were looked at.
    pub(super) dirs: Vec<(RelPath, Tuple)>,
    /// Directories below the top where another file system is mounted.
    pub mounts: Vec<RelPath>,
    /// Whether there are directories, among the failures, where one was mounted and is not now.
    pub has_lost_mounts: bool,
    /// Prefixes of the contents that rows are believed about.
    pub contents: Prefixes,
    /// Names of inodes that have several, by file system and inode.
    pub names: HashMap<(u64, u64), Vec<RelPath>>,
}

/// Why something is neither there nor gone.
pub(super) const COMES_AND_GOES: &str = "it comes and goes, or its directory does not rest";

impl Survey {
    pub(super) fn add(&mut self, pending: Pending) {
        // By an eighth rather than twofold: this is the largest list there is.
        if self.pending.len() == self.pending.capacity() {
            self.pending.reserve_exact(16 + self.pending.len() / 8);
        }
        self.pending.push(pending);
    }

    /// What was pending is in the index by now, and what is gone is not any more: so it is not what it was before the look.
    pub fn passed_on(&mut self) {
        (self.pending, self.gone) = (Vec::new(), Vec::new());
        self.before = None;
    }

    /// The paths that must be left alone.
    pub fn holds(&self) -> Holds {
        Holds::new(self.failures.iter().map(|failure| &failure.path).chain(&self.apart).cloned())
    }

    /// Takes over contents that an earlier look hashed, for inodes that are the same.
    pub fn recall(&mut self, known: &KnownContents) {
        for pending in self.pending.iter_mut().filter(|pending| pending.needs_hash) {
            if let Some((kind, xattrs)) = pending.row.tuple.and_then(|tuple| known.get(&tuple)) {
                pending.take_over(kind, xattrs);
            }
        }
    }

    /// What this look hashed.
    pub fn hashed(&self) -> KnownContents {
        let proven = self.pending.iter().filter(|p| p.row.proven && !p.needs_hash && p.row.entry.content().is_some());
        proven.filter_map(|p| known_of(&p.row)).collect()
    }

    /// Whether something seems gone that may only have moved: a directory changed since it was listed.
    pub fn is_restless(&self, root: &Root) -> bool {
        let changed = |(path, tuple): &(RelPath, Tuple)| {
            let now = root.stat(path).ok().flatten();
            now.is_none_or(|stat| stat.tuple != *tuple)
        };
        !self.gone.is_empty() && self.dirs.iter().any(changed)
    }

    /// Whether nothing that was directly in the directory may be taken for absent, because it changed whenever it was listed.
    pub(super) fn is_in_restless(&self, path: &RelPath) -> bool {
        !self.restless.is_empty() && path.parent().is_some_and(|dir| self.restless.contains(&dir))
    }

    /// What nobody will look at again has to be said: in these directories something may be that was not seen, because it came, or
    /// got another name, while they were listed.
    pub fn restless(&self) -> impl ExactSizeIterator<Item = FsError> {
        let why = "it changes all the time, and what came to it meanwhile may be missing; push again when it rests";
        self.restless.iter().map(move |dir| FsError::because("see all of the directory", dir, why))
    }

    /// A file was listed and then was not there. `old` is the row of its path, if there is one.
    pub fn has_vanished(&mut self, path: &RelPath, old: Option<Row>) {
        self.entries = self.entries.saturating_sub(1);
        if !self.is_in_restless(path) {
            self.gone.extend(old);
            self.vanished.push(path.clone());
        } else if self.is_watched {
            self.gone.extend(old);
        } else if old.is_some() {
            self.failures.push(FsError::because("be sure of", path, COMES_AND_GOES));
        }
    }

    /// Gives up on a tree that does not come to rest: nothing that seems gone is taken for gone, unless all that comes is told of.
    pub fn hold_what_moves(&mut self) {
        if self.is_watched {
            return;
        }
        let why = "it comes and goes while the tree is read; push again when it rests";
        let gone = self.gone.iter().map(|row| &row.path);
        let paths: BTreeSet<RelPath> = gone.chain(&self.vanished).cloned().collect();
        self.failures.extend(paths.iter().map(|path| FsError::because("be sure of", path, why)));
    }

    /// The same for files that have several names: those that would seem to be another file are not published.
    pub fn hold_what_is_torn(&mut self) {
        let why = "the file changes all the time, and has other names; push again when it rests";
        let mut torn: BTreeSet<RelPath> = std::mem::take(&mut self.torn).into_iter().collect();
        for failure in &self.failures {
            torn.remove(&failure.path);
        }
        self.failures.extend(torn.iter().map(|path| FsError::because("read", path, why)));
    }

    /// The hash of the tree as it was found, without extras if asked. The index still is what it was before the look, and
    /// what is pending does not change any more. `remembered` is of the same tree.
    ///
    /// # Errors
    /// [`IndexError`] if the rows cannot be read.
    pub fn tree(
        &mut self,
        index: &Index,
        remembered: &mut Remembered,
        ignore_extras: bool,
    ) -> Result<TreeHash, IndexError> {
        let holds = self.holds();
        for Pending { row, before, .. } in &mut self.pending {
            before.iter_mut().for_each(|before| before.now = Some(row.entry.hash()));
        }
        let before = self.before.take().filter(|_| holds.is_empty());
        let ignored = |extra: bool| extra && ignore_extras;
        let found = |p: &Pending| (!ignored(p.row.extra)).then(|| (p.hash(), p.row.entry.is_dir()));
        let Self { pending, gone, .. } = &*self;
        let paths = gone.iter().map(|row| &row.path).chain(pending.iter().map(|p| &p.row.path));
        match before {
            Some(before) if pending.is_empty() && gone.is_empty() => Ok(before),
            Some(before) if tree::are_few(paths, before.dirs.about()) => {
                // Collected at once, which is several times faster than one by one.
                let gone = gone.iter().map(|row| (&row.path, None));
                let overlay: tree::Overlay<'_> = gone.chain(pending.iter().map(|p| (&p.row.path, found(p)))).collect();
                tree::rehash(index, remembered, before, &overlay, ignore_extras)
            }
            _ => {
                // One after the other: there may be as many as there are entries.
                let (mut gone, mut pending) = (gone.iter().peekable(), pending.iter().peekable());
                let overlay = std::iter::from_fn(|| {
                    let next = pending.peek().map(|p| &p.row.path);
                    if let Some(row) = gone.next_if(|row| next.is_none_or(|next| row.path < *next)) {
                        return Some((&row.path, None));
                    }
                    // What is there again is not gone.
                    gone.next_if(|row| next == Some(&row.path));
                    pending.next().map(|p| (&p.row.path, found(p)))
                });
                tree::hash_with(index, overlay, &holds, ignore_extras)
            }
        }
    }

    /// The directories that are gone, each with its hash; none if not all of the tree as it was is known.
    pub fn gone_dirs(&self) -> Vec<(RelPath, Digest)> {
        let Some(before) = &self.before else { return Vec::new() };
        let dirs = self.gone.iter().filter(|row| row.entry.is_dir());
        dirs.filter_map(|row| Some((row.path.clone(), *before.dirs.get(&row.path)?))).collect()
    }

    /// Whether the whole tree seems gone because its file system is: nothing is left, and the top is on another one. To whom is
    /// `wary` another empty directory is enough, and so is another file system with something else in it: people put a file
    /// there that says that nothing is mounted.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn is_unmounted(&self, root: &Root, index: &Index, wary: bool) -> Result<bool, SurveyError> {
        /// Of so many rows at most one is still true, of a tree that is not there.
        const OF: usize = 10;
        let is_empty = self.entries <= 1;
        let is_other = || {
            let new = self.pending.iter().filter(|pending| pending.before.is_none()).count();
            let left = usize::try_from(self.entries).unwrap_or(usize::MAX).saturating_sub(1 + new);
            left.saturating_mul(OF) < self.gone.len()
        };
        if self.gone.is_empty() || !(is_empty || (wary && is_other())) {
            return Ok(false);
        }
        let known = index.row(&RelPath::root())?.and_then(|row| row.tuple);
        let now = root.stat(&RelPath::root())?.map(|stat| stat.tuple);
        Ok(known.zip(now).is_some_and(|(known, now)| known.fs != now.fs || (wary && is_empty && known.ino != now.ino)))
    }

    /// Bytes that have to be read.
    pub fn bytes_to_hash(&self) -> u64 {
        let size = |p: &Pending| p.row.entry.content().map_or(0, |(size, _)| size);
        self.pending.iter().filter(|p| p.needs_hash).map(size).sum()
    }
}

fn known_of(row: &Row) -> Option<(Tuple, (Kind, Xattrs))> {
    Some((row.tuple?, (row.entry.kind.clone(), row.entry.xattrs.clone())))
}

/// A file under a renamed directory keeps its tuple, and with it the proof of its content: no need to read it.
pub(super) fn recognise_moved_inodes(survey: &mut Survey) {
    let Survey { pending, gone, .. } = survey;
    let mut unread = pending.iter_mut().filter(|pending| pending.needs_hash).peekable();
    if unread.peek().is_none() {
        return;
    }
    // Where something was refused, the row does not tell what the inode has.
    let proves = |row: &Row| row.proven && row.entry.content().is_some() && row.refused.is_empty();
    // By inode, which tells nearly always which row it is; the tuple then tells whether it is. Places in place of the rows,
    // because tens of thousands may have moved.
    let mut by_inode: HashMap<(u64, u64), usize, RandomState> =
        HashMap::with_capacity_and_hasher(gone.len(), RandomState::default());
    for (place, row) in gone.iter().enumerate().filter(|(_, row)| proves(row)) {
        by_inode.extend(row.tuple.map(|tuple| ((tuple.fs, tuple.ino), place)));
    }
    for pending in unread {
        let Some(tuple) = pending.row.tuple else { continue };
        let row = by_inode.get(&(tuple.fs, tuple.ino)).map(|place| &gone[*place]);
        if let Some(row) = row.filter(|row| row.tuple == Some(tuple)) {
            pending.take_over(&row.entry.kind, &row.entry.xattrs);
        }
    }
}
