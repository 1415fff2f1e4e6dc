//! Cutting a file into content-defined chunks, so that an edit moves only the boundaries around it.
//!
//! FastCDC (Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage Systems",
//! IEEE TPDS 2020), through the crate `fastcdc`. Boundaries are part of what is stored in indexes and compared between
//! hosts: the crate's version is pinned exactly, and golden vectors in the tests pin what it gives.
//!
//! There are two levels: chunks, whose lists are kept and compared, and [`pieces`], which are cut where chunks
//! do not match.
//!
//! Not for identity: a chunk's digest is fast and only proposes a match, the digest of the whole file decides.

mod lister;
pub mod pieces;
mod settling;

use std::sync::OnceLock;

use fastcdc::v2020::{self, Normalization};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

pub use lister::Lister;

use settling::{Settled, Settling};

use crate::zeros::are_zeros;

/// Files smaller than this many bytes have no chunks: they are compared piece by piece at once: see [`pieces`].
pub const MIN_DELTA: u64 = 256 << 10;

/// One chunk of a file, in the order of the file; its offset is the sum of the lengths before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkRef {
    /// XXH3-128 of the chunk, little endian: a hint for matching, and not cryptographic. Somebody who plants a collision
    /// gains nothing, because the file made from a false match fails against its own digest.
    pub digest: [u8; 16],
    /// Bytes, at least 1 in a list made here. A list from a peer proves nothing about it.
    pub len: u32,
}

impl ChunkRef {
    /// The reference to a chunk with these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        // A chunk is at most `Chunking::max` long, far below 4 GiB.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Self { digest: xxh3_128(bytes).to_le_bytes(), len }
    }
}

/// How many bytes a list of chunks covers. Cannot overflow for any list that fits in memory.
pub fn covered(chunks: &[ChunkRef]) -> u64 {
    chunks.iter().map(|chunk| u64::from(chunk.len)).sum()
}

/// Sizes of chunks in bytes. Two lists can be compared only if both were made with the same sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub struct Chunking {
    /// Power of two of the average, within [`SMALLEST`] and [`LARGEST`]: the others follow from it.
    bits: u8,
}

/// Power of two of the smallest average: 256 bytes, the least that `fastcdc` supports.
const SMALLEST: u8 = 8;
/// Power of two of the smallest average of a file: 32 KiB.
const FIRST: u8 = 15;
/// Power of two of the largest average: 4 MiB, the most that `fastcdc` supports. With it, `max` is at that crate's
/// limit of 16 MiB and `min` at its limit of 1 MiB. The crate checks them in debug builds only.
const LARGEST: u8 = 22;

impl Chunking {
    /// The sizes for a file of `size` bytes.
    ///
    /// What one edit in the middle costs is the pieces of about two chunks, and for a replica whose old file the master
    /// does not know, the list of chunks (20 bytes each). So the average grows slowly at first: 32 KiB up to 24 MiB,
    /// 64 KiB up to 384 MiB, 128 KiB up to 1.5 GiB. From there it grows with the size, which bounds a list to about
    /// 12 thousand chunks (240 KB), up to 4 MiB: beyond 48 GiB lists grow again, 5 MB for each TiB.
    ///
    /// The steps lie between the powers of two on purpose: files of such sizes are common, and a file that grows
    /// across a step must be read and cut again before anything matches.
    pub fn for_size(size: u64) -> Self {
        let mut bits = FIRST;
        let mut limit = 24u64 << 20;
        while bits < LARGEST && size > limit {
            limit = match bits {
                FIRST => limit << 4,
                16 => limit << 2,
                _ => limit << 1,
            };
            bits += 1;
        }
        Self { bits }
    }

    /// Pieces of this power of two of bytes on average.
    const fn of_bits(bits: u8) -> Self {
        Self { bits }
    }

    /// No chunk but the last of a file is shorter. A quarter of the average: the bytes below it need no scan, and the
    /// distribution around the average stays as the paper has it.
    pub fn min(self) -> usize {
        1 << (self.bits - 2)
    }

