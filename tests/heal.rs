//! A replica that somebody else writes to: it notices, and is made identical again without any change on the master.

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

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::*;

/// Long enough for a loaded machine; what is waited for comes in seconds at most.
const PATIENCE: u64 = 60;

/// A master with its tree, and one replica that follows.
struct Pair {
    replica: Daemon,
    master: Daemon,
    src: PathBuf,
    dst: PathBuf,
    /// Goes last: the others show what they logged in it.
    scratch: Scratch,
}

/// Both with a tree of 100 files, links and directories, once they are identical. `keys` are more keys of the replica's share.
fn pair(keys: &str) -> Pair {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dir("one"));
    many(&src, 100, 3);
    link_to("d000", src.join("link"));
    write(src.join("attr"), b"attr");
    write(src.join("hard1"), b"hard");
    hard_link(src.join("hard1"), src.join("hard2"));
    let replica = Daemon::replica(&scratch, "state-one", &dst, keys);
    let master = Daemon::master(&scratch, "m", &src, &[&replica], "");
    becomes_identical(&src, &dst);
    // The look after the publication, too, so that it takes part in nothing that a test counts.
    wait_for("the first session to end", PATIENCE, || replica.logged().contains(" done "));
    std::thread::sleep(Duration::from_millis(1500));
    Pair { replica, master, src, dst, scratch }
}

impl Pair {
    /// Lines of the replica's log that tell of drift.
    fn drift(&self) -> Vec<String> {
        self.replica.logged().lines().filter(|line| line.contains("drift: ")).map(str::to_owned).collect()
    }

    /// Sessions that came to their end.
    fn sessions(&self) -> usize {
        self.replica.logged().matches(" done ").count()
    }

    #[track_caller]
    fn is_healed(&self) {
        becomes_identical(&self.src, &self.dst);
    }
}

#[track_caller]
fn becomes_identical(src: &Path, dst: &Path) {
    // No second look: it may be identical by chance, while what somebody did there is still to be seen.
    wait_for("the replica to be identical", PATIENCE, || {
        dst.exists() && {
            let have = snapshot(dst);
            differences(&snapshot(src), &have).is_empty() && lost_holes(&have).is_empty()
        }
    });
}

/// A version changes something in the directory before the replica has looked at it.
#[test]
fn an_attribute_of_a_directory_in_which_something_is_published_is_undone_as_well() {
    let pair = pair("");
    assert!(set_xattr(pair.dst.join("d000"), "user.somebody", b"x"));
    write(pair.src.join("d000/new"), b"new");
    pair.is_healed();
    let lines = pair.drift().join("\n");
    assert!(lines.contains("drift: changed here, and not by the master share=\"www\" path=d000"), "{lines}");
}

#[test]
fn what_somebody_does_to_a_replica_is_undone() {
    let pair = pair("");
    let d = &pair.dst;
    // In one breath, and each in a directory of its own: healing is the slower the more often it has to be.
    append(d.join("d000/f00001"), b"more");
    remove(&d.join("d000/f00002"));
    write(d.join("d000/extra"), b"extra");
    set_mode(d.join("d000/f00003"), 0o777);
    std::fs::rename(d.join("d000/f00004"), d.join("renamed")).unwrap();
    std::fs::rename(d.join("d001"), d.join("elsewhere")).unwrap();
    link_to("elsewhere", d.join("d001"));
    write(d.join("x/y/z"), b"deep");
    set_mtime(d.join("attr"), 1, 1);
    remove(&d.join("link"));
    pair.is_healed();
    let lines = pair.drift().join("\n");
    for told in [
        "changed here, and not by the master share=\"www\" path=d000/f00001",
        "deleted here, and not by the master share=\"www\" path=d000/f00002",
        "created here, and not by the master share=\"www\" path=d000/extra",
        "metadata changed here, and not by the master share=\"www\" path=d000/f00003",
    ] {
        assert!(lines.contains(told), "{told}:\n{lines}");
    }
    // The connection of the beginning.
    assert_eq!(pair.master.logged().matches(" connected ").count(), 1, "{}", pair.master.logged());
    assert!(!pair.master.logged().contains(" WARN "), "{}", pair.master.logged());
    assert!(pair.master.logged().contains("somebody changed its tree there"), "{}", pair.master.logged());
    // And again, in what was healed: it is watched as before.
    write(d.join("d001/again"), b"again");
    pair.is_healed();
}

