//! A file system in memory: names, inodes, and a clock that moves `ctime` with every change.

use std::collections::BTreeMap;

use crate::hash::Digest;
use crate::manifest::{Entry, Kind, Time, Tuple};
use crate::path::RelPath;

pub fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

/// What an inode holds; `entry.link` is always `None`, names tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Inode {
    pub entry: Entry,
    pub content: Vec<u8>,
    ctime: i64,
}

/// Names and inodes. Like a real one it knows nothing of first names of hard-link groups.
#[derive(Clone, Debug)]
pub struct Disk {
    names: BTreeMap<RelPath, u64>,
    inodes: BTreeMap<u64, Inode>,
    clock: i64,
}

pub fn entry(kind: Kind, mode: u32) -> Entry {
    Entry { kind, mode, uid: 0, gid: 0, mtime: Time::default(), xattrs: Box::default(), link: None }
}

pub fn file_kind(content: &[u8]) -> Kind {
    Kind::File { size: content.len() as u64, digest: Digest::of(content) }
}

impl Disk {
    /// With a top directory.
    pub fn new() -> Self {
        let mut disk = Self { names: BTreeMap::new(), inodes: BTreeMap::new(), clock: 0 };
        let top = disk.create(entry(Kind::Dir, 0o755), Vec::new());
        disk.place(&RelPath::root(), top);
        disk
    }

    fn tick(&mut self) -> i64 {
        self.clock += 1;
        self.clock
    }

    pub fn ino(&self, at: &RelPath) -> Option<u64> {
        self.names.get(at).copied()
    }

    pub fn at(&self, at: &RelPath) -> Option<&Inode> {
        self.inodes.get(&self.ino(at)?)
    }

    pub fn inode(&self, ino: u64) -> &Inode {
        &self.inodes[&ino]
    }

    pub fn tuple(&self, at: &RelPath) -> Option<Tuple> {
        let inode = self.at(at)?;
        let ctime = Time { sec: inode.ctime, nsec: 0 };
        let size = inode.content.len() as u64;
        Some(Tuple { fs: 1, ino: self.ino(at)?, size, mtime: inode.entry.mtime, ctime })
    }

    pub fn paths(&self) -> impl Iterator<Item = &RelPath> {
        self.names.keys()
    }

    /// Every entry that `seen` lets through, with first names of groups among those.
    pub fn entries(&self, seen: impl Fn(&RelPath) -> bool) -> BTreeMap<RelPath, Entry> {
        let mut first: BTreeMap<u64, &RelPath> = BTreeMap::new();
        let mut entries = BTreeMap::new();
        for (path, ino) in self.names.iter().filter(|(path, _)| seen(path)) {
            let link = first.get(ino).map(|first| (*first).clone());
            first.entry(*ino).or_insert(path);
            entries.insert(path.clone(), Entry { link, ..self.inodes[ino].entry.clone() });
        }
        entries
    }

    /// A new inode without a name.
    pub fn create(&mut self, entry: Entry, content: Vec<u8>) -> u64 {
        let ctime = self.tick();
        let kind = if entry.content().is_some() { file_kind(&content) } else { entry.kind };
        // A number that was never used: inodes are not reused here.
        let ino = ctime.unsigned_abs() + 1000;
        self.inodes.insert(ino, Inode { entry: Entry { kind, link: None, ..entry }, content, ctime });
        ino
    }

    pub fn touch(&mut self, ino: u64) {
        let now = self.tick();
        self.inodes.get_mut(&ino).unwrap().ctime = now;
    }

    /// Gives an inode a name, in one step, whatever was there.
    pub fn place(&mut self, at: &RelPath, ino: u64) {
        let before = self.names.insert(at.clone(), ino);
        self.touch(ino);
        before.into_iter().for_each(|old| self.touch(old));
    }

    pub fn has_children(&self, at: &RelPath) -> bool {
        self.names.keys().any(|path| path.is_beneath(at))
    }

    /// Removes a name; not that of a directory with something in it.
    pub fn unlink(&mut self, at: &RelPath) -> bool {
        if self.has_children(at) {
            return false;
        }
        let ino = self.names.remove(at);
        ino.into_iter().for_each(|ino| self.touch(ino));
        ino.is_some()
    }

