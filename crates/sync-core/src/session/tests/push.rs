//! One push as a deterministic program: a master, its replicas, and the messages between them, advanced step by step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::disk::Disk;
use super::master::{Committed, Master};
use super::replica::{Opened, Replica};
use crate::chunk::pieces::{Form, Pieces, small};
use crate::hash::Digest;
use crate::monitor::{Item, Problem};
use crate::options::Policy;
use crate::path::RelPath;
use crate::session::{
    ContentRequest, End, Load, ProtocolError, Receiver, ReceiverInput, ReceiverOutput, Report, Sender, SenderInput,
    SenderOutput, Settled, Told,
};
use crate::wire::{
    Basis, Change, Describe, Described, Envelope, FOLLOW, Hello, MAX_MESSAGE, Offered, Parts, Stand, ToMaster,
    ToReplica,
};

/// Everything that survives sessions.
#[derive(Clone, Debug)]
pub struct World {
    pub master: Master,
    pub replicas: Vec<Replica>,
    pub policy: Policy,
    pub faults: Faults,
    /// Whether the next session goes on behind one that ended well on the same stream: nobody says hello, the master knows
    /// the stand, and has published what it tells.
    pub goes_on: bool,
    /// Versions are published before anybody hears of them, and a tree that a replica has nothing of is told in stretches of so
    /// many changes, each in a session.
    pub stretch: Option<u64>,
}

/// What goes wrong with contents on their way.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Contents that were asked for with a basis arrive wrong: a false match of chunks.
    pub false_matches: bool,
    /// Contents of these paths always arrive wrong.
    pub torn: BTreeSet<RelPath>,
    /// These cannot be read any more when they are asked for.
    pub unavailable: BTreeSet<RelPath>,
    /// How often each of these still cannot be stored.
    pub unstorable: BTreeMap<RelPath, u32>,
    /// Not one: contents of changes that the index tells are given without being asked for.
    pub gives: bool,
}

impl World {
    pub fn new(replicas: usize) -> Self {
        Self {
            master: Master::new(),
            replicas: (0..replicas).map(|_| Replica::new()).collect(),
            policy: Policy::default(),
            faults: Faults::default(),
            goes_on: false,
            stretch: None,
        }
    }

    pub fn source(&mut self) -> &mut Disk {
        &mut self.master.disk
    }

    /// A whole push without trouble; of several sessions the last.
    pub fn push(&mut self) -> Vec<Outcome> {
        let mut outcomes = Push::new(self).run(self, &mut in_order);
        while let [Outcome { end: Some(End::Reached(..)), .. }] = &*outcomes {
            outcomes = Push::new(self).run(self, &mut in_order);
        }
        outcomes
    }

    /// A whole push that must leave every replica exact, and say so.
    pub fn push_exactly(&mut self) -> Vec<Outcome> {
        let outcomes = self.push();
        for (i, outcome) in outcomes.iter().enumerate() {
            assert!(outcome.is_exact(), "replica {i}: {outcome:#?}");
            assert_eq!(outcome.problems, [], "replica {i}");
        }
        outcomes
    }

    /// Whether a replica is what the master's reader sees, extras and held paths aside.
    pub fn is_identical(&self, replica: usize) -> bool {
        let wanted = self.master.entries();
        let replica = &self.replicas[replica];
        let extra = |path: &RelPath| self.policy.no_delete && !wanted.contains_key(path);
        wanted == replica.disk.entries(|path| !self.master.holds.covers(path) && !extra(path))
    }
}

/// How a session ended, and what it took.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub end: Option<End>,
    /// Why it broke, on either side.
    pub error: Option<String>,
    pub problems: Vec<Problem>,
    pub items: Vec<Item>,
    pub to_replica: usize,
    pub to_master: usize,
    /// Changes, and of those the ones that were not told by the number of an offer.
    pub changes: usize,
    pub in_full: usize,
    /// Those that were told against the replica's version.
    pub touched: usize,
    pub moved: usize,
    pub lists: usize,
    pub restarts: usize,
    /// Requests for content, and of those the ones that came with a basis.
    pub wants: usize,
    pub wants_with_basis: usize,
}

impl Outcome {
    pub fn is_exact(&self) -> bool {
        matches!(self.end, Some(End::Acknowledged { exact: true, .. }))
    }

