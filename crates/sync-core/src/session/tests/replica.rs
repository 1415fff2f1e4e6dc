//! A model of the replica's side: a disk, an index, and the driver that carries out what a receiver wants.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use super::disk::Disk;
use super::master::{children, hash};
use crate::diff;
use crate::hash::Digest;
use crate::manifest::{Entry, Holds, Refused, Row, TreeHash, VersionId};
use crate::monitor::{Item, Problem};
use crate::options::Policy;
use crate::path::RelPath;
use crate::plan::{Action, Changes, Plan, Situation, Step, decide, take_out_stale_links};
use crate::relative;
use crate::wire::{
    Ack, Announce, Basis, Change, Listing, Moved, Offered, Refusal, ReplicaStats, STRETCHES, Stand, Touched, Wanted,
};

/// What survives a crash.
#[derive(Clone, Debug)]
pub struct Replica {
    pub disk: Disk,
    pub rows: BTreeMap<RelPath, Row>,
    pub stand: Option<VersionId>,
    /// Verified contents in the staging directory, by digest.
    pub staged: BTreeMap<Digest, Vec<u8>>,
    /// Contents that seem to be there and are not.
    pub mistaken: HashSet<Digest>,
    /// How far a tree came that was told in stretches, and the root then.
    pub reached: Option<(RelPath, Digest)>,
}

/// What a session knows, and a crash forgets.
#[derive(Clone, Debug)]
pub struct Opened {
    pub policy: Policy,
    tree: TreeHash,
    asked: HashSet<Digest>,
    expected: HashMap<u64, Offered>,
    application: Option<Application>,
    /// The last path of a stretch.
    pub last: Option<RelPath>,
}

#[derive(Clone, Debug)]
struct Application {
    announce: Announce,
    plan: Plan,
    root: Digest,
    failed: BTreeSet<RelPath>,
    done: BTreeSet<RelPath>,
    /// The inode that waits for each path.
    waiting: BTreeMap<RelPath, u64>,
    /// Inodes whose `ctime` we moved ourselves.
    ours: BTreeSet<u64>,
    /// What publishing still has to do; each is one step in which a crash may come.
    todo: VecDeque<Todo>,
    problems: Vec<Problem>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Todo {
    Place(usize),
    Delete(usize),
    Metadata(usize),
    Conclude,
}

impl Opened {
    /// The path of a content that was asked for.
    pub fn expects(&self, seq: u64) -> Option<&RelPath> {
        self.expected.get(&seq).map(|file| &file.path)
    }
}

impl Replica {
    pub fn new() -> Self {
        Self {
            disk: Disk::new(),
            rows: BTreeMap::new(),
            stand: None,
            staged: BTreeMap::new(),
            mistaken: HashSet::new(),
            reached: None,
        }
    }

    fn visible(&self, policy: &Policy) -> impl Iterator<Item = (&RelPath, &Entry)> {
        let no_delete = policy.no_delete;
        self.rows.values().filter(move |row| !(row.extra && no_delete)).map(|row| (&row.path, &row.entry))
    }

    /// A stat walk beside the rows: a row whose tuple is on disk is believed, anything else is read.
    pub fn open(&mut self, policy: Policy) -> (Opened, Stand) {
        let found = self.disk.entries(|_| true);
        let mut rows: BTreeMap<RelPath, Row> = BTreeMap::new();
        for (path, seen) in found {
            let tuple = self.disk.tuple(&path);
            let known = self.rows.get(&path);
            let entry = match known.filter(|row| row.tuple == tuple) {
                Some(row) => Entry { link: seen.link, ..row.entry.clone() },
                None => seen,
            };
            // What lies in an extra directory is an extra as well.
            let dir = path.parent().and_then(|dir| rows.get(&dir));
            let extra = known.is_some_and(|row| row.extra) || dir.is_some_and(|dir| dir.extra);
            rows.insert(path.clone(), row(&path, entry, tuple, extra));
        }
        self.rows = rows;
        let tree = hash(self.visible(&policy));
        let stand =
            Stand { features: STRETCHES, version: self.stand, root: tree.root, entries: self.rows.len() as u64 - 1 };
        let (asked, expected) = (HashSet::new(), HashMap::new());
        (Opened { policy, tree, asked, expected, application: None, last: None }, stand)
    }

