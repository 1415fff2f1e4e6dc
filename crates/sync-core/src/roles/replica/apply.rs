//! From the changes of a version to an acknowledgement: plan, stage, flush, publish, flush, look, write down.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver};
use std::thread::{Builder, ScopedJoinHandle};

use super::inputs::{sources, touched_rows, tree_after};
use super::ledger::Ledger;
use super::open::{Opened, POLICY, PRIVILEGE, UNFLUSHED};
use super::reached::Reached;
use crate::diff;
use crate::fs::{FsError, Known, Observed, Observer, Placed, Publisher, Ready, Staging};
use crate::guard;
use crate::hash::Digest;
use crate::index::{Commit, Index, IndexError, Intent, Rows as _, Snapshot, Stand};
use crate::manifest::{Entry, Holds, Kind, Refused, Row, TreeHash, Tuple, Version};
use crate::monitor::{How, Item};
use crate::path::RelPath;
use crate::plan::{self, Action, Changes, MovedDir, Plan, Situation, Step};
use crate::roles::guarding::Counted;
use crate::roles::tree;
use crate::wire::{Ack, Announce, Refusal, ReplicaStats};

/// Up to this many steps are taken one after the other: starting threads for them takes longer than they do.
const FEW: usize = 16;

/// Messages about what is in its place that may wait for their rows to be written.
const TOLD_AHEAD: usize = 8;

/// How many of the entries that could not be made are named.
const NAMED: usize = 10;

/// Why a plan was not carried out to its end.
const STOPPED: &str = "it was asked to stop; every file there is whole, and the next push goes on";

/// A plan, and how far it was carried out.
pub struct Application {
    announce: Announce,
    /// Wanted changes to what is no part of the push here.
    left_alone: Vec<RelPath>,
    /// All but its steps and directories.
    plan: Plan,
    steps: Arc<Vec<Step>>,
    /// Directories that are renamed whole, each with one step.
    moved: Arc<Vec<MovedDir>>,
    root: Digest,
    /// The tree that the plan leads to, if all of it comes true.
    tree: TreeHash,
    stats: ReplicaStats,
    /// How the number of entries changes, for the guard.
    step: guard::Step,
    /// The same for what was there before the first stretch, if stretches came.
    own: Option<guard::Step>,
    /// Whether this goes on behind stretches of the same lineage.
    is_behind_stretches: bool,
    items: Vec<Item>,
    refusal: Option<Refusal>,
    publisher: Option<Publisher>,
    failures: u64,
    /// Paths whose step failed, which are counted no more.
    undone: HashSet<RelPath>,
    /// Kept for another plan, if this one misses contents.
    changes: Changes,
    /// Bytes of contents that an interrupted push left and this plan uses.
    resumed: u64,
    /// Entries that are not there because the kernel refused to make them.
    unmade: Vec<RelPath>,
    /// The last path of a stretch of a tree.
    last: Option<RelPath>,
}

impl Application {
    /// Decides the steps from the replica's own rows, and the root they lead to. A dry run, which moves no content,
    /// takes for granted what is missing. `known` are rows that were read already, in tree order.
    pub fn plan(
        opened: &Opened,
        announce: &Announce,
        changes: Changes,
        known: Vec<Row>,
        old_file_bytes: u64,
    ) -> Result<Self, IndexError> {
        let staged = |digest: &Digest| match &opened.staging {
            Some(staging) => staging.has(digest),
            None => !opened.has(digest),
        };
        Self::plan_with(opened, announce, changes, known, old_file_bytes, &staged)
    }

    /// The plan as it will be once every missing content is staged.
    pub fn preview(opened: &Opened, announce: &Announce, changes: Changes) -> Result<Self, IndexError> {
        Self::plan_with(opened, announce, changes, Vec::new(), 0, &|digest| !opened.has(digest))
    }

