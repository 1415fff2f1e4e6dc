//! "A push of gigabytes that was cut resumes: what was verified before is not sent again." The sizes here are smaller so
//! that the test fits everywhere; `SYNC_TEST_RESUME_MIB=1024` makes it the real thing.

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

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use support::*;

fn mebibytes() -> u64 {
    std::env::var("SYNC_TEST_RESUME_MIB").ok().and_then(|v| v.parse().ok()).unwrap_or(160)
}

/// The largest file in the staging directory, and its size on disk: what has arrived of a large file so far.
fn part(dst: &Path) -> Option<(PathBuf, u64)> {
    let entries = std::fs::read_dir(dst.join(STAGING)).ok()?;
    let sizes = entries.filter_map(|e| {
        let e = e.ok()?;
        Some((e.path(), e.metadata().ok()?.len()))
    });
    sizes.max_by_key(|(_, size)| *size)
}

struct Big {
    scratch: Scratch,
    size: u64,
}

impl Big {
    fn new() -> Big {
        Big::of(mebibytes())
    }

    fn of(mebibytes: u64) -> Big {
        let scratch = Scratch::new();
        let size = mebibytes << 20;
        write(scratch.src().join("big"), noise(1, usize::try_from(size).unwrap()));
        many(&scratch.src(), 100, 1);
        mkdir(scratch.dst());
        Big { scratch, size }
    }

    /// Starts a push at a rate that takes some seconds, waits until this share of the big file is staged, and gives it
    /// to `cut`. Returns what was staged by then.
    fn cut_at(&self, mut push: Run, share: f64, cut: impl FnOnce(&mut Running)) -> u64 {
        let rate = format!("--bwlimit={}m", (self.size >> 22).max(20));
        let mut running = push.args(&[rate.as_str(), "--compress=never"]).timeout(200).start();
        let goal = (self.size as f64 * share) as u64;
        let dst = self.scratch.dst();
        wait_for("a large part of the big file to be staged", 120, || {
            assert!(running.is_running(), "ended before it could be cut");
            part(&dst).is_some_and(|(_, size)| size >= goal)
        });
        cut(&mut running);
        let ran = running.wait();
        assert!(!ran.status.success(), "{ran}");
        // What a reader of DEST sees is nothing at all of the big file.
        assert!(!dst.join("big").exists());
        goal
    }

    /// The push after the cut: exact, and with so much less on the wire.
    #[track_caller]
    fn resumes(&self, mut push: Run, staged: u64) {
        let ran = push.args(&["--json", "--compress=never"]).timeout(200).ok();
        assert_exact(&self.scratch.src(), &self.scratch.dst());
        assert_no_differences("left over", &leftovers(&snapshot(&self.scratch.dst())));
        // Every byte is in a count, whatever push it came with.
        let files = snapshot(&self.scratch.dst());
        let total: u64 = files.values().filter(|node| node.kind == Kind::File).map(|node| node.size).sum();
        let summary = ran.summary();
        assert_eq!(summary.count("literal_bytes") + summary.count("resumed_bytes"), total, "{ran}");
        assert_eq!(summary.count("reused_bytes"), summary.count("resumed_bytes"), "{ran}");
        let sent = summary.count("wire_sent");
        // Slack: chunks in flight at the cut, headers, the small files.
        let allowed = self.size - staged + self.size / 8 + (12 << 20);
        assert!(sent < allowed, "sent {sent} of {} although {staged} had been verified\n{ran}", self.size);
    }
}

#[test]
fn a_killed_embedded_push_resumes() {
    let big = Big::new();
    let staged = big.cut_at(big.scratch.push(), 0.7, |push| push.signal(Signal::KILL));
    big.resumes(big.scratch.push(), staged);
}

