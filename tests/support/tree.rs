//! An independent look at a tree: lstat, every xattr, content, holes and hard-link groups of each entry, by directory
//! descriptors only, so that paths of any length are seen. Shares no code with the engine.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::fmt::Write as _;
use std::fs::File;
use std::hash::Hasher;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::shown;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Link(Vec<u8>),
    Fifo,
    Socket,
    Char(u32, u32),
    Block(u32, u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    None,
    /// Content up to 1 MiB.
    Bytes(Vec<u8>),
    /// Length and two independent 64-bit hashes of longer content.
    Long(u64, u64, u64),
    /// Could not be read; the error number.
    Unreadable(i32),
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub content: Content,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name, in bytewise order, of the names within the tree that share this inode.
    pub group: Vec<u8>,
    // What follows says which inode it is; trees are not compared by it.
    pub dev: u64,
    pub ino: u64,
    pub ctime: (i64, i64),
    pub nlink: u64,
    pub blocks: u64,
    /// Bytes of the 4 KiB pages that hold anything but zeros.
    pub solid: u64,
    pub size: u64,
}

pub type Tree = BTreeMap<Vec<u8>, Node>;

/// Everything at and below `root`; the root itself is the empty path. A link as the root is followed.
#[track_caller]
pub fn snapshot(root: &Path) -> Tree {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top =
        rustix::fs::open(root, flags, Mode::empty()).unwrap_or_else(|e| panic!("cannot open {}: {e}", root.display()));
    let mut tree = Tree::new();
    let stat = rustix::fs::fstat(&top).unwrap();
    tree.insert(Vec::new(), node(top.as_fd(), c".", &stat));
    // One descriptor at a time, climbing through "..": depth costs nothing.
    let mut here = top;
    let mut levels = vec![(names(&here), 0_usize)];
    let mut path: Vec<u8> = Vec::new();
    while let Some((left, parent_len)) = levels.last_mut() {
        let Some(name) = left.pop() else {
            let parent_len = *parent_len;
            levels.pop();
            if !levels.is_empty() {
                path.truncate(parent_len);
                here = rustix::fs::openat(&here, c"..", flags, Mode::empty()).unwrap();
            }
            continue;
        };
        let mut full = path.clone();
        if !full.is_empty() {
            full.push(b'/');
        }
        full.extend_from_slice(name.to_bytes());
        // Gone since the listing: a tree that is being changed while we look is the caller's business.
        let Ok(stat) = rustix::fs::statat(&here, &*name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let entry = node(here.as_fd(), &name, &stat);
        let is_dir = entry.kind == Kind::Dir;
        tree.insert(full.clone(), entry);
        if is_dir && let Ok(below) = rustix::fs::openat(&here, &*name, flags | OFlags::NOFOLLOW, Mode::empty()) {
            levels.push((names(&below), path.len()));
            here = below;
            path = full;
        }
    }
    group_links(&mut tree);
    tree
}

fn names(dir: &OwnedFd) -> Vec<CString> {
    let mut names: Vec<CString> = Dir::read_from(dir)
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_owned()))
        .filter(|name| name.as_bytes() != b"." && name.as_bytes() != b"..")
        .collect();
    names.sort();
    names.reverse();
    names
}

fn node(dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Node {
    let rdev = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        // One that is gone since leads nowhere: see above.
        FileType::Symlink => {
            Kind::Link(rustix::fs::readlinkat(dir, name, Vec::new()).map(CString::into_bytes).unwrap_or_default())
        }
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::Char(rdev.0, rdev.1),
        FileType::BlockDevice => Kind::Block(rdev.0, rdev.1),
        FileType::Unknown => panic!("unknown file type"),
    };
    let (content, solid) = if kind == Kind::File { content(dir, name) } else { (Content::None, 0) };
    Node {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap()),
        xattrs: xattrs(dir, name),
        group: Vec::new(),
        dev: stat.st_dev,
        ino: stat.st_ino,
        ctime: (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap()),
        nlink: stat.st_nlink as _,
        blocks: u64::try_from(stat.st_blocks).unwrap(),
        size: u64::try_from(stat.st_size).unwrap(),
        solid,
        content,
        kind,
    }
}

