//! What a push says: itemized changes as rsync prints them, counts, JSON, escaped names, versions in the log.

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

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;

use support::*;

/// No byte reaches the screen that a terminal might obey, and all of it is UTF-8.
#[track_caller]
fn assert_inert(what: &str, bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).unwrap_or_else(|e| panic!("{what} is not UTF-8: {e}: {}", shown(bytes)));
    let raw = text.chars().find(|c| c.is_control() && *c != '\n');
    assert!(raw.is_none(), "{what} has a raw control character {raw:?}:\n{text}");
    assert!(!text.contains('\u{202e}'), "{what} has a raw right-to-left override");
}

#[test]
fn names_are_printed_escaped_one_entry_a_line() {
    let scratch = Scratch::new();
    for (i, name) in awkward_names().iter().enumerate() {
        write(scratch.src().join(os(name)), format!("{i}"));
    }
    link_to(os(b"target\nwith \x1b[31m escapes \xff"), scratch.src().join("link"));
    let ran = scratch.push().args(&["-i", "--stats", "-v"]).ok();
    assert_inert("standard output", &ran.raw_out);
    assert_inert("standard error", &ran.raw_err);
    let items = scratch.push_to(&[scratch.path("dst2")]).arg("-i").ok();
    // Every file, the link, and the top directory.
    assert_eq!(items.out().lines().count(), awkward_names().len() + 2, "{items}");
    assert_eq!(items.items().iter().map(|(_, n)| n).collect::<BTreeSet<_>>().len(), awkward_names().len() + 2);
    let json = scratch.push_to(&[scratch.path("dst3")]).args(&["-i", "--json"]).ok();
    assert_inert("JSON", &json.raw_out);
    assert_eq!(json.json_of("item").len(), awkward_names().len() + 2);
}

#[test]
fn awkward_names_in_errors_are_escaped_too() {
    let scratch = Scratch::new();
    let evil = scratch.path(os(b"evil\x1b[2J\n\xff"));
    write(scratch.src().join("f"), b"f");
    let ran = push_with(&scratch.state(), &evil, &[scratch.dst()]).run().one_of(&[1, 2]);
    assert_inert("standard error", &ran.raw_err);
    write(&evil, b"a file");
    let ran = push_with(&scratch.state(), &scratch.src(), &[&evil]).code(1);
    assert_inert("standard error", &ran.raw_err);
    let ran = push_with(&scratch.state(), &scratch.src(), &[os(b"no\x1b[2Jdest\n\xff")]).code(2);
    assert_inert("standard error", &ran.raw_err);
    let mut run = synccli(&scratch.state());
    let ran = run.arg(os(b"verb\x1b[2J\xff")).code(2);
    assert_inert("standard error", &ran.raw_err);
    mkdir(scratch.src().join(os(b"sub\x1b[2J")).join(STAGING));
    let ran = scratch.push().code(1);
    assert_inert("standard error", &ran.raw_err);
}

/// rsync's own words for the same work: name -> codes, with and without `-c`. Where ours knows that content is equal
/// without reading it, rsync needs `-c` to know; either way of saying it is right.
fn rsync_codes(src: &Path, dst: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut codes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut from = src.as_os_str().to_owned();
    from.push("/");
    let mut to = dst.as_os_str().to_owned();
    to.push("/");
    for flags in ["-aHAXSin", "-aHAXSicn"] {
        let words = [flags, "--numeric-ids", "--delete"].map(OsStr::new);
        let args: Vec<&OsStr> = words.into_iter().chain([from.as_os_str(), to.as_os_str()]).collect();
        let out = tool("rsync", &args);
        for (code, name) in String::from_utf8(out).unwrap().lines().filter_map(item) {
            let name = name.trim_start_matches("./").to_string();
            codes.entry(if name.is_empty() { ".".into() } else { name }).or_default().insert(code);
        }
    }
    codes
}

