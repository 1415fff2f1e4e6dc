//! The shares that a process serves, by name, and who cares for each.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::lookout::Lookout;
use super::owner::Ownership;
use super::share::Share;
use super::standing::Standing;
use crate::guard::MaxDelete;
use crate::heal::Heal;
use crate::path::escape;
use crate::roles::guarding::Guard;

/// A share and who cares for it.
#[derive(Clone)]
pub struct Held {
    /// The share.
    pub share: Share,
    /// What watches its tree, if anything does.
    pub lookout: Option<Arc<Lookout>>,
    /// What a master that follows its tree may delete.
    pub guard: Arc<Guard>,
    /// Whose it is; `None` for an embedded replica, which is whose the process is.
    pub ownership: Option<Arc<Ownership>>,
    /// How it fares.
    pub standing: Arc<Standing>,
    /// Says that it is not held any more, or not in this way, and how: its sessions end then.
    pub left: Left,
}

/// See [`Held::left`].
pub type Left = watch::Receiver<Option<&'static str>>;

/// All shares by name, as they are now.
#[derive(Default)]
pub struct Shares(RwLock<BTreeMap<String, Held>>);

impl Shares {
    /// These shares.
    pub fn new(shares: impl IntoIterator<Item = Held>) -> Self {
        let new = Self::default();
        new.set(shares);
        new
    }

    /// Just this one, which nobody watches, and nobody follows.
    pub fn only(share: Share) -> Self {
        let standing = Standing::new(Heal::Off, None, watch::channel(()).0);
        let (guard, left) = (Guard::new(MaxDelete::Unlimited), watch::channel(None).1);
        Self::new([Held { share, lookout: None, guard, ownership: None, standing, left }])
    }

    /// These, and no others, from now on. Who has found one keeps it.
    pub fn set(&self, shares: impl IntoIterator<Item = Held>) {
        let shares = shares.into_iter().map(|held| (held.share.name.clone(), held)).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = shares;
    }

    /// The share of this name.
    ///
    /// # Errors
    /// In words for the pushing side.
    pub fn find(&self, name: &str) -> Result<Held, String> {
        let shares = self.0.read().unwrap_or_else(PoisonError::into_inner);
        shares.get(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = shares.keys().map(String::as_str).collect();
            format!("there is no share named {:?} here; there are: {}", escape(name.as_bytes()), known.join(", "))
        })
    }
}
