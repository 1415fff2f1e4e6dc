//! One block behind something that both sides have: a zstd frame of its own with that as its prefix (`ZSTD_CCtx_refPrefix`).
//!
//! A prefix proves nothing: behind another one a frame opens to other bytes, or not at all.

use std::io;

use zstd::zstd_safe::{self, CCtx, CParameter, DCtx};

use super::{DecompressError, LEVELS};

/// Below this level a prefix is searched for long matches by themselves, which finds most of what it has; from there on,
/// the level's own tables do as well: see docs/delta.md.
const THOROUGH: i32 = 9;

/// Beside long matches, higher levels than this find little more behind a prefix, and take half as long again.
const ENOUGH: i32 = 3;

/// Power of two of the bytes from the end of a block back to the beginning of its prefix.
const WINDOW: std::ops::RangeInclusive<u32> = 10..=23;

/// The block behind `prefix`, at `level`; `None` if that would save less than 5 %, or memory is short. Memory: some 30 MB
/// at level 9 for a block and a prefix of 4 MiB.
pub fn compress_after(prefix: &[u8], bytes: &[u8], level: i32) -> Option<Vec<u8>> {
    let mut frame = Vec::with_capacity(bytes.len() / 100 * 95 + 16);
    let level = level.clamp(*LEVELS.start(), *LEVELS.end());
    let is_thorough = level >= THOROUGH;
    let reach = usize::BITS - (prefix.len() + bytes.len()).leading_zeros();
    let mut compress = || -> zstd_safe::SafeResult {
        let mut context = CCtx::try_create().ok_or(0usize)?;
        context.set_parameter(CParameter::CompressionLevel(if is_thorough { level } else { level.min(ENOUGH) }))?;
        context.set_parameter(CParameter::ContentSizeFlag(false))?;
        context.set_parameter(CParameter::WindowLog(reach.clamp(*WINDOW.start(), *WINDOW.end())))?;
        if !is_thorough {
            context.set_parameter(CParameter::EnableLongDistanceMatching(true))?;
            context.set_parameter(CParameter::LdmMinMatch(32))?;
            context.set_parameter(CParameter::LdmHashRateLog(5))?;
        }
        context.set_pledged_src_size(Some(bytes.len() as u64))?;
        context.ref_prefix(prefix)?;
        context.compress2(&mut frame, bytes)
    };
    compress().ok()?;
    (frame.len() as u64 * 100 <= bytes.len() as u64 * 95).then_some(frame)
}

/// Opens what [`compress_after`] made from exactly `expected` bytes. Memory: `expected`, which must be within `limit`.
///
/// # Errors
/// [`DecompressError`] for anything that is not a frame of exactly `expected` bytes behind that prefix.
pub fn decompress_after(
    prefix: &[u8],
    frame: &[u8],
    expected: usize,
    limit: usize,
) -> Result<Vec<u8>, DecompressError> {
    if expected > limit {
        return Err(DecompressError::TooLarge { claimed: expected, limit });
    }
    let mut bytes = Vec::with_capacity(expected);
    let mut decompress = || -> zstd_safe::SafeResult {
        let mut context = DCtx::try_create().ok_or(0usize)?;
        context.ref_prefix(prefix)?;
        context.decompress(&mut bytes, frame)
    };
    decompress().map_err(|code| DecompressError::Damaged(io::Error::other(zstd_safe::get_error_name(code))))?;
    match bytes.len() {
        found if found == expected => Ok(bytes),
        found if found < expected => Err(DecompressError::Short { claimed: expected, found }),
        // The allocator may have given more room than was asked for.
        _ => Err(DecompressError::Damaged(io::Error::other("it holds more bytes than it claims"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::noise;

    const LIMIT: usize = 1 << 20;

    #[test]
    fn a_block_costs_what_its_prefix_does_not_have() {
        let old = noise(300_000, 3);
        let new = [&old[..100_000], b"something else", &old[100_000..]].concat();
        for level in [1, 3, 9, 19] {
            assert_eq!(compress_after(b"", &new, level), None, "noise does not shrink");
            let frame = compress_after(&old, &new, level).unwrap();
            assert!(frame.len() < 2000, "level {level}: {}", frame.len());
            assert_eq!(decompress_after(&old, &frame, new.len(), LIMIT).unwrap(), new);
            for wrong in [new.len() - 1, new.len() + 1] {
                assert!(decompress_after(&old, &frame, wrong, LIMIT).is_err());
            }
            assert!(decompress_after(&old, &frame, LIMIT + 1, LIMIT).is_err());
        }
    }

    /// As large as a prefix and a block can be.
    #[test]
    fn the_window_reaches_to_the_beginning_of_the_prefix() {
        let old = noise(4 << 20, 3);
        // zstd takes no match from a prefix that is the block itself.
        let new = old.clone();
        for level in [3, 9] {
            let frame = compress_after(&old, &new, level).unwrap();
            // One of the 32 blocks zstd may miss.
            assert!(frame.len() < 200_000, "level {level}: {}", frame.len());
            assert_eq!(decompress_after(&old, &frame, new.len(), 4 << 20).unwrap(), new);
        }
    }

    proptest! {
        #[test]
        fn another_prefix_and_flipped_bits_are_errors_or_the_right_length(
            flip in any::<prop::sample::Index>(),
            mask in any::<u8>(),
            shorter in 0usize..5000,
        ) {
            let old = noise(5000, 7);
            let new = noise(4000, 7);
            let mut frame = compress_after(&old, &new, 3).unwrap();
            let at = flip.index(frame.len());
            frame[at] ^= mask;
            if let Ok(bytes) = decompress_after(&old[shorter..], &frame, 4000, LIMIT) {
                prop_assert_eq!(bytes.len(), 4000);
            }
        }
    }
}
