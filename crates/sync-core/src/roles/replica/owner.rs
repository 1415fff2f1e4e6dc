//! Whose a share is: the master's that published there first, until a person adopts it for another one.
//!
//! This is kept beside the keys in the state directory and not in the index. The index is a cache: whoever came first after
//! it was lost would have the share. It is there against mistakes; what a paired master may do is decided by pairing, and
//! each of them may adopt.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::OpenError;
use crate::fs::StateDir;
use crate::transport::{Code, Connection, PeerId};

/// A master that is refused tries again, after a minute at the latest: attempts that come no further apart than this are told
/// of once.
const BURST: Duration = Duration::from_secs(300);

/// What a master asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asks {
    /// To own the share from its first publication on, whose ever it is.
    pub adopts: bool,
    /// To look, and to change nothing.
    pub dry_run: bool,
}

/// Whose a share of a daemon is, and who has it open.
pub struct Ownership {
    state: StateDir,
    share: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The number of the next admission.
    next: u64,
    /// Who was let in, by the number of the admission: has the share open, or waits for that.
    admitted: BTreeMap<u64, Connection>,
    /// Who adopts the share: with that admission it is let in alone, and owns the share once it publishes.
    adopter: Option<(u64, PeerId)>,
    refusals: Refusals,
}

/// Who was refused, and when last.
#[derive(Default)]
struct Refusals(BTreeMap<PeerId, Instant>);

impl Refusals {
    /// One more; says whether it is the first of a burst.
    fn add(&mut self, peer: PeerId, now: Instant) -> bool {
        self.forget(now);
        self.0.insert(peer, now).is_none()
    }

    fn forget(&mut self, now: Instant) {
        self.0.retain(|_, last| now.saturating_duration_since(*last) < BURST);
    }
}

/// A master that was let in. While it lives, its connection is closed if another master adopts the share.
pub struct Admission {
    ownership: Arc<Ownership>,
    number: u64,
    peer: PeerId,
    asks: Asks,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut inner = self.ownership.inner();
        inner.admitted.remove(&self.number);
        inner.adopter.take_if(|(number, _)| *number == self.number);
    }
}

impl Ownership {
    /// Of the share of this name, with what the state directory says.
    pub fn new(state: StateDir, share: String) -> Arc<Self> {
        Arc::new(Self { state, share, inner: Mutex::default() })
    }

    /// The master that owns the share, if one does, and those that were refused lately.
    ///
    /// # Errors
    /// That cannot be read.
    pub fn status(&self) -> Result<(Option<PeerId>, Vec<PeerId>), String> {
        let mut inner = self.inner();
        inner.refusals.forget(Instant::now());
        let refused = inner.refusals.0.keys().copied().collect();
        drop(inner);
        Ok((self.owner()?, refused))
    }

