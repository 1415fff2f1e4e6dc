//! Compression of content on the wire: what is worth it, and the bounds under which a peer's frames are opened.
//!
//! zstd (RFC 8878): over blocks that stand alone ([`Compressor`]), over all blocks of a stream ([`StreamCompressor`]), and behind what
//! both sides have ([`compress_after`]). Whether to compress at all is [`AutoCompress`]'s decision, made from how the link behaves; for one
//! block it is the size that decides.

mod after;
mod auto;
mod stream;

use std::io;

pub use after::{compress_after, decompress_after};
pub use auto::{AutoCompress, FAST_LINK, Observation};
pub use stream::{FRAME_END, StreamCompressor, StreamDecompressor};

/// The level of [`AutoCompress`] at first: with long matches found by themselves it still outruns a gigabit link on one core.
pub const LIGHT_LEVEL: i32 = 3;

/// Its level where the link leaves time for it: twice the work for a sixth less.
pub const STRONG_LEVEL: i32 = 9;

/// Levels a person may ask for. Above 19 zstd wants more memory from the receiver than one block is worth.
pub const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

/// Compresses blocks one by one, with one set of tables (a megabyte or so at level 3).
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
}

impl Compressor {
    /// A compressor at `level`, moved into [`LEVELS`].
    ///
    /// # Errors
    /// zstd could not set itself up, which means that memory is short.
    pub fn new(level: i32) -> io::Result<Self> {
        let zstd = zstd::bulk::Compressor::new(level.clamp(*LEVELS.start(), *LEVELS.end()))?;
        Ok(Self { zstd })
    }

    /// The block as one frame; `None` if that would save less than 5 %, and it should go as it is.
    pub fn compress(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        // zstd gives up as soon as the room is full, so content that does not shrink costs no second look. Any other
        // failure also means that the block goes as it is, which is always right.
        let mut frame = Vec::with_capacity(bytes.len() / 100 * 95 + bytes.len() % 100 * 95 / 100);
        self.zstd.compress_to_buffer(bytes, &mut frame).ok()?;
        // The allocator may have given more room than was asked for.
        (frame.len() as u64 * 100 <= bytes.len() as u64 * 95).then(|| {
            frame.shrink_to_fit();
            frame
        })
    }
}

/// Why a frame from a peer was not opened.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// It claims to hold more than is allowed; nothing was allocated for it.
    #[error("a compressed block claims {claimed} bytes, at most {limit} are allowed")]
    TooLarge {
        /// What the peer said.
        claimed: usize,
        /// The bound of the caller.
        limit: usize,
    },
    /// It holds fewer bytes than it claims.
    #[error("a compressed block claims {claimed} bytes and holds {found}")]
    Short {
        /// What the peer said.
        claimed: usize,
        /// What came out.
        found: usize,
    },
    /// It is damaged, or holds more bytes than it claims.
    #[error("a compressed block cannot be opened: {0}")]
    Damaged(#[source] io::Error),
}

/// Opens what [`Compressor::compress`] made from exactly `expected` bytes.
///
/// Memory: `expected`, which must be within `limit`, and zstd's fixed context. A frame's own claims about sizes and
/// windows allocate nothing.
///
/// # Errors
/// [`DecompressError`] for anything that is not a frame of exactly `expected` bytes.
pub fn decompress(frame: &[u8], expected: usize, limit: usize) -> Result<Vec<u8>, DecompressError> {
    if expected > limit {
        return Err(DecompressError::TooLarge { claimed: expected, limit });
    }
    let bytes = zstd::bulk::Decompressor::new()
        .and_then(|mut zstd| {
            let mut bytes = Vec::with_capacity(expected);
            zstd.decompress_to_buffer(frame, &mut bytes)?;
            Ok(bytes)
        })
        .map_err(DecompressError::Damaged)?;
    match bytes.len() {
        found if found == expected => Ok(bytes),
        found if found < expected => Err(DecompressError::Short { claimed: expected, found }),
        // The allocator may have given more room than was asked for.
        _ => Err(DecompressError::Damaged(io::Error::other("it holds more bytes than it claims"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::noise;
    use proptest::prelude::*;

    const LIMIT: usize = 1 << 20;

    fn compress(bytes: &[u8]) -> Option<Vec<u8>> {
        Compressor::new(LIGHT_LEVEL).unwrap().compress(bytes)
    }

    #[test]
    fn blocks_come_back_whole() {
        let text = b"a line of a log file, much like the one before\n".repeat(1000);
        let mut compressor = Compressor::new(LIGHT_LEVEL).unwrap();
        for bytes in [&text[..], &text[..200], &vec![0; LIMIT]] {
            let frame = compressor.compress(bytes).unwrap();
            assert!(frame.len() < bytes.len() * 95 / 100);
            assert_eq!(decompress(&frame, bytes.len(), LIMIT).unwrap(), bytes);
        }
    }

    #[test]
    fn what_does_not_shrink_by_a_twentieth_goes_as_it_is() {
        assert_eq!(compress(&noise(100_000, 1)), None);
        assert_eq!(compress(b""), None);
        assert_eq!(compress(b"short"), None);
        // Three per cent of zeros save three per cent.
        let mut nearly = noise(100_000, 1);
        nearly[..3000].fill(0);
        assert_eq!(compress(&nearly), None);
        nearly[..10_000].fill(0);
        assert!(compress(&nearly).is_some());
    }

    #[test]
    fn levels_out_of_range_are_moved_into_it() {
        for level in [i32::MIN, 0, 22, i32::MAX] {
            assert!(Compressor::new(level).unwrap().compress(&[0; 4096]).is_some());
        }
    }

    #[test]
    fn a_frame_holds_exactly_what_it_claims() {
        let bytes = vec![7; 10_000];
        let frame = compress(&bytes).unwrap();
        assert!(matches!(
            decompress(&frame, 10_001, LIMIT),
            Err(DecompressError::Short { claimed: 10_001, found: 10_000 })
        ));
        assert!(matches!(decompress(&frame, 9999, LIMIT), Err(DecompressError::Damaged(_))));
        assert!(matches!(decompress(&frame, 0, LIMIT), Err(DecompressError::Damaged(_))));
        assert!(matches!(decompress(&frame, LIMIT + 1, LIMIT), Err(DecompressError::TooLarge { .. })));
        assert!(matches!(decompress(&frame, usize::MAX, LIMIT), Err(DecompressError::TooLarge { .. })));
        assert!(decompress(&frame[..frame.len() - 1], 10_000, LIMIT).is_err());
        // 64 MiB of zeros in a few KB, claimed to be small.
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        assert!(matches!(decompress(&bomb, 1000, LIMIT), Err(DecompressError::Damaged(_))));
    }

    proptest! {
        #[test]
        fn noise_and_flipped_bits_are_errors_or_the_right_length(
            mut frame in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..300),
                Just(compress(&b"abcdefghij".repeat(100)).unwrap()),
            ],
            flip in any::<prop::sample::Index>(),
            mask in any::<u8>(),
        ) {
            if !frame.is_empty() {
                let at = flip.index(frame.len());
                frame[at] ^= mask;
            }
            if let Ok(bytes) = decompress(&frame, 1000, LIMIT) {
                prop_assert_eq!(bytes.len(), 1000);
            }
        }
    }
}
