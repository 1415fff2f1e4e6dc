//! A share's own tree, watched for as long as the daemon runs: who else changes it is found out, logged, and healed.
//!
//! The lookout says where to look. A session that has the share open and waits for its master looks there, and tells the
//! master of what it found, which repairs it like any other difference. Without such a session the lookout looks itself,
//! and changes nothing: the next session finds the same, and heals it.
//!
//! What the replica itself publishes is hinted at as well. It is what its rows say, and so it is no drift. While it publishes
//! much, nothing is heard ([`Lookout::keep_quiet`]): to hear of each name took a tenth of the work.
//!
//! As long as the watch has told of every change, what a session has left ([`Rest`]) spares the next one, of whichever master, the look at
//! everything: it looks at the names that were told since.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::{block_in_place, spawn_blocking};

use super::drift::Drift;
use super::error::OpenError;
use super::open::{Inspected, Opened, Rest};
use super::share::Share;
use super::standing::Standing;
use crate::backoff::jittered;
use crate::duration;
use crate::fs::watch::{Watch, WatchError};
use crate::fs::{self, Root, STAGING_NAME};
use crate::heal::{Heal, Pauses};
use crate::path::RelPath;
use crate::roles::Shutdown;
use crate::roles::survey::{Names, SurveyError};
use crate::roles::watching::{Hints, RootGone, Watched};
use crate::settle::{Batch, Hint, SettleOptions};

/// How long to wait before a directory that could not be watched is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How long a share stays without a session until the lookout looks itself: a master opens one after the other.
const ALONE: Duration = Duration::from_secs(1);

/// How long a session waits to be told what the watch has heard of, until it looks at everything.
const CATCH_UP: Duration = Duration::from_secs(2);

/// How long the first hint waits for others: who changes one thing often changes more.
const GATHER: Duration = Duration::from_millis(300);

/// Names that are kept until somebody looks at them; of more, everything is looked at.
const MOST_NAMES: usize = 10_000;

/// How often a tree is looked at of which events cannot be had, or more often if that is asked for.
const UNWATCHED: Duration = Duration::from_secs(300);

/// Watches one share.
pub struct Lookout {
    share: Share,
    heal: Heal,
    rescan: Duration,
    hints: Arc<Hints>,
    state: Mutex<State>,
    changed: Notify,
    ear: Arc<Ear>,
    /// Hears how the tree is.
    standing: Arc<Standing>,
}

#[derive(Default)]
struct State {
    owed: Option<Look>,
    /// When there is enough of it to look.
    gathered: Duration,
    /// How many sessions have the share open, or are about to.
    sessions: u32,
    /// Since when none has, as the time of hints.
    alone: Duration,
    /// Whether the tree is watched.
    is_watched: bool,
    /// What the last session has left, and at which names the lookout has looked since: true, but for those and what is owed.
    rest: Option<(Rest, Names)>,
    /// Who wants to know when all that happened until now is owed.
    asks: Vec<SyncSender<()>>,
    /// Ends the look of the lookout itself.
    stop: Arc<AtomicBool>,
    pauses: Pauses,
    /// Entries that drifted since the daemon was started.
    total: u64,
}

/// Where somebody shall look.
pub struct Look {
    /// At these names; `None`: at everything.
    pub names: Option<Names>,
}

impl Look {
    const EVERYTHING: Self = Self { names: None };

    fn and(self, other: Self) -> Self {
        let names = self.names.zip(other.names).map(|(mut some, more)| {
            some.extend(more);
            some
        });
        Self { names }
    }

    /// Of very many names it is one at everything.
    fn bounded(self) -> Self {
        Self { names: self.names.filter(|names| names.whole.len() + names.alone.len() <= MOST_NAMES) }
    }
}

/// A session that has the share open: then the lookout keeps away from it.
pub struct Presence(Arc<Lookout>);

impl Drop for Presence {
    fn drop(&mut self) {
        let now = self.0.hints.now();
        let mut state = self.0.state();
        state.sessions -= 1;
        state.alone = now;
        drop(state);
        self.0.changed.notify_waiters();
    }
}

/// Whether events are heard, or wait in the kernel. Of more than it keeps it says that some were lost.
#[derive(Default)]
struct Ear {
    /// How many wish that they wait.
    closed: Mutex<u32>,
    opened: Condvar,
}