    /// Sets owner, mode, times and the like; the kind and content stay.
    pub fn dress(&mut self, ino: u64, wanted: &Entry) {
        let inode = self.inodes.get_mut(&ino).unwrap();
        inode.entry = Entry { kind: inode.entry.kind.clone(), link: None, ..wanted.clone() };
        self.touch(ino);
    }
}

/// What people do to a tree.
impl Disk {
    fn add(&mut self, at: &RelPath, kind: Kind, content: Vec<u8>) {
        self.remove(at);
        let mtime = Time { sec: self.clock, nsec: 7 };
        let ino = self.create(Entry { mtime, ..entry(kind, 0o644) }, content);
        self.place(at, ino);
    }

    pub fn mkdir(&mut self, at: &str) -> &mut Self {
        self.add(&path(at), Kind::Dir, Vec::new());
        self
    }

    pub fn symlink(&mut self, at: &str, target: &str) -> &mut Self {
        self.add(&path(at), Kind::Symlink { target: target.as_bytes().into() }, Vec::new());
        self
    }

    pub fn fifo(&mut self, at: &str) -> &mut Self {
        self.add(&path(at), Kind::Fifo, Vec::new());
        self
    }

    /// A new file, or new content of an old one.
    pub fn write(&mut self, at: &str, content: &str) -> &mut Self {
        let at = path(at);
        let mtime = Time { sec: self.clock + 1, nsec: 7 };
        match self.ino(&at).filter(|ino| self.inodes[ino].entry.content().is_some()) {
            Some(ino) => {
                let inode = self.inodes.get_mut(&ino).unwrap();
                inode.content = content.into();
                inode.entry.kind = file_kind(content.as_bytes());
                inode.entry.mtime = mtime;
                self.touch(ino);
            }
            None => self.add(&at, file_kind(content.as_bytes()), content.into()),
        }
        self
    }

    pub fn chmod(&mut self, at: &str, mode: u32) -> &mut Self {
        if let Some(ino) = self.ino(&path(at)) {
            let wanted = Entry { mode, ..self.inodes[&ino].entry.clone() };
            self.dress(ino, &wanted);
        }
        self
    }

    /// Another time of last modification, and the same content.
    pub fn retime(&mut self, at: &str) -> &mut Self {
        if let Some(ino) = self.ino(&path(at)) {
            let mtime = Time { sec: self.clock + 1, nsec: 9 };
            let wanted = Entry { mtime, ..self.inodes[&ino].entry.clone() };
            self.dress(ino, &wanted);
        }
        self
    }

    pub fn hard_link(&mut self, first: &str, at: &str) -> &mut Self {
        let ino = self.ino(&path(first)).unwrap();
        self.remove(&path(at));
        self.place(&path(at), ino);
        self
    }

    /// With all beneath.
    pub fn remove(&mut self, at: &RelPath) {
        let gone: Vec<_> = self.names.keys().filter(|p| *p == at || p.is_beneath(at)).cloned().collect();
        for path in gone.iter().rev() {
            self.unlink(path);
        }
    }

    pub fn rm(&mut self, at: &str) -> &mut Self {
        self.remove(&path(at));
        self
    }

    pub fn rename(&mut self, from: &str, to: &str) -> &mut Self {
        let (from, to) = (path(from), path(to));
        if from == to || to.is_beneath(&from) || from.is_beneath(&to) || self.ino(&from).is_none() {
            return self;
        }
        self.remove(&to);
        let moved: Vec<_> = self
            .names
            .iter()
            .filter(|(p, _)| **p == from || p.is_beneath(&from))
            .map(|(p, i)| (p.clone(), *i))
            .collect();
        for (old, ino) in moved {
            self.names.remove(&old);
            let new = [to.as_bytes(), &old.as_bytes()[from.as_bytes().len()..]].concat();
            self.names.insert(RelPath::new(new).unwrap(), ino);
        }
        let ino = self.ino(&to).unwrap();
        self.touch(ino);
        self
    }

    pub fn swap(&mut self, a: &str, b: &str) -> &mut Self {
        self.rename(a, "swapping").rename(b, a).rename("swapping", b)
    }
}
