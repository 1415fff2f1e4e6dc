//! "Several DESTs are served at once: the tree is read, chunked and hashed once, and a broken one delays or alters none
//! of the others."

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
use std::time::Duration;

use rustix::process::Signal;
use support::*;

#[test]
fn several_destinations_become_exact_at_once() {
    let scratch = Scratch::new();
    zoo(&scratch.src(), Zoo { far_times: false });
    let embedded: Vec<PathBuf> = (0..3).map(|i| scratch.path(format!("dst{i}"))).collect();
    let served = scratch.dir("served");
    let daemon = Daemon::start(&scratch, "r", &[("www", &served)]);
    daemon.pair(&scratch.state());
    // They start from different states: nothing, something foreign, an equal copy, an older version.
    write(embedded[1].join("size/4096"), b"foreign");
    write(embedded[1].join("extra"), b"foreign");
    copy_tree(&scratch.src(), &embedded[2]);
    let all: Vec<std::ffi::OsString> =
        embedded.iter().map(|p| p.clone().into_os_string()).chain([daemon.dest("www").into()]).collect();
    for round in 0..3 {
        scratch.push_to(&all).ok();
        for dst in embedded.iter().chain([&served]) {
            // An equal copy keeps its files, and so the zeros that cp wrote into them.
            assert_exact_but(&scratch.src(), dst, |_| ());
        }
        write(scratch.src().join("size/4096"), noise(round, 5000));
        write(embedded[usize::try_from(round).unwrap()].join("drift"), b"drift");
    }
}

#[test]
fn the_summary_tells_each_destination_by_name() {
    let scratch = Scratch::new();
    many(&scratch.src(), 30, 1);
    let (one, two) = (scratch.path("one"), scratch.path("two"));
    scratch.push_to(&[&one]).ok();
    let summaries = scratch.push_to(&[&one, &two]).arg("--json").ok().summaries();
    assert_eq!(summaries.len(), 2);
    assert_eq!((summaries[0].changes(), summaries[1].count("created") > 30), (0, true), "{summaries:?}");
    for (summary, dst) in summaries.iter().zip([one, two]) {
        assert!(summary.exact());
        assert!(summary.0.to_string().contains(dst.to_str().unwrap()), "{summary:?}");
    }
}

#[test]
fn a_broken_destination_alters_none_of_the_others() {
    let scratch = Scratch::new();
    many(&scratch.src(), 100, 1);
    write(scratch.path("a file"), b"file");
    let (good, bad, far) = (scratch.path("good"), scratch.path("a file"), scratch.path("far"));
    let unreachable = format!("127.0.0.1:{}/www", daemon::free_port());
    for order in [vec![&bad, &good, &far], vec![&good, &bad, &far]] {
        let mut all: Vec<std::ffi::OsString> = order.into_iter().map(|p| p.clone().into_os_string()).collect();
        all.insert(1, unreachable.clone().into());
        let ran = scratch.push_to(&all).timeout(60).code(1).names("a file").names("www");
        assert!(ran.took < Duration::from_secs(45));
        for dst in [&good, &far] {
            assert_exact(&scratch.src(), dst);
        }
        append(scratch.src().join("d000/f00001"), b"more");
    }
    assert_eq!(std::fs::read(&bad).unwrap(), b"file");
}

#[test]
fn a_full_destination_alters_none_of_the_others() {
    let scratch = Scratch::new();
    need!("a_full_destination_alters_none_of_the_others", scratch.mounts, "needs root and a mount namespace");
    many(&scratch.src(), 50, 1);
    write(scratch.src().join("large"), noise(1, 10 << 20));
    let (full, good) = (scratch.path("full"), scratch.path("good"));
    mount_tmpfs(&full, "size=2m");
    let ran = scratch.push_to(&[&full, &good]).arg("--json").code(1).names("large");
    let summaries = ran.summaries();
    assert_eq!(summaries.iter().map(Summary::exact).collect::<Vec<_>>(), [false, true], "{ran}");
    assert_exact(&scratch.src(), &good);
}

