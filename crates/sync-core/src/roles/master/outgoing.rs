//! What waits to be sent to one replica, and what the streams that send it share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};

use super::meter::Meter;
use super::packing::Place;
use super::queue::{Job, Next, Queue, kinds};
use super::source::Source;
use crate::compress::{AutoCompress, Observation};
use crate::fs::ReadError;
use crate::hash::Digest;
use crate::options::Compress;
use crate::pace::Pace;
use crate::path::RelPath;
use crate::session::ContentRequest;
use crate::wire::Describe;

/// How long a stream waits so that its contents go in the same order and the same batches as those of others: since anything came, and in
/// all.
const PATIENCE: Duration = Duration::from_millis(100);
const MOST_PATIENCE: Duration = Duration::from_millis(500);

/// A batch goes off at this size.
pub const BATCH: u64 = 512 << 10;

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

/// What it would take to send a content.
pub struct Estimate {
    /// Which.
    pub seq: u64,
    /// Its file.
    pub path: RelPath,
    /// Bytes to send.
    pub literal: u64,
}

/// What a session hears of its streams.
pub enum StreamEvent {
    /// A content could not be sent.
    Failed(SendFailure),
    /// A content would be sent, if that were not all that is asked for.
    Estimated(Estimate),
    /// The replica is to be asked about an old file, of so many bytes.
    Asks(Describe, u64),
}

/// Everything the streams share.
pub struct Outgoing {
    /// Which destination, for the meter.
    pub dest: usize,
    /// Where contents come from.
    pub source: Arc<Source>,
    /// Progress.
    pub meter: Arc<Meter>,
    /// What waits.
    pub queue: Mutex<Queue>,
    /// Rings when something was added.
    pub more: Notify,
    /// Where to tell what the session is to know. In boxes, because a channel has room for 32 of them from the start.
    pub events: mpsc::UnboundedSender<Box<StreamEvent>>,
    /// Compression on the wire.
    pub compress: Compress,
    /// Whether it pays, if that is to be found out.
    pub auto: Mutex<AutoCompress>,
    /// The rate, if there is one.
    pub pace: Option<Mutex<Pace>>,
    /// When the pace began.
    pub started: Instant,
    /// Whether all that is asked for is what it would take.
    pub estimates: bool,
    /// Content bytes sent, before compression.
    pub literal: AtomicU64,
    /// What they took after it.
    pub compressed: AtomicU64,
    /// Content bytes that old files have.
    pub copied: AtomicU64,
    /// Content bytes that an interrupted push had sent before.
    pub resumed: AtomicU64,
}

impl Outgoing {
    /// What waits.
    pub fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the stream with this number, at this place of what is compressed, does next; waits for it. `None` when nothing will come any
    /// more.
    pub async fn next(&self, batch: u64, stream: usize, place: Place) -> Option<Job> {
        let packing = &self.source.packing;
        let batched = |first: &Digest| packing.batch(place, first);
        let (mut is_patient, mut waits_since) = (true, None);
        loop {
            // Listening begins before the look, so that nothing comes unheard in between.
            let mut more = std::pin::pin!(self.more.notified());
            more.as_mut().enable();
            let is_in_order = self.is_in_order();
            let next = {
                let mut queue = self.queue();
                let kinds = kinds(self.is_compressed(), is_in_order, stream);
                match queue.next(batch, kinds, if is_patient { Some(&batched) } else { None }) {
                    Next::Job(job) => {
                        if let Job::Small(requests) = &job
                            && is_in_order
                        {
                            packing.batched(place, requests);
                        }
                        return Some(job);
                    }
                    Next::Nothing if queue.is_over => return None,
                    next => next,
                }
            };
            match next {
                Next::Soon => {
                    let now = tokio::time::Instant::now();
                    let until = *waits_since.get_or_insert(now) + MOST_PATIENCE;
                    if tokio::time::timeout_at(until.min(now + PATIENCE), more).await.is_err() || now >= until {
                        is_patient = false;
                        self.queue().give_up();
                    }
                }
                _ => more.await,
            }
        }
    }

    /// Whether contents go in the order of the tree, so that all destinations get them in the same one: then what is compressed for one
    /// is right for the others.
    pub fn is_in_order(&self) -> bool {
        self.source.packing.is_shared() && self.is_compressed()
    }

    /// Whether what is sent now is compressed.
    fn is_compressed(&self) -> bool {
        match self.compress {
            Compress::Never => false,
            Compress::Zstd(_) => true,
            Compress::Auto => self.auto().is_on(),
        }
    }

    /// Whether compression pays.
    pub fn auto(&self) -> MutexGuard<'_, AutoCompress> {
        self.auto.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes how the link was. What the streams take of the queue may be something else afterwards.
    pub fn learn(&self, seen: Observation) {
        let mut auto = self.auto();
        let before = auto.is_on();
        if auto.observe(seen) != before {
            self.more.notify_waiters();
        }
    }

    /// The largest frame that keeps to the rate.
    pub fn most(&self, size: usize) -> usize {
        let Some(pace) = &self.pace else { return size };
        let piece = pace.lock().unwrap_or_else(PoisonError::into_inner).piece();
        size.min(usize::try_from(piece).unwrap_or(size)).max(4096)
    }

    /// Most bytes of files in one batch.
    pub fn batch(&self) -> u64 {
        self.most(BATCH as usize) as u64
    }

    /// A small file that has to be compared like a large one.
    pub fn ask_about(&self, request: ContentRequest) {
        self.queue().push_big(request);
        self.more.notify_waiters();
    }

    /// A content was sent, of which the replica has so much; or would have been.
    pub fn done(&self, request: &ContentRequest, literal: u64, copied: u64) {
        self.copied.fetch_add(copied, Ordering::Relaxed);
        if self.estimates {
            let (seq, path) = (request.seq, request.file.path.clone());
            self.tell(StreamEvent::Estimated(Estimate { seq, path, literal }));
        }
    }

    /// A content could not be read.
    pub fn fail(&self, request: &ContentRequest, error: &ReadError) {
        let reason = match error {
            ReadError::Fs(error) => error.to_string(),
            _ => "it changed while it was sent; push again when it rests".to_owned(),
        };
        let changed = !matches!(error, ReadError::Fs(_));
        let failure = SendFailure { seq: request.seq, path: request.file.path.clone(), reason, changed };
        self.tell(StreamEvent::Failed(failure));
    }

    /// The session is to know.
    pub fn tell(&self, event: StreamEvent) {
        // If it is over, nobody needs to.
        let _ = self.events.send(Box::new(event));
    }
}

#[cfg(test)]
mod tests;