#[test]
fn hard_links_and_whole_trees_are_healed() {
    let pair = pair("");
    let d = &pair.dst;
    let bytes = std::fs::read(d.join("hard1")).unwrap();
    remove(&d.join("hard1"));
    write(d.join("hard1"), bytes);
    pair.is_healed();
    for entry in std::fs::read_dir(d).unwrap() {
        remove(&entry.unwrap().path());
    }
    pair.is_healed();
    // Of many only some are named.
    for i in 0..40 {
        write(d.join(format!("extra {i}")), b"x");
    }
    pair.is_healed();
    assert!(pair.drift().iter().any(|line| line.contains(" more ")), "{:?}", pair.drift());
}

#[test]
fn what_the_replica_publishes_is_no_drift() {
    let pair = pair("");
    let sessions = pair.sessions();
    many(&pair.scratch.dir("elsewhere"), 3000, 7);
    std::fs::rename(pair.scratch.path("elsewhere"), pair.src.join("moved-in")).unwrap();
    pair.is_healed();
    for i in 0..2 {
        write(pair.src.join(format!("file {i}")), b"new");
        pair.is_healed();
        std::fs::rename(pair.src.join("d000"), pair.src.join("d")).unwrap();
        pair.is_healed();
        set_mode(pair.src.join("d"), 0o700);
        pair.is_healed();
        std::fs::rename(pair.src.join("d"), pair.src.join("d000")).unwrap();
        pair.is_healed();
    }
    // Longer than any look waits.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(pair.drift(), [""; 0]);
    // A session for each version, and none besides.
    let published = pair.master.logged().matches(" published ").count();
    assert_eq!(pair.sessions(), published, "{} at first\n{}", sessions, pair.replica.logged());
}

#[test]
fn drift_is_only_reported_where_that_is_asked_for() {
    let pair = pair("heal = 'report'");
    append(pair.dst.join("d000/f00001"), b"more");
    write(pair.dst.join("extra"), b"extra");
    wait_for("the report", PATIENCE, || pair.drift().len() >= 3);
    let lines = pair.drift().join("\n");
    assert!(lines.contains("path=d000/f00001") && lines.contains("path=extra"), "{lines}");
    let before = snapshot(&pair.dst);
    std::thread::sleep(Duration::from_secs(3));
    assert_untouched(&before, &snapshot(&pair.dst));
    // A version that has nothing to do with it leaves it alone, and one that touches it does not.
    write(pair.src.join("other"), b"other");
    wait_for("the new file", PATIENCE, || pair.dst.join("other").exists());
    std::thread::sleep(Duration::from_millis(300));
    assert!(pair.dst.join("extra").exists());
    append(pair.src.join("d000/f00001"), b"the master's");
    pair.is_healed();
    assert!(pair.replica.logged().contains("it was changed there meanwhile"), "{}", pair.replica.logged());
}

