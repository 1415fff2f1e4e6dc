//! The old file in place of a wanted content: what is told of it, so that only the rest is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::chunk::pieces::{Form, MAX_PIECES, MIN_PIECES, Pieces};
use crate::chunk::{ChunkRef, Chunking, cut_from};
use crate::delta::MOST_DESCRIBED_TIMES;
use crate::delta::patch::{Cuts, PieceHashes};
use crate::fs::{BasisFile, FsError, PART_MIN, Root};
use crate::index::Index;
use crate::manifest::{Kind, Row, Tuple};
use crate::path::RelPath;
use crate::wire::{Basis, Describe, Described, MAX_CHUNKS, Offered, Parts};

/// A file of the replica, as it was when it was looked at.
pub type OldFile = (RelPath, Tuple);

/// What there is in place of a wanted file.
#[derive(Default)]
pub struct Found {
    /// The old file.
    pub old: Option<OldFile>,
    /// Where that is cut, if it is small and was read.
    pub cuts: Option<Cuts>,
    /// What is told of it.
    pub basis: Basis,
}

/// Old content up to this size is worth reading for the sake of a delta.
const MAX_BASIS: u64 = 1 << 40;

/// How many times as large a new file may be before a small old one is not worth a round trip.
pub const MOST_GROWTH: u64 = 16;

/// Parts in one message.
const PARTS: usize = 1 << 15;

/// Messages of parts that wait until what was said before is written.
pub const MOST_ANSWERS: usize = 4;

/// Files for which another thread pays.
const FILES_PER_THREAD: usize = 64;

/// What a master can look up itself.
#[derive(Clone, Copy)]
pub struct Knows {
    /// The chunks of large files.
    pub chunks: bool,
    /// Whole contents.
    pub contents: bool,
}

/// What there is in place of each of these files, without what the master knows; where there is nothing, `stand_in` names
/// another file. A file that cannot be read saves nothing, and costs nothing but sending; nor is any read once `stop` is
/// raised.
pub fn in_place_of(
    root: &Root,
    index: &Index,
    files: &[(u64, Offered)],
    stand_in: &mut dyn FnMut(&Offered) -> Option<Row>,
    master: Knows,
    stop: &AtomicBool,
) -> Vec<Found> {
    let paths: Vec<RelPath> = files.iter().map(|(_, file)| file.path.clone()).collect();
    let Ok(mut rows) = index.rows_for(&paths) else { return files.iter().map(|_| Found::default()).collect() };
    for (row, (_, file)) in rows.iter_mut().zip(files).filter(|(row, _)| row.is_none()) {
        *row = stand_in(file);
    }
    let one = |((_, file), row): (&(u64, Offered), Option<Row>)| {
        row.and_then(|row| basis(root, file, row, master, stop)).unwrap_or_default()
    };
    let most = files.len() / FILES_PER_THREAD;
    // Asking for it reads files of the kernel's.
    let threads = if most < 2 { 1 } else { std::thread::available_parallelism().map_or(1, usize::from).min(most) };
    if threads < 2 {
        return files.iter().zip(rows).map(one).collect();
    }
    let share = files.len().div_ceil(threads);
    let mut rows = rows.into_iter();
    std::thread::scope(|scope| {
        let shares: Vec<_> = files
            .chunks(share)
            .map(|files| {
                let rows: Vec<_> = rows.by_ref().take(files.len()).collect();
                let some = move || -> Vec<_> { files.iter().zip(rows).map(one).collect() };
                (files.len(), std::thread::Builder::new().spawn_scoped(scope, some))
            })
            .collect();
        let joined =
            shares.into_iter().flat_map(|(count, share)| match share.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(found)) => found,
                // Without a thread, nothing is told.
                _ => (0..count).map(|_| Found::default()).collect(),
            });
        joined.collect()
    })
}

fn basis(root: &Root, file: &Offered, row: Row, master: Knows, stop: &AtomicBool) -> Option<Found> {
    let (new, guess) = (file.size, row.path != file.path);
    let (Kind::File { size, digest }, Some(tuple)) = (&row.entry.kind, row.tuple) else { return None };
    let (size, digest) = (*size, *digest);
    if !(MIN_PIECES..=MAX_BASIS).contains(&size) || new < MIN_PIECES {
        return None;
    }
    let old = (row.path, tuple);
    if size.max(new) <= MAX_PIECES {
        if master.contents {
            let basis = Basis::Named(digest.prefix().to_le_bytes());
            return Some(Found { old: Some(old), cuts: None, basis });
        }
        let (hashes, cuts) = PieceHashes::of(&read_small(root, &old).ok()?);
        return Some(Found { old: Some(old), cuts: Some(cuts), basis: Basis::Pieces(hashes) });
    }
    if new / size > MOST_GROWTH {
        return None;
    }
    let mut chunks = Vec::new();
    // A master keeps the chunks of files whose parts it may have to resume.
    let is_known = master.contents || master.chunks && size > PART_MIN;
    if !is_known {
        chunks = chunks_of(root, &old, stop).ok()?;
    }
    Some(Found { old: Some(old), cuts: None, basis: Basis::File { digest, size, chunks, guess } })
}

