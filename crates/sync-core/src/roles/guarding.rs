//! The guard against deletions with its clock, and with what it keeps in an index for the process after this one: a daemon
//! that is started again and again counts as one that was not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::guard::{DeleteGuard, MaxDelete, Step, TooMuch};
use crate::index::{Commit, Index, IndexError};

/// Under this key an index keeps what [`DeleteGuard::kept`] says.
pub const KEPT: &str = "guard.window";

/// A [`DeleteGuard`] with its clock.
pub struct Guard {
    guard: Mutex<DeleteGuard>,
    /// The time of day when it began, and since when that time passes: nobody sets it back meanwhile.
    began: (Duration, Instant),
}

/// What a guard will have counted once a version is durable: written with that.
pub struct Counted(DeleteGuard);

impl Counted {
    /// Writes it down.
    ///
    /// # Errors
    /// As any write.
    pub fn write(&self, commit: &mut Commit<'_>) -> Result<(), IndexError> {
        commit.set_meta(KEPT, Some(&self.0.kept()))
    }
}

impl Guard {
    /// Nothing is known of the tree yet.
    pub fn new(most: MaxDelete) -> Arc<Self> {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Arc::new(Self { guard: Mutex::new(DeleteGuard::new(most)), began: (time, Instant::now()) })
    }

    fn guard(&self) -> MutexGuard<'_, DeleteGuard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.began.0 + self.began.1.elapsed()
    }

    /// From now on so much.
    pub fn allow(&self, most: MaxDelete) {
        self.guard().allow(most);
    }

    /// Goes on where the index says that another one was, if it does: what this one has counted is there as well.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn recall(&self, index: &Index) -> Result<(), IndexError> {
        if let Some(kept) = index.meta(KEPT)? {
            self.guard().recall(self.now(), &kept);
        }
        Ok(())
    }

    /// It is another tree from now on.
    pub fn forget(&self) {
        self.guard().recall(self.now(), &[]);
    }

    /// As [`DeleteGuard::check`].
    ///
    /// # Errors
    /// Too much would go.
    pub fn check(&self, step: Step) -> Result<(), TooMuch> {
        self.guard().check(self.now(), step)
    }

    /// As [`DeleteGuard::passed`], for [`Guard::keep`].
    pub fn counting(&self, step: Step, released: bool) -> Counted {
        let mut guard = self.guard().clone();
        guard.passed(self.now(), step, released);
        Counted(guard)
    }

    /// The version is durable.
    pub fn keep(&self, Counted(counted): Counted) {
        let mut guard = self.guard();
        // The limit may be another one by now.
        guard.recall(self.now(), &counted.kept());
    }
}
