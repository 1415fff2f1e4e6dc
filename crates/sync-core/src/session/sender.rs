//! The master's end of a push to one replica.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::offered::{Contents, Held};
use super::{Budget, ProtocolError};
use crate::chunk::{ChunkRef, Chunking};
use crate::diff::{Child, Difference, compare_children};
use crate::hash::Digest;
use crate::manifest::{Entry, Holds, Kind, Version, VersionId};
use crate::monitor::{Item, Problem};
use crate::path::RelPath;
use crate::wire::{
    Ack, Announce, Basis, Change, Describe, Described, Draft, FOLLOW, Given, Hello, Listing, MAX_DIRS, MAX_ENTRIES,
    MAX_ENTRY_BYTES, Moved, Offered, Parts, Refusal, Run, STRETCHES, Stand, ToMaster, ToReplica, Touched, Unavailable,
    Unhealed, Wanted, in_messages,
};

/// How many changes and how many offers go into one message at most.
const PER_MESSAGE: usize = 1024;

/// Most bytes of an offered file beside its path: digest, size, owner, mode, time.
const OFFERED: usize = 96;

/// Most notices in one session, and most drifts. A replica has a handful of occasions.
const NOTICES: u8 = 64;

/// Changes of a committed version that are published without another word, also by a replica that is not followed.
pub const FEW: u64 = 64;

/// A replica has few entries with no more than one for so many of a stretch.
const FEW_OF: u64 = 32;

/// What the driver tells the sender.
#[derive(Clone, Debug)]
pub enum SenderInput {
    /// A message from the replica.
    Received(ToMaster),
    /// Contents that were hashed and that the published version does not have at their paths.
    Hashed(Arc<Vec<Offered>>),
    /// What can be copied of a file that is being read.
    Draft(Draft),
    /// What the version will be. It may be prepared, not published yet.
    Decided {
        /// Which version.
        version: Version,
        /// Paths that could not be read.
        holds: Holds,
        /// Whether it is in the master's index already, because nothing changed.
        committed: bool,
        /// Whether what was offered are contents of the first entries of the tree, as of one that was looked at for the first time.
        /// Elsewhere they may be anywhere in it.
        offers_lead: bool,
    },
    /// The version is in the master's index; it may be published from here on.
    Committed,
    /// A part of the answer to a load; `done` on the last.
    Changes {
        /// Each path once.
        told: Told,
        /// Whether that load is answered.
        done: bool,
    },
    /// Answers [`Load::Since`]: the index knows no such version.
    UnknownVersion,
    /// Answers [`SenderOutput::LoadChildren`].
    Children {
        /// Which directory.
        dir: RelPath,
        /// The hash of its own entry; `None` if there is no such directory any more.
        own: Option<Digest>,
        /// Sorted by name.
        children: Vec<Child>,
    },
    /// The old file of a requested content must be known better before it can be sent. It has so many bytes.
    Describe(Describe, u64),
    /// A requested content cannot be sent.
    Unavailable {
        /// Which.
        seq: u64,
        /// Why.
        reason: String,
    },
}

/// Changes as they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// In full.
    pub changes: Vec<Change>,
    /// To metadata alone, in tree order. These and the next only answer [`Load::Since`], and only if that version is the
    /// one they were found against.
    pub touched: Vec<Touched>,
    /// By other names of directories.
    pub moved: Vec<Moved>,
    /// Contents of these changes that the replica is given without being asked, by digest.
    pub contents: Vec<(Digest, Vec<u8>)>,
}

impl Told {
    /// Whether something goes, or may lead elsewhere.
    pub fn takes_away(&self) -> bool {
        let stays = |entry: &Entry| matches!(entry.kind, Kind::File { .. } | Kind::Dir);
        !self.moved.is_empty() || !self.changes.iter().all(|change| change.entry.as_ref().is_some_and(stays))
    }
}

impl From<Vec<Change>> for Told {
    fn from(changes: Vec<Change>) -> Self {
        Self { changes, ..Self::default() }
    }
}

/// Entries to read from the master's index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Load {
    /// All that changed since a version.
    Since(VersionId),
    /// One entry.
    Entry(RelPath),
    /// An entry with all beneath it.
    Subtree(RelPath),
    /// An entry, and what comes after it in tree order; before these, what it lies in.
    Behind(RelPath),
}