    fn plan_with(
        opened: &Opened,
        announce: &Announce,
        mut changes: Changes,
        known: Vec<Row>,
        old_file_bytes: u64,
        staged: &dyn Fn(&Digest) -> bool,
    ) -> Result<Self, IndexError> {
        let holds = Holds::new(announce.holds.iter().chain(opened.holds.iter()).cloned());
        let left_alone = changes.iter().filter(|(path, new)| new.is_some() && opened.apart.covers(path));
        let left_alone = left_alone.map(|(path, _)| path.clone()).collect();
        let mut last = None;
        if opened.is_partial() {
            last = changes.keys().next_back().cloned();
            let is_there = |row: &Row| row.tuple.is_some();
            let entry_of = |path: &RelPath| Ok(opened.index.row(path)?.filter(is_there).map(|row| row.entry));
            plan::take_out_stale_links::<IndexError>(&mut changes, entry_of)?;
        }
        // Hashing every changed entry takes about as long as finding out what is there for it.
        let hash = || tree_after(opened, &changes, &Holds::new(announce.holds.iter().cloned()));
        let (tree, found) = std::thread::scope(|scope| {
            let hashing = (changes.len() > FEW).then(|| Builder::new().spawn_scoped(scope, hash)).transpose();
            let found = touched_rows(&opened.index, &changes, known).and_then(|rows| {
                let renames = match opened.policy.no_delete {
                    true => Vec::new(),
                    false => plan::find_renames(&changes, &rows, &holds),
                };
                Ok((sources(&opened.index, &changes, &rows, &renames, staged)?, renames, rows))
            });
            let joined = |hashing: ScopedJoinHandle<'_, _>| hashing.join().unwrap_or_else(|panic| resume_unwind(panic));
            (hashing.ok().flatten().map_or_else(hash, joined), found)
        });
        let (tree, ((sources, complete), renames, mut rows)) = (tree?, found?);
        let root = tree.root;
        // What is not staged has an entry there, be it an empty one.
        let staged = |digest: &Digest| !sources.contains_key(digest);
        let again = if complete { Changes::new() } else { changes.clone() };
        let moved = plan::take_renamed(renames, &mut changes, &mut rows);
        let situation =
            Situation { rows, sources: &sources, staged: &staged, holds: &holds, no_delete: opened.policy.no_delete };
        let mut plan = plan::decide(changes, situation);
        plan.rename(moved);
        let stats = count(&plan, old_file_bytes);
        let items = match opened.policy.itemize {
            true => itemize(&plan),
            false => Vec::new(),
        };
        let refusal = too_many_deletes(opened, &plan);
        // What somebody else added since is no loss: it counts neither as there nor as deleted.
        let added = deleted_additions(opened, &plan);
        let (before, deletes) = (opened.entries().saturating_sub(added), plan.deletes.saturating_sub(added));
        let after = (before + stats.created).saturating_sub(deletes);
        let step = guard::Step { before, deletes, after };
        let own = opened.before().entries().map(|own| guard::Step { before: own, deletes: deletes.min(own), after });
        let is_behind_stretches = opened.reached().is_some_and(|reached| reached.lineage == announce.version.lineage);
        let announce = announce.clone();
        let (steps, moved) = (Arc::new(std::mem::take(&mut plan.steps)), Arc::new(std::mem::take(&mut plan.moved)));
        let changes = if plan.missing.is_empty() { Changes::new() } else { again };
        let (publisher, failures, undone) = (None, 0, HashSet::new());
        let resumed = resumed_bytes(opened, &steps);
        Ok(Self {
            announce,
            left_alone,
            plan,
            steps,
            moved,
            root,
            tree,
            stats,
            step,
            own,
            is_behind_stretches,
            items,
            refusal,
            publisher,
            failures,
            undone,
            changes,
            resumed,
            unmade: Vec::new(),
            last,
        })
    }

    /// Bytes of whole contents that an interrupted push left and this plan uses.
    pub fn resumed(&self) -> u64 {
        self.resumed
    }

    /// Says what is not there because the kernel refused to make it.
    pub fn unmade(&self) -> Option<String> {
        if self.unmade.is_empty() {
            return None;
        }
        let names = RelPath::tops(&self.unmade, NAMED);
        Some(format!("not there, because the kernel refused to make it: {names}"))
    }

    /// Why the plan is not to be carried out.
    pub fn refusal(&self) -> Option<Refusal> {
        // A plan that does not even lead to the announced root will be made anew.
        self.refusal.clone().filter(|_| self.root == self.announce.version.root)
    }

    /// How many steps there are to publish.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// How the number of entries changes, for the guard.
    pub fn step(&self) -> guard::Step {
        self.step
    }

    /// What goes and appears nowhere else, in words.
    pub fn lost(&self) -> String {
        RelPath::tops(lost(&self.plan, &self.steps), guard::NAMED)
    }

    /// What the guard is to let pass. What came in stretches was counted by the master when it went there; what was here before them
    /// was not.
    pub fn guarded(&self) -> impl Iterator<Item = guard::Step> {
        let all = (!self.is_behind_stretches || self.own.is_none()).then_some(self.step);
        all.into_iter().chain(self.own)
    }

