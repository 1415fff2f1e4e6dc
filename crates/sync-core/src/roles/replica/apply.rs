//! From the changes of a version to an acknowledgement: plan, stage, flush, publish, flush, look, write down.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::open::{Opened, PRIVILEGE, UNFLUSHED};
use crate::diff;
use crate::fs::{FsError, Known, Observed, Publisher};
use crate::hash::Digest;
use crate::index::{Index, IndexError, Intent, Stand};
use crate::manifest::{Entry, Holds, Refused, Row, Tuple};
use crate::monitor::Item;
use crate::path::RelPath;
use crate::plan::{self, Action, Changes, Plan, Situation, Step};
use crate::roles::tree;
use crate::wire::{Ack, Announce, Refusal, ReplicaStats};

/// From this number of changes on, their rows are found in one pass over all.
const MANY: usize = 5000;

/// A plan, and how far it was carried out.
pub struct Application {
    announce: Announce,
    /// Wanted changes to what is no part of the push here.
    left_alone: Vec<RelPath>,
    /// All but its steps.
    plan: Plan,
    steps: Arc<Vec<Step>>,
    root: Digest,
    stats: ReplicaStats,
    items: Vec<Item>,
    refusal: Option<Refusal>,
    publisher: Option<Publisher>,
    failures: u64,
}

impl Application {
    /// Decides the steps from the replica's own rows, and the root they lead to. A dry run, which moves no content,
    /// takes for granted what is missing.
    pub fn plan(opened: &Opened, announce: &Announce, changes: Changes, copied_bytes: u64) -> Result<Self, IndexError> {
        let staged = |digest: &Digest| match &opened.staging {
            Some(staging) => staging.has(digest),
            None => !opened.has(digest),
        };
        Self::plan_with(opened, announce, changes, copied_bytes, &staged)
    }

    /// The plan as it will be once every missing content is staged.
    pub fn preview(opened: &Opened, announce: &Announce, changes: Changes) -> Result<Self, IndexError> {
        Self::plan_with(opened, announce, changes, 0, &|digest| !opened.has(digest))
    }

    fn plan_with(
        opened: &Opened,
        announce: &Announce,
        changes: Changes,
        copied_bytes: u64,
        staged: &dyn Fn(&Digest) -> bool,
    ) -> Result<Self, IndexError> {
        let holds = Holds::new(announce.holds.iter().chain(opened.holds.iter()).cloned());
        let rows = touched_rows(&opened.index, &changes)?;
        let sources = sources(&opened.index, &changes, &rows, staged)?;
        let situation =
            Situation { rows: &rows, sources: &sources, staged, holds: &holds, no_delete: opened.policy.no_delete };
        let mut plan = plan::decide(&changes, &situation);
        let left_alone = changes.iter().filter(|(path, new)| new.is_some() && opened.apart.covers(path));
        let left_alone = left_alone.map(|(path, _)| path.clone()).collect();
        let root = root_after(opened, &changes, &Holds::new(announce.holds.iter().cloned()))?;
        let stats = count(&plan, copied_bytes);
        let items = match opened.policy.itemize {
            true => plan.steps.iter().filter_map(itemize).collect(),
            false => Vec::new(),
        };
        let refusal = too_many_deletes(opened, &plan);
        let announce = announce.clone();
        let steps = Arc::new(std::mem::take(&mut plan.steps));
        Ok(Self { announce, left_alone, plan, steps, root, stats, items, refusal, publisher: None, failures: 0 })
    }

    /// Why the plan is not to be carried out.
    pub fn refusal(&self) -> Option<Refusal> {
        // A plan that does not even lead to the announced root will be made anew.
        self.refusal.clone().filter(|_| self.root == self.announce.version.root)
    }

    /// The hash of the tree that the plan leads to.
    pub fn root(&self) -> Digest {
        self.root
    }

    /// The changed entries, if they were asked for.
    pub fn items(&self) -> Vec<Item> {
        self.items.clone()
    }

