//! "Exactness" of section 2: everything a tree is made of arrives, any kind becomes any other, and what did not change
//! is not touched.

mod support;

use std::path::Path;

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
    assert_exact(&scratch.src(), &scratch.dst());
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
        for (i, time) in [(EARLIEST, 1), (LATEST, 999_999_999), (-1, 5)].into_iter().enumerate() {
            write(src.join(format!("d{i}/f{i}")), content);
            set_mtime(src.join(format!("d{i}/f{i}")), time.0, time.1);
            set_mtime(src.join(format!("d{i}")), time.0, time.1);
        }
        set_mtime(&src, LATEST, 7);
        push_with(&scratch.state(), &src, &[&dst]).ok();
        assert_exact(&src, &dst);
        assert_eq!(mtime_of(dst.join("d0/f0")), (EARLIEST, 1), "round {round}");
        assert_eq!(mtime_of(&dst), (LATEST, 7), "round {round}");
    }
}

#[test]
fn a_time_the_file_system_cannot_hold_is_no_failure_and_does_not_come_back() {
    // 128-byte inodes have no room for nanoseconds or for times after 2038.
    let name = "a_time_the_file_system_cannot_hold_is_no_failure_and_does_not_come_back";
    let scratch = Scratch::new();
    let Some(disk) = Disk::ext4_with(name, &scratch, "disk", 64, &["-I", "128"]) else { return };
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
    assert!(groups.len() > 1 && groups.len() < 200, "{} groups", groups.len());
    for node in want.values_mut().chain(have.values_mut()) {
        node.group.clear();
    }
    assert_no_differences("not exact but for the links", &differences(&want, &have));
    let before = snapshot(&dst);
    push_with(&scratch.state(), &src, &[&dst]).timeout(300).ok();
    assert_untouched(&before, &snapshot(&dst));
}

#[test]
fn a_name_outside_dest_keeps_its_inode_when_the_file_is_changed() {
    // The other name of the inode is none of ours: content and metadata must not change through it.
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    for name in ["mode", "content", "time", "gone", "attr"] {
        write(src.join(name), name);
    }
    scratch.push().ok();
    mkdir(scratch.path("outside"));
    for name in ["mode", "content", "time", "gone", "attr"] {
        hard_link(dst.join(name), scratch.path("outside").join(name));
    }
    let before = snapshot(&scratch.path("outside"));
    set_mode(src.join("mode"), 0o600);
    write(src.join("content"), b"another");
    set_mtime(src.join("time"), 5, 5);
    remove(&src.join("gone"));
    set_xattr(src.join("attr"), "user.x", b"x");
    scratch.push().ok();
    assert_exact(&src, &dst);
    let after = snapshot(&scratch.path("outside"));
    // ctime may move with the link count; what the file is may not.
    assert_no_differences("a name outside DEST was changed", &differences(&before, &after));
}

#[test]
fn visible_files_are_replaced_by_rename_never_edited() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    for (name, size) in [("small", 100), ("large", 3 << 20), ("grown", 1 << 20)] {
        write(src.join(name), noise(1, size));
    }
    scratch.push().ok();
    let held: Vec<_> = ["small", "large", "grown"].map(|n| std::fs::File::open(dst.join(n)).unwrap()).into();
    write(src.join("small"), noise(2, 100));
    write(src.join("large"), noise(2, 3 << 20));
    append(src.join("grown"), b"one more line");
    scratch.push().ok();
    assert_exact(&src, &dst);
    for (mut file, size) in held.into_iter().zip([100, 3 << 20, 1 << 20]) {
        let mut seen = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut seen).unwrap();
        assert!(seen == noise(1, size), "an open reader saw the file of {size} bytes change under it");
    }
}

#[test]
fn a_reader_of_dest_sees_old_or_new_whole() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    let paint = |src: &Path, byte: u8| {
        for i in 0..8 {
            write(src.join(format!("f{i}")), vec![byte; 300_000]);
        }
        for i in 0..200 {
            write(src.join(format!("small{i}")), vec![byte; 100]);
        }
    };
    paint(&src, b'a');
    scratch.push().ok();
    let (tx, rx) = std::sync::mpsc::channel();
    let seen = dst.clone();
    let reader = watch::Hammer::start(move |turn| {
        let name = if turn % 2 == 0 { format!("f{}", turn % 8) } else { format!("small{}", turn % 200) };
        let size = if turn % 2 == 0 { 300_000 } else { 100 };
        match std::fs::read(seen.join(&name)) {
            Ok(bytes) if bytes.len() == size && bytes.iter().all(|b| *b == bytes[0]) => {}
            Ok(bytes) => drop(tx.send(format!("{name}: torn: {} bytes", bytes.len()))),
            Err(e) => drop(tx.send(format!("{name}: {e}"))),
        }
    });
    for round in 0..12_u8 {
        paint(&src, b'b' + round);
        scratch.push().ok();
    }
    assert!(reader.stop() > 100);
    let torn: Vec<String> = rx.try_iter().collect();
    assert!(torn.is_empty(), "{} torn reads, first {:?}", torn.len(), &torn[..torn.len().min(5)]);
    assert_exact(&src, &dst);
}

#[test]
fn directory_links_inside_a_tree_are_plain_links() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    write(scratch.path("outside/file"), b"outside");
    write(src.join("real/file"), b"real");
    link_to(scratch.path("outside"), src.join("absolute"));
    link_to("../outside", src.join("relative"));
    link_to("real", src.join("inner"));
    push_twice(&scratch);
    let outside = snapshot(&scratch.path("outside"));
    // A real directory takes the place of the link and the other way round.
    remove(&src.join("absolute"));
    write(src.join("absolute/file"), b"now inside");
    remove(&src.join("real"));
    link_to(scratch.path("outside"), src.join("real"));
    push_twice(&scratch);
    assert_untouched(&outside, &snapshot(&scratch.path("outside")));
    assert!(std::fs::symlink_metadata(dst.join("real")).unwrap().is_symlink());
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

#[test]
fn only_the_changed_entries_are_touched() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    many(&src, 400, 9);
    scratch.push().ok();
    let before = snapshot(&dst);
    let changed = src.join("d003/f00170");
    let time = mtime_of(src.join("d003"));
    append(&changed, b"more");
    set_mtime(src.join("d003"), time.0, time.1);
    settle();
    scratch.push().ok();
    assert_exact(&src, &dst);
    let after = snapshot(&dst);
    let touched: Vec<String> = before
        .iter()
        .filter(|(path, b)| (b.ino, b.ctime) != (after[*path].ino, after[*path].ctime))
        .map(|(path, _)| shown(path))
        .collect();
    // The parent, and the top where staging was, may have their times restored.
    assert!(touched.iter().any(|p| p == "d003/f00170"));
    assert!(touched.iter().all(|p| ["", "d003", "d003/f00170"].contains(&p.as_str())), "{touched:?}");
}
