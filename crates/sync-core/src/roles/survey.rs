//! A tree against its index: one walk, one pass over the rows, both in tree order. What is proven costs one `stat`.
//!
//! Both roles begin with it. The master learns what changed since it published; the replica learns its own drift.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::time::Duration;

use foldhash::HashSet;

use crate::filter::Filter;
use crate::fs::{self, FsError, LeftOut, ReadError, Reserved, Root, ScanOptions, Scanned, Seen, Stat};
use crate::hash::Digest;
use crate::index::{Index, IndexError, RowCursor, Shown, Stored};
use crate::manifest::{Entry, Holds, Kind, Merkle, Metadata, Refused, Row, Time, TreeHash, Tuple, Xattrs};
use crate::path::{Key, RelPath};
use crate::roles::tree;

/// How to look at a tree.
pub struct SurveyOptions<'a> {
    /// What belongs to the push.
    pub filter: &'a Filter,
    /// Leave out what is mounted below the top.
    pub one_file_system: bool,
    /// Directories to leave out, by device and inode: the state directory.
    pub leave_out: Vec<(u64, u64)>,
    /// Believe no row.
    pub checksum: bool,
    /// What the reserved staging name means in this tree.
    pub reserved: Reserved,
    /// Look again at what the kernel refused: our privileges changed.
    pub reconsider_refused: bool,
    /// Leave extras out of the root: they were kept on purpose, and shall be again.
    pub ignore_extras: bool,
}

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
}

impl Pending {
    /// Whether the entry itself differs from the index, not only the proof of it.
    pub fn changes_entry(&self) -> bool {
        self.before.as_ref().is_none_or(|before| before.hash != self.row.entry.hash())
    }

    /// Whether what changed of the entry is its metadata and nothing else.
    pub fn changes_metadata(&self) -> bool {
        let same_but_for_that = |before: &Before| self.row.entry.hash_with(&before.metadata) == before.hash;
        // Most of the others differ in content, which costs no hashing.
        self.before.as_ref().is_some_and(|b| b.content == self.row.entry.content() && same_but_for_that(b))
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
    /// Files that were listed and then were not there: their directories' listings are no longer true.
    pub vanished: Vec<RelPath>,
    /// Directories, and what they were when they were looked at.
    dirs: Vec<(RelPath, Tuple)>,
    /// Directories below the top where another file system is mounted.
    pub mounts: Vec<RelPath>,
    /// Prefixes of the contents that rows are believed about.
    pub contents: HashSet<u64>,
    /// Names of inodes that have several, by file system and inode.
    pub names: HashMap<(u64, u64), Vec<RelPath>>,
}

impl Survey {
    fn add(&mut self, pending: Pending) {
        // By an eighth rather than twofold: this is the largest list there is.
        if self.pending.len() == self.pending.capacity() {
            self.pending.reserve_exact(1024 + self.pending.len() / 8);
        }
        self.pending.push(pending);
    }

    /// The paths that must be left alone.
    pub fn holds(&self) -> Holds {
        Holds::new(self.failures.iter().map(|failure| &failure.path).chain(&self.apart).cloned())
    }

