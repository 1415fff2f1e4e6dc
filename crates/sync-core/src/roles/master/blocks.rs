//! Blocks of big files on their way to several destinations: each is read once as long as the destinations keep pace.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::fs::{ReadError, SourceFile};
use crate::manifest::Tuple;

/// Bytes of a block.
const BLOCK: u64 = 1 << 20;

/// Blocks kept: how far two destinations may be apart and still share what is read.
const KEPT: usize = 32;

type Slot = Arc<Mutex<Option<Bytes>>>;

/// Of which file, as it was seen, and which block. Not by content: a file that changes while it is read would spoil that for
/// others that have it as well.
type Key = (Tuple, u64);

/// The most recent blocks.
#[derive(Default)]
pub struct Blocks {
    recent: Mutex<(HashMap<Key, Slot>, VecDeque<Key>)>,
}

impl Blocks {
    /// Fills `buffer` from `offset` of a file. Believe it only after [`SourceFile::verify`].
    ///
    /// # Errors
    /// As [`SourceFile::read_exact_at`].
    pub fn read(&self, file: &SourceFile, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let block = self.block(file, at / BLOCK)?;
            let rest = block.get(usize::try_from(at % BLOCK).unwrap_or(0)..).unwrap_or_default();
            if rest.is_empty() {
                return Err(ReadError::Changed);
            }
            let len = rest.len().min(buffer.len() - done);
            buffer[done..done + len].copy_from_slice(&rest[..len]);
            done += len;
        }
        Ok(())
    }

    fn block(&self, file: &SourceFile, number: u64) -> Result<Bytes, ReadError> {
        let tuple = *file.tuple();
        let slot = self.slot((tuple, number));
        // Whoever comes first reads; the others wait for it here.
        let mut block = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = &*block {
            return Ok(block.clone());
        }
        let start = number * BLOCK;
        let mut bytes = vec![0; usize::try_from(BLOCK.min(tuple.size.saturating_sub(start))).unwrap_or(0)];
        file.read_exact_at(start, &mut bytes)?;
        let bytes = Bytes::from(bytes);
        *block = Some(bytes.clone());
        Ok(bytes)
    }

    fn slot(&self, key: Key) -> Slot {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let (slots, order) = &mut *recent;
        if let Some(slot) = slots.get(&key) {
            return Arc::clone(slot);
        }
        if order.len() >= KEPT
            && let Some(oldest) = order.pop_front()
        {
            slots.remove(&oldest);
        }
        order.push_back(key);
        Arc::clone(slots.entry(key).or_default())
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
        let blocks = Blocks::default();
        let mut read = vec![0; 2 << 20];
        blocks.read(&first, 500, &mut read).unwrap();
        assert!(first.verify(&root).is_err());
        for _ in 0..2 {
            blocks.read(&second, 500, &mut read).unwrap();
            assert!(read == content[500..500 + (2 << 20)] && second.verify(&root).is_ok());
        }
        // Each is read once: what is there by now is not what was.
        std::fs::write(dir.path().join("second"), noise(3 << 20, 3)).unwrap();
        blocks.read(&second, 500, &mut read).unwrap();
        assert!(read == content[500..500 + (2 << 20)]);
    }
}
