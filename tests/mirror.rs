//! A master that watches its tree, and replicas that follow it.

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

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use support::*;

/// Long enough for a loaded machine; what is waited for comes in milliseconds.
const PATIENCE: u64 = 60;

#[track_caller]
fn becomes_identical(src: &Path, dst: &Path) {
    wait_for("the replica to be identical", PATIENCE, || differences(&snapshot(src), &snapshot(dst)).is_empty());
    assert_exact(src, dst);
}

/// Programs that make temporary files in it do not keep back what others have left there.
#[test]
fn a_directory_that_never_rests_is_published_as_far_as_it_does() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    (0..20_000).for_each(|i| write(src.join(format!("flat/{i:05}")), b"x"));
    let one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    let busy = AtomicBool::new(true);
    let passed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let rest = Rest(&busy);
        scope.spawn(|| {
            // Each is there for half a second or so: long enough to be published.
            let passing = |i: u32| src.join(format!("flat/passing{i}"));
            let mut i: u32 = 0;
            while busy.load(Ordering::Relaxed) {
                write(passing(i), b"x");
                std::thread::sleep(Duration::from_millis(1));
                i = passed.fetch_add(1, Ordering::Relaxed) + 1;
                if let Some(old) = i.checked_sub(400) {
                    std::fs::remove_file(passing(old)).unwrap();
                }
            }
            (i.saturating_sub(399)..i).for_each(|left| std::fs::remove_file(passing(left)).unwrap());
        });
        std::thread::sleep(Duration::from_secs(1));
        write(src.join("flat/stable"), b"stable");
        std::fs::remove_file(src.join("flat/00007")).unwrap();
        wait_for("what rests in it", 60, || dst.join("flat/stable").exists() && !dst.join("flat/00007").exists());
        wait_for("thousands to come and go", 60, || passed.load(Ordering::Relaxed) > 5000);
        // What has come and gone does not stay there.
        let there = std::fs::read_dir(dst.join("flat")).unwrap().count();
        assert!(there < 22_000, "{there} entries\n{}", master.logged());
        drop(rest);
    });
    waits_for_state(&master.state, 0, "in_sync");
    wait_for("the same tree", 60, || differences(&snapshot(&src), &snapshot(&dst)).is_empty());
}

#[test]
fn every_change_is_on_every_replica() {
    let scratch = Scratch::new();
    let (src, one, two) = (scratch.src(), scratch.path("one"), scratch.path("two"));
    many(&src, 60, 1);
    let replicas = [replica(&scratch, "one"), replica(&scratch, "two")];
    let master = Daemon::master(&scratch, "m", &src, &[&replicas[0], &replicas[1]], "");
    let both = || {
        becomes_identical(&src, &one);
        becomes_identical(&src, &two);
    };
    both();
    write(src.join("new"), b"new");
    both();
    write(src.join("new"), b"longer than before");
    both();
    // In one breath, with a file at the bottom: watches come later than names.
    std::fs::create_dir_all(src.join("a/b/c/d")).unwrap();
    write(src.join("a/b/c/d/file"), b"deep");
    both();
    write(src.join("a/b/c/d/file"), b"deep, and again");
    both();
    std::fs::rename(src.join("a"), src.join("z")).unwrap();
    both();
    write(src.join("z/b/c/d/more"), b"under the new name");
    both();
    std::fs::rename(src.join("z/b/c/d/more"), src.join("more")).unwrap();
    symlink("more", src.join("link")).unwrap();
    set_mode(src.join("new"), 0o600);
    both();
    std::fs::hard_link(src.join("more"), src.join("z/same")).unwrap();
    std::fs::hard_link(src.join("more"), src.join("a-first")).unwrap();
    both();
    std::fs::remove_file(src.join("a-first")).unwrap();
    both();
    write(src.join("more"), b"under two names");
    both();
    std::fs::remove_dir_all(src.join("z")).unwrap();
    std::fs::remove_file(src.join("more")).unwrap();
    both();
    std::fs::remove_file(src.join("new")).unwrap();
    symlink("nowhere", src.join("new")).unwrap();
    both();
    // All of it over the connections of the beginning.
    assert_eq!(master.logged().matches(" connected ").count(), 2, "{}", master.logged());
}

