//! How one big file is sent: compared with what the replica has, chunk by chunk and then piece by piece.

use std::collections::HashMap;

use super::source::Source;
use crate::chunk::pieces::{Form, MAX_PIECES, Pieces};
use crate::chunk::{self, ChunkRef, Chunker, Chunking};
use crate::delta::{self, Gap, Matcher, Op};
use crate::fs::{Kept, ReadError, SourceFile};
use crate::hash::Digest;
use crate::session::ContentRequest;
use crate::wire::{Basis, Describe, Described, MAX_CHUNKS, Parts};

/// Fewer bytes than this are sent rather than asked about.
const WORTH_ASKING: u64 = 8 << 10;

/// How far a comparison has come.
pub enum Compared {
    /// To its end.
    Done(Plan),
    /// The replica must tell more first.
    Asks(Comparison, Describe),
}

/// What is sent of a file.
pub struct Plan {
    /// The file.
    pub file: SourceFile,
    /// What it shall hold.
    pub content: Digest,
    /// Where the first operation's bytes go: what is before is there already.
    pub start: u64,
    /// From there to the end.
    pub ops: Vec<Op>,
    /// The old file, if the master has it too.
    pub old: Option<Kept>,
}

impl Plan {
    /// How many bytes come from the old file.
    pub fn copied(&self) -> u64 {
        let copied = self.ops.iter().filter(|op| matches!(op, Op::Copy { .. }));
        copied.map(|op| op.len()).sum()
    }
}

/// A comparison that waits for an answer.
pub struct Comparison {
    /// What for.
    pub request: ContentRequest,
    asked: Asked,
    /// The answer so far is of no use.
    gone: bool,
}

enum Asked {
    Chunks(Vec<ChunkRef>),
    Pieces { start: u64, ops: Vec<Op>, gaps: Vec<Gap>, pieces: Pieces },
    Nothing { start: u64, ops: Vec<Op>, is_kept: bool },
}

impl Comparison {
    /// Begins to compare.
    ///
    /// # Errors
    /// [`ReadError`] if the file is not what was offered, or cannot be read.
    pub fn begin(source: &Source, mut request: ContentRequest) -> Result<Compared, ReadError> {
        let file = source.open_content(&request.file.path, &request.file.digest)?;
        if let Some((old, chunks)) = kept(source, &request.basis) {
            return Self::beside(source, request, file, old, &chunks);
        }
        let chunks = match &mut request.basis {
            // Its content should have been there: it was too old, or is lost.
            Basis::Named(_) => return Ok(Self::ask_chunks(request)),
            Basis::File { digest, size, chunks, .. } => {
                // Not held any longer than they are of use.
                let told = std::mem::take(chunks);
                match source.chunks(digest) {
                    _ if !told.is_empty() && chunk::covered(&told) == *size => told,
                    Ok(Some(known)) if chunk::covered(&known) == *size => known.to_vec(),
                    _ => return Ok(Self::ask_chunks(request)),
                }
            }
            Basis::None | Basis::Pieces(_) => Vec::new(),
        };
        Self::chunk_by_chunk(source, request, file, &chunks)
    }

    fn ask_chunks(request: ContentRequest) -> Compared {
        let ask = Describe { seq: request.seq, pieces: None, ranges: Vec::new() };
        Compared::Asks(Self::of_chunks(request), ask)
    }

    /// One that waits for the chunks of the old file.
    pub(super) fn of_chunks(request: ContentRequest) -> Self {
        Self { request, asked: Asked::Chunks(Vec::new()), gone: false }
    }

    /// One that is at its end, and holds no file open.
    pub fn done(request: ContentRequest, plan: Plan) -> Self {
        let Plan { start, ops, old, .. } = plan;
        Self { request, asked: Asked::Nothing { start, ops, is_kept: old.is_some() }, gone: false }
    }

