//! A tree against its index: one walk, one pass over the rows, both in tree order. What is proven costs one `stat`.
//!
//! Both roles begin with it. The master learns what changed since it published; the replica learns its own drift.

mod found;
mod names;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::time::Duration;

pub use found::{Before, KnownContents, Pending, Survey};
pub use names::{LastLook, Names, survey_names};

use crate::filter::Filter;
use crate::fs::{self, FsError, LeftOut, ReadError, Reserved, Root, ScanOptions, Scanned, Seen, Stat};
use crate::index::{Index, IndexError, RowCursor, Shown, Stored, Writer};
use crate::manifest::{Entry, Kind, Merkle, Refused, Row, Time, Tuple};
use crate::path::{Key, KeyBuf, RelPath};
use found::{COMES_AND_GOES, recognise_moved_inodes};
use names::{Dirs, is_excluded};

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
    /// Take a directory on which something was mounted, and is not, as it is: somebody has decided so.
    pub takes_unmounted: bool,
    /// What the reserved staging name means in this tree.
    pub reserved: Reserved,
    /// Whoever looks is told of all that comes: where a directory does not rest, a name under which nothing is now is gone, whatever
    /// name that has got instead.
    pub is_watched: bool,
    /// Look again at what the kernel refused: our privileges changed.
    pub reconsider_refused: bool,
    /// Leave extras out of the root: they were kept on purpose, and shall be again.
    pub ignore_extras: bool,
}

/// Who takes what was found whenever there is much, so that the whole of it is never in memory.
pub struct Portions<'a> {
    /// How many pending entries are much.
    pub most: usize,
    /// Gets these, which are passed on then; or breaks, and the survey ends with them.
    pub take: &'a mut Take<'a>,
}

/// See [`Portions::take`].
pub type Take<'a> = dyn FnMut(&mut Survey) -> Result<ControlFlow<()>, SurveyError> + 'a;

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
    survey_in_portions(root, index, options, seen_so_far, found, None)
}

