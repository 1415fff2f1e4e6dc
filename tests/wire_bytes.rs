//! What crosses the wire: nothing that the replica has, nothing twice, no more than the rate allows.

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

use std::time::Duration;

use support::*;

fn sent(scratch: &Scratch, args: &[&str]) -> (u64, Summary) {
    let summary = scratch.push().arg("--json").args(args).ok().summary();
    assert_exact(&scratch.src(), &scratch.dst());
    (summary.count("wire_sent") + summary.count("wire_received"), summary)
}

#[test]
fn a_push_that_has_nothing_to_do_costs_next_to_nothing() {
    let scratch = Scratch::new();
    many(&scratch.src(), 5000, 1);
    scratch.push().ok();
    let (bytes, _) = sent(&scratch, &[]);
    // A handshake and a few answers; rsync needs some 20 bytes a file for the list alone.
    assert!(bytes < 8000, "{bytes} bytes for nothing");
}

#[test]
fn one_small_change_costs_its_size_and_little_else() {
    let scratch = Scratch::new();
    many(&scratch.src(), 5000, 1);
    scratch.push().ok();
    append(scratch.src().join("d003/f00170"), b"more");
    let (bytes, _) = sent(&scratch, &[]);
    assert!(bytes < 9000, "{bytes} bytes for one small file");
}

/// Other times, in no order that compresses.
fn touch_all(top: &std::path::Path) {
    let mut random = 1_u64;
    for (path, _) in snapshot(top) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (seconds, nanoseconds) = ((random >> 44) as i64, (random >> 20) as i64 % 1_000_000_000);
        set_mtime(top.join(os(&path)), 1_700_000_000 + seconds, nanoseconds);
    }
}

#[test]
fn a_touched_tree_costs_its_new_times() {
    let scratch = Scratch::new();
    many(&scratch.src(), 5000, 1);
    write(scratch.src().join("large"), noise(1, 4 << 20));
    scratch.push().ok();
    touch_all(&scratch.src());
    let (bytes, summary) = sent(&scratch, &[]);
    assert_eq!(summary.count("literal_bytes"), 0, "{summary:?}");
    let touched = summary.count("metadata_only");
    assert!(touched > 5000, "{summary:?}");
    // Seven of them are the time itself; rsync needs some 150.
    assert!(bytes < 8000 + 13 * touched, "{bytes} bytes for {touched} entries");
}

/// What is told against the replica's version has to fit everything that is there, at once and after a drift.
#[test]
fn everything_can_be_touched_and_moved() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    zoo(&src.join("zoo"), Zoo { far_times: false });
    many(&src.join("d"), 300, 1);
    write(src.join("group/1"), "group");
    hard_link(src.join("group/1"), src.join("group/2"));
    scratch.push().ok();
    std::fs::rename(src.join("zoo"), src.join("d/zoo")).unwrap();
    std::fs::rename(src.join("group"), src.join("moved")).unwrap();
    touch_all(&src.join("d/d001"));
    sent(&scratch, &[]);
    // What it is told against is not there any more.
    for drift in ["touched", "touched as another", "moved"] {
        let (old, new) = (src.join("moved"), src.join("moved-again"));
        match drift {
            "touched" => std::fs::remove_file(dst.join("d/d001/f00050")).unwrap(),
            "touched as another" => write(dst.join("d/d001/f00050"), "other"),
            _ => write(dst.join("moved/1"), "other"),
        }
        touch_all(&src.join("d/d001"));
        std::fs::rename(&old, &new).unwrap();
        sent(&scratch, &[]);
        std::fs::rename(&new, &old).unwrap();
        scratch.push().arg("--no-delete").ok();
        sent(&scratch, &[]);
    }
}

#[test]
fn a_directory_that_moved_or_went_costs_its_name() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src.join("a"), 4000, 1);
    many(&src.join("b"), 300, 2);
    scratch.push().ok();
    std::fs::rename(src.join("a"), src.join("b/elsewhere")).unwrap();
    let (bytes, summary) = sent(&scratch, &[]);
    assert_eq!(summary.count("literal_bytes"), 0, "{summary:?}");
    assert!(bytes < 8000, "{bytes} bytes for 4000 files that moved");
    // With a change in it, all but that.
    std::fs::rename(src.join("b/elsewhere"), src.join("c")).unwrap();
    append(src.join("c/d003/f00170"), b"more");
    let (bytes, _) = sent(&scratch, &[]);
    assert!(bytes < 15_000, "{bytes} bytes for 4000 files that moved, and one that changed");
    std::fs::remove_dir_all(src.join("c")).unwrap();
    let (bytes, _) = sent(&scratch, &[]);
    assert!(bytes < 8000, "{bytes} bytes for 4000 files that went");
}

