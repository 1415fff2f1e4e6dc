//! A tree that never rests: a seeded generator of everything that people and programs do to one, by plain system calls. The
//! same seed gives the same choices; what comes of them depends on what the tree holds by then.
//!
//! Names are few, so that what is done meets what was done before: files become directories, links come where files were,
//! directories are renamed while they are filled. No link leads out of the tree, and nothing opens what blocks.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};

use super::watch::Hammer;
use super::{ACL_ACCESS, STAGING, acl, is_root, noise, shown};

/// Numbers that look random, the same for the same seed (splitmix64).
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    /// A time of up to so many milliseconds.
    pub fn millis(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.below(most + 1))
    }
}

/// How fast a tree changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as the disk allows, with rests in between.
    Wild,
    /// So many changes a second, without bursts.
    Steady(u32),
}

/// Changes a tree until it is stopped or dropped.
pub struct Churn(Hammer);

impl Churn {
    pub fn start(top: &Path, seed: u64, pace: Pace) -> Churn {
        let mut churner = Churner::new(top, seed, pace);
        Churn(Hammer::start(move |_| {
            churner.step();
            std::thread::sleep(churner.rest());
        }))
    }

    /// How many changes it tried.
    pub fn stop(self) -> u64 {
        self.0.stop()
    }
}

/// Directory whose files are only ever replaced whole, by rename; see [`torn`].
const WHOLE: &str = "whole";

/// Makes the changes.
pub struct Churner {
    top: PathBuf,
    rng: Rng,
    pace: Pace,
    names: Vec<OsString>,
    /// A file that somebody is still writing.
    held: Option<File>,
}

impl Churner {
    pub fn new(top: &Path, seed: u64, pace: Pace) -> Churner {
        let plain: [&[u8]; 7] = [b"a", b"b", b"c", b"d", b"e", b"f", b"g"];
        let odd: [&[u8]; 4] = [b"line\nfeed", b"\xff\xfe", b"-rf", &[b'n'; 255]];
        let names = plain.into_iter().chain(odd).map(|name| OsString::from_vec(name.to_vec())).collect();
        std::fs::create_dir_all(top.join(WHOLE)).unwrap();
        // A tree that is suddenly empty is held, which is another test's matter.
        std::fs::write(top.join("stays"), b"stays").unwrap();
        Churner { top: top.to_path_buf(), rng: Rng(seed), pace, names, held: None }
    }

    /// One change, or a burst. What cannot be done is not: only the tree matters that comes of it.
    pub fn step(&mut self) {
        let _ = match self.rng.below(if self.pace == Pace::Wild { 103 } else { 100 }) {
            0..20 => self.write(),
            20..30 => self.append(),
            30..35 => self.replace(),
            35..40 => self.replace_whole(),
            40..45 => self.overwrite(),
            45..55 => self.rename(),
            55..58 => self.exchange(),
            58..68 => self.remove(),
            68..71 => self.make_deep(),
            71..75 => self.link(),
            75..81 => self.hard_link(),
            81..87 => self.change_type(),
            87..91 => self.chmod(),
            91..93 => self.touch(),
            93..95 => self.edit_in_disguise(),
            95..97 => self.set_attribute(),
            97 => self.make_hole(),
            98..100 => self.hold(),
            _ => self.burst(),
        };
    }

    /// How long to wait after it.
    fn rest(&mut self) -> Duration {
        match (self.pace, self.rng.below(100)) {
            (Pace::Steady(rate), _) => Duration::from_secs(1) / rate,
            (Pace::Wild, 0..3) => self.rng.millis(300),
            (Pace::Wild, 3..50) => self.rng.millis(10),
            (Pace::Wild, _) => Duration::ZERO,
        }
    }

    /// Any path, whether something is there or not.
    fn any(&mut self) -> PathBuf {
        let mut path = self.top.clone();
        for _ in 0..=self.rng.below(3) {
            path.push(self.rng.pick(&self.names));
        }
        path
    }

    /// Something that is there, but for what must stay.
    fn existing(&mut self) -> Option<PathBuf> {
        let mut path = self.top.clone();
        loop {
            let mut names: Vec<OsString> =
                std::fs::read_dir(&path).ok()?.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
            names.retain(|name| {
                path != self.top || ![WHOLE, "stays", "whose", "mounted", STAGING].iter().any(|stays| name == stays)
            });
            names.sort();
            if names.is_empty() {
                return (path != self.top).then_some(path);
            }
            path.push(self.rng.pick(&names));
            let is_dir = path.symlink_metadata().ok()?.is_dir();
            if !is_dir || self.rng.below(4) == 0 {
                return Some(path);
            }
        }
    }

    fn existing_file(&mut self) -> Option<PathBuf> {
        (0..4).find_map(|_| self.existing().filter(|path| path.symlink_metadata().is_ok_and(|meta| meta.is_file())))
    }

