//! From what a replica has and what a version wants to the steps between them. Pure: rows and changes in, steps out.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Action, Step};
use crate::hash::Digest;
use crate::manifest::{Entry, Holds, Kind, Row};
use crate::path::RelPath;

/// What a version wants of each path that differs: an entry, or (`None`) nothing.
pub type Changes = BTreeMap<RelPath, Option<Entry>>;

/// What the planner knows about the replica.
pub struct Situation<'a> {
    /// The rows of every changed path, and of everything beneath a path that goes away or stops being a directory.
    pub rows: &'a BTreeMap<RelPath, Row>,
    /// Paths of regular files whose rows have the digest, for digests that are not staged. Any number, tree order.
    pub sources: &'a HashMap<Digest, Vec<RelPath>>,
    /// Whether the content is staged.
    pub staged: &'a dyn Fn(&Digest) -> bool,
    /// Paths that the master could not read: they and all beneath stay as they are.
    pub holds: &'a Holds,
    /// Whether entries that the master does not have are kept.
    pub no_delete: bool,
}

/// The decided plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In tree order, each path once.
    pub steps: Vec<Step>,
    /// Paths that stay although the master does not have them; their rows become extras.
    pub kept: Vec<RelPath>,
    /// Paths that are as wanted but were marked as extras.
    pub adopted: Vec<RelPath>,
    /// Paths whose content is nowhere: it was asked for and did not come.
    pub missing: Vec<RelPath>,
    /// How many entries are really lost: not those that moved, nor those that change their type.
    pub deletes: u64,
}

/// Decides the steps that turn the rows into what the changes want.
pub fn decide(changes: &Changes, now: &Situation<'_>) -> Plan {
    let mut plan = Plan::default();
    let changes = expand(changes, now);
    let leaving = leaving_inodes(&changes, now);
    let mut movable: HashSet<&RelPath> = leaving;
    for (path, wanted) in &changes {
        let old = now.rows.get(path);
        let action = match wanted {
            None if old.is_none() => continue,
            None if now.no_delete && !in_the_way(path, &changes) => {
                plan.kept.push(path.clone());
                continue;
            }
            None => Action::Delete,
            Some(new) if old.is_some_and(|row| row.entry == *new) => {
                if old.is_some_and(|row| row.extra) {
                    plan.adopted.push(path.clone());
                }
                continue;
            }
            Some(new) => match choose(path, new, old, now, &mut movable) {
                Some(action) => action,
                None => {
                    plan.missing.push(path.clone());
                    continue;
                }
            },
        };
        plan.steps.push(Step { path: path.clone(), old: old.cloned(), new: wanted.clone(), action });
    }
    plan.deletes = count_deletes(&plan.steps);
    plan
}

/// Adds what follows from the changes: everything beneath a path that goes away or stops being a directory goes away
/// too; and drops what the holds protect.
fn expand(changes: &Changes, now: &Situation<'_>) -> Changes {
    let held = |path: &RelPath| now.holds.covers(path);
    let mut all: Changes =
        changes.iter().filter(|(path, _)| !held(path)).map(|(path, new)| (path.clone(), new.clone())).collect();
    let no_longer_dirs: HashSet<&RelPath> =
        changes.iter().filter(|(_, new)| !new.as_ref().is_some_and(Entry::is_dir)).map(|(path, _)| path).collect();
    for path in now.rows.keys() {
        if all.contains_key(path) || held(path) {
            continue;
        }
        let mut above = path.parent();
        while let Some(dir) = above {
            if no_longer_dirs.contains(&dir) {
                all.insert(path.clone(), None);
                break;
            }
            above = dir.parent();
        }
    }
    all
}

/// Whether an entry beneath a path that becomes something else than a directory: it cannot be kept.
fn in_the_way(path: &RelPath, changes: &Changes) -> bool {
    let mut above = path.parent();
    while let Some(dir) = above {
        if let Some(Some(new)) = changes.get(&dir)
            && !new.is_dir()
        {
            return true;
        }
        above = dir.parent();
    }
    false
}

/// Regular files whose inode loses its name by this plan, so that another name may take it over: each once.
fn leaving_inodes<'a>(changes: &Changes, now: &Situation<'a>) -> HashSet<&'a RelPath> {
    let leaves = |row: &Row, wanted: &Option<Entry>| match wanted {
        None => !now.no_delete,
        Some(new) => new.link.is_some() || new.content().map(|(_, d)| d) != row.entry.content().map(|(_, d)| d),
    };
    now.rows
        .iter()
        .filter(|(_, row)| row.entry.content().is_some() && row.entry.link.is_none() && row.tuple.is_some())
        .filter(|(path, row)| changes.get(*path).is_some_and(|wanted| leaves(row, wanted)))
        .map(|(path, _)| path)
        .collect()
}

fn choose<'a>(
    path: &RelPath,
    new: &Entry,
    old: Option<&Row>,
    now: &'a Situation<'_>,
    movable: &mut HashSet<&'a RelPath>,
) -> Option<Action> {
    // A row without an inode (a device that was refused) is nothing to build on.
    let old = old.filter(|row| row.tuple.is_some());
    if let Some(first) = &new.link {
        return Some(Action::Link { first: first.clone() });
    }
    let same_inode = old.is_some_and(|row| row.entry.link.is_none() && same_body(&row.entry.kind, &new.kind));
    match &new.kind {
        _ if same_inode => Some(Action::Metadata),
        Kind::Dir => Some(Action::MakeDir),
        Kind::File { size: 0, .. } => Some(Action::Make),
        Kind::File { digest, .. } => {
            if (now.staged)(digest) {
                return Some(Action::Content);
            }
            let sources = now.sources.get(digest)?;
            // A name that leaves a hard-link group but keeps its content copies itself.
            let free = sources.iter().find(|from| *from != path && movable.contains(from));
            if let Some(from) = free {
                movable.remove(from);
                return Some(Action::Move { from: from.clone() });
            }
            Some(Action::Copy { from: sources.first()?.clone() })
        }
        _ => Some(Action::Make),
    }
}

/// Whether an inode of kind `old` can become `new` by metadata alone.
fn same_body(old: &Kind, new: &Kind) -> bool {
    match (old, new) {
        (Kind::File { digest: a, .. }, Kind::File { digest: b, .. }) => a == b,
        _ => old == new,
    }
}

/// Deletes that lose something: a name whose very entry appears elsewhere in the same plan was renamed.
fn count_deletes(steps: &[Step]) -> u64 {
    let mut sources: HashSet<&RelPath> = HashSet::new();
    let mut appearing: HashMap<Digest, u64> = HashMap::new();
    for step in steps {
        if let Action::Move { from } = &step.action {
            sources.insert(from);
        }
        if let (None, Some(new)) = (&step.old, &step.new) {
            *appearing.entry(nameless(new)).or_default() += 1;
        }
    }
    let mut lost = 0;
    for step in steps.iter().filter(|step| step.action == Action::Delete) {
        let Some(old) = &step.old else { continue };
        if sources.contains(&step.path) {
            if let Some(n) = appearing.get_mut(&nameless(&old.entry)) {
                *n = n.saturating_sub(1);
            }
            continue;
        }
        match appearing.get_mut(&nameless(&old.entry)) {
            Some(n) if *n > 0 => *n -= 1,
            _ => lost += 1,
        }
    }
    lost
}

/// An entry's identity apart from the names in its hard-link group.
fn nameless(entry: &Entry) -> Digest {
    Entry { link: None, ..entry.clone() }.hash()
}
