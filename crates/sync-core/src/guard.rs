//! A guard against a source that was wiped: a version that takes away too much of a tree is not taken for a change, be it at
//! once or little by little.
//!
//! Two things are too much. A version that deletes more than allowed of the tree before it, whatever comes in its place:
//! that is a wiped source, or another tree in its place. And a tree that is smaller by more than allowed than it was at
//! some time within [`WINDOW`]: that is `rm -rf`, slow enough to be many versions. What comes and goes within that time does
//! not add up, so a directory of sessions or a log that rotates is no alarm. No clock: `now` is any time that does not go back,
//! and goes on from one process to the next.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::path::escape;

/// How far back a tree is compared with what it was.
pub const WINDOW: Duration = Duration::from_secs(3600);

/// Sizes are remembered for so many parts of that time.
const PARTS: u32 = 60;

/// Trees with no more entries than this are not guarded by a percentage: half of a handful is an ordinary change.
const SMALL: u64 = 100;

/// How many entries may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxDelete {
    /// So many.
    Count(u64),
    /// So many of a hundred, of a tree with more than a hundred entries.
    Percent(u8),
    /// All.
    Unlimited,
}

impl Default for MaxDelete {
    fn default() -> Self {
        Self::Percent(50)
    }
}

impl MaxDelete {
    /// How many may go of a tree with so many entries.
    pub fn of(self, entries: u64) -> u64 {
        match self {
            Self::Count(count) => count,
            Self::Percent(_) if entries <= SMALL => u64::MAX,
            Self::Percent(percent) => {
                u64::try_from(u128::from(entries) * u128::from(percent) / 100).unwrap_or(u64::MAX)
            }
            Self::Unlimited => u64::MAX,
        }
    }
}

impl FromStr for MaxDelete {
    type Err = String;

    /// `1000`, `50%`, `off`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None };
        let parsed = match text.strip_suffix('%') {
            _ if text == "off" => Some(Self::Unlimited),
            Some(digits) => number(digits).and_then(|n| u8::try_from(n).ok()).filter(|n| *n <= 100).map(Self::Percent),
            None => number(text).map(Self::Count),
        };
        parsed.ok_or_else(|| {
            format!(
                "`{}` is no limit: write a number of entries, a percentage such as 50%, or off",
                escape(text.as_bytes())
            )
        })
    }
}

impl fmt::Display for MaxDelete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Unlimited => f.write_str("off"),
        }
    }
}

/// How many of the entries that would go are named.
pub const NAMED: usize = 3;

/// A version, by numbers of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// In the tree as it is.
    pub before: u64,
    /// That go, without those that only get another name.
    pub deletes: u64,
    /// In the tree as it would be.
    pub after: u64,
}

/// Too much went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{gone} of {of} entries would be deleted{}, more than max_delete = {most} allows", if *.slowly { ", counted over an hour" } else { "" })]
pub struct TooMuch {
    gone: u64,
    of: u64,
    slowly: bool,
    most: MaxDelete,
}

/// What a tree was within [`WINDOW`], and how much of it may go.
#[derive(Clone, Debug, Default)]
pub struct DeleteGuard {
    most: MaxDelete,
    /// Part of the time, and the most entries then. At most [`PARTS`] and one.
    peaks: VecDeque<(u128, u64)>,
}

impl DeleteGuard {
    /// Nothing is known of the tree yet.
    pub fn new(most: MaxDelete) -> Self {
        Self { most, peaks: VecDeque::new() }
    }

    /// From now on so much.
    pub fn allow(&mut self, most: MaxDelete) {
        self.most = most;
    }

    /// What a guard needs that goes on counting after this one: see [`DeleteGuard::recall`].
    pub fn kept(&self) -> Vec<u8> {
        let numbers =
            self.peaks.iter().flat_map(|(part, entries)| [u64::try_from(*part).unwrap_or(u64::MAX), *entries]);
        numbers.flat_map(u64::to_le_bytes).collect()
    }

    /// Goes on where another guard was. A time that has not come yet, because a clock was set back, is taken for now.
    pub fn recall(&mut self, now: Duration, kept: &[u8]) {
        let (pairs, _) = kept.as_chunks::<8>();
        let numbers: Vec<u64> = pairs.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        self.peaks.clear();
        for pair in numbers.chunks_exact(2) {
            self.peak(u128::from(pair[0]).min(part(now)), pair[1]);
        }
        self.forget(part(now));
    }

    /// Whether the version may be published.
    ///
    /// # Errors
    /// Too much would go.
    pub fn check(&self, now: Duration, step: Step) -> Result<(), TooMuch> {
        let Step { before, deletes, after } = step;
        let oldest = part(now).saturating_sub(u128::from(PARTS));
        let recent = self.peaks.iter().filter(|(part, _)| *part >= oldest).map(|(_, entries)| *entries);
        let peak = recent.max().unwrap_or(0).max(before);
        let most = self.most;
        if deletes > most.of(before) {
            return Err(TooMuch { gone: deletes, of: before, slowly: false, most });
        }
        let gone = peak.saturating_sub(after);
        // What only grows back, or stays, is none of its business.
        if deletes > 0 && gone > most.of(peak) {
            return Err(TooMuch { gone, of: peak, slowly: true, most });
        }
        Ok(())
    }

    /// The version was published. One that a person let out begins a new count.
    pub fn passed(&mut self, now: Duration, step: Step, released: bool) {
        if released {
            self.peaks.clear();
        }
        let this = part(now);
        self.forget(this);
        // What was there before the first is known from nowhere else. Later on it may hold what nobody published.
        let first = self.peaks.is_empty() && !released;
        self.peak(this, if first { step.before.max(step.after) } else { step.after });
    }

