//! The source of a push: a tree, its index, and the steps from what is on disk to a committed version.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::acks::Acks;
use super::difference::{Difference, dirs_that_came};
use super::doubts::Doubts;
use super::error::PushError;
use super::meter::Meter;
use super::packing::Packing;
use super::previous::Previous;
use super::reads::Reads;
use super::ring::Ring;
use crate::chunk::{ChunkRef, Chunking};
use crate::delta::CopyRange;
use crate::filter::Filter;
use crate::fs::{self, History, PART_MIN, ReadError, Reserved, Root, STAGING_NAME, SourceFile, StateDir};
use crate::hash::Digest;
use crate::index::{Counts, Index, IndexError, Next, Writer};
use crate::manifest::{Holds, Lineage, TreeHash, Version, VersionId};
use crate::monitor::Monitor;
use crate::options::{Destination, Policy, PushRequest};
use crate::path::RelPath;
use crate::region::Region;
use crate::relative::moved_dirs;
use crate::roles::guarding::Counted;
use crate::roles::identify::{Early, Identified, IdentifyOptions, identify};
use crate::roles::survey::{
    KnownContents, LastLook, Names, Pending, Portions, Survey, SurveyOptions, survey_in_portions, survey_names,
    write_pending,
};
use crate::roles::tree::Remembered;
use crate::wire::{Draft, Offered};

/// Contents up to this size stay in memory from hashing to sending.
pub(super) const KEEP: u64 = 1 << 20;

/// How often a tree that changes while it is looked at is looked at again.
pub const LOOKS: u32 = 5;

/// Under this key an index keeps the path of its source.
pub const SOURCE_PATH: &str = "source.path";

/// Gets contents to offer, and whether more may follow soon.
pub type Offering<'a> = dyn FnMut(Option<Offered>, bool) + Send + 'a;

/// An open source.
pub struct Source {
    /// Its top directory.
    pub root: Root,
    /// Where that is, for daemons that may be on this machine.
    pub region: Option<Region>,
    /// What was known of it.
    pub index: Index,
    /// Contents on their way from the hasher to the destinations.
    pub ring: Ring,
    /// What several destinations share; `None` if there is just one.
    pub reads: Option<Reads>,
    /// Previous contents.
    pub history: Option<History>,
    /// Whether versions go on coming: a history that is empty is filled when nothing else is to be done, and whoever mirrors it says what
    /// is held.
    pub is_mirrored: bool,
    /// What the index gets with the next version, or soon.
    pub acks: Acks,
    /// Whether the tree of a mirror is what it shall be.
    pub doubts: Doubts,
    /// What their streams share.
    pub packing: Arc<Packing>,
    /// `None` in a dry run.
    pub(super) previous: Option<Previous>,
    filter: Filter,
    policy: Policy,
    leave_out: Vec<(u64, u64)>,
    chunks: Mutex<HashMap<Digest, Arc<[ChunkRef]>>>,
    remembered: Mutex<Remembered>,
    /// Whether whoever looks is told of all that comes meanwhile.
    is_watched: AtomicBool,
}

/// What every destination is brought to.
pub struct Decided {
    /// The version.
    pub version: Version,
    /// Its identity, which is asked for again and again.
    pub id: VersionId,
    /// The same, unless this is a dry run, which mints none.
    pub minted: Option<Version>,
    /// What could not be read.
    pub holds: Holds,
    /// The hash of every directory.
    pub tree: TreeHash,
    /// Entries looked at.
    pub entries: u64,
    /// Time for looking.
    pub scan: Duration,
    /// Time for reading and hashing.
    pub hash: Duration,
}

impl Source {
    /// Checks the request and opens the source's index.
    pub fn open(request: &PushRequest, monitor: &dyn Monitor) -> Result<Self, PushError> {
        Self::open_as(request, None, monitor)
    }

