//! How much a connection may have in flight: a model of the path instead of a fear of each loss.
//!
//! After BBR (draft-ietf-ccwg-bbr), steered through the window alone: quinn paces at 1.25 windows in a round trip, and has no
//! other handle. The path has a rate, the most that was delivered lately, and a round trip, the least that was seen in 10 s.
//! In flight is what that rate carries in a round trip as it is now, which keeps the rate also where somebody else fills the
//! queue, and never more than `CAP` times what the empty path holds. Loss does not change the rate: a link that drops one packet in fifty is
//! not a narrow one. Loss above `BEARABLE` is taken for a queue that runs over: a *ceiling* is set below what was in flight then,
//! and raised again by what later probes find.
//!
//! Sans-IO: packets sent, acknowledged and lost go in, a window comes out. No clock: times are any monotonic time of the caller.

mod rate;

#[cfg(test)]
mod tests;

use std::time::Duration;

use rate::Sampler;

/// Packets in flight before anything is known, as in Chromium; they are paced.
pub const INITIAL_PACKETS: u64 = 32;
/// Packets that may always be in flight, or acknowledgements would not flow.
const LEAST_PACKETS: u64 = 4;
/// The same while no ceiling forbids it: of fewer packets a lost one is only noticed when its time is over.
const FEW_PACKETS: u64 = 8;
/// Share of the packets of a round whose loss is no sign of a full queue. Random loss on bad links is 1 to 3 %.
const BEARABLE: f64 = 0.08;
/// Fewer lost packets than this in a round prove nothing.
const FEW: u64 = 5;
/// And so do losses that were noticed less often.
const TIMES: u64 = 3;
/// Of what was in flight when too much was lost, so much is the ceiling.
const BACK: f64 = 0.85;
/// What a probe may have in flight, of what is else, ...
const UP: f64 = 1.25;
/// ... and no more than so many packets beyond it.
const UP_BY: u64 = 512;
/// Bound of all that is in flight, in products of the rate and the least round trip. With less, a rival that fills the queue gets it all.
const CAP: f64 = 2.0;
/// How the window grows from round to round while the rate is looked for: doubles, ...
const DOUBLE: f64 = 2.0;
/// ... but no more than a probe does where it is large already: what is too much is lost packet by packet, and a receiver bears 1,024
/// gaps in a stream.
const LARGE: u64 = 1024;
/// Rounds of one cycle: one probes, one lets go, the others cruise.
const CYCLE: u32 = 8;
/// The rate is found if rounds are not faster by this.
const FASTER: f64 = 1.15;
/// A cycle takes no less time: a probe costs packets where queues are short, and a nearby path does not change every 10 ms.
const CYCLE_TAKES: Duration = Duration::from_millis(100);
/// In this round of a cycle what the first one probed for is heard of. If the rate was higher by ...
const TELLS: u32 = 2;
/// ... such a share of what was probed for, the next probe follows at once, ...
const MORE: f64 = 0.4;
/// ... and after so many such probes the rate is looked for as at first.
const MUCH_MORE: u32 = 2;
/// Rounds without being faster after which the rate is taken for found, whatever the round trip says.
const PLATEAU: u32 = 3;
/// How long the least round trip is believed.
const ROUND_TRIP_KNOWN: Duration = Duration::from_secs(10);
/// How long little is in flight so that the round trip of the empty path shows.
const LISTEN: Duration = Duration::from_millis(200);
/// What a sleepy timer or a late acknowledgement may cost without leaving the link idle.
const SLACK: Duration = Duration::from_micros(250);

/// What is being found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The rate: the window doubles in each round.
    Start,
    /// More than the rate is sent, to see whether there is more.
    Up,
    /// What the empty path holds, so that the queue runs empty.
    Down,
    /// Just the rate.
    Cruise,
    /// The least round trip: little is in flight until then.
    Listen {
        /// When that ends, once little is in flight.
        until: Option<Duration>,
    },
}

