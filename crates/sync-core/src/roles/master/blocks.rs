//! Blocks of big files on their way to several destinations: each is read once as long as the destinations keep pace.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::fs::{ReadError, SourceFile};
use crate::hash::Digest;

/// Bytes of a block.
const BLOCK: u64 = 1 << 20;

/// Blocks kept: how far two destinations may be apart and still share what is read.
const KEPT: usize = 32;

type Slot = Arc<Mutex<Option<Bytes>>>;

/// The most recent blocks.
#[derive(Default)]
pub struct Blocks {
    recent: Mutex<(HashMap<(Digest, u64), Slot>, VecDeque<(Digest, u64)>)>,
}

impl Blocks {
    /// Fills `buffer` from `offset` of a file of `size` bytes that has this content.
    ///
    /// # Errors
    /// As [`SourceFile::read_exact_at`].
    pub fn read(
        &self,
        file: &SourceFile,
        digest: Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), ReadError> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let block = self.block(file, digest, size, at / BLOCK)?;
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

    fn block(&self, file: &SourceFile, digest: Digest, size: u64, number: u64) -> Result<Bytes, ReadError> {
        let slot = self.slot((digest, number));
        // Whoever comes first reads; the others wait for it here.
        let mut block = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = &*block {
            return Ok(block.clone());
        }
        let start = number * BLOCK;
        let mut bytes = vec![0; usize::try_from(BLOCK.min(size.saturating_sub(start))).unwrap_or(0)];
        file.read_exact_at(start, &mut bytes)?;
        let bytes = Bytes::from(bytes);
        *block = Some(bytes.clone());
        Ok(bytes)
    }

    fn slot(&self, key: (Digest, u64)) -> Slot {
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
