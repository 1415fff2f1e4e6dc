//! Reads and hashes what a survey could not prove: each file once, on every core, in the order of the tree.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use foldhash::HashSet;

use crate::chunk::ChunkRef;
use crate::delta::CopyRange;
use crate::fs::{self, FsError, Hashed, ReadError, Reading, Root};
use crate::hash::Digest;
use crate::manifest::{Entry, Kind, Tuple, Xattrs};
use crate::path::RelPath;
use crate::roles::survey::{Pending, Survey};

/// How often a file that changes while it is read is tried before it is reported.
const TRIES: u32 = 4;

/// How long to wait before the next try, times the number of tries so far.
const PAUSE: Duration = Duration::from_millis(30);

/// Files after which what was read is written into the rows: then all threads wait for the last of them, and until then each
/// takes [`Done`].
const COMPLETED_AT_ONCE: usize = 1 << 15;

/// Files that a thread takes at once.
const JOBS_AT_ONCE: usize = 32;

/// Bytes after which it takes no more.
const BYTES_AT_ONCE: u64 = 256 << 10;

/// Portions that wait for the thread that reads while a survey goes on.
const PORTIONS_AHEAD: usize = 128;

/// What is known of a file once it was read.
pub struct Identified {
    /// The content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// The chunks, if they were asked for and the file is large enough for a delta.
    pub chunks: Option<Vec<ChunkRef>>,
    /// The bytes themselves, for a file small enough to keep.
    pub content: Option<Vec<u8>>,
}

/// How to read.
pub struct IdentifyOptions<'a> {
    /// Contents up to this many bytes are handed over as they were read.
    pub keep: u64,
    /// Which contents to cut into chunks, if they have so many bytes: a file that changes while it is read has others
    /// when it is tried again.
    pub chunked: &'a (dyn Fn(&Pending, u64) -> bool + Sync),
    /// Chunks of the content that was there before, cut with the sizes that are right for one of so many bytes, if they
    /// are known.
    pub follow: &'a (dyn Fn(&Pending, u64) -> Option<Arc<[ChunkRef]>> + Sync),
    /// Is told what of a large file of so many bytes is in the content with those chunks, while it is being read; from any
    /// thread.
    pub draft: &'a (dyn Fn(&Pending, u64, Vec<CopyRange>) + Sync),
    /// Turns true when the work is to end early.
    pub stop: &'a AtomicBool,
    /// Is told bytes as they are read, from any thread.
    pub read: &'a (dyn Fn(u64) + Sync),
}

enum Outcome {
    /// What was read, and the entry with its tuple if the file had changed since the survey.
    Known(Hashed, Again),
    Gone,
    Failed(FsError),
}

type Again = Option<Box<(Entry, Tuple)>>;

/// What is to be written into a pending row. Kept apart while the rows are being read from several threads; small,
/// because a first look reads tens of thousands of files.
struct Done {
    i: usize,
    digest: Digest,
    proven: bool,
    more: Option<Box<More>>,
}

/// What few files have: an entry that changed since the survey, extended attributes.
struct More {
    again: Again,
    xattrs: Option<Xattrs>,
}

/// What was read of a survey's pending rows, by their places.
#[derive(Default)]
pub struct Early {
    done: Vec<Done>,
    failed: Vec<(usize, Option<FsError>)>,
}

/// Is told what was read.
pub type Found<'a> = dyn FnMut(&Pending, Identified) + Send + 'a;

impl Early {
    fn add(&mut self, i: usize, pending: &Pending, outcome: Outcome, found: &mut Found<'_>) {
        match outcome {
            Outcome::Known(hashed, again) => {
                let Hashed { digest, size, chunks, content, xattrs, proven, .. } = hashed;
                found(pending, Identified { digest, size, chunks, content });
                let news = again.is_some() || xattrs.as_ref().is_some_and(|xattrs| *xattrs != pending.row.entry.xattrs);
                let more = news.then(|| Box::new(More { again, xattrs }));
                self.done.push(Done { i, digest, proven, more });
            }
            Outcome::Gone => self.failed.push((i, None)),
            Outcome::Failed(error) => self.failed.push((i, Some(error))),
        }
    }

    /// Gives the rows what was read of them.
    fn complete(&mut self, survey: &mut Survey) {
        for Done { i, digest, proven, more } in self.done.drain(..) {
            let pending = &mut survey.pending[i];
            let row = &mut pending.row;
            if let Some(more) = more {
                let More { again, xattrs } = *more;
                if let Some(again) = again {
                    let (entry, tuple) = *again;
                    row.entry = Entry { link: row.entry.link.take(), ..entry };
                    row.tuple = Some(tuple);
                }
                if let Some(xattrs) = xattrs {
                    row.entry.xattrs = xattrs;
                }
            }
            // As many bytes were read as the tuple tells, or the file would have been read again.
            let size = row.tuple.map_or(0, |tuple| tuple.size);
            row.entry.kind = Kind::File { size, digest };
            row.proven = row.proven && proven;
            (pending.needs_hash, pending.needs_xattrs) = (false, false);
        }
    }
}

