//! What one replica waits for, and which stream takes what of it.

use std::collections::{HashMap, VecDeque};

use super::compare::Comparison;
use crate::session::ContentRequest;
use crate::wire::{Basis, Describe, Described};

/// Files up to this size travel in batches.
pub const SMALL: u64 = 256 << 10;

/// Bytes of what the replica tells of its old files that wait here at most. More is forgotten: a large file is asked about
/// when its turn comes, a small one is sent whole, and an interrupted one from its beginning.
const MOST_TOLD: usize = 64 << 20;

/// Files that a replica is asked about at the same time, or has answered and nobody has gone on with.
const MOST_ASKED: usize = 256;

/// Pieces and chunks of these, with what else is held of them, unless it is only one file.
const MOST_PARTS: u64 = 1 << 20;

/// What waits.
#[derive(Default)]
pub struct Queue {
    small: VecDeque<ContentRequest>,
    /// Small ones whose old content is probably kept: in batches of their own, which are not in the stream's frame.
    named: VecDeque<ContentRequest>,
    /// Large ones.
    big: VecDeque<ContentRequest>,
    /// What the replica was asked about, with the number of parts.
    waiting: HashMap<u64, (Comparison, u64)>,
    /// What it has answered, likewise.
    answered: VecDeque<(Comparison, u64)>,
    /// Bytes of what was told with the contents that wait to be begun.
    told: usize,
    /// Parts of what was asked about and not gone on with.
    parts: u64,
    /// Whether the source was read to its end, so that a core has nothing else to do.
    pub is_read: bool,
    /// Whether nothing more will come.
    pub is_over: bool,
}

/// What a stream takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kinds {
    /// Whatever there is.
    All,
    /// What goes into batches.
    Small,
    /// What does not.
    Big,
}

/// While everything is compressed, small files are all in one stream and big ones in another, where each helps with the
/// others: measured, dealing either out to both costs more than it saves in time, until the source is read.
pub fn kinds(is_compressed: bool, stream: usize) -> Kinds {
    match (is_compressed, stream) {
        (false, _) => Kinds::All,
        (true, 0) => Kinds::Small,
        (true, _) => Kinds::Big,
    }
}

/// What a stream does next.
pub enum Job {
    /// Small files, as many as make a batch.
    Small(Vec<ContentRequest>),
    /// A file to compare or to send whole.
    Big(ContentRequest),
    /// One whose old file is known now.
    GoOn(Comparison),
}

impl Queue {
    /// Adds a content.
    pub fn push(&mut self, mut request: ContentRequest, batch: u64) {
        if self.told.saturating_add(told(&request)) > MOST_TOLD {
            forget(&mut request);
        }
        self.told += told(&request);
        let queue = match &request.basis {
            Basis::Named(_) if is_small(&request, batch) => &mut self.named,
            _ if is_small(&request, batch) => &mut self.small,
            _ => &mut self.big,
        };
        queue.push_back(request);
    }

    /// What a stream that takes these kinds does next.
    pub fn next(&mut self, batch: u64, kinds: Kinds) -> Option<Job> {
        match kinds {
            // What the replica has to be asked about goes first.
            Kinds::All => self.big().or_else(|| self.small(batch)),
            Kinds::Small => self.small(batch).or_else(|| self.help()),
            Kinds::Big => self.big().or_else(|| if self.is_read { self.small(batch) } else { None }),
        }
    }

    /// Adds a small content that has to be compared like a large one.
    pub fn push_big(&mut self, request: ContentRequest) {
        self.told += told(&request);
        self.big.push_back(request);
    }

    /// A content waits for an answer.
    pub fn ask(&mut self, comparison: Comparison, ask: &Describe) {
        let parts = parts(&comparison, ask);
        self.parts = self.parts.saturating_add(parts);
        self.waiting.insert(comparison.request.seq, (comparison, parts));
    }

    /// Takes a part of an answer; whether that completes it.
    pub fn answer(&mut self, described: Described) -> bool {
        let seq = described.seq;
        let complete = self.waiting.get_mut(&seq).is_some_and(|(comparison, _)| comparison.answer(described));
        if complete {
            self.answered.extend(self.waiting.remove(&seq));
        }
        complete
    }

