//! Sends contents to one replica: small files in batches, big ones piece by piece, over a few streams at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::meter::Meter;
use super::source::Source;
use crate::chunk::{self, ChunkRef};
use crate::compress::{AutoCompress, Compressor, DEFAULT_LEVEL, Observation};
use crate::delta::{self, Op};
use crate::fs::{ReadError, SourceFile};
use crate::hash::Digest;
use crate::options::Compress;
use crate::pace::Pace;
use crate::path::RelPath;
use crate::session::ContentRequest;
use crate::transport::{Connection, FrameWriter, StreamError};
use crate::wire::{Batch, ContentFrame, Encoding, Piece};

/// Streams that carry content: enough to keep both sides' cores busy.
const STREAMS: usize = 2;

/// Files up to this size travel in batches.
const SMALL: u64 = 256 << 10;

/// A batch goes off at this size.
const BATCH: u64 = 512 << 10;

/// Bytes of a big file read and sent at once.
const PIECE: usize = 1 << 20;

/// A content that could not be sent.
pub struct SendFailure {
    /// Which.
    pub seq: u64,
    /// Its file.
    pub path: RelPath,
    /// Why.
    pub reason: String,
    /// Whether the file is simply not what it was: another round may find it at rest.
    pub changed: bool,
}

/// What to send from, and how.
pub struct Sending {
    /// Which destination, for the meter.
    pub dest: usize,
    /// Where contents come from.
    pub source: Arc<Source>,
    /// Progress.
    pub meter: Arc<Meter>,
    /// Compression on the wire.
    pub compress: Compress,
    /// Bytes per second.
    pub bandwidth: Option<u64>,
}

/// Everything the streams share.
struct Shared {
    dest: usize,
    source: Arc<Source>,
    meter: Arc<Meter>,
    queue: Mutex<VecDeque<ContentRequest>>,
    more: Notify,
    failures: mpsc::UnboundedSender<SendFailure>,
    compress: Compress,
    auto: Mutex<AutoCompress>,
    pace: Option<Mutex<Pace>>,
    started: Instant,
    literal_bytes: AtomicU64,
}

/// The content streams to one replica.
pub struct ContentSender {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl ContentSender {
    /// Starts the streams; they are opened when there is something to send.
    pub fn start(sending: Sending, connection: &Connection, failures: mpsc::UnboundedSender<SendFailure>) -> Self {
        let Sending { dest, source, meter, compress, bandwidth } = sending;
        let shared = Arc::new(Shared {
            dest,
            source,
            meter,
            queue: Mutex::default(),
            more: Notify::new(),
            failures,
            compress: choose(compress, connection),
            auto: Mutex::new(AutoCompress::new()),
            pace: bandwidth.map(|rate| Mutex::new(Pace::new(rate))),
            started: Instant::now(),
            literal_bytes: AtomicU64::new(0),
        });
        let tasks = (0..STREAMS)
            .map(|_| {
                let (shared, connection) = (Arc::clone(&shared), connection.clone());
                // A stream that breaks is seen on the control stream as well, which tells why.
                tokio::spawn(async move { drop(Stream::run(shared, connection).await) })
            })
            .collect();
        Self { shared, tasks }
    }

    /// Queues a content. The queue holds what the replica asked for, which is bounded by what was offered.
    pub fn request(&self, request: ContentRequest) {
        self.shared.queue().push_back(request);
        self.shared.more.notify_one();
    }

    /// Ends the streams; returns the content bytes sent, before compression.
    pub fn stop(&self) -> u64 {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.shared.literal_bytes.load(Ordering::Relaxed)
    }
}

/// The loopback interface outruns every compressor, and both ends share the cores it would take.
pub fn choose(compress: Compress, connection: &Connection) -> Compress {
    match compress {
        Compress::Auto if connection.remote().ip().is_loopback() => Compress::Never,
        other => other,
    }
}

impl Shared {
    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<ContentRequest>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next small files up to a batch, or one big file.
    async fn next(&self, batch: u64) -> Vec<ContentRequest> {
        loop {
            {
                let mut queue = self.queue();
                let mut taken = Vec::new();
                let mut bytes = 0;
                while let Some(first) = queue.front() {
                    let alone = first.file.size > SMALL.min(batch) || !first.basis.is_empty() || !first.part.is_empty();
                    if !taken.is_empty() && (alone || bytes + first.file.size > batch) {
                        break;
                    }
                    bytes += first.file.size;
                    taken.extend(queue.pop_front());
                    if alone {
                        break;
                    }
                }
                if !queue.is_empty() {
                    self.more.notify_one();
                }
                if !taken.is_empty() {
                    return taken;
                }
            }
            self.more.notified().await;
        }
    }

    /// The largest frame that keeps to the rate.
    fn most(&self, size: usize) -> usize {
        let Some(pace) = &self.pace else { return size };
        let piece = pace.lock().unwrap_or_else(PoisonError::into_inner).piece();
        size.min(usize::try_from(piece).unwrap_or(size)).max(4096)
    }

