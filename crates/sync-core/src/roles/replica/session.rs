//! One session with a master, from its hello to the acknowledgement: does what a [`Receiver`] wants done, and tells it what
//! came of that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::apply::{self, Application};
use super::basis::{self, Describer};
use super::error::OpenError;
use super::followed::{Acknowledged, Followed, Said};
use super::lookout::{Look, Lookout};
use super::open::{Empty, Opened, Suspicion};
use super::owner::{Admission, Asks};
use super::share::Share;
use super::shares::{Held, Left, Shares};
use super::staging::{Expected, Stager};
use super::stand_in::StandIns;
use super::standing::{Asked, Attendance};
use super::{expand, listing};
use crate::control::VersionStatus;
use crate::fs::PART_MIN;
use crate::manifest::Row;
use crate::monitor::Problem;
use crate::options::Policy;
use crate::path::{RelPath, escape};
use crate::region::Region;
use crate::roles::link::{Control, LinkError};
use crate::roles::{Shutdown, memory};
use crate::session::{Receiver, ReceiverInput, ReceiverOutput, Settled};
use crate::transport::Connection;
use crate::wire::{
    ADOPT, Ack, Describe, Described, FOLLOW, HISTORY, Hello, LOOK, Offered, RELEASED, Refusal, ReplicaStats, STRETCHES,
    ToMaster, ToReplica, Unhealed, WHOLE, Wanted,
};

/// How long to wait for the master's goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// How many paths are named of one list of problems; the master names all.
const NAMED: usize = 20;

/// For the daemon's log; a push in one process with its replica tells its monitor.
fn log_problems(share: &str, problems: &[Problem]) {
    for Problem { path, reason } in problems.iter().take(NAMED) {
        let path = path.as_ref().map(|path| escape(path.as_bytes()));
        let path = path.as_ref().map(tracing::field::display);
        tracing::warn!(share, path, "{reason}");
    }
    if let more @ 1.. = problems.len().saturating_sub(NAMED) {
        tracing::warn!(share, "and {more} more");
    }
}

/// Steps of a plan from which on nobody listens to what they change: so many names are not looked at one by one.
const MUCH: usize = 2000;

/// Waits for somewhere to look, if anybody tells.
async fn due(lookout: Option<&Lookout>) -> Look {
    match lookout {
        Some(lookout) => lookout.due().await,
        None => std::future::pending().await,
    }
}

/// A session under way.
pub struct Session {
    connection: Connection,
    shares: Arc<Shares>,
    receiver: Receiver,
    /// Whether there is no point in going on: shutdown, or the master is gone.
    stop: Arc<AtomicBool>,
    /// Shutdown alone. A version that is being published is better published to its end, also without a master.
    ending: Arc<AtomicBool>,
    /// Wakes up the session when one of the two is raised.
    interrupted: Arc<Notify>,
    /// What an earlier session on this connection has left open.
    followed: Option<Followed>,
    /// What the master said, if it may have another session when this one is over.
    again: Option<Hello>,
    /// Whether the master follows its tree, and has one after each.
    follows: bool,
    /// Where the source is, if it said so.
    source: Option<Region>,
    /// Where the master believed that the replica is when this began, if an earlier session told.
    known: Option<Acknowledged>,
    /// What was acknowledged.
    acknowledged: Option<Acknowledged>,
    /// Whether the session goes on behind another, whose hello and acknowledgement hold for it.
    goes_on: bool,
    /// Whether the master ended it before it told anything.
    is_passed_over: bool,
    /// Whether a person there has decided that what the guard would hold is meant.
    released: bool,
    /// Of an embedded replica it is empty.
    share: String,
    /// The share, once it is known.
    held: Option<Held>,
    /// Listens whether it goes on being held.
    leaving: JoinSet<()>,
    /// That the master is here, once it has opened the share. Not in a dry run.
    attendance: Option<Attendance>,
    /// Whether the master has told anything against the stand.
    receives: bool,
    /// What the master was told that drifted and is not undone.
    unhealed: Option<(u64, RelPath)>,
    /// Whether the master keeps previous contents.
    history: bool,
    /// Whether contents are asked for whole, but for the largest.
    whole: bool,
    opened: Option<Opened>,
    stager: Stager,
    stand_ins: StandIns,
    describer: Describer,
    described: mpsc::Receiver<Described>,
    /// Whether the master compares trees, because it does not know the version that this replica stands at.
    listed: bool,
    settled: mpsc::UnboundedReceiver<Vec<(u64, Settled)>>,
    /// Rows that changes were made of, until the plan is decided.
    expanded: Vec<Row>,
    application: Option<Application>,
}

