//! From what a replica has and what a version wants to the steps between them. Pure: rows and changes in, steps out.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::{Action, MovedDir, Step};
use crate::hash::Digest;
use crate::manifest::{Entry, Holds, Kind, Row};
use crate::path::RelPath;

/// What a version wants of each path that differs: an entry, or (`None`) nothing. Boxed, because a first push has tens of
/// thousands, which come in one list, are sorted into a map and leave it as steps.
pub type Changes = BTreeMap<RelPath, Option<Box<Entry>>>;

/// What the planner knows about the replica.
pub struct Situation<'a> {
    /// The rows of every changed path, and of everything beneath a path that goes away or stops being a directory.
    pub rows: BTreeMap<RelPath, Row>,
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
    /// Directories that are renamed whole, in the order of where they shall be: each with one step for all it holds.
    pub moved: Vec<MovedDir>,
    /// Paths that stay although the master does not have them; their rows become extras.
    pub kept: Vec<RelPath>,
    /// Paths that are as wanted but were marked as extras.
    pub adopted: Vec<RelPath>,
    /// Paths whose content is nowhere: it was asked for and did not come.
    pub missing: Vec<RelPath>,
    /// Paths that are left as they are, each with the directory that would have to go for it and is kept.
    pub blocked: BTreeMap<RelPath, RelPath>,
    /// How many entries are really lost: not those that moved, nor those that change their type.
    pub deletes: u64,
    /// New names of entries that lose theirs and have no content to be moved, such as links and empty files, or get it in
    /// another way: each with the old name.
    pub renamed: BTreeMap<RelPath, RelPath>,
}

impl Plan {
    /// Adds directories that are renamed whole, which the changes and rows that it was decided from were without.
    pub fn rename(&mut self, moved: Vec<MovedDir>) {
        self.steps.extend(moved.iter().filter_map(MovedDir::step));
        self.steps.sort_by(|a, b| a.path.cmp(&b.path));
        self.moved = moved;
    }
}

/// Takes out further names of files whose first name is in no change, and is not what they are to be by now. Only of a stretch of a
/// tree: what came before it may be another version's, and no root tells of that before the end.
pub fn take_out_stale_links<E>(
    changes: &mut Changes,
    mut entry_of: impl FnMut(&RelPath) -> Result<Option<Entry>, E>,
) -> Result<(), E> {
    let mut stale = Vec::new();
    for (path, new) in &*changes {
        let Some((new, first)) = new.as_deref().and_then(|new| Some((new, new.link.as_ref()?))) else { continue };
        if changes.contains_key(first) {
            continue;
        }
        let plain = |entry: &Entry| Entry { link: None, ..entry.clone() };
        if entry_of(first)?.is_none_or(|known| plain(&known) != plain(new)) {
            stale.push(path.clone());
        }
    }
    stale.iter().for_each(|path| drop(changes.remove(path)));
    Ok(())
}

/// Decides the steps that turn the rows into what the changes want.
pub fn decide(changes: Changes, now: Situation<'_>) -> Plan {
    let mut plan = Plan::default();
    let changes = expand(changes, &now);
    let actions = actions(&changes, &now, &mut plan);
    let count = actions.iter().flatten().count();
    let mut rows = now.rows.into_iter().peekable();
    let steps = changes.into_iter().zip(actions).filter_map(|((path, new), action)| {
        while rows.next_if(|(at, _)| *at < path).is_some() {}
        let old = rows.next_if(|(at, _)| *at == path).map(|(_, row)| Box::new(row));
        Some(Step { old, new, action: action?, path })
    });
    // Exactly as many as there are, or it would be the largest list by far.
    plan.steps = Vec::with_capacity(count);
    plan.steps.extend(steps);
    (plan.deletes, plan.renamed) = (lost(&plan.steps), renamed(&plan.steps));
    plan
}

