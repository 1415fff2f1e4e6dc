//! Making trees: every kind of entry with every attribute, by the plainest system calls.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};

use super::{is_root, os};

pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    let path = path.as_ref();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
}

pub fn append(path: impl AsRef<Path>, content: &[u8]) {
    std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(content).unwrap();
}

pub fn mkdir(path: impl AsRef<Path>) {
    std::fs::create_dir_all(path).unwrap();
}

pub fn link_to(target: impl AsRef<OsStr>, path: impl AsRef<Path>) {
    symlink(target.as_ref(), path.as_ref()).unwrap();
}

/// A second name for whatever `from` is, a link included.
pub fn hard_link(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    rustix::fs::linkat(CWD, from.as_ref(), CWD, to.as_ref(), AtFlags::empty()).unwrap();
}

pub fn node_of(kind: FileType, path: impl AsRef<Path>, rdev: (u32, u32)) {
    let mode = Mode::from_raw_mode(0o644);
    let device = rustix::fs::makedev(rdev.0, rdev.1);
    rustix::fs::mknodat(CWD, path.as_ref(), kind, mode, device).unwrap();
}

pub fn fifo(path: impl AsRef<Path>) {
    node_of(FileType::Fifo, path, (0, 0));
}

pub fn socket(path: impl AsRef<Path>) {
    node_of(FileType::Socket, path, (0, 0));
}

