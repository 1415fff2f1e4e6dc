//! What an edit costs on the wire. Bytes are the same every time: each bound is a promise, not a measurement of a moment.

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

use std::os::unix::fs::FileExt;

use support::*;

const M: usize = 1 << 20;

/// What a connection and an announcement cost without any content.
const SESSION: u64 = 7000;

/// A tree of one file, pushed once.
fn pushed(content: &[u8]) -> Scratch {
    let scratch = Scratch::new();
    write(scratch.src().join("file"), content);
    scratch.push().ok();
    scratch
}

/// Bytes on the wire, both ways, of a push that ends exact.
fn push(scratch: &Scratch, args: &[&str]) -> (u64, Summary) {
    let summary = scratch.push().arg("--json").args(args).ok().summary();
    assert_exact(&scratch.src(), &scratch.dst());
    (summary.count("wire_sent") + summary.count("wire_received"), summary)
}

/// The file becomes `new`, and that costs at most so many bytes without compression.
fn becomes(scratch: &Scratch, new: &[u8], most: u64) {
    write(scratch.src().join("file"), new);
    let (bytes, summary) = push(scratch, &["--compress=never"]);
    assert!(bytes <= most, "{bytes} bytes, at most {most} were promised: {summary:?}");
}

/// `content` with some bytes overwritten.
fn overwritten(content: &[u8], places: impl IntoIterator<Item = usize>, with: &[u8]) -> Vec<u8> {
    let mut content = content.to_vec();
    for at in places {
        content[at..at + with.len()].copy_from_slice(with);
    }
    content
}

/// Lines of a dump, each unlike the others.
fn lines(seed: u64, count: usize) -> Vec<u8> {
    let mut text = Vec::new();
    for (i, number) in noise(seed, count * 8).chunks_exact(8).enumerate() {
        let number = u64::from_le_bytes(number.try_into().unwrap());
        text.extend_from_slice(
            format!("INSERT INTO t VALUES ({i}, {number}, 'name of {}');\n", number % 977).as_bytes(),
        );
    }
    text
}

#[test]
fn a_byte_inserted_at_the_front() {
    let content = noise(1, 80 * M);
    let scratch = pushed(&content);
    // Over 64 MiB the master knows the chunks, and the replica need not tell them.
    becomes(&scratch, &[b"X", &content[..]].concat(), SESSION + 6000);
}

#[test]
fn within_one_machine_bytes_are_saved_only_of_the_largest_files_unless_it_is_asked_for() {
    let scratch = Scratch::new();
    let (small, large) = (noise(7, 3 * M), noise(8, 80 * M));
    let become_edited = |with: &[u8]| {
        write(scratch.src().join("small"), overwritten(&small, [M], with));
        write(scratch.src().join("large"), overwritten(&large, [40 * M], with));
    };
    become_edited(b"first");
    scratch.push().ok();
    become_edited(b"other");
    let (bytes, summary) = push(&scratch, &[]);
    assert!((3 * M as u64..4 * M as u64).contains(&bytes), "{bytes} bytes: {summary:?}");
    for (with, how) in [(b"third", "--compress=never"), (b"again", "--bwlimit=100m")] {
        become_edited(with);
        let (bytes, summary) = push(&scratch, &[how]);
        assert!(bytes < 60_000, "{how}: {bytes} bytes: {summary:?}");
    }
}

#[test]
fn a_byte_inserted_at_the_front_of_a_file_whose_chunks_nobody_knows() {
    let content = noise(1, 20 * M);
    let scratch = pushed(&content);
    becomes(&scratch, &[b"X", &content[..]].concat(), SESSION + 24_000);
}

#[test]
fn an_edit_after_the_index_of_the_master_was_lost() {
    let content = noise(1, 80 * M);
    let scratch = pushed(&content);
    let edited = overwritten(&content, [40 * M], b"edited");
    write(scratch.src().join("file"), &edited);
    for file in damage::index_files(&scratch.state())
        .iter()
        .filter(|file| shown(file.as_os_str().as_encoded_bytes()).contains("/source-"))
    {
        std::fs::remove_file(file).unwrap();
    }
    let (bytes, summary) = push(&scratch, &["--compress=never"]);
    // The list of chunks crosses the wire.
    assert!(bytes < 60_000, "{bytes} bytes: {summary:?}");
}

