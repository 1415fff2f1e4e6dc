//! `synccli diff`: what a push would change and cost, told without changing anything; and what `--stats` says when it was
//! done. The estimate of content to send is held against what the push then sends.

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

use serde_json::Value;
use support::*;

/// `synccli diff SRC DST`, to be given options.
fn diff(scratch: &Scratch) -> Run {
    diff_to(scratch, scratch.dst().as_os_str())
}

fn diff_to(scratch: &Scratch, dest: impl AsRef<std::ffi::OsStr>) -> Run {
    let mut run = synccli(&scratch.state());
    run.arg("diff").arg(scratch.path("src")).arg(dest);
    run
}

/// The line of an entry.
#[track_caller]
fn line(ran: &Ran, name: &str) -> String {
    let of = |line: &&str| item(line.split("  (").next().unwrap()).is_some_and(|(_, found)| found == name);
    let out = ran.out();
    out.lines().find(of).unwrap_or_else(|| panic!("no line for {name}\n{ran}")).to_owned()
}

#[track_caller]
fn object(objects: &[Value], path: &str) -> Value {
    objects.iter().find(|item| item["path"] == path).unwrap_or_else(|| panic!("no {path} in {objects:#?}")).clone()
}

/// A tree with something of each kind, pushed; then each changes in its way.
fn changed_in_every_way(scratch: &Scratch) {
    let src = scratch.src();
    write(src.join("small"), noise(1, 20_000));
    write(src.join("large"), noise(2, 3 << 20));
    write(src.join("rewritten"), noise(3, 5000));
    write(src.join("moves"), noise(4, 7000));
    write(src.join("copied"), noise(5, 9000));
    write(src.join("chmod"), b"chmod");
    write(src.join("goes"), b"goes");
    write(src.join("linked"), b"linked");
    write(src.join("emptied"), b"emptied");
    link_to("here", src.join("symlink"));
    mkdir(src.join("dir"));
    scratch.push().ok();
    settle();
    let edited = |seed, len: usize, at: usize| {
        let mut content = noise(seed, len);
        content.splice(at..at, *b"an edit");
        content
    };
    write(src.join("small"), edited(1, 20_000, 9000));
    write(src.join("large"), edited(2, 3 << 20, 1 << 20));
    write(src.join("rewritten"), noise(6, 5000));
    std::fs::rename(src.join("moves"), src.join("dir/moved")).unwrap();
    write(src.join("copy"), noise(5, 9000));
    set_mode(src.join("chmod"), 0o600);
    remove(&src.join("goes"));
    hard_link(src.join("linked"), src.join("second"));
    write(src.join("emptied"), b"");
    remove(&src.join("symlink"));
    link_to("there", src.join("symlink"));
    write(src.join("new"), noise(7, 3000));
    write(src.join("again"), noise(7, 3000));
    write(src.join("evil\x1b[31m\n"), b"evil");
    mkdir(src.join("newdir"));
}