impl Session {
    /// One that goes on with what an earlier one on the connection has left open, if there is anything.
    pub fn new(connection: Connection, shares: Arc<Shares>, followed: Option<Followed>) -> Self {
        let (sender, settled) = mpsc::unbounded_channel();
        let (answers, described) = mpsc::channel(basis::MOST_ANSWERS);
        let stop: Arc<AtomicBool> = Arc::default();
        Self {
            stager: Stager::new(connection.clone(), sender),
            stand_ins: StandIns::default(),
            describer: Describer::new(answers, Arc::clone(&stop)),
            described,
            listed: false,
            connection,
            shares,
            receiver: Receiver::new(),
            stop,
            ending: Arc::default(),
            interrupted: Arc::default(),
            followed,
            again: None,
            follows: false,
            source: None,
            known: None,
            acknowledged: None,
            goes_on: false,
            is_passed_over: false,
            released: false,
            share: String::new(),
            held: None,
            leaving: JoinSet::new(),
            attendance: None,
            receives: false,
            unhealed: None,
            history: false,
            whole: false,
            opened: None,
            settled,
            expanded: Vec::new(),
            application: None,
        }
    }

    /// Ends long work, which looks at flags, when the process is to stop or the master is gone: to be run beside the session.
    pub fn interruption(&self, shutdown: &Shutdown) -> impl Future<Output = ()> + Send + use<> {
        let (stop, ending, woken) = (Arc::clone(&self.stop), Arc::clone(&self.ending), Arc::clone(&self.interrupted));
        let (connection, mut shutdown) = (self.connection.clone(), shutdown.clone());
        async move {
            // Raised as well when nobody listens any more.
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => {}
                _ = connection.closed() => {}
            }
            stop.store(true, Ordering::Relaxed);
            woken.notify_one();
            ending.store(shutdown.wait_for(|stop| *stop).await.is_ok(), Ordering::Relaxed);
        }
    }

    /// Whether what came of a version that was not published will probably be wanted soon: nobody gives up a tree that is
    /// mirrored by ending a daemon, nor a push by what cuts it off.
    fn is_taken_up_again(&self) -> bool {
        let is_left = self.held.as_ref().is_some_and(|held| held.left.borrow().is_some());
        let is_cut = || self.connection.close_reason().is_some_and(|closed| closed.is_cut());
        !is_left && (self.follows || is_cut())
    }

    /// Input by input until the receiver says that it is over; then leaves the staging directory in order. Returns what
    /// the next session on this connection can go on with, if there may be one.
    pub async fn run(mut self, mut control: Control<ToReplica>, said: Option<Said>) -> Option<Followed> {
        let ended = self.talk(&mut control, said).await;
        self.stager.stop().await;
        // It may wait for room for an answer.
        self.described.close();
        self.describer.stop().await;
        let is_taken_up = self.is_taken_up_again();
        // Who follows may have been told of drift that the rows do not have.
        let lookout = self.lookout().filter(|_| !self.follows).cloned();
        // Behind a stretch of a tree comes another, whoever told it.
        let goes_on = ended.is_ok() && (self.follows || self.receiver.is_stretch());
        let again = self.again.take().filter(|_| goes_on);
        let opened = self.opened.take();
        let (kept, over) = if again.is_some() { Opened::kept(opened) } else { (None, opened) };
        // What it held in memory is given back when nobody waits any more.
        let leave = |rest| {
            if let Some(lookout) = lookout {
                lookout.leave(rest);
            }
        };
        if again.is_some() && self.receiver.is_stretch() {
            self.application = None;
            tokio::task::block_in_place(memory::trim);
        }
        let _remains = over.map(|opened| tokio::task::block_in_place(|| opened.close(is_taken_up, leave)));
        self.followed.take().into_iter().for_each(Followed::close);
        match (ended, again) {
            (Ok(()), Some(hello)) => {
                let share = std::mem::take(&mut self.share);
                let (attendance, left) = (self.attendance.take(), self.held.take().map(|held| held.left));
                let (acknowledged, source) = (self.acknowledged.take(), self.source.take());
                let goes_on = match &acknowledged {
                    Some(_) if !self.is_passed_over => Some((control, Said { hello, source })),
                    _ => control.finish().await.ok().map(|()| None)?,
                };
                Some(Followed { share, opened: kept, attendance, left, acknowledged, goes_on })
            }
            (Ok(()), None) => {
                // The last word is on its way; the master closes when it has heard it.
                if control.finish().await.is_ok() {
                    let _ = self.connection.finish(GOODBYE).await;
                }
                None
            }
            (Err(error), _) => {
                // Who is not the owner tries again and again, and that is logged once.
                let is_owner = !matches!(error, LinkError::NotOwner(_));
                if is_owner {
                    tracing::info!(%error, "push ended early");
                }
                let is_over = matches!(error, LinkError::Stream(_) | LinkError::Ended | LinkError::Interrupted);
                if let (Some(held), false, true) = (&self.held, is_over, is_owner) {
                    held.standing.failed(&error.to_string());
                }
                self.connection.close(error.code(), &error.to_string()).await;
                None
            }
        }
    }

    async fn talk(&mut self, control: &mut Control<ToReplica>, said: Option<Said>) -> Result<(), LinkError> {
        self.goes_on = said.is_some();
        if let Some(Said { hello, source }) = said {
            if let Some(source) = source {
                self.receiver.handle(ReceiverInput::Received(ToReplica::Place(source)))?;
            }
            self.receiver.handle(ReceiverInput::Received(ToReplica::Hello(hello)))?;
        }
        loop {
            while let Some(output) = self.receiver.poll() {
                match output {
                    ReceiverOutput::End => return Ok(()),
                    ReceiverOutput::Send(message) => {
                        match &message {
                            ToMaster::Problems(problems) => self.note_problems(problems),
                            ToMaster::Ack(_) => self.held.iter().for_each(|held| held.standing.said_all()),
                            _ => {}
                        }
                        control.send(message.encode())?;
                    }
                    output => self.carry_out(output)?,
                }
            }
            if self.stop.load(Ordering::Relaxed) && self.connection.close_reason().is_none() {
                let gone = self.held.as_ref().and_then(|held| Some((held.share.describe(), (*held.left.borrow())?)));
                let (share, how) = gone.ok_or(LinkError::Interrupted)?;
                self.refuse(format!("{share} {how}"))?;
                continue;
            }
            let crowded = control.is_backed_up();
            let lookout = self.lookout().filter(|_| self.may_look()).cloned();
            tokio::select! {
                // Answers wait until the master takes some: each may be large, and it may ask for many.
                message = control.next_or_room(crowded) => {
                    let Some(message) = message else { continue };
                    if self.follows && self.receiver.is_waiting() && matches!(message, Err(LinkError::Ended)) {
                        self.pass_over();
                        return Ok(());
                    }
                    let message = message?;
                    if let ToReplica::Unavailable(content) = &message {
                        self.stager.give_up(content.seq);
                    }
                    self.receiver.handle(ReceiverInput::Received(message))?;
                    self.note_what_comes();
                }
                Some(settled) = self.settled.recv() => {
                    for (seq, settled) in settled {
                        self.receiver.handle(ReceiverInput::Settled(seq, settled))?;
                    }
                }
                Some(described) = self.described.recv(), if !crowded => {
                    self.receiver.handle(ReceiverInput::Described(described))?;
                }
                look = due(lookout.as_deref()) => tokio::task::block_in_place(|| self.look_again(&look))?,
                // Shutdown without a word from the master: see the flag above.
                () = self.interrupted.notified() => {}
            }
        }
    }

    /// The master opens the next session anew, with another hello, and did not hear what was told in this one.
    fn pass_over(&mut self) {
        self.is_passed_over = true;
        self.acknowledged.clone_from(&self.known);
        if let Some(opened) = &mut self.opened {
            opened.was_told_nothing();
        }
    }

    /// Does what the receiver wants done, and answers it.
    fn carry_out(&mut self, output: ReceiverOutput) -> Result<(), LinkError> {
        tokio::task::block_in_place(|| match output {
            ReceiverOutput::Open(hello, source) => self.open(hello, source.as_ref()),
            ReceiverOutput::List(dirs) => self.list(&dirs),
            ReceiverOutput::Describe(ask) => self.describe(ask),
            ReceiverOutput::Consider(first, files) => {
                let wants = self.consider(first, files)?;
                Ok(self.receiver.handle(ReceiverInput::Considered(wants))?)
            }
            ReceiverOutput::Take(seq, content) => self.stager.take(seq, &content),
            ReceiverOutput::Draft(draft) => {
                if let Some(opened) = &self.opened {
                    self.stager.draft(opened, draft);
                }
                Ok(())
            }
            ReceiverOutput::Fetch(files) => {
                let wants = self.fetch(files)?;
                Ok(self.receiver.handle(ReceiverInput::Considered(wants))?)
            }
            ReceiverOutput::Expand(moved, touched) => {
                let (changes, rows) = expand::expand(self.opened()?, &moved, &touched)?;
                self.expanded = rows;
                Ok(self.receiver.handle(ReceiverInput::Expanded(changes))?)
            }
            ReceiverOutput::Guard(announce, changes) => self.guard(&announce, changes),
            ReceiverOutput::Plan(announce, changes) => self.plan(&announce, changes),
            ReceiverOutput::Discard => {
                self.application = None;
                Ok(())
            }
            ReceiverOutput::Prepare => self.prepare(),
            ReceiverOutput::Publish => self.publish(),
            ReceiverOutput::Send(_) | ReceiverOutput::End => Ok(()),
        })
    }

    fn open(&mut self, hello: Hello, source: Option<&Region>) -> Result<(), LinkError> {
        self.source = source.cloned();
        // Also if what came between was passed over: what was told in that, the master did not hear.
        self.known = self.followed.as_ref().and_then(|followed| followed.acknowledged.clone());
        self.share.clone_from(&hello.share);
        self.history = hello.features & HISTORY != 0;
        self.whole = hello.features & WHOLE != 0;
        // What is not said again is what holds for the sessions behind this one.
        let for_all = || Hello { features: hello.features & !LOOK, ..hello.clone() };
        self.follows = hello.features & FOLLOW != 0;
        self.again = (hello.features & (FOLLOW | STRETCHES) != 0).then(for_all);
        self.released = hello.features & RELEASED != 0;
        let held = match self.shares.find(&hello.share) {
            Ok(held) => self.held.insert(held).clone(),
            Err(reason) => return self.refuse(reason),
        };
        self.end_with(held.left.clone());
        let share = &held.share;
        // First of all: nothing is told here to a master that does not own the share.
        let asks = Asks { adopts: hello.features & ADOPT != 0, dry_run: hello.policy.dry_run };
        let ownership = held.ownership.as_ref();
        let admission = match ownership.map(|ownership| ownership.admit(&self.connection, asks)).transpose() {
            Ok(admission) => admission,
            Err(error) => return self.turn_away(error),
        };
        if let Some(how) = source.and_then(|source| share.lies(source, !hello.policy.one_file_system)) {
            let share = share.describe();
            let reason = format!("{share} is on the same machine and {how} the source; choose one apart from it");
            return self.refuse(reason);
        }
        let attended = self.followed.as_mut().filter(|followed| followed.share == share.name);
        let attended = attended.and_then(|followed| followed.attendance.take());
        // A master that was acknowledged a version on this connection says nothing before there is another.
        let is_first = self.followed.is_none();
        let again = match self.followed.take() {
            Some(followed) if hello.features & LOOK == 0 => followed.resume(share, &hello.policy, &self.stop),
            followed => {
                followed.into_iter().for_each(Followed::close);
                None
            }
        };
        let mut notices = Vec::new();
        let opened = match again {
            Some(opened) => Ok((opened.admitted(admission), false)),
            None => self.open_anew(share, hello.policy, hello.features, &mut notices, admission),
        };
        for text in notices {
            self.receiver.handle(ReceiverInput::Notice(text))?;
        }
        match opened {
            Ok((mut opened, heals)) => {
                self.tell_problems(opened.take_problems())?;
                held.standing.asks(|asked| asked.unmounted |= opened.is_unmounted);
                held.guard.recall(&opened.index)?;
                let stand = opened.stand();
                let is_other = match &self.known {
                    Some(known) => !known.is_true_of(&opened)?,
                    None => false,
                };
                if !opened.policy.dry_run {
                    let stands = opened.index.stand().ok().flatten();
                    let attendance = held.standing.opened(&self.connection, self.follows, stands.as_ref(), attended);
                    self.attendance = Some(attendance);
                }
                opened.rests();
                self.stager.use_replica(&opened);
                // What came of another master's tree is no beginning of this one.
                let goes_on = self.again.is_some() && !self.goes_on && !asks.adopts;
                let reached = opened.reached().filter(|_| goes_on).cloned();
                self.opened = Some(opened);
                if let Some(reached) = reached {
                    self.receiver.handle(ReceiverInput::Reached(reached.path))?;
                }
                self.receiver.handle(match self.goes_on {
                    true => ReceiverInput::Reopened,
                    false => ReceiverInput::Opened(stand.clone()),
                })?;
                let is_healed = self.lookout().is_some_and(|lookout| lookout.heals());
                // A push compares what it was told of here in any case; a master that follows may be waiting for nothing else.
                if self.follows && ((is_other && is_healed) || (heals && !is_first)) {
                    self.receiver.handle(ReceiverInput::Drifted(stand))?;
                }
                self.tell_unhealed()
            }
            Err(_) if self.stop.load(Ordering::Relaxed) => Err(LinkError::Interrupted),
            Err(error) => self.turn_away(error),
        }
    }

    /// What is not taken for what it seems: who follows comes by itself, and not at somebody's order. What is released is what a
    /// person was told here.
    fn suspicion(&self) -> Suspicion {
        if !self.follows {
            return Suspicion { empty: Empty::Unmounted, unmounted: true };
        }
        let asked = self.held.as_ref().filter(|_| self.released).map(|held| held.standing.asked());
        let Asked { empty, unmounted } = asked.unwrap_or_default();
        Suspicion { empty: if empty { Empty::Right } else { Empty::Replaced }, unmounted: !unmounted }
    }

    /// Ends the session with the reason.
    fn turn_away(&mut self, error: OpenError) -> Result<(), LinkError> {
        match error {
            OpenError::NotOwner(reason) => Err(LinkError::NotOwner(reason)),
            OpenError::Unmounted(share) if self.follows => {
                let reason = format!(
                    "{share} is empty, or nearly so, and not the directory that it was: is it not mounted? nothing was changed; mount it, \
                     or, if it is to be filled anew, say so on the master with `synccli release SHARE`"
                );
                tracing::warn!(share = self.share, reason, "held");
                self.held.iter().for_each(|held| held.standing.asks(|asked| asked.empty = true));
                let refusal = self.hold(reason);
                Ok(self.receiver.handle(ReceiverInput::Refuse(refusal))?)
            }
            error => self.refuse(error.to_string()),
        }
    }

    /// Ends the session, as one whose master is gone ends, when the share goes: what is being published is published.
    fn end_with(&mut self, mut left: Left) {
        let (stop, woken) = (Arc::clone(&self.stop), Arc::clone(&self.interrupted));
        self.leaving.spawn(async move {
            if left.wait_for(Option::is_some).await.is_ok() {
                stop.store(true, Ordering::Relaxed);
                woken.notify_one();
            }
        });
    }

    /// Opens the share with a look at its tree, and says whether that found drift which is to be healed.
    fn open_anew(
        &self,
        share: &Share,
        policy: Policy,
        features: u64,
        notices: &mut Vec<String>,
        admission: Option<Admission>,
    ) -> Result<(Opened, bool), OpenError> {
        let Some(lookout) = self.lookout() else {
            let open = Opened::open(share, policy, self.suspicion(), &self.stop, notices, admission, || None);
            return Ok((open?, false));
        };
        let looks = !policy.dry_run;
        let presence = lookout.enter();
        // Who follows has a share for long, and looks at first.
        let goes_on = features & (FOLLOW | LOOK) == 0;
        let left = || if looks { lookout.looks(goes_on) } else { None };
        let opened = Opened::open(share, policy, self.suspicion(), &self.stop, notices, admission, left);
        let mut opened = opened.inspect_err(|_| lookout.still_owes())?;
        let (names, drift) = opened.take_drift();
        if looks {
            lookout.tell(names.as_ref(), &drift, true);
        }
        let heals = looks && drift.count() > 0 && lookout.heals();
        Ok((opened.watched_by(Box::new(presence)), heals))
    }

    /// What watches the share's tree.
    fn lookout(&self) -> Option<&Arc<Lookout>> {
        self.held.as_ref().and_then(|held| held.lookout.as_ref())
    }

    /// Says once that the master tells something against the stand.
    fn note_what_comes(&mut self) {
        if let (Some(held), Some(_), false) =
            (&self.held, &self.attendance, self.receives || self.receiver.is_waiting())
        {
            self.receives = true;
            held.standing.receives();
        }
    }

    /// Whether nothing is told against the stand, so that it may become another one.
    fn may_look(&self) -> bool {
        // Whoever brings a tree in stretches compares it in the end.
        let is_looked_at = |opened: &Opened| !opened.policy.dry_run && !opened.is_partial();
        self.follows && self.opened.as_ref().is_some_and(is_looked_at) && self.receiver.is_waiting()
    }

    /// Looks where somebody else may have changed something, and tells the master if it is to be healed.
    fn look_again(&mut self, look: &Look) -> Result<(), LinkError> {
        let (Some(opened), Some(held)) = (&mut self.opened, &self.held) else { return Ok(()) };
        let (share, Some(lookout)) = (&held.share, &held.lookout) else { return Ok(()) };
        if opened.root.as_ref().is_some_and(|root| !root.still_there()) {
            let reason = format!("{} was moved, unmounted or replaced; nothing is changed", share.describe());
            return self.refuse(reason);
        }
        let before = opened.tree.root;
        match opened.look_again(share, look.names.as_ref(), lookout.heals(), &self.stop) {
            Ok(drift) => lookout.tell(look.names.as_ref(), &drift, lookout.heals()),
            Err(_) if self.stop.load(Ordering::Relaxed) => return Err(LinkError::Interrupted),
            Err(error) => return self.turn_away(error),
        }
        opened.rests();
        held.standing.asks(|asked| asked.unmounted |= opened.is_unmounted);
        // What cannot be looked at is not known to be what it was.
        let is_other = opened.tree.root != before || apply::has_unseen(opened);
        let problems = opened.take_problems();
        let stand = opened.stand();
        self.tell_problems(problems)?;
        if is_other {
            self.receiver.handle(ReceiverInput::Drifted(stand))?;
        }
        self.tell_unhealed()
    }

    /// Tells a master that follows what drifted and is not undone, if that is not what it was told.
    fn tell_unhealed(&mut self) -> Result<(), LinkError> {
        let (Some(held), Some(_), true) = (&self.held, &self.attendance, self.follows) else { return Ok(()) };
        let now = held.standing.drift();
        if self.unhealed == now {
            return Ok(());
        }
        self.unhealed.clone_from(&now);
        let (entries, first) = now.map_or((0, None), |(entries, first)| (entries, Some(first)));
        Ok(self.receiver.handle(ReceiverInput::Unhealed(Unhealed { entries, first }))?)
    }

    fn log(&self, ack: &Ack) {
        let (share, dry_run) = (&*self.share, self.opened.as_ref().is_some_and(|opened| opened.policy.dry_run));
        let Some(version) = self.application.as_ref().map(Application::version) else { return };
        let ReplicaStats { created, updated, metadata_only, moved, deleted, .. } = ack.stats;
        let (number, exact) = (version.number, version.root == ack.root);
        if self.receiver.is_stretch() {
            return tracing::info!(share, version = number, created, "a stretch of the tree is there");
        }
        tracing::info!(
            share,
            version = number,
            exact,
            dry_run,
            created,
            updated,
            metadata_only,
            moved,
            deleted,
            "done"
        );
    }

    /// What goes with an acknowledgement.
    fn tell_before(&mut self, ack: &Ack) -> Result<(), LinkError> {
        self.log(ack);
        if self.receiver.is_stretch() {
            self.held.iter().for_each(|held| held.standing.goes_on());
            return self.tell_resumed();
        }
        let application = self.application.as_ref().filter(|application| application.version().root == ack.root);
        self.acknowledged = application.map(|application| Acknowledged {
            version: application.version().id(),
            root: ack.root,
            holds: application.holds().to_vec(),
        });
        if let (Some(held), Some(_), Some(application)) = (&self.held, &self.attendance, &self.application) {
            let (version, after) = (application.version(), application.step().after);
            let exact = (version.root == ack.root).then(|| VersionStatus {
                number: version.number,
                id: version.id().0.to_hex(),
                time: Some(version.time),
                // With the top, as its master counts.
                entries: Some(after + 1),
            });
            held.standing.acknowledged(exact);
        }
        self.tell_unhealed()?;
        self.tell_resumed()?;
        if let Some(text) = self.application.as_ref().and_then(Application::unmade) {
            self.receiver.handle(ReceiverInput::Notice(text))?;
        }
        Ok(())
    }

    fn tell_resumed(&mut self) -> Result<(), LinkError> {
        match self.application.as_ref().map_or(0, Application::resumed) {
            0 => Ok(()),
            resumed => Ok(self.receiver.handle(ReceiverInput::Resumed(resumed))?),
        }
    }

    fn refuse(&mut self, reason: String) -> Result<(), LinkError> {
        tracing::info!(share = self.share, reason, "refused");
        if let Some(held) = &self.held {
            held.standing.failed(&reason);
        }
        let refusal = Refusal { for_a_person: false, reason };
        Ok(self.receiver.handle(ReceiverInput::Refuse(refusal))?)
    }

    fn tell_problems(&mut self, problems: Vec<Problem>) -> Result<(), LinkError> {
        match problems.is_empty() {
            true => Ok(()),
            false => Ok(self.receiver.handle(ReceiverInput::Problems(problems))?),
        }
    }

    /// What the master is told of it is told here as well.
    fn note_problems(&self, problems: &[Problem]) {
        let are_news = self.held.as_ref().is_none_or(|held| held.standing.are_news(problems));
        if are_news && !self.share.is_empty() {
            log_problems(&self.share, problems);
        }
        if let (Some(held), Some(problem)) = (&self.held, problems.first()) {
            held.standing.failed(&problem.to_string());
        }
    }

    fn opened(&mut self) -> Result<&mut Opened, LinkError> {
        self.opened.as_mut().ok_or(LinkError::Ended)
    }

    fn describe(&mut self, ask: Describe) -> Result<(), LinkError> {
        let root = self.opened()?.root.clone();
        match root.zip(self.stager.basis_of(ask.seq)) {
            Some((root, old)) => self.describer.ask(root, old, ask),
            None => self.receiver.handle(ReceiverInput::Described(basis::gone(ask.seq)))?,
        }
        Ok(())
    }

    fn list(&mut self, dirs: &[crate::path::RelPath]) -> Result<(), LinkError> {
        self.listed = true;
        for dir in dirs {
            for listing in listing::list(self.opened()?, dir)? {
                self.receiver.handle(ReceiverInput::Listed(listing))?;
            }
        }
        Ok(())
    }

    /// What is missing of these contents, as far as can be told before the plan.
    fn consider(&mut self, first: u64, files: Vec<Offered>) -> Result<Vec<(Wanted, Offered)>, LinkError> {
        let Some(opened) = self.opened.as_mut() else { return Ok(Vec::new()) };
        let mut missing = Vec::new();
        for (seq, file) in (first..).zip(files) {
            let left_alone = opened.holds.covers(&file.path);
            if !left_alone && opened.wants_once(&file.digest) {
                missing.push((seq, file));
            } else {
                self.stager.pass_over(&file.path);
            }
        }
        self.fetch(missing)
    }

    /// Makes ready for these contents; with what may save sending some of them.
    fn fetch(&mut self, files: Vec<(u64, Offered)>) -> Result<Vec<(Wanted, Offered)>, LinkError> {
        let Some(opened) = self.opened.as_mut() else { return Ok(Vec::new()) };
        // Nothing saves sending what is here, or is worth it.
        let comes_whole =
            |(seq, file): &(u64, Offered)| self.receiver.is_given(*seq) || self.whole && file.size <= PART_MIN;
        let (given, files): (Vec<_>, Vec<_>) = files.into_iter().partition(comes_whole);
        let known = !self.listed && opened.stand().version.is_some();
        let master = basis::Knows { chunks: known, contents: self.history };
        let bases = match &opened.root {
            // Other stretches of a tree have no old files of this one.
            Some(root) if !opened.is_empty() && (self.listed || !opened.is_partial()) => {
                let (index, paid) = (&opened.index, self.stager.stood_in());
                let mut stand_in = |file: &Offered| self.stand_ins.find(index, file, paid);
                basis::in_place_of(root, index, &files, &mut stand_in, master, &self.stop)
            }
            _ => Vec::new(),
        };
        let mut bases = bases.into_iter();
        let mut wants = Vec::with_capacity(given.len() + files.len());
        for (seq, file) in given {
            self.stager.expect(seq, Expected { file: file.clone(), basis: None, cuts: None, given_up: false });
            wants.push((Wanted::whole(seq), file));
        }
        for (seq, file) in files {
            let basis::Found { old, cuts, basis } = bases.next().unwrap_or_default();
            let part = opened.part_of(&file);
            self.stager.expect(seq, Expected { file: file.clone(), basis: old, cuts, given_up: false });
            wants.push((Wanted { seq, basis, part }, file));
        }
        // What was not read to its end would be asked for as if there were nothing, and give way to what comes.
        if self.stop.load(Ordering::Relaxed) { Err(LinkError::Interrupted) } else { Ok(wants) }
    }

    /// Refuses a plan that would delete too much before anything of it touches the disk.
    fn guard(&mut self, announce: &crate::wire::Announce, changes: crate::plan::Changes) -> Result<(), LinkError> {
        let preview = Application::preview(self.opened()?, announce, changes)?;
        match preview.refusal() {
            Some(refusal) => Ok(self.receiver.handle(ReceiverInput::Refuse(refusal))?),
            None => Ok(self.receiver.handle(ReceiverInput::Guarded(preview.root()))?),
        }
    }

    fn plan(&mut self, announce: &crate::wire::Announce, changes: crate::plan::Changes) -> Result<(), LinkError> {
        self.stager.drop_drafts();
        let copied = self.stager.copied_bytes();
        let is_stretch = self.receiver.is_stretch();
        self.opened()?.is_to_be_partial(is_stretch);
        let known = std::mem::take(&mut self.expanded);
        let mut planned = Application::plan(self.opened()?, announce, changes, known, copied)?;
        if let Some(refusal) = planned.refusal().or_else(|| self.too_much(&planned)) {
            return Ok(self.receiver.handle(ReceiverInput::Refuse(refusal))?);
        }
        let (root, items) = (planned.root(), planned.items());
        let (missing, changes) = planned.take_missing();
        self.application = Some(planned);
        Ok(self.receiver.handle(ReceiverInput::Planned { root, items, missing, changes })?)
    }

    /// Whether a master that follows its tree would take away too much, and no person has decided that.
    fn too_much(&self, planned: &Application) -> Option<Refusal> {
        let counts = self.follows && !self.released;
        let held = self.held.as_ref().filter(|_| counts)?;
        let error = planned.guarded().find_map(|step| held.guard.check(step).err())?;
        let gone = planned.lost();
        let reason = format!(
            "{error} here, now {gone}; nothing was changed: if it is meant, say so on the master with `synccli release SHARE`"
        );
        Some(self.hold(reason))
    }

    /// It waits for a person on the master, and says so here as well.
    fn hold(&self, reason: String) -> Refusal {
        if let Some(held) = &self.held {
            held.standing.holds(&reason);
        }
        Refusal { for_a_person: true, reason }
    }

    fn prepare(&mut self) -> Result<(), LinkError> {
        let (Some(opened), Some(application)) = (&mut self.opened, &mut self.application) else {
            return Err(LinkError::Ended);
        };
        let prepared = application.prepare(opened, &self.stop);
        let problems = opened.take_problems();
        self.tell_problems(problems)?;
        match prepared {
            Ok(ack) => {
                if let Some(ack) = &ack {
                    self.tell_before(ack)?;
                }
                Ok(self.receiver.handle(ReceiverInput::Prepared(ack))?)
            }
            Err(reason) => self.refuse(reason),
        }
    }

    fn publish(&mut self) -> Result<(), LinkError> {
        let (Some(opened), Some(application)) = (&mut self.opened, &mut self.application) else {
            return Err(LinkError::Ended);
        };
        // Nobody follows a replica in the process of its master.
        let held = self.held.as_ref().filter(|held| !held.share.name.is_empty());
        let is_new = self.released || !self.follows || application.is_behind_stretches();
        let counted = held.map(|held| held.guard.counting(application.step(), is_new));
        let lookout = self.held.as_ref().and_then(|held| held.lookout.as_ref());
        let quiet = lookout.filter(|_| application.steps() > MUCH).map(Lookout::keep_quiet);
        let published = application.publish(opened, &self.ending, counted.as_ref());
        drop(quiet);
        let problems = opened.take_problems();
        self.tell_problems(problems)?;
        match published {
            Ok(ack) => {
                if let (Some(held), Some(counted)) = (&self.held, counted) {
                    held.guard.keep(counted);
                }
                self.tell_before(&ack)?;
                Ok(self.receiver.handle(ReceiverInput::Published(ack))?)
            }
            Err(reason) => self.refuse(reason),
        }
    }
}