#[test]
fn both_sides_say_that_a_replica_has_drifted_until_it_has_not() {
    let pair = pair("heal = 'report'");
    let drifted = |first: &str| {
        waits_for_state(&pair.master.state, 0, "drifted");
        let (there, here) = (status(&pair.master.state)["replicas"][0]["drift"].clone(), status(&pair.replica.state));
        assert_eq!((&here["copy"]["state"], &here["copy"]["drift"]), (&json!("drifted"), &there));
        assert_eq!((&there["first"], &here["copy"]["heal"]), (&json!(first), &json!("report")), "{here}");
    };
    let in_sync = || {
        waits_for_state(&pair.master.state, 0, "in_sync");
        waits_for_copy(&pair.replica.state, "in_sync");
    };
    in_sync();
    set_mode(pair.dst.join("d000/f00001"), 0o777);
    drifted("d000/f00001");
    synccli(&pair.master.state).args(&["status", "--exit-code"]).code(3);
    let ran = synccli(&pair.replica.state).args(&["status"]).ok();
    assert!(ran.out().contains("1 name drifted, the first d000/f00001; heal = \"report\""), "{ran}");
    // A version that has nothing to do with it leaves it as it is, and says so.
    write(pair.src.join("other"), b"other");
    wait_for("the new file", PATIENCE, || pair.dst.join("other").exists());
    drifted("d000/f00001");
    // Whoever did it undoes it.
    let mode = std::os::unix::fs::PermissionsExt::mode(&pair.src.join("d000/f00001").metadata().unwrap().permissions());
    set_mode(pair.dst.join("d000/f00001"), mode);
    in_sync();
    // Or somebody orders it.
    append(pair.dst.join("d000/f00003"), b"more");
    drifted("d000/f00003");
    synccli(&pair.master.state).args(&["push", "www"]).ok();
    assert_exact(&pair.src, &pair.dst);
    in_sync();
    // Or a version does that is about the same name.
    append(pair.dst.join("d000/f00002"), b"more");
    drifted("d000/f00002");
    append(pair.src.join("d000/f00002"), b"the master's");
    pair.is_healed();
    in_sync();
}