    fn big(&mut self) -> Option<Job> {
        let answered = self.answered.pop_front();
        answered.map(|answered| self.go_on(answered)).or_else(|| self.begin_big())
    }

    fn go_on(&mut self, (comparison, parts): (Comparison, u64)) -> Job {
        self.parts = self.parts.saturating_sub(parts);
        Job::GoOn(comparison)
    }

    /// The next large file, unless too much is asked about already.
    fn begin_big(&mut self) -> Option<Job> {
        let asked = self.waiting.len() + self.answered.len();
        let may_ask = asked == 0 || asked < MOST_ASKED && self.parts < MOST_PARTS;
        let request = if may_ask { self.big.pop_front()? } else { return None };
        self.told -= told(&request);
        Some(Job::Big(request))
    }

    /// Work of the other stream, once there is a core for it: the replica is asked about the first of the large files, and
    /// the last are sent. So each stream has a half of the list, and neighbours, which resemble each other, stay together.
    fn help(&mut self) -> Option<Job> {
        if !self.is_read {
            return None;
        }
        if self.big.front().is_some_and(|next| matches!(next.basis, Basis::File { .. }))
            && let Some(job) = self.begin_big()
        {
            return Some(job);
        }
        let last = if self.answered.len() > 1 { self.answered.pop_back() } else { None };
        last.map(|answered| self.go_on(answered))
    }

    fn small(&mut self, batch: u64) -> Option<Job> {
        let queue = if self.named.is_empty() { &mut self.small } else { &mut self.named };
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(next) = queue.front().filter(|next| taken.is_empty() || bytes + next.file.size <= batch) {
            bytes += next.file.size;
            self.told -= told(next);
            taken.extend(queue.pop_front());
        }
        (!taken.is_empty()).then_some(Job::Small(taken))
    }
}

/// About how many parts the answer has, and what waits for it. Of chunks the most: what a replica says of the size of its old
/// file proves nothing.
fn parts(comparison: &Comparison, ask: &Describe) -> u64 {
    let asked = match ask.pieces {
        Some(sizes) => ask.ranges.iter().fold(0, |sum: u64, (_, len)| sum.saturating_add(*len)) / sizes.avg() as u64,
        None => ask.most_parts(comparison.old_size()),
    };
    asked.saturating_add(comparison.held())
}

fn told(request: &ContentRequest) -> usize {
    request.basis.bytes() + size_of_val(&*request.part)
}

fn forget(request: &mut ContentRequest) {
    request.part = Vec::new();
    match &mut request.basis {
        Basis::Pieces(_) => request.basis = Basis::None,
        Basis::File { chunks, .. } => *chunks = Vec::new(),
        Basis::None | Basis::Named(_) => {}
    }
}

