//! What a share is between two sessions of a master that follows its tree.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::apply;
use super::open::Opened;
use super::share::Share;
use super::shares::Left;
use super::standing::Attendance;
use crate::hash::Digest;
use crate::index::IndexError;
use crate::manifest::VersionId;
use crate::options::Policy;
use crate::path::RelPath;
use crate::region::Region;
use crate::roles::link::Control;
use crate::wire::{Hello, ToReplica};

/// What is not said again in a session behind one that ended well.
pub struct Said {
    /// The hello.
    pub hello: Hello,
    /// Where the source is.
    pub source: Option<Region>,
}

/// What was acknowledged last, if that is just the version.
#[derive(Clone)]
pub struct Acknowledged {
    /// The version.
    pub version: VersionId,
    /// Its root.
    pub root: Digest,
    /// What the master could not read, which that root is without, here as there.
    pub holds: Vec<RelPath>,
}

impl Acknowledged {
    /// Whether that is still where the replica is.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn is_true_of(&self, opened: &Opened) -> Result<bool, IndexError> {
        let stand = opened.stand();
        let root = if self.holds.is_empty() { stand.root } else { apply::root_of(opened, &self.holds)? };
        Ok((stand.version, root) == (Some(self.version), self.root))
    }
}

/// A share between two sessions of a master that follows its tree.
pub struct Followed {
    /// Its name.
    pub share: String,
    /// `None` if the next session must look at the tree anew.
    pub opened: Option<Opened>,
    /// That the master is here.
    pub attendance: Option<Attendance>,
    /// See [`Held::left`].
    pub left: Option<Left>,
    /// Where the master believes that the replica is.
    pub acknowledged: Option<Acknowledged>,
    /// The stream on which the next session goes on.
    pub goes_on: Option<(Control<ToReplica>, Said)>,
}

impl Followed {
    /// The stream of the next session, if that goes on and the share is still held in the same way.
    pub fn goes_on(&mut self) -> Option<(Control<ToReplica>, Said)> {
        let is_left = self.left.as_ref().is_some_and(|left| left.borrow().is_some());
        self.goes_on.take().filter(|_| !is_left)
    }

    /// The same share under the same policy, if nothing speaks against taking it as it was left.
    pub fn resume(self, share: &Share, policy: &Policy, stop: &Arc<AtomicBool>) -> Option<Opened> {
        let same = self.share == share.name && self.opened.as_ref().is_some_and(|opened| opened.policy == *policy);
        if !same {
            self.close();
            return None;
        }
        self.opened.and_then(|opened| opened.resume(share, stop))
    }

    /// Lets go of it.
    pub fn close(self) {
        drop(self.opened.map(|opened| tokio::task::block_in_place(|| opened.close(false, drop))));
    }

    /// Waits until the share is not held any more, or not in this way, if there is one.
    pub async fn left(followed: Option<&Self>) {
        if let Some(mut left) = followed.and_then(|followed| followed.left.clone())
            && left.wait_for(Option::is_some).await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}