    /// How many bytes the old file has at most.
    pub fn old_size(&self) -> u64 {
        match &self.request.basis {
            Basis::File { size, .. } => *size,
            Basis::Named(_) | Basis::Pieces(_) => MAX_PIECES,
            Basis::None => 0,
        }
    }

    /// About how many parts it holds already.
    pub fn held(&self) -> u64 {
        let asked = match &self.asked {
            Asked::Chunks(chunks) => chunks.len(),
            Asked::Pieces { ops, gaps, pieces, .. } => ops.len() + gaps.len() + pieces.list.len(),
            Asked::Nothing { ops, .. } => ops.len(),
        };
        (self.request.basis.chunks().len() + self.request.part.len() + asked) as u64
    }

    /// With the old content at hand nothing is asked that is not answered here.
    fn beside(
        source: &Source,
        request: ContentRequest,
        file: SourceFile,
        old: Kept,
        chunks: &[ChunkRef],
    ) -> Result<Compared, ReadError> {
        let mut compared = Self::chunk_by_chunk(source, request, file, chunks)?;
        loop {
            match compared {
                Compared::Done(plan) => return Ok(Compared::Done(Plan { old: Some(old), ..plan })),
                Compared::Asks(mut comparison, ask) => {
                    comparison.answer(describe(&old, &ask));
                    compared = comparison.go_on(source)?;
                }
            }
        }
    }

    /// Takes a part of the answer; tells whether it is complete.
    pub fn answer(&mut self, described: Described) -> bool {
        match (&mut self.asked, described.parts) {
            (Asked::Chunks(all), Parts::Chunks(some)) => all.extend(some),
            (Asked::Pieces { pieces, .. }, Parts::Pieces(some)) if some.form == pieces.form => {
                pieces.list.extend(some.list);
            }
            // What is no answer is as good as none: the file is sent whole.
            _ => self.gone = true,
        }
        described.done
    }

    /// Goes on when the answer is complete.
    ///
    /// # Errors
    /// As [`Comparison::begin`].
    pub fn go_on(self, source: &Source) -> Result<Compared, ReadError> {
        let Self { request, asked, gone } = self;
        let file = source.open_content(&request.file.path, &request.file.digest)?;
        let (start, ops, old) = match asked {
            Asked::Chunks(chunks) => {
                let is_all = !matches!(request.basis, Basis::File { size, .. } if chunk::covered(&chunks) != size);
                let chunks = if is_all && !gone { chunks } else { Vec::new() };
                return Self::chunk_by_chunk(source, request, file, &chunks);
            }
            Asked::Pieces { start, ops, gaps, pieces } if !gone => {
                let read = reading(source, &file, request.file.digest);
                (start, piece_by_piece(read, ops, &gaps, &pieces)?, None)
            }
            Asked::Pieces { start, .. } => {
                (start, after(vec![Op::Literal { offset: 0, len: request.file.size }], start), None)
            }
            Asked::Nothing { start, ops, is_kept } => {
                (start, ops, if is_kept { find_kept(source, &request.basis) } else { None })
            }
        };
        let content = request.file.digest;
        Ok(Compared::Done(Plan { file, content, start, ops, old }))
    }

