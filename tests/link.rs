//! A push over a link that is not the loopback interface: a cable between two network namespaces.

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

use support::netns::{Cable, cables};
use support::*;

const M: usize = 1 << 20;

/// Text that shrinks, each line unlike the others.
fn text(seed: u64, len: usize) -> Vec<u8> {
    noise(seed, len / 4)
        .chunks(8)
        .flat_map(|some| format!("{some:?} and what is the same\n").into_bytes())
        .take(len)
        .collect()
}

/// A tree of every kind that is compressed in another way: small files, large ones, and what does not shrink.
fn fill(scratch: &Scratch, seed: u64) {
    let src = scratch.src();
    (0..150).for_each(|i| write(src.join(format!("d{}/small{i}", i % 7)), text(seed + i, 20_000)));
    (0..3).for_each(|i| write(src.join(format!("large{i}")), text(seed + 1000 + i, 3 * M)));
    write(src.join("noise"), noise(seed, 2 * M));
}

fn cable(test: &str) -> Option<Cable> {
    let cable = cables(1).and_then(|mut cables| cables.pop());
    if cable.is_none() {
        skip(test, "no network namespaces");
    }
    cable
}

#[test]
fn compression_helps_on_a_slow_link_and_does_no_harm_on_a_fast_one() {
    let Some(mut cable) = cable("compression_helps_on_a_slow_link") else { return };
    let scratch = Scratch::new();
    let dst = scratch.dst();
    mkdir(&dst);
    let mut daemon = Daemon::new_at(&scratch, "r", &[("www", &dst)], &cable.host, cable.behind());
    daemon.up();
    daemon.pair(&scratch.state());
    for (turn, rate) in [None, Some("30mbit"), None].into_iter().enumerate() {
        if !cable.slow(rate) {
            skip("compression_helps_on_a_slow_link", "no slow links");
            continue;
        }
        fill(&scratch, turn as u64 * 10_000);
        let ran = scratch.push_to(&[daemon.dest("www")]).arg("--json").ok();
        assert_exact(&scratch.src(), &dst);
        let summary = ran.summary();
        let (literal, sent) = (summary.count("literal_bytes"), summary.count("compressed_bytes"));
        assert!(literal > 13 * M as u64, "{summary:?}");
        // All but the noise shrinks to less than a half, which on a slow link is done with nearly all of it. What a fast one is
        // worth depends on the machine.
        let is_slow = rate.is_some();
        assert!(!is_slow || sent <= literal / 20 * 13, "{rate:?}: {sent} of {literal} bytes: {summary:?}");
    }
}
