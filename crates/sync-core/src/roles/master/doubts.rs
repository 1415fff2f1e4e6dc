//! Whether a mirror's tree is what it shall be. A session that misses something of it cannot know: the next look at everything
//! tells.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::{Notify, watch};

/// What is known of that, and what is asked.
pub struct Doubts {
    is_held: AtomicBool,
    /// The last look at everything that somebody waits for.
    asked: AtomicU64,
    /// Looks at everything that have begun.
    begun: AtomicU64,
    /// Those that have ended. They follow each other.
    ended: watch::Sender<u64>,
    /// Told of each doubt.
    pub raised: Notify,
}

impl Default for Doubts {
    fn default() -> Self {
        let (is_held, ended) = (AtomicBool::new(false), watch::channel(0).0);
        Self { is_held, asked: AtomicU64::new(0), begun: AtomicU64::new(0), ended, raised: Notify::new() }
    }
}

impl Doubts {
    /// From now on nothing newer is published, or it is again. Says whether that is new.
    pub fn hold(&self, is_held: bool) -> bool {
        self.is_held.swap(is_held, Ordering::Relaxed) != is_held
    }

    /// Whether nothing newer is published: what of the newest version is not there any more may be missing altogether.
    pub fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed)
    }

    /// A look at everything begins.
    pub fn look_begins(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// It has ended, and what it has found is known.
    pub fn look_ended(&self) {
        self.ended.send_replace(self.begun.load(Ordering::Relaxed));
    }

    /// Something is not there. Says which look at everything tells why: the first that begins from now on, and one is asked for.
    pub fn raise(&self) -> u64 {
        let look = self.begun.load(Ordering::Relaxed) + 1;
        self.asked.fetch_max(look, Ordering::Relaxed);
        self.raised.notify_one();
        look
    }

    /// Whether somebody waits for a look that has not ended.
    pub fn are_raised(&self) -> bool {
        self.asked.load(Ordering::Relaxed) > *self.ended.borrow()
    }

    /// Waits until that look has ended. Cancel safe.
    pub async fn dispelled(&self, look: u64) {
        // The sender is here, so that this cannot fail.
        let _ = self.ended.subscribe().wait_for(|ended| *ended >= look).await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn a_look_that_had_begun_before_tells_nothing() {
        let doubts = Doubts::default();
        let is_dispelled = |look| pin!(doubts.dispelled(look)).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        doubts.look_begins();
        assert!(!doubts.are_raised());
        let look = doubts.raise();
        doubts.look_ended();
        assert!(!is_dispelled(look) && doubts.are_raised());
        doubts.look_begins();
        assert!(!is_dispelled(look) && doubts.are_raised());
        doubts.look_ended();
        assert!(is_dispelled(look) && !doubts.are_raised());
    }
}