    /// Whether it goes on behind stretches of the same lineage.
    pub fn is_behind_stretches(&self) -> bool {
        self.is_behind_stretches
    }

    /// The version that it is for.
    pub fn version(&self) -> &Version {
        &self.announce.version
    }

    /// What the master could not read: no part of the version, here as there.
    pub fn holds(&self) -> &[RelPath] {
        &self.announce.holds
    }

    /// The hash of the tree that the plan leads to.
    pub fn root(&self) -> Digest {
        self.root
    }

    /// The changed entries, if they were asked for.
    pub fn items(&self) -> Vec<Item> {
        self.items.clone()
    }

    /// Paths whose content is nowhere, and the changes if there are any.
    pub fn take_missing(&mut self) -> (Vec<RelPath>, Changes) {
        (self.plan.missing.clone(), std::mem::take(&mut self.changes))
    }

    /// Stages everything, flushes it, and records the intent. Acknowledges at once if there is nothing to publish.
    /// Once `stop` is raised it gives the plan up, and nothing has changed.
    pub fn prepare(&mut self, opened: &mut Opened, stop: &Arc<AtomicBool>) -> Result<Option<Ack>, String> {
        let why = "something is mounted there, or it is our own state directory: it is left alone";
        let alone = self.left_alone.iter().map(|path| FsError::because("update", path, why));
        let blocked = self.plan.blocked.iter().map(|(path, dir)| {
            let what = match path == dir {
                true => "a directory that is not empty is in the way".to_owned(),
                false => format!("the directory {dir} is in the way of its first name"),
            };
            let why = format!("{what}, and nothing is deleted: move it away, or push without --no-delete");
            FsError::because("create", path, why)
        });
        let failed: Vec<FsError> = alone.chain(blocked).collect();
        // The session tells what is missing.
        self.failures += (failed.len() + self.plan.missing.len()) as u64;
        opened.report(failed);
        let Some(staging) = opened.staging.clone() else { return Ok(Some(self.ack([0; 6]))) };
        check_place(opened)?;
        if self.steps.is_empty() {
            // Nothing there changes.
            return if self.announce.committed { self.publish(opened, stop, None).map(Some) } else { Ok(None) };
        }
        opened.changes();
        opened.wants_no_more();
        let rows = opened.index.snapshot().map_err(|e| e.to_string())?;
        let known = KnownRows { rows, names: opened.names.clone() };
        let mut publisher = Publisher::new(staging.clone(), Arc::clone(&self.steps), Box::new(known));
        publisher.move_dirs(Arc::clone(&self.moved));
        publisher.stop_on(Arc::clone(stop));
        // A session behind one that was cut off begins with a look at every name, so the paths of an intent would tell nothing new: it
        // is that the stand is none from here on.
        let intent = Intent { target: self.announce.version.id(), paths: Vec::new() };
        let mut failures = Vec::new();
        let (steps, moved) = (&self.steps, &self.moved);
        let prepared = prepare_and_commit(opened, steps, moved, &staging, publisher, &intent, &mut failures);
        self.failures += failures.len() as u64;
        self.uncount(&failures, &[]);
        opened.report(failures);
        self.publisher = Some(prepared.map_err(|Reason(reason)| reason)?);
        Ok(None)
    }

    /// Makes it visible and durable, and acknowledges what the disk then holds. Once `stop` is raised it gives up what
    /// is left of the plan; the intent stays, and the next session finds out by looking how far this one came. What the
    /// guard has counted is written with the rest.
    pub fn publish(
        &mut self,
        opened: &mut Opened,
        stop: &Arc<AtomicBool>,
        counted: Option<&Counted>,
    ) -> Result<Ack, String> {
        check_place(opened)?;
        opened.own()?;
        opened.keep();
        if let (None, Some(staging)) = (&self.publisher, &opened.staging)
            && opened.is_unflushed().map_err(|e| e.to_string())?
        {
            staging.flush().map_err(|e| e.to_string())?;
        }
        let mut publisher = self.publisher.take();
        publisher.iter_mut().for_each(|publisher| publisher.stop_on(Arc::clone(stop)));
        let mut ack = self.conclude(opened, publisher, counted).map_err(|Reason(reason)| reason)?;
        if has_unseen(opened) {
            ack.root = unknown(self.root);
        }
        self.find_unmade(opened).map_err(|e| e.to_string())?;
        for (count, (kind, _)) in ack.refused.iter_mut().zip(Refused::KINDS) {
            if kind == Refused::DEVICE {
                *count = self.unmade.len() as u64;
            }
        }
        ack.stats = self.stats.clone();
        Ok(ack)
    }

