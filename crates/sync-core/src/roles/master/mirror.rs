//! The master's role for as long as a daemon runs: a tree is watched, each change becomes a version, and every replica
//! follows.
//!
//! What the watch tells are hints. A batch of them is looked at against the index as a push does it, a few names or the
//! whole tree, so that a hint too many costs nothing and one that is lost is found by the next look at everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, block_in_place};

use super::config::{MirrorConfig, Monitors};
use super::delivery::Delivery;
use super::difference::Difference;
use super::error::PushError;
use super::fate::Wish;
use super::filling::Filling;
use super::handle::{Follower, MirrorHandle, MirrorOrder, Opened, Shared};
use super::meter::Meter;
use super::news::News;
use super::source::{Decided, LOOKS, Source};
use super::{Looked, look};
use crate::backoff::jittered;
use crate::control::ShareState;
use crate::duration;
use crate::fs::watch::{Watch, WatchError};
use crate::fs::{self, FsError, History, place};
use crate::guard::{NAMED, Step};
use crate::index::IndexError;
use crate::manifest::VersionId;
use crate::monitor::{Monitor, Problem};
use crate::path::{RelPath, escape};
use crate::roles::Shutdown;
use crate::roles::guarding::{Counted, Guard};
use crate::roles::survey::{LastLook, Names};
use crate::roles::watching::{Hints, RootGone, Watched};
use crate::settle::{Batch, Hint, Settle, SettleOptions};
use crate::transport::Dialer;

/// How long to wait before a source that could not be looked at is looked at again.
const RETRY: Duration = Duration::from_secs(5);

/// How many times as long as a look at everything took there is no other for what could not be sent.
const SHARE: u32 = 10;

/// How long to wait before a tree is opened again that another one has taken the place of.
const REPLACED: Duration = Duration::from_millis(50);

/// How long the second half of a move may take to be heard of.
const MOVING: Duration = Duration::from_millis(10);

/// How often a tree is looked at of which events cannot be had.
const UNWATCHED: Duration = Duration::from_secs(30);

/// A tree that is mirrored.
pub struct Mirror {
    config: MirrorConfig,
    monitors: Monitors,
    monitor: Arc<dyn Monitor>,
    meter: Meter,
    hints: Arc<Hints>,
    shared: Arc<Shared>,
    dialer: Dialer,
    orders: mpsc::UnboundedReceiver<MirrorOrder>,
    /// One that came while the tree was not open.
    waiting: Option<MirrorOrder>,
    /// The process is asked to stop.
    stop: Arc<AtomicBool>,
    /// What was deleted lately.
    guard: Arc<Guard>,
    /// Whether nothing was left of the tree, and not enough is back.
    emptied: AtomicBool,
    /// What the next batch is allowed once.
    release: bool,
}

/// A source while its top directory stays what it is.
struct Open {
    source: Arc<Source>,
    watched: Watched,
    /// What the last look left, if single names can be looked at beside it.
    last: Option<LastLook>,
    /// The newest version that was told.
    told: Option<VersionId>,
    /// Who puts into the history what there was before.
    filling: Option<Filling>,
}

/// Why a tree is not served any more.
enum Left {
    /// The process is asked to stop.
    Shutdown,
    /// The tree is not where it was.
    Gone,
    /// What does not belong to the tree is another from now on, or it is another tree.
    Configured,
}

impl Mirror {
    /// A mirror that does nothing yet, and what it can be seen and told by. `changed` is told whenever its status may have
    /// changed.
    pub fn new(config: MirrorConfig, monitors: Monitors, changed: watch::Sender<()>) -> (Self, MirrorHandle) {
        let monitor = monitors(None);
        let meter = Meter::new(Arc::clone(&monitor), 0);
        let hints = Hints::new(settle_options(&config));
        let shared = Arc::new(Shared::new(&config, changed));
        let guard = Guard::new(config.max_delete);
        let (orders, ordered) = mpsc::unbounded_channel();
        let handle = MirrorHandle::new(Arc::clone(&shared), orders);
        let mirror = Self {
            config,
            monitors,
            monitor,
            meter,
            hints,
            shared,
            dialer: Dialer::default(),
            orders: ordered,
            waiting: None,
            stop: Arc::default(),
            guard,
            emptied: AtomicBool::new(false),
            release: false,
        };
        (mirror, handle)
    }

