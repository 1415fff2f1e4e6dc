//! Directories that can be renamed whole: one is new, one goes away, and what they hold is equal.
//!
//! Found before the steps are decided, because what moves with its directory needs no source, no content and no step of
//! its own. Not found, and moved entry by entry: a directory with another mode or time than its old one; what takes the
//! place of something (so also a swap, or the rotation of three); what a hard link joins with a name elsewhere; what lies
//! beneath a path that becomes something else than a directory, because that must be gone before anything gets a name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Action, Changes, Step};
use crate::manifest::{Entry, Holds, Kind, Row};
use crate::path::RelPath;

/// A directory that is to be renamed, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename {
    /// Where it is.
    pub from: RelPath,
    /// Where it shall be, and nothing is.
    pub to: RelPath,
}

/// A directory that is renamed, with all it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedDir {
    /// Where it is.
    pub from: RelPath,
    /// Where it shall be.
    pub to: RelPath,
    /// Itself and all beneath it, in tree order.
    pub entries: Vec<Moved>,
}

/// An entry whose directory is renamed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// What the index says is there.
    pub old: Row,
    /// Where it shall be.
    pub path: RelPath,
    /// What it shall be: the same, but for the first name of a hard-link group.
    pub new: Box<Entry>,
}

impl MovedDir {
    /// The step that stands for it in a plan; `None` if it holds nothing at all, not even itself.
    pub fn step(&self) -> Option<Step> {
        let new = Some(self.entries.first()?.new.clone());
        Some(Step { path: self.to.clone(), old: None, new, action: Action::MoveDir { from: self.from.clone() } })
    }

    /// The steps that lead to the same entry by entry, in tree order.
    pub fn steps(&self) -> Vec<Step> {
        let delete = |Moved { old, .. }: &Moved| Step {
            path: old.path.clone(),
            old: Some(Box::new(old.clone())),
            new: None,
            action: Action::Delete,
        };
        let mut steps: Vec<Step> = self.entries.iter().map(delete).chain(self.arrivals()).collect();
        steps.sort_by(|a, b| a.path.cmp(&b.path));
        steps
    }

    /// The steps that make it anew, of what is there.
    pub fn arrivals(&self) -> impl Iterator<Item = Step> {
        self.entries.iter().map(|Moved { old, path, new }| {
            let action = match (&new.link, &new.kind) {
                (Some(first), _) => Action::Link { first: first.clone() },
                (None, Kind::Dir) => Action::MakeDir,
                (None, Kind::File { size: 1.., .. }) => Action::Move { from: old.path.clone() },
                _ => Action::Make,
            };
            Step { path: path.clone(), old: None, new: Some(new.clone()), action }
        })
    }
}

impl Moved {
    /// The row that it has once its directory is renamed: the inode is the same, and nothing about it changed.
    pub fn row(&self) -> Row {
        Row { path: self.path.clone(), entry: (*self.new).clone(), ..self.old.clone() }
    }
}

/// Finds directories that can be renamed whole, the topmost of each: in the order of where they shall be. `rows` are
/// those of every changed path, and of everything beneath one that goes away.
pub fn find_renames(changes: &Changes, rows: &BTreeMap<RelPath, Row>, holds: &Holds) -> Vec<Rename> {
    // A first push has no directory that could have moved, and most changes of all.
    if !rows.values().any(|row| row.entry.is_dir() && !row.path.is_root()) {
        return Vec::new();
    }
    let Some(torn) = torn(changes, rows, holds) else { return Vec::new() };
    let gone = Tree::new(gone(changes, rows), &torn, holds);
    if gone.0.is_empty() {
        return Vec::new();
    }
    let new = Tree::new(new(changes, rows), &torn, holds);
    let mut alike: HashMap<u64, Vec<usize>> = HashMap::new();
    for (i, node) in gone.0.iter().enumerate().rev() {
        if let Some(likeness) = node.likeness() {
            alike.entry(likeness).or_default().push(i);
        }
    }
    let mut fates = vec![Fate::Free; gone.0.len()];
    let mut renames = Vec::new();
    let mut i = 0;
    while let Some(node) = new.0.get(i) {
        i += 1;
        let Some(candidates) = node.likeness().and_then(|likeness| alike.get_mut(&likeness)) else { continue };
        // Each is looked at once: what does not fit here is not even alike anywhere.
        let found = std::iter::from_fn(|| candidates.pop())
            .find(|&g| fates[g] == Fate::Free && is_same(&gone.0[g..gone.0[g].end], &new.0[i - 1..node.end]));
        let Some(found) = found else { continue };
        fates[found..gone.0[found].end].fill(Fate::Moves);
        let mut above = gone.0[found].above;
        while let Some(dir) = above {
            fates[dir] = Fate::LosesSome;
            above = gone.0[dir].above;
        }
        renames.push(Rename { from: gone.0[found].path.clone(), to: node.path.clone() });
        i = node.end;
    }
    renames
}

