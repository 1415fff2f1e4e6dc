//! How a replica that follows a tree fares, and what is wished of it: where whoever asks meets whoever follows.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use super::permits::Permits;
use crate::control::{DeliveryStatus, DriftStatus};
use crate::manifest::VersionId;
use crate::transport::Connection;

/// What a follower is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Keep the replica at the newest version.
    #[default]
    Follow,
    /// Leave it alone for a moment.
    Rest,
    /// Leave it alone, and keep what is known of it.
    Pause,
    /// Nothing any more.
    End,
}

/// How a replica fares.
#[derive(Clone, Debug, Default)]
pub struct Following {
    /// The connection with it, if there is one.
    pub connection: Option<Connection>,
    /// The version that it acknowledged last in this process, as the number and the identity.
    pub version: Option<(u64, VersionId)>,
    /// Whether that was over this connection: before, it may have been changed there.
    pub is_current: bool,
    /// What somebody else changed there and is not undone.
    pub drift: Option<DriftStatus>,
    /// What went wrong last, until a version is acknowledged.
    pub problem: Option<String>,
    /// Whether that is for a person to decide.
    pub held: bool,
    /// Whether it was so before the attempt that is being made now.
    pub was_held: bool,
    /// Whether it said last that it is another master's. Unlike the above, not forgotten when it is tried again.
    pub is_anothers: bool,
    /// When it is tried again, if it is waited for.
    pub retry: Option<Instant>,
    /// What it took to bring that version to it.
    pub delivery: Option<DeliveryStatus>,
    /// How many entries it has of a tree that comes to it in stretches, so far.
    pub came: u64,
    /// How many of the [`looks`](Fate::looks) that were asked for came before it acknowledged that.
    pub looked: u64,
}

/// A replica's place among those who follow, kept while tasks and connections come and go.
pub struct Fate {
    following: Mutex<Following>,
    /// What its task is to do; whoever runs one listens.
    pub wish: watch::Sender<Wish>,
    /// Whether somebody compares it, for which it rests: set and looked at while the wish is changed.
    pub is_compared: AtomicBool,
    /// Try again now instead of after the wait.
    pub again: Notify,
    /// How many times all replicas were asked to look at all of their trees.
    pub looks: watch::Sender<u64>,
    /// What a person has decided.
    pub permits: Arc<Permits>,
    /// Told of every change here.
    changed: watch::Sender<()>,
}

impl Fate {
    /// Nothing is known yet. `changed` is told whenever that changes.
    pub fn new(looks: watch::Sender<u64>, changed: watch::Sender<()>) -> Self {
        let following = Mutex::default();
        let wish = watch::channel(Wish::Follow).0;
        let (is_compared, again, permits) = (AtomicBool::new(false), Notify::new(), Arc::default());
        Self { following, wish, is_compared, again, looks, permits, changed }
    }

    /// Of the same replica at other addresses: what a person has decided stays. Who compares it has the old one rest, and will
    /// not end a rest of this one.
    pub fn after(old: &Self) -> Self {
        let old_wish = *old.wish.borrow();
        let wish = watch::channel(if old_wish == Wish::Rest { Wish::Follow } else { old_wish }).0;
        Self { wish, permits: Arc::clone(&old.permits), ..Self::new(old.looks.clone(), old.changed.clone()) }
    }

    /// As it is now.
    pub fn get(&self) -> Following {
        self.following.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A person has decided that the share there becomes this master's, and with that, that the version of this number is the
    /// right tree; it is tried again, now.
    pub fn adopt(&self, version: u64) {
        self.permits.release_of(version);
        self.permits.adopt();
        // That somebody else owns it is decided on.
        self.update(|following| following.problem = None);
        self.try_again();
    }

    /// It is tried again, now: whether it is held is to be found out anew.
    pub fn try_again(&self) {
        self.update(|following| (following.held, following.was_held) = (false, following.held || following.was_held));
        self.again.notify_one();
    }

    /// Something else is known.
    pub fn update(&self, change: impl FnOnce(&mut Following)) {
        change(&mut self.following.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adoption_forgets_that_somebody_else_owned_it() {
        let fate = Fate::new(watch::channel(0).0, watch::channel(()).0);
        fate.update(|following| following.problem = Some("it belongs to another master".to_owned()));
        fate.adopt(1);
        assert!(fate.get().problem.is_none() && fate.permits.adopts());
    }

    #[test]
    fn who_has_other_addresses_goes_on_as_a_person_wished() {
        for (old, new) in [(Wish::Follow, Wish::Follow), (Wish::Rest, Wish::Follow), (Wish::Pause, Wish::Pause)] {
            let fate = Fate::new(watch::channel(0).0, watch::channel(()).0);
            fate.wish.send_replace(old);
            fate.permits.release();
            let after = Fate::after(&fate);
            assert_eq!(*after.wish.borrow(), new);
            assert!(after.permits.is_released());
        }
    }
}