#[test]
fn each_kind_of_change_has_its_line_and_the_push_sends_what_was_estimated() {
    let scratch = Scratch::new();
    changed_in_every_way(&scratch);
    let ran = diff(&scratch).ok();
    let table = [
        ("new", "3000 bytes would be sent"),
        ("again", "3000 bytes would be sent"),
        ("small", " of 20007 bytes would be sent, the rest is in the old file"),
        ("large", " of 3145735 bytes would be sent, the rest is in the old file"),
        ("rewritten", "all 5000 bytes would be sent, the old file has none of them"),
        ("dir/moved", "moved from moves: 7000 bytes stay there"),
        ("moves", "moves to dir/moved"),
        ("copy", "copied there from copied: 9000 bytes"),
        ("chmod", "metadata only: mode"),
        ("goes", "(deleted)"),
        ("second", "another name: nothing is sent"),
        ("emptied", "changed: made anew, no content"),
        ("symlink", "changed: made anew, no content"),
        ("newdir", "new: no content"),
        ("evil\\x1b[31m\\n", "new: 4 bytes would be sent"),
    ];
    for (name, words) in table {
        if name == "again" || name == "new" {
            continue;
        }
        assert!(line(&ran, name).contains(words), "{name}: {}\n{ran}", line(&ran, name));
    }
    // One content is sent once.
    let both = [line(&ran, "new"), line(&ran, "again")];
    assert_eq!(both.iter().filter(|line| line.contains("new: 3000 bytes would be sent")).count(), 1, "{both:?}");
    assert_eq!(both.iter().filter(|line| line.contains("of another file")).count(), 1, "{both:?}");
    // The letters, the names and their order are those of the push.
    let push = scratch.push().args(&["-n", "-i"]).ok();
    let itemized: Vec<String> = push.out().lines().map(str::to_owned).collect();
    let lines: Vec<String> =
        ran.out().lines().filter(|l| item(l).is_some()).map(|l| l.split("  (").next().unwrap().to_owned()).collect();
    assert_eq!(lines, itemized.iter().map(|l| l.trim_end().to_owned()).collect::<Vec<_>>(), "{ran}\n{push}");

    let estimate = diff(&scratch).arg("--json").ok();
    let would = estimate.summary();
    let items = estimate.json_of("item");
    let sum: u64 = items.iter().filter_map(|item| item["literal_bytes"].as_u64()).sum();
    assert_eq!(sum, would.count("literal_bytes"), "{estimate}");
    let did = scratch.push().args(&["--json", "--compress=never"]).ok().summary();
    assert_exact(&scratch.src(), &scratch.dst());
    let same = "literal_bytes compressed_bytes reused_bytes old_file_bytes copied_bytes moved_bytes created updated \
                metadata_only moved deleted";
    for name in same.split(' ') {
        assert_eq!(would.count(name), did.count(name), "{name}: {would:?} {did:?}");
    }
    assert_eq!(did.count("moved_bytes"), 7000);
    assert_eq!(did.count("copied_bytes"), 9000);
    assert!(did.count("old_file_bytes") > 3 << 20, "{did:?}");
    // Pieces around two edits, one small file, one rewritten, one new, one name.
    assert!((8004..40_000).contains(&did.count("literal_bytes")), "{did:?}");
    diff(&scratch).ok().says("nothing to do");
}

/// Sizes at which the way of comparing changes: below pieces, pieces, chunks, chunks that the master keeps, and holes.
#[test]
fn estimates_are_exact_for_files_of_every_size() {
    let scratch = Scratch::new();
    let src = scratch.src();
    const K: usize = 1 << 10;
    let sizes = [1, K - 1, K, 100 * K, 256 * K - 1, 256 * K, 700 * K, 2 * K * K, 9 * K * K, 66 * K * K];
    for (i, size) in sizes.iter().enumerate() {
        write(src.join(format!("edited{i}")), noise(i as u64, *size));
        write(src.join(format!("grown{i}")), noise(i as u64 + 50, size / 3));
    }
    scratch.push().ok();
    settle();
    for (i, size) in sizes.iter().enumerate() {
        let mut content = noise(i as u64, *size);
        content[size / 2] ^= 1;
        write(src.join(format!("edited{i}")), &content);
        let grown = [&noise(i as u64 + 50, size / 3)[..], &noise(i as u64 + 90, size / 9)[..]].concat();
        write(src.join(format!("grown{i}")), grown);
    }
    let sparse = std::fs::File::create(src.join("sparse")).unwrap();
    sparse.set_len(5 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 2 << 20).unwrap();
    drop(sparse);
    let estimate = diff(&scratch).arg("--json").ok();
    let (would, items) = (estimate.summary(), estimate.json_of("item"));
    let did = scratch.push().args(&["--json", "--compress=never"]).ok().summary();
    for name in ["literal_bytes", "old_file_bytes", "reused_bytes", "updated", "created"] {
        assert_eq!(would.count(name), did.count(name), "{name}: {estimate}");
    }
    let sum: u64 = items.iter().filter_map(|item| item["literal_bytes"].as_u64()).sum();
    assert_eq!(sum, would.count("literal_bytes"), "{estimate}");
    let largest = object(&items, "edited9");
    assert!(largest["literal_bytes"].as_u64().unwrap() < 20_000, "{largest}");
    assert_eq!((&largest["size"], &largest["old_size"]), (&(66 << 20).into(), &(66 << 20).into()), "{largest}");
    let sparse = object(&items, "sparse");
    assert_eq!(sparse["literal_bytes"], 1 << 20, "a mebibyte has all of it, the rest is zeros: {sparse}");
}

