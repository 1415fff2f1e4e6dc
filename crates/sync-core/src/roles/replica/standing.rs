//! How a share fares, for whoever asks: its sessions and what watches its tree say it here.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use foldhash::quality::RandomState;
use tokio::sync::watch;

use super::drift::{Drift, Unhealed};
use crate::control::{CopyState, CopyStatus, DriftStatus, MasterStatus, Role, ShareState, ShareStatus, VersionStatus};
use crate::heal::Heal;
use crate::index::Stand;
use crate::monitor::Problem;
use crate::path::RelPath;
use crate::roles::survey::Names;
use crate::transport::Connection;

/// Of how many lists of problems it is known that they were logged.
const LOGGED: usize = 16;

/// Of one share.
pub struct Standing {
    heal: Heal,
    state: Mutex<State>,
    salt: RandomState,
    /// Told of every change.
    changed: watch::Sender<()>,
}

/// What a person was told since a version was reached, and may have decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// That the directory is empty and not the one that it was.
    pub empty: bool,
    /// That a file system was mounted in it and is not now.
    pub unmounted: bool,
}

#[derive(Default)]
struct State {
    version: Option<VersionStatus>,
    master: Option<Master>,
    /// How many connections have opened the share.
    attendances: u64,
    /// Whether the master on this connection has brought it to a version.
    reached: bool,
    /// Whether a session takes something in.
    receiving: bool,
    unhealed: Unhealed,
    /// Why a version is not taken, if a person has to decide that.
    held: Option<String>,
    asked: Asked,
    /// What went wrong in the last session, first of all.
    problem: Option<String>,
    /// The lists of problems that were logged since a version was reached, the last few, by a hash of each.
    logged: VecDeque<u64>,
    /// Why the tree cannot be watched or looked at.
    tree: Option<String>,
    /// Why changes to it are not heard of.
    unwatched: Option<String>,
}

struct Master {
    id: String,
    address: String,
    follows: bool,
    connected: bool,
    heard: Instant,
}

/// A connection over which a master has opened the share. Once it is dropped the master is away.
pub struct Attendance {
    standing: Arc<Standing>,
    number: u64,
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.standing.update(|state| {
            // Another one may have come before this one was given up.
            if let Some(master) = state.master.as_mut().filter(|_| state.attendances == self.number) {
                (master.connected, master.heard) = (false, Instant::now());
                (state.reached, state.receiving) = (false, false);
            }
        });
    }
}

impl Standing {
    /// Nobody has come yet. `changed` is told whenever something changes.
    pub fn new(heal: Heal, stand: Option<&Stand>, changed: watch::Sender<()>) -> Arc<Self> {
        let state = State { version: stand.map(version_of), ..State::default() };
        Arc::new(Self { heal, state: Mutex::new(state), salt: RandomState::default(), changed })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_replace(());
    }

    /// A master has opened the share, and it stands there.
    pub fn opened(
        self: &Arc<Self>,
        connection: &Connection,
        follows: bool,
        stand: Option<&Stand>,
        before: Option<Attendance>,
    ) -> Attendance {
        let mut number = 0;
        self.update(|state| {
            let version = stand.map(version_of);
            if state.version.as_ref().map(|known| &known.id) != version.as_ref().map(|new| &new.id) {
                state.version = version;
            }
            if before.is_none() {
                state.attendances += 1;
                (state.reached, state.receiving) = (false, false);
            }
            number = state.attendances;
            state.master = Some(Master {
                id: connection.peer().to_string(),
                address: connection.remote().to_string(),
                follows,
                connected: true,
                heard: Instant::now(),
            });
        });
        before.unwrap_or_else(|| Attendance { standing: Arc::clone(self), number })
    }

    /// The master tells something against the stand.
    pub fn receives(&self) {
        self.update(|state| state.receiving = true);
    }

    /// A session came to its end: with the tree as this version is, or not quite.
    pub fn acknowledged(&self, version: Option<VersionStatus>) {
        self.update(|state| {
            (state.receiving, state.held) = (false, None);
            state.reached = version.is_some();
            if state.reached {
                state.asked = Asked::default();
                state.problem = None;
                state.logged.clear();
                state.unhealed.reached();
            }
            state.version = version;
        });
    }

