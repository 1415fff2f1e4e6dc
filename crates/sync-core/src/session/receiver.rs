//! The replica's end of a push.

mod io;

use std::collections::{BTreeMap, VecDeque};

use foldhash::HashMap;

pub use io::{ReceiverInput, ReceiverOutput, Settled};

use super::missing::{Missing, Names};
use super::{Budget, ProtocolError};
use crate::hash::Digest;
use crate::manifest::{Entry, VersionId};
use crate::monitor::{Item, Problem};
use crate::path::RelPath;
use crate::plan::Changes;
use crate::region::Region;
use crate::relative;
use crate::wire::{
    Announce, Basis, Change, Describe, FOLLOW, Given, MAX_CHUNKS, MAX_ENTRIES, MAX_ENTRY_BYTES, MAX_GIVEN, Moved,
    Offered, Run, STRETCHES, ToMaster, ToReplica, Touched, Unavailable, Wanted, in_messages,
};

/// How many wants, problems or items go into one message at most.
const PER_MESSAGE: usize = 1024;

/// How often a master may ask what the old file of a content consists of: for its chunks, then for pieces.
const DESCRIPTIONS: u8 = 2;

/// Contents up to this size that could not be stored are tried again all together when the others are done; larger ones
/// then, one after the other.
const SET_ASIDE: u64 = 1 << 20;

/// How often a master may start over with its changes: after a descent there is nothing else to compare.
const RESTARTS: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Opening,
    /// Contents and changes come in.
    Gathering,
    /// All changes are told; some are still to be made from rows.
    Expanding,
    /// All changes are there; contents are still underway.
    Completing,
    Planning,
    /// The plan does not lead to the root: the master will restart.
    Mismatched,
    Preparing,
    Prepared,
    Publishing,
    Ended,
}

/// A content that is awaited.
#[derive(Debug)]
struct Outstanding {
    path: RelPath,
    size: u64,
    /// Whether it was asked for a second time.
    again: bool,
    /// How often the master asked what there is.
    described: u8,
}

/// A content that could not be stored, by its size and number, and why if it may not be tried again after all.
type SetAside = (Outstanding, Option<Problem>);

/// Contents that are asked for at once, but for the rest of a message. Both sides keep something of each until it has come;
/// so many small files are under way for seconds on most links.
pub(super) const MOST_WANTED: usize = 1 << 14;

/// The state machine. Drain [`Receiver::poll`] after every [`Receiver::handle`].
#[derive(Debug)]
pub struct Receiver {
    state: State,
    outputs: VecDeque<ReceiverOutput>,
    /// Where the source is, if it says so.
    source: Option<Region>,
    /// For offers, changes, held paths and directories to list.
    pub(super) budget: Budget,
    /// The number of the next offered file.
    next_seq: u64,
    /// Answers to Consider that are still missing.
    considering: u64,
    /// Wanted contents that are not dealt with.
    outstanding: HashMap<u64, Outstanding>,
    /// What is asked about once fewer are, with the number of the first.
    postponed: VecDeque<(u64, Vec<Offered>)>,
    /// Contents that came without being asked for, by number, until it shows whether they are wanted.
    given: HashMap<u64, Vec<u8>>,
    /// How many bytes of them came.
    given_bytes: usize,
    /// What could not be stored while others filled the disk: tried once more when all else is done, the smallest first.
    set_aside: BTreeMap<(u64, u64), SetAside>,
    /// What was offered ahead of all changes, by number; nothing once it was told to be as offered, or all was announced.
    offered: Vec<Option<Offered>>,
    /// Contents that did not come.
    missing: Missing,
    /// As they came; a map that grows by single entries is half empty.
    told: Vec<(RelPath, Option<Box<Entry>>)>,
    changes: Changes,
    /// What was told relative to the version that this side stands at.
    moved: Vec<Moved>,
    touched: Vec<Touched>,
    /// Changes as they were told: whatever is to be made of one, it counts once.
    changes_received: u64,
    /// Held paths that came ahead of the announcement.
    holds: Vec<RelPath>,
    announce: Option<Announce>,
    /// Whether the master has said anything but hello.
    heard: bool,
    /// How many there were.
    restarts: u8,
    dry_run: bool,
    /// Whether a dry run asks for contents all the same: none comes.
    estimate: bool,
    max_delete: bool,
    /// Whether the master may open another session behind this one.
    goes_on: bool,
    /// Whether what was announced is only a stretch of a version's tree: there is no root that it must lead to.
    is_stretch: bool,
    /// Files that are not considered before the guard has seen the changes: a refused plan must not touch the disk.
    guarded: Option<Vec<(u64, Vec<Offered>)>>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self::new()
    }
}

