//! "Exactness" of section 2: everything a tree is made of arrives, any kind becomes any other, and what did not change
//! is not touched.

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

use support::*;

/// Pushes, compares, pushes again and insists that the second push touched nothing at all and says so.
#[track_caller]
fn push_twice(scratch: &Scratch) {
    scratch.push().ok();
    assert_exact(&scratch.src(), &scratch.dst());
    second_push_is_silent(scratch);
}

#[track_caller]
fn second_push_is_silent(scratch: &Scratch) {
    let before = snapshot(&scratch.dst());
    scratch.push().ok().says("nothing");
    assert_untouched(&before, &snapshot(&scratch.dst()));
    let summary = scratch.push().arg("--json").ok().summary();
    assert_eq!(summary.changes(), 0, "{summary:?}");
    assert_untouched(&before, &snapshot(&scratch.dst()));
}

#[test]
fn one_of_everything_arrives_and_the_second_push_touches_nothing() {
    let scratch = Scratch::new();
    zoo(&scratch.src(), Zoo { far_times: scratch.mounts });
    push_twice(&scratch);
}

#[test]
fn one_of_everything_arrives_on_ext4() {
    let name = "one_of_everything_arrives_on_ext4";
    let scratch = Scratch::new();
    let Some(from) = Disk::ext4(name, &scratch, "from", 128) else { return };
    let Some(to) = Disk::ext4(name, &scratch, "to", 128) else { return };
    zoo(&from.at.join("src"), Zoo { far_times: true });
    let (src, dst) = (from.at.join("src"), to.at.join("dst"));
    push_with(&scratch.state(), &src, &[&dst]).ok();
    assert_exact(&src, &dst);
    let before = snapshot(&dst);
    push_with(&scratch.state(), &src, &[&dst]).ok().says("nothing");
    assert_untouched(&before, &snapshot(&dst));
}

#[test]
fn one_of_everything_arrives_at_a_daemon() {
    let scratch = Scratch::new();
    zoo(&scratch.src(), Zoo { far_times: scratch.mounts });
    mkdir(scratch.dst());
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.state());
    scratch.push_to(&[daemon.dest("www")]).ok();
    assert_exact(&scratch.src(), &scratch.dst());
    let before = snapshot(&scratch.dst());
    scratch.push_to(&[daemon.dest("www")]).ok().says("nothing");
    assert_untouched(&before, &snapshot(&scratch.dst()));
}

#[test]
fn the_zoo_holds_what_it_promises() {
    // Without this a file system that lacks xattrs would turn the tests above into weaker ones unseen.
    let scratch = Scratch::new();
    need!("the_zoo_holds_what_it_promises", scratch.mounts, "needs root and a mount namespace");
    zoo(&scratch.src(), Zoo { far_times: true });
    let tree = snapshot(&scratch.src());
    let attributes = |path: &str| tree[path.as_bytes()].xattrs.keys().map(|k| shown(k)).collect::<Vec<_>>();
    for name in ["user.plain", "trusted.test", "security.test"] {
        assert!(attributes("xattrs/file").iter().any(|a| a == name), "{:?}", attributes("xattrs/file"));
    }
    assert!(attributes("xattrs/link").iter().any(|a| a == "trusted.test"));
    assert!(attributes("xattrs/cap").iter().any(|a| a == CAPABILITY));
    assert!(attributes("xattrs/acl").iter().any(|a| a == ACL_ACCESS));
    assert!(attributes("xattrs/dir acl").iter().any(|a| a == ACL_DEFAULT));
}

#[test]
fn a_foreign_tree_at_dest_becomes_exact() {
    let scratch = Scratch::new();
    zoo(&scratch.src(), Zoo { far_times: scratch.mounts });
    // The same names with other kinds, owners, modes, ACLs and attributes, and a default ACL on the top.
    copy_tree(&scratch.src(), &scratch.dst());
    let dst = scratch.dst();
    set_mode(dst.join("mode/file 644"), 0o4711);
    write(dst.join("names/extra"), b"extra");
    remove(&dst.join("hard/far"));
    write(dst.join("hard/far"), b"a file now");
    remove(&dst.join("link to dir"));
    write(dst.join("link to dir/below"), b"a directory now");
    set_xattr(dst.join("empty"), "user.unwanted", b"x");
    set_xattr(dst.join("xattrs/acl"), ACL_ACCESS, &acl(5555, 7, 7, 7));
    set_xattr(&dst, ACL_DEFAULT, &acl(6666, 7, 7, 7));
    write(dst.join("size/4096"), b"short");
    scratch.push().ok();
    // Files that were equal are not rewritten for the sake of their holes.
    assert_exact_but(&scratch.src(), &scratch.dst(), |_| ());
    second_push_is_silent(&scratch);
}

