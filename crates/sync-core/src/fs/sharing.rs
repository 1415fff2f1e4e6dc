//! Blocks of one file that become blocks of another as well, on file systems that can: XFS, btrfs and others. Nothing is
//! copied, and nothing takes room twice.

use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

use super::sparse;

/// What `FICLONERANGE` is told (ioctl_ficlonerange(2)).
#[repr(C)]
struct CloneRange {
    from_fd: i64,
    from: u64,
    len: u64,
    to: u64,
}

/// Makes `len` bytes at `at` of a file, where nothing is yet, the same as those at `offset` of `from`, by sharing their blocks;
/// tells whether. Not where the file system cannot, the files are on different ones, or what is named does not begin and end
/// with blocks: then nothing is there still. What was written to `from` before is in it, and nothing that comes later: read it
/// in `to`.
///
/// # Errors
/// Those of a disk that had begun and could not go on, if what it has done cannot be undone either.
pub(super) fn share_blocks(from: impl AsFd, offset: u64, to: impl AsFd, at: u64, len: u64) -> Result<bool, Errno> {
    let is_whole = [offset, at, len].iter().all(|n| n.is_multiple_of(sparse::BLOCK as u64));
    // A length of 0 would be all that follows.
    if !is_whole || len == 0 {
        return Ok(false);
    }
    match clone_range(&from, offset, &to, at, len) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::PERM) => Ok(false),
        Err(_) => {
            fallocate(&to, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len)?;
            Ok(false)
        }
    }
}

#[allow(unsafe_code)]
fn clone_range(from: impl AsFd, offset: u64, to: impl AsFd, at: u64, len: u64) -> Result<(), Errno> {
    const FICLONERANGE: Opcode = opcode::write::<CloneRange>(0x94, 13);
    let range = CloneRange { from_fd: i64::from(from.as_fd().as_raw_fd()), from: offset, len, to: at };
    // SAFETY: FICLONERANGE reads one `file_clone_range` through the pointer, which `CloneRange` is laid out as, and that is
    // what `Setter` hands it; both descriptors are open as long as they are borrowed here.
    unsafe { ioctl(to, Setter::<FICLONERANGE, CloneRange>::new(range)) }
}
