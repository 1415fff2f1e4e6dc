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