    /// Watches and publishes until shutdown.
    ///
    /// # Errors
    /// [`PushError`] if the configuration makes no sense for this machine. A source that is not there is waited for.
    pub async fn run(mut self, mut shutdown: Shutdown) -> Result<(), PushError> {
        // A look that takes its time sees it between two entries.
        let flag = tokio::spawn({
            let (stop, mut shutdown) = (Arc::clone(&self.stop), shutdown.clone());
            async move {
                let _ = shutdown.wait_for(|stop| *stop).await;
                stop.store(true, Ordering::Relaxed);
            }
        });
        let ended = self.mirror(&mut shutdown).await;
        flag.abort();
        for follower in self.shared.followers() {
            follower.fate.wish.send_replace(Wish::End);
        }
        ended
    }

    async fn mirror(&mut self, shutdown: &mut Shutdown) -> Result<(), PushError> {
        let mut opened = None;
        while !*shutdown.borrow() {
            let wait = match opened.take().map_or_else(|| block_in_place(|| self.open()), Ok) {
                Ok(mut open) => match self.serve(&mut open, shutdown).await {
                    Left::Shutdown => return Ok(()),
                    Left::Gone => REPLACED,
                    Left::Configured => Duration::ZERO,
                },
                Err(PushError::Stopped) => return Ok(()),
                Err(error @ (PushError::Overlap(_) | PushError::Filter(_))) => return Err(error),
                Err(error) => {
                    self.tell_of(&error);
                    RETRY
                }
            };
            let rested = tokio::time::sleep(wait);
            tokio::pin!(rested);
            loop {
                tokio::select! {
                    () = &mut rested => break,
                    _ = shutdown.wait_for(|stop| *stop) => break,
                    Some(order) = self.orders.recv() => match order {
                        MirrorOrder::Configure(config) => {
                            self.configure(*config);
                            break;
                        }
                        // The tree may be back: then this is done when it is open.
                        MirrorOrder::Look { release, answer } => match block_in_place(|| self.open()) {
                            Ok(open) => {
                                opened = Some(open);
                                self.waiting = Some(MirrorOrder::Look { release, answer });
                                break;
                            }
                            Err(PushError::Stopped) => break,
                            Err(error) => {
                                self.tell_of(&error);
                                let _ = answer.send(Err(self.shared.obstacle().unwrap_or_default()));
                            }
                        },
                    },
                }
            }
        }
        Ok(())
    }

    /// Listens first, so that what changes while the tree is looked at is not missed.
    fn open(&self) -> Result<Open, PushError> {
        let request = &self.config.request;
        // A link to the tree keeps its index wherever it leads.
        let place = request.source.parent().zip(request.source.file_name());
        let place = place.and_then(|(dir, name)| Some(place::resolve(dir).ok()?.join(name)));
        let watch = self.watch();
        let mut source = Source::open_as(request, place.as_deref(), &*self.monitor)?;
        source.is_mirrored = true;
        if request.history.is_none() {
            source.remove_history(&*self.monitor);
        }
        let source = Arc::new(source);
        if matches!(watch, Err(WatchError::RootGone)) {
            return Err(self.failed("it is not where it was a moment ago".to_owned()));
        }
        let watched = Watched::by(watch, &source.root);
        match self.guard.recall(&source.index) {
            Err(IndexError::Damaged(reason)) => source.rebuild_index(&reason, &*self.monitor)?,
            recalled => recalled?,
        }
        self.hints.add(Hint::Overflow);
        Ok(Open { source, watched, last: None, told: None, filling: None })
    }

    fn watch(&self) -> Result<Watch, WatchError> {
        let hints = Arc::clone(&self.hints);
        Watch::new(&self.config.request.source, move |hint| hints.hear(hint))
    }

