//! How others see a mirror, and tell it what to do, while it works.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};

use super::config::MirrorConfig;
use super::fate::{Fate, Following, Wish};
use super::news::News;
use super::source::Source;
use crate::control::{
    Lag, LinkStatus, ReplicaState, ReplicaStatus, Role, ShareState, ShareStatus, UnreadStatus, VersionStatus,
};
use crate::destination::{addresses, label};
use crate::fs::{self, FsError};
use crate::index::{Change, Index, IndexError, Published};
use crate::manifest::{Time, Version};
use crate::monitor::Silent;
use crate::options::{Destination, PushRequest};
use crate::path::escape;

/// Most changed entries whose bytes are added up for a status.
const ADDED_UP: usize = 10_000;

/// What a mirror is told to do, between two batches.
pub enum MirrorOrder {
    /// Look at everything now, publish what changed, and say what the newest version is, or why that cannot be said.
    Look {
        /// Whether what is held may be published.
        release: bool,
        /// Who asks.
        answer: oneshot::Sender<Result<VersionStatus, String>>,
    },
    /// From now on do this.
    Configure(Box<MirrorConfig>),
}

/// How a mirror is, for whoever asks.
pub struct Shared {
    state: Mutex<State>,
    /// Changes that only a look found.
    pub missed: AtomicU64,
    /// How many times all replicas were asked to look at all of their trees.
    looks: watch::Sender<u64>,
    /// Told of every change.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    path: String,
    state: ShareState,
    reason: Option<String>,
    unwatched: Option<String>,
    unread: Option<UnreadStatus>,
    version: Option<VersionStatus>,
    opened: Option<Opened>,
    followers: Vec<Follower>,
}

/// A tree that is open.
#[derive(Clone)]
pub struct Opened {
    /// The tree and its index.
    pub source: Arc<Source>,
    /// Its newest version.
    pub newest: watch::Receiver<Option<Arc<News>>>,
    /// What is asked for.
    pub request: PushRequest,
}

/// A replica and how it fares.
#[derive(Clone)]
pub struct Follower {
    /// Where it is.
    pub destination: Destination,
    /// The rest.
    pub fate: Arc<Fate>,
}

impl Shared {
    /// Of a mirror that does nothing yet.
    pub fn new(config: &MirrorConfig, changed: watch::Sender<()>) -> Self {
        let looks = watch::channel(0).0;
        let shared = Self { state: Mutex::default(), missed: AtomicU64::new(0), looks, changed };
        shared.configure(config);
        shared
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_replace(());
    }

    /// Takes over who follows: who is new, and who does not follow any more, which is ended.
    pub fn configure(&self, config: &MirrorConfig) -> Vec<Follower> {
        let mut new = Vec::new();
        self.update(|state| {
            state.path = escape(config.request.source.as_os_str().as_encoded_bytes());
            let wanted = &config.request.destinations;
            let mut before = std::mem::take(&mut state.followers);
            for destination in wanted {
                if let Some(at) = before.iter().position(|follower| follower.destination == *destination) {
                    state.followers.push(before.swap_remove(at));
                    continue;
                }
                let same = |follower: &&Follower| label(&follower.destination) == label(destination);
                let fate = before.iter().find(same).map(|old| Fate::after(&old.fate));
                let fate = Arc::new(fate.unwrap_or_else(|| Fate::new(self.looks.clone(), self.changed.clone())));
                let follower = Follower { destination: destination.clone(), fate };
                new.push(follower.clone());
                state.followers.push(follower);
            }
            for gone in before {
                gone.fate.wish.send_replace(Wish::End);
            }
        });
        new
    }

    /// Who follows.
    pub fn followers(&self) -> Vec<Follower> {
        self.state().followers.clone()
    }

    /// A tree is open, or none any more.
    pub fn opened(&self, opened: Option<Opened>) {
        self.update(|state| state.opened = opened);
    }

    /// The tree, while one is open.
    pub fn open(&self) -> Option<Opened> {
        self.state().opened.clone()
    }

    /// What is being done, and why. Nobody is woken up for what is known.
    pub fn is(&self, now: ShareState, reason: Option<String>) {
        let is_known = {
            let state = self.state();
            state.state == now && state.reason == reason
        };
        if !is_known {
            self.update(|state| (state.state, state.reason) = (now, reason));
        }
    }

