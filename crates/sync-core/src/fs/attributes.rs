//! Owner, mode, extended attributes and times of one inode, in the order in which the kernel lets them stand.
//!
//! An inode is reached through a descriptor or by a single name in our private staging directory, never by a path that
//! somebody else could bend. What the kernel refuses is no failure: it comes back as [`Refused`].

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use crate::manifest::{Entry, Kind, Refused, Time};

type Xattrs = [(Box<[u8]>, Box<[u8]>)];

/// Any extended attribute total above this may be more than a file system holds; ext4 then says `ENOSPC`, as on a full
/// disk. Below it a full disk is meant (a block is at least 1 KiB, and ext4 gives one to attributes).
const ROOM_FOR_XATTRS: usize = 900;

/// How an inode is reached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// A name in our staging directory or beneath it, where nobody else may change names.
    Staged(BorrowedFd<'a>, &'a [u8]),
    /// A descriptor; `O_PATH` suffices.
    Open(BorrowedFd<'a>),
}

/// What an inode has before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before<'a> {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    /// `None`: not known, so they are listed.
    pub xattrs: Option<&'a Xattrs>,
}

/// A call that failed for good: the words after "cannot", and why.
pub(crate) type Failed = (&'static str, Errno);

impl Target<'_> {
    pub fn chown(self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        match self {
            Self::Staged(dir, name) => rustix::fs::chownat(dir, name, uid, gid, flags),
            Self::Open(fd) => rustix::fs::chownat(fd, c"", uid, gid, flags | AtFlags::EMPTY_PATH),
        }
    }

    /// Not for symlinks: the call would follow them.
    pub fn chmod(self, mode: u32) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(mode);
        match self {
            Self::Staged(dir, name) => rustix::fs::chmodat(dir, name, mode, AtFlags::empty()),
            // `fchmod` refuses O_PATH, and an empty path needs a kernel of 2023; this name leads to the inode itself.
            Self::Open(_) => rustix::fs::chmod(self.proc_path(), mode),
        }
    }

    pub fn set_mtime(self, mtime: Time) -> Result<(), Errno> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: mtime.sec, tv_nsec: mtime.nsec.into() },
        };
        match self {
            Self::Staged(dir, name) => rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
            Self::Open(fd) => match rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH) {
                // Kernels before 5.8 know no empty path here.
                Err(Errno::INVAL) => rustix::fs::utimensat(rustix::fs::CWD, self.proc_path(), &times, AtFlags::empty()),
                other => other,
            },
        }
    }

    fn set_xattr(self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Staged(..) => rustix::fs::lsetxattr(self.proc_path(), name, value, XattrFlags::empty()),
            Self::Open(_) => rustix::fs::setxattr(self.proc_path(), name, value, XattrFlags::empty()),
        }
    }

    fn remove_xattr(self, name: &[u8]) -> Result<(), Errno> {
        let done = match self {
            Self::Staged(..) => rustix::fs::lremovexattr(self.proc_path(), name),
            Self::Open(_) => rustix::fs::removexattr(self.proc_path(), name),
        };
        if done == Err(Errno::NODATA) { Ok(()) } else { done }
    }

    fn xattr_names(self) -> Result<Vec<u8>, Errno> {
        let mut names = vec![0; 1 << 16];
        let len = match self {
            Self::Staged(..) => rustix::fs::llistxattr(self.proc_path(), &mut names[..]),
            Self::Open(_) => rustix::fs::listxattr(self.proc_path(), &mut names[..]),
        };
        names.truncate(match len {
            Ok(len) => len,
            Err(Errno::NOTSUP) => 0,
            Err(errno) => return Err(errno),
        });
        Ok(names)
    }

    /// Removes every extended attribute that may be removed.
    pub fn strip_xattrs(self) -> Result<(), Errno> {
        for name in self.xattr_names()?.split(|&b| b == 0).filter(|name| !name.is_empty()) {
            let _ = self.remove_xattr(name);
        }
        Ok(())
    }

    fn proc_path(self) -> Vec<u8> {
        let (fd, name) = match self {
            Self::Staged(dir, name) => (dir, name),
            Self::Open(fd) => (fd, &b""[..]),
        };
        let mut path = format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes();
        if !name.is_empty() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        path
    }

    fn mtime(self) -> Result<Time, Errno> {
        let (fd, name, flags) = match self {
            Self::Staged(dir, name) => (dir, name, AtFlags::SYMLINK_NOFOLLOW),
            Self::Open(fd) => (fd, &b""[..], AtFlags::EMPTY_PATH),
        };
        let stat = rustix::fs::statx(fd, name, flags, rustix::fs::StatxFlags::MTIME)?;
        Ok(Time { sec: stat.stx_mtime.tv_sec, nsec: stat.stx_mtime.tv_nsec })
    }
}

