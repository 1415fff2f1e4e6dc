//! Compression of content on the wire: what is worth it, and the bounds under which a peer's frames are opened.
//!
//! zstd (RFC 8878) over whole blocks, each of which stands alone. Whether to compress at all is [`AutoCompress`]'s
//! decision, made from how the link behaves; for one block it is the size that decides.

mod after;
mod stream;

use std::io;
use std::time::Duration;

pub use after::{compress_after, decompress_after};
pub use stream::{StreamCompressor, StreamDecompressor};

/// The level where nobody asked for one: the strongest that still outruns a gigabit link on one core.
pub const DEFAULT_LEVEL: i32 = 3;

/// Levels a person may ask for. Above 19 zstd wants more memory from the receiver than one block is worth.
pub const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

/// Compresses blocks one by one, with one set of tables (a megabyte or so at the default level).
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

/// What one sender did since it last told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Bytes of content handed to the link, counted before compression.
    pub content: u64,
    /// Time spent on it: compressing, handing over and waiting for the link, but not waiting for content.
    pub working: Duration,
    /// The part of `working` that was spent waiting for the link.
    pub blocked: Duration,
}

/// Decides whether to compress, from what a sender sees of its link. Sans-IO: observations in, an answer out.
///
/// It starts off, and tries compression when the link is what everything waits for. Then it compares: compression stays
/// as long as it brings more content across in the same time. That one rule covers the link that outruns the
/// compressor, content that does not shrink, and a replica whose disk is the narrow place; each attempt that brings
/// nothing doubles the wait before the next, and now and then a window goes plain to see whether the link got faster. A link beyond [`FAST_LINK`] is never tried: there a CPU that both sides
/// may share has better things to do.
#[derive(Clone, Debug, Default)]
pub struct AutoCompress {
    on: bool,
    window: Observation,
    /// Bytes per second without compression, while the link was the narrow place.
    plain_rate: u64,
    /// Windows left before another attempt.
    hold: u32,
    /// Attempts in a row that brought nothing.
    failures: u32,
    /// Windows since compression was turned on.
    on_for: u32,
}

/// Bytes per second beyond which compression is not tried: three quarters of what zstd takes at [`DEFAULT_LEVEL`] on one
/// core (0.26 to 0.45 GB/s), so that the outcome is open.
pub const FAST_LINK: u64 = 200_000_000;

/// An opinion is formed after this much content, which is a few round trips' worth on most links, …
const WINDOW_BYTES: u64 = 1 << 20;
/// … or this much time, on the slow ones.
const WINDOW_TIME: Duration = Duration::from_millis(100);
/// Most windows between two attempts.
const LONGEST_HOLD: u32 = 64;
/// Windows of compression before the plain rate is measured again: it costs less than a hundredth.
const LONGEST_ON: u32 = 128;

impl AutoCompress {
    /// Off, until the link proves slow.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the next block should be compressed.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Takes what was done under the present answer, and returns the next answer.
    pub fn observe(&mut self, seen: Observation) -> bool {
        self.window.content = self.window.content.saturating_add(seen.content);
        self.window.working = self.window.working.saturating_add(seen.working);
        self.window.blocked = self.window.blocked.saturating_add(seen.blocked);
        if self.window.content >= WINDOW_BYTES || self.window.working >= WINDOW_TIME {
            let window = std::mem::take(&mut self.window);
            // Without content there is nothing to compare.
            if window.content > 0 {
                self.judge(window);
            }
        }
        self.on
    }

    fn judge(&mut self, window: Observation) {
        let rate = rate(window.content, window.working);
        if self.on {
            // A tenth more, or it is not worth the heat.
            if rate < self.plain_rate.saturating_add(self.plain_rate / 10) {
                self.on = false;
                self.hold = (4u32 << self.failures.min(8)).min(LONGEST_HOLD);
                self.failures = self.failures.saturating_add(1);
            } else {
                self.failures = 0;
                self.on_for += 1;
                self.on = self.on_for < LONGEST_ON;
            }
            return;
        }
        self.hold = self.hold.saturating_sub(1);
        let link_is_narrow = window.blocked.saturating_mul(2) >= window.working;
        if link_is_narrow && self.hold == 0 && rate < FAST_LINK {
            self.plain_rate = rate;
            self.on = true;
            self.on_for = 0;
        }
    }
}