    /// Takes over contents that an earlier look hashed, for inodes that are the same.
    pub fn recall(&mut self, known: &KnownContents) {
        for pending in self.pending.iter_mut().filter(|pending| pending.needs_hash) {
            if let Some((kind, xattrs)) = pending.row.tuple.and_then(|tuple| known.get(&tuple)) {
                pending.row.entry.kind = kind.clone();
                if pending.needs_xattrs {
                    pending.row.entry.xattrs.clone_from(xattrs);
                }
                (pending.needs_hash, pending.needs_xattrs) = (false, false);
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

    /// Gives up on a tree that does not come to rest: nothing that seems gone is taken for gone.
    pub fn hold_what_moves(&mut self) {
        let why = "it comes and goes while the tree is read; push again when it rests";
        let listings = self.vanished.iter().filter_map(RelPath::parent);
        let paths: BTreeSet<RelPath> = self.gone.iter().map(|row| row.path.clone()).chain(listings).collect();
        self.failures.extend(paths.iter().map(|path| FsError::because("be sure of", path, why)));
    }

    /// The hash of the tree as it was found, without extras if asked. The index still is what it was before the look.
    ///
    /// # Errors
    /// [`IndexError`] if the rows cannot be read.
    pub fn tree(&mut self, index: &Index, ignore_extras: bool) -> Result<TreeHash, IndexError> {
        let holds = self.holds();
        let before = self.before.take().filter(|_| holds.is_empty());
        let ignored = |extra: bool| extra && ignore_extras;
        let found = |p: &Pending| (!ignored(p.row.extra)).then(|| (p.row.entry.hash(), p.row.entry.is_dir()));
        let gone = self.gone.iter().map(|row| (&row.path, None));
        // Collected at once, which is several times faster than one by one.
        let overlay: tree::Overlay<'_> = gone.chain(self.pending.iter().map(|p| (&p.row.path, found(p)))).collect();
        match before {
            Some(before) if overlay.is_empty() => Ok(before),
            Some(before) => tree::rehash(index, before, &overlay, ignore_extras),
            None => tree::hash_with(index, &overlay, &holds, ignore_extras),
        }
    }

    /// The directories that are gone, each with its hash; none if not all of the tree as it was is known.
    pub fn gone_dirs(&self) -> Vec<(RelPath, Digest)> {
        let Some(before) = &self.before else { return Vec::new() };
        let dirs = self.gone.iter().filter(|row| row.entry.is_dir());
        dirs.filter_map(|row| Some((row.path.clone(), *before.dirs.get(&row.path)?))).collect()
    }

    /// Whether the whole tree seems gone because its file system is: nothing is left, and the top is on another one.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn is_unmounted(&self, root: &Root, index: &Index) -> Result<bool, SurveyError> {
        if self.entries > 1 || self.gone.is_empty() {
            return Ok(false);
        }
        let known = index.row(&RelPath::root())?.and_then(|row| row.tuple);
        let now = root.stat(&RelPath::root())?.map(|stat| stat.tuple);
        Ok(known.zip(now).is_some_and(|(known, now)| known.fs != now.fs))
    }

    /// Bytes that have to be read.
    pub fn bytes_to_hash(&self) -> u64 {
        let size = |p: &Pending| p.row.entry.content().map_or(0, |(size, _)| size);
        self.pending.iter().filter(|p| p.needs_hash).map(size).sum()
    }
}

/// Why a survey ended early.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// The index is damaged, or its disk is full.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The top directory cannot be read.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The process is asked to stop.
    #[error("interrupted")]
    Stopped,
}

/// Walks the tree beside its rows. `seen_so_far` is asked and told every so often; `found` gets each entry that the
/// index does not know as it is, with its place among the pending ones.
///
/// # Errors
/// [`SurveyError`]; failures of single entries are in the survey.
pub fn survey(
    root: &Root,
    index: &Index,
    options: &SurveyOptions<'_>,
    seen_so_far: &dyn Fn(u64) -> ControlFlow<()>,
    found: &mut dyn FnMut(usize, &Pending),
) -> Result<Survey, SurveyError> {
    let scan_options = ScanOptions {
        filter: options.filter,
        one_file_system: options.one_file_system,
        leave_out: options.leave_out.clone(),
        reserved: options.reserved,
    };
    let mut walk = Walk {
        root,
        options,
        started: fs::clock::now(),
        has_waited: false,
        rows: index.cursor()?,
        groups: HashMap::new(),
        kept: None,
        merkle: Some(Merkle::new()),
        found,
        survey: Survey::default(),
    };
    let ended = fs::scan(root, &scan_options, &mut |item| {
        if walk.survey.entries.is_multiple_of(1024) && seen_so_far(walk.survey.entries).is_break() {
            return ControlFlow::Break(SurveyError::Stopped);
        }
        match walk.visit(item) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    })?;
    if let ControlFlow::Break(error) = ended {
        return Err(error);
    }
    walk.finish()
}

struct Walk<'a> {
    root: &'a Root,
    options: &'a SurveyOptions<'a>,
    /// The clock when the walk began: an inode that changed later than the tick before may change again unseen.
    started: Time,
    /// Whether the walk has let the clock tick for an entry that is as young as that.
    has_waited: bool,
    rows: RowCursor,
    /// First name and content of each inode with several names.
    groups: HashMap<(u64, u64), (RelPath, Option<Kind>)>,
    /// The topmost extra directory that the walk is in.
    kept: Option<RelPath>,
    /// Over the rows, as long as none is passed over.
    merkle: Option<Merkle>,
    found: &'a mut dyn FnMut(usize, &Pending),
    survey: Survey,
}

impl Walk<'_> {
    fn visit(&mut self, item: Scanned<'_>) -> Result<(), SurveyError> {
        match item {
            Scanned::Entry(seen) => {
                self.skip_to(seen.key())?;
                self.survey.entries += 1;
                if self.is_as_known(&seen)? {
                    return Ok(());
                }
                let is_next = self.rows.peek()?.is_some_and(|next| next.key == seen.key());
                let row = if is_next { self.take()? } else { None };
                self.entry(seen, row)
            }
            Scanned::Held(error) => self.hold(error),
            Scanned::LeftOut { path, why } => {
                self.pass_over(&path)?;
                if why == LeftOut::Asked {
                    self.survey.left_out.push(path.clone());
                }
                self.survey.apart.push(path);
                Ok(())
            }
        }
    }