    /// What its rows say, without a look: where a master that was acknowledged the last version believes it to be.
    pub fn acknowledged(&self, policy: &Policy) -> Stand {
        let root = hash(self.visible(policy)).root;
        Stand { features: 0, version: self.stand, root, entries: self.rows.len() as u64 - 1 }
    }

    /// In parts of two children, so that big directories are tried too.
    pub fn list(&self, opened: &Opened, dir: &RelPath) -> Vec<Listing> {
        let listing = |own, children: &[_], last| Listing { dir: dir.clone(), own, children: children.to_vec(), last };
        let Some((own, children)) = children(self.visible(&opened.policy), &opened.tree, dir) else {
            return vec![listing(None, &[], true)];
        };
        let mut parts: Vec<_> = children.chunks(2).map(|part| listing(Some(own), part, false)).collect();
        if parts.is_empty() {
            parts.push(listing(Some(own), &[], false));
        }
        parts.last_mut().unwrap().last = true;
        parts
    }

    fn has(&self, digest: Digest) -> bool {
        self.staged.contains_key(&digest)
            || self.mistaken.contains(&digest)
            || self.rows.values().any(|row| row.entry.content().is_some_and(|(_, d)| d == digest))
    }

    pub fn consider(&self, opened: &mut Opened, first: u64, files: Vec<Offered>) -> Vec<(Wanted, Offered)> {
        let mut missing: Vec<_> = (first..).zip(files).collect();
        missing.retain(|(_, file)| !self.has(file.digest) && opened.asked.insert(file.digest));
        self.fetch(opened, missing)
    }

    pub fn fetch(&self, opened: &mut Opened, files: Vec<(u64, Offered)>) -> Vec<(Wanted, Offered)> {
        let mut wants = Vec::new();
        for (seq, file) in files {
            let old = self.disk.at(&file.path).filter(|inode| inode.entry.content().is_some());
            let basis = old.and_then(|inode| inode.entry.content()).map_or(Basis::None, |(size, digest)| Basis::File {
                digest,
                size,
                chunks: Vec::new(),
                guess: false,
            });
            opened.expected.insert(seq, file.clone());
            wants.push((Wanted { seq, basis, part: Vec::new() }, file));
        }
        wants
    }

    /// Verifies and stages a content. `None`: it was not asked for.
    pub fn take(&mut self, opened: &Opened, seq: u64, content: Vec<u8>) -> Option<bool> {
        let file = opened.expected.get(&seq)?;
        let digest = Digest::of(&content);
        let good = digest == file.digest;
        if good {
            self.staged.insert(digest, content);
        }
        Some(good)
    }

    /// The changes that were told relative to the rows.
    pub fn expand(&self, opened: &Opened, moves: &[Moved], touched: Vec<Touched>) -> Vec<Change> {
        let visible = |row: &&Row| !(row.extra && opened.policy.no_delete);
        let mut changes = Vec::new();
        for one in moves.iter().filter(|one| opened.tree.dirs.get(&one.from) == Some(&one.hash)) {
            let inside = |row: &&Row| row.path == one.from || row.path.is_beneath(&one.from);
            let rows = self.rows.values().filter(inside).filter(visible).cloned();
            changes.extend(rows.map(|row| relative::moved(row, one)).collect::<Option<Vec<_>>>().into_iter().flatten());
        }
        let row = |at: &RelPath| self.rows.get(at).filter(visible).cloned();
        changes.extend(touched.into_iter().filter_map(|t| relative::touched(row(&t.path)?, t.metadata)));
        changes
    }

    /// The root of a plan for these changes once every missing content is there, or why it would be refused.
    pub fn guard(&self, opened: &Opened, announce: Announce, changes: &Changes) -> Result<Digest, Refusal> {
        Ok(self.decide(opened, announce, changes, &|digest| !self.has(*digest))?.0.root)
    }

    /// The root, the items and what is missing, or why not. A dry run takes for granted what is missing.
    pub fn plan(
        &self,
        opened: &mut Opened,
        announce: Announce,
        changes: &Changes,
    ) -> Result<(Digest, Vec<Item>, Vec<RelPath>), Refusal> {
        let (application, items) = self.decide(opened, announce, changes, &|digest| match opened.policy.dry_run {
            true => !self.has(*digest),
            false => self.staged.contains_key(digest),
        })?;
        let (root, missing) = (application.root, application.plan.missing.clone());
        opened.application = Some(application);
        Ok((root, items, missing))
    }

