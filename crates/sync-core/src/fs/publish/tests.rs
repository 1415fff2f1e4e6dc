use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

use super::*;
use crate::fs::{STAGING_NAME, clock};
use crate::hash::Digest;
use crate::manifest::{Kind, Metadata, Time};

mod changes;
mod drift;
mod hostile;
mod mounts;
mod move_dirs;
mod new_dirs;
mod speed;
mod stop;
mod unprivileged;

type Tree = BTreeMap<RelPath, Row>;

/// A replica, and a source whose tree it should get.
struct Bed {
    top: tempfile::TempDir,
    root: Arc<Root>,
}

/// Which names are moved (a link from the old name) instead of sent.
type Moves<'a> = &'a [(&'a str, &'a str)];

struct Index(Tree);

impl Known for Index {
    fn row(&self, path: &RelPath) -> Option<Row> {
        self.0.get(path).cloned()
    }
    fn names(&self, tuple: &Tuple) -> Cow<'_, [RelPath]> {
        let same = |row: &&Row| row.tuple.is_some_and(|other| inode(&other) == inode(tuple));
        Cow::Owned(self.0.values().filter(same).map(|row| row.path.clone()).collect())
    }
}

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn set_mtime(path: &Path, sec: i64, nsec: i64) {
    let time = Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

impl Bed {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(top: tempfile::TempDir) -> Self {
        for dir in ["src", "dst"] {
            fs::create_dir(top.path().join(dir)).unwrap();
        }
        let root = Arc::new(Root::open(&top.path().join("dst")).unwrap());
        Self { top, root }
    }

    fn src(&self, name: &str) -> PathBuf {
        self.top.path().join("src").join(name)
    }

    fn dst(&self, name: &str) -> PathBuf {
        self.top.path().join("dst").join(name)
    }

    /// Writes the same files on one side.
    fn write(dir: impl Fn(&str) -> PathBuf, files: &[(&str, &str)]) {
        for (name, text) in files {
            let file = dir(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
    }

    fn source(&self) -> Tree {
        scan(&self.top.path().join("src"))
    }

    fn replica(&self) -> Tree {
        scan(&self.top.path().join("dst"))
    }

    fn staging(&self) -> Arc<Staging> {
        Arc::new(Staging::new(Arc::clone(&self.root)))
    }

    /// A publisher with all contents staged, made from the trees as they are.
    fn publisher(&self, moves: Moves<'_>) -> Publisher {
        let (want, have) = (self.source(), self.replica());
        self.publisher_of(&want, have, moves)
    }

    fn publisher_of(&self, want: &Tree, have: Tree, moves: Moves<'_>) -> Publisher {
        let staging = self.staging();
        let steps = plan(want, &have, moves);
        for (i, step) in steps.iter().filter(|step| step.action == Action::Content).enumerate() {
            let entry = step.new.as_deref().unwrap();
            let (_, digest) = entry.content().unwrap();
            let bytes = fs::read(self.src(std::str::from_utf8(step.path.as_bytes()).unwrap())).unwrap();
            // What a file is given ahead may be right, wrong, or nothing: it makes no difference in the end.
            let right = entry.metadata();
            let wrong = Metadata { mode: 0o4400, mtime: Time { sec: 1, nsec: 2 }, ..right };
            let likely = [Some(right), Some(wrong), None][i % 3];
            staging.store(&digest, &bytes, &step.path, likely.as_ref()).unwrap();
        }
        Publisher::new(staging, steps, Box::new(Index(have)))
    }

    /// Publishes and checks that the replica is what the source is, and the index would be true.
    fn push(&self, moves: Moves<'_>) -> Vec<Observed> {
        let have = self.replica();
        let mut publisher = self.publisher(moves);
        let seen = run(&mut publisher);
        let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
        assert_eq!(failures, Vec::<String>::new());
        self.check(have, &seen);
        seen
    }

    /// The replica equals the source; rows that were not observed still are true, and the observed ones are.
    fn check(&self, have: Tree, seen: &[Observed]) {
        let (want, now) = (self.source(), self.replica());
        compare(&want, &now);
        let mut index = have;
        for observed in seen {
            // Nobody has been here but us.
            assert!(observed.proven, "nothing proves {}", observed.path);
            match observed.tuple {
                None => drop(index.remove(&observed.path)),
                Some(_) => {
                    let row = now.get(&observed.path).unwrap();
                    index.insert(observed.path.clone(), Row { tuple: observed.tuple, ..row.clone() });
                }
            }
        }
        for (path, row) in &now {
            assert_eq!(index.get(path).and_then(|row| row.tuple), row.tuple, "the index is stale at {path}");
        }
        assert_eq!(index.len(), now.len());
    }
}

/// Prepares and publishes without flushing: that takes long, and these tests cut no power.
fn run(publisher: &mut Publisher) -> Vec<Observed> {
    let early: Arc<Mutex<Vec<(Placed, Observed)>>> = Arc::default();
    let (observer, told) = (publisher.observer(), Arc::clone(&early));
    publisher.tell_early(Box::new(move |some| {
        // What was just made is proven a tick later.
        clock::wait_past(clock::now(), Duration::from_millis(20));
        told.lock().unwrap().extend(observer.look(&some));
    }));
    let ready: Arc<Mutex<Vec<Ready>>> = Arc::default();
    let told = Arc::clone(&ready);
    publisher.tell_ready(Box::new(move |some| told.lock().unwrap().extend(some)));
    publisher.prepare();
    publisher.publish();
    let (placed, mut seen): (Vec<_>, Vec<_>) = std::mem::take(&mut *early.lock().unwrap()).into_iter().unzip();
    publisher.skip(&placed);
    seen.retain(|seen| !publisher.inodes.siblings.contains(&seen.path));
    seen.extend(publisher.observe());
    let seen_again: BTreeSet<RelPath> = seen.iter().map(|seen| seen.path.clone()).collect();
    let withdrawn: BTreeSet<RelPath> = publisher.withdrawn().cloned().collect();
    for Ready { step, tuple } in std::mem::take(&mut *ready.lock().unwrap()) {
        let path = publisher.steps[step].path.clone();
        if !seen_again.contains(&path) && !withdrawn.contains(&path) {
            let (tuple, refused) = (Some(tuple), Refused::default());
            seen.push(Observed { path, tuple, refused, proven: true, mount: false });
        }
    }
    seen.sort_by(|a, b| a.path.cmp(&b.path));
    seen
}

fn compare(want: &Tree, now: &Tree) {
    let names = |tree: &Tree| tree.keys().map(RelPath::display).collect::<Vec<_>>();
    assert_eq!(names(now), names(want));
    for (path, row) in want {
        assert_eq!(now[path].entry, row.entry, "at {path}");
    }
}

/// What is on disk below `top`, by means that share nothing with the code under test.
fn scan(top: &Path) -> Tree {
    let root = Root::open(top).unwrap();
    let mut tree = Tree::new();
    let mut firsts: BTreeMap<(u64, u64), RelPath> = BTreeMap::new();
    let mut todo = vec![RelPath::root()];
    let mut all = Vec::new();
    while let Some(dir) = todo.pop() {
        all.push(dir.clone());
        let at = top.join(std::str::from_utf8(dir.as_bytes()).unwrap());
        if !fs::symlink_metadata(&at).unwrap().is_dir() {
            continue;
        }
        for entry in fs::read_dir(&at).unwrap() {
            let name = entry.unwrap().file_name();
            todo.push(dir.join(name.as_encoded_bytes()).unwrap());
        }
    }
    all.sort();
    for path in all {
        let file = top.join(std::str::from_utf8(path.as_bytes()).unwrap());
        let meta = fs::symlink_metadata(&file).unwrap();
        let numbers = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let kind = match FileType::from_raw_mode(meta.mode()) {
            FileType::Directory => Kind::Dir,
            FileType::RegularFile => {
                let bytes = fs::read(&file).unwrap();
                Kind::File { size: meta.size(), digest: Digest::of(&bytes) }
            }
            FileType::Symlink => {
                Kind::Symlink { target: fs::read_link(&file).unwrap().as_os_str().as_encoded_bytes().into() }
            }
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::CharDev { major: numbers.0, minor: numbers.1 },
            _ => Kind::BlockDev { major: numbers.0, minor: numbers.1 },
        };
        let link = match meta.nlink() {
            _ if meta.is_dir() => None,
            1 => None,
            _ => match firsts.entry((meta.dev(), meta.ino())) {
                std::collections::btree_map::Entry::Occupied(first) => Some(first.get().clone()),
                std::collections::btree_map::Entry::Vacant(slot) => {
                    slot.insert(path.clone());
                    None
                }
            },
        };
        let entry = Entry {
            kind,
            mode: if meta.is_symlink() { 0o777 } else { meta.mode() & 0o7777 },
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: Time { sec: meta.mtime(), nsec: u32::try_from(meta.mtime_nsec()).unwrap() },
            xattrs: xattrs(&file),
            link,
        };
        let tuple = Some(root.stat(&path).unwrap().unwrap().tuple);
        let refused = Refused::default();
        tree.insert(path.clone(), Row { path, entry, tuple, proven: true, refused, extra: false, mount: false });
    }
    tree
}

fn xattrs(file: &Path) -> Box<[(Box<[u8]>, Box<[u8]>)]> {
    let mut names = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(file, &mut names[..]).unwrap_or(0);
    let mut found: Vec<(Box<[u8]>, Box<[u8]>)> = Vec::new();
    for name in names[..len].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 1 << 16];
        let len = rustix::fs::lgetxattr(file, name, &mut value[..]).unwrap();
        found.push((name.into(), value[..len].into()));
    }
    found.sort();
    found.into()
}

/// A plan without cleverness: what differs is sent, except for the given moves.
fn plan(want: &Tree, have: &Tree, moves: Moves<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut paths: BTreeSet<&RelPath> = want.keys().collect();
    paths.extend(have.keys());
    for path in paths {
        let old = have.get(path).cloned().map(Box::new);
        let Some(new) = want.get(path).map(|row| row.entry.clone()) else {
            steps.push(Step { path: path.clone(), old, new: None, action: Action::Delete });
            continue;
        };
        let moved = moves.iter().find(|(to, _)| to.as_bytes() == path.as_bytes());
        let action = match (&old, &new.link) {
            _ if let Some((_, from)) = moved => Action::Move { from: RelPath::new(*from).unwrap() },
            (Some(row), _) if row.entry == new => continue,
            (Some(row), link) if row.entry.kind == new.kind && row.entry.link == *link => Action::Metadata,
            (_, Some(first)) => Action::Link { first: first.clone() },
            _ => match new.kind {
                Kind::File { .. } => Action::Content,
                Kind::Dir => Action::MakeDir,
                _ => Action::Make,
            },
        };
        steps.push(Step { path: path.clone(), old, new: Some(Box::new(new)), action });
    }
    steps
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says loudly that a test cannot run here; with libtest this shows on failure or `--nocapture`.
fn skip(name: &str, why: &str) {
    eprintln!("SKIPPED: {name}: {why}");
}