#[test]
fn scattered_edits() {
    let content = noise(2, 70 * M);
    let scratch = pushed(&content);
    let places = (0..50).map(|i| i * 1_403_111 + 77);
    becomes(&scratch, &overwritten(&content, places, b"edited-here-now-123456"), SESSION + 50 * 3000);
}

#[test]
fn an_appended_mebibyte() {
    let content = noise(3, 66 * M);
    let scratch = pushed(&content);
    becomes(&scratch, &[&content[..], &noise(4, M)].concat(), (M + M / 50) as u64 + SESSION + 6000);
}

#[test]
fn lines_inserted_everywhere_in_a_dump() {
    let old = lines(5, 200_000);
    let scratch = pushed(&old);
    let mut new = Vec::new();
    for (i, line) in old.split_inclusive(|b| *b == b'\n').enumerate() {
        if i % 1000 == 500 {
            new.extend_from_slice(format!("INSERT INTO t VALUES (-{i}, 'new');\n").as_bytes());
        }
        new.extend_from_slice(line);
    }
    // 200 lines, each with its piece; and what tells the pieces of the whole file.
    becomes(&scratch, &new, 200 * 2500 + (old.len() / 1024 * 10) as u64 + SESSION);
}

#[test]
fn an_archive_whose_members_moved() {
    let members: Vec<Vec<u8>> = (0..30).map(|i| noise(100 + i, 300_000 + i as usize * 1111)).collect();
    let scratch = pushed(&members.concat());
    let mut moved = members;
    moved.reverse();
    moved.swap(3, 20);
    becomes(&scratch, &moved.concat(), SESSION + 30 * 5200);
}

#[test]
fn an_image_with_scattered_blocks_and_punched_holes() {
    let content = noise(6, 24 * M);
    let scratch = pushed(&content);
    let file = std::fs::OpenOptions::new().write(true).open(scratch.src().join("file")).unwrap();
    for i in 0..40u64 {
        file.write_all_at(&noise(200 + i, 4096), (i * 137 % 6144) * 4096).unwrap();
        let hole = (i * 151 + 3) % 6144;
        rustix::fs::fallocate(
            &file,
            rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
            hole * 4096,
            4096,
        )
        .unwrap();
    }
    drop(file);
    let (bytes, summary) = push(&scratch, &["--compress=never"]);
    let most = SESSION + 40 * 4096 * 2 + 80 * 1800 + 16_000;
    assert!(bytes <= most, "{bytes} bytes, at most {most} were promised: {summary:?}");
}

#[test]
fn a_log_truncated_at_its_front() {
    let old = lines(7, 100_000);
    let scratch = pushed(&old);
    let cut = old.len() / 3;
    becomes(&scratch, &old[cut..], SESSION + 12_000);
}

#[test]
fn a_file_of_one_repeated_block() {
    let block = noise(8, 4096);
    let old = block.repeat(4000);
    let scratch = pushed(&old);
    becomes(&scratch, &overwritten(&old, [8 * M], b"an edit"), SESSION + 30_000);
}

#[test]
fn a_database_rewritten_in_place() {
    let content = noise(9, 12 * M);
    let scratch = pushed(&content);
    let file = std::fs::OpenOptions::new().write(true).open(scratch.src().join("file")).unwrap();
    for i in 0..30u64 {
        file.write_all_at(&noise(300 + i, 200), (i * 53 % 1536) * 8192 + 400).unwrap();
    }
    drop(file);
    let (bytes, summary) = push(&scratch, &["--compress=never"]);
    let most = SESSION + 30 * 2800 + 12_000;
    assert!(bytes <= most, "{bytes} bytes, at most {most} were promised: {summary:?}");
}

