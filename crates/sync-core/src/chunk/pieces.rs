//! The finer level: pieces of about a kilobyte, cut where chunks differ or where a file is too small to have any. They
//! bring the cost of an edit down from a chunk to a few hundred bytes.
//!
//! Their hashes are short and not cryptographic (XXH3): pieces are looked for in one old file only, and what a false match
//! makes fails against its own digest and is sent whole.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::xxh3_64;

use super::{Chunking, MIN_DELTA, cut};

/// Old files of fewer bytes than this help nobody: their one or two pieces seldom match.
pub const MIN_PIECES: u64 = 1 << 10;

/// Old and new files of up to this many bytes are compared piece by piece at once; larger ones chunk by chunk first.
pub const MAX_PIECES: u64 = MIN_DELTA - 1;

/// Most pieces of old content that are described for one file. A larger old file, if none of its chunks matches, is cut
/// into larger pieces: this bounds the tables of a comparison to some 30 MB.
pub const MOST_DESCRIBED: u64 = 1 << 19;

/// 512 bytes on average in small files, where a piece costs three or four bytes: see docs/delta.md.
const SMALL: u8 = 9;

/// 1 KiB on average in ranges of large ones, where it costs ten.
const LARGE: u8 = 10;

/// Bytes of a hash that travels with its length, for a piece of a large file.
const HASH: usize = 6;

/// One piece of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    /// The first bits of its XXH3.
    pub hash: u64,
    /// Bytes.
    pub len: u32,
}

impl Piece {
    fn of(bytes: &[u8], bits: u32) -> Self {
        Self { hash: xxh3_64(bytes) >> (64 - bits), len: u32::try_from(bytes.len()).unwrap_or(u32::MAX) }
    }
}

/// A list of pieces. It travels as all hashes, of six bytes each, and then all lengths, which shrink better together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pieces(pub Vec<Piece>);

impl Serialize for Pieces {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let hashes: Vec<u8> = self.0.iter().flat_map(|piece| piece.hash.to_le_bytes().into_iter().take(HASH)).collect();
        let lens: Vec<u32> = self.0.iter().map(|piece| piece.len).collect();
        (hashes, lens).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Pieces {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (hashes, lens) = <(Vec<u8>, Vec<u32>)>::deserialize(deserializer)?;
        let (hashes, rest) = hashes.as_chunks::<HASH>();
        if !rest.is_empty() || hashes.len() != lens.len() {
            return Err(D::Error::custom("as many hashes as lengths are wanted"));
        }
        let hash = |hash: &[u8; HASH]| hash.iter().rev().fold(0, |hash, byte| hash << 8 | u64::from(*byte));
        Ok(Self(hashes.iter().map(hash).zip(lens).map(|(hash, len)| Piece { hash, len }).collect()))
    }
}

/// How small files are cut.
pub fn small() -> Chunking {
    Chunking::of_bits(SMALL)
}

/// How ranges of `bytes` bytes in all of an old file are cut.
pub fn of_ranges(bytes: u64) -> Chunking {
    let mut bits = LARGE;
    while bytes >> bits > MOST_DESCRIBED {
        bits += 1;
    }
    Chunking::of_bits(bits.min(super::LARGEST))
}

/// A piece of a large file.
pub fn wide(bytes: &[u8]) -> Piece {
    Piece::of(bytes, 8 * HASH as u32)
}

/// Calls `emit` with each piece of a small file: its bytes, and its hash of 32 bits.
pub fn each_small<'a>(content: &'a [u8], emit: &mut impl FnMut(&'a [u8], u32)) {
    let mut rest = content;
    cut(content, small(), &mut |bytes| {
        let (piece, after) = rest.split_at(bytes.len());
        rest = after;
        emit(piece, Piece::of(piece, 32).hash as u32);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::noise;

    /// Golden: both ends must cut and hash alike, whatever their versions.
    #[test]
    fn pieces_are_pinned() {
        let content = noise(6000, 5);
        let mut pieces = Vec::new();
        each_small(&content, &mut |bytes, hash| pieces.push((bytes.len(), hash)));
        assert_eq!(pieces.iter().map(|(len, _)| len).sum::<usize>(), 6000);
        let first = [(605, 3_382_576_277), (897, 4_208_154_973), (441, 1_838_047_977)];
        assert_eq!((&pieces[..3], pieces.len()), (&first[..], 14));
        let piece = wide(&content);
        assert_eq!((piece.hash >> 16, piece.len), (u64::from(Piece::of(&content, 32).hash as u32), 6000));
    }

    #[test]
    fn the_number_of_described_pieces_is_bounded() {
        assert_eq!(of_ranges(1).avg(), 1024);
        for bytes in [1 << 20, 1 << 29, (1 << 29) + 1, 1 << 31, 100 << 30] {
            assert!(bytes / of_ranges(bytes).avg() as u64 <= MOST_DESCRIBED, "{bytes}");
        }
    }
}