#[test]
fn a_tree_that_is_already_there_is_adopted_without_a_touch() {
    let scratch = Scratch::new();
    many(&scratch.src(), 300, 1);
    copy_tree(&scratch.src(), &scratch.dst());
    let before = snapshot(&scratch.dst());
    scratch.push().ok();
    assert_untouched(&before, &snapshot(&scratch.dst()));
}

#[test]
fn every_kind_becomes_every_other() {
    let scratch = Scratch::new();
    let src = scratch.src();
    for (from, make) in kinds() {
        for (to, _) in kinds() {
            make(&src.join(format!("{from} to {to}")));
        }
    }
    scratch.push().ok();
    assert_exact(&src, &scratch.dst());
    for (from, _) in kinds() {
        for (to, make) in kinds() {
            let path = src.join(format!("{from} to {to}"));
            if from != to {
                remove(&path);
                make(&path);
            }
        }
    }
    push_twice(&scratch);
}

#[test]
fn kinds_change_on_ext4_while_linked_twice() {
    let name = "kinds_change_on_ext4_while_linked_twice";
    let scratch = Scratch::new();
    let Some(disk) = Disk::ext4(name, &scratch, "disk", 64) else { return };
    let (src, dst) = (scratch.src(), disk.at.join("dst"));
    let others = || kinds().into_iter().filter(|(kind, _)| *kind != "dir");
    for (from, make) in others() {
        for (to, _) in others() {
            make(&src.join(format!("{from} to {to}")));
            hard_link(src.join(format!("{from} to {to}")), src.join(format!("{from} to {to} too")));
        }
    }
    push_with(&scratch.state(), &src, &[&dst]).ok();
    assert_exact(&src, &dst);
    for (from, _) in others() {
        for (to, make) in others() {
            remove(&src.join(format!("{from} to {to}")));
            make(&src.join(format!("{from} to {to}")));
        }
    }
    push_with(&scratch.state(), &src, &[&dst]).ok();
    assert_exact(&src, &dst);
}

#[test]
fn hard_link_groups_are_joined_split_and_moved() {
    let scratch = Scratch::new();
    let src = scratch.src();
    for dir in ["a", "b"] {
        mkdir(src.join(dir));
    }
    write(src.join("a/1"), b"one");
    hard_link(src.join("a/1"), src.join("a/2"));
    hard_link(src.join("a/1"), src.join("b/3"));
    write(src.join("a/4"), b"four");
    write(src.join("b/5"), b"four");
    link_to("x", src.join("a/l1"));
    hard_link(src.join("a/l1"), src.join("b/l2"));
    fifo(src.join("a/p1"));
    hard_link(src.join("a/p1"), src.join("b/p2"));
    push_twice(&scratch);
    // Split: one name of three gets an inode of its own with the same content.
    std::fs::remove_file(src.join("a/2")).unwrap();
    write(src.join("a/2"), b"one");
    // Joined: two equal files become one.
    std::fs::remove_file(src.join("b/5")).unwrap();
    hard_link(src.join("a/4"), src.join("b/5"));
    // Links and fifos likewise.
    std::fs::remove_file(src.join("b/l2")).unwrap();
    link_to("x", src.join("b/l2"));
    std::fs::remove_file(src.join("b/p2")).unwrap();
    fifo(src.join("b/p2"));
    push_twice(&scratch);
    // A name joins another group; a new name joins; the first name of a group goes.
    std::fs::remove_file(src.join("b/5")).unwrap();
    hard_link(src.join("b/3"), src.join("b/5"));
    hard_link(src.join("a/4"), src.join("b/6"));
    std::fs::remove_file(src.join("a/1")).unwrap();
    push_twice(&scratch);
    // The whole group changes its content and mode in place.
    append(src.join("b/5"), b" and more");
    set_mode(src.join("b/5"), 0o640);
    push_twice(&scratch);
}

