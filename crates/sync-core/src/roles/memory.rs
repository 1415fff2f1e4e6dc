//! How a process that pushes or receives keeps its memory small.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Tells the allocator of glibc to give back what is freed. To be called first thing in `main`.
///
/// Contents pass through in buffers of up to a mebibyte, while small things that live long are allocated in between.
/// Left to itself, glibc has one heap for every thread, and the small things keep those heaps from shrinking: measured,
/// twice to three times the memory that is in use. So there are two heaps, which are trimmed when 4 MiB at the end are
/// free. Buffers come from them too: mapped and unmapped one by one they cost a tenth of a first push in page faults,
/// measured (mallopt(3)). Elsewhere this does nothing.
#[allow(unsafe_code)]
pub fn return_what_is_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes two numbers and sets parameters of the allocator; it is called before there are threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 << 20);
    }
}

/// Bytes on the wire after which a session may leave tens of megabytes that are free and not given back.
const MUCH: u64 = 4 << 20;

/// How long after a session that is done, so that several are followed by one.
const SOON: Duration = Duration::from_secs(2);

/// Gives back what is free between small things that live long, soon after a session that took so many bytes on the wire: some
/// milliseconds, for a daemon that may be idle for months then. Elsewhere than with glibc this does nothing. Must be called
/// within a tokio runtime.
pub fn trim_after(bytes: u64) {
    static DUE: AtomicBool = AtomicBool::new(false);
    if bytes < MUCH || DUE.swap(true, Ordering::Relaxed) {
        return;
    }
    tokio::spawn(async {
        tokio::time::sleep(SOON).await;
        DUE.store(false, Ordering::Relaxed);
        let _ = tokio::task::spawn_blocking(trim).await;
    });
}

/// Gives it back now: between the stretches of a large tree, each of which leaves some 20 MB in pieces. Blocks for some milliseconds.
#[allow(unsafe_code)]
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes a number, and may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