/// The version with its content there, the acknowledgement back, and what QUIC says of these.
#[test]
fn a_small_change_costs_one_message_there_and_one_back() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 60, 1);
    // Each changes once: what changes again and again is left to rest.
    let page = |i: u64| src.join(format!("page{i}"));
    (0..10).for_each(|i| write(page(i), b"page"));
    let one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "history = '0'");
    becomes_identical(&src, &scratch.path("one"));
    let changes = (0..10).map(|i: u64| {
        let version = |status: &serde_json::Value| status["replicas"][0]["delivery"]["version"].as_u64();
        let before = version(&status(&master.state));
        // Not with a push, for which the replica looks at its tree, and both say more.
        write(page(i), noise(i + 1, 300));
        wait_for("it to be acknowledged", PATIENCE, || version(&status(&master.state)) > before);
        status(&master.state)["replicas"][0]["delivery"]["wire_bytes"].as_u64().unwrap()
    });
    let changes: Vec<u64> = changes.collect();
    // Something may have been sent twice, or come late.
    let least = *changes.iter().min().unwrap();
    assert!((400..700).contains(&least), "{changes:?}");
    assert_exact(&src, &scratch.path("one"));
}

/// Its copy stays, which is no drift: nobody changed anything there.
#[test]
fn a_file_that_becomes_unreadable_is_told_and_all_else_goes_on_in_peace() {
    let name = "a_file_that_becomes_unreadable_is_told_and_all_else_goes_on_in_peace";
    need!(name, is_root() && has("setpriv"), "needs root and setpriv to be somebody who may not read all");
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    for file in ["page", "secret", "dir/secret"] {
        write(src.join(file), file);
    }
    let one = replica(&scratch, "one");
    let behind = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"].map(Into::into).to_vec();
    let master = Daemon::master_behind(&scratch, "m", &src, &[&one], "", behind);
    becomes_identical(&src, &dst);
    let unread = || status(&master.state)["unread"]["entries"].as_u64().unwrap_or(0);
    for (count, path) in ["secret", "dir/secret"].into_iter().enumerate() {
        set_mode(src.join(path), 0);
        wait_for("the master to say so", 60, || unread() == count as u64 + 1);
    }
    let sessions = || one.logged().matches(": done ").count();
    let before = sessions();
    // Each another one: what is written again and again is waited for.
    for change in 0..10_u64 {
        let page = format!("page{change}");
        write(src.join(&page), noise(change, 300));
        let arrived = || std::fs::read(dst.join(&page)).is_ok_and(|page| page == noise(change, 300));
        wait_for("the change", 60, arrived);
    }
    // One for each, and a few for what was still to be told before, or more for a change that was seen in two steps.
    assert!(sessions() - before <= 25, "{}", one.logged());
    assert!(!one.logged().contains("drift"), "{}", one.logged());
    assert!(!master.logged().contains("somebody changed"), "{}", master.logged());
    assert_eq!(std::fs::read(dst.join("dir/secret")).unwrap(), b"dir/secret");
    for path in ["secret", "dir/secret"] {
        set_mode(src.join(path), 0o644);
    }
    wait_for("the master to read them again", 60, || unread() == 0);
    becomes_identical(&src, &dst);
}

/// One that does not fit there, for as long as that lasts.
#[test]
fn what_fails_at_a_replica_keeps_nothing_else_waiting() {
    let scratch = Scratch::new();
    need!("what_fails_at_a_replica_keeps_nothing_else_waiting", scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.path("one/tree"));
    many(&src, 60, 1);
    mkdir(&dst);
    mount_tmpfs(&dst, "size=12m");
    let one = Daemon::replica(&scratch, "one/state", &dst, "");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    write(src.join("large"), noise(1, 20 << 20));
    let failing = || {
        let replica = status(&master.state)["replicas"][0].clone();
        let problem = replica["problem"].as_str().unwrap_or_default().to_owned();
        assert_ne!(replica["state"], "offline", "{replica}");
        problem.contains("large") && problem.contains("No space")
    };
    wait_for("the problem to be told", PATIENCE, failing);
    // By now it would be left alone for longer and longer.
    for round in 0..4 {
        std::thread::sleep(Duration::from_secs(2));
        let name = format!("after{round}");
        write(src.join(&name), b"small");
        wait_for("the other change", 8, || dst.join(&name).exists());
        assert!(failing());
    }
    let connected = master.logged().lines().filter(|line| line.contains("connected to=")).count();
    assert_eq!(connected, 1, "{}", master.logged());
    for logged in [master.logged(), one.logged()] {
        let times = logged.lines().filter(|line| line.contains("large") && line.contains("No space")).count();
        assert_eq!(times, 1, "{logged}");
    }
    remount(&dst, "size=100m");
    write(src.join("last"), b"tried again at once");
    waits_for_state(&master.state, 0, "in_sync");
    assert_exact(&src, &dst);
    wait_for("that to be logged", PATIENCE, || master.logged().contains("all is well again"));
}