/// One connection's controller.
#[derive(Clone, Debug)]
pub struct Congestion {
    sampler: Sampler,
    packet: u64,
    phase: Phase,
    window: u64,
    /// The round that runs: it ends when something is acknowledged that was sent after it began.
    round_ends: u64,
    rounds_in_phase: u32,
    rounds_in_cycle: u32,
    cycle_began: Duration,
    /// Acknowledged and lost packets of the round.
    round: Counts,
    /// The most that was delivered in a second, in this cycle and the one before; bytes a second.
    rates: [f64; 2],
    /// Whether the cycle has measured anything else than that there was nothing to send.
    cycle_proves: bool,
    /// The rate before the rounds of the start, or of the probe, that made it faster; how many did not, and how many did.
    fastest: f64,
    not_faster: u32,
    faster: u32,
    least: Option<Duration>,
    least_at: Duration,
    least_in_round: Duration,
    /// The least while it was listened for.
    listened: Duration,
    smooth: Duration,
    ceiling: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Packets in flight when the round began.
    begun_with: u64,
    acked: u64,
    lost: u64,
    /// How often something was found lost: an outage takes many packets at once, a queue that is full one here and one there.
    times: u64,
    /// Bytes that were in flight when the last lost packet was sent.
    in_flight: u64,
    /// The ceiling has come down in this round already.
    lowered: bool,
}

impl Counts {
    fn too_many_lost(&self) -> bool {
        // Of the whole round, also where it has just begun.
        let packets = (self.acked + self.lost).max(self.begun_with);
        #[expect(clippy::cast_precision_loss, reason = "packets of one round")]
        let share = self.lost as f64 / packets.max(1) as f64;
        self.lost >= FEW && self.times >= TIMES && share > BEARABLE
    }
}

impl Congestion {
    /// For packets of `packet` bytes, with `initial` bytes in flight until more is known.
    pub fn new(packet: u64, initial: u64) -> Self {
        Self {
            sampler: Sampler::default(),
            packet,
            phase: Phase::Start,
            window: initial.max(LEAST_PACKETS * packet),
            round_ends: 0,
            rounds_in_phase: 0,
            rounds_in_cycle: 0,
            cycle_began: Duration::ZERO,
            round: Counts::default(),
            rates: [0.0; 2],
            cycle_proves: false,
            fastest: 0.0,
            not_faster: 0,
            faster: 0,
            least: None,
            least_at: Duration::ZERO,
            least_in_round: Duration::MAX,
            listened: Duration::MAX,
            smooth: Duration::ZERO,
            ceiling: u64::MAX,
        }
    }

