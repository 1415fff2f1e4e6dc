//! Literals in turn with ranges of the old file, as one frame holds them.

use crate::wire::Splice;

/// Zeros from this number on are named in place of being sent.
const FEW_ZEROS: usize = 256;

/// Ranges that are copied in one frame.
const SPLICES: usize = 1 << 12;

/// Literals and copied ranges on their way into one frame.
pub struct Splicing {
    /// Where its first byte goes.
    pub offset: u64,
    /// Where the first copied range counts from.
    pub from: u64,
    /// Where its last byte went.
    pub end: u64,
    /// Where the last copied range ended.
    pub copied: u64,
    /// The ranges.
    pub splices: Vec<Splice>,
    /// The literals.
    pub bytes: Vec<u8>,
}

impl Splicing {
    /// Begins where something goes.
    pub fn at(offset: u64) -> Self {
        Self::behind(offset, 0)
    }

    /// The same, copied ranges counting from there.
    pub fn behind(offset: u64, from: u64) -> Self {
        Self { offset, from, end: offset, copied: from, splices: Vec::new(), bytes: Vec::new() }
    }

    /// Whether it should be sent.
    pub fn is_full(&self, most: usize) -> bool {
        self.bytes.len() >= most || self.splices.len() >= SPLICES
    }

    /// Adds bytes; long runs of zeros among them are only named.
    pub fn literal(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        // A run of that many zeros has all of such a block.
        if !bytes.chunks_exact(FEW_ZEROS / 2).any(|block| block.iter().all(|byte| *byte == 0)) {
            self.splices.push(Splice { literal: bytes.len() as u32, zeros: 0, skip: 0, copy: 0 });
            self.bytes.extend_from_slice(bytes);
            return;
        }
        for run in bytes.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
            let len = run.len() as u32;
            // A few zeros are cheaper sent than named.
            let named = run.len() >= FEW_ZEROS && run[0] == 0;
            match self.splices.last_mut() {
                Some(splice) if named && splice.copy == 0 => splice.zeros += len,
                Some(splice) if !named && splice.copy == 0 && splice.zeros == 0 => splice.literal += len,
                _ if named => self.splices.push(Splice { literal: 0, zeros: len, skip: 0, copy: 0 }),
                _ => self.splices.push(Splice { literal: len, zeros: 0, skip: 0, copy: 0 }),
            }
            if !named {
                self.bytes.extend_from_slice(run);
            }
        }
    }

    /// Adds a range of the old file.
    pub fn copy(&mut self, from: u64, len: u64) {
        let skip = from.wrapping_sub(self.copied).cast_signed();
        self.copied = from + len;
        self.end += len;
        match self.splices.last_mut() {
            Some(splice) if splice.copy == 0 => (splice.skip, splice.copy) = (skip, len),
            _ => self.splices.push(Splice { literal: 0, zeros: 0, skip, copy: len }),
        }
    }
}
