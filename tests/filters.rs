//! `--exclude`, `--include`, `--exclude-from` and `--delete-excluded`: gitignore patterns in the order given, the last
//! match wins, and what is excluded is left alone.

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

use support::*;

/// The names of files and links below DST, sorted.
fn files(scratch: &Scratch) -> BTreeSet<String> {
    snapshot(&scratch.dst()).iter().filter(|(_, n)| n.kind != Kind::Dir).map(|(path, _)| shown(path)).collect()
}

fn set(names: &str) -> BTreeSet<String> {
    names.split_whitespace().map(str::to_string).collect()
}

/// Pushes `all` with these options into an empty DST and insists on what arrived.
#[track_caller]
fn arrives(all: &str, options: &[&str], expected: &str) {
    let scratch = Scratch::new();
    for name in all.split_whitespace() {
        write(scratch.src().join(name), name);
    }
    scratch.push().args(options).ok();
    assert_eq!(files(&scratch), set(expected), "with {options:?}");
    scratch.push().args(options).ok().says("nothing");
}

#[test]
fn patterns_are_those_of_gitignore() {
    let all = "a.o b.c d/a.o d/b.c d/e/a.o build/x build/y/z d/build/x foo/bar/baz";
    arrives(all, &["--exclude", "*.o"], "b.c d/b.c build/x build/y/z d/build/x foo/bar/baz");
    arrives(all, &["--exclude", "/*.o"], "b.c d/a.o d/b.c d/e/a.o build/x build/y/z d/build/x foo/bar/baz");
    arrives(all, &["--exclude", "build"], "a.o b.c d/a.o d/b.c d/e/a.o foo/bar/baz");
    arrives(all, &["--exclude", "/build/"], "a.o b.c d/a.o d/b.c d/e/a.o d/build/x foo/bar/baz");
    arrives(all, &["--exclude", "d/**"], "a.o b.c build/x build/y/z foo/bar/baz");
    arrives(all, &["--exclude", "**/e/*.o"], "a.o b.c d/a.o d/b.c build/x build/y/z d/build/x foo/bar/baz");
    arrives(all, &["--exclude", "foo/*/baz"], "a.o b.c d/a.o d/b.c d/e/a.o build/x build/y/z d/build/x");
    arrives(all, &["--exclude", "[ab].?"], "build/x build/y/z d/build/x foo/bar/baz");
}

#[test]
fn a_pattern_with_a_final_slash_means_directories_only() {
    arrives("x/f y", &["--exclude", "y/", "--exclude", "x/"], "y");
}

#[test]
fn the_last_match_wins_across_all_three_options() {
    let all = "a.log keep.log b.txt";
    arrives(all, &["--exclude", "*.log", "--include", "keep.log"], "keep.log b.txt");
    arrives(all, &["--include", "keep.log", "--exclude", "*.log"], "b.txt");
    arrives(all, &["--exclude", "*", "--include", "*.txt"], "b.txt");
    arrives(all, &["--exclude", "*", "--exclude", "!*.txt"], "b.txt");
    arrives(all, &["--exclude", "*.log", "--include", "*.log"], "a.log keep.log b.txt");
}

#[test]
fn exclude_from_takes_its_place_in_the_order() {
    let scratch = Scratch::new();
    for name in ["a.log", "keep.log", "b.txt", "#hash", "c"] {
        write(scratch.src().join(name), name);
    }
    write(scratch.path("rules"), "# a comment\n\n*.log\n!keep.log\n\\#hash\nc\n");
    let rules = scratch.path("rules");
    let from = ["--exclude-from", rules.to_str().unwrap()];
    scratch.push().args(&from).ok();
    assert_eq!(files(&scratch), set("keep.log b.txt"));
    scratch.push().args(&from).args(&["--include", "c"]).ok();
    assert_eq!(files(&scratch), set("keep.log b.txt c"));
    // What is excluded is left alone, so a fresh DST shows the other order.
    remove(&scratch.dst());
    scratch.push().args(&["--include", "c"]).args(&from).ok();
    assert_eq!(files(&scratch), set("keep.log b.txt"));
}

#[test]
fn only_the_given_patterns_apply() {
    let scratch = Scratch::new();
    let src = scratch.src();
    for name in [".hidden", ".git/config", "sub/.hidden", "ignored.o", "node_modules/x", "backup~", ".ignore.d"] {
        write(src.join(name), name);
    }
    for name in [".gitignore", ".ignore", ".rgignore", ".git/info/exclude", "sub/.gitignore"] {
        write(src.join(name), "*\n");
    }
    scratch.push().ok();
    assert_exact(&src, &scratch.dst());
}

#[test]
fn what_is_excluded_is_left_alone_at_dest() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    for name in ["file", "cache/src", "dir/file"] {
        write(src.join(name), name);
    }
    for name in ["cache/own", "dir/own.tmp", "extra", "gone/file", "gone/own.tmp"] {
        write(dst.join(name), format!("dest {name}"));
    }
    set_mode(dst.join("cache"), 0o711);
    let before = snapshot(&dst);
    let options = ["--exclude", "/cache", "--exclude", "*.tmp"];
    // A directory that must go but holds an excluded file cannot go; whether that is a failure is not promised.
    scratch.push().args(&options).run().one_of(&[0, 1]);
    let after = snapshot(&dst);
    for kept in ["cache", "cache/own", "dir/own.tmp", "gone/own.tmp"] {
        let (b, a) = (&before[kept.as_bytes()], &after[kept.as_bytes()]);
        assert_eq!((b.ino, b.ctime, &b.content), (a.ino, a.ctime, &a.content), "{kept} was not left alone");
    }
    assert_eq!(files(&scratch), set("cache/own dir/file dir/own.tmp file gone/own.tmp"));
}