    /// What was refused now or before, and is still wanted. It does not count as made.
    fn find_unmade(&mut self, opened: &Opened) -> Result<(), IndexError> {
        let is_unmade = |path: &RelPath| -> Result<bool, IndexError> {
            let row = opened.index.row(path)?;
            Ok(row.is_some_and(|row| row.tuple.is_none() && row.refused.has(Refused::DEVICE)))
        };
        let is_node = |entry: &Entry| {
            matches!(entry.kind, Kind::CharDev { .. } | Kind::BlockDev { .. } | Kind::Fifo | Kind::Socket)
        };
        let made = self.steps.iter().filter(|step| step.new.as_deref().is_some_and(is_node)).map(|step| &step.path);
        let moved = self.moved.iter().flat_map(|dir| &dir.entries).filter(|moved| moved.old.tuple.is_none());
        let paths = made.chain(moved.map(|moved| &moved.path)).chain(&opened.unmade);
        let mut unmade = BTreeSet::new();
        for path in paths {
            if !unmade.contains(path) && is_unmade(path)? {
                unmade.insert(path.clone());
            }
        }
        let less = |counter: &mut u64, n| *counter = counter.saturating_sub(n);
        for path in &unmade {
            let Ok(i) = self.steps.binary_search_by(|step| step.path.cmp(path)) else { continue };
            let step = &self.steps[i];
            count_step(&mut self.stats, step, moved_from(&self.plan, step).is_some(), less);
            self.stats.deleted += u64::from(step.old.as_ref().is_some_and(|row| row.tuple.is_some()));
        }
        self.unmade = unmade.into_iter().collect();
        Ok(())
    }

    /// What failed was not done: a step of the plan, or one of those that took the place of some.
    fn uncount(&mut self, failures: &[FsError], instead: &[Step]) {
        let less = |counter: &mut u64, n| *counter = counter.saturating_sub(n);
        let moves = || self.steps.iter().filter_map(|step| moved_from(&self.plan, step));
        let leaving: HashSet<RelPath> = match failures {
            [] => HashSet::new(),
            _ => moves().chain(self.plan.renamed.values()).cloned().collect(),
        };
        for FsError { path, .. } in failures {
            let find = |steps: &[Step]| steps.binary_search_by(|step| step.path.cmp(path)).ok();
            let (planned, instead) = (find(&self.steps), find(instead).map(|i| &instead[i]));
            if planned.is_none() && instead.is_none() || !self.undone.insert(path.clone()) {
                continue;
            }
            match (instead, planned.map(|i| &self.steps[i])) {
                // The old name of what was to move, which is no deletion that was counted.
                (Some(Step { action: Action::Delete, .. }), None) => {}
                (_, Some(Step { action: Action::Delete, path, .. })) if leaving.contains(path) => {}
                (None, Some(Step { action: Action::MoveDir { .. }, .. })) => {
                    let dirs = self.moved.iter().filter(|dir| dir.to == *path);
                    dirs.flat_map(MovedDir::arrivals).for_each(|step| count_step(&mut self.stats, &step, true, less));
                }
                (Some(step), _) | (None, Some(step)) => {
                    let moves = moved_from(&self.plan, step).is_some();
                    count_step(&mut self.stats, step, moves, less);
                }
                (None, None) => {}
            }
        }
    }

