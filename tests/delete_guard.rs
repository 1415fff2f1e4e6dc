//! `--no-delete`, `--max-delete` and `--dry-run`: what a push may not do.

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

use std::collections::BTreeSet;
use std::path::Path;

use support::*;

/// SRC and DST equal, ten files and a directory of five.
fn pushed() -> Scratch {
    let scratch = Scratch::new();
    for i in 0..10 {
        write(scratch.src().join(format!("f{i}")), noise(i, 1000));
    }
    for i in 0..5 {
        write(scratch.src().join(format!("dir/g{i}")), noise(100 + i, 1000));
    }
    scratch.push().ok();
    scratch
}

#[test]
fn no_delete_keeps_extras_and_updates_the_rest() {
    let scratch = pushed();
    let (src, dst) = (scratch.src(), scratch.dst());
    write(dst.join("extra/file"), b"extra");
    let extra = snapshot(&dst.join("extra"));
    remove(&src.join("f1"));
    remove(&src.join("dir"));
    write(src.join("f2"), b"changed");
    scratch.push().arg("--no-delete").ok();
    assert!(dst.join("f1").exists() && dst.join("dir/g3").exists());
    assert_untouched(&extra, &snapshot(&dst.join("extra")));
    assert_eq!(std::fs::read(dst.join("f2")).unwrap(), b"changed");
    // Without the option they go.
    scratch.push().ok();
    assert_exact(&src, &dst);
}

/// As with rsync, nothing but an empty directory makes way where nothing is to be deleted.
#[test]
fn with_no_delete_a_directory_does_not_make_way_for_what_is_none() {
    let scratch = pushed();
    let (src, dst) = (scratch.src(), scratch.dst());
    let becomes: [(&str, fn(&Path)); 4] = [
        ("report", |at| write(at, b"a file now")),
        ("link", |at| link_to("f1", at)),
        ("pipe", |at| fifo(at)),
        ("none", |at| write(at, b"")),
    ];
    for (name, make) in becomes {
        write(dst.join(name).join("sub/only-here.txt"), name);
        make(&src.join(name));
    }
    hard_link(src.join("report"), src.join("report again"));
    mkdir(dst.join("empty"));
    write(src.join("empty"), b"an empty directory loses nothing");
    // A directory that was pushed, and got another name.
    std::fs::rename(src.join("dir"), src.join("elsewhere")).unwrap();
    write(src.join("dir"), b"a file now");
    write(src.join("f2"), b"changed");
    // What the first finds as it is, the second finds as the first left it.
    for _ in 0..2 {
        scratch.push().args(&["-n", "--no-delete"]).code(1).names("report");
        let ran = scratch.push().args(&["--no-delete"]).code(1).says("in the way");
        for (name, _) in becomes {
            assert_eq!(std::fs::read_to_string(dst.join(name).join("sub/only-here.txt")).unwrap(), name, "{ran}");
            assert!(ran.err().contains(&format!("/{name}: ")), "{ran}");
        }
        assert!(ran.err().contains("/report again: "), "{ran}");
        assert_eq!(std::fs::read(dst.join("dir/g3")).unwrap(), noise(103, 1000));
        assert_eq!(std::fs::read(dst.join("elsewhere/g3")).unwrap(), noise(103, 1000));
        assert_eq!(std::fs::read(dst.join("f2")).unwrap(), b"changed");
        assert!(dst.join("empty").is_file());
    }
    scratch.push().ok();
    assert_exact(&src, &dst);
}

#[test]
fn what_is_put_into_a_kept_directory_is_kept_with_it() {
    let scratch = pushed();
    let (src, dst) = (scratch.src(), scratch.dst());
    write(dst.join("uploads/one"), b"one");
    scratch.push().arg("--no-delete").ok();
    // The index knows the directory as an extra, and this not at all.
    write(dst.join("uploads/two"), b"two");
    mkdir(dst.join("uploads/more"));
    write(src.join("f2"), b"changed");
    scratch.push().arg("--no-delete").ok();
    write(dst.join("uploads/more/three"), b"three");
    scratch.push().arg("--no-delete").ok();
    assert_eq!(std::fs::read(dst.join("uploads/more/three")).unwrap(), b"three");
    assert_eq!(std::fs::read(dst.join("f2")).unwrap(), b"changed");
    // Once the source has the directory too, its own files are pushed beside them.
    write(src.join("uploads/four"), b"four");
    scratch.push().arg("--no-delete").ok();
    assert!(dst.join("uploads/two").exists() && dst.join("uploads/four").exists());
    scratch.push().ok();
    assert_exact(&src, &dst);
}

