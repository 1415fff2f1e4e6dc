//! A large tree comes to a replica that has nothing of it in stretches.

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

use std::fs::{File, hard_link};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::*;

/// More than one stretch, which ends in the middle of a directory that nobody may write to; with further names of what came
/// before it, and contents that take some seconds at 4 MB a second.
fn large(src: &Path) {
    for dir in ["a", "b", "c"] {
        std::fs::create_dir(src.join(dir)).unwrap();
    }
    for i in 0..20_000 {
        File::create(src.join(format!("a/{i:05}"))).unwrap();
        File::create(src.join(format!("b/{i:05}"))).unwrap();
    }
    for i in 0..200 {
        write(src.join(format!("b/{i:05}")), noise(i, 100));
        write(src.join(format!("b/19{i:03}")), noise(1000 + i, 100));
        hard_link(src.join(format!("b/{i:05}")), src.join(format!("c/other{i:05}"))).unwrap();
    }
    // The same content before and behind the end of a stretch.
    std::fs::copy(src.join("b/00000"), src.join("c/same")).unwrap();
    for i in 0..40 {
        write(src.join(format!("c/{i}")), noise(2000 + i, 300_000));
    }
    set_mode(src.join("b"), 0o555);
    for dir in ["a", "b", "c", ""] {
        set_mtime(src.join(dir), 1_500_000_000, 5);
    }
}

const STRETCH: &str = "a stretch of the tree is there";

#[test]
fn a_large_tree_comes_in_stretches_and_one_that_is_there_stays_there() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    large(&src);
    let mut one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "bwlimit = '4m'");
    wait_for("the first stretch", 60, || one.logged().contains(STRETCH));
    let found = snapshot(&dst);
    assert!((32_768..40_000).contains(&found.len()), "{}", found.len());
    assert!(!one.logged().contains("done share"), "it came as a whole: {}", one.logged());
    let lacks = || status(&master.state)["replicas"][0]["lag"]["entries"].as_u64();
    wait_for("the status to say how far it is", 10, || lacks().is_some_and(|lacks| (1..10_000).contains(&lacks)));
    // Its disk loses power, so to speak, in the middle of the second.
    one.kill();
    one.up();
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &dst);
    let logged = one.logged();
    let done = logged.lines().rfind(|line| line.contains("done share")).unwrap();
    let created: u64 = done.split("created=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(created < 8000, "what was there came again: {done}");
    // From here on it is followed like any other.
    set_mode(src.join("b"), 0o755);
    write(src.join("b/new"), b"new");
    wait_for("the change", 60, || dst.join("b/new").exists());
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &dst);
    assert!(!one.logged().contains("drift"), "{}", one.logged());
}

#[test]
fn what_changes_between_two_stretches_is_there_in_the_end() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    large(&src);
    let one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "bwlimit = '4m'");
    wait_for("the first stretch", 60, || one.logged().contains(STRETCH));
    write(src.join("a/00007"), b"changed when it was there");
    std::fs::remove_file(src.join("a/00008")).unwrap();
    write(dst.join("a/00009"), b"changed by somebody else");
    write(src.join("c/39"), b"changed before it was told, or while it was");
    wait_for("the replica to be identical", 120, || differences(&snapshot(&src), &snapshot(&dst)).is_empty());
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &dst);
}

/// The version that the first stretch was of is history before the last one comes, and so is each after it.
#[test]
fn a_tree_that_never_rests_comes_nonetheless() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    for dir in ["a", "b"] {
        std::fs::create_dir(src.join(dir)).unwrap();
        for i in 0..18_000 {
            File::create(src.join(format!("{dir}/{i:05}"))).unwrap();
        }
    }
    // What a new file system has.
    mkdir(dst.join("lost+found"));
    let one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    let rests = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut i: u32 = 0;
            while !rests.load(Ordering::Relaxed) {
                write(src.join(format!("a/{:05}", i % 50)), i.to_string());
                i += 1;
                std::thread::sleep(Duration::from_millis(30));
            }
        });
        let until = Instant::now() + Duration::from_secs(60);
        while !one.logged().contains("done share") && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        rests.store(true, Ordering::Relaxed);
        assert!(Instant::now() < until, "{}", master.logged());
        assert!(one.logged().contains(STRETCH), "{}", one.logged());
    });
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &dst);
}