    /// Says how far the tree is watched, if that is new.
    fn tell_of_watch(&self, watched: &Watched) {
        let every = duration::text(UNWATCHED.min(self.config.rescan));
        let why = watched.unheard().map(|why| format!("{why}; the tree is looked at every {every}"));
        if self.shared.watched(why.clone())
            && let Some(why) = why
        {
            self.monitor.notice(None, &why);
        }
    }

    /// Looks at batch after batch, while every replica follows.
    async fn serve(&mut self, open: &mut Open, shutdown: &mut Shutdown) -> Left {
        let (news, newest) = watch::channel(None);
        let (source, request) = (Arc::clone(&open.source), self.config.request.clone());
        self.shared.opened(Some(Opened { source, newest: newest.clone(), request }));
        let mut followers = JoinSet::new();
        for follower in self.shared.followers() {
            followers.spawn(self.delivery(&follower, open).follow(newest.clone(), follower.fate));
        }
        let mut follow = |mirror: &Self, open: &Open, new: Follower| {
            followers.spawn(mirror.delivery(&new, open).follow(newest.clone(), new.fate));
        };
        let left = self.look_and_listen(open, &news, shutdown, &mut follow).await;
        self.shared.opened(None);
        // What is under way ends in order. Who was left alone is so in the next tree as well.
        let wishes: Vec<_> =
            self.shared.followers().into_iter().map(|f| (f.fate.wish.send_replace(Wish::End), f)).collect();
        while followers.join_next().await.is_some() {}
        if let Some(filling) = open.filling.take() {
            filling.end().await;
        }
        block_in_place(|| open.source.tidy_history(&*self.monitor));
        block_in_place(|| open.source.acks.record(&open.source.index, &*self.monitor));
        if !matches!(left, Left::Shutdown) {
            for (wish, follower) in wishes {
                // A comparison ends with the tree that it was made for.
                follower.fate.wish.send_replace(if wish == Wish::Rest { Wish::Follow } else { wish });
            }
        }
        left
    }

    async fn look_and_listen(
        &mut self,
        open: &mut Open,
        news: &watch::Sender<Option<Arc<News>>>,
        shutdown: &mut Shutdown,
        follow: &mut (dyn FnMut(&Self, &Open, Follower) + Send),
    ) -> Left {
        let mut rescan = Instant::now() + self.next_rescan(open);
        // What is held, or could not be looked at, is not looked at again and again.
        let mut rests = Instant::now();
        // Files that come and go while they are sent must not have all others looked at all the time.
        let mut doubts_rest = Instant::now();
        loop {
            // A tree that never rests must not keep anybody waiting.
            if let Some(order) = self.waiting.take().or_else(|| self.orders.try_recv().ok()) {
                if let Some(left) = self.obey(order, open, news, follow) {
                    return left;
                }
                continue;
            }
            if *shutdown.borrow() {
                return Left::Shutdown;
            }
            if !open.watched.hears_all() {
                // Since a moment ago, it may be.
                rescan = rescan.min(Instant::now() + self.next_rescan(open));
            }
            // Of a directory that is removed while it is open the kernel tells nothing, and of an empty one nothing else goes.
            let is_obstructed = self.shared.obstacle().is_some();
            if is_obstructed && check_place(open).is_err() {
                return Left::Gone;
            }
            if rescan <= Instant::now() {
                let proven = block_in_place(|| self.prove(open, news));
                rescan = Instant::now() + self.next_rescan(open);
                match proven {
                    Err(Stopped::Gone) => return Left::Gone,
                    Err(Stopped::Failed(PushError::Stopped)) => return Left::Shutdown,
                    // The next time is early enough.
                    Ok(()) | Err(Stopped::Held | Stopped::Failed(_)) => {}
                }
            }
            let now = self.hints.now();
            let is_resting = is_obstructed && Instant::now() < rests;
            let is_doubted = open.source.doubts.are_raised();
            let (batch, timeout) = {
                let mut settle = self.hints.settle();
                let is_asked = is_doubted && doubts_rest <= Instant::now();
                let everything = is_asked.then(|| Batch { everything: true, ..Batch::default() });
                (everything.or_else(|| if is_resting { None } else { settle.poll(now) }), settle.timeout())
            };
            if let Some(batch) = batch {
                let (began, everything) = (Instant::now(), batch.everything);
                let published = block_in_place(|| self.publish_and_tell(open, batch, news));
                rests = Instant::now() + RETRY;
                if everything {
                    doubts_rest = Instant::now() + began.elapsed() * SHARE;
                }
                match published {
                    Err(Stopped::Gone) => return Left::Gone,
                    Err(Stopped::Failed(PushError::Stopped)) => return Left::Shutdown,
                    // It was told; whoever can do something about it does, or it passes.
                    Ok(_) | Err(Stopped::Held) => {}
                    Err(Stopped::Failed(_)) => self.hints.add(Hint::Overflow),
                }
                continue;
            }
            let due = match timeout {
                _ if is_resting => rests,
                Some(at) => Instant::now() + at.saturating_sub(now),
                None if is_obstructed => Instant::now() + RETRY,
                None => rescan,
            };
            tokio::select! {
                () = self.hints.more.notified(), if !is_resting => {}
                () = open.source.doubts.raised.notified() => {}
                () = tokio::time::sleep_until(due.min(rescan).into()) => {}
                () = tokio::time::sleep_until(doubts_rest.into()), if is_doubted => {}
                _ = shutdown.wait_for(|stop| *stop) => return Left::Shutdown,
                Some(order) = self.orders.recv() => {
                    if let Some(left) = self.obey(order, open, news, follow) {
                        return left;
                    }
                }
            }
        }
    }