#[test]
fn a_plan_over_max_delete_is_refused_whole_and_nothing_is_changed() {
    let scratch = pushed();
    let (src, dst) = (scratch.src(), scratch.dst());
    for i in 0..4 {
        remove(&src.join(format!("f{i}")));
    }
    write(src.join("f5"), b"changed too");
    write(src.join("new"), b"new");
    let before = snapshot(&dst);
    scratch.push().arg("--max-delete=3").code(1).says("delet");
    assert_untouched(&before, &snapshot(&dst));
    scratch.push().arg("--max-delete=0").code(1);
    assert_untouched(&before, &snapshot(&dst));
    scratch.push().arg("--max-delete=4").ok();
    assert_exact(&src, &dst);
}

/// The replica was changed, so that what the master's index says leads nowhere and the trees are compared: no content,
/// not even one large enough to be kept for a resume, may be there when the plan is refused in the end.
#[test]
fn a_plan_that_is_refused_after_a_comparison_leaves_nothing_behind() {
    let scratch = pushed();
    let (src, dst) = (scratch.src(), scratch.dst());
    for i in 0..4 {
        remove(&src.join(format!("f{i}")));
    }
    write(src.join("new"), noise(7, (64 << 20) + 1));
    write(dst.join("f5"), b"drift");
    let before = snapshot(&dst);
    scratch.push().arg("--max-delete=3").code(1).says("delet");
    assert_untouched(&before, &snapshot(&dst));
    assert!(!dst.join(STAGING).exists());
    scratch.push().arg("--max-delete=4").ok();
    assert_exact(&src, &dst);
}