    /// Whether changes are heard of; else why not. Says whether that is new.
    pub fn watched(&self, unwatched: Option<String>) -> bool {
        let is_new = self.state().unwatched != unwatched;
        if is_new {
            self.update(|state| state.unwatched = unwatched);
        }
        is_new
    }

    /// What a look at the tree could not read.
    pub fn unread<'a>(&self, failures: impl Iterator<Item = &'a FsError> + Clone) {
        let first = failures.clone().min_by(|a, b| a.path.cmp(&b.path));
        let unread = first.map(|first| UnreadStatus {
            entries: failures.count() as u64,
            first: first.path.to_string(),
            reason: first.to_problem().reason,
        });
        if self.state().unread != unread {
            self.update(|state| state.unread = unread);
        }
    }

    /// There is this version.
    pub fn published(&self, version: &Version, entries: u64) {
        let version = version_status(version, entries);
        self.update(|state| state.version = Some(version));
    }

    /// The newest version that was told.
    pub fn version(&self) -> Option<VersionStatus> {
        self.state().version.clone()
    }

    /// Why nothing is published, if nothing is.
    pub fn obstacle(&self) -> Option<String> {
        let state = self.state();
        matches!(state.state, ShareState::Held | ShareState::Failed).then(|| state.reason.clone().unwrap_or_default())
    }
}

/// A version in words.
pub fn version_status(version: &Version, entries: u64) -> VersionStatus {
    let Version { number, time, .. } = *version;
    VersionStatus { number, id: version.id().0.to_hex(), time: Some(time), entries: Some(entries) }
}

/// A mirror that runs.
#[derive(Clone)]
pub struct MirrorHandle {
    shared: Arc<Shared>,
    orders: mpsc::UnboundedSender<MirrorOrder>,
}

/// Why a mirror did not do what it was told, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OrderError(pub String);

impl MirrorHandle {
    /// Of the mirror that has the other ends.
    pub(super) fn new(shared: Arc<Shared>, orders: mpsc::UnboundedSender<MirrorOrder>) -> Self {
        Self { shared, orders }
    }

    /// Whether something waits for a person to say that it is meant; `None` if what waits is a replica of another master,
    /// for which that is not enough.
    pub fn is_held(&self) -> Option<bool> {
        let followers = self.shared.followers();
        let is_held = |fate: &Following| fate.held || fate.was_held;
        let held: Vec<_> = followers.iter().map(|follower| follower.fate.get()).filter(is_held).collect();
        let is_ours = self.shared.state().state == ShareState::Held || held.iter().any(|fate| !fate.is_anothers);
        if !is_ours && !held.is_empty() { None } else { Some(is_ours) }
    }

    /// The replicas that nobody can say anything of now, by name.
    pub fn away(&self) -> Vec<String> {
        let followers = self.shared.followers();
        let follows = |follower: &&Follower| *follower.fate.wish.borrow() == Wish::Follow;
        let away = followers.iter().filter(follows).filter(|follower| is_away(&follower.fate));
        away.map(|follower| label(&follower.destination)).collect()
    }

    /// Why nothing is published, if that is so.
    pub fn obstacle(&self) -> Option<String> {
        self.shared.obstacle()
    }

    /// Looks at everything now, publishes what changed, and tries every replica at once. With `release`, what is held
    /// goes out, once.
    ///
    /// # Errors
    /// Why there is no version of what is there now.
    pub async fn look(&self, release: bool) -> Result<VersionStatus, OrderError> {
        let followers = self.shared.followers();
        if release {
            // What is published now may be held there as well. One that is another master's is not released by that, nor one
            // that is away: of that nobody has seen how it is.
            let ours = followers.iter().filter(|follower| !follower.fate.get().is_anothers && !is_away(&follower.fate));
            ours.for_each(|follower| follower.fate.permits.release());
        }
        let looked = self.look_now(release).await;
        if release && looked.is_err() {
            followers.iter().for_each(|follower| follower.fate.permits.withdraw());
        }
        let looked = looked?;
        for follower in &followers {
            let due = looked.as_ref().ok().filter(|version| !acknowledged(&follower.fate, version));
            match due.filter(|_| follower.fate.permits.is_released()) {
                Some(version) if release => follower.fate.permits.release_of(version.number),
                None if release => follower.fate.permits.withdraw(),
                _ => {}
            }
            follower.fate.try_again();
        }
        looked
    }

