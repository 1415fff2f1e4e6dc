//! How fast things arrive: what was delivered between the sending of a packet and its acknowledgement, over the longer of the times
//! that sending and hearing of it took (draft-cheng-iccrg-delivery-rate-estimation).

use std::collections::VecDeque;
use std::time::Duration;

/// Bursts that are remembered at most, and how much apart they begin at first. Where a round trip has more, twice as much apart.
const BURSTS: usize = 4096;
const APART: Duration = Duration::from_micros(50);

/// What is known of a burst: packets that were sent at about the same time. Whatever was sent with it counts from its beginning.
#[derive(Clone, Copy, Debug)]
struct Burst {
    at: Duration,
    /// What had been delivered then, and when that was heard.
    delivered: u64,
    delivered_at: Duration,
    /// When the packet had been sent that was acknowledged last then.
    base_at: Duration,
    in_flight: u64,
    idle: bool,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// Bytes a second.
    pub rate: f64,
    /// There was not enough to send: the path may be faster.
    pub idle: bool,
    /// What had been delivered when the newest of these packets was sent.
    pub sent_at_delivered: u64,
}

/// Measures one connection.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    bursts: VecDeque<Burst>,
    apart: Duration,
    delivered: u64,
    delivered_at: Duration,
    base_at: Duration,
    in_flight: u64,
    /// Packets sent before more than this is delivered are of a time with too little to send.
    idle_until: u64,
    newest: Option<Burst>,
}

impl Default for Sampler {
    fn default() -> Self {
        Self {
            bursts: VecDeque::new(),
            apart: APART,
            delivered: 0,
            delivered_at: Duration::ZERO,
            base_at: Duration::ZERO,
            in_flight: 0,
            idle_until: 0,
            newest: None,
        }
    }
}

impl Sampler {
    /// Bytes that have arrived so far.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    pub fn sent(&mut self, now: Duration, bytes: u64) {
        if self.in_flight == 0 {
            self.delivered_at = now;
            self.base_at = now;
        }
        self.in_flight += bytes;
        match self.bursts.back_mut() {
            Some(burst) if now.saturating_sub(burst.at) < self.apart => burst.in_flight = self.in_flight,
            _ => {
                if self.bursts.len() == BURSTS {
                    self.thin_out();
                }
                self.bursts.push_back(Burst {
                    at: now,
                    delivered: self.delivered,
                    delivered_at: self.delivered_at,
                    base_at: self.base_at,
                    in_flight: self.in_flight,
                    idle: self.delivered <= self.idle_until,
                });
            }
        }
    }

    pub fn acked(&mut self, now: Duration, at: Duration, bytes: u64) {
        self.delivered += bytes;
        self.delivered_at = now;
        self.in_flight = self.in_flight.saturating_sub(bytes);
        let burst = self.burst(at);
        if let Some(burst) = burst
            && self.newest.is_none_or(|newest| burst.at >= newest.at)
        {
            self.newest = Some(burst);
        }
    }

    pub fn lost(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }

    /// The sample of what was acknowledged together. `in_flight` is the truth.
    pub fn batch_ends(&mut self, in_flight: u64, idle: bool) -> Option<Sample> {
        self.in_flight = in_flight;
        if idle {
            self.idle_until = self.delivered + in_flight;
        }
        let burst = self.newest.take()?;
        self.base_at = burst.at;
        // Late ones from before are lost or will be heard of soon: they are still found for half of what is remembered.
        let heard = self.delivered_at.saturating_sub(burst.delivered_at);
        let sending = burst.at.saturating_sub(burst.base_at);
        let took = heard.max(sending);
        let forget = burst.at.saturating_sub(2 * took);
        while self.bursts.front().is_some_and(|first| first.at < forget) {
            self.bursts.pop_front();
        }
        if in_flight == 0 {
            // Acknowledgements of ours, which nobody acknowledges, would be remembered for ever.
            self.bursts.clear();
        }
        if self.bursts.len() < BURSTS / 8 {
            self.apart = (self.apart / 2).max(APART);
        }
        if took.is_zero() {
            return Some(Sample { rate: 0.0, idle: true, sent_at_delivered: burst.delivered });
        }
        #[expect(clippy::cast_precision_loss, reason = "bytes of one round")]
        let delivered = (self.delivered - burst.delivered) as f64;
        Some(Sample { rate: delivered / took.as_secs_f64(), idle: burst.idle, sent_at_delivered: burst.delivered })
    }

    /// What was in flight when a packet was sent at `at`.
    pub fn in_flight_at(&self, at: Duration) -> Option<u64> {
        self.burst(at).map(|burst| burst.in_flight)
    }

    #[cfg(test)]
    pub fn remembered(&self) -> usize {
        self.bursts.len()
    }

    /// The burst that a packet was sent with.
    fn burst(&self, at: Duration) -> Option<Burst> {
        let after = self.bursts.partition_point(|burst| burst.at <= at);
        self.bursts.get(after.checked_sub(1)?).copied()
    }

    fn thin_out(&mut self) {
        self.apart *= 2;
        let mut keep = false;
        self.bursts.retain(|_| {
            keep = !keep;
            keep
        });
    }
}
