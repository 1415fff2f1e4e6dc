//! The finer level: pieces of about half a kilobyte, cut where chunks differ or where a file is too small to have any. They
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

/// The same in ranges of large ones, where a piece costs as much, for its length travels in place of some of its hash.
const LARGE: u8 = 9;

/// Bytes of a piece of a large file as it travels, …
const NARROW: u8 = 4;

/// … and of one among more than [`FEW`]: so at most one large file in a thousand is made wrong by a false match, which
/// [`Matcher`](crate::delta::Matcher) looks for near the place where it should be.
const WIDE: u8 = 5;

/// Most pieces for which [`NARROW`] ones do.
const FEW: u64 = 1 << 15;

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

/// How old content of a large file is cut, and what is told of each piece. Both ends derive it from the number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    sizes: Chunking,
    width: u8,
}

impl Form {
    /// For `bytes` bytes in all, cut with these sizes.
    pub fn new(sizes: Chunking, bytes: u64) -> Self {
        let width = if bytes >> sizes.bits > FEW { WIDE } else { NARROW };
        Self { sizes, width }
    }

    /// For ranges of `bytes` bytes in all: larger pieces where there would be more than [`MOST_DESCRIBED`].
    pub fn of_ranges(bytes: u64) -> Self {
        let mut bits = LARGE;
        while bytes >> bits > MOST_DESCRIBED {
            bits += 1;
        }
        Self::new(Chunking::of_bits(bits.min(super::LARGEST)), bytes)
    }

    /// How it is cut.
    pub fn sizes(self) -> Chunking {
        self.sizes
    }

    /// What is told of a piece.
    pub fn piece(self, bytes: &[u8]) -> Piece {
        Piece::of(bytes, 8 * u32::from(self.width) - self.len_bits())
    }

    /// Bits that hold the length of every piece, less one.
    fn len_bits(self) -> u32 {
        self.sizes.max().trailing_zeros()
    }
}

/// A list of pieces. Each travels as one number of 4 or 5 bytes: its length less one in the lowest bits, and its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// What is told of each.
    pub form: Form,
    /// In their order.
    pub list: Vec<Piece>,
}

impl Serialize for Pieces {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { form, list } = self;
        let number = |piece: &Piece| piece.hash << form.len_bits() | u64::from(piece.len.saturating_sub(1));
        let bytes = list.iter().flat_map(|piece| number(piece).to_le_bytes().into_iter().take(form.width.into()));
        (form.sizes, form.width, bytes.collect::<Vec<u8>>()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Pieces {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (sizes, width, bytes) = <(Chunking, u8, Vec<u8>)>::deserialize(deserializer)?;
        let form = Form { sizes, width };
        if !(NARROW..=WIDE).contains(&width) || bytes.len() % usize::from(width) != 0 {
            return Err(D::Error::custom("whole pieces of four or five bytes are wanted"));
        }
        let piece = |bytes: &[u8]| {
            let number = bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
            let len = (number & ((1 << form.len_bits()) - 1)) as u32 + 1;
            Piece { hash: number >> form.len_bits(), len }
        };
        Ok(Self { form, list: bytes.chunks_exact(width.into()).map(piece).collect() })
    }
}

/// How small files are cut.
pub fn small() -> Chunking {
    Chunking::of_bits(SMALL)
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
        let form = Form::of_ranges(6000);
        let (piece, whole) = (form.piece(&content[..605]), Piece::of(&content[..605], 32));
        assert_eq!((piece.hash, piece.len), (whole.hash >> 11, 605));
    }

    #[test]
    fn the_number_of_described_pieces_is_bounded() {
        assert_eq!(Form::of_ranges(1).sizes().avg(), 512);
        for bytes in [1 << 20, 1 << 28, (1 << 28) + 1, 1 << 31, 100 << 30] {
            assert!(bytes / Form::of_ranges(bytes).sizes().avg() as u64 <= MOST_DESCRIBED, "{bytes}");
        }
        assert_eq!([FEW << 9, (FEW << 9) + 512].map(|bytes| Form::of_ranges(bytes).width), [4, 5]);
    }

    /// The longest and the shortest piece of each form, all bits of its hash set.
    #[test]
    fn pieces_come_back() {
        for bytes in [1, 1 << 25, 1 << 31, 1 << 50] {
            let form = Form::of_ranges(bytes);
            let hash = (1 << (8 * u32::from(form.width) - form.len_bits())) - 1;
            let lens = [1, form.sizes.min() as u32, form.sizes.max() as u32];
            let pieces = Pieces { form, list: lens.map(|len| Piece { hash, len }).to_vec() };
            let told = postcard::to_allocvec(&pieces).unwrap();
            assert_eq!(told.len(), 3 + 3 * usize::from(form.width), "{bytes}");
            assert_eq!(postcard::from_bytes::<Pieces>(&told), Ok(pieces), "{bytes}");
        }
        for noise in [&[9, 4, 3, 0, 0, 0][..], &[9, 3, 3, 0, 0, 0], &[9, 8, 0], &[23, 4, 0]] {
            assert!(postcard::from_bytes::<Pieces>(noise).is_err(), "{noise:?}");
        }
    }
}
