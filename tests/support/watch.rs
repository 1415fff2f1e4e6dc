//! Watching what a push does: which files it opens, how much it reads, and threads that work against it.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{CWD, RenameFlags};

use super::Run;

/// Counts the files that anybody opens below some directories.
pub struct Opens {
    queue: OwnedFd,
    dirs: HashMap<i32, PathBuf>,
}

impl Opens {
    pub fn below(roots: &[&Path]) -> Opens {
        let queue = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        let mut opens = Opens { queue, dirs: HashMap::new() };
        for root in roots {
            opens.watch(root);
        }
        opens
    }

    fn watch(&mut self, dir: &Path) {
        let flags = WatchFlags::OPEN | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        let wd = inotify::add_watch(&self.queue, dir, flags).unwrap();
        self.dirs.insert(wd, dir.to_path_buf());
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                self.watch(&entry.path());
            }
        }
    }

    /// The files opened since the last call, once for each opening.
    pub fn take(&self) -> Vec<PathBuf> {
        let mut buffer = [MaybeUninit::uninit(); 1 << 16];
        let mut reader = Reader::new(&self.queue, &mut buffer);
        let mut opened = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => {
                    assert!(!event.events().contains(ReadFlags::QUEUE_OVERFLOW), "too many events to judge");
                    if event.events().contains(ReadFlags::ISDIR) {
                        continue;
                    }
                    if let (Some(dir), Some(name)) = (self.dirs.get(&event.wd()), event.file_name()) {
                        opened.push(dir.join(super::os(name.to_bytes())));
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return opened,
                Err(e) => panic!("cannot read inotify: {e}"),
            }
        }
    }
}

/// A queue of what is written in one directory, which nobody empties.
pub struct Queue(OwnedFd);

impl Queue {
    pub fn of(dir: &Path) -> Queue {
        let queue = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&queue, dir, WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE).unwrap();
        Queue(queue)
    }

    /// Whether there was more than it holds: then every queue that was told of this lost some as well.
    pub fn overflowed(&self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 1 << 16];
        let mut reader = Reader::new(&self.0, &mut buffer);
        while let Ok(event) = reader.next() {
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                return true;
            }
        }
        false
    }
}

/// Runs the command and tells how many bytes it read by read calls, from `/proc/PID/io` of a shell that waits for it.
/// `None` where the kernel does not account for it.
pub fn bytes_read(run: &mut Run) -> Option<u64> {
    // A dead child's count goes to the parent that reaped it.
    let script = r#""$@" >/dev/null || exit $?; cat "/proc/$$/io" 2>/dev/null || true"#;
    let ran = run.behind(&["sh", "-c", script, "sh"]).ok();
    let line = ran.out().lines().find_map(|l| l.strip_prefix("rchar: ").map(str::to_string))?;
    line.trim().parse().ok()
}

/// A thread that does something over and over until it is stopped or dropped.
pub struct Hammer {
    stop: Arc<AtomicBool>,
    turns: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Hammer {
    pub fn start(mut turn: impl FnMut(u64) + Send + 'static) -> Hammer {
        let stop = Arc::new(AtomicBool::new(false));
        let turns = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&turns));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                turn(counted.fetch_add(1, Ordering::Relaxed));
            }
        });
        Hammer { stop, turns, thread: Some(thread) }
    }

    /// Swaps two names atomically as fast as the kernel can, with a short rest at each state.
    pub fn flip(pairs: Vec<(PathBuf, PathBuf)>) -> Hammer {
        Hammer::start(move |turn| {
            for (a, b) in &pairs {
                let _ = rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE);
            }
            // Rests of different lengths, so that every step of a push meets a flip sooner or later.
            for _ in 0..(turn * 7919) % 3000 {
                std::hint::spin_loop();
            }
        })
    }

    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    pub fn stop(mut self) -> u64 {
        self.halt();
        self.turns()
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the thread that works against the push failed");
        }
    }
}

impl Drop for Hammer {
    fn drop(&mut self) {
        self.halt();
    }
}
