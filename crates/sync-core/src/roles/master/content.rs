//! Sends contents to one replica over a few streams at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::meter::Meter;
use super::outgoing::{Outgoing, StreamEvent};
use super::source::Source;
use super::stream::Stream;
use crate::compress::AutoCompress;
use crate::options::Compress;
use crate::pace::Pace;
use crate::session::ContentRequest;
use crate::transport::Connection;
use crate::wire::Described;

/// Streams that carry content: enough to keep both sides' cores busy.
const STREAMS: usize = 2;

/// What a content sender has sent so far, or would have.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Content bytes, before compression.
    pub literal: u64,
    /// What they took after it.
    pub compressed: u64,
    /// Content bytes that old files have.
    pub copied: u64,
    /// Content bytes of parts that an interrupted push had left.
    pub resumed: u64,
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
    /// Whether all that is asked for is what it would take: then nothing is sent.
    pub estimates: bool,
}

/// The content streams to one replica.
pub struct ContentSender {
    outgoing: Arc<Outgoing>,
    connection: Connection,
    /// None until something is asked for: most versions of a tree that is followed need none.
    tasks: Vec<JoinHandle<()>>,
}

impl ContentSender {
    /// Streams that are opened when there is something to send.
    pub fn new(sending: Sending, connection: &Connection, events: mpsc::UnboundedSender<Box<StreamEvent>>) -> Self {
        let Sending { dest, source, meter, compress, bandwidth, estimates } = sending;
        let outgoing = Arc::new(Outgoing {
            dest,
            source,
            meter,
            queue: Mutex::default(),
            more: Notify::new(),
            events,
            compress: choose(compress, connection),
            auto: Mutex::new(AutoCompress::new()),
            pace: bandwidth.map(|rate| Mutex::new(Pace::new(rate))),
            started: Instant::now(),
            estimates,
            literal: AtomicU64::new(0),
            compressed: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
        });
        Self { outgoing, connection: connection.clone(), tasks: Vec::new() }
    }

    fn start(&mut self) {
        self.tasks.extend((0..STREAMS).map(|stream| {
            let (outgoing, connection) = (Arc::clone(&self.outgoing), self.connection.clone());
            // A stream that breaks is seen on the control stream as well, which tells why.
            tokio::spawn(async move { drop(Stream::run(outgoing, connection, stream).await) })
        }));
    }

    /// Queues a content. The queue holds what the replica asked for, which is bounded by what was offered, and so many bytes
    /// of what the replica told of its old files.
    pub fn request(&mut self, request: ContentRequest) {
        let batch = self.outgoing.batch();
        self.outgoing.queue().push(request, batch);
        if self.tasks.is_empty() {
            self.start();
        }
        self.outgoing.more.notify_waiters();
    }

    /// Takes what the replica tells of an old file.
    pub fn described(&self, described: Described) {
        if self.outgoing.queue().answer(described) {
            self.outgoing.more.notify_waiters();
        }
    }

    /// The source was read to its end.
    pub fn source_read(&self) {
        self.outgoing.queue().is_read = true;
        self.outgoing.more.notify_waiters();
    }

    /// Ends the streams in order, once what is queued is sent.
    pub async fn finish(&mut self) {
        self.outgoing.queue().is_over = true;
        self.outgoing.more.notify_waiters();
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
    }

    /// Breaks the streams off, unless they have ended; returns how much they sent.
    pub fn stop(&self) -> Sent {
        self.tasks.iter().for_each(JoinHandle::abort);
        let Outgoing { literal, compressed, copied, resumed, .. } = &*self.outgoing;
        let [literal, compressed, copied, resumed] =
            [literal, compressed, copied, resumed].map(|counter| counter.load(Ordering::Relaxed));
        Sent { literal, compressed, copied, resumed }
    }
}

/// The loopback interface outruns every compressor, and both ends share the cores it would take.
pub fn choose(compress: Compress, connection: &Connection) -> Compress {
    match compress {
        Compress::Auto if connection.remote().ip().is_loopback() => Compress::Never,
        other => other,
    }
}
