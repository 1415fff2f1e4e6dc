//! What `statx` says about one inode, and which file system it lives on.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

pub use rustix::fs::FileType;
use rustix::fs::{
    AtFlags, Mode, OFlags, Statx, StatxAttributes, StatxFlags, StatxTimestamp, fstatfs, fstatvfs, openat, statx,
};
use rustix::io::Errno;

use crate::manifest::{Time, Tuple};

/// An inode as one `statx` call saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Regular file, directory, symlink, …
    pub kind: FileType,
    /// Permission, setid and sticky bits (`0o7777`).
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Major and minor number, for device nodes.
    pub rdev: (u32, u32),
    /// Names this inode has.
    pub nlink: u32,
    /// The device number: with [`Tuple::ino`] the identity of the inode while it is mounted. Hard links are grouped by
    /// it and not by [`Tuple::fs`], which two mounted clones of one image share.
    pub dev: u64,
    /// The mount it was reached through; the device number on kernels before 5.8.
    pub mount: u64,
    /// What proves that nothing about the inode changed.
    pub tuple: Tuple,
}

impl Stat {
    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// Whether this is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == FileType::RegularFile
    }

    /// Device and inode number: the same inode, whatever changed about it.
    pub fn identity(&self) -> (u64, u64) {
        (self.dev, self.tuple.ino)
    }
}

/// The flags of every look at a name: the name itself, never what a link points to, and no mounting on the way.
const LOOK: AtFlags = AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::NO_AUTOMOUNT);

/// What is known about a mounted file system, asked once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileSystem {
    dev: u64,
    mount: u64,
    /// `f_fsid`, or the device number where that is zero.
    id: u64,
    /// Another machine or process keeps its clock.
    pub remote: bool,
}

/// The file systems met so far, so that an entry costs one `statx` and a file system one `statfs`; one that finds no place here is
/// asked each time. Nothing is written to look one up: several threads do that all the time.
#[derive(Debug, Default)]
pub(crate) struct FileSystems([OnceLock<FileSystem>; 32]);

impl FileSystems {
    /// Looks at `name` in `dir`.
    pub fn stat_at(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
        let raw = statx(dir, name, LOOK, wanted())?;
        let open = || openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let fs = match self.known(&raw) {
            Some(fs) => fs,
            None => match open() {
                Ok(fd) => self.learn(&raw, fd.as_fd()),
                Err(_) => by_device(&raw),
            },
        };
        Ok(convert(&raw, &fs))
    }

    /// Looks at an open descriptor.
    pub fn stat_fd(&self, fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
        let raw = statx(fd, c"", AtFlags::EMPTY_PATH | LOOK, wanted())?;
        let fs = self.known(&raw).unwrap_or_else(|| self.learn(&raw, fd));
        Ok(convert(&raw, &fs))
    }

    /// Whether a clock other than this machine's stamps the inodes of the file system of `stat`.
    pub fn is_remote(&self, stat: &Stat) -> bool {
        self.find(stat.dev, stat.mount).is_some_and(|fs| fs.remote)
    }

    fn find(&self, dev: u64, mount: u64) -> Option<FileSystem> {
        self.0.iter().map_while(OnceLock::get).find(|fs| fs.dev == dev && fs.mount == mount).copied()
    }

    fn known(&self, raw: &Statx) -> Option<FileSystem> {
        self.find(device(raw), mount(raw))
    }

    /// Asks the file system under `fd` who it is, if `fd` is still on the one that `raw` was.
    fn learn(&self, raw: &Statx, fd: BorrowedFd<'_>) -> FileSystem {
        let mut fs = by_device(raw);
        let here = statx(fd, c"", AtFlags::EMPTY_PATH | LOOK, wanted());
        if !here.is_ok_and(|here| device(&here) == fs.dev && mount(&here) == fs.mount) {
            return fs;
        }
        let Ok(info) = fstatfs(fd) else { return fs };
        if let Ok(same) = fstatvfs(fd)
            && same.f_fsid != 0
        {
            fs.id = same.f_fsid;
        }
        // The type of the field differs between architectures; a magic number has 32 bits.
        fs.remote = is_remote(info.f_type as u32);
        // It does no harm in two places.
        self.0.iter().find(|place| place.set(fs).is_ok());
        fs
    }
}

/// Whether the entry `name` in `dir`, or `dir` itself if the name is empty, is immutable or append-only: then neither it
/// nor, of a directory, the names in it can be removed.
pub(crate) fn is_fixed(dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    let raw = statx(dir, name, AtFlags::EMPTY_PATH | LOOK, StatxFlags::TYPE)?;
    Ok(raw.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND))
}

fn wanted() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::MNT_ID
}

fn by_device(raw: &Statx) -> FileSystem {
    FileSystem { dev: device(raw), mount: mount(raw), id: device(raw), remote: false }
}

fn device(raw: &Statx) -> u64 {
    rustix::fs::makedev(raw.stx_dev_major, raw.stx_dev_minor)
}

fn mount(raw: &Statx) -> u64 {
    let has = StatxFlags::from_bits_retain(raw.stx_mask).contains(StatxFlags::MNT_ID);
    if has { raw.stx_mnt_id } else { device(raw) }
}

fn time(stamp: StatxTimestamp) -> Time {
    Time { sec: stamp.tv_sec, nsec: stamp.tv_nsec }
}

fn convert(raw: &Statx, fs: &FileSystem) -> Stat {
    Stat {
        kind: FileType::from_raw_mode(u32::from(raw.stx_mode)),
        mode: u32::from(raw.stx_mode) & 0o7777,
        uid: raw.stx_uid,
        gid: raw.stx_gid,
        rdev: (raw.stx_rdev_major, raw.stx_rdev_minor),
        nlink: raw.stx_nlink,
        dev: fs.dev,
        mount: fs.mount,
        tuple: Tuple {
            fs: fs.id,
            ino: raw.stx_ino,
            size: raw.stx_size,
            mtime: time(raw.stx_mtime),
            ctime: time(raw.stx_ctime),
        },
    }
}

/// File systems whose time stamps another machine (or a process) makes: 9P, AFS, Ceph, CIFS, FUSE, NFS, SMB, SMB2,
/// VirtualBox (`statfs(2)`).
fn is_remote(magic: u32) -> bool {
    const REMOTE: [u32; 9] =
        [0x0102_1997, 0x5346_414f, 0x00c3_6400, 0xff53_4d42, 0x6573_5546, 0x6969, 0x517b, 0xfe53_4d42, 0x786f_4256];
    REMOTE.contains(&magic)
}
