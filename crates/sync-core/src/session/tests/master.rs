//! A model of the master's side: a source, its index with versions, and the driver that answers a sender.

use std::collections::BTreeMap;

use super::disk::Disk;
use crate::diff::Child;
use crate::hash::Digest;
use crate::manifest::{Entry, Holds, Lineage, Merkle, Time, TreeHash, Version, VersionId};
use crate::path::RelPath;
use crate::relative::moved_dirs;
use crate::session::{Load, Told};
use crate::wire::{Change, Moved, Offered, Touched};

#[derive(Clone, Debug, Default)]
pub struct Index {
    lineage: u8,
    /// Entries, and in which version they last changed.
    rows: BTreeMap<RelPath, (Entry, u64)>,
    tombstones: BTreeMap<RelPath, u64>,
    versions: Vec<Version>,
    /// What the last look began with: the version, and its entries.
    before: Option<(VersionId, BTreeMap<RelPath, Entry>)>,
}

#[derive(Clone, Debug)]
pub struct Master {
    pub disk: Disk,
    pub index: Index,
    /// What cannot be read.
    pub holds: Holds,
}

/// What every replica is brought to.
#[derive(Clone, Debug)]
pub struct Committed {
    pub version: Version,
    /// Whether it was in the index before.
    pub known: bool,
    pub holds: Holds,
    pub tree: TreeHash,
}

impl Master {
    pub fn new() -> Self {
        Self { disk: Disk::new(), index: Index::default(), holds: Holds::default() }
    }

    /// What a reader of the source sees.
    pub fn entries(&self) -> BTreeMap<RelPath, Entry> {
        self.disk.entries(|path| !self.holds.covers(path))
    }

    /// Contents that the last version does not have at their paths.
    pub fn look(&self) -> Vec<Offered> {
        let mut offers = Vec::new();
        for (path, entry) in self.entries() {
            let known = self.index.rows.get(&path).and_then(|(known, _)| known.content());
            if let Some((size, digest)) = entry.content().filter(|content| content.0 > 0 && Some(*content) != known) {
                offers.push(Offered { path, digest, size, likely: entry.metadata() });
            }
        }
        offers
    }

    /// One transaction: what was found is the next version, unless it is the last one already.
    pub fn commit(&mut self) -> Committed {
        let found = self.entries();
        let tree = hash(found.iter());
        let holds = self.holds.clone();
        let index = &mut self.index;
        let entries = index.rows.iter().map(|(path, (entry, _))| (path.clone(), entry.clone()));
        index.before = index.versions.last().map(|version| (version.id(), entries.collect()));
        let latest = index.versions.last().filter(|latest| latest.root == tree.root).cloned();
        let known = latest.is_some();
        let version = latest.unwrap_or_else(|| {
            let (number, parent) = (index.versions.len() as u64 + 1, index.versions.last().map(Version::id));
            let lineage = Lineage([index.lineage; 16]);
            let version = Version { lineage, number, parent, root: tree.root, time: Time::default() };
            index.versions.push(version.clone());
            version
        });
        let number = version.number;
        let gone: Vec<_> =
            index.rows.keys().filter(|path| !found.contains_key(*path) && !holds.covers(path)).cloned().collect();
        for path in gone {
            index.rows.remove(&path);
            index.tombstones.insert(path, number);
        }
        for (path, entry) in found {
            index.tombstones.remove(&path);
            if index.rows.get(&path).is_none_or(|(known, _)| *known != entry) {
                index.rows.insert(path, (entry, number));
            }
        }
        Committed { version, known, holds, tree }
    }

    /// The index is gone: history starts anew.
    pub fn lose_index(&mut self) {
        self.index = Index { lineage: self.index.lineage + 1, ..Index::default() };
    }

