//! What the end-to-end tests share: a scratch place, the real binaries, an independent look at trees.
//!
//! The tests know only the documented command line. Nothing here uses the engine's code: if the engine and its own
//! idea of "identical" were wrong together, these tests would still see it.
//!
//! Every test that cannot run on this machine says so through [`skip`], which prints `SKIPPED: name: why` past the
//! test harness's capture; `.ci/run` counts those lines.

#![allow(dead_code, unused_imports, reason = "each test file uses its own part of this")]

pub mod build;
pub mod churn;
pub mod daemon;
pub mod damage;
pub mod disks;
pub mod netns;
pub mod run;
pub mod tree;
pub mod watch;

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

pub use build::*;
pub use daemon::{Daemon, replica, status, waits_for_copy, waits_for_state};
pub use disks::*;
pub use run::*;
pub use tree::*;

/// The one reserved name, from the design: the private staging directory at the top of a replica or of a mount below it.
pub const STAGING: &str = ".synccli-staging";

/// Says loudly that a test did not run, and why.
pub fn skip(name: &str, why: &str) {
    // Straight to the descriptor: print! and eprint! are captured and thrown away for tests that pass.
    let _ = std::io::stderr().write_all(format!("SKIPPED: {name}: {why}\n").as_bytes());
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns from the test with a loud skip unless the condition holds.
#[macro_export]
macro_rules! need {
    ($name:expr, $condition:expr, $why:expr) => {
        if !$condition {
            $crate::support::skip($name, $why);
            return;
        }
    };
}

/// A place of its own for one test: removed at the end; for root a fresh tmpfs in a private mount namespace, so that
/// whatever a test mounts disappears with its thread and other work on the machine's disk does not slow its flushes.
pub struct Scratch {
    dir: PathBuf,
    /// Whether this test may mount things (root, and the kernel allowed a mount namespace).
    pub mounts: bool,
    leaked: bool,
}

impl Scratch {
    pub fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base = std::env::var_os("SYNC_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = loop {
            let dir = base.join(format!("sync-e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            match std::fs::create_dir(&dir) {
                Ok(()) => break dir,
                // Of a process of the same number that was killed.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => panic!("cannot create {}: {e}", dir.display()),
            }
        };
        let mounts = is_root() && disks::own_mount_namespace() && {
            let mounted =
                Command::new("mount").args(["-t", "tmpfs", "-o", "mode=755,size=4g", "scratch"]).arg(&dir).status();
            mounted.is_ok_and(|s| s.success())
        };
        // Tests that run the binaries as another user must be able to reach their files.
        set_mode(&dir, 0o755);
        Scratch { dir, mounts, leaked: false }
    }

    /// Keeps the directory for a look after a failure.
    pub fn leak(&mut self) {
        self.leaked = true;
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// A directory made now.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn src(&self) -> PathBuf {
        self.dir("src")
    }

    /// The destination's path; not created.
    pub fn dst(&self) -> PathBuf {
        self.path("dst")
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// `synccli --state-dir STATE push SRC DST`, to be given options.
    pub fn push(&self) -> Run {
        self.push_to(&[self.dst().as_os_str()])
    }

    /// The same with other destinations.
    pub fn push_to<S: AsRef<OsStr>>(&self, destinations: &[S]) -> Run {
        push_with(&self.state(), &self.path("src"), destinations)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.leaked || std::env::var_os("SYNC_TEST_KEEP").is_some() {
            return;
        }
        if self.mounts {
            let _ = Command::new("umount").args(["-l"]).arg(&self.dir).output();
        }
        // rm copes with depths and lengths that remove_dir_all does not.
        let _ = Command::new("rm").arg("-rf").arg("--").arg(&self.dir).output();
    }
}

/// `synccli --state-dir STATE push SRC DEST...`.
pub fn push_with<S: AsRef<OsStr>>(state: &Path, src: &Path, destinations: &[S]) -> Run {
    let mut run = synccli(state);
    run.arg("push").arg(src);
    for destination in destinations {
        run.arg(destination);
    }
    run
}

/// Makes the tree that was built at `SCRATCH/VERSION` the one at `SRC`, and puts the one that was there back. The path of
/// the source stays the same, so its index sees a source that has changed, not another one.
pub fn use_version(scratch: &Scratch, version: &str) {
    let note = scratch.path("version in use");
    if let Ok(current) = std::fs::read_to_string(&note) {
        std::fs::rename(scratch.path("src"), scratch.path(current)).unwrap();
    }
    std::fs::rename(scratch.path(version), scratch.path("src")).unwrap();
    std::fs::write(note, version).unwrap();
}

/// Bytes as text for a message.
pub fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

pub fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// Waits until `done`, or fails the test after `seconds`.
pub fn wait_for(what: &str, seconds: u64, mut done: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    while !done() {
        assert!(std::time::Instant::now() < end, "waited {seconds} s for: {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Sleeps past the coarsest clock tick of the file systems here, so that what was written before is provably old.
pub fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(40));
}

/// An ordinary user: uid and gid 12345, the binaries where it can run them, a home of its own.
pub struct User {
    pub home: PathBuf,
    synccli: PathBuf,
    state: PathBuf,
}

/// The program where anybody can reach it. Copied by cp: a descriptor of ours that is open for writing would be inherited
/// by whatever another test starts just then, and keep the copy from being executed.
pub fn copied_synccli(scratch: &Scratch) -> PathBuf {
    let copy = scratch.path("synccli");
    tool("cp", &[bin("synccli").as_os_str(), copy.as_os_str()]);
    set_mode(&copy, 0o755);
    copy
}

/// Needs root and `setpriv`.
pub fn as_user(scratch: &Scratch) -> User {
    let home = scratch.dir("home");
    set_owner(&home, 12345, 12345);
    let synccli = copied_synccli(scratch);
    User { state: home.join("state"), home, synccli }
}

impl User {
    /// `synccli --state-dir HOME/state push SRC DST` as that user.
    pub fn push(&self, src: &Path, dst: &Path) -> Run {
        let mut run = Run::new(&self.synccli);
        run.arg("--state-dir").arg(&self.state).arg("push").arg(src).arg(dst);
        run.behind(&["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "--"]);
        run
    }
}

/// What starts a program in a user namespace with this limit of `/proc/sys/user`; `None` if that does not work here. Owners
/// other than root do not exist in there.
pub fn behind_limit(name: &str, limit: u32) -> Option<Vec<std::ffi::OsString>> {
    let limited = format!("echo {limit} >/proc/sys/user/{name} && exec \"$@\"");
    let behind = ["unshare", "--user", "--map-root-user", "sh", "-c", &limited, "sh"];
    let works = std::process::Command::new(behind[0]).args(&behind[1..]).arg("true").output();
    works.is_ok_and(|ran| ran.status.success()).then(|| behind.map(Into::into).to_vec())
}
