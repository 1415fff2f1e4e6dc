//! Large files that others replace: a file that loses its last name is freed by whoever takes that, which for a gibibyte
//! takes as long as some thousand renames. Held open until then, they are freed when nobody waits any more.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

/// Files of more bytes than this are worth it.
pub(super) const LARGE: u64 = 64 << 20;

/// Most of them: descriptors are few.
const MOST: usize = 64;

/// Files that are about to lose a name. Dropped, it lets go of them beside everything else.
#[derive(Debug, Default)]
pub(super) struct Replaced(Vec<OwnedFd>);

impl Replaced {
    /// Holds what has this name. Without a descriptor for it, it goes with its name.
    pub fn hold(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        if self.0.len() < MOST {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            self.0.push(openat(dir, name, flags, Mode::empty())?);
        }
        Ok(())
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        let files = std::mem::take(&mut self.0);
        if !files.is_empty() {
            // Without a thread they are closed here.
            let _ = std::thread::Builder::new().spawn(move || drop(files));
        }
    }
}
