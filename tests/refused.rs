//! "What the kernel refuses is kept in the index as wanted and applied, counted and summarised once per kind, and is not
//! a failure": owners without root, xattrs and times a file system lacks, links beyond its limit.

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

use support::*;

#[test]
fn a_time_the_file_system_cannot_hold_is_no_failure_and_does_not_come_back() {
    // 128-byte inodes have no room for nanoseconds or for times after 2038.
    let name = "a_time_the_file_system_cannot_hold_is_no_failure_and_does_not_come_back";
    let scratch = Scratch::new();
    let Some(disk) = Disk::ext4_with(name, &scratch, "disk", 64, &["-b", "4096", "-I", "128"]) else { return };
    let (src, dst) = (scratch.src(), disk.at.join("dst"));
    write(src.join("late"), b"late");
    set_mtime(src.join("late"), LATEST, 5);
    write(src.join("fine"), b"fine");
    set_mtime(src.join("fine"), 1_000_000_000, 123_456_789);
    set_mtime(&src, 1_000_000_001, 5);
    push_with(&scratch.state(), &src, &[&dst]).ok();
    assert_exact_but(&src, &dst, |tree| {
        for node in tree.values_mut() {
            node.mtime = (node.mtime.0.min(2_147_483_647), 0);
        }
    });
    let before = snapshot(&dst);
    push_with(&scratch.state(), &src, &[&dst]).ok();
    assert_untouched(&before, &snapshot(&dst));
}

#[test]
fn xattrs_the_file_system_lacks_are_counted_once_and_no_failure() {
    let name = "xattrs_the_file_system_lacks_are_counted_once_and_no_failure";
    let scratch = Scratch::new();
    need!(name, scratch.mounts, "needs root and a mount namespace");
    // ramfs has no xattrs at all.
    let at = scratch.dir("ramfs");
    let mounted =
        std::process::Command::new("mount").args(["-t", "ramfs", "test"]).arg(&at).status().unwrap().success();
    need!(name, mounted, "no ramfs here");
    need!(name, !set_xattr(&at, "user.x", b"x"), "this ramfs has xattrs");
    let (src, dst) = (scratch.src(), at.join("dst"));
    for i in 0..5 {
        write(src.join(format!("f{i}")), b"x");
        assert!(set_xattr(src.join(format!("f{i}")), "user.test", b"v"), "no xattrs at the source");
    }
    let ran = push_with(&scratch.state(), &src, &[&dst]).ok();
    let lines = ran.said().lines().filter(|l| l.to_lowercase().contains("xattr") || l.contains("attribute")).count();
    assert_eq!(lines, 1, "one line sums up what was refused\n{ran}");
    assert_exact_but(&src, &dst, |tree| tree.values_mut().for_each(|n| n.xattrs.clear()));
    let before = snapshot(&dst);
    push_with(&scratch.state(), &src, &[&dst]).ok();
    assert_untouched(&before, &snapshot(&dst));
}

#[test]
fn the_65001st_hard_link_is_no_failure() {
    let name = "the_65001st_hard_link_is_no_failure";
    let scratch = Scratch::new();
    // ext4 stops at 65,000 names for an inode; the tmpfs of the source does not.
    let Some(disk) = Disk::ext4(name, &scratch, "disk", 256) else { return };
    let (src, dst) = (scratch.src(), disk.at.join("dst"));
    write(src.join("00/first"), b"many names");
    let mut made = 1;
    'all: for dir in 0..66 {
        mkdir(src.join(format!("{dir:02}")));
        for i in 0..1000 {
            let name = src.join(format!("{dir:02}/{i:03}"));
            if std::fs::hard_link(src.join("00/first"), name).is_err() {
                break 'all;
            }
            made += 1;
        }
    }
    need!(name, made > 65_001, "the source's file system has a limit of its own");
    push_with(&scratch.state(), &src, &[&dst]).timeout(300).ok();
    let (want, have) = (snapshot(&src), snapshot(&dst));
    let (mut want, mut have) = (want, have);
    let groups: std::collections::BTreeSet<_> =
        have.values().filter(|n| n.kind == Kind::File).map(|n| n.group.clone()).collect();
    assert!(groups.len() > 1 && groups.len() <= made - 65_000 + 1, "{} groups of {made} names", groups.len());
    for node in want.values_mut().chain(have.values_mut()) {
        node.group.clear();
    }
    assert_no_differences("not exact but for the links", &differences(&want, &have));
    let before = snapshot(&dst);
    push_with(&scratch.state(), &src, &[&dst]).timeout(300).ok();
    assert_untouched(&before, &snapshot(&dst));
}