/// Two stretches and a rest, with further names in each of what came in the first.
#[test]
fn several_stretches_come_and_come_again_where_all_is_gone() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    for dir in ["all/a", "all/b", "all/c"] {
        std::fs::create_dir_all(src.join(dir)).unwrap();
        for i in 0..23_000 {
            File::create(src.join(format!("{dir}/{i:05}"))).unwrap();
        }
    }
    write(src.join("all/a/0"), b"of several names");
    for name in ["all/a/x", "all/b/x", "all/c/x"] {
        hard_link(src.join("all/a/0"), src.join(name)).unwrap();
    }
    let one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "max_delete = 'off'");
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &dst);
    assert_eq!(one.logged().matches(STRETCH).count(), 2, "{}", one.logged());
    std::fs::rename(dst.join("all"), scratch.path("away")).unwrap();
    wait_for("it to come again", 120, || one.logged().matches(STRETCH).count() == 4);
    wait_for("all of it", 120, || {
        status(&master.state)["replicas"][0]["state"] == "in_sync" && dst.join("all/c/x").exists()
    });
    assert_exact(&src, &dst);
}

/// The wrong directory: what is in it and not on the master went in the end, whatever the guard would have said of it.
#[test]
fn a_directory_of_somebodys_own_is_not_emptied_behind_a_large_tree() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    for dir in ["a", "b"] {
        std::fs::create_dir(src.join(dir)).unwrap();
        for i in 0..17_000 {
            File::create(src.join(format!("{dir}/{i:05}"))).unwrap();
        }
    }
    for i in 0..200 {
        write(dst.join(format!("own{i:03}")), b"of somebody who chose the wrong directory");
    }
    let own = || {
        let below = [dst.clone(), dst.join("backup")];
        below.iter().flat_map(std::fs::read_dir).flatten().filter(|e| is_own(e.as_ref().unwrap())).count()
    };
    let mut one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "held");
    assert!(one.logged().contains(STRETCH), "{}", one.logged());
    let problem = status(&master.state)["replicas"][0]["problem"].to_string();
    assert!(problem.contains("200 of 200 entries would be deleted"), "{problem}");
    assert_eq!(own(), 200);
    // A restart of it forgets neither, nor does the loss of its index.
    for loses_index in [false, true] {
        one.kill();
        if loses_index {
            std::fs::remove_dir_all(one.state.join("index")).unwrap();
        }
        one.up();
        wait_for("it to be held again", 60, || {
            status(&one.state)["state"] == "held" && status(&master.state)["replicas"][0]["state"] == "held"
        });
    }
    // Nor does what somebody does there, who uses that directory.
    append(dst.join("own000"), b"more");
    write(dst.join("own200"), b"new");
    mkdir(dst.join("backup"));
    (0..100)
        .for_each(|i| std::fs::rename(dst.join(format!("own{i:03}")), dst.join(format!("backup/own{i:03}"))).unwrap());
    synccli(&one.state).args(&["status"]).ok();
    synccli(&master.state).args(&["push", "www", "--timeout=3s"]).code(1);
    waits_for_state(&master.state, 0, "held");
    assert_eq!(own(), 201);
    synccli(&master.state).args(&["release", "www"]).ok();
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &dst);
}

fn is_own(entry: &std::fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with("own")
}

