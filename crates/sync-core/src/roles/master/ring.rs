//! Contents that were just hashed and are still in memory: what is new everywhere is read from disk once.
//!
//! Bounded. The reader waits a little for the fastest session to take something; a session that is slow, hung or gone
//! delays nobody, it reads from disk later.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::HashMap;

use crate::hash::Digest;

/// Most bytes kept, with what it takes to keep each content.
const CAPACITY: usize = 8 << 20;

/// The same when somebody is far away. A replica asks for a content a round trip after it was offered, so no more than this is read
/// in a round trip: with [`CAPACITY`] a deploy over a link of 50 ms takes an eighth longer.
const FAR_CAPACITY: usize = 2 * CAPACITY;

/// What a content takes beside its bytes: its places here and in the allocator.
const EACH: usize = 200;

/// Places of contents that are gone, beyond as many as there are contents.
const STALE: usize = 64;

/// How long the reader waits for somebody to take something before it goes on without, and all that does not fit is read again. The first
/// content is asked for some four round trips after the connection was begun, and a look at a small tree takes less.
const PATIENCE: Duration = Duration::from_millis(400);

/// How long a content is kept at most: whoever has not taken it by then is slow, or needs it not, and a tree that is mirrored for
/// months shall not hold as many of them as there is room for.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// The contents, by digest.
#[derive(Default)]
pub struct Ring {
    inner: Mutex<Inner>,
    taken: Condvar,
    /// Whether just one session takes: then what it took is of no more use.
    single: bool,
}

#[derive(Default)]
struct Inner {
    contents: HashMap<Digest, Content>,
    /// Numbers and digests of contents, the oldest first. A place is of use while a content has that number.
    order: VecDeque<(u64, Digest)>,
    bytes: usize,
    /// Whether somebody who takes is far away.
    reaches_far: bool,
    /// How many were added.
    added: u64,
    /// The number of the latest one that somebody took.
    latest_taken: u64,
    /// Nobody takes anything: do not wait again until somebody does.
    ignored: bool,
    /// Whether the reader waits. Waking nobody costs a system call as well.
    waiting: bool,
}

struct Content {
    bytes: Bytes,
    /// Counts contents from 1, in the order in which they were added.
    number: u64,
    taken: bool,
    since: Instant,
}

impl Ring {
    /// A ring for this number of sessions.
    pub fn new(sessions: usize) -> Self {
        Self { single: sessions == 1, ..Self::default() }
    }

    /// Somebody who takes is far away.
    pub fn reach_far(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).reaches_far = true;
    }

    /// Adds a content; waits while the ring is full of contents that nobody took yet, but never for long, and not for one
    /// that somebody passed over: a replica has it, or has enough of it to be told only the rest.
    pub fn put(&self, digest: Digest, content: Bytes) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        inner.forget_old(now);
        while inner.bytes + EACH + content.len() > inner.capacity() && !inner.order.is_empty() {
            if inner.evict_done() {
                continue;
            }
            if inner.ignored {
                inner.evict();
                continue;
            }
            inner.waiting = true;
            let (next, timeout) = self.taken.wait_timeout(inner, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            inner = next;
            inner.waiting = false;
            inner.ignored = timeout.timed_out();
        }
        inner.insert(digest, content, now);
    }

    /// The content, if it is still here.
    pub fn take(&self, digest: &Digest) -> Option<Bytes> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.ignored = false;
        let content = inner.contents.get_mut(digest)?;
        content.taken = true;
        let (number, content) = (content.number, content.bytes.clone());
        inner.latest_taken = inner.latest_taken.max(number);
        if self.single {
            inner.forget(digest);
        }
        if inner.waiting {
            self.taken.notify_one();
        }
        Some(content)
    }
}

impl Inner {
    fn capacity(&self) -> usize {
        if self.reaches_far { FAR_CAPACITY } else { CAPACITY }
    }

    fn insert(&mut self, digest: Digest, content: Bytes, since: Instant) {
        self.bytes += EACH + content.len();
        self.added += 1;
        let content = Content { bytes: content, number: self.added, taken: false, since };
        if let Some(old) = self.contents.insert(digest, content) {
            self.bytes -= EACH + old.bytes.len();
        }
        self.order.push_back((self.added, digest));
        if self.order.len() > 2 * self.contents.len() + STALE {
            let contents = &self.contents;
            self.order.retain(|(number, digest)| contents.get(digest).is_some_and(|content| content.number == *number));
        }
    }

    /// Drops what was kept for long enough, and shrinks with that.
    fn forget_old(&mut self, now: Instant) {
        let is_old = |content: &Content| now.duration_since(content.since) >= KEPT_FOR;
        while let Some((number, digest)) = self.order.front()
            && self.at(*number, digest).is_none_or(is_old)
        {
            self.evict();
        }
        if self.contents.capacity() > 8 * (self.contents.len() + STALE) {
            self.contents.shrink_to_fit();
            self.order.shrink_to_fit();
        }
    }

    /// Drops the oldest content if somebody has taken it, or a later one: the others will soon, or are slow.
    fn evict_done(&mut self) -> bool {
        let oldest = self.order.front().map(|(number, digest)| self.at(*number, digest));
        let is_done = |content: &Content| content.taken || content.number < self.latest_taken;
        let done = oldest.is_some_and(|content| content.is_none_or(is_done));
        if done {
            self.evict();
        }
        done
    }

    fn evict(&mut self) {
        if let Some((number, digest)) = self.order.pop_front()
            && self.at(number, &digest).is_some()
        {
            self.forget(&digest);
        }
    }