    /// About what a chunk has in data without structure.
    pub fn avg(self) -> usize {
        1 << self.bits
    }

    /// No chunk is longer. Four times the average: in random data fewer than one chunk in a thousand is cut there,
    /// where the content has no say, and it bounds what the chunker buffers to 16 MiB.
    pub fn max(self) -> usize {
        1 << (self.bits + 2)
    }

    /// The most chunks that a file of `size` bytes can have: a longer list is not one of ours.
    pub fn most_chunks(self, size: u64) -> u64 {
        size.div_ceil(self.min() as u64)
    }
}

impl From<Chunking> for u8 {
    fn from(chunking: Chunking) -> Self {
        chunking.bits
    }
}

impl TryFrom<u8> for Chunking {
    type Error = String;
    fn try_from(bits: u8) -> Result<Self, String> {
        if (SMALLEST..=LARGEST).contains(&bits) {
            Ok(Self { bits })
        } else {
            Err(format!("chunks of 2^{bits} bytes on average: outside 2^{SMALLEST} to 2^{LARGEST}"))
        }
    }
}

/// Where chunks of a size end.
#[derive(Clone, Copy)]
struct Boundaries {
    chunking: Chunking,
    /// Strict and relaxed mask of normalized chunking.
    masks: (u64, u64),
}

impl Boundaries {
    fn new(chunking: Chunking) -> Self {
        Self { chunking, masks: v2020::select_masks(chunking.avg(), Normalization::Level1) }
    }

    /// The end of the chunk that begins `bytes`, if no byte after them can change it.
    fn end_of(&self, bytes: &[u8]) -> Option<usize> {
        let max = self.chunking.max();
        let some = &bytes[..bytes.len().min(max)];
        // Where a sparse file has nothing, all ends are the same.
        let end = if are_zeros(some) { self.end_of_zeros().min(some.len()) } else { self.search(bytes) };
        // A position below the length was chosen by the content before it. The length itself only says that nothing
        // was found so far, unless it is the maximum.
        (end < bytes.len() || end == max).then_some(end)
    }

    fn search(&self, bytes: &[u8]) -> usize {
        let (min, avg, max) = (self.chunking.min(), self.chunking.avg(), self.chunking.max());
        let (strict, relaxed) = self.masks;
        let (_, end) = v2020::cut(bytes, min, avg, max, strict, relaxed, strict << 1, relaxed << 1);
        end
    }

    /// The end of a chunk where all is zero. Found once for each size, with a buffer of [`Chunking::max`] bytes for that moment.
    fn end_of_zeros(&self) -> usize {
        static ENDS: [OnceLock<usize>; LARGEST as usize + 1] = [const { OnceLock::new() }; LARGEST as usize + 1];
        *ENDS[usize::from(self.chunking.bits)].get_or_init(|| self.search(&vec![0; self.chunking.max()]))
    }

    /// Whether a chunk that began `end` bytes before ends there, if it does not end earlier; else how many bytes it takes
    /// to tell, more than there are. The crate looks at two bytes at once, beginning with the one after the chunk or
    /// the last one within it.
    fn is_end(&self, bytes: &[u8], end: usize) -> Result<bool, usize> {
        /// No byte before the last 64 has a bit left in the hash. Even, as whatever the crate is given.
        const WINDOW: usize = 128;
        let (min, avg, max) = (self.chunking.min(), self.chunking.avg(), self.chunking.max());
        if !(min..max).contains(&end) {
            return Ok(end == max);
        }
        let pair = end & !1;
        let first = pair.saturating_sub(WINDOW).max(min);
        let window = bytes.get(first..pair + 2).ok_or(pair + 2)?;
        let mask = if pair < avg { self.masks.0 } else { self.masks.1 };
        // All of the hash is not 0 until the pair that counts.
        let (_, found) = v2020::cut(window, 0, pair - first, window.len(), u64::MAX, mask, u64::MAX, mask << 1);
        Ok(first + found == end)
    }

