//! One master, replicas, and a tree that never rests, while things break: after each, once the tree rests, every replica is
//! exact, holds nothing of ours, and has acknowledged what it has. What each test does, and how to run them for hours, is in
//! `tests/README.md`.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test drives the disk itself, and its failure is its report"
)]

mod support;

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::churn::{Churn, Churner, Pace, Rng, seconds, seed, torn};
use support::netns::{Cable, Cut as CableCut, cables};
use support::watch::{Hammer, Queue};
use support::*;

/// How long a tree at rest may take to be everywhere. Who failed again and again is waited for up to a minute.
const PATIENCE: u64 = 150;

/// The churn takes away most of its small tree now and then.
const UNGUARDED: &str = "max_delete = 'off'";

struct Replica {
    daemon: Daemon,
    tree: PathBuf,
}

/// A master and its replicas, each in a network of its own where that can be had.
struct Cluster {
    churn: Option<Churn>,
    master: Option<Daemon>,
    replicas: Vec<Replica>,
    cables: Vec<Cable>,
    rng: Rng,
    seed: u64,
    src: PathBuf,
    test: &'static str,
    scratch: Scratch,
}

impl Cluster {
    /// No daemon runs yet, and `src` is a tree that has been through much.
    fn new(test: &'static str, replicas: usize) -> Cluster {
        let seed = seed();
        // Past the harness's capture: a failure is only worth something with it.
        let _ = std::io::stderr().write_all(format!("{test}: SYNC_CHURN_SEED={seed}\n").as_bytes());
        let scratch = Scratch::new();
        let src = scratch.src();
        let mut churner = Churner::new(&src, seed, Pace::Wild);
        (0..300).for_each(|_| churner.step());
        let cables = cables(replicas).unwrap_or_default();
        Cluster { churn: None, master: None, replicas: Vec::new(), cables, rng: Rng(!seed), seed, src, test, scratch }
    }

    /// With as many replicas, all up.
    fn started(test: &'static str, replicas: usize) -> Cluster {
        let mut cluster = Cluster::new(test, replicas);
        for number in 0..replicas {
            let tree = cluster.scratch.dir(&format!("r{number}"));
            cluster.add(tree, &format!("state-r{number}"));
        }
        cluster.start("");
        cluster
    }

    /// A replica with this tree, whose state is `SCRATCH/STATE`.
    fn add(&mut self, tree: PathBuf, state: &str) {
        let (host, behind) = match self.cables.get(self.replicas.len()) {
            Some(cable) => (cable.host.as_str(), cable.behind()),
            None => ("127.0.0.1", Vec::new()),
        };
        let mut daemon = Daemon::replica_at(&self.scratch, state, &tree, UNGUARDED, host, behind);
        daemon.up();
        self.replicas.push(Replica { daemon, tree });
    }

    /// Starts the master, with more keys of the share's table.
    fn start(&mut self, keys: &str) {
        let daemons: Vec<&Daemon> = self.replicas.iter().map(|replica| &replica.daemon).collect();
        let keys = format!("{UNGUARDED}\n{keys}");
        self.master = Some(Daemon::master(&self.scratch, "m", &self.src, &daemons, &keys));
    }

    fn master(&mut self) -> &mut Daemon {
        self.master.as_mut().unwrap()
    }

    fn daemon(&mut self, number: usize) -> &mut Daemon {
        &mut self.replicas[number].daemon
    }

    fn churn(&mut self) {
        let seed = self.rng.next();
        self.churn = Some(Churn::start(&self.src, seed, Pace::Wild));
    }

    /// Lets the tree change for up to so long.
    fn a_while(&mut self, most: Duration) {
        let time = self.rng.millis(u64::try_from(most.as_millis()).unwrap());
        std::thread::sleep(time);
    }

    /// What can be seen at any moment: files that are only replaced whole are whole.
    #[track_caller]
    fn assert_whole(&self) {
        for replica in &self.replicas {
            assert_no_differences(&self.told("torn"), &torn(&replica.tree));
        }
    }

    fn told(&self, what: &str) -> String {
        format!("{}, SYNC_CHURN_SEED={}: {what}", self.test, self.seed)
    }

