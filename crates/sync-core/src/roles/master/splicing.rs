//! Literals in turn with ranges of the old file, as one frame holds them.

use crate::wire::Splice;
use crate::zeros::are_zeros;

/// Zeros from this number on are named in place of being sent.
const FEW_ZEROS: usize = 256;

/// Zeros that are named in one frame: a splice counts them in 32 bits.
const MOST_ZEROS: u64 = 1 << 30;

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
    /// Zeros that are only named.
    zeros: u64,
}

impl Splicing {
    /// Begins where something goes.
    pub fn at(offset: u64) -> Self {
        Self::behind(offset, 0)
    }

    /// The same, copied ranges counting from there.
    pub fn behind(offset: u64, from: u64) -> Self {
        Self { offset, from, end: offset, copied: from, splices: Vec::new(), bytes: Vec::new(), zeros: 0 }
    }

    /// Whether it should be sent.
    pub fn is_full(&self, most: usize) -> bool {
        self.bytes.len() >= most || self.splices.len() >= SPLICES || self.zeros >= MOST_ZEROS
    }

    /// Adds at most a gibibyte; long runs of zeros among it are only named.
    pub fn literal(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        // A run of that many zeros has all of such a block.
        if !bytes.chunks_exact(FEW_ZEROS / 2).any(are_zeros) {
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
            match named {
                true => self.zeros += u64::from(len),
                false => self.bytes.extend_from_slice(run),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A hole of five gibibytes.
    #[test]
    fn zeros_are_counted_in_several_frames() {
        let (piece, most) = (vec![0; 1 << 20], 512 << 10);
        let (mut splicing, mut named) = (Splicing::at(0), 0u64);
        for _ in 0..5 << 10 {
            splicing.literal(&piece);
            if splicing.is_full(most) {
                named += splicing.splices.iter().map(|splice| u64::from(splice.zeros)).sum::<u64>();
                splicing = Splicing::at(splicing.end);
            }
        }
        assert_eq!((named, splicing.end), (5 << 30, 5 << 30));
    }
}