fn chunks_of(root: &Root, old: &OldFile, stop: &AtomicBool) -> Result<Vec<ChunkRef>, FsError> {
    let file = BasisFile::open(root, &old.0, &old.1)?;
    let mut chunks = Vec::new();
    let sizes = Chunking::for_size(file.size());
    cut(&file, old, (0, file.size()), sizes, stop, &mut |bytes| chunks.push(ChunkRef::of(bytes)))?;
    Ok(chunks)
}

/// All of a small file. A master that asks for this of a large one would have it read into memory.
pub fn read_small(root: &Root, (path, tuple): &OldFile) -> Result<Vec<u8>, FsError> {
    if tuple.size > MAX_PIECES {
        return Err(FsError::because("read", path, "the master takes it for a small file"));
    }
    let file = BasisFile::open(root, path, tuple)?;
    let mut content = vec![0; usize::try_from(file.size()).unwrap_or(0)];
    file.read_exact_at(0, &mut content)?;
    Ok(content)
}

/// Cuts a range of an old file, until `stop` is raised.
fn cut(
    file: &BasisFile,
    old: &OldFile,
    range: (u64, u64),
    sizes: Chunking,
    stop: &AtomicBool,
    emit: &mut impl FnMut(&[u8]),
) -> Result<(), FsError> {
    let read = |at, buffer: &mut [u8]| match stop.load(Ordering::Relaxed) {
        true => Err(FsError::because("read", &old.0, "the session ends")),
        false => file.read_exact_at(at, buffer),
    };
    cut_from(read, range, sizes, emit)
}

/// Answers what the master asks about old files, one after the other and beside everything else.
pub struct Describer {
    asks: mpsc::UnboundedSender<(Arc<Root>, OldFile, Describe)>,
    working: JoinHandle<()>,
}

impl Describer {
    /// Answers go to `answers`; once `stop` is raised they are of no use any more.
    pub fn new(answers: mpsc::Sender<Described>, stop: Arc<AtomicBool>) -> Self {
        let (asks, mut asked) = mpsc::unbounded_channel::<(Arc<Root>, OldFile, Describe)>();
        let working = tokio::spawn(async move {
            while let Some((root, old, ask)) = asked.recv().await {
                // If the session is over, nobody needs to know.
                let mut tell = |described| drop(answers.blocking_send(described));
                tokio::task::block_in_place(|| describe(&root, &old, &ask, &stop, &mut tell));
            }
        });
        Self { asks, working }
    }

    /// Will tell of what this file consists.
    pub fn ask(&self, root: Arc<Root>, old: OldFile, ask: Describe) {
        // The task ends only with the session.
        let _ = self.asks.send((root, old, ask));
    }

    /// Returns when no file is read any more.
    pub async fn stop(&mut self) {
        self.working.abort();
        let _ = (&mut self.working).await;
    }
}

/// There is nothing to say of that file.
pub fn gone(seq: u64) -> Described {
    Described { seq, parts: Parts::Gone, done: true }
}

fn describe(root: &Root, old: &OldFile, ask: &Describe, stop: &AtomicBool, tell: &mut dyn FnMut(Described)) {
    let described = match ask.pieces {
        None => tell_chunks(root, old, ask.seq, stop, tell),
        Some(sizes) => tell_pieces(root, old, ask, sizes, stop, tell),
    };
    if let Err(error) = described {
        tracing::debug!(%error, "an old file cannot be described");
        tell(gone(ask.seq));
    }
}

fn tell_chunks(
    root: &Root,
    old: &OldFile,
    seq: u64,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Described),
) -> Result<(), FsError> {
    let chunks = chunks_of(root, old, stop)?;
    // Near the largest size there is: the master takes no more.
    if chunks.len() > MAX_CHUNKS {
        return Err(FsError::because("describe", &old.0, "it has too many chunks"));
    }
    let mut rest = &chunks[..];
    loop {
        let (some, after) = rest.split_at(rest.len().min(PARTS));
        rest = after;
        tell(Described { seq, parts: Parts::Chunks(some.to_vec()), done: rest.is_empty() });
        if rest.is_empty() {
            return Ok(());
        }
    }
}

fn tell_pieces(
    root: &Root,
    old: &OldFile,
    ask: &Describe,
    sizes: Chunking,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Described),
) -> Result<(), FsError> {
    let file = BasisFile::open(root, &old.0, &old.1)?;
    let inside = |(at, len): &(u64, u64)| at.checked_add(*len).is_some_and(|end| end <= file.size());
    let total: u64 = ask.ranges.iter().map(|(_, len)| len).fold(0, |sum, len| sum.saturating_add(*len));
    if !ask.ranges.iter().all(inside) || total > file.size().saturating_mul(MOST_DESCRIBED_TIMES) {
        return Err(FsError::because("describe", &old.0, "the master asks for more than there is"));
    }
    let form = Form::new(sizes, total);
    let mut list = Vec::new();
    for range in &ask.ranges {
        cut(&file, old, *range, sizes, stop, &mut |bytes| {
            list.push(form.piece(bytes));
            if list.len() == PARTS {
                let parts = Parts::Pieces(Pieces { form, list: std::mem::take(&mut list) });
                tell(Described { seq: ask.seq, parts, done: false });
            }
        })?;
    }
    tell(Described { seq: ask.seq, parts: Parts::Pieces(Pieces { form, list }), done: true });
    Ok(())
}
