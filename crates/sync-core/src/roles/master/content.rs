//! Sends contents to one replica over a few streams at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::meter::Meter;
use super::outgoing::{Outgoing, StreamEvent};
use super::queue::Queue;
use super::source::Source;
use super::stream::Stream;
use crate::compress::AutoCompress;
use crate::options::Compress;
use crate::pace::Pace;
use crate::session::ContentRequest;
use crate::transport::{CONTENT_STREAMS, Connection};
use crate::wire::Described;

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

/// The content streams to one replica, from the first request on: most versions of a tree that is followed need none.
pub struct ContentSender {
    sending: Sending,
    connection: Connection,
    streams: Option<Streams>,
    is_read: bool,
}

struct Streams {
    outgoing: Arc<Outgoing>,
    events: mpsc::UnboundedReceiver<Box<StreamEvent>>,
    tasks: Vec<JoinHandle<()>>,
}

impl ContentSender {
    /// Streams that are opened when there is something to send.
    pub fn new(sending: Sending, connection: Connection) -> Self {
        Self { sending, connection, streams: None, is_read: false }
    }

    /// Queues a content. The queue holds what the replica asked for, which is bounded by what was offered, and so many bytes
    /// of what the replica told of its old files.
    pub fn request(&mut self, request: ContentRequest) {
        let Self { sending, connection, streams, is_read } = self;
        let streams = streams.get_or_insert_with(|| Streams::start(sending, connection, *is_read));
        let batch = streams.outgoing.batch();
        streams.change(|queue| queue.push(request, batch));
    }

    /// Takes what the replica tells of an old file.
    pub fn described(&self, described: Described) {
        let Some(Streams { outgoing, .. }) = &self.streams else { return };
        if outgoing.queue().answer(described) {
            outgoing.more.notify_waiters();
        }
    }

    /// The source was read to its end.
    pub fn source_read(&mut self) {
        self.is_read = true;
        if let Some(streams) = &self.streams {
            streams.change(|queue| queue.is_read = true);
        }
    }

    /// What the streams tell; never, as long as there are none. Cancel safe.
    pub async fn event(&mut self) -> StreamEvent {
        let told = match &mut self.streams {
            // They hold on to the other end.
            Some(streams) => streams.events.recv().await,
            None => None,
        };
        match told {
            Some(event) => *event,
            None => std::future::pending().await,
        }
    }

    /// Ends the streams in order, once what is queued is sent.
    pub async fn finish(&mut self) {
        let Some(streams) = &mut self.streams else { return };
        streams.change(|queue| queue.is_over = true);
        for task in streams.tasks.drain(..) {
            let _ = task.await;
        }
    }

    /// Breaks the streams off, unless they have ended; returns how much they sent.
    pub fn stop(&self) -> Sent {
        let Some(Streams { outgoing, tasks, .. }) = &self.streams else { return Sent::default() };
        tasks.iter().for_each(JoinHandle::abort);
        let Outgoing { literal, compressed, copied, resumed, .. } = &**outgoing;
        let [literal, compressed, copied, resumed] =
            [literal, compressed, copied, resumed].map(|counter| counter.load(Ordering::Relaxed));
        Sent { literal, compressed, copied, resumed }
    }
}

impl Streams {
    fn start(sending: &Sending, connection: &Connection, is_read: bool) -> Self {
        let Sending { dest, source, meter, compress, bandwidth, estimates } = sending;
        let (tell, events) = mpsc::unbounded_channel();
        let outgoing = Arc::new(Outgoing {
            dest: *dest,
            source: Arc::clone(source),
            meter: Arc::clone(meter),
            queue: Mutex::default(),
            more: Notify::new(),
            events: tell,
            compress: choose(*compress, connection),
            auto: Mutex::new(AutoCompress::new()),
            pace: bandwidth.map(|rate| Mutex::new(Pace::new(rate))),
            started: Instant::now(),
            estimates: *estimates,
            literal: AtomicU64::new(0),
            compressed: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
        });
        let run = |stream| {
            let (outgoing, connection) = (Arc::clone(&outgoing), connection.clone());
            // A stream that breaks is seen on the control stream as well, which tells why.
            tokio::spawn(async move { drop(Stream::run(outgoing, connection, stream).await) })
        };
        outgoing.queue().is_read = is_read;
        let tasks = (0..CONTENT_STREAMS).map(run).collect();
        Self { outgoing, events, tasks }
    }

    fn change(&self, change: impl FnOnce(&mut Queue)) {
        change(&mut self.outgoing.queue());
        self.outgoing.more.notify_waiters();
    }
}

/// The loopback interface outruns every compressor, and both ends share the cores it would take.
pub fn choose(compress: Compress, connection: &Connection) -> Compress {
    if saves_no_bytes(compress, connection) { Compress::Never } else { compress }
}

/// Whether it is left to us how many bytes are sent, and they cost less than the work that would save some.
pub fn saves_no_bytes(compress: Compress, connection: &Connection) -> bool {
    compress == Compress::Auto && connection.remote().ip().is_loopback()
}