    /// Lets the master at the other end in, if the share is its own or nobody's, or it adopts it: then all others that have
    /// it open hear that, and are not let in again.
    ///
    /// # Errors
    /// `OpenError::NotOwner` if it is another one's; `OpenError::Refused` if that cannot be found out.
    pub fn admit(self: &Arc<Self>, connection: &Connection, asks: Asks) -> Result<Admission, OpenError> {
        let number = {
            let mut inner = self.inner();
            let number = inner.next;
            inner.next += 1;
            inner.admitted.insert(number, connection.clone());
            number
        };
        let admission = Admission { ownership: Arc::clone(self), number, peer: connection.peer(), asks };
        admission.check()?;
        Ok(admission)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owner(&self) -> Result<Option<PeerId>, String> {
        let id = self.state.owner(&self.share).map_err(|error| error.to_string())?;
        // Whatever has the form of an id and is none belongs to nobody who could come.
        id.map(|id| id.parse().map_err(|error| format!("the owner of the share {}: {error}", self.share))).transpose()
    }

    /// The same for a master, who is not told of what lies where here.
    fn owner_or_refuse(&self) -> Result<Option<PeerId>, OpenError> {
        self.owner().map_err(|error| {
            tracing::error!(share = self.share, "{error}");
            let share = &self.share;
            OpenError::Refused(format!(
                "it cannot be read there whose the share {share} is; the log of the replica says why"
            ))
        })
    }

    /// What is told to a master that is not let in, for one that is.
    fn left_to(&self, other: PeerId, is_its_own: bool) -> String {
        let (share, verb) = (&self.share, if is_its_own { "belongs to" } else { "is being taken over by" });
        format!(
            "the share {share} {verb} another master, {other}; it is left alone: if it is to be this one's, push with \
             --adopt, or say `synccli release SHARE --adopt` where its daemon mirrors the tree"
        )
    }

    fn refuse(&self, inner: &mut Inner, peer: PeerId, other: PeerId, is_its_own: bool) -> OpenError {
        if inner.refusals.add(peer, Instant::now()) {
            let (share, owner) = (&*self.share, other);
            tracing::warn!(share, %peer, %owner, "refused: it is not the owner; it may go on asking, which is not logged");
        }
        OpenError::NotOwner(self.left_to(other, is_its_own))
    }
}

impl Admission {
    /// Whether the master is still let in: somebody else may own the share by now, or be about to.
    ///
    /// # Errors
    /// As [`Ownership::admit`].
    pub fn check(&self) -> Result<(), OpenError> {
        let owner = self.ownership.owner_or_refuse()?;
        let inner = &mut *self.ownership.inner();
        if let Some((_, adopter)) = inner.adopter.filter(|(_, adopter)| *adopter != self.peer) {
            return Err(self.ownership.refuse(inner, self.peer, adopter, false));
        }
        match owner.filter(|owner| *owner != self.peer) {
            Some(owner) if !self.asks.adopts => Err(self.ownership.refuse(inner, self.peer, owner, true)),
            Some(owner) if !self.asks.dry_run => {
                self.adopt(inner, owner);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Nobody else is let in any more, and who was has to go: an owner that follows its tree would never make room.
    fn adopt(&self, inner: &mut Inner, owner: PeerId) {
        if inner.adopter.is_some() {
            return;
        }
        inner.adopter = Some((self.number, self.peer));
        let (share, peer) = (&*self.ownership.share, self.peer);
        tracing::warn!(share, %peer, %owner, "adopts the share: it is its own from its first publication on");
        for connection in inner.admitted.values().filter(|connection| connection.peer() != peer) {
            let (connection, reason) = (connection.clone(), self.ownership.left_to(peer, false));
            tokio::spawn(async move { connection.close(Code::NotOwner, &reason).await });
        }
    }

    /// The share is this master's from now on, durably.
    ///
    /// # Errors
    /// As [`Ownership::admit`]; also if it cannot be written down.
    pub fn own(&self) -> Result<(), OpenError> {
        let Ownership { state, share, .. } = &*self.ownership;
        let former = self.ownership.owner_or_refuse()?;
        if former != Some(self.peer) {
            self.check()?;
            let owner = self.peer;
            state.set_owner(share, &owner.to_string()).map_err(|error| OpenError::Refused(error.to_string()))?;
            let former = former.map(|former| former.to_string());
            tracing::info!(share, %owner, former, "the share belongs to the master that publishes now");
        }
        let mut inner = self.ownership.inner();
        inner.adopter.take_if(|(number, _)| *number == self.number);
        inner.refusals.0.remove(&self.peer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_that_follow_each_other_are_told_of_once() {
        let (mut refusals, begun) = (Refusals::default(), Instant::now());
        let [one, two] = [PeerId([1; 32]), PeerId([2; 32])];
        assert!(refusals.add(one, begun));
        assert!(refusals.add(two, begun));
        for minute in 1..60 {
            assert!(!refusals.add(one, begun + minute * BURST / 5), "attempt {minute}");
        }
        assert!(refusals.add(two, begun + 60 * BURST / 5), "the other one was quiet for long");
        assert!(refusals.add(one, begun + 65 * BURST / 5));
        refusals.forget(begun + 70 * BURST / 5);
        assert_eq!(refusals.0.len(), 0, "who does not ask any more is forgotten");
    }
}