    async fn look_now(&self, release: bool) -> Result<Result<VersionStatus, OrderError>, OrderError> {
        let (answer, answered) = oneshot::channel();
        let ended = || OrderError("the share is not mirrored any more".to_owned());
        self.orders.send(MirrorOrder::Look { release, answer }).map_err(|_| ended())?;
        Ok(answered.await.map_err(|_| ended())?.map_err(OrderError))
    }

    /// Makes this master the owner of those replicas that are held because another one is, once, and brings them to what is
    /// there now. Returns their names and the version.
    ///
    /// # Errors
    /// There are none, or there is no version of what is there now: a tree that is held itself is given to nobody new.
    pub async fn adopt(&self) -> Result<(Vec<String>, VersionStatus), OrderError> {
        let mut followers = self.shared.followers();
        followers.retain(|follower| follower.fate.get().is_anothers);
        if followers.is_empty() {
            return Err(OrderError(
                "no replica of it says that another master owns it: there is nothing to adopt".to_owned(),
            ));
        }
        let version = self.look_now(false).await??;
        followers.iter().for_each(|follower| follower.fate.adopt(version.number));
        Ok((followers.iter().map(|follower| label(&follower.destination)).collect(), version))
    }

    /// How many entries went with a version, if that is the newest one.
    pub fn deleted_in(&self, version: &VersionStatus) -> Option<u64> {
        let newest = self.shared.open()?.source.index.latest_version().ok()??;
        (newest.version.number == version.number).then_some(newest.counts.deleted)
    }

    /// Has the log know what was acknowledged until now.
    pub fn record_acks(&self) {
        if let Some(opened) = self.shared.open() {
            opened.source.acks.record(&opened.source.index, &Silent);
        }
    }

    /// From now on do this. What is under way goes on, unless it has no place any more.
    pub fn configure(&self, config: MirrorConfig) {
        // Whoever has ended does nothing.
        let _ = self.orders.send(MirrorOrder::Configure(Box::new(config)));
    }

