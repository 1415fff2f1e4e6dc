//! "A DEST that was changed behind our back is made exact again, including an edit that kept size and mtime", and the
//! same for a source: nothing but the content decides.

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

use support::*;

/// Writes other bytes of the same length and puts the old mtime back.
fn edit_unseen(path: &Path, seed: u64) {
    let time = mtime_of(path);
    let length = usize::try_from(std::fs::metadata(path).unwrap().len()).unwrap();
    std::fs::write(path, noise(seed + 5_000_000, length)).unwrap();
    set_mtime(path, time.0, time.1);
}

type Drift = (&'static str, fn(&Path));

/// What somebody may do to a replica.
fn drifts() -> Vec<Drift> {
    let mut all: Vec<Drift> = vec![
        ("same size and mtime", |d| edit_unseen(&d.join("d000/f00001"), 1)),
        ("same size and mtime, replaced by rename", |d| {
            let old = d.join("d000/f00002");
            let time = mtime_of(&old);
            let length = usize::try_from(std::fs::metadata(&old).unwrap().len()).unwrap();
            write(d.join("t"), noise(77, length));
            set_mtime(d.join("t"), time.0, time.1);
            std::fs::rename(d.join("t"), old).unwrap();
        }),
        ("appended", |d| append(d.join("d000/f00003"), b"more")),
        ("truncated", |d| write(d.join("d000/f00004"), b"")),
        ("removed", |d| remove(&d.join("d000/f00005"))),
        ("directory removed", |d| remove(&d.join("d001"))),
        ("extra file", |d| write(d.join("d000/extra"), b"x")),
        ("extra directories", |d| write(d.join("x/y/z"), b"x")),
        ("mode", |d| set_mode(d.join("d000/f00006"), 0o777)),
        ("mode of a directory", |d| set_mode(d.join("d000"), 0o700)),
        ("mtime", |d| set_mtime(d.join("d000/f00007"), 1, 1)),
        ("mtime of a directory", |d| set_mtime(d.join("d000"), 1, 1)),
        ("mtime of the top", |d| set_mtime(d, 1, 1)),
        ("mtime of a link", |d| set_mtime(d.join("link"), 1, 1)),
        ("xattr added", |d| assert!(set_xattr(d.join("d000/f00008"), "user.x", b"x"))),
        ("xattr changed", |d| assert!(set_xattr(d.join("attr"), "user.a", b"other"))),
        ("xattr removed", |d| drop_xattr(d.join("attr"), "user.a")),
        ("link retargeted", |d| {
            remove(&d.join("link"));
            link_to("elsewhere", d.join("link"));
        }),
        ("file became a directory", |d| {
            remove(&d.join("d000/f00009"));
            write(d.join("d000/f00009/below"), b"x");
        }),
        ("directory became a link", |d| {
            std::fs::rename(d.join("d001"), d.join("elsewhere")).unwrap();
            link_to("elsewhere", d.join("d001"));
        }),
        ("hard link broken", |d| {
            let bytes = std::fs::read(d.join("hard1")).unwrap();
            let time = mtime_of(d.join("hard1"));
            remove(&d.join("hard1"));
            write(d.join("hard1"), bytes);
            set_mtime(d.join("hard1"), time.0, time.1);
        }),
        ("hard links joined", |d| {
            remove(&d.join("d000/f00010"));
            hard_link(d.join("d000/f00011"), d.join("d000/f00010"));
        }),
        ("renamed", |d| std::fs::rename(d.join("d000/f00012"), d.join("renamed")).unwrap()),
        ("swapped", |d| {
            std::fs::rename(d.join("d000/f00013"), d.join("t")).unwrap();
            std::fs::rename(d.join("d000/f00014"), d.join("d000/f00013")).unwrap();
            std::fs::rename(d.join("t"), d.join("d000/f00014")).unwrap();
        }),
        ("emptied", |d| {
            for entry in std::fs::read_dir(d).unwrap() {
                remove(&entry.unwrap().path());
            }
        }),
        ("removed altogether", |d| remove(d)),
    ];
    if is_root() {
        all.push(("owner", |d| set_owner(d.join("d000/f00015"), 9, 9)));
        all.push(("acl", |d| assert!(set_xattr(d.join("d000/f00016"), ACL_ACCESS, &acl(5, 7, 7, 7)))));
    }
    all
}

fn tree(src: &Path) {
    many(src, 100, 3);
    link_to("d000", src.join("link"));
    write(src.join("attr"), b"attr");
    set_xattr(src.join("attr"), "user.a", b"a");
    write(src.join("hard1"), b"hard");
    hard_link(src.join("hard1"), src.join("hard2"));
}

#[test]
fn a_dest_changed_behind_our_back_is_made_exact_again() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    tree(&src);
    scratch.push().ok();
    for (name, drift) in drifts() {
        drift(&dst);
        let ran = scratch.push().run();
        assert!(ran.status.success(), "after drift {name:?}:\n{ran}");
        let (want, have) = (snapshot(&src), snapshot(&dst));
        assert_no_differences(&format!("after drift {name:?}"), &differences(&want, &have));
    }
    scratch.push().ok().says("nothing");
}

