//! What a mirror holds until a person says that it is meant: emptied trees, too many deletions, a master of yesterday.

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

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use support::*;

/// Long enough for a loaded machine; what is waited for comes in milliseconds.
const PATIENCE: u64 = 60;

#[test]
fn an_emptied_tree_is_held_until_it_is_released() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 60, 1);
    let one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    let before = snapshot(&scratch.path("one"));
    for entry in std::fs::read_dir(&src).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
    let ran = synccli(&master.state).args(&["push", "www"]).code(1);
    assert!(ran.err().contains("is empty") && ran.err().contains("synccli release"), "{ran}");
    assert_eq!(status(&master.state)["state"], "held");
    assert_untouched(&before, &snapshot(&scratch.path("one")));
    // Not much of it is back; but half is enough, where so few are no matter for `max_delete`.
    many(&src, 20, 1);
    let ran = synccli(&master.state).args(&["push", "www"]).code(1);
    assert!(ran.err().contains("less than half") && ran.err().contains("synccli release"), "{ran}");
    assert_untouched(&before, &snapshot(&scratch.path("one")));
    many(&src, 40, 1);
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &scratch.path("one"));
    // A person may mean it.
    std::fs::remove_dir_all(src.join("d000")).unwrap();
    synccli(&master.state).args(&["push", "www"]).code(1);
    synccli(&master.state).args(&["release", "www"]).ok();
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_eq!(std::fs::read_dir(scratch.path("one")).unwrap().count(), 0);
    assert_eq!(status(&master.state)["state"], "ready");
    // Which is over with that.
    write(src.join("first"), b"first");
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &scratch.path("one"));
    // One entry is all that there was.
    std::fs::remove_file(src.join("first")).unwrap();
    let ran = synccli(&master.state).args(&["push", "www"]).code(1);
    assert!(ran.err().contains("is empty") && scratch.path("one/first").exists(), "{ran}");
}

/// The kernel tells nothing of the removal of a directory that is watched and open.
#[test]
fn a_tree_that_comes_back_is_seen_without_a_word() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 60, 1);
    let one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    let aside = scratch.path("aside");
    std::fs::rename(&src, &aside).unwrap();
    mkdir(&src);
    wait_for("the master to hold", PATIENCE, || status(&master.state)["state"] == "held");
    std::fs::remove_dir(&src).unwrap();
    std::fs::rename(&aside, &src).unwrap();
    wait_for("the master to see it", PATIENCE, || status(&master.state)["state"] == "ready");
    write(src.join("new"), b"new");
    wait_for("the change", PATIENCE, || scratch.path("one").join("new").exists());
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &scratch.path("one"));
    // Who asks need not wait until it is tried again.
    std::fs::rename(&src, &aside).unwrap();
    wait_for("the master to miss it", PATIENCE, || status(&master.state)["state"] == "failed");
    let now = status(&master.state);
    assert!(now["reason"].to_string().contains("it is tried again every 5s"), "{now}");
    assert!(now["replicas"][0]["problem"].to_string().contains("until this tree can be published again"), "{now}");
    std::fs::rename(&aside, &src).unwrap();
    synccli(&master.state).args(&["push", "www"]).ok();
}

/// In the middle of a look it would see some of what goes meanwhile, and publish that by itself.
fn stop_at_rest(master: &mut Daemon) {
    std::thread::sleep(std::time::Duration::from_millis(700));
    master.signal(Signal::STOP);
}

