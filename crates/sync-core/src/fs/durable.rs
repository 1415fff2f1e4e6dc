//! Making what was done survive a power cut, in one place.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use super::error::FsError;
use crate::path::RelPath;

/// The file systems that a push writes to, each by a descriptor opened before its first write.
#[derive(Debug, Default)]
pub(crate) struct Durable {
    watched: Mutex<Vec<Watched>>,
    failed: AtomicBool,
}

#[derive(Debug)]
struct Watched {
    dev: u64,
    top: RelPath,
    fd: OwnedFd,
}

impl Durable {
    /// Adds the file system with device number `dev`; to be called before anything is written there. `fd` must not be
    /// an `O_PATH` descriptor.
    pub fn watch(&self, dev: u64, top: &RelPath, fd: OwnedFd) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if !watched.iter().any(|fs| fs.dev == dev) {
            watched.push(Watched { dev, top: top.clone(), fd });
        }
    }

    /// Waits until everything written so far, names and content, is on the disks: one `syncfs` per file system.
    ///
    /// What this promises: after `Ok`, a power cut loses nothing that was written before the call, as far as the
    /// device keeps what it acknowledged. What it does not promise: anything about the *order* in which writes reach
    /// the disk before it returns, anything for a device that lies about its cache, and anything after an error. The
    /// kernel reports a failed write once and drops the dirty pages, so a second call that succeeds proves nothing: the
    /// whole batch counts as lost, and is staged anew by the next push. An error from before the descriptor was opened
    /// is not ours and not seen (Linux 5.8; older kernels report none, there only the device's own errors show).
    pub fn flush(&self) -> Result<(), FsError> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let mut result = Ok(());
        for fs in &*watched {
            let flushed = loop {
                match rustix::fs::syncfs(&fs.fd) {
                    Err(Errno::INTR) => {}
                    other => break other,
                }
            };
            // The others are flushed all the same, but the first failure decides.
            if let (Err(errno), Ok(())) = (flushed, &result) {
                result = Err(FsError::new("flush the file system at", &fs.top, errno));
            }
        }
        if result.is_err() {
            self.fail();
        }
        result
    }

    /// A flush has failed.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Whether a flush has failed: then nothing can be relied on that was written before it.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}
