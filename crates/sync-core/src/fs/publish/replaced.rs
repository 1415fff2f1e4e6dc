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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use super::*;

    /// Whether this process has a file open that had this name and has none any more.
    fn is_held(name: &str) -> bool {
        let mut open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        open.any(|path| path.to_string_lossy().ends_with(&format!("/{name} (deleted)")))
    }

    #[test]
    fn what_was_replaced_is_held_until_the_end_and_not_longer() {
        let top = tempfile::tempdir().unwrap();
        let dir = fs::File::open(top.path()).unwrap();
        let mut replaced = Replaced::default();
        for i in 0..=MOST {
            let name = format!("replaced-{i}");
            fs::write(top.path().join(&name), "x").unwrap();
            replaced.hold(dir.as_fd(), name.as_bytes()).unwrap();
            fs::remove_file(top.path().join(&name)).unwrap();
            assert_eq!(is_held(&name), i < MOST, "{name}");
        }
        assert_eq!(Replaced::default().hold(dir.as_fd(), b"absent"), Err(Errno::NOENT));
        drop(replaced);
        let begun = Instant::now();
        while is_held("replaced-0") {
            assert!(begun.elapsed() < Duration::from_secs(10), "still held");
            std::thread::yield_now();
        }
    }
}