    /// Bytes that may be in flight.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// What the path carries, as far as is known; bytes a second.
    fn rate(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    /// Packets have this size from now on.
    pub fn packets_of(&mut self, bytes: u64) {
        self.packet = bytes;
        self.window = self.window.max(self.floor());
    }

    /// `bytes` were sent.
    pub fn sent(&mut self, now: Duration, bytes: u64) {
        self.sampler.sent(now, bytes);
    }

    /// A packet of `bytes` that was sent at `at` has arrived. `smooth` is the round trip as it is now.
    pub fn acked(&mut self, now: Duration, at: Duration, bytes: u64, smooth: Duration) {
        self.round.acked += 1;
        self.smooth = smooth;
        let took = now.saturating_sub(at);
        self.least_in_round = self.least_in_round.min(took);
        self.listened = self.listened.min(took);
        if self.least.is_none_or(|least| took <= least) {
            self.least = Some(took);
            self.least_at = now;
        }
        self.sampler.acked(now, at, bytes);
        if self.phase == Phase::Start {
            self.window = self.window.saturating_add(bytes).min(self.at_first());
        }
    }

    /// All that one acknowledgement told has gone in. `idle` says that there was nothing more to send.
    pub fn acks_end(&mut self, now: Duration, in_flight: u64, idle: bool) {
        let sample = self.sampler.batch_ends(in_flight, idle);
        if let Some(sample) = sample {
            if !sample.idle || sample.rate > self.rate() {
                self.rates[0] = self.rates[0].max(sample.rate);
            }
            self.cycle_proves |= !sample.idle;
            if sample.sent_at_delivered >= self.round_ends {
                self.round_ends = self.sampler.delivered();
                self.round_over(now, sample.idle, in_flight);
            }
        }
        self.advance(now, in_flight);
        self.set_window();
    }

    /// Packets of `bytes` together were lost, the last of which was sent at `at`.
    pub fn lost(&mut self, at: Duration, bytes: u64) {
        self.round.times += 1;
        self.round.lost += bytes.div_ceil(self.packet.max(1));
        self.round.in_flight = self.sampler.in_flight_at(at).unwrap_or(self.window);
        self.sampler.lost(bytes);
        if self.round.too_many_lost() {
            self.come_down();
        }
    }

    /// The path says that its queue is getting long, before it loses anything.
    pub fn marked(&mut self, at: Duration) {
        self.round.in_flight = self.sampler.in_flight_at(at).unwrap_or(self.window);
        self.come_down();
    }

    /// Nothing has arrived for long: what was known of the path is not believed any more.
    pub fn nothing_arrives(&mut self) {
        let sampler = std::mem::take(&mut self.sampler);
        *self = Self { sampler, ..Self::new(self.packet, 0) };
    }

    fn come_down(&mut self) {
        // With little in flight the queue is somebody else's.
        if self.round.in_flight < self.window / 2 || std::mem::replace(&mut self.round.lowered, true) {
            return;
        }
        let held = share(self.round.in_flight.min(self.window), BACK);
        // What a probe lost says nothing against what the path carries with an empty queue.
        let probed = match self.phase {
            Phase::Start | Phase::Up => true,
            Phase::Down => self.rounds_in_cycle <= TELLS,
            Phase::Cruise | Phase::Listen { .. } => false,
        };
        let carried = if probed { self.product(1.0) } else { 0 };
        self.ceiling = self.ceiling.min(held.max(carried)).max(self.floor());
        match self.phase {
            Phase::Start | Phase::Up => self.enter(Phase::Down),
            Phase::Down | Phase::Cruise | Phase::Listen { .. } => {}
        }
        self.set_window();
    }

    fn round_over(&mut self, now: Duration, idle: bool, in_flight: u64) {
        self.rounds_in_phase += 1;
        self.rounds_in_cycle += 1;
        if self.phase == Phase::Start && !idle {
            self.look_for_the_end_of_the_start();
        }
        if self.phase == Phase::Up {
            self.enter(Phase::Down);
        } else if self.rounds_in_cycle == TELLS && matches!(self.phase, Phase::Down | Phase::Cruise) {
            self.judge_the_probe(now);
        }
        self.round = Counts { begun_with: in_flight / self.packet.max(1), ..Counts::default() };
        self.least_in_round = Duration::MAX;
    }

    /// What was sent while more was probed for has been heard of.
    fn judge_the_probe(&mut self, now: Duration) {
        if !self.round.lowered {
            self.ceiling = share(self.ceiling, self.up());
        }
        if self.rate() < self.fastest * (1.0 + MORE * (self.up() - 1.0)) || self.round.lowered {
            self.faster = 0;
            return;
        }
        self.faster += 1;
        if self.faster < MUCH_MORE {
            self.probe(now);
        } else {
            self.faster = 0;
            self.not_faster = 0;
            self.fastest = self.rate();
            self.ceiling = u64::MAX;
            self.enter(Phase::Start);
        }
    }

    fn probe(&mut self, now: Duration) {
        self.rounds_in_cycle = 0;
        self.cycle_began = now;
        if std::mem::replace(&mut self.cycle_proves, false) {
            self.rates = [0.0, self.rates[0]];
        }
        self.fastest = self.rate();
        self.enter(Phase::Up);
    }

    fn look_for_the_end_of_the_start(&mut self) {
        let rate = self.rate();
        if self.window > LARGE * self.packet && self.queue_of(16) {
            self.enter(Phase::Down);
            return;
        }
        if rate >= self.fastest * FASTER {
            self.fastest = rate;
            self.not_faster = 0;
            return;
        }
        self.not_faster += 1;
        let queue = self.queue_of(4);
        if queue || self.not_faster >= PLATEAU {
            self.enter(Phase::Down);
        }
    }

    /// Whether all packets of the round waited for longer than that part of the least round trip.
    fn queue_of(&self, part: u32) -> bool {
        self.least.is_some_and(|least| self.least_in_round > least + least / part + SLACK)
    }

    /// What a probe has in flight, of what is else.
    fn up(&self) -> f64 {
        let product = self.product(1.0).max(self.packet);
        #[expect(clippy::cast_precision_loss, reason = "bytes in flight")]
        let by = (UP_BY * self.packet) as f64 / product as f64;
        UP.min(1.0 + by)
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.rounds_in_phase = 0;
    }

    fn advance(&mut self, now: Duration, in_flight: u64) {
        let stale = now.saturating_sub(self.least_at) > ROUND_TRIP_KNOWN;
        match self.phase {
            Phase::Start | Phase::Up => {}
            Phase::Listen { until: None } => {
                if in_flight <= self.listening().max(self.floor()) {
                    let until = now + LISTEN.max(self.smooth);
                    self.phase = Phase::Listen { until: Some(until) };
                    // What was sent before this had a queue before it.
                    self.listened = Duration::MAX;
                }
            }
            Phase::Listen { until: Some(until) } => {
                if now >= until {
                    if self.listened != Duration::MAX {
                        self.least = Some(self.listened);
                    }
                    self.least_at = now;
                    self.enter(Phase::Cruise);
                }
            }
            _ if stale => self.enter(Phase::Listen { until: None }),
            Phase::Down => {
                // What is sent with an empty queue has been heard of: the round trip is as it is without us.
                if self.rounds_in_phase >= 1 {
                    self.enter(Phase::Cruise);
                }
            }
            Phase::Cruise => {
                if self.rounds_in_cycle >= CYCLE && now.saturating_sub(self.cycle_began) >= CYCLE_TAKES {
                    self.probe(now);
                }
            }
        }
    }

    fn set_window(&mut self) {
        let gain = match self.phase {
            Phase::Start => {
                self.window = self.window.min(self.ceiling).max(self.floor());
                return;
            }
            Phase::Up => self.up(),
            Phase::Cruise => 1.0,
            Phase::Down => {
                self.window = self.product(1.0).min(self.ceiling).max(self.floor());
                return;
            }
            Phase::Listen { .. } => {
                self.window = self.listening().max(self.floor());
                return;
            }
        };
        let now = bytes(self.rate() * gain * (self.smooth + SLACK).as_secs_f64());
        let ceiling = match self.phase {
            Phase::Up => share(self.ceiling, gain),
            _ => self.ceiling,
        };
        let few = FEW_PACKETS * self.packet;
        self.window = now.min(self.product(CAP)).max(few).min(ceiling).max(self.floor());
    }

    fn floor(&self) -> u64 {
        LEAST_PACKETS * self.packet
    }

    fn listening(&self) -> u64 {
        self.product(0.5)
    }

    fn at_first(&self) -> u64 {
        match self.least {
            Some(_) if self.rate() > 0.0 => {
                let large = LARGE * self.packet;
                let stepped = self.product(self.up()).max(large);
                self.product(DOUBLE).min(stepped).max(INITIAL_PACKETS * self.packet)
            }
            _ => u64::MAX,
        }
    }

    /// So many times what the empty path holds.
    fn product(&self, times: f64) -> u64 {
        let least = self.least.unwrap_or(self.smooth) + SLACK;
        bytes(self.rate() * least.as_secs_f64() * times)
    }
}

#[cfg(test)]
impl std::fmt::Display for Congestion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let least = self.least.unwrap_or_default();
        write!(f, "{:?}: rate {:.0} least {least:?} ceiling {}", self.phase, self.rate(), self.ceiling)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; never negative")]
fn bytes(n: f64) -> u64 {
    n as u64
}

#[expect(clippy::cast_precision_loss, reason = "bytes in flight")]
fn share(n: u64, times: f64) -> u64 {
    if n == u64::MAX { n } else { bytes(n as f64 * times) }
}