    /// Leaves a replica alone, or follows again. Returns its name.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn pause(&self, replica: &str, pause: bool) -> Result<String, OrderError> {
        let follower = self.follower(replica)?;
        let taken = follower.fate.wish.send_if_modified(|now| {
            let goes_on = *now != Wish::End;
            if goes_on {
                // Who followed now would have the share before whoever compares it.
                *now = match follower.fate.is_compared.load(Ordering::Relaxed) {
                    _ if pause => Wish::Pause,
                    true => Wish::Rest,
                    false => Wish::Follow,
                };
            }
            goes_on
        });
        if !taken {
            return Err(OrderError("the tree is being opened anew; try again".to_owned()));
        }
        self.shared.changed.send_replace(());
        Ok(label(&follower.destination))
    }

    /// The name of one replica, or those of all.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn names(&self, replica: Option<&str>) -> Result<Vec<String>, OrderError> {
        match replica {
            Some(replica) => Ok(vec![label(&self.follower(replica)?.destination)]),
            None => Ok(self.shared.followers().iter().map(|follower| label(&follower.destination)).collect()),
        }
    }

    /// Whoever has this among its addresses is tried again now.
    pub fn try_again_at(&self, host: &str, port: u16) {
        let is_there = |address: &Destination| match address {
            Destination::Remote { host: known, port: at, .. } => known == host && *at == port,
            Destination::Path(_) => false,
        };
        for follower in self.shared.followers() {
            if addresses(&follower.destination).iter().any(is_there) {
                follower.fate.try_again();
            }
        }
    }

    /// The replica of this name, as in the configuration.
    pub(super) fn follower(&self, replica: &str) -> Result<Follower, OrderError> {
        let followers = self.shared.followers();
        let is_meant = |name: String| name == replica || name.split('/').next() == Some(replica);
        let found = followers.iter().find(|follower| addresses(&follower.destination).iter().map(label).any(is_meant));
        found.cloned().ok_or_else(|| {
            let known: Vec<_> = followers.iter().map(|follower| label(&follower.destination)).collect();
            OrderError(format!("no replica {}; there are: {}", escape(replica.as_bytes()), known.join(", ")))
        })
    }

    /// The tree that is open.
    ///
    /// # Errors
    /// None is: why not.
    pub(super) fn opened(&self) -> Result<Opened, OrderError> {
        let why = || self.shared.obstacle().unwrap_or_else(|| "it is being opened; try again".to_owned());
        self.shared.open().ok_or_else(|| OrderError(why()))
    }

    /// Has every replica look at all of its tree when nothing is being told to it; the number of this wish.
    pub fn look_there(&self) -> u64 {
        self.shared.looks.send_modify(|looks| *looks += 1);
        *self.shared.looks.borrow()
    }

    /// Those replicas that have `wanted` or a later version and have looked at all of their trees since that
    /// [wish](Self::look_there), and those that have not, as they are now.
    pub fn reached(&self, wanted: &VersionStatus, looked: u64) -> (Vec<ReplicaStatus>, Vec<ReplicaStatus>) {
        let status = |follower: &Follower| replica_status(follower, Some(wanted), None);
        let is_there = |fate: &Fate| has(fate, wanted) && fate.get().looked >= looked;
        let (reached, behind): (Vec<_>, Vec<_>) =
            self.shared.followers().into_iter().partition(|follower| is_there(&follower.fate));
        // One that looks at its tree, which may take a while, is on its way.
        let on_its_way = |replica: ReplicaStatus| match replica.state {
            ReplicaState::InSync => ReplicaStatus { state: ReplicaState::CatchingUp, ..replica },
            _ => replica,
        };
        (reached.iter().map(status).collect(), behind.iter().map(status).map(on_its_way).collect())
    }

    /// What of the tree could not be read when it was looked at last.
    pub fn unread(&self) -> Option<UnreadStatus> {
        self.shared.state().unread.clone()
    }

    /// How the share and its replicas are, but for its name. Reads the index.
    pub fn status(&self) -> ShareStatus {
        let state = self.shared.state();
        let (opened, version, followers) = (state.opened.clone(), state.version.clone(), state.followers.clone());
        let status = ShareStatus {
            name: String::new(),
            path: state.path.clone(),
            role: Role::Master,
            state: state.state,
            reason: state.reason.clone(),
            version: None,
            unwatched: state.unwatched.clone(),
            unread: state.unread.clone(),
            missed: self.shared.missed.load(Ordering::Relaxed),
            owner: None,
            replicas: Vec::new(),
            copy: None,
        };
        drop(state);
        let tells = opened.as_ref().is_some_and(|opened| opened.newest.borrow().is_some());
        let waits = !tells && self.obstacle().is_some();
        // Only who is behind makes it worth reading.
        let newest = version.as_ref();
        let is_behind = |follower: &Follower| newest.is_none_or(|newest| !has(&follower.fate, newest));
        let opened = opened.filter(|_| followers.iter().any(is_behind));
        let history = opened.as_ref().and_then(|opened| History::read(&opened.source.index).ok());
        let last = history.as_ref().and_then(|history| history.versions.last());
        let version = version.or_else(|| last.map(|last| version_status(&last.version, last.counts.entries)));
        let replica = |follower: &Follower| {
            let mut replica = replica_status(follower, version.as_ref(), history.as_ref());
            // There is nothing to tell it.
            let is_well = matches!(replica.state, ReplicaState::CatchingUp | ReplicaState::Offline)
                && replica.retry_seconds.is_none();
            if waits && is_well {
                let why = "it keeps what it has until this tree can be published again";
                replica.problem.get_or_insert_with(|| why.to_owned());
            }
            replica
        };
        ShareStatus { replicas: followers.iter().map(replica).collect(), version, ..status }
    }
}

/// What the index knows of versions and who has them.
struct History<'a> {
    index: &'a Index,
    versions: Vec<Published>,
    acks: Vec<crate::index::Ack>,
    now: Time,
}

impl<'a> History<'a> {
    fn read(index: &'a Index) -> Result<Self, IndexError> {
        Ok(Self { index, versions: index.versions()?, acks: index.last_acks()?, now: fs::clock::now() })
    }

    /// The number of the last version that a replica acknowledged exactly, in whatever process.
    fn acknowledged(&self, replica: &Destination) -> Option<u64> {
        let Destination::Remote { host, port, share, .. } = replica else { return None };
        let name = format!("{}/{share}", crate::transport::Address::new(host.clone(), *port));
        self.acks.iter().find(|ack| ack.replica == name).map(|ack| ack.number)
    }

