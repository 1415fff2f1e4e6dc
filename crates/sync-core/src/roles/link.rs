//! What both roles do with a connection: a control stream of messages, which is written in a task of its own, so that neither
//! side ever waits to write while the other waits to write too.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::index::IndexError;
use crate::session::ProtocolError;
use crate::transport::{Code, Connection, Frame, FrameReader, FrameWriter, StreamError};
use crate::wire::{Envelope, MAX_MESSAGE, Packer, ToMaster, ToReplica, WireError};

/// Bytes of messages after which a sender with more of them waits.
const MOST_QUEUED: usize = 1 << 20;

/// Bytes of messages that are written in one piece, or a longer one.
const TOGETHER: usize = 64 << 10;

/// Why a session broke.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The network, or the other side.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The other side sent nonsense.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The other side sent sense at the wrong time.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// Our index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The other side ended the stream in the middle of the session.
    #[error("the other side ended the session early")]
    Ended,
    /// The process is asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The source failed, and said why.
    #[error("the source could not be read")]
    NoSource,
    /// Our side failed.
    #[error("{0}")]
    Source(String),
    /// The index has another version by now.
    #[error("a newer version came before this one was told; it is brought that one")]
    Superseded,
    /// It is for a person to decide whether to go on.
    #[error("{0}")]
    Held(String),
    /// Our tree is held, and the replica needs something that is gone from it.
    #[error("{0}")]
    TreeHeld(String),
    /// The share is another master's: which, and what to do.
    #[error("{0}")]
    NotOwner(String),
}

impl LinkError {
    /// What to tell the other side.
    pub fn code(&self) -> Code {
        match self {
            Self::Wire(_) | Self::Protocol(_) => Code::Protocol,
            Self::Interrupted | Self::NoSource | Self::Superseded => Code::Cancelled,
            Self::NotOwner(_) => Code::NotOwner,
            _ => Code::Internal,
        }
    }
}

/// A message that can come in.
pub trait Incoming: Sized + Send + 'static {
    /// Decodes one; `None` for a type that is to be skipped.
    fn decode(frame: &Frame) -> Result<Option<Self>, WireError>;
}

impl Incoming for ToMaster {
    fn decode(frame: &Frame) -> Result<Option<Self>, WireError> {
        Self::decode(frame.kind, frame.version, &frame.body)
    }
}

impl Incoming for ToReplica {
    fn decode(frame: &Frame) -> Result<Option<Self>, WireError> {
        Self::decode(frame.kind, frame.version, &frame.body)
    }
}

/// Whether a message may be compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// If it pays.
    Packed,
    /// Never.
    Plain,
}

/// What is queued to be written.
#[derive(Default)]
struct Backlog {
    bytes: AtomicUsize,
    shorter: Notify,
}

/// The control stream.
pub struct Control<M> {
    reader: FrameReader,
    outgoing: mpsc::UnboundedSender<(Envelope, Packing)>,
    backlog: Arc<Backlog>,
    writer: JoinHandle<Result<(), StreamError>>,
    message: PhantomData<fn() -> M>,
}

impl<M: Incoming> Control<M> {
    /// Opens the stream: the master's part.
    pub async fn open(connection: &Connection) -> Result<Self, LinkError> {
        let (writer, reader) = connection.open_bi().await?;
        Ok(Self::start(writer, reader))
    }

    /// Waits for the stream: the replica's part.
    pub async fn accept(connection: &Connection) -> Result<Self, LinkError> {
        let (writer, reader) = connection.accept_bi().await?;
        Ok(Self::start(writer, reader))
    }

    fn start(writer: FrameWriter, reader: FrameReader) -> Self {
        // Control goes before content.
        writer.set_priority(1);
        // Whoever has much to say looks at the backlog; the rest is bounded by the manifest, which is in memory anyway.
        let (outgoing, mut to_write) = mpsc::unbounded_channel::<(Envelope, Packing)>();
        let backlog = Arc::new(Backlog::default());
        let left = Arc::clone(&backlog);
        let writer = tokio::spawn(async move {
            let (mut writer, mut packer) = (writer, Packer::default());
            let mut batch = Vec::new();
            while let Some(first) = to_write.recv().await {
                let (mut next, mut len) = (Some(first), 0);
                // What a change consists of goes in one piece.
                while let Some((message, packing)) = next {
                    len += message.body.len();
                    let Envelope { kind, version, body } = match packing {
                        Packing::Packed => packer.pack(message),
                        Packing::Plain => message,
                    };
                    batch.push((kind, version, body));
                    next = if len < TOGETHER { to_write.try_recv().ok() } else { None };
                }
                writer.send_all(batch.drain(..)).await?;
                left.bytes.fetch_sub(len, Ordering::Relaxed);
                left.shorter.notify_one();
            }
            writer.finish()
        });
        Self { reader, outgoing, backlog, writer, message: PhantomData }
    }

    /// Whether more is queued than is worth having in memory ahead of the network.
    pub fn is_backed_up(&self) -> bool {
        self.backlog.bytes.load(Ordering::Relaxed) > MOST_QUEUED
    }

    /// The next message; `None` if something that was queued is written before one comes, and `or_room` asks for that.
    /// Cancel safe.
    pub async fn next_or_room(&mut self, or_room: bool) -> Option<Result<M, LinkError>> {
        tokio::select! {
            message = next(&mut self.reader) => Some(message),
            () = self.backlog.shorter.notified(), if or_room => None,
        }
    }

    /// The next message.
    #[cfg(test)]
    pub async fn next(&mut self) -> Result<M, LinkError> {
        next(&mut self.reader).await
    }

    /// Queues a message, which is compressed if that pays.
    pub fn send(&self, message: Envelope) -> Result<(), LinkError> {
        self.send_as(message, Packing::Packed)
    }

    /// Queues a message.
    pub fn send_as(&self, message: Envelope, packing: Packing) -> Result<(), LinkError> {
        self.backlog.bytes.fetch_add(message.body.len(), Ordering::Relaxed);
        self.outgoing.send((message, packing)).map_err(|_| LinkError::Ended)
    }

    /// Ends our half of the stream, and waits until the other side has ended its own, or is gone.
    pub async fn read_to_end(self) {
        let Self { outgoing, mut reader, .. } = self;
        drop(outgoing);
        while next::<M>(&mut reader).await.is_ok() {}
    }

    /// Sends what is queued and ends our half of the stream.
    pub async fn finish(self) -> Result<(), LinkError> {
        // The other side may say more until then, and is not told that nobody wants to hear it.
        let Self { outgoing, writer, reader: _reader, .. } = self;
        drop(outgoing);
        Ok(writer.await.unwrap_or(Err(StreamError::Ended))?)
    }
}

/// Cancel safe.
async fn next<M: Incoming>(reader: &mut FrameReader) -> Result<M, LinkError> {
    loop {
        let frame = reader.next(MAX_MESSAGE).await?.ok_or(LinkError::Ended)?;
        if let Some(message) = M::decode(&frame)? {
            return Ok(message);
        }
    }
}