    /// Publishes, if there is anything to publish, and writes down what is on disk then and where the replica stands:
    /// in one transaction, which takes up rows while others are still being published, and ends after the last flush.
    fn conclude(
        &mut self,
        opened: &mut Opened,
        publisher: Option<Publisher>,
        counted: Option<&Counted>,
    ) -> Result<Ack, Reason> {
        let marks = self.marks(&opened.index)?;
        // Every row will be what the plan made of it, and so will the root, unless something fails.
        let foreseen = marks.is_empty() && self.announce.holds.is_empty() && !has_unseen(opened);
        if publisher.is_none() && marks.is_empty() && self.stands_already(opened)? {
            opened.completed();
            return Ok(self.ack([0; 6]));
        }
        let policy = opened.encoded_policy();
        let (index, staging, steps) = (opened.index.clone(), opened.staging.clone(), Arc::clone(&self.steps));
        let mut ledger = Ledger::new(&steps, marks);
        let observer = publisher.as_ref().map(Publisher::observer);
        let (sender, placed) = mpsc::channel();
        let mut instead = Vec::new();
        let (written, failures) = std::thread::scope(|scope| {
            let carry_out = |publisher| match steps.len() <= FEW {
                true => Ok(Publishing::Over(Box::new(carry_out(publisher, staging, sender)))),
                false => {
                    let thread = Builder::new().spawn_scoped(scope, || carry_out(publisher, staging, sender));
                    thread.map(Publishing::UnderWay)
                }
            };
            let mut publishing = match publisher.map(carry_out).transpose() {
                Ok(publishing) => publishing,
                Err(error) => return (Err(Reason(format!("cannot start a thread to publish: {error}"))), Vec::new()),
            };
            let mut failures = Vec::new();
            let written = index.commit_with(0, |commit| {
                let (mut observed, mut refused) = (Vec::new(), [0; 6]);
                for (placed, seen) in placed.iter().flat_map(|some: Vec<Placed>| look(observer.as_ref(), &some)) {
                    ledger.write(commit, seen)?;
                    observed.push(placed);
                }
                if let Some(publishing) = publishing.take() {
                    let (mut publisher, flushed) = ended(publishing)?;
                    failures = publisher.take_failures();
                    flushed?;
                    if publisher.was_stopped() {
                        return Err(Reason(STOPPED.to_owned()));
                    }
                    publisher.skip(&observed);
                    publisher.observe().into_iter().try_for_each(|seen| ledger.write(commit, seen))?;
                    publisher.withdrawn().try_for_each(|path| commit.delete(path).map(drop))?;
                    failures.extend(publisher.take_failures());
                    ledger.move_dirs(commit, &self.moved, &publisher)?;
                    if let Some(mut rest) = publisher.follow_up() {
                        instead = rest.steps().to_vec();
                        carry_out_rest(&mut rest, opened.staging.as_deref())?;
                        let mut ledger = Ledger::new(&instead, BTreeMap::new());
                        rest.observe().into_iter().try_for_each(|seen| ledger.write(commit, seen))?;
                        failures.extend(rest.take_failures());
                        refused = ledger.finish(commit)?;
                    }
                }
                for (count, more) in refused.iter_mut().zip(ledger.finish(commit)?) {
                    *count += more;
                }
                self.failures += failures.len() as u64;
                let stand = self.stand(opened, self.root).filter(|_| foreseen);
                commit.set_meta(PRIVILEGE, Some(&privilege()))?;
                commit.set_meta(UNFLUSHED, None)?;
                commit.set_meta(POLICY, Some(&policy))?;
                counted.map_or(Ok(()), |counted| counted.write(commit))?;
                stands(commit, stand.as_ref(), opened)?;
                if foreseen { commit.clear_intent().map(|()| refused) } else { Ok(refused) }.map_err(Reason::from)
            });
            // When the index fails, what fails on disk is told all the same.
            if let Some(Ok((mut publisher, _))) = publishing.map(ended) {
                failures = publisher.take_failures();
            }
            (written, failures)
        });
        self.uncount(&failures, &instead);
        opened.report(failures);
        let refused = written?;
        if !foreseen || self.failures > 0 {
            self.root = root_of(opened, &self.announce.holds)?;
        }
        if !foreseen {
            let stand = self.stand(opened, self.root);
            index.commit_with(0, |commit| -> Result<(), IndexError> {
                stands(commit, stand.as_ref(), opened)?;
                commit.clear_intent()
            })?;
        }
        let stands = index.stand()?.is_some();
        if stands {
            opened.additions.clear();
        }
        let reached = |path| Reached { root: self.root, lineage: self.announce.version.lineage, path };
        opened.has_reached(self.last.take().filter(|_| !stands).map(reached), stands)?;
        if self.failures == 0 {
            opened.completed();
        }
        if foreseen && self.failures == 0 && refused == [0; 6] && instead.is_empty() {
            opened.came_to(std::mem::take(&mut self.tree), &self.steps, &self.moved);
        }
        Ok(self.ack(refused))
    }

    /// Where the replica stands with this root; `None` if it is not exactly the version.
    fn stand(&self, opened: &Opened, root: Digest) -> Option<Stand> {
        let version = &self.announce.version;
        let exact = root == version.root && self.failures == 0 && !has_unseen(opened);
        let stand = Stand { version: version.id(), number: version.number, lineage: version.lineage, root };
        exact.then_some(stand)
    }

    /// Whether the index says already what a push without steps leads to.
    fn stands_already(&self, opened: &Opened) -> Result<bool, IndexError> {
        let stand = self.stand(opened, self.root);
        let same_policy = || Ok(opened.index.meta(POLICY)? == Some(opened.encoded_policy()));
        Ok(stand.is_some() && opened.index.stand()? == stand && !opened.is_unflushed()? && same_policy()?)
    }