    pub fn problem_paths(&self) -> Vec<String> {
        self.problems.iter().filter_map(|p| p.path.as_ref().map(RelPath::display)).collect()
    }
}

/// A push under way.
#[derive(Debug)]
pub struct Push {
    source: VecDeque<SourceEvent>,
    committed: Option<Committed>,
    links: Vec<Link>,
}

#[derive(Clone, Debug)]
enum SourceEvent {
    Hashed(Vec<Offered>),
    /// What the version will be.
    Decide,
    /// It is in the index.
    Commit,
}

/// One thing that may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The source hashed something, or is committed.
    Source,
    /// A message from the master arrives.
    ToReplica(usize),
    /// A message from the replica arrives.
    ToMaster(usize),
    /// A content arrives.
    Content(usize),
    /// The replica's driver carries out what the receiver wants.
    Work(usize),
}

/// Always the first that can happen.
pub fn in_order(steps: &[Step]) -> Step {
    steps[0]
}

/// Anything that can happen, by the numbers of a xorshift generator.
pub fn at_random(seed: u64) -> impl FnMut(&[Step]) -> Step {
    let mut state = seed | 1;
    move |steps| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        steps[(state % steps.len() as u64) as usize]
    }
}

/// One session.
#[derive(Debug)]
struct Link {
    replica: usize,
    sender: Sender,
    receiver: Receiver,
    to_replica: VecDeque<ToReplica>,
    to_master: VecDeque<ToMaster>,
    contents: VecDeque<(u64, Vec<u8>)>,
    /// Requests whose old files the replica was asked about.
    asked: BTreeMap<u64, ContentRequest>,
    /// What is told when nothing else is to do, and whether the last of it ends an answer.
    telling: VecDeque<(Told, bool)>,
    work: VecDeque<ReceiverOutput>,
    opened: Option<Opened>,
    /// The receiver said that it is over.
    finished: bool,
    cut: bool,
    /// The version is in the master's index.
    committed: bool,
    /// Where the master knows that the replica stands, if the session goes on behind another.
    known: Option<Stand>,
    /// Whether no content is sent, only found out about.
    estimates: bool,
    outcome: Outcome,
}

impl Push {
    pub fn new(world: &World) -> Self {
        let is_published = world.goes_on || world.stretch.is_some();
        let offers = if is_published { Vec::new() } else { world.master.look() };
        let mut source: VecDeque<_> = offers.chunks(2).map(|files| SourceEvent::Hashed(files.to_vec())).collect();
        source.push_back(SourceEvent::Decide);
        source.extend((!is_published).then_some(SourceEvent::Commit));
        let link = |(i, replica): (usize, &Replica)| {
            let known = world.goes_on.then(|| replica.acknowledged(&world.policy));
            let mut link = Link::new(i, world.policy.clone(), known);
            link.committed = is_published;
            if let Some(most) = world.stretch {
                let none = Hello { features: 0, share: String::new(), policy: Policy::default() };
                link.sender = std::mem::replace(&mut link.sender, Sender::new(none)).in_stretches(most);
            }
            link
        };
        let links = world.replicas.iter().enumerate().map(link).collect();
        let mut push = Self { source, committed: None, links };
        for link in &mut push.links {
            link.drain(&world.master, &world.faults, None);
        }
        push
    }