#[test]
fn a_silent_destination_delays_none_of_the_others() {
    let scratch = Scratch::new();
    many(&scratch.src(), 200, 1);
    // More than any buffer between master and replica holds.
    write(scratch.src().join("large"), noise(1, 100 << 20));
    let stuck = scratch.dir("stuck");
    let mut daemon = Daemon::start(&scratch, "r", &[("www", &stuck)]);
    daemon.pair(&scratch.state());
    let good = scratch.path("good");
    let mut push = scratch.push_to(&[daemon.dest("www"), good.display().to_string()]).timeout(120).start();
    // Stopped in the middle of its work, so that it holds a connection and says nothing more.
    wait_for("the daemon to be at work", 30, || {
        std::fs::read_dir(&stuck).unwrap().next().is_some() || !push.is_running()
    });
    daemon.signal(Signal::STOP);
    wait_for("the other destination to be complete", 25, || {
        good.exists() && differences(&snapshot(&scratch.src()), &snapshot(&good)).is_empty()
    });
    daemon.signal(Signal::CONT);
    push.wait().one_of(&[0, 1]);
    scratch.push_to(&[daemon.dest("www"), good.display().to_string()]).ok();
    assert_exact(&scratch.src(), &stuck);
}

#[test]
fn a_destination_that_dies_delays_none_of_the_others() {
    let scratch = Scratch::new();
    many(&scratch.src(), 200, 1);
    write(scratch.src().join("large"), noise(1, 60 << 20));
    let dies = scratch.dir("dies");
    let mut daemon = Daemon::start(&scratch, "r", &[("www", &dies)]);
    daemon.pair(&scratch.state());
    let good = scratch.path("good");
    let mut push = scratch.push_to(&[daemon.dest("www"), good.display().to_string()]).timeout(90).start();
    wait_for("the daemon to be at work", 30, || {
        std::fs::read_dir(&dies).unwrap().next().is_some() || !push.is_running()
    });
    daemon.kill();
    wait_for("the other destination to be complete", 25, || {
        good.exists() && differences(&snapshot(&scratch.src()), &snapshot(&good)).is_empty()
    });
    push.wait().code(1).names("www");
    daemon.up();
    scratch.push_to(&[daemon.dest("www"), good.display().to_string()]).ok();
    assert_exact(&scratch.src(), &dies);
}

#[test]
fn the_tree_is_read_once_for_all() {
    let scratch = Scratch::new();
    // More than the ring has room for.
    (0..3000).for_each(|i| write(scratch.src().join(format!("small/{i}")), noise(100 + i, 20 << 10)));
    (0..120).for_each(|i| write(scratch.src().join(format!("middle/{i}")), noise(10_000 + i, 500 << 10)));
    write(scratch.src().join("larger"), noise(2, 40 << 20));
    // Other processes hold the replicas, so what this one reads is the source.
    let mut daemons = Vec::new();
    for i in 0..4 {
        let dst = scratch.dir(&format!("dst{i}"));
        let daemon = Daemon::start(&scratch, &format!("r{i}"), &[("www", &dst)]);
        for master in ["one", "three"] {
            daemon.pair(&scratch.path(master));
        }
        daemons.push(daemon);
    }
    let push = |master: &str, daemons: &[Daemon], compress: &str| {
        let all: Vec<String> = daemons.iter().map(|d| d.dest("www")).collect();
        watch::bytes_read(push_with(&scratch.path(master), &scratch.src(), &all).args(&[compress]))
    };
    // Into nothing, and then what differs from what was there: each file got something in its middle.
    for (compress, least) in [("--compress=never", 120 << 20), ("--compress=zstd", 60 << 20)] {
        let one = push("one", &daemons[..1], compress);
        let three = push("three", &daemons[1..], compress);
        let name = "the_tree_is_read_once_for_all";
        need!(name, one.is_some() && three.is_some(), "no /proc/PID/io here");
        let (one, three) = (one.unwrap(), three.unwrap());
        assert!(one > least, "the reading was not counted: {one}");
        assert!(three < one + one / 6, "{compress}: one destination: {one} bytes read; three: {three}");
        for i in 0..4 {
            assert_exact(&scratch.src(), &scratch.path(format!("dst{i}")));
        }
        for i in 0..120 {
            let middle = scratch.src().join(format!("middle/{i}"));
            let old = std::fs::read(&middle).unwrap();
            write(&middle, [&old[..200 << 10], &noise(20_000 + i, 30 << 10), &old[200 << 10..]].concat());
        }
    }
}

