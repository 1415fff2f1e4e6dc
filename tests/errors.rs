//! "Full disk, no inodes, read-only or immutable targets, too few descriptors: a clear error naming the path, everything
//! else done, old content intact, the next push repairs." And sources that cannot be read or do not hold still.

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

use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use support::*;

#[track_caller]
fn exact_and_clean(src: &Path, dst: &Path) {
    assert_exact(src, dst);
    assert_no_differences("left over", &leftovers(&snapshot(dst)));
}

/// Nobody looks again after a push, so that what it may have missed has to be said.
#[test]
fn a_directory_that_never_rests_is_pushed_as_far_as_it_does_and_named() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    (0..5000).for_each(|i| write(src.join(format!("d/{i:04}")), b"x"));
    let rests = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !rests.load(Ordering::Relaxed) {
                write(src.join("d/passing"), b"x");
                std::thread::sleep(std::time::Duration::from_millis(1));
                let _ = std::fs::remove_file(src.join("d/passing"));
            }
        });
        // Whoever runs beside this may leave it at rest for a while.
        let named = (0..50).map(|_| scratch.push().run()).find(|ran| ran.err().contains("cannot see all of"));
        rests.store(true, Ordering::Relaxed);
        let ran = named.expect("it was at rest").code(1);
        assert!(ran.err().contains("push again when it rests"), "{ran}");
        assert!(dst.join("d/4999").exists(), "{ran}");
    });
    scratch.push().ok();
    assert_exact(&src, &dst);
}

#[test]
fn a_full_disk_is_named_the_rest_is_done_and_the_next_push_repairs() {
    let name = "a_full_disk_is_named_the_rest_is_done_and_the_next_push_repairs";
    let scratch = Scratch::new();
    need!(name, scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.dst());
    mount_tmpfs(&dst, "size=12m");
    for (file, size) in [("aa/changed", 1 << 20), ("huge", 500_000), ("zz/changed", 20_000)] {
        write(src.join(file), noise(1, size));
    }
    scratch.push().ok();
    let old = snapshot(&dst);
    write(src.join("huge"), noise(2, 40 << 20));
    write(src.join("aa/changed"), noise(3, 1 << 20));
    write(src.join("zz/changed"), noise(4, 20_000));
    many(&src.join("small"), 60, 1);
    scratch.push().code(1).names("huge").says("no space");
    let seen = snapshot(&dst);
    assert_eq!(seen[b"huge".as_slice()].content, old[b"huge".as_slice()].content, "the old content is not intact");
    assert_eq!(std::fs::read(dst.join("zz/changed")).unwrap(), noise(4, 20_000), "the rest was not done");
    assert_eq!(std::fs::read(dst.join("aa/changed")).unwrap(), noise(3, 1 << 20), "the rest was not done");
    assert!(dst.join("small/d001/f00059").exists(), "the rest was not done");
    remount(&dst, "size=100m");
    scratch.push().ok();
    exact_and_clean(&src, &dst);
}