/// Bytes per second, at least 1 so that a tenth more is always more.
fn rate(bytes: u64, time: Duration) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / time.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::noise;
    use proptest::prelude::*;

    const LIMIT: usize = 1 << 20;

    fn compress(bytes: &[u8]) -> Option<Vec<u8>> {
        Compressor::new(DEFAULT_LEVEL).unwrap().compress(bytes)
    }

    #[test]
    fn blocks_come_back_whole() {
        let text = b"a line of a log file, much like the one before\n".repeat(1000);
        let mut compressor = Compressor::new(DEFAULT_LEVEL).unwrap();
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

    const MB: u64 = 1_000_000;

    /// A link and a compressor, each with its own speed in bytes of content per second, working at the same time.
    fn drive(auto: &mut AutoCompress, link: u64, compressor: u64, ratio: u64, blocks: usize) -> usize {
        let block = 256 << 10;
        let mut compressed = 0;
        for _ in 0..blocks {
            let on = auto.is_on();
            compressed += usize::from(on);
            let time = |rate: u64| Duration::from_nanos(block * 1_000_000_000 / rate);
            let (on_link, on_cpu) =
                if on { (time(link * ratio), time(compressor)) } else { (time(link), time(2000 * MB)) };
            let working = on_link.max(on_cpu);
            auto.observe(Observation { content: block, working, blocked: working - on_cpu });
        }
        compressed
    }

    #[test]
    fn it_compresses_where_that_is_faster() {
        // Link, compressor, ratio, whether most of 4000 blocks are compressed.
        let table = [
            (12 * MB, 300 * MB, 3, true),
            (110 * MB, 300 * MB, 3, true),
            (MB / 100, 300 * MB, 3, true),
            // So well that the link is never waited for again: still faster.
            (50 * MB, 300 * MB, 100, true),
            // Loopback.
            (1500 * MB, 300 * MB, 3, false),
            (250 * MB, 300 * MB, 3, false),
            // The link outruns the compressor.
            (150 * MB, 120 * MB, 3, false),
            // Content that does not shrink.
            (12 * MB, 300 * MB, 1, false),
        ];
        for (link, compressor, ratio, expected) in table {
            let mut auto = AutoCompress::new();
            assert!(!auto.is_on());
            let compressed = drive(&mut auto, link, compressor, ratio, 4000);
            let share = if expected { 3900..=4000 } else { 0..=150 };
            assert!(share.contains(&compressed), "{link} {compressor} {ratio}: {compressed}");
        }
    }

    #[test]
    fn it_follows_a_change() {
        let mut auto = AutoCompress::new();
        drive(&mut auto, 12 * MB, 300 * MB, 1, 2000);
        assert!(drive(&mut auto, 12 * MB, 300 * MB, 3, 2000) > 1500, "content that shrinks after some that does not");
        assert!(drive(&mut auto, 12 * MB, 300 * MB, 1, 2000) < 200, "and back");
        drive(&mut auto, 12 * MB, 300 * MB, 3, 2000);
        assert!(drive(&mut auto, 1500 * MB, 300 * MB, 3, 2000) < 600, "a link that got faster");
    }

    #[test]
    fn waiting_for_content_is_no_reason() {
        let mut auto = AutoCompress::new();
        for _ in 0..1000 {
            let working = Duration::from_millis(10);
            assert!(!auto.observe(Observation { content: 10_000, working, blocked: Duration::from_millis(1) }));
        }
        auto.observe(Observation::default());
        let forever = Observation { content: 0, working: Duration::MAX, blocked: Duration::MAX };
        assert!(!auto.observe(forever));
    }
}