    /// What the index answers; `None` for a version it does not know.
    pub fn load(&self, load: &Load) -> Option<Told> {
        let upsert =
            |(path, (entry, _)): (&RelPath, &(Entry, u64))| Change { path: path.clone(), entry: Some(entry.clone()) };
        let rows = self.index.rows.iter();
        match load {
            Load::Entry(path) => Some(rows.filter(|(p, _)| *p == path).map(upsert).collect::<Vec<_>>().into()),
            Load::Subtree(top) => {
                Some(rows.filter(|(p, _)| *p == top || p.is_beneath(top)).map(upsert).collect::<Vec<_>>().into())
            }
            Load::Behind(path) => {
                let is_told = |at: &RelPath| at >= path || (path.is_beneath(at) && !at.is_root());
                Some(rows.filter(|(at, _)| is_told(at)).map(upsert).collect::<Vec<_>>().into())
            }
            Load::Since(id) => {
                let since = self.index.versions.iter().find(|version| version.id() == *id)?.number;
                let mut changes: Vec<_> = rows.filter(|(_, (_, changed))| *changed > since).map(upsert).collect();
                let deleted = self.index.tombstones.iter().filter(|(_, number)| **number > since);
                changes.extend(deleted.map(|(path, _)| Change { path: path.clone(), entry: None }));
                changes.sort_by(|a, b| a.path.cmp(&b.path));
                match &self.index.before {
                    Some((last, before)) if last == id => Some(self.relative(changes, before)),
                    _ => Some(changes.into()),
                }
            }
        }
    }

    /// The changes as they are told to a replica that stands at what was there before.
    fn relative(&self, changes: Vec<Change>, before: &BTreeMap<RelPath, Entry>) -> Told {
        let mut told = Told::default();
        if self.holds.is_empty() {
            let (old, new) = (hash(before.iter()), hash(self.entries().iter()));
            let dirs = |tree: &TreeHash, other: &TreeHash| {
                let mut dirs: Vec<_> = tree.dirs.iter().map(|(dir, hash)| (dir.clone(), *hash)).collect();
                dirs.retain(|(dir, _)| other.dirs.get(dir).is_none());
                dirs.sort();
                dirs
            };
            let (gone, came) = (dirs(&old, &new), dirs(&new, &old));
            let gone = gone.iter().filter(|(dir, _)| !self.index.rows.contains_key(dir));
            let came = came.iter().filter(|(dir, _)| !before.contains_key(dir));
            told.moved = moved_dirs(gone.map(|(dir, hash)| (dir, *hash)), came.map(|(dir, hash)| (dir, *hash)));
        }
        let has_moved = |path: &RelPath| told.moved.iter().any(|Moved { to, .. }| path == to || path.is_beneath(to));
        let mut gone: Option<RelPath> = None;
        for change in changes {
            let known = before.get(&change.path);
            let touched =
                change.entry.as_ref().zip(known).is_some_and(|(new, old)| new.hash_with(&old.metadata()) == old.hash());
            match &change.entry {
                Some(_) if has_moved(&change.path) => {}
                Some(new) if touched => {
                    told.touched.push(Touched { path: change.path, metadata: new.metadata() });
                }
                Some(_) => told.changes.push(change),
                None if gone.as_ref().is_some_and(|top| change.path.is_beneath(top)) => {}
                None => {
                    gone = Some(change.path.clone());
                    told.changes.push(change);
                }
            }
        }
        told
    }

    pub fn children(&self, committed: &Committed, dir: &RelPath) -> (Option<Digest>, Vec<Child>) {
        let rows = self.index.rows.iter().filter(|(path, _)| !committed.holds.covers(path));
        children(rows.map(|(path, (entry, _))| (path, entry)), &committed.tree, dir)
            .map_or((None, Vec::new()), |(own, children)| (Some(own), children))
    }

    /// The content that was hashed, if the file still has it.
    pub fn read(&self, file: &Offered) -> Option<Vec<u8>> {
        let inode = self.disk.at(&file.path)?;
        (Digest::of(&inode.content) == file.digest).then(|| inode.content.clone())
    }
}

pub fn hash<'a>(entries: impl Iterator<Item = (&'a RelPath, &'a Entry)>) -> TreeHash {
    let mut merkle = Merkle::new();
    for (path, entry) in entries {
        merkle.push(path, entry.hash(), entry.is_dir());
    }
    merkle.finish()
}

/// A directory's own hash and its children, as both sides list them.
pub fn children<'a>(
    entries: impl Iterator<Item = (&'a RelPath, &'a Entry)>,
    tree: &TreeHash,
    dir: &RelPath,
) -> Option<(Digest, Vec<Child>)> {
    let mut own = None;
    let mut children = Vec::new();
    for (path, entry) in entries {
        let hash = entry.hash();
        if path == dir {
            own = entry.is_dir().then_some(hash);
        } else if path.parent().as_ref() == Some(dir) {
            let is_dir = entry.is_dir();
            let whole = if is_dir { *tree.dirs.get(path).unwrap() } else { hash };
            children.push(Child { name: path.name().into(), hash: whole, own: hash, is_dir });
        }
    }
    Some((own?, children))
}