#[test]
fn a_replica_says_where_it_stands_and_whom_it_hears() {
    let mut pair = pair("");
    waits_for_copy(&pair.replica.state, "in_sync");
    let (here, there) = (status(&pair.replica.state), status(&pair.master.state));
    assert_eq!(here["version"], there["version"]);
    let master = &here["copy"]["master"];
    let id = synccli(&pair.master.state).arg("id").ok().out().trim().to_owned();
    assert_eq!((&master["id"], &master["connected"], &master["follows"]), (&json!(id), &json!(true), &json!(true)));
    synccli(&pair.replica.state).args(&["status", "--exit-code"]).ok();
    let mut watched = std::process::Command::new(bin("synccli"))
        .arg("--state-dir")
        .arg(&pair.replica.state)
        .args(["status", "--watch", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watched.stdout.take().unwrap()).lines();
    let mut watches = |wanted: &str| {
        let is = |line: String| line.contains(&format!("\"copy\":{{\"state\":\"{wanted}\""));
        assert!(lines.by_ref().take(300).any(|line| is(line.unwrap())), "never {wanted}");
    };
    watches("in_sync");
    pair.master.kill();
    watches("away");
    watched.kill().unwrap();
    watched.wait().unwrap();
    let away = status(&pair.replica.state);
    assert_eq!(away["version"], there["version"], "it serves what it has");
    let heard = &away["copy"]["master"];
    assert_eq!((&heard["id"], &heard["connected"]), (&json!(id), &json!(false)));
    assert!(heard["heard_seconds"].as_f64().unwrap() > 0.0, "{away}");
    synccli(&pair.replica.state).args(&["status", "--exit-code"]).code(3);
    // What nobody undoes.
    append(pair.dst.join("d000/f00001"), b"more");
    waits_for_copy(&pair.replica.state, "drifted");
    assert_eq!(status(&pair.replica.state)["copy"]["drift"], json!({"entries": 1, "first": "d000/f00001"}));
    // One that begins without a master knows where it stands.
    assert!(pair.replica.term().1.success());
    pair.replica.up();
    let again = status(&pair.replica.state);
    let version = |status: &Value| (status["version"]["number"].clone(), status["version"]["id"].clone());
    assert_eq!((version(&again), &again["copy"]["master"]), (version(&there), &Value::Null));
    waits_for_copy(&pair.replica.state, "drifted");
    pair.master.restart();
    waits_for_copy(&pair.replica.state, "in_sync");
    pair.is_healed();
    assert_eq!(status(&pair.replica.state)["copy"]["drift"], Value::Null);
}

#[test]
fn what_somebody_added_to_a_replica_is_no_deletion_when_it_goes() {
    let mut pair = pair("max_delete = 10");
    let add = |dir: &str| many(&pair.dst.join(dir), 40, 9);
    add("added");
    pair.is_healed();
    // Found by a look that began with the connection.
    pair.master.kill();
    add("again");
    write(pair.dst.join("d000/extra"), b"extra");
    pair.replica.kill();
    pair.replica.up();
    pair.master.restart();
    pair.is_healed();
    waits_for_copy(&pair.replica.state, "in_sync");
    assert!(!pair.replica.logged().contains("would be deleted"), "{}", pair.replica.logged());
    // What was published counts, also where somebody had it there before.
    many(&pair.dst.join("release"), 40, 5);
    copy_tree(&pair.dst.join("release"), &pair.src.join("release"));
    // It is identical before anybody has looked.
    let pushed = || synccli(&pair.master.state).args(&["push", "www"]).run().status.success();
    wait_for("the release to be published", PATIENCE, pushed);
    pair.is_healed();
    waits_for_state(&pair.master.state, 0, "in_sync");
    let before = snapshot(&pair.dst);
    // In one step: else a part of it may be a version of its own, which is not held.
    std::fs::rename(pair.src.join("release"), pair.scratch.path("release")).unwrap();
    waits_for_state(&pair.master.state, 0, "held");
    assert_untouched(&before, &snapshot(&pair.dst));
}

#[test]
fn nobody_looks_where_that_is_not_wanted() {
    let pair = pair("heal = false");
    append(pair.dst.join("d000/f00001"), b"more");
    let before = snapshot(&pair.dst);
    std::thread::sleep(Duration::from_secs(5));
    assert_untouched(&before, &snapshot(&pair.dst));
    assert_eq!(pair.drift(), [""; 0]);
}

/// Where inodes with several names were published, the next session on the connection begins with a look at the tree.
#[test]
fn what_the_look_between_two_versions_finds_is_undone() {
    let pair = pair("");
    many(&pair.src.join("many"), 2000, 4);
    for round in 0..3 {
        append(pair.src.join("hard1"), b"more");
        synccli(&pair.master.state).args(&["push", "www"]).ok();
        // Where that look comes last.
        write(pair.dst.join(format!("many/d039/zzz {round}")), b"extra");
        pair.is_healed();
    }
    assert_eq!(pair.master.logged().matches(" connected ").count(), 1, "{}", pair.master.logged());
}

#[test]
fn a_program_that_writes_all_the_time_is_not_fought_at_full_speed() {
    let pair = pair("");
    let (sessions, began) = (pair.sessions(), Instant::now());
    let file = pair.dst.join("d000/f00001");
    let writer = watch::Hammer::start(move |turn| {
        let _ = std::fs::write(&file, format!("written {turn}"));
        std::thread::sleep(Duration::from_millis(20));
    });
    wait_for("it to be told", PATIENCE, || pair.replica.logged().contains("it comes again and again"));
    std::thread::sleep(Duration::from_secs(12).saturating_sub(began.elapsed()));
    let fought = pair.sessions() - sessions;
    let seconds = began.elapsed().as_secs() as usize;
    assert!(fought <= 4 + seconds / 4, "{fought} sessions in {seconds} s\n{}", pair.replica.logged());
    writer.stop();
    pair.is_healed();
}

#[test]
fn a_replica_without_its_master_keeps_serving_and_is_healed_when_that_is_back() {
    let mut pair = pair("");
    pair.master.kill();
    wait_for("the replica to notice", PATIENCE, || pair.replica.logged().contains("push ended"));
    append(pair.dst.join("d000/f00001"), b"more");
    remove(&pair.dst.join("d000/f00002"));
    wait_for("the report", PATIENCE, || pair.drift().iter().any(|line| line.contains("path=d000/f00002")));
    assert!(pair.drift().iter().any(|line| line.contains("no master is connected")), "{:?}", pair.drift());
    // A replica that starts without a master knows what it is to be, too.
    pair.replica.kill();
    write(pair.dst.join("while it was down"), b"x");
    pair.replica.up();
    wait_for("the report", PATIENCE, || pair.drift().iter().any(|line| line.contains("path=while it was down")));
    // It is as it was left.
    assert!(std::fs::read(pair.dst.join("d000/f00001")).unwrap().ends_with(b"more"));
    assert!(!pair.dst.join("d000/f00002").exists());
    pair.master.restart();
    pair.is_healed();
}

#[test]
fn drift_in_a_share_that_is_pushed_to_waits_for_the_next_push() {
    let scratch = Scratch::new();
    let (src, dst, state) = (scratch.src(), scratch.dir("one"), scratch.state());
    many(&src, 100, 3);
    let replica = Daemon::replica(&scratch, "state-one", &dst, "");
    replica.pair(&state);
    // What is left out of a push is nobody's drift.
    let push = || push_with(&state, &src, &[replica.dest("www")]).args(&["--exclude", "cache/"]).ok();
    push();
    write(dst.join("cache/page"), b"its own");
    append(dst.join("d000/f00001"), b"more");
    wait_for("the report", PATIENCE, || replica.logged().contains("path=d000/f00001"));
    assert!(!replica.logged().contains("cache"), "{}", replica.logged());
    push();
    assert!(dst.join("cache/page").exists());
    remove(&dst.join("cache"));
    push();
    assert_exact(&src, &dst);
}

#[test]
fn a_write_in_the_way_of_an_update_loses_and_is_logged() {
    let pair = pair("heal = 'off'");
    append(pair.dst.join("d000/f00001"), b"local");
    append(pair.src.join("d000/f00001"), b"the master's");
    pair.is_healed();
    let logged = pair.replica.logged();
    let told =
        logged.lines().any(|line| line.contains("it was changed there meanwhile") && line.contains("d000/f00001"));
    assert!(told, "{logged}");
}

/// What is in the way of a watch may go while the daemon runs: here the limit of a user namespace of its own.
#[test]
fn a_replica_that_cannot_be_watched_is_looked_at_and_watched_as_soon_as_it_can_be() {
    let name = "a_replica_that_cannot_be_watched_is_looked_at";
    need!(name, is_root() && has("unshare") && has("nsenter"), "needs root, unshare and nsenter");
    let behind = behind_limit("max_inotify_instances", 0);
    need!(name, behind.is_some(), "no user namespaces");
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dir("one"));
    many(&src, 60, 3);
    let behind = behind.unwrap();
    let mut one = Daemon::replica_at(&scratch, "state-one", &dst, "rescan = '500ms'", "127.0.0.1", behind);
    one.up();
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    let unwatched = || status(&one.state)["unwatched"].clone();
    let why = unwatched();
    assert!(why.as_str().is_some_and(|why| why.contains("changes are not heard of")), "{why}");
    assert!(why.as_str().unwrap().ends_with("the tree is looked at about every 500ms"), "{why}");
    // Without it somebody looks from time to time.
    write(dst.join("d000/f00001"), b"as nobody meant");
    becomes_identical(&src, &dst);
    assert_eq!(unwatched(), why);
    let user = format!("--user=/proc/{}/ns/user", one.pid());
    let more = "echo 100 >/proc/sys/user/max_inotify_instances";
    tool("nsenter", &[&user, "sh", "-c", more].map(std::ffi::OsStr::new));
    wait_for("the watch", PATIENCE, || unwatched().is_null());
    let watches = || {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", one.pid())).unwrap().flatten();
        let targets = descriptors.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets.filter(|target| target.to_string_lossy().contains("inotify")).count()
    };
    assert!(watches() > 0, "it only says so");
    write(dst.join("d000/f00002"), b"as nobody meant");
    becomes_identical(&src, &dst);
    waits_for_copy(&one.state, "in_sync");
    assert_eq!(master.logged().matches(" connected ").count(), 1, "{}", master.logged());
}