    /// Does what was ordered; says if the tree is not served any more for that.
    fn obey(
        &mut self,
        order: MirrorOrder,
        open: &mut Open,
        news: &watch::Sender<Option<Arc<News>>>,
        follow: &mut (dyn FnMut(&Self, &Open, Follower) + Send),
    ) -> Option<Left> {
        match order {
            // Who does not wait any more has changed his mind.
            MirrorOrder::Look { answer, .. } if answer.is_closed() => None,
            MirrorOrder::Look { release, answer } => {
                self.release = release;
                let everything = Batch { everything: true, ..Batch::default() };
                let looked = block_in_place(|| self.publish_and_tell(open, everything, news));
                self.release = false;
                let why =
                    || self.shared.obstacle().unwrap_or_else(|| "it was replaced meanwhile; try again".to_owned());
                let answered = if looked.is_ok() { self.shared.version().ok_or_else(why) } else { Err(why()) };
                let _ = answer.send(answered);
                match looked {
                    Err(Stopped::Gone) => Some(Left::Gone),
                    Err(Stopped::Failed(PushError::Stopped)) => Some(Left::Shutdown),
                    Err(Stopped::Failed(_)) => {
                        self.hints.add(Hint::Overflow);
                        None
                    }
                    Ok(_) | Err(Stopped::Held) => None,
                }
            }
            MirrorOrder::Configure(config) => {
                let same = self.config.request.is_same_tree(&config.request);
                let new = self.configure(*config);
                if !same {
                    return Some(Left::Configured);
                }
                new.into_iter().for_each(|new| follow(self, open, new));
                None
            }
        }
    }

    /// Does another thing from now on; says who is new among those who follow.
    fn configure(&mut self, config: MirrorConfig) -> Vec<Follower> {
        let new = self.shared.configure(&config);
        if config.settle_max != self.config.settle_max {
            // What waits is looked at with all the rest.
            *self.hints.settle() = Settle::new(settle_options(&config));
            self.hints.add(Hint::Overflow);
        }
        if config.max_delete != self.config.max_delete {
            // What was held may be allowed now.
            self.hints.add(Hint::Overflow);
        }
        self.guard.allow(config.max_delete);
        if config.request.source != self.config.request.source {
            self.guard.forget();
        }
        self.config = config;
        new
    }