    fn content(&mut self) -> Vec<u8> {
        let most = match self.rng.below(if self.pace == Pace::Wild { 100 } else { 98 }) {
            0..60 => 2000,
            60..90 => 40_000,
            90..99 => 400_000,
            _ => 3 << 20,
        };
        let length = usize::try_from(self.rng.below(most)).unwrap();
        noise(self.rng.next(), length)
    }

    fn write(&mut self) -> Option<()> {
        let (path, content) = (self.any(), self.content());
        let dir = path.parent()?;
        if std::fs::create_dir_all(dir).is_err() && self.rng.below(3) == 0 {
            // What is in the way of a directory makes way for it.
            let blocks = dir.ancestors().find(|dir| dir.symlink_metadata().is_ok_and(|meta| !meta.is_dir()))?;
            std::fs::remove_file(blocks).ok()?;
            std::fs::create_dir_all(dir).ok()?;
        }
        open(&path, OpenOptions::new().create(true).truncate(true))?.write_all(&content).ok()
    }

    fn append(&mut self) -> Option<()> {
        let (path, content) = (self.existing_file()?, self.content());
        // Nothing grows without an end.
        if path.metadata().ok()?.len() > 4 << 20 {
            return std::fs::remove_file(path).ok();
        }
        open(&path, OpenOptions::new().append(true))?.write_all(&content).ok()
    }

    fn replace(&mut self) -> Option<()> {
        let (path, content) = (self.existing_file()?, self.content());
        let beside = path.with_file_name(format!(".new-{}", self.rng.below(3)));
        put(&beside, &content)?;
        std::fs::rename(beside, path).ok()
    }

    fn replace_whole(&mut self) -> Option<()> {
        let dir = self.top.join(WHOLE);
        let (seed, length) = (self.rng.next(), self.rng.below(100_000));
        let content = whole(seed, usize::try_from(length).unwrap());
        put(&dir.join("new"), &content)?;
        std::fs::rename(dir.join("new"), dir.join(format!("w{}", self.rng.below(9)))).ok()
    }

    fn overwrite(&mut self) -> Option<()> {
        let (path, mut content) = (self.existing_file()?, self.content());
        let size = path.metadata().ok()?.len();
        content.truncate(1000);
        let at = self.rng.below(size + 1);
        open(&path, &mut OpenOptions::new())?.write_all_at(&content, at).ok()
    }

    fn rename(&mut self) -> Option<()> {
        let (from, to) = (self.existing()?, self.any());
        let _ = std::fs::create_dir_all(to.parent()?);
        std::fs::rename(from, to).ok()
    }

