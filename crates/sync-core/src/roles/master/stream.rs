//! One stream of contents to a replica: batches of small files, and large ones piece by piece.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::compare::{Compared, Comparison, Plan};
use super::outgoing::{BATCH, Outgoing, StreamEvent};
use super::packing::Packer;
use super::queue::{Job, SMALL, is_from_nothing};
use super::splicing::Splicing;
use crate::compress::Observation;
use crate::delta::Op;
use crate::delta::patch::{self, Cuts};
use crate::fs::{Kept, ReadError};
use crate::hash::Digest;
use crate::options::Compress;
use crate::session::ContentRequest;
use crate::transport::{Connection, FrameWriter, StreamError};
use crate::wire::{Basis, Batch, BatchFile, ContentFrame, Encoding, MAX_PREFIX, Piece, gaps};
use crate::zeros::are_zeros;

/// Bytes of a big file read and sent at once.
const PIECE: usize = 1 << 20;

/// Literals of up to this many bytes share a frame with others.
const SHORT: u64 = 64 << 10;

/// A stream that sends.
pub struct Stream {
    outgoing: Arc<Outgoing>,
    connection: Connection,
    /// `None` if nothing is to be sent.
    writer: Option<FrameWriter>,
    packer: Packer,
    /// Content bytes sent in this stream.
    literal: u64,
}

impl Stream {
    fn new(outgoing: Arc<Outgoing>, connection: Connection, writer: Option<FrameWriter>) -> Self {
        let packer = Packer::new(Arc::clone(&outgoing.source.packing), outgoing.compress == Compress::Auto);
        Self { outgoing, connection, writer, packer, literal: 0 }
    }

    /// Opens the stream when there is something to send, and sends until it is aborted.
    pub async fn run(outgoing: Arc<Outgoing>, connection: Connection, number: usize) -> Result<(), StreamError> {
        let batch = outgoing.batch();
        let Some(mut job) = outgoing.next(batch, number, None).await else { return Ok(()) };
        let writer = if outgoing.estimates { None } else { Some(connection.open_uni().await?) };
        let mut stream = Self::new(Arc::clone(&outgoing), connection, writer);
        loop {
            match job {
                Job::Small(requests) => stream.small(&requests).await?,
                Job::Big(request) => stream.big(request).await?,
                Job::GoOn(comparison) => {
                    let request = comparison.request.clone();
                    let compared = tokio::task::block_in_place(|| comparison.go_on(&outgoing.source));
                    stream.send_compared(&request, compared).await?;
                }
            }
            job = match outgoing.next(batch, number, stream.packer.place()).await {
                Some(job) => job,
                None => return stream.writer.map_or(Ok(()), FrameWriter::finish),
            };
        }
    }

    /// Sends small files in one frame: whole, or what their old pieces do not have.
    async fn small(&mut self, requests: &[ContentRequest]) -> Result<(), StreamError> {
        let mut files = Vec::with_capacity(requests.len());
        // Buffers of many of these wait to be sent: they shall not be twice what they hold.
        let whole = |request: &&ContentRequest| matches!(request.basis, Basis::None);
        let size: u64 = requests.iter().filter(whole).map(|request| request.file.size).sum();
        let (mut bytes, mut prefix) = (Vec::with_capacity(usize::try_from(size).unwrap_or(0)), Vec::new());
        let mut sending = Vec::with_capacity(requests.len());
        tokio::task::block_in_place(|| {
            for request in requests {
                let old = match &request.basis {
                    Basis::Named(name) => match self.previous(*name) {
                        Some(old) => Some(old),
                        None => {
                            self.outgoing.ask_about(request.clone());
                            continue;
                        }
                    },
                    _ => None,
                };
                let content = match self.whole(request) {
                    Ok(content) => content,
                    Err(error) => {
                        self.outgoing.fail(request, &error);
                        continue;
                    }
                };
                let before = bytes.len();
                let runs = match (&request.basis, old) {
                    (_, Some(old)) => {
                        let cuts = Cuts::of(&old);
                        let runs = patch::diff_known(&content, &old, &cuts, &mut bytes);
                        patch::gaps(&old, &cuts, &runs, MAX_PREFIX, &mut prefix);
                        runs
                    }
                    (Basis::Pieces(old), None) => patch::diff(&content, old, &mut bytes),
                    (Basis::None | Basis::File { .. } | Basis::Named(_), None) => {
                        bytes.extend_from_slice(&content);
                        Vec::new()
                    }
                };
                let literal = bytes.len() - before;
                sending.push((request, literal as u64));
                files.push(BatchFile { seq: request.seq, literal: literal as u32, runs });
            }
        });
        if files.is_empty() {
            return Ok(());
        }
        let sent = bytes.len() as u64;
        let batch = |encoding| ContentFrame::Batch(Batch { files: files.clone(), encoding }, &[]);
        self.frame(Bytes::from(bytes), &prefix, batch).await?;
        self.count(sent);
        for (request, literal) in sending {
            self.outgoing.done(request, literal, request.file.size.saturating_sub(literal));
        }
        Ok(())
    }

