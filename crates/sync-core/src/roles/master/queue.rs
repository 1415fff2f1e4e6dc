//! What one replica waits for, and which stream takes what of it.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::compare::Comparison;
use super::packing::is_meeting;
use crate::hash::Digest;
use crate::session::ContentRequest;
use crate::wire::{Basis, Describe, Described};

/// Files up to this size travel in batches.
pub const SMALL: u64 = 256 << 10;

/// Bytes of what the replica tells of its old files that wait here at most. More is forgotten: a large file is asked about
/// when its turn comes, a small one is sent whole, and an interrupted one from its beginning.
const MOST_TOLD: usize = 64 << 20;

/// Bytes of small files, on average, until batches that were others for somebody else are the same again: some four of them.
const APART: u64 = 2 << 20;

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
    /// What it has answered, likewise, and what needs no answer but waits for its turn.
    answered: VecDeque<(Ready, u64)>,
    /// Bytes of what was told with the contents that wait to be begun.
    told: usize,
    /// Parts of what was asked about and not gone on with.
    parts: u64,
    /// Up to this number nobody waits any more for what is to be sent before others.
    gave_up: Option<u64>,
    /// Whether something was sent in order since the replica was last asked about something.
    has_sent: bool,
    /// Whether the source was read to its end, so that a core has nothing else to do.
    pub is_read: bool,
    /// Whether nothing more will come.
    pub is_over: bool,
}

/// What can be sent.
enum Ready {
    Compared(Comparison),
    FromNothing(ContentRequest),
}

impl Ready {
    fn seq(&self) -> u64 {
        match self {
            Self::Compared(comparison) => comparison.request.seq,
            Self::FromNothing(request) => request.seq,
        }
    }
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
    /// What goes into batches, and nothing to help another stream.
    SmallOnly,
    /// What does not, each when its turn comes.
    BigInOrder,
}

/// While everything is compressed, small files are all in one stream and big ones in another, where each helps with the
/// others: measured, dealing either out to both costs more than it saves in time, until the source is read. In order, for several
/// destinations, neither stream ever does the other's work: then what each carries is the same for all.
pub fn kinds(is_compressed: bool, is_in_order: bool, stream: usize) -> Kinds {
    match (is_compressed, is_in_order, stream) {
        (false, ..) => Kinds::All,
        (true, false, 0) => Kinds::Small,
        (true, false, _) => Kinds::Big,
        (true, true, 0) => Kinds::SmallOnly,
        (true, true, _) => Kinds::BigInOrder,
    }
}

/// Tells the digests of contents that went together, by the first.
pub type Batched<'a> = dyn Fn(&Digest) -> Option<Bytes> + 'a;

/// What waits for a stream.
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and a stream takes it at once")]
pub enum Next {
    /// This.
    Job(Job),
    /// The rest of a batch may come soon.
    Soon,
    /// Nothing.
    Nothing,
}