    /// Whether the next row is that of the entry, and says just what the disk shows: nearly always so, and then this is
    /// all that is done about the entry. What other names, extras and options decide is not decided here.
    fn is_as_known(&mut self, seen: &Seen<'_>) -> Result<bool, SurveyError> {
        let Stat { nlink, tuple, .. } = &seen.stat;
        if self.options.checksum || self.kept.is_some() || (*nlink > 1 && !seen.stat.is_dir()) {
            return Ok(false);
        }
        let Some(next) = self.rows.peek()?.filter(|next| next.key == seen.key()) else { return Ok(false) };
        let Some(Shown { is_dir, digest }) = next.shown_by(tuple, seen.mount) else { return Ok(false) };
        if let Some(merkle) = &mut self.merkle {
            merkle.push_key(next.key, next.hash, is_dir);
        }
        self.rows.pass();
        self.survey.contents.extend(digest.map(|digest| digest.prefix()));
        self.note_dir(seen);
        Ok(true)
    }

    fn note_dir(&mut self, seen: &Seen<'_>) {
        if seen.stat.is_dir() {
            self.survey.dirs.push((seen.path().clone(), seen.stat.tuple));
        }
        if seen.mount {
            self.survey.mounts.push(seen.path().clone());
        }
    }

    /// The next row, which counts for the hash of the tree as the index has it.
    fn take(&mut self) -> Result<Option<Row>, SurveyError> {
        let Some(Stored { row, hash, .. }) = self.rows.next_stored()? else { return Ok(None) };
        let ignored = row.extra && self.options.ignore_extras;
        if let (Some(merkle), false) = (&mut self.merkle, ignored) {
            merkle.push(&row.path, hash, row.entry.is_dir());
        }
        Ok(Some(row))
    }

    /// Rows before `key` were not seen.
    fn skip_to(&mut self, key: Key<'_>) -> Result<(), SurveyError> {
        while self.rows.peek()?.is_some_and(|next| next.key < key) {
            if let Some(row) = self.take()? {
                self.unseen(row);
            }
        }
        Ok(())
    }

    fn unseen(&mut self, row: Row) {
        // What the kernel refused to make, and nobody else made, is as it should be.
        if row.tuple.is_some() || self.options.reconsider_refused || self.options.checksum {
            self.survey.gone.push(row);
        }
    }

    /// What cannot be looked at keeps its rows, with all beneath it.
    fn hold(&mut self, error: FsError) -> Result<(), SurveyError> {
        self.pass_over(&error.path)?;
        self.survey.failures.push(error);
        Ok(())
    }

    /// Rows before a path were not seen; its own and all beneath it are neither believed nor doubted.
    fn pass_over(&mut self, path: &RelPath) -> Result<(), SurveyError> {
        let key = path.to_key();
        let top = Key::new(&key);
        self.skip_to(top)?;
        while self.rows.peek()?.is_some_and(|next| next.key == top || next.key.is_beneath(top)) {
            self.rows.pass();
        }
        self.merkle = None;
        Ok(())
    }

    fn entry(&mut self, mut seen: Seen<'_>, row: Option<Row>) -> Result<(), SurveyError> {
        if let Some(row) = &row
            && row.mount
            && !seen.mount
            && !self.options.checksum
        {
            let why = "a file system was mounted here at the last push and is not now; mount it, or push once with \
                       --checksum to take the directory as it is";
            return self.hold(FsError::because("read", seen.path(), why));
        }
        self.note_dir(&seen);
        let group = self.group(&seen);
        let extra = self.is_extra(&seen, row.as_ref());
        let looked = match row {
            Some(row) if self.believes(&row, &seen) => {
                self.known(&seen, row, group, extra);
                Ok(())
            }
            row => {
                let at = self.look_later(&mut seen);
                self.unknown(&seen, at, row.as_ref(), group, extra)
            }
        };
        looked.map_or_else(|error| self.hold(error), Ok)
    }