#[test]
fn truncation_to_nothing_and_back() {
    let content = noise(10, 2 * M);
    let scratch = pushed(&content);
    becomes(&scratch, b"", SESSION);
    becomes(&scratch, &content, (2 * M + 2 * M / 50) as u64 + SESSION);
}

#[test]
fn an_edit_in_one_long_line() {
    let line: Vec<u8> = noise(11, 4 * M).iter().map(|b| b'a' + b % 26).collect();
    let scratch = pushed(&line);
    let edited = [&line[..M], b"function(){}", &line[M..]].concat();
    becomes(&scratch, &edited, SESSION + 8000);
}

#[test]
fn content_that_is_all_new_costs_little_more_than_itself() {
    let scratch = pushed(&noise(12, 8 * M));
    becomes(&scratch, &noise(13, 8 * M), (8 * M + 8 * M / 40) as u64 + SESSION);
}

#[test]
fn small_edits_of_small_files_cost_about_a_piece_each() {
    let scratch = Scratch::new();
    let content = |i: u64| noise(1000 + i, 20_000 + i as usize * 13);
    for i in 0..200 {
        write(scratch.src().join(format!("d{}/f{i}", i % 7)), content(i));
    }
    scratch.push().ok();
    for i in 0..200 {
        let old = content(i);
        let at = (i as usize * 97) % old.len();
        write(scratch.src().join(format!("d{}/f{i}", i % 7)), [&old[..at], b"edit", &old[at..]].concat());
    }
    let (bytes, summary) = push(&scratch, &["--compress=never"]);
    // A piece, the hashes of 20 others, and 150 bytes to tell of the file.
    assert!(bytes < SESSION + 200 * 2000, "{bytes} bytes for 200 edits: {summary:?}");
    assert!(summary.count("reused_bytes") > 200 * 17_000, "{summary:?}");
}

#[test]
fn similar_small_files_share_one_compression() {
    let scratch = Scratch::new();
    let text = lines(14, 60);
    for i in 0..500 {
        write(scratch.src().join(format!("f{i}")), [format!("file {i}\n").as_bytes(), &text[..]].concat());
    }
    let (bytes, summary) = push(&scratch, &["--compress=zstd"]);
    // 1.5 MB in all: each by itself would take a third of its size.
    assert!(bytes < SESSION + text.len() as u64 * 3 + 500 * 200, "{bytes} bytes: {summary:?}");
}

/// Small text files and a larger one, none of which helps with another.
fn texts(scratch: &Scratch, edit: bool) {
    for i in 0..60u64 {
        let mut text = lines(500 + i, if i == 0 { 12_000 } else { 150 });
        if edit {
            // Each line is a little different, so that no piece is what it was.
            let edited = String::from_utf8(text).unwrap().replace("INTO t VALUES", "INTO u VALUES");
            text = edited.into_bytes();
        }
        write(scratch.src().join(format!("d{}/f{i}", i % 7)), text);
    }
}

/// A deploy in small: of 5 MB most files have a few other lines, and some are new.
#[test]
fn a_deploy_that_is_compressed_costs_its_lines() {
    let scratch = Scratch::new();
    let name = |i: u64| format!("d{}/page{i}", i % 13);
    for i in 0..400 {
        write(scratch.src().join(name(i)), lines(100 + i, 120));
    }
    write(scratch.src().join("bundle"), lines(99, 30_000));
    push(&scratch, &[]);
    for i in 0..400 {
        let mut text = lines(100 + i, 120);
        text.splice(100..120, format!("release 2 of {i}").into_bytes());
        text.extend(lines(1000 + i, 2));
        write(scratch.src().join(name(i)), text);
    }
    for i in 400..420 {
        write(scratch.src().join(name(i)), lines(100 + i, 120));
    }
    let mut bundle = lines(99, 30_000);
    (0..40).for_each(|i| drop(bundle.splice(i * 50_000..i * 50_000 + 9, *b"release 2")));
    write(scratch.src().join("bundle"), bundle);
    let (bytes, summary) = push(&scratch, &["--compress=zstd"]);
    // Of each of 400 pages two lines and what is told of it, some pieces of the bundle, 20 new pages; compressed together.
    assert!(bytes < 250_000, "{bytes} bytes: {summary:?}");
}