    /// The same with the index of another path: of a link to the source, which leads to one directory after the other.
    pub fn open_as(request: &PushRequest, place: Option<&Path>, monitor: &dyn Monitor) -> Result<Self, PushError> {
        let fail = |reason: String| PushError::Source { path: request.source.clone(), reason };
        let filter = Filter::new(&request.policy.rules).map_err(|e| PushError::Filter(e.to_string()))?;
        let root = Root::open(&request.source).map_err(|e| fail(e.to_string()))?;
        let canonical = fs::place::resolve(&request.source).map_err(|e| fail(e.to_string()))?;
        let with_mounts = !request.policy.one_file_system;
        check_overlaps(&canonical, &request.destinations, with_mounts)?;
        check_state_dir(&request.state_dir, &request.destinations)?;
        let state = match request.policy.dry_run {
            true => StateDir::at(&request.state_dir),
            false => StateDir::open(&request.state_dir).map_err(|e| PushError::State(e.to_string()))?,
        };
        let place = place.unwrap_or(&canonical);
        let dir = state.source_index_dir(place);
        let (opened, previous) = match request.policy.dry_run {
            true => (Index::scratch_copy(&dir)?, None),
            false => {
                let opened = Previous::open_index(&dir, state.history_dir(place), request, monitor)?;
                (opened.0, Some(opened.1))
            }
        };
        if let Some(reason) = &opened.rebuilt {
            notice_rebuilt(monitor, reason);
        }
        if let Err(IndexError::Damaged(reason)) = read_history(&opened.index) {
            notice_rebuilt(monitor, &reason);
            opened.index.rebuild()?;
        }
        let mut history = None;
        if let Some(previous) = &previous {
            previous.giving_room(None, monitor, || remember_path(&opened.index, place))?;
            history = request.history.and_then(|most| previous.open(most, monitor));
        }
        let asks_others = request.destinations.iter().any(|dest| matches!(dest, Destination::Remote { .. }));
        Ok(Self {
            root,
            region: if asks_others { fs::place::region(&canonical, with_mounts) } else { None },
            index: opened.index,
            ring: Ring::new(request.destinations.len()),
            packing: Arc::new(Packing::new(request.destinations.len())),
            reads: (request.destinations.len() > 1).then(Reads::default),
            history,
            is_mirrored: false,
            acks: Acks::default(),
            doubts: Doubts::default(),
            previous,
            filter,
            policy: request.policy.clone(),
            leave_out: fs::place::identity(&request.state_dir).into_iter().collect(),
            chunks: Mutex::default(),
            remembered: Mutex::default(),
            is_watched: AtomicBool::new(false),
        })
    }

    /// From now on whoever looks is told of all that comes meanwhile, or not any more.
    pub fn watched(&self, is_watched: bool) {
        self.is_watched.store(is_watched, Ordering::Relaxed);
    }

    /// Whether an entry cannot be found where it was, whatever it is. Directories may have been moved since they were opened.
    pub fn lacks(&self, path: &RelPath) -> bool {
        let Some(dir) = path.parent().and_then(|parent| self.root.dir_now(&parent).ok()) else { return true };
        self.root.stat_at(dir.as_fd(), path.name()).is_err()
    }

    /// Looks at the whole tree beside its index, and reads what is not proven. `known` has contents that an earlier look
    /// has read; `offer` gets every content that the last version does not have at that path, and whether more may
    /// follow soon; `draft` what can be copied of large files while they are read. Returns what was found, and how long the
    /// looking took.
    pub fn look(
        &self,
        known: &KnownContents,
        stop: &AtomicBool,
        meter: &Meter,
        monitor: &dyn Monitor,
        offer: &mut Offering<'_>,
        draft: &(dyn Fn(Draft) + Sync),
    ) -> Result<(Survey, Duration), PushError> {
        let started = Instant::now();
        self.reading(stop, meter, offer, draft, |options, found| {
            // In a tree of which nothing is known, all that is found must be read; elsewhere it may only have moved. Nor can
            // anything seem gone there: one look suffices, and what was read has its places in that one.
            let is_first = self.index.latest_version()?.is_none() && (known.is_empty() || self.index.has_rows()?);
            let (mut survey, early, read) = match is_first {
                true => self.look_first(stop, meter, monitor, options, found)?,
                false => (self.survey(LOOKS, stop, meter, &mut |_, _| {}, None)?, Early::default(), Duration::ZERO),
            };
            for path in &survey.left_out {
                monitor.notice(None, &format!("{path} is left out: it is the state directory"));
            }
            survey.recall(known);
            let scanned = started.elapsed().saturating_sub(read);
            meter.to_hash(survey.bytes_to_hash());
            identify(&self.root, &mut survey, options, early, found);
            Ok((survey, scanned))
        })
    }