#[test]
fn what_is_told_of_small_files_is_compressed_with_them() {
    let overhead = |option: &str| {
        let scratch = Scratch::new();
        for i in 0..3000 {
            write(scratch.src().join(format!("a directory with a name/{:02}/file {i:04}", i / 100)), format!("{i}"));
        }
        sent(&scratch, &[option]).0 / 3000
    };
    // A digest has 32, and nothing makes it shorter.
    let (plain, packed) = (overhead("--compress=never"), overhead("--compress=zstd"));
    assert!(plain > 90 && packed < 55, "{plain} and {packed} bytes a file");
}

#[test]
fn what_the_replica_has_under_another_name_is_not_sent() {
    let scratch = Scratch::new();
    let src = scratch.src();
    for i in 0..40 {
        write(src.join(format!("old/f{i}")), noise(i, 50_000));
    }
    scratch.push().ok();
    std::fs::rename(src.join("old"), src.join("new")).unwrap();
    let (bytes, summary) = sent(&scratch, &[]);
    assert_eq!(summary.count("literal_bytes"), 0, "{summary:?}");
    assert!(bytes < 12_000, "{bytes} bytes for a renamed directory");
    // A copy, and a copy whose original is gone by now.
    std::fs::copy(src.join("new/f1"), src.join("copy")).unwrap();
    std::fs::copy(src.join("new/f2"), src.join("survivor")).unwrap();
    remove(&src.join("new/f2"));
    let (_, summary) = sent(&scratch, &[]);
    assert_eq!(summary.count("literal_bytes"), 0, "{summary:?}");
    assert!(summary.count("reused_bytes") >= 50_000, "{summary:?}");
}

#[test]
fn equal_content_is_sent_once() {
    let scratch = Scratch::new();
    for i in 0..10 {
        write(scratch.src().join(format!("same{i}")), noise(1, 400_000));
    }
    let (bytes, summary) = sent(&scratch, &["--compress=never"]);
    assert_eq!(summary.count("literal_bytes"), 400_000, "{summary:?}");
    assert!(bytes < 500_000, "{bytes} bytes for ten equal files of 400,000");
}

/// A million in small: what a file adds is its name and its times.
#[test]
fn many_equal_files_cost_their_names() {
    let scratch = Scratch::new();
    let content = noise(1, 3000);
    for i in 0..20_000 {
        let dir = scratch.src().join(format!("d{:02}", i / 500));
        if i % 500 == 0 {
            mkdir(&dir);
        }
        std::fs::write(dir.join(format!("{i}")), &content).unwrap();
    }
    let (bytes, summary) = sent(&scratch, &["--compress=zstd"]);
    assert_eq!(summary.count("literal_bytes"), 3000, "{summary:?}");
    assert!(bytes < 20_000 * 10, "{bytes} bytes for 20,000 equal files");
}

#[test]
fn a_changed_large_file_reuses_what_did_not_change() {
    let scratch = Scratch::new();
    let content = noise(1, 16 << 20);
    write(scratch.src().join("large"), &content);
    scratch.push().ok();
    // An insertion at the front moves every byte; an edit in the middle; an addition at the end.
    let mut edited = b"inserted".to_vec();
    edited.extend_from_slice(&content);
    edited[9_000_000..9_000_010].copy_from_slice(b"0123456789");
    edited.extend_from_slice(b"appended");
    write(scratch.src().join("large"), &edited);
    let (bytes, summary) = sent(&scratch, &["--compress=never"]);
    // The list of chunks, 20 bytes for each of 32 KiB, and what the pieces around three edits take.
    assert!(bytes < 20_000, "{bytes} bytes for three small edits of 16 MiB: {summary:?}");
    assert!(summary.count("reused_bytes") > 14 << 20, "{summary:?}");
}