fn content(dir: BorrowedFd<'_>, name: &CStr) -> (Content, u64) {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = match rustix::fs::openat(dir, name, flags | OFlags::NOATIME, Mode::empty())
        .or_else(|_| rustix::fs::openat(dir, name, flags, Mode::empty()))
    {
        Ok(fd) => File::from(fd),
        Err(e) => return (Content::Unreadable(e.raw_os_error()), 0),
    };
    let (mut one, mut two) = (DefaultHasher::new(), DefaultHasher::new());
    two.write(b"another start makes another hash");
    let (mut kept, mut length, mut solid) = (Vec::new(), 0_u64, 0_u64);
    let mut buffer = vec![0_u8; 1 << 20];
    let zeros = [0_u8; 4096];
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) => return (Content::Unreadable(e.raw_os_error().unwrap_or(0)), solid),
            }
        }
        if filled == 0 {
            break;
        }
        let piece = &buffer[..filled];
        one.write(piece);
        two.write(piece);
        solid +=
            piece.chunks(4096).filter(|page| **page != zeros[..page.len()]).map(|page| page.len() as u64).sum::<u64>();
        if length == 0 {
            kept.extend_from_slice(piece);
        }
        length += filled as u64;
    }
    if length <= 1 << 20 {
        (Content::Bytes(kept), solid)
    } else {
        (Content::Long(length, one.finish(), two.finish()), solid)
    }
}

fn xattrs(dir: BorrowedFd<'_>, name: &CStr) -> BTreeMap<Vec<u8>, Vec<u8>> {
    // The only way to reach the attributes of a link, fifo or socket by descriptor.
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    let mut list = vec![0_u8; 1 << 16];
    let Ok(n) = rustix::fs::llistxattr(&path, list.as_mut_slice()) else { return BTreeMap::new() };
    let mut found = BTreeMap::new();
    for attribute in list[..n].split(|b| *b == 0).filter(|a| !a.is_empty()) {
        let mut value = vec![0_u8; 1 << 16];
        if let Ok(n) = rustix::fs::lgetxattr(&path, attribute, value.as_mut_slice()) {
            value.truncate(n);
            found.insert(attribute.to_vec(), value);
        }
    }
    found
}

fn group_links(tree: &mut Tree) {
    let mut first: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    for (path, node) in tree.iter_mut() {
        node.group = if node.kind == Kind::Dir {
            path.clone()
        } else {
            first.entry((node.dev, node.ino)).or_insert_with(|| path.clone()).clone()
        };
    }
}

/// Every difference that a replica may not have, one line each.
pub fn differences(want: &Tree, have: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, w) in want {
        match have.get(path) {
            None => lines.push(format!("{}: missing", shown(path))),
            Some(h) => node_differences(path, w, h, &mut lines),
        }
    }
    for (path, node) in have {
        if !want.contains_key(path) {
            lines.push(format!("{}: should not be there ({:?})", shown(path), node.kind));
        }
    }
    lines
}

fn node_differences(path: &[u8], want: &Node, have: &Node, lines: &mut Vec<String>) {
    let name = if path.is_empty() { "(top)".to_string() } else { shown(path) };
    let mut note = |what: &str, w: String, h: String| lines.push(format!("{name}: {what}: want {w}, have {h}"));
    if want.kind != have.kind {
        note("kind", format!("{:?}", want.kind), format!("{:?}", have.kind));
        return;
    }
    if want.mode != have.mode {
        note("mode", format!("{:o}", want.mode), format!("{:o}", have.mode));
    }
    if (want.uid, want.gid) != (have.uid, have.gid) {
        note("owner", format!("{}:{}", want.uid, want.gid), format!("{}:{}", have.uid, have.gid));
    }
    if want.mtime != have.mtime {
        note("mtime", format!("{:?}", want.mtime), format!("{:?}", have.mtime));
    }
    if want.content != have.content {
        note("content", brief(&want.content), brief(&have.content));
    }
    if want.xattrs != have.xattrs {
        note("xattrs", attributes(&want.xattrs), attributes(&have.xattrs));
    }
    if want.group != have.group {
        note("hard-link group", shown(&want.group), shown(&have.group));
    }
}

