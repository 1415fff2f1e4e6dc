//! The checksum that every row carries.

use xxhash_rust::xxh3::xxh3_64;

use super::error::Fault;

/// Which table a row belongs to; part of its sum, so that a page read as the wrong table never passes.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Mark {
    Entry = 1,
    Tombstone = 2,
    Version = 3,
    Ack = 4,
    Meta = 6,
    Intent = 7,
    /// 5 marked lists of chunks with other digests.
    Content = 8,
    Addition = 9,
}

/// A buffer that rows are laid out in to be summed: one hash over contiguous bytes is several times faster than many
/// small updates.
#[derive(Default)]
pub(super) struct Summer(Vec<u8>);

impl Summer {
    /// XXH3 (64 bits) over the mark and each field with its length, little endian. It is there to notice what a disk or a
    /// crash did to a row, which it misses once in 2^64 times; who may write the index could write any other sum as well,
    /// so a cryptographic hash would only cost more: an eighth of a push that finds nothing to do, measured.
    pub(super) fn sum(&mut self, mark: Mark, fields: &[&[u8]]) -> [u8; 8] {
        self.0.clear();
        self.0.push(mark as u8);
        for field in fields {
            self.0.extend_from_slice(&(field.len() as u64).to_le_bytes());
            self.0.extend_from_slice(field);
        }
        xxh3_64(&self.0).to_le_bytes()
    }

    /// Checks a sum that was read.
    pub(super) fn check(&mut self, mark: Mark, fields: &[&[u8]], stored: &[u8], what: &str) -> Result<(), Fault> {
        if self.sum(mark, fields) == stored {
            Ok(())
        } else {
            Err(Fault::Damaged(format!("the checksum of {what} does not match")))
        }
    }
}

/// A column of exactly `N` bytes.
pub(super) fn exactly<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Fault> {
    bytes.try_into().map_err(|_| Fault::Damaged(format!("a field has {} bytes instead of {N}", bytes.len())))
}