#[test]
fn itemized_codes_are_those_of_rsync() {
    let name = "itemized_codes_are_those_of_rsync";
    need!(name, has("rsync"), "needs rsync to compare with");
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    let plain =
        ["same", "size", "content", "mode", "time", "attr", "acl", "gone", "owner", "group", "several", "retyped"];
    for file in plain {
        write(src.join(file), format!("content of {file}"));
        set_mtime(src.join(file), 1_500_000_000, 0);
    }
    for dir in ["dir", "dir time", "dir mode", "gone dir/below"] {
        write(src.join(dir).join("file"), b"x");
    }
    link_to("one", src.join("link"));
    link_to("one", src.join("link time"));
    fifo(src.join("fifo"));
    fifo(src.join("fifo mode"));
    for path in ["link", "link time", "fifo", "fifo mode", "dir", "dir time", "dir mode"] {
        set_mtime(src.join(path), 1_500_000_000, 0);
    }
    scratch.push().ok();
    assert_exact(&src, &dst);
    append(src.join("size"), b"more");
    write(src.join("content"), "CONTENT of content");
    set_mode(src.join("mode"), 0o600);
    set_mtime(src.join("time"), 1_600_000_000, 5);
    set_xattr(src.join("attr"), "user.new", b"x");
    set_xattr(src.join("acl"), ACL_ACCESS, &acl(1234, 6, 4, 0));
    remove(&src.join("gone"));
    remove(&src.join("gone dir"));
    write(src.join("several"), b"other");
    set_mode(src.join("several"), 0o640);
    set_xattr(src.join("several"), "user.new", b"x");
    if is_root() {
        set_owner(src.join("owner"), 7, 0);
        set_owner(src.join("group"), 0, 7);
    }
    remove(&src.join("link"));
    link_to("another", src.join("link"));
    set_mtime(src.join("link time"), 1_600_000_000, 5);
    set_mode(src.join("fifo mode"), 0o600);
    set_mtime(src.join("dir time"), 1_600_000_000, 5);
    set_mode(src.join("dir mode"), 0o700);
    remove(&src.join("retyped"));
    link_to("x", src.join("retyped"));
    write(src.join("new dir/new file"), b"new");
    link_to("t", src.join("new dir/new link"));
    fifo(src.join("new dir/new fifo"));
    set_mtime(&src, 1_600_000_000, 0);
    let expected = rsync_codes(&src, &dst);
    assert!(expected.len() > 20, "{expected:?}");
    let ours = scratch.push().arg("-i").ok();
    assert_exact(&src, &dst);
    let items: BTreeMap<String, String> = ours.items().into_iter().map(|(code, name)| (name, code)).collect();
    let mut wrong = Vec::new();
    for (name, codes) in &expected {
        match items.get(name) {
            Some(code) if codes.contains(code) => {}
            // rsync without -c believes size and mtime, with -c it reports the checksum: both differ from a plain `>f`.
            other => wrong.push(format!("{name}: rsync says {codes:?}, we say {other:?}")),
        }
    }
    wrong
        .extend(items.iter().filter(|(n, _)| !expected.contains_key(*n)).map(|(n, c)| format!("{n}: only we say {c}")));
    assert!(wrong.is_empty(), "{}\n{ours}", wrong.join("\n"));
}

#[test]
fn itemize_prints_a_line_for_each_change_and_none_for_the_unchanged() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 120, 1);
    assert!(scratch.push().arg("-i").ok().items().len() >= 123);
    assert_eq!(scratch.push().arg("-i").ok().items().len(), 0);
    append(src.join("d000/f00001"), b"more");
    remove(&src.join("d001/f00060"));
    write(src.join("new\nname"), b"new");
    let time = mtime_of(src.join("d000"));
    set_mtime(src.join("d000"), time.0, time.1);
    let items = scratch.push().arg("-i").ok().items();
    let code = |name: &str| items.iter().find(|(_, n)| n.contains(name)).map(|(c, _)| c.clone()).unwrap_or_default();
    assert!(code("d000/f00001").starts_with(">f"), "{items:?}");
    assert_eq!(code("d001/f00060"), "*deleting", "{items:?}");
    assert_eq!(code("name"), ">f+++++++++", "{items:?}");
    assert!(items.len() <= 6, "the unchanged are listed: {items:?}");
}