    /// The same for some names of a tree of which all else is as the last look has left it; `None` if only a look at the
    /// whole tree can tell what they are.
    pub fn look_at(
        &self,
        names: &Names,
        last: &LastLook,
        stop: &AtomicBool,
        meter: &Meter,
        offer: &mut Offering<'_>,
        draft: &(dyn Fn(Draft) + Sync),
    ) -> Result<Option<(Survey, Duration)>, PushError> {
        let started = Instant::now();
        self.reading(stop, meter, offer, draft, |options, found| {
            let survey = survey_names(&self.root, &self.index, &self.survey_options(), last, names)?;
            let Some(mut survey) = survey else { return Ok(None) };
            let scanned = started.elapsed();
            identify(&self.root, &mut survey, options, Early::default(), found);
            // What went while it was read may have another name by now.
            Ok((survey.failures.is_empty() && survey.vanished.is_empty()).then_some((survey, scanned)))
        })
    }

    /// Does something that reads contents, and hands on what was read of each.
    fn reading<T>(
        &self,
        stop: &AtomicBool,
        meter: &Meter,
        offer: &mut Offering<'_>,
        draft: &(dyn Fn(Draft) + Sync),
        work: impl FnOnce(&IdentifyOptions<'_>, &mut (dyn FnMut(&Pending, Identified) + Send)) -> Result<T, PushError>,
    ) -> Result<T, PushError> {
        // A new file is sent whole, whatever its chunks are, unless a part of it has arrived before. One of the same size
        // as before has probably just been touched; if not, it is read again for its chunks. A large one is cut
        // beside the reading, which costs next to nothing.
        let chunked =
            |p: &Pending, size| size > PART_MIN || p.old_content().is_some_and(|(old, _)| size <= KEEP || old != size);
        let follow = |p: &Pending, size| {
            let (old, digest) = p.old_content()?;
            let alike = size > KEEP && Chunking::for_size(size) == Chunking::for_size(old);
            // Without the list, what it says is found by searching.
            if alike { self.chunks(&digest).ok().flatten() } else { None }
        };
        let draft = |p: &Pending, size, ranges: Vec<CopyRange>| {
            let Some((_, old)) = p.old_content() else { return };
            draft(Draft { ranges, path: p.row.path.clone(), size, old });
        };
        let read = |bytes| meter.hashed(bytes);
        let options =
            IdentifyOptions { keep: KEEP, chunked: &chunked, follow: &follow, draft: &draft, stop, read: &read };
        let mut batch_bytes = 0;
        let mut found = |pending: &Pending, identified: Identified| {
            let new = self.keep(pending, identified);
            batch_bytes += new.as_ref().map_or(0, |offered| offered.size);
            let full = batch_bytes >= KEEP;
            if full {
                batch_bytes = 0;
            }
            offer(new, !full);
        };
        let done = work(&options, &mut found)?;
        offer(None, false);
        Ok(done)
    }

    /// Looks at the whole tree beside its index, up to `looks` times while something seems gone. `found` is as for
    /// [`survey`], in each look.
    pub(super) fn survey(
        &self,
        looks: u32,
        stop: &AtomicBool,
        meter: &Meter,
        found: &mut dyn FnMut(usize, &Pending),
        mut portions: Option<Portions<'_>>,
    ) -> Result<Survey, PushError> {
        let options = self.survey_options();
        let go_on = |entries| {
            meter.scanned(entries);
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut look = || {
            let portions = portions.as_mut().map(|Portions { most, take }| Portions { most: *most, take: &mut **take });
            survey_in_portions(&self.root, &self.index, &options, &go_on, found, portions)
        };
        let mut found_now = look()?;
        for _ in 1..looks {
            // What moved from a directory that was not yet listed to one that was is in neither listing.
            if !found_now.is_restless(&self.root) {
                break;
            }
            found_now = look()?;
        }
        let survey = found_now;
        let was_published = || Ok::<_, IndexError>(self.index.latest_version()?.is_some());
        let wary = !self.is_mirrored && !self.policy.checksum;
        if wary && was_published()? && survey.is_unmounted(&self.root, &self.index, false)? {
            return Err(PushError::Unmounted(show(self.root.path())));
        }
        meter.scanned(survey.entries);
        Ok(survey)
    }

    /// Whether no row is believed.
    pub(super) fn believes_nothing(&self) -> bool {
        self.policy.checksum
    }

    fn survey_options(&self) -> SurveyOptions<'_> {
        SurveyOptions {
            filter: &self.filter,
            one_file_system: self.policy.one_file_system,
            leave_out: self.leave_out.clone(),
            checksum: self.policy.checksum,
            takes_unmounted: false,
            reserved: Reserved::Hold,
            is_watched: self.is_watched.load(Ordering::Relaxed),
            reconsider_refused: false,
            ignore_extras: false,
        }
    }

    /// Whether a path does not belong to the source.
    pub fn leaves_out(&self, path: &RelPath, is_dir: bool) -> bool {
        let is_own = || self.root.stat(path).ok().flatten().is_some_and(|s| self.leave_out.contains(&s.identity()));
        self.filter.excludes(path, is_dir) || path.name() == STAGING_NAME.as_bytes() || (is_dir && is_own())
    }

    /// Gives up a damaged index: it starts afresh.
    pub fn rebuild_index(&self, reason: &str, monitor: &dyn Monitor) -> Result<(), PushError> {
        notice_rebuilt(monitor, reason);
        Ok(self.index.rebuild()?)
    }

    fn keep(&self, pending: &Pending, identified: Identified) -> Option<Offered> {
        self.remember(&identified);
        let Identified { digest, size, content, .. } = identified;
        if pending.old_content() == Some((size, digest)) || size == 0 {
            return None;
        }
        if let Some(content) = content {
            let content = Bytes::from(content);
            if let Some(reads) = &self.reads {
                reads.put(digest, &content);
            }
            self.ring.put(digest, content);
        }
        Some(Offered { path: pending.row.path.clone(), digest, size, likely: pending.row.entry.metadata() })
    }

    /// Keeps the chunks of a content until the index has them, and the content if previous ones are kept.
    pub(super) fn remember(&self, identified: &Identified) {
        let Identified { digest, chunks, content, .. } = identified;
        if let Some(chunks) = chunks {
            self.written_soon().insert(*digest, chunks.as_slice().into());
        }
        let later = |history: &&History| self.is_mirrored && history.is_to_be_filled();
        if let (Some(history), Some(content)) = (self.history.as_ref().filter(|history| !later(history)), content) {
            history.put(*digest, content);
        }
    }

    /// Chunk lists that are about to be written.
    pub(super) fn take_chunks(&self) -> HashMap<Digest, Arc<[ChunkRef]>> {
        std::mem::take(&mut self.written_soon())
    }

    /// Tells the monitor what could not be read, and how many problems that makes.
    pub fn report_failures(survey: &Survey, monitor: &dyn Monitor) -> u64 {
        for failure in &survey.failures {
            monitor.problem(None, &failure.to_problem());
        }
        survey.failures.len() as u64
    }

    /// Decides what version was found: the next one, unless it is the last version already. To be committed.
    pub fn decide(
        &self,
        mut survey: Survey,
        scan: Duration,
        hash: Duration,
    ) -> Result<(Decided, Difference), PushError> {
        let holds = survey.holds();
        survey.pending.retain(|p| !holds.covers(&p.row.path));
        survey.gone.retain(|row| !holds.covers(&row.path));
        let gone_dirs = survey.gone_dirs();
        let tree = survey.tree(&self.index, &mut self.remembered(), false)?;
        let Survey { pending, gone, entries, .. } = survey;
        let came = dirs_that_came(&pending).filter_map(|dir| Some((dir, *tree.dirs.get(dir)?)));
        let moved = moved_dirs(gone_dirs.iter().map(|(dir, hash)| (dir, *hash)), came);
        let latest = self.index.latest_version()?.map(|published| published.version);
        let version = match latest.clone().filter(|latest| latest.root == tree.root) {
            Some(latest) => latest,
            None => self.next_version(tree.root)?,
        };
        let minted = (!self.policy.dry_run).then(|| version.clone());
        let id = version.id();
        let decided = Decided { version, id, minted, holds, tree, entries, scan, hash };
        // What a first look has written ahead is told from there.
        let is_indexed = latest.is_none() && self.index.has_rows()?;
        Ok((decided, Difference::new(latest.as_ref(), pending, gone, moved).indexed(is_indexed)))
    }

    fn next_version(&self, root: Digest) -> Result<Version, PushError> {
        let Next { lineage, number, parent } = match self.index.next_version()? {
            Some(next) => next,
            None => Next { lineage: Lineage(random()?), number: 1, parent: None },
        };
        Ok(Version { lineage, number, parent, root, time: fs::clock::now() })
    }

    /// Makes the version durable in the index, for which previous contents give room if they must.
    pub fn commit(
        &self,
        decided: &Decided,
        difference: &Difference,
        counted: Option<&Counted>,
        monitor: &dyn Monitor,
    ) -> Result<(), PushError> {
        let commit = || self.try_commit(decided, difference, counted);
        match &self.previous {
            Some(previous) => previous.giving_room(self.history.as_ref(), monitor, commit),
            None => commit(),
        }
    }

    fn try_commit(
        &self,
        decided: &Decided,
        difference: &Difference,
        counted: Option<&Counted>,
    ) -> Result<(), PushError> {
        let Difference { pending, gone, .. } = difference;
        let version = &decided.version;
        let write = |writer: &mut Writer<'_>| -> Result<(), IndexError> {
            // What comes is written before what went is buried: then its paths are not looked for among those.
            write_pending(writer, pending)?;
            writer.delete_all(gone)
        };
        if difference.is_of(version) {
            if !pending.is_empty() || !gone.is_empty() {
                self.index.write(version.number, write)?;
            }
            return Ok(());
        }
        let created = match difference.is_indexed() {
            true => decided.entries,
            false => pending.iter().filter(|p| p.before.is_none()).count() as u64,
        };
        let updated = pending.iter().filter(|p| p.before.is_some() && p.changes_entry()).count() as u64;
        let counts = Counts { entries: decided.entries, created, updated, deleted: gone.len() as u64 };
        // They stay within reach until the index has them.
        let chunks: Vec<_> = self.written_soon().iter().map(|(digest, chunks)| (*digest, Arc::clone(chunks))).collect();
        let first = self.index.next_version()?.is_none();
        let _turn = self.acks.turn();
        let acks = self.acks.take();
        let committed = self.index.commit_with(version.number, |commit| {
            if first {
                commit.mint_lineage(version.lineage.0, version.parent)?;
            }
            write(commit)?;
            chunks.iter().try_for_each(|(digest, chunks)| commit.put_chunks(digest, chunks))?;
            counted.map_or(Ok(()), |counted| counted.write(commit))?;
            commit.record_acks(&acks)?;
            commit.add_version(version, &counts)
        });
        if committed.is_err() {
            self.acks.put_back(acks);
        }
        committed?;
        self.written_soon().clear();
        Ok(())
    }