fn move_all(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::rename(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn remove(dir: &Path, names: std::ops::Range<usize>) {
    names.for_each(|i| std::fs::remove_file(dir.join(format!("{i}"))).unwrap());
}

#[test]
fn deletions_beyond_max_delete_are_held_also_when_they_come_slowly() {
    let scratch = Scratch::new();
    let src = scratch.src();
    (0..200).for_each(|i| write(src.join(format!("{i}")), b"x"));
    let one = replica(&scratch, "one");
    let mut master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    // One by one in versions of their own.
    for i in 0..5 {
        remove(&src, 19 * i..19 * (i + 1));
        synccli(&master.state).args(&["push", "www"]).ok();
    }
    assert_exact(&src, &scratch.path("one"));
    let before = snapshot(&scratch.path("one"));
    // In one version, however slow this is.
    stop_at_rest(&mut master);
    remove(&src, 95..110);
    master.signal(Signal::CONT);
    let ran = synccli(&master.state).args(&["push", "www"]).code(1);
    assert!(ran.err().contains("110 of 201 entries would be deleted, counted over an hour"), "{ran}");
    assert!(ran.err().contains("gone since the last version: 100, 101, 102, and 12 more;"), "{ran}");
    assert_eq!(status(&master.state)["state"], "held");
    let ran = synccli(&master.state).args(&["verify", "www"]).code(1);
    assert!(ran.out().contains("identical") && ran.err().contains("110 of 201 entries would be deleted"), "{ran}");
    // Whatever else changes goes with what is held.
    write(src.join("new"), b"new");
    synccli(&master.state).args(&["push", "www"]).code(1);
    assert_untouched(&before, &snapshot(&scratch.path("one")));
    synccli(&master.state).args(&["release", "www"]).ok();
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &scratch.path("one"));
    // It was let out once; at once is too much as well.
    (200..400).for_each(|i| write(src.join(format!("{i}")), b"x"));
    synccli(&master.state).args(&["push", "www"]).ok();
    let before = snapshot(&scratch.path("one"));
    stop_at_rest(&mut master);
    remove(&src, 200..360);
    master.signal(Signal::CONT);
    let ran = synccli(&master.state).args(&["push", "www"]).code(1);
    // Counted over an hour or not: that depends on how many versions the files came in.
    let error = ran.err();
    assert!(error.contains("160 of 292 entries would be deleted") && error.contains("than max_delete = 50%"), "{ran}");
    assert_untouched(&before, &snapshot(&scratch.path("one")));
    // What comes back is no deletion.
    (200..360).for_each(|i| write(src.join(format!("{i}")), b"y"));
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &scratch.path("one"));
    // Another name is none either.
    mkdir(src.join("archive"));
    (200..400).for_each(|i| std::fs::rename(src.join(format!("{i}")), src.join(format!("archive/{i}"))).unwrap());
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &scratch.path("one"));
}

/// What a person needs to find out and to decide must not wait for a tree to rest.
#[test]
fn orders_are_answered_while_a_held_tree_goes_on_changing() {
    let scratch = Scratch::new();
    let src = scratch.src();
    (0..200).for_each(|i| write(src.join(format!("{i}")), b"x"));
    let one = replica(&scratch, "one");
    let mut master = Daemon::master(&scratch, "m", &src, &[&one], "max_delete = '50%'");
    waits_for_state(&master.state, 0, "in_sync");
    let before = snapshot(&scratch.path("one"));
    stop_at_rest(&mut master);
    remove(&src, 0..150);
    master.signal(Signal::CONT);
    wait_for("the master to hold", PATIENCE, || status(&master.state)["state"] == "held");
    let busy = src.clone();
    let changes = watch::Hammer::start(move |turn| {
        write(busy.join(format!("restless/{}", turn % 30)), turn.to_le_bytes());
        std::thread::sleep(std::time::Duration::from_millis(2));
    });
    let order = |words: &[&str]| synccli(&master.state).args(words).timeout(PATIENCE).run();
    let config = scratch.path("m.toml");
    let reload = |from: &str, to: &str| {
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&config, text.replace(from, to)).unwrap();
        order(&["reload"]).code(0)
    };
    for round in 0..5 {
        let turns = changes.turns();
        let held = order(&["status", "www", "--json"]).code(0).json()[0]["shares"][0].clone();
        assert_eq!((&held["state"], &held["version"]["number"]), (&json!("held"), &json!(1)), "{held}");
        assert!(held["reason"].as_str().unwrap().contains("entries would be deleted"), "{held}");
        order(&["status", "--exit-code"]).code(3);
        let log = order(&["log", &src.to_string_lossy()]).code(0);
        assert!(log.out().contains("version 1 ") && !log.out().contains("version 2 "), "{log}");
        assert_eq!(reload("", "").out().trim(), "nothing changed");
        // A limit that is still too low is taken over, and lets nothing out.
        let ran = reload(&format!("'{}%'", 50 - round), &format!("'{}%'", 49 - round));
        assert!(ran.out().contains("max_delete are taken over"), "{ran}");
        let ran = order(&["push", "www"]).code(1);
        assert!(ran.err().contains(&format!("more than max_delete = {}%", 49 - round)), "{ran}");
        wait_for("further changes", PATIENCE, || changes.turns() > turns + 50);
    }
    assert_untouched(&before, &snapshot(&scratch.path("one")));
    let ran = order(&["release", "www"]).code(0);
    assert!(ran.out().contains("is released"), "{ran}");
    changes.stop();
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &scratch.path("one"));
}