#[test]
fn swaps_rotations_and_moves_need_no_content_and_no_order() {
    let scratch = Scratch::new();
    let src = scratch.src();
    for (name, seed) in
        [("a", 1), ("b", 2), ("r1", 3), ("r2", 4), ("r3", 5), ("old/f", 6), ("d1/x", 7), ("d2/x", 8), ("up/down/f", 9)]
    {
        write(src.join(name), noise(seed, 200_000));
    }
    scratch.push().ok();
    let swap = |a: &str, b: &str| {
        let t = src.join("t");
        std::fs::rename(src.join(a), &t).unwrap();
        std::fs::rename(src.join(b), src.join(a)).unwrap();
        std::fs::rename(&t, src.join(b)).unwrap();
    };
    swap("a", "b");
    swap("r1", "r2");
    swap("r2", "r3");
    swap("d1", "d2");
    std::fs::rename(src.join("old"), src.join("new")).unwrap();
    // A child becomes the parent of what was its parent.
    std::fs::rename(src.join("up/down"), src.join("down")).unwrap();
    std::fs::rename(src.join("up"), src.join("down/up")).unwrap();
    let summary = scratch.push().arg("--json").ok().summary();
    assert_exact(&src, &scratch.dst());
    assert_eq!(summary.count("literal_bytes"), 0, "content that is there was sent: {summary:?}");
    assert!(summary.count("moved") >= 5, "{summary:?}");
    second_push_is_silent(&scratch);
}

#[test]
fn paths_beyond_path_max_arrive_change_and_go() {
    let scratch = Scratch::new();
    let src = scratch.src();
    // 60 levels of 200 bytes are 12,000: three times PATH_MAX.
    let end = deep(&src, &[b'd'; 200], 60, 7);
    put(&end, "at the end", b"first");
    push_twice(&scratch);
    put(&end, "at the end", b"second, longer");
    put(&end, "new", b"new");
    push_twice(&scratch);
    tool("rm", &["-rf".as_ref(), src.join(os(&[b'd'; 200])).as_os_str()]);
    push_twice(&scratch);
}

#[test]
fn a_thousand_levels_of_short_names_arrive_and_go() {
    let scratch = Scratch::new();
    let end = deep(&scratch.src(), b"level", 1000, 100);
    put(&end, "bottom", b"bottom");
    push_twice(&scratch);
    tool("rm", &["-rf".as_ref(), scratch.src().join("level").as_os_str()]);
    push_twice(&scratch);
}

#[test]
fn the_umask_of_the_caller_changes_nothing() {
    for umask in ["000", "077", "777"] {
        let scratch = Scratch::new();
        zoo(&scratch.src(), Zoo { far_times: false });
        mkdir(scratch.dst());
        let script = format!("umask {umask}; exec \"$@\"");
        scratch.push().behind(&["sh", "-c", &script, "sh"]).ok();
        assert_exact(&scratch.src(), &scratch.dst());
    }
}

#[test]
fn a_setgid_directory_and_a_default_acl_at_dest_do_not_leak() {
    let scratch = Scratch::new();
    need!("a_setgid_directory_and_a_default_acl_at_dest_do_not_leak", is_root(), "needs root");
    let (src, dst) = (scratch.src(), scratch.dst());
    write(src.join("dir/one"), b"1");
    scratch.push().ok();
    // The parent of DEST too: what is made in there inherits.
    for at in [&dst, &dst.join("dir")] {
        set_owner(at, 0, 4444);
        set_mode(at, 0o2775);
        assert!(set_xattr(at, ACL_DEFAULT, &acl(7777, 7, 7, 7)), "no ACLs here");
    }
    write(src.join("dir/two"), b"2");
    write(src.join("new/three"), b"3");
    link_to("x", src.join("dir/link"));
    push_twice(&scratch);
}

#[test]
fn metadata_alone_changes_in_place() {
    let scratch = Scratch::new();
    let src = scratch.src();
    write(src.join("mode"), noise(1, 5000));
    write(src.join("time"), noise(2, 5000));
    write(src.join("attr"), noise(3, 5000));
    mkdir(src.join("dir"));
    link_to("t", src.join("link"));
    fifo(src.join("fifo"));
    scratch.push().ok();
    let before = snapshot(&scratch.dst());
    set_mode(src.join("mode"), 0o4750);
    set_mtime(src.join("time"), 1, 2);
    set_xattr(src.join("attr"), "user.new", b"v");
    set_mode(src.join("dir"), 0o1700);
    set_mtime(src.join("dir"), 3, 4);
    set_mtime(src.join("link"), 5, 6);
    set_mode(src.join("fifo"), 0o600);
    let summary = scratch.push().arg("--json").ok().summary();
    assert_exact(&src, &scratch.dst());
    assert_eq!(summary.count("literal_bytes"), 0, "{summary:?}");
    assert!(summary.count("metadata_only") >= 6 && summary.count("updated") == 0, "{summary:?}");
    let after = snapshot(&scratch.dst());
    for name in ["mode", "time", "attr", "dir", "link", "fifo"] {
        assert_eq!(before[name.as_bytes()].ino, after[name.as_bytes()].ino, "{name} was replaced for its metadata");
    }
    second_push_is_silent(&scratch);
}

