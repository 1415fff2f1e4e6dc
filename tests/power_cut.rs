//! "Exit 0 means durable: after it, a power cut loses nothing; before it, every visible file is a whole old or new one."
//! An ext4 loop mount is shut down with `EXT4_IOC_SHUTDOWN`, with and without flushing the log.

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

use std::path::PathBuf;

use rustix::process::Signal;
use support::*;

/// A disk that holds DEST, and the state directory too, so that the index goes through the same cut.
struct Victim {
    scratch: Scratch,
    disk: Disk,
}

impl Victim {
    fn new(test: &str) -> Option<Victim> {
        let scratch = Scratch::new();
        let disk = Disk::ext4(test, &scratch, "disk", 192)?;
        many(&scratch.path("a"), 500, 1);
        write(scratch.path("a/large"), noise(7, 5 << 20));
        write(scratch.path("a/hard1"), b"hard");
        hard_link(scratch.path("a/hard1"), scratch.path("a/hard2"));
        copy_tree(&scratch.path("a"), &scratch.path("b"));
        edit_many(&scratch.path("b"), 500, 2);
        write(scratch.path("b/large"), noise(8, 5 << 20));
        Some(Victim { scratch, disk })
    }

    fn dst(&self) -> PathBuf {
        self.disk.at.join("dst")
    }

    fn push(&self, version: &str) -> Run {
        self.switch(version);
        push_with(&self.disk.at.join("state"), &self.scratch.path("src"), &[self.dst()])
    }

    fn switch(&self, version: &str) {
        let current = std::fs::read_to_string(self.scratch.path("version in use"));
        if current.is_err() || current.unwrap() != version {
            use_version(&self.scratch, version);
        }
    }

    #[track_caller]
    fn assert_is(&self, version: &str, when: &str) {
        self.switch(version);
        let (want, have) = (snapshot(&self.scratch.path("src")), snapshot(&self.dst()));
        assert_no_differences(when, &differences(&want, &have));
    }
}

fn durable_after_exit_0(test: &str, cut: Cut) {
    let Some(mut victim) = Victim::new(test) else { return };
    for (round, version) in ["a", "b", "a"].into_iter().enumerate() {
        victim.push(version).ok();
        victim.disk.power_cut(cut);
        victim.assert_is(version, &format!("{cut:?} after push {round} had ended with 0"));
        // The index went through the cut as well and still tells the truth.
        let before = snapshot(&victim.dst());
        victim.push(version).ok().says("nothing");
        assert_untouched(&before, &snapshot(&victim.dst()));
    }
}

#[test]
fn exit_0_is_durable_when_nothing_more_is_flushed() {
    durable_after_exit_0("exit_0_is_durable_when_nothing_more_is_flushed", Cut::Sudden);
}

#[test]
fn exit_0_is_durable_when_the_log_is_flushed() {
    durable_after_exit_0("exit_0_is_durable_when_the_log_is_flushed", Cut::LogFlushed);
}

#[test]
fn exit_0_is_durable_after_an_orderly_shutdown() {
    durable_after_exit_0("exit_0_is_durable_after_an_orderly_shutdown", Cut::Flushed);
}

#[test]
fn exit_0_is_durable_for_one_small_change_and_for_one_deletion() {
    let test = "exit_0_is_durable_for_one_small_change_and_for_one_deletion";
    let Some(mut victim) = Victim::new(test) else { return };
    victim.push("a").ok();
    let a = victim.scratch.path("src");
    let edits: [fn(&std::path::Path); 6] = [
        |a| append(a.join("d000/f00001"), b"more"),
        |a| remove(&a.join("d000/f00002")),
        |a| set_mode(a.join("d000/f00003"), 0o600),
        |a| std::fs::rename(a.join("d000/f00004"), a.join("moved")).unwrap(),
        |a| link_to("x", a.join("link")),
        |a| mkdir(a.join("new dir/below")),
    ];
    for (i, edit) in edits.into_iter().enumerate() {
        edit(&a);
        victim.push("a").ok();
        victim.disk.power_cut(Cut::Sudden);
        victim.assert_is("a", &format!("a cut after edit {i}"));
    }
}

#[test]
fn a_push_that_had_nothing_to_do_is_durable_too() {
    // Killed after it had published, before it could flush: the next push finds all in place and says done. It must
    // then be done.
    let test = "a_push_that_had_nothing_to_do_is_durable_too";
    let Some(mut victim) = Victim::new(test) else { return };
    victim.push("a").ok();
    let whole = victim.push("b").ok().took;
    for eighths in [4, 5, 6, 7] {
        let version = if eighths % 2 == 0 { "a" } else { "b" };
        let mut push = victim.push(version).start();
        std::thread::sleep(whole * eighths / 8);
        push.signal(Signal::KILL);
        push.wait();
        victim.push(version).ok();
        victim.disk.power_cut(Cut::Sudden);
        victim.assert_is(version, &format!("killed at {eighths}/8, pushed again, cut"));
    }
}

#[test]
fn a_tree_somebody_else_just_wrote_is_durable_once_we_say_so() {
    // Content that is only in the page cache, put there by cp: exit 0 claims it as well.
    let test = "a_tree_somebody_else_just_wrote_is_durable_once_we_say_so";
    let Some(mut victim) = Victim::new(test) else { return };
    copy_tree(&victim.scratch.path("a"), &victim.dst());
    victim.push("a").ok();
    victim.disk.power_cut(Cut::Sudden);
    victim.assert_is("a", "adopted, then cut");
}

