//! What was read from disk and several destinations will soon ask for: small contents, which all of them may find here after the
//! ring has given them up, and blocks of big files. Each is read once as long as the destinations keep pace.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

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

type Slot = Arc<Mutex<Option<Bytes>>>;

/// What was read.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    /// Of which file, as it was seen, and which block. Not by content: a file that changes while it is read would spoil that for
    /// others that have it as well.
    Block(Tuple, u64),
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
    /// The oldest first, with what it counts.
    order: VecDeque<(Key, usize)>,
    bytes: usize,
}

impl Reads {
    /// So many bytes from `offset` of a file: what lies in one block is that block's. Believe them only after [`SourceFile::verify`].
    ///
    /// # Errors
    /// As [`SourceFile::read_exact_at`].
    pub fn range(&self, file: &SourceFile, offset: u64, len: usize) -> Result<Bytes, ReadError> {
        let mut joined = Vec::new();
        loop {
            let at = offset + joined.len() as u64;
            let block = self.block(file, at / BLOCK)?;
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

    /// Keeps a content that was just read and hashed.
    pub fn put(&self, digest: Digest, content: &Bytes) {
        let _ = self.content(digest, content.len() as u64, || Ok(content.clone()));
    }

    fn block(&self, file: &SourceFile, number: u64) -> Result<Bytes, ReadError> {
        let tuple = *file.tuple();
        let start = number * BLOCK;
        let size = usize::try_from(BLOCK.min(tuple.size.saturating_sub(start))).unwrap_or(0);
        self.once(Key::Block(tuple, number), size, || {
            let mut bytes = vec![0; size];
            file.read_exact_at(start, &mut bytes)?;
            Ok(Bytes::from(bytes))
        })
    }

    fn once(&self, key: Key, size: usize, read: impl FnOnce() -> Result<Bytes, ReadError>) -> Result<Bytes, ReadError> {
        let slot = self.recent.lock().unwrap_or_else(PoisonError::into_inner).slot(key, size);
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
    fn slot(&mut self, key: Key, size: usize) -> Slot {
        if let Some(slot) = self.slots.get(&key) {
            return Arc::clone(slot);
        }
        let size = size.saturating_add(EACH);
        while self.bytes.saturating_add(size) > CAPACITY
            && let Some((oldest, freed)) = self.order.pop_front()
        {
            self.slots.remove(&oldest);
            self.bytes -= freed;
        }
        self.bytes = self.bytes.saturating_add(size);
        self.order.push_back((key, size));
        Arc::clone(self.slots.entry(key).or_default())
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
        let read = |file: &SourceFile| reads.range(file, 500, 2 << 20).unwrap();
        read(&first);
        assert!(first.verify(&root).is_err());
        for _ in 0..2 {
            assert!(read(&second) == content[500..500 + (2 << 20)] && second.verify(&root).is_ok());
        }
        // Each is read once: what is there by now is not what was.
        std::fs::write(dir.path().join("second"), noise(3 << 20, 3)).unwrap();
        assert!(read(&second) == content[500..500 + (2 << 20)]);
        assert!(reads.range(&second, (3 << 20) - 1, 2).is_err() && reads.range(&second, 3 << 20, 1).is_err());
    }

    #[test]
    fn a_content_is_read_once_unless_that_failed_and_what_is_kept_is_bounded() {
        let reads = Reads::default();
        let content = |i: u32| (Digest::of(&i.to_le_bytes()), Bytes::from(i.to_le_bytes().repeat(1000)));
        let get = |i: u32, read: &dyn Fn() -> Result<Bytes, ReadError>| reads.content(content(i).0, 4000, read);
        assert!(get(0, &|| Err(ReadError::Changed)).is_err());
        for i in 0..20_000 {
            assert_eq!(get(i, &|| Ok(content(i).1)).unwrap(), content(i).1);
            assert_eq!(get(i, &|| unreachable!("it was read")).unwrap(), content(i).1);
            let recent = reads.recent.lock().unwrap();
            assert!(recent.bytes <= CAPACITY && recent.bytes == recent.slots.len() * (4000 + EACH));
        }
        assert!(get(0, &|| Err(ReadError::Changed)).is_err(), "the oldest has gone");
    }
}