    fn chunk_by_chunk(
        source: &Source,
        mut request: ContentRequest,
        file: SourceFile,
        basis: &[ChunkRef],
    ) -> Result<Compared, ReadError> {
        let (digest, size) = (request.file.digest, request.file.size);
        let part = std::mem::take(&mut request.part);
        let start = match part.is_empty() {
            true => 0,
            false => resume_at(&chunks_of(source, &file, &digest, size, Chunking::for_size(size))?, &part, size),
        };
        let old = chunk::covered(basis);
        let ops = match basis {
            [] => vec![Op::Literal { offset: 0, len: size }],
            _ => delta::delta(&chunks_of(source, &file, &digest, size, Chunking::for_size(old))?, basis),
        };
        // A guess was wrong if not even a chunk is the same; pieces would cost more than they are likely to save.
        let is_wrong = matches!(request.basis, Basis::File { guess: true, .. })
            && !ops.iter().any(|op| matches!(op, Op::Copy { .. }));
        let ops = after(ops, start);
        let gaps = delta::gaps(&ops, old);
        let ranges: Vec<(u64, u64)> = gaps.iter().flat_map(|gap| gap.old.iter().copied()).collect();
        let open: u64 = gaps.iter().filter(|gap| !gap.old.is_empty()).map(|gap| gap.len).sum();
        if open < WORTH_ASKING || is_wrong {
            return Ok(Compared::Done(Plan { file, content: digest, start, ops, old: None }));
        }
        let form = Form::of_ranges(ranges.iter().map(|(_, bytes)| bytes).sum());
        let ask = Describe { seq: request.seq, pieces: Some(form.sizes()), ranges };
        let asked = Asked::Pieces { start, ops, gaps, pieces: Pieces { form, list: Vec::new() } };
        Ok(Compared::Asks(Self { request, asked, gone: false }, ask))
    }
}

/// The old content and its chunks, if it was kept and is sound.
fn kept(source: &Source, basis: &Basis) -> Option<(Kept, Vec<ChunkRef>)> {
    let Basis::File { size, .. } = basis else { return None };
    let old = find_kept(source, basis)?;
    let mut chunks = Vec::new();
    let mut chunker = Chunker::new(Chunking::for_size(*size));
    let is_sound = old.verify(&mut |bytes| chunker.push(bytes, &mut |chunk| chunks.push(ChunkRef::of(chunk))));
    chunker.finish(&mut |chunk| chunks.push(ChunkRef::of(chunk)));
    (is_sound && chunks.len() <= MAX_CHUNKS).then_some((old, chunks))
}

/// The old content, if it was kept.
fn find_kept(source: &Source, basis: &Basis) -> Option<Kept> {
    let Basis::File { digest, size, .. } = basis else { return None };
    let old = source.history.as_ref()?.find(digest.prefix())?;
    (old.digest() == digest && old.size() == *size).then_some(old)
}

/// What the replica would tell of its old file.
fn describe(old: &Kept, ask: &Describe) -> Described {
    let told = || -> Option<Pieces> {
        let sizes = ask.pieces?;
        let form = Form::new(sizes, ask.ranges.iter().map(|(_, bytes)| bytes).sum());
        let mut list = Vec::new();
        for range in &ask.ranges {
            let read = |at, buffer: &mut [u8]| old.read_exact_at(at, buffer);
            chunk::cut_from(read, *range, sizes, &mut |bytes| list.push(form.piece(bytes))).ok()?;
        }
        Some(Pieces { form, list })
    };
    Described { seq: ask.seq, parts: told().map_or(Parts::Gone, Parts::Pieces), done: true }
}

/// The chunks of a file, from memory or the index if they were cut in that way.
fn chunks_of(
    source: &Source,
    file: &SourceFile,
    digest: &Digest,
    size: u64,
    sizes: Chunking,
) -> Result<Vec<ChunkRef>, ReadError> {
    if sizes == Chunking::for_size(size)
        && let Ok(Some(known)) = source.chunks(digest)
        && chunk::covered(&known) == size
    {
        return Ok(known.to_vec());
    }
    let mut chunks = Vec::new();
    let read = reading(source, file, *digest);
    chunk::cut_from(read, (0, size), sizes, &mut |bytes| chunks.push(ChunkRef::of(bytes)))?;
    Ok(chunks)
}

/// Reads a file that shall have the content.
fn reading<'a>(
    source: &'a Source,
    file: &'a SourceFile,
    content: Digest,
) -> impl Fn(u64, &mut [u8]) -> Result<(), ReadError> + 'a {
    move |at, buffer| match &source.reads {
        Some(reads) => {
            buffer.copy_from_slice(&reads.range(file, content, at, buffer.len())?);
            Ok(())
        }
        None => file.read_exact_at(at, buffer),
    }
}