    /// Until the next look at everything: masters that began at one moment do not go on so.
    fn next_rescan(&self, open: &Open) -> Duration {
        let every = if open.watched.hears_all() { self.config.rescan } else { self.config.rescan.min(UNWATCHED) };
        jittered(every, fs::random().map_or(0, u64::from_le_bytes))
    }

    fn delivery(&self, follower: &Follower, open: &Open) -> Delivery {
        let monitor = (self.monitors)(Some(&follower.destination));
        Delivery::of(&self.config.request, follower.destination.clone(), &open.source, monitor)
            .permitted(&follower.fate.permits)
            .dialed_from(&self.dialer)
    }

    /// Looks at everything to prove that nothing was missed. What is found although nobody told of it was.
    fn prove(&self, open: &mut Open, news: &watch::Sender<Option<Arc<News>>>) -> Result<(), Stopped> {
        let was_heard = open.watched.hears_all();
        if !open.watched.is_on() {
            // Whatever was in the way may have been removed.
            open.watched = Watched::by(self.watch(), &open.source.root);
        }
        let before = self.shared.version();
        let everything = Batch { everything: true, ..Batch::default() };
        let difference = self.publish_and_tell(open, everything, news)?;
        if was_heard && before != self.shared.version() {
            // What just changed may still be told of.
            std::thread::sleep(MOVING);
            let settle = self.hints.settle();
            let mut missed = difference.iter().flat_map(|d| d.names()).filter(|name| !settle.explains(name)).peekable();
            if let Some(first) = missed.peek() {
                let first = (*first).clone();
                let count = missed.count() as u64;
                self.shared.missed.fetch_add(count, Ordering::Relaxed);
                let reason = format!("no event told that it changed, as of {count} names in all; please report it");
                self.monitor.problem(None, &Problem { path: Some(first), reason });
            }
        }
        Ok(())
    }

    /// Publishes what a batch names, and tells all who follow; else whoever asks hears why not. Returns what is new.
    fn publish_and_tell(
        &self,
        open: &mut Open,
        batch: Batch,
        news: &watch::Sender<Option<Arc<News>>>,
    ) -> Result<Option<Arc<Difference>>, Stopped> {
        let everything = batch.everything;
        if everything {
            open.source.doubts.look_begins();
        }
        let published = self.publish(open, batch);
        // Also if it is gone: then it is opened anew, and who misses something of it is not to publish the rest.
        if published.is_err() {
            open.source.doubts.hold(true);
        }
        match &published {
            Ok(version) => {
                if self.shared.obstacle().is_some() {
                    self.monitor.recovered(None);
                }
                self.shared.is(ShareState::Ready, None);
                if open.source.doubts.hold(false) {
                    // What of the version was not there may be again.
                    self.shared.followers().iter().for_each(|follower| follower.fate.try_again());
                }
                if let Some((decided, difference)) = version {
                    self.shared.published(&decided.version, decided.entries);
                    news.send_replace(Some(Arc::new(News::new(Arc::clone(decided), difference))));
                    self.keep(&open.source, difference, &mut open.filling);
                }
                self.tidy(&open.source, everything);
            }
            Err(Stopped::Failed(error)) => {
                open.last = None;
                if !matches!(error, PushError::Stopped) {
                    self.tell_of(error);
                }
            }
            Err(Stopped::Held) => open.last = None,
            Err(Stopped::Gone) => {}
        }
        if everything {
            open.source.doubts.look_ended();
        }
        // A directory that is held open keeps a file system in the tree from being unmounted.
        open.source.root.forget(&RelPath::root());
        Ok(published?.map(|(_, difference)| difference))
    }