/// What is compressed once for several is right for each, whatever they have, and as small as for one.
#[test]
fn what_is_compressed_for_several_destinations_arrives_at_each() {
    let scratch = Scratch::new();
    let text = |seed: u64, len: usize| -> Vec<u8> {
        noise(seed, len / 3).iter().flat_map(|b| format!("{b:x} ").into_bytes()).collect()
    };
    let fill = |version: u64| {
        for i in 0..600 {
            write(scratch.src().join(format!("small/{}/{i}", i % 20)), text(i, 2000 + 37 * i as usize));
        }
        for i in 0..12 {
            let old = text(1000 + i, 700 << 10);
            let new = text(2000 + 100 * version + i, 5000);
            write(scratch.src().join(format!("large/{i}")), [&old[..100_000], &new, &old[100_000..]].concat());
        }
        (0..3).for_each(|i| write(scratch.src().join(format!("noise/{version}/{i}")), noise(version + i, 400 << 10)));
    };
    fill(0);
    let start = |i: usize| {
        let dst = scratch.dir(&format!("dst{i}"));
        let daemon = Daemon::start(&scratch, &format!("r{i}"), &[("www", &dst)]);
        for master in ["one", "five"] {
            daemon.pair(&scratch.path(master));
        }
        daemon
    };
    let daemons: Vec<Daemon> = (0..6).map(start).collect();
    let push = |master: &str, daemons: &[Daemon]| -> Vec<u64> {
        let all: Vec<String> = daemons.iter().map(|d| d.dest("www")).collect();
        let mut push = push_with(&scratch.path(master), &scratch.src(), &all);
        let summaries = push.args(&["--compress=zstd", "--json"]).ok().summaries();
        (0..6).for_each(|i| {
            if master == "five" || i == 0 {
                assert_exact(&scratch.src(), &scratch.path(format!("dst{i}")));
            }
        });
        summaries.iter().map(|summary| summary.count("wire_sent")).collect()
    };
    // Two of the five have something: one file in seven, or old versions of the large ones.
    for i in 0..600 {
        if i % 7 == 0 {
            write(scratch.path(format!("dst4/small/{}/{i}", i % 20)), text(i, 2000 + 37 * i as usize));
        }
    }
    copy_tree(&scratch.src().join("large"), &scratch.path("dst5").join("large"));
    write(scratch.path("dst5/large/3"), text(7, 700 << 10));
    for version in 1..4 {
        let one = push("one", &daemons[..1])[0];
        let five = push("five", &daemons[1..]);
        for sent in &five[..3] {
            assert!(*sent < one + one / 10, "version {version}: {one} bytes to one, to five {five:?}");
        }
        fill(version);
    }
}

#[test]
fn the_bandwidth_limit_is_per_destination() {
    let scratch = Scratch::new();
    write(scratch.src().join("f"), noise(1, 4 << 20));
    let (one, two) = (scratch.path("one"), scratch.path("two"));
    let took = scratch.push_to(&[&one, &two]).args(&["--bwlimit=2m", "--compress=never"]).ok().took;
    assert!(took > Duration::from_millis(1300), "{took:?}: the limit does not hold");
    assert!(took < Duration::from_millis(3700), "{took:?}: the limit is shared");
}