    fn decide(
        &self,
        opened: &Opened,
        announce: Announce,
        changes: &Changes,
        is_staged: &dyn Fn(&Digest) -> bool,
    ) -> Result<(Application, Vec<Item>), Refusal> {
        let mut changes = changes.clone();
        if opened.last.is_some() {
            let entry_of = |path: &RelPath| Ok::<_, Refusal>(self.rows.get(path).map(|row| row.entry.clone()));
            take_out_stale_links(&mut changes, entry_of)?;
        }
        let changes = &changes;
        let holds = Holds::new(announce.holds.iter().cloned());
        let beneath = |path: &RelPath| {
            changes.iter().any(|(top, new)| path.is_beneath(top) && !new.as_deref().is_some_and(Entry::is_dir))
        };
        let rows: BTreeMap<_, _> =
            self.rows.iter().filter(|(p, _)| changes.contains_key(*p) || beneath(p)).map(clone_pair).collect();
        let mut sources: HashMap<Digest, Vec<RelPath>> = HashMap::new();
        for row in self.rows.values() {
            if let Some((_, digest)) = row.entry.content().filter(|(_, digest)| !is_staged(digest)) {
                sources.entry(digest).or_default().push(row.path.clone());
            }
        }
        let no_delete = opened.policy.no_delete;
        let plan =
            decide(changes.clone(), Situation { rows, sources: &sources, staged: is_staged, holds: &holds, no_delete });
        let root = self.root_after(opened, changes, &holds);
        if opened.policy.max_delete.is_some_and(|most| plan.deletes > most) && root == announce.version.root {
            return Err(Refusal { for_a_person: true, reason: format!("{} deletes", plan.deletes) });
        }
        let item = |step: &Step| {
            diff::item(&step.path, step.old.as_ref().map(|r| &r.entry), step.new.as_deref(), &step.action)
        };
        let items = if opened.policy.itemize { plan.steps.iter().filter_map(item).collect() } else { Vec::new() };
        Ok((Application::new(announce, plan, root), items))
    }

    fn root_after(&self, opened: &Opened, changes: &Changes, holds: &Holds) -> Digest {
        let mut after: BTreeMap<RelPath, Entry> =
            self.visible(&opened.policy).filter(|(path, _)| !holds.covers(path)).map(clone_pair).collect();
        for (path, new) in changes.iter().filter(|(path, _)| !holds.covers(path)) {
            if !new.as_deref().is_some_and(Entry::is_dir) {
                after.retain(|p, _| p != path && !p.is_beneath(path));
            }
            after.extend(new.clone().map(|entry| (path.clone(), *entry)));
        }
        hash(after.iter()).root
    }

    pub fn discard(opened: &mut Opened) {
        opened.application = None;
    }

    /// Stages every inode of the plan, or acknowledges if there is nothing to publish.
    pub fn prepare(&mut self, opened: &mut Opened) -> (Option<Ack>, Vec<Problem>) {
        let mut application = opened.application.take().unwrap();
        application.failed.extend(application.plan.missing.iter().cloned());
        let blocked = application.plan.blocked.keys().cloned().collect::<Vec<_>>();
        blocked.iter().for_each(|path| application.fail(path, "a directory is in the way"));
        let problems = std::mem::take(&mut application.problems);
        if opened.policy.dry_run {
            return (Some(application.ack(application.root)), problems);
        }
        if application.plan.steps.is_empty() && application.announce.committed {
            return (Some(self.conclude(opened, &mut application)), problems);
        }
        for i in 0..application.plan.steps.len() {
            self.stage(&mut application, i);
        }
        application.schedule();
        // The intent: from here on the disk may be anything between old and new.
        self.stand = None;
        let failed = std::mem::take(&mut application.problems);
        opened.application = Some(application);
        (None, [problems, failed].concat())
    }

    fn stage(&mut self, application: &mut Application, i: usize) {
        let Step { path, new, action, .. } = application.plan.steps[i].clone();
        let Some(new) = new else { return };
        let ino = match &action {
            Action::Delete | Action::Metadata | Action::MoveDir { .. } => return,
            Action::Content => new
                .content()
                .and_then(|(_, digest)| self.staged.get(&digest).cloned())
                .map(|c| self.disk.create(*new, c)),
            Action::Copy { from } => {
                self.disk.at(from).map(|inode| inode.content.clone()).map(|c| self.disk.create(*new, c))
            }
            Action::Make | Action::MakeDir => Some(self.disk.create(*new, Vec::new())),
            Action::Move { from } => self.disk.ino(from),
            Action::Link { first } if application.is_failed_step(first) => None,
            Action::Link { first } => application.waiting.get(first).copied().or_else(|| self.disk.ino(first)),
        };
        match ino {
            Some(ino) => drop(application.waiting.insert(path, ino)),
            None => application.fail(&path, "it could not be prepared"),
        }
    }