/// It is paired at the first, which names it, and answers at the second.
#[test]
fn a_replica_is_found_at_another_of_its_addresses() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    let mut before = replica(&scratch, "one");
    let mut master = Daemon::master(&scratch, "m", &src, &[&before], "");
    write(src.join("a"), b"at the first");
    becomes_identical(&src, &dst);
    master.kill();
    before.kill();
    let now = replica(&scratch, "one");
    assert_ne!(before.address(), now.address());
    let config = scratch.path("m.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let (one, both) = (format!("[{:?}]", before.address()), format!("[{:?}]", [before.address(), now.address()]));
    assert!(text.contains(&one), "{text}");
    std::fs::write(&config, text.replace(&one, &both)).unwrap();
    write(src.join("a"), b"at the second");
    master.restart();
    becomes_identical(&src, &dst);
    let status = synccli(&master.state).arg("status").ok();
    assert!(status.out().contains(&before.address()), "{status}");
}

/// Ends what goes on while it is set, also when a test fails.
struct Rest<'a>(&'a AtomicBool);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// What is told of one version while the next ones come must be of that version: else such a replica never catches up.
#[test]
fn a_replica_catches_up_with_a_master_that_never_rests() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    let file = |n: u32| src.join(format!("dir-{}/file-{n}", n % 40));
    (0..40).for_each(|n| std::fs::create_dir(src.join(format!("dir-{n}"))).unwrap());
    (0..4000).for_each(|n| write(file(n), b"as it was"));
    let mut one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    becomes_identical(&src, &dst);
    let busy = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let rest = Rest(&busy);
        scope.spawn(|| {
            let mut round = 0_u32;
            while busy.load(Ordering::Relaxed) {
                round += 1;
                write(file(round * 7 % 4000), round.to_le_bytes());
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let comes_back = |one: &mut Daemon, how: &str| {
            one.up();
            let caught_up = Instant::now() + Duration::from_secs(PATIENCE);
            loop {
                let status = synccli(&master.state).arg("status").ok();
                if status.out().contains("in sync") {
                    break;
                }
                assert!(Instant::now() < caught_up, "{how}: {status}");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        // It says where it stood, and that it is not what it was there.
        one.kill();
        write(dst.join("dir-1/file-1"), b"changed by somebody else");
        comes_back(&mut one, "drifted");
        // Without an index it has to be compared directory by directory.
        one.kill();
        for file in ["index.db", "index.db-wal", "index.db-shm"] {
            let _ = std::fs::remove_file(one.state.join("index/share-www").join(file));
        }
        assert!(!one.state.join("index/share-www/index.db").exists());
        comes_back(&mut one, "without an index");
        drop(rest);
    });
    becomes_identical(&src, &dst);
}

#[test]
fn many_files_at_once_arrive() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    let replica = replica(&scratch, "one");
    let _master = Daemon::master(&scratch, "m", &src, &[&replica], "");
    many(&scratch.dir("elsewhere"), 3000, 7);
    write(src.join("first"), b"first");
    becomes_identical(&src, &dst);
    // Moved in as it is, which tells but one name; and made file by file, which tells thousands.
    std::fs::rename(scratch.path("elsewhere"), src.join("moved-in")).unwrap();
    becomes_identical(&src, &dst);
    many(&src.join("made"), 3000, 8);
    becomes_identical(&src, &dst);
    std::fs::remove_dir_all(src.join("moved-in")).unwrap();
    becomes_identical(&src, &dst);
}

/// Whatever makes a look at everything necessary: each directory that came with it is watched from then on.
#[test]
fn what_comes_with_a_look_at_everything_is_watched() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    let replica = replica(&scratch, "one");
    let _master = Daemon::master(&scratch, "m", &src, &[&replica], "");
    write(src.join("first"), b"first");
    becomes_identical(&src, &dst);
    // A name that cannot be published: from now on each batch takes a look at everything.
    write(src.join(STAGING), b"reserved");
    let same = |what: &str| {
        let same = || std::fs::read(src.join(what)).unwrap() == std::fs::read(dst.join(what)).unwrap_or_default();
        wait_for(what, PATIENCE, same);
    };
    write(src.join("beside"), b"beside");
    same("beside");
    mkdir(src.join("empty"));
    wait_for("a directory", PATIENCE, || dst.join("empty").is_dir());
    write(src.join("empty/file"), b"made in a directory that came with a look at everything");
    same("empty/file");
}