#[test]
fn owners_capabilities_and_acls_change() {
    let scratch = Scratch::new();
    need!("owners_capabilities_and_acls_change", is_root(), "needs root");
    let src = scratch.src();
    for name in ["owner", "suid", "cap", "acl", "uncap", "unacl", "all"] {
        write(src.join(name), name);
    }
    set_mode(src.join("suid"), 0o6711);
    for (name, attribute, value) in [("uncap", CAPABILITY, capability()), ("unacl", ACL_ACCESS, acl(1, 7, 7, 7))] {
        assert!(set_xattr(src.join(name), attribute, &value));
    }
    push_twice(&scratch);
    set_owner(src.join("owner"), 10, 20);
    // chown clears both setid bits and capabilities at either side.
    set_owner(src.join("suid"), 30, 40);
    set_mode(src.join("suid"), 0o6711);
    set_owner(src.join("cap"), 50, 60);
    assert!(set_xattr(src.join("cap"), CAPABILITY, &capability()));
    assert!(set_xattr(src.join("acl"), ACL_ACCESS, &acl(70, 6, 5, 4)));
    drop_xattr(src.join("uncap"), CAPABILITY);
    drop_xattr(src.join("unacl"), ACL_ACCESS);
    set_owner(src.join("all"), 80, 90);
    assert!(set_xattr(src.join("all"), ACL_ACCESS, &acl(70, 6, 5, 4)));
    set_mode(src.join("all"), 0o4755);
    assert!(set_xattr(src.join("all"), CAPABILITY, &capability()));
    append(src.join("acl"), b" new content too");
    push_twice(&scratch);
}

#[test]
fn devices_change_their_numbers() {
    let scratch = Scratch::new();
    need!("devices_change_their_numbers", is_root(), "needs root");
    let src = scratch.src();
    let device = |rdev| node_of(rustix::fs::FileType::CharacterDevice, src.join("device"), rdev);
    device((1, 3));
    push_twice(&scratch);
    remove(&src.join("device"));
    device((1, 5));
    push_twice(&scratch);
}

#[test]
fn times_of_1901_and_2446_survive_a_change_of_content() {
    let name = "times_of_1901_and_2446_survive_a_change_of_content";
    let scratch = Scratch::new();
    let Some(from) = Disk::ext4(name, &scratch, "from", 64) else { return };
    let Some(to) = Disk::ext4(name, &scratch, "to", 64) else { return };
    let (src, dst) = (from.at.join("src"), to.at.join("dst"));
    for (round, content) in [b"one".as_slice(), b"two!"].into_iter().enumerate() {
        for (i, time) in [(EARLIEST + 1, 1), (LATEST - 1, 999_999_999), (-1, 5)].into_iter().enumerate() {
            write(src.join(format!("d{i}/f{i}")), content);
            set_mtime(src.join(format!("d{i}/f{i}")), time.0, time.1);
            set_mtime(src.join(format!("d{i}")), time.0, time.1);
        }
        set_mtime(&src, LATEST - 1, 7);
        push_with(&scratch.state(), &src, &[&dst]).ok();
        assert_exact(&src, &dst);
        assert_eq!(mtime_of(dst.join("d0/f0")), (EARLIEST + 1, 1), "round {round}");
        assert_eq!(mtime_of(&dst), (LATEST - 1, 7), "round {round}");
    }
}

#[test]
fn the_top_directory_has_its_attributes_too() {
    let scratch = Scratch::new();
    let src = scratch.src();
    write(src.join("f"), b"f");
    set_mode(&src, 0o1750);
    set_xattr(&src, "user.top", b"top");
    if is_root() {
        set_owner(&src, 3, 4);
        set_xattr(&src, ACL_DEFAULT, &acl(5, 7, 5, 0));
    }
    set_mtime(&src, 987_654_321, 123_456_789);
    push_twice(&scratch);
    set_mtime(&src, 987_654_322, 1);
    push_twice(&scratch);
}
