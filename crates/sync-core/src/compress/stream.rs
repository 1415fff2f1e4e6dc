//! What a content stream carries compressed is one zstd frame after the other, mostly one: what was sent before helps with what comes.
//! Measured on a web deploy, that halves what each batch alone would take; see docs/delta.md.
//!
//! Each block is flushed, so that the peer can open it when it has come. The frame ends only where another level is wanted.

use std::io;

use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

use super::{DecompressError, LEVELS};

/// Power of two of the bytes that are remembered at either end: 8 MiB, the most that every zstd decoder must bear
/// (RFC 8878, 3.1.1.1.2).
const WINDOW: u32 = 23;

/// The same from [`THOROUGH`] on: 32 MiB.
const WIDE_WINDOW: u32 = 25;

/// From this level on the wide window pays: see docs/delta.md.
const THOROUGH: i32 = 6;

/// Of a block of at least this many bytes some are tried before the whole is compressed.
const TRIED: usize = 64 << 10;

/// Bytes that are tried at the beginning, in the middle and at the end of a block.
const SAMPLE: usize = 8 << 10;

/// Ends the frame that a [`StreamCompressor`] left open: an empty block that is the last one (RFC 8878, 3.1.1.2).
pub const FRAME_END: [u8; 3] = [1, 0, 0];

/// Compresses the blocks of a stream. Memory: the window and zstd's tables, from some 12 MB in all at level 3 to some 50 at 9.
pub struct StreamCompressor {
    zstd: Encoder<'static>,
    level: i32,
}

impl StreamCompressor {
    /// A compressor at `level`, moved into [`LEVELS`].
    ///
    /// # Errors
    /// zstd could not set itself up, which means that memory is short.
    pub fn new(level: i32) -> io::Result<Self> {
        let level = level.clamp(*LEVELS.start(), *LEVELS.end());
        let is_thorough = level >= THOROUGH;
        let mut zstd = Encoder::new(level)?;
        zstd.set_parameter(CParameter::WindowLog(if is_thorough { WIDE_WINDOW } else { WINDOW }))?;
        zstd.set_parameter(CParameter::EnableLongDistanceMatching(true))?;
        if !is_thorough {
            zstd.set_parameter(CParameter::LdmMinMatch(32))?;
            zstd.set_parameter(CParameter::LdmHashRateLog(5))?;
        }
        zstd.set_parameter(CParameter::ContentSizeFlag(false))?;
        zstd.set_parameter(CParameter::ChecksumFlag(false))?;
        Ok(Self { zstd, level })
    }

    /// At which level the last block was compressed.
    pub fn level(&self) -> i32 {
        self.level
    }

    /// The next block, at `level`: where that is another one, the frame ends and a new one begins, which knows nothing of what was sent
    /// before. `None` if what the block holds does not shrink, and it should go as it is.
    ///
    /// # Errors
    /// zstd failed: nothing can be compressed any more.
    pub fn compress(&mut self, bytes: &[u8], level: i32) -> io::Result<Option<Vec<u8>>> {
        if bytes.is_empty() || !shrinks(bytes) {
            return Ok(None);
        }
        let mut out = Vec::with_capacity(bytes.len() / 2 + 1024);
        if level.clamp(*LEVELS.start(), *LEVELS.end()) != self.level {
            let next = Self::new(level)?;
            drain(&mut out, |output| self.zstd.finish(output, true))?;
            *self = next;
        }
        let mut input = InBuffer::around(bytes);
        while input.pos() < bytes.len() {
            grow(&mut out, 4096);
            let written = out.len();
            let mut output = OutBuffer::around_pos(&mut out, written);
            self.zstd.run(&mut input, &mut output)?;
        }
        drain(&mut out, |output| self.zstd.flush(output))?;
        Ok(Some(out))
    }
}