impl Ear {
    fn closed(&self) -> MutexGuard<'_, u32> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        *self.closed() > 0
    }

    /// Returns when events are heard.
    fn listen(&self) {
        let opened = self.opened.wait_while(self.closed(), |closed| *closed > 0);
        drop(opened.unwrap_or_else(PoisonError::into_inner));
    }
}

/// While it is there, nothing is heard.
pub struct Quiet(Arc<Lookout>);

impl Drop for Quiet {
    fn drop(&mut self) {
        *self.0.ear.closed() -= 1;
        self.0.ear.opened.notify_all();
        self.0.changed.notify_waiters();
    }
}

/// The tree as it is watched, while its top stays what it is.
struct Tree {
    root: Root,
    watched: Watched,
}

impl Lookout {
    /// For a share that is looked at every `rescan` as well, to find what no event told. `None` if nobody is to look.
    pub fn new(share: Share, heal: Heal, rescan: Duration, standing: Arc<Standing>) -> Option<Arc<Self>> {
        let hints = Hints::new(SettleOptions::default());
        let (state, changed, ear) = (Mutex::default(), Notify::new(), Arc::default());
        (heal != Heal::Off).then(|| Arc::new(Self { share, heal, rescan, hints, state, changed, ear, standing }))
    }

    /// Whether what drifted is healed.
    pub fn heals(&self) -> bool {
        self.heal == Heal::Heal
    }

    /// A session is about to open the share.
    pub fn enter(self: &Arc<Self>) -> Presence {
        let mut state = self.state();
        state.sessions += 1;
        state.stop.store(true, Ordering::Relaxed);
        drop(state);
        Presence(Arc::clone(self))
    }

    /// It is about to look, and what is owed until now is done with that: at everything, unless there is what the last one has
    /// left; then at these names. Who wishes for that, and only he, has to wait until they are known.
    pub fn looks(&self, goes_on: bool) -> Option<(Rest, Names)> {
        if goes_on && self.state().rest.is_some() {
            self.catch_up();
        }
        let mut state = self.state();
        let (rest, owed) = (state.rest.take(), state.owed.take());
        let (rest, looked) = rest.filter(|_| goes_on)?;
        let looked = Look { names: Some(looked) };
        let all = match owed {
            Some(owed) => owed.and(looked).bounded(),
            None => looked,
        };
        Some((rest, all.names?))
    }

    /// Keeps what a session has left, if all that changes from here on is heard of. To be called while it keeps others out.
    pub fn leave(&self, rest: Rest) {
        let mut state = self.state();
        state.rest = Some((rest, Names::default())).filter(|_| state.is_watched);
    }

    /// What the last session has left is true but for these names, too.
    fn looked(&self, names: &Names) {
        let mut state = self.state();
        let rest = state.rest.take().and_then(|(rest, looked)| {
            let all = Look { names: Some(looked) }.and(Look { names: Some(names.clone()) });
            Some((rest, all.bounded().names?))
        });
        state.rest = rest;
    }

    /// Returns when all that happened until now is owed, or is not known to be: then nothing is left.
    fn catch_up(&self) {
        let (tell, told) = sync_channel(1);
        self.state().asks.push(tell);
        self.changed.notify_waiters();
        if told.recv_timeout(CATCH_UP).is_err() {
            self.state().rest = None;
        }
    }

    /// Hears nothing until the guard is dropped; what happens meanwhile it hears then. For who changes much of the tree himself
    /// for some seconds.
    pub fn keep_quiet(self: &Arc<Self>) -> Quiet {
        *self.ear.closed() += 1;
        Quiet(Arc::clone(self))
    }

    /// The look that was announced did not take place.
    pub fn still_owes(&self) {
        self.owe(Look::EVERYTHING);
    }

    /// Waits until there is somewhere to look, and it is time. For a session that waits as well; cancel safe.
    pub async fn due(&self) -> Look {
        loop {
            let changed = self.changed.notified();
            let at = {
                let mut state = self.state();
                let at = state.owed.is_some().then(|| state.gathered.max(state.pauses.until()));
                if at.is_some_and(|at| at <= self.hints.now())
                    && let Some(look) = state.owed.take()
                {
                    return look;
                }
                at
            };
            tokio::select! {
                () = changed => {}
                () = self.sleep_until(at) => {}
            }
        }
    }