    /// The old content that a replica names, if it is kept.
    fn previous(&self, name: [u8; 8]) -> Option<Vec<u8>> {
        let kept = self.outgoing.source.history.as_ref()?.find(u64::from_le_bytes(name))?;
        // Of a small file only: what is named otherwise is another one by chance.
        if kept.size() <= SMALL { kept.read() } else { None }
    }

    /// The content, from memory if it was just hashed, else from disk.
    fn whole(&self, request: &ContentRequest) -> Result<Bytes, ReadError> {
        let file = &request.file;
        let source = &self.outgoing.source;
        if let Some(content) = source.ring.take(&file.digest) {
            return Ok(content);
        }
        let read = || {
            let opened = source.open_content(&file.path, &file.digest)?;
            let content = opened.read_at(0, usize::try_from(file.size).unwrap_or(0))?;
            opened.verify(&source.root)?;
            if Digest::of(&content) != file.digest {
                return Err(ReadError::Changed);
            }
            Ok(Bytes::from(content))
        };
        match &source.reads {
            Some(reads) => reads.content(file.digest, file.size, read),
            None => read(),
        }
    }

    /// Sends what the replica lacks of a file, unless it must tell first what it has.
    async fn big(&mut self, request: ContentRequest) -> Result<(), StreamError> {
        let outgoing = Arc::clone(&self.outgoing);
        let from_nothing = is_from_nothing(&request);
        if from_nothing && let Some(content) = outgoing.source.in_memory(&request.file.digest) {
            let before = self.literal;
            self.whole_from_memory(request.seq, content).await?;
            outgoing.done(&request, self.literal - before, 0);
            return Ok(());
        }
        let compared = tokio::task::block_in_place(|| Comparison::begin(&outgoing.source, request.clone()));
        match compared {
            // Its turn comes.
            Ok(Compared::Done(plan))
                if !from_nothing && outgoing.is_in_order() && !outgoing.queue().is_turn(request.seq) =>
            {
                outgoing.queue().keep(Comparison::done(request, plan));
                Ok(())
            }
            compared => self.send_compared(&request, compared).await,
        }
    }

    async fn send_compared(
        &mut self,
        request: &ContentRequest,
        compared: Result<Compared, ReadError>,
    ) -> Result<(), StreamError> {
        match compared {
            Ok(Compared::Done(plan)) => {
                let before = self.literal;
                match self.send_plan(request.seq, &plan).await? {
                    Ok(()) => {
                        self.outgoing.resumed.fetch_add(plan.start, Ordering::Relaxed);
                        self.outgoing.done(request, self.literal - before, plan.copied());
                    }
                    Err(error) => self.outgoing.fail(request, &error),
                }
            }
            Ok(Compared::Asks(comparison, ask)) => {
                let old = comparison.old_size();
                self.outgoing.queue().ask(comparison, &ask);
                self.outgoing.tell(StreamEvent::Asks(ask, old));
            }
            Err(error) => self.outgoing.fail(request, &error),
        }
        Ok(())
    }

    /// Sends a file as planned: long literals by themselves, what is short together.
    async fn send_plan(&mut self, seq: u64, plan: &Plan) -> Result<Result<(), ReadError>, StreamError> {
        if let Some(old) = &plan.old {
            return self.send_patches(seq, plan, old).await;
        }
        let most = self.outgoing.most(BATCH as usize);
        let mut splicing = Splicing::at(plan.start);
        for op in &plan.ops {
            match *op {
                Op::Literal { offset, len } if len > SHORT => {
                    self.send_splices(seq, &mut splicing).await?;
                    if let Err(error) = self.literal(plan, seq, offset, len).await? {
                        return Ok(Err(error));
                    }
                    splicing = Splicing::at(offset + len);
                }
                Op::Literal { offset, len } => match self.read(plan, offset, usize::try_from(len).unwrap_or(0)) {
                    Ok(bytes) => splicing.literal(&bytes),
                    Err(error) => return Ok(Err(error)),
                },
                Op::Copy { offset, len } => splicing.copy(offset, len),
            }
            if splicing.is_full(most) {
                self.send_splices(seq, &mut splicing).await?;
            }
        }
        self.send_splices(seq, &mut splicing).await?;
        self.end(seq, plan).await
    }