#[test]
fn a_replica_has_a_guard_of_its_own() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dir("one"));
    (0..60).for_each(|i| write(src.join(format!("{i}")), b"x"));
    let one = Daemon::replica(&scratch, "state-one", &dst, "max_delete = 10");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "max_delete = 'off'");
    waits_for_state(&master.state, 0, "in_sync");
    remove(&src, 0..10);
    synccli(&master.state).args(&["push", "www"]).ok();
    let before = snapshot(&dst);
    // Its count goes on where it was.
    remove(&src, 10..11);
    let ran = synccli(&master.state).args(&["push", "www"]).code(1);
    assert!(ran.err().contains("11 of 60 entries would be deleted, counted over an hour"), "{ran}");
    assert!(ran.err().contains("allows here, now 10; nothing was changed"), "{ran}");
    assert!(ran.err().contains("is HELD at version 2"), "{ran}");
    let held = status(&one.state);
    assert_eq!(
        (&held["state"], &held["copy"]["state"], &held["version"]["number"]),
        (&json!("held"), &json!("held"), &json!(2))
    );
    assert!(held["reason"].as_str().unwrap().contains("11 of 60 entries would be deleted"), "{held}");
    assert_untouched(&before, &snapshot(&dst));
    synccli(&master.state).args(&["release", "www"]).ok();
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &dst);
    waits_for_copy(&one.state, "in_sync");
    remove(&src, 11..40);
    synccli(&master.state).args(&["push", "www"]).code(1);
    assert!(dst.join("11").exists());
    // A person who pushes by hand means it.
    synccli(&master.state).args(&["replica", "pause", "www", &one.dest("www")]).ok();
    let hand = scratch.path("hand");
    one.pair(&hand);
    synccli(&hand).args(&["push", "--adopt"]).arg(&src).arg(one.dest("www")).ok();
    assert_exact(&src, &dst);
}

#[test]
fn a_guard_counts_on_when_its_daemon_is_started_again() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dir("one"));
    (0..200).for_each(|i| write(src.join(format!("{i}")), b"x"));
    let mut one = Daemon::replica(&scratch, "state-one", &dst, "max_delete = 120");
    let mut master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    remove(&src, 0..90);
    synccli(&master.state).args(&["push", "www"]).ok();
    let again = |master: &mut Daemon, one: &mut Daemon| {
        master.kill();
        one.kill();
        one.up();
        master.restart();
        waits_for_state(&master.state, 0, "in_sync");
    };
    again(&mut master, &mut one);
    let before = snapshot(&dst);
    remove(&src, 90..105);
    let ran = synccli(&master.state).args(&["push", "www"]).code(1);
    assert!(ran.err().contains("105 of 201 entries would be deleted, counted over an hour"), "{ran}");
    assert_untouched(&before, &snapshot(&dst));
    // What a person let out is counted no more, also by the next process.
    synccli(&master.state).args(&["release", "www"]).ok();
    synccli(&master.state).args(&["push", "www"]).ok();
    again(&mut master, &mut one);
    remove(&src, 105..110);
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &dst);
    // The replica as well.
    let text = std::fs::read_to_string(scratch.path("m.toml")).unwrap();
    std::fs::write(scratch.path("m.toml"), text + "max_delete = 'off'\n").unwrap();
    let config = scratch.path("state-one.toml");
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap().replace("= 120", "= 20")).unwrap();
    again(&mut master, &mut one);
    remove(&src, 110..130);
    let ran = synccli(&master.state).args(&["push", "www"]).code(1);
    assert!(ran.err().contains("130 of 200 entries would be deleted, counted over an hour"), "{ran}");
    assert!(ran.err().contains("is HELD"), "{ran}");
}