#[test]
fn nothing_is_changed_and_nothing_is_made() {
    let scratch = Scratch::new();
    let src = scratch.src();
    write(src.join("file"), noise(1, 5000));
    let fresh = diff(&scratch).ok();
    assert!(line(&fresh, "file").contains("new: 5000 bytes would be sent"), "{fresh}");
    assert!(!scratch.dst().exists() && !scratch.state().exists(), "{fresh}");
    changed_in_every_way(&scratch);
    let trees = [scratch.src(), scratch.dst(), scratch.state()];
    let before: Vec<Tree> = trees.iter().map(|tree| snapshot(tree)).collect();
    diff(&scratch).ok();
    diff(&scratch).args(&["--json", "--checksum", "--compress=zstd"]).ok();
    for (tree, before) in trees.iter().zip(&before) {
        assert_untouched(before, &snapshot(tree));
    }
}

#[test]
fn json_tells_what_the_lines_tell() {
    let scratch = Scratch::new();
    changed_in_every_way(&scratch);
    let ran = diff(&scratch).arg("--json").ok();
    let items = ran.json_of("item");
    let of = |path: &str| object(&items, path);
    assert_eq!(of("new")["how"], "new");
    assert_eq!(of("rewritten")["how"], "changed");
    assert_eq!((&of("dir/moved")["how"], &of("dir/moved")["from"]), (&"moved".into(), &"moves".into()));
    assert_eq!(of("moves")["moved_to"], "dir/moved");
    assert_eq!((&of("copy")["how"], &of("copy")["from"]), (&"copied".into(), &"copied".into()));
    assert_eq!((&of("chmod")["how"], &of("chmod")["metadata"][0]), (&"metadata".into(), &"mode".into()));
    assert_eq!(of("goes")["how"], "deleted");
    assert_eq!(of("second")["how"], "linked");
    let last = ran.json().pop().unwrap();
    assert_eq!((&last["type"], &last["dry_run"], &last["exit"]), (&"summary".into(), &true.into(), &0.into()));
    // Only an estimate tells of bytes to send.
    let push = scratch.push().args(&["-n", "-i", "--json"]).ok();
    let new = object(&push.json_of("item"), "new");
    assert_eq!((&new["how"], &new["literal_bytes"]), (&"new".into(), &Value::Null), "{push}");
    assert_eq!(push.summary().count("literal_bytes"), 0, "{push}");
}

#[test]
fn exit_codes() {
    let scratch = Scratch::new();
    write(scratch.src().join("file"), b"file");
    diff(&scratch).code(0);
    diff(&scratch).arg("--exit-code").code(3);
    let json = diff(&scratch).args(&["--exit-code", "--json"]).code(3);
    assert_eq!(json.json().pop().unwrap()["exit"], 3, "{json}");
    scratch.push().ok();
    diff(&scratch).arg("--exit-code").code(0).says("nothing to do");
    write(scratch.src().join("sub").join(STAGING).join("x"), b"reserved");
    diff(&scratch).arg("--exit-code").code(1);
    diff_to(&scratch, "nonsense").code(2);
    let mut absent = synccli(&scratch.state());
    absent.arg("diff").arg(scratch.path("absent")).arg(scratch.dst()).code(2);
}

