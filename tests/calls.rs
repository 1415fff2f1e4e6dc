//! System calls of a push, both sides in one process, for each file: what they are is counted, because it is the same every time,
//! which seconds are not. One call more for each file is a defect or a decision.

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

use std::collections::BTreeMap;
use std::time::Duration;

use support::*;

/// Enough for what comes once in a push not to count.
const FILES: usize = 3000;
/// All of them together find room in what a master keeps in memory, so that none is read twice.
const SIZE: usize = 2000;
const IN_A_DIRECTORY: usize = 100;

/// How often each system call was made by all threads of a push; `None` where nothing can be traced.
fn calls(scratch: &Scratch) -> Option<BTreeMap<String, usize>> {
    let counts = scratch.path("calls");
    let trace = ["strace", "-f", "-qq", "-c", "-U", "calls,name", "-o"];
    let mut words: Vec<std::ffi::OsString> = trace.iter().map(Into::into).collect();
    words.push(counts.clone().into());
    let ran = scratch.push().behind(&words).run();
    if !ran.status.success() {
        return None;
    }
    let line = |line: &str| {
        let (count, name) = line.trim().split_once(' ')?;
        // What is no name is what strace says of a thread that ended under it, behind that thread's number.
        let call =
            name.trim().chars().all(|c| c.is_ascii_alphanumeric() || c == '_').then(|| name.trim().to_owned())?;
        Some((call, count.parse().ok()?))
    };
    Some(std::fs::read_to_string(&counts).unwrap().lines().filter_map(line).collect())
}

/// Each at most so often for a file; all that are not named together at most `others` times.
#[track_caller]
fn at_most(calls: &BTreeMap<String, usize>, bounds: &[(&str, f64)], others: f64) {
    // How often threads wait for each other, and for packets, is a matter of time; fcntl is what a build for debugging asks before it
    // closes a descriptor.
    const NOT_FOR_FILES: [&str; 9] =
        ["futex", "epoll_wait", "recvmmsg", "sendmsg", "mprotect", "madvise", "brk", "sched_yield", "fcntl"];
    let per_file = |count: usize| count as f64 / FILES as f64;
    let mut rest = 0;
    for (name, &count) in calls.iter().filter(|(name, _)| !NOT_FOR_FILES.contains(&name.as_str()) && *name != "total") {
        match bounds.iter().find(|(bound, _)| bound == name) {
            Some((_, most)) => {
                assert!(per_file(count) <= *most, "{name}: {:.2} for each file: {calls:#?}", per_file(count));
            }
            None => rest += count,
        }
    }
    assert!(per_file(rest) <= others, "all others: {:.2} for each file: {calls:#?}", per_file(rest));
}

#[test]
fn so_many_for_each_file_and_no_more() {
    let name = "so_many_for_each_file_and_no_more";
    need!(name, has("strace"), "needs strace to count");
    let scratch = Scratch::new();
    let write_all = |seed: usize| {
        for i in 0..FILES {
            let path = scratch.src().join(format!("d{:02}/f{i}", i / IN_A_DIRECTORY));
            write(path, noise((seed + i) as u64, SIZE));
        }
        // What was just written proves nothing yet, and would be read again.
        std::thread::sleep(Duration::from_millis(100));
    };
    write_all(1);
    let first = calls(&scratch);
    need!(name, first.is_some(), "strace may not trace here");
    // The master looks, opens, reads, asks for attributes, looks again and closes; the replica creates, writes, sets the time,
    // looks and closes. Beside that the index: some pages for a hundred files.
    let new = [
        ("statx", 3.2),
        ("openat", 2.1),
        ("close", 2.15),
        ("pread64", 1.2),
        ("pwrite64", 1.5),
        ("utimensat", 1.05),
        ("flistxattr", 1.02),
    ];
    at_most(&first.unwrap(), &new, 0.6);
    assert_exact(&scratch.src(), &scratch.dst());

    // One look on either side.
    at_most(&calls(&scratch).unwrap(), &[("statx", 2.15)], 0.6);

    write_all(FILES + 1);
    // Both have looked once before. The replica looks once more before it puts a file in place, and once behind that.
    let changed = new.map(|(call, most)| match call {
        "statx" => (call, 6.3),
        "pread64" => (call, 1.4),
        _ => (call, most),
    });
    at_most(&calls(&scratch).unwrap(), &[&changed[..], &[("renameat", 1.02)]].concat(), 0.6);
    assert_exact(&scratch.src(), &scratch.dst());
}

/// One slow directory, and thousands behind it that others list meanwhile.
#[test]
fn a_push_does_with_few_descriptors() {
    let name = "a_push_does_with_few_descriptors";
    need!(name, has("prlimit"), "needs prlimit to have few");
    let scratch = Scratch::new();
    (0..150_000).for_each(|i| write(scratch.src().join(format!("a/big/{i}")), b""));
    (0..6000).for_each(|i| mkdir(scratch.src().join(format!("b/{}/{i}", i % 600))));
    let words: Vec<std::ffi::OsString> = ["prlimit", "--nofile=150"].map(Into::into).to_vec();
    scratch.push().arg("--dry-run").behind(&words).ok();
}
