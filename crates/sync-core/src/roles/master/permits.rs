//! What a person has decided of a replica, once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For so long a release also holds for versions that came after the one that it was said of: a tree that never rests has
/// another one before the replica can be told.
const FOR_LATER_ONES: Duration = Duration::from_secs(60);

/// What is decided, until it is used up.
#[derive(Debug, Default)]
pub struct Permits {
    released: Mutex<Option<Release>>,
    adopts: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Release {
    /// The number of the version that was there when it was said; `None` while that is looked for.
    version: Option<u64>,
    said: Instant,
}

impl Release {
    fn is_for(&self, version: u64, now: Instant) -> bool {
        self.version.is_none_or(|released| version <= released)
            || now.saturating_duration_since(self.said) < FOR_LATER_ONES
    }
}

impl Permits {
    /// With that, that the share there becomes this master's.
    pub fn adopting(adopts: bool) -> Self {
        Self { adopts: AtomicBool::new(adopts), ..Self::default() }
    }

    /// What is there now is the right tree, with all that is not in it; which version that is will be said.
    pub fn release(&self) {
        *self.released() = Some(Release { version: None, said: Instant::now() });
    }

    /// It is the one of this number.
    pub fn release_of(&self, version: u64) {
        *self.released() = Some(Release { version: Some(version), said: Instant::now() });
    }

    /// There is nothing to release any more.
    pub fn withdraw(&self) {
        *self.released() = None;
    }

    /// Whether a release waits to be told.
    pub fn is_released(&self) -> bool {
        self.released().is_some()
    }

    /// Whether it holds for the version of this number; if not, it is over: that is not what a person has seen.
    pub fn releases(&self, version: u64) -> bool {
        let mut released = self.released();
        *released = released.filter(|release| release.is_for(version, Instant::now()));
        released.is_some()
    }

    /// The replica has the version of this number, or a part of it, and was told of the release or not: that is used up, unless
    /// it is of a later one.
    pub fn acknowledged(&self, version: u64, was_told: bool) {
        let mut released = self.released();
        *released = released.filter(|release| !was_told && release.version.is_none_or(|released| released > version));
    }

    /// The share there becomes this master's.
    pub fn adopt(&self) {
        self.adopts.store(true, Ordering::Relaxed);
    }

    /// Whether that waits to be told, or may not have taken place.
    pub fn adopts(&self) -> bool {
        self.adopts.load(Ordering::Relaxed)
    }

    /// It may have.
    pub fn adopted(&self) {
        self.adopts.store(false, Ordering::Relaxed);
    }

    fn released(&self) -> MutexGuard<'_, Option<Release>> {
        self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_of_the_version_that_was_seen_and_for_a_minute_of_what_comes_then() {
        let said = Instant::now();
        let release = Release { version: Some(7), said };
        let [soon, late] = [59, 60].map(|seconds| said + Duration::from_secs(seconds));
        assert_eq!(
            [(7, soon), (8, soon), (7, late), (8, late)].map(|(v, now)| release.is_for(v, now)),
            [true, true, true, false]
        );
        assert!(Release { version: None, said }.is_for(8, late));
    }

    #[test]
    fn a_release_is_used_up_by_whatever_brings_the_replica_to_the_version() {
        for (version, was_told, is_left) in [(6, false, true), (7, false, false), (8, false, false), (6, true, false)] {
            let permits = Permits::default();
            permits.release_of(7);
            permits.acknowledged(version, was_told);
            assert_eq!(permits.is_released(), is_left, "{version} {was_told}");
        }
        let permits = Permits::default();
        permits.release();
        permits.acknowledged(7, false);
        assert!(permits.releases(9));
        permits.withdraw();
        assert!(!permits.releases(9));
    }
}