fn attributes(all: &BTreeMap<Vec<u8>, Vec<u8>>) -> String {
    let mut text = String::from("{");
    for (name, value) in all {
        let _ = write!(text, " {}={}", shown(name), shown(&value[..value.len().min(40)]));
    }
    text + " }"
}

fn brief(content: &Content) -> String {
    match content {
        Content::Bytes(b) => format!("{} bytes {}", b.len(), shown(&b[..b.len().min(24)])),
        other => format!("{other:?}"),
    }
}

/// Files that take much more room than their non-zero pages need: zero runs that did not become holes.
pub fn lost_holes(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, node) in tree {
        // The slack covers extent blocks, partial pages and runs too short to be worth a hole.
        let allowed = node.solid + node.size / 16 + (64 << 10);
        if node.kind == Kind::File && node.blocks * 512 > allowed {
            let taken = node.blocks * 512;
            lines.push(format!("{}: takes {taken} bytes of disk for {} non-zero ones", shown(path), node.solid));
        }
    }
    lines
}

#[track_caller]
pub fn assert_no_differences(what: &str, lines: &[String]) {
    let first: Vec<&str> = lines.iter().take(25).map(String::as_str).collect();
    assert!(lines.is_empty(), "{what}: {} differences\n{}", lines.len(), first.join("\n"));
}

/// The promise of a push: DEST is SRC, in everything, with its holes.
#[track_caller]
pub fn assert_exact(src: &Path, dst: &Path) {
    let (want, have) = (snapshot(src), snapshot(dst));
    assert_no_differences("the replica is not exact", &differences(&want, &have));
    assert_no_differences("zero runs did not become holes", &lost_holes(&have));
}

/// The same after `change` has taken out of both what this comparison must not look at.
#[track_caller]
pub fn assert_exact_but(src: &Path, dst: &Path, change: impl Fn(&mut Tree)) {
    let (mut want, mut have) = (snapshot(src), snapshot(dst));
    change(&mut want);
    change(&mut have);
    assert_no_differences("the replica is not exact", &differences(&want, &have));
}

/// Nothing happened: same names, same inodes, same change times, same content.
#[track_caller]
pub fn assert_untouched(before: &Tree, after: &Tree) {
    let mut lines = differences(before, after);
    for (path, b) in before {
        if let Some(a) = after.get(path)
            && (a.dev, a.ino, a.ctime) != (b.dev, b.ino, b.ctime)
        {
            lines.push(format!("{}: touched: {:?} -> {:?}", shown(path), (b.ino, b.ctime), (a.ino, a.ctime)));
        }
    }
    assert_no_differences("touched although nothing may be", &lines);
}

/// Paths in the tree that are temporaries or staging of ours.
pub fn leftovers(tree: &Tree) -> Vec<String> {
    let ours = |path: &[u8]| path.split(|b| *b == b'/').any(|part| part.starts_with(super::STAGING.as_bytes()));
    tree.keys().filter(|path| ours(path)).map(|path| shown(path)).collect()
}

/// What may be seen at DEST while or after a push was cut: each name is as in `old` or as in `new`, files whole.
/// Names of neither are allowed only in the staging directory.
#[track_caller]
pub fn assert_old_or_new(old: &Tree, new: &Tree, seen: &Tree) {
    let mut lines = Vec::new();
    for (path, node) in seen {
        if path.starts_with(super::STAGING.as_bytes()) {
            continue;
        }
        let fits = |other: &Tree| other.get(path).is_some_and(|o| o.kind == node.kind && o.content == node.content);
        if !fits(old) && !fits(new) {
            let name = shown(path);
            lines.push(format!("{name}: neither the old nor the new one: {:?} {}", node.kind, brief(&node.content)));
        }
    }
    for path in old.keys().filter(|path| new.contains_key(*path)) {
        // A type change between a directory and something else may be caught between two steps; a file never is.
        let both_files = old[path].kind == Kind::File && new[path].kind == Kind::File;
        if both_files && !seen.contains_key(path) {
            lines.push(format!("{}: gone, though it is in the old and in the new tree", shown(path)));
        }
    }
    assert_no_differences("a cut push left something torn", &lines);
}
