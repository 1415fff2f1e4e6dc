//! One destination of a push, from the first packet to the acknowledgement: drives a [`Sender`] with what the network,
//! the source and the index say.

mod conclusion;

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::content::{ContentSender, Sending, choose, saves_no_bytes};
use super::dial::{Dialed, dial};
use super::difference::Difference;
use super::fate::Fate;
use super::feed::{Feed, Heard, Once, SourceEvent};
use super::giving;
use super::meter::Meter;
use super::news::News;
use super::outgoing::{Estimate, SendFailure, StreamEvent};
use super::permits::Permits;
use super::portions::PORTION;
use super::source::{Decided, Source};
use super::telling::{Telling, Unknown};
use crate::control::DriftStatus;
use crate::index::Snapshot;
use crate::manifest::VersionId;
use crate::monitor::{How, Item, Monitor, Problem};
use crate::options::{Compress, Destination, DestinationReport, Policy, PushRequest, Stats};
use crate::path::RelPath;
use crate::roles::Shutdown;
use crate::roles::link::{Control, LinkError, Packing};
use crate::roles::tree;
use crate::session::{End, Load, Report, Sender, SenderInput, SenderOutput};
use crate::transport::{Connection, Dialer};
use crate::wire::{
    ADOPT, Announce, FOLLOW, HISTORY, Hello, LOOK, RELEASED, STRETCHES, Stand, ToMaster, ToReplica, Unhealed, WHOLE,
};

/// Changes of which a stretch of a large tree has at least so many: some 20 MB at the replica until it is published. Fewer
/// would mean more flushes.
const STRETCH: u64 = 1 << 15;

/// How a delivery ended.
pub struct Delivered {
    /// For the caller of the push.
    pub report: DestinationReport,
    /// Files of the source that changed between hashing and sending: worth another round.
    pub source_changed: Vec<Problem>,
    /// The version that the replica acknowledged with just its root, as the number and the identity.
    pub version: Option<(u64, VersionId)>,
    /// The version that it was to come to.
    pub tried: Option<VersionId>,
    /// What the next session on the connection goes on with, if there can be one.
    pub next: Option<Next>,
    /// What a person has to decide before it is brought to the version, if that is so.
    pub hold: Option<Hold>,
    /// Whether the replica was told that a person has released it.
    pub said_released: bool,
    /// What went wrong first, if something did; the monitor was told of all.
    pub problem: Option<Problem>,
    /// How long it took since a mirror told of a version.
    pub took: Duration,
    /// What drifted at the replica and is not undone.
    pub unhealed: Option<DriftStatus>,
    /// What failed in stretches, if it was not tried again since.
    pub postponed: Vec<Problem>,
    /// Whether the replica acknowledged a version, with whatever root.
    pub acknowledged: bool,
}

/// With what a session begins that is not the first on its connection.
pub enum Next {
    /// The replica is at a version, and all that was said holds for the next one too.
    Open(Box<Open>),
    /// It is on its way to one, was told up to there, and has so many entries.
    Reached(RelPath, u64),
    /// It acknowledged another root: something failed there, or changed here.
    Again,
    /// It was told nothing, and is told something else.
    Anew,
}

/// What is left of a session that ended well.
pub struct Open {
    control: Control<ToMaster>,
    /// What the replica takes as said again.
    hello: Hello,
    /// Where the replica is.
    stand: Stand,
}

/// What is for a person to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Whether this tree is the right one, with all that is not in it.
    Release,
    /// Whether the share there becomes this master's.
    Adoption,
    /// What is held is this tree: it is decided there.
    Tree,
}

/// One destination and all it needs.
pub struct Delivery {
    /// Which, in the order given.
    pub dest: usize,
    /// Where.
    pub destination: Destination,
    /// What was asked for.
    pub policy: Policy,
    /// Compression on the wire.
    pub compress: Compress,
    /// Bytes per second.
    pub bandwidth: Option<u64>,
    /// Where the identity and known replicas are.
    pub state_dir: PathBuf,
    /// Where it is dialed from.
    pub dialer: Dialer,
    /// The tree.
    pub source: Arc<Source>,
    /// Progress.
    pub meter: Arc<Meter>,
    /// Reports.
    pub monitor: Arc<dyn Monitor>,
    /// What a person has decided.
    pub permits: Arc<Permits>,
    /// Whether versions go on coming.
    pub is_mirror: bool,
}