    fn peak(&mut self, this: u128, entries: u64) {
        match self.peaks.back_mut() {
            Some((part, peak)) if *part == this => *peak = (*peak).max(entries),
            _ => self.peaks.push_back((this, entries)),
        }
    }

    /// Forgets what was too long before this part.
    fn forget(&mut self, this: u128) {
        let oldest = this.saturating_sub(u128::from(PARTS));
        while self.peaks.front().is_some_and(|(part, _)| *part < oldest) {
            self.peaks.pop_front();
        }
    }
}

fn part(now: Duration) -> u128 {
    now.as_millis() / (WINDOW / PARTS).as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn step(before: u64, deletes: u64, after: u64) -> Step {
        Step { before, deletes, after }
    }

    #[test]
    fn limits_are_numbers_percentages_or_off() {
        let good = [("0", MaxDelete::Count(0)), ("50%", MaxDelete::Percent(50)), ("off", MaxDelete::Unlimited)];
        for (text, limit) in good {
            assert_eq!(text.parse(), Ok(limit));
            assert_eq!(limit.to_string(), text);
        }
        for text in ["", "%", "101%", "-1", "1.5%", "half", "+1", "50 %", "99999999999999999999"] {
            assert!(text.parse::<MaxDelete>().is_err(), "{text}");
        }
    }

    #[test]
    fn more_than_half_at_once_is_too_much_unless_the_tree_is_small() {
        let guard = DeleteGuard::default();
        assert_eq!(guard.check(MINUTE, step(1000, 500, 500)), Ok(()));
        let error = guard.check(MINUTE, step(1000, 501, 499)).unwrap_err();
        assert_eq!(error.to_string(), "501 of 1000 entries would be deleted, more than max_delete = 50% allows");
        // Another tree came in its place.
        assert!(guard.check(MINUTE, step(1000, 999, 1000)).is_err());
        assert_eq!(guard.check(MINUTE, step(100, 100, 0)), Ok(()));
        let guard = DeleteGuard::new(MaxDelete::Count(3));
        assert_eq!(guard.check(MINUTE, step(10, 3, 7)), Ok(()));
        assert!(guard.check(MINUTE, step(10, 4, 6)).is_err());
        assert_eq!(DeleteGuard::new(MaxDelete::Unlimited).check(MINUTE, step(1000, 1000, 0)), Ok(()));
    }

    #[test]
    fn little_by_little_is_too_much_as_well_within_an_hour() {
        for (pause, caught) in [(MINUTE / 10, true), (MINUTE, true), (20 * MINUTE, false)] {
            let mut guard = DeleteGuard::default();
            let (mut now, mut entries, mut stopped) = (Duration::ZERO, 1000, false);
            while entries > 200 {
                let step = step(entries, 20, entries - 20);
                if guard.check(now, step).is_err() {
                    stopped = true;
                    break;
                }
                guard.passed(now, step, false);
                (now, entries) = (now + pause, entries - 20);
            }
            assert_eq!((stopped, entries == 500), (caught, caught), "{pause:?} {entries}");
        }
    }

    #[test]
    fn another_process_goes_on_counting() {
        let mut guard = DeleteGuard::default();
        guard.passed(MINUTE * 1000, step(1000, 0, 1000), false);
        guard.passed(MINUTE * 1001, step(1000, 400, 600), false);
        let again = |now: Duration| {
            let mut again = DeleteGuard::default();
            again.recall(now, &guard.kept());
            again
        };
        for (now, counts) in [(1002, true), (1059, true), (1062, false), (5000, false), (3, true)] {
            let now = MINUTE * now;
            let checked = again(now).check(now, step(600, 200, 400));
            assert_eq!(checked.is_err(), counts, "{now:?}");
        }
        // A clock that was set back does not make it last: it is an hour from then on.
        let mut back = again(MINUTE * 3);
        assert_eq!(back.peaks.len(), 1);
        back.passed(MINUTE * 64, step(600, 1, 599), false);
        assert_eq!(back.check(MINUTE * 64, step(599, 290, 309)), Ok(()));
        // Nor does it trust what it finds.
        for kept in [&[1, 2, 3][..], &[0; 8], &[0xff; 4096]] {
            let mut guard = DeleteGuard::default();
            guard.recall(MINUTE, kept);
            assert!(guard.peaks.len() <= PARTS as usize + 1);
        }
    }

    #[test]
    fn what_comes_and_goes_does_not_add_up() {
        let mut guard = DeleteGuard::default();
        for round in 0..10_000 {
            let step = if round % 2 == 0 { step(1000, 0, 1300) } else { step(1300, 300, 1000) };
            assert_eq!(guard.check(MINUTE * round / 100, step), Ok(()));
            guard.passed(MINUTE * round / 100, step, false);
            assert!(guard.peaks.len() <= PARTS as usize + 1);
        }
    }

    #[test]
    fn what_was_let_out_is_not_held_again() {
        let mut guard = DeleteGuard::default();
        guard.passed(MINUTE, step(1000, 0, 1000), false);
        assert!(guard.check(2 * MINUTE, step(1000, 900, 100)).is_err());
        guard.passed(2 * MINUTE, step(1000, 900, 100), true);
        assert_eq!(guard.check(3 * MINUTE, step(100, 1, 99)), Ok(()));
        // Nor is what grows, although it was larger once.
        let mut guard = DeleteGuard::default();
        guard.passed(MINUTE, step(1000, 0, 1000), false);
        assert_eq!(guard.check(2 * MINUTE, step(300, 0, 301)), Ok(()));
    }
}