#[test]
fn filters_and_policies_are_those_of_the_push() {
    let scratch = Scratch::new();
    let src = scratch.src();
    write(src.join("kept"), b"kept");
    scratch.push().ok();
    write(src.join("a.o"), b"object");
    write(src.join("a.c"), b"source");
    write(scratch.dst().join("extra"), b"extra");
    let ran = diff(&scratch).args(&["--exclude=*.o", "--no-delete"]).ok();
    let names: Vec<String> = ran.items().into_iter().map(|(_, name)| name).collect();
    assert!(names.iter().any(|name| name.starts_with("a.c")), "{ran}");
    assert!(!names.iter().any(|name| name.starts_with("a.o") || name.starts_with("extra")), "{ran}");
    assert!(line(&diff(&scratch).ok(), "extra").ends_with("(deleted)"));
}

#[test]
fn what_would_be_compressed_is_found_out_on_demand() {
    let scratch = Scratch::new();
    write(scratch.src().join("text"), "the same line again and again\n".repeat(20_000));
    let would = diff(&scratch).args(&["--json", "--compress=zstd"]).ok().summary();
    diff(&scratch).arg("--compress=zstd").ok().says("compressed:");
    let did = scratch.push().args(&["--json", "--compress=zstd"]).ok().summary();
    assert!((1..10_000).contains(&would.count("compressed_bytes")), "{would:?}");
    for name in ["literal_bytes", "compressed_bytes"] {
        assert_eq!(would.count(name), did.count(name), "{name}");
    }
}

#[test]
fn a_renamed_directory_moves_with_all_it_holds() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src.join("old"), 30, 1);
    link_to("there", src.join("old/symlink"));
    scratch.push().ok();
    settle();
    std::fs::rename(src.join("old"), src.join("renamed")).unwrap();
    let ran = diff(&scratch).ok();
    assert!(line(&ran, "renamed").ends_with("(moved from old)"), "{ran}");
    assert!(line(&ran, "old").ends_with("(moves to renamed)"), "{ran}");
    assert!(line(&ran, "renamed/symlink").ends_with("(moved from old/symlink)"), "{ran}");
    assert!(line(&ran, "renamed/d000/f00001").contains("(moved from old/d000/f00001: "), "{ran}");
    let would = diff(&scratch).arg("--json").ok().summary();
    let did = scratch.push().arg("--json").ok().summary();
    for name in ["literal_bytes", "reused_bytes", "moved_bytes", "moved", "created"] {
        assert_eq!(would.count(name), did.count(name), "{name}: {would:?} {did:?}");
    }
    assert_eq!(did.count("literal_bytes"), 0, "{did:?}");
}

#[test]
fn a_daemon_is_asked_in_the_same_way() {
    let scratch = Scratch::new();
    let share = scratch.dir("share");
    let daemon = Daemon::start(&scratch, "replica", &[("www", &share)]);
    daemon.pair(&scratch.state());
    let dest = daemon.dest("www");
    let content = noise(1, 2 << 20);
    write(scratch.src().join("large"), &content);
    write(scratch.src().join("small"), noise(2, 20_000));
    scratch.push_to(&[&dest]).ok();
    settle();
    write(scratch.src().join("large"), [b"front", &content[..]].concat());
    append(scratch.src().join("small"), b"end");
    std::fs::rename(scratch.src().join("small"), scratch.src().join("renamed")).unwrap();
    let before = snapshot(&share);
    let would = diff_to(&scratch, &dest).arg("--json").ok();
    assert_untouched(&before, &snapshot(&share));
    let large = object(&would.json_of("item"), "large");
    assert!(large["literal_bytes"].as_u64().unwrap() < 10_000, "{large}");
    let did = scratch.push_to(&[&dest]).args(&["--json", "--compress=never"]).ok().summary();
    for name in ["literal_bytes", "old_file_bytes"] {
        assert_eq!(would.summary().count(name), did.count(name), "{name}: {would}");
    }
    // The content itself stays here.
    assert!(would.summary().count("wire_sent") < 20_000, "{would}");
}