/// What to do at each changed path, if anything; the others go into the plan's lists.
fn actions(changes: &Changes, now: &Situation<'_>, plan: &mut Plan) -> Vec<Option<Action>> {
    plan.blocked = blocked(changes, now);
    let missing = missing(changes, now, &plan.blocked);
    let mut stays = missing.clone();
    stays.extend(plan.blocked.keys().cloned());
    let mut sources = Sources { movable: leaving_inodes(changes, &stays, now), looked_at: HashMap::new() };
    let mut decide = |path: &RelPath, wanted: Option<&Entry>, old: Option<&Row>| {
        if plan.blocked.contains_key(path) {
            return None;
        }
        if missing.contains(path) {
            plan.missing.push(path.clone());
            return None;
        }
        // Nothing makes room for what does not come.
        if wanted.is_none() && is_beneath_any(path, &missing) {
            return None;
        }
        match wanted {
            None if old.is_none() => None,
            None if now.no_delete && !in_the_way(path, changes, &plan.blocked) => {
                plan.kept.push(path.clone());
                None
            }
            None => Some(Action::Delete),
            Some(new) if old.is_some_and(|row| row.entry == *new) => {
                if old.is_some_and(|row| row.extra) {
                    plan.adopted.push(path.clone());
                }
                None
            }
            Some(new) => Some(choose(path, new, old, now, &mut sources)),
        }
    };
    beside(changes, &now.rows).map(|(path, wanted, old)| decide(path, wanted, old)).collect()
}

/// Adds what follows from the changes: everything beneath a path that goes away or stops being a directory goes away
/// too; and drops what the holds protect.
fn expand(mut changes: Changes, now: &Situation<'_>) -> Changes {
    let held = |path: &RelPath| now.holds.covers(path);
    let closes = |new: Option<&Entry>, old: Option<&Row>| {
        !new.is_some_and(Entry::is_dir) && old.is_some_and(|row| row.entry.is_dir())
    };
    let closed = beside(&changes, &now.rows).filter(|(_, new, old)| closes(*new, *old));
    let no_longer_dirs: HashSet<&RelPath> = closed.map(|(path, ..)| path).collect();
    let beneath = |path: &RelPath| has_above(path, &|dir| no_longer_dirs.contains(dir));
    let new = |path: &&RelPath| !changes.contains_key(*path) && !held(path) && beneath(path);
    let gone: Vec<RelPath> = match no_longer_dirs.is_empty() {
        true => Vec::new(),
        false => now.rows.keys().filter(new).cloned().collect(),
    };
    changes.retain(|path, _| !held(path));
    changes.extend(gone.into_iter().map(|path| (path, None)));
    changes
}

/// Whether a directory above `path` is one of those.
fn has_above(path: &RelPath, is_one: &dyn Fn(&RelPath) -> bool) -> bool {
    let mut above = path.parent();
    while let Some(dir) = above {
        if is_one(&dir) {
            return true;
        }
        above = dir.parent();
    }
    false
}

fn is_beneath_any(path: &RelPath, dirs: &HashSet<RelPath>) -> bool {
    !dirs.is_empty() && has_above(path, &|dir| dirs.contains(dir))
}

/// Where nothing is deleted, a directory that holds anything does not make way for what is none; nor are names made that
/// shall be links to that. As with rsync, whoever wants it so moves the directory away, or lets go what is in it.
fn blocked(changes: &Changes, now: &Situation<'_>) -> BTreeMap<RelPath, RelPath> {
    let mut blocked = BTreeMap::new();
    if !now.no_delete {
        return blocked;
    }
    let is_there = |row: &Row| row.tuple.is_some();
    let holds_any = |dir: &RelPath| {
        let mut beneath = now.rows.range::<RelPath, _>(dir..).skip(1).take_while(|(path, _)| path.is_beneath(dir));
        beneath.any(|(_, row)| is_there(row))
    };
    for (path, wanted, old) in beside(changes, &now.rows) {
        let Some(new) = wanted.filter(|new| !new.is_dir()) else { continue };
        if old.is_some_and(|row| row.entry.is_dir() && is_there(row)) && holds_any(path) {
            blocked.insert(path.clone(), path.clone());
        } else if let Some(dir) = new.link.as_ref().and_then(|first| blocked.get(first)) {
            blocked.insert(path.clone(), RelPath::clone(dir));
        }
    }
    blocked
}