/// Gives an inode what `entry` says, except its time: see [`apply_time`]. Calls that would change nothing are left out.
///
/// The order matters. Changing the owner clears setid bits and capabilities, so it comes first. `user.` attributes need
/// write permission, so they come before the mode. A mode changes an ACL's mask, so ACLs come after it; and setting an
/// ACL may clear the setgid bit, so that one is set once more.
pub(crate) fn apply(target: Target<'_>, before: Before<'_>, entry: &Entry) -> Result<Refused, Failed> {
    let mut refused = Refused::default();
    let chowned = chown(target, before, entry, &mut refused)?;
    let mode = trusted_mode(before, entry, &mut refused);
    let may_chmod = !matches!(entry.kind, Kind::Symlink { .. });

    let listed;
    let had = match before.xattrs {
        Some(had) => had,
        None => {
            listed = list(target).map_err(|errno| ("list the extended attributes of", errno))?;
            &listed[..]
        }
    };
    // Of attributes that were only listed the values are unknown, so every wanted one is set.
    let has = |name: &[u8], value: &[u8]| before.xattrs.is_some() && has(had, name, value);
    let mut mode_now = before.mode;
    let mut xattrs = Attributes { target, entry, mode_now: &mut mode_now, refused: &mut refused };
    xattrs.remove_unwanted(had);
    xattrs.set(|name| !is_late(name), |name, value| !has(name, value))?;
    let chmodded = may_chmod && (mode_now != mode || (chowned && mode & 0o6000 != 0));
    if chmodded {
        match target.chmod(mode) {
            Err(Errno::PERM) if entry.is_dir() && is_foreign(before.uid) => refused.add(Refused::MODE),
            done => done.map_err(|errno| ("set the mode of", errno))?,
        }
    }
    let mut xattrs = Attributes { target, entry, mode_now: &mut mode_now, refused: &mut refused };
    let set_late = xattrs.set(is_late, |name, value| chowned || chmodded || !has(name, value))?;
    if set_late && may_chmod && mode & 0o2000 != 0 {
        target.chmod(mode).map_err(|errno| ("set the mode of", errno))?;
    }
    Ok(refused)
}

/// Sets the modification time: the last thing done to an inode.
pub(crate) fn apply_time(target: Target<'_>, mtime: Time) -> Result<Refused, Failed> {
    target.set_mtime(mtime).map_err(|errno| ("set the time of", errno))?;
    // Outside 1970 to 2038 some file systems store the nearest time they can, and say nothing.
    let unusual = !(0..=i64::from(i32::MAX)).contains(&{ mtime.sec });
    let clamped = unusual && target.mtime().map_err(|errno| ("look at", errno))? != mtime;
    Ok(if clamped { Refused::TIME } else { Refused::default() })
}

/// Whether an inode belongs to somebody else whose mode and times the kernel does not let us set. Such a directory may
/// still be writable for us: then what it holds is as wanted, and its own attributes count as refused. To root all is
/// ours, so that its `EPERM` means an immutable inode, which is a failure.
pub(crate) fn is_foreign(uid: u32) -> bool {
    let euid = rustix::process::geteuid();
    !euid.is_root() && euid.as_raw() != uid
}

/// Whether an attribute depends on owner and mode and so is set after them.
fn is_late(name: &[u8]) -> bool {
    matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
}

fn has(xattrs: &Xattrs, name: &[u8], value: &[u8]) -> bool {
    xattrs.binary_search_by(|(other, _)| (**other).cmp(name)).is_ok_and(|i| *xattrs[i].1 == *value)
}