/// The operations with their literals cut down to what is in none of the described pieces.
fn piece_by_piece(
    read: impl Fn(u64, &mut [u8]) -> Result<(), ReadError>,
    ops: Vec<Op>,
    gaps: &[Gap],
    pieces: &Pieces,
) -> Result<Vec<Op>, ReadError> {
    let Some((known, firsts)) = placed(gaps, pieces) else { return Ok(ops) };
    let (basis, form) = (delta::Basis::new(known), pieces.form);
    let mut finer = HashMap::new();
    for (gap, first) in gaps.iter().zip(firsts).filter(|(gap, _)| !gap.old.is_empty()) {
        let mut matcher = Matcher::cautious(&basis, gap.at, first);
        chunk::cut_from(&read, (gap.at, gap.len), form.sizes(), &mut |bytes| {
            let piece = form.piece(bytes);
            matcher.push(piece.hash, piece.len);
        })?;
        finer.insert(gap.at, matcher.finish());
    }
    Ok(delta::refine(ops, |at| finer.remove(&at)))
}

/// Parts with their places in the old file.
type Placed = Vec<(u64, u64, u32)>;

/// The described pieces with their places in the old file, and the number of each gap's first; `None` if they do not fill
/// the ranges.
fn placed(gaps: &[Gap], pieces: &Pieces) -> Option<(Placed, Vec<usize>)> {
    let mut placed = Vec::with_capacity(pieces.list.len());
    let mut firsts = Vec::with_capacity(gaps.len());
    let mut pieces = pieces.list.iter();
    for gap in gaps {
        firsts.push(placed.len());
        for (begin, bytes) in &gap.old {
            let mut done = 0;
            while done < *bytes {
                let piece = pieces.next()?;
                placed.push((piece.hash, begin + done, piece.len));
                done += u64::from(piece.len);
            }
            if done > *bytes {
                return None;
            }
        }
    }
    pieces.next().is_none().then_some((placed, firsts))
}

/// Where to go on with an interrupted file: after the chunks that are there, but not after all of it, so that the
/// replica learns from the first piece where the rest begins.
fn resume_at(target: &[ChunkRef], part: &[ChunkRef], size: u64) -> u64 {
    let there = delta::common_prefix(target, part);
    match target.last() {
        Some(last) if there >= size => size - u64::from(last.len),
        _ => there,
    }
}

/// The operations for what comes from `start` on; `start` is a boundary of chunks, and so may lie within an operation.
fn after(ops: Vec<Op>, start: u64) -> Vec<Op> {
    let mut at = 0;
    let mut rest = Vec::new();
    for op in ops {
        let (begin, end) = (at, at + op.len());
        at = end;
        if end <= start {
            continue;
        }
        let skip = start.saturating_sub(begin);
        rest.push(match op {
            Op::Copy { offset, len } => Op::Copy { offset: offset + skip, len: len - skip },
            Op::Literal { offset, len } => Op::Literal { offset: offset + skip, len: len - skip },
        });
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resuming_cuts_operations_where_the_part_ends() {
        let ops = vec![Op::Copy { offset: 7, len: 10 }, Op::Literal { offset: 10, len: 5 }];
        assert_eq!(after(ops.clone(), 0), ops);
        assert_eq!(after(ops.clone(), 4), [Op::Copy { offset: 11, len: 6 }, Op::Literal { offset: 10, len: 5 }]);
        assert_eq!(after(ops.clone(), 12), [Op::Literal { offset: 12, len: 3 }]);
        assert_eq!(after(ops, 15), []);
    }

    #[test]
    fn a_complete_part_still_gets_its_last_chunk() {
        let chunk = |n: u8, len| ChunkRef { digest: [n; 16], len };
        let target = [chunk(1, 10), chunk(2, 20)];
        assert_eq!(resume_at(&target, &target, 30), 10);
        assert_eq!(resume_at(&target, &target[..1], 30), 10);
        assert_eq!(resume_at(&target, &[], 30), 0);
    }
}