    /// What can happen next, most urgent first; nothing if every session is over.
    pub fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut open = false;
        for link in self.links.iter().filter(|link| !link.is_over()) {
            open = true;
            let i = link.replica;
            let ready = [
                (!link.work.is_empty(), Step::Work(i)),
                (!link.contents.is_empty() && link.opened.is_some(), Step::Content(i)),
                // A driver is done with one message before it takes the next.
                (!link.to_replica.is_empty() && link.work.is_empty() && !link.finished, Step::ToReplica(i)),
                (!link.to_master.is_empty(), Step::ToMaster(i)),
            ];
            steps.extend(ready.into_iter().filter(|(ready, _)| *ready).map(|(_, step)| step));
        }
        if open && !self.source.is_empty() {
            steps.push(Step::Source);
        }
        steps
    }

    pub fn step(&mut self, world: &mut World, step: Step) {
        let World { master, replicas, faults, .. } = world;
        match step {
            Step::Source => self.source_step(master, faults),
            Step::Work(i) => self.links[i].work(&mut replicas[i]),
            Step::Content(i) => self.links[i].content(&mut replicas[i], faults),
            Step::ToReplica(i) => {
                let message = self.links[i].to_replica.pop_front().unwrap();
                self.links[i].at_replica(message);
            }
            Step::ToMaster(i) => {
                let message = self.links[i].to_master.pop_front().unwrap();
                self.links[i].at_master(message);
                self.links[i].drain(master, faults, self.committed.as_ref());
            }
        }
    }

    fn source_step(&mut self, master: &mut Master, faults: &Faults) {
        let event = self.source.pop_front().unwrap();
        if matches!(event, SourceEvent::Decide) {
            self.committed = Some(master.commit());
        }
        for link in self.links.iter_mut().filter(|link| !link.is_over()) {
            let input = match (&event, &self.committed) {
                (SourceEvent::Decide, Some(Committed { version, holds, known, .. })) => {
                    link.committed |= *known;
                    let committed = link.committed;
                    SenderInput::Decided {
                        version: version.clone(),
                        holds: holds.clone(),
                        committed,
                        offers_lead: true,
                    }
                }
                (SourceEvent::Hashed(files), _) => SenderInput::Hashed(Arc::new(files.clone())),
                (SourceEvent::Decide, None) => unreachable!(),
                (SourceEvent::Commit, _) => {
                    link.committed = true;
                    SenderInput::Committed
                }
            };
            link.tell_sender(input);
            link.drain(master, faults, self.committed.as_ref());
        }
    }

    /// The message that this step would deliver arrives twice.
    pub fn duplicate(&mut self, step: Step) -> bool {
        match step {
            Step::ToReplica(i) => {
                let message = self.links[i].to_replica[0].clone();
                self.links[i].to_replica.push_front(message);
            }
            Step::ToMaster(i) => {
                let message = self.links[i].to_master[0].clone();
                self.links[i].to_master.push_front(message);
            }
            Step::Content(i) => {
                let content = self.links[i].contents[0].clone();
                self.links[i].contents.push_front(content);
            }
            Step::Source | Step::Work(_) => return false,
        }
        true
    }

    /// Somebody changed the disk of a replica that waits, and it has noticed; says whether it was waiting.
    pub fn drift(&mut self, i: usize, replica: &mut Replica) -> bool {
        let link = &mut self.links[i];
        let Some(opened) = link.opened.as_mut().filter(|_| link.receiver.is_waiting()) else { return false };
        let (again, stand) = replica.open(opened.policy.clone());
        *opened = again;
        link.tell_receiver(ReceiverInput::Drifted(stand));
        link.collect();
        true
    }

    /// The connection is gone: what the replica is in the middle of, it finishes; what it verified may be kept.
    pub fn cut(&mut self, i: usize, replica: &mut Replica, keep: bool) {
        let link = &mut self.links[i];
        link.cut = true;
        while link.error_free() && matches!(link.work.front(), Some(ReceiverOutput::Publish)) {
            link.work(replica);
        }
        if !keep {
            replica.staged.clear();
        }
    }

    pub fn run(mut self, world: &mut World, choose: &mut dyn FnMut(&[Step]) -> Step) -> Vec<Outcome> {
        let mut count = 0;
        loop {
            let steps = self.steps();
            if steps.is_empty() {
                return self.conclude(world);
            }
            let step = choose(&steps);
            self.step(world, step);
            count += 1;
            assert!(count < 100_000, "the session does not end");
        }
    }

    /// Checks what must hold however a session ended.
    pub fn conclude(self, world: &World) -> Vec<Outcome> {
        for link in &self.links {
            let i = link.replica;
            let over = link.is_over();
            assert!(over, "replica {i}: the session hangs: {link:#?}");
            world.replicas[i].assert_rows_are_facts();
            if link.outcome.is_exact() && !world.policy.dry_run {
                assert!(
                    world.is_identical(i),
                    "replica {i} says exact and is not:\n{:#?}\n{:#?}",
                    world.master.entries(),
                    world.replicas[i].disk.entries(|_| true)
                );
            }
        }
        self.links.into_iter().map(|link| link.outcome).collect()
    }
}