    /// Whether the master does not have the entry. What somebody put into a directory that the master does not have is
    /// none of its entries either: told of without its directory, nobody could make sense of it.
    fn is_extra(&mut self, seen: &Seen<'_>, row: Option<&Row>) -> bool {
        if self.kept.as_ref().is_some_and(|top| seen.path().is_beneath(top)) {
            return true;
        }
        let extra = row.is_some_and(|row| row.extra);
        self.kept = (extra && seen.stat.is_dir()).then(|| seen.path().clone());
        extra
    }

    /// The first name of the inode, and its content if that name's row has it.
    fn group(&mut self, seen: &Seen<'_>) -> Option<(RelPath, Option<Kind>)> {
        if seen.stat.nlink < 2 || seen.stat.is_dir() {
            return None;
        }
        let inode = (seen.stat.tuple.fs, seen.stat.tuple.ino);
        self.survey.names.entry(inode).or_default().push(seen.path().clone());
        let known = self.groups.get(&seen.stat.identity()).cloned();
        if known.is_none() {
            self.groups.insert(seen.stat.identity(), (seen.path().clone(), None));
        }
        known
    }

    fn believes(&self, row: &Row, seen: &Seen<'_>) -> bool {
        row.proven
            && row.tuple == Some(seen.stat.tuple)
            && !self.options.checksum
            && (row.refused.is_empty() || !self.options.reconsider_refused)
    }

    /// The inode is the row's: only what other names or mounts decide can differ.
    fn known(&mut self, seen: &Seen<'_>, row: Row, group: Option<(RelPath, Option<Kind>)>, extra: bool) {
        let link = if row.refused.has(Refused::LINK) { row.entry.link.clone() } else { group.map(|(first, _)| first) };
        self.remember(seen, &row.entry);
        self.survey.contents.extend(row.entry.content().map(|(_, digest)| digest.prefix()));
        if row.entry.link == link && row.mount == seen.mount && row.extra == extra {
            return;
        }
        let before = Some(before_of(&row));
        let row = Row { entry: Entry { link, ..row.entry }, mount: seen.mount, extra, ..row };
        self.survey.add(Pending { row, needs_hash: false, needs_xattrs: false, before });
    }

    fn remember(&mut self, seen: &Seen<'_>, entry: &Entry) {
        if let Some((first, kind)) = self.groups.get_mut(&seen.stat.identity())
            && first == seen.path()
        {
            *kind = Some(entry.kind.clone());
        }
    }

    /// When the entry was looked at, for its stamp to be compared with. One that changed in the tick in which the walk began
    /// could not be proven: it is looked at again in a later one, so that what was written just before a push need not be
    /// read again by the next.
    fn look_later(&mut self, seen: &mut Seen<'_>) -> Time {
        const TICKS: Duration = Duration::from_millis(20);
        let ctime = seen.stat.tuple.ctime;
        if fs::clock::settled(ctime, self.started, false) || self.root.is_remote(&seen.stat) {
            return self.started;
        }
        // Once: some stamps are so coarse, or so far in the future, that all waiting is in vain.
        if !std::mem::replace(&mut self.has_waited, true) {
            fs::clock::wait_past(ctime, TICKS);
        }
        let at = fs::clock::now();
        match self.root.stat_at(seen.dir, seen.name) {
            Ok(stat) if stat.kind == seen.stat.kind => {
                seen.stat = stat;
                at
            }
            // What became of it is found where it is read.
            _ => self.started,
        }
    }