/// More than what is offered ahead, and several stretches behind it; with further names, in each part, of what came in the first.
fn larger(src: &Path) {
    for dir in ["a", "b", "c", "d"] {
        std::fs::create_dir(src.join(dir)).unwrap();
        for i in 0..22_000 {
            File::create(src.join(format!("{dir}/{i:05}"))).unwrap();
        }
        for i in 0..100 {
            write(src.join(format!("{dir}/{i:05}")), noise(i, 1000 + i as usize));
            write(src.join(format!("{dir}/21{i:03}")), noise(1000 + i, 500));
        }
        hard_link(src.join("a/00000"), src.join(format!("{dir}/other"))).unwrap();
    }
    write(src.join("d/large"), noise(7, 3 << 20));
}

/// What a master's index has, as whoever opens it next finds it.
fn rows_and_versions(state: &Path) -> Option<(i64, i64)> {
    let index = std::fs::read_dir(state.join("index")).ok()?.next()?.ok()?.path().join("index.db");
    let conn = rusqlite::Connection::open_with_flags(index, rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE).ok()?;
    let count = |table| conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).ok();
    Some((count("entries")?, count("versions")?))
}

#[test]
fn a_first_push_of_a_large_tree_comes_in_stretches() {
    let scratch = Scratch::new();
    let (src, one) = (scratch.src(), replica(&scratch, "one"));
    larger(&src);
    one.pair(&scratch.state());
    let local = scratch.path("two");
    let mut push = scratch.push_to(&[one.dest("www"), local.display().to_string()]);
    let ran = push.arg("--json").ok();
    for (summary, dst) in ran.summaries().iter().zip([scratch.path("one"), local]) {
        // The top of one was there.
        let count = summary.count("created") + summary.count("metadata_only");
        assert_eq!((summary.exact(), count), (true, 4 * 22_001 + 6), "{summary:?}");
        assert_exact(&src, &dst);
    }
    assert_eq!(one.logged().matches(STRETCH).count(), 2, "{}", one.logged());
    let again = push.ok();
    assert!(again.summaries().iter().all(|summary| summary.exact() && summary.changes() == 0), "{again}");
    let log = synccli(&scratch.state()).args(&["log", &src.display().to_string(), "--json"]).ok();
    assert_eq!(log.json_of("version").len(), 1, "{log}");
    // From here on it is a replica like any other.
    write(src.join("c/00007"), b"other");
    std::fs::remove_file(src.join("d/00008")).unwrap();
    let changed = push.ok();
    assert!(changed.summaries().iter().all(|summary| summary.changes() <= 4), "{changed}");
    assert_exact(&src, &scratch.path("one"));
}

/// Killed as it looks, and when a part of it is there: what was read is not lost, and nothing that changed meanwhile is missed.
#[test]
fn a_first_push_of_a_large_tree_that_is_killed_goes_on() {
    let scratch = Scratch::new();
    let (src, one) = (scratch.src(), replica(&scratch, "one"));
    larger(&src);
    one.pair(&scratch.state());
    let rows_and_versions = || rows_and_versions(&scratch.state());
    let mut push = scratch.push_to(&[one.dest("www")]);
    let mut killed = |what: &str, when: &dyn Fn() -> bool| {
        let mut running = push.start();
        wait_for(what, 60, when);
        running.signal(Signal::KILL);
        running.wait().by_signal(9);
    };
    killed("a portion to be in the index", &|| rows_and_versions().is_some_and(|(rows, _)| rows > 0));
    let (rows, versions) = rows_and_versions().unwrap();
    assert!(rows >= 49_152 && versions == 0, "{rows} rows and {versions} versions");
    for dir in ["a", "b", "c", "d"] {
        std::fs::remove_file(src.join(dir).join("00003")).unwrap();
        write(src.join(dir).join("00004"), b"changed meanwhile");
        write(src.join(dir).join("new"), b"new");
    }
    std::fs::remove_file(src.join("a/other")).unwrap();
    killed("the first stretch", &|| one.logged().contains(STRETCH));
    write(src.join("a/00005"), b"changed when it was there");
    write(src.join("d/00005"), b"changed before it was there");
    let summary = scratch.push_to(&[one.dest("www")]).arg("--json").ok().summary();
    assert!(summary.exact() && summary.count("created") < 50_000, "what was there came again: {summary:?}");
    assert_exact(&src, &scratch.path("one"));
}

