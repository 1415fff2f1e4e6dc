//! Mounts in a tree, at its top and above it: of one that comes or goes no event of inotify tells.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{Builder, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::hear::Tell;
use crate::fs::mounts::{self, Mount};
use crate::settle::Hint;

/// A thread that sleeps until something is mounted or taken away, and tells [`Hint::Overflow`] if that concerns the tree.
pub struct Mounts {
    /// Its other end is closed when this is dropped.
    end: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Mounts {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the kernel does not tell, or there can be no thread.
    pub fn listen(top: &Path, tell: &Tell) -> io::Result<Self> {
        let mut table = mounts::table()?;
        let mut known = of_tree(&mut table, top)?;
        let (end, ended) = UnixStream::pair()?;
        let (top, tell) = (top.to_owned(), Tell::clone(tell));
        let thread = Builder::new().name("mounts".to_owned()).spawn(move || {
            while waits(&table, &ended) {
                // What cannot be read has changed, for all that is known.
                let now = of_tree(&mut table, &top).unwrap_or_default();
                if now != known {
                    known = now;
                    tell(Hint::Overflow);
                }
            }
        })?;
        Ok(Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It only ends, whichever way.
            let _ = thread.join();
        }
    }
}

/// Waits until the table has changed; `false` once the other end is closed.
fn waits(table: &File, ended: &UnixStream) -> bool {
    loop {
        let mut both = [PollFd::new(table, PollFlags::PRI), PollFd::new(ended, PollFlags::IN)];
        match poll(&mut both, None) {
            Ok(_) if !both[1].revents().is_empty() => return false,
            Ok(_) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// What is mounted in the tree, or at a place through which its path leads.
fn of_tree(table: &mut File, top: &Path) -> io::Result<BTreeSet<Mount>> {
    let concerns = |point: &Path| point.starts_with(top) || top.starts_with(point);
    let all = mounts::all(table)?.into_iter();
    Ok(all.filter(|mount| concerns(&mount.point)).collect())
}
