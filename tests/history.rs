//! Previous contents and what they may take: descriptors, and room beside the indexes. What they save is in `delta.rs`.

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

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use support::*;

/// The packs of the only history in a state directory, by name.
fn packs(state: &Path) -> Vec<PathBuf> {
    let shares = entries(&state.join("history"));
    let mut packs: Vec<PathBuf> = shares.iter().flat_map(|share| entries(share)).collect();
    packs.retain(|path| path.extension().is_some_and(|ext| ext == "pack"));
    packs.sort();
    packs
}

/// What is in a directory: nothing, if a daemon removed it a moment ago.
fn entries(dir: &Path) -> Vec<PathBuf> {
    match std::fs::read_dir(dir) {
        Ok(found) => found.map(|entry| entry.unwrap().path()).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => panic!("{}: {error}", dir.display()),
    }
}

fn bytes(packs: &[PathBuf]) -> u64 {
    packs.iter().map(|pack| size(pack)).sum()
}

fn size(pack: &Path) -> u64 {
    match pack.metadata() {
        Ok(found) => found.len(),
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        Err(error) => panic!("{}: {error}", pack.display()),
    }
}

/// Files of one size, each unlike the others; with a byte in front that tells the edit.
fn files(src: &Path, count: u64, size: usize, edit: u8) {
    for i in 0..count {
        write(src.join(format!("f{i}")), [&[edit], &noise(i + 1, size)[..]].concat());
    }
}

/// Bytes that can be written to the file system.
fn free(at: &Path) -> u64 {
    let now = rustix::fs::statvfs(at).unwrap();
    now.f_bavail * now.f_frsize
}

#[test]
fn more_packs_than_descriptors_are_used_and_kept() {
    let scratch = Scratch::new();
    // Packs have 2 MiB: one for each file.
    let (count, size) = (56, 1_100_000);
    let limited = || {
        let mut push = scratch.push();
        push.args(&["--history=64m", "--compress=never", "--json"]);
        let ran = push.behind(&["sh", "-c", "ulimit -n 64; exec \"$@\"", "sh"]).ok();
        assert!(!ran.said().contains("previous contents"), "{ran}");
        ran.summary()
    };
    files(&scratch.src(), count, size, 1);
    limited();
    let before = packs(&scratch.state());
    assert!(before.len() as u64 >= count, "{} packs are too few to tell", before.len());
    // Touched only: everything is looked for, nothing is sent.
    files(&scratch.src(), count / 2, size, 1);
    limited();
    assert_eq!(packs(&scratch.state()), before);
    // Each of them is needed.
    files(&scratch.src(), count, size, 2);
    let summary = limited();
    assert_exact(&scratch.src(), &scratch.dst());
    let bytes = summary.count("wire_sent") + summary.count("wire_received");
    assert!(bytes < 110_000, "{bytes} bytes: what was kept is not used: {summary:?}");
}

#[test]
fn each_content_is_kept_once() {
    let scratch = Scratch::new();
    for edit in [1, 2] {
        files(&scratch.src(), 100, 49_999, edit);
        scratch.push().arg("--history=64m").ok();
        let (kept, need) = (bytes(&packs(&scratch.state())), u64::from(edit) * 100 * 50_000);
        assert!((need..need + 100_000).contains(&kept), "{kept} bytes for {need}");
    }
}

#[test]
fn contents_of_some_mebibytes_share_packs() {
    let scratch = Scratch::new();
    // A pack has 16 MiB.
    files(&scratch.src(), 60, 1_100_000, 1);
    scratch.push().arg("--history=512m").ok();
    let packs = packs(&scratch.state());
    assert!(packs.len() <= 6, "{} packs", packs.len());
    assert!(bytes(&packs) > 60 * 1_100_000);
}

#[test]
fn a_state_disk_that_is_too_small_for_a_history_holds_the_indexes() {
    let name = "a_state_disk_that_is_too_small_for_a_history_holds_the_indexes";
    let scratch = Scratch::new();
    need!(name, scratch.mounts, "needs root and a mount namespace");
    mount_tmpfs(&scratch.state(), "mode=700,size=12m");
    for edit in 1..4 {
        files(&scratch.src(), 200, 100_000, edit);
        scratch.push().arg("--history=24m").ok().says("not all previous contents are kept");
        assert_exact(&scratch.src(), &scratch.dst());
        assert!(free(&scratch.state()) > 8 << 20);
    }
    files(&scratch.src(), 200, 100_000, 9);
    let ran = scratch.push().ok();
    assert!(!ran.said().contains("previous contents"), "{ran}");
}

#[test]
fn a_history_grows_no_further_than_the_room_that_is_left_free() {
    let name = "a_history_grows_no_further_than_the_room_that_is_left_free";
    let scratch = Scratch::new();
    need!(name, scratch.mounts, "needs root and a mount namespace");
    mount_tmpfs(&scratch.state(), "mode=700,size=48m");
    for edit in 1..5 {
        files(&scratch.src(), 300, 100_000, edit);
        let ran = scratch.push().args(&["--history=400m", "--json"]).ok();
        // All was kept that was put in at first: 30 MB. Some of it gives way to what comes, and is told once.
        let notices = ran.said().matches("not all previous contents are kept").count();
        assert!(edit == 1 || notices == 1, "{edit}: {notices} notices\n{ran}");
        assert!(free(&scratch.state()) >= 15 << 20, "{edit}: {} bytes are free", free(&scratch.state()));
        assert!(bytes(&packs(&scratch.state())) > 10 << 20, "{edit}");
    }
}

