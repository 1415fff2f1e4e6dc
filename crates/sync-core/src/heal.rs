//! What a replica does about drift: changes to its tree that did not come from the master.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is done when somebody else changed a replica's tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Heal {
    /// It is logged, and undone from the master.
    #[default]
    Heal,
    /// It is logged.
    Report,
    /// Nobody looks for it.
    Off,
}

/// The pause after drift that was healed.
const FIRST: Duration = Duration::from_secs(2);

/// The longest one.
const LONGEST: Duration = Duration::from_secs(60);

/// A share has rested when nothing drifted for so many times its present pause.
const REST: u32 = 4;

/// When a share that drifted may be looked at again: a program that writes to a replica all the time shall not be fought
/// at full speed. Sans-IO: `now` is any monotonic time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pauses {
    /// When it drifted last, and the pause after that.
    last: Option<(Duration, Duration)>,
}

impl Pauses {
    /// The earliest time to look again.
    pub fn until(&self) -> Duration {
        self.last.map_or(Duration::ZERO, |(at, pause)| at.saturating_add(pause))
    }

    /// The share has drifted. Returns the pause that follows: twice the last one, unless it has rested since.
    pub fn drifted(&mut self, now: Duration) -> Duration {
        let pause = match self.last {
            Some((at, pause)) if now.saturating_sub(at) < pause.saturating_mul(REST) => {
                pause.saturating_mul(2).min(LONGEST)
            }
            _ => FIRST,
        };
        self.last = Some((now, pause));
        pause
    }

    /// Whether the share drifted three times or more without a rest.
    pub fn is_restless(&self) -> bool {
        self.last.is_some_and(|(_, pause)| pause > FIRST * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn drift_is_healed_at_once_and_then_ever_later_until_the_share_rests() {
        let mut pauses = Pauses::default();
        assert_eq!(pauses.until(), Duration::ZERO);
        // Somebody writes all the time: each look finds something.
        let mut now = secs(100);
        let waits: Vec<u64> = (0..7)
            .map(|_| {
                let pause = pauses.drifted(now);
                assert_eq!(pauses.until(), now + pause);
                now += pause;
                pause.as_secs()
            })
            .collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60]);
        assert!(pauses.is_restless());
        let mut twice = Pauses::default();
        twice.drifted(secs(1));
        twice.drifted(secs(2));
        assert!(!twice.is_restless());
        now += secs(60) * (REST - 1) - Duration::from_millis(1);
        assert_eq!(pauses.drifted(now), secs(60), "it has not rested");
        now += secs(60) * REST;
        assert_eq!(pauses.drifted(now), FIRST);
        assert!(!pauses.is_restless());
    }
}