/// The names of the extended attributes that an inode has, in order, without their values.
fn list(target: Target<'_>) -> Result<Vec<(Box<[u8]>, Box<[u8]>)>, Errno> {
    let names = target.xattr_names()?;
    let names = names.split(|&b| b == 0).filter(|name| !name.is_empty());
    let mut listed: Vec<_> = names.map(|name| (name.into(), Box::default())).collect();
    listed.sort();
    Ok(listed)
}

/// Changes owner and group as far as the kernel lets us; tells whether a call changed something.
fn chown(target: Target<'_>, before: Before<'_>, entry: &Entry, refused: &mut Refused) -> Result<bool, Failed> {
    if (before.uid, before.gid) == (entry.uid, entry.gid) {
        return Ok(false);
    }
    // Not privileged, or an id that this user namespace has no name for.
    let is_refusal = |errno| matches!(errno, Errno::PERM | Errno::INVAL | Errno::OVERFLOW);
    match target.chown(Some(entry.uid), Some(entry.gid)) {
        Ok(()) => return Ok(true),
        Err(errno) if is_refusal(errno) => refused.add(Refused::OWNER),
        Err(errno) => return Err(("change the owner of", errno)),
    }
    // An owner may still give a file to a group of theirs.
    Ok(before.gid != entry.gid && target.chown(None, Some(entry.gid)).is_ok())
}

/// The mode to set. A setid bit on a file whose owner could not be set would lend the rights of the wrong user.
fn trusted_mode(before: Before<'_>, entry: &Entry, refused: &mut Refused) -> u32 {
    if !refused.has(Refused::OWNER) || entry.is_dir() {
        return entry.mode;
    }
    let mut mode = entry.mode;
    if before.uid != entry.uid {
        mode &= !0o4000;
    }
    if before.gid != entry.gid {
        mode &= !0o2000;
    }
    if mode != entry.mode {
        refused.add(Refused::MODE);
    }
    mode
}

/// The extended attributes of one inode on their way to what the entry says.
struct Attributes<'a, 'b> {
    target: Target<'a>,
    entry: &'b Entry,
    mode_now: &'b mut u32,
    refused: &'b mut Refused,
}

impl Attributes<'_, '_> {
    fn remove_unwanted(&mut self, had: &Xattrs) {
        for (name, _) in had {
            let wanted = self.entry.xattrs.binary_search_by(|(other, _)| other.cmp(name)).is_ok();
            if !wanted && self.with_write(|target| target.remove_xattr(name)).is_err() {
                // Labels of a security module stay whatever we do; the wanted entry says they should not be there.
                self.refused.add(Refused::XATTR);
            }
        }
    }

    /// Sets those of the wanted attributes that `which` and `needed` choose; tells whether any was set.
    fn set(&mut self, which: fn(&[u8]) -> bool, needed: impl Fn(&[u8], &[u8]) -> bool) -> Result<bool, Failed> {
        let total: usize = self.entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let mut any = false;
        for (name, value) in self.entry.xattrs.iter().filter(|(name, value)| which(name) && needed(name, value)) {
            match self.with_write(|target| target.set_xattr(name, value)) {
                Ok(()) => any = true,
                Err(Errno::NOSPC | Errno::DQUOT) if total < ROOM_FOR_XATTRS => {
                    return Err(("set an extended attribute of", Errno::NOSPC));
                }
                Err(errno @ (Errno::IO | Errno::ROFS | Errno::NOENT | Errno::NOMEM)) => {
                    return Err(("set an extended attribute of", errno));
                }
                Err(_) => self.refused.add(Refused::XATTR),
            }
        }
        Ok(any)
    }

    /// Runs a call that needs write permission, which the mode of a file of our own may deny for the moment.
    fn with_write(&mut self, call: impl Fn(Target<'_>) -> Result<(), Errno>) -> Result<(), Errno> {
        let first = call(self.target);
        let symlink = matches!(self.entry.kind, Kind::Symlink { .. });
        if first != Err(Errno::ACCESS) || symlink || *self.mode_now & 0o200 != 0 {
            return first;
        }
        self.target.chmod(*self.mode_now | 0o200)?;
        *self.mode_now |= 0o200;
        call(self.target)
    }
}