    /// Stages everything, flushes it, and records the intent. Acknowledges at once if there is nothing to publish.
    pub fn prepare(&mut self, opened: &mut Opened) -> Result<Option<Ack>, String> {
        let missing = "its content could not be had; the next push tries again";
        let mut failed: Vec<FsError> =
            self.plan.missing.iter().map(|path| FsError::because("update", path, missing)).collect();
        let why = "something is mounted there, or it is our own state directory: it is left alone";
        failed.extend(self.left_alone.iter().map(|path| FsError::because("update", path, why)));
        self.failures += failed.len() as u64;
        opened.report(failed);
        let Some(staging) = opened.staging.clone() else { return Ok(Some(self.ack())) };
        check_place(opened)?;
        if self.steps.is_empty() {
            if opened.is_unflushed().map_err(|e| e.to_string())? {
                staging.flush().map_err(|e| e.to_string())?;
            }
            return self.conclude(opened, &[]).map(Some);
        }
        let known = KnownRows { index: opened.index.clone(), names: opened.names.clone() };
        let mut publisher = Publisher::new(staging.clone(), Arc::clone(&self.steps), Box::new(known));
        publisher.prepare();
        self.take_failures(opened, &mut publisher);
        staging.flush().map_err(|e| e.to_string())?;
        // Every session begins with a look at every name, so the paths of an intent would tell nothing new: it is that
        // the stand is none from here on.
        let intent = Intent { target: self.announce.version.id(), paths: Vec::new() };
        opened.index.set_intent(&intent).map_err(|e| e.to_string())?;
        self.publisher = Some(publisher);
        Ok(None)
    }

    /// Makes it visible and durable, and acknowledges what the disk then holds.
    pub fn publish(&mut self, opened: &mut Opened) -> Result<Ack, String> {
        let Some(mut publisher) = self.publisher.take() else { return Err("nothing was prepared".to_owned()) };
        check_place(opened)?;
        publisher.publish();
        self.take_failures(opened, &mut publisher);
        if let Some(staging) = &opened.staging {
            staging.flush().map_err(|e| e.to_string())?;
        }
        let observed = publisher.observe();
        self.take_failures(opened, &mut publisher);
        self.conclude(opened, &observed)
    }

    fn take_failures(&mut self, opened: &mut Opened, publisher: &mut Publisher) {
        let failures = publisher.take_failures();
        self.failures += failures.len() as u64;
        opened.report(failures);
    }

    /// Writes down what is on disk, and where the replica stands, in one transaction.
    fn conclude(&mut self, opened: &mut Opened, observed: &[Observed]) -> Result<Ack, String> {
        let conclusion = Conclusion::new(self, opened, observed).map_err(|e| e.to_string())?;
        let version = &self.announce.version;
        // What cannot be looked at here is not known to be identical.
        let unseen = opened.holds.iter().any(|hold| !opened.apart.covers(hold));
        let exact = conclusion.root == version.root && self.failures == 0 && !unseen;
        let stand =
            Stand { version: version.id(), number: version.number, lineage: version.lineage, root: conclusion.root };
        let stands = opened.index.stand().map_err(|e| e.to_string())?;
        let flushed = !opened.is_unflushed().map_err(|e| e.to_string())?;
        let written = conclusion.rows.is_empty() && conclusion.deletes.is_empty();
        let unchanged = written && flushed && exact && stands == Some(stand);
        if !unchanged {
            let privilege = [u8::from(rustix::process::geteuid().is_root())];
            opened
                .index
                .commit_with(0, |commit| -> Result<(), IndexError> {
                    conclusion.deletes.iter().try_for_each(|path| commit.delete(path).map(drop))?;
                    conclusion.rows.iter().try_for_each(|row| commit.upsert(row))?;
                    commit.set_meta(PRIVILEGE, Some(&privilege))?;
                    commit.set_meta(UNFLUSHED, None)?;
                    commit.set_stand(exact.then_some(&stand))?;
                    commit.clear_intent()
                })
                .map_err(|e| e.to_string())?;
        }
        if self.failures == 0 {
            opened.completed();
        }
        self.root = conclusion.root;
        let mut ack = self.ack();
        ack.refused = conclusion.refused;
        Ok(ack)
    }