#[test]
fn a_release_lets_out_what_there_is_and_nothing_of_another_day() {
    let scratch = Scratch::new();
    let src = scratch.src();
    (0..200).for_each(|i| write(src.join(format!("{i}")), b"x"));
    let one = replica(&scratch, "one");
    let mut master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    let ran = synccli(&master.state).args(&["release", "www"]).ok();
    assert!(ran.out().contains("nothing was held; its newest version is 1"), "{ran}");
    stop_at_rest(&mut master);
    remove(&src, 0..150);
    master.signal(Signal::CONT);
    synccli(&master.state).args(&["push", "www"]).code(1);
    waits_for_state(&master.state, 0, "in_sync");
    assert!(scratch.path("one/0").exists());
    let ran = synccli(&master.state).args(&["release", "www"]).ok();
    assert!(ran.out().contains("is released; its newest version is 2"), "{ran}");
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &scratch.path("one"));
}

/// Whoever was away or busy has no use for it then, and it must not lie in wait for what goes later.
#[test]
fn a_release_that_a_replica_did_not_need_lets_nothing_out_later() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    let mut one = replica(&scratch, "one");
    let mut master = Daemon::master(&scratch, "m", &src, &[&one], "max_delete = 'off'");
    waits_for_state(&master.state, 0, "in_sync");
    for is_away in [false, true] {
        (0..200).for_each(|i| write(src.join(format!("{i}")), b"x"));
        synccli(&master.state).args(&["push", "www"]).ok();
        if is_away {
            one.kill();
            waits_for_state(&master.state, 0, "offline");
        } else {
            one.signal(Signal::STOP);
            write(src.join("new"), b"on its way when it is said");
            wait_for("the version", PATIENCE, || status(&master.state)["replicas"][0]["state"] == "catching_up");
        }
        let ran = synccli(&master.state).args(&["release", "www"]).ok();
        assert!(ran.out().contains("nothing was held"), "{ran}");
        assert_eq!(ran.out().contains("/www is away: if it is held when it is back, say it again"), is_away, "{ran}");
        if is_away {
            remove(&src, 0..150);
            wait_for("the next version", PATIENCE, || status(&master.state)["version"]["entries"] == 51 + 1);
            one.up();
        } else {
            one.signal(Signal::CONT);
            waits_for_state(&master.state, 0, "in_sync");
            // In one version, however slow this is.
            stop_at_rest(&mut master);
            remove(&src, 0..150);
            master.signal(Signal::CONT);
        }
        waits_for_state(&master.state, 0, "held");
        assert!(dst.join("0").exists(), "away: {is_away}");
        synccli(&master.state).args(&["release", "www"]).ok();
        waits_for_state(&master.state, 0, "in_sync");
        assert_exact(&src, &dst);
    }
}

#[test]
fn a_master_that_was_restored_goes_on_when_it_is_released() {
    let scratch = Scratch::new();
    let (src, dst, copy) = (scratch.src(), scratch.path("one"), scratch.path("copy"));
    many(&src, 60, 1);
    let one = replica(&scratch, "one");
    let mut master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    assert!(master.term().1.success());
    assert!(std::process::Command::new("cp").arg("-a").arg(scratch.path("m")).arg(&copy).status().unwrap().success());
    master.restart();
    write(src.join("newer"), b"newer than the copy");
    wait_for("the file", PATIENCE, || dst.join("newer").exists());
    assert!(master.term().1.success());
    std::fs::remove_dir_all(scratch.path("m")).unwrap();
    std::fs::rename(&copy, scratch.path("m")).unwrap();
    std::fs::remove_file(src.join("newer")).unwrap();
    master.restart();
    waits_for_state(&master.state, 0, "held");
    let ran = synccli(&master.state).args(&["push", "www"]).code(1);
    assert!(ran.err().contains("does not know"), "{ran}");
    assert!(dst.join("newer").exists());
    synccli(&master.state).args(&["release", "www"]).ok();
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &dst);
    write(src.join("and on"), b"and on");
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &dst);
}