#[test]
fn links_and_hard_links_are_itemized_with_their_other_name() {
    let scratch = Scratch::new();
    let src = scratch.src();
    write(src.join("a"), b"a");
    hard_link(src.join("a"), src.join("b"));
    link_to("the/target", src.join("link"));
    let ran = scratch.push().arg("-i").ok();
    let line = |start: &str| ran.out().lines().find(|l| l.starts_with(start)).unwrap_or_default().to_string();
    assert!(line("cL+++++++++").contains("link -> the/target"), "{ran}");
    assert!(line("hf+++++++++").contains(" => "), "{ran}");
}

#[test]
fn json_is_all_of_standard_output_failures_included() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 20, 1);
    for args in
        [vec!["--json"], vec!["--json", "-i", "--stats", "-v"], vec!["--json", "-n"], vec!["--json", "--progress"]]
    {
        let ran = scratch.push().args(&args).ok();
        assert_eq!(ran.summaries().len(), 1, "{ran}");
    }
    // A destination that fails, an entry that fails, a usage error: all are objects as well.
    write(scratch.path("file"), b"file");
    let ran = scratch.push_to(&[scratch.path("file"), scratch.dst()]).arg("--json").code(1);
    let failed: Vec<bool> = ran.summaries().iter().map(|s| !s.exact()).collect();
    assert_eq!(failed, [true, false], "{ran}");
    assert!(ran.json_of("problem").iter().any(|p| p.to_string().contains("file")), "{ran}");
    mkdir(src.join("sub").join(STAGING));
    let ran = scratch.push().arg("--json").code(1);
    let problem = ran.json_of("problem");
    assert!(
        problem.iter().any(|p| p["path"].as_str().is_some_and(|p| p.contains(STAGING)) && p["reason"].is_string()),
        "{ran}"
    );
    let ran =
        push_with(&scratch.state(), &scratch.path("absent"), &[scratch.dst()]).arg("--json").run().one_of(&[1, 2]);
    assert!(!ran.json().is_empty(), "{ran}");
    let ran = scratch.push_to(&["nonsense"]).arg("--json").code(2);
    assert!(!ran.json().is_empty(), "{ran}");
}

#[test]
fn counts_are_right() {
    let scratch = Scratch::new();
    let src = scratch.src();
    for i in 0..10_u64 {
        write(src.join(format!("f{i}")), noise(i, 10_000));
    }
    mkdir(src.join("dir"));
    let first = scratch.push().arg("--json").ok().summary();
    assert_eq!(first.count("literal_bytes"), 100_000, "{first:?}");
    // Ten files and a directory; the top may count as one as well.
    assert!([11, 12].contains(&first.count("created")), "{first:?}");
    assert!([11, 12].contains(&first.count("scanned")), "{first:?}");
    assert!(first.count("wire_sent") > 100_000 && first.count("wire_received") > 100, "{first:?}");
    let none = scratch.push().arg("--json").ok().summary();
    assert_eq!((none.changes(), none.count("literal_bytes")), (0, 0), "{none:?}");
    write(src.join("f0"), noise(100, 10_000));
    set_mode(src.join("f1"), 0o600);
    std::fs::rename(src.join("f2"), src.join("dir/f2")).unwrap();
    remove(&src.join("f3"));
    remove(&src.join("f4"));
    write(src.join("new"), noise(101, 5000));
    let second = scratch.push().arg("--json").ok().summary();
    assert_eq!(second.count("updated"), 1, "{second:?}");
    assert_eq!(second.count("created"), 1, "{second:?}");
    assert_eq!(second.count("moved"), 1, "{second:?}");
    // A move counts zero deletions.
    assert_eq!(second.count("deleted"), 2, "{second:?}");
    // The file, and the two directories whose times moved.
    assert!((1..=3).contains(&second.count("metadata_only")), "{second:?}");
    assert_eq!(second.count("literal_bytes"), 15_000, "{second:?}");
    for phase in ["scan_seconds", "hash_seconds", "send_seconds", "publish_seconds"] {
        let seconds = second.0["stats"][phase].as_f64().unwrap_or(-1.0);
        assert!((0.0..60.0).contains(&seconds), "{phase}: {second:?}");
    }
}