const HISTORY: [&str; 2] = ["--compress=zstd", "--history=64m"];

/// The texts, pushed once with what is told.
fn pushed_texts(args: &[&str]) -> Scratch {
    let scratch = Scratch::new();
    texts(&scratch, false);
    push(&scratch, args);
    scratch
}

/// The packs of the master's history.
fn packs(scratch: &Scratch) -> Vec<std::path::PathBuf> {
    let dirs = std::fs::read_dir(scratch.state().join("history")).unwrap();
    let packs = dirs.flat_map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap());
    packs.map(|pack| pack.unwrap().path()).filter(|path| path.extension().is_some_and(|ext| ext == "pack")).collect()
}

#[test]
fn with_previous_contents_an_edit_everywhere_costs_little() {
    let without = pushed_texts(&["--compress=zstd"]);
    texts(&without, true);
    let (without, _) = push(&without, &["--compress=zstd"]);
    let with = pushed_texts(&HISTORY);
    texts(&with, true);
    let (with, summary) = push(&with, &HISTORY);
    // 1.3 MB, compressed 450 KB.
    assert!(without > 300_000 && with < 90_000, "{with} bytes, {without} without: {summary:?}");
}

#[test]
fn with_previous_contents_nothing_is_asked_about_a_large_file() {
    let content = noise(1, 20 * M);
    let scratch = Scratch::new();
    write(scratch.src().join("file"), &content);
    scratch.push().arg("--history=100m").ok();
    write(scratch.src().join("file"), [b"X", &content[..]].concat());
    let (bytes, summary) = push(&scratch, &["--compress=never", "--history=100m"]);
    assert!(bytes < SESSION + 3000, "{bytes} bytes: {summary:?}");
}

/// A word of every line: no piece stays what it was, and the lines are in the gaps.
#[test]
fn with_previous_contents_a_large_file_edited_everywhere_costs_little() {
    let old = lines(15, 40_000);
    let new: Vec<u8> = String::from_utf8(old.clone()).unwrap().replace("name of", "title for").into_bytes();
    let pushes = |args: &[&str]| {
        let scratch = Scratch::new();
        write(scratch.src().join("file"), &old);
        push(&scratch, args);
        write(scratch.src().join("file"), &new);
        push(&scratch, args)
    };
    let (without, _) = pushes(&["--compress=zstd"]);
    // Level 9 looks closer at what is in the gaps.
    for (level, most) in [("--compress=zstd", 330_000), ("--compress=zstd:9", 260_000)] {
        let (with, summary) = pushes(&[level, "--history=100m"]);
        assert!(with * 2 < without && with < most, "{level}: {with} bytes, {without} without: {summary:?}");
    }
}

#[test]
fn previous_contents_are_kept_of_files_that_were_pushed_before_the_history_began() {
    let scratch = pushed_texts(&[]);
    write(scratch.src().join("more"), "more");
    push(&scratch, &HISTORY);
    texts(&scratch, true);
    let (bytes, summary) = push(&scratch, &HISTORY);
    assert!(bytes < 90_000, "{bytes} bytes: {summary:?}");
}