/// A delivery under way.
pub(super) struct Session<'a> {
    delivery: &'a Delivery,
    connection: Connection,
    control: Control<ToMaster>,
    hello: Hello,
    sender: Sender,
    contents: ContentSender,
    /// How offers travel.
    offers: Packing,
    /// What it would take to send contents, if that is asked for, until the replica tells what becomes of these.
    estimated: HashMap<RelPath, u64>,
    decided: Option<Arc<Decided>>,
    /// Where newer versions are told of, if any come.
    newest: Option<watch::Receiver<Option<Arc<News>>>>,
    /// Until the changes are announced.
    difference: Option<Arc<Difference>>,
    /// Changes that are being told.
    telling: Option<Telling>,
    /// What is told after them.
    loads: VecDeque<Load>,
    /// The index as it was at the version, once it was asked and until the changes are announced.
    rows: Option<Snapshot>,
    committed: bool,
    /// Whether contents were offered ahead of the version: then the replica asks for what it wants of them.
    has_offered: bool,
    /// Bytes of contents that went with the changes.
    given: u64,
    /// What only the index can answer once the version is in it.
    waiting: Vec<SenderOutput>,
    /// Contents that are not there, and the look at everything that tells whether the rest is.
    doubts: VecDeque<(u64, SendFailure)>,
    problems: u64,
    /// Those of a stretch of a push, which may be mended in the end.
    postponed: Vec<Problem>,
    /// What later ones follow from, more often than not.
    first_problem: Option<Problem>,
    /// Bytes of whole contents that an interrupted push had sent.
    resumed: u64,
    source_changed: Vec<Problem>,
    timing: Timing,
    /// Of a replica that follows: another session shall come after this one on the connection.
    fate: Option<&'a Fate>,
    /// Whether it goes on behind another.
    goes_on: bool,
    /// Whether the replica looks at all of its tree before it says where it stands.
    looks: bool,
    /// Whether the replica was told that a person has decided: that is over when it acknowledges.
    said_released: bool,
    /// Whether the replica was told to make the share this master's.
    said_adopts: bool,
    /// How many changes it was told, once it knows what to publish.
    announced: Option<u64>,
    /// Whether something that the replica serves may go with them, or lead elsewhere.
    takes_away: bool,
    /// Whether somebody changed the replica's tree, so that it is not at the version that it acknowledged any more.
    drifted: bool,
    /// What drifted there and is not undone, as the replica told it last.
    unhealed: Option<DriftStatus>,
}

#[derive(Default)]
struct Timing {
    told: Option<Instant>,
    first_want: Option<Instant>,
    publishing: Option<Instant>,
    send: Duration,
    publish: Duration,
}

impl Delivery {
    /// To one replica of a mirror.
    pub fn of(
        request: &PushRequest,
        destination: Destination,
        source: &Arc<Source>,
        monitor: Arc<dyn Monitor>,
    ) -> Self {
        Self {
            dest: 0,
            destination,
            policy: request.policy.clone(),
            compress: request.compress,
            bandwidth: request.bandwidth,
            state_dir: request.state_dir.clone(),
            dialer: Dialer::default(),
            source: Arc::clone(source),
            meter: Arc::new(Meter::new(Arc::clone(&monitor), 1)),
            monitor,
            permits: Arc::new(Permits::adopting(request.adopt)),
            is_mirror: true,
        }
    }

    /// The same with somebody who can decide what is left to a person.
    pub fn permitted(self, permits: &Arc<Permits>) -> Self {
        Self { permits: Arc::clone(permits), ..self }
    }

    /// The same beside others that are dialed from there.
    pub fn dialed_from(self, dialer: &Dialer) -> Self {
        Self { dialer: dialer.clone(), ..self }
    }

