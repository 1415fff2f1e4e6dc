//! The clock that stamps inodes, and when a time stamp is old enough that a later change must show.
//!
//! Local file systems stamp with the kernel's coarse clock, which stands still between two ticks (1 to 10 ms). Two
//! changes within one tick leave equal stamps, so a stamp as young as the tick in which we look proves nothing.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::manifest::Time;

/// How far the clock of a network file system may be from ours before we would believe a stamp too early.
const REMOTE_SKEW: i64 = 60;

/// The kernel's coarse real-time clock: what a file changed at this moment is stamped with, at the earliest.
pub fn now() -> Time {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    Time { sec: now.tv_sec, nsec: u32::try_from(now.tv_nsec).unwrap_or(0) }
}

/// Whether any change of an inode made at `at` or later gives it another ctime than `ctime`.
///
/// File systems cut stamps to what they can hold (FAT to two seconds, ext3 to one, NTFS to 100 ns): the zeros at the
/// end of a stamp say how coarse it may be, and `at` is cut in the same way before they are compared. `remote` asks
/// for more distance, because the stamp comes from a clock that is not ours.
pub fn settled(ctime: Time, at: Time, remote: bool) -> bool {
    let at = if remote { Time { sec: at.sec.saturating_sub(REMOTE_SKEW), ..at } } else { at };
    ctime < coarsened(at, ctime.nsec)
}

/// `at` cut to the grain that a stamp with these nanoseconds may have been cut to.
fn coarsened(at: Time, nsec: u32) -> Time {
    if nsec == 0 {
        return Time { sec: at.sec - at.sec.rem_euclid(2), nsec: 0 };
    }
    let mut grain = 1;
    while nsec.is_multiple_of(grain * 10) {
        grain *= 10;
    }
    Time { sec: at.sec, nsec: at.nsec - at.nsec % grain }
}

/// Sleeps until `ctime` is [`settled`], but no longer than `most`; says whether it is. For local file systems.
pub fn wait_past(ctime: Time, most: Duration) -> bool {
    const NAP: Duration = Duration::from_millis(1);
    let mut left = most;
    while !settled(ctime, now(), false) {
        let Some(less) = left.checked_sub(NAP) else { return false };
        left = less;
        std::thread::sleep(NAP);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(sec: i64, nsec: u32) -> Time {
        Time { sec, nsec }
    }

    #[test]
    fn a_stamp_of_this_very_tick_proves_nothing() {
        assert!(!settled(t(10, 123_456_789), t(10, 123_456_789), false));
        assert!(settled(t(10, 123_456_789), t(10, 123_456_790), false));
        assert!(!settled(t(11, 1), t(10, 5), false), "a stamp from the future");
        // Nanoseconds in tens of milliseconds: the file system may hold no finer ones.
        assert!(!settled(t(10, 120_000_000), t(10, 129_999_999), false));
        assert!(settled(t(10, 120_000_000), t(10, 130_000_000), false));
        // Whole seconds: perhaps two of them.
        assert!(!settled(t(10, 0), t(11, 999_999_999), false));
        assert!(settled(t(10, 0), t(12, 0), false));
        assert!(!settled(t(-1, 5), t(-1, 5), false) && settled(t(-3, 5), t(-1, 0), false));
        assert!(!settled(t(10, 5), t(40, 5), true) && settled(t(10, 5), t(71, 0), true));
    }

    #[test]
    fn waiting_ends() {
        assert!(wait_past(now(), Duration::from_secs(5)));
        let ahead = Time { sec: now().sec + 1000, nsec: 5 };
        assert!(!wait_past(ahead, Duration::from_millis(5)));
    }
}