#[test]
fn a_directory_that_is_not_the_one_it_was_is_filled_when_a_person_says_so() {
    let pair = pair("");
    std::fs::rename(&pair.dst, pair.scratch.path("aside")).unwrap();
    mkdir(&pair.dst);
    waits_for_state(&pair.master.state, 0, "held");
    let why = status(&pair.master.state)["replicas"][0]["problem"].clone();
    assert!(why.as_str().is_some_and(|why| why.contains("synccli release")), "{why}");
    waits_for_copy(&pair.replica.state, "held");
    assert_eq!(std::fs::read_dir(&pair.dst).unwrap().count(), 0, "it was filled");
    synccli(&pair.master.state).args(&["release", "www"]).ok();
    pair.is_healed();
    waits_for_copy(&pair.replica.state, "in_sync");
}

#[test]
fn a_directory_that_is_not_the_one_it_was_is_left_alone() {
    let pair = pair("");
    let aside = pair.scratch.path("aside");
    std::fs::rename(&pair.dst, &aside).unwrap();
    // As the mount point of a file system that is gone.
    mkdir(&pair.dst);
    wait_for("the replica to tell", PATIENCE, || pair.replica.logged().contains("moved, unmounted or replaced"));
    wait_for("the master to be refused", PATIENCE, || pair.master.logged().contains("is it not mounted?"));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(std::fs::read_dir(&pair.dst).unwrap().count(), 0, "it was filled");
    std::fs::remove_dir(&pair.dst).unwrap();
    std::fs::rename(&aside, &pair.dst).unwrap();
    append(pair.dst.join("d000/f00001"), b"more");
    pair.is_healed();
}