#[test]
fn a_history_gives_way_when_something_else_fills_the_state_disk() {
    let name = "a_history_gives_way_when_something_else_fills_the_state_disk";
    for args in [&["--history=60m"][..], &[]] {
        let scratch = Scratch::new();
        need!(name, scratch.mounts, "needs root and a mount namespace");
        mount_tmpfs(&scratch.state(), "mode=700,size=100m");
        files(&scratch.src(), 500, 100_000, 1);
        scratch.push().arg("--history=60m").ok();
        let kept = bytes(&packs(&scratch.state()));
        assert!(kept > 50_000_000);
        let room = usize::try_from(free(&scratch.state())).unwrap();
        write(scratch.state().join("others"), vec![1; room]);
        files(&scratch.src(), 500, 100_000, 2);
        // Once, and only as much as is needed.
        scratch.push().args(args).ok().says("MiB of previous contents were removed");
        assert_exact(&scratch.src(), &scratch.dst());
        let left = bytes(&packs(&scratch.state()));
        assert!(left < kept - (8 << 20) && left > kept / 4, "{left} of {kept} are left");
        let ran = scratch.push().ok();
        assert!(!ran.said().contains("previous contents"), "{ran}");
    }
}

#[test]
fn a_commit_that_finds_no_room_gets_that_of_the_history() {
    let name = "a_commit_that_finds_no_room_gets_that_of_the_history";
    for args in [&["--history=70m"][..], &[]] {
        let scratch = Scratch::new();
        need!(name, scratch.mounts, "needs root and a mount namespace");
        mount_tmpfs(&scratch.state(), "mode=700,size=80m");
        // Its index is elsewhere.
        let copy = scratch.dir("copy");
        let daemon = Daemon::start(&scratch, "r", &[("www", &copy)]);
        daemon.pair(&scratch.state());
        let push = || scratch.push_to(&[daemon.dest("www")]);
        files(&scratch.src(), 650, 100_000, 1);
        push().arg("--history=70m").ok();
        assert!(bytes(&packs(&scratch.state())) > 50_000_000 && free(&scratch.state()) < 20 << 20);
        // Rows of 4 KB: more than is left free, and not known before.
        for i in 0..8000 {
            std::os::unix::fs::symlink("x".repeat(4000), scratch.src().join(format!("link{i}"))).unwrap();
        }
        let ran = push().args(args).ok().says("no space left for the index");
        assert_exact(&scratch.src(), &copy);
        assert_eq!(bytes(&packs(&scratch.state())), 0, "{ran}");
        // What could not be folded in is, and the next push has its history again.
        files(&scratch.src(), 10, 100_000, 2);
        push().args(args).ok();
        assert_exact(&scratch.src(), &copy);
    }
}

#[test]
fn a_share_that_is_mirrored_has_a_history_within_its_bound() {
    let scratch = Scratch::new();
    let src = scratch.src();
    files(&src, 100, 100_000, 1);
    let one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "history = '20m'");
    let kept = || bytes(&packs(&master.state));
    let pushed = || synccli(&master.state).args(&["push", "www"]).ok();
    waits_for_state(&master.state, 0, "in_sync");
    // A while after the replicas have it.
    wait_for("the history to be filled", 60, || (9_000_000..12_000_000).contains(&kept()));
    // Much more than it may hold, in many versions: until it is tidied, as much again.
    for round in 0..12 {
        files(&src, 100, 100_000, 2 + round);
        pushed();
        assert!(kept() <= 2 * (20 << 20) + 1_000_000, "{} in round {round}", kept());
    }
    assert_exact(&src, &scratch.path("one"));
    assert!(kept() > 10_000_000, "{}", kept());
    // That there is one now was said on the connection that there was.
    let connected = master.logged().lines().filter(|line| line.contains("connected to=")).count();
    assert_eq!(connected, 1, "{}", master.logged());
    assert!(!one.logged().contains("ended early"), "{}", one.logged());
    // It can be had without, from one moment to the next.
    let config = scratch.path("m.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let bad = text.replace("'20m'", "'1k'");
    std::fs::write(&config, &bad).unwrap();
    let ran = synccli(&master.state).arg("reload").code(1);
    assert!(ran.err().contains("line ") && ran.err().contains("the least is 1m"), "{ran}");
    std::fs::write(&config, text.replace("'20m'", "'0'")).unwrap();
    synccli(&master.state).arg("reload").ok();
    wait_for("what was kept to be gone", 60, || kept() == 0);
    wait_for("the tree to be open again", 60, || {
        files(&src, 100, 100_000, 77);
        synccli(&master.state).args(&["push", "www"]).run().status.success()
    });
    assert_eq!(kept(), 0);
}