/// Files whose content is nowhere, and the names that shall be links to them. They stay what they are, so their inodes
/// are nobody else's, and a link to them would show the old content under a new name.
fn missing(changes: &Changes, now: &Situation<'_>, blocked: &BTreeMap<RelPath, RelPath>) -> HashSet<RelPath> {
    let mut missing = HashSet::new();
    for (path, wanted, old) in beside(changes, &now.rows) {
        let Some(new) = wanted.filter(|_| !blocked.contains_key(path)) else { continue };
        // A group's first name comes before the others.
        let is_missing = match (&new.link, &new.kind) {
            (Some(first), _) => missing.contains(first),
            (None, Kind::File { size: 1.., digest }) => {
                let stays = old.is_some_and(|row| keeps_inode(row, new));
                !stays && !(now.staged)(digest) && now.sources.get(digest).is_none_or(Vec::is_empty)
            }
            _ => false,
        };
        if is_missing {
            missing.insert(path.clone());
        }
    }
    missing
}

/// Whether an entry beneath a path that becomes something else than a directory: it cannot be kept.
fn in_the_way(path: &RelPath, changes: &Changes, blocked: &BTreeMap<RelPath, RelPath>) -> bool {
    let makes_way = |new: &Entry, dir: &RelPath| !new.is_dir() && !blocked.contains_key(dir);
    has_above(path, &|dir| {
        changes.get(dir).is_some_and(|wanted| wanted.as_ref().is_some_and(|new| makes_way(new, dir)))
    })
}

/// Regular files whose inode loses its name by this plan, so that another name may take it over: each once.
fn leaving_inodes<'a>(changes: &Changes, undone: &HashSet<RelPath>, now: &'a Situation<'_>) -> HashSet<&'a RelPath> {
    let leaves = |row: &Row, wanted: Option<&Entry>| match wanted {
        None => !now.no_delete,
        Some(new) => new.link.is_some() || new.content().map(|(_, d)| d) != row.entry.content().map(|(_, d)| d),
    };
    let leaves = |(path, wanted, row): (_, _, Option<&'a Row>)| {
        let row = row.filter(|row| row.entry.content().is_some() && row.entry.link.is_none() && row.tuple.is_some())?;
        let stays = !leaves(row, wanted) || undone.contains(path) || is_beneath_any(path, undone);
        (!stays).then_some(&row.path)
    };
    beside(changes, &now.rows).filter_map(leaves).collect()
}

/// Every change with the row of its path: a walk along both, which are in tree order, rather than a search for each.
pub fn beside<'c, 'r>(
    changes: &'c Changes,
    rows: &'r BTreeMap<RelPath, Row>,
) -> impl Iterator<Item = (&'c RelPath, Option<&'c Entry>, Option<&'r Row>)> {
    let mut rows = rows.iter().peekable();
    changes.iter().map(move |(path, wanted)| {
        while rows.next_if(|(at, _)| *at < path).is_some() {}
        (path, wanted.as_deref(), rows.next_if(|(at, _)| *at == path).map(|(_, row)| row))
    })
}

/// Inodes that may be taken over.
struct Sources<'a> {
    /// By the name they lose.
    movable: HashSet<&'a RelPath>,
    /// Of each content, how many of its sources need not be looked at again: with thousands of equal files, each is
    /// looked at once.
    looked_at: HashMap<Digest, usize>,
}

impl<'a> Sources<'a> {
    /// The next free inode among `all` that is not the one at `path`.
    fn take(&mut self, digest: Digest, all: &'a [RelPath], path: &RelPath) -> Option<&'a RelPath> {
        let looked_at = self.looked_at.entry(digest).or_default();
        while let Some(from) = all.get(*looked_at) {
            if from == path {
                // It may serve another name: look behind it, but do not pass it.
                let behind = all[*looked_at + 1..].iter().find(|from| self.movable.contains(from));
                return behind.filter(|from| self.movable.remove(from));
            }
            *looked_at += 1;
            if self.movable.remove(from) {
                return Some(from);
            }
        }
        None
    }
}

/// How an entry is made whose content, if it has any, is staged or among the sources.
fn choose<'a>(
    path: &RelPath,
    new: &Entry,
    old: Option<&Row>,
    now: &'a Situation<'_>,
    sources: &mut Sources<'a>,
) -> Action {
    if let Some(first) = &new.link {
        return Action::Link { first: first.clone() };
    }
    if old.is_some_and(|row| keeps_inode(row, new)) {
        return Action::Metadata;
    }
    match &new.kind {
        Kind::Dir => Action::MakeDir,
        Kind::File { size: 1.., digest } if !(now.staged)(digest) => {
            let all = now.sources.get(digest).map_or(&[][..], Vec::as_slice);
            // A name that leaves a hard-link group but keeps its content copies itself.
            match sources.take(*digest, all, path) {
                Some(from) => Action::Move { from: from.clone() },
                None => all.first().map_or(Action::Content, |from| Action::Copy { from: from.clone() }),
            }
        }
        Kind::File { size: 1.., .. } => Action::Content,
        _ => Action::Make,
    }
}

