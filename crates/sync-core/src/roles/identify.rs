//! Reads and hashes what a survey could not prove: each file once, on every core, in the order of the tree.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::chunk::ChunkRef;
use crate::fs::{self, FsError, Hashed, ReadError, Root};
use crate::hash::Digest;
use crate::manifest::{Entry, Kind, Row, Tuple};
use crate::path::RelPath;
use crate::roles::survey::{Pending, Survey};

/// How often a file that changes while it is read is tried before it is reported.
const TRIES: u32 = 4;

/// How long to wait before the next try, times the number of tries so far.
const PAUSE: Duration = Duration::from_millis(30);

/// What is known of a file once it was read.
pub struct Identified {
    /// The content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// The chunks, for a file large enough for a delta.
    pub chunks: Option<Vec<ChunkRef>>,
    /// The bytes themselves, for a file small enough to keep.
    pub content: Option<Vec<u8>>,
}

/// How to read.
pub struct IdentifyOptions<'a> {
    /// Contents up to this many bytes are handed over as they were read.
    pub keep: u64,
    /// Turns true when the work is to end early.
    pub stop: &'a AtomicBool,
    /// Is told bytes as they are read, from any thread.
    pub read: &'a (dyn Fn(u64) + Sync),
}

enum Outcome {
    Known(Box<(Row, Identified)>),
    Gone,
    Failed(FsError),
}

/// Completes the pending rows of a survey: hashes contents, drops what vanished, holds what cannot be read. Calls
/// `found` for each content in about the order of the tree; `found` may take its time, the readers wait for it.
pub fn identify(
    root: &Root,
    survey: &mut Survey,
    options: &IdentifyOptions<'_>,
    found: &mut dyn FnMut(&Pending, Identified),
) {
    let work: Vec<usize> =
        survey.pending.iter().enumerate().filter(|(_, p)| p.needs_hash && !is_member(p)).map(|(i, _)| i).collect();
    let mut failed: Vec<(usize, Option<FsError>)> = Vec::new();
    if !work.is_empty() {
        let jobs: Vec<(usize, Row)> = work.iter().map(|&i| (i, survey.pending[i].row.clone())).collect();
        read_all(root, &jobs, options, &mut |i, outcome| match outcome {
            Outcome::Known(known) => {
                let (row, identified) = *known;
                let pending = &mut survey.pending[i];
                pending.row = row;
                pending.needs_hash = false;
                found(pending, identified);
            }
            Outcome::Gone => failed.push((i, None)),
            Outcome::Failed(error) => failed.push((i, Some(error))),
        });
    }
    give_members_their_content(survey);
    drop_failed(survey, failed);
}

fn is_member(pending: &Pending) -> bool {
    pending.row.entry.link.is_some()
}

fn read_all(root: &Root, jobs: &[(usize, Row)], options: &IdentifyOptions<'_>, done: &mut dyn FnMut(usize, Outcome)) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().min(8)).min(jobs.len());
    // A short queue: what is read ahead of its consumer is memory.
    let (sender, outcomes) = mpsc::sync_channel(16);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                while let Some((i, row)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if options.stop.load(Ordering::Relaxed) || sender.send((*i, read(root, row, options))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (i, outcome) in outcomes {
            done(i, outcome);
        }
    });
}

/// Reads one file; looks at it anew when it changed under the reading.
fn read(root: &Root, row: &Row, options: &IdentifyOptions<'_>) -> Outcome {
    let mut row = row.clone();
    for attempt in 1..=TRIES {
        let Some(tuple) = row.tuple else { return Outcome::Gone };
        match fs::hash_file(root, &row.path, &tuple, options.keep, options.stop, options.read) {
            Ok(hashed) => return known(row, hashed),
            Err(ReadError::Fs(error)) if error.is_gone() => return Outcome::Gone,
            Err(ReadError::Fs(error)) => return Outcome::Failed(error),
            Err(ReadError::Changed | ReadError::Cancelled) => {}
        }
        std::thread::sleep(PAUSE * attempt);
        match look_again(root, &row.path) {
            Ok(Some((entry, tuple))) if matches!(entry.kind, Kind::File { .. }) => {
                row.entry = Entry { link: row.entry.link.take(), ..entry };
                row.tuple = Some(tuple);
            }
            Ok(Some(_)) => break,
            Ok(None) => return Outcome::Gone,
            Err(error) => return Outcome::Failed(error),
        }
    }
    Outcome::Failed(FsError::because("read", &row.path, "it keeps changing while it is read; push again when it rests"))
}

fn known(mut row: Row, hashed: Hashed) -> Outcome {
    row.entry.kind = Kind::File { size: hashed.size, digest: hashed.digest };
    row.tuple = Some(hashed.tuple);
    row.proven = row.proven && hashed.proven;
    let Hashed { digest, size, chunks, content, .. } = hashed;
    Outcome::Known(Box::new((row, Identified { digest, size, chunks, content })))
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
    let mut failed: HashMap<usize, Option<FsError>> = failed.into_iter().collect();
    for (i, pending) in std::mem::take(&mut survey.pending).into_iter().enumerate() {
        match failed.remove(&i) {
            Some(Some(error)) => survey.failures.push(error),
            Some(None) => {
                survey.vanished.push(pending.row.path.clone());
                if pending.before.is_some() {
                    survey.gone.push(pending.row);
                }
            }
            // A name whose group's first name could not be read.
            None if pending.needs_hash => {
                let why = "it changed while it was read; push again when it rests";
                survey.failures.push(FsError::because("read", &pending.row.path, why));
            }
            None => survey.pending.push(pending),
        }
    }
    survey.gone.sort_by(|a, b| a.path.cmp(&b.path));
}
