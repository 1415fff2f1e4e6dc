//! What a version changes, told in parts.

use std::collections::{BTreeSet, HashMap};

use crate::hash::Digest;
use crate::manifest::{Row, Version, VersionId};
use crate::path::RelPath;
use crate::roles::survey::Pending;
use crate::session::{Load, Told};
use crate::wire::{Change, Moved, Touched};

/// What the index is about to get, and so what differs from the last version.
pub struct Difference {
    /// The last version and its root; `None` if there is none, and so no row either.
    previous: Option<(VersionId, Digest)>,
    /// In tree order.
    pub pending: Vec<Pending>,
    /// In tree order.
    pub gone: Vec<Row>,
    /// Those of them that are in no directory that is gone as well, which is all that is told.
    gone_tops: Vec<RelPath>,
    /// Directories that came and are what some were that are gone. In tree order.
    moved: Vec<Moved>,
    /// Whether a first look has written its rows ahead, so that these are not all.
    is_indexed: bool,
}

impl Difference {
    /// Of what a look found beside the last version.
    pub fn new(previous: Option<&Version>, pending: Vec<Pending>, gone: Vec<Row>, moved: Vec<Moved>) -> Self {
        let mut gone_tops: Vec<RelPath> = Vec::new();
        for row in &gone {
            if !gone_tops.last().is_some_and(|top| row.path.is_beneath(top)) {
                gone_tops.push(row.path.clone());
            }
        }
        let previous = previous.map(|version| (version.id(), version.root));
        Self { previous, pending, gone, gone_tops, moved, is_indexed: false }
    }

    /// The same of a first look that may have written its rows ahead.
    pub fn indexed(self, is_indexed: bool) -> Self {
        Self { is_indexed, ..self }
    }

    /// Whether the index has what came already: it is told from there.
    pub fn is_indexed(&self) -> bool {
        self.is_indexed
    }

    /// How many rows it concerns.
    pub fn len(&self) -> usize {
        self.pending.len() + self.gone.len()
    }

    /// Whether directories came that are what others were.
    pub fn has_moves(&self) -> bool {
        !self.moved.is_empty()
    }

    /// Whether the version is the last one, and only what proves its entries changed.
    pub fn is_of(&self, version: &Version) -> bool {
        self.previous.is_some_and(|(id, _)| id == version.id())
    }

    /// How many entries go, without those that only get another name: in a directory that moved as a whole, or a file whose
    /// content comes elsewhere. Looks at all that comes if more than `few` go.
    pub fn deletes(&self, few: u64) -> u64 {
        let gone = self.gone.len() as u64;
        if gone <= few { gone } else { self.lost().count() as u64 }
    }

    /// What goes, without what only gets another name. In tree order.
    pub fn lost(&self) -> impl Iterator<Item = &RelPath> {
        let mut came: HashMap<Digest, u64> = HashMap::new();
        for p in self.pending.iter().filter(|p| p.before.is_none()) {
            if let Some((_, digest)) = p.row.entry.content() {
                *came.entry(digest).or_default() += 1;
            }
        }
        let moved: BTreeSet<&RelPath> = self.moved.iter().map(|moved| &moved.from).collect();
        let has_moved = move |path: &RelPath| {
            moved.range::<RelPath, _>(..=path).next_back().is_some_and(|from| *from == path || path.is_beneath(from))
        };
        let mut comes_elsewhere = move |row: &Row| {
            let place = row.entry.content().and_then(|(_, digest)| came.get_mut(&digest)).filter(|places| **places > 0);
            place.map(|places| *places -= 1).is_some()
        };
        self.gone.iter().filter(move |row| !has_moved(&row.path) && !comes_elsewhere(row)).map(|row| &row.path)
    }

    /// The names that changed, without those in directories that are gone.
    pub fn names(&self) -> impl Iterator<Item = &RelPath> {
        let changed = self.pending.iter().filter(|p| p.changes_entry()).map(|p| &p.row.path);
        changed.chain(&self.gone_tops)
    }