#[test]
fn an_interrupted_push_keeps_only_the_parts_of_large_files_and_resumes() {
    let big = Big::new();
    let asked = std::cell::Cell::new(std::time::Instant::now());
    let staged = big.cut_at(big.scratch.push(), 0.7, |push| {
        asked.set(std::time::Instant::now());
        push.signal(Signal::INT);
    });
    assert!(asked.get().elapsed() < Duration::from_secs(5), "{:?} from signal to end", asked.get().elapsed());
    let left = snapshot(&big.scratch.dst());
    let ours: Vec<_> = left.iter().filter(|(path, _)| path.starts_with(STAGING.as_bytes())).collect();
    assert!(ours.iter().all(|(_, n)| n.kind == Kind::Dir || n.size >= staged / 2), "{:?}", leftovers(&left));
    assert_eq!(ours.iter().filter(|(_, n)| n.kind == Kind::File).count(), 1, "{:?}", leftovers(&left));
    for (path, node) in ours {
        let private = if node.kind == Kind::Dir { 0o700 } else { 0o600 };
        assert_eq!(node.mode, private, "{} is not private", shown(path));
    }
    big.resumes(big.scratch.push(), staged);
}

#[test]
fn however_little_arrived_of_a_file_over_64_mib_is_not_sent_again() {
    let big = Big::of(80);
    big.cut_at(big.scratch.push(), 0.125, |push| push.signal(Signal::INT));
    let (path, kept) = part(&big.scratch.dst()).expect("nothing was kept");
    assert!(kept < 60 << 20, "{kept} bytes of {} were kept: too late a cut", path.display());
    let ran = big.scratch.push().args(&["--json", "--compress=never"]).timeout(200).ok();
    assert_exact(&big.scratch.src(), &big.scratch.dst());
    assert_no_differences("left over", &leftovers(&snapshot(&big.scratch.dst())));
    let (literal, wire) = (ran.summary().count("literal_bytes"), ran.summary().count("wire_sent"));
    // Slack: a chunk that was cut short, the small files.
    assert!(literal < big.size - kept + (1 << 20), "{literal} of {} although {kept} were kept\n{ran}", big.size);
    assert!(wire < big.size - kept / 2, "sent {wire} of {} although {kept} were kept\n{ran}", big.size);
}

#[test]
fn nothing_is_kept_of_a_file_that_is_not_over_64_mib() {
    for mebibytes in [10, 64] {
        let big = Big::of(mebibytes);
        big.cut_at(big.scratch.push(), 0.4, |push| push.signal(Signal::INT));
        assert_no_differences("left after a signal", &leftovers(&snapshot(&big.scratch.dst())));
        // Killed, it cannot clear up: the next push does, and sends all of it again.
        big.cut_at(big.scratch.push(), 0.4, |push| push.signal(Signal::KILL));
        assert!(part(&big.scratch.dst()).is_some());
        let ran = big.scratch.push().args(&["--json", "--compress=never"]).timeout(200).ok();
        assert_exact(&big.scratch.src(), &big.scratch.dst());
        assert_no_differences("left over", &leftovers(&snapshot(&big.scratch.dst())));
        assert!(ran.summary().count("literal_bytes") >= big.size, "{ran}");
    }
}

#[test]
fn a_push_to_a_daemon_resumes_after_either_side_was_killed() {
    let big = Big::new();
    let mut daemon = Daemon::start(&big.scratch, "r", &[("www", &big.scratch.dst())]);
    daemon.pair(&big.scratch.state());
    let push = |daemon: &Daemon| big.scratch.push_to(&[daemon.dest("www")]);
    big.cut_at(push(&daemon), 0.35, |push| push.signal(Signal::KILL));
    let staged = big.cut_at(push(&daemon), 0.7, |push| {
        daemon.kill();
        push.signal(Signal::INT);
    });
    daemon.up();
    big.resumes(push(&daemon), staged);
}

#[test]
fn a_part_that_was_tampered_with_is_not_believed() {
    let big = Big::new();
    big.cut_at(big.scratch.push(), 0.7, |push| push.signal(Signal::KILL));
    let (path, size) = part(&big.scratch.dst()).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"not what was sent", size / 3).unwrap();
    drop(file);
    big.scratch.push().timeout(200).ok();
    assert_exact(&big.scratch.src(), &big.scratch.dst());
}

#[test]
fn a_part_of_a_file_that_has_changed_since_is_used_or_dropped_but_never_wrong() {
    let big = Big::new();
    big.cut_at(big.scratch.push(), 0.7, |push| push.signal(Signal::KILL));
    let file = std::fs::File::options().write(true).open(big.scratch.src().join("big")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"an edit near the start", 3 << 20).unwrap();
    drop(file);
    big.scratch.push().timeout(200).ok();
    assert_exact(&big.scratch.src(), &big.scratch.dst());
    assert_no_differences("left over", &leftovers(&snapshot(&big.scratch.dst())));
}