    /// Chunk lists that the index does not have yet.
    fn written_soon(&self) -> MutexGuard<'_, HashMap<Digest, Arc<[ChunkRef]>>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A replica stands at a version that this index does not know: it was restored from an old copy, cloned, or made
    /// anew. From the next version on this is another lineage, which grew from there.
    pub fn branch(&self, from: VersionId) -> Result<(), PushError> {
        Ok(self.index.mint_lineage(random()?, Some(from)).map(drop)?)
    }

    /// The chunks of a content, from memory or the index.
    pub fn chunks(&self, digest: &Digest) -> Result<Option<Arc<[ChunkRef]>>, IndexError> {
        let known = self.written_soon().get(digest).cloned();
        match known {
            Some(chunks) => Ok(Some(chunks)),
            None => Ok(self.index.chunks(digest)?.map(Into::into)),
        }
    }

    /// The content, if it was just hashed, or read for another destination.
    pub fn in_memory(&self, digest: &Digest) -> Option<Bytes> {
        self.ring.take(digest).or_else(|| self.reads.as_ref()?.get(digest))
    }

    /// So many bytes from `offset` of a file that shall have the content: read once for all destinations that are about as far as each
    /// other. Believe them only after [`SourceFile::verify`].
    ///
    /// # Errors
    /// As [`SourceFile::read_exact_at`].
    pub fn range(&self, file: &SourceFile, content: Digest, offset: u64, len: usize) -> Result<Bytes, ReadError> {
        match &self.reads {
            Some(reads) => reads.range(file, content, offset, len),
            None => file.read_at(offset, len).map(Bytes::from),
        }
    }