/// As after a start without it: nobody can say that what was on it is still there.
#[test]
fn what_was_mounted_in_a_replica_and_is_not_is_told_and_taken_as_it_is_when_a_person_says_so() {
    let test = "what_was_mounted_in_a_replica_and_is_not_is_told_and_taken_as_it_is_when_a_person_says_so";
    let scratch = Scratch::new();
    need!(test, scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.path("one"));
    many(&src, 20, 1);
    write(src.join("sub/file"), b"on the mount");
    mkdir(dst.join("sub"));
    mount_tmpfs(&dst.join("sub"), "size=12m");
    let mut one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    assert!(dst.join("sub/file").exists());
    one.kill();
    // Who was just killed may hold it for a moment.
    let umount = || std::process::Command::new("umount").arg(dst.join("sub")).output().unwrap().status.success();
    wait_for("it to be unmounted", PATIENCE, umount);
    one.up();
    let problem = || status(&master.state)["replicas"][0]["problem"].as_str().unwrap_or_default().to_owned();
    wait_for("it to be told", PATIENCE, || problem().contains("a file system was mounted here"));
    let before = (master.logged().lines().count(), one.logged().lines().count());
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_ne!(status(&master.state)["replicas"][0]["state"], "in_sync");
    let lines = (master.logged().lines().count() - before.0, one.logged().lines().count() - before.1);
    assert!(lines.0 < 20 && lines.1 < 40, "{lines:?}: {}", master.logged());
    let ran = synccli(&master.state).args(&["push", "www", "--timeout=3s"]).code(1);
    assert!(ran.err().contains("has not confirmed version") && !ran.out().contains("identical"), "{ran}");
    // Nor is it in sync with a version that does not have it.
    write(dst.join("sub/foreign"), b"foreign");
    std::fs::remove_dir_all(src.join("sub")).unwrap();
    write(src.join("new"), b"new");
    wait_for("the other change", PATIENCE, || dst.join("new").exists());
    for _ in 0..30 {
        assert_ne!(status(&master.state)["replicas"][0]["state"], "in_sync");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    synccli(&master.state).args(&["release", "www"]).ok();
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &dst);
}

#[test]
fn what_is_unmounted_in_a_replica_while_it_follows_is_noticed_when_something_changes_there() {
    let test = "what_is_unmounted_in_a_replica_while_it_follows_is_noticed_when_something_changes_there";
    let scratch = Scratch::new();
    need!(test, scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.path("one"));
    many(&src, 20, 1);
    write(src.join("sub/file"), b"on the mount");
    mount_tmpfs(&dst.join("sub"), "size=12m");
    let one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    std::process::Command::new("umount").arg("-l").arg(dst.join("sub")).output().unwrap();
    assert!(!dst.join("sub/file").exists());
    write(dst.join("foreign"), b"foreign");
    let told = || {
        let replica = status(&master.state)["replicas"][0].clone();
        let problem = replica["problem"].as_str().unwrap_or_default().to_owned();
        replica["state"] != "in_sync" && problem.contains("a file system was mounted here")
    };
    wait_for("it to be told", PATIENCE, told);
    synccli(&master.state).args(&["release", "www"]).ok();
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &dst);
}

/// Nothing changes in either tree, and nobody asks.
#[test]
fn what_is_mounted_or_taken_away_at_a_replica_is_noticed_at_once() {
    let test = "what_is_mounted_or_taken_away_at_a_replica_is_noticed_at_once";
    let scratch = Scratch::new();
    need!(test, scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.path("one"));
    many(&src, 20, 1);
    // As some put one there.
    write(dst.join("NOT MOUNTED"), b"");
    mount_tmpfs(&dst, "size=12m");
    let one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    let umount = || std::process::Command::new("umount").arg("-l").arg(&dst).output().unwrap();
    // Looks that are owed since the start are over then.
    std::thread::sleep(std::time::Duration::from_secs(5));
    mount_tmpfs(&dst, "size=12m");
    waits_for_state(&master.state, 0, "held");
    assert!(!synccli(&master.state).args(&["push", "www", "--timeout=1s"]).code(1).out().contains("identical"));
    umount();
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &dst);
    // In the tree: what is to be there is put into what is mounted.
    mount_tmpfs(&dst.join("d000"), "size=12m");
    assert!(!dst.join("d000/f00001").exists());
    wait_for("what was hidden", PATIENCE, || dst.join("d000/f00001").exists());
    waits_for_state(&master.state, 0, "in_sync");
    // Nobody keeps it busy.
    let gone = || std::process::Command::new("umount").arg(dst.join("d000")).output().unwrap().status.success();
    wait_for("it to be unmounted", PATIENCE, gone);
    // And the disk that it is on.
    umount();
    waits_for_state(&master.state, 0, "held");
    let left: Vec<_> = std::fs::read_dir(&dst).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["NOT MOUNTED"], "it was filled");
}