    /// `at` is when it was looked at, or earlier.
    fn unknown(
        &mut self,
        seen: &Seen<'_>,
        at: Time,
        old: Option<&Row>,
        group: Option<(RelPath, Option<Kind>)>,
        extra: bool,
    ) -> Result<(), FsError> {
        // Whoever reads the content reads the attributes through the same descriptor, which is cheaper than by name.
        let is_known = old.is_some_and(|row| row.tuple == Some(seen.stat.tuple));
        let needs_xattrs = seen.stat.is_file() && seen.stat.tuple.size > 0 && seen.stat.nlink == 1 && !is_known;
        let looked = match needs_xattrs {
            true => Some((fs::plain_file(&seen.stat), seen.stat)),
            false => look(self.root, seen)?,
        };
        let Some((mut entry, stat)) = looked else {
            self.survey.gone.extend(old.cloned());
            self.survey.vanished.push(seen.path().clone());
            return Ok(());
        };
        let mut needs_hash = matches!(entry.kind, Kind::File { size: 1.., .. });
        if let Some((first, kind)) = group {
            if let (true, Some(kind)) = (needs_hash, kind) {
                entry.kind = kind;
                needs_hash = false;
            }
            entry.link = Some(first);
        }
        let mut refused = Refused::default();
        if let Some(row) = old.filter(|row| row.tuple == Some(stat.tuple) && !self.options.reconsider_refused) {
            // Nothing shows that it changed, only that nothing proves that it did not: what was wanted still is.
            refused = row.refused;
            want_again(&mut entry, row);
        }
        let row = Row {
            path: seen.path().clone(),
            entry,
            tuple: Some(stat.tuple),
            proven: fs::clock::settled(stat.tuple.ctime, at, self.root.is_remote(&stat)),
            refused,
            extra,
            mount: seen.mount,
        };
        let pending = Pending { row, needs_hash, needs_xattrs, before: old.map(before_of) };
        (self.found)(self.survey.pending.len(), &pending);
        self.survey.add(pending);
        Ok(())
    }

    fn finish(mut self) -> Result<Survey, SurveyError> {
        while let Some(row) = self.take()? {
            self.unseen(row);
        }
        self.survey.before = self.merkle.map(Merkle::finish);
        recognise_moved_inodes(&mut self.survey);
        Ok(self.survey)
    }
}

/// Puts back what was wanted of an entry and refused by the kernel.
fn want_again(entry: &mut Entry, row: &Row) {
    let wanted = &row.entry;
    if row.refused.has(Refused::OWNER) {
        (entry.uid, entry.gid) = (wanted.uid, wanted.gid);
    }
    if row.refused.has(Refused::MODE) {
        entry.mode = wanted.mode;
    }
    if row.refused.has(Refused::TIME) {
        entry.mtime = wanted.mtime;
    }
    if row.refused.has(Refused::XATTR) {
        entry.xattrs.clone_from(&wanted.xattrs);
    }
    if row.refused.has(Refused::LINK) {
        entry.link.clone_from(&wanted.link);
    }
}

/// The entry, and what it was when it was looked at: again if it changed meanwhile; `None` if it is gone.
fn look(root: &Root, seen: &Seen<'_>) -> Result<Option<(Entry, Stat)>, FsError> {
    const TRIES: u32 = 4;
    let mut stat = seen.stat;
    for _ in 0..TRIES {
        match fs::probe_at(root, seen.path(), seen.dir, seen.name, &stat) {
            Ok(entry) => return Ok(Some((entry, stat))),
            Err(ReadError::Fs(error)) => return Err(error),
            Err(ReadError::Changed | ReadError::Cancelled) => {}
        }
        match root.stat_at(seen.dir, seen.name) {
            // A directory that came or went changes what is walked: that is for the next push.
            Ok(now) if now.is_dir() == seen.stat.is_dir() => stat = now,
            Ok(_) => break,
            Err(errno) if errno == rustix::io::Errno::NOENT => return Ok(None),
            Err(errno) => return Err(FsError::new("look at", seen.path(), errno)),
        }
    }
    Err(FsError::because("look at", seen.path(), "it keeps changing; push again when it rests"))
}

fn before_of(row: &Row) -> Box<Before> {
    Box::new(Before { hash: row.entry.hash(), metadata: row.entry.metadata(), content: row.entry.content() })
}

fn known_of(row: &Row) -> Option<(Tuple, (Kind, Xattrs))> {
    Some((row.tuple?, (row.entry.kind.clone(), row.entry.xattrs.clone())))
}

/// A file under a renamed directory keeps its tuple, and with it the proof of its content: no need to read it.
fn recognise_moved_inodes(survey: &mut Survey) {
    // Where something was refused, the row does not tell what the inode has.
    let proven = survey.gone.iter().filter(|row| row.proven && row.entry.content().is_some() && row.refused.is_empty());
    let moved: KnownContents = proven.filter_map(known_of).collect();
    survey.recall(&moved);
}