    /// Opens the file that had this content when it was hashed.
    pub fn open_content(&self, path: &RelPath, digest: &Digest) -> Result<SourceFile, ReadError> {
        // Before the version is committed the index has no such row, and while it is, nobody waits for it: then the
        // digest of what is sent decides.
        let row = self.index.row_unless_busy(path).ok().flatten();
        let indexed =
            row.filter(|row| row.entry.content().is_some_and(|(_, d)| d == *digest)).and_then(|row| row.tuple);
        let tuple = match indexed {
            Some(tuple) => tuple,
            None => self.root.stat(path)?.ok_or(ReadError::Changed)?.tuple,
        };
        SourceFile::open(&self.root, path, &tuple)
    }
}

/// Reads the history, where damage is still repaired. Small: a line for each version and acknowledgement. Rows are read
/// by every look at the tree, and tombstones when a replica needs them; damage there costs a comparison of the trees.
fn read_history(index: &Index) -> Result<(), IndexError> {
    index.versions()?;
    index.acks()?;
    index.next_version()?;
    Ok(())
}

/// Which source an index belongs to, for `synccli log`.
fn remember_path(index: &Index, canonical: &Path) -> Result<(), IndexError> {
    let path = canonical.as_os_str().as_encoded_bytes();
    match index.meta(SOURCE_PATH) {
        Ok(Some(known)) if known == path => Ok(()),
        // Damage is dealt with where the tree is looked at.
        Err(IndexError::Damaged(_)) => Ok(()),
        _ => index.set_meta(SOURCE_PATH, Some(path)),
    }
}

