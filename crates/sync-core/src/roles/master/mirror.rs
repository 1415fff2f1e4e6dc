//! The master's role for as long as a daemon runs: a tree is watched, each change becomes a version, and every replica
//! follows.
//!
//! What the watch tells are hints. A batch of them is looked at against the index as a push does it, a few names or the
//! whole tree, so that a hint too many costs nothing and one that is lost is found by the next look at everything.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, block_in_place};

use super::delivery::Delivery;
use super::error::PushError;
use super::follow::{Fate, News};
use super::meter::Meter;
use super::source::{LOOKS, Source};
use super::{Looked, look};
use crate::fs::place;
use crate::fs::watch::{Added, Events, Watch, WatchError, events_at};
use crate::index::IndexError;
use crate::manifest::VersionId;
use crate::monitor::{Monitor, Problem};
use crate::options::PushRequest;
use crate::path::RelPath;
use crate::roles::Shutdown;
use crate::roles::survey::LastLook;
use crate::settle::{Batch, Hint, Settle, SettleOptions};

/// From this many names on a look at the whole tree costs less than one at each.
const MANY: usize = 2000;

/// How long to wait before a source that could not be looked at is looked at again.
const RETRY: Duration = Duration::from_secs(5);

/// How long to wait before a tree is opened again that another one has taken the place of.
const REPLACED: Duration = Duration::from_millis(50);

/// How long the second half of a move may take to be heard of.
const MOVING: Duration = Duration::from_millis(10);

/// How often a tree is looked at of which events cannot be had.
const UNWATCHED: Duration = Duration::from_secs(30);

/// A tree and who follows it.
#[derive(Clone, Debug)]
pub struct MirrorConfig {
    /// As for a push: the tree, the replicas, the state directory and the rules.
    pub request: PushRequest,
    /// The longest that a file that is written all the time waits to be published.
    pub settle_max: Duration,
    /// How often the whole tree is looked at to prove that no change was missed.
    pub rescan: Duration,
}

/// A tree that is mirrored.
pub struct Mirror {
    config: MirrorConfig,
    monitor: Arc<dyn Monitor>,
    meter: Arc<Meter>,
    hints: Arc<Hints>,
}

/// What the watch has told and nobody has looked at yet.
struct Hints {
    settle: Mutex<Settle>,
    /// Whether the watch lost some: what is watched under which path is not known any more.
    lost: AtomicBool,
    more: Notify,
    began: Instant,
}

impl Hints {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn settle(&self) -> MutexGuard<'_, Settle> {
        self.settle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, hint: Hint) {
        self.lost.fetch_or(hint == Hint::Overflow, Ordering::Relaxed);
        self.add(hint);
    }

    fn add(&self, hint: Hint) {
        self.settle().hint(self.now(), hint);
        self.more.notify_one();
    }
}

/// A source while its top directory stays what it is.
struct Open {
    source: Arc<Source>,
    /// `None` if events cannot be had, or not of all of it: then it is looked at from time to time.
    watch: Option<Watch>,
    /// What the last look left, if single names can be looked at beside it.
    last: Option<LastLook>,
    /// The newest version that was told.
    told: Option<VersionId>,
}

impl Mirror {
    /// A mirror that does nothing yet.
    pub fn new(config: MirrorConfig, monitor: Arc<dyn Monitor>) -> Self {
        let meter = Arc::new(Meter::new(Arc::clone(&monitor), config.request.destinations.len()));
        let settle =
            Mutex::new(Settle::new(SettleOptions { settle_max: config.settle_max, ..SettleOptions::default() }));
        let hints =
            Arc::new(Hints { settle, lost: AtomicBool::new(false), more: Notify::new(), began: Instant::now() });
        Self { config, monitor, meter, hints }
    }

