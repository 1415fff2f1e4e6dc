//! Frames on a QUIC stream: a type, a version, a length, a body. What the types mean is not known here.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};

use super::closed::Code;
use super::error::StreamError;
use super::vigil::Fate;

/// The envelope of a message: `{type u16, version u8, length u32}`, little endian. A reader skips a type it does not
/// know by its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub kind: u16,
    /// The version of that body's layout.
    pub version: u8,
    /// The body's length in bytes.
    pub len: u32,
}

impl Header {
    /// Bytes of an encoded header.
    pub const LEN: usize = 7;

    /// The bytes on the wire.
    pub fn encode(self) -> [u8; Self::LEN] {
        let [k0, k1] = self.kind.to_le_bytes();
        let [l0, l1, l2, l3] = self.len.to_le_bytes();
        [k0, k1, self.version, l0, l1, l2, l3]
    }

    /// The inverse of [`Header::encode`]; every seven bytes are a header.
    pub fn decode(bytes: [u8; Self::LEN]) -> Self {
        let [k0, k1, version, l0, l1, l2, l3] = bytes;
        Self { kind: u16::from_le_bytes([k0, k1]), version, len: u32::from_le_bytes([l0, l1, l2, l3]) }
    }
}

/// One message, undecoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the body is.
    pub kind: u16,
    /// The version of that body's layout.
    pub version: u8,
    /// The body. It may share its memory with packets that came together with it: copy what is kept for long.
    pub body: Bytes,
}

/// Cuts a stream of bytes into frames, however the bytes come. Bounded: no more than one body of the allowed length is
/// kept, besides the piece that was pushed last.
#[derive(Debug, Default)]
pub struct Assembler {
    input: Bytes,
    head: BytesMut,
    current: Option<(Header, BytesMut)>,
}

impl Assembler {
    /// Room that is reserved on an announced length alone; beyond it, memory follows the bytes that came.
    const TRUSTED_CAPACITY: usize = (1 << 20) + (64 << 10);

    /// The next bytes of the stream. To be called when [`Assembler::next`] gave `None`.
    pub fn push(&mut self, bytes: Bytes) {
        if self.input.is_empty() {
            self.input = bytes;
        } else {
            let mut joined = BytesMut::with_capacity(self.input.len() + bytes.len());
            joined.extend_from_slice(&self.input);
            joined.extend_from_slice(&bytes);
            self.input = joined.freeze();
        }
    }

    /// The next whole frame; `None` when more bytes are needed. A body of more than `max` bytes is an error before
    /// anything of it is kept, and the stream is of no use afterwards.
    pub fn next(&mut self, max: usize) -> Result<Option<Frame>, StreamError> {
        if self.current.is_none() {
            let missing = Header::LEN - self.head.len();
            let piece = self.input.split_to(missing.min(self.input.len()));
            self.head.extend_from_slice(&piece);
            let Ok(head) = <[u8; Header::LEN]>::try_from(&self.head[..]) else {
                return Ok(None);
            };
            let header = Header::decode(head);
            let len = to_usize(header.len);
            if len > max {
                let (len, max) = (u64::from(header.len), u64::try_from(max).unwrap_or(u64::MAX));
                return Err(StreamError::TooLarge { kind: header.kind, len, max });
            }
            self.head.clear();
            if self.input.len() >= len {
                // The usual case of a small message: it lies in one packet, and is not copied.
                let body = self.input.split_to(len);
                return Ok(Some(Frame { kind: header.kind, version: header.version, body }));
            }
            self.current = Some((header, BytesMut::with_capacity(len.min(Self::TRUSTED_CAPACITY))));
        }
        let Some((header, body)) = &mut self.current else {
            return Ok(None);
        };
        let missing = to_usize(header.len) - body.len();
        body.put((&mut self.input).take(missing));
        if body.len() < to_usize(header.len) {
            return Ok(None);
        }
        let (kind, version, body) = (header.kind, header.version, std::mem::take(body).freeze());
        self.current = None;
        Ok(Some(Frame { kind, version, body }))
    }

    /// Whether the stream may end here: nothing of a frame is waiting for its rest.
    pub fn at_boundary(&self) -> bool {
        self.current.is_none() && self.head.is_empty() && self.input.is_empty()
    }
}

/// The length of a body, as its header tells it.
fn len_of(kind: u16, len: usize) -> Result<u32, StreamError> {
    u32::try_from(len).map_err(|_| {
        let (len, max) = (u64::try_from(len).unwrap_or(u64::MAX), u64::from(u32::MAX));
        StreamError::TooLarge { kind, len, max }
    })
}