    /// Logs what a look at these names, or at everything, has found, and whether a session heals it. The next one waits.
    pub fn tell(&self, names: Option<&Names>, drift: &Drift, healed: bool) {
        self.standing.looked(names, drift, healed);
        let count = drift.count();
        if count == 0 {
            return;
        }
        let share = &*self.share.name;
        drift.log(share);
        let (total, restless, pause) = {
            let mut state = self.state();
            state.total += count;
            let pause = state.pauses.drifted(self.hints.now());
            (state.total, state.pauses.is_restless(), pause)
        };
        let then = match healed {
            true => "it is healed from the master",
            false if self.heals() => "no master is connected: the next session heals it",
            false => "it is left as it is, until the next session begins with a look at the tree",
        };
        tracing::warn!(share, entries = count, total, "drift: somebody else changed the tree; {then}");
        if restless {
            tracing::warn!(share, "drift: it comes again and again; the next look comes in {} s", pause.as_secs());
        }
    }

    /// Watches until shutdown.
    pub async fn run(self: Arc<Self>, mut shutdown: Shutdown) {
        let mut said = String::new();
        while !*shutdown.borrow() {
            match block_in_place(|| self.listen()) {
                Ok(mut tree) => {
                    self.recovered(&mut said);
                    self.state().is_watched = true;
                    self.serve(&mut tree, &mut said, &mut shutdown).await;
                    let mut state = self.state();
                    (state.is_watched, state.rest) = (false, None);
                    state.asks.clear();
                }
                Err(why) => self.warn_once(&mut said, why),
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                _ = shutdown.wait_for(|stop| *stop) => {}
            }
        }
    }

    fn warn_once(&self, said: &mut String, why: String) {
        if *said != why {
            tracing::warn!(share = self.share.name, "{why}");
            self.standing.tree(Some(&why));
            *said = why;
        }
    }

    fn recovered(&self, said: &mut String) {
        if !said.is_empty() {
            self.standing.tree(None);
            said.clear();
        }
    }

    /// Listens first, so that what changes while the tree is looked at is not missed.
    fn listen(&self) -> Result<Tree, String> {
        let gone = |why: &dyn std::fmt::Display| {
            format!("{} cannot be watched: {why}; nothing is healed before it is back", self.share.describe())
        };
        let watch = self.watch();
        let root = Root::open(&self.share.path).map_err(|error| gone(&error))?;
        if let Err(error @ WatchError::RootGone) = &watch {
            return Err(gone(error));
        }
        let watched = Watched::by(watch, &root);
        self.hints.add(Hint::Overflow);
        Ok(Tree { root, watched })
    }

    fn watch(&self) -> Result<Watch, WatchError> {
        let (hints, ear) = (Arc::clone(&self.hints), Arc::clone(&self.ear));
        Watch::new(&self.share.path, move |hint| {
            // Of what is mounted another thread tells, which nobody may hold up: who drops the watch waits for it.
            if matches!(hint, Hint::Changed(_) | Hint::AtRest(_)) {
                ear.listen();
            }
            // Nobody is to look where we stage.
            if !matches!(&hint, Hint::Changed(path) | Hint::AtRest(path) if is_staging(path)) {
                hints.hear(hint);
            }
        })
    }

    /// Says how far the tree is watched, if that is new.
    fn tell_of(&self, watched: &Watched) {
        let every = duration::text(self.rescan.min(UNWATCHED));
        let why = watched.unheard().map(|why| format!("{why}; the tree is looked at about every {every}"));
        if self.standing.unwatched(why.as_deref())
            && let Some(why) = why
        {
            tracing::warn!(share = self.share.name, "{why}");
        }
    }