    /// Keeps the contents of what is new; in a history that is empty, all that there is, but a while later: that takes its
    /// time, and memory.
    fn keep(&self, source: &Arc<Source>, difference: &Difference, filling: &mut Option<Filling>) {
        if !source.history.as_ref().is_some_and(History::is_to_be_filled) {
            if let Err(error) = source.keep_contents(difference) {
                self.monitor.notice(None, &format!("not all previous contents are kept: {error}"));
            }
        } else {
            filling.get_or_insert_with(|| Filling::start(source, &self.monitor));
        }
    }

    /// Forgets what is of no more use: in the index and the history as seldom as all of the tree is looked at for its own sake, because
    /// what that costs grows with the tree.
    fn tidy(&self, source: &Source, everything: bool) {
        if let Some(reads) = &source.reads {
            reads.forget_old();
        }
        source.packing.forget_old();
        if everything && let Err(error) = source.index.tidy() {
            self.monitor.notice(None, &format!("the index of the source could not be tidied: {error}"));
        }
        if everything {
            source.tidy_history(&*self.monitor);
        }
    }

    /// Nothing is published for a reason that a person has to look at.
    fn hold(&self, why: &str) -> Stopped {
        let why = format!("{}: {why}", escape(self.config.request.source.as_os_str().as_encoded_bytes()));
        if self.shared.obstacle().as_ref() != Some(&why) {
            self.monitor.problem(None, &Problem { path: None, reason: why.clone() });
        }
        self.shared.is(ShareState::Held, Some(why));
        Stopped::Held
    }

    /// Looks at what a batch names, and commits what was found as a version, if it is one.
    fn publish(&self, open: &mut Open, batch: Batch) -> Result<Option<New>, Stopped> {
        check_place(open)?;
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
        if survey.entries <= 1 && !survey.gone.is_empty() && !self.release {
            self.emptied.store(true, Ordering::Relaxed);
            let why = "it is empty, and was not before: is something not mounted? the replicas keep what they have until at least half \
                       of it is back; if it is meant to be empty, say so with `synccli release SHARE`";
            return Err(self.hold(why));
        }
        // What is put back file by file is not published file by file, with the deletion of all others.
        if self.emptied.load(Ordering::Relaxed) && survey.entries <= survey.gone.len() as u64 && !self.release {
            let why = "it was empty, and less than half of what was there is back: the replicas keep what they have until then; if \
                       it is meant as it is now, say so with `synccli release SHARE`";
            return Err(self.hold(why));
        }
        self.emptied.store(false, Ordering::Relaxed);
        if !self.release && survey.is_unmounted(&source.root, &source.index, true).map_err(PushError::from)? {
            let why = "it is on another file system than it was, and next to nothing of what was there is left: is something not \
                       mounted? the replicas keep what they have; if it is meant, say so with `synccli release SHARE`";
            return Err(self.hold(why));
        }
        Source::report_failures(&survey, &*self.monitor);
        // Where there is no watch, nobody else tells of what came to these meanwhile.
        let restless: Vec<FsError> = if !open.watched.hears_all() { survey.restless().collect() } else { Vec::new() };
        self.shared.unread(survey.failures.iter().chain(&restless));
        let (decided, difference) = source.decide(survey, scanned, hashed)?;
        // A tree that was replaced while it was looked at may be half gone.
        check_place(open)?;
        let counted = self.guarded(source, &decided, &difference)?;
        source.commit(&decided, &difference, counted.as_ref(), &*self.monitor)?;
        if let Some(counted) = counted {
            self.guard.keep(counted);
        }
        open.last =
            last.map(|last| LastLook { tree: decided.tree.clone(), linked: linked.unwrap_or(last.linked), ..last });
        let id = decided.id;
        if open.told == Some(id) {
            return Ok(None);
        }
        open.told = Some(id);
        let tree = escape(self.config.request.source.as_os_str().as_encoded_bytes());
        tracing::info!(version = decided.version.number, entries = decided.entries, tree, "published");
        Ok(Some((Arc::new(decided), Arc::new(difference))))
    }