/// A content the replica waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentRequest {
    /// Its number in this session.
    pub seq: u64,
    /// The file.
    pub file: Offered,
    /// The replica's old file.
    pub basis: Basis,
    /// The chunks of what an interrupted session left.
    pub part: Vec<ChunkRef>,
}

/// Something for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// An entry failed at the replica.
    Problem(Problem),
    /// An entry changed there.
    Item(Item),
    /// Worth a line.
    Notice(String),
    /// So many bytes were there of what an interrupted session had sent.
    Resumed(u64),
    /// Somebody else changed the replica's tree: bring it to the newest version, also if it has acknowledged that.
    Drifted,
    /// So much of what somebody else changed there is not undone, from here on.
    Unhealed(Unhealed),
}

/// How the session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Acknowledged. Whether the replica is identical is in `exact`.
    Acknowledged {
        /// The replica's last word.
        ack: Ack,
        /// Whether its root is the announced one.
        exact: bool,
    },
    /// A stretch of the tree is there, up to this path, and acknowledged; the next session goes on behind it.
    Reached(RelPath, Ack),
    /// The replica will not do it.
    Refused(Refusal),
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum SenderOutput {
    /// Send a control message.
    Send(ToReplica),
    /// Read these from the index, and answer with [`SenderInput::Changes`].
    Load(Load),
    /// Read a directory's children from the index.
    LoadChildren(RelPath),
    /// Send this content on a content stream.
    Content(ContentRequest),
    /// A part of the answer to [`SenderInput::Describe`].
    Described(Described),
    /// Tell a person.
    Report(Report),
    /// It is over.
    End(End),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The hello is sent, the version not announced yet.
    Opening,
    /// Changes are read from the index.
    Loading,
    /// Directory hashes lead to the differences.
    Descending,
    /// Waiting for the replica's plan.
    Announced,
    /// The replica is ready; the version is not in the master's index yet.
    Prepared,
    /// Waiting for the acknowledgement.
    Publishing,
    /// Nothing more is expected.
    Ended,
}

/// The state machine. Make it, then drain [`Sender::poll`] after every [`Sender::handle`].
#[derive(Debug)]
pub struct Sender {
    state: State,
    outputs: VecDeque<SenderOutput>,
    /// Files by their number in this session.
    contents: Contents,
    /// For problems and items.
    pub(super) budget: Budget,
    /// How many there were.
    notices: u8,
    drifts: u8,
    stand: Option<Stand>,
    version: Option<Version>,
    committed: bool,
    holds: Holds,
    /// Old files that were asked about, and how many chunks or pieces the answers may still hold.
    describing: HashMap<u64, u64>,
    /// How many contents were offered, as long as changes may refer to them: their numbers come first.
    offers: u64,
    /// Changes sent since the hello or the last restart.
    changes: u64,
    /// Loads that are not answered yet.
    loads: u64,
    /// Whether the changes came from a comparison of trees, not from the index alone.
    compared: bool,
    /// Whether the changes were told a second time.
    restarted: bool,
    dry_run: bool,
    follows: bool,
    /// Whether there may be another session behind this one.
    goes_on: bool,
    /// Whether the replica may refuse a plan because of what it deletes.
    has_limit: bool,
    /// Of how many changes a stretch has at least, if a tree that the replica has nothing of may be told in stretches.
    stretch: Option<u64>,
    /// How far the replica has come with that, as it says.
    reached: Option<RelPath>,
    /// Whether this one tells a tree in tree order that may be cut into stretches.
    is_cut: bool,
    /// As [`SenderInput::Decided`] says.
    offers_lead: bool,
    /// The last change that was told.
    told_to: Option<RelPath>,
    /// Whether a stretch was announced, and no version.
    is_stretch: bool,
    /// Directories to list, those asked for, and those waiting for our own children.
    frontier: Vec<RelPath>,
    listing: HashMap<RelPath, (Option<Digest>, Vec<Child>)>,
    asked: usize,
    /// For what is listed of those, with its names.
    pub(super) listed: Budget,
}

impl Sender {
    /// Opens a session with `hello`.
    pub fn new(hello: Hello) -> Self {
        let mut sender = Self::with(&hello);
        sender.send(ToReplica::Hello(hello));
        sender
    }