/// Runs `look`, which tells what it finds, and reads some of that meanwhile on one more thread: as much as that thread
/// can keep up with. The rest, and what was read, are for [`identify`].
pub fn read_ahead<T>(
    root: &Root,
    options: &IdentifyOptions<'_>,
    found: &mut Found<'_>,
    look: impl FnOnce(&mut dyn FnMut(usize, &Pending)) -> T,
) -> (T, Early) {
    let (sender, portions) = mpsc::sync_channel::<Vec<(usize, Pending)>>(PORTIONS_AHEAD);
    let looked = &AtomicBool::new(false);
    let reader = move || {
        let mut early = Early::default();
        for (i, pending) in portions.iter().flatten().take_while(|_| !looked.load(Ordering::Relaxed)) {
            early.add(i, &pending, read(root, &pending, options), found);
        }
        early
    };
    std::thread::scope(|scope| {
        let reading = std::thread::Builder::new().spawn_scoped(scope, reader);
        let (mut portion, mut bytes) = (Vec::new(), 0);
        let outcome = look(&mut |i, pending| {
            let size = pending.row.tuple.map_or(0, |tuple| tuple.size);
            // In the end all wait for the file that it is at.
            if !is_job(pending) || size > options.keep {
                return;
            }
            bytes += size;
            portion.push((i, pending.clone()));
            if portion.len() >= JOBS_AT_ONCE || bytes >= BYTES_AT_ONCE {
                bytes = 0;
                // Nobody waits: what finds no room is read later.
                let _ = sender.try_send(std::mem::take(&mut portion));
            }
        });
        // With several threads the rest goes faster.
        looked.store(true, Ordering::Relaxed);
        drop(sender);
        let early = reading.map(|reading| reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        // Without a thread nothing was read.
        (outcome, early.unwrap_or_default())
    })
}

/// Completes the pending rows of a survey: hashes contents, drops what vanished, holds what cannot be read. Calls
/// `found` for each content in about the order of the tree; `found` may take its time, the readers wait for it. What was
/// read `early` is not read again.
pub fn identify(
    root: &Root,
    survey: &mut Survey,
    options: &IdentifyOptions<'_>,
    mut early: Early,
    found: &mut Found<'_>,
) {
    let rows = &survey.pending[..];
    let known: HashSet<usize> =
        early.done.iter().map(|done| done.i).chain(early.failed.iter().map(|(i, _)| *i)).collect();
    let jobs = rows.iter().enumerate().filter(|(i, pending)| is_job(pending) && !known.contains(i));
    let jobs: Vec<usize> = jobs.map(|(i, _)| i).collect();
    drop(known);
    early.complete(survey);
    for some in jobs.chunks(COMPLETED_AT_ONCE) {
        let rows = &survey.pending[..];
        read_all(root, rows, some, options, &mut |i, outcome| early.add(i, &rows[i], outcome, found));
        early.complete(survey);
    }
    let failed = early.failed;
    give_members_their_content(survey);
    drop_failed(survey, failed);
}

/// Whether the content must be read, under this name.
fn is_job(pending: &Pending) -> bool {
    pending.needs_hash && !is_member(pending) && pending.row.tuple.is_some()
}

fn is_member(pending: &Pending) -> bool {
    pending.row.entry.link.is_some()
}

/// Calls `done` with the outcome for each of the rows `jobs`, some at a time.
fn read_all(
    root: &Root,
    rows: &[Pending],
    jobs: &[usize],
    options: &IdentifyOptions<'_>,
    done: &mut dyn FnMut(usize, Outcome),
) {
    if take_some(&mut &*jobs, rows).len() == jobs.len() {
        // One thread would take all of them: this one.
        let stopped = || options.stop.load(Ordering::Relaxed);
        jobs.iter().take_while(|_| !stopped()).for_each(|&i| done(i, read(root, &rows[i], options)));
        return;
    }
    let left = Mutex::new(jobs);
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().min(8)).min(jobs.len());
    // A short queue: what is read ahead of its consumer is memory.
    let (sender, outcomes) = mpsc::sync_channel(4);
    let read_unless_stopped =
        |i: &usize| (!options.stop.load(Ordering::Relaxed)).then(|| (*i, read(root, &rows[*i], options)));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, left) = (sender.clone(), &left);
            scope.spawn(move || {
                loop {
                    let some = take_some(&mut left.lock().unwrap_or_else(PoisonError::into_inner), rows);
                    let outcomes: Vec<_> = some.iter().map_while(read_unless_stopped).collect();
                    if outcomes.is_empty() || sender.send(outcomes).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for outcomes in outcomes {
            outcomes.into_iter().for_each(|(i, outcome)| done(i, outcome));
        }
    });
}

