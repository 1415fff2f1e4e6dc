//! Connections over a link that is simulated: quinn's own state machines, with our tuning, in virtual time.
//!
//! Flows share one bottleneck in each direction: a rate, a queue that drops what it cannot hold, a delay, and random loss before
//! the queue. A flow is a sender with no end of data on [`CONTENT_STREAMS`] streams, and a receiver that reads at once.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn::{ClientConfig, ServerConfig, TransportConfig, VarInt};
use quinn_proto::{Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, Event, StreamId};

use crate::transport::congestion::{self, EndsInTime, Model};
use crate::transport::tls::{self, Only, Purpose};
use crate::transport::tuning::CONTENT_STREAMS;
use crate::transport::{Identity, Settings, tuning};

/// IPv4 and UDP.
const HEADERS: u64 = 28;

#[derive(Clone, Copy, Debug)]
struct Link {
    pub rtt: Duration,
    /// Mbit/s.
    pub rate: f64,
    /// Bytes.
    pub queue: f64,
    /// Share of the packets that never reach the queue.
    pub loss: f64,
}

impl Link {
    fn bytes_a_second(&self) -> f64 {
        self.rate * 125_000.0
    }

    /// What the empty link holds.
    fn product(&self) -> f64 {
        self.bytes_a_second() * self.rtt.as_secs_f64()
    }
}

/// What became of a flow.
#[derive(Clone, Debug)]
struct Outcome {
    /// Share of the link's rate that was new content in order.
    pub share: f64,
    /// Share of the sent packets that the queue had no room for.
    pub overrun: f64,
    /// Why the connection ended, if it did.
    pub ended: Option<String>,
}

/// One direction of the bottleneck.
struct Way {
    link: Link,
    free_at: Instant,
    random: u64,
}

enum Fate {
    Arrives(Instant),
    Lost,
    Overrun,
}

impl Way {
    fn carry(&mut self, now: Instant, bytes: u64) -> Fate {
        // xorshift64*: the same for the same seed, everywhere.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let dice = (self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64;
        if dice < self.link.loss {
            return Fate::Lost;
        }
        let waiting = self.free_at.saturating_duration_since(now).as_secs_f64() * self.link.bytes_a_second();
        if waiting + bytes as f64 > self.link.queue {
            return Fate::Overrun;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / self.link.bytes_a_second());
        self.free_at = self.free_at.max(now) + takes;
        Fate::Arrives(self.free_at + self.link.rtt / 2)
    }
}

/// One end of a flow.
struct Side {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    address: SocketAddr,
    streams: Vec<StreamId>,
    sends: bool,
    received: u64,
    sent_packets: u64,
    overrun: u64,
    ended: Option<String>,
    timeout: Option<Instant>,
}

struct Flow {
    sides: [Side; 2],
    server: Arc<ServerConfig>,
}

struct Simulation {
    now: Instant,
    began: Instant,
    ways: [Way; 2],
    flows: Vec<Flow>,
    /// Arrivals: when, in which order, which flow, which side.
    air: BinaryHeap<Reverse<(Instant, u64, usize, usize)>>,
    datagrams: std::collections::HashMap<u64, (BytesMut, SocketAddr)>,
    serial: u64,
    /// Senders have no end of data; otherwise they say what [`Simulation::say`] has them say.
    pub busy: bool,
}

fn transport(factory: Arc<dyn ControllerFactory + Send + Sync>, listens: bool) -> Arc<TransportConfig> {
    let settings = Settings::default();
    let far = Ipv4Addr::new(10, 9, 9, 9).into();
    let made = if listens {
        tuning::listening(far, tuning::USUAL_MTU, &settings)
    } else {
        tuning::dialing(far, tuning::USUAL_MTU, &settings)
    };
    let mut config = Arc::try_unwrap(made).unwrap();
    config.congestion_controller_factory(factory).max_concurrent_uni_streams(VarInt::from_u32(16));
    Arc::new(config)
}