impl From<Option<Job>> for Next {
    fn from(job: Option<Job>) -> Self {
        job.map_or(Self::Nothing, Self::Job)
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

    /// What a stream that takes these kinds does next. `batched` tells the digests of the contents that went together in a batch for somebody else, by the first of them; without it a batch
    /// is what there is.
    pub fn next(&mut self, batch: u64, kinds: Kinds, batched: Option<&Batched<'_>>) -> Next {
        match kinds {
            // What the replica has to be asked about goes first.
            Kinds::All => self.big().or_else(|| self.small(batch)).into(),
            Kinds::Small => self.small(batch).or_else(|| self.help()).into(),
            Kinds::Big => self.big().or_else(|| if self.is_read { self.small(batch) } else { None }).into(),
            Kinds::SmallOnly => self.alike(batch, batched),
            Kinds::BigInOrder => self.in_order(),
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
            let answered = self.waiting.remove(&seq);
            self.answered.extend(answered.map(|(comparison, parts)| (Ready::Compared(comparison), parts)));
        }
        complete
    }

    fn big(&mut self) -> Option<Job> {
        let answered = self.answered.pop_front();
        answered.map(|answered| self.go_on(answered)).or_else(|| self.begin_big())
    }

    fn go_on(&mut self, (ready, parts): (Ready, u64)) -> Job {
        self.parts = self.parts.saturating_sub(parts);
        match ready {
            Ready::Compared(comparison) => Job::GoOn(comparison),
            Ready::FromNothing(request) => Job::Big(request),
        }
    }

    /// What was compared without an answer waits for its turn; what the replica told for that is of no more use.
    pub fn keep(&mut self, mut comparison: Comparison) {
        forget(&mut comparison.request);
        let parts = comparison.held();
        self.parts = self.parts.saturating_add(parts);
        self.answered.push_back((Ready::Compared(comparison), parts));
    }

    /// Sends what was asked for first, and asks about what may need an answer as often as something is sent, and while nothing can be.
    fn in_order(&mut self) -> Next {
        if !self.has_sent
            && let Some(job) = self.first()
        {
            self.has_sent = true;
            return Next::Job(job);
        }
        self.has_sent = false;
        while let Some(job) = self.begin_big() {
            match job {
                Job::Big(request) if is_from_nothing(&request) => {
                    self.answered.push_back((Ready::FromNothing(request), 0));
                }
                job => return Next::Job(job),
            }
        }
        match self.first() {
            Some(job) => Next::Job(job),
            None if self.answered.is_empty() => Next::Nothing,
            None => Next::Soon,
        }
    }

    /// What can be sent and was asked for first, if its turn has come.
    fn first(&mut self) -> Option<Job> {
        let seqs = self.answered.iter().map(|(ready, _)| ready.seq());
        let (at, seq) = seqs.enumerate().min_by_key(|(_, seq)| *seq)?;
        let ready = if self.is_turn(seq) { self.answered.remove(at)? } else { return None };
        Some(self.go_on(ready))
    }

    /// Whether nothing that was asked for before this is still to be sent.
    pub fn is_turn(&self, seq: u64) -> bool {
        let is_waited_for = |waiting: &u64| self.gave_up.is_none_or(|gave_up| *waiting > gave_up);
        !self.waiting.keys().any(|waiting| *waiting < seq && is_waited_for(waiting))
            && !self.answered.iter().any(|(ready, _)| ready.seq() < seq)
    }

    /// What waits for an answer by now is not waited for any longer: the rest goes before it.
    pub fn give_up(&mut self) {
        self.gave_up = self.gave_up.max(self.waiting.keys().max().copied());
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

    /// A batch that others may have as well: what was one for somebody else, as soon as all of that waits, unless something else waits
    /// here; and none that goes on behind a content where they come together.
    fn alike(&mut self, batch: u64, batched: Option<&Batched<'_>>) -> Next {
        let queue = if self.named.is_empty() { &self.small } else { &self.named };
        let Some(first) = queue.front() else { return Next::Nothing };
        let like = batched.and_then(|batched| batched(&first.file.digest)).unwrap_or_default();
        let digests = like.chunks_exact(size_of::<Digest>());
        let (count, mut both) = (digests.len(), queue.iter().zip(digests));
        let is_like = both.all(|(request, digest)| request.file.digest.0 == digest) && count > 0;
        if is_like && queue.len() < count && !self.is_over {
            return Next::Soon;
        }
        let meeting = || {
            queue.iter().position(|request| is_meeting(&request.file.digest, request.file.size, APART)).map(|at| at + 1)
        };
        let most = if is_like { Some(count) } else { meeting() };
        self.at_most(most.unwrap_or(usize::MAX), batch).into()
    }

    fn small(&mut self, batch: u64) -> Option<Job> {
        self.at_most(usize::MAX, batch)
    }

    fn at_most(&mut self, most: usize, batch: u64) -> Option<Job> {
        let queue = if self.named.is_empty() { &mut self.small } else { &mut self.named };
        let mut taken = Vec::new();
        let mut bytes = 0;
        while taken.len() < most
            && let Some(next) = queue.front().filter(|next| taken.is_empty() || bytes + next.file.size <= batch)
        {
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

/// Whether a large content is sent whole, without a look at what the replica has.
pub fn is_from_nothing(request: &ContentRequest) -> bool {
    request.part.is_empty() && matches!(request.basis, Basis::None | Basis::Pieces(_))
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
    use crate::manifest::{Metadata, Time};
    use crate::path::RelPath;
    use crate::wire::{MAX_CHUNKS, Offered, Parts};

    fn next(queue: &mut Queue, batch: u64, kinds: Kinds) -> Option<Job> {
        match queue.next(batch, kinds, None) {
            Next::Job(job) => Some(job),
            Next::Soon | Next::Nothing => None,
        }
    }

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
        while let Some(Job::Big(request)) = next(&mut queue, 0, Kinds::All) {
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
            while let Some(Job::Big(request)) = next(&mut queue, 0, Kinds::Small) {
                let (seq, part) = (request.seq, request.part.len());
                let told = ask(seq).most_parts(old);
                queue.ask(Comparison::of_chunks(request), &ask(seq));
                let parts = Parts::Chunks(chunks(usize::try_from(told).unwrap()));
                assert!(queue.answer(Described { seq, parts, done: true }));
                held += told as usize + part;
            }
            assert!(queue.answered.len() <= MOST_ASKED && held <= MOST_PARTS as usize + MAX_CHUNKS, "{held} of {old}");
            // What is gone on with makes room for all that is left.
            while next(&mut queue, 0, Kinds::Big).is_some() {}
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

    fn answered(seq: u64) -> Ready {
        Ready::Compared(Comparison::of_chunks(request(seq, 2 << 20, old_file())))
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
            queue.answered.push_back((answered(seq), 0));
        }
        assert_eq!(seqs(next(&mut queue, SMALL, Kinds::Small)), [0]);
        assert_eq!(seqs(next(&mut queue, SMALL, Kinds::Small)), []);
        queue.is_read = true;
        let taken: Vec<_> =
            std::iter::from_fn(|| next(&mut queue, SMALL, Kinds::Small)).map(|job| seqs(Some(job))).collect();
        assert_eq!(taken, [[1], [5], [4]]);
        assert_eq!(seqs(next(&mut queue, SMALL, Kinds::Big)), [3]);
        assert_eq!(seqs(next(&mut queue, SMALL, Kinds::Big)), [2]);
        assert_eq!(seqs(next(&mut queue, SMALL, Kinds::Big)), []);
    }

    /// Whatever comes first, an answer or a turn: the replica is asked at once, and contents go in the order of their numbers.
    #[test]
    fn large_contents_go_in_order_whenever_they_are_answered() {
        let mut queue = Queue { is_read: true, ..Queue::default() };
        let big = |queue: &mut Queue| queue.next(SMALL, Kinds::BigInOrder, None);
        queue.push(request(0, 1000, Basis::None), SMALL);
        for (seq, basis) in [(1, old_file()), (2, Basis::None), (3, old_file()), (4, old_file())] {
            queue.push(request(seq, 2 << 20, basis), SMALL);
        }
        for asked in [1, 3, 4] {
            let Next::Job(Job::Big(request)) = big(&mut queue) else { panic!("{asked} is not asked about") };
            assert_eq!(request.seq, asked);
            if asked == 4 {
                let told = Basis::File {
                    digest: Digest::of(b"y"),
                    size: 9,
                    chunks: wanted(4, 9).basis.chunks().to_vec(),
                    guess: false,
                };
                let before = queue.parts;
                queue.keep(Comparison::of_chunks(ContentRequest { basis: told, ..request }));
                assert_eq!(queue.parts, before, "it holds what the replica told");
            } else {
                let ask = Describe { seq: asked, pieces: None, ranges: Vec::new() };
                queue.ask(Comparison::of_chunks(request), &ask);
            }
        }
        let answer = |seq| Described { seq, parts: Parts::Chunks(Vec::new()), done: true };
        assert!(matches!(big(&mut queue), Next::Soon));
        assert!(queue.answer(answer(3)) && matches!(big(&mut queue), Next::Soon));
        assert!(queue.answer(answer(1)));
        let mut sent = Vec::new();
        while let Next::Job(job) = big(&mut queue) {
            sent.extend(seqs(Some(job)));
        }
        assert_eq!(sent, [1, 2, 3, 4]);
        assert_eq!((queue.parts, queue.told), (0, 0));
        assert_eq!(seqs(next(&mut queue, SMALL, Kinds::SmallOnly)), [0], "it is the other stream's");
    }

    /// One that a replica takes long to answer holds up the others once, not each of them.
    #[test]
    fn what_is_not_answered_in_time_is_not_waited_for_again() {
        let mut queue = Queue { is_read: true, ..Queue::default() };
        let big = |queue: &mut Queue| queue.next(SMALL, Kinds::BigInOrder, None);
        queue.push(request(0, 2 << 20, old_file()), SMALL);
        (1..4).for_each(|seq| queue.push(request(seq, 2 << 20, Basis::None), SMALL));
        let Next::Job(Job::Big(asked)) = big(&mut queue) else { panic!("nothing is asked about") };
        let ask = Describe { seq: 0, pieces: None, ranges: Vec::new() };
        queue.ask(Comparison::of_chunks(asked), &ask);
        assert!(matches!(big(&mut queue), Next::Soon));
        queue.give_up();
        for expected in [1, 2] {
            let Next::Job(job) = big(&mut queue) else { panic!("{expected} is held up") };
            assert_eq!(seqs(Some(job)), [expected]);
        }
        // Its turn is whenever it is answered.
        assert!(queue.answer(Described { seq: 0, parts: Parts::Chunks(Vec::new()), done: true }));
        assert!(queue.is_turn(0) && !queue.is_turn(3));
        for expected in [0, 3] {
            let Next::Job(job) = big(&mut queue) else { panic!("{expected} is held up") };
            assert_eq!(seqs(Some(job)), [expected]);
        }
        assert!(matches!(big(&mut queue), Next::Nothing));
    }

    /// What can be sent is not held up by questions about what comes later, nor are these by what is sent.
    #[test]
    fn questions_and_contents_take_turns() {
        let mut queue = Queue { is_read: true, ..Queue::default() };
        (0..4).for_each(|seq| queue.push(request(seq, 2 << 20, old_file()), SMALL));
        let mut done = Vec::new();
        while let Next::Job(job) = queue.next(SMALL, Kinds::BigInOrder, None) {
            match job {
                Job::Big(request) => {
                    done.push(("asks", request.seq));
                    let seq = request.seq;
                    queue.ask(Comparison::of_chunks(request), &Describe { seq, pieces: None, ranges: Vec::new() });
                    // The replica is quick.
                    assert!(queue.answer(Described { seq, parts: Parts::Chunks(Vec::new()), done: true }));
                }
                job => done.push(("sends", seqs(Some(job))[0])),
            }
        }
        let both = |seq| [("asks", seq), ("sends", seq)];
        assert_eq!(done, (0..4).flat_map(both).collect::<Vec<_>>());
    }

    /// So that batches that became others by what was there at the time are the same again.
    #[test]
    fn a_batch_ends_behind_a_content_where_streams_meet() {
        let content = |n: u64| Digest::of(&n.to_le_bytes());
        let meeting = (0..).map(content).find(|digest| is_meeting(digest, 1000, APART)).unwrap();
        let with = |before: u64| {
            let mut queue = Queue::default();
            for n in 0..before + 5 {
                let request = request(n, 1000, Basis::None);
                let digest = if n == before { meeting } else { Digest([255; 32]) };
                queue.push(ContentRequest { file: Offered { digest, ..request.file }, ..request }, SMALL);
            }
            queue
        };
        for before in [0, 1, 20] {
            let mut queue = with(before);
            assert_eq!(seqs(next(&mut queue, SMALL, Kinds::SmallOnly)).len() as u64, before + 1);
            assert_eq!(seqs(next(&mut queue, SMALL, Kinds::SmallOnly)).len(), 4);
            assert_eq!(seqs(next(&mut with(before), SMALL, Kinds::Small)).len() as u64, before + 5, "alone");
        }
    }

    #[test]
    fn a_batch_is_what_it_was_for_somebody_else_or_what_there_is() {
        let content = |n: u64| Digest::of(&n.to_le_bytes());
        let wanted = |n: u64| {
            let request = request(n, 1000, Basis::None);
            ContentRequest { file: Offered { digest: content(n), ..request.file }, ..request }
        };
        let like = |contents: &[u64]| {
            let (first, all) = (content(contents[0]), contents.iter().flat_map(|n| content(*n).0).collect::<Vec<u8>>());
            move |asked: &Digest| (*asked == first).then(|| Bytes::from(all.clone()))
        };
        let with = |contents: &[u64]| {
            let mut queue = Queue::default();
            contents.iter().for_each(|n| queue.push(wanted(*n), SMALL));
            queue
        };
        let small = |queue: &mut Queue, batched: &Batched<'_>| match queue.next(SMALL, Kinds::SmallOnly, Some(batched))
        {
            Next::Job(job) => Some(seqs(Some(job))),
            Next::Soon => None,
            Next::Nothing => Some(Vec::new()),
        };
        let mut queue = with(&[1, 2, 3, 4]);
        assert_eq!(small(&mut queue, &like(&[1, 2])), Some(vec![1, 2]));
        assert_eq!(small(&mut queue, &like(&[1, 2])), Some(vec![3, 4]), "of what begins with 3 nothing is known");
        assert_eq!(small(&mut queue, &like(&[1, 2])), Some(vec![]));
        assert_eq!(small(&mut with(&[1, 3, 4]), &like(&[1, 2])), Some(vec![1, 3, 4]), "2 is not wanted here");
        let mut queue = with(&[1, 2]);
        assert_eq!(small(&mut queue, &like(&[1, 2, 3])), None, "3 may come");
        queue.is_over = true;
        assert_eq!(small(&mut queue, &like(&[1, 2, 3])), Some(vec![1, 2]), "it does not");
        // What was a batch elsewhere may be larger than one is here.
        let large: Vec<u64> = (0..SMALL / 1000 + 10).collect();
        assert_eq!(small(&mut with(&large), &like(&large)).unwrap().len() as u64, SMALL / 1000);
    }
}