    fn fail(&self, request: &ContentRequest, error: &ReadError) {
        let reason = match error {
            ReadError::Fs(error) => error.to_string(),
            _ => "it changed while it was sent; push again when it rests".to_owned(),
        };
        let changed = !matches!(error, ReadError::Fs(_));
        let failure = SendFailure { seq: request.seq, path: request.file.path.clone(), reason, changed };
        // If the session is over, nobody needs to know.
        let _ = self.failures.send(failure);
    }
}

struct Stream {
    shared: Arc<Shared>,
    writer: FrameWriter,
    compressor: Option<Compressor>,
}

impl Stream {
    async fn run(shared: Arc<Shared>, connection: Connection) -> Result<(), StreamError> {
        let batch = shared.most(BATCH as usize) as u64;
        let mut requests = shared.next(batch).await;
        let writer = connection.open_uni().await?;
        let mut stream = Self { shared: Arc::clone(&shared), writer, compressor: None };
        loop {
            match requests.as_slice() {
                [one] if one.file.size > SMALL.min(batch) || !one.basis.is_empty() || !one.part.is_empty() => {
                    stream.big(one).await?;
                }
                small => stream.small(small).await?,
            }
            requests = shared.next(batch).await;
        }
    }

    /// Sends whole small files in one frame.
    async fn small(&mut self, requests: &[ContentRequest]) -> Result<(), StreamError> {
        let mut files = Vec::with_capacity(requests.len());
        let mut bytes = Vec::new();
        tokio::task::block_in_place(|| {
            for request in requests {
                match self.whole(request) {
                    Ok(content) => {
                        files.push((request.seq, content.len() as u32));
                        bytes.extend_from_slice(&content);
                    }
                    Err(error) => self.shared.fail(request, &error),
                }
            }
        });
        if files.is_empty() {
            return Ok(());
        }
        let sent = bytes.len() as u64;
        let batch = |encoding| ContentFrame::Batch(Batch { files: files.clone(), encoding }, &[]);
        self.frame(Bytes::from(bytes), batch).await?;
        self.count(sent);
        Ok(())
    }

    /// The content, from memory if it was just hashed, else from disk.
    fn whole(&self, request: &ContentRequest) -> Result<Bytes, ReadError> {
        let file = &request.file;
        if let Some(content) = self.shared.source.ring.take(&file.digest) {
            return Ok(content);
        }
        let opened = self.shared.source.open_content(&file.path, &file.digest)?;
        let content = opened.read_at(0, usize::try_from(file.size).unwrap_or(0))?;
        opened.verify(&self.shared.source.root)?;
        if Digest::of(&content) != file.digest {
            return Err(ReadError::Changed);
        }
        Ok(Bytes::from(content))
    }

    /// Sends a file piece by piece: what the replica lacks of it.
    async fn big(&mut self, request: &ContentRequest) -> Result<(), StreamError> {
        let shared = Arc::clone(&self.shared);
        let (seq, file) = (request.seq, &request.file);
        if request.part.is_empty()
            && request.basis.is_empty()
            && let Some(content) = shared.source.ring.take(&file.digest)
        {
            return self.whole_from_memory(seq, content).await;
        }
        let opened = tokio::task::block_in_place(|| Plan::open(&shared.source, request));
        let plan = match opened {
            Ok(plan) => plan,
            Err(error) => {
                shared.fail(request, &error);
                return Ok(());
            }
        };
        let mut offset = plan.start;
        for op in &plan.ops {
            match *op {
                Op::Copy { offset: from, len } => {
                    self.send_piece(Piece::Copy { seq, offset, from, len }, Bytes::new()).await?;
                    offset += len;
                }
                Op::Literal { offset: at, len } => {
                    if let Err(error) = self.literal(&plan, seq, at, len).await? {
                        shared.fail(request, &error);
                        return Ok(());
                    }
                    offset = at + len;
                }
            }
        }
        if let Err(error) = tokio::task::block_in_place(|| plan.file.verify(&shared.source.root)) {
            shared.fail(request, &error);
            return Ok(());
        }
        self.send_piece(Piece::End { seq }, Bytes::new()).await
    }

    async fn whole_from_memory(&mut self, seq: u64, content: Bytes) -> Result<(), StreamError> {
        let most = self.shared.most(PIECE);
        let mut offset = 0;
        while offset < content.len() {
            let piece = content.slice(offset..content.len().min(offset + most));
            let len = piece.len();
            self.literal_piece(seq, offset as u64, piece).await?;
            offset += len;
        }
        self.send_piece(Piece::End { seq }, Bytes::new()).await
    }