/// Takes what zstd still has, until it says that it has nothing.
fn drain(out: &mut Vec<u8>, mut more: impl FnMut(&mut OutBuffer<'_, Vec<u8>>) -> io::Result<usize>) -> io::Result<()> {
    loop {
        grow(out, 4096);
        let written = out.len();
        if more(&mut OutBuffer::around_pos(out, written))? == 0 {
            return Ok(());
        }
    }
}

fn grow(out: &mut Vec<u8>, room: usize) {
    if out.capacity() - out.len() < room {
        out.reserve(room.max(out.len()));
    }
}

/// Whether some bytes of a long block shrink by a twentieth. Media and archives do not, and would only take time and the
/// place of better things in the window.
fn shrinks(bytes: &[u8]) -> bool {
    if bytes.len() < TRIED {
        return true;
    }
    let middle = bytes.len() / 2;
    let some = [&bytes[..SAMPLE], &bytes[middle..middle + SAMPLE], &bytes[bytes.len() - SAMPLE..]].concat();
    zstd::bulk::compress(&some, 1).is_ok_and(|small| small.len() * 20 <= some.len() * 19)
}

/// Opens what a [`StreamCompressor`] made, block by block in its order. Memory: the window.
pub struct StreamDecompressor {
    zstd: Decoder<'static>,
}

impl StreamDecompressor {
    /// At the beginning of a stream.
    ///
    /// # Errors
    /// zstd could not set itself up, which means that memory is short.
    pub fn new() -> io::Result<Self> {
        let mut zstd = Decoder::new()?;
        zstd.set_parameter(DParameter::WindowLogMax(WIDE_WINDOW))?;
        Ok(Self { zstd })
    }

    /// The next block, which must hold exactly `expected` bytes, at most `limit`.
    ///
    /// # Errors
    /// [`DecompressError`] for anything else, after which nothing more can be opened.
    pub fn decompress(&mut self, block: &[u8], expected: usize, limit: usize) -> Result<Vec<u8>, DecompressError> {
        if expected > limit {
            return Err(DecompressError::TooLarge { claimed: expected, limit });
        }
        // One byte of room for what must not come.
        let mut bytes = vec![0; expected + 1];
        let mut output = OutBuffer::around(&mut bytes[..]);
        let mut input = InBuffer::around(block);
        loop {
            let before = (input.pos(), output.pos());
            self.zstd.run(&mut input, &mut output).map_err(DecompressError::Damaged)?;
            if output.pos() > expected {
                return Err(DecompressError::Damaged(io::Error::other("it holds more bytes than it claims")));
            }
            if (input.pos(), output.pos()) == before {
                break;
            }
        }
        match (output.pos(), input.pos()) {
            (found, _) if found < expected => Err(DecompressError::Short { claimed: expected, found }),
            (_, taken) if taken < block.len() => {
                Err(DecompressError::Damaged(io::Error::other("it goes on after its end")))
            }
            _ => {
                bytes.truncate(expected);
                Ok(bytes)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::noise;
    use crate::compress::{LIGHT_LEVEL, STRONG_LEVEL};

    const LIMIT: usize = 1 << 20;

    fn both() -> (StreamCompressor, StreamDecompressor) {
        (StreamCompressor::new(LIGHT_LEVEL).unwrap(), StreamDecompressor::new().unwrap())
    }

    #[test]
    fn what_came_before_helps_with_what_comes() {
        let (mut compressor, mut decompressor) = both();
        let text: Vec<u8> = noise(30_000, 5).iter().flat_map(|b| format!("{b} ").into_bytes()).collect();
        let first = compressor.compress(&text, LIGHT_LEVEL).unwrap().unwrap();
        let again = compressor.compress(&text, LIGHT_LEVEL).unwrap().unwrap();
        assert!(again.len() * 100 < first.len(), "{} and {}", first.len(), again.len());
        for block in [&first, &again] {
            assert_eq!(decompressor.decompress(block, text.len(), LIMIT).unwrap(), text);
        }
    }

    #[test]
    fn the_level_may_change_from_block_to_block() {
        let (mut compressor, mut decompressor) = both();
        let text: Vec<u8> = noise(100_000, 5).iter().flat_map(|b| format!("{b} ").into_bytes()).collect();
        let mut sizes = Vec::new();
        for level in [LIGHT_LEVEL, STRONG_LEVEL, STRONG_LEVEL, i32::MAX, 19, LIGHT_LEVEL] {
            // Noise in between neither ends a frame nor begins one.
            assert!(compressor.compress(&noise(LIMIT, 1), 1).unwrap().is_none());
            let block = compressor.compress(&text, level).unwrap().unwrap();
            assert_eq!(decompressor.decompress(&block, text.len(), LIMIT).unwrap(), text);
            sizes.push(block.len());
        }
        let begins: Vec<bool> = sizes.iter().map(|&size| size * 10 > sizes[0]).collect();
        assert_eq!(begins, [true, true, false, true, false, true], "{sizes:?}");
        assert!(sizes[1] < sizes[0], "{sizes:?}");
    }

    #[test]
    fn what_does_not_shrink_goes_as_it_is_and_is_not_remembered() {
        let (mut compressor, mut decompressor) = both();
        assert!(compressor.compress(&noise(LIMIT, 1), LIGHT_LEVEL).unwrap().is_none());
        assert!(compressor.compress(b"", LIGHT_LEVEL).unwrap().is_none());
        let block = compressor.compress(b"short", LIGHT_LEVEL).unwrap().unwrap();
        assert_eq!(decompressor.decompress(&block, 5, LIMIT).unwrap(), b"short");
    }

    #[test]
    fn a_block_holds_exactly_what_it_claims() {
        let bytes = vec![7; 10_000];
        for (claimed, fits) in [(10_000, true), (9_999, false), (10_001, false), (0, false), (LIMIT + 1, false)] {
            let (mut compressor, mut decompressor) = both();
            let block = compressor.compress(&bytes, LIGHT_LEVEL).unwrap().unwrap();
            assert_eq!(decompressor.decompress(&block, claimed, LIMIT).is_ok(), fits, "{claimed}");
        }
        // 64 MiB of zeros in a few KB, claimed to be small; a window of 128 MiB; an end, and something behind it.
        let mut wide = Encoder::new(1).unwrap();
        wide.set_parameter(CParameter::WindowLog(27)).unwrap();
        let mut begun = vec![0; 1 << 16];
        let mut output = OutBuffer::around(&mut begun[..]);
        wide.run(&mut InBuffer::around(&[1; 1000]), &mut output).unwrap();
        wide.flush(&mut output).unwrap();
        let len = output.pos();
        begun.truncate(len);
        let ended = zstd::bulk::compress(b"short", 1).unwrap();
        for (bad, claimed) in [
            (zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap(), 1000),
            (begun, 1000),
            ([&ended[..], b"more"].concat(), 5),
        ] {
            assert!(StreamDecompressor::new().unwrap().decompress(&bad, claimed, LIMIT).is_err(), "{claimed}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_blocks_come_back_whole(
            blocks in proptest::collection::vec((1usize..300_000, 1u64..20, any::<bool>(), prop::sample::select(&[1, 3, 9][..])), 1..8),
        ) {
            let (mut compressor, mut decompressor) = both();
            for (len, seed, text, level) in blocks {
                let mut bytes = noise(len, seed);
                if text {
                    bytes.iter_mut().for_each(|b| *b = b'a' + *b % 4);
                }
                if let Some(block) = compressor.compress(&bytes, level).unwrap() {
                    prop_assert_eq!(decompressor.decompress(&block, len, LIMIT).unwrap(), bytes);
                }
            }
        }

        #[test]
        fn noise_and_flipped_bits_are_errors_or_the_right_length(
            flip in any::<prop::sample::Index>(),
            mask in 1u8..,
        ) {
            let (mut compressor, mut decompressor) = both();
            let mut block = compressor.compress(&b"abcdefghij".repeat(100), LIGHT_LEVEL).unwrap().unwrap();
            let at = flip.index(block.len());
            block[at] ^= mask;
            if let Ok(bytes) = decompressor.decompress(&block, 1000, LIMIT) {
                prop_assert_eq!(bytes.len(), 1000);
            }
        }
    }
}
