//! The old file in place of a wanted content: what is told of it, so that only the rest is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::chunk::pieces::{self, MAX_PIECES, MIN_PIECES, Pieces};
use crate::chunk::{ChunkRef, Chunker, Chunking};
use crate::delta::patch::PieceHashes;
use crate::fs::{BasisFile, FsError, PART_MIN, Root};
use crate::index::Index;
use crate::manifest::{Kind, Row, Tuple};
use crate::path::RelPath;
use crate::wire::{Basis, Describe, Described, Offered, Parts};

/// A file of the replica, as it was when it was looked at.
pub type OldFile = (RelPath, Tuple);

/// Old content up to this size is worth reading for the sake of a delta.
const MAX_BASIS: u64 = 1 << 40;

/// How many times as large a new file may be before a small old one is not worth a round trip.
const MOST_GROWTH: u64 = 16;

/// Bytes read at once.
const READ: u64 = 1 << 20;

/// Parts in one message.
const PARTS: usize = 1 << 15;

/// Files for which another thread pays.
const FILES_PER_THREAD: usize = 64;

/// What there is in place of each of these files. What a master that knows the content of a large file can look up itself
/// is left out if it is `known`. A file that cannot be read saves nothing, and costs nothing but sending.
pub fn in_place_of(root: &Root, index: &Index, files: &[(u64, Offered)], known: bool) -> Vec<(Option<OldFile>, Basis)> {
    let paths: Vec<RelPath> = files.iter().map(|(_, file)| file.path.clone()).collect();
    let Ok(rows) = index.rows_for(&paths) else { return files.iter().map(|_| (None, Basis::None)).collect() };
    let one = |((_, file), row): (&(u64, Offered), Option<Row>)| basis(root, file.size, row?, known);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(files.len() / FILES_PER_THREAD);
    if threads < 2 {
        return files.iter().zip(rows).map(|pair| one(pair).map_or((None, Basis::None), found)).collect();
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
                _ => (0..count).map(|_| None).collect(),
            });
        joined.map(|one| one.map_or((None, Basis::None), found)).collect()
    })
}

fn found((old, basis): (OldFile, Basis)) -> (Option<OldFile>, Basis) {
    (Some(old), basis)
}

fn basis(root: &Root, new: u64, row: Row, known: bool) -> Option<(OldFile, Basis)> {
    let (Kind::File { size, digest }, Some(tuple)) = (&row.entry.kind, row.tuple) else { return None };
    let (size, digest) = (*size, *digest);
    if !(MIN_PIECES..=MAX_BASIS).contains(&size) || new < MIN_PIECES {
        return None;
    }
    let old = (row.path, tuple);
    if size.max(new) <= MAX_PIECES {
        let content = read(root, &old).ok()?;
        return Some((old, Basis::Pieces(PieceHashes::of(&content))));
    }
    if new / size > MOST_GROWTH {
        return None;
    }
    let mut chunks = Vec::new();
    // A master keeps the chunks of files whose parts it may have to resume.
    if !known || size <= PART_MIN {
        let file = BasisFile::open(root, &old.0, &old.1).ok()?;
        let never = AtomicBool::new(false);
        cut(&file, (0, size), Chunking::for_size(size), &never, &mut |bytes| chunks.push(ChunkRef::of(bytes))).ok()?;
    }
    Some((old, Basis::File { digest, size, chunks }))
}

/// All of a small file.
pub fn read(root: &Root, (path, tuple): &OldFile) -> Result<Vec<u8>, FsError> {
    let file = BasisFile::open(root, path, tuple)?;
    let mut content = vec![0; usize::try_from(file.size()).unwrap_or(0)];
    file.read_exact_at(0, &mut content)?;
    Ok(content)
}

fn cut(
    file: &BasisFile,
    (at, len): (u64, u64),
    sizes: Chunking,
    stop: &AtomicBool,
    emit: &mut impl FnMut(&[u8]),
) -> Result<(), FsError> {
    let mut chunker = Chunker::new(sizes);
    let mut buffer = vec![0; usize::try_from(READ.min(len)).unwrap_or(0)];
    let mut done = 0;
    while done < len && !stop.load(Ordering::Relaxed) {
        let now = usize::try_from(READ.min(len - done)).unwrap_or(0);
        file.read_exact_at(at + done, &mut buffer[..now])?;
        chunker.push(&buffer[..now], emit);
        done += now as u64;
    }
    chunker.finish(emit);
    Ok(())
}

/// Answers what the master asks about old files, one after the other and beside everything else.
pub struct Describer {
    asks: mpsc::UnboundedSender<(Arc<Root>, OldFile, Describe)>,
    working: JoinHandle<()>,
}

impl Describer {
    /// Answers go to `answers`; once `stop` is raised they are of no use any more.
    pub fn new(answers: mpsc::UnboundedSender<Described>, stop: Arc<AtomicBool>) -> Self {
        let (asks, mut asked) = mpsc::unbounded_channel::<(Arc<Root>, OldFile, Describe)>();
        let working = tokio::spawn(async move {
            while let Some((root, old, ask)) = asked.recv().await {
                // If the session is over, nobody needs to know.
                let mut tell = |described| drop(answers.send(described));
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
    let seq = ask.seq;
    let described = BasisFile::open(root, &old.0, &old.1).and_then(|file| match ask.pieces {
        None => {
            let mut parts = Telling { seq, some: Vec::new(), wrap: Parts::Chunks, tell };
            cut(&file, (0, file.size()), Chunking::for_size(file.size()), stop, &mut |bytes| {
                parts.push(ChunkRef::of(bytes));
            })?;
            parts.end();
            Ok(())
        }
        Some(sizes) => {
            let inside = |(at, len): &(u64, u64)| at.checked_add(*len).is_some_and(|end| end <= file.size());
            // Each byte is looked at once, or twice where blocks moved.
            let total: u64 = ask.ranges.iter().map(|(_, len)| len).fold(0, |sum, len| sum.saturating_add(*len));
            if !ask.ranges.iter().all(inside) || total > file.size().saturating_mul(4) {
                return Err(FsError::because("describe", &old.0, "the master asks for more than there is"));
            }
            let mut parts = Telling { seq, some: Vec::new(), wrap: |pieces| Parts::Pieces(Pieces(pieces)), tell };
            for range in &ask.ranges {
                cut(&file, *range, sizes, stop, &mut |bytes| parts.push(pieces::wide(bytes)))?;
            }
            parts.end();
            Ok(())
        }
    });
    if let Err(error) = described {
        tracing::debug!(%error, "an old file cannot be described");
        tell(gone(seq));
    }
}

/// An answer on its way, in messages of some size.
struct Telling<'a, T> {
    seq: u64,
    some: Vec<T>,
    wrap: fn(Vec<T>) -> Parts,
    tell: &'a mut dyn FnMut(Described),
}

impl<T> Telling<'_, T> {
    fn push(&mut self, part: T) {
        self.some.push(part);
        if self.some.len() == PARTS {
            let parts = (self.wrap)(std::mem::take(&mut self.some));
            (self.tell)(Described { seq: self.seq, parts, done: false });
        }
    }

    fn end(self) {
        (self.tell)(Described { seq: self.seq, parts: (self.wrap)(self.some), done: true });
    }
}