    fn read(&self, plan: &Plan, offset: u64, len: usize) -> Result<Bytes, ReadError> {
        tokio::task::block_in_place(|| self.outgoing.source.range(&plan.file, plan.content, offset, len))
    }

    async fn end(&mut self, seq: u64, plan: &Plan) -> Result<Result<(), ReadError>, StreamError> {
        if let Err(error) = tokio::task::block_in_place(|| plan.file.verify(&self.outgoing.source.root)) {
            return Ok(Err(error));
        }
        self.send_piece(Piece::End { seq }, Bytes::new()).await?;
        Ok(Ok(()))
    }

    /// Sends a file as planned, its literals behind what was in their place in the old one.
    async fn send_patches(&mut self, seq: u64, plan: &Plan, old: &Kept) -> Result<Result<(), ReadError>, StreamError> {
        let most = self.outgoing.most(BATCH as usize);
        let mut patch = Splicing::behind(plan.start, 0);
        for (i, op) in plan.ops.iter().enumerate() {
            match *op {
                Op::Literal { offset, len } => {
                    let next = match plan.ops.get(i + 1) {
                        Some(Op::Copy { offset, .. }) => *offset,
                        _ => old.size(),
                    };
                    let mut done = 0;
                    while done < len {
                        let now = (most.saturating_sub(patch.bytes.len()).max(1) as u64).min(len - done);
                        let size = usize::try_from(now).unwrap_or(0);
                        match self.read(plan, offset + done, size) {
                            Ok(bytes) => patch.literal(&bytes),
                            Err(error) => return Ok(Err(error)),
                        }
                        if patch.is_full(most) {
                            // This part of the literal gets the like part of its gap.
                            let gap = next.saturating_sub(patch.copied);
                            let tail = u128::from(gap) * u128::from(now) / u128::from(len - done);
                            self.send_patch(seq, &mut patch, old, u64::try_from(tail).unwrap_or(gap)).await?;
                        }
                        done += now;
                    }
                }
                Op::Copy { offset, len } => {
                    patch.copy(offset, len);
                    if patch.is_full(most) {
                        self.send_patch(seq, &mut patch, old, 0).await?;
                    }
                }
            }
        }
        let tail = match plan.ops.last() {
            Some(Op::Literal { .. }) => old.size().saturating_sub(patch.copied),
            _ => 0,
        };
        self.send_patch(seq, &mut patch, old, tail).await?;
        self.end(seq, plan).await
    }

    async fn send_patch(&mut self, seq: u64, patch: &mut Splicing, old: &Kept, tail: u64) -> Result<(), StreamError> {
        let next = Splicing::behind(patch.end, patch.copied + tail);
        let Splicing { offset, end, from, splices, bytes, .. } = std::mem::replace(patch, next);
        if end == offset {
            return Ok(());
        }
        let sent = bytes.len() as u64;
        let prefix = if self.level().is_some() { prefix_of(old, &gaps(from, tail, &splices)) } else { Vec::new() };
        let piece = |encoding| {
            let splices = splices.clone();
            ContentFrame::Piece(Piece::Patched { seq, offset, from, tail, splices, encoding }, &[])
        };
        self.frame(Bytes::from(bytes), &prefix, piece).await?;
        self.count(sent);
        Ok(())
    }

    async fn send_splices(&mut self, seq: u64, splicing: &mut Splicing) -> Result<(), StreamError> {
        let Splicing { offset, end, splices, bytes, .. } = std::mem::replace(splicing, Splicing::at(splicing.end));
        if end == offset {
            return Ok(());
        }
        let sent = bytes.len() as u64;
        let piece =
            |encoding| ContentFrame::Piece(Piece::Spliced { seq, offset, splices: splices.clone(), encoding }, &[]);
        self.frame(Bytes::from(bytes), &[], piece).await?;
        self.count(sent);
        Ok(())
    }