    /// Paths whose rows change their mark: whether they are extras now.
    fn marks(&self, index: &Index) -> Result<BTreeMap<RelPath, bool>, IndexError> {
        let mut marks = BTreeMap::new();
        marks.extend(self.plan.kept.iter().map(|path| (path.clone(), true)));
        marks.extend(self.plan.adopted.iter().map(|path| (path.clone(), false)));
        for hold in &self.announce.holds {
            let mut held = index.cursor_beneath(hold)?;
            marks.extend(index.row(hold)?.map(|row| (row.path, true)));
            while let Some(row) = held.next()? {
                if !row.extra {
                    marks.insert(row.path, true);
                }
            }
        }
        Ok(marks)
    }

    fn ack(&self, refused: [u64; 6]) -> Ack {
        Ack { version: self.announce.version.id(), root: self.root, stats: self.stats.clone(), refused }
    }
}

/// The path of the share must still lead to the directory that was opened.
fn check_place(opened: &Opened) -> Result<(), String> {
    match &opened.root {
        Some(root) if !root.still_there() => {
            Err("its directory was moved or replaced meanwhile; push again".to_owned())
        }
        _ => Ok(()),
    }
}

/// Prepares and flushes. Meanwhile rows are written of what has its place in new directories already, in the transaction
/// that then records the intent: true once that is published, and if it never is, the next look at the tree finds
/// nothing there. So are those of directories that will be renamed.
fn prepare_and_commit(
    opened: &Opened,
    steps: &[Step],
    moved: &[MovedDir],
    staging: &Staging,
    mut publisher: Publisher,
    intent: &Intent,
    failures: &mut Vec<FsError>,
) -> Result<Publisher, Reason> {
    let mut conclude = |commit: &mut Commit<'_>, mut publisher: Publisher| {
        failures.append(&mut publisher.take_failures());
        if publisher.was_stopped() {
            return Err(Reason(STOPPED.to_owned()));
        }
        staging.flush().map_err(|error| Reason(error.to_string()))?;
        // From here on the tree is on its way to this master's version.
        opened.own().map_err(Reason)?;
        opened.before().write().map_err(|error| Reason(error.to_string()))?;
        commit.set_intent(intent)?;
        Ok(publisher)
    };
    let index = &opened.index;
    let mut ledger = Ledger::new(steps, BTreeMap::new());
    if steps.len() <= FEW {
        let (sender, ready) = mpsc::channel();
        publisher.tell_ready(Box::new(move |some| drop(sender.send(some))));
        publisher.prepare();
        return index.commit_with(0, |commit| {
            moved.iter().try_for_each(|dir| commit.copy_beneath(&dir.from, &dir.to))?;
            ready.iter().flatten().try_for_each(|ready| ledger.write_ready(commit, ready))?;
            conclude(commit, publisher)
        });
    }
    let (sender, ready) = mpsc::sync_channel(TOLD_AHEAD);
    // Nobody listens any more when the index failed.
    publisher.tell_ready(Box::new(move |some| drop(sender.send(some))));
    let prepare = || {
        publisher.prepare();
        publisher
    };
    std::thread::scope(|scope| {
        let preparing = Builder::new().spawn_scoped(scope, prepare);
        let preparing = preparing.map_err(|error| Reason(format!("cannot start a thread to prepare: {error}")))?;
        index.commit_with(0, move |commit| {
            // Taken in here and dropped however this ends, so that the other thread never waits in vain.
            let ready: Receiver<Vec<Ready>> = ready;
            moved.iter().try_for_each(|dir| commit.copy_beneath(&dir.from, &dir.to))?;
            ready.iter().flatten().try_for_each(|ready| ledger.write_ready(commit, ready))?;
            let publisher = preparing.join().map_err(|_| Reason("preparing ended with a panic".to_owned()))?;
            conclude(commit, publisher)
        })
    })
}

/// Why a push of this replica cannot go on, for a person.
struct Reason(String);

impl From<IndexError> for Reason {
    fn from(error: IndexError) -> Self {
        Self(error.to_string())
    }
}

/// A publisher that has published, and whether that was flushed.
type Ended = (Publisher, Result<(), Reason>);

