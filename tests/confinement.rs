//! "Nothing outside SRC is read and nothing outside DEST is changed, even while directories are flipped to symlinks and
//! back during the push." A thread exchanges directories with links to a place outside as fast as the kernel can.

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

use std::path::{Path, PathBuf};

use support::*;

const DIRS: u64 = 6;
const ROUNDS: u64 = 30;
const SECRET: &[u8] = b"SECRET: must never be read";

/// Names in every flipped directory, chosen so that each round works on all of them.
fn fill(dir: &Path, round: u64) {
    mkdir(dir);
    for i in 0..6 {
        write(dir.join(format!("content{i}")), noise(round * 10 + i, 2000));
        write(dir.join(format!("mode{i}")), b"mode");
        set_mode(dir.join(format!("mode{i}")), if (round + i).is_multiple_of(2) { 0o600 } else { 0o644 });
        set_mtime(dir.join(format!("mode{i}")), 1_000_000 + i64::try_from(round).unwrap(), 0);
    }
    set_xattr(dir.join("mode0"), "user.round", round.to_string().as_bytes());
    let flag = round.is_multiple_of(2);
    for (name, there) in [("comes", flag), ("goes", !flag)] {
        let _ = std::fs::remove_dir_all(dir.join(name));
        if there {
            write(dir.join(name).join("file"), b"x");
        }
    }
    let _ = std::fs::remove_file(dir.join("link"));
    link_to(format!("target {round}"), dir.join("link"));
    let _ = std::fs::remove_file(dir.join("special"));
    if flag {
        fifo(dir.join("special"));
    } else {
        socket(dir.join("special"));
    }
    let _ = std::fs::remove_file(dir.join("hard"));
    hard_link(dir.join(format!("content{}", round % 6)), dir.join("hard"));
    let _ = std::fs::remove_file(dir.join(format!("moved{}", round.wrapping_sub(1))));
    write(dir.join(format!("moved{round}")), noise(7, 5000));
}

/// A place outside with the same names, so that whatever is led astray finds a victim.
fn outside(dir: &Path) {
    fill(dir, 0);
    fill(&dir.join("comes"), 0);
    for name in ["content0", "content1", "mode0", "hard", "moved0"] {
        write(dir.join(name), SECRET);
    }
    write(dir.join("only outside"), SECRET);
    write(dir.join("goes/file"), SECRET);
}

/// Pairs (directory, link to the outside) below `tree`, both names existing.
fn traps(tree: &Path, outside: &Path) -> Vec<(PathBuf, PathBuf)> {
    (0..DIRS)
        .map(|i| {
            let (dir, trap) = (tree.join(format!("dir{i}")), tree.join(format!("trap{i}")));
            if std::fs::symlink_metadata(&trap).is_err() {
                link_to(outside, &trap);
            }
            (dir, trap)
        })
        .collect()
}

fn holds_secret(tree: &Tree) -> Option<String> {
    tree.iter()
        .find(|(_, node)| matches!(&node.content, Content::Bytes(b) if b.windows(SECRET.len()).any(|w| w == SECRET)))
        .map(|(path, _)| shown(path))
}

/// Brings the two names of each pair back to where they belong.
fn untangle(pairs: &[(PathBuf, PathBuf)]) {
    for (dir, trap) in pairs {
        if std::fs::symlink_metadata(dir).is_ok_and(|m| m.is_symlink()) {
            let cwd = rustix::fs::CWD;
            let _ = rustix::fs::renameat_with(cwd, dir, cwd, trap, rustix::fs::RenameFlags::EXCHANGE);
        }
    }
}

fn source_flips(push: impl Fn(&Scratch) -> Run, scratch: &Scratch) {
    let (src, dst, out) = (scratch.src(), scratch.dst(), scratch.dir("outside"));
    outside(&out);
    for i in 0..DIRS {
        fill(&src.join(format!("dir{i}")), 0);
    }
    let pairs = traps(&src, &out);
    push(scratch).ok();
    let opens = watch::Opens::below(&[&out]);
    for round in 1..=ROUNDS {
        untangle(&pairs);
        for i in 0..DIRS {
            fill(&src.join(format!("dir{i}")), round);
        }
        opens.take();
        let flipper = watch::Hammer::flip(pairs.clone());
        push(scratch).timeout(60).run().one_of(&[0, 1]);
        flipper.stop();
        let opened = opens.take();
        assert!(opened.is_empty(), "round {round}: opened outside SRC: {opened:?}");
        let seen = snapshot(&dst);
        assert_eq!(holds_secret(&seen), None, "round {round}: content from outside SRC was pushed");
        assert!(seen.keys().all(|p| !p.ends_with(b"only outside")), "round {round}: a listing from outside SRC");
    }
    untangle(&pairs);
    push(scratch).ok();
    assert_exact(&src, &dst);
}

#[test]
fn nothing_outside_src_is_read_while_directories_flip_to_links() {
    let scratch = Scratch::new();
    source_flips(Scratch::push, &scratch);
}