/// Takes what is renamed with its directory out of the changes and the rows.
pub fn take_renamed(renames: Vec<Rename>, changes: &mut Changes, rows: &mut BTreeMap<RelPath, Row>) -> Vec<MovedDir> {
    if renames.is_empty() {
        return Vec::new();
    }
    let tops: BTreeMap<RelPath, usize> = renames.iter().enumerate().map(|(i, r)| (r.from.clone(), i)).collect();
    let mut old: Vec<Vec<Row>> = renames.iter().map(|_| Vec::new()).collect();
    // Built anew in one go, which is cheaper than taking out tens of thousands.
    let mut top: Option<(&RelPath, usize)> = None;
    let mut leaves = |path: &RelPath| {
        if !top.is_some_and(|(top, _)| path.is_beneath(top)) {
            top = tops.get_key_value(path).map(|(top, i)| (top, *i));
        }
        top.map(|(_, i)| i)
    };
    let mut kept = Vec::new();
    for (path, row) in std::mem::take(rows) {
        match leaves(&path) {
            Some(i) => old[i].push(row),
            None => kept.push((path, row)),
        }
    }
    rows.extend(kept);
    let mut moved: Vec<MovedDir> = Vec::with_capacity(renames.len());
    let mut renames = renames.into_iter().zip(old).peekable();
    let mut old = Vec::new().into_iter();
    let mut kept = Vec::new();
    for (path, new) in std::mem::take(changes) {
        if let Some((rename, rows)) = renames.next_if(|(rename, _)| rename.to == path) {
            moved.push(MovedDir { from: rename.from, to: rename.to, entries: Vec::with_capacity(rows.len()) });
            old = rows.into_iter();
        }
        let arrives = moved.last_mut().filter(|dir| path == dir.to || path.is_beneath(&dir.to));
        match (arrives, new) {
            (Some(dir), Some(new)) => dir.entries.extend(old.next().map(|old| Moved { old, path, new })),
            (Some(_), None) => {}
            (None, new) if new.is_some() || leaves(&path).is_none() => kept.push((path, new)),
            (None, _) => {}
        }
    }
    changes.extend(kept);
    moved
}

/// An entry in a subtree that goes or comes.
struct Node<'a> {
    path: &'a RelPath,
    entry: &'a Entry,
    /// The directory above it in the same list.
    above: Option<usize>,
    /// After all beneath it.
    end: usize,
    /// Equal for equal entries with equal entries beneath; `None` if it cannot move with its directory.
    likeness: Option<u64>,
    /// Whether it holds something, and nothing that must not be parted from what lies elsewhere.
    is_whole: bool,
}

impl Node<'_> {
    /// Of a directory that may be renamed by itself.
    fn likeness(&self) -> Option<u64> {
        self.likeness.filter(|_| self.is_whole)
    }
}

/// What becomes of a directory that goes away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Free,
    /// With a directory above it, or itself.
    Moves,
    /// Something beneath it moves.
    LosesSome,
}

/// Subtrees, all their entries in tree order.
struct Tree<'a>(Vec<Node<'a>>);

impl<'a> Tree<'a> {
    fn new(
        entries: impl Iterator<Item = (&'a RelPath, &'a Entry, bool)>,
        torn: &HashSet<RelPath>,
        holds: &Holds,
    ) -> Self {
        let mut tree = Self(Vec::new());
        let mut above: Option<usize> = None;
        for (path, entry, movable) in entries {
            while let Some(dir) = above.filter(|dir| !path.is_beneath(tree.0[*dir].path)) {
                above = tree.close(dir, torn);
            }
            let likeness = (movable && !holds.covers(path)).then(|| likeness_of(entry));
            let i = tree.0.len();
            tree.0.push(Node { path, entry, above, end: i + 1, likeness, is_whole: false });
            if entry.is_dir() {
                above = Some(i);
            } else {
                tree.add(above, path, likeness);
            }
        }
        while let Some(dir) = above {
            above = tree.close(dir, torn);
        }
        tree
    }

    /// Nothing more comes beneath the directory `dir`; gives the one above.
    fn close(&mut self, dir: usize, torn: &HashSet<RelPath>) -> Option<usize> {
        let end = self.0.len();
        let Node { path, above, likeness, .. } = self.0[dir];
        (self.0[dir].end, self.0[dir].is_whole) = (end, end > dir + 1 && !torn.contains(path));
        self.add(above, path, likeness);
        above
    }

    /// Adds a child to what its directory is like.
    fn add(&mut self, dir: Option<usize>, path: &RelPath, child: Option<u64>) {
        let Some(dir) = dir.map(|dir| &mut self.0[dir]) else { return };
        let mix = |(own, child): (u64, u64)| {
            let mut hasher = DefaultHasher::new();
            (own, path.name(), child).hash(&mut hasher);
            hasher.finish()
        };
        dir.likeness = dir.likeness.zip(child).map(mix);
    }
}