#[test]
fn stats_say_what_was_done_in_words() {
    let scratch = Scratch::new();
    many(&scratch.src(), 50, 1);
    let ran = scratch.push().arg("--stats").ok();
    let words = "scanned created updated metadata moved deleted reused literal wire";
    let said = ran.out().to_lowercase();
    for word in words.split(' ') {
        assert!(said.contains(word), "no {word}\n{ran}");
    }
}

#[test]
fn quiet_says_nothing_and_the_usual_says_a_little() {
    let scratch = Scratch::new();
    many(&scratch.src(), 50, 1);
    let quiet = scratch.push().arg("-q").ok();
    assert!(quiet.raw_out.is_empty() && quiet.raw_err.is_empty(), "{quiet}");
    append(scratch.src().join("d000/f00001"), b"more");
    let usual = scratch.push().ok();
    assert!((1..10).contains(&usual.said().trim().lines().count()), "{usual}");
    let nothing = scratch.push().ok();
    nothing.says("nothing");
    write(scratch.path("file"), b"file");
    let failed = scratch.push_to(&[scratch.path("file")]).arg("-q").run();
    assert!(!failed.status.success() && !failed.raw_err.is_empty(), "{failed}");
}

#[test]
fn progress_is_for_terminals_by_itself_and_elsewhere_on_demand() {
    let scratch = Scratch::new();
    many(&scratch.src(), 300, 1);
    write(scratch.src().join("large"), noise(1, 6 << 20));
    let piped = scratch.push().ok();
    assert!(!piped.raw_err.contains(&b'\r') && !piped.raw_err.contains(&0x1b), "{piped}");
    let name = "progress_is_for_terminals_by_itself_and_elsewhere_on_demand";
    need!(name, has("script"), "needs script(1) to make a terminal");
    let line = format!(
        "{} --state-dir {} push --bwlimit=3m --compress=never {} {}",
        bin("synccli").display(),
        scratch.path("t").display(),
        scratch.src().display(),
        scratch.path("dst2").display()
    );
    let mut script = Run::new(Path::new("script"));
    let ran = script.env("TERM", "xterm").args(&["-qefc", &line, "/dev/null"]).ok();
    let seen = ran.out();
    assert!(seen.contains('\r') || seen.contains('\u{1b}'), "no progress on a terminal\n{ran}");
    assert!(seen.contains("/s"), "no rate\n{ran}");
    let quiet = line.replace(" push ", " push -q ").replace("dst2", "dst3");
    let mut script = Run::new(Path::new("script"));
    let ran = script.env("TERM", "xterm").args(&["-qefc", &quiet, "/dev/null"]).ok();
    assert!(ran.out().trim().is_empty(), "{ran}");
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let scratch = Scratch::new();
    many(&scratch.src(), 2000, 1);
    let mut push = scratch.push();
    push.arg("-i");
    // head goes after one line; whatever the push makes of it, the tree is whole or the next push repairs.
    let script = r#""$@" | head -n 1 >/dev/null"#;
    push.behind(&["sh", "-c", script, "sh"]).run();
    scratch.push().ok();
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn every_push_that_changes_something_is_a_version_in_the_log() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 30, 1);
    mkdir(scratch.dst());
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.state());
    let push = || scratch.push_to(&[daemon.dest("www")]).ok();
    let log = |what: &OsStr| {
        let mut run = synccli(&scratch.state());
        run.arg("log").arg(what).arg("--json").ok().json_of("version")
    };
    push();
    push();
    assert_eq!(log(src.as_os_str()).len(), 1, "a push that changed nothing made a version");
    write(src.join("f"), b"one");
    push();
    write(src.join("f"), b"two!");
    remove(&src.join("d000/f00003"));
    write(src.join("g"), b"g");
    push();
    let versions = log(src.as_os_str());
    assert_eq!(versions.len(), 3, "{versions:?}");
    let roots: BTreeSet<String> = versions.iter().map(|v| v["version"]["root"].to_string()).collect();
    assert_eq!(roots.len(), 3, "{versions:?}");
    let last = versions.iter().max_by_key(|v| v["version"]["number"].as_u64()).unwrap();
    assert_eq!(last["version"]["number"], 3, "{last}");
    assert_eq!((&last["created"], &last["deleted"]), (&1.into(), &1.into()), "{last}");
    assert!(last["version"]["time"].is_string() && last["version"]["id"].is_string(), "{last}");
    // What each replica acknowledged.
    let acks = last["acks"].as_array().unwrap();
    assert_eq!(acks.len(), 1, "{last}");
    assert_eq!(acks[0]["exact"], true, "{last}");
    // The same by the name of the share, and as text.
    assert_eq!(log(OsStr::new(&daemon.dest("www"))).len(), 3);
    let mut text = synccli(&scratch.state());
    let text = text.arg("log").arg(&src).ok();
    assert!(text.out().lines().count() >= 3, "{text}");
    // Without an argument: everything.
    assert_eq!(synccli(&scratch.state()).args(&["log", "--json"]).ok().json_of("version").len(), 3);
    // A log of nothing is no failure; one of an unknown tree is at least no panic.
    synccli(&scratch.path("fresh")).args(&["log"]).run().one_of(&[0, 1]);
    synccli(&scratch.state()).args(&["log", "/no/such/tree"]).run().one_of(&[0, 1, 2]);
}