/// Of so few entries no guard counts a percentage.
#[test]
fn a_disk_that_went_from_beneath_the_master_is_held_whatever_lies_in_its_place() {
    let test = "a_disk_that_went_from_beneath_the_master_is_held_whatever_lies_in_its_place";
    for (lies_there, why) in [(true, "another file system"), (false, "it is empty, and was not before")] {
        let scratch = Scratch::new();
        need!(test, scratch.mounts, "needs root and a mount namespace");
        let (src, dst) = (scratch.src(), scratch.path("one"));
        if lies_there {
            write(src.join("NOT MOUNTED"), b"");
        }
        mount_tmpfs(&src, "size=12m");
        many(&src, 20, 1);
        let one = replica(&scratch, "one");
        let master = Daemon::master(&scratch, "m", &src, &[&one], "");
        waits_for_state(&master.state, 0, "in_sync");
        let before = snapshot(&dst);
        assert!(std::process::Command::new("umount").arg("-l").arg(&src).status().unwrap().success());
        wait_for("it to be held", PATIENCE, || status(&master.state)["state"] == "held");
        let now = status(&master.state);
        let reason = now["reason"].to_string();
        assert!(reason.contains(why) && reason.contains("synccli release"), "{reason}");
        let waits = now["replicas"][0]["problem"].to_string();
        assert!(waits.contains("until this tree can be published again"), "{now}");
        let ran = synccli(&master.state).args(&["verify", "www"]).code(1);
        assert!(ran.err().contains(why) && ran.err().contains("nothing was compared"), "{ran}");
        assert!(differences(&before, &snapshot(&dst)).is_empty());
        synccli(&master.state).args(&["release", "www"]).ok();
        wait_for("what a person has decided", PATIENCE, || {
            std::fs::read_dir(&dst).unwrap().count() == usize::from(lies_there)
        });
        waits_for_state(&master.state, 0, "in_sync");
        assert_exact(&src, &dst);
    }
}

#[test]
fn a_max_delete_that_is_raised_lets_out_what_it_held() {
    let scratch = Scratch::new();
    let (src, config) = (scratch.src(), scratch.path("m.toml"));
    many(&src, 30, 1);
    let one = replica(&scratch, "one");
    let mut master = Daemon::master(&scratch, "m", &src, &[&one], "max_delete = 5");
    waits_for_state(&master.state, 0, "in_sync");
    stop_at_rest(&mut master);
    let files = std::fs::read_dir(src.join("d000")).unwrap();
    files.take(10).for_each(|file| std::fs::remove_file(file.unwrap().path()).unwrap());
    master.signal(Signal::CONT);
    wait_for("it to be held", PATIENCE, || status(&master.state)["state"] == "held");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("max_delete = 5", "max_delete = 10")).unwrap();
    synccli(&master.state).arg("reload").ok();
    wait_for("it to be published", PATIENCE, || status(&master.state)["state"] == "ready");
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &scratch.path("one"));
}

/// Turns the link to a new release, and takes the old one away. Too large to be in the master's memory still.
fn deploy(src: &Path, release: u8) {
    write(src.join(format!("releases/{release}/page")), vec![release; 2 << 20]);
    let _ = std::fs::remove_file(src.join("current"));
    std::os::unix::fs::symlink(format!("releases/{release}"), src.join("current")).unwrap();
    let _ = std::fs::remove_dir_all(src.join(format!("releases/{}", release - 1)));
}