#[test]
fn a_share_changed_behind_its_daemon_is_made_exact_again() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    tree(&src);
    mkdir(&dst);
    let mut daemon = Daemon::start(&scratch, "r", &[("www", &dst)]);
    daemon.pair(&scratch.state());
    let push = |daemon: &Daemon| scratch.push_to(&[daemon.dest("www")]).run();
    push(&daemon).code(0);
    for (i, (name, drift)) in drifts().into_iter().enumerate() {
        // A daemon holds a root that vanished or is suddenly empty: that is a test of its own.
        if name == "removed altogether" || name == "emptied" {
            continue;
        }
        if i % 7 == 3 {
            // Drift while the daemon was down is drift as well.
            daemon.term();
            drift(&dst);
            daemon.up();
        } else {
            drift(&dst);
        }
        let ran = push(&daemon);
        assert!(ran.status.success(), "after drift {name:?}:\n{ran}");
        let (want, have) = (snapshot(&src), snapshot(&dst));
        assert_no_differences(&format!("after drift {name:?}"), &differences(&want, &have));
    }
    push(&daemon).code(0).says("nothing");
}

/// Pushes until the daemon has to look at nothing but what changed, which it says.
fn comes_to_rest(daemon: &Daemon, push: impl Fn() -> Ran) {
    let (before, end) = (rested(daemon), Instant::now() + Duration::from_secs(60));
    while rested(daemon) == before {
        assert!(Instant::now() < end, "every push looks at everything:\n{}", daemon.logged());
        push().code(0);
    }
}

/// How often it has said so.
fn rested(daemon: &Daemon) -> usize {
    daemon.logged().matches("what changed was looked at").count()
}

/// A daemon that has watched its tree since the last push looks at nothing else than what changed.
#[test]
fn what_happens_between_two_pushes_is_found_by_a_daemon_that_looks_at_no_more() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    tree(&src);
    // Of a file with several names somebody may write to one that is elsewhere.
    remove(&src.join("hard1"));
    mkdir(&dst);
    let daemon = Daemon::start(&scratch, "r", &[("www", &dst)]);
    daemon.pair(&scratch.state());
    let push = || scratch.push_to(&[daemon.dest("www")]).run();
    let (rested, comes_to_rest) = (|| rested(&daemon), || comes_to_rest(&daemon, push));
    let takes_all = ["hard link broken", "hard links joined", "emptied", "removed altogether"];
    let drifts: Vec<_> = drifts().into_iter().filter(|(name, _)| !takes_all.contains(name)).collect();
    let mut found_at_once = 0;
    for (name, drift) in &drifts {
        comes_to_rest();
        let before = rested();
        drift(&dst);
        let ran = push();
        assert!(ran.status.success(), "after drift {name:?}:\n{ran}");
        let (want, have) = (snapshot(&src), snapshot(&dst));
        assert_no_differences(&format!("after drift {name:?}"), &differences(&want, &have));
        found_at_once += usize::from(rested() > before);
    }
    // A directory in place of another, and what cannot be read, take a look at everything.
    assert!(found_at_once + 4 >= drifts.len(), "{found_at_once} of {}", drifts.len());

    // What is new on the master goes the same way.
    for i in 0..20 {
        comes_to_rest();
        let before = rested();
        write(src.join(format!("d000/new{}", i % 3)), noise(9_000_000 + i, 3000));
        write(dst.join("d000/f00001"), noise(i, 100));
        push().code(0);
        assert_exact(&src, &dst);
        assert_eq!(rested(), before + 1);
    }
    // Nobody believes in a watch who wants every byte read.
    let before = rested();
    scratch.push_to(&[daemon.dest("www")]).arg("--checksum").run().code(0);
    assert_eq!(rested(), before);
}