#[test]
fn a_directory_counts_with_all_that_is_in_it() {
    let scratch = pushed();
    remove(&scratch.src().join("dir"));
    let before = snapshot(&scratch.dst());
    scratch.push().arg("--max-delete=5").code(1);
    assert_untouched(&before, &snapshot(&scratch.dst()));
    scratch.push().arg("--max-delete=6").ok();
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn moves_and_type_changes_count_as_no_deletion() {
    let scratch = pushed();
    let src = scratch.src();
    std::fs::rename(src.join("f0"), src.join("moved")).unwrap();
    std::fs::rename(src.join("dir"), src.join("renamed")).unwrap();
    remove(&src.join("f1"));
    link_to("x", src.join("f1"));
    remove(&src.join("f2"));
    write(src.join("f2/in a directory"), b"x");
    scratch.push().arg("--max-delete=0").ok();
    assert_exact(&src, &scratch.dst());
}

#[test]
fn extras_at_dest_count_too() {
    let scratch = pushed();
    for i in 0..3 {
        write(scratch.dst().join(format!("extra{i}")), b"x");
    }
    let before = snapshot(&scratch.dst());
    scratch.push().arg("--max-delete=2").code(1);
    assert_untouched(&before, &snapshot(&scratch.dst()));
    scratch.push().arg("--max-delete=3").ok();
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn an_emptied_source_does_not_empty_the_replica_under_a_guard() {
    let scratch = pushed();
    remove(&scratch.src());
    scratch.src();
    let before = snapshot(&scratch.dst());
    scratch.push().arg("--max-delete=10").code(1);
    assert_untouched(&before, &snapshot(&scratch.dst()));
}

#[test]
fn the_guard_of_one_destination_does_not_hold_another() {
    let scratch = pushed();
    let other = scratch.path("other");
    write(other.join("one extra"), b"x");
    for i in 0..4 {
        remove(&scratch.src().join(format!("f{i}")));
    }
    let before = snapshot(&scratch.dst());
    scratch.push_to(&[scratch.dst(), other.clone()]).arg("--max-delete=2").code(1).names("dst");
    assert_untouched(&before, &snapshot(&scratch.dst()));
    assert_exact(&scratch.src(), &other);
}

#[test]
fn the_guard_holds_at_a_daemon() {
    let scratch = pushed();
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.path("m"));
    for i in 0..4 {
        remove(&scratch.src().join(format!("f{i}")));
    }
    let before = snapshot(&scratch.dst());
    let push = |option: &str| {
        let mut run = push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]);
        run.arg(option).run()
    };
    push("--max-delete=3").code(1);
    assert_untouched(&before, &snapshot(&scratch.dst()));
    push("--max-delete=4").code(0);
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn max_delete_counts_what_delete_excluded_removes() {
    let scratch = pushed();
    for i in 0..3 {
        write(scratch.dst().join(format!("x{i}.tmp")), b"x");
    }
    let before = snapshot(&scratch.dst());
    let options = ["--exclude", "*.tmp", "--delete-excluded"];
    scratch.push().args(&options).arg("--max-delete=2").code(1);
    assert_untouched(&before, &snapshot(&scratch.dst()));
    scratch.push().args(&options).arg("--max-delete=3").ok();
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn a_dry_run_says_what_would_change_and_changes_nothing_at_all() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    zoo(&src, Zoo { far_times: false });
    scratch.push().ok();
    write(src.join("new/file"), b"new");
    write(src.join("empty"), b"no longer");
    set_mode(src.join("size/4096"), 0o600);
    remove(&src.join("hard/far"));
    write(dst.join("extra"), b"extra");
    write(dst.join("size/1"), b"drifted");
    let (before_src, before, state) = (snapshot(&src), snapshot(&dst), snapshot(&scratch.state()));
    let dry = scratch.push().args(&["-n", "-i"]).ok();
    assert_untouched(&before, &snapshot(&dst));
    assert_untouched(&before_src, &snapshot(&src));
    // The index knows nothing of it: content of the databases is as it was (a log beside them may come and go).
    let databases = |tree: &Tree| -> Vec<_> {
        tree.iter().filter(|(p, _)| p.ends_with(b".db")).map(|(p, n)| (shown(p), n.content.clone())).collect()
    };
    assert_eq!(databases(&state), databases(&snapshot(&scratch.state())), "a dry run wrote to an index");
    let wet = scratch.push().arg("-i").ok();
    assert_exact(&src, &dst);
    let sorted = |ran: &Ran| ran.items().into_iter().collect::<BTreeSet<_>>();
    assert_eq!(sorted(&dry), sorted(&wet), "what was said is not what was done");
    assert!(dry.items().len() >= 6, "{dry}");
}

#[test]
fn a_dry_run_into_nothing_creates_nothing() {
    let scratch = Scratch::new();
    many(&scratch.src(), 60, 1);
    let dry = scratch.push().args(&["-n", "-i"]).ok();
    assert!(dry.items().len() >= 62, "{dry}");
    assert!(!scratch.dst().exists(), "a dry run made the destination");
    let log = synccli(&scratch.state()).args(&["log", "--json"]).run();
    assert!(log.out().lines().count() == 0, "a dry run made a version\n{log}");
    scratch.push().ok();
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn a_dry_run_changes_nothing_at_a_daemon() {
    let scratch = pushed();
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.path("m"));
    write(scratch.src().join("f1"), b"changed");
    remove(&scratch.src().join("f2"));
    let before = snapshot(&scratch.dst());
    let dry = push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).args(&["-n", "-i"]).ok();
    assert_eq!(dry.items().iter().filter(|(_, n)| n == "f1" || n == "f2").count(), 2, "{dry}");
    assert_untouched(&before, &snapshot(&scratch.dst()));
    push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).ok();
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn a_dry_run_is_held_by_the_guard_as_the_push_would_be() {
    let scratch = pushed();
    for i in 0..4 {
        remove(&scratch.src().join(format!("f{i}")));
    }
    let before = snapshot(&scratch.dst());
    scratch.push().args(&["-n", "--max-delete=3"]).code(1);
    scratch.push().args(&["-n", "--max-delete=4"]).ok();
    assert_untouched(&before, &snapshot(&scratch.dst()));
}