fn notice_rebuilt(monitor: &dyn Monitor, reason: &str) {
    monitor.notice(None, &format!("the index of the source was rebuilt: {reason}; its history is lost, no data is"));
}

/// Our own state directory must not become part of what is made identical to something else.
fn check_state_dir(state_dir: &Path, destinations: &[Destination]) -> Result<(), PushError> {
    let Ok(state) = fs::place::resolve(state_dir) else { return Ok(()) };
    for destination in destinations {
        let Destination::Path(path) = destination else { continue };
        let Ok(place) = fs::place::resolve(path) else { continue };
        // Keys and pairings would go with everything else that the source does not have.
        fs::place::check_apart(&state, &place, false).map_err(|how| {
            PushError::Overlap(format!(
                "the destination {} {how} the state directory {}; choose another destination, or another state \
                 directory with --state-dir",
                show(path),
                show(state_dir)
            ))
        })?;
    }
    Ok(())
}

/// Source and destinations, and any two destinations, must be apart.
fn check_overlaps(source: &Path, destinations: &[Destination], with_mounts: bool) -> Result<(), PushError> {
    let mut places: BTreeMap<usize, std::path::PathBuf> = BTreeMap::new();
    for (i, destination) in destinations.iter().enumerate() {
        if let Destination::Path(path) = destination {
            let place = fs::place::resolve(path)
                .map_err(|e| PushError::Overlap(format!("cannot use the destination {}: {e}", show(path))))?;
            fs::place::check_apart(source, &place, with_mounts).map_err(|how| {
                PushError::Overlap(format!("the destination {} {how} the source; choose one apart from it", show(path)))
            })?;
            for other in places.values() {
                fs::place::check_apart(other, &place, with_mounts).map_err(|how| {
                    PushError::Overlap(format!("the destination {} {how} another destination", show(path)))
                })?;
            }
            places.insert(i, place);
        } else if destinations[..i].contains(destination) {
            return Err(PushError::Overlap("a destination is given twice".to_owned()));
        }
    }
    Ok(())
}

fn random() -> Result<[u8; 16], PushError> {
    fs::random().map_err(|e| PushError::State(format!("cannot get random bytes from the kernel: {e}")))
}

fn show(path: &Path) -> String {
    crate::path::escape(path.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests;
