//! The tests' own instruments are tested first: a comparison that cannot fail proves nothing.

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

/// A copy by cp of the zoo is identical; every single change of one entry is seen.
#[test]
fn the_comparison_sees_every_kind_of_difference() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    zoo(&src, Zoo { far_times: true });
    copy_tree(&src, &dst);
    let clean = |dst: &std::path::Path| {
        let (want, have) = (snapshot(&src), snapshot(dst));
        differences(&want, &have)
    };
    // cp cannot make sockets with second names; all else must be equal.
    let expected = clean(&dst);
    assert!(expected.iter().all(|line| line.contains("socket")), "{expected:?}");
    type Change = fn(&std::path::Path);
    let changes: [(&str, &str, Change); 12] = [
        ("content", "content", |d| {
            let time = mtime_of(d.join("size/4097"));
            let mut bytes = std::fs::read(d.join("size/4097")).unwrap();
            bytes[4096] ^= 1;
            write(d.join("size/4097"), bytes);
            set_mtime(d.join("size/4097"), time.0, time.1);
        }),
        ("long content", "content", |d| {
            let path = d.join(format!("size/{}", (3 << 20) + 17));
            let time = mtime_of(&path);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[3_000_000] ^= 1;
            write(&path, bytes);
            set_mtime(&path, time.0, time.1);
        }),
        ("mode", "mode", |d| set_mode(d.join("empty"), 0o600)),
        ("mtime by a nanosecond", "mtime", |d| {
            let (s, n) = mtime_of(d.join("names"));
            set_mtime(d.join("names"), s, n ^ 1);
        }),
        ("mtime of a link", "mtime", |d| set_mtime(d.join("odd target"), 5, 5)),
        ("mtime of the top", "mtime", |d| set_mtime(d, 5, 5)),
        ("xattr", "xattrs", |d| {
            set_xattr(d.join("xattrs/file"), "user.plain", b"other");
        }),
        ("acl", "xattrs", |d| drop_xattr(d.join("xattrs/dir acl"), ACL_DEFAULT)),
        ("extra", "should not be there", |d| write(d.join("hard/far/extra"), b"")),
        ("missing", "missing", |d| std::fs::remove_file(d.join("hard/far/away/c")).unwrap()),
        ("target", "kind", |d| {
            remove(&d.join("link to itself"));
            link_to("..", d.join("link to itself"));
        }),
        ("group", "hard-link group", |d| {
            std::fs::remove_file(d.join("hard/twin 2")).unwrap();
            hard_link(d.join("hard/twin 1"), d.join("hard/twin 2"));
        }),
    ];
    for (name, word, change) in changes {
        let copy = scratch.path(format!("copy {name}"));
        copy_tree(&dst, &copy);
        change(&copy);
        let seen = clean(&copy);
        assert!(seen.iter().any(|line| line.contains(word)), "{name} is not seen: {seen:?}");
    }
}

#[test]
fn the_comparison_sees_lost_holes_and_touches() {
    let scratch = Scratch::new();
    let src = scratch.src();
    write(src.join("zeros"), vec![0_u8; 4 << 20]);
    assert_eq!(lost_holes(&snapshot(&src)).len(), 1);
    std::fs::File::create(src.join("zeros")).unwrap().set_len(4 << 20).unwrap();
    assert!(lost_holes(&snapshot(&src)).is_empty());
    let before = snapshot(&src);
    settle();
    set_mode(src.join("zeros"), 0o644);
    let after = snapshot(&src);
    let caught = std::panic::catch_unwind(|| assert_untouched(&before, &after));
    assert!(caught.is_err(), "a changed ctime is not seen");
}

/// What was not flushed before a sudden power cut is really gone: otherwise the power-cut tests prove nothing.
#[test]
fn the_power_cut_really_loses_what_was_not_flushed() {
    let name = "the_power_cut_really_loses_what_was_not_flushed";
    let scratch = Scratch::new();
    let Some(mut disk) = Disk::ext4(name, &scratch, "disk", 64) else { return };
    write(disk.at.join("flushed"), noise(1, 100_000));
    std::fs::File::open(disk.at.join("flushed")).unwrap().sync_all().unwrap();
    std::fs::File::open(&disk.at).unwrap().sync_all().unwrap();
    write(disk.at.join("lost"), noise(2, 100_000));
    disk.power_cut(Cut::Sudden);
    assert_eq!(std::fs::read(disk.at.join("flushed")).unwrap(), noise(1, 100_000));
    assert!(!disk.at.join("lost").exists(), "the cut flushed what it should lose");
}

#[test]
fn rot_changes_content_and_nothing_else() {
    let name = "rot_changes_content_and_nothing_else";
    let scratch = Scratch::new();
    let Some(mut disk) = Disk::ext4(name, &scratch, "disk", 64) else { return };
    let (good, bad) = (noise(1, 4096), noise(2, 4096));
    write(disk.at.join("file"), &good);
    disk.unmount();
    disk.mount();
    let before = snapshot(&disk.at);
    disk.unmount();
    disk.rot(&good, &bad);
    disk.mount();
    let after = snapshot(&disk.at);
    assert_eq!(std::fs::read(disk.at.join("file")).unwrap(), bad);
    let (a, b) = (&before[b"file".as_slice()], &after[b"file".as_slice()]);
    assert_eq!((a.ino, a.ctime, a.mtime, a.size), (b.ino, b.ctime, b.mtime, b.size));
}

#[test]
fn opens_are_counted() {
    let scratch = Scratch::new();
    let src = scratch.src();
    write(src.join("a/b/file"), b"x");
    let opens = watch::Opens::below(&[&src]);
    assert!(opens.take().is_empty());
    std::fs::read(src.join("a/b/file")).unwrap();
    std::fs::read_dir(src.join("a")).unwrap();
    assert_eq!(opens.take(), [src.join("a/b/file")]);
}