    /// The content of a place in the order, unless it is gone or was put in again since.
    fn at(&self, number: u64, digest: &Digest) -> Option<&Content> {
        self.contents.get(digest).filter(|content| content.number == number)
    }

    /// Its place in the order stays, and counts for nothing.
    fn forget(&mut self, digest: &Digest) {
        if let Some(content) = self.contents.remove(digest) {
            self.bytes -= EACH + content.bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_bound_when_everything_is_taken() {
        let ring = Ring::default();
        for i in 0..1000u32 {
            let digest = Digest::of(&i.to_le_bytes());
            // Small ones and then big ones: one eviction does not make room enough.
            ring.put(digest, Bytes::from(vec![0; if i < 900 { 10 << 10 } else { 1 << 20 }]));
            assert!(ring.take(&digest).is_some());
            assert!(ring.inner.lock().unwrap().bytes <= CAPACITY);
        }
    }

    #[test]
    fn more_is_kept_for_who_is_far_away() {
        let ring = Ring::default();
        ring.reach_far();
        let content = |i: u8| (Digest::of(&[i]), Bytes::from(vec![i; CAPACITY / 2 - EACH]));
        (0..4).map(content).for_each(|(digest, content)| ring.put(digest, content));
        assert_eq!(ring.inner.lock().unwrap().bytes, FAR_CAPACITY);
        (0..4).for_each(|i| assert!(ring.take(&content(i).0).is_some()));
        (4..9).map(content).for_each(|(digest, content)| ring.put(digest, content));
        assert_eq!(ring.inner.lock().unwrap().bytes, FAR_CAPACITY);
    }

    #[test]
    fn what_is_old_is_forgotten_with_its_places() {
        let mut inner = Inner::default();
        let begun = Instant::now();
        for i in 0..10_000u32 {
            let since = begun + KEPT_FOR * i / 10_000;
            inner.insert(Digest::of(&i.to_le_bytes()), Bytes::from_static(b"x"), since);
        }
        // One that came again is as young as that.
        inner.insert(Digest::of(&0u32.to_le_bytes()), Bytes::from_static(b"x"), begun + KEPT_FOR);
        inner.forget_old(begun + KEPT_FOR * 3 / 2);
        assert_eq!((inner.contents.len(), inner.bytes), (5000, 5000 * (EACH + 1)));
        assert!(inner.order.len() <= inner.contents.len() + STALE);
        inner.forget_old(begun + KEPT_FOR * 2);
        assert_eq!((inner.contents.len(), inner.order.len(), inner.bytes), (0, 0, 0));
        assert!(inner.contents.capacity() <= STALE && inner.order.capacity() <= STALE);
    }

    #[test]
    fn what_it_takes_to_keep_a_content_counts() {
        let ring = Ring::default();
        for i in 0..50_000u32 {
            ring.put(Digest::of(&i.to_le_bytes()), Bytes::from_static(b"x"));
        }
        assert!(ring.inner.lock().unwrap().contents.len() <= CAPACITY / EACH);
    }

    #[test]
    fn what_was_taken_at_once_leaves_nothing_behind() {
        // Whether one among them is taken by nobody.
        for passed_over in [false, true] {
            let ring = Ring::new(1);
            if passed_over {
                ring.put(Digest::of(b"nobody"), Bytes::from_static(b"x"));
            }
            for i in 0..1000u32 {
                let digest = Digest::of(&i.to_le_bytes());
                ring.put(digest, Bytes::from_static(b"x"));
                assert!(ring.take(&digest).is_some());
                assert!(ring.inner.lock().unwrap().order.len() <= 2 * 2 + STALE);
            }
            let inner = ring.inner.lock().unwrap();
            let left = usize::from(passed_over);
            assert_eq!((inner.contents.len(), inner.bytes), (left, left * (EACH + 1)));
        }
    }

    #[test]
    fn what_is_put_in_again_is_as_old_as_that() {
        let ring = Ring::new(1);
        let [first, second, last] = [b"1", b"2", b"3"].map(|text| Digest::of(text));
        let half = || Bytes::from(vec![0; CAPACITY / 2 - EACH]);
        ring.put(first, half());
        assert!(ring.take(&first).is_some());
        ring.put(second, half());
        ring.put(first, half());
        // The place that the first had is passed over; the second has to go.
        ring.put(last, half());
        assert!(ring.take(&second).is_none() && ring.take(&first).is_some() && ring.take(&last).is_some());
    }

    /// Every other one is at the replica already, and nobody ever comes for it.
    #[test]
    fn what_is_passed_over_is_not_waited_for() {
        for sessions in [1, 2] {
            let ring = Ring::new(sessions);
            for i in 0..100u32 {
                ring.put(Digest::of(&i.to_le_bytes()), Bytes::from(vec![0; 1 << 20]));
                assert!(!ring.inner.lock().unwrap().ignored, "it waited in vain for {i}");
                if i % 2 == 1 {
                    assert!(ring.take(&Digest::of(&i.to_le_bytes())).is_some());
                }
            }
        }
    }

    #[test]
    fn keeps_what_fits_and_never_waits_for_nobody() {
        let ring = Ring::default();
        let started = std::time::Instant::now();
        for i in 0..100u32 {
            ring.put(Digest::of(&i.to_le_bytes()), Bytes::from(vec![0; 1 << 20]));
        }
        assert!(started.elapsed() < PATIENCE * 10, "waits once, not every time");
        assert!(ring.take(&Digest::of(&99u32.to_le_bytes())).is_some());
        assert!(ring.take(&Digest::of(&0u32.to_le_bytes())).is_none());
        assert!(ring.inner.lock().unwrap().bytes <= CAPACITY);
    }
}