fn likeness_of(entry: &Entry) -> u64 {
    let mut hasher = DefaultHasher::new();
    (entry.mode, entry.uid, entry.gid, entry.mtime, entry.link.is_some(), entry.xattrs.len()).hash(&mut hasher);
    std::mem::discriminant(&entry.kind).hash(&mut hasher);
    match &entry.kind {
        Kind::File { size, digest } => (size, digest.prefix()).hash(&mut hasher),
        Kind::Symlink { target } => target.hash(&mut hasher),
        _ => {}
    }
    hasher.finish()
}

/// Directories that go away without anything in their place, with all beneath: each with whether it can move.
fn gone<'a>(
    changes: &'a Changes,
    rows: &'a BTreeMap<RelPath, Row>,
) -> impl Iterator<Item = (&'a RelPath, &'a Entry, bool)> {
    let mut changes = changes.iter().peekable();
    let mut top: Option<&RelPath> = None;
    let mut closed: Option<&RelPath> = None;
    rows.iter().filter_map(move |(path, row)| {
        while changes.next_if(|(at, _)| *at < path).is_some() {}
        let wanted = changes.next_if(|(at, _)| *at == path).map(|(_, new)| new);
        if closed.is_some_and(|closed| path.is_beneath(closed)) {
            return None;
        }
        if !top.is_some_and(|top| path.is_beneath(top)) {
            top = None;
            match wanted {
                Some(None) if row.entry.is_dir() && !path.is_root() => top = Some(path),
                Some(Some(new)) if row.entry.is_dir() && !new.is_dir() => closed = Some(path),
                _ => {}
            }
        }
        top?;
        let stays = row.tuple.is_none() || row.extra || row.mount || wanted.is_some_and(Option::is_some);
        Some((path, &row.entry, !stays))
    })
}

/// Directories where nothing is, with all beneath: each with whether it can be what moved there.
fn new<'a>(
    changes: &'a Changes,
    rows: &'a BTreeMap<RelPath, Row>,
) -> impl Iterator<Item = (&'a RelPath, &'a Entry, bool)> {
    let mut top: Option<&RelPath> = None;
    super::beside(changes, rows).filter_map(move |(path, wanted, row)| {
        let entry = wanted?;
        if !top.is_some_and(|top| path.is_beneath(top)) {
            top = (entry.is_dir() && row.is_none() && !path.is_root()).then_some(path);
        }
        top?;
        Some((path, entry, row.is_none()))
    })
}

/// Bytes of paths of directories that cannot be renamed whole. With more of them, none is.
const MOST_TORN: usize = 64 << 20;

/// Directories that cannot be renamed whole for what lies beneath them: something held, or a name of a hard-link group
/// that has other names elsewhere. `None` if their paths take too much memory: very deep ones do.
fn torn(changes: &Changes, rows: &BTreeMap<RelPath, Row>, holds: &Holds) -> Option<HashSet<RelPath>> {
    let mut torn = HashSet::new();
    let mut bytes = 0usize;
    let mut tear = |path: &RelPath, other: Option<&RelPath>| {
        let mut above = path.parent().filter(|_| bytes <= MOST_TORN);
        while let Some(dir) = above.filter(|dir| !other.is_some_and(|other| other.is_beneath(dir))) {
            above = dir.parent().filter(|_| bytes <= MOST_TORN);
            let len = dir.as_bytes().len();
            if torn.insert(dir) {
                bytes += len;
            }
        }
    };
    holds.iter().for_each(|hold| tear(hold, None));
    let new = changes.iter().filter_map(|(path, new)| Some((path, new.as_ref()?.link.as_ref()?)));
    let old = rows.iter().filter_map(|(path, row)| Some((path, row.entry.link.as_ref()?)));
    for (path, first) in new.chain(old) {
        tear(path, Some(first));
        tear(first, Some(path));
    }
    (bytes <= MOST_TORN).then_some(torn)
}

/// Whether two subtrees differ in nothing but the path of their tops.
fn is_same(old: &[Node<'_>], new: &[Node<'_>]) -> bool {
    let (Some(from), Some(to)) = (old.first(), new.first()) else { return false };
    let (from, to) = (from.path.as_bytes().len(), to.path.as_bytes().len());
    let same_path = |a: &RelPath, b: &RelPath| a.as_bytes().get(from..) == b.as_bytes().get(to..);
    let same = |(old, new): (&Node<'_>, &Node<'_>)| {
        let (a, b) = (old.entry, new.entry);
        let link = match (&a.link, &b.link) {
            (None, None) => true,
            // Both lie beneath the tops, or those would be torn.
            (Some(a), Some(b)) => same_path(a, b),
            _ => false,
        };
        let metadata = a.metadata() == b.metadata() && a.xattrs == b.xattrs;
        link && metadata && a.kind == b.kind && same_path(old.path, new.path)
    };
    old.len() == new.len() && old.iter().zip(new).all(same)
}