    /// One step of publishing; an acknowledgement after the last.
    pub fn publish(&mut self, opened: &mut Opened) -> (Option<Ack>, Vec<Problem>) {
        let mut application = opened.application.take().unwrap();
        let todo = application.todo.pop_front().unwrap();
        let ack = match todo {
            Todo::Place(i) => {
                self.place(&mut application, i);
                None
            }
            Todo::Delete(i) => {
                self.delete(&mut application, i);
                None
            }
            Todo::Metadata(i) => {
                self.metadata(&mut application, i);
                None
            }
            Todo::Conclude => Some(self.conclude(opened, &mut application)),
        };
        let problems = std::mem::take(&mut application.problems);
        opened.application = Some(application);
        (ack, problems)
    }

    /// Whether the disk still shows what the plan was made from.
    fn as_planned(&self, application: &Application, step: &Step) -> bool {
        let now = self.disk.tuple(&step.path);
        let then = step.old.as_ref().and_then(|row| row.tuple);
        now == then || now.zip(then).is_some_and(|(a, b)| a.ino == b.ino && application.ours.contains(&a.ino))
    }

    fn place(&mut self, application: &mut Application, i: usize) {
        let step = application.plan.steps[i].clone();
        let Some(ino) = application.waiting.get(&step.path).copied() else { return };
        if !self.as_planned(application, &step) {
            return application.fail(&step.path, "it was changed there meanwhile");
        }
        if self.disk.has_children(&step.path) && !step.new.as_deref().is_some_and(Entry::is_dir) {
            return application.fail(&step.path, "not empty");
        }
        let parent = step.path.parent();
        if !parent.is_none_or(|dir| self.disk.at(&dir).is_some_and(|inode| inode.entry.is_dir())) {
            return application.fail(&step.path, "its directory could not be made");
        }
        if let (Action::Move { .. }, Some(new)) = (&step.action, &step.new) {
            self.disk.dress(ino, new);
        }
        application.ours.insert(ino);
        application.ours.extend(self.disk.ino(&step.path));
        // Renaming a name onto its own inode changes nothing.
        if self.disk.ino(&step.path) != Some(ino) {
            self.disk.place(&step.path, ino);
        }
        application.done.insert(step.path);
    }

    fn delete(&mut self, application: &mut Application, i: usize) {
        let step = application.plan.steps[i].clone();
        if self.disk.ino(&step.path).is_none() {
            application.done.insert(step.path);
            return;
        }
        if !self.as_planned(application, &step) {
            return application.fail(&step.path, "it was changed there meanwhile");
        }
        application.ours.extend(self.disk.ino(&step.path));
        if self.disk.unlink(&step.path) {
            application.done.insert(step.path);
        } else {
            application.fail(&step.path, "not empty");
        }
    }

    fn metadata(&mut self, application: &mut Application, i: usize) {
        let step = application.plan.steps[i].clone();
        let (Some(new), Some(ino)) = (&step.new, self.disk.ino(&step.path)) else {
            return application.fail(&step.path, "it was changed there meanwhile");
        };
        if !self.as_planned(application, &step) {
            return application.fail(&step.path, "it was changed there meanwhile");
        }
        self.disk.dress(ino, new);
        application.ours.insert(ino);
        application.done.insert(step.path);
    }

    /// One transaction: rows of all that was touched, and the stand.
    fn conclude(&mut self, opened: &Opened, application: &mut Application) -> Ack {
        for step in application.plan.steps.iter().filter(|step| application.done.contains(&step.path)) {
            match &step.new {
                Some(entry) => {
                    let tuple = self.disk.tuple(&step.path);
                    self.rows.insert(step.path.clone(), row(&step.path, (**entry).clone(), tuple, false));
                }
                None => drop(self.rows.remove(&step.path)),
            }
        }
        self.look_at_siblings(application);
        let marks =
            application.plan.kept.iter().map(|p| (p, true)).chain(application.plan.adopted.iter().map(|p| (p, false)));
        for (path, extra) in marks {
            self.rows.entry(path.clone()).and_modify(|row| row.extra = extra);
        }
        let holds = Holds::new(application.announce.holds.iter().cloned());
        self.rows.values_mut().filter(|row| holds.covers(&row.path)).for_each(|row| row.extra = true);
        let visible = self.visible(&opened.policy).filter(|(path, _)| !holds.covers(path));
        let root = hash(visible).root;
        let version = &application.announce.version;
        self.stand = (root == version.root && application.failed.is_empty()).then(|| version.id());
        self.reached = opened.last.clone().map(|last| (last, root));
        if application.failed.is_empty() {
            self.staged.clear();
        }
        application.ack(root)
    }