/// Takes the next files, as many as make a good portion.
fn take_some<'a>(left: &mut &'a [usize], rows: &[Pending]) -> &'a [usize] {
    let mut bytes = 0;
    let enough = left.iter().take(JOBS_AT_ONCE).position(|&i| {
        bytes += rows[i].row.tuple.map_or(0, |tuple| tuple.size);
        bytes >= BYTES_AT_ONCE
    });
    let (some, rest) = left.split_at(enough.map_or(JOBS_AT_ONCE, |last| last + 1).min(left.len()));
    *left = rest;
    some
}

/// Reads one file; looks at it anew when it changed under the reading.
fn read(root: &Root, pending: &Pending, options: &IdentifyOptions<'_>) -> Outcome {
    let path = &pending.row.path;
    let Some(mut tuple) = pending.row.tuple else { return Outcome::Gone };
    let mut again = None;
    for attempt in 1..=TRIES {
        let size = tuple.size;
        let chunked = (options.chunked)(pending, size);
        let how = Reading {
            keep: options.keep,
            chunked,
            draft: &|ranges| (options.draft)(pending, size, ranges),
            follow: chunked.then(|| (options.follow)(pending, size)).flatten(),
            old: pending.old_content().map(|(_, digest)| digest),
            xattrs: pending.needs_xattrs,
            cancel: options.stop,
            progress: options.read,
        };
        match fs::hash_file(root, path, &tuple, &how) {
            Ok(hashed) => return Outcome::Known(hashed, again),
            Err(ReadError::Fs(error)) if error.is_gone() => return Outcome::Gone,
            Err(ReadError::Fs(error)) => return Outcome::Failed(error),
            Err(ReadError::Changed | ReadError::Cancelled) => {}
        }
        std::thread::sleep(PAUSE * attempt);
        match look_again(root, path) {
            Ok(Some((entry, seen))) if matches!(entry.kind, Kind::File { .. }) => {
                again = Some(Box::new((entry, seen)));
                tuple = seen;
            }
            Ok(Some(_)) => break,
            Ok(None) => return Outcome::Gone,
            Err(error) => return Outcome::Failed(error),
        }
    }
    Outcome::Failed(FsError::because("read", path, "it keeps changing while it is read; push again when it rests"))
}

/// The entry as it is now, without its content.
fn look_again(root: &Root, path: &RelPath) -> Result<Option<(Entry, Tuple)>, FsError> {
    let Some(parent) = path.parent() else { return Ok(None) };
    let dir = root.dir_now(&parent)?;
    let Some(stat) = root.stat(path)? else { return Ok(None) };
    let Ok(name) = CString::new(path.name()) else { return Ok(None) };
    match fs::probe_at(root, path, dir.as_fd(), &name, &stat) {
        Ok(entry) => Ok(Some((entry, stat.tuple))),
        Err(ReadError::Fs(error)) => Err(error),
        Err(ReadError::Changed | ReadError::Cancelled) => {
            Err(FsError::because("look at", path, "it keeps changing; push again when it rests"))
        }
    }
}

/// The other names of a file share the inode, so its content and metadata too.
fn give_members_their_content(survey: &mut Survey) {
    if !survey.pending.iter().any(|pending| pending.needs_hash && is_member(pending)) {
        return;
    }
    let firsts: HashMap<RelPath, (Kind, Option<Tuple>, bool)> = survey
        .pending
        .iter()
        .filter(|p| !p.needs_hash && !is_member(p))
        .map(|p| (p.row.path.clone(), (p.row.entry.kind.clone(), p.row.tuple, p.row.proven)))
        .collect();
    for pending in survey.pending.iter_mut().filter(|p| p.needs_hash) {
        let Some(first) = &pending.row.entry.link else { continue };
        if let Some((kind, tuple, proven)) = firsts.get(first)
            && *tuple == pending.row.tuple
        {
            pending.row.entry.kind = kind.clone();
            pending.row.proven = *proven;
            pending.needs_hash = false;
        }
    }
}

/// Takes out what has no content now: it vanished, or it is held.
fn drop_failed(survey: &mut Survey, failed: Vec<(usize, Option<FsError>)>) {
    if failed.is_empty() && !survey.pending.iter().any(|pending| pending.needs_hash) {
        return;
    }
    let mut failed: HashMap<usize, Option<FsError>> = failed.into_iter().collect();
    for (i, pending) in std::mem::take(&mut survey.pending).into_iter().enumerate() {
        match failed.remove(&i) {
            Some(Some(error)) => survey.failures.push(error),
            Some(None) => {
                let path = pending.row.path.clone();
                survey.has_vanished(&path, pending.before.is_some().then_some(pending.row));
            }
            // A name whose group's first name could not be read, or is known as it was before.
            None if pending.needs_hash => {
                survey.torn.push(pending.row.path.clone());
                let why = "it changed while it was read; push again when it rests";
                survey.failures.push(FsError::because("read", &pending.row.path, why));
            }
            None => survey.pending.push(pending),
        }
    }
    survey.gone.sort_by(|a, b| a.path.cmp(&b.path));
}

#[cfg(test)]
mod tests;