/// Publishes and flushes, unless it is stopped; meanwhile sends which names are done.
fn carry_out(mut publisher: Publisher, staging: Option<Arc<Staging>>, sender: mpsc::Sender<Vec<Placed>>) -> Ended {
    // Nobody listens any more when the index failed: then it stays as it was, and the next push looks again.
    publisher.tell_early(Box::new(move |placed| drop(sender.send(placed))));
    publisher.publish();
    let staging = staging.filter(|_| !publisher.was_stopped());
    let flushed = staging.map_or(Ok(()), |staging| staging.flush());
    (publisher, flushed.map_err(|error| Reason(error.to_string())))
}

/// The same for what was left out, with nothing else to do meanwhile: that is rare.
fn carry_out_rest(rest: &mut Publisher, staging: Option<&Staging>) -> Result<(), Reason> {
    let flush = || staging.map_or(Ok(()), Staging::flush).map_err(|error| Reason(error.to_string()));
    rest.prepare();
    flush()?;
    rest.publish();
    flush()?;
    if rest.was_stopped() { Err(Reason(STOPPED.to_owned())) } else { Ok(()) }
}

/// What publishes, or did.
enum Publishing<'scope> {
    UnderWay(ScopedJoinHandle<'scope, Ended>),
    Over(Box<Ended>),
}

fn ended(publishing: Publishing<'_>) -> Result<Ended, Reason> {
    match publishing {
        Publishing::UnderWay(thread) => thread.join().map_err(|_| Reason("publishing ended with a panic".to_owned())),
        Publishing::Over(ended) => Ok(*ended),
    }
}

fn look(observer: Option<&Observer>, placed: &[Placed]) -> Vec<(Placed, Observed)> {
    observer.map(|observer| observer.look(placed)).unwrap_or_default()
}

/// Says where the replica stands. At a version nothing is there any more that no version had, and nothing is to follow.
fn stands(commit: &mut Commit<'_>, stand: Option<&Stand>, opened: &Opened) -> Result<(), IndexError> {
    if stand.is_some() {
        commit.clear_additions()?;
        if opened.keeps_reached() {
            Reached::forget(commit)?;
        }
    }
    commit.set_stand(stand)
}

/// Whether something here could not be looked at: it is not known to be identical.
pub fn has_unseen(opened: &Opened) -> bool {
    opened.holds.iter().any(|hold| !opened.apart.covers(hold))
}

/// The root of a tree of which something cannot be looked at: its rows say what was there, and whether it still is nobody knows. So
/// it is none that a version has.
fn unknown(root: Digest) -> Digest {
    Digest::of(&[b"a tree of which something cannot be looked at", &root.0[..]].concat())
}

fn privilege() -> [u8; 1] {
    [u8::from(rustix::process::geteuid().is_root())]
}

/// The hash of the tree as the rows are, without what is held.
pub fn root_of(opened: &Opened, holds: &[RelPath]) -> Result<Digest, IndexError> {
    let holds = Holds::new(holds.iter().cloned());
    Ok(tree::hash_with(&opened.index, std::iter::empty(), &holds, opened.policy.no_delete)?.root)
}

fn resumed_bytes(opened: &Opened, steps: &[Step]) -> u64 {
    let contents = steps.iter().filter(|step| step.action == Action::Content).filter_map(|step| step.new.as_ref());
    let left: HashMap<Digest, u64> = contents
        .filter_map(|new| new.content())
        .filter(|(_, digest)| opened.left.contains(digest))
        .map(|(size, digest)| (digest, size))
        .collect();
    left.values().sum()
}

fn count(plan: &Plan, old_file_bytes: u64) -> ReplicaStats {
    // Names that went because their content moved are not counted twice.
    let mut stats = ReplicaStats { old_file_bytes, deleted: plan.deletes, ..ReplicaStats::default() };
    let add = |counter: &mut u64, n| *counter += n;
    for step in plan.steps.iter().filter(|step| !matches!(step.action, Action::Delete | Action::MoveDir { .. })) {
        count_step(&mut stats, step, moved_from(plan, step).is_some(), add);
    }
    // As many entries are counted as if each had been moved by itself.
    plan.moved.iter().flat_map(MovedDir::arrivals).for_each(|step| count_step(&mut stats, &step, true, add));
    stats
}

/// The name that an entry loses for the one of this step.
fn moved_from<'a>(plan: &'a Plan, step: &'a Step) -> Option<&'a RelPath> {
    match &step.action {
        Action::Move { from } => Some(from),
        _ => plan.renamed.get(&step.path),
    }
}