impl Link {
    fn new(replica: usize, policy: Policy, known: Option<Stand>) -> Self {
        let estimates = policy.dry_run && policy.estimate;
        let hello = Hello { features: FOLLOW, share: "www".to_owned(), policy };
        let mut receiver = Receiver::new();
        let (sender, work) = match &known {
            None => (Sender::new(hello), VecDeque::new()),
            // The hello of the session before holds for this one.
            Some(stand) => {
                let sender = Sender::going_on(&hello, stand.clone());
                receiver.handle(ReceiverInput::Received(ToReplica::Hello(hello))).unwrap();
                (sender, std::iter::from_fn(|| receiver.poll()).collect())
            }
        };
        Self {
            replica,
            estimates,
            sender,
            receiver,
            known,
            to_replica: VecDeque::new(),
            to_master: VecDeque::new(),
            contents: VecDeque::new(),
            asked: BTreeMap::new(),
            telling: VecDeque::new(),
            work,
            opened: None,
            finished: false,
            cut: false,
            committed: false,
            outcome: Outcome::default(),
        }
    }

    fn error_free(&self) -> bool {
        self.outcome.error.is_none()
    }

    fn is_over(&self) -> bool {
        self.cut || self.outcome.end.is_some() || self.outcome.error.is_some()
    }

    fn check<T>(&mut self, result: Result<T, ProtocolError>) {
        if let Err(error) = result {
            self.outcome.error = Some(error.to_string());
        }
    }

    fn tell_sender(&mut self, input: SenderInput) {
        let result = self.sender.handle(input);
        self.check(result);
    }

    fn tell_receiver(&mut self, input: ReceiverInput) {
        let result = self.receiver.handle(input);
        self.check(result);
    }

    fn at_master(&mut self, message: ToMaster) {
        self.outcome.to_master += 1;
        let envelope = message.encode();
        assert!(envelope.body.len() <= MAX_MESSAGE);
        let decoded = ToMaster::decode(envelope.kind, envelope.version, &envelope.body).unwrap();
        assert_eq!(decoded.as_ref(), Some(&message));
        self.tell_sender(SenderInput::Received(message));
    }

    fn at_replica(&mut self, message: ToReplica) {
        self.outcome.to_replica += 1;
        match &message {
            ToReplica::Changes(changes) => {
                self.outcome.changes += changes.len();
                self.outcome.in_full += changes.len();
            }
            ToReplica::AsOffered(runs) => {
                self.outcome.changes += runs.iter().map(|run| run.count as usize).sum::<usize>();
            }
            ToReplica::Touched(touched) => {
                self.outcome.changes += touched.len();
                self.outcome.touched += touched.len();
            }
            ToReplica::Moved(moved) => {
                self.outcome.changes += moved.len();
                self.outcome.moved += moved.len();
            }
            ToReplica::List(_) => self.outcome.lists += 1,
            ToReplica::Restart(()) => self.outcome.restarts += 1,
            _ => {}
        }
        let envelope = message.encode();
        assert!(envelope.body.len() <= MAX_MESSAGE);
        let decoded = ToReplica::decode(envelope.kind, envelope.version, &envelope.body).unwrap();
        assert_eq!(decoded.as_ref(), Some(&message));
        self.tell_receiver(ReceiverInput::Received(message));
        self.collect();
    }

    /// The master's driver: carries out what the sender wants, until it wants nothing.
    fn drain(&mut self, master: &Master, faults: &Faults, committed: Option<&Committed>) {
        while let Some(output) = self.next_output() {
            match output {
                SenderOutput::Send(message) => {
                    if matches!(message, ToReplica::Announce(_) | ToReplica::Stretch(_)) {
                        self.telling.clear();
                    }
                    assert!(self.committed || !matches!(message, ToReplica::Publish(_)), "published too early");
                    let Envelope { kind, version, body } = message.encode();
                    assert_eq!(ToReplica::decode(kind, version, &body).as_ref(), Ok(&Some(message.clone())));
                    self.to_replica.push_back(message);
                }
                SenderOutput::Load(load) => self.load(master, faults, &load),
                SenderOutput::LoadChildren(dir) => {
                    let (own, children) = master.children(committed.unwrap(), &dir);
                    self.tell_sender(SenderInput::Children { dir, own, children });
                }
                SenderOutput::Content(request) => match request.basis {
                    Basis::File { size, .. } => {
                        let (seq, ranges) = (request.seq, vec![(0, size.max(1))]);
                        self.asked.insert(seq, request);
                        self.tell_sender(SenderInput::Describe(Describe { seq, pieces: Some(small()), ranges }, size));
                    }
                    _ => self.send_content(master, faults, &request),
                },
                SenderOutput::Described(Described { seq, done, .. }) => {
                    if done {
                        let request = self.asked.remove(&seq).expect("an answer that nobody waits for");
                        self.send_content(master, faults, &request);
                    }
                }
                SenderOutput::Report(Report::Problem(problem)) => self.outcome.problems.push(problem),
                SenderOutput::Report(Report::Item(item)) => self.outcome.items.push(item),
                SenderOutput::Report(
                    Report::Notice(_) | Report::Resumed(_) | Report::Drifted | Report::Unhealed(_),
                ) => {}
                SenderOutput::End(end) => self.outcome.end = Some(end),
            }
        }
    }