impl Simulation {
    pub fn new(link: Link, seed: u64) -> Self {
        let began = Instant::now();
        let way = |random| Way { link, free_at: began, random };
        let ways = [way(seed * 2 + 1), way(seed * 7919 + 3)];
        Self {
            now: began,
            began,
            ways,
            flows: Vec::new(),
            air: BinaryHeap::new(),
            datagrams: Default::default(),
            serial: 0,
            busy: true,
        }
    }

    /// A flow that begins now.
    pub fn add(&mut self, factory: Arc<dyn ControllerFactory + Send + Sync>) {
        let (master, replica) = (Identity::generate().unwrap().0, Identity::generate().unwrap().0);
        let alpn = [Purpose::Session.alpn()];
        let mut server = ServerConfig::with_crypto(tls::server(&replica, Arc::new(Only(master.id())), &alpn).unwrap());
        server.transport_config(transport(Arc::clone(&factory), true));
        let server = Arc::new(server);
        let shown = Arc::new(OnceLock::new());
        let crypto = tls::client(&master, Purpose::Session, replica.id(), shown).unwrap();
        let mut client = ClientConfig::new(crypto);
        client.transport_config(transport(factory, false));
        let n = u8::try_from(self.flows.len()).unwrap();
        let side = |which: u8, server: Option<Arc<ServerConfig>>| Side {
            endpoint: Endpoint::new(Arc::new(tuning::endpoint(None)), server, true, Some([n; 32])),
            connection: None,
            address: SocketAddr::from((Ipv4Addr::new(10, 0, n, which), 7373)),
            streams: Vec::new(),
            sends: which == 1,
            received: 0,
            sent_packets: 0,
            overrun: 0,
            ended: None,
            timeout: None,
        };
        let mut sides = [side(1, None), side(2, Some(Arc::clone(&server)))];
        let to = sides[1].address;
        sides[0].connection = Some(sides[0].endpoint.connect(self.now, client, to, "replica").unwrap());
        self.flows.push(Flow { sides, server });
        self.drive(self.flows.len() - 1, 0);
    }