    /// Serves the destination to the end, whatever end that is.
    pub async fn run(self, mut source: mpsc::UnboundedReceiver<SourceEvent>, mut shutdown: Shutdown) -> Delivered {
        let for_replica = shutdown.clone();
        let dialed = tokio::select! {
            dialed = dial(&self.dialer, &self.destination, &self.state_dir, &for_replica) => dialed,
            _ = shutdown.wait_for(|stop| *stop) => Err(interrupted()),
        };
        let Dialed { connection, share, replica, embedded } = match dialed {
            Ok(dialed) => dialed,
            Err(problem) => {
                self.monitor.problem(Some(self.dest), &problem);
                return failed(1, Stats::default());
            }
        };
        tracing::info!(to = %connection.remote(), peer = %connection.peer(), "connected");
        let mut delivered = self.bring(&connection, &share, &replica, &mut source, &mut shutdown).await;
        if let Some(embedded) = embedded {
            // It ends by itself once the connection is closed; what it must leave in order, it does before.
            let _ = embedded.await;
        }
        let traffic = connection.traffic();
        delivered.report.stats.wire_sent = traffic.sent;
        delivered.report.stats.wire_received = traffic.received;
        delivered
    }

    /// A session, or of a large tree one for each stretch.
    async fn bring(
        &self,
        connection: &Connection,
        share: &str,
        replica: &str,
        source: &mut mpsc::UnboundedReceiver<SourceEvent>,
        shutdown: &mut Shutdown,
    ) -> Delivered {
        let (mut next, mut before): (_, Option<Delivered>) = (None, None);
        let mut feed = Feed::Push(Once::new(source));
        loop {
            let delivered = match Session::open(self, connection.clone(), share.to_owned(), None, next).await {
                Ok(session) => session.run(&mut feed, shutdown, replica).await,
                Err(error) => {
                    self.monitor.problem(Some(self.dest), &broken(&error));
                    failed(1, Stats::default())
                }
            };
            let mut delivered = match before.take() {
                Some(before) => delivered.behind(before),
                None => delivered,
            };
            next = delivered.next.take();
            if !matches!(next, Some(Next::Reached(..))) {
                return delivered.settle(self);
            }
            before = Some(delivered);
            feed.again();
        }
    }
}

impl Delivered {
    /// The same with what the sessions before did.
    fn behind(self, before: Self) -> Self {
        let (mut report, earlier) = (self.report, before.report);
        let Stats { scan_seconds, hash_seconds, .. } = report.stats;
        report.stats = Stats { scan_seconds, hash_seconds, ..earlier.stats.plus(&report.stats) };
        report.refused.iter_mut().zip(earlier.refused).for_each(|(count, more)| *count += more);
        let (mut source_changed, mut postponed) = (before.source_changed, before.postponed);
        // The session that brings the version compares, and tries again what failed: what it says of that is all.
        let says = report.problems > 0 || !self.source_changed.is_empty();
        if self.acknowledged && (report.exact || says) {
            (source_changed, postponed) = (Vec::new(), Vec::new());
        }
        source_changed.extend(self.source_changed);
        postponed.extend(self.postponed);
        Self { report, source_changed, postponed, ..self }
    }

    /// Counts what failed in stretches and was not tried again, and tells of it.
    fn settle(mut self, delivery: &Delivery) -> Self {
        let postponed = std::mem::take(&mut self.postponed);
        self.report.problems += postponed.len() as u64;
        postponed.iter().for_each(|problem| delivery.monitor.problem(Some(delivery.dest), problem));
        self.problem = postponed.into_iter().next().or(self.problem);
        self
    }
}

/// Waits until the first of them can be decided on.
async fn dispelled(doubts: &VecDeque<(u64, SendFailure)>, source: &Source) {
    match doubts.front() {
        Some((look, _)) => source.doubts.dispelled(*look).await,
        None => std::future::pending().await,
    }
}

fn failed(problems: u64, stats: Stats) -> Delivered {
    Delivered {
        report: DestinationReport { exact: false, problems, unheard: false, stats, refused: [0; 6] },
        source_changed: Vec::new(),
        version: None,
        tried: None,
        next: None,
        hold: None,
        said_released: false,
        problem: None,
        took: Duration::ZERO,
        unhealed: None,
        postponed: Vec::new(),
        acknowledged: false,
    }
}

pub(super) fn interrupted() -> Problem {
    Problem {
        path: None,
        reason: "interrupted; what had arrived of files over 64 MiB is kept for the next push".to_owned(),
    }
}