    /// Whether it is all that a replica lacks that stands at that version and has that root: nobody has changed its tree since.
    pub fn begins_at(&self, version: VersionId, root: Digest) -> bool {
        self.previous == Some((version, root))
    }

    /// Whether the answer to a load is known without the index: [`Difference::changes`].
    pub fn answers(&self, load: &Load) -> bool {
        match load {
            Load::Since(version) => self.previous.is_some_and(|(id, _)| id == *version),
            Load::Subtree(top) => self.previous.is_none() && !self.is_indexed && top.is_root(),
            Load::Entry(_) | Load::Behind(_) => false,
        }
    }

    /// Some of the changes, from the given place on, and where the next begin: what is changed in tree order, then what
    /// is gone. `None` after the last. What has moved comes with the first, and is told by the name of its directory.
    pub fn changes(&self, from: usize, most: usize) -> (Told, Option<usize>) {
        let (pending, gone) = (self.pending.len(), self.gone_tops.len());
        let end = pending.saturating_add(gone).min(from.saturating_add(most));
        let mut told = Told::default();
        if from == 0 {
            told.moved.clone_from(&self.moved);
        }
        told.changes.reserve_exact(end - from.min(end));
        let changed = self.pending[from.min(pending)..end.min(pending)].iter();
        for p in changed.filter(|p| p.changes_entry() && !self.has_moved(&p.row.path)) {
            let (path, entry) = (p.row.path.clone(), &p.row.entry);
            match p.changes_metadata() {
                true => told.touched.push(Touched { path, metadata: entry.metadata() }),
                false => told.changes.push(Change { path, entry: Some(entry.clone()) }),
            }
        }
        let gone_now = &self.gone_tops[from.max(pending) - pending..end.max(pending) - pending];
        told.changes.extend(gone_now.iter().map(|path| Change { path: path.clone(), entry: None }));
        (told, (end < pending + gone).then_some(end))
    }

    /// Whether a path came with a directory that has moved.
    fn has_moved(&self, path: &RelPath) -> bool {
        let after = self.moved.partition_point(|moved| moved.to <= *path);
        let last = after.checked_sub(1).and_then(|last| self.moved.get(last));
        last.is_some_and(|Moved { to, .. }| to == path || path.is_beneath(to))
    }
}