/// It says `identical` of what is so now, not of what it was before somebody changed it a moment ago.
#[test]
fn a_push_finds_what_was_changed_there_just_before() {
    let pair = pair("");
    for round in 0..10 {
        write(pair.dst.join("attr"), format!("changed by somebody else, {round}"));
        if round % 2 == 0 {
            write(pair.src.join("other"), round.to_string());
        }
        synccli(&pair.master.state).args(&["push", "www"]).ok();
        assert_eq!(std::fs::read(pair.dst.join("attr")).unwrap(), b"attr", "round {round}");
    }
    pair.is_healed();
}

/// Each looks at the replica's tree, and neither takes the connection from the other; what they tell is what it took to bring it there.
#[test]
fn pushes_at_the_same_time_share_a_connection_and_what_they_tell() {
    let pair = pair("");
    many(&pair.src.join("more"), 4000, 7);
    synccli(&pair.master.state).args(&["push", "www"]).ok();
    let connected = || pair.master.logged().matches(" connected").count();
    let before = connected();
    std::thread::scope(|scope| {
        for pusher in 0..3 {
            let pair = &pair;
            scope.spawn(move || {
                for round in 0..6 {
                    write(pair.src.join(format!("big {pusher}")), noise(pusher * 100 + round, 300_000));
                    write(pair.dst.join("attr"), b"changed by somebody else");
                    synccli(&pair.master.state).args(&["push", "www"]).ok();
                }
            });
        }
    });
    assert_eq!(connected(), before, "{}", pair.master.logged());
    write(pair.src.join("last"), noise(1000, 300_000));
    let ran = synccli(&pair.master.state).args(&["push", "www", "--json"]).ok();
    let bytes = ran.json().iter().find_map(|reply| reply["delivery"]["wire_bytes"].as_u64());
    assert!(bytes.is_some_and(|bytes| bytes >= 300_000), "{ran}");
    pair.is_healed();
}