    /// What is counted of a version, if it is a new one; held if too much would go.
    fn guarded(&self, source: &Source, decided: &Decided, difference: &Difference) -> Result<Option<Counted>, Stopped> {
        if difference.is_of(&decided.version) {
            return Ok(None);
        }
        let before = source.index.latest_version()?.map_or(0, |published| published.counts.entries);
        let most = self.config.max_delete.of(before);
        let step = Step { before, deletes: difference.deletes(most), after: decided.entries };
        match self.guard.check(step) {
            Err(error) if !self.release => {
                let gone = RelPath::tops(difference.lost(), NAMED);
                let why = format!(
                    "{error}; gone since the last version: {gone}; the replicas keep what they have: if it is meant, say so \
                     with `synccli release SHARE`"
                );
                Err(self.hold(&why))
            }
            _ => Ok(Some(self.guard.counting(step, self.release))),
        }
    }

    /// The names to look at, with all that new directories hold; `None` if it is to be everything.
    fn names_of(&self, open: &mut Open, batch: Batch) -> Result<Option<Names>, PushError> {
        let source = &open.source;
        // Who stops does not go further down.
        let leaves_out = |dir: &RelPath| self.stop.load(Ordering::Relaxed) || source.leaves_out(dir, true);
        let names = open.watched.names_of(&self.hints, &source.root, batch, open.last.is_none(), &leaves_out);
        let names = names.map_err(|RootGone| self.failed("it was moved or replaced".to_owned()))?;
        self.tell_of_watch(&open.watched);
        Ok(names)
    }

    /// Looks at names, and at those that are told of meanwhile if some seem gone: one of them may be the new name of what
    /// is.
    fn look_until_quiet(&self, open: &mut Open, mut names: Names) -> Result<Option<Looked>, Stopped> {
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

    fn look_at(&self, open: &Open, names: &Names) -> Result<Option<Looked>, PushError> {
        let Some(last) = &open.last else { return Ok(None) };
        let started = Instant::now();
        let found = open.source.look_at(names, last, &self.stop, &self.meter, &mut |_, _| {}, &|_| {})?;
        Ok(found.map(|(survey, scanned)| Looked { survey, scanned, hashed: started.elapsed().saturating_sub(scanned) }))
    }

    fn look(&self, open: &Open) -> Result<Looked, PushError> {
        let stop = &self.stop;
        open.source.watched(open.watched.hears_all());
        let found = look(&open.source, stop, &self.meter, &*self.monitor, &mut |_, _| {}, &|_| {});
        match found {
            Err(PushError::Index(IndexError::Damaged(reason))) => {
                open.source.rebuild_index(&reason, &*self.monitor)?;
                // What they acknowledged has no number in this one.
                self.shared
                    .followers()
                    .iter()
                    .for_each(|follower| follower.fate.update(|fate| fate.is_current = false));
                look(&open.source, stop, &self.meter, &*self.monitor, &mut |_, _| {}, &|_| {})
            }
            found => found,
        }
    }

    fn failed(&self, reason: String) -> PushError {
        PushError::Source { path: self.config.request.source.clone(), reason }
    }

    fn tell_of(&self, error: &PushError) {
        let every = duration::text(RETRY);
        let reason = format!("{error}; it is tried again every {every}, and the replicas keep what they have");
        self.monitor.problem(None, &Problem { path: None, reason: reason.clone() });
        self.shared.is(ShareState::Failed, Some(reason));
    }
}

fn settle_options(config: &MirrorConfig) -> SettleOptions {
    SettleOptions { settle_max: config.settle_max, ..SettleOptions::default() }
}

/// Whether the path of the tree still leads to the one that is open.
fn check_place(open: &Open) -> Result<(), Stopped> {
    if open.watched.is_in_place() && open.source.root.still_there() { Ok(()) } else { Err(Stopped::Gone) }
}

/// A version, and how it differs from the one before.
type New = (Arc<Decided>, Arc<Difference>);

/// Why a batch was not published.
enum Stopped {
    /// The tree is not where it was.
    Gone,
    /// It waits for a person, who was told why.
    Held,
    /// It could not be looked at now.
    Failed(PushError),
}

impl<E: Into<PushError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