/// A replica is not there when its master publishes release 42.
fn misses_a_deploy(replica: &mut Daemon, master: &Daemon, src: &Path) {
    replica.kill();
    waits_for_state(&master.state, 0, "offline");
    deploy(src, 42);
    synccli(&master.state).args(&["push", "www", "--wait=none"]).ok();
}

/// Of a deploy that it missed everything could be published but the files.
#[test]
fn a_replica_that_missed_a_version_keeps_what_it_has_while_that_is_not_there_either() {
    let scratch = Scratch::new();
    let (src, dst, aside) = (scratch.src(), scratch.path("one"), scratch.path("aside"));
    many(&src, 60, 1);
    deploy(&src, 41);
    let mut one = replica(&scratch, "one");
    let mut master = Daemon::master(&scratch, "m", &src, &[&one], "history = '0'");
    waits_for_state(&master.state, 0, "in_sync");
    misses_a_deploy(&mut one, &master, &src);
    let before = snapshot(&dst);
    mkdir(&aside);
    stop_at_rest(&mut master);
    move_all(&src, &aside);
    master.signal(Signal::CONT);
    wait_for("it to be held", PATIENCE, || status(&master.state)["state"] == "held");
    one.up();
    waits_for_state(&master.state, 0, "held");
    let problem = status(&master.state)["replicas"][0]["problem"].to_string();
    assert!(problem.contains("releases/42/page") && problem.contains("it keeps all that it has"), "{problem}");
    let changed = differences(&before, &snapshot(&dst));
    assert!(changed.is_empty(), "{changed:?}");
    // It is not waited for until then.
    let waits = || status(&master.state)["replicas"][0]["retry_seconds"].as_f64().is_some_and(|seconds| seconds > 10.0);
    wait_for("a long wait", PATIENCE, waits);
    let began = Instant::now();
    // Else the first look may find half of it, and publish that.
    stop_at_rest(&mut master);
    move_all(&aside, &src);
    master.signal(Signal::CONT);
    waits_for_state(&master.state, 0, "in_sync");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_exact(&src, &dst);
}

/// The same before the master has seen that its tree is gone: here it hears of nothing, and would look again in half a minute.
#[test]
fn a_replica_that_missed_a_version_keeps_what_it_has_while_nobody_has_seen_yet_that_the_tree_is_gone() {
    let name = "a_replica_that_missed_a_version_keeps_what_it_has_while_nobody_has_seen_yet_that_the_tree_is_gone";
    need!(name, is_root() && has("unshare"), "needs root and unshare");
    // Something may be back already, and not be what it was.
    for is_back in [false, true] {
        let behind = behind_limit("max_inotify_watches", 1);
        need!(name, behind.is_some(), "no user namespaces");
        let scratch = Scratch::new();
        let (src, dst, aside) = (scratch.src(), scratch.path("one"), scratch.path("aside"));
        many(&src, 160, 1);
        deploy(&src, 41);
        let mut one = replica(&scratch, "one");
        let master =
            Daemon::master_behind(&scratch, "m", &src, &[&one], "history = '0'\nrescan = '1h'", behind.unwrap());
        waits_for_state(&master.state, 0, "in_sync");
        assert!(status(&master.state)["unwatched"].is_string());
        misses_a_deploy(&mut one, &master, &src);
        let before = snapshot(&dst);
        mkdir(&aside);
        move_all(&src, &aside);
        assert_eq!(status(&master.state)["state"], "ready");
        if is_back {
            write(src.join("releases/42/page"), b"");
        }
        one.up();
        let began = Instant::now();
        waits_for_state(&master.state, 0, "held");
        assert!(began.elapsed() < Duration::from_secs(15), "no look was asked for: {:?}", began.elapsed());
        assert_eq!(status(&master.state)["state"], "held");
        let changed = differences(&before, &snapshot(&dst));
        assert!(changed.is_empty(), "{changed:?}");
    }
}