#[test]
fn a_version_that_was_not_acknowledged_says_so() {
    let scratch = Scratch::new();
    many(&scratch.src(), 30, 1);
    mkdir(scratch.dst());
    let mut daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.state());
    let good = scratch.path("good");
    let both = [daemon.dest("www"), good.display().to_string()];
    scratch.push_to(&both).ok();
    daemon.term();
    write(scratch.src().join("f"), b"f");
    scratch.push_to(&both).timeout(60).code(1);
    let versions = synccli(&scratch.state()).args(&["log", "--json"]).ok().json_of("version");
    let acks: Vec<usize> = versions.iter().map(|v| v["acks"].as_array().unwrap().len()).collect();
    assert_eq!(acks, [2, 1], "{versions:?}");
}

/// What has no content moves as well: listing and counts say the same, in a push and before it.
#[test]
fn empty_files_and_links_that_got_another_name_are_moved() {
    let scratch = Scratch::new();
    let src = scratch.src();
    for name in ["e1", "gone", "dir/e3"] {
        write(src.join(name), b"");
    }
    link_to("nowhere", src.join("l1"));
    set_mtime(src.join("gone"), 1_000_000_000, 0);
    settle();
    scratch.push().ok();
    for (from, to) in [("e1", "e2"), ("l1", "l2"), ("dir", "moved")] {
        std::fs::rename(src.join(from), src.join(to)).unwrap();
    }
    remove(&src.join("gone"));
    let mut diff = synccli(&scratch.state());
    let diff = diff.arg("diff").args(&[src.as_os_str(), scratch.dst().as_os_str()]).arg("--json").ok();
    let push = scratch.push().args(&["--json", "-i"]).ok();
    for ran in [diff, push] {
        let items = ran.json_of("item");
        let deleted = |moved: bool| {
            let all = items.iter().filter(|item| item["how"] == "deleted");
            all.filter(|item| item.get("moved_to").is_some() == moved).count() as u64
        };
        assert_eq!((deleted(true), deleted(false)), (4, 1), "{ran}");
        assert_eq!(items.iter().filter(|item| item["how"] == "moved").count(), 4, "{ran}");
        let summary = ran.summary();
        let counts = ["created", "updated", "moved", "deleted"].map(|name| summary.count(name));
        assert_eq!(counts, [0, 0, 4, 1], "{ran}");
    }
    assert_exact(&src, &scratch.dst());
}

#[test]
fn identical_is_not_said_of_what_could_not_be_read() {
    let scratch = Scratch::new();
    write(scratch.src().join("file"), b"file");
    // A problem of the source that root has, too.
    mkdir(scratch.src().join(STAGING));
    let but = "but for 1 problem in the source";
    for said in ["identical to version 1 and durable", "nothing to do, identical to version 1"] {
        scratch.push().code(1).says(&format!("{said}, {but}"));
    }
    let ran = scratch.push().arg("--json").code(1);
    assert_eq!(ran.json_of("destination")[0]["source_problems"], 1);
    assert_eq!(ran.json_of("summary")[0]["exact"], false);
}