#[test]
fn zeros_of_a_sparse_file_are_not_sent() {
    let scratch = Scratch::new();
    std::fs::File::create({
        mkdir(scratch.src());
        scratch.src().join("sparse")
    })
    .unwrap()
    .set_len(300 << 20)
    .unwrap();
    let (bytes, _) = sent(&scratch, &["--compress=never"]);
    assert!(bytes < 2 << 20, "{bytes} bytes for 300 MiB of hole");
}

#[test]
fn compression_is_used_when_asked_for_and_not_when_forbidden() {
    let scratch = Scratch::new();
    let text: String = (0..300_000).map(|i| format!("line {} of a text\n", i * 7)).collect();
    let small: Vec<String> = (0..200).map(|i| text[i * 100..i * 100 + 4000].to_string()).collect();
    let build = |scratch: &Scratch| {
        write(scratch.src().join("text"), &text);
        for (i, part) in small.iter().enumerate() {
            write(scratch.src().join(format!("small/{i}")), format!("{i} {part}"));
        }
    };
    build(&scratch);
    let total = snapshot(&scratch.src()).values().filter(|n| n.kind == Kind::File).map(|n| n.size).sum::<u64>();
    let (plain, _) = sent(&scratch, &["--compress=never"]);
    assert!(plain > total, "{plain} of {total}: sent less than there is without compression");
    for option in ["--compress=zstd", "--compress=zstd:1", "--compress=zstd:12"] {
        let scratch = Scratch::new();
        build(&scratch);
        let (bytes, summary) = sent(&scratch, &[option]);
        assert!(bytes * 5 < total, "{option}: {bytes} of {total}");
        assert!(
            summary.count("literal_bytes") > total / 2,
            "literal bytes are content, before compression: {summary:?}"
        );
    }
}

#[test]
fn the_bandwidth_limit_holds() {
    let scratch = Scratch::new();
    write(scratch.src().join("large"), noise(1, 3 << 20));
    many(&scratch.src(), 500, 1);
    let total = snapshot(&scratch.src()).values().filter(|n| n.kind == Kind::File).map(|n| n.size).sum::<u64>();
    let rate = 1_572_864.0_f64;
    let ran = scratch.push().args(&["--bwlimit=1536k", "--compress=never"]).ok();
    let (took, least) = (ran.took, Duration::from_secs_f64(0.7 * total as f64 / rate));
    assert!(took > least, "{total} bytes in {took:?} at {rate} a second");
    assert!(took < least * 4, "{total} bytes in {took:?} at {rate} a second: the limit starves");
    assert_exact(&scratch.src(), &scratch.dst());
}

/// Nobody asks for it: a round trip less. With a limit to the rate it waits until it is asked for, as the old file may save some.
#[test]
fn a_small_change_goes_with_its_version() {
    let scratch = Scratch::new();
    many(&scratch.src(), 50, 1);
    scratch.push().ok();
    for (seed, args, is_asked_for) in [(7, &[][..], false), (8, &["--bwlimit=100m"][..], true)] {
        write(scratch.src().join("small"), noise(seed, 3000));
        let summary = scratch.push().arg("--json").args(args).ok().summary();
        assert_exact(&scratch.src(), &scratch.dst());
        // Counted from the first time that a replica asks.
        let sending = summary.0["stats"]["send_seconds"].as_f64().unwrap();
        assert_eq!((sending > 0.0, summary.count("literal_bytes") > 0), (is_asked_for, true), "{summary:?}");
    }
}

#[test]
fn many_tiny_files_need_no_round_trip_each() {
    // Never a stream, round trip or transaction per file: 12,000 tiny files must not cost a visible time each.
    let scratch = Scratch::new();
    for i in 0..12_000 {
        let dir = scratch.src().join(format!("d{:02}", i / 200));
        if i % 200 == 0 {
            mkdir(&dir);
        }
        std::fs::write(dir.join(format!("{i}")), format!("{i}")).unwrap();
    }
    mkdir(scratch.dst());
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.state());
    let ran = scratch.push_to(&[daemon.dest("www")]).ok();
    assert_exact(&scratch.src(), &scratch.dst());
    // Ten times slower than an optimised build on a bad day; a flush per file would be minutes.
    assert!(ran.took < Duration::from_secs(20), "{:?}", ran.took);
}