/// No event tells a directory's watch of another name that a file gets, nor one of a daemon that somebody else stages in its tree.
#[test]
fn what_no_watch_tells_of_is_in_no_pushs_way() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    many(&src, 200, 3);
    mkdir(&dst);
    let daemon = Daemon::start(&scratch, "r", &[("www", &dst)]);
    daemon.pair(&scratch.state());
    let push = || scratch.push_to(&[daemon.dest("www")]).run();
    let comes_to_rest = || comes_to_rest(&daemon, push);
    comes_to_rest();
    mkdir(dst.join(STAGING));
    remove(&dst.join(STAGING));
    push().code(0);
    assert_exact(&src, &dst);

    comes_to_rest();
    let snapshot_of = |name: &str| tool("cp", &["-al".as_ref(), dst.as_os_str(), scratch.path(name).as_os_str()]);
    snapshot_of("snapshot");
    write(src.join("d000/f00001"), b"new");
    push().code(0);
    assert_exact(&src, &dst);
    // As long as the files have names elsewhere, somebody may write to those.
    append(scratch.path("snapshot/d000/f00002"), b"written through the other name");
    push().code(0);
    assert_exact(&src, &dst);
}

/// What lies on a file system that was mounted since the last push is not this share's with `--one-file-system`.
#[test]
fn nothing_is_written_to_what_was_mounted_since_the_last_push() {
    let name = "nothing_is_written_to_what_was_mounted_since_the_last_push";
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    many(&src, 10, 1);
    write(src.join("d/old"), b"old");
    mkdir(&dst);
    let daemon = Daemon::start(&scratch, "r", &[("www", &dst)]);
    daemon.pair(&scratch.state());
    let push = || scratch.push_to(&[daemon.dest("www")]).arg("-x").run();
    (0..3).for_each(|_| drop(push().code(0)));
    for waits in [0, 3] {
        let in_daemons = daemon.pid().to_string();
        let mount = |words: &[&str]| {
            let words = [&["-t", &in_daemons, "-m"][..], words].concat();
            std::process::Command::new("nsenter").args(words).status().is_ok_and(|status| status.success())
        };
        let there = dst.join("d").display().to_string();
        need!(name, is_root() && has("nsenter") && mount(&["mount", "-t", "tmpfs", "none", &there]), "may not mount");
        std::thread::sleep(Duration::from_secs(waits));
        write(src.join(format!("d/new{waits}")), b"new");
        push();
        let listed =
            std::process::Command::new("nsenter").args(["-t", &in_daemons, "-m", "ls", &there]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&listed.stdout), "");
        assert!(mount(&["umount", &there]));
        push().code(0);
        assert_exact(&src, &dst);
    }
}

#[test]
fn a_share_whose_directory_is_gone_is_held_not_invented() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    many(&src, 20, 1);
    mkdir(&dst);
    let daemon = Daemon::start(&scratch, "r", &[("www", &dst)]);
    daemon.pair(&scratch.state());
    scratch.push_to(&[daemon.dest("www")]).ok();
    std::fs::rename(&dst, scratch.path("away")).unwrap();
    let away = snapshot(&scratch.path("away"));
    append(src.join("d000/f00001"), b"more");
    scratch.push_to(&[daemon.dest("www")]).code(1);
    assert_untouched(&away, &snapshot(&scratch.path("away")));
    std::fs::rename(scratch.path("away"), &dst).unwrap();
    scratch.push_to(&[daemon.dest("www")]).ok();
    assert_exact(&src, &dst);
}

#[test]
fn edits_right_after_a_push_are_never_missed() {
    // No rest between push and edit: the edit may fall into the clock tick of the push's own work.
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    for i in 0..5 {
        write(src.join(format!("f{i}")), noise(i, 3000));
    }
    scratch.push().ok();
    for round in 0..15 {
        edit_unseen(&src.join("f1"), 10 * round);
        edit_unseen(&dst.join("f2"), 10 * round + 1);
        scratch.push().ok();
        assert_exact(&src, &dst);
        edit_unseen(&dst.join("f1"), 10 * round + 2);
        edit_unseen(&src.join("f3"), 10 * round + 3);
        scratch.push().ok();
        assert_exact(&src, &dst);
    }
}