    /// Finds out from batch after batch where to look. Ends on shutdown, or when the tree is not where it was.
    async fn serve(&self, tree: &mut Tree, said: &mut String, shutdown: &mut Shutdown) {
        let mut rescan = Instant::now() + self.next_rescan(tree);
        loop {
            if !tree.watched.hears_all() {
                // Since a moment ago, it may be.
                rescan = rescan.min(Instant::now() + self.next_rescan(tree));
            }
            let changed = self.changed.notified();
            let now = self.hints.now();
            // To take one up needs the thread that hears.
            let quiet = self.ear.is_closed();
            let asks = if quiet { Vec::new() } else { std::mem::take(&mut self.state().asks) };
            if !asks.is_empty() && !block_in_place(|| tree.watched.catches_up()) {
                self.state().rest = None;
            }
            let (batch, timeout) = if quiet {
                (None, None)
            } else {
                let mut settle = self.hints.settle();
                let batch = if asks.is_empty() { settle.poll(now) } else { settle.take_all(now) };
                (batch, settle.timeout())
            };
            let is_busy = batch.is_some() || !asks.is_empty();
            if let Some(batch) = batch {
                match block_in_place(|| self.take_up(tree, batch)) {
                    Some(look) => self.owe(look),
                    None => {
                        self.warn_once(said, format!("{} was moved, unmounted or replaced", self.share.describe()));
                        // Whoever has it open finds the same.
                        self.owe(Look::EVERYTHING);
                        return;
                    }
                }
            }
            for ask in asks {
                // Who asked may have gone.
                let _ = ask.send(());
            }
            if is_busy {
                continue;
            }
            tokio::select! {
                () = self.hints.more.notified() => {}
                () = self.sleep_until(timeout) => {}
                () = changed => {}
                () = tokio::time::sleep_until(rescan.into()), if !quiet => {
                    // Whatever was in the way may have been removed.
                    if !tree.watched.is_on() {
                        tree.watched = Watched::by(self.watch(), &tree.root);
                    }
                    rescan = Instant::now() + self.next_rescan(tree);
                    self.hints.add(Hint::Overflow);
                }
                () = self.sleep_until(self.own_look()) => self.look_alone(said, shutdown).await,
                () = over(shutdown) => return,
            }
        }
    }

    fn next_rescan(&self, tree: &Tree) -> Duration {
        let every = if tree.watched.hears_all() { self.rescan } else { self.rescan.min(UNWATCHED) };
        jittered(every, fs::random().map_or(0, u64::from_le_bytes))
    }

    /// Watches what a batch names; `None` if the tree is not where it was.
    fn take_up(&self, tree: &mut Tree, batch: Batch) -> Option<Look> {
        if !tree.root.still_there() || !tree.watched.is_in_place() {
            return None;
        }
        let leaves_out = |dir: &RelPath| is_staging(dir);
        match tree.watched.names_of(&self.hints, &tree.root, batch, false, &leaves_out) {
            Ok(names) => {
                self.tell_of(&tree.watched);
                Some(Look { names })
            }
            Err(RootGone) => None,
        }
    }

    fn owe(&self, look: Look) {
        let mut state = self.state();
        state.owed = Some(match state.owed.take() {
            Some(owed) => owed.and(look).bounded(),
            None => {
                state.gathered = self.hints.now() + GATHER;
                look
            }
        });
        drop(state);
        self.changed.notify_waiters();
    }

    /// When the lookout looks itself, if there is anything to look at and no session that could.
    fn own_look(&self) -> Option<Duration> {
        let state = self.state();
        let at = state.pauses.until().max(state.alone + ALONE);
        (state.owed.is_some() && state.sessions == 0).then_some(at)
    }

    /// Looks without a session. Ends early when one opens the share.
    async fn look_alone(&self, said: &mut String, shutdown: &mut Shutdown) {
        let (look, stop) = {
            let mut state = self.state();
            state.stop = Arc::default();
            // A session that looks has taken it; one that does not leaves it to be done.
            let owed = if state.sessions == 0 { state.owed.take() } else { None };
            let Some(look) = owed else { return };
            (look, Arc::clone(&state.stop))
        };
        let (share, names, stopped) = (self.share.clone(), look.names.clone(), Arc::clone(&stop));
        let mut looking = spawn_blocking(move || Opened::inspect(&share, names.as_ref(), &stopped));
        let found = tokio::select! {
            found = &mut looking => found,
            () = over(shutdown) => {
                stop.store(true, Ordering::Relaxed);
                looking.await
            }
        };
        let is_known = match &found {
            Ok(Ok(found)) => found.only_there,
            // Then it is owed again.
            Ok(Err(OpenError::Survey(SurveyError::Stopped))) => true,
            _ => false,
        };
        if !is_known {
            self.state().rest = None;
        } else if let Some(names) = &look.names {
            self.looked(names);
        }
        match found {
            Ok(Ok(Inspected { drift, .. })) => {
                self.recovered(said);
                self.tell(look.names.as_ref(), &drift, false);
            }
            // Who opened the share meanwhile may look at everything, or not.
            Ok(Err(OpenError::Survey(SurveyError::Stopped))) => self.owe(look),
            Ok(Err(error)) => self.warn_once(said, format!("the tree cannot be looked at: {error}")),
            Err(error) => self.warn_once(said, format!("the look at the tree ended with a panic: {error}")),
        }
    }