    /// Changes are told some at a time, when nothing else is to do.
    fn next_output(&mut self) -> Option<SenderOutput> {
        loop {
            if let Some(output) = self.sender.poll() {
                return Some(output);
            }
            let (told, done) = self.telling.pop_front()?;
            self.tell_sender(SenderInput::Changes { told, done });
        }
    }

    /// In parts of three, as a big index answers.
    fn load(&mut self, master: &Master, faults: &Faults, load: &Load) {
        let Some(Told { changes, touched, moved, .. }) = master.load(load) else {
            return self.tell_sender(SenderInput::UnknownVersion);
        };
        let given = |told: &Told| -> Vec<(Digest, Vec<u8>)> {
            let contents = told.changes.iter().filter(|_| faults.gives).filter_map(|Change { path, entry }| {
                let (size, digest) = entry.as_ref()?.content()?;
                let likely = entry.as_ref()?.metadata();
                let mut content = master.read(&Offered { path: path.clone(), digest, size, likely })?;
                if faults.torn.contains(path) {
                    content.push(b'!');
                }
                Some((digest, content))
            });
            contents.collect()
        };
        let mut parts = VecDeque::from([Told { moved, ..Told::default() }]);
        parts.extend(touched.chunks(3).map(|part| Told { touched: part.to_vec(), ..Told::default() }));
        parts.extend(changes.chunks(3).map(|part| part.to_vec().into()));
        while let Some(mut told) = parts.pop_front() {
            told.contents = given(&told);
            self.telling.push_back((told, parts.is_empty()));
        }
    }

    fn send_content(&mut self, master: &Master, faults: &Faults, request: &ContentRequest) {
        let ContentRequest { seq, file, basis, .. } = request;
        self.outcome.wants += 1;
        self.outcome.wants_with_basis += usize::from(*basis != Basis::None);
        if self.estimates {
            let reason = "nothing is sent".to_owned();
            return self.tell_sender(SenderInput::Unavailable { seq: *seq, reason });
        }
        match master.read(file).filter(|_| !faults.unavailable.contains(&file.path)) {
            None => {
                let reason = "it changed while it was sent".to_owned();
                let problem = Problem { path: Some(file.path.clone()), reason: reason.clone() };
                self.outcome.problems.push(problem);
                self.tell_sender(SenderInput::Unavailable { seq: *seq, reason });
            }
            Some(mut content) => {
                if faults.torn.contains(&file.path) || (faults.false_matches && *basis != Basis::None) {
                    content.push(b'!');
                }
                self.contents.push_back((*seq, content));
            }
        }
    }

    /// Takes what the receiver wants: messages go off at once, the rest is work.
    fn collect(&mut self) {
        while let Some(output) = self.receiver.poll() {
            match output {
                ReceiverOutput::Send(message) => {
                    let Envelope { kind, version, body } = message.encode();
                    assert_eq!(ToMaster::decode(kind, version, &body).as_ref(), Ok(&Some(message.clone())));
                    self.to_master.push_back(message);
                }
                ReceiverOutput::End => self.finished = true,
                output => self.work.push_back(output),
            }
        }
    }