/// Whether the content goes into a batch.
fn is_small(request: &ContentRequest, batch: u64) -> bool {
    let most = match &request.basis {
        Basis::None => SMALL.min(batch),
        // What is sent of it is probably much less.
        Basis::Pieces(_) | Basis::Named(_) => SMALL,
        Basis::File { .. } => 0,
    };
    request.file.size <= most && request.part.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkRef;
    use crate::hash::Digest;
    use crate::manifest::{Metadata, Time};
    use crate::path::RelPath;
    use crate::wire::{MAX_CHUNKS, Offered, Parts};

    fn wanted(seq: u64, chunks: usize) -> ContentRequest {
        let chunks = vec![ChunkRef { digest: [0; 16], len: 1 }; chunks];
        let basis = Basis::File { digest: Digest::of(b"y"), size: 1 << 30, chunks, guess: false };
        request(seq, 1 << 30, basis)
    }

    #[test]
    fn what_a_replica_tells_beyond_some_bytes_is_forgotten() {
        let mut queue = Queue::default();
        for seq in 0..1000 {
            queue.push(wanted(seq, 1 << 14), 0);
            assert!(queue.told <= MOST_TOLD);
        }
        let mut remembered = 0;
        while let Some(Job::Big(request)) = queue.next(0, Kinds::All) {
            remembered += usize::from(request.basis.bytes() > 0);
        }
        assert_eq!((remembered, queue.told), (MOST_TOLD / (20 << 14), 0));
        queue.push(wanted(1000, 1 << 14), 0);
        assert!(queue.told > 0, "there is room again");
    }

    /// However small the old files are said to be, whatever comes with the wants, and even if nobody goes on with what was
    /// answered.
    #[test]
    fn what_waits_for_answers_and_what_they_hold_is_bounded() {
        let ask = |seq| Describe { seq, pieces: None, ranges: Vec::new() };
        let chunks = |count| vec![ChunkRef { digest: [0; 16], len: 1 }; count];
        for (old, part) in [(300_000, 0), (1 << 40, 0), (300_000, 1 << 16)] {
            let mut queue = Queue { is_read: true, ..Queue::default() };
            let mut held = 0;
            for seq in 0..1000 {
                let basis = Basis::File { digest: Digest::of(b"y"), size: old, chunks: Vec::new(), guess: false };
                let part = chunks(if seq < 20 { part } else { 0 });
                queue.push(ContentRequest { part, ..request(seq, 1 << 40, basis) }, 0);
            }
            // The stream of small files asks; that of large ones is busy.
            while let Some(Job::Big(request)) = queue.next(0, Kinds::Small) {
                let (seq, part) = (request.seq, request.part.len());
                let told = ask(seq).most_parts(old);
                queue.ask(Comparison::of_chunks(request), &ask(seq));
                let parts = Parts::Chunks(chunks(usize::try_from(told).unwrap()));
                assert!(queue.answer(Described { seq, parts, done: true }));
                held += told as usize + part;
            }
            assert!(queue.answered.len() <= MOST_ASKED && held <= MOST_PARTS as usize + MAX_CHUNKS, "{held} of {old}");
            // What is gone on with makes room for all that is left.
            while queue.next(0, Kinds::Big).is_some() {}
            assert_eq!((queue.parts, queue.told, queue.big.len()), (0, 0, 0));
        }
    }

    fn request(seq: u64, size: u64, basis: Basis) -> ContentRequest {
        let likely = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Time { sec: 0, nsec: 0 } };
        let file = Offered { path: RelPath::new(b"f").unwrap(), digest: Digest::of(b""), size, likely };
        ContentRequest { seq, file, basis, part: Vec::new() }
    }

    fn old_file() -> Basis {
        Basis::File { digest: Digest::of(b"old"), size: 1 << 20, chunks: Vec::new(), guess: false }
    }

    fn seqs(job: Option<Job>) -> Vec<u64> {
        match job {
            Some(Job::Small(requests)) => requests.iter().map(|request| request.seq).collect(),
            Some(Job::Big(request)) => vec![request.seq],
            Some(Job::GoOn(comparison)) => vec![comparison.request.seq],
            None => Vec::new(),
        }
    }

    /// Small files go before everything else, new large ones are left to their stream, and nothing is taken over while the
    /// source is read.
    #[test]
    fn the_stream_of_small_files_helps_in_the_end() {
        let mut queue = Queue::default();
        queue.push(request(0, 1000, Basis::None), SMALL);
        queue.push(request(1, 2 << 20, old_file()), SMALL);
        queue.push(request(2, 2 << 20, Basis::None), SMALL);
        for seq in 3..6 {
            queue.answered.push_back((Comparison::of_chunks(request(seq, 2 << 20, old_file())), 0));
        }
        assert_eq!(seqs(queue.next(SMALL, Kinds::Small)), [0]);
        assert_eq!(seqs(queue.next(SMALL, Kinds::Small)), []);
        queue.is_read = true;
        let taken: Vec<_> = std::iter::from_fn(|| queue.next(SMALL, Kinds::Small)).map(|job| seqs(Some(job))).collect();
        assert_eq!(taken, [[1], [5], [4]]);
        assert_eq!(seqs(queue.next(SMALL, Kinds::Big)), [3]);
        assert_eq!(seqs(queue.next(SMALL, Kinds::Big)), [2]);
        assert_eq!(seqs(queue.next(SMALL, Kinds::Big)), []);
    }
}