    fn ack(&self) -> Ack {
        Ack { version: self.announce.version.id(), root: self.root, stats: self.stats.clone(), refused: [0; 6] }
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

/// What the index shall say after publishing.
struct Conclusion {
    rows: Vec<Row>,
    deletes: Vec<RelPath>,
    root: Digest,
    refused: [u64; 6],
}

impl Conclusion {
    fn new(application: &Application, opened: &Opened, observed: &[Observed]) -> Result<Self, IndexError> {
        let index = &opened.index;
        let steps: HashMap<&RelPath, &Step> = application.steps.iter().map(|step| (&step.path, step)).collect();
        let mut rows = Vec::new();
        let mut deletes = Vec::new();
        let mut refused = [0; 6];
        for seen in observed {
            let step = steps.get(&seen.path);
            let entry = match step {
                Some(step) => step.new.clone(),
                None => index.row(&seen.path)?.map(|row| row.entry),
            };
            let Some(entry) = entry else {
                deletes.push(seen.path.clone());
                continue;
            };
            if step.is_some() {
                for (count, (kind, _)) in refused.iter_mut().zip(Refused::KINDS) {
                    *count += u64::from(seen.refused.has(kind));
                }
            }
            rows.push(row(seen, entry));
        }
        for (paths, extra) in [(&application.plan.kept, true), (&application.plan.adopted, false)] {
            for path in paths {
                rows.extend(index.row(path)?.map(|row| Row { extra, ..row }));
            }
        }
        for hold in &application.announce.holds {
            let mut held = index.cursor_beneath(hold)?;
            rows.extend(index.row(hold)?.map(|row| Row { extra: true, ..row }));
            while let Some(row) = held.next()? {
                if !row.extra && row.path != *hold {
                    rows.push(Row { extra: true, ..row });
                }
            }
        }
        rows.sort_by(|a, b| a.path.cmp(&b.path));
        rows.dedup_by(|a, b| a.path == b.path);
        let root = root_of(opened, &rows, &deletes, &application.announce.holds)?;
        Ok(Self { rows, deletes, root, refused })
    }
}

fn row(seen: &Observed, entry: Entry) -> Row {
    Row {
        path: seen.path.clone(),
        entry,
        tuple: seen.tuple,
        proven: seen.proven,
        refused: seen.refused,
        extra: false,
        mount: seen.mount,
    }
}

/// The hash of the tree once these rows are written and those deleted.
fn root_of(opened: &Opened, rows: &[Row], deletes: &[RelPath], holds: &[RelPath]) -> Result<Digest, IndexError> {
    if rows.is_empty() && deletes.is_empty() && holds.is_empty() {
        return Ok(opened.tree.root);
    }
    let skipped = |row: &Row| opened.ignores(row);
    let mut overlay: tree::Overlay<'_> = deletes.iter().map(|path| (path, None)).collect();
    overlay.extend(rows.iter().map(|row| {
        let hash = (!skipped(row)).then(|| (row.entry.hash(), row.entry.is_dir()));
        (&row.path, hash)
    }));
    if holds.is_empty() {
        return Ok(tree::rehash(&opened.index, opened.tree.clone(), &overlay, &skipped)?.root);
    }
    let holds = Holds::new(holds.iter().cloned());
    Ok(tree::hash_with(&opened.index, &overlay, &holds, &skipped)?.root)
}

/// The rows of every changed path, and of all beneath one that goes away or stops being a directory.
fn touched_rows(index: &Index, changes: &Changes) -> Result<BTreeMap<RelPath, Row>, IndexError> {
    let mut rows = BTreeMap::new();
    if changes.len() < MANY {
        let paths: Vec<RelPath> = changes.keys().cloned().collect();
        rows.extend(index.rows_for(&paths)?.into_iter().flatten().map(|row| (row.path.clone(), row)));
    } else {
        // One pass over all rows is cheaper than looking up so many.
        let mut cursor = index.cursor()?;
        while let Some(row) = cursor.next()? {
            if changes.contains_key(&row.path) {
                rows.insert(row.path.clone(), row);
            }
        }
    }
    let mut closed: Option<RelPath> = None;
    let mut beneath = Vec::new();
    for (path, wanted) in changes {
        let inside = closed.as_ref().is_some_and(|top| path.is_beneath(top));
        let closes = !wanted.as_ref().is_some_and(Entry::is_dir);
        if !inside && closes && rows.get(path).is_some_and(|row| row.entry.is_dir()) {
            let mut cursor = index.cursor_beneath(path)?;
            while let Some(row) = cursor.next()? {
                beneath.push(row);
            }
            closed = Some(path.clone());
        }
    }
    rows.extend(beneath.into_iter().map(|row| (row.path.clone(), row)));
    Ok(rows)
}

/// Files of the replica that hold a content which is needed and not staged.
fn sources(
    index: &Index,
    changes: &Changes,
    rows: &BTreeMap<RelPath, Row>,
    staged: &dyn Fn(&Digest) -> bool,
) -> Result<HashMap<Digest, Vec<RelPath>>, IndexError> {
    let mut needed: HashMap<Digest, Vec<RelPath>> = HashMap::new();
    for (path, wanted) in changes {
        let Some(new) = wanted.as_ref().filter(|new| new.needs_content()) else { continue };
        let Some((_, digest)) = new.content() else { continue };
        let there = rows.get(path).is_some_and(|row| row.entry.content() == new.content() && row.entry.link.is_none());
        if !there && !staged(&digest) {
            needed.entry(digest).or_default();
        }
    }
    if needed.is_empty() {
        return Ok(needed);
    }
    let mut cursor = index.cursor()?;
    while let Some(row) = cursor.next()? {
        if let (Some((_, digest)), Some(_)) = (row.entry.content(), row.tuple)
            && let Some(paths) = needed.get_mut(&digest)
        {
            paths.push(row.path);
        }
    }
    needed.retain(|_, paths| !paths.is_empty());
    Ok(needed)
}

/// The hash of the tree that the changes lead to.
fn root_after(opened: &Opened, changes: &Changes, holds: &Holds) -> Result<Digest, IndexError> {
    if changes.is_empty() && holds.is_empty() {
        return Ok(opened.tree.root);
    }
    let overlay: tree::Overlay<'_> =
        changes.iter().map(|(path, new)| (path, new.as_ref().map(|e| (e.hash(), e.is_dir())))).collect();
    let ignored = |row: &Row| opened.ignores(row);
    match holds.is_empty() {
        true => Ok(tree::rehash(&opened.index, opened.tree.clone(), &overlay, &ignored)?.root),
        false => Ok(tree::hash_with(&opened.index, &overlay, holds, &ignored)?.root),
    }
}

fn count(plan: &Plan, copied_bytes: u64) -> ReplicaStats {
    // Names that went because their content moved are not counted twice.
    let mut stats = ReplicaStats { reused_bytes: copied_bytes, deleted: plan.deletes, ..ReplicaStats::default() };
    for step in plan.steps.iter().filter(|step| step.action != Action::Delete) {
        let counter = match (&step.action, &step.old) {
            (Action::Metadata, _) => &mut stats.metadata_only,
            (Action::Move { .. }, _) => &mut stats.moved,
            (_, None) => &mut stats.created,
            (_, Some(_)) => &mut stats.updated,
        };
        *counter += 1;
        if let (Action::Move { .. } | Action::Copy { .. }, Some(new)) = (&step.action, &step.new) {
            stats.reused_bytes += new.content().map_or(0, |(size, _)| size);
        }
    }
    stats
}

fn itemize(step: &Step) -> Option<Item> {
    diff::item(&step.path, step.old.as_ref().map(|row| &row.entry), step.new.as_ref(), &step.action)
}

fn too_many_deletes(opened: &Opened, plan: &Plan) -> Option<Refusal> {
    let limit = opened.policy.max_delete?;
    (plan.deletes > limit).then(|| Refusal {
        max_delete: true,
        reason: format!(
            "the plan would delete {} entries, more than the {limit} that --max-delete allows; nothing was changed",
            plan.deletes
        ),
    })
}

/// The index as the publisher asks it.
struct KnownRows {
    index: Index,
    names: HashMap<(u64, u64), Vec<RelPath>>,
}

impl Known for KnownRows {
    fn row(&self, path: &RelPath) -> Option<Row> {
        // A row that cannot be read now was read a moment ago; without it the directory's times are left as they are,
        // and the next push mends them.
        self.index.row(path).ok().flatten()
    }

    fn names(&self, tuple: &Tuple) -> Vec<RelPath> {
        self.names.get(&(tuple.fs, tuple.ino)).cloned().unwrap_or_default()
    }
}