pub fn set_mode(path: impl AsRef<Path>, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

pub fn set_owner(path: impl AsRef<Path>, uid: u32, gid: u32) {
    lchown(path, Some(uid), Some(gid)).unwrap();
}

/// The time of last modification of the entry itself, a link included.
pub fn set_mtime(path: impl AsRef<Path>, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path.as_ref(), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn mtime_of(path: impl AsRef<Path>) -> (i64, i64) {
    let stat = rustix::fs::statat(CWD, path.as_ref(), AtFlags::SYMLINK_NOFOLLOW).unwrap();
    (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap())
}

/// Sets an xattr of the entry itself; false if the file system does not have this namespace here.
pub fn set_xattr(path: impl AsRef<Path>, name: &str, value: &[u8]) -> bool {
    rustix::fs::lsetxattr(path.as_ref(), name, value, XattrFlags::empty()).is_ok()
}

pub fn drop_xattr(path: impl AsRef<Path>, name: &str) {
    rustix::fs::lremovexattr(path.as_ref(), name).unwrap();
}

pub const ACL_ACCESS: &str = "system.posix_acl_access";
pub const ACL_DEFAULT: &str = "system.posix_acl_default";
pub const CAPABILITY: &str = "security.capability";

/// A POSIX ACL as the kernel's xattr holds it: owner rwx, one named user, group, mask, others (`acl(5)`).
pub fn acl(user: u32, user_perm: u16, group_perm: u16, other_perm: u16) -> Vec<u8> {
    let none = u32::MAX;
    let entries: [(u16, u16, u32); 5] = [
        (1, 7, none),
        (2, user_perm, user),
        (4, group_perm, none),
        (0x10, user_perm | group_perm, none),
        (0x20, other_perm, none),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&perm.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// `cap_net_raw=ep` as the kernel's xattr holds it, revision 2 (`capabilities(7)`).
pub fn capability() -> Vec<u8> {
    let mut bytes = 0x0200_0001_u32.to_le_bytes().to_vec();
    for word in [1_u32 << 13, 0, 0, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Bytes that do not compress and do not repeat, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Many small files in directories of fifty, with mtimes in the past.
pub fn many(dir: &Path, count: usize, seed: u64) {
    for i in 0..count {
        let sub = dir.join(format!("d{:03}", i / 50));
        if i % 50 == 0 {
            mkdir(&sub);
        }
        let file = sub.join(format!("f{i:05}"));
        std::fs::write(&file, noise(seed + i as u64, 40 + (i * 37) % 3000)).unwrap();
        set_mtime(&file, 1_600_000_000 + i as i64, (i as i64 * 7919) % 1_000_000_000);
    }
}

/// Edits about a third of what [`many`] made: new content, removed, added, moved, new mode.
pub fn edit_many(dir: &Path, count: usize, seed: u64) {
    for i in 0..count {
        let file = dir.join(format!("d{:03}", i / 50)).join(format!("f{i:05}"));
        match i % 15 {
            0 => std::fs::write(&file, noise(seed + 1_000_000 + i as u64, 500)).unwrap(),
            3 => std::fs::remove_file(&file).unwrap(),
            6 => std::fs::rename(&file, file.with_extension("moved")).unwrap(),
            9 => set_mode(&file, 0o600),
            12 => write(file.with_extension("new"), noise(seed + 2_000_000 + i as u64, 700)),
            _ => {}
        }
    }
}

/// Two names, one of 255 bytes, not UTF-8, hostile to terminals and shells, and plain.
pub fn awkward_names() -> Vec<Vec<u8>> {
    vec![
        vec![b'n'; 255],
        [b"\xff\xfe\x80".as_slice(), &[0xC3; 252]].concat(),
        b"line\nfeed".to_vec(),
        b"car\rriage\ttab".to_vec(),
        b"\x1b[31mred\x1b]0;title\x07".to_vec(),
        b"\xc2\x9b31m c1".to_vec(),
        b"-rf".to_vec(),
        b"--delete".to_vec(),
        b" lead and trail ".to_vec(),
        b"$(touch pwned) `id` ; & | > <".to_vec(),
        b"*?[a]{b}!".to_vec(),
        b"back\\slash\\101".to_vec(),
        b"quote\"'".to_vec(),
        b"...".to_vec(),
        b".hidden".to_vec(),
        b".gitignore".to_vec(),
        b"~".to_vec(),
        b"#hash".to_vec(),
        "umlaut äöü 中文 🦀".as_bytes().to_vec(),
        "u\u{308} decomposed".as_bytes().to_vec(),
        "\u{202e}right-to-left".as_bytes().to_vec(),
        b"CON".to_vec(),
        b"con".to_vec(),
        b"a:b".to_vec(),
        b"\x01\x02\x7f".to_vec(),
    ]
}

/// What [`zoo`] may use on the file system it builds on.
#[derive(Clone, Copy)]
pub struct Zoo {
    /// Times the file system can hold: 1901 and 2446 are the ends of ext4 with 256-byte inodes.
    pub far_times: bool,
}

/// One of everything. As root: owners, devices, trusted and security xattrs too.
pub fn zoo(root: &Path, zoo: Zoo) {
    let root_user = is_root();
    mkdir(root);
    for (i, name) in awkward_names().iter().enumerate() {
        write(root.join("names").join(os(name)), format!("content {i}"));
    }
    mkdir(root.join("names/dir of \n names").join(os(&[0xfe; 255])));
    write(root.join("empty"), b"");
    mkdir(root.join("empty dir"));
    for size in [1, 4095, 4096, 4097, 65_535, 65_536, 65_537, 1 << 20, (3 << 20) + 17] {
        write(root.join(format!("size/{size}")), noise(size as u64, size));
    }
    zoo_modes(root);
    zoo_links(root);
    zoo_holes(root);
    if root_user {
        node_of(FileType::CharacterDevice, root.join("null"), (1, 3));
        node_of(FileType::BlockDevice, root.join("block"), (7, 200));
        node_of(FileType::CharacterDevice, root.join("big numbers"), (4095, 1_048_575));
        for (name, uid, gid) in [("owned", 1234, 5678), ("owned far", 4_000_000_000, 4_294_967_294)] {
            write(root.join(name), name);
            set_owner(root.join(name), uid, gid);
        }
        // chown clears setid bits, so the order of a careless replica shows here.
        write(root.join("owned setuid"), b"x");
        set_owner(root.join("owned setuid"), 1234, 5678);
        set_mode(root.join("owned setuid"), 0o6755);
        link_to("owned", root.join("owned link"));
        set_owner(root.join("owned link"), 77, 88);
    }
    zoo_xattrs(root, root_user);
    zoo_times(root, zoo.far_times);
}

fn zoo_modes(root: &Path) {
    // As root every mode can be read back; others keep the owner's read bit.
    let modes: &[u32] = if is_root() {
        &[0, 0o200, 0o400, 0o644, 0o777, 0o4755, 0o2755, 0o1644, 0o7777]
    } else {
        &[0o400, 0o644, 0o4755, 0o777]
    };
    for mode in modes {
        let file = root.join(format!("mode/file {mode:o}"));
        write(&file, format!("{mode:o}"));
        set_mode(&file, *mode);
        if is_root() || mode & 0o500 == 0o500 {
            let dir = root.join(format!("mode/dir {mode:o}"));
            write(dir.join("inside"), b"inside");
            set_mode(&dir, *mode);
        }
    }
    for (name, mode) in [("sticky", 0o1777), ("setgid", 0o2775)] {
        write(root.join(name).join("inside"), b"inside");
        set_mode(root.join(name), mode);
    }
}

fn zoo_links(root: &Path) {
    write(root.join("hard/a"), b"three names");
    mkdir(root.join("hard/far/away"));
    hard_link(root.join("hard/a"), root.join("hard/b"));
    hard_link(root.join("hard/a"), root.join("hard/far/away/c"));
    write(root.join("hard/twin 1"), b"same content, not linked");
    write(root.join("hard/twin 2"), b"same content, not linked");
    link_to("no/such/target", root.join("hard/link"));
    hard_link(root.join("hard/link"), root.join("hard/link too"));
    fifo(root.join("hard/fifo"));
    hard_link(root.join("hard/fifo"), root.join("hard/fifo too"));
    socket(root.join("hard/socket"));
    hard_link(root.join("hard/socket"), root.join("hard/socket too"));
    if is_root() {
        node_of(FileType::CharacterDevice, root.join("hard/device"), (1, 5));
        hard_link(root.join("hard/device"), root.join("hard/device too"));
    }
    link_to("hard/far", root.join("link to dir"));
    link_to("/etc/passwd", root.join("link outside"));
    link_to("../../../../../../etc", root.join("link far outside"));
    link_to(".", root.join("link to itself"));
    link_to(os(&[b't'; 4000]), root.join("long target"));
    link_to(os(b"non \xff utf8 \n target"), root.join("odd target"));
}

fn zoo_holes(root: &Path) {
    let holes = root.join("holes");
    mkdir(&holes);
    let file = |name: &str| std::fs::File::create(holes.join(name)).unwrap();
    file("all hole").set_len(5 << 20).unwrap();
    let at = |f: &std::fs::File, offset: u64, bytes: &[u8]| {
        std::os::unix::fs::FileExt::write_all_at(f, bytes, offset).unwrap();
    };
    let f = file("head and tail");
    at(&f, 0, b"head");
    at(&f, 8 << 20, b"tail");
    let f = file("hole at the end");
    at(&f, 0, &noise(3, 100_000));
    f.set_len(4 << 20).unwrap();
    let f = file("many holes");
    for i in 0..40_u64 {
        at(&f, i * 131_072, &noise(i, 5000));
    }
    // Zeros that were written are data at the source; at the replica they are holes again.
    write(holes.join("written zeros"), vec![0_u8; 3 << 20]);
    write(holes.join("written zeros inside"), [noise(4, 8192), vec![0; 2 << 20], noise(5, 8192)].concat());
}

fn zoo_xattrs(root: &Path, root_user: bool) {
    let dir = root.join("xattrs");
    mkdir(dir.join("dir"));
    for name in ["file", "acl", "cap", "many", "empty value", "dir acl/inside"] {
        write(dir.join(name), name);
    }
    link_to("file", dir.join("link"));
    fifo(dir.join("fifo"));
    for (name, value) in
        [("user.plain", b"value".as_slice()), ("user.binary", b"\x00\xff\n"), ("user.\u{e4}", b"utf8 name")]
    {
        set_xattr(dir.join("file"), name, value);
        set_xattr(dir.join("dir"), name, value);
    }
    set_xattr(dir.join("empty value"), "user.empty", b"");
    for i in 0..20 {
        set_xattr(dir.join("many"), &format!("user.n{i:02}"), &noise(i, 60));
    }
    set_xattr(dir.join("acl"), ACL_ACCESS, &acl(1234, 6, 4, 0));
    set_xattr(dir.join("dir acl"), ACL_ACCESS, &acl(4321, 5, 5, 1));
    set_xattr(dir.join("dir acl"), ACL_DEFAULT, &acl(99, 7, 5, 0));
    // Its default ACL must not reach what the replica makes beneath it.
    if root_user {
        for name in ["file", "dir", "link", "fifo"] {
            set_xattr(dir.join(name), "trusted.test", name.as_bytes());
            set_xattr(dir.join(name), "security.test", b"opaque");
        }
        set_owner(dir.join("cap"), 4242, 4242);
        assert!(set_xattr(dir.join("cap"), CAPABILITY, &capability()) || !root_user, "capabilities can be set by root");
    }
}

/// Ends of what ext4 with 256-byte inodes holds: 1901-12-13 20:45:52 and 2446-05-10 22:38:55 UTC.
/// The kernel keeps no nanoseconds at the very ends.
pub const EARLIEST: i64 = -2_147_483_648;
pub const LATEST: i64 = 15_032_385_535;

fn zoo_times(root: &Path, far: bool) {
    let dir = root.join("times");
    mkdir(&dir);
    let mut times =
        vec![(0, 0), (0, 1), (-1, 999_999_999), (1, 123_456_789), (2_147_483_647, 999_999_999), (2_147_483_648, 5)];
    if far {
        times.extend([
            (EARLIEST, 0),
            (EARLIEST + 1, 987_654_321),
            (LATEST, 0),
            (LATEST - 1, 999_999_999),
            (4_294_967_296, 7),
        ]);
    }
    for (i, (seconds, nanoseconds)) in times.into_iter().enumerate() {
        write(dir.join(format!("file {i}")), b"t");
        link_to("t", dir.join(format!("link {i}")));
        fifo(dir.join(format!("fifo {i}")));
        write(dir.join(format!("dir {i}/inside")), b"t");
        for kind in ["file", "link", "fifo", "dir"] {
            set_mtime(dir.join(format!("{kind} {i}")), seconds, nanoseconds);
        }
    }
    set_mtime(&dir, 86_400, 42);
    set_mtime(root, 1_000_000_007, 13);
}

/// A kind of entry by name, and how to make one.
pub type Maker = (&'static str, fn(&Path));

/// The kinds that may take each other's place; devices only as root.
pub fn kinds() -> Vec<Maker> {
    let mut all: Vec<Maker> = vec![
        ("file", |p| write(p, b"a file")),
        ("dir", |p| {
            write(p.join("deep/er/file"), b"in a directory");
            link_to("deep", p.join("link"));
            fifo(p.join("fifo"));
        }),
        ("link", |p| link_to("nowhere", p)),
        ("linkdir", |p| link_to(".", p)),
        ("fifo", |p| fifo(p)),
        ("socket", |p| socket(p)),
    ];
    if is_root() {
        all.push(("char", |p| node_of(FileType::CharacterDevice, p, (1, 3))));
        all.push(("block", |p| node_of(FileType::BlockDevice, p, (7, 201))));
    }
    all
}

pub fn remove(path: &Path) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    if meta.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
}

/// Copies a tree with the system's cp, everything kept.
pub fn copy_tree(from: &Path, to: &Path) {
    super::tool("cp", &[OsStr::new("-a"), from.as_os_str(), to.as_os_str()]);
}

/// Makes directories `name/name/...` below `top` through descriptors, far beyond PATH_MAX, with a file at each
/// `every`th level; returns the deepest directory.
pub fn deep(top: &Path, name: &[u8], levels: usize, every: usize) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = rustix::fs::open(top, flags, Mode::empty()).unwrap();
    for level in 0..levels {
        rustix::fs::mkdirat(&here, os(name), Mode::from_raw_mode(0o755)).unwrap();
        here = rustix::fs::openat(&here, os(name), flags, Mode::empty()).unwrap();
        if level % every == every - 1 {
            put(&here, "file", format!("at level {level}").as_bytes());
        }
    }
    here
}

/// Writes a file in a directory known by its descriptor only.
pub fn put(dir: &OwnedFd, name: &str, content: &[u8]) {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644)).unwrap();
    std::fs::File::from(fd).write_all(content).unwrap();
}