impl Receiver {
    /// Waits for a hello.
    pub fn new() -> Self {
        Self {
            state: State::Greeting,
            outputs: VecDeque::new(),
            source: None,
            budget: Budget::new(MAX_ENTRIES, MAX_ENTRY_BYTES),
            next_seq: 0,
            considering: 0,
            outstanding: HashMap::default(),
            postponed: VecDeque::new(),
            given: HashMap::default(),
            given_bytes: 0,
            set_aside: BTreeMap::new(),
            offered: Vec::new(),
            missing: Missing::default(),
            told: Vec::new(),
            changes: Changes::new(),
            moved: Vec::new(),
            touched: Vec::new(),
            changes_received: 0,
            holds: Vec::new(),
            announce: None,
            heard: false,
            restarts: 0,
            dry_run: false,
            estimate: false,
            max_delete: false,
            goes_on: false,
            is_stretch: false,
            guarded: None,
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<ReceiverOutput> {
        self.outputs.pop_front()
    }

    /// Whether a content with this number is expected.
    pub fn expects(&self, seq: u64) -> bool {
        self.outstanding.contains_key(&seq)
    }

    /// Whether the content of this number came before it was asked for.
    pub fn is_given(&self, seq: u64) -> bool {
        self.given.contains_key(&seq)
    }

    /// Whether the stand is told, and the master has not told anything against it.
    pub fn is_waiting(&self) -> bool {
        self.state == State::Gathering && !self.heard
    }

    /// Whether what was announced is only a stretch of a version's tree.
    pub fn is_stretch(&self) -> bool {
        self.is_stretch
    }

    /// Takes one input.
    ///
    /// # Errors
    /// [`ProtocolError`] if the master said something that makes no sense now: the session is over, and nothing that
    /// was not published becomes visible.
    pub fn handle(&mut self, input: ReceiverInput) -> Result<(), ProtocolError> {
        if self.state == State::Ended {
            return Ok(());
        }
        match input {
            ReceiverInput::Received(message) => self.received(message)?,
            ReceiverInput::Reached(path) => self.send(ToMaster::Reached(path)),
            ReceiverInput::Opened(stand) => {
                self.state = State::Gathering;
                self.send(ToMaster::Stand(stand));
            }
            ReceiverInput::Reopened => self.state = State::Gathering,
            ReceiverInput::Listed(listing) => self.send(ToMaster::Listing(listing)),
            ReceiverInput::Considered(wants) => self.want(wants),
            ReceiverInput::Described(described) => self.send(ToMaster::Described(described)),
            ReceiverInput::Expanded(changes) => self.expanded(changes)?,
            ReceiverInput::Settled(seq, settled) => self.settled(seq, settled),
            ReceiverInput::Guarded(root) => self.guarded(root),
            ReceiverInput::Planned { root, items, missing, changes } => self.planned(root, items, &missing, changes),
            ReceiverInput::Prepared(None) if self.announce.as_ref().is_some_and(|a| a.committed) => {
                self.state = State::Publishing;
                self.outputs.push_back(ReceiverOutput::Publish);
            }
            ReceiverInput::Prepared(None) => {
                self.state = State::Prepared;
                if let Some(root) = self.announce.as_ref().map(|a| a.version.root) {
                    self.send(ToMaster::Prepared(root));
                }
            }
            ReceiverInput::Prepared(Some(ack)) | ReceiverInput::Published(ack) => {
                self.send(ToMaster::Ack(ack));
                self.end();
            }
            ReceiverInput::Problems(problems) => self.tell(problems),
            ReceiverInput::Notice(text) => self.send(ToMaster::Notice(text)),
            ReceiverInput::Drifted(stand) if self.is_waiting() => self.send(ToMaster::Drifted(stand)),
            // The root that the plan leads to will tell.
            ReceiverInput::Drifted(_) => {}
            ReceiverInput::Unhealed(unhealed) => self.send(ToMaster::Unhealed(unhealed)),
            ReceiverInput::Resumed(bytes) => self.send(ToMaster::Resumed(bytes)),
            ReceiverInput::Refuse(refusal) => {
                self.send(ToMaster::Refuse(refusal));
                self.end();
            }
        }
        Ok(())
    }

    fn send(&mut self, message: ToMaster) {
        self.outputs.push_back(ReceiverOutput::Send(message));
    }

    fn tell(&mut self, problems: Vec<Problem>) {
        let size = |p: &Problem| p.reason.len() + p.path.as_ref().map_or(0, |path| path.as_bytes().len()) + 16;
        for part in in_messages(problems, PER_MESSAGE, size) {
            self.send(ToMaster::Problems(part));
        }
    }

    fn end(&mut self) {
        self.state = State::Ended;
        self.outputs.push_back(ReceiverOutput::End);
    }

    /// Counts what the master makes this side hold or answer, before anything of it is used.
    fn spend(&mut self, message: &ToReplica) -> Result<(), ProtocolError> {
        let paths = |paths: &[RelPath]| (paths.len(), paths.iter().map(|path| path.as_bytes().len()).sum());
        let (entries, bytes) = match message {
            ToReplica::Offer(files) => (files.len(), files.iter().map(|file| file.path.as_bytes().len()).sum()),
            ToReplica::Changes(changes) => (changes.len(), changes.iter().map(Change::bytes).sum()),
            ToReplica::Touched(touched) => {
                (touched.len(), touched.iter().map(|touched| touched.path.as_bytes().len()).sum())
            }
            ToReplica::Moved(moved) => (moved.len(), moved.iter().map(Moved::bytes).sum()),
            ToReplica::List(dirs) => paths(dirs),
            ToReplica::Holds(holds) => paths(holds),
            ToReplica::Describe(describe) => (describe.ranges.len(), 0),
            ToReplica::Given(given) => (given.len(), 0),
            ToReplica::Draft(draft) => (1 + draft.ranges.len(), draft.path.as_bytes().len()),
            ToReplica::Announce(announce) | ToReplica::Stretch(announce) => paths(&announce.holds),
            ToReplica::AsOffered(runs) => {
                (runs.iter().fold(0, |sum: usize, run| sum.saturating_add(run.count as usize)), 0)
            }
            _ => return Ok(()),
        };
        self.budget.take(entries, bytes)
    }

    fn received(&mut self, message: ToReplica) -> Result<(), ProtocolError> {
        self.spend(&message)?;
        self.heard |= self.state != State::Greeting;
        match (message, self.state) {
            (ToReplica::Place(region), State::Greeting) if self.source.is_none() => self.source = Some(region),
            (ToReplica::Hello(hello), State::Greeting) => {
                self.state = State::Opening;
                self.dry_run = hello.policy.dry_run;
                self.estimate = self.dry_run && hello.policy.estimate;
                self.max_delete = hello.policy.max_delete.is_some() && !self.dry_run;
                self.goes_on = hello.features & (FOLLOW | STRETCHES) != 0;
                self.guarded = self.max_delete.then(Vec::new);
                self.outputs.push_back(ReceiverOutput::Open(hello, self.source.take()));
            }
            // Offers may overtake the answer to the hello; they are considered once the share is open.
            (ToReplica::Offer(files), State::Opening | State::Gathering) => {
                // Offers come before all changes. Of others there is nothing to be told again.
                if self.offered.len() as u64 == self.next_seq {
                    self.offered.extend(files.iter().cloned().map(Some));
                }
                self.consider(files);
            }
            // Neither a dry run nor a plan that may be refused touches the disk.
            (ToReplica::Draft(_), State::Opening | State::Gathering) if self.dry_run || self.max_delete => {}
            (ToReplica::Draft(draft), State::Opening | State::Gathering) => {
                self.outputs.push_back(ReceiverOutput::Draft(draft));
            }
            (ToReplica::List(dirs), State::Gathering) => self.outputs.push_back(ReceiverOutput::List(dirs)),
            (ToReplica::Changes(changes), State::Gathering) => {
                self.changes_received += changes.len() as u64;
                let mut files = Vec::new();
                for change in changes {
                    if let Some(entry) = change.entry.as_ref().filter(|entry| entry.needs_content())
                        && let Some((size, digest)) = entry.content()
                    {
                        files.push(Offered { path: change.path.clone(), digest, size, likely: entry.metadata() });
                    }
                    self.tell_of(change.path, change.entry);
                }
                self.missing.number(self.next_seq, &files);
                self.consider(files);
            }
            (ToReplica::Given(_), State::Gathering) if self.dry_run => {}
            (ToReplica::Given(given), State::Gathering) => {
                for Given { seq, content } in given {
                    self.given_bytes += content.len();
                    if self.given_bytes > MAX_GIVEN {
                        return Err(ProtocolError(format!(
                            "more than {MAX_GIVEN} bytes of contents that nobody asked for"
                        )));
                    }
                    // It is settled by now whether one with a lower number is wanted.
                    if seq < self.next_seq || self.given.insert(seq, content).is_some() {
                        return Err(ProtocolError(format!("content {seq} came too late, or twice")));
                    }
                }
            }
            (ToReplica::AsOffered(runs), State::Gathering) => {
                for Run { first, count } in runs {
                    (0..u64::from(count)).try_for_each(|i| self.as_offered(first.saturating_add(i)))?;
                }
            }
            // Only the first changes are told against a version; after a restart the trees are compared.
            (ToReplica::Touched(touched), State::Gathering) if self.restarts == 0 => {
                if let (Some(last), Some(next)) = (self.touched.last(), touched.first())
                    && last.path >= next.path
                {
                    return Err(ProtocolError("touched entries are not in tree order, or not distinct".to_owned()));
                }
                self.changes_received += touched.len() as u64;
                self.touched.extend(touched);
            }
            (ToReplica::Moved(moved), State::Gathering) if self.restarts == 0 => {
                self.changes_received += moved.len() as u64;
                self.moved.extend(moved);
            }
            (ToReplica::Holds(holds), State::Gathering) => self.holds.extend(holds),
            (ToReplica::Announce(announce), State::Gathering) => self.announced(announce)?,
            (ToReplica::Stretch(announce), State::Gathering) => {
                // What a version was is found out by its root alone, and that shows only in the end.
                let is_published = self.goes_on && announce.committed && !self.dry_run && !self.max_delete;
                if !is_published || self.restarts > 0 {
                    return Err(ProtocolError("a stretch where none may come".to_owned()));
                }
                self.is_stretch = true;
                self.announced(announce)?;
            }
            (ToReplica::Restart(()), State::Mismatched) if self.restarts == RESTARTS => {
                return Err(ProtocolError(format!("more than {RESTARTS} restart in one session")));
            }
            (ToReplica::Restart(()), State::Mismatched) => {
                self.restarts += 1;
                self.told.clear();
                self.changes.clear();
                self.changes_received = 0;
                self.missing.restart();
                self.given.clear();
                self.announce = None;
                self.guarded = self.max_delete.then(Vec::new);
                self.state = State::Gathering;
            }
            (ToReplica::Publish(id), State::Prepared) if Some(id) == self.version() => {
                self.state = State::Publishing;
                self.outputs.push_back(ReceiverOutput::Publish);
            }
            (ToReplica::Unavailable(Unavailable { seq, .. }), _) => return self.unavailable(seq),
            (ToReplica::Describe(describe), _) => return self.describe(describe),
            (message, state) => {
                return Err(ProtocolError(format!("unexpected {} while {state:?}", name(&message))));
            }
        }
        Ok(())
    }

    fn announced(&mut self, mut announce: Announce) -> Result<(), ProtocolError> {
        self.holds.append(&mut announce.holds);
        announce.holds = std::mem::take(&mut self.holds);
        if announce.held != announce.holds.len() as u64 {
            return Err(ProtocolError("held paths are missing before the announcement".to_owned()));
        }
        if announce.changes != self.changes_received {
            return Err(ProtocolError("changes are missing before the announcement".to_owned()));
        }
        // Both sides number contents by counting: were they apart, every answer would mean another file.
        if announce.contents != self.next_seq {
            return Err(ProtocolError("the two sides count contents differently".to_owned()));
        }
        self.offered = Vec::new();
        self.announce = Some(announce);
        self.expand()
    }

    /// All changes are told. What was told of this side's own rows is made of them now: at once, so that each row is
    /// read once at most, however many messages there were.
    fn expand(&mut self) -> Result<(), ProtocolError> {
        let (moved, touched) = (std::mem::take(&mut self.moved), std::mem::take(&mut self.touched));
        if moved.is_empty() && touched.is_empty() {
            self.all_told();
            return Ok(());
        }
        if !relative::are_apart(&moved) {
            return Err(ProtocolError("a directory moved to two places".to_owned()));
        }
        self.state = State::Expanding;
        self.outputs.push_back(ReceiverOutput::Expand(moved, touched));
        Ok(())
    }

    fn expanded(&mut self, changes: Vec<Change>) -> Result<(), ProtocolError> {
        self.budget.take(changes.len(), changes.iter().map(Change::bytes).sum())?;
        for Change { path, entry } in changes {
            self.tell_of(path, entry);
        }
        self.all_told();
        Ok(())
    }

    /// All changes are there.
    fn all_told(&mut self) {
        self.changes = std::mem::take(&mut self.told).into_iter().collect();
        self.state = State::Completing;
        if let (Some(announce), true) = (&self.announce, self.guarded.is_some()) {
            self.outputs.push_back(ReceiverOutput::Guard(announce.clone(), self.changes.clone()));
        }
        self.plan_when_complete();
    }

    /// A change that is what was offered.
    fn as_offered(&mut self, seq: u64) -> Result<(), ProtocolError> {
        let offered = usize::try_from(seq).ok().and_then(|i| self.offered.get_mut(i)).and_then(Option::take);
        let file = offered.ok_or_else(|| ProtocolError(format!("content {seq} was not offered, or is no news")))?;
        let entry = file.entry();
        let valid = entry.validate().map_err(|error| error.to_string());
        let valid = valid.and_then(|()| match entry.needs_content() && !file.path.is_root() {
            true => Ok(()),
            false => Err("that is no file with content".to_owned()),
        });
        valid.map_err(|reason| ProtocolError(format!("entry {}, as it was offered: {reason}", file.path)))?;
        self.missing.number(seq, std::slice::from_ref(&file));
        self.changes_received += 1;
        self.tell_of(file.path, Some(entry));
        Ok(())
    }

    fn tell_of(&mut self, path: RelPath, entry: Option<Entry>) {
        if self.told.len() == self.told.capacity() {
            self.told.reserve_exact(16 + self.told.len() / 8);
        }
        self.told.push((path, entry.map(Box::new)));
    }

    fn version(&self) -> Option<VersionId> {
        self.announce.as_ref().map(|announce| announce.version.id())
    }

    fn consider(&mut self, files: Vec<Offered>) {
        let first = self.next_seq;
        self.next_seq += files.len() as u64;
        // A dry run moves no content, but it may ask how much there would be to move.
        if files.is_empty() || (self.dry_run && !self.estimate) {
            return;
        }
        if let Some(guarded) = &mut self.guarded {
            guarded.push((first, files));
            return;
        }
        self.ask_about(first, files);
    }

    fn ask_about(&mut self, first: u64, files: Vec<Offered>) {
        self.postponed.push_back((first, files));
        self.ask_more();
    }

    fn ask_more(&mut self) {
        // How many of these are wanted shows before the next are taken.
        if self.considering == 0
            && self.outstanding.len() < MOST_WANTED
            && let Some((first, files)) = self.postponed.pop_front()
        {
            self.considering += 1;
            self.outputs.push_back(ReceiverOutput::Consider(first, files));
        }
    }

    fn want(&mut self, wants: Vec<(Wanted, Offered)>) {
        self.considering = self.considering.saturating_sub(1);
        let mut wanted = Vec::with_capacity(wants.len());
        for (mut want, Offered { path, size, .. }) in wants {
            // A list that no message holds is asked for if it is needed, and a part of so much is sent anew.
            if let Basis::File { chunks, .. } = &mut want.basis
                && chunks.len() > MAX_CHUNKS
            {
                chunks.clear();
            }
            if want.part.len() > MAX_CHUNKS {
                want.part.clear();
            }
            self.outstanding.insert(want.seq, Outstanding { path, size, again: false, described: 0 });
            match self.given.remove(&want.seq) {
                Some(content) => self.outputs.push_back(ReceiverOutput::Take(want.seq, content)),
                None => wanted.push(want),
            }
        }
        for part in in_messages(wanted, PER_MESSAGE, Wanted::size) {
            self.send(ToMaster::Want(part));
        }
        self.plan_when_complete();
    }

    fn settled(&mut self, seq: u64, settled: Settled) {
        let Some(mut file) = self.outstanding.remove(&seq) else { return };
        let asked_again = std::mem::replace(&mut file.again, true);
        match settled {
            Settled::Staged => self.missing.came(seq),
            Settled::Mismatch if !asked_again => {
                self.outstanding.insert(seq, file);
                self.send(ToMaster::Want(vec![Wanted::whole(seq)]));
            }
            Settled::Mismatch => {
                let reason = "the content does not match its digest: the file changed while it was sent".to_owned();
                let problem = Problem { path: Some(file.path.clone()), reason };
                self.did_not_come(seq, file.path, Some(problem));
            }
            Settled::Elsewhere if !asked_again => {
                let problem = Some(twice(&file.path)).filter(|_| file.size > SET_ASIDE);
                self.set_aside.insert((file.size, seq), (file, problem));
            }
            Settled::Elsewhere => {
                let problem = twice(&file.path);
                self.did_not_come(seq, file.path, Some(problem));
            }
            Settled::Failed(problem) if !asked_again => {
                let problem = Some(problem).filter(|_| file.size > SET_ASIDE);
                self.set_aside.insert((file.size, seq), (file, problem));
            }
            Settled::Failed(problem) => {
                // Where one does not fit by itself, a larger one does not either: it is not sent in vain.
                let larger =
                    if file.size > SET_ASIDE { self.set_aside.split_off(&(file.size, 0)) } else { BTreeMap::new() };
                self.did_not_come(seq, file.path, Some(problem));
                for ((_, seq), (file, problem)) in larger {
                    self.did_not_come(seq, file.path, problem);
                }
            }
        }
        self.plan_when_complete();
    }

    /// The master reports such a file itself, with the reason it knows best; here it only stops being awaited.
    /// There is one for each want at most, so what is not awaited is not answered.
    fn unavailable(&mut self, seq: u64) -> Result<(), ProtocolError> {
        let unasked = || ProtocolError(format!("content {seq} is said to be unavailable, and is not awaited"));
        let file = self.outstanding.remove(&seq).ok_or_else(unasked)?;
        self.did_not_come(seq, file.path, None);
        self.plan_when_complete();
        Ok(())
    }

    fn describe(&mut self, describe: Describe) -> Result<(), ProtocolError> {
        let seq = describe.seq;
        match self.outstanding.get_mut(&seq) {
            Some(file) if file.described < DESCRIPTIONS => {
                file.described += 1;
                self.outputs.push_back(ReceiverOutput::Describe(describe));
                Ok(())
            }
            Some(_) => Err(ProtocolError(format!("the old file of content {seq} was asked about too often"))),
            None => Err(ProtocolError(format!("content {seq} is asked about, and is not awaited"))),
        }
    }

    /// The next name of the content is tried.
    fn did_not_come(&mut self, seq: u64, path: RelPath, problem: Option<Problem>) {
        if let Some(others) = self.missing.did_not_come(seq, path, problem) {
            self.fetch(vec![others]);
        }
    }

    /// Asks for contents, each by the first of its names.
    fn fetch(&mut self, contents: Vec<Names>) {
        let mut files = Vec::new();
        for mut names in contents {
            let Some((seq, file)) = names.pop_front() else { continue };
            self.missing.asked_for(seq, names);
            files.push((seq, file));
        }
        if !files.is_empty() {
            self.considering += 1;
            self.outputs.push_back(ReceiverOutput::Fetch(files));
        }
    }

    fn plan_when_complete(&mut self) {
        self.ask_more();
        let waiting = self.guarded.is_some() || self.considering > 0 || !self.outstanding.is_empty();
        if self.state != State::Completing || waiting {
            return;
        }
        let larger = self.set_aside.split_off(&(SET_ASIDE + 1, 0));
        let mut again = std::mem::replace(&mut self.set_aside, larger);
        if again.is_empty() {
            again.extend(self.set_aside.pop_first());
        }
        let wants: Vec<Wanted> = again.keys().map(|(_, seq)| Wanted::whole(*seq)).collect();
        self.outstanding.extend(again.into_iter().map(|((_, seq), (file, _))| (seq, file)));
        for part in wants.chunks(PER_MESSAGE) {
            self.send(ToMaster::Want(part.to_vec()));
        }
        if self.outstanding.is_empty() {
            self.state = State::Planning;
            if let Some(announce) = self.announce.clone() {
                self.outputs.push_back(ReceiverOutput::Plan(announce, std::mem::take(&mut self.changes)));
            }
        }
    }

    fn leads_elsewhere(&self, root: Digest) -> bool {
        !self.is_stretch && self.announce.as_ref().is_some_and(|announce| announce.version.root != root)
    }

    /// The master learns that its changes do not lead to the root.
    fn mismatched(&mut self, root: Digest) {
        self.state = State::Mismatched;
        self.outputs.push_back(ReceiverOutput::Discard);
        self.send(ToMaster::Prepared(root));
    }

    /// Nothing is asked for before the guard has seen a plan that leads to the root: a refusal leaves nothing behind.
    fn guarded(&mut self, root: Digest) {
        if self.leads_elsewhere(root) {
            // What is needed of these comes again with the changes after the restart.
            self.guarded = None;
            return self.mismatched(root);
        }
        for (first, files) in self.guarded.take().unwrap_or_default() {
            self.ask_about(first, files);
        }
        self.plan_when_complete();
    }

    fn planned(&mut self, root: Digest, items: Vec<Item>, missing: &[RelPath], changes: Changes) {
        if self.leads_elsewhere(root) {
            return self.mismatched(root);
        }
        // A dry run moves no content, and takes for granted what is missing.
        if !self.dry_run {
            let untried = self.missing.untried(missing, &changes);
            if !untried.is_empty() {
                self.state = State::Completing;
                self.changes = changes;
                self.outputs.push_back(ReceiverOutput::Discard);
                return self.fetch(untried);
            }
            self.tell(self.missing.problems(missing));
        }
        let size = |item: &Item| {
            let target = item.target.as_ref().map_or(0, |(_, target)| target.len());
            item.code.len() + item.path.as_bytes().len() + target + item.how.bytes() + 32
        };
        for part in in_messages(items, PER_MESSAGE, size) {
            self.send(ToMaster::Items(part));
        }
        // What takes most is still to come: what is of no more use makes room for it.
        self.missing.end();
        (self.outstanding, self.given) = (HashMap::default(), HashMap::default());
        self.state = State::Preparing;
        self.outputs.push_back(ReceiverOutput::Prepare);
    }
}

/// Why a content that one stream brings is not taken from another.
fn twice(path: &RelPath) -> Problem {
    let reason = "the content is on its way twice, and neither comes to its end".to_owned();
    Problem { path: Some(path.clone()), reason }
}

fn name(message: &ToReplica) -> &'static str {
    match message {
        ToReplica::Hello(_) => "hello",
        ToReplica::List(_) => "list",
        ToReplica::Offer(_) => "offer",
        ToReplica::Changes(_) => "changes",
        ToReplica::Restart(()) => "restart",
        ToReplica::Announce(_) => "announcement",
        ToReplica::Stretch(_) => "announcement of a stretch",
        ToReplica::Publish(_) => "publish",
        ToReplica::Unavailable(_) => "unavailable content",
        ToReplica::Holds(_) => "held paths",
        ToReplica::AsOffered(_) => "changes as offered",
        ToReplica::Describe(_) => "question about an old file",
        ToReplica::Touched(_) => "touched entries",
        ToReplica::Moved(_) => "moved directories",
        ToReplica::Draft(_) => "draft",
        ToReplica::Place(_) => "place of the source",
        ToReplica::Given(_) => "contents that nobody asked for",
    }
}