    /// Stops the churn; everything comes to rest, and is right.
    #[track_caller]
    fn quiet(&mut self, after: &str) {
        if let Some(churn) = self.churn.take() {
            let changes = churn.stop();
            assert!(changes > 0, "{}", self.told("nothing changed"));
        }
        let end = Instant::now() + Duration::from_secs(PATIENCE);
        loop {
            let want = snapshot(&self.src);
            let differing: Vec<(usize, Vec<String>)> = (0..self.replicas.len())
                .map(|i| (i, differences(&want, &snapshot(&self.replicas[i].tree))))
                .filter(|(_, lines)| !lines.is_empty())
                .collect();
            let behind = self.unacknowledged();
            if differing.is_empty() && behind.is_empty() {
                break;
            }
            if Instant::now() > end {
                let mut text = self.told(&format!("{PATIENCE} s after {after}:"));
                for (replica, lines) in differing {
                    text += &format!("\nreplica {replica}: {} differences\n{}", lines.len(), first(&lines).join("\n"));
                    text += &format!("\nits log ends with\n{}", last_lines(&self.replicas[replica].daemon.logged()));
                }
                text += &format!("\nnot acknowledged by {behind:?}");
                let log = last_lines(&self.master().logged());
                panic!("{text}\nthe master's log ends with\n{log}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.assert_at_rest(after);
    }

    /// The replicas that have not acknowledged the newest version as identical.
    fn unacknowledged(&self) -> Vec<String> {
        let versions = versions(&self.scratch.path("m"));
        let acked = |replica: &Replica| {
            let name = replica.daemon.dest("www");
            let acks = versions.last().and_then(|version| version["acks"].as_array());
            acks.is_some_and(|acks| acks.iter().any(|ack| ack["replica"] == name.as_str() && ack["exact"] == true))
        };
        self.replicas.iter().filter(|replica| !acked(replica)).map(|replica| replica.daemon.dest("www")).collect()
    }

    #[track_caller]
    fn assert_at_rest(&mut self, after: &str) {
        let before: Vec<Tree> = self.replicas.iter().map(|replica| snapshot(&replica.tree)).collect();
        let number = versions(&self.scratch.path("m")).len();
        std::thread::sleep(Duration::from_millis(400));
        for (replica, before) in self.replicas.iter().zip(&before) {
            assert_untouched(before, &snapshot(&replica.tree));
            assert_exact(&self.src, &replica.tree);
            assert_no_differences(&self.told("left over"), &leftovers(before));
        }
        let versions = versions(&self.scratch.path("m"));
        assert_eq!(versions.len(), number, "{}", self.told("versions of a tree at rest"));
        let numbers: Vec<u64> = versions.iter().map(|v| v["version"]["number"].as_u64().unwrap()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{}", self.told(&format!("versions {numbers:?}")));
        let running = self.master().is_running() && self.replicas.iter_mut().all(|replica| replica.daemon.is_running());
        assert!(running, "{}", self.told(&format!("a daemon ended after {after}")));
        let states = self.replicas.iter().map(|replica| &replica.daemon.state);
        for state in states.chain([&self.scratch.path("m")]) {
            let damaged: Vec<PathBuf> = files_below(&state.join("index"), "index.db.damaged");
            assert!(damaged.is_empty(), "{}", self.told(&format!("after {after}: given up: {damaged:?}")));
        }
    }

    /// Kills a replica, and starts it after a while.
    fn kill_replica(&mut self, number: usize, away: Duration) {
        self.daemon(number).kill();
        self.assert_whole();
        self.a_while(away);
        self.daemon(number).up();
    }

    /// Kills a replica; when it starts, its index is gone.
    fn lose_index(&mut self, number: usize, away: Duration) {
        let index = self.daemon(number).state.join("index");
        // A master that did not reach it at first comes back only after a while.
        wait_for("an index that can be lost", PATIENCE, || index.exists());
        self.daemon(number).kill();
        self.a_while(away);
        std::fs::remove_dir_all(&index).unwrap();
        self.daemon(number).up();
    }

    fn stop_replica(&mut self, number: usize, time: Duration) {
        self.daemon(number).signal(Signal::STOP);
        self.a_while(time);
        self.daemon(number).signal(Signal::CONT);
    }

    fn kill_master(&mut self, away: Duration) {
        self.master().kill();
        self.assert_whole();
        self.a_while(away);
        self.master().restart();
    }

    fn cut_cable(&mut self, number: usize, how: CableCut, time: Duration) {
        let done = self.cables[number].cut(how);
        if done != how {
            skip(self.test, &format!("this kernel has no cut that is {how:?}; {done:?} in its place"));
        }
        std::thread::sleep(time);
        self.cables[number].mend();
    }

    /// Changes a replica's tree behind its back, for some time. What it did is found by the look after the next start.
    fn tamper(&mut self, number: usize, time: Duration) {
        let seed = self.rng.next();
        let churn = Churn::start(&self.replicas[number].tree, seed, Pace::Wild);
        std::thread::sleep(time);
        assert!(churn.stop() > 0);
        self.daemon(number).kill();
        self.daemon(number).up();
    }

    /// Stops the master while more happens than its queue holds.
    fn overflow(&mut self) {
        let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let limit: u64 = limit.trim().parse().unwrap();
        // Where the churn makes no files, so that nothing else comes there; and watched before it begins.
        let flood = self.scratch.path("src/whole/flood");
        mkdir(&flood);
        let has_it = |replica: &Replica| replica.tree.join("whole/flood").is_dir();
        wait_for("a directory", PATIENCE, || self.replicas.iter().any(has_it));
        self.master().signal(Signal::STOP);
        let queue = Queue::of(&flood);
        let (mut churner, seed) = (Churner::new(&self.src, self.rng.next(), Pace::Wild), self.rng.next());
        // Two names that take turns: events that follow equal ones are left out.
        for i in 0..=limit / 4 {
            for name in ["one", "two"] {
                std::fs::write(flood.join(name), seed.wrapping_add(i).to_le_bytes()).unwrap();
            }
            if i % 200 == 0 {
                churner.step();
            }
        }
        assert!(queue.overflowed(), "{}", self.told("the flood is too small"));
        // Unseen, and perhaps onto another.
        let _ = std::fs::rename(&flood, self.src.join(format!("flooded{}", self.rng.below(3))));
        self.master().signal(Signal::CONT);
    }

    fn random_replica(&mut self) -> usize {
        usize::try_from(self.rng.below(self.replicas.len() as u64)).unwrap()
    }
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// Versions as `synccli log` lists them, oldest first.
fn versions(master: &Path) -> Vec<serde_json::Value> {
    synccli(master).args(&["log", "--json"]).ok().json_of("version")
}

fn files_below(dir: &Path, name: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let found = |path: PathBuf| match path.is_dir() {
        true => files_below(&path, name),
        false => Some(path).filter(|path| path.file_name() == Some(OsStr::new(name))).into_iter().collect(),
    };
    entries.flat_map(|entry| found(entry.unwrap().path())).collect()
}

/// Descriptors that a process has open, but for directories: of those it keeps some, and not always as many.
fn descriptors(pid: u32) -> usize {
    let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    open.filter(|fd| !fd.as_ref().is_ok_and(|fd| fd.path().is_dir())).count()
}

/// Memory of a process that is in use, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// How often a test that can go on for hours does what it does.
fn rounds(otherwise: u32) -> u32 {
    std::env::var("SYNC_CHURN_ROUNDS").map_or(otherwise, |set| set.parse().expect("SYNC_CHURN_ROUNDS is a number"))
}

#[test]
fn nothing_but_changes() {
    let mut cluster = Cluster::started("nothing_but_changes", 3);
    for round in 1..=rounds(4) {
        cluster.churn();
        cluster.a_while(seconds(2));
        cluster.quiet(&format!("round {round}"));
    }
}

#[test]
fn replicas_that_die_hang_or_lose_their_index() {
    let mut cluster = Cluster::started("replicas_that_die_hang_or_lose_their_index", 3);
    cluster.quiet("the first version");
    let (before, part) = (descriptors(cluster.master().pid()), seconds(3));
    for round in 1..=2 {
        cluster.churn();
        cluster.kill_replica(0, part / 2);
        cluster.stop_replica(1, part);
        cluster.lose_index(2, part / 2);
        // At once after the start, in the middle of its look.
        cluster.a_while(Duration::from_millis(300));
        cluster.kill_replica(2, Duration::ZERO);
        cluster.kill_replica(0, Duration::ZERO);
        // The database goes while it is open.
        std::fs::remove_dir_all(cluster.daemon(1).state.join("index")).unwrap();
        cluster.a_while(part);
        cluster.kill_replica(1, part / 4);
        cluster.quiet(&format!("round {round}"));
    }
    let now = descriptors(cluster.master().pid());
    // Two of the history, and two that SQLite keeps for each reader there was beside another. Each connection that leaked would
    // be there a dozen times.
    assert!(now <= before + 8, "{}", cluster.told(&format!("the master had {before} descriptors and has {now}")));
}

#[test]
fn a_master_that_dies() {
    let mut cluster = Cluster::started("a_master_that_dies", 3);
    // The first version may not be there yet.
    cluster.churn();
    let end = Instant::now() + seconds(6);
    while Instant::now() < end {
        cluster.a_while(Duration::from_millis(1500));
        cluster.kill_master(Duration::from_millis(500));
    }
    cluster.quiet("a master that died");
    // With a replica that dies at the same time.
    cluster.churn();
    cluster.a_while(seconds(2));
    cluster.daemon(0).kill();
    cluster.kill_master(Duration::from_millis(200));
    cluster.daemon(0).up();
    cluster.a_while(seconds(2));
    cluster.quiet("a master and a replica that died");
}

#[test]
fn links_that_are_cut() {
    let test = "links_that_are_cut";
    let mut cluster = Cluster::started(test, 3);
    need!(test, !cluster.cables.is_empty(), "needs root, network namespaces, ip, nsenter and unshare");
    cluster.quiet("the first version");
    for (number, how) in [(0, CableCut::Down), (1, CableCut::Silent)] {
        cluster.churn();
        cluster.cut_cable(number, how, seconds(3));
        cluster.a_while(seconds(1));
        cluster.quiet(&format!("a cut that was {how:?}"));
    }
    // Until the connection is given up, and beyond: two are cut at different moments, the third is not kept waiting.
    cluster.churn();
    cluster.cables[0].cut(CableCut::Silent);
    cluster.a_while(Duration::from_secs(2));
    cluster.cut_cable(1, CableCut::Down, Duration::from_secs(33));
    let behind = versions(&cluster.scratch.path("m"));
    let fast = cluster.replicas[2].daemon.dest("www");
    let is_acked =
        |v: &serde_json::Value| v["acks"].as_array().unwrap().iter().any(|ack| ack["replica"] == fast.as_str());
    let lag = behind.iter().rev().position(is_acked);
    assert!(lag.is_some_and(|lag| lag < 40), "{}", cluster.told(&format!("{lag:?} versions behind over a good link")));
    cluster.cables[0].mend();
    cluster.quiet("links that were cut for long");
}

#[test]
fn a_replica_whose_disk_is_full() {
    let test = "a_replica_whose_disk_is_full";
    let mut cluster = Cluster::new(test, 3);
    need!(test, cluster.scratch.mounts, "needs root and a mount namespace");
    // One with its state on the disk that fills, one without, and one that always has room.
    for (number, state) in [(0, "disk0/state"), (1, "state1"), (2, "state2")] {
        let disk = cluster.scratch.path(format!("disk{number}"));
        mount_tmpfs(&disk, "size=400m,mode=755");
        let tree = disk.join("tree");
        mkdir(&tree);
        cluster.add(tree, state);
    }
    cluster.start("");
    cluster.quiet("the first version");
    for round in 0..2 {
        for number in [0, 1] {
            let disk = cluster.scratch.path(format!("disk{number}"));
            // Without a byte, or without an inode.
            if round == 0 {
                let free = rustix::fs::statvfs(&disk).unwrap();
                let ballast = usize::try_from((free.f_bavail * free.f_frsize).saturating_sub(100 << 10)).unwrap();
                write(disk.join("ballast"), vec![1; ballast]);
            } else {
                let inodes = rustix::fs::statvfs(&disk).unwrap();
                remount(&disk, &format!("nr_inodes={}", inodes.f_files - inodes.f_ffree + 4));
            }
        }
        cluster.churn();
        std::thread::sleep(seconds(4));
        write(cluster.src.join(format!("large{round}")), noise(round, 2 << 20));
        many(&cluster.src.join(format!("many{round}")), 50, round);
        std::thread::sleep(seconds(1));
        cluster.assert_whole();
        for number in [0, 1] {
            let disk = cluster.scratch.path(format!("disk{number}"));
            if round == 0 { remove(&disk.join("ballast")) } else { remount(&disk, "nr_inodes=0") }
        }
        cluster.a_while(seconds(1));
        cluster.quiet(&format!("a full disk, round {round}"));
    }
}

#[test]
fn a_master_whose_state_directory_is_full() {
    let test = "a_master_whose_state_directory_is_full";
    let mut cluster = Cluster::new(test, 2);
    need!(test, cluster.scratch.mounts, "needs root and a mount namespace");
    let disk = cluster.scratch.path("m");
    mount_tmpfs(&disk, "size=64m,mode=700");
    for number in 0..2 {
        let tree = cluster.scratch.dir(&format!("r{number}"));
        cluster.add(tree, &format!("state-r{number}"));
    }
    cluster.start("");
    cluster.quiet("the first version");
    let free = rustix::fs::statvfs(&disk).unwrap();
    write(disk.join("ballast"), vec![1; usize::try_from(free.f_bavail * free.f_frsize).unwrap()]);
    cluster.churn();
    std::thread::sleep(seconds(3));
    many(&cluster.src.join("many"), 300, 1);
    cluster.master().kill();
    cluster.master().restart();
    std::thread::sleep(seconds(1));
    cluster.assert_whole();
    remove(&disk.join("ballast"));
    cluster.a_while(seconds(1));
    // One that could not even open its index may have ended, and said why.
    if !cluster.master().is_running() {
        cluster.master().restart();
    }
    cluster.quiet("a full state directory");
}

#[test]
fn a_replica_that_is_tampered_with() {
    let mut cluster = Cluster::started("a_replica_that_is_tampered_with", 3);
    cluster.quiet("the first version");
    cluster.churn();
    cluster.tamper(0, seconds(3));
    cluster.a_while(seconds(1));
    cluster.quiet("tampering while the master's tree changed");
    cluster.tamper(1, seconds(1));
    cluster.quiet("tampering while nothing else happened");
    // All of it goes.
    for name in std::fs::read_dir(&cluster.replicas[2].tree).unwrap() {
        remove(&name.unwrap().path());
    }
    cluster.churn();
    cluster.a_while(seconds(2));
    cluster.kill_replica(2, Duration::ZERO);
    cluster.quiet("the removal of a replica's whole tree");
}

#[test]
fn a_queue_of_events_that_overflows() {
    let mut cluster = Cluster::started("a_queue_of_events_that_overflows", 3);
    cluster.quiet("the first version");
    let told = versions(&cluster.scratch.path("m")).len();
    cluster.overflow();
    cluster.quiet("an overflow");
    assert!(versions(&cluster.scratch.path("m")).len() > told);
    // What came into place unseen is watched now.
    cluster.churn();
    cluster.a_while(seconds(1));
    cluster.overflow();
    cluster.a_while(seconds(2));
    cluster.quiet("an overflow in the midst of changes");
}

/// Below this name of the source something is mounted, which the churn leaves where it is.
const MOUNTED: &str = "mounted";

#[test]
fn a_mount_inside_the_share_that_goes_away() {
    let test = "a_mount_inside_the_share_that_goes_away";
    let mut cluster = Cluster::new(test, 3);
    need!(test, cluster.scratch.mounts, "needs root and a mount namespace");
    let (disk, mounted) = (cluster.scratch.path("disk"), cluster.src.join(MOUNTED));
    mount_tmpfs(&disk, "size=400m,mode=755");
    mkdir(&mounted);
    bind(&disk, &mounted);
    for number in 0..3 {
        let tree = cluster.scratch.dir(&format!("r{number}"));
        cluster.add(tree, &format!("state-r{number}"));
    }
    cluster.start("rescan = '2s'");
    for round in 0..2 {
        cluster.churn();
        let inside = Churn::start(&mounted, cluster.rng.next(), Pace::Wild);
        cluster.a_while(seconds(3));
        inside.stop();
        cluster.quiet("changes below a mount");
        // What is on it stays on the replicas, whatever happens around it.
        let kept: Vec<Tree> = cluster.replicas.iter().map(|r| snapshot(&r.tree.join(MOUNTED))).collect();
        cluster.churn();
        wait_for("the unmounting of what the master looks at", 20, || {
            std::process::Command::new("umount").arg(&mounted).output().unwrap().status.success()
        });
        std::thread::sleep(seconds(3));
        if round == 1 {
            cluster.kill_master(Duration::ZERO);
            cluster.kill_replica(0, Duration::ZERO);
            std::thread::sleep(seconds(2));
        }
        for (replica, kept) in cluster.replicas.iter().zip(&kept) {
            assert_untouched(kept, &snapshot(&replica.tree.join(MOUNTED)));
        }
        let churn = cluster.churn.take();
        drop(churn);
        wait_for("what is beside the mount", PATIENCE, || {
            let beside = |path: &Path| {
                let mut tree = snapshot(path);
                tree.retain(|name, _| !name.starts_with(MOUNTED.as_bytes()));
                tree
            };
            let want = beside(&cluster.src);
            cluster.replicas.iter().all(|replica| differences(&want, &beside(&replica.tree)).is_empty())
        });
        bind(&disk, &mounted);
        cluster.churn();
        cluster.a_while(seconds(2));
        cluster.quiet("a mount that was away");
    }
}

/// Makes the tree of the master the right one by hand.
#[track_caller]
fn push_by_hand(cluster: &mut Cluster, options: &[&str]) {
    assert!(cluster.master().term().1.success());
    let replicas: Vec<String> = cluster.replicas.iter().map(|replica| replica.daemon.dest("www")).collect();
    push_with(&cluster.scratch.path("m"), &cluster.src, &replicas).args(options).ok();
    cluster.master().restart();
}

#[test]
fn a_master_whose_index_is_yesterdays() {
    let mut cluster = Cluster::started("a_master_whose_index_is_yesterdays", 3);
    cluster.quiet("the first version");
    let (state, copy) = (cluster.scratch.path("m"), cluster.scratch.path("copy"));
    cluster.master().kill();
    copy_tree(&state, &copy);
    cluster.master().restart();
    // One stays at a version that the copy knows; the others go on.
    cluster.daemon(2).kill();
    cluster.churn();
    std::thread::sleep(seconds(3));
    write(cluster.src.join("stays"), b"newer than the copy");
    let newer = [0, 1].map(|i| cluster.replicas[i].tree.join("stays"));
    wait_for("versions that the copy does not know", PATIENCE, || {
        newer.iter().all(|file| std::fs::read(file).is_ok_and(|read| read == b"newer than the copy"))
    });
    // One that is killed while it publishes leaves replicas at no version at all, and those take any.
    drop(cluster.churn.take());
    wait_for("both to be at rest", PATIENCE, || {
        let source = snapshot(&cluster.src);
        [0, 1].iter().all(|i| differences(&source, &snapshot(&cluster.replicas[*i].tree)).is_empty())
    });
    std::thread::sleep(seconds(1));
    cluster.master().kill();
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::rename(&copy, &state).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let before: Vec<Tree> = [0, 1].iter().map(|i| snapshot(&cluster.replicas[*i].tree)).collect();
    cluster.churn();
    let logged = cluster.master().logged().len();
    cluster.daemon(2).up();
    cluster.master().restart();
    wait_for("both to be held", PATIENCE, || {
        let log = cluster.master().logged();
        (0..2).all(|i| {
            let name = cluster.replicas[i].daemon.address();
            log[logged..].lines().any(|line| line.contains("does not know") && line.contains(&name))
        })
    });
    // Numbers of versions are given again: none of them may be taken for the one that was acknowledged.
    std::thread::sleep(seconds(3));
    for (i, before) in before.iter().enumerate() {
        assert_untouched(before, &snapshot(&cluster.replicas[i].tree));
    }
    drop(cluster.churn.take());
    let (src, third) = (cluster.src.clone(), cluster.replicas[2].tree.clone());
    wait_for("the replica that the copy knows", PATIENCE, || {
        differences(&snapshot(&src), &snapshot(&third)).is_empty()
    });
    push_by_hand(&mut cluster, &[]);
    cluster.churn();
    cluster.a_while(seconds(2));
    cluster.quiet("a master that was restored");
}

/// Whose tree a replica shows, each time that changes.
fn watch_owner(tree: &Path) -> (Hammer, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    let (seen, file) = (std::sync::Arc::new(std::sync::Mutex::new(Vec::new())), tree.join("whose"));
    let told = std::sync::Arc::clone(&seen);
    let hammer = Hammer::start(move |_| {
        if let Ok(owner) = std::fs::read_to_string(&file) {
            let mut seen: std::sync::MutexGuard<'_, Vec<String>> = told.lock().unwrap();
            if seen.last() != Some(&owner) {
                seen.push(owner);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    });
    (hammer, seen)
}

/// A replica is its first master's, whatever breaks: the other one changes nothing there. Once it adopts the replica it is the
/// other way round. It changes hands when that is said, and not once more.
#[test]
fn two_masters_that_claim_one_replica() {
    let mut cluster = Cluster::started("two_masters_that_claim_one_replica", 1);
    write(cluster.src.join("whose"), b"the first's");
    cluster.quiet("the first version");
    let other_src = cluster.scratch.path("other");
    let mut churner = Churner::new(&other_src, cluster.rng.next(), Pace::Wild);
    (0..200).for_each(|_| churner.step());
    write(other_src.join("whose"), b"the other's");
    let (owner, seen) = watch_owner(&cluster.replicas[0].tree);
    let mut other = Daemon::master(&cluster.scratch, "m2", &other_src, &[&cluster.replicas[0].daemon], UNGUARDED);
    for round in 0..4 {
        cluster.churn();
        let other_churn = Churn::start(&other_src, cluster.rng.next(), Pace::Wild);
        std::thread::sleep(seconds(2));
        match round {
            0 => {}
            1 => cluster.kill_master(seconds(1)),
            2 => cluster.kill_replica(0, seconds(1)),
            _ => cluster.lose_index(0, seconds(1)),
        }
        std::thread::sleep(seconds(3));
        drop(other_churn);
        cluster.quiet(&format!("round {round} of two masters"));
    }
    assert_eq!(*seen.lock().unwrap(), ["the first's"], "{}", cluster.told("the other master was there"));

    synccli(&other.state).args(&["release", "www", "--adopt"]).ok();
    for round in 0..2 {
        cluster.churn();
        let other_churn = Churn::start(&other_src, cluster.rng.next(), Pace::Wild);
        std::thread::sleep(seconds(2));
        if round == 1 {
            cluster.lose_index(0, seconds(1));
            other.kill();
            std::thread::sleep(seconds(1));
            other.restart();
        }
        std::thread::sleep(seconds(2));
        cluster.assert_whole();
        drop((other_churn, cluster.churn.take()));
        wait_for("the tree of the other master", PATIENCE, || {
            differences(&snapshot(&other_src), &snapshot(&cluster.replicas[0].tree)).is_empty()
        });
    }
    assert_eq!(*seen.lock().unwrap(), ["the first's", "the other's"], "{}", cluster.told("it went to and fro"));

    // Back, while the other one is connected.
    push_by_hand(&mut cluster, &["--adopt"]);
    cluster.churn();
    cluster.a_while(seconds(2));
    write(other_src.join("whose"), b"the other's, later");
    cluster.quiet("two masters");
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen, ["the first's", "the other's", "the first's"], "{}", cluster.told("it went to and fro"));
    drop(owner);
    assert!(other.is_running());
    assert!(other.term().1.success());
}

fn first(lines: &[String]) -> Vec<&str> {
    lines.iter().take(12).map(String::as_str).collect()
}

/// The number of the newest version that a replica has acknowledged.
fn acknowledged(versions: &[serde_json::Value], replica: &str) -> u64 {
    let has = |v: &&serde_json::Value| v["acks"].as_array().unwrap().iter().any(|ack| ack["replica"] == replica);
    versions.iter().rev().find(has).map_or(0, |version| version["version"]["number"].as_u64().unwrap())
}

#[test]
fn what_was_acknowledged_outlives_a_power_cut() {
    let test = "what_was_acknowledged_outlives_a_power_cut";
    let mut cluster = Cluster::new(test, 2);
    let Some(mut disk) = Disk::ext4(test, &cluster.scratch, "disk", 256) else { return };
    mkdir(disk.at.join("tree"));
    cluster.add(disk.at.join("tree"), "disk/state");
    let tree = cluster.scratch.dir("r1");
    cluster.add(tree, "state-r1");
    cluster.start("");
    let name = cluster.replicas[0].daemon.dest("www");
    for cut in 1..=3_u64 {
        cluster.quiet("a power cut, or nothing yet");
        let rests = snapshot(&cluster.src);
        let busy = Churn::start(&cluster.src.join("busy"), cluster.rng.next(), Pace::Wild);
        cluster.a_while(seconds(2));
        write(cluster.src.join("stays"), cut.to_string());
        let seen = cluster.replicas[0].tree.join("stays");
        wait_for("a file", PATIENCE, || std::fs::read(&seen).is_ok_and(|seen| seen == cut.to_string().as_bytes()));
        // It is in the newest version now, if not in one before.
        let master = cluster.scratch.path("m");
        let number = versions(&master).last().unwrap()["version"]["number"].as_u64().unwrap();
        wait_for("its acknowledgement", PATIENCE, || acknowledged(&versions(&master), &name) >= number);
        disk.go_dark(Cut::Sudden);
        cluster.a_while(Duration::from_millis(200));
        cluster.daemon(0).kill();
        disk.unmount();
        disk.mount();
        cluster.assert_whole();
        assert_eq!(
            std::fs::read(&seen).unwrap(),
            cut.to_string().as_bytes(),
            "{}",
            cluster.told("it was acknowledged")
        );
        let beside = |mut tree: Tree| {
            tree.retain(|name, _| ![&b"busy"[..], b"stays", b".synccli-staging"].iter().any(|n| name.starts_with(n)));
            // The top's own times change with these names.
            tree.remove(&b""[..]);
            tree
        };
        let lost = differences(&beside(rests), &beside(snapshot(&cluster.replicas[0].tree)));
        assert_no_differences(&cluster.told("acknowledged, and lost in a power cut"), &lost);
        cluster.daemon(0).up();
        cluster.a_while(seconds(2));
        drop(busy);
    }
    cluster.quiet("the last power cut");
}

/// All that a test can do at any time, as the seed has it, one or several before each rest.
#[test]
fn everything_at_once() {
    let mut cluster = Cluster::started("everything_at_once", 3);
    for round in 1..=rounds(2) {
        cluster.churn();
        let mut done = Vec::new();
        for _ in 0..=cluster.rng.below(4) {
            let (number, time) = (cluster.random_replica(), cluster.rng.millis(1500));
            let fault = cluster.rng.below(if cluster.cables.is_empty() { 7 } else { 9 });
            done.push((fault, number, time));
            match fault {
                0 | 1 => cluster.kill_replica(number, time),
                2 => cluster.stop_replica(number, time),
                3 => cluster.lose_index(number, time),
                4 => cluster.kill_master(time),
                5 => cluster.tamper(number, time),
                6 => cluster.overflow(),
                7 => cluster.cut_cable(number, CableCut::Down, time),
                _ => cluster.cut_cable(number, CableCut::Silent, time),
            }
            cluster.a_while(seconds(1));
        }
        cluster.quiet(&format!("round {round}, in which were {done:?}"));
    }
}

/// One process at one moment.
#[derive(Clone, Copy)]
struct Sample {
    resident: u64,
    descriptors: usize,
}

/// Half an hour of steady changes with nothing broken: memory and descriptors stay what they are. `tests/README.md` tells
/// how it is run, and what can be set.
#[test]
#[ignore = "takes half an hour"]
fn soak() {
    let set = |name: &str, otherwise: u32| std::env::var(name).map_or(otherwise, |set| set.parse().unwrap());
    let (minutes, rate) = (set("SYNC_SOAK_MINUTES", 30), set("SYNC_SOAK_RATE", 5));
    let mut cluster = Cluster::started("soak", 3);
    cluster.quiet("the first version");
    let path = std::env::var_os("SYNC_SOAK_CSV").map_or_else(|| cluster.scratch.path("soak.csv"), PathBuf::from);
    let mut csv = std::fs::File::create(path).unwrap();
    writeln!(csv, "seconds,process,resident_kib,descriptors,threads,cpu_ticks,index_bytes").unwrap();
    let seed = cluster.rng.next();
    cluster.churn = Some(Churn::start(&cluster.src, seed, Pace::Steady(rate)));
    let mut pids = vec![("master".to_owned(), cluster.master().pid())];
    pids.extend(cluster.replicas.iter().enumerate().map(|(i, r)| (format!("replica{i}"), r.daemon.pid())));
    let mut states = vec![cluster.scratch.path("m")];
    states.extend(cluster.replicas.iter().map(|replica| replica.daemon.state.clone()));
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); pids.len()];
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(u64::from(minutes) * 60) {
        for (((name, pid), samples), state) in pids.iter().zip(&mut samples).zip(&states) {
            let sample = Sample { resident: resident(*pid), descriptors: descriptors(*pid) };
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
            let (seconds, ticks) = (begun.elapsed().as_secs(), cpu_ticks(*pid));
            let Sample { resident, descriptors } = sample;
            let databases =
                ["index.db", "index.db-wal"].iter().flat_map(|name| files_below(&state.join("index"), name));
            let index: u64 = databases.map(|path| path.metadata().map_or(0, |meta| meta.len())).sum();
            writeln!(csv, "{seconds},{name},{resident},{descriptors},{threads},{ticks},{index}").unwrap();
            samples.push(sample);
        }
        std::thread::sleep(Duration::from_secs(10));
    }
    cluster.quiet("the soak");
    let published = versions(&cluster.scratch.path("m")).len();
    let _ = writeln!(std::io::stderr(), "soak: {minutes} min at {rate} changes a second, {published} versions");
    let mut problems = Vec::new();
    for ((name, _), samples) in pids.iter().zip(&samples) {
        let third = samples.len() / 3;
        let [_, second, last] = [0, 1, 2].map(|part| &samples[part * third..(part + 1) * third]);
        let resident = |part: &[Sample]| median(part.iter().map(|sample| sample.resident).collect());
        let open = |part: &[Sample]| median(part.iter().map(|sample| sample.descriptors as u64).collect());
        let (memory, files) = ((resident(second), resident(last)), (open(second), open(last)));
        let text = format!("{name}: {} -> {} KiB, {} -> {} descriptors", memory.0, memory.1, files.0, files.1);
        let _ = writeln!(std::io::stderr(), "soak: {text} (medians of the second and the last third)");
        // A master opens the packs of its history as it needs them, up to 16.
        let packs = if name == "master" { 16 } else { 0 };
        if memory.1 * 4 > memory.0 * 5 || !(files.0..=files.0 + packs).contains(&files.1) {
            problems.push(text);
        }
    }
    assert!(problems.is_empty(), "{}", cluster.told(&format!("not flat: {problems:?}")));
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// CPU time of a process so far, in the kernel's ticks of 10 ms.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold blanks.
    let after = stat.rsplit(')').next().unwrap_or_default();
    after.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}