    /// The replica's driver carries out one thing. Publishing goes name by name.
    fn work(&mut self, replica: &mut Replica) {
        let output = self.work.front().unwrap().clone();
        if output != ReceiverOutput::Publish {
            self.work.pop_front();
        }
        match (output, self.opened.as_mut()) {
            (ReceiverOutput::Open(hello, _), _) => {
                let (opened, stand) = replica.open(hello.policy);
                self.opened = Some(opened);
                let reached = replica.reached.as_ref().filter(|(_, root)| self.known.is_none() && *root == stand.root);
                if let Some((path, _)) = reached {
                    self.tell_receiver(ReceiverInput::Reached(path.clone()));
                }
                match &self.known {
                    None => self.tell_receiver(ReceiverInput::Opened(stand)),
                    Some(known) => {
                        let is_other = (known.version, known.root) != (stand.version, stand.root);
                        self.tell_receiver(ReceiverInput::Reopened);
                        if is_other {
                            self.tell_receiver(ReceiverInput::Drifted(stand));
                        }
                    }
                }
            }
            (ReceiverOutput::Describe(Describe { seq, .. }), Some(_)) => {
                let none = Pieces { form: Form::of_ranges(1), list: Vec::new() };
                for (parts, done) in [(Parts::Pieces(none), false), (Parts::Gone, true)] {
                    self.tell_receiver(ReceiverInput::Described(Described { seq, parts, done }));
                }
            }
            (ReceiverOutput::List(dirs), Some(opened)) => {
                let listings: Vec<_> = dirs.iter().flat_map(|dir| replica.list(opened, dir)).collect();
                for listing in listings {
                    self.tell_receiver(ReceiverInput::Listed(listing));
                }
            }
            (ReceiverOutput::Consider(first, files), Some(opened)) => {
                let wants = replica.consider(opened, first, files);
                self.tell_receiver(ReceiverInput::Considered(wants));
            }
            (ReceiverOutput::Take(seq, content), Some(_)) => self.contents.push_back((seq, content)),
            (ReceiverOutput::Fetch(files), Some(opened)) => {
                let wants = replica.fetch(opened, files);
                self.tell_receiver(ReceiverInput::Considered(wants));
            }
            (ReceiverOutput::Expand(moved, touched), Some(opened)) => {
                let changes = replica.expand(opened, &moved, touched);
                self.tell_receiver(ReceiverInput::Expanded(changes));
            }
            (ReceiverOutput::Guard(announce, changes), Some(opened)) => {
                let guarded = replica.guard(opened, announce, &changes);
                self.tell_receiver(guarded.map_or_else(ReceiverInput::Refuse, ReceiverInput::Guarded));
            }
            (ReceiverOutput::Plan(announce, changes), Some(opened)) => {
                opened.last = self.receiver.is_stretch().then(|| changes.keys().next_back().cloned()).flatten();
                let input = match replica.plan(opened, announce, &changes) {
                    Ok((root, items, missing)) => ReceiverInput::Planned { root, items, missing, changes },
                    Err(refusal) => ReceiverInput::Refuse(refusal),
                };
                self.tell_receiver(input);
            }
            (ReceiverOutput::Discard, Some(opened)) => Replica::discard(opened),
            (ReceiverOutput::Prepare, Some(opened)) => {
                let (ack, problems) = replica.prepare(opened);
                self.tell_problems(problems);
                self.tell_receiver(ReceiverInput::Prepared(ack));
            }
            (ReceiverOutput::Publish, Some(opened)) => {
                let (ack, problems) = replica.publish(opened);
                self.tell_problems(problems);
                if let Some(ack) = ack {
                    self.work.pop_front();
                    self.tell_receiver(ReceiverInput::Published(ack));
                }
            }
            (output, _) => panic!("{output:?} before the share is open"),
        }
        self.collect();
    }

    fn tell_problems(&mut self, problems: Vec<Problem>) {
        if !problems.is_empty() {
            self.tell_receiver(ReceiverInput::Problems(problems));
        }
    }

    fn content(&mut self, replica: &mut Replica, faults: &mut Faults) {
        let (seq, content) = self.contents.pop_front().unwrap();
        let path = self.opened.as_ref().and_then(|opened| opened.expects(seq)).cloned();
        if let Some((path, left)) = path.and_then(|path| Some((path.clone(), faults.unstorable.get_mut(&path)?)))
            && *left > 0
        {
            *left -= 1;
            let problem = Problem { path: Some(path), reason: "no space left".to_owned() };
            self.tell_receiver(ReceiverInput::Settled(seq, Settled::Failed(problem)));
            return self.collect();
        }
        match replica.take(self.opened.as_ref().unwrap(), seq, content) {
            None => self.outcome.error = Some(format!("content {seq} came without being asked for")),
            Some(good) => {
                let settled = if good { Settled::Staged } else { Settled::Mismatch };
                self.tell_receiver(ReceiverInput::Settled(seq, settled));
                self.collect();
            }
        }
    }
}