fn to_usize(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// The receiving end of a stream of frames.
#[derive(Debug)]
pub struct FrameReader {
    stream: RecvStream,
    fate: Fate,
    assembler: Assembler,
}

impl FrameReader {
    pub(super) fn new(stream: RecvStream, fate: Fate) -> Self {
        Self { stream, fate, assembler: Assembler::default() }
    }

    /// The next frame, of at most `max` bytes; `None` at the end of the stream. Cancel safe: what was received of a
    /// frame stays here when the future is dropped.
    pub async fn next(&mut self, max: usize) -> Result<Option<Frame>, StreamError> {
        loop {
            if let Some(frame) = self.assembler.next(max)? {
                return Ok(Some(frame));
            }
            match self.stream.read_chunk(usize::MAX, true).await.map_err(|e| read_error(e, &self.fate))? {
                Some(chunk) => self.assembler.push(chunk.bytes),
                None if self.assembler.at_boundary() => return Ok(None),
                None => return Err(StreamError::Truncated),
            }
        }
    }

    /// Tells the peer that no more is wanted on this stream; dropping the reader does it too.
    pub fn stop(mut self, code: Code) {
        // It fails only if the stream has ended already, which is what is wanted.
        let _ = self.stream.stop(code.to_wire());
    }
}

/// The sending end of a stream of frames. Dropped without [`FrameWriter::finish`], the stream is reset, so that a side
/// that failed half way never looks as if it were done.
#[derive(Debug)]
pub struct FrameWriter {
    stream: SendStream,
    fate: Fate,
    finished: bool,
}

/// A body up to this length is copied behind its header instead of travelling as a buffer of its own.
const SMALL_BODY: usize = 4 << 10;

impl FrameWriter {
    pub(super) fn new(stream: SendStream, fate: Fate) -> Self {
        Self { stream, fate, finished: false }
    }

    /// Sends one frame. Returns when the body is handed to QUIC, which is bounded by the send window: this is where a
    /// slow peer makes itself felt. Not cancel safe: after dropping the future, drop the writer.
    pub async fn send(&mut self, kind: u16, version: u8, body: Bytes) -> Result<(), StreamError> {
        self.send_with(kind, version, &[], body).await
    }

    /// Sends one frame whose body is `head` and then `tail`; a large `tail` is not copied.
    pub async fn send_with(&mut self, kind: u16, version: u8, head: &[u8], mut tail: Bytes) -> Result<(), StreamError> {
        let len = len_of(kind, head.len().saturating_add(tail.len()))?;
        let copied = if tail.len() <= SMALL_BODY { tail.split_off(0) } else { Bytes::new() };
        let mut front = BytesMut::with_capacity(Header::LEN + head.len() + copied.len());
        front.put_slice(&Header { kind, version, len }.encode());
        front.put_slice(head);
        front.put_slice(&copied);
        let mut pieces = [front.freeze(), tail];
        let used = if pieces[1].is_empty() { 1 } else { 2 };
        self.stream.write_all_chunks(&mut pieces[..used]).await.map_err(|e| write_error(e, &self.fate))
    }

    /// Sends frames one behind the other, small ones in one piece: `(kind, version, body)` each. Like [`FrameWriter::send`] else.
    pub async fn send_all(&mut self, frames: impl IntoIterator<Item = (u16, u8, Vec<u8>)>) -> Result<(), StreamError> {
        let mut pieces = Vec::new();
        let mut front = BytesMut::with_capacity(SMALL_BODY / 8);
        for (kind, version, body) in frames {
            front.put_slice(&Header { kind, version, len: len_of(kind, body.len())? }.encode());
            if body.len() <= SMALL_BODY {
                front.put_slice(&body);
            } else {
                pieces.extend([front.split().freeze(), Bytes::from(body)]);
            }
        }
        if !front.is_empty() {
            pieces.push(front.freeze());
        }
        self.stream.write_all_chunks(&mut pieces).await.map_err(|e| write_error(e, &self.fate))
    }

    /// Streams with a higher number are sent first; 0 at the start.
    pub fn set_priority(&self, priority: i32) {
        // It fails only on a stream that has ended.
        let _ = self.stream.set_priority(priority);
    }

    /// Ends the stream in order. The data is still on its way: see [`FrameWriter::finish_and_wait`] and
    /// `Connection::finish`.
    pub fn finish(mut self) -> Result<(), StreamError> {
        self.finished = true;
        self.stream.finish().map_err(|_| StreamError::Ended)
    }

    /// Ends the stream in order and waits until the peer's QUIC has all of it. That its program has read it, only its
    /// answer proves.
    pub async fn finish_and_wait(mut self) -> Result<(), StreamError> {
        self.finished = true;
        self.stream.finish().map_err(|_| StreamError::Ended)?;
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(StreamError::Stopped(code.into_inner())),
            Err(quinn::StoppedError::ConnectionLost(e)) => Err(self.fate.explain(e).into()),
            Err(quinn::StoppedError::ZeroRttRejected) => Err(StreamError::Ended),
        }
    }
}

impl Drop for FrameWriter {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.stream.reset(VarInt::from_u32(0));
        }
    }
}

fn read_error(error: ReadError, fate: &Fate) -> StreamError {
    match error {
        ReadError::Reset(code) => StreamError::Reset(code.into_inner()),
        ReadError::ConnectionLost(e) => fate.explain(e).into(),
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => StreamError::Ended,
    }
}

fn write_error(error: WriteError, fate: &Fate) -> StreamError {
    match error {
        WriteError::Stopped(code) => StreamError::Stopped(code.into_inner()),
        WriteError::ConnectionLost(e) => fate.explain(e).into(),
        WriteError::ClosedStream | WriteError::ZeroRttRejected => StreamError::Ended,
    }
}