    /// Lets all flows go on for a time.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arrival = self.air.peek().map(|Reverse(a)| a.0);
            let timeout = self.flows.iter().flat_map(|f| f.sides.iter()).filter_map(|s| s.timeout).min();
            let Some(next) = arrival.into_iter().chain(timeout).min() else { break };
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let Reverse((_, serial, flow, side)) = self.air.pop().unwrap();
                self.arrive(serial, flow, side);
                // What arrives at the same moment is heard before anything is answered, as from a socket.
                while let Some(&Reverse((at, serial, f, s))) = self.air.peek()
                    && (at, f, s) == (next, flow, side)
                {
                    self.air.pop();
                    self.arrive(serial, f, s);
                }
                self.drive(flow, side);
            } else {
                for flow in 0..self.flows.len() {
                    for side in 0..2 {
                        if self.flows[flow].sides[side].timeout.is_some_and(|at| at <= self.now) {
                            self.drive(flow, side);
                        }
                    }
                }
            }
        }
        self.now = end;
    }

    /// A small message of a flow.
    pub fn say(&mut self, flow: usize) {
        let here = &mut self.flows[flow].sides[0];
        let (_, connection) = here.connection.as_mut().unwrap();
        assert_eq!(connection.send_stream(here.streams[0]).write(&[0; 100]), Ok(100));
        self.drive(flow, 0);
    }

    fn arrive(&mut self, serial: u64, flow: usize, side: usize) {
        let (data, from) = self.datagrams.remove(&serial).unwrap();
        let server = Arc::clone(&self.flows[flow].server);
        let here = &mut self.flows[flow].sides[side];
        let mut buf = Vec::new();
        match here.endpoint.handle(self.now, from, None, None, data, &mut buf) {
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut here.connection {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                here.connection = Some(here.endpoint.accept(incoming, self.now, &mut buf, Some(server)).ok().unwrap());
            }
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    fn drive(&mut self, flow: usize, side: usize) {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let now = self.now;
        let here = &mut self.flows[flow].sides[side];
        let Some((handle, connection)) = &mut here.connection else { return };
        if connection.poll_timeout().is_some_and(|at| at <= now) {
            connection.handle_timeout(now);
        }
        loop {
            while let Some(event) = connection.poll_endpoint_events() {
                if let Some(event) = here.endpoint.handle_event(*handle, event) {
                    connection.handle_event(event);
                }
            }
            let Some(event) = connection.poll() else { break };
            match event {
                Event::Connected if here.sends => {
                    here.streams = (0..CONTENT_STREAMS).map(|_| connection.streams().open(Dir::Uni).unwrap()).collect();
                }
                Event::ConnectionLost { reason } => here.ended = Some(reason.to_string()),
                _ => {}
            }
        }
        if !here.sends {
            while let Some(id) = connection.streams().accept(Dir::Uni) {
                here.streams.push(id);
            }
        }
        for &id in &here.streams {
            if here.sends && self.busy {
                while connection.send_stream(id).write(&ZEROS).is_ok_and(|n| n > 0) {}
            } else if !here.sends
                && let Ok(mut chunks) = connection.recv_stream(id).read(true)
            {
                while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                    here.received += chunk.bytes.len() as u64;
                }
                let _ = chunks.finalize();
            }
        }
        let mut buf = Vec::new();
        while let Some(transmit) = connection.poll_transmit(now, 10, &mut buf) {
            for datagram in buf[..transmit.size].chunks(transmit.segment_size.unwrap_or(transmit.size)) {
                here.sent_packets += 1;
                match self.ways[side].carry(now, datagram.len() as u64 + HEADERS) {
                    Fate::Arrives(at) => {
                        self.serial += 1;
                        self.datagrams.insert(self.serial, (BytesMut::from(datagram), here.address));
                        self.air.push(Reverse((at, self.serial, flow, 1 - side)));
                    }
                    Fate::Overrun => here.overrun += 1,
                    Fate::Lost => {}
                }
            }
            buf.clear();
        }
        here.timeout = connection.poll_timeout();
    }

    /// Each flow since `from`, which is the bytes that it had received then.
    pub fn outcomes(&self, from: &[u64], time: Duration) -> Vec<Outcome> {
        let capacity = self.ways[0].link.bytes_a_second() * time.as_secs_f64();
        let outcome = |(flow, from): (&Flow, &u64)| Outcome {
            share: (flow.sides[1].received - from) as f64 / capacity,
            overrun: flow.sides[0].overrun as f64 / flow.sides[0].sent_packets.max(1) as f64,
            ended: flow.sides.iter().find_map(|side| side.ended.clone()),
        };
        self.flows.iter().zip(from).map(outcome).collect()
    }

    pub fn received(&self) -> Vec<u64> {
        self.flows.iter().map(|flow| flow.sides[1].received).collect()
    }

    fn sender(&self, flow: usize) -> &Connection {
        &self.flows[flow].sides[0].connection.as_ref().unwrap().1
    }
}

fn ours() -> Arc<dyn ControllerFactory + Send + Sync> {
    Arc::new(EndsInTime(Arc::new(Model)))
}

/// One flow alone: how it fares once it has begun, which takes up to a fifth of `time`.
fn alone(link: Link, factory: Arc<dyn ControllerFactory + Send + Sync>, time: Duration) -> Outcome {
    let mut simulation = Simulation::new(link, 1);
    simulation.add(factory);
    let (begin, rest) = (time / 5, time - time / 5);
    simulation.run(begin);
    let begun = simulation.received();
    simulation.run(rest);
    simulation.outcomes(&begun, rest).remove(0)
}

/// Long enough that the beginning is a small part.
fn long(rtt: Duration) -> Duration {
    (rtt * 100).max(Duration::from_secs(5))
}

