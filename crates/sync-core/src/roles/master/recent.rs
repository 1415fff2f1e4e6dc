//! What was made for one destination and the others will soon ask for: made once, and kept within a bound of bytes and of time.

use std::collections::VecDeque;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::HashMap;

/// What something takes beside its bytes: its places here and in the allocator.
const EACH: usize = 300;

/// How long something is kept at most: who has not asked for it by then is far behind, and what is on disk may be something else that
/// its times do not tell of.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// Places that are kept for what will come.
const FEW: usize = 64;

type Slot = Arc<Mutex<Option<Bytes>>>;

/// What was made lately, by key.
pub struct Recent<K> {
    inner: Mutex<Inner<K>>,
}

struct Inner<K> {
    slots: HashMap<K, Slot>,
    /// The oldest first, with what it counts and since when it is here.
    order: VecDeque<(K, usize, Instant)>,
    bytes: usize,
    capacity: usize,
}

impl<K: Copy + Eq + Hash> Recent<K> {
    /// Nothing, with room for so many bytes, those that it takes to keep each thing included.
    pub fn new(capacity: usize) -> Self {
        let inner = Inner { slots: HashMap::default(), order: VecDeque::new(), bytes: 0, capacity };
        Self { inner: Mutex::new(inner) }
    }

    /// What has this key, and at most `size` bytes; `make` makes it if nobody has. Whoever comes meanwhile waits for that.
    ///
    /// # Errors
    /// Those of `make`: nothing is kept then, and the next one who asks tries again.
    pub fn once<E>(&self, key: K, size: usize, make: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        let slot = self.inner().slot(key, size, Instant::now());
        let mut kept = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = &*kept {
            return Ok(bytes.clone());
        }
        match make() {
            Ok(bytes) => {
                *kept = Some(bytes.clone());
                Ok(bytes)
            }
            Err(error) => {
                drop(kept);
                self.inner().forget(&key, &slot);
                Err(error)
            }
        }
    }

    /// What has this key, if somebody has made it.
    pub fn get(&self, key: &K) -> Option<Bytes> {
        let slot = Arc::clone(self.inner().slots.get(key)?);
        slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is kept, or being made.
    pub fn has(&self, key: &K) -> bool {
        self.inner().slots.contains_key(key)
    }

    /// Gives up what was kept for long enough.
    pub fn forget_old(&self) {
        self.inner().forget_old(Instant::now());
    }

    fn inner(&self) -> MutexGuard<'_, Inner<K>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash> Inner<K> {
    fn slot(&mut self, key: K, size: usize, now: Instant) -> Slot {
        self.forget_old(now);
        if let Some(slot) = self.slots.get(&key) {
            return Arc::clone(slot);
        }
        let size = size.saturating_add(EACH);
        while self.bytes.saturating_add(size) > self.capacity && !self.order.is_empty() {
            self.forget_oldest();
        }
        self.bytes = self.bytes.saturating_add(size);
        self.order.push_back((key, size, now));
        Arc::clone(self.slots.entry(key).or_default())
    }

    /// Drops what was kept for long enough, and shrinks with that.
    fn forget_old(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(.., since)| now.duration_since(*since) >= KEPT_FOR) {
            self.forget_oldest();
        }
        if self.slots.capacity() > 8 * (self.slots.len() + FEW) {
            self.slots.shrink_to_fit();
            self.order.shrink_to_fit();
        }
    }

    /// Drops what was not made.
    fn forget(&mut self, key: &K, slot: &Slot) {
        if self.slots.get(key).is_some_and(|kept| Arc::ptr_eq(kept, slot))
            && let Some(at) = self.order.iter().rposition(|(kept, ..)| kept == key)
            && let Some((_, freed, _)) = self.order.remove(at)
        {
            self.slots.remove(key);
            self.bytes -= freed;
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((oldest, freed, _)) = self.order.pop_front() {
            self.slots.remove(&oldest);
            self.bytes -= freed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: usize = 1 << 20;

    #[test]
    fn a_thing_is_made_once_unless_that_failed_and_what_is_kept_is_bounded() {
        let recent = Recent::new(CAPACITY);
        let thing = |i: u32| Bytes::from(i.to_le_bytes().repeat(1000));
        let fails = |i| recent.once(i, 4000, || Err("no"));
        assert!(fails(0).is_err() && recent.get(&0).is_none() && recent.inner().bytes == 0);
        for i in 0..1000 {
            assert_eq!(recent.once(i, 4000, || Ok::<_, ()>(thing(i))), Ok(thing(i)));
            assert_eq!(fails(i), Ok(thing(i)));
            assert_eq!(recent.get(&i), Some(thing(i)));
            let inner = recent.inner();
            assert!(inner.bytes <= CAPACITY && inner.bytes == inner.slots.len() * (4000 + EACH));
        }
        let before = recent.inner().bytes;
        assert!(fails(0).is_err(), "the oldest has gone");
        let mut inner = recent.inner();
        assert!(inner.bytes <= before && inner.bytes == inner.slots.len() * (4000 + EACH));
        inner.forget_old(Instant::now() + KEPT_FOR);
        assert_eq!((inner.slots.len(), inner.order.len(), inner.bytes), (0, 0, 0));
        assert!(inner.slots.capacity() <= 8 * FEW && inner.order.capacity() <= 8 * FEW);
    }

    #[test]
    fn who_comes_while_it_is_made_waits_for_it() {
        let recent = Recent::new(CAPACITY);
        let (begun, made) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                recent.once(1, 10, || {
                    begun.wait();
                    made.wait();
                    Ok::<_, ()>(Bytes::from_static(b"thing"))
                })
            });
            begun.wait();
            let second = scope.spawn(|| recent.once(1, 10, || Err("made twice")));
            // Nobody else has to wait.
            assert_eq!(
                recent.once(2, 10, || Ok::<_, ()>(Bytes::from_static(b"other"))),
                Ok(Bytes::from_static(b"other"))
            );
            made.wait();
            assert_eq!(second.join().unwrap(), Ok(Bytes::from_static(b"thing")));
        });
    }
}
