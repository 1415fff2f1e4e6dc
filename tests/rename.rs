//! A renamed directory is renamed on the replica too: one call, and every inode stays.

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

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use support::*;

/// The inodes of a directory and of all beneath it, by their names in it.
fn inodes(top: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut todo = vec![top.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path.strip_prefix(top).unwrap().to_owned(), meta.ino());
    }
    found
}

/// A directory `d` with 300 files, further names of some, links and an empty file; and others beside it.
fn fill(scratch: &Scratch) {
    let src = scratch.src();
    many(&src.join("d"), 300, 1);
    many(&src.join("other"), 30, 2);
    hard_link(src.join("d/d000/f00001"), src.join("d/further"));
    link_to("further", src.join("d/link"));
    write(src.join("d/empty"), b"");
}

fn rename(scratch: &Scratch, from: &str, to: &str) {
    std::fs::rename(scratch.src().join(from), scratch.src().join(to)).unwrap();
}

#[track_caller]
fn nothing_left_to_do(scratch: &Scratch) {
    assert_exact(&scratch.src(), &scratch.dst());
    let before = snapshot(&scratch.dst());
    scratch.push().ok().says("nothing");
    assert_untouched(&before, &snapshot(&scratch.dst()));
}

#[test]
fn every_inode_stays_and_each_entry_is_told() {
    let scratch = Scratch::new();
    fill(&scratch);
    scratch.push().ok();
    let before = inodes(&scratch.dst().join("d"));
    rename(&scratch, "d", "n");
    let dry = scratch.push().args(&["--dry-run", "--json"]).ok().summary();
    let pushed = scratch.push().args(&["--json", "--itemize-changes"]).ok();
    let summary = pushed.summary();
    // With directories, links, and empty files.
    assert_eq!((summary.count("moved"), summary.count("created")), (before.len() as u64, 0));
    assert_eq!((summary.count("deleted"), summary.count("literal_bytes")), (0, 0));
    for name in ["moved", "created", "deleted", "metadata_only", "updated"] {
        assert_eq!(dry.count(name), summary.count(name), "{name} in the dry run");
    }
    let lines = pushed.out().lines().filter(|line| line.contains("\"d/") || line.contains("\"n/")).count();
    assert!(lines >= 2 * (before.len() - 2), "{lines} lines of {}", before.len());
    assert_eq!(inodes(&scratch.dst().join("n")), before);
    nothing_left_to_do(&scratch);
}

#[test]
fn a_directory_moves_into_a_new_one_out_of_one_that_goes() {
    let scratch = Scratch::new();
    fill(&scratch);
    mkdir(scratch.dst());
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.state());
    scratch.push_to(&[daemon.dest("www")]).ok();
    let before = inodes(&scratch.dst().join("d/d000"));
    mkdir(scratch.src().join("new/deep"));
    write(scratch.src().join("new/file"), b"new");
    // Its other name would keep it from being renamed whole.
    remove(&scratch.src().join("d/further"));
    scratch.push_to(&[daemon.dest("www")]).ok();
    rename(&scratch, "d/d000", "new/deep/er");
    remove(&scratch.src().join("d"));
    scratch.push_to(&[daemon.dest("www")]).ok();
    assert_eq!(inodes(&scratch.dst().join("new/deep/er")), before);
    assert_exact(&scratch.src(), &scratch.dst());
    let again = scratch.push_to(&[daemon.dest("www")]).arg("--json").ok().summary();
    assert_eq!(again.changes(), 0);
}

#[test]
fn what_was_changed_at_the_replica_is_put_right_and_the_rest_moves() {
    let scratch = Scratch::new();
    fill(&scratch);
    scratch.push().ok();
    write(scratch.dst().join("d/foreign"), b"foreign");
    write(scratch.dst().join("d/d000/f00002"), b"changed");
    rename(&scratch, "d", "n");
    scratch.push().ok();
    nothing_left_to_do(&scratch);
}

#[test]
fn with_no_delete_the_old_directory_stays() {
    let scratch = Scratch::new();
    fill(&scratch);
    scratch.push().ok();
    rename(&scratch, "d", "n");
    scratch.push().arg("--no-delete").ok();
    assert_eq!(inodes(&scratch.dst().join("d")).len(), inodes(&scratch.dst().join("n")).len());
}

#[test]
fn killed_at_any_moment_it_has_the_old_name_or_the_new() {
    let scratch = Scratch::new();
    fill(&scratch);
    scratch.push().ok();
    let (mut from, mut to) = ("d", "n");
    rename(&scratch, from, to);
    let whole = scratch.push().ok().took;
    let before = inodes(&scratch.dst().join(to));
    let points = 24;
    for point in 0..points {
        (from, to) = (to, from);
        rename(&scratch, from, to);
        let mut push = scratch.push().start();
        std::thread::sleep(whole * point / points);
        push.signal(Signal::KILL);
        push.wait();
        let here = if scratch.dst().join(to).exists() { to } else { from };
        assert!(!scratch.dst().join(to).exists() || !scratch.dst().join(from).exists());
        assert_eq!(inodes(&scratch.dst().join(here)), before);
        scratch.push().ok();
        assert_exact(&scratch.src(), &scratch.dst());
        assert_eq!(inodes(&scratch.dst().join(to)), before);
    }
}