#[test]
fn stats_tell_where_content_came_from() {
    let scratch = Scratch::new();
    changed_in_every_way(&scratch);
    let ran = scratch.push().args(&["--stats", "--compress=zstd"]).ok();
    for label in ["reused bytes:", "- from old files:", "- copied there:", "- moved there:", "literal bytes:"] {
        assert!(ran.out().contains(label), "no {label}\n{ran}");
    }
    ran.says("compressed bytes:").says("wire bytes sent:");
    let scratch = Scratch::new();
    changed_in_every_way(&scratch);
    let summary = scratch.push().args(&["--json", "--compress=zstd"]).ok().summary();
    let parts = ["old_file_bytes", "copied_bytes", "moved_bytes"].map(|name| summary.count(name));
    assert_eq!(parts.iter().sum::<u64>(), summary.count("reused_bytes"), "{summary:?}");
    assert!(parts.iter().all(|part| *part > 0), "{summary:?}");
    let compressed = summary.count("compressed_bytes");
    assert!(compressed > 0 && compressed < summary.count("wire_sent"), "{summary:?}");
}

#[test]
fn versions_are_compared_as_far_as_the_index_knows() {
    let scratch = Scratch::new();
    let src = scratch.src();
    for name in ["same", "second", "third", "both", "goes"] {
        write(src.join(name), format!("{name} 1"));
    }
    scratch.push().ok();
    settle();
    write(src.join("second"), b"second, 2");
    write(src.join("both"), b"both, 2");
    scratch.push().ok();
    settle();
    write(src.join("third"), b"third, 3");
    write(src.join("both"), b"both, three");
    remove(&src.join("goes"));
    scratch.push().ok();
    let compare = |args: &[&str]| {
        let mut run = synccli(&scratch.state());
        run.arg("diff").arg(scratch.src()).args(args);
        run
    };
    let known = |ran: &Ran| -> Vec<(String, String, u64)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let change = |c: &Value| (text(&c["path"]), text(&c["what"]), c["version"].as_u64().unwrap());
        let mut changes: Vec<_> = ran.json_of("change").iter().map(change).collect();
        // Writing and removing files changes the time of their directory.
        changes.retain(|(path, ..)| path != "./");
        changes
    };
    let row = |path: &str, what: &str, version| (path.to_owned(), what.to_owned(), version);
    let before = snapshot(&scratch.state());
    let since = compare(&["--since=1", "--json"]).ok();
    let all = [
        row("both", "added or changed", 3),
        row("goes", "removed", 3),
        row("second", "added or changed", 2),
        row("third", "added or changed", 3),
    ];
    assert_eq!(known(&since), all, "{since}");
    assert_eq!(known(&compare(&["--versions", "1", "3", "--json"]).ok()), all);
    let early = compare(&["--versions", "1", "2", "--json"]).ok();
    let expected = [
        row("both", "unknown", 3),
        row("goes", "unknown", 3),
        row("second", "added or changed", 2),
        row("third", "unknown", 3),
    ];
    assert_eq!(known(&early), expected, "{early}");
    let summary = early.json_of("summary").pop().unwrap();
    assert_eq!((&summary["from"], &summary["to"]), (&1.into(), &2.into()), "{early}");
    compare(&["--since=2"]).ok().says("removed  goes  (in version 3)").says("the same in both");
    assert_eq!(known(&compare(&["--since=3", "--json"]).ok()), []);
    compare(&["--since=3", "--exit-code"]).code(0);
    compare(&["--since=2", "--exit-code"]).code(3);
    compare(&["--since=9"]).code(1).names("no version 9");
    compare(&["--versions", "3", "1"]).code(2);
    assert_untouched(&before, &snapshot(&scratch.state()));
    let mut other = synccli(&scratch.state());
    other.arg("diff").arg(scratch.dir("other")).arg("--since=1").code(1).names("never pushed");
}

#[test]
fn the_help_and_the_manual_teach_it() {
    let scratch = Scratch::new();
    let help = synccli(&scratch.state()).args(&["diff", "--help"]).ok();
    for word in ["--since", "--versions", "--exit-code", "Exit codes", "nothing is made or changed"] {
        assert!(help.out().replace('\n', " ").contains(word), "no {word}\n{help}");
    }
    synccli(&scratch.state()).args(&["man", "diff"]).ok().says("exit");
    synccli(&scratch.state()).args(&["completions", "bash"]).ok().says("versions");
}