/// What happens in a directory while it has another name is told under that name, which nobody finds when it looks.
#[test]
fn what_goes_while_its_directory_is_called_otherwise_is_missed_by_nobody() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    for i in 0..40 {
        write(src.join(format!("g/{i}")), b"x");
        write(src.join(format!("g/sub/{i}")), b"x");
    }
    let replica = replica(&scratch, "one");
    let _master = Daemon::master(&scratch, "m", &src, &[&replica], "");
    becomes_identical(&src, &dst);
    for i in 0..40 {
        std::fs::rename(src.join("g"), src.join("k")).unwrap();
        std::fs::remove_file(src.join(format!("k/{i}"))).unwrap();
        std::fs::remove_file(src.join(format!("k/sub/{i}"))).unwrap();
        std::fs::rename(src.join("k"), src.join("g")).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(i % 7 * 10));
        if i % 8 == 0 {
            becomes_identical(&src, &dst);
        }
    }
    becomes_identical(&src, &dst);
}

#[test]
fn what_changed_while_nobody_watched_is_published_at_start() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    many(&src, 60, 1);
    write(src.join("goes"), b"goes");
    let replica = replica(&scratch, "one");
    let mut master = Daemon::master(&scratch, "m", &src, &[&replica], "");
    becomes_identical(&src, &dst);
    assert!(master.term().1.success());
    write(src.join("meanwhile"), b"meanwhile");
    std::fs::remove_file(src.join("goes")).unwrap();
    master.restart();
    becomes_identical(&src, &dst);
}

#[test]
fn a_replica_that_was_away_catches_up_and_delays_no_other() {
    let scratch = Scratch::new();
    let (src, here, away) = (scratch.src(), scratch.path("one"), scratch.path("two"));
    many(&src, 60, 1);
    let (one, mut two) = (replica(&scratch, "one"), replica(&scratch, "two"));
    let mut master = Daemon::master(&scratch, "m", &src, &[&one, &two], "");
    becomes_identical(&src, &here);
    becomes_identical(&src, &away);
    two.kill();
    for i in 0..20 {
        write(src.join(format!("while away {i}")), b"news");
        becomes_identical(&src, &here);
    }
    two.up();
    becomes_identical(&src, &away);
    assert!(master.is_running());
}

#[test]
fn a_master_that_dies_and_a_replica_that_dies_lose_nothing() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    let mut replica = replica(&scratch, "one");
    let mut master = Daemon::master(&scratch, "m", &src, &[&replica], "");
    for round in 0..4 {
        many(&src.join(format!("round {round}")), 200, round);
        if round % 2 == 0 {
            master.kill();
            write(src.join("meanwhile"), [b'0' + u8::try_from(round).unwrap()]);
            master.restart();
        } else {
            replica.kill();
            replica.up();
        }
    }
    becomes_identical(&src, &dst);
}

#[test]
fn a_master_that_was_restored_from_a_copy_changes_nothing() {
    let scratch = Scratch::new();
    let (src, dst, copy) = (scratch.src(), scratch.path("one"), scratch.path("copy"));
    many(&src, 60, 1);
    let replica = replica(&scratch, "one");
    let mut master = Daemon::master(&scratch, "m", &src, &[&replica], "");
    becomes_identical(&src, &dst);
    assert!(master.term().1.success());
    assert!(std::process::Command::new("cp").arg("-a").arg(scratch.path("m")).arg(&copy).status().unwrap().success());
    master.restart();
    write(src.join("newer"), b"newer than the copy");
    becomes_identical(&src, &dst);
    assert!(master.term().1.success());
    let before = snapshot(&dst);
    std::fs::remove_dir_all(scratch.path("m")).unwrap();
    std::fs::rename(&copy, scratch.path("m")).unwrap();
    std::fs::remove_file(src.join("newer")).unwrap();
    master.restart();
    wait_for("the master to hold", PATIENCE, || master.logged().contains("does not know"));
    assert_untouched(&before, &snapshot(&dst));
}

#[test]
fn a_link_that_is_turned_is_a_deploy() {
    let scratch = Scratch::new();
    let (releases, current, dst) = (scratch.dir("releases"), scratch.path("current"), scratch.path("one"));
    many(&releases.join("1"), 60, 1);
    many(&releases.join("2"), 60, 2);
    symlink("releases/1", &current).unwrap();
    let replica = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &current, &[&replica], "");
    becomes_identical(&releases.join("1"), &dst);
    symlink("releases/2", scratch.path("next")).unwrap();
    std::fs::rename(scratch.path("next"), &current).unwrap();
    becomes_identical(&releases.join("2"), &dst);
    write(releases.join("2/after"), b"after the deploy");
    becomes_identical(&releases.join("2"), &dst);
    // Another release is the next version of the same share.
    assert!(!master.logged().contains("does not know"), "{}", master.logged());
}