/// Whether metadata alone turns what is there into `new`.
fn keeps_inode(old: &Row, new: &Entry) -> bool {
    // A row without an inode (a device that was refused) is nothing to build on.
    old.tuple.is_some() && old.entry.link.is_none() && new.link.is_none() && same_body(&old.entry.kind, &new.kind)
}

/// Whether an inode of kind `old` can become `new` by metadata alone.
fn same_body(old: &Kind, new: &Kind) -> bool {
    match (old, new) {
        (Kind::File { digest: a, .. }, Kind::File { digest: b, .. }) => a == b,
        _ => old == new,
    }
}

/// How many deletes lose something: what appears elsewhere in the same plan was renamed. Counted by what it is, so that it
/// does not depend on which of equal files a content is taken from.
fn lost(steps: &[Step]) -> u64 {
    let is_delete = |step: &&Step| step.action == Action::Delete;
    if !steps.iter().any(|step| is_delete(&step)) {
        return 0;
    }
    let mut appearing: HashMap<Digest, u64> = HashMap::new();
    for Step { old, new, .. } in steps {
        let Some(new) = new else { continue };
        let is_there = old.as_ref().map(|row| &row.entry).is_some_and(|old| {
            // A further name goes with the first, unless it becomes one itself.
            substance(old) == substance(new) && (old.link.is_none() || new.link.is_some())
        });
        if !is_there {
            *appearing.entry(substance(new)).or_default() += 1;
        }
    }
    let mut is_lost = |step: &&Step| {
        let Some(old) = &step.old else { return false };
        let places = appearing.get_mut(&substance(&old.entry)).filter(|places| **places > 0);
        places.map(|places| *places -= 1).is_none()
    };
    steps.iter().filter(is_delete).filter(|step| is_lost(step)).count() as u64
}

/// Where deletes appear again whose content is not moved from there: names whose very entry appears elsewhere.
fn renamed(steps: &[Step]) -> BTreeMap<RelPath, RelPath> {
    let mut renamed = BTreeMap::new();
    let is_delete = |step: &&Step| step.action == Action::Delete;
    let deleted: HashSet<&RelPath> = steps.iter().filter(is_delete).map(|step| &step.path).collect();
    if deleted.is_empty() {
        return renamed;
    }
    let mut sources: HashSet<&RelPath> = HashSet::new();
    let mut appearing: HashMap<Digest, VecDeque<&RelPath>> = HashMap::new();
    for step in steps {
        match (&step.action, &step.old, &step.new) {
            (Action::Move { from }, ..) if deleted.contains(from) => drop(sources.insert(from)),
            (_, None, Some(new)) => appearing.entry(nameless(new)).or_default().push_back(&step.path),
            _ => {}
        }
    }
    for step in steps.iter().filter(is_delete).filter(|step| !sources.contains(&step.path)) {
        let Some(old) = &step.old else { continue };
        if let Some(to) = appearing.get_mut(&nameless(&old.entry)).and_then(VecDeque::pop_front) {
            renamed.insert(to.clone(), step.path.clone());
        }
    }
    renamed
}

/// What is lost with an entry: its content, or all of it if it has none.
fn substance(entry: &Entry) -> Digest {
    entry.content().filter(|(size, _)| *size > 0).map_or_else(|| nameless(entry), |(_, digest)| digest)
}

/// An entry's identity apart from the names in its hard-link group.
fn nameless(entry: &Entry) -> Digest {
    match entry.link {
        None => entry.hash(),
        Some(_) => Entry { link: None, ..entry.clone() }.hash(),
    }
}
