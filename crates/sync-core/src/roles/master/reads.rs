//! What was read from disk and several destinations will soon ask for: small contents, which all of them may find here after the
//! ring has given them up, and blocks of big files. Each is read once as long as the destinations keep pace.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::HashMap;

use crate::fs::{ReadError, SourceFile};
use crate::hash::Digest;
use crate::manifest::Tuple;

/// Bytes of a block.
const BLOCK: u64 = 1 << 20;

/// Bytes kept, with what it takes to keep each: how far two destinations may be apart and still share what is read.
const CAPACITY: usize = 64 << 20;

/// What something takes beside its bytes: its places here and in the allocator.
const EACH: usize = 300;

/// How long something is kept at most: who has not asked for it by then is far behind, and what is on disk may be something else that
/// its times do not tell of.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// Places that are kept for what will come.
const FEW: usize = 64;

type Slot = Arc<Mutex<Option<Bytes>>>;

/// What was read.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    /// Of which file, as it was seen, that shall have which content, and which block. Not by content alone: a file that changes while it is
    /// read would spoil that for others that have it as well.
    Block(Tuple, Digest, u64),
    /// A whole content, which was verified.
    Content(Digest),
}

/// What was read lately.
#[derive(Default)]
pub struct Reads {
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    slots: HashMap<Key, Slot>,
    /// The oldest first, with what it counts and since when it is here.
    order: VecDeque<(Key, usize, Instant)>,
    bytes: usize,
}

impl Reads {
    /// So many bytes from `offset` of a file that shall have the content: what lies in one block is that block's. Believe them only
    /// after [`SourceFile::verify`].
    ///
    /// # Errors
    /// As [`SourceFile::read_exact_at`].
    pub fn range(&self, file: &SourceFile, content: Digest, offset: u64, len: usize) -> Result<Bytes, ReadError> {
        let mut joined = Vec::new();
        loop {
            let at = offset + joined.len() as u64;
            let block = self.block(file, content, at / BLOCK)?;
            let start = usize::try_from(at % BLOCK).unwrap_or(0);
            let end = block.len().min(start + (len - joined.len()));
            if start >= end {
                return Err(ReadError::Changed);
            }
            if end - start == len {
                return Ok(block.slice(start..end));
            }
            joined.reserve_exact(len - joined.len());
            joined.extend_from_slice(&block[start..end]);
            if joined.len() == len {
                return Ok(joined.into());
            }
        }
    }

    /// The content with this digest and size; `read` gets and verifies it, if nobody has.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn content(
        &self,
        digest: Digest,
        size: u64,
        read: impl FnOnce() -> Result<Bytes, ReadError>,
    ) -> Result<Bytes, ReadError> {
        self.once(Key::Content(digest), usize::try_from(size).unwrap_or(usize::MAX), read)
    }

    /// The content, if somebody has read it.
    pub fn get(&self, digest: &Digest) -> Option<Bytes> {
        let slot = Arc::clone(self.recent().slots.get(&Key::Content(*digest))?);
        slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps a content that was just read and hashed.
    pub fn put(&self, digest: Digest, content: &Bytes) {
        let _ = self.content(digest, content.len() as u64, || Ok(content.clone()));
    }

    /// Gives up what was kept for long enough.
    pub fn forget_old(&self) {
        self.recent().forget_old(Instant::now());
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block(&self, file: &SourceFile, content: Digest, number: u64) -> Result<Bytes, ReadError> {
        let tuple = *file.tuple();
        let start = number * BLOCK;
        let size = usize::try_from(BLOCK.min(tuple.size.saturating_sub(start))).unwrap_or(0);
        self.once(Key::Block(tuple, content, number), size, || {
            let mut bytes = vec![0; size];
            file.read_exact_at(start, &mut bytes)?;
            Ok(Bytes::from(bytes))
        })
    }

    fn once(&self, key: Key, size: usize, read: impl FnOnce() -> Result<Bytes, ReadError>) -> Result<Bytes, ReadError> {
        let slot = self.recent().slot(key, size, Instant::now());
        // Whoever comes first reads; the others wait for it here. What failed is tried again by the next.
        let mut kept = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = &*kept {
            return Ok(bytes.clone());
        }
        let bytes = read()?;
        *kept = Some(bytes.clone());
        Ok(bytes)
    }
}

impl Recent {
    fn slot(&mut self, key: Key, size: usize, now: Instant) -> Slot {
        self.forget_old(now);
        if let Some(slot) = self.slots.get(&key) {
            return Arc::clone(slot);
        }
        let size = size.saturating_add(EACH);
        while self.bytes.saturating_add(size) > CAPACITY && !self.order.is_empty() {
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
    use crate::chunk::noise;
    use crate::fs::Root;
    use crate::path::RelPath;

    #[test]
    fn a_file_that_changes_while_it_is_read_does_not_spoil_another_of_the_same_content() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let content = noise(3 << 20, 1);
        let [first, second] = ["first", "second"].map(|name| {
            std::fs::write(dir.path().join(name), &content).unwrap();
            let path = RelPath::new(name).unwrap();
            let tuple = root.stat(&path).unwrap().unwrap().tuple;
            SourceFile::open(&root, &path, &tuple).unwrap()
        });
        std::fs::write(dir.path().join("first"), noise(3 << 20, 2)).unwrap();
        let reads = Reads::default();
        let digest = Digest::of(&content);
        let read = |file: &SourceFile| reads.range(file, digest, 500, 2 << 20).unwrap();
        read(&first);
        assert!(first.verify(&root).is_err());
        for _ in 0..2 {
            assert!(read(&second) == content[500..500 + (2 << 20)] && second.verify(&root).is_ok());
        }
        // Each is read once: what is there by now is not what was.
        std::fs::write(dir.path().join("second"), noise(3 << 20, 3)).unwrap();
        assert!(read(&second) == content[500..500 + (2 << 20)]);
        assert!(
            reads.range(&second, digest, (3 << 20) - 1, 2).is_err()
                && reads.range(&second, digest, 3 << 20, 1).is_err()
        );
        // Unless something else shall be there.
        let other = Digest::of(b"what is there by now");
        assert!(reads.range(&second, other, 500, 1000).unwrap() != content[500..1500]);
    }

    #[test]
    fn a_content_is_read_once_unless_that_failed_and_what_is_kept_is_bounded() {
        let reads = Reads::default();
        let content = |i: u32| (Digest::of(&i.to_le_bytes()), Bytes::from(i.to_le_bytes().repeat(1000)));
        let get = |i: u32, read: &dyn Fn() -> Result<Bytes, ReadError>| reads.content(content(i).0, 4000, read);
        assert!(get(0, &|| Err(ReadError::Changed)).is_err() && reads.get(&content(0).0).is_none());
        for i in 0..20_000 {
            assert_eq!(get(i, &|| Ok(content(i).1)).unwrap(), content(i).1);
            assert_eq!(get(i, &|| unreachable!("it was read")).unwrap(), content(i).1);
            assert_eq!(reads.get(&content(i).0), Some(content(i).1));
            let recent = reads.recent.lock().unwrap();
            assert!(recent.bytes <= CAPACITY && recent.bytes == recent.slots.len() * (4000 + EACH));
        }
        assert!(get(0, &|| Err(ReadError::Changed)).is_err(), "the oldest has gone");
        let mut recent = reads.recent.lock().unwrap();
        recent.forget_old(Instant::now() + KEPT_FOR);
        assert_eq!((recent.slots.len(), recent.order.len(), recent.bytes), (0, 0, 0));
        assert!(recent.slots.capacity() <= 8 * FEW && recent.order.capacity() <= 8 * FEW);
    }
}