/// It went with the hello of a session in which there was nothing to tell then, and lay in wait there.
#[test]
fn a_release_of_nothing_is_no_release_of_what_comes_later() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dir("one"));
    (0..40).for_each(|dir| (0..500).for_each(|i| write(src.join(format!("{dir}/{i}")), b"x")));
    let mut one = Daemon::replica(&scratch, "state-one", &dst, "max_delete = 20");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "max_delete = 'off'");
    waits_for_state(&master.state, 0, "in_sync");
    for round in 0..3 {
        // A version is on its way while a person releases: as slow as it takes.
        one.signal(Signal::STOP);
        write(src.join(format!("new {round}")), b"new");
        waits_for_state(&master.state, 0, "catching_up");
        let releasing = synccli(&master.state).args(&["release", "www"]).start();
        std::thread::sleep(Duration::from_millis(5 + 5 * round));
        one.signal(Signal::CONT);
        releasing.wait().code(0);
        waits_for_state(&master.state, 0, "in_sync");
        // Another day.
        let lost = src.join(round.to_string());
        std::fs::rename(&lost, scratch.path("lost")).unwrap();
        waits_for_state(&master.state, 0, "held");
        assert_eq!(std::fs::read_dir(dst.join(round.to_string())).unwrap().count(), 500);
        std::fs::rename(scratch.path("lost"), &lost).unwrap();
        waits_for_state(&master.state, 0, "in_sync");
    }
}

/// A deploy as some do it. The kernel gives the second mount the number of the first, and whoever is slow sees only that.
#[test]
fn what_is_mounted_in_place_of_another_at_the_master_is_published() {
    let test = "what_is_mounted_in_place_of_another_at_the_master_is_published";
    let scratch = Scratch::new();
    need!(test, scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.path("one"));
    many(&src, 20, 1);
    mkdir(src.join("current"));
    let release = |n: u32| scratch.path(format!("release{n}"));
    (0..4).for_each(|n| write(release(n).join("page"), n.to_string()));
    let mount = |args: &[&Path]| assert!(std::process::Command::new("mount").args(args).status().unwrap().success());
    let bind = |n| mount(&[Path::new("--bind"), &release(n), &src.join("current")]);
    bind(0);
    let one = replica(&scratch, "one");
    let mut master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    let is_there = |n: u32| std::fs::read(dst.join("current/page")).is_ok_and(|page| page == n.to_string().as_bytes());
    for n in 1..4 {
        wait_for("the release before", PATIENCE, || is_there(n - 1));
        master.signal(Signal::STOP);
        assert!(std::process::Command::new("umount").arg("-l").arg(src.join("current")).status().unwrap().success());
        bind(n);
        master.signal(Signal::CONT);
    }
    wait_for("the last release", PATIENCE, || is_there(3));
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &dst);
}

/// What was decided then was another thing.
#[test]
fn a_replica_that_is_away_when_something_is_released_does_not_fill_an_empty_directory() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    many(&src, 20, 1);
    let mut one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    one.kill();
    waits_for_state(&master.state, 0, "offline");
    write(src.join("new"), b"new");
    synccli(&master.state).args(&["release", "www"]).ok();
    std::fs::rename(&dst, scratch.path("aside")).unwrap();
    mkdir(&dst);
    one.up();
    waits_for_state(&master.state, 0, "held");
    assert_eq!(std::fs::read_dir(&dst).unwrap().count(), 0, "it was filled");
    synccli(&master.state).args(&["release", "www"]).ok();
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &dst);
}

/// It is to be undone, and cannot be, for a while.
#[test]
fn what_could_not_be_healed_is_healed_when_it_can_be() {
    let scratch = Scratch::new();
    need!("what_could_not_be_healed_is_healed_when_it_can_be", scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.path("disk/tree"));
    many(&src, 20, 1);
    mkdir(scratch.path("disk"));
    mount_tmpfs(&scratch.path("disk"), "size=12m");
    mkdir(&dst);
    let one = Daemon::replica(&scratch, "state1", &dst, "");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    std::fs::remove_file(dst.join("d000/f00001")).unwrap();
    remount(&scratch.path("disk"), "ro");
    wait_for("it to fail", PATIENCE, || status(&master.state)["replicas"][0]["problem"].is_string());
    let ran = synccli(&master.state).args(&["push", "www", "--timeout=3s"]).code(1);
    assert!(!ran.out().contains("identical"), "{ran}");
    remount(&scratch.path("disk"), "rw");
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &dst);
}