/// The same in portions, if somebody takes them: what is pending in the end is the last of them.
///
/// # Errors
/// As [`survey`], and those of who takes them.
pub fn survey_in_portions(
    root: &Root,
    index: &Index,
    options: &SurveyOptions<'_>,
    seen_so_far: &dyn Fn(u64) -> ControlFlow<()>,
    found: &mut dyn FnMut(usize, &Pending),
    portions: Option<Portions<'_>>,
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
        dirs: Dirs::new(root),
        found,
        // Taken apart, so that it may live as long as all else here.
        portions: portions.map(|Portions { most, take }| Portions { most, take }),
        survey: Survey { is_watched: options.is_watched, ..Survey::default() },
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
    match ended {
        ControlFlow::Continue(()) => walk.finish(),
        ControlFlow::Break(_) if walk.survey.is_cut => Ok(walk.survey),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Walk<'a> {
    root: &'a Root,
    options: &'a SurveyOptions<'a>,
    /// The clock when the walk began: an inode that changed later than the tick before may change again unseen.
    started: Time,
    /// Whether the walk has let the clock tick for an entry that is as young as that.
    has_waited: bool,
    rows: RowCursor,
    /// Each inode with several names.
    groups: HashMap<(u64, u64), Group>,
    /// The topmost extra directory that the walk is in.
    kept: Option<RelPath>,
    /// Over the rows, as long as none is passed over.
    merkle: Option<Merkle>,
    /// Where names are looked at that no listing has shown.
    dirs: Dirs<'a>,
    found: &'a mut dyn FnMut(usize, &Pending),
    portions: Option<Portions<'a>>,
    survey: Survey,
}

/// An inode with several names.
#[derive(Clone)]
struct Group {
    /// The first in tree order.
    first: RelPath,
    /// What it was under that name.
    tuple: Tuple,
    /// Its content then, if that name's row has it, and whether that is proven.
    kind: Option<(Kind, bool)>,
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
                let old = if is_next { self.take()? } else { None };
                self.entry(seen, old)
            }
            Scanned::Held(error) => self.hold(error),
            Scanned::Restless(dir) => {
                self.survey.restless.insert(dir);
                Ok(())
            }
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
        self.survey.contents.extend(digest);
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
    fn take(&mut self) -> Result<Option<Stored>, SurveyError> {
        let Some(stored) = self.rows.next_stored()? else { return Ok(None) };
        let Stored { row, hash, .. } = &stored;
        let ignored = row.extra && self.options.ignore_extras;
        if let (Some(merkle), false) = (&mut self.merkle, ignored) {
            merkle.push(&row.path, *hash, row.entry.is_dir());
        }
        Ok(Some(stored))
    }

    /// Rows before `key` were not seen.
    fn skip_to(&mut self, key: Key<'_>) -> Result<(), SurveyError> {
        while self.rows.peek()?.is_some_and(|next| next.key < key) {
            self.skip()?;
        }
        Ok(())
    }

    /// The next row was not seen.
    fn skip(&mut self) -> Result<(), SurveyError> {
        if !self.survey.restless.is_empty()
            && let Some(path) = self.rows.peek()?.and_then(|next| next.key.to_path().ok())
            && self.survey.is_in_restless(&path)
        {
            return if self.options.is_watched {
                self.look_for(&path)
            } else {
                self.hold(FsError::because("be sure of", &path, COMES_AND_GOES))
            };
        }
        self.pass_by()
    }

    /// The next row tells of something that is not there.
    fn pass_by(&mut self) -> Result<(), SurveyError> {
        if let Some(Stored { row, .. }) = self.take()? {
            self.unseen(row);
        }
        Ok(())
    }

    /// The path of the next row was not listed in a directory that does not rest: it is looked at by itself.
    fn look_for(&mut self, path: &RelPath) -> Result<(), SurveyError> {
        let unsure = || FsError::because("be sure of", path, COMES_AND_GOES);
        let (dir, around, stat) = match self.dirs.stat(path) {
            Ok(None) => return self.pass_by(),
            Ok(Some((_, _, stat))) if is_excluded(self.options, path, stat.is_dir()) => return self.pass_by(),
            Ok(Some(found)) => found,
            Err(error) => return self.hold(error),
        };
        // What is in a directory, only a walk tells; that comes with the next look.
        let key = KeyBuf::of(path);
        match std::ffi::CString::new(path.name()) {
            Ok(name) if !stat.is_dir() && stat.mount == around => {
                self.survey.entries += 1;
                let old = self.take()?;
                self.entry(Seen::alone(&key, dir.as_fd(), &name, stat), old)
            }
            _ => self.hold(unsure()),
        }
    }

    fn unseen(&mut self, row: Row) {
        // What the kernel refused to make, and nobody else made, is as it should be.
        if row.tuple.is_some() || self.options.reconsider_refused || self.options.checksum {
            self.survey.gone.push(row);
        } else {
            self.survey.unmade.push(row.path);
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

    fn entry(&mut self, mut seen: Seen<'_>, old: Option<Stored>) -> Result<(), SurveyError> {
        if let Some(Stored { row, .. }) = &old
            && row.mount
            && !seen.mount
            && !self.options.checksum
            && !self.options.takes_unmounted
        {
            let why = "a file system was mounted here at the last push and is not now: mount it; or, to take the directory as \
                       it is, push once with --checksum, or, of a replica of a mirror, say `synccli release SHARE` on its master";
            self.survey.has_lost_mounts = true;
            return self.hold(FsError::because("read", seen.path(), why));
        }
        self.note_dir(&seen);
        let group = self.group(&seen);
        let extra = self.is_extra(&seen, old.as_ref().map(|old| &old.row));
        let looked = match old {
            Some(old) if self.believes(&old.row, &seen) => {
                self.known(&seen, old, group, extra);
                Ok(())
            }
            old => {
                let at = self.look_later(&mut seen);
                self.unknown(&seen, at, old.as_ref(), group, extra)
            }
        };
        looked.map_or_else(|error| self.hold(error), Ok)?;
        self.pass_on()
    }

    /// Has what is pending taken, if it is much.
    fn pass_on(&mut self) -> Result<(), SurveyError> {
        let Some(portions) = self.portions.as_mut().filter(|portions| self.survey.pending.len() >= portions.most)
        else {
            return Ok(());
        };
        if (portions.take)(&mut self.survey)?.is_break() {
            self.survey.is_cut = true;
            // Nobody sees that error.
            return Err(SurveyError::Stopped);
        }
        // Further names of these get their content from here.
        let Survey { pending, names, .. } = &self.survey;
        let has_names = |p: &&Pending| p.row.tuple.is_some_and(|tuple| names.contains_key(&(tuple.fs, tuple.ino)));
        let firsts: HashMap<&RelPath, &Row> = pending.iter().filter(has_names).map(|p| (&p.row.path, &p.row)).collect();
        for group in self.groups.values_mut().filter(|group| group.kind.is_none()) {
            if let Some(row) = firsts.get(&group.first) {
                group.kind = Some((row.entry.kind.clone(), row.proven));
                group.tuple = row.tuple.unwrap_or(group.tuple);
            }
        }
        self.survey.pending.clear();
        // The rows are not the tree any more.
        self.merkle = None;
        Ok(())
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

    /// The inode, if the entry is not the first of its names.
    fn group(&mut self, seen: &Seen<'_>) -> Option<Group> {
        if seen.stat.nlink < 2 || seen.stat.is_dir() {
            return None;
        }
        let inode = (seen.stat.tuple.fs, seen.stat.tuple.ino);
        self.survey.names.entry(inode).or_default().push(seen.path().clone());
        let known = self.groups.get(&seen.stat.identity()).cloned();
        if known.is_none() {
            let group = Group { first: seen.path().clone(), tuple: seen.stat.tuple, kind: None };
            self.groups.insert(seen.stat.identity(), group);
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
    fn known(&mut self, seen: &Seen<'_>, old: Stored, group: Option<Group>, extra: bool) {
        let row = &old.row;
        if group.as_ref().is_some_and(|group| group.tuple != seen.stat.tuple) {
            self.survey.torn.push(seen.path().clone());
        }
        let link = if row.refused.has(Refused::LINK) { row.entry.link.clone() } else { group.map(|group| group.first) };
        self.remember(seen, &row.entry);
        self.survey.contents.extend(row.entry.content().map(|(_, digest)| digest));
        if row.entry.link == link && row.mount == seen.mount && row.extra == extra {
            return;
        }
        let before = Some(before_of(&old));
        let Stored { row, .. } = old;
        let row = Row { entry: Entry { link, ..row.entry }, mount: seen.mount, extra, ..row };
        self.survey.add(Pending { row, needs_hash: false, needs_xattrs: false, before });
    }

    fn remember(&mut self, seen: &Seen<'_>, entry: &Entry) {
        if let Some(group) = self.groups.get_mut(&seen.stat.identity())
            && group.first == *seen.path()
        {
            group.kind = Some((entry.kind.clone(), true));
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
        stored: Option<&Stored>,
        group: Option<Group>,
        extra: bool,
    ) -> Result<(), FsError> {
        let old = stored.map(|stored| &stored.row);
        // Whoever reads the content reads the attributes through the same descriptor, which is cheaper than by name.
        let is_known = old.is_some_and(|row| row.tuple == Some(seen.stat.tuple));
        let needs_xattrs = seen.stat.is_file() && seen.stat.tuple.size > 0 && seen.stat.nlink == 1 && !is_known;
        let looked = match needs_xattrs {
            true => Some((fs::plain_file(&seen.stat), seen.stat)),
            false => look(self.root, seen)?,
        };
        let Some((mut entry, stat)) = looked else {
            self.survey.has_vanished(seen.path(), old.cloned());
            return Ok(());
        };
        let mut needs_hash = matches!(entry.kind, Kind::File { size: 1.., .. });
        let mut proven = true;
        if let Some(Group { first, tuple, kind }) = group {
            // What was written between the looks at two names shows only under the second.
            let same = tuple == stat.tuple;
            if !same {
                self.survey.torn.push(seen.path().clone());
            }
            if let (true, Some((kind, is_proven))) = (needs_hash && same, kind) {
                entry.kind = kind;
                (needs_hash, proven) = (false, is_proven);
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
            proven: proven && fs::clock::settled(stat.tuple.ctime, at, self.root.is_remote(&stat)),
            refused,
            extra,
            mount: seen.mount,
        };
        let pending = Pending { row, needs_hash, needs_xattrs, before: stored.map(before_of) };
        (self.found)(self.survey.pending.len(), &pending);
        self.survey.add(pending);
        Ok(())
    }

    fn finish(mut self) -> Result<Survey, SurveyError> {
        while self.rows.peek()?.is_some() {
            self.skip()?;
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
    let restless = || Err(FsError::because("look at", seen.path(), "it keeps changing; push again when it rests"));
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
            Ok(_) => return restless(),
            Err(errno) if errno == rustix::io::Errno::NOENT => return Ok(None),
            Err(errno) => return Err(FsError::new("look at", seen.path(), errno)),
        }
    }
    // Its time passes on with each name that comes or goes in it, and each of those is looked at by itself.
    if !stat.is_dir() {
        return restless();
    }
    match fs::probe_restless(seen.path(), seen.dir, seen.name, &stat) {
        Ok(entry) => Ok(Some((entry, stat))),
        Err(ReadError::Fs(error)) => Err(error),
        Err(ReadError::Changed | ReadError::Cancelled) => restless(),
    }
}

fn before_of(Stored { row: Row { entry, .. }, hash, .. }: &Stored) -> Box<Before> {
    Box::new(Before { hash: *hash, metadata: entry.metadata(), content: entry.content(), now: None })
}

/// Writes what a look found.
///
/// # Errors
/// As any write.
pub fn write_pending(writer: &mut Writer<'_>, pending: &[Pending]) -> Result<(), IndexError> {
    pending.iter().try_for_each(|p| match p.before {
        Some(_) if p.changes_entry() => writer.change(&p.row, &p.hash()),
        Some(_) => writer.upsert(&p.row),
        None => writer.insert(&p.row),
    })
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the tests write the files that are looked at")]
mod tests;