#[test]
fn a_history_that_is_lost_damaged_or_too_small_costs_bytes_only() {
    type Harm = fn(&Scratch);
    let flip: Harm = |scratch| {
        for pack in packs(scratch) {
            let mut bytes = std::fs::read(&pack).unwrap();
            // In the contents, each of them; the table stays as it is.
            let contents = bytes.len() - 60 * 40 - 48;
            bytes[..contents].iter_mut().step_by(1000).for_each(|byte| *byte ^= 1);
            std::fs::write(pack, bytes).unwrap();
        }
    };
    let harms: [(&str, Harm); 4] = [
        ("flipped bits", flip),
        ("no packs", |scratch| packs(scratch).iter().for_each(|pack| std::fs::remove_file(pack).unwrap())),
        ("short packs", |scratch| packs(scratch).iter().for_each(|pack| std::fs::write(pack, b"short").unwrap())),
        ("no history", |scratch| std::fs::remove_dir_all(scratch.state().join("history")).unwrap()),
    ];
    for (name, harm) in harms {
        let scratch = pushed_texts(&HISTORY);
        assert!(!packs(&scratch).is_empty());
        texts(&scratch, true);
        harm(&scratch);
        let (bytes, summary) = push(&scratch, &HISTORY);
        assert!(bytes > 200_000, "{name}: {bytes} bytes, so it was no harm: {summary:?}");
        // It mends itself.
        texts(&scratch, false);
        let (bytes, summary) = push(&scratch, &HISTORY);
        assert!(bytes < 90_000, "{name}: {bytes} bytes: {summary:?}");
    }
    let scratch = pushed_texts(&["--history=1m", "--compress=zstd"]);
    for edit in [true, false, true] {
        texts(&scratch, edit);
        push(&scratch, &["--history=1m", "--compress=zstd"]);
        let bytes: u64 = packs(&scratch).iter().map(|pack| pack.metadata().unwrap().len()).sum();
        assert!(bytes <= M as u64, "{bytes} bytes are kept");
    }
}

#[test]
fn an_old_file_that_is_not_what_the_master_takes_it_for_is_sent_anew() {
    let scratch = pushed_texts(&HISTORY);
    // Seen by the replica: then the master does not have what is named.
    append(scratch.dst().join("d0/f0"), b"more");
    append(scratch.dst().join("d1/f1"), b"more");
    texts(&scratch, true);
    push(&scratch, &HISTORY);
}

#[test]
fn an_old_file_that_rotted_unseen_is_sent_anew() {
    let scratch = Scratch::new();
    let Some(mut disk) = Disk::ext4("an_old_file_that_rotted_unseen_is_sent_anew", &scratch, "disk", 64) else {
        return;
    };
    let (src, dst) = (scratch.src(), disk.at.join("dst"));
    let push = |edit| {
        texts(&scratch, edit);
        push_with(&scratch.state(), &src, &[&dst]).args(&HISTORY).ok();
        assert_exact(&src, &dst);
    };
    push(false);
    for i in [0, 1] {
        let good = std::fs::read(dst.join(format!("d{i}/f{i}"))).unwrap();
        disk.unmount();
        disk.rot(&good[..4096], &noise(i, 4096));
        disk.mount();
    }
    push(true);
}

/// Where files can share blocks, what did not change is the old file's, and takes no room beside it.
#[test]
fn unchanged_blocks_are_shared_where_files_can() {
    let scratch = Scratch::new();
    let Some(disk) = Disk::xfs("unchanged_blocks_are_shared_where_files_can", &scratch, "disk") else { return };
    let dst = disk.at.join("dst");
    let old = noise(30, 96 * M);
    let taken = || {
        rustix::fs::syncfs(std::fs::File::open(&disk.at).unwrap()).unwrap();
        let now = rustix::fs::statvfs(&disk.at).unwrap();
        (now.f_blocks - now.f_bfree) * now.f_frsize
    };
    let push = |content: &[u8]| {
        write(scratch.src().join("x"), content);
        push_with(&scratch.state(), &scratch.src(), &[&dst]).ok();
        assert!(std::fs::read(dst.join("x")).unwrap() == content);
    };
    push(&old);
    // Edits in place; a MiB at the end; a piece that is not whole blocks at the front, after which nothing can be shared.
    let edited = overwritten(&old, (0..20).map(|i| i * 4 * M + 1000), b"twenty-two other bytes");
    let appended = [&edited[..], &noise(31, M)].concat();
    let inserted = [b"X", &appended[..]].concat();
    for (content, least, most) in [(edited, 0, M), (appended, 0, 2 * M), (inserted, 90 * M, 110 * M)] {
        // As long as it is open, what it does not share is taken twice.
        let held = std::fs::File::open(dst.join("x")).unwrap();
        let before = taken();
        push(&content);
        let more = taken().saturating_sub(before);
        assert!((least as u64..most as u64).contains(&more), "{more} bytes more are taken");
        drop(held);
    }
}