/// Changes the counters that a step belongs to.
fn count_step(stats: &mut ReplicaStats, step: &Step, moves: bool, change: fn(&mut u64, u64)) {
    let counter = match (&step.action, &step.old) {
        (Action::Delete, _) => &mut stats.deleted,
        (Action::Metadata, _) => &mut stats.metadata_only,
        _ if moves => &mut stats.moved,
        (_, None) => &mut stats.created,
        (_, Some(_)) => &mut stats.updated,
    };
    change(counter, 1);
    let size = step.new.as_ref().and_then(|new| new.content()).map_or(0, |(size, _)| size);
    match step.action {
        Action::Move { .. } => change(&mut stats.moved_bytes, size),
        Action::Copy { .. } => change(&mut stats.copied_bytes, size),
        _ => {}
    }
}

/// The lines of all steps, in tree order; those of a directory that is renamed whole are those of its entries.
fn itemize(plan: &Plan) -> Vec<Item> {
    let item = |step: &Step| {
        diff::item(&step.path, step.old.as_ref().map(|row| &row.entry), step.new.as_deref(), &step.action)
    };
    let steps = plan.steps.iter().filter(|step| !matches!(step.action, Action::MoveDir { .. }));
    let mut items: Vec<Item> = steps.filter_map(item).collect();
    items.extend(plan.moved.iter().flat_map(MovedDir::steps).filter_map(|step| item(&step)));
    items.sort_by(|a, b| a.path.cmp(&b.path));
    tell_of_moves(plan, &mut items);
    items
}

/// Both names of what moves tell of each other.
fn tell_of_moves(plan: &Plan, items: &mut [Item]) {
    let files = plan.steps.iter().filter_map(|step| moved_from(plan, step).map(|from| (from, &step.path)));
    let renamed = plan.renamed.iter().map(|(to, from)| (from, to));
    let whole = plan.moved.iter().flat_map(|dir| &dir.entries).map(|moved| (&moved.old.path, &moved.path));
    let entries = || whole.clone().chain(renamed.clone());
    let leaving: HashMap<&RelPath, &RelPath> = files.chain(entries()).collect();
    let arriving: HashMap<&RelPath, &RelPath> = entries().map(|(from, to)| (to, from)).collect();
    for item in items {
        match &mut item.how {
            How::Deleted { moved_to, .. } => *moved_to = leaving.get(&item.path).map(|to| (*to).clone()),
            // What a directory holds moves with it, whatever it is.
            how @ How::Made => {
                if let Some(from) = arriving.get(&item.path) {
                    // An empty file: nothing is sent either.
                    if item.code.starts_with('>') {
                        item.code.replace_range(..1, "c");
                    }
                    *how = How::Moved { from: (*from).clone(), size: 0 };
                }
            }
            _ => {}
        }
    }
}

/// How many of the entries that a plan deletes, and that appear nowhere else, no version had.
fn deleted_additions(opened: &Opened, plan: &Plan) -> u64 {
    if opened.additions.is_empty() {
        return 0;
    }
    lost(plan, &plan.steps).filter(|path| opened.additions.contains(*path)).count() as u64
}

/// What these steps of a plan delete, and what appears nowhere else.
fn lost<'a>(plan: &Plan, steps: &'a [Step]) -> impl Iterator<Item = &'a RelPath> {
    let leaving: HashSet<RelPath> = steps.iter().filter_map(|step| moved_from(plan, step)).cloned().collect();
    let is_lost = move |step: &&Step| step.action == Action::Delete && !leaving.contains(&step.path);
    steps.iter().filter(is_lost).map(|step| &step.path)
}

fn too_many_deletes(opened: &Opened, plan: &Plan) -> Option<Refusal> {
    let limit = opened.policy.max_delete?;
    (plan.deletes > limit).then(|| Refusal {
        for_a_person: true,
        reason: format!(
            "the plan would delete {} entries, more than the {limit} that --max-delete allows; nothing was changed",
            plan.deletes
        ),
    })
}

/// The index as the publisher asks it: as it was before.
struct KnownRows {
    rows: Snapshot,
    names: HashMap<(u64, u64), Vec<RelPath>>,
}

impl Known for KnownRows {
    fn row(&self, path: &RelPath) -> Option<Row> {
        // A row that cannot be read now was read a moment ago; without it the directory's times are left as they are,
        // and the next push mends them.
        self.rows.row(path).ok().flatten()
    }

    fn names(&self, tuple: &Tuple) -> Cow<'_, [RelPath]> {
        self.names.get(&(tuple.fs, tuple.ino)).map_or(Cow::Borrowed(&[]), Cow::from)
    }
}