/// What it wrote into its index ahead of any version, and is gone since, is nothing that replicas could miss.
#[test]
fn a_mirror_that_is_killed_in_its_first_look_begins_again() {
    let scratch = Scratch::new();
    let (src, one) = (scratch.src(), replica(&scratch, "one"));
    larger(&src);
    let mut master = Daemon::master(&scratch, "m", &src, &[&one], "");
    wait_for("a portion to be in the index", 60, || rows_and_versions(&master.state).is_some_and(|(rows, _)| rows > 0));
    master.kill();
    let (rows, versions) = rows_and_versions(&master.state).unwrap();
    assert!(rows >= 49_152 && versions == 0, "{rows} rows and {versions} versions");
    std::fs::remove_dir_all(src.join("a")).unwrap();
    write(src.join("b/00004"), b"changed meanwhile");
    master.up();
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &scratch.path("one"));
    assert!(!one.logged().contains("held"), "{}", one.logged());
}

/// What changed was offered while the source was looked at, and lies at the end of the tree.
#[test]
fn what_changed_in_a_large_tree_is_sent_once_to_a_replica_that_is_new() {
    let scratch = Scratch::new();
    let src = scratch.src();
    (0..50_500).for_each(|i| write(src.join(format!("{}/{i}", i % 50)), b""));
    let (first, second) = (scratch.path("first"), scratch.path("second"));
    scratch.push_to(&[first.display().to_string()]).ok();
    for i in 0..3u64 {
        write(src.join(format!("z{i}")), noise(i, 3 << 20));
    }
    let summary = scratch.push_to(&[second.display().to_string()]).arg("--json").ok().summary();
    assert_eq!(summary.count("literal_bytes"), 9 << 20);
    assert_exact(&src, &second);
}

/// The next session begins with another look then, which is nothing to tell a push of.
#[test]
fn somebody_who_writes_there_while_a_first_push_loses_a_file_does_not_end_it() {
    let scratch = Scratch::new();
    let (src, one) = (scratch.src(), replica(&scratch, "one"));
    larger(&src);
    one.pair(&scratch.state());
    // It is told in the second stretch, behind which is a third.
    write(src.join("c/zz"), noise(10, 3 << 20));
    let mut push = scratch.push_to(&[one.dest("www")]);
    let running = push.args(&["--bwlimit=2m", "--json"]).start();
    wait_for("the first stretch", 60, || one.logged().contains(STRETCH));
    std::fs::remove_file(src.join("c/zz")).unwrap();
    write(scratch.path("one").join("a/of somebody else"), b"own");
    let ran = running.wait().code(0).does_not_say("protocol error");
    assert!(ran.summary().exact(), "{ran}");
    assert_exact(&src, &scratch.path("one"));
}

#[test]
fn what_fails_in_a_stretch_is_counted_once() {
    let scratch = Scratch::new();
    if !scratch.mounts {
        return skip("what_fails_in_a_stretch_is_counted_once", "needs a mount namespace");
    }
    let (src, dst) = (scratch.src(), scratch.dst());
    larger(&src);
    mount_tmpfs(&dst.join("a/00001"), "size=1m");
    let ran = scratch.push_to(&[&dst]).args(&["-x", "--json"]).code(1);
    assert_eq!(ran.json_of("destination")[0]["problems"], 1, "{ran}");
    assert_eq!(differences(&snapshot(&src), &snapshot(&dst)).len(), 1);
    unmount(&dst.join("a/00001"));
    let summary = scratch.push_to(&[&dst]).args(&["-x", "--json"]).ok().summary();
    assert!(summary.exact() && summary.changes() <= 3, "{summary:?}");
    assert_exact(&src, &dst);
}