    /// Until a time of hints, if there is one.
    async fn sleep_until(&self, at: Option<Duration>) {
        match at {
            Some(at) => tokio::time::sleep(at.saturating_sub(self.hints.now())).await,
            None => std::future::pending().await,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn over(shutdown: &mut Shutdown) {
    // An error means that nobody is left who could ask for it.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

fn is_staging(path: &RelPath) -> bool {
    path.as_bytes().split(|&byte| byte == b'/').any(|name| name == STAGING_NAME.as_bytes())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the test changes the tree that is watched")]
mod tests {
    use std::path::PathBuf;

    use tokio::sync::watch;

    use super::*;

    fn lookout() -> Arc<Lookout> {
        let at = |name: &str| PathBuf::from(format!("/nonexistent/{name}"));
        let share = Share { name: "www".to_owned(), path: at("tree"), state_dir: at("state") };
        let standing = Standing::new(Heal::Heal, None, watch::channel(()).0);
        Lookout::new(share, Heal::Heal, UNWATCHED, standing).unwrap()
    }

    #[tokio::test]
    async fn what_a_session_does_not_look_at_is_owed_when_it_is_gone() {
        let (lookout, mut shutdown) = (lookout(), watch::channel(false).1);
        let is_owed = || lookout.state().owed.is_some();
        lookout.owe(Look::EVERYTHING);
        let session = lookout.enter();
        lookout.look_alone(&mut String::new(), &mut shutdown).await;
        assert!(is_owed());
        drop(session);
        let session = lookout.enter();
        assert!(lookout.looks(false).is_none() && !is_owed(), "this one looks itself");
        drop(session);
    }

    /// Once the tree is watched, nobody asks for a look before there is one to be heard of.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_happens_while_it_keeps_quiet_is_heard_of_afterwards() {
        let temp = tempfile::tempdir().unwrap();
        let share = Share { path: temp.path().to_owned(), ..lookout().share.clone() };
        let standing = Standing::new(Heal::Heal, None, watch::channel(()).0);
        let lookout = Lookout::new(share, Heal::Heal, Duration::from_secs(3600), standing).unwrap();
        let session = lookout.enter();
        let (stop, shutdown) = watch::channel(false);
        let running = tokio::spawn(Arc::clone(&lookout).run(shutdown));
        let due = |most| tokio::time::timeout(most, lookout.due());
        assert!(due(Duration::from_secs(60)).await.unwrap().names.is_none(), "at first it is everything");

        let quiet = [lookout.keep_quiet(), lookout.keep_quiet()];
        std::fs::write(temp.path().join("changed"), "meanwhile").unwrap();
        assert!(due(Duration::from_secs(1)).await.is_err());
        for one in quiet {
            assert!(lookout.state().owed.is_none());
            drop(one);
        }
        let look = due(Duration::from_secs(60)).await.unwrap();
        assert!(look.names.unwrap().covers(&RelPath::new("changed").unwrap()));
        drop(session);
        stop.send_replace(true);
        running.await.unwrap();
    }

    #[test]
    fn of_very_many_names_everything_is_looked_at() {
        let lookout = lookout();
        let names = |from: usize, to: usize| {
            let paths = (from..to).map(|i| RelPath::new(format!("{i}").into_bytes()).unwrap());
            Look { names: Some(Names { whole: paths.collect(), ..Names::default() }) }
        };
        let kept = || lookout.state().owed.as_ref().unwrap().names.as_ref().map(|names| names.whole.len());
        lookout.owe(names(0, MOST_NAMES - 1));
        lookout.owe(names(5, MOST_NAMES));
        assert_eq!(kept(), Some(MOST_NAMES));
        lookout.owe(names(0, MOST_NAMES + 1));
        assert_eq!(kept(), None);
    }
}