#[test]
fn a_part_whose_file_is_gone_from_the_source_goes_with_the_next_push() {
    let big = Big::new();
    big.cut_at(big.scratch.push(), 0.7, |push| push.signal(Signal::KILL));
    remove(&big.scratch.src().join("big"));
    big.scratch.push().ok();
    assert_exact(&big.scratch.src(), &big.scratch.dst());
    assert_no_differences("left over", &leftovers(&snapshot(&big.scratch.dst())));
}

/// Files in staging, at whatever depth.
fn staged(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries.flatten().map(|entry| if entry.path().is_dir() { staged(&entry.path()) } else { 1 }).sum()
}

#[test]
fn small_files_that_arrived_before_the_master_vanished_are_not_sent_again() {
    const COUNT: u64 = 2000;
    const SIZE: usize = 20_000;
    let scratch = Scratch::new();
    mkdir(scratch.dst().join("there"));
    for i in 0..COUNT {
        // Into a directory that is new, and into one that is there.
        let dir = if i % 2 == 0 { "new" } else { "there" };
        write(scratch.src().join(format!("{dir}/f{i}")), noise(i, SIZE));
    }
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.state());
    let push = || scratch.push_to(&[daemon.dest("www")]);
    let mut running = push().args(&["--bwlimit=8m", "--compress=never"]).timeout(90).start();
    let came = COUNT as usize / 4;
    wait_for("a quarter of the files to be staged", 60, || {
        assert!(running.is_running(), "ended before it could be cut");
        staged(&scratch.dst().join(STAGING)) >= came
    });
    running.signal(Signal::KILL);
    running.wait();
    // Waits for the daemon to notice.
    let ran = push().args(&["--json", "--compress=never"]).timeout(90).ok();
    assert_exact(&scratch.src(), &scratch.dst());
    assert_no_differences("left over", &leftovers(&snapshot(&scratch.dst())));
    let (literal, resumed) = (ran.summary().count("literal_bytes"), ran.summary().count("resumed_bytes"));
    assert_eq!(literal + resumed, COUNT * SIZE as u64, "{ran}");
    // Slack: what is being written and named at this moment.
    assert!(resumed >= (came as u64 - 20) * SIZE as u64, "{resumed} bytes of {came} files were used again\n{ran}");
}

#[test]
fn the_first_copy_of_a_mirror_goes_on_where_either_daemon_was_restarted() {
    const COUNT: u64 = 2000;
    const SIZE: usize = 20_000;
    let scratch = Scratch::new();
    for i in 0..COUNT {
        write(scratch.src().join(format!("d{}/f{i}", i % 20)), noise(i, SIZE));
    }
    let mut one = replica(&scratch, "one");
    let mut master = Daemon::master(&scratch, "m", &scratch.src(), &[&one], "bwlimit = '8m'");
    let staging = scratch.path("one").join(STAGING);
    let mut came = 0;
    for restarts_master in [true, false] {
        wait_for("more of the files to be staged", 60, || staged(&staging) >= came + COUNT as usize / 8);
        let ended = if restarts_master { master.term() } else { one.term() };
        assert!(ended.1.success());
        wait_for("the session to end", 60, || !staging.join("tree").exists() || staged(&staging) >= came);
        came = staged(&staging);
        if restarts_master { master.up() } else { one.up() }
    }
    let (src, dst) = (scratch.src(), scratch.path("one"));
    wait_for("the replica to be identical", 120, || differences(&snapshot(&src), &snapshot(&dst)).is_empty());
    assert_exact(&src, &dst);
    waits_for_state(&master.state, 0, "in_sync");
    let bytes = status(&master.state)["replicas"][0]["delivery"]["wire_bytes"].as_u64().unwrap();
    let (all, resumed) = (COUNT * SIZE as u64, came as u64 * SIZE as u64);
    assert!(came >= COUNT as usize / 4, "only {came} files were staged");
    // Slack: headers, offers and changes; what was being written and named.
    assert!(bytes < all - resumed * 9 / 10 + all / 20, "{bytes} bytes were sent of {all}, and {resumed} had come");
    assert_no_differences("left over", &leftovers(&snapshot(&scratch.path("one"))));
}