    /// Reads and sends a range; zeros are only named.
    async fn literal(
        &mut self,
        plan: &Plan,
        seq: u64,
        at: u64,
        len: u64,
    ) -> Result<Result<(), ReadError>, StreamError> {
        let most = self.shared.most(PIECE) as u64;
        let mut done = 0;
        while done < len {
            let now = most.min(len - done);
            let size = usize::try_from(now).unwrap_or(0);
            let read = || match &self.shared.source.blocks {
                Some(blocks) => {
                    let mut buffer = vec![0; size];
                    blocks.read(&plan.file, plan.digest, plan.size, at + done, &mut buffer).map(|()| buffer)
                }
                None => plan.file.read_at(at + done, size),
            };
            let buffer = match tokio::task::block_in_place(read) {
                Ok(buffer) => buffer,
                Err(error) => return Ok(Err(error)),
            };
            if buffer.iter().all(|byte| *byte == 0) {
                self.send_piece(Piece::Zeros { seq, offset: at + done, len: now }, Bytes::new()).await?;
            } else {
                self.literal_piece(seq, at + done, Bytes::from(buffer)).await?;
            }
            done += now;
        }
        Ok(Ok(()))
    }

    async fn literal_piece(&mut self, seq: u64, offset: u64, bytes: Bytes) -> Result<(), StreamError> {
        let len = bytes.len() as u32;
        let piece = |encoding| ContentFrame::Piece(Piece::Literal { seq, offset, len, encoding }, &[]);
        self.frame(bytes, piece).await?;
        self.count(u64::from(len));
        Ok(())
    }

    async fn send_piece(&mut self, piece: Piece, bytes: Bytes) -> Result<(), StreamError> {
        self.send(&ContentFrame::Piece(piece, &[]), bytes).await
    }

    /// Sends content bytes, compressed if that helps, and lets the policy learn from how it went.
    async fn frame(
        &mut self,
        bytes: Bytes,
        frame: impl Fn(Encoding) -> ContentFrame<'static>,
    ) -> Result<(), StreamError> {
        let started = Instant::now();
        let content = bytes.len() as u64;
        let compressed = tokio::task::block_in_place(|| self.compress(&bytes));
        let (encoding, bytes) = compressed.map_or((Encoding::Plain, bytes), |small| (Encoding::Zstd, small.into()));
        let before = Instant::now();
        self.send(&frame(encoding), bytes).await?;
        let seen = Observation { content, working: started.elapsed(), blocked: before.elapsed() };
        self.shared.auto.lock().unwrap_or_else(PoisonError::into_inner).observe(seen);
        Ok(())
    }

    fn compress(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let level = match self.shared.compress {
            Compress::Never => return None,
            Compress::Zstd(level) => level,
            Compress::Auto => {
                let on = self.shared.auto.lock().unwrap_or_else(PoisonError::into_inner).is_on();
                on.then_some(DEFAULT_LEVEL)?
            }
        };
        if self.compressor.is_none() {
            self.compressor = Compressor::new(level).ok();
        }
        self.compressor.as_mut()?.compress(bytes)
    }

    async fn send(&mut self, frame: &ContentFrame<'_>, bytes: Bytes) -> Result<(), StreamError> {
        let head = frame.head();
        let wait = self.shared.pace.as_ref().map_or(Duration::ZERO, |pace| {
            let total = head.body.len() + bytes.len();
            // Packets and acknowledgements cost about this much beside the content.
            let on_the_wire = total as u64 + total as u64 / 24 + 64;
            pace.lock().unwrap_or_else(PoisonError::into_inner).delay(self.shared.started.elapsed(), on_the_wire)
        });
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        self.writer.send_with(head.kind, head.version, &head.body, bytes).await
    }

    fn count(&self, bytes: u64) {
        self.shared.literal_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.meter.sent(self.shared.dest, bytes);
    }
}

/// How one big file is sent.
struct Plan {
    file: SourceFile,
    digest: Digest,
    size: u64,
    /// Where the first operation's bytes go.
    start: u64,
    ops: Vec<Op>,
}

impl Plan {
    fn open(source: &Source, request: &ContentRequest) -> Result<Self, ReadError> {
        let ContentRequest { file, basis, part, .. } = request;
        let opened = source.open_content(&file.path, &file.digest)?;
        let whole = vec![Op::Literal { offset: 0, len: file.size }];
        if basis.is_empty() && part.is_empty() {
            return Ok(Self { file: opened, digest: file.digest, size: file.size, start: 0, ops: whole });
        }
        let target = match source.chunks(&file.digest).ok().flatten() {
            Some(chunks) if chunk::covered(&chunks) == file.size => chunks,
            _ => chunks_of(&opened, file.size)?.into(),
        };
        let start = resume_at(&target, part, file.size);
        let ops = after(delta::delta(&target, basis), start);
        Ok(Self { file: opened, digest: file.digest, size: file.size, start, ops })
    }
}

fn chunks_of(file: &SourceFile, size: u64) -> Result<Vec<ChunkRef>, ReadError> {
    let mut chunks = Vec::new();
    let mut chunker = chunk::Chunker::new(chunk::Chunking::for_size(size));
    let mut at = 0;
    while at < size {
        let mut buffer = vec![0; usize::try_from((PIECE as u64).min(size - at)).unwrap_or(0)];
        file.read_exact_at(at, &mut buffer)?;
        chunker.push(&buffer, &mut |chunk| chunks.push(chunk));
        at += buffer.len() as u64;
    }
    chunker.finish(&mut |chunk| chunks.push(chunk));
    Ok(chunks)
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
