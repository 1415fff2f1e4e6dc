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

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

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

#[test]
fn packets_are_as_large_as_the_frames_of_the_route_allow() {
    let Some(cable) = cable("packets_are_as_large_as_the_frames") else { return };
    let scratch = Scratch::new();
    let dst = scratch.dst();
    mkdir(&dst);
    let mut daemon = Daemon::new_at(&scratch, "r", &[("www", &dst)], &cable.host, cable.behind());
    daemon.up();
    daemon.pair(&scratch.state());
    for (seed, frame, least, most) in [(1, 1500, 1300, 1500), (2, 9000, 5000, 6600), (3, 4000, 3000, 4000)] {
        cable.frames(frame);
        write(scratch.src().join("noise"), noise(seed, 20 * M));
        let before = cable.sent();
        scratch.push_to(&[daemon.dest("www")]).ok();
        assert_exact(&scratch.src(), &dst);
        let after = cable.sent();
        let each = (after.0 - before.0) / (after.1 - before.1);
        assert!((least..=most).contains(&each), "frames of {frame}: {each} bytes in each");
    }
}

/// Carries datagrams between whoever sends to it and a daemon, and after some of them from another port, as a router does that forgot whose
/// they are.
struct Router {
    port: u16,
    /// Bytes to the daemon, from the first port and from the second.
    carried: Arc<[AtomicUsize; 2]>,
    over: Arc<AtomicBool>,
}

impl Router {
    fn new(to: u16, changes_after: usize) -> Router {
        let bound = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (inside, outside) = (Arc::new(bound()), [bound(), bound()].map(Arc::new));
        let router =
            Router { port: inside.local_addr().unwrap().port(), carried: Arc::default(), over: Arc::default() };
        outside.iter().for_each(|socket| socket.connect(("127.0.0.1", to)).unwrap());
        let client = Arc::new(std::sync::Mutex::new(None));
        let wait = Some(Duration::from_millis(50));
        for socket in &outside {
            let (socket, inside, client, over) =
                (Arc::clone(socket), Arc::clone(&inside), Arc::clone(&client), Arc::clone(&router.over));
            socket.set_read_timeout(wait).unwrap();
            std::thread::spawn(move || {
                let mut buffer = vec![0; 65_536];
                while !over.load(Ordering::Relaxed) {
                    let Ok(len) = socket.recv(&mut buffer) else { continue };
                    let to: Option<std::net::SocketAddr> = *client.lock().unwrap();
                    let _ = inside.send_to(&buffer[..len], to.unwrap());
                }
            });
        }
        let (carried, over) = (Arc::clone(&router.carried), Arc::clone(&router.over));
        inside.set_read_timeout(wait).unwrap();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !over.load(Ordering::Relaxed) {
                let Ok((len, from)) = inside.recv_from(&mut buffer) else { continue };
                *client.lock().unwrap() = Some(from);
                let now = usize::from(carried[0].load(Ordering::Relaxed) > changes_after);
                carried[now].fetch_add(len, Ordering::Relaxed);
                let _ = outside[now].send(&buffer[..len]);
            }
        });
        router
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_push_goes_on_from_another_address() {
    let scratch = Scratch::new();
    let dst = scratch.dst();
    mkdir(&dst);
    let daemon = Daemon::start(&scratch, "r", &[("www", &dst)]);
    write(scratch.src().join("noise"), noise(1, 30 * M));
    let router = Router::new(daemon.port, 10 * M);
    support::daemon::pair(&scratch.state(), router.port, &daemon.invite()).ok();
    scratch.push_to(&[format!("127.0.0.1:{}/www", router.port)]).ok();
    assert_exact(&scratch.src(), &dst);
    let [before, behind] = [0, 1].map(|port| router.carried[port].load(Ordering::Relaxed));
    assert!(before > 10 * M && behind > 10 * M, "{before} and {behind} bytes");
    assert_eq!(daemon.logged().matches("push ended").count(), 1, "{}", daemon.logged());
    // The connection was let in at the first port, and nobody came from the second.
    assert_eq!(daemon.logged().matches(": push from=").count(), 1, "{}", daemon.logged());
}