/// A tree with these files, pushed once.
fn pushed_files(files: &[(&str, &[u8])]) -> Scratch {
    let scratch = Scratch::new();
    for (name, content) in files {
        std::fs::create_dir_all(scratch.src().join(name).parent().unwrap()).unwrap();
        write(scratch.src().join(name), content);
    }
    scratch.push().ok();
    scratch
}

#[test]
fn the_dump_of_another_day_costs_what_changed() {
    let old = lines(20, 60_000);
    let scratch = pushed_files(&[("dump-2026-11-19.sql", &old)]);
    let mut new = lines(21, 1000);
    new.extend_from_slice(&old[old.iter().position(|b| *b == b'\n').unwrap() * 500..]);
    write(scratch.src().join("dump-2026-11-20.sql"), &new);
    let (bytes, summary) = push(&scratch, &["--compress=never"]);
    assert!(bytes < 100_000 && summary.count("old_file_bytes") > 3_000_000, "{bytes} bytes: {summary:?}");
}

#[test]
fn a_new_release_costs_what_changed_since_the_one_before() {
    let script = |n: u64| lines(n, 400);
    let names: Vec<String> = (0..40).map(|n| format!("lib/{n}.php")).collect();
    let scratch = Scratch::new();
    let release = |dir: &str, edited: usize| {
        for (n, name) in names.iter().enumerate() {
            let path = scratch.src().join(dir).join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut content = script(n as u64);
            if n < edited {
                content.splice(9000..9000, *b"-- edited");
            }
            write(path, &content);
        }
    };
    release("releases/20261119", 0);
    scratch.push().ok();
    release("releases/20261120", 20);
    let (bytes, summary) = push(&scratch, &["--compress=never"]);
    let edited = 20 * script(0).len() as u64;
    assert!(edited > 400_000 && bytes < SESSION + 20 * 1500 + 20 * 150, "{bytes} bytes: {summary:?}");
}

/// A log that was turned over and then written to: another name, and more in it.
#[test]
fn a_log_that_was_rotated_after_more_was_written() {
    let old = lines(22, 50_000);
    let scratch = pushed_files(&[("app.log", &old)]);
    write(scratch.src().join("app.log.1"), [&old[..], &lines(23, 100)].concat());
    write(scratch.src().join("app.log"), lines(24, 100));
    let (bytes, summary) = push(&scratch, &["--compress=never"]);
    assert!(bytes < 40_000, "{bytes} bytes: {summary:?}");
}

/// Photos have names that are alike and nothing in common: nothing is asked about them.
#[test]
fn files_that_only_have_similar_names_cost_little_more_than_themselves() {
    let scratch = pushed_files(&[("photo-0001.jpg", &noise(25, M))]);
    let mut total = 0;
    for n in 2..=9 {
        let photo = noise(30 + n, M);
        total += photo.len() as u64;
        write(scratch.src().join(format!("photo-000{n}.jpg")), &photo);
    }
    let (bytes, summary) = push(&scratch, &["--compress=never"]);
    // Of each the chunks of the one that was there are told: 20 bytes for 32 KiB.
    assert!(bytes < total + total / 250 + SESSION + 8 * 1000, "{bytes} bytes for {total}: {summary:?}");
}

#[test]
fn compressed_media_cost_no_more_where_compression_is_forced() {
    let scratch = Scratch::new();
    let mut total = 0;
    for n in 0..200 {
        // Of all sizes from a kilobyte to some hundreds of them, and one large one.
        let media = noise(60 + n, 1000 + (n * n * 9) as usize);
        total += media.len() as u64;
        write(scratch.src().join(format!("media/{n}")), media);
    }
    write(scratch.src().join("film"), noise(59, 20 * M));
    total += 20 * M as u64;
    let (plain, _) = push(&scratch, &["--compress=never"]);
    std::fs::remove_dir_all(scratch.dst()).unwrap();
    let (forced, summary) = push(&scratch, &["--compress=zstd"]);
    assert!(plain > total && forced < plain + plain / 500, "{forced} bytes, {plain} plain: {summary:?}");
}