#[test]
fn ordinary_users_get_what_the_kernel_grants_and_a_count_of_the_rest() {
    let name = "ordinary_users_get_what_the_kernel_grants_and_a_count_of_the_rest";
    need!(name, is_root() && has("setpriv"), "needs root and setpriv to become somebody else");
    let scratch = Scratch::new();
    zoo(&scratch.src(), Zoo { far_times: false });
    // Modes that keep others out would be read failures, which is another test.
    remove(&scratch.src().join("mode"));
    tool("chmod", &["-R".as_ref(), "a+rX".as_ref(), scratch.src().as_os_str()]);
    let user = as_user(&scratch);
    let mut push = user.push(&scratch.src(), &user.home.join("dst"));
    push.ok().does_not_say("cannot");
    let strip = |tree: &mut Tree| {
        tree.retain(|_, node| !matches!(node.kind, Kind::Char(..) | Kind::Block(..)));
        for node in tree.values_mut() {
            (node.uid, node.gid) = (0, 0);
            // The setid bits of an owner that could not be given are not given either.
            node.mode &= 0o1777;
            node.xattrs.retain(|name, _| name.starts_with(b"user.") || name.starts_with(b"system."));
        }
    };
    assert_exact_but(&scratch.src(), &user.home.join("dst"), strip);
    let before = snapshot(&user.home.join("dst"));
    user.push(&scratch.src(), &user.home.join("dst")).ok();
    assert_untouched(&before, &snapshot(&user.home.join("dst")));
}

#[test]
fn a_read_only_directory_of_ones_own_is_made_writable_for_the_moment() {
    let name = "a_read_only_directory_of_ones_own_is_made_writable_for_the_moment";
    need!(name, is_root() && has("setpriv"), "needs root and setpriv to become somebody else");
    let scratch = Scratch::new();
    let user = as_user(&scratch);
    let (src, dst) = (user.home.join("src"), user.home.join("dst"));
    let own = |path: &Path| tool("chown", &["-R".as_ref(), "12345:12345".as_ref(), path.as_os_str()]);
    for file in ["dir/changed", "dir/removed", "dir/kept", "dir/sub/file", "gone/a/b"] {
        write(src.join(file), file);
    }
    let lock = || {
        own(&src);
        for dir in ["dir/sub", "dir", "gone/a", "gone"] {
            if src.join(dir).exists() {
                set_mode(src.join(dir), 0o555);
            }
        }
    };
    lock();
    user.push(&src, &dst).ok();
    assert_exact(&src, &dst);
    write(src.join("dir/changed"), b"changed content");
    remove(&src.join("dir/removed"));
    write(src.join("dir/sub/new"), b"new");
    link_to("x", src.join("dir/link"));
    remove(&src.join("gone"));
    lock();
    user.push(&src, &dst).ok();
    assert_exact(&src, &dst);
}

/// What is not there is named, at each push, and does not count as made.
#[test]
fn devices_that_are_refused_are_named_at_each_push() {
    let name = "devices_that_are_refused_are_named_at_each_push";
    need!(name, is_root() && has("setpriv"), "needs root and setpriv to become somebody else");
    let scratch = Scratch::new();
    for i in 0..12 {
        node_of(rustix::fs::FileType::CharacterDevice, scratch.src().join(format!("dev{i:02}")), (1, 3));
    }
    write(scratch.src().join("file"), b"file");
    let user = as_user(&scratch);
    let dst = user.home.join("dst");
    for round in 0..3 {
        if round == 2 {
            remove(&scratch.src().join("dev00"));
        }
        let left = if round == 2 { 11 } else { 12 };
        let ran = user.push(&scratch.src(), &dst).arg("--json").ok();
        assert_eq!(ran.summary().count("created"), u64::from(round == 0), "{ran}");
        let notices: Vec<_> = ran.json_of("notice").iter().map(|n| n["text"].as_str().unwrap().to_owned()).collect();
        let named = notices.iter().find(|text| text.contains("refused to make it")).unwrap();
        let (first, more) = if round == 2 { ("dev01, ", "and 1 more") } else { ("dev00, ", "and 2 more") };
        assert!(named.contains(first) && named.contains(more), "{named}");
        assert_eq!(ran.json_of("destination")[0]["refused"]["device node"], left, "{ran}");
        user.push(&scratch.src(), &dst)
            .ok()
            .says(&format!("{left} entries: the kernel refused the device node"))
            .says(first);
    }
}
