//! What a push takes in memory at either side does not grow with what is compared and sent.

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

use std::time::Duration;

use support::*;

const M: usize = 1 << 20;

/// Most that a process had of memory at a time, in bytes; `None` if it has ended.
fn peak(pid: u32) -> Option<usize> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10)
}

/// A share that has what SRC has, and more than once.
struct Pair {
    scratch: Scratch,
    syncd: Daemon,
}

impl Pair {
    fn new(fill: impl Fn(&Scratch)) -> Pair {
        let scratch = Scratch::new();
        fill(&scratch);
        mkdir(scratch.dst());
        let syncd = Daemon::start(&scratch, "replica", &[("share", &scratch.dst())]);
        syncd.pair(&scratch.state()).code(0);
        Pair { scratch, syncd }
    }

    /// The same, pushed once.
    fn pushed(fill: impl Fn(&Scratch)) -> Pair {
        let pair = Pair::new(fill);
        pair.push(&[]);
        pair
    }

    /// The peaks of both sides so far.
    fn push(&self, args: &[&str]) -> (usize, usize) {
        let mut run = self.scratch.push_to(&[self.syncd.dest("share")]);
        let mut running = run.args(args).start();
        let mut master = 0;
        while running.is_running() {
            master = peak(running.pid()).unwrap_or(master);
            std::thread::sleep(Duration::from_millis(2));
        }
        running.wait().code(0);
        assert_exact(&self.scratch.src(), &self.scratch.dst());
        (master, peak(self.syncd.pid()).unwrap())
    }
}

/// Every chunk is another one, and every piece of it is asked about.
#[test]
fn a_large_file_that_is_all_new() {
    let pair = Pair::pushed(|scratch| write(scratch.src().join("file"), noise(1, 300 * M)));
    write(pair.scratch.src().join("file"), noise(2, 300 * M));
    let (master, replica) = pair.push(&["--compress=never"]);
    assert!(master < 64 * M && replica < 64 * M, "{} MiB and {} MiB", master / M, replica / M);
}

/// More than a thousand comparisons, each with a question.
#[test]
fn many_files_that_are_asked_about() {
    let content = |seed| noise(seed, 300 << 10);
    let name = |i| format!("{}/{i}", i % 20);
    let pair = Pair::pushed(|scratch| (0..1200).for_each(|i| write(scratch.src().join(name(i)), content(i))));
    for i in 0..1200 {
        let mut content = content(i);
        content.iter_mut().step_by(50_000).for_each(|byte| *byte ^= 1);
        write(pair.scratch.src().join(name(i)), content);
    }
    let (master, replica) = pair.push(&["--compress=never"]);
    assert!(master < 64 * M && replica < 64 * M, "{} MiB and {} MiB", master / M, replica / M);
}

/// As it is without a level, and as strong as it becomes by itself on a slow link.
#[test]
fn compression_with_the_wide_window() {
    let lines = |seed: u64| -> Vec<u8> {
        noise(seed, 4 * M).chunks(8).flat_map(|some| format!("{some:?} and what is the same\n").into_bytes()).collect()
    };
    let pair = Pair::pushed(|scratch| write(scratch.src().join("file"), lines(1)));
    for i in 2..5 {
        write(pair.scratch.src().join(format!("file{i}")), lines(i));
    }
    for level in ["--compress=zstd", "--compress=zstd:9"] {
        write(pair.scratch.src().join("file"), lines(level.len() as u64 + 10));
        let (master, replica) = pair.push(&[level]);
        assert!(master < 128 * M && replica < 96 * M, "{level}: {} MiB and {} MiB", master / M, replica / M);
    }
}

/// Most of a large tree is in neither side's memory when it comes for the first time, nor when the replica looks at it by itself behind
/// that.
#[test]
fn many_files_that_are_all_new() {
    const FILES: usize = 150_000;
    let pair = Pair::new(|scratch| {
        for i in 0..FILES {
            let dir = scratch.src().join(format!("{}", i / 100));
            if i % 100 == 0 {
                std::fs::create_dir_all(&dir).unwrap();
            }
            write(dir.join(format!("a file with some name {i}")), i.to_string());
        }
    });
    let (master, first) = pair.push(&[]);
    std::thread::sleep(Duration::from_secs(5));
    let replica = peak(pair.syncd.pid()).unwrap();
    assert!(master < 76 * M && replica < 76 * M, "{} MiB and {} MiB, then {} MiB", master / M, first / M, replica / M);
}
