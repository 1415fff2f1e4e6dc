//! How long to wait before something that failed is tried again: longer each time, and not just as long as others wait.

use std::time::Duration;

/// The first wait.
const FIRST: Duration = Duration::from_millis(500);

/// The longest one.
pub const LONGEST: Duration = Duration::from_secs(60);

/// Between three quarters and five quarters of `time`, for what many do every so often. `random` is any number.
pub fn jittered(time: Duration, random: u64) -> Duration {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let least = millis - millis / 4;
    Duration::from_millis(least.saturating_add(random % (millis / 2 + 1)))
}

/// Waits that double from half a second to a minute. Each is cut by up to a half, so that many who lost the same peer do
/// not come back to it at the same moment.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After another failure. `random` is any number, another one each time.
    pub fn next(&mut self, random: u64) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let millis = u64::try_from(full.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(millis - random % (millis / 2 + 1))
    }

    /// It went well.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How often it failed since it last went well.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..9).map(|_| backoff.next(0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]);
        backoff.reset();
        assert_eq!((backoff.failures(), backoff.next(0)), (0, FIRST));
    }

    proptest! {
        #[test]
        fn what_is_done_every_so_often_is_done_a_quarter_earlier_or_later(millis in 0..1_u64 << 40, random: u64) {
            let jittered = jittered(Duration::from_millis(millis), random).as_millis() as u64;
            prop_assert!(jittered >= millis - millis / 4 && jittered <= millis + millis / 4 + 1);
        }

        #[test]
        fn a_wait_is_at_least_half_of_what_it_may_be(failures in 0..100u32, random: u64) {
            let wait = Backoff { failures }.next(random);
            let full = Backoff { failures }.next(0);
            prop_assert!(wait <= full && wait >= full / 2 && full <= LONGEST);
        }
    }
}