#[test]
fn the_same_edit_on_both_sides_is_no_difference() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    tree(&src);
    scratch.push().ok();
    for dir in [&src, &dst] {
        edit_unseen(&dir.join("d000/f00001"), 3);
        set_mode(dir.join("d000/f00002"), 0o600);
    }
    let before = snapshot(&dst);
    let summary = scratch.push().arg("--json").ok().summary();
    assert_eq!(summary.count("literal_bytes"), 0, "{summary:?}");
    assert_untouched(&before, &snapshot(&dst));
}

#[test]
fn checksum_finds_rot_that_no_metadata_tells() {
    let name = "checksum_finds_rot_that_no_metadata_tells";
    let scratch = Scratch::new();
    let Some(mut disk) = Disk::ext4(name, &scratch, "disk", 64) else { return };
    let (src, dst) = (scratch.src(), disk.at.join("dst"));
    let (good, bad) = (noise(1, 4096), noise(2, 4096));
    write(src.join("rots"), &good);
    many(&src, 50, 3);
    let push = || push_with(&scratch.state(), &src, &[&dst]);
    push().ok();
    disk.unmount();
    disk.rot(&good, &bad);
    disk.mount();
    assert_eq!(std::fs::read(dst.join("rots")).unwrap(), bad);
    push().arg("-c").ok();
    assert_exact(&src, &dst);
}

#[test]
fn checksum_reads_every_file_on_both_sides() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    many(&src, 60, 3);
    settle();
    scratch.push().ok();
    scratch.push().ok();
    let opens = watch::Opens::below(&[&src, &dst]);
    scratch.push().arg("-c").ok();
    let opened: std::collections::BTreeSet<_> = opens.take().into_iter().collect();
    for side in [&src, &dst] {
        let count = opened.iter().filter(|p| p.starts_with(side)).count();
        assert_eq!(count, 60, "of 60 files below {} so many were read", side.display());
    }
    assert_exact(&src, &dst);
}

#[test]
fn an_unchanged_file_once_proven_is_never_read_again() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    many(&src, 60, 3);
    settle();
    scratch.push().ok();
    settle();
    // One more push may prove what the first could not yet.
    scratch.push().ok();
    let opens = watch::Opens::below(&[&src, &dst]);
    for _ in 0..3 {
        scratch.push().ok().says("nothing");
    }
    let opened = opens.take();
    assert!(opened.is_empty(), "{} files were opened, first {:?}", opened.len(), opened.first());
    // And when one changes, only that one is read.
    append(src.join("d000/f00007"), b"more");
    opens.take();
    scratch.push().ok();
    let sources: std::collections::BTreeSet<_> = opens.take().into_iter().filter(|p| p.starts_with(&src)).collect();
    assert_eq!(sources.len(), 1, "{sources:?}");
    assert_exact(&src, &dst);
}

#[test]
fn drift_during_a_push_is_reported_or_healed_and_never_mixed_in() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    many(&src, 300, 3);
    scratch.push().ok();
    let there = dst.clone();
    let vandal = watch::Hammer::start(move |turn| {
        let file = there.join(format!("d{:03}/f{:05}", turn % 6, (turn % 6) * 50 + turn % 50));
        match turn % 4 {
            0 => drop(std::fs::write(&file, b"vandal")),
            1 => drop(std::fs::remove_file(&file)),
            2 => drop(std::fs::rename(&file, file.with_extension("vandal"))),
            _ => drop(std::fs::write(there.join(format!("extra{}", turn % 20)), b"vandal")),
        }
        std::thread::sleep(std::time::Duration::from_micros(300));
    });
    for round in 0..8 {
        for i in (0..300_usize).step_by(7) {
            append(src.join(format!("d{:03}/f{i:05}", i / 50)), format!("{round}").as_bytes());
        }
        scratch.push().run().one_of(&[0, 1]);
    }
    vandal.stop();
    scratch.push().ok();
    assert_exact(&src, &dst);
    assert_no_differences("left over", &leftovers(&snapshot(&dst)));
}
