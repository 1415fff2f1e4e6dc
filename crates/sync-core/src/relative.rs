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

/// Bytes of paths that [`Served`] holds: deep directories have many above them. What finds no room is told in full.
const MOST_ABOVE: usize = 64 << 20;

/// Directories that are moved away, and those above them.
#[derive(Default)]
struct Served {
    dirs: HashSet<RelPath>,
    above: HashSet<RelPath>,
    bytes: usize,
}

impl Served {
    /// Takes a directory, unless it has a part in another that was taken.
    fn take(&mut self, dir: &RelPath) -> bool {
        // All that is above has about half of its length on average.
        let bytes = self.bytes.saturating_add(dir.depth().saturating_mul(dir.as_bytes().len()) / 2);
        if bytes > MOST_ABOVE {
            return false;
        }
        let above: Vec<RelPath> = std::iter::successors(dir.parent(), RelPath::parent).collect();
        if self.above.contains(dir) || self.dirs.contains(dir) || above.iter().any(|dir| self.dirs.contains(dir)) {
            return false;
        }
        self.bytes = bytes;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Kind, Refused, Time, Tuple};

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    fn moves(gone: &[(&str, u8)], came: &[(&str, u8)]) -> Vec<(String, String)> {
        let with_hashes =
            |dirs: &[(&str, u8)]| dirs.iter().map(|(dir, hash)| (path(dir), Digest([*hash; 32]))).collect::<Vec<_>>();
        let (gone, came) = (with_hashes(gone), with_hashes(came));
        let moves =
            moved_dirs(gone.iter().map(|(dir, hash)| (dir, *hash)), came.iter().map(|(dir, hash)| (dir, *hash)));
        assert!(are_apart(&moves), "{moves:?}");
        moves.iter().map(|Moved { from, to, .. }| (from.display(), to.display())).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect()
    }

    #[test]
    fn a_directory_that_moved_is_found_by_its_hash_and_what_is_in_it_goes_with_it() {
        assert_eq!(moves(&[("a", 1), ("a/b", 2)], &[("x", 1), ("x/b", 2)]), pairs(&[("a", "x")]));
        // The top has changed: what is in it has not.
        assert_eq!(
            moves(&[("a", 1), ("a/b", 2), ("a/c", 3)], &[("x", 9), ("x/b", 2), ("x/c", 3)]),
            pairs(&[("a/b", "x/b"), ("a/c", "x/c")])
        );
        assert_eq!(moves(&[("a", 1)], &[("x", 2)]), []);
        assert_eq!(moves(&[], &[("x", 2)]), []);
    }

    #[test]
    fn each_directory_serves_once_and_none_in_another() {
        assert_eq!(moves(&[("a", 1)], &[("x", 1), ("y", 1)]), pairs(&[("a", "x")]));
        assert_eq!(moves(&[("a", 1), ("b", 1)], &[("x", 1), ("y", 1), ("z", 1)]), pairs(&[("a", "x"), ("b", "y")]));
        // `b` rather than `a/s`, which goes with `a`.
        assert_eq!(
            moves(&[("a", 1), ("a/s", 2), ("b", 2)], &[("w", 2), ("x", 1), ("x/s", 2)]),
            pairs(&[("b", "w"), ("a", "x")])
        );
        // `a/s` is away with `a` before it could serve for `y`.
        assert_eq!(moves(&[("a", 1), ("a/s", 2)], &[("x", 1), ("x/s", 2), ("y", 2)]), pairs(&[("a", "x")]));
        // `a/s` is away before `a` could go: then `a` is told in full.
        assert_eq!(moves(&[("a", 1), ("a/s", 2)], &[("w", 2), ("x", 1), ("x/s", 2)]), pairs(&[("a/s", "w")]));
    }

    /// Looked at again for each other, they would take minutes.
    #[test]
    fn many_equal_directories_are_looked_at_once_each() {
        let names = |prefix: &str| (0..50_000).map(|i| path(&format!("{prefix}{i:05}/d"))).collect::<Vec<_>>();
        let (gone, came) = (names("a"), names("b"));
        let hash = Digest([1; 32]);
        let moves = moved_dirs(gone.iter().map(|dir| (dir, hash)), came.iter().map(|dir| (dir, hash)));
        assert_eq!(moves.len(), 50_000);
        assert!(are_apart(&moves));
    }

    /// A path of 32,768 names would have a gigabyte of paths above it.
    #[test]
    fn a_very_deep_directory_is_told_in_full() {
        let deep = "a/".repeat(32_000) + "a";
        assert_eq!(moves(&[("b", 2), (&deep, 1)], &[("x", 1), ("y", 2)]), pairs(&[("b", "y")]));
    }

    #[test]
    fn places_in_each_other_are_not_apart() {
        let moves = |from: &[&str]| -> Vec<Moved> {
            let moved = |from: &&str| Moved { from: path(from), to: path("to"), hash: Digest([0; 32]) };
            from.iter().map(moved).collect()
        };
        for good in [&["a", "b"][..], &["a!", "a"], &["a/b", "a/c", "a!"]] {
            assert!(are_apart(&moves(good)), "{good:?}");
        }
        for bad in [&["a", "a"][..], &["a/b", "a"], &["a", "b", "a/c/d"], &["a", "a!", "a/b"]] {
            assert!(!are_apart(&moves(bad)), "{bad:?}");
        }
    }

    fn row(at: &str, link: Option<&str>, is_there: bool) -> Row {
        let time = Time { sec: 1, nsec: 2 };
        let entry = Entry {
            kind: Kind::File { size: 3, digest: Digest::of(b"abc") },
            mode: 0o644,
            uid: 1,
            gid: 2,
            mtime: time,
            xattrs: Box::new([(b"user.a"[..].into(), b"1"[..].into())]),
            link: link.map(path),
        };
        let tuple = is_there.then_some(Tuple { fs: 1, ino: 2, size: 3, mtime: time, ctime: time });
        Row { path: path(at), entry, tuple, proven: true, refused: Refused::default(), extra: false, mount: false }
    }

    #[test]
    fn a_row_becomes_the_entry_with_other_metadata_or_at_another_place() {
        let metadata = Metadata { mode: 0o600, uid: 3, gid: 4, mtime: Time { sec: 5, nsec: 6 } };
        let old = row("a/b", Some("0"), true);
        let change = touched(old.clone(), metadata).unwrap();
        let new = change.entry.unwrap();
        assert_eq!((change.path, new.metadata()), (path("a/b"), metadata));
        assert_eq!(
            (new.kind, new.xattrs, new.link),
            (old.entry.kind.clone(), old.entry.xattrs.clone(), Some(path("0")))
        );
        assert_eq!(touched(row("a/b", None, false), metadata), None, "its content is not there");

        let one = Moved { from: path("a"), to: path("x/y"), hash: Digest([0; 32]) };
        let change = moved(old.clone(), &one).unwrap();
        assert_eq!((change.path, change.entry), (path("x/y/b"), Some(old.entry)));
        assert_eq!(moved(row("a", None, true), &one).unwrap().path, path("x/y"));
        assert_eq!(moved(row("a/b", Some("z"), true), &one), None, "its group begins after it");
        assert_eq!(moved(row("a/b", None, false), &one), None, "its content is not there");
        let far = Moved { to: path(&"abc/".repeat(16_383)[..65_531]), ..one };
        assert!(moved(row("a", None, true), &far).is_some());
        assert_eq!(moved(row("a/long", None, true), &far), None, "its path is too long");
    }
}