fn whole_files_at_any_moment(test: &str, cut: Cut, points: u32) {
    let Some(mut victim) = Victim::new(test) else { return };
    let (a, b) = (snapshot(&victim.scratch.path("a")), snapshot(&victim.scratch.path("b")));
    victim.push("a").ok();
    let whole = victim.push("b").ok().took;
    for point in 0..points {
        let (version, old, new) = if point % 2 == 0 { ("a", &b, &a) } else { ("b", &a, &b) };
        let push = victim.push(version).timeout(60).start();
        std::thread::sleep(whole * (point + 1) / points);
        victim.disk.go_dark(cut);
        let ran = push.wait();
        victim.disk.unmount();
        victim.disk.mount();
        let seen = snapshot(&victim.dst());
        assert_old_or_new(old, new, &seen);
        if ran.status.success() {
            victim.assert_is(version, "exit 0 was said before the cut");
        }
        victim.push(version).ok();
        victim.assert_is(version, &format!("the push after cut {point}"));
        assert_no_differences("left over", &leftovers(&snapshot(&victim.dst())));
    }
}

#[test]
fn a_sudden_cut_during_a_push_leaves_whole_files() {
    whole_files_at_any_moment("a_sudden_cut_during_a_push_leaves_whole_files", Cut::Sudden, 12);
}

#[test]
fn a_cut_with_a_flushed_log_during_a_push_leaves_whole_files() {
    whole_files_at_any_moment("a_cut_with_a_flushed_log_during_a_push_leaves_whole_files", Cut::LogFlushed, 12);
}

#[test]
fn a_daemon_through_a_power_cut() {
    let test = "a_daemon_through_a_power_cut";
    let Some(mut victim) = Victim::new(test) else { return };
    mkdir(victim.dst());
    let mut daemon = Daemon::new(&victim.scratch, "disk/r", &[("www", &victim.dst())]);
    daemon.log = victim.scratch.path("r.log");
    daemon.up();
    let master = victim.scratch.path("m");
    daemon.pair(&master);
    let push = |victim: &Victim, daemon: &Daemon, version: &str| {
        victim.switch(version);
        push_with(&master, &victim.scratch.path("src"), &[daemon.dest("www")]).timeout(60).start()
    };
    let (a, b) = (snapshot(&victim.scratch.path("a")), snapshot(&victim.scratch.path("b")));
    let whole = push(&victim, &daemon, "a").wait().code(0).took;
    for point in 0..6 {
        let (version, old, new) = if point % 2 == 0 { ("b", &a, &b) } else { ("a", &b, &a) };
        let running = push(&victim, &daemon, version);
        std::thread::sleep(whole * (point + 1) / 6);
        victim.disk.go_dark(Cut::Sudden);
        daemon.kill();
        let ran = running.wait();
        victim.disk.unmount();
        victim.disk.mount();
        assert_old_or_new(old, new, &snapshot(&victim.dst()));
        if ran.status.success() {
            victim.assert_is(version, "acknowledged before the cut");
        }
        daemon.up();
        push(&victim, &daemon, version).wait().code(0);
        victim.assert_is(version, &format!("the push after cut {point}"));
    }
}

#[test]
fn exit_0_is_durable_on_every_mount_below_dest() {
    let test = "exit_0_is_durable_on_every_mount_below_dest";
    let Some(mut victim) = Victim::new(test) else { return };
    mkdir(victim.dst().join("d001"));
    let Some(mut below) = Disk::ext4(test, &victim.scratch, "disk/dst/d001", 64) else { return };
    for version in ["a", "b"] {
        victim.push(version).ok();
        below.go_dark(Cut::Sudden);
        victim.disk.go_dark(Cut::Sudden);
        below.unmount();
        victim.disk.unmount();
        victim.disk.mount();
        below.mount();
        victim.assert_is(version, "cut on both disks after exit 0");
    }
}

/// Counts the flushing system calls of a push of this many new files.
fn flushes(scratch: &Scratch, files: usize) -> Option<usize> {
    let name = format!("{files}");
    many(&scratch.path(format!("src{name}")), files, 1);
    let calls = scratch.path(format!("calls{name}"));
    let mut push = push_with(
        &scratch.path(format!("state{name}")),
        &scratch.path(format!("src{name}")),
        &[scratch.path(format!("dst{name}"))],
    );
    let trace = ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync,syncfs,sync,sync_file_range", "-o"];
    let mut words: Vec<std::ffi::OsString> = trace.iter().map(Into::into).collect();
    words.push(calls.clone().into());
    let ran = push.behind(&words).run();
    ran.status
        .success()
        .then(|| std::fs::read_to_string(&calls).unwrap().lines().filter(|l| l.contains("sync")).count())
}

#[test]
fn flushes_are_per_batch_and_not_per_file() {
    let name = "flushes_are_per_batch_and_not_per_file";
    need!(name, has("strace"), "needs strace to count");
    let scratch = Scratch::new();
    let (few, more) = (flushes(&scratch, 5), flushes(&scratch, 1500));
    need!(name, few.is_some() && more.is_some(), "strace may not trace here");
    let (few, more) = (few.unwrap(), more.unwrap());
    assert!(few >= 2, "nothing is flushed at all: {few}");
    assert!(more <= few + 8, "5 files need {few} flushes, 1500 need {more}");
}