    async fn whole_from_memory(&mut self, seq: u64, content: Bytes) -> Result<(), StreamError> {
        let most = self.outgoing.most(PIECE);
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
        let most = self.outgoing.most(PIECE) as u64;
        let mut done = 0;
        while done < len {
            let now = most.min(len - done);
            let size = usize::try_from(now).unwrap_or(0);
            let buffer = match self.read(plan, at + done, size) {
                Ok(buffer) => buffer,
                Err(error) => return Ok(Err(error)),
            };
            if are_zeros(&buffer) {
                self.send_piece(Piece::Zeros { seq, offset: at + done, len: now }, Bytes::new()).await?;
            } else {
                self.literal_piece(seq, at + done, buffer).await?;
            }
            done += now;
        }
        Ok(Ok(()))
    }

    async fn literal_piece(&mut self, seq: u64, offset: u64, bytes: Bytes) -> Result<(), StreamError> {
        let len = bytes.len() as u32;
        let piece = |encoding| ContentFrame::Piece(Piece::Literal { seq, offset, len, encoding }, &[]);
        self.frame(bytes, &[], piece).await?;
        self.count(u64::from(len));
        Ok(())
    }

    async fn send_piece(&mut self, piece: Piece, bytes: Bytes) -> Result<(), StreamError> {
        self.send(&ContentFrame::Piece(piece, &[]), bytes).await
    }

    /// Sends content bytes, compressed if that helps, and lets the policy learn from how it went. `prefix` is what the
    /// replica has for them to lie behind.
    async fn frame(
        &mut self,
        bytes: Bytes,
        prefix: &[u8],
        frame: impl Fn(Encoding) -> ContentFrame<'static>,
    ) -> Result<(), StreamError> {
        let (begun, content) = (self.outgoing.started.elapsed(), bytes.len() as u64);
        let compressed = tokio::task::block_in_place(|| self.compress(&bytes, prefix));
        let (encoding, bytes) = compressed.unwrap_or((Encoding::Plain, bytes));
        let sent = bytes.len() as u64;
        self.outgoing.compressed.fetch_add(sent, Ordering::Relaxed);
        self.connection.hold_what_the_link_takes();
        if self.outgoing.compress != Compress::Auto {
            return self.send(&frame(encoding), bytes).await;
        }
        let before = Instant::now();
        self.send(&frame(encoding), bytes).await?;
        let (ended, blocked) = (self.outgoing.started.elapsed(), before.elapsed());
        self.outgoing.learn(Observation { content, sent, begun, ended, blocked });
        Ok(())
    }

    /// How strongly to compress now, if at all.
    fn level(&self) -> Option<i32> {
        match self.outgoing.compress {
            Compress::Never => None,
            Compress::Zstd(level) => Some(level),
            Compress::Auto => self.outgoing.auto().level(),
        }
    }

    fn compress(&mut self, bytes: &[u8], prefix: &[u8]) -> Option<(Encoding, Bytes)> {
        let level = self.level();
        self.packer.pack(bytes, prefix, level)
    }

    async fn send(&mut self, frame: &ContentFrame<'_>, bytes: Bytes) -> Result<(), StreamError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let head = frame.head();
        let wait = self.outgoing.pace.as_ref().map_or(Duration::ZERO, |pace| {
            let total = head.body.len() + bytes.len();
            // Packets and acknowledgements cost about this much beside the content.
            let on_the_wire = total as u64 + total as u64 / 24 + 64;
            pace.lock().unwrap_or_else(PoisonError::into_inner).delay(self.outgoing.started.elapsed(), on_the_wire)
        });
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        writer.send_with(head.kind, head.version, &head.body, bytes).await
    }

    fn count(&mut self, bytes: u64) {
        self.literal += bytes;
        self.outgoing.literal.fetch_add(bytes, Ordering::Relaxed);
        self.outgoing.meter.sent(self.outgoing.dest, bytes);
    }
}

/// The bytes of gaps; nothing if the old content, which was verified, cannot be read any more.
fn prefix_of(old: &Kept, gaps: &[(u64, u64)]) -> Vec<u8> {
    let mut prefix = Vec::new();
    for (at, len) in gaps {
        let before = prefix.len();
        prefix.resize(before + usize::try_from(*len).unwrap_or(0), 0);
        if old.read_exact_at(*at, &mut prefix[before..]).is_err() {
            return Vec::new();
        }
    }
    prefix
}