/// Directories that came and have something in them, in tree order.
pub fn dirs_that_came(pending: &[Pending]) -> impl Iterator<Item = &RelPath> {
    let next = pending.iter().skip(1).map(Some).chain([None]);
    pending.iter().zip(next).filter_map(|(dir, next)| {
        let path = &dir.row.path;
        let came = dir.before.is_none() && dir.row.entry.is_dir();
        // An empty one costs less when it is told in full.
        (came && next.is_some_and(|next| next.row.path.is_beneath(path))).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Digest;
    use crate::manifest::{Entry, Kind, Refused, Time};
    use crate::roles::survey::Before;

    fn row(name: &str) -> Row {
        let (mtime, xattrs) = (Time::default(), Box::default());
        let entry = Entry { kind: Kind::Fifo, mode: 0o600, uid: 0, gid: 0, mtime, xattrs, link: None };
        let (path, refused) = (RelPath::new(name).unwrap(), Refused::default());
        Row { path, entry, tuple: None, proven: true, refused, extra: false, mount: false }
    }

    #[test]
    fn a_difference_is_told_in_parts_of_any_size_and_without_what_was_only_proven_anew() {
        let pending = |name: &str, known: bool| {
            let row = row(name);
            let before = known.then(|| {
                Box::new(Before { hash: row.entry.hash(), metadata: row.entry.metadata(), content: None, now: None })
            });
            Pending { row, needs_hash: false, needs_xattrs: false, before }
        };
        let pending = vec![pending("a", false), pending("b", true), pending("c", false)];
        let difference = Difference::new(None, pending, vec![row("d"), row("e")], Vec::new());
        for most in 1..=6 {
            let (mut told, mut from) = (Vec::new(), Some(0));
            while let Some(place) = from {
                let (Told { changes, touched, moved, .. }, next) = difference.changes(place, most);
                assert!(touched.is_empty() && moved.is_empty());
                assert!(changes.len() <= most && next.is_none_or(|next| next > place));
                told.extend(changes.into_iter().map(|change| (change.path.display(), change.entry.is_some())));
                from = next;
            }
            let told: Vec<_> = told.iter().map(|(path, is_there)| (path.as_str(), *is_there)).collect();
            assert_eq!(told, [("a", true), ("c", true), ("d", false), ("e", false)], "{most} at a time");
        }
        assert!(difference.answers(&Load::Subtree(RelPath::root())));
        assert!(!difference.answers(&Load::Subtree(RelPath::new("a").unwrap())));
    }

    #[test]
    fn a_difference_tells_against_the_last_version_what_it_can() {
        let dir = |name: &str| {
            let row = row(name);
            Row { entry: Entry { kind: Kind::Dir, ..row.entry }, ..row }
        };
        let pending = |row: Row, before: Option<&Row>| {
            let before = before.map(|row| {
                let (hash, metadata) = (row.entry.hash(), row.entry.metadata());
                Box::new(Before { hash, metadata, content: row.entry.content(), now: None })
            });
            Pending { row, needs_hash: false, needs_xattrs: false, before }
        };
        let with = |row: Row, edit: fn(&mut Entry)| {
            let mut row = row;
            edit(&mut row.entry);
            row
        };
        let old = row("o");
        let found = vec![
            pending(with(dir("d"), |e| e.mtime.sec = 1), Some(&dir("d"))),
            pending(dir("d/moved"), None),
            pending(row("d/moved/x"), None),
            pending(row("d/moved!"), None),
            pending(with(old.clone(), |e| (e.mode, e.uid) = (0o640, 7)), Some(&old)),
            pending(with(row("p"), |e| e.xattrs = Box::new([(b"user.a"[..].into(), b"1"[..].into())])), Some(&old)),
            pending(with(row("q"), |e| e.link = Some(RelPath::new("o").unwrap())), Some(&old)),
            pending(with(row("r"), |e| e.kind = Kind::Socket), Some(&old)),
        ];
        let came: Vec<_> = dirs_that_came(&found).map(RelPath::display).collect();
        assert_eq!(came, ["d/moved"]);
        let hash = Digest::of(b"d");
        let moved = vec![Moved { from: RelPath::new("g").unwrap(), to: RelPath::new("d/moved").unwrap(), hash }];
        let gone = vec![dir("g"), dir("g/d"), row("g/d/x"), row("g/x"), row("g!"), row("h")];
        let difference = Difference::new(None, found, gone, moved.clone());
        let mut told = Told::default();
        let mut from = Some(0);
        while let Some(place) = from {
            let (some, next) = difference.changes(place, 2);
            told.moved.extend(some.moved);
            told.touched.extend(some.touched);
            told.changes.extend(some.changes);
            from = next;
        }
        assert_eq!(told.moved, moved);
        assert_eq!(told.touched.iter().map(|t| t.path.display()).collect::<Vec<_>>(), ["d", "o"]);
        assert_eq!((told.touched[0].metadata.mtime.sec, told.touched[1].metadata.mode), (1, 0o640));
        let in_full: Vec<_> = told.changes.iter().map(|c| (c.path.display(), c.entry.is_some())).collect();
        let in_full: Vec<_> = in_full.iter().map(|(path, is_there)| (path.as_str(), *is_there)).collect();
        let expected =
            [("d/moved!", true), ("p", true), ("q", true), ("r", true), ("g", false), ("g!", false), ("h", false)];
        assert_eq!(in_full, expected);
    }
}
