//! "Visible files are replaced by rename, never edited; a reader of DEST sees old or new, whole", and what did not change
//! is not touched, inside DEST or through a name outside it.

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

/// Pushes, compares, pushes again and insists that the second push touched nothing at all and says so.
#[track_caller]
fn push_twice(scratch: &Scratch) {
    scratch.push().ok();
    assert_exact(&scratch.src(), &scratch.dst());
    let before = snapshot(&scratch.dst());
    scratch.push().ok().says("nothing");
    assert_untouched(&before, &snapshot(&scratch.dst()));
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