pub(super) fn broken(error: &LinkError) -> Problem {
    Problem { path: None, reason: error.to_string() }
}

impl<'a> Session<'a> {
    /// Says hello; or goes on where the last session on the connection ended, if that said the same. Of a replica that follows, how
    /// it fares is written down, and with a hello it can be asked for a look at all of its tree.
    pub async fn open(
        delivery: &'a Delivery,
        connection: Connection,
        share: String,
        follows: Option<(&'a Fate, bool)>,
        next: Option<Next>,
    ) -> Result<Self, LinkError> {
        // An empty history would only have to ask about everything.
        let keeps = delivery.source.history.as_ref().is_some_and(|history| !history.is_empty());
        let (released, adopts) = (delivery.permits.is_released(), delivery.permits.adopts());
        let (fate, looks) = follows.map_or((None, false), |(fate, looks)| (Some(fate), looks));
        // A mirror offers nothing ahead of its versions.
        if follows.is_none() && !connection.remote().ip().is_loopback() {
            delivery.source.ring.reach_far();
        }
        let whole = delivery.bandwidth.is_none() && saves_no_bytes(delivery.compress, &connection);
        let said = [
            (fate.is_some(), FOLLOW),
            (fate.is_none(), STRETCHES),
            (keeps, HISTORY),
            (released, RELEASED),
            (adopts, ADOPT),
            (whole, WHOLE),
        ];
        let features = said.iter().filter(|(said, _)| *said).fold(0, |features, (_, bit)| features | bit);
        let hello = Hello { features, share, policy: delivery.policy.clone() };
        // The first on a connection does in any case.
        let is_first = next.is_none();
        // All that a push has offered by the time that it knows of a large tree, and then half of that.
        let stretch = match (fate.is_none(), is_first) {
            (true, true) => PORTION as u64,
            (true, false) => PORTION as u64 / 2,
            (false, _) => STRETCH,
        };
        let (control, sender, goes_on) = match next {
            Some(Next::Open(last)) if last.hello == hello => {
                let Open { control, stand, .. } = *last;
                (control, Sender::going_on(&hello, stand).in_stretches(STRETCH), true)
            }
            next => {
                if let Some(Next::Open(last)) = next {
                    // The replica takes that for the end of a session in which nothing was told, and then this one.
                    tokio::spawn(last.control.read_to_end());
                }
                let control = Control::open(&connection).await?;
                if let (Destination::Remote { .. }, Some(region)) = (&delivery.destination, &delivery.source.region) {
                    control.send(ToReplica::Place(region.clone()).encode())?;
                }
                let look = if looks { LOOK } else { 0 };
                let said = Hello { features: features | look, ..hello.clone() };
                (control, Sender::new(said).in_stretches(stretch), false)
            }
        };
        let Delivery { dest, compress, bandwidth, .. } = *delivery;
        let (source, meter) = (Arc::clone(&delivery.source), Arc::clone(&delivery.meter));
        let estimates = delivery.policy.dry_run && delivery.policy.estimate;
        let sending = Sending { dest, source, meter, compress, bandwidth, estimates };
        let offers = if choose(compress, &connection) == Compress::Never { Packing::Plain } else { Packing::Packed };
        let contents = ContentSender::new(sending, connection.clone());
        Ok(Self {
            delivery,
            connection,
            control,
            hello,
            sender,
            contents,
            offers,
            estimated: HashMap::new(),
            decided: None,
            newest: None,
            difference: None,
            telling: None,
            loads: VecDeque::new(),
            rows: None,
            committed: false,
            has_offered: false,
            given: 0,
            waiting: Vec::new(),
            doubts: VecDeque::new(),
            problems: 0,
            postponed: Vec::new(),
            first_problem: None,
            resumed: 0,
            source_changed: Vec::new(),
            timing: Timing::default(),
            fate,
            goes_on,
            looks: !goes_on && (is_first || looks),
            said_released: released,
            said_adopts: adopts,
            announced: None,
            takes_away: false,
            drifted: false,
            unhealed: None,
        })
    }

    /// Whether it goes on behind another.
    pub fn goes_on(&self) -> bool {
        self.goes_on
    }

    /// Whether the replica looks at all of its tree before it says where it stands.
    pub fn looks(&self) -> bool {
        self.looks
    }

    /// Input by input until the sender says that it is over.
    pub async fn run(mut self, feed: &mut Feed<'_>, shutdown: &mut Shutdown, replica: &str) -> Delivered {
        let mut stop = shutdown.clone();
        let mut stopped = pin!(async { drop(stop.wait_for(|stop| *stop).await) });
        let end = loop {
            match self.carry_out(shutdown).await {
                Ok(ControlFlow::Break(end)) => break Ok(end),
                Ok(ControlFlow::Continue(())) => {}
                Err(error) => break Err(error),
            }
            let input = tokio::select! {
                biased;
                () = &mut stopped => break Err(LinkError::Interrupted),
                message = self.control.next_or_room(self.telling.is_some() || !self.loads.is_empty()) => match message {
                    Some(message) => {
                        // It waits for another word.
                        if let Ok(ToMaster::Prepared(_)) = message {
                            self.timing.publishing = None;
                        }
                        message.map(SenderInput::Received)
                    }
                    None => continue,
                },
                event = self.contents.event() => match self.stream_event(event) {
                    Some(input) => input,
                    None => continue,
                },
                () = dispelled(&self.doubts, &self.delivery.source), if !self.doubts.is_empty() => match self.doubts.pop_front() {
                    Some((_, failure)) => self.missed(failure),
                    None => continue,
                },
                // A replica of a mirror is compared with the newest version there is when it has said where it stands: that may
                // take as long as reading all that it has.
                heard = feed.next(self.drifted), if !self.committed && (!self.delivery.is_mirror || self.sender.stand().is_some()) => match heard {
                    // It was said that something is released, and there was nothing: this version was not meant.
                    Heard::Event(SourceEvent::Published(_)) if self.said_released && !self.delivery.permits.is_released() => {
                        return self.end_untold();
                    }
                    Heard::Event(event) => self.source_event(event, shutdown).await,
                    Heard::Look => return self.end_untold(),
                    Heard::Failed => break Err(LinkError::NoSource),
                },
            };
            if let Err(error) = input.and_then(|input| self.sender.handle(input).map_err(LinkError::from)) {
                break Err(error);
            }
        };
        self.conclude(end, replica).await
    }

    /// Ends a session in which nothing was told: the next one says hello in other words.
    fn end_untold(self) -> Delivered {
        self.contents.stop();
        tokio::spawn(self.control.read_to_end());
        Delivered { next: Some(Next::Anew), ..failed(0, Stats::default()) }
    }

    async fn source_event(&mut self, event: SourceEvent, shutdown: &mut Shutdown) -> Result<SenderInput, LinkError> {
        Ok(match event {
            SourceEvent::Hashed(files) => {
                self.has_offered = true;
                SenderInput::Hashed(files)
            }
            SourceEvent::Draft(draft) => SenderInput::Draft((*draft).clone()),
            SourceEvent::Decided(decided, difference, committed) => {
                self.contents.source_read();
                let (version, holds) = (decided.version.clone(), decided.holds.clone());
                let committed = committed || difference.is_of(&version);
                let offers_lead = difference.is_indexed();
                let input = SenderInput::Decided { version, holds, committed, offers_lead };
                (self.decided, self.difference) = (Some(decided), Some(difference));
                input
            }
            SourceEvent::Committed => {
                self.committed = true;
                SenderInput::Committed
            }
            SourceEvent::Published(newest) => {
                self.timing.told = Some(Instant::now());
                self.newest = Some(newest.clone());
                self.take_newest(newest, false, shutdown).await?
            }
        })
    }

    /// Takes the newest version there is, and the index as it is at that version: unless the difference says what the replica
    /// lacks, and the trees are not `compared`.
    async fn take_newest(
        &mut self,
        mut newest: watch::Receiver<Option<Arc<News>>>,
        compared: bool,
        shutdown: &mut Shutdown,
    ) -> Result<SenderInput, LinkError> {
        loop {
            let news = newest.borrow_and_update().clone();
            if let Some(news) = news {
                let rows = match self.is_told_by(&news) {
                    true if !compared => None,
                    _ => Some(tokio::task::block_in_place(|| self.delivery.source.index.snapshot())?),
                };
                let at = rows.as_ref().map(Snapshot::latest_version).transpose()?.flatten();
                if rows.is_none() || at.is_some_and(|at| at.version.id() == news.id()) {
                    self.contents.source_read();
                    (self.committed, self.rows) = (true, rows);
                    let (version, holds) = (news.decided.version.clone(), news.decided.holds.clone());
                    (self.decided, self.difference) = (Some(Arc::clone(&news.decided)), news.difference.clone());
                    // Nothing was offered.
                    return Ok(SenderInput::Decided { version, holds, committed: true, offers_lead: false });
                }
            }
            // There is one in the index that will be told in a moment.
            tokio::select! {
                changed = newest.changed() => changed.map_err(|_| LinkError::NoSource)?,
                _ = self.connection.closed() => return Err(LinkError::Ended),
                _ = shutdown.wait_for(|stop| *stop) => return Err(LinkError::Interrupted),
            }
        }
    }

    /// Whether somebody waits for this push, and wants to know what became of it.
    fn is_waited_for(&self) -> bool {
        self.fate.is_none() && !self.delivery.policy.dry_run
    }

    /// Whether the replica needs nothing of the index to be brought to a version: it is there, or at the one before, and
    /// nobody has changed its tree since.
    fn is_told_by(&self, news: &News) -> bool {
        let Some((has, root)) = self.sender.stand().and_then(|stand| Some((stand.version?, stand.root))) else {
            return false;
        };
        (has, root) == (news.id(), news.decided.version.root)
            || news.difference.as_ref().is_some_and(|difference| difference.begins_at(has, root))
    }

    /// What is to be made of it, if that is known yet.
    fn stream_event(&mut self, event: StreamEvent) -> Option<Result<SenderInput, LinkError>> {
        Some(match event {
            StreamEvent::Failed(failure) => {
                let source = &self.delivery.source;
                // What is there, but another, is told of by the next version. If this one takes something away, that might be all
                // there is of what was here.
                let is_lost = || tokio::task::block_in_place(|| !failure.changed || source.lacks(&failure.path));
                if self.fate.is_some() && !source.doubts.is_held() && (self.takes_away || is_lost()) {
                    self.doubts.push_back((source.doubts.raise(), failure));
                    return None;
                }
                self.missed(failure)
            }
            StreamEvent::Estimated(estimate) => Ok(self.estimated(estimate)),
            StreamEvent::Asks(ask, old) => Ok(SenderInput::Describe(ask, old)),
        })
    }

    /// The replica is told that it will not get a content, for this version, and publishes the rest. But not while all of the tree
    /// may be gone: the next version will not say soon what became of it, and the rest of this one may be deletions and links
    /// to what is not there.
    fn missed(&mut self, failure: SendFailure) -> Result<SenderInput, LinkError> {
        if self.delivery.source.doubts.is_held() {
            let path = failure.path;
            let why = format!(
                "it lacks {path}, which cannot be had here: it keeps all that it has until this tree can be published again"
            );
            return Err(LinkError::TreeHeld(why));
        }
        Ok(self.content_failed(failure))
    }

    fn content_failed(&mut self, failure: SendFailure) -> SenderInput {
        let SendFailure { seq, path, reason, changed } = failure;
        let problem = Problem { path: Some(path), reason: reason.clone() };
        if changed {
            self.source_changed.push(problem);
        } else {
            self.problem(&problem);
        }
        SenderInput::Unavailable { seq, reason }
    }

    /// That content would be sent, and is not.
    fn estimated(&mut self, Estimate { seq, path, literal }: Estimate) -> SenderInput {
        self.estimated.insert(path, literal);
        SenderInput::Unavailable { seq, reason: "a dry run sends no content".to_owned() }
    }

    /// What is known here of a changed entry and not at the replica.
    fn complete(&mut self, item: &mut Item) {
        if self.delivery.policy.estimate && matches!(item.how, How::Content { .. }) {
            item.literal = self.estimated.remove(&item.path);
        }
    }

    fn problem(&mut self, problem: &Problem) {
        // What fails in a stretch is tried again in the end.
        if self.sender.is_stretch() && self.fate.is_none() {
            self.postponed.push(problem.clone());
            return;
        }
        self.problems += 1;
        self.first_problem.get_or_insert_with(|| problem.clone());
        self.delivery.monitor.problem(Some(self.delivery.dest), problem);
    }

    /// Does what the sender wants done.
    async fn carry_out(&mut self, shutdown: &mut Shutdown) -> Result<ControlFlow<End>, LinkError> {
        while let Some(output) = self.next_output()? {
            match output {
                SenderOutput::Send(message) => {
                    match &message {
                        ToReplica::Announce(announce) | ToReplica::Stretch(announce) => {
                            let Announce { changes, contents, .. } = announce;
                            tracing::debug!(dest = self.delivery.dest, changes, contents, "announced");
                            // Of a tree that is told in stretches the rest is told another time.
                            (self.difference, self.rows, self.telling) = (None, None, None);
                            self.announced = Some(*changes);
                            if announce.committed && self.is_waited_for() {
                                // That is the word to publish.
                                self.timing.publishing = Some(Instant::now());
                                self.delivery.meter.publishing();
                            }
                        }
                        ToReplica::List(dirs) => {
                            tracing::debug!(dirs = dirs.len(), "compares directories");
                            self.takes_away = true;
                        }
                        ToReplica::Publish(_) => {
                            tracing::info!(dest = self.delivery.dest, "prepared; publishes");
                            self.timing.publishing = Some(Instant::now());
                            self.delivery.meter.publishing();
                        }
                        _ => {}
                    }
                    self.send(&message)?;
                    if let (ToReplica::Restart(()), Some(newest)) = (&message, self.newest.clone()) {
                        // The index may have gone on, and only as it is now can the trees be compared.
                        let input = self.take_newest(newest, true, shutdown).await?;
                        self.sender.handle(input)?;
                    }
                }
                SenderOutput::Load(load) => match self.difference.as_ref().filter(|d| d.answers(&load)) {
                    Some(difference) => self.telling = Some(Telling::Difference(Arc::clone(difference), 0)),
                    None if !self.committed => self.waiting.push(SenderOutput::Load(load)),
                    None => self.loads.push_back(load),
                },
                SenderOutput::LoadChildren(dir) if !self.committed => {
                    self.waiting.push(SenderOutput::LoadChildren(dir));
                }
                SenderOutput::LoadChildren(dir) => tokio::task::block_in_place(|| self.load_children(dir))?,
                SenderOutput::Content(request) => {
                    tracing::debug!(path = %request.file.path, bytes = request.file.size, "content is wanted");
                    self.timing.first_want.get_or_insert_with(Instant::now);
                    self.delivery.meter.wanted(self.delivery.dest, request.file.size);
                    self.contents.request(request);
                }
                SenderOutput::Described(described) => self.contents.described(described),
                SenderOutput::Report(report) => self.report(report),
                SenderOutput::End(end) => return Ok(ControlFlow::Break(end)),
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Offers travel beside the content and are many, and what is given is content: both are compressed where content may be.
    /// All other lists come while nothing else is to do.
    fn send(&self, message: &ToReplica) -> Result<(), LinkError> {
        let packing = match message {
            ToReplica::Offer(_) | ToReplica::Given(_) => self.offers,
            _ => Packing::Packed,
        };
        self.control.send_as(message.encode(), packing)
    }

    /// The next thing to do. What waited for the index comes first once the version is in it; changes are told some
    /// at a time, when nothing else is to do.
    fn next_output(&mut self) -> Result<Option<SenderOutput>, LinkError> {
        if let Some(waited) = if self.committed { self.waiting.pop() } else { None } {
            return Ok(Some(waited));
        }
        loop {
            if let Some(output) = self.sender.poll() {
                return Ok(Some(output));
            }
            if self.control.is_backed_up() {
                return Ok(None);
            }
            if let Some(telling) = &mut self.telling {
                let (told, done) = match telling {
                    // Nothing to wait for.
                    Telling::Difference(difference, _) => {
                        let difference = Arc::clone(difference);
                        let (mut told, done) = telling.next()?;
                        let Delivery { bandwidth, policy, .. } = self.delivery;
                        if !self.has_offered && bandwidth.is_none() && !policy.dry_run {
                            told.contents = giving::contents(&difference, &told.changes, &self.delivery.source.ring);
                            let given = told.contents.iter().map(|(_, content)| content.len() as u64).sum();
                            self.given += given;
                            self.delivery.meter.sent(self.delivery.dest, given);
                        }
                        (told, done)
                    }
                    _ => tokio::task::block_in_place(|| telling.next())?,
                };
                if done {
                    self.telling = None;
                }
                self.takes_away |= told.takes_away();
                self.sender.handle(SenderInput::Changes { told, done })?;
            } else if let Some(load) = self.loads.pop_front() {
                tokio::task::block_in_place(|| self.load(&load))?;
            } else {
                return Ok(None);
            }
        }
    }

    fn report(&mut self, report: Report) {
        let (monitor, dest) = (&self.delivery.monitor, self.delivery.dest);
        match report {
            Report::Problem(problem) => self.problem(&problem),
            Report::Item(mut item) => {
                self.complete(&mut item);
                monitor.item(dest, &item);
            }
            Report::Resumed(bytes) => self.resumed = bytes,
            Report::Drifted => {
                monitor.notice(Some(dest), "somebody changed its tree there: it is made identical again");
                self.drifted = true;
            }
            Report::Unhealed(Unhealed { entries, first }) => {
                let first = first.map(|first| first.display());
                self.unhealed = (entries > 0).then_some(DriftStatus { entries, first });
                if let Some(fate) = self.fate {
                    fate.update(|fate| fate.drift.clone_from(&self.unhealed));
                }
            }
            Report::Notice(text) => monitor.notice(Some(dest), &crate::path::escape(text.as_bytes())),
        }
    }

    /// Has changes told that the index knows.
    fn load(&mut self, load: &Load) -> Result<(), LinkError> {
        let rows = self.rows()?.clone();
        match Telling::from_rows(&rows, load, self.sender.stand())? {
            Ok(telling) => {
                self.telling = Some(telling);
                Ok(())
            }
            Err(Unknown::Version(version)) => self.unknown_version(version),
            Err(Unknown::Changes) => Ok(self.sender.handle(SenderInput::UnknownVersion)?),
        }
    }

    /// The index as it was at the version that is told.
    fn rows(&mut self) -> Result<&Snapshot, LinkError> {
        let rows = match self.rows.take() {
            Some(rows) => rows,
            None => {
                let rows = self.delivery.source.index.snapshot()?;
                let wanted = self.decided.as_ref().map(|decided| decided.id);
                // A push is alone with its index.
                if self.delivery.is_mirror && rows.latest_version()?.map(|latest| latest.version.id()) != wanted {
                    return Err(LinkError::Superseded);
                }
                rows
            }
        };
        Ok(self.rows.insert(rows))
    }

    fn unknown_version(&mut self, version: VersionId) -> Result<(), LinkError> {
        if self.fate.is_some() && !self.delivery.permits.is_released() {
            // Nobody is there to be asked, and which of the two is the true tree cannot be known.
            let why = "it stands at a version that this master does not know: an index was restored from a copy, rebuilt or \
                       replaced, or another master pushed there; nothing is changed: if this tree is the right one, say so \
                       with `synccli release SHARE`";
            return Err(LinkError::Held(why.to_owned()));
        }
        let text = "it stands at a version that the index of the source does not know: it was last pushed to from \
                    elsewhere, or an index was restored, rebuilt or replaced; the trees are compared in full";
        self.delivery.monitor.notice(Some(self.delivery.dest), text);
        if !self.delivery.policy.dry_run {
            self.delivery.source.branch(version).map_err(|e| LinkError::Source(e.to_string()))?;
        }
        Ok(self.sender.handle(SenderInput::UnknownVersion)?)
    }

    fn load_children(&mut self, dir: RelPath) -> Result<(), LinkError> {
        let Some(decided) = self.decided.clone() else { return Ok(()) };
        let Decided { tree, holds, .. } = &*decided;
        let found = tree::children(self.rows()?, &tree.dirs, &dir, holds, false)?;
        let (own, children) = found.map_or((None, Vec::new()), |(own, children)| (Some(own), children));
        Ok(self.sender.handle(SenderInput::Children { dir, own, children })?)
    }
}

#[cfg(test)]
mod tests;