#[test]
fn delete_excluded_removes_what_the_filter_excludes() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    for name in ["file", "cache/src", "dir/file"] {
        write(src.join(name), name);
    }
    for name in ["cache/own", "dir/own.tmp", "extra"] {
        write(dst.join(name), name);
    }
    scratch.push().args(&["--exclude", "/cache", "--exclude", "*.tmp", "--delete-excluded"]).ok();
    assert_eq!(files(&scratch), set("file dir/file"));
    assert!(!dst.join("cache").exists());
}

#[test]
fn a_changed_filter_is_noticed_by_the_next_push() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    for name in ["a", "b.log", "d/c.log"] {
        write(src.join(name), name);
    }
    scratch.push().args(&["--exclude", "*.log"]).ok();
    assert_eq!(files(&scratch), set("a"));
    scratch.push().ok();
    assert_exact(&src, &dst);
    // Excluded now: what is there stays, and what changes at the source is not sent.
    write(src.join("b.log"), "changed");
    scratch.push().args(&["--exclude", "*.log"]).ok();
    assert_eq!(std::fs::read(dst.join("b.log")).unwrap(), b"b.log");
    scratch.push().ok();
    assert_exact(&src, &dst);
    scratch.push().args(&["--exclude", "*.log", "--delete-excluded"]).ok();
    assert_eq!(files(&scratch), set("a"));
}

#[test]
fn an_excluded_directory_is_not_entered() {
    let scratch = Scratch::new();
    write(scratch.src().join("skip/file"), b"x");
    write(scratch.src().join("file"), b"x");
    let opens = watch::Opens::below(&[&scratch.src()]);
    scratch.push().args(&["--exclude", "/skip", "--include", "/skip/file"]).ok();
    let opened = opens.take();
    assert!(!opened.iter().any(|p| p.ends_with("skip/file")), "{opened:?}");
    assert_eq!(files(&scratch), set("file"));
}

#[test]
fn patterns_match_bytes_that_are_no_utf8() {
    let scratch = Scratch::new();
    write(scratch.src().join(os(b"caf\xe9.tmp")), b"x");
    write(scratch.src().join(os(b"\xff\xfe")), b"x");
    scratch.push().args(&["--exclude", "*.tmp"]).ok();
    assert_eq!(files(&scratch), set("\\xff\\xfe"));
}

#[test]
fn a_bad_pattern_is_usage_or_matches_literally_but_never_a_panic() {
    let scratch = Scratch::new();
    write(scratch.src().join("a"), b"a");
    for pattern in
        ["[", "a[", "{", "\\", "!", "**a**", "[z-a]", "", "/", "//", "a/../b", "./a", "\u{0}x", &"*".repeat(5000)]
    {
        if pattern.contains('\0') {
            continue;
        }
        scratch.push().args(&["--exclude", pattern]).timeout(20).run().one_of(&[0, 2]);
    }
}

#[test]
fn one_file_system_leaves_mounts_out_and_alone() {
    let scratch = Scratch::new();
    need!("one_file_system_leaves_mounts_out_and_alone", scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.dst());
    for name in ["file", "m/hidden", "n/file", "dir/file"] {
        write(src.join(name), name);
        write(dst.join(name), format!("old {name}"));
    }
    mount_tmpfs(&src.join("m"), "size=1m");
    write(src.join("m/on the mount"), b"x");
    mount_tmpfs(&dst.join("n"), "size=1m");
    write(dst.join("n/on the mount"), b"x");
    let (before_m, before_n) = (snapshot(&dst.join("m")), snapshot(&dst.join("n")));
    scratch.push().arg("-x").run().one_of(&[0, 1]);
    assert!(!dst.join("m/on the mount").exists(), "the mount below SRC was not left out");
    assert!(dst.join("m/hidden").exists(), "what corresponds to a mount below SRC was not left alone");
    // The mount point itself may count as part of the tree it is mounted on; what is below it may not.
    let below = |mut tree: Tree| {
        tree.remove(b"".as_slice());
        tree
    };
    assert_untouched(&below(before_m), &below(snapshot(&dst.join("m"))));
    assert_untouched(&before_n, &snapshot(&dst.join("n")));
    for name in ["file", "dir/file"] {
        assert_eq!(std::fs::read(dst.join(name)).unwrap(), name.as_bytes(), "{name}");
    }
}

#[test]
fn mounts_below_src_and_dest_are_part_of_the_tree() {
    let scratch = Scratch::new();
    need!("mounts_below_src_and_dest_are_part_of_the_tree", scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.dst());
    mount_tmpfs(&src.join("m"), "size=8m");
    mount_tmpfs(&dst.join("n"), "size=8m");
    mount_tmpfs(&dst.join("n/deeper/mount"), "size=8m");
    for name in ["file", "m/one", "m/sub/two", "n/three", "n/deeper/four", "n/deeper/mount/five"] {
        write(src.join(name), name);
    }
    write(dst.join("n/extra"), b"x");
    // Hard links across what is one file system at the source and two at the replica.
    hard_link(src.join("n/three"), src.join("three too"));
    let loosen = |tree: &mut Tree| tree.values_mut().for_each(|n| n.group.clear());
    scratch.push().ok();
    assert_exact_but(&src, &dst, loosen);
    // Moves across the mounts, changes on them, deletes on them.
    std::fs::rename(src.join("n/three"), src.join("moved")).unwrap();
    write(src.join("m/one"), b"changed");
    remove(&src.join("n/deeper/mount/five"));
    write(src.join("n/deeper/mount/six"), b"six");
    scratch.push().ok();
    assert_exact_but(&src, &dst, loosen);
    let before = snapshot(&dst);
    scratch.push().ok().says("nothing");
    assert_untouched(&before, &snapshot(&dst));
}
