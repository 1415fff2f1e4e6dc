//! Changes told relative to the version that a replica stands at: other metadata, or another name for a whole directory.
//!
//! The master finds them, the replica makes ordinary changes of them and of its own rows. Nothing here is believed: the
//! root of the plan tells whether both meant the same, and if not, the trees are compared.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::hash::Digest;
use crate::manifest::{Entry, Metadata, Row};
use crate::path::RelPath;
use crate::wire::{Change, Moved};

/// Of directories that came, those that are what some that went were, with everything beneath them: the topmost, in tree
/// order. Each gone directory serves once, and none that lies in another that serves. `came` is in tree order; neither
/// list has directories that were or are something else.
pub fn moved_dirs<'a>(
    gone: impl IntoIterator<Item = (&'a RelPath, Digest)>,
    came: impl IntoIterator<Item = (&'a RelPath, Digest)>,
) -> Vec<Moved> {
    let mut gone: Vec<_> = gone.into_iter().collect();
    // Of equal ones the topmost first: that leaves those within larger ones to the larger ones.
    gone.sort_by_key(|(path, _)| path.depth());
    let mut by_hash: HashMap<Digest, VecDeque<&RelPath>> = HashMap::new();
    for (path, hash) in gone {
        by_hash.entry(hash).or_default().push_back(path);
    }
    let mut served = Served::default();
    let mut moves: Vec<Moved> = Vec::new();
    for (to, hash) in came {
        if moves.last().is_some_and(|last| to.is_beneath(&last.to)) {
            continue;
        }
        let Some(equal) = by_hash.get_mut(&hash) else { continue };
        // What cannot serve now never can again, so each is looked at once.
        while let Some(from) = equal.pop_front() {
            if served.take(from) {
                moves.push(Moved { from: from.clone(), to: to.clone(), hash });
                break;
            }
        }
    }
    moves
}

/// Directories that are moved away, and those above them.
#[derive(Default)]
struct Served {
    dirs: HashSet<RelPath>,
    above: HashSet<RelPath>,
}

impl Served {
    /// Takes a directory, unless it has a part in another that was taken.
    fn take(&mut self, dir: &RelPath) -> bool {
        let above: Vec<RelPath> = std::iter::successors(dir.parent(), RelPath::parent).collect();
        if self.above.contains(dir) || self.dirs.contains(dir) || above.iter().any(|dir| self.dirs.contains(dir)) {
            return false;
        }
        self.above.extend(above);
        self.dirs.insert(dir.clone())
    }
}

/// Whether all moves are from places apart from each other: then they cannot make more entries than there are.
pub fn are_apart(moves: &[Moved]) -> bool {
    let mut from: Vec<&RelPath> = moves.iter().map(|moved| &moved.from).collect();
    from.sort();
    // In tree order, what lies in a directory follows it.
    from.windows(2).all(|pair| pair[0] != pair[1] && !pair[1].is_beneath(pair[0]))
}

/// The row's entry with other metadata; `None` if it cannot be made from what is there.
pub fn touched(row: Row, metadata: Metadata) -> Option<Change> {
    if !is_whole(&row) {
        return None;
    }
    let Metadata { mode, uid, gid, mtime } = metadata;
    Some(Change { path: row.path, entry: Some(Entry { mode, uid, gid, mtime, ..row.entry }) })
}

/// The entry of a row of the old directory at its new place; `None` if it cannot be made from what is there.
pub fn moved(row: Row, moved: &Moved) -> Option<Change> {
    let beneath = row.path.as_bytes().strip_prefix(moved.from.as_bytes())?;
    let path = RelPath::new([moved.to.as_bytes(), beneath].concat()).ok()?;
    // The names within have changed, so an equal directory has no links into itself; nor may there be any to later names.
    let linked_well = row.entry.link.as_ref().is_none_or(|first| *first < path);
    (is_whole(&row) && linked_well).then_some(Change { path, entry: Some(row.entry) })
}

/// Whether the content that the row tells of, if any, is there.
fn is_whole(row: &Row) -> bool {
    row.tuple.is_some() || !row.entry.needs_content()
}