/// Two that do not fit together fill the disk at once; by itself, one does fit.
#[test]
fn what_fits_on_a_full_disk_arrives() {
    let scratch = Scratch::new();
    need!("what_fits_on_a_full_disk_arrives", scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.dst());
    mount_tmpfs(&dst, "size=40m");
    for (seed, name) in [(1, "a"), (2, "b")] {
        write(src.join(name), noise(seed, 30 << 20));
    }
    let ran = scratch.push().code(1).says("no space");
    let there: Vec<_> = ["a", "b"].into_iter().filter(|name| dst.join(name).exists()).collect();
    assert_eq!(there.len(), 1, "{ran}");
    for name in ["a", "b"].into_iter().filter(|name| !there.contains(name)) {
        assert!(ran.err().contains(&format!("/{name}: ")), "{ran}");
    }
    remount(&dst, "size=200m");
    scratch.push().ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn a_full_ext4_is_named_and_the_next_push_repairs() {
    let name = "a_full_ext4_is_named_and_the_next_push_repairs";
    let scratch = Scratch::new();
    let Some(disk) = Disk::ext4(name, &scratch, "disk", 24) else { return };
    let (src, dst) = (scratch.src(), disk.at.join("dst"));
    let push = || push_with(&scratch.state(), &src, &[&dst]);
    for i in 0..30 {
        write(src.join(format!("f{i:02}")), noise(i, 300_000));
    }
    push().ok();
    let old = snapshot(&dst);
    for i in 0..30 {
        write(src.join(format!("f{i:02}")), noise(100 + i, 800_000));
    }
    let new = snapshot(&src);
    push().code(1).says("no space").names("f");
    assert_old_or_new(&old, &new, &snapshot(&dst));
    for i in 10..30 {
        remove(&src.join(format!("f{i:02}")));
    }
    // Even with deletions that make the room the push may need a second run, not a third.
    push().run().one_of(&[0, 1]);
    push().ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn a_quota_like_limit_on_one_mount_does_not_hold_the_others() {
    let name = "a_quota_like_limit_on_one_mount_does_not_hold_the_others";
    let scratch = Scratch::new();
    need!(name, scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.dst());
    mount_tmpfs(&dst.join("small"), "size=1m");
    write(src.join("small/too big"), noise(1, 3 << 20));
    write(src.join("small/fits"), noise(2, 1000));
    write(src.join("other/file"), noise(3, 3 << 20));
    scratch.push().code(1).names("too big");
    assert_eq!(std::fs::read(dst.join("small/fits")).unwrap(), noise(2, 1000));
    assert_eq!(std::fs::read(dst.join("other/file")).unwrap(), noise(3, 3 << 20));
    remount(&dst.join("small"), "size=20m");
    scratch.push().ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn no_inodes_is_named_and_the_next_push_repairs() {
    let name = "no_inodes_is_named_and_the_next_push_repairs";
    let scratch = Scratch::new();
    need!(name, scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.dst());
    mount_tmpfs(&dst, "size=50m,nr_inodes=60");
    for i in 0..20 {
        write(src.join(format!("old{i}")), noise(i, 1000));
    }
    scratch.push().ok();
    let old = snapshot(&dst);
    many(&src.join("many"), 200, 1);
    write(src.join("old3"), b"changed");
    let new = snapshot(&src);
    let ran = scratch.push().code(1).says("no space").says("more for the same reason");
    assert!(ran.err().lines().count() < 60, "{ran}");
    assert_old_or_new(&old, &new, &snapshot(&dst));
    for i in (0..20).filter(|i| *i != 3) {
        assert_eq!(std::fs::read(dst.join(format!("old{i}"))).unwrap(), noise(i, 1000));
    }
    remount(&dst, "nr_inodes=10000");
    scratch.push().ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn a_read_only_target_is_named_and_untouched() {
    let name = "a_read_only_target_is_named_and_untouched";
    let scratch = Scratch::new();
    need!(name, scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.dst());
    mount_tmpfs(&dst, "size=20m");
    many(&src, 50, 1);
    scratch.push().ok();
    append(src.join("d000/f00001"), b"more");
    remove(&src.join("d000/f00002"));
    remount(&dst, "ro");
    let before = snapshot(&dst);
    scratch.push().code(1).says("read-only").names("dst");
    assert_untouched(&before, &snapshot(&dst));
    remount(&dst, "rw");
    scratch.push().ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn a_read_only_mount_below_dest_holds_only_itself() {
    let name = "a_read_only_mount_below_dest_holds_only_itself";
    let scratch = Scratch::new();
    need!(name, scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.dst());
    mount_tmpfs(&dst.join("m"), "size=20m");
    for file in ["m/file", "file"] {
        write(src.join(file), b"one");
    }
    scratch.push().ok();
    for file in ["m/file", "file"] {
        write(src.join(file), b"three");
    }
    remount(&dst.join("m"), "ro");
    scratch.push().code(1).names("m/file").says("read-only");
    assert_eq!(std::fs::read(dst.join("file")).unwrap(), b"three");
    assert_eq!(std::fs::read(dst.join("m/file")).unwrap(), b"one");
    remount(&dst.join("m"), "rw");
    scratch.push().ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn what_is_unmounted_below_dest_is_not_called_identical() {
    let name = "what_is_unmounted_below_dest_is_not_called_identical";
    let scratch = Scratch::new();
    need!(name, scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.dst());
    mount_tmpfs(&dst.join("m"), "size=20m");
    write(src.join("m/file"), b"one");
    scratch.push().ok();
    unmount(&dst.join("m"));
    write(src.join("m/file"), b"three");
    write(src.join("file"), b"three");
    let ran = scratch.push().arg("--json").code(1);
    let ended = ran.json_of("destination");
    assert_eq!(ended[0]["exact"], false, "{ran}");
    assert!(!dst.join("m/file").exists(), "nothing may be put where something was mounted");
    assert_eq!(std::fs::read(dst.join("file")).unwrap(), b"three");
}

#[test]
fn immutable_files_and_directories_are_named_and_the_rest_is_done() {
    let name = "immutable_files_and_directories_are_named_and_the_rest_is_done";
    let scratch = Scratch::new();
    let Some(disk) = Disk::ext4(name, &scratch, "disk", 64) else { return };
    need!(name, has("chattr"), "needs chattr");
    let (src, dst) = (scratch.src(), disk.at.join("dst"));
    let push = || push_with(&scratch.state(), &src, &[&dst]);
    for file in ["content", "mode", "gone", "dir/in", "dir/gone", "fine", "typed"] {
        write(src.join(file), file);
    }
    push().ok();
    let chattr = |flag: &str| {
        for path in ["content", "mode", "gone", "dir", "typed"] {
            tool("chattr", &[flag.as_ref(), dst.join(path).as_os_str()]);
        }
    };
    chattr("+i");
    write(src.join("content"), b"changed");
    set_mode(src.join("mode"), 0o600);
    remove(&src.join("gone"));
    write(src.join("dir/in"), b"changed");
    write(src.join("dir/new"), b"new");
    remove(&src.join("dir/gone"));
    remove(&src.join("typed"));
    link_to("x", src.join("typed"));
    write(src.join("fine"), b"changed");
    let ran = push().code(1);
    for path in ["content", "mode", "gone", "dir/in", "dir/new", "dir/gone", "typed"] {
        assert!(ran.err().contains(path), "{path} is not named\n{ran}");
    }
    for (path, content) in [("content", "content"), ("gone", "gone"), ("dir/in", "dir/in"), ("typed", "typed")] {
        assert_eq!(std::fs::read(dst.join(path)).unwrap(), content.as_bytes(), "{path} is not intact");
    }
    assert_eq!(std::fs::read(dst.join("fine")).unwrap(), b"changed", "the rest was not done");
    assert_no_differences("left over", &leftovers(&snapshot(&dst)));
    chattr("-i");
    push().ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn an_immutable_top_is_named() {
    let name = "an_immutable_top_is_named";
    let scratch = Scratch::new();
    let Some(disk) = Disk::ext4(name, &scratch, "disk", 64) else { return };
    need!(name, has("chattr"), "needs chattr");
    let (src, dst) = (scratch.src(), disk.at.join("dst"));
    write(src.join("file"), b"one");
    push_with(&scratch.state(), &src, &[&dst]).ok();
    write(src.join("file"), b"two!");
    tool("chattr", &["+i".as_ref(), dst.as_os_str()]);
    let before = snapshot(&dst);
    push_with(&scratch.state(), &src, &[&dst]).code(1).names("dst");
    assert_untouched(&before, &snapshot(&dst));
    tool("chattr", &["-i".as_ref(), dst.as_os_str()]);
    push_with(&scratch.state(), &src, &[&dst]).ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn a_busy_mount_point_that_must_go_is_named_and_the_rest_is_done() {
    let name = "a_busy_mount_point_that_must_go_is_named_and_the_rest_is_done";
    let scratch = Scratch::new();
    need!(name, scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.dst());
    write(src.join("file"), b"one");
    mount_tmpfs(&dst.join("mounted"), "size=1m");
    scratch.push().code(1).names("mounted");
    assert_eq!(std::fs::read(dst.join("file")).unwrap(), b"one");
    unmount(&dst.join("mounted"));
    // A directory that was a mount and is none any more is unreadable, not empty: it is held until somebody says so.
    scratch.push().run().one_of(&[0, 1]);
    scratch.push().arg("--checksum").ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn few_descriptors_suffice_or_are_a_clear_error() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    many(&src, 2000, 1);
    deep(&src, b"deep", 150, 10);
    write(src.join("large"), noise(3, 5 << 20));
    for limit in [64, 40, 24, 12] {
        let script = format!("ulimit -n {limit}; exec \"$@\"");
        let ran = scratch.push().behind(&["sh", "-c", &script, "sh"]).timeout(60).run();
        if ran.status.success() {
            exact_and_clean(&src, &dst);
        } else {
            ran.code(1).says("open files");
        }
        write(src.join("large"), noise(limit, 5 << 20));
        edit_many(&src, if limit == 64 { 2000 } else { 0 }, limit);
    }
    scratch.push().ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn sixty_four_descriptors_suffice() {
    // The design bounds its descriptors; a session with a wide and deep tree fits into a small allowance.
    let scratch = Scratch::new();
    many(&scratch.src(), 3000, 1);
    deep(&scratch.src(), b"deep", 300, 10);
    let ran = scratch.push().behind(&["sh", "-c", "ulimit -n 64; exec \"$@\"", "sh"]).run();
    if !ran.status.success() {
        // Not enough is allowed, silence is not; and what could be done must be there.
        let ran = ran.code(1).says("open files");
        assert!(ran.err().contains("dst") || ran.err().contains("src") || ran.err().contains("deep"), "{ran}");
    }
    scratch.push().ok();
    exact_and_clean(&scratch.src(), &scratch.dst());
}

#[test]
fn a_file_that_changes_while_it_is_read_is_reported_and_never_torn() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    let size = 48 << 20;
    write(src.join("restless"), vec![0_u8; size]);
    write(src.join("quiet"), b"quiet");
    scratch.push().ok();
    let old = snapshot(&dst);
    write(src.join("quiet"), b"changed");
    let file = std::fs::File::options().write(true).open(src.join("restless")).unwrap();
    let writer = watch::Hammer::start(move |turn| {
        let page = vec![u8::try_from(turn % 251).unwrap() + 1; 4096];
        file.write_all_at(&page, (turn * 7919 * 4096) % (48 << 20)).unwrap();
    });
    let ran = scratch.push().timeout(120).run();
    writer.stop();
    ran.code(1).names("restless");
    let seen = snapshot(&dst);
    assert_eq!(seen[b"restless".as_slice()].content, old[b"restless".as_slice()].content, "a torn mix was published");
    assert_eq!(std::fs::read(dst.join("quiet")).unwrap(), b"changed", "the rest was not done");
    scratch.push().ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn files_that_grow_shrink_and_vanish_while_read_end_whole() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    many(&src, 200, 1);
    write(src.join("grows"), vec![b'g'; 10]);
    write(src.join("shrinks"), vec![b's'; 8 << 20]);
    let there = src.clone();
    let worker = watch::Hammer::start(move |turn| {
        let mut grows = std::fs::File::options().append(true).open(there.join("grows")).unwrap();
        grows.write_all(&[b'g'; 10]).unwrap();
        let shrinks = std::fs::File::options().write(true).open(there.join("shrinks")).unwrap();
        shrinks.set_len((8 << 20) - (turn * 4096) % (8 << 20)).unwrap();
        let _ = std::fs::remove_file(there.join(format!("d000/f{:05}", turn % 50)));
        write(there.join(format!("d000/f{:05}", turn % 50)), [b'v'; 300]);
        std::thread::sleep(std::time::Duration::from_micros(200));
    });
    for _ in 0..6 {
        let ran = scratch.push().timeout(60).run().one_of(&[0, 1]);
        assert!(ran.status.success() || !ran.raw_err.is_empty(), "{ran}");
        for (path, node) in snapshot(&dst) {
            // Whatever arrived consists of what was there at one moment.
            let whole = match &node.content {
                Content::Bytes(bytes) if path == b"grows" => bytes.len() % 10 == 0 && bytes.iter().all(|b| *b == b'g'),
                Content::Bytes(bytes) if path.starts_with(b"d000/") => {
                    bytes == &[b'v'; 300] || !bytes.iter().all(|b| *b == b'v') || bytes.is_empty()
                }
                _ => true,
            };
            assert!(whole, "{} is torn", shown(&path));
        }
    }
    worker.stop();
    scratch.push().ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn directories_renamed_in_a_loop_lose_no_file() {
    // A listing during a rename may show neither name. Nothing may be deleted for that.
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    for i in 0..300 {
        write(src.join(format!("crowd/f{i:03}")), noise(i, 200));
    }
    write(src.join("crowd/moving a"), b"the moving one");
    scratch.push().ok();
    let there = src.join("crowd");
    let mover = watch::Hammer::start(move |turn| {
        let (from, to) = if turn % 2 == 0 { ("moving a", "moving b") } else { ("moving b", "moving a") };
        std::fs::rename(there.join(from), there.join(to)).unwrap();
    });
    for _ in 0..15 {
        // It may be reported as restless; it may not be taken for gone.
        scratch.push().timeout(60).run().one_of(&[0, 1]);
        let alive = ["a", "b"].iter().any(|n| dst.join(format!("crowd/moving {n}")).exists());
        assert!(alive, "a file that always existed was deleted at the replica");
    }
    mover.stop();
    scratch.push().ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn unreadable_files_and_directories_are_reported_and_their_copies_stay() {
    let name = "unreadable_files_and_directories_are_reported_and_their_copies_stay";
    need!(name, is_root() && has("setpriv"), "needs root and setpriv to become somebody else");
    let scratch = Scratch::new();
    let user = as_user(&scratch);
    let (src, dst) = (user.home.join("src"), user.home.join("dst"));
    for file in ["file", "dir/one", "dir/sub/two", "listed/one", "fine/changed", "fine/gone", "new dir/x"] {
        write(src.join(file), file);
    }
    let own = || tool("chown", &["-R".as_ref(), "12345:12345".as_ref(), src.as_os_str()]);
    own();
    user.push(&src, &dst).ok();
    let old = snapshot(&dst);
    write(src.join("file"), b"changed");
    write(src.join("dir/one"), b"changed");
    remove(&src.join("dir/sub"));
    write(src.join("listed/one"), b"changed");
    write(src.join("fine/changed"), b"changed");
    remove(&src.join("fine/gone"));
    write(src.join("new unreadable/x"), b"x");
    write(src.join("new secret"), b"x");
    own();
    for (path, mode) in [("file", 0), ("dir", 0), ("listed", 0o400), ("new unreadable", 0), ("new secret", 0)] {
        set_mode(src.join(path), mode);
    }
    let ran = user.push(&src, &dst).code(1);
    for path in ["file", "dir", "listed/one", "new unreadable", "new secret"] {
        assert!(ran.err().contains(path), "{path} is not reported\n{ran}");
    }
    let seen = snapshot(&dst);
    for path in ["file", "dir/one", "dir/sub/two", "listed/one"] {
        let same = seen.get(path.as_bytes()).is_some_and(|n| n.content == old[path.as_bytes()].content);
        assert!(same, "the copy of {path} did not stay as it was");
    }
    assert_eq!(std::fs::read(dst.join("fine/changed")).unwrap(), b"changed", "the rest was not done");
    assert!(!dst.join("fine/gone").exists(), "deletions elsewhere were not done");
    // Still unreadable: it says so again and changes nothing. (A directory of one's own that keeps its owner out is
    // opened for the moment and restored, which its change time tells.)
    user.push(&src, &dst).code(1);
    assert_no_differences("changed although nothing may be", &differences(&seen, &snapshot(&dst)));
    for path in ["file", "dir", "listed", "new unreadable", "new secret"] {
        set_mode(src.join(path), 0o755);
    }
    user.push(&src, &dst).ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn an_unwritable_dest_of_another_is_named() {
    let name = "an_unwritable_dest_of_another_is_named";
    need!(name, is_root() && has("setpriv"), "needs root and setpriv to become somebody else");
    let scratch = Scratch::new();
    let user = as_user(&scratch);
    let (src, dst) = (user.home.join("src"), scratch.dir("of root"));
    write(src.join("file"), b"file");
    write(dst.join("theirs"), b"theirs");
    let before = snapshot(&dst);
    user.push(&src, &dst).code(1).names("of root").says("permission denied");
    assert_untouched(&before, &snapshot(&dst));
}

#[test]
fn an_unreadable_src_is_refused_and_nothing_is_deleted() {
    let name = "an_unreadable_src_is_refused_and_nothing_is_deleted";
    need!(name, is_root() && has("setpriv"), "needs root and setpriv to become somebody else");
    let scratch = Scratch::new();
    let user = as_user(&scratch);
    let (src, dst) = (user.home.join("src"), user.home.join("dst"));
    write(src.join("file"), b"file");
    tool("chown", &["-R".as_ref(), "12345:12345".as_ref(), src.as_os_str()]);
    user.push(&src, &dst).ok();
    set_mode(&src, 0);
    let before = snapshot(&dst);
    user.push(&src, &dst).run().one_of(&[1, 2]).names("src");
    assert_untouched(&before, &snapshot(&dst));
}

#[test]
fn one_failure_never_stops_the_others() {
    let name = "one_failure_never_stops_the_others";
    let scratch = Scratch::new();
    let Some(disk) = Disk::ext4(name, &scratch, "disk", 64) else { return };
    need!(name, has("chattr"), "needs chattr");
    let (src, dst) = (scratch.src(), disk.at.join("dst"));
    many(&src, 200, 1);
    let push = || push_with(&scratch.state(), &src, &[&dst]);
    push().ok();
    let bad: Vec<String> = (0..200).step_by(50).map(|i| format!("d{:03}/f{i:05}", i / 50)).collect();
    for path in &bad {
        tool("chattr", &["+i".as_ref(), dst.join(path).as_os_str()]);
    }
    for i in 0..200 {
        append(src.join(format!("d{:03}/f{i:05}", i / 50)), b"more");
    }
    let ran = push().args(&["--json"]).code(1);
    let problems = ran.json_of("problem");
    assert_eq!(problems.len(), bad.len(), "{ran}");
    for path in &bad {
        assert!(problems.iter().any(|p| p["path"] == path.as_str() && p["reason"].is_string()), "{path}\n{ran}");
        assert!(ran.err().contains(path.as_str()), "{path} is not on standard error\n{ran}");
    }
    let left = differences(&snapshot(&src), &snapshot(&dst));
    assert!(left.iter().all(|line| bad.iter().any(|path| line.starts_with(path.as_str()))), "{left:?}");
    for path in &bad {
        tool("chattr", &["-i".as_ref(), dst.join(path).as_os_str()]);
    }
    push().ok();
    exact_and_clean(&src, &dst);
}

#[test]
fn a_source_that_is_not_mounted_is_no_empty_source() {
    let name = "a_source_that_is_not_mounted_is_no_empty_source";
    let scratch = Scratch::new();
    need!(name, scratch.mounts, "needs root and a mount namespace");
    let (src, dst) = (scratch.src(), scratch.dst());
    mount_tmpfs(&src, "size=8m");
    many(&src, 20, 1);
    scratch.push().ok();
    let before = snapshot(&dst);
    unmount(&src);
    scratch.push().code(1).says("not mounted");
    assert_untouched(&before, &snapshot(&dst));
    // Whoever means it says so.
    scratch.push().arg("--checksum").ok();
    exact_and_clean(&src, &dst);
}