    /// A session behind one that ended well on the same stream. The replica takes it as opened with the same hello, and
    /// stands where it said with its acknowledgement.
    pub fn going_on(hello: &Hello, stand: Stand) -> Self {
        Self { stand: Some(stand), ..Self::with(hello) }
    }

    fn with(hello: &Hello) -> Self {
        let (dry_run, follows) = (hello.policy.dry_run, hello.features & FOLLOW != 0);
        let goes_on = hello.features & (FOLLOW | STRETCHES) != 0;
        Self {
            state: State::Opening,
            outputs: VecDeque::new(),
            contents: Contents::default(),
            budget: Budget::new(MAX_ENTRIES, u64::MAX),
            notices: 0,
            drifts: 0,
            stand: None,
            version: None,
            committed: false,
            holds: Holds::default(),
            describing: HashMap::new(),
            offers: 0,
            changes: 0,
            loads: 0,
            compared: false,
            restarted: false,
            dry_run,
            follows,
            goes_on,
            has_limit: hello.policy.max_delete.is_some(),
            stretch: None,
            reached: None,
            is_cut: false,
            offers_lead: false,
            told_to: None,
            is_stretch: false,
            frontier: Vec::new(),
            listing: HashMap::new(),
            asked: 0,
            listed: Budget::new(MAX_ENTRIES, MAX_ENTRY_BYTES),
        }
    }