#[test]
fn a_tree_that_goes_away_takes_nothing_from_the_replicas() {
    let scratch = Scratch::new();
    let (src, dst, aside) = (scratch.src(), scratch.path("one"), scratch.path("aside"));
    many(&src, 60, 1);
    let replica = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&replica], "rescan = '300ms'");
    becomes_identical(&src, &dst);
    let before = snapshot(&dst);
    std::fs::rename(&src, &aside).unwrap();
    wait_for("the master to say that the tree is gone", PATIENCE, || master.logged().contains("cannot read"));
    assert_untouched(&before, &snapshot(&dst));
    // An empty directory in its place, such as a mount point without its file system.
    mkdir(&src);
    wait_for("the master to say that the tree is empty", PATIENCE, || master.logged().contains("is empty"));
    assert_untouched(&before, &snapshot(&dst));
    std::fs::remove_dir(&src).unwrap();
    std::fs::rename(&aside, &src).unwrap();
    write(src.join("back"), b"back");
    becomes_identical(&src, &dst);
}

#[test]
fn what_is_excluded_is_neither_sent_nor_watched() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    many(&src, 60, 1);
    mkdir(src.join(".git"));
    let replica = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&replica], "exclude = ['.git/', '*.swp']");
    wait_for("the first version", PATIENCE, || master.logged().contains("published"));
    write(src.join(".git/index"), b"not for the web");
    write(src.join("page.swp"), b"not for the web");
    write(src.join("page"), b"for the web");
    wait_for("the page", PATIENCE, || dst.join("page").exists());
    assert!(!dst.join(".git").exists() && !dst.join("page.swp").exists());
}

/// A directory that no watch is left for is not forgotten, and not only said to be looked at.
#[test]
fn a_tree_with_more_directories_than_may_be_watched_is_looked_at() {
    let name = "a_tree_with_more_directories_than_may_be_watched_is_looked_at";
    need!(name, is_root() && has("unshare"), "needs root and unshare");
    let behind = behind_limit("max_inotify_watches", 10);
    need!(name, behind.is_some(), "no user namespaces");
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.path("one"));
    (0..20).for_each(|i| write(src.join(format!("d{i:02}/f")), b"f"));
    let one = replica(&scratch, "one");
    let master = Daemon::master_behind(&scratch, "m", &src, &[&one], "", behind.unwrap());
    waits_for_state(&master.state, 0, "in_sync");
    let unwatched = || status(&master.state)["unwatched"].clone();
    let why = unwatched();
    let says = |what: &str| why.as_str().is_some_and(|why| why.contains(what));
    assert!(says("raise user.max_inotify_watches, now 10 (sysctl); the tree is looked at every 30s"), "{why}");
    (0..20).for_each(|i| write(src.join(format!("d{i:02}/f")), b"changed"));
    becomes_identical(&src, &dst);
}

/// It is tried whenever the tree is looked at.
#[test]
fn a_tree_that_could_not_be_watched_is_watched_as_soon_as_it_can_be() {
    let name = "a_tree_that_could_not_be_watched_is_watched_as_soon_as_it_can_be";
    need!(name, is_root() && has("unshare") && has("nsenter"), "needs root, unshare and nsenter");
    let behind = behind_limit("max_inotify_watches", 10);
    need!(name, behind.is_some(), "no user namespaces");
    let scratch = Scratch::new();
    let src = scratch.src();
    (0..20).for_each(|i| write(src.join(format!("d{i:02}/f")), b"f"));
    let one = replica(&scratch, "one");
    let master = Daemon::master_behind(&scratch, "m", &src, &[&one], "rescan = '500ms'", behind.unwrap());
    waits_for_state(&master.state, 0, "in_sync");
    let unwatched = || status(&master.state)["unwatched"].clone();
    assert!(unwatched().is_string());
    let user = format!("--user=/proc/{}/ns/user", master.pid());
    let more = "echo 100 >/proc/sys/user/max_inotify_watches";
    tool("nsenter", &[&user, "sh", "-c", more].map(std::ffi::OsStr::new));
    wait_for("the watch", PATIENCE, || unwatched().is_null());
}