    /// What who is at no version lacks, and has so many entries of the newest.
    fn lag_behind(&self, came: u64) -> Option<Lag> {
        let (first, last) = (self.versions.first()?, self.versions.last()?);
        let seconds = seconds_between(first.version.time, self.now);
        let entries = last.counts.entries.saturating_sub(came);
        Some(Lag { versions: self.versions.len() as u64, entries, bytes: None, seconds })
    }

    /// What who has this version lacks.
    fn lag(&self, has: u64) -> Result<Lag, IndexError> {
        let missing = || self.versions.iter().filter(|published| published.version.number > has);
        let since = missing().map(|published| published.version.time).min();
        let seconds = since.map_or(0.0, |since| seconds_between(since, self.now));
        let mut lag = Lag { versions: missing().count() as u64, seconds, bytes: Some(0), entries: 0 };
        if lag.versions == 0 {
            return Ok(lag);
        }
        let Some(mut changes) = self.index.changes_since(has)? else { return Ok(Lag { bytes: None, ..lag }) };
        lag.entries = changes.remaining() as u64;
        if changes.remaining() > ADDED_UP {
            return Ok(Lag { bytes: None, ..lag });
        }
        while let Some(change) = changes.next()? {
            if let Change::Upsert(row) = change {
                let size = row.entry.content().map_or(0, |(size, _)| size);
                lag.bytes = lag.bytes.map(|bytes| bytes.saturating_add(size));
            }
        }
        Ok(lag)
    }
}

fn seconds_between(from: Time, to: Time) -> f64 {
    let seconds = |time: Time| time.sec as f64 + f64::from(time.nsec) / 1e9;
    (seconds(to) - seconds(from)).max(0.0)
}

fn replica_status(follower: &Follower, newest: Option<&VersionStatus>, history: Option<&History<'_>>) -> ReplicaStatus {
    let following = follower.fate.get();
    let Following { connection, version, is_current, drift, problem, held, is_anothers, .. } = following;
    let Following { retry, delivery, came, .. } = following;
    let has_newest = version.as_ref().zip(newest).is_some_and(|((_, id), newest)| id.0.to_hex() == newest.id);
    // What is another master's has nothing of this one.
    let history = history.filter(|_| !is_anothers);
    let acknowledged = version.filter(|_| !is_anothers).map(|(number, _)| number);
    let acknowledged = acknowledged.or_else(|| history.and_then(|h| h.acknowledged(&follower.destination)));
    let wish = *follower.fate.wish.borrow();
    let state = match wish {
        Wish::Pause => ReplicaState::Paused,
        // Who is compared was there a moment ago, unless something was in the way.
        Wish::Rest if has_newest && problem.is_none() && retry.is_none() => ReplicaState::InSync,
        _ if held => ReplicaState::Held,
        _ if connection.is_none() => ReplicaState::Offline,
        _ if has_newest && is_current && drift.is_some() => ReplicaState::Drifted,
        _ if has_newest && is_current => ReplicaState::InSync,
        _ => ReplicaState::CatchingUp,
    };
    let link = connection.map(|connection| {
        let traffic = connection.traffic();
        LinkStatus {
            address: connection.remote().to_string(),
            rtt_ms: connection.rtt().as_secs_f64() * 1e3,
            sent: traffic.sent,
            received: traffic.received,
        }
    });
    ReplicaStatus {
        name: label(&follower.destination),
        state,
        version: acknowledged,
        lag: history.and_then(|history| match acknowledged {
            Some(has) => history.lag(has).ok(),
            None => history.lag_behind(came),
        }),
        drift,
        problem,
        retry_seconds: retry.map(|at| at.saturating_duration_since(Instant::now()).as_secs_f64()),
        link,
        delivery,
    }
}

/// Whether there is no connection with a replica, and not because it is held.
fn is_away(follower: &Fate) -> bool {
    let Following { connection, held, was_held, .. } = follower.get();
    connection.is_none() && !held && !was_held
}

/// Whether a replica has acknowledged a version or a later one over the connection that there is: so the numbers are of one index.
fn acknowledged(follower: &Fate, wanted: &VersionStatus) -> bool {
    let Following { version, is_current, .. } = follower.get();
    is_current && version.is_some_and(|(number, id)| number > wanted.number || id.0.to_hex() == wanted.id)
}

/// Whether it has, and nobody has changed its tree since, as far as it has noticed.
pub fn has(follower: &Fate, wanted: &VersionStatus) -> bool {
    acknowledged(follower, wanted) && follower.get().drift.is_none()
}