/// What happens to the replica's file while its successor is made of it.
fn damages() -> [fn(&std::path::Path); 7] {
    [
        |file| {
            let file = std::fs::File::options().write(true).open(file).unwrap();
            file.write_all_at(b"damage", file.metadata().unwrap().len() - 9000).unwrap();
        },
        |file| std::fs::File::options().write(true).open(file).unwrap().set_len(20_000).unwrap(),
        |file| append(file, b"more"),
        |file| set_mode(file, 0),
        |file| std::fs::remove_file(file).unwrap(),
        |file| {
            std::fs::remove_file(file).unwrap();
            std::fs::create_dir(file).unwrap();
            write(file.join("inside"), b"x");
        },
        |file| {
            let other = file.with_extension("other");
            write(&other, noise(71, 50_000));
            std::fs::rename(other, file).unwrap();
        },
    ]
}

/// Bytes of the largest file in a directory.
fn largest_in(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).max().unwrap_or(0)
}

/// Exact, or said not to be; and exact with the next push.
#[test]
fn an_old_file_that_is_damaged_under_way_leads_to_nothing_wrong() {
    let one = |damage: fn(&std::path::Path), wait: u64| {
        let old = noise(70, 3 * M);
        let scratch = pushed(&old);
        let edited = overwritten(&old, (0..40).map(|i| i * 70_000), b"edited");
        // While the middle is sent, the second half of the old file is yet to be taken.
        let (first, second) = edited.split_at(old.len() / 2);
        write(scratch.src().join("file"), [first, &noise(72, 400_000), second].concat());
        let mut running = scratch.push().args(&["--compress=never", "--bwlimit=400k"]).start();
        while running.is_running() && largest_in(&scratch.dst().join(STAGING)) < first.len() as u64 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_millis(wait));
        damage(&scratch.dst().join("file"));
        if running.wait().one_of(&[0, 1]).status.success() {
            assert_exact(&scratch.src(), &scratch.dst());
        }
        push(&scratch, &[]);
    };
    std::thread::scope(|scope| {
        for damage in damages() {
            for wait in [0, 250] {
                scope.spawn(move || one(damage, wait));
            }
        }
    });
}

/// So large a file is drafted at the replica while the master still reads it.
#[test]
fn an_edited_file_over_64_mib_costs_what_a_smaller_one_does() {
    let mut content = noise(7, 70 * M);
    // A hole stays one.
    content[30 * M..33 * M].fill(0);
    let scratch = pushed(&content);
    content.insert(0, b'X');
    becomes(&scratch, &content, SESSION + 3000);
    let edits = [5 * M, 20 * M + 5, 31 * M, 69 * M];
    content = overwritten(&content, edits, b"some other bytes here.");
    becomes(&scratch, &content, SESSION + 20_000);
    content.extend_from_slice(&noise(8, M));
    becomes(&scratch, &content, SESSION + 3000 + M as u64 * 11 / 10);
    // What is in it moves about.
    content.rotate_left(40 * M);
    becomes(&scratch, &content, SESSION + 20_000);
    let summary = scratch.push().arg("--json").ok().summary();
    assert_eq!(summary.count("literal_bytes"), 0);
    assert_no_differences("left over", &leftovers(&snapshot(&scratch.dst())));
}

/// Blocks of an old file again and again, with other bytes between them.
#[test]
fn a_file_that_repeats_an_old_one_costs_what_is_new() {
    let old = noise(90, M);
    let scratch = pushed(&old);
    let one =
        |i: u64| [&old[..200_000], &noise(91 + i, 10_000), &old[400_000..600_000], &noise(191 + i, 10_000)].concat();
    let new: Vec<u8> = (0..12).flat_map(one).collect();
    // Of the last ones whole chunks at the edges.
    becomes(&scratch, &new, 24 * 10_000 + 24 * 30_000);
}