    /// May tell a tree that the replica has nothing of in stretches, of so many changes or a few more, each in a session of
    /// its own.
    #[must_use]
    pub fn in_stretches(self, changes: u64) -> Self {
        // Of what may be refused as a whole nothing is published before all is known.
        let may = self.goes_on && !self.dry_run && !self.has_limit;
        Self { stretch: may.then_some(changes), ..self }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<SenderOutput> {
        self.outputs.pop_front()
    }

    /// Whether a stretch was announced, and no version.
    pub fn is_stretch(&self) -> bool {
        self.is_stretch
    }

    /// What the replica said it is at.
    pub fn stand(&self) -> Option<&Stand> {
        self.stand.as_ref()
    }

    /// Takes one input.
    ///
    /// # Errors
    /// [`ProtocolError`] if the replica said something that makes no sense now: the session is over.
    pub fn handle(&mut self, input: SenderInput) -> Result<(), ProtocolError> {
        if self.state == State::Ended {
            return Ok(());
        }
        match input {
            SenderInput::Received(message) => self.received(message)?,
            SenderInput::Hashed(files) => self.offer(files),
            // A hint is not worth a session: one that the replica would take for a breach is not sent.
            SenderInput::Draft(draft) => {
                if self.state == State::Opening && !self.dry_run && draft.validate().is_ok() {
                    self.send(ToReplica::Draft(draft));
                }
            }
            SenderInput::Decided { version, holds, committed, offers_lead } => {
                self.offers_lead = offers_lead;
                self.version = Some(version);
                self.holds = holds;
                self.committed = committed;
                if !self.restarted {
                    self.compare();
                }
            }
            SenderInput::Committed => {
                self.committed = true;
                self.publish_when_committed();
            }
            SenderInput::Changes { told, done } => self.loaded(told, done),
            SenderInput::UnknownVersion => {
                self.loads = self.loads.saturating_sub(1);
                self.descend();
            }
            SenderInput::Children { dir, own, children } => self.descended(&dir, own, &children),
            SenderInput::Describe(describe, old) => self.describe(describe, old),
            SenderInput::Unavailable { seq, reason } => {
                self.send(ToReplica::Unavailable(Unavailable { seq, reason }));
            }
        }
        Ok(())
    }

    fn send(&mut self, message: ToReplica) {
        self.outputs.push_back(SenderOutput::Send(message));
    }

    fn received(&mut self, message: ToMaster) -> Result<(), ProtocolError> {
        match (message, self.state) {
            (ToMaster::Problems(problems), _) => {
                self.budget.take(problems.len(), 0)?;
                self.outputs.extend(problems.into_iter().map(|p| SenderOutput::Report(Report::Problem(p))));
            }
            (ToMaster::Items(items), _) => {
                self.budget.take(items.len(), 0)?;
                self.outputs.extend(items.into_iter().map(|i| SenderOutput::Report(Report::Item(i))));
            }
            (ToMaster::Notice(_), _) if self.notices == NOTICES => {
                return Err(ProtocolError(format!("more than {NOTICES} notices in one session")));
            }
            (ToMaster::Notice(text), _) => {
                self.notices += 1;
                self.outputs.push_back(SenderOutput::Report(Report::Notice(text)));
            }
            (ToMaster::Resumed(bytes), _) => self.outputs.push_back(SenderOutput::Report(Report::Resumed(bytes))),
            (ToMaster::Refuse(refusal), _) => self.end(End::Refused(refusal)),
            (ToMaster::Reached(path), State::Opening) if self.stand.is_none() && self.reached.is_none() => {
                self.reached = Some(path);
            }
            (ToMaster::Stand(stand), State::Opening) if self.stand.is_none() => {
                self.stand = Some(stand);
                self.compare();
            }
            (ToMaster::Drifted(stand), state) if self.follows && self.stand.is_some() => {
                return self.drifted(stand, state);
            }
            (ToMaster::Unhealed(unhealed), _) if self.follows && self.stand.is_some() => {
                self.budget.take(1, 0)?;
                self.outputs.push_back(SenderOutput::Report(Report::Unhealed(unhealed)));
            }
            (ToMaster::Want(wants), _) => return self.wanted(wants),
            (ToMaster::Described(described), _) => return self.described(described),
            (ToMaster::Listing(listing), State::Descending) => return self.listed(listing),
            (ToMaster::Prepared(root), State::Announced) if !self.is_stretch => return self.prepared(root),
            // A plan without steps is acknowledged at once, and so is any whose version is committed.
            (ToMaster::Ack(ack), State::Announced) if self.committed || self.dry_run => return self.acknowledged(ack),
            (ToMaster::Ack(ack), State::Publishing) => return self.acknowledged(ack),
            (message, state) => return Err(ProtocolError(format!("unexpected {} while {state:?}", name(&message)))),
        }
        Ok(())
    }

    fn end(&mut self, end: End) {
        self.state = State::Ended;
        self.outputs.push_back(SenderOutput::End(end));
    }

    /// Offers contents ahead of the version.
    fn offer(&mut self, files: Arc<Vec<Offered>>) {
        if self.state == State::Opening && !self.dry_run && !files.is_empty() {
            for (i, file) in (0..).zip(&*files) {
                self.contents.number(&file.path, &file.digest, || Held::Together(Arc::clone(&files), i));
            }
            self.offers = self.contents.len();
            for part in in_messages(files.to_vec(), PER_MESSAGE, |file| file.path.as_bytes().len() + OFFERED) {
                self.send(ToReplica::Offer(part));
            }
        }
    }

    /// What was told meanwhile was told against another tree: the root that it leads to will show that, and the trees are
    /// compared then.
    fn drifted(&mut self, stand: Stand, state: State) -> Result<(), ProtocolError> {
        match state {
            _ if self.drifts == NOTICES => {
                return Err(ProtocolError(format!("more than {NOTICES} drifts in one session")));
            }
            State::Opening => self.stand = Some(stand),
            State::Loading | State::Announced if !self.restarted => self.compared = false,
            // The replica lists what it has by now.
            State::Descending => {}
            state => return Err(ProtocolError(format!("unexpected drift while {state:?}"))),
        }
        self.drifts += 1;
        self.outputs.push_back(SenderOutput::Report(Report::Drifted));
        Ok(())
    }

    /// Once both the replica's stand and the version are known: nothing, a diff by version, or a comparison of trees.
    fn compare(&mut self) {
        let (Some(stand), Some(version)) = (&self.stand, &self.version) else { return };
        if stand.root == version.root {
            self.compared = true;
            self.announce();
        } else if stand.entries == 0 {
            self.compared = true;
            self.tell_tree(Load::Subtree(RelPath::root()));
        } else if let Some(reached) = self.reached.clone().filter(|_| self.stretch.is_some() && stand.version.is_none())
        {
            // What came before may have failed in part, or be another version's by now: the root will tell.
            self.tell_tree(Load::Behind(reached));
        } else if self.has_nearly_nothing(stand) {
            // What else it has goes in the end, when the root tells of it.
            self.tell_tree(Load::Subtree(RelPath::root()));
        } else if let Some(known) = stand.version.filter(|known| *known != version.id()) {
            self.state = State::Loading;
            self.load(Load::Since(known));
        } else {
            self.descend();
        }
    }

    /// Whether a replica has so little, of no version, that a large tree may come to it in stretches as to one that has nothing:
    /// what an installation or a new file system puts there.
    fn has_nearly_nothing(&self, stand: &Stand) -> bool {
        let is_few = self.stretch.is_some_and(|most| stand.entries <= most / FEW_OF);
        is_few && stand.version.is_none() && stand.features & STRETCHES != 0
    }

    /// Tells the tree, or the rest of it, in tree order.
    fn tell_tree(&mut self, load: Load) {
        let takes = self.stand.as_ref().is_some_and(|stand| stand.features & STRETCHES != 0);
        // What is not in the index yet is not published either. Nor are contents left over that were offered: who has asked for them
        // would drop them with the stretch, and ask again.
        let fits = |most| self.offers == 0 || self.offers_lead && self.offers <= most;
        self.is_cut = takes && self.committed && self.stretch.is_some_and(fits);
        self.state = State::Loading;
        self.load(load);
    }

    fn load(&mut self, load: Load) {
        self.loads += 1;
        self.outputs.push_back(SenderOutput::Load(load));
    }

    fn loaded(&mut self, mut told: Told, done: bool) {
        let holds = &self.holds;
        self.told_to = told.changes.last().map(|change| change.path.clone()).or(self.told_to.take());
        told.changes.retain(|change| !holds.covers(&change.path));
        told.touched.retain(|touched| !holds.covers(&touched.path));
        self.emit_relative(told.moved, told.touched);
        self.emit(told.changes, told.contents);
        if done {
            self.loads = self.loads.saturating_sub(1);
        } else if self.is_cut && self.told_to > self.reached && self.stretch.is_some_and(|most| self.changes >= most) {
            return self.announce_stretch();
        }
        self.announce_when_complete();
    }

    /// Tells what the replica can make of what it has: no content is numbered for it.
    fn emit_relative(&mut self, moved: Vec<Moved>, touched: Vec<Touched>) {
        self.changes += (moved.len() + touched.len()) as u64;
        for part in in_messages(moved, PER_MESSAGE, Moved::size) {
            self.send(ToReplica::Moved(part));
        }
        for part in in_messages(touched, PER_MESSAGE, Touched::size) {
            self.send(ToReplica::Touched(part));
        }
    }

    fn emit(&mut self, mut changes: Vec<Change>, mut contents: Vec<(Digest, Vec<u8>)>) {
        self.changes += changes.len() as u64;
        self.emit_as_offered(&mut changes);
        let mut given = Vec::new();
        for change in &changes {
            let Some(entry) = change.entry.as_ref().filter(|entry| entry.needs_content()) else { continue };
            if let Some((size, digest)) = entry.content() {
                if let Some(i) = contents.iter().position(|(is, _)| *is == digest) {
                    let (_, content) = contents.swap_remove(i);
                    given.push(Given { seq: self.contents.len(), content });
                }
                let file = || {
                    let path = change.path.clone();
                    Held::Alone(Box::new(Offered { path, digest, size, likely: entry.metadata() }))
                };
                self.contents.number(&change.path, &digest, file);
            }
        }
        if !given.is_empty() {
            self.send(ToReplica::Given(given));
        }
        for part in in_messages(changes, PER_MESSAGE, Change::size) {
            self.send(ToReplica::Changes(part));
        }
    }

    /// Sends the numbers of those changes that an offer has told already, and takes them out.
    fn emit_as_offered(&mut self, changes: &mut Vec<Change>) {
        let mut runs: Vec<Run> = Vec::new();
        changes.retain(|Change { path, entry }| {
            let entry = entry.as_ref().filter(|entry| entry.needs_content());
            let offered = entry.and_then(|entry| self.contents.use_offer(self.offers, path, entry));
            let Some(seq) = offered else { return true };
            match runs.last_mut().filter(|run| run.first + u64::from(run.count) == seq) {
                Some(run) => run.count += 1,
                None => runs.push(Run { first: seq, count: 1 }),
            }
            false
        });
        for part in runs.chunks(PER_MESSAGE) {
            self.send(ToReplica::AsOffered(part.to_vec()));
        }
    }

    fn announce_when_complete(&mut self) {
        let waiting = self.loads > 0 || self.asked > 0 || !self.frontier.is_empty();
        if !waiting && matches!(self.state, State::Loading | State::Descending) {
            self.announce();
        }
    }

    /// What else is to be told is told in the next session.
    fn announce_stretch(&mut self) {
        if let Some(version) = self.version.clone() {
            (self.state, self.loads) = (State::Announced, 0);
            self.is_stretch = true;
            let (changes, contents) = (self.changes, self.contents.len());
            let holds = Vec::new();
            self.send(ToReplica::Stretch(Announce { holds, held: 0, version, changes, contents, committed: true }));
        }
    }

    fn announce(&mut self) {
        if let Some(version) = self.version.clone() {
            self.state = State::Announced;
            let all: Vec<RelPath> = self.holds.iter().cloned().collect();
            let (held, contents) = (all.len() as u64, self.contents.len());
            let mut parts = in_messages(all, PER_MESSAGE, |path| path.as_bytes().len() + 4);
            let holds = parts.pop().unwrap_or_default();
            for part in parts {
                self.send(ToReplica::Holds(part));
            }
            let changes = self.changes;
            // Of what takes long it is to be known when it begins.
            let committed = self.committed && (self.follows || changes <= FEW);
            // After a restart all changes are told in full.
            self.offers = 0;
            self.send(ToReplica::Announce(Announce { holds, held, version, changes, contents, committed }));
        }
    }

    /// Starts the comparison of the trees from the top.
    fn descend(&mut self) {
        (self.compared, self.is_cut) = (true, false);
        self.state = State::Descending;
        self.frontier = vec![RelPath::root()];
        self.ask();
    }

    fn ask(&mut self) {
        if self.asked == 0 && !self.frontier.is_empty() {
            let rest = self.frontier.split_off(self.frontier.len().min(MAX_DIRS));
            let mut dirs = std::mem::replace(&mut self.frontier, rest);
            dirs.sort();
            self.asked = dirs.len();
            self.listed = Budget::new(MAX_ENTRIES, MAX_ENTRY_BYTES);
            self.listing = dirs.iter().map(|dir| (dir.clone(), (None, Vec::new()))).collect();
            for part in in_messages(dirs, MAX_DIRS, |dir| dir.as_bytes().len() + 4) {
                self.send(ToReplica::List(part));
            }
        }
    }

    fn listed(&mut self, listing: Listing) -> Result<(), ProtocolError> {
        let Listing { dir, own, children, last } = listing;
        let Some((seen, so_far)) = self.listing.get_mut(&dir) else {
            return Err(ProtocolError(format!("a listing of {dir}, which was not asked for")));
        };
        let sorted = match (so_far.last(), children.first()) {
            (Some(before), Some(next)) => before.name < next.name,
            _ => true,
        };
        if !sorted {
            return Err(ProtocolError(format!("the listing of {dir} is not sorted")));
        }
        self.listed.take(children.len(), children.iter().map(|child| child.name.len()).sum())?;
        *seen = own;
        so_far.extend(children);
        if last {
            self.outputs.push_back(SenderOutput::LoadChildren(dir));
        }
        Ok(())
    }

    /// Our own children of a listed directory are there: compare.
    fn descended(&mut self, dir: &RelPath, own: Option<Digest>, ours: &[Child]) {
        let Some((theirs_own, theirs)) = self.listing.remove(dir) else { return };
        self.asked = self.asked.saturating_sub(1);
        if dir.is_root() && own != theirs_own {
            self.load(Load::Entry(RelPath::root()));
        }
        let mut deletes = Vec::new();
        for difference in compare_children(ours, &theirs) {
            // Our children come from our index and theirs were validated: joining cannot fail but for the length.
            match difference {
                Difference::OnlyLeft(child) if child.is_dir => self.load_at(dir, child, Load::Subtree),
                Difference::OnlyLeft(child) => self.load_at(dir, child, Load::Entry),
                Difference::OnlyRight(child) => deletes.extend(dir.join(&child.name)),
                Difference::Changed { left, right } if left.is_dir && !right.is_dir => {
                    self.load_at(dir, left, Load::Subtree);
                }
                Difference::Changed { left, .. } => self.load_at(dir, left, Load::Entry),
                Difference::Descend { left, .. } => self.frontier.extend(dir.join(&left.name)),
            }
        }
        let deletes: Vec<Change> = deletes.into_iter().map(|path| Change { path, entry: None }).collect();
        self.loaded(deletes.into(), false);
        self.ask();
        self.announce_when_complete();
    }

    fn load_at(&mut self, dir: &RelPath, child: &Child, load: fn(RelPath) -> Load) {
        if let Ok(path) = dir.join(&child.name) {
            self.load(load(path));
        }
    }

    fn wanted(&mut self, wants: Vec<Wanted>) -> Result<(), ProtocolError> {
        for Wanted { seq, basis, part } in wants {
            let file = self.contents.want(seq).map_err(ProtocolError)?;
            if part.len() as u64 > Chunking::for_size(file.size).most_chunks(file.size) {
                return Err(ProtocolError(format!("a part of content {seq} has more chunks than the whole can have")));
            }
            self.outputs.push_back(SenderOutput::Content(ContentRequest { seq, file, basis, part }));
        }
        Ok(())
    }

    fn describe(&mut self, describe: Describe, old: u64) {
        self.describing.insert(describe.seq, describe.most_parts(old));
        self.send(ToReplica::Describe(describe));
    }

    fn described(&mut self, described: Described) -> Result<(), ProtocolError> {
        let seq = described.seq;
        let Some(left) = self.describing.get_mut(&seq) else {
            return Err(ProtocolError(format!("the old file of content {seq} is described, and nobody asked")));
        };
        let parts = match &described.parts {
            Parts::Chunks(chunks) => chunks.len(),
            Parts::Pieces(pieces) => pieces.list.len(),
            Parts::Gone => 0,
        };
        *left = left.checked_sub(parts as u64).ok_or_else(|| {
            ProtocolError(format!("the old file of content {seq} is described by more parts than it can have"))
        })?;
        if described.done {
            self.describing.remove(&seq);
        }
        self.outputs.push_back(SenderOutput::Described(described));
        Ok(())
    }

    fn prepared(&mut self, root: Digest) -> Result<(), ProtocolError> {
        let Some(version) = &self.version else { return Ok(()) };
        if root == version.root {
            self.state = State::Prepared;
            self.publish_when_committed();
        } else if self.compared {
            // Both sides compared every differing directory and still disagree: no diff of ours will mend that.
            return Err(ProtocolError("the replica's tree does not add up to the announced root".to_owned()));
        } else {
            self.changes = 0;
            self.restarted = true;
            self.send(ToReplica::Restart(()));
            self.descend();
        }
        Ok(())
    }

    /// No replica may stand at a version that a crash can make this index forget.
    fn publish_when_committed(&mut self) {
        if let (State::Prepared, true, Some(version)) = (self.state, self.committed, &self.version) {
            let id = version.id();
            self.state = State::Publishing;
            self.send(ToReplica::Publish(id));
        }
    }

    fn acknowledged(&mut self, ack: Ack) -> Result<(), ProtocolError> {
        let Some(version) = &self.version else { return Ok(()) };
        if ack.version != version.id() {
            return Err(ProtocolError("an acknowledgement of another version".to_owned()));
        }
        if self.is_stretch {
            let last = self.told_to.take().unwrap_or_default();
            self.end(End::Reached(last, ack));
            return Ok(());
        }
        let exact = ack.root == version.root;
        self.end(End::Acknowledged { ack, exact });
        Ok(())
    }
}

fn name(message: &ToMaster) -> &'static str {
    match message {
        ToMaster::Stand(_) => "stand",
        ToMaster::Listing(_) => "listing",
        ToMaster::Want(_) => "want",
        ToMaster::Prepared(_) => "prepared",
        ToMaster::Ack(_) => "acknowledgement",
        ToMaster::Problems(_) => "problems",
        ToMaster::Items(_) => "items",
        ToMaster::Notice(_) => "notice",
        ToMaster::Resumed(_) => "resumed bytes",
        ToMaster::Drifted(_) => "drift",
        ToMaster::Unhealed(_) => "drift that stays",
        ToMaster::Refuse(_) => "refusal",
        ToMaster::Described(_) => "description of an old file",
        ToMaster::Reached(_) => "path that was reached",
    }
}