    /// The end of the chunk that begins a stream, or how many bytes are worth another search.
    fn settle(&self, bytes: &[u8]) -> Settled {
        // Every search starts over at the beginning of the chunk. Waiting until there is twice as much as last time
        // keeps the sum linear even if bytes come one by one.
        let wanted = || (2 * bytes.len()).clamp(self.chunking.min() + 1, self.chunking.max());
        self.end_of(bytes).ok_or_else(wanted)
    }
}

/// Cuts a stream, given in slices of any size, exactly where the whole would be cut.
///
/// Chunks that lie within one slice are given in place. Only the end of a slice, up to the next boundary, is copied:
/// at most [`Chunking::max`] bytes are ever held.
pub struct Chunker {
    boundaries: Boundaries,
    stream: Settling,
}

impl Chunker {
    /// A chunker at the beginning of a file.
    pub fn new(chunking: Chunking) -> Self {
        Self { boundaries: Boundaries::new(chunking), stream: Settling::default() }
    }

    /// Takes the next bytes of the file, and gives every chunk whose end they settle.
    pub fn push(&mut self, bytes: &[u8], emit: &mut impl FnMut(&[u8])) {
        let boundaries = self.boundaries;
        self.stream.push(bytes, &mut |bytes| {
            let settled = boundaries.settle(bytes);
            settled.iter().for_each(|end| emit(&bytes[..*end]));
            settled
        });
    }

    /// Ends the file: gives what is left, and begins the next file.
    pub fn finish(&mut self, emit: &mut impl FnMut(&[u8])) {
        let tail = self.stream.take();
        // Bytes that waited for a larger search may hold several chunks.
        cut_with(self.boundaries, &tail, emit);
    }
}

/// Cuts a whole slice; nothing is copied.
pub fn cut(bytes: &[u8], chunking: Chunking, emit: &mut impl FnMut(&[u8])) {
    cut_with(Boundaries::new(chunking), bytes, emit);
}

fn cut_with(boundaries: Boundaries, bytes: &[u8], emit: &mut impl FnMut(&[u8])) {
    let mut rest = bytes;
    while let Some(end) = boundaries.end_of(rest) {
        let (chunk, after) = rest.split_at(end);
        emit(chunk);
        rest = after;
    }
    if !rest.is_empty() {
        emit(rest);
    }
}

/// Bytes that [`cut_from`] holds at once.
const READ: u64 = 1 << 20;

/// Cuts `len` bytes that `read` gives, each time those at the offset it is told, beginning with `at`.
///
/// # Errors
/// Those of `read`, which end it.
pub fn cut_from<E>(
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    (at, len): (u64, u64),
    chunking: Chunking,
    emit: &mut impl FnMut(&[u8]),
) -> Result<(), E> {
    let mut chunker = Chunker::new(chunking);
    let mut buffer = vec![0; usize::try_from(READ.min(len)).unwrap_or(0)];
    let mut done = 0;
    while done < len {
        let now = usize::try_from(READ.min(len - done)).unwrap_or(0);
        read(at + done, &mut buffer[..now])?;
        chunker.push(&buffer[..now], emit);
        done += now as u64;
    }
    chunker.finish(emit);
    Ok(())
}

/// The chunks of a whole slice.
pub fn chunks_of(bytes: &[u8], chunking: Chunking) -> Vec<ChunkRef> {
    let mut list = Vec::new();
    cut(bytes, chunking, &mut |chunk| list.push(ChunkRef::of(chunk)));
    list
}