fn dest_flips(push: impl Fn(&Scratch) -> Run, scratch: &Scratch) {
    let (src, dst, out) = (scratch.src(), scratch.dst(), scratch.dir("outside"));
    outside(&out);
    for i in 0..DIRS {
        fill(&src.join(format!("dir{i}")), 0);
    }
    push(scratch).ok();
    let before = snapshot(&out);
    for round in 1..=ROUNDS {
        for i in 0..DIRS {
            let dir = src.join(format!("dir{i}"));
            if round % 10 == i {
                // Whole directories go and come, so that the making and removing of them is attacked as well.
                remove(&dir);
            }
            fill(&dir, round);
        }
        let pairs = traps(&dst, &out);
        let flipper = watch::Hammer::flip(pairs.clone());
        push(scratch).timeout(60).run().one_of(&[0, 1]);
        flipper.stop();
        untangle(&pairs);
        assert_untouched(&before, &snapshot(&out));
    }
    push(scratch).ok();
    assert_exact(&src, &dst);
}

#[test]
fn nothing_outside_dest_is_changed_while_directories_flip_to_links() {
    let scratch = Scratch::new();
    dest_flips(Scratch::push, &scratch);
}

#[test]
fn nothing_outside_a_share_is_changed_while_directories_flip_to_links() {
    let scratch = Scratch::new();
    mkdir(scratch.dst());
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.state());
    let dest = daemon.dest("www");
    dest_flips(|scratch| scratch.push_to(&[&dest]), &scratch);
}

#[test]
fn the_staging_directory_is_not_followed_out_either() {
    // Somebody puts a link, a file or a directory full of things where the staging directory is to be.
    let scratch = Scratch::new();
    let (src, dst, out) = (scratch.src(), scratch.dst(), scratch.dir("outside"));
    outside(&out);
    let before = snapshot(&out);
    let makers: [fn(&Path, &Path); 4] = [
        |at, out| link_to(out, at),
        |at, _| write(at, b"a file"),
        |at, out| {
            mkdir(at);
            link_to(out, at.join("link"));
            hard_link(out.join("content3"), at.join("hard"));
            write(at.join("dir/file"), b"x");
        },
        |at, _| fifo(at),
    ];
    for (round, make) in makers.into_iter().enumerate() {
        for i in 0..5 {
            write(src.join(format!("file{i}")), format!("round {round}"));
        }
        mkdir(&dst);
        make(&dst.join(STAGING), &out);
        // What is in the way may be cleared or reported; it is never followed.
        scratch.push().timeout(30).run().one_of(&[0, 1]);
        assert_no_differences("outside", &differences(&before, &snapshot(&out)));
        if std::fs::symlink_metadata(dst.join(STAGING)).is_ok() {
            remove(&dst.join(STAGING));
        }
        scratch.push().ok();
        assert_exact(&src, &dst);
    }
}

#[test]
fn a_dest_that_is_moved_away_during_the_push_is_not_followed() {
    // The path leads elsewhere in the middle of the push: the new place must stay as it is.
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    many(&src, 800, 1);
    scratch.push().ok();
    let other = scratch.dir("other");
    write(other.join("theirs"), b"theirs");
    let before = snapshot(&other);
    for round in 0..6 {
        edit_many(&src, if round == 0 { 800 } else { 0 }, round);
        write(src.join("large"), noise(round, 2 << 20));
        let mut running = scratch.push().start();
        // From here on it has opened what the path led to.
        wait_for("the push to stage something", 20, || dst.join(STAGING).exists() || !running.is_running());
        std::thread::sleep(std::time::Duration::from_millis(8 * round));
        let cwd = rustix::fs::CWD;
        rustix::fs::renameat_with(cwd, &dst, cwd, &other, rustix::fs::RenameFlags::EXCHANGE).unwrap();
        while running.is_running() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        running.wait().one_of(&[0, 1]);
        // The exchange itself gives the directory a new change time, so its own inode is left out.
        let (mut was, mut is) = (before.clone(), snapshot(&dst));
        was.remove(b"".as_slice());
        is.remove(b"".as_slice());
        assert_untouched(&was, &is);
        rustix::fs::renameat_with(cwd, &dst, cwd, &other, rustix::fs::RenameFlags::EXCHANGE).unwrap();
    }
    scratch.push().ok();
    assert_exact(&src, &dst);
}

#[test]
fn a_fifo_or_device_that_takes_the_place_of_a_file_is_never_opened_for_reading() {
    // Opening a fifo would hang; opening a device may do anything.
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    for i in 0..40 {
        write(src.join(format!("f{i:02}")), noise(i, 3000));
    }
    fifo(src.join("pipe"));
    scratch.push().timeout(30).ok();
    let mut pairs = Vec::new();
    for i in 0..40 {
        fifo(src.join(format!("p{i:02}")));
        pairs.push((src.join(format!("f{i:02}")), src.join(format!("p{i:02}"))));
    }
    for round in 0..8 {
        let flipper = watch::Hammer::flip(pairs.clone());
        scratch.push().arg("-c").timeout(30).run().one_of(&[0, 1]);
        flipper.stop();
        write(src.join("extra"), format!("{round}"));
    }
    scratch.push().ok();
    assert_exact(&src, &dst);
}