    /// Watches and publishes until shutdown.
    ///
    /// # Errors
    /// [`PushError`] if the configuration makes no sense for this machine. A source that is not there is waited for.
    pub async fn run(self, mut shutdown: Shutdown) -> Result<(), PushError> {
        while !*shutdown.borrow() {
            let wait = match block_in_place(|| self.open()) {
                Ok(mut open) => {
                    self.serve(&mut open, &shutdown).await;
                    REPLACED
                }
                Err(error @ (PushError::Overlap(_) | PushError::Filter(_))) => return Err(error),
                Err(error) => {
                    self.tell_of(&error);
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = shutdown.wait_for(|stop| *stop) => {}
            }
        }
        Ok(())
    }

    /// Listens first, so that what changes while the tree is looked at is not missed.
    fn open(&self) -> Result<Open, PushError> {
        let request = &self.config.request;
        let hints = Arc::clone(&self.hints);
        let watch = Watch::new(&request.source, move |hint| hints.hear(hint));
        // A link to the tree keeps its index wherever it leads.
        let place = request.source.parent().zip(request.source.file_name());
        let place = place.and_then(|(dir, name)| Some(place::resolve(dir).ok()?.join(name)));
        let source = Arc::new(Source::open_as(request, place.as_deref(), &*self.monitor)?);
        let watch = match (watch, events_at(source.root.path())) {
            (Err(WatchError::RootGone), _) => return Err(self.failed("it is not where it was a moment ago".to_owned())),
            (Ok(watch), Ok(Events::Complete)) => Some(watch),
            (Ok(_), Ok(Events::Incomplete { file_system })) => {
                self.not_watched(&format!("{file_system} does not tell of all of them"));
                None
            }
            (Ok(_), Err(error)) => {
                self.not_watched(&error.to_string());
                None
            }
            (Err(error), _) => {
                self.not_watched(&error.to_string());
                None
            }
        };
        self.hints.add(Hint::Overflow);
        Ok(Open { source, watch, last: None, told: None })
    }

    fn not_watched(&self, why: &str) {
        let every = humane(UNWATCHED.min(self.config.rescan));
        self.monitor.notice(None, &format!("changes are not heard of: {why}; the tree is looked at every {every}"));
    }

    /// Looks at batch after batch, while every replica follows. Ends on shutdown, or when the tree is not where it was.
    async fn serve(&self, open: &mut Open, shutdown: &Shutdown) {
        let (news, newest) = watch::channel(None);
        let (over, followers_end) = watch::channel(false);
        let mut followers = JoinSet::new();
        for delivery in self.deliveries(&open.source) {
            followers.spawn(delivery.follow(newest.clone(), Fate::default(), followers_end.clone()));
        }
        let mut stop = shutdown.clone();
        let looking = async {
            let mut looked = Instant::now();
            loop {
                let now = self.hints.now();
                let (batch, timeout) = {
                    let mut settle = self.hints.settle();
                    (settle.poll(now), settle.timeout())
                };
                if let Some(batch) = batch {
                    match block_in_place(|| self.publish(open, batch)) {
                        Ok(Some(version)) => drop(news.send_replace(Some(version))),
                        Ok(None) => {}
                        Err(Stopped::Gone) => return,
                        Err(Stopped::Empty) => {
                            open.last = None;
                            let why = "it is empty, and was not before: is something not mounted? the replicas keep what \
                                       they have; what comes into it is published";
                            self.tell_of(&self.failed(why.to_owned()));
                        }
                        Err(Stopped::Failed(error)) => {
                            self.tell_of(&error);
                            open.last = None;
                            tokio::time::sleep(RETRY).await;
                            self.hints.add(Hint::Overflow);
                        }
                    }
                    continue;
                }
                let until = timeout.map_or(self.config.rescan, |at| at.saturating_sub(now));
                tokio::select! {
                    () = self.hints.more.notified() => {}
                    () = tokio::time::sleep(until) => {}
                    () = tokio::time::sleep_until((looked + self.rescan(open)).into()) => {
                        looked = Instant::now();
                        self.hints.add(Hint::Overflow);
                    }
                }
            }
        };
        tokio::select! {
            () = looking => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        over.send_replace(true);
        while followers.join_next().await.is_some() {}
    }

    fn rescan(&self, open: &Open) -> Duration {
        if open.watch.is_some() { self.config.rescan } else { self.config.rescan.min(UNWATCHED) }
    }

    fn deliveries(&self, source: &Arc<Source>) -> Vec<Delivery> {
        let request = &self.config.request;
        let delivery = |(dest, destination): (usize, &crate::options::Destination)| Delivery {
            dest,
            destination: destination.clone(),
            policy: request.policy.clone(),
            compress: request.compress,
            bandwidth: request.bandwidth,
            state_dir: request.state_dir.clone(),
            source: Arc::clone(source),
            meter: Arc::clone(&self.meter),
            monitor: Arc::clone(&self.monitor),
        };
        request.destinations.iter().enumerate().map(delivery).collect()
    }

    /// Looks at what a batch names, and commits what was found as a version, if it is one.
    fn publish(&self, open: &mut Open, batch: Batch) -> Result<Option<Arc<News>>, Stopped> {
        check_place(open)?;
        let everything = batch.everything;
        let found = match self.names_of(open, batch)? {
            Some(names) => self.look_until_quiet(open, names)?,
            None => None,
        };
        // Inodes with several names are only found by a look at everything.
        let linked = found.is_some().then(|| open.last.take().map(|last| last.linked)).flatten();
        let Looked { survey, scanned, hashed } = match found {
            Some(found) => found,
            None => self.look(open)?,
        };
        let last = LastLook::of(&survey);
        let source = &open.source;
        if survey.entries <= 1 && survey.gone.len() > 1 {
            return Err(Stopped::Empty);
        }
        Source::report_failures(&survey, &*self.monitor);
        let (decided, difference) = source.decide(survey, scanned, hashed)?;
        // A tree that was replaced while it was looked at may be half gone.
        check_place(open)?;
        source.commit(&decided, &difference, &*self.monitor)?;
        open.last =
            last.map(|last| LastLook { tree: decided.tree.clone(), linked: linked.unwrap_or(last.linked), ..last });
        source.keep_contents(&difference)?;
        // As seldom as all of the tree is looked at for its own sake: what it costs grows with the tree.
        if everything && let Err(error) = source.index.tidy() {
            self.monitor.notice(None, &format!("the index of the source could not be tidied: {error}"));
        }
        let id = decided.version.id();
        if open.told == Some(id) {
            return Ok(None);
        }
        open.told = Some(id);
        tracing::info!(version = decided.version.number, entries = decided.entries, "published");
        Ok(Some(Arc::new(News { decided: Arc::new(decided), difference: Arc::new(difference) })))
    }

    /// The names to look at, with all that new directories hold; `None` if it is to be everything.
    fn names_of(&self, open: &mut Open, batch: Batch) -> Result<Option<BTreeSet<RelPath>>, PushError> {
        let Some(watch) = &open.watch else { return Ok(None) };
        let everything = batch.everything || open.last.is_none() || batch.names.len() > MANY;
        let lost = self.hints.lost.swap(false, Ordering::Relaxed);
        let mut names = batch.names;
        let tops: Vec<RelPath> = std::iter::once(RelPath::root()).chain(names.iter().cloned()).collect();
        // Which names were told of is not known, and some may be directories that nobody watches yet.
        let throughout = batch.everything && !lost;
        let restarted = if lost { watch.restart() } else { Ok(()) };
        let covered = restarted.and_then(|()| {
            tops.into_iter().try_for_each(|top| {
                self.cover(&open.source, watch, top, throughout, &mut |name| {
                    if names.len() <= MANY {
                        names.insert(name);
                    }
                })
            })
        });
        match covered {
            Ok(()) => {}
            Err(WatchError::RootGone) => return Err(self.failed("it was moved or replaced".to_owned())),
            Err(error) => {
                self.not_watched(&error.to_string());
                open.watch = None;
                return Ok(None);
            }
        }
        Ok((!everything && !lost && names.len() <= MANY).then_some(names))
    }

    /// Watches all directories from `top` down that are not watched yet; `found` gets what is in those. What is beneath one
    /// that is watched was covered when it was new, but for what was made there since: that is looked for `throughout`.
    fn cover(
        &self,
        source: &Source,
        watch: &Watch,
        top: RelPath,
        throughout: bool,
        found: &mut dyn FnMut(RelPath),
    ) -> Result<(), WatchError> {
        let mut tops = vec![top];
        while let Some(dir) = tops.pop() {
            if !dir.is_root() && source.leaves_out(&dir, true) {
                continue;
            }
            match watch.add(&dir) {
                Ok(Added::New) => {}
                Ok(Added::Known) if throughout => {}
                Ok(Added::Known | Added::NotADirectory) => continue,
                Err(error) if error.is_local() => {
                    self.monitor.notice(None, &format!("changes in {dir} are only found by looking: {error}"));
                    continue;
                }
                Err(error) => return Err(error),
            }
            // What cannot be listed is found by the look, which tells why.
            for (name, may_be_dir) in source.root.names(&dir).unwrap_or_default() {
                let Ok(path) = dir.join(&name) else { continue };
                if may_be_dir {
                    tops.push(path.clone());
                }
                found(path);
            }
        }
        Ok(())
    }

    /// Looks at names, and at those that are told of meanwhile if some seem gone: one of them may be the new name of what
    /// is.
    fn look_until_quiet(&self, open: &mut Open, mut names: BTreeSet<RelPath>) -> Result<Option<Looked>, Stopped> {
        for _ in 0..LOOKS {
            let Some(found) = self.look_at(open, &names)? else { return Ok(None) };
            if found.survey.gone.is_empty() {
                return Ok(Some(found));
            }
            std::thread::sleep(MOVING);
            let Some(more) = self.hints.settle().poll(self.hints.now()) else { return Ok(Some(found)) };
            match self.names_of(open, more)? {
                Some(more) => names.extend(more),
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    fn look_at(&self, open: &Open, names: &BTreeSet<RelPath>) -> Result<Option<Looked>, PushError> {
        let Some(last) = &open.last else { return Ok(None) };
        let (stop, started) = (AtomicBool::new(false), Instant::now());
        let found = open.source.look_at(names, last, &stop, &self.meter, &mut |_, _| {}, &|_| {})?;
        Ok(found.map(|(survey, scanned)| Looked { survey, scanned, hashed: started.elapsed().saturating_sub(scanned) }))
    }

    fn look(&self, open: &Open) -> Result<Looked, PushError> {
        let stop = AtomicBool::new(false);
        let found = look(&open.source, &stop, &self.meter, &*self.monitor, &mut |_, _| {}, &|_| {});
        match found {
            Err(PushError::Index(IndexError::Damaged(reason))) => {
                open.source.rebuild_index(&reason, &*self.monitor)?;
                look(&open.source, &stop, &self.meter, &*self.monitor, &mut |_, _| {}, &|_| {})
            }
            found => found,
        }
    }

    fn failed(&self, reason: String) -> PushError {
        PushError::Source { path: self.config.request.source.clone(), reason }
    }

    fn tell_of(&self, error: &PushError) {
        self.monitor.problem(None, &Problem { path: None, reason: error.to_string() });
    }
}

/// Whether the path of the tree still leads to the one that is open.
fn check_place(open: &Open) -> Result<(), Stopped> {
    let in_place = open.watch.as_ref().is_none_or(Watch::is_in_place);
    if in_place && open.source.root.still_there() { Ok(()) } else { Err(Stopped::Gone) }
}

/// A time in words.
fn humane(time: Duration) -> String {
    match time.as_millis() {
        millis if millis % 1000 > 0 => format!("{millis} ms"),
        millis => format!("{} s", millis / 1000),
    }
}

/// Why a batch was not published.
enum Stopped {
    /// The tree is not where it was.
    Gone,
    /// Nothing is left of it: that is not taken for a change.
    Empty,
    /// It could not be looked at now.
    Failed(PushError),
}

impl<E: Into<PushError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