    fn exchange(&mut self) -> Option<()> {
        let (one, two) = (self.existing()?, self.existing()?);
        rustix::fs::renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE).ok()
    }

    fn remove(&mut self) -> Option<()> {
        remove(&self.existing()?)
    }

    fn make_deep(&mut self) -> Option<()> {
        let (mut path, content) = (self.any(), self.content());
        for _ in 0..self.rng.below(8) {
            path.push(self.rng.pick(&self.names));
        }
        std::fs::create_dir_all(&path).ok()?;
        put(&path.join("bottom"), &content)
    }

    fn link(&mut self) -> Option<()> {
        let path = self.any();
        let target = self.rng.pick(&["a", "b/c", ".", "nowhere", "/no/such/place"]);
        symlink(target, path).ok()
    }

    fn hard_link(&mut self) -> Option<()> {
        let (from, to) = (self.existing()?, self.any());
        let _ = std::fs::create_dir_all(to.parent()?);
        rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty()).ok()
    }

    fn change_type(&mut self) -> Option<()> {
        let (path, content) = (self.existing()?, self.content());
        remove(&path)?;
        let node = |kind, device| rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o640), device).ok();
        match self.rng.below(if is_root() { 6 } else { 5 }) {
            0 => put(&path, &content),
            1 => std::fs::create_dir(&path).ok().and_then(|()| put(&path.join("inside"), &content)),
            2 => symlink("a", &path).ok(),
            3 => node(FileType::Fifo, 0),
            4 => node(FileType::Socket, 0),
            _ => node(FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        }
    }

    fn chmod(&mut self) -> Option<()> {
        let path = self.existing()?;
        let meta = path.symlink_metadata().ok()?;
        if meta.is_symlink() {
            return None;
        }
        if is_root() && self.rng.below(2) == 0 {
            let ids = [0, 1000, 33, 65_534];
            return std::os::unix::fs::lchown(&path, Some(*self.rng.pick(&ids)), Some(*self.rng.pick(&ids))).ok();
        }
        // Root reads and enters whatever the mode is; others keep what lets them.
        let least = if is_root() { 0 } else { 0o700 };
        let mode = u32::try_from(self.rng.below(0o10000)).unwrap() | least;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).ok()
    }

    fn touch(&mut self) -> Option<()> {
        let path = self.existing()?;
        let time = Timespec { tv_sec: i64::try_from(self.rng.below(2_000_000_000)).unwrap(), tv_nsec: 123_456_789 };
        set_times(&path, time)
    }

    /// As many other bytes in place, and the time as it was: only the change time tells.
    fn edit_in_disguise(&mut self) -> Option<()> {
        let path = self.existing_file()?;
        let meta = path.metadata().ok()?;
        let length = usize::try_from(meta.len().min(100)).unwrap();
        let content = noise(self.rng.next(), length);
        open(&path, &mut OpenOptions::new())?.write_all_at(&content, 0).ok()?;
        set_times(&path, Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() as _ })
    }

    fn set_attribute(&mut self) -> Option<()> {
        let path = self.existing()?;
        match self.rng.below(3) {
            0 => rustix::fs::lremovexattr(&path, "user.churn").ok(),
            1 if !path.symlink_metadata().ok()?.is_symlink() => {
                let access = acl(u32::try_from(self.rng.below(3000)).unwrap(), 5, 4, 0);
                rustix::fs::lsetxattr(&path, ACL_ACCESS, &access, XattrFlags::empty()).ok()
            }
            _ => {
                let value = noise(self.rng.next(), 30);
                rustix::fs::lsetxattr(&path, "user.churn", &value, XattrFlags::empty()).ok()
            }
        }
    }

    fn make_hole(&mut self) -> Option<()> {
        let path = self.existing_file()?;
        let length = self.rng.below(1 << 20);
        open(&path, &mut OpenOptions::new())?.set_len(length).ok()
    }

    /// Writes without a close, which comes only when another file is held, or at the end.
    fn hold(&mut self) -> Option<()> {
        let (path, content) = (self.any(), self.content());
        self.held = open(&path, OpenOptions::new().create(true).truncate(true));
        self.held.as_mut()?.write_all(&content).ok()
    }

    /// Hundreds at once: made, edited, renamed with their directory, or removed.
    fn burst(&mut self) -> Option<()> {
        let dir = self.top.join(format!("burst{}", self.rng.below(3)));
        if !dir.exists() {
            std::fs::create_dir(&dir).ok()?;
            let count = 50 + self.rng.below(300);
            return (0..count).try_for_each(|i| put(&dir.join(i.to_string()), &noise(i, 700)));
        }
        match self.rng.below(3) {
            0 => std::fs::remove_dir_all(&dir).ok(),
            1 => {
                let to = self.any();
                std::fs::rename(dir, to).ok()
            }
            _ => {
                let seed = self.rng.next();
                (0..200).step_by(3).try_for_each(|i| put(&dir.join(i.to_string()), &noise(seed.wrapping_add(i), 300)))
            }
        }
    }
}

/// A fifo that nobody reads is an error, where it would be waited for otherwise.
fn open(path: &Path, how: &mut OpenOptions) -> Option<File> {
    how.write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path).ok()
}

fn put(path: &Path, content: &[u8]) -> Option<()> {
    open(path, OpenOptions::new().create(true).truncate(true))?.write_all(content).ok()
}

fn remove(path: &Path) -> Option<()> {
    let is_dir = path.symlink_metadata().ok()?.is_dir();
    if is_dir { std::fs::remove_dir_all(path).ok() } else { std::fs::remove_file(path).ok() }
}

fn set_times(path: &Path, time: Timespec) -> Option<()> {
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).ok()
}

/// Content that tells whether it is all there.
fn whole(seed: u64, length: usize) -> Vec<u8> {
    [format!("{seed} {length}\n").into_bytes(), noise(seed, length)].concat()
}

/// Files of `whole/` in a tree that are not, at whatever moment one looks: the churn replaces them by rename, so half of one
/// was never the truth.
pub fn torn(top: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let Ok(names) = std::fs::read_dir(top.join(WHOLE)) else { return lines };
    for path in names.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // Gone again: the tree may be in motion.
        let Ok(content) = std::fs::read(&path) else { continue };
        let head = content.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let numbers = std::str::from_utf8(head).ok().and_then(|head| head.split_once(' '));
        let expected = numbers.and_then(|(seed, length)| Some(whole(seed.parse().ok()?, length.parse().ok()?)));
        if name.starts_with('w') && expected.as_ref() != Some(&content) {
            lines.push(format!("{name}: {} bytes, beginning with {}", content.len(), shown(head)));
        }
    }
    lines
}

/// `SYNC_CHURN_SEED`, or one of the moment.
pub fn seed() -> u64 {
    match std::env::var("SYNC_CHURN_SEED") {
        Ok(seed) => seed.parse().expect("SYNC_CHURN_SEED is a number"),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            (u64::from(now.subsec_nanos()) << 20 | u64::from(std::process::id())) % 1_000_000_000
        }
    }
}

/// `SYNC_CHURN_SECONDS`: for how long trees change in each part of a test.
pub fn seconds(otherwise: u64) -> Duration {
    let set = std::env::var("SYNC_CHURN_SECONDS").ok();
    Duration::from_secs(set.map_or(otherwise, |set| set.parse().expect("SYNC_CHURN_SECONDS is a number")))
}
