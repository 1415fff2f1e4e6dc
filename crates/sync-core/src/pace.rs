//! A limit on bytes per second, for `--bwlimit`: how long to wait before the next bytes may go.
//!
//! A token bucket in the form of virtual scheduling (the generic cell rate algorithm, ITU-T I.371): one number, the
//! time at which all that was let through would have left at the exact rate. No clock: `now` is any monotonic time.

use std::time::Duration;

/// How far ahead of the exact rate a burst may run.
const BURST: Duration = Duration::from_millis(50);

/// The largest packet at the usual Ethernet MTU. It goes at once at any rate, else the slowest would never start.
const PACKET: u64 = 1500;

/// Nanoseconds in a second.
const SECOND: u128 = 1_000_000_000;

/// A limit, and what has gone so far. Times are kept as nanoseconds times rate, so that nothing is ever rounded away.
#[derive(Clone, Debug)]
pub struct Pace {
    rate: u128,
    /// When the bytes so far are through at the exact rate.
    through: u128,
    burst: u128,
}

impl Pace {
    /// A limit in bytes per second; 0 is taken as 1.
    pub fn new(bytes_per_sec: u64) -> Self {
        let rate = u128::from(bytes_per_sec.max(1));
        let burst = (BURST.as_nanos() * rate).max(u128::from(PACKET) * SECOND);
        Self { rate, through: 0, burst }
    }

    /// How long to wait from `now` before handing `bytes` to the link. They are counted as sent: the caller waits, then
    /// sends. A piece larger than [`Pace::piece`] waits until there is room for it, and then goes as one burst.
    pub fn delay(&mut self, now: Duration, bytes: u64) -> Duration {
        let now = now.as_nanos().saturating_mul(self.rate);
        self.through = self.through.max(now).saturating_add(u128::from(bytes) * SECOND);
        // Rounded up: a nanosecond too early, again and again, is a rate too high.
        let wait = self.through.saturating_sub(now.saturating_add(self.burst)).div_ceil(self.rate);
        Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    /// The largest piece that keeps to the burst, in bytes: cut what is sent into pieces no larger.
    pub fn piece(&self) -> u64 {
        u64::try_from(self.burst / SECOND).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends pieces for `span`, waiting as told; the bytes that went.
    fn send(pace: &mut Pace, start: Duration, span: Duration, mut piece: impl FnMut() -> u64) -> u64 {
        let (mut now, mut sent) = (start, 0);
        loop {
            let bytes = piece();
            now += pace.delay(now, bytes);
            if now > start + span {
                return sent;
            }
            sent += bytes;
        }
    }

    #[test]
    fn the_long_run_rate_is_kept() {
        for rate in [10_000, 500 << 10, 4 << 20, 125_000_000, 10_000_000_000] {
            let mut pace = Pace::new(rate);
            let mut turn = 0;
            let largest = pace.piece();
            let sent = send(&mut pace, Duration::ZERO, Duration::from_secs(20), || {
                turn += 1;
                (largest / (1 + turn % 7)).max(1)
            });
            let share = sent as f64 / (rate * 20) as f64;
            assert!((0.98..=1.02).contains(&share), "{rate} B/s: {share}");
        }
    }

    #[test]
    fn time_without_traffic_saves_up_no_more_than_a_burst() {
        let rate = 1 << 20;
        let mut pace = Pace::new(rate);
        send(&mut pace, Duration::ZERO, Duration::from_secs(1), || 1000);
        let later = Duration::from_secs(3600);
        let sent = send(&mut pace, later, Duration::ZERO, || 1000);
        assert!(sent <= rate / 20 && sent > rate / 20 - 1000, "{sent}");
    }

    #[test]
    fn one_packet_always_goes_and_the_next_waits() {
        let mut pace = Pace::new(0);
        assert_eq!(pace.piece(), PACKET);
        assert_eq!(pace.delay(Duration::ZERO, PACKET), Duration::ZERO);
        assert_eq!(pace.delay(Duration::ZERO, 100), Duration::from_secs(100));
    }

    #[test]
    fn a_large_piece_waits_for_its_room() {
        let mut pace = Pace::new(1000);
        assert_eq!(pace.delay(Duration::ZERO, 11_500), Duration::from_secs(10));
        assert_eq!(pace.delay(Duration::from_secs(10), 1000), Duration::from_secs(1));
    }

    #[test]
    fn extreme_numbers_do_no_harm() {
        let mut pace = Pace::new(u64::MAX);
        assert_eq!(pace.delay(Duration::MAX, 1), Duration::ZERO);
        let mut pace = Pace::new(1);
        assert!(pace.delay(Duration::ZERO, u64::MAX) > Duration::from_secs(1 << 33));
    }
}