/// Marsaglia's xorshift64: bytes that are the same everywhere and for ever, for tests.
#[cfg(test)]
pub(crate) fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        out.extend_from_slice(&seed.to_le_bytes());
    }
    out.truncate(len);
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 4 KiB: small, so that little content has many chunks.
    pub(super) fn smallest() -> Chunking {
        Chunking::of_bits(12)
    }

    fn lens(list: &[ChunkRef]) -> Vec<u32> {
        list.iter().map(|chunk| chunk.len).collect()
    }

    /// What the crate says about the whole slice at once.
    fn reference(bytes: &[u8], c: Chunking) -> Vec<ChunkRef> {
        v2020::FastCDC::new(bytes, c.min(), c.avg(), c.max())
            .map(|chunk| ChunkRef::of(&bytes[chunk.offset..chunk.offset + chunk.length]))
            .collect()
    }

    #[test]
    fn zeros_end_where_the_crate_says() {
        let largest = Chunking::of_bits(LARGEST);
        let zeros = vec![0; largest.max()];
        assert_eq!(Boundaries::new(largest).end_of(&zeros), Some(Boundaries::new(largest).search(&zeros)));
        for bits in SMALLEST..=17 {
            let c = Chunking::of_bits(bits);
            let boundaries = Boundaries::new(c);
            let zeros = vec![0; 3 * c.max() + 100];
            let around =
                |at: usize| [at.saturating_sub(2), at.saturating_sub(1), at, at + 1, at + 2, at + 65, at + 129];
            for len in [0, c.min(), c.avg(), c.max(), 2 * c.max()].into_iter().flat_map(around) {
                let bytes = &zeros[..len];
                let end = boundaries.search(bytes);
                let settled = (end < len || end == c.max()).then_some(end);
                assert_eq!(boundaries.end_of(bytes), settled, "{len} of 2^{bits}");
            }
            let mut holes = zeros.clone();
            holes[c.max() + 50] = 1;
            for bytes in [zeros, holes] {
                let mut found = Vec::new();
                cut(&bytes, c, &mut |chunk| found.push(ChunkRef::of(chunk)));
                assert_eq!(found, reference(&bytes, c));
            }
        }
    }

    #[test]
    fn sizes_stay_within_what_the_crate_supports() {
        for bits in SMALLEST..=LARGEST {
            let c = Chunking::try_from(bits).unwrap();
            assert!((v2020::MINIMUM_MIN..=v2020::MINIMUM_MAX).contains(&c.min()));
            assert!((v2020::AVERAGE_MIN..=v2020::AVERAGE_MAX).contains(&c.avg()));
            assert!((v2020::MAXIMUM_MIN..=v2020::MAXIMUM_MAX).contains(&c.max()));
        }
        assert!(Chunking::try_from(SMALLEST - 1).is_err());
        assert!(Chunking::try_from(LARGEST + 1).is_err());
    }

    /// Indexes hold lists made with these: a change makes every stored list useless.
    #[test]
    fn the_steps_are_pinned() {
        const M: u64 = 1 << 20;
        const G: u64 = 1 << 30;
        let table = [
            (0, 32),
            (MIN_DELTA, 32),
            (24 * M, 32),
            (24 * M + 1, 64),
            (384 * M, 64),
            (384 * M + 1, 128),
            (G, 128),
            (G + 3 * M, 128),
            (3 * G / 2, 128),
            (3 * G / 2 + 1, 256),
            (4 * G, 512),
            (8 * G, 1024),
            (24 * G, 2048),
            (32 * G, 4096),
            (u64::MAX, 4096),
        ];
        for (size, kib) in table {
            assert_eq!(Chunking::for_size(size).avg(), kib << 10, "{size} bytes");
        }
        for size in [M, 16 * M, G, 20 * G, 48 * G] {
            assert!(size / Chunking::for_size(size).avg() as u64 <= 12_288, "{size} bytes");
        }
    }

    /// Golden vectors: boundaries are stored in indexes and compared between hosts. Never edit them once released.
    #[test]
    fn boundaries_are_pinned() {
        let small = chunks_of(&noise(64 << 10, 0x9e37_79b9_7f4a_7c15), smallest());
        assert_eq!(
            lens(&small),
            [9159, 6046, 4109, 2719, 2711, 3362, 4164, 8830, 2473, 1177, 7599, 2724, 1510, 7127, 1826]
        );
        assert_eq!(data_encoding::HEXLOWER.encode(&small[0].digest), "3e62126109d0dcaa79ca38fce42a84b1");
        let large = chunks_of(&noise(8 << 20, 1), Chunking::for_size(100 << 20));
        assert_eq!(lens(&large[..8]), [85966, 85358, 101582, 87648, 77767, 61878, 66766, 107262]);
        let all = large.iter().fold(blake3::Hasher::new(), |mut h, chunk| {
            h.update(&chunk.digest).update(&chunk.len.to_le_bytes());
            h
        });
        assert_eq!(
            (large.len(), all.finalize().to_hex().as_str()),
            (101, "f2c0ff27d77366df7021fc05efe11656986f92d9a42763cbe494207fa7bdfa12")
        );
    }

    #[test]
    fn one_slice_gives_what_the_crate_gives() {
        for len in [0, 1, 1023, 1024, 1025, 4096, 16_383, 16_384, 16_385, 300_001] {
            let bytes = noise(len, 7);
            assert_eq!(chunks_of(&bytes, smallest()), reference(&bytes, smallest()), "{len} bytes");
        }
    }

    /// Content that never meets a mask is cut at the maximum, also across slices.
    #[test]
    fn constant_bytes_are_cut_at_the_maximum() {
        let c = smallest();
        let zeros = vec![0; 3 * c.max() + 5];
        let mut list = Vec::new();
        let mut chunker = Chunker::new(c);
        for piece in zeros.chunks(c.max() - 3) {
            chunker.push(piece, &mut |chunk| list.push(ChunkRef::of(chunk)));
        }
        chunker.finish(&mut |chunk| list.push(ChunkRef::of(chunk)));
        assert_eq!(lens(&list), [c.max() as u32, c.max() as u32, c.max() as u32, 5]);
        assert_eq!(covered(&list), zeros.len() as u64);
    }

    #[test]
    fn single_bytes_are_enough_and_nothing_piles_up() {
        let bytes = noise(100_000, 3);
        let mut list = Vec::new();
        let mut chunker = Chunker::new(smallest());
        for byte in &bytes {
            chunker.push(std::slice::from_ref(byte), &mut |chunk| list.push(ChunkRef::of(chunk)));
            assert!(chunker.stream.held() <= smallest().max());
        }
        chunker.finish(&mut |chunk| list.push(ChunkRef::of(chunk)));
        assert_eq!(list, reference(&bytes, smallest()));
    }

    #[test]
    fn an_edit_moves_only_the_boundaries_around_it() {
        let old = noise(1 << 20, 11);
        let mut new = old.clone();
        new.insert(500_000, 7);
        let known: std::collections::HashSet<_> = chunks_of(&old, smallest()).into_iter().collect();
        let fresh = chunks_of(&new, smallest()).into_iter().filter(|chunk| !known.contains(chunk)).count();
        assert!((1..=4).contains(&fresh), "{fresh} chunks differ");
    }

    /// Bytes with structure: noise, constant runs and repeated blocks, so that natural, maximal and tiny cuts mix.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            (1usize..60_000, any::<u64>()).prop_map(|(len, seed)| noise(len, seed | 1)),
            (1usize..40_000, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
            (1usize..3000, 1usize..20, any::<u64>()).prop_map(|(len, n, seed)| noise(len, seed | 1).repeat(n)),
        ];
        proptest::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// The sizes of the slices, from single bytes to several chunks at once, leave no trace.
        #[test]
        fn slices_leave_no_trace(bytes in content(), steps in proptest::collection::vec(prop_oneof![
            1usize..8, 900usize..1200, 1usize..5000, 16_000usize..17_000, 1usize..100_000
        ], 1..40)) {
            let mut list = Vec::new();
            let mut chunker = Chunker::new(smallest());
            let mut rest = &bytes[..];
            for step in steps.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*step).min(rest.len()));
                chunker.push(piece, &mut |chunk| list.push(ChunkRef::of(chunk)));
                rest = after;
            }
            chunker.finish(&mut |chunk| list.push(ChunkRef::of(chunk)));
            prop_assert_eq!(&list, &reference(&bytes, smallest()));
            prop_assert_eq!(covered(&list), bytes.len() as u64);
            prop_assert!(list.len() as u64 <= smallest().most_chunks(bytes.len() as u64));
        }
    }
}