fn link(rtt_ms: u64, rate: f64, queue: f64, loss: f64) -> Link {
    let link = Link { rtt: Duration::from_millis(rtt_ms), rate, queue: 0.0, loss };
    Link { queue: (link.product() * queue).max(32.0 * 1500.0), ..link }
}

/// The table of docs/performance.md: `cargo test --release -p sync-core --lib -- --ignored --nocapture table_of_links`.
#[test]
#[ignore = "a table, some minutes with --release"]
fn table_of_links() {
    type Named = (&'static str, fn() -> Arc<dyn ControllerFactory + Send + Sync>);
    let kinds: [Named; 4] = [
        ("ours", ours),
        ("cubic", || Arc::new(CubicConfig::default())),
        ("newreno", || Arc::new(NewRenoConfig::default())),
        ("bbr", || Arc::new(BbrConfig::default())),
    ];
    let only = std::env::var("ONLY").unwrap_or_default();
    println!(
        "{:>6} {:>6} {:>5} {:>5}  share of the rate / share of packets lost to the own queue",
        "rtt ms", "Mbit/s", "queue", "loss"
    );
    for rtt in [1, 10, 50, 200] {
        for rate in [5.0, 50.0, 200.0, 1000.0] {
            for queue in [0.25, 2.0] {
                for loss in [0.0, 0.01, 0.02, 0.03] {
                    let link = link(rtt, rate, queue, loss);
                    print!("{rtt:>6} {rate:>6} {queue:>5} {loss:>5}");
                    for (name, kind) in &kinds {
                        if only.is_empty() || only == *name {
                            let outcome = alone(link, kind(), long(link.rtt));
                            let ended = outcome.ended.as_deref().unwrap_or("");
                            print!("  {name} {:.3}/{:.3} {ended}", outcome.share, outcome.overrun);
                        }
                    }
                    println!();
                }
            }
        }
    }
}

#[test]
#[ignore = "tells how one flow fares"]
fn trace_of_one_flow() {
    let of = |name: &str| std::env::var(name).unwrap().parse::<f64>().unwrap();
    let link = link(of("RTT") as u64, of("RATE"), of("QUEUE"), of("LOSS"));
    let mut simulation = Simulation::new(link, 1);
    simulation.add(ours());
    for _ in 0..70 {
        let before = simulation.received();
        simulation.run(link.rtt * 2);
        let share = simulation.outcomes(&before, link.rtt * 2)[0].share;
        let stats = simulation.sender(0).stats().path;
        println!(
            "{:>9.3?} share {share:.3} rtt {:?} cwnd {} product {} lost {} {:?}",
            simulation.now - simulation.began,
            stats.rtt,
            stats.cwnd,
            link.product(),
            stats.lost_packets,
            congestion::shown(simulation.sender(0).congestion_state())
        );
    }
}

/// A path of the table of docs/performance.md, in less time: slow, fast, near, far, lossy, with short queues and long ones.
#[test]
fn a_lossy_link_is_used_and_not_overrun() {
    let paths = [
        (1, 50.0, 0.25, 0.02),
        (1, 200.0, 2.0, 0.0),
        (10, 5.0, 2.0, 0.02),
        (50, 50.0, 0.25, 0.0),
        (50, 200.0, 2.0, 0.01),
        (200, 50.0, 0.25, 0.02),
    ];
    for (rtt, rate, queue, loss) in paths {
        let link = link(rtt, rate, queue, loss);
        let outcome = alone(link, ours(), long(link.rtt));
        assert!(outcome.ended.is_none() && outcome.share > 0.85 && outcome.overrun < 0.03, "{link:?}: {outcome:?}");
    }
}

/// What the controllers of quinn make of such a link is the reason for ours, and shows that the link loses what it shall.
#[test]
fn a_controller_that_fears_each_loss_does_not_use_a_lossy_link() {
    let link = link(50, 50.0, 2.0, 0.01);
    let outcome = alone(link, Arc::new(CubicConfig::default()), long(link.rtt));
    assert!(outcome.share < 0.3, "{outcome:?}");
}

/// As [`alone`], of two flows that begin together.
fn shared(link: Link, with: Arc<dyn ControllerFactory + Send + Sync>, time: Duration) -> [f64; 2] {
    let mut simulation = Simulation::new(link, 1);
    simulation.add(ours());
    simulation.add(with);
    simulation.run(time / 5);
    let begun = simulation.received();
    simulation.run(time);
    let outcomes = simulation.outcomes(&begun, time);
    [outcomes[0].share, outcomes[1].share]
}

#[test]
fn a_shared_link_starves_nobody() {
    for queue in [0.5, 1.0, 2.0] {
        let link = link(50, 20.0, queue, 0.0);
        for (name, with) in [("itself", ours()), ("CUBIC", Arc::new(CubicConfig::default()) as _)] {
            let shares = shared(link, with, Duration::from_secs(30));
            assert!(shares.iter().all(|share| *share > 0.25), "queue {queue}: ours and {name} {shares:?}");
        }
    }
}

#[test]
fn a_link_that_gets_narrower_and_wider_is_followed() {
    let mut simulation = Simulation::new(link(50, 50.0, 1.0, 0.0), 1);
    simulation.add(ours());
    simulation.run(Duration::from_secs(3));
    for rate in [10.0, 80.0] {
        for way in &mut simulation.ways {
            way.link.rate = rate;
        }
        simulation.run(Duration::from_secs(5));
        let begun = simulation.received();
        simulation.run(Duration::from_secs(3));
        let share = simulation.outcomes(&begun, Duration::from_secs(3))[0].share;
        assert!(share > 0.85, "at {rate} Mbit/s: {share}");
    }
}

#[test]
fn a_link_that_was_cut_is_used_again() {
    let mut simulation = Simulation::new(link(50, 50.0, 1.0, 0.0), 1);
    simulation.add(ours());
    simulation.run(Duration::from_secs(3));
    for (loss, time) in [(1.0, 4), (0.0, 5)] {
        for way in &mut simulation.ways {
            way.link.loss = loss;
        }
        simulation.run(Duration::from_secs(time));
    }
    let begun = simulation.received();
    simulation.run(Duration::from_secs(3));
    let outcome = &simulation.outcomes(&begun, Duration::from_secs(3))[0];
    assert!(outcome.ended.is_none() && outcome.share > 0.85, "{outcome:?}");
}

#[test]
fn who_said_little_for_long_gets_up_to_the_rate_at_once() {
    let mut simulation = Simulation::new(link(50, 50.0, 1.0, 0.0), 1);
    simulation.add(ours());
    // Known, then hardly used for minutes.
    simulation.run(Duration::from_secs(2));
    simulation.busy = false;
    for _ in 0..200 {
        simulation.run(Duration::from_secs(1));
        simulation.say(0);
    }
    simulation.busy = true;
    simulation.say(0);
    let begun = simulation.received();
    simulation.run(Duration::from_secs(1));
    let outcome = &simulation.outcomes(&begun, Duration::from_secs(1))[0];
    assert!(outcome.share > 0.7, "{outcome:?}");
}

#[test]
fn small_messages_before_much_do_not_end_the_start() {
    let mut simulation = Simulation::new(link(50, 50.0, 1.0, 0.0), 1);
    simulation.busy = false;
    simulation.add(ours());
    for _ in 0..20 {
        simulation.run(Duration::from_millis(200));
        simulation.say(0);
    }
    simulation.busy = true;
    let begun = simulation.received();
    simulation.run(Duration::from_millis(600));
    let outcome = &simulation.outcomes(&begun, Duration::from_millis(600))[0];
    assert!(outcome.share > 0.3, "{outcome:?}");
}