    /// A session has said all that it had to say: what went wrong before it came to a version is over.
    pub fn said_all(&self) {
        self.update(|state| {
            if state.reached {
                state.problem = None;
            }
        });
    }

    /// A part of a version is there: nothing is held any more.
    pub fn goes_on(&self) {
        self.update(|state| state.held = None);
    }

    /// A version is not taken until a person says so.
    pub fn holds(&self, why: &str) {
        if self.state().held.as_deref() != Some(why) {
            // Its master says so louder; and it may have been released there a moment ago, which the next session tells.
            tracing::info!("held: {why}");
        }
        self.update(|state| (state.receiving, state.held) = (false, Some(why.to_owned())));
    }

    /// A person is told that.
    pub fn asks(&self, change: impl FnOnce(&mut Asked)) {
        change(&mut self.state().asked);
    }

    /// What a person was told.
    pub fn asked(&self) -> Asked {
        self.state().asked
    }

    /// Whether just these problems were not met before: until a version is reached, each session may meet the same.
    pub fn are_news(&self, problems: &[Problem]) -> bool {
        let hash =
            self.salt.hash_one(problems.iter().map(|problem| (&problem.path, &problem.reason)).collect::<Vec<_>>());
        let mut state = self.state();
        if state.logged.contains(&hash) {
            return false;
        }
        if state.logged.len() == LOGGED {
            state.logged.pop_front();
        }
        state.logged.push_back(hash);
        true
    }

    /// Something went wrong.
    pub fn failed(&self, why: &str) {
        self.update(|state| state.problem = Some(why.to_owned()));
    }

    /// The tree cannot be watched or looked at, or it can be again.
    pub fn tree(&self, obstacle: Option<&str>) {
        self.update(|state| state.tree = obstacle.map(str::to_owned));
    }

    /// Changes are not heard of, or they are again. Says whether that is new.
    pub fn unwatched(&self, why: Option<&str>) -> bool {
        let is_new = self.state().unwatched.as_deref() != why;
        if is_new {
            self.update(|state| state.unwatched = why.map(str::to_owned));
        }
        is_new
    }

    /// What a look has found, at these names or everywhere; with `taken`, the rows have it now, so that the next version
    /// that is reached undoes it.
    pub fn looked(&self, names: Option<&Names>, found: &Drift, taken: bool) {
        self.update(|state| state.unhealed.looked(names, found, taken));
    }

    /// What somebody else changed and is not undone.
    pub fn drift(&self) -> Option<(u64, RelPath)> {
        self.state().unhealed.all()
    }

    /// Says it.
    pub fn status(&self, name: &str, path: String) -> ShareStatus {
        let state = self.state();
        let drift = state.unhealed.all();
        let is_connected = state.master.as_ref().is_some_and(|master| master.connected);
        let now = match &state.held {
            Some(_) => CopyState::Held,
            None if is_connected && state.receiving => CopyState::Receiving,
            None if drift.is_some() => CopyState::Drifted,
            None if is_connected && state.reached => CopyState::InSync,
            // It has not said yet what it wants.
            None if is_connected => CopyState::Receiving,
            None => CopyState::Away,
        };
        let master = state.master.as_ref().map(|master| MasterStatus {
            id: master.id.clone(),
            address: master.address.clone(),
            connected: master.connected,
            heard_seconds: if master.connected { 0.0 } else { master.heard.elapsed().as_secs_f64() },
            follows: master.follows,
        });
        let copy = CopyStatus {
            state: now,
            master,
            drift: drift.map(|(entries, first)| DriftStatus { entries, first: Some(first.display()) }),
            heal: self.heal,
            problem: state.tree.clone().or_else(|| state.problem.clone()),
        };
        ShareStatus {
            name: name.to_owned(),
            path,
            role: Role::Replica,
            state: if state.held.is_some() { ShareState::Held } else { ShareState::Ready },
            reason: state.held.clone(),
            version: state.version.clone(),
            unwatched: state.unwatched.clone(),
            unread: None,
            missed: 0,
            owner: None,
            replicas: Vec::new(),
            copy: Some(copy),
        }
    }
}

/// All that an index has of it.
fn version_of(stand: &Stand) -> VersionStatus {
    VersionStatus { number: stand.number, id: stand.version.0.to_hex(), time: None, entries: None }
}