    /// Other names of inodes that we changed keep their entry if the inode still fits it.
    fn look_at_siblings(&mut self, application: &mut Application) {
        let paths: Vec<_> = self.rows.keys().filter(|path| !application.done.contains(*path)).cloned().collect();
        for path in paths {
            let Some(ino) = self.disk.ino(&path).filter(|ino| application.ours.contains(ino)) else { continue };
            let (tuple, inode) = (self.disk.tuple(&path), self.disk.inode(ino).entry.clone());
            let row = self.rows.get_mut(&path).unwrap();
            if inode == (Entry { link: None, ..row.entry.clone() }) {
                row.tuple = tuple;
            } else {
                application.fail(&path, "it was changed there while it was published");
            }
        }
    }

    /// Every row whose inode is on disk tells the truth about it: what the next session believes without reading.
    pub fn assert_rows_are_facts(&self) {
        let found = self.disk.entries(|_| true);
        for row in self.rows.values().filter(|row| row.tuple == self.disk.tuple(&row.path)) {
            assert_eq!(row.entry.content(), found[&row.path].content(), "the row of {} lies", row.path);
            assert_eq!(
                (row.entry.mode, row.entry.mtime),
                (found[&row.path].mode, found[&row.path].mtime),
                "{}",
                row.path
            );
        }
    }
}

impl Application {
    fn new(announce: Announce, plan: Plan, root: Digest) -> Self {
        Self {
            announce,
            plan,
            root,
            failed: BTreeSet::new(),
            done: BTreeSet::new(),
            waiting: BTreeMap::new(),
            ours: BTreeSet::new(),
            todo: VecDeque::new(),
            problems: Vec::new(),
        }
    }

    /// What is no step of the plan is believed to be as it should be.
    fn is_failed_step(&self, path: &RelPath) -> bool {
        self.failed.contains(path) && self.plan.steps.iter().any(|step| step.path == *path)
    }

    fn fail(&mut self, path: &RelPath, reason: &str) {
        self.failed.insert(path.clone());
        self.problems.push(Problem { path: Some(path.clone()), reason: reason.to_owned() });
    }

    fn ack(&self, root: Digest) -> Ack {
        let steps = self.plan.steps.len() as u64;
        let stats =
            ReplicaStats { updated: steps - self.plan.deletes, deleted: self.plan.deletes, ..Default::default() };
        Ack { version: self.announce.version.id(), root, stats, refused: [0; 6] }
    }

    /// The order of names: deletes that are in the way, then what comes, then what goes, then metadata.
    fn schedule(&mut self) {
        let steps = &self.plan.steps;
        let is_delete = |i: &usize| steps[*i].action == Action::Delete;
        let in_the_way = |i: &usize| {
            let becomes_other = |s: &Step| s.new.as_ref().is_some_and(|new| !new.is_dir());
            is_delete(i) && steps.iter().any(|s| becomes_other(s) && steps[*i].path.is_beneath(&s.path))
        };
        let all = 0..steps.len();
        self.todo.extend(all.clone().rev().filter(in_the_way).map(Todo::Delete));
        self.todo.extend(all.clone().filter(|i| self.waiting.contains_key(&steps[*i].path)).map(Todo::Place));
        self.todo.extend(all.clone().rev().filter(|i| is_delete(i) && !in_the_way(i)).map(Todo::Delete));
        self.todo.extend(all.filter(|i| steps[*i].action == Action::Metadata).map(Todo::Metadata));
        self.todo.push_back(Todo::Conclude);
    }
}

fn clone_pair<A: Clone, B: Clone>((a, b): (&A, &B)) -> (A, B) {
    (a.clone(), b.clone())
}

fn row(path: &RelPath, entry: Entry, tuple: Option<crate::manifest::Tuple>, extra: bool) -> Row {
    Row { path: path.clone(), entry, tuple, proven: true, refused: Refused::default(), extra, mount: false }
}
