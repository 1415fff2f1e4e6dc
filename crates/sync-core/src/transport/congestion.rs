//! How much may be in flight, as quinn asks for it: [`Model`] joins our [`Congestion`] to it, and [`EndsInTime`] any controller to
//! the end of a connection.
//!
//! quinn (0.11) lets no close out while the congestion window is full and data waits, and hears no acknowledgement any more that
//! would make room: the peer learns from a reset, or from silence, what it should have been told
//! (<https://github.com/quinn-rs/quinn/issues/2785>). So the window of a connection that ends has no bound.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

use crate::congestion::{Congestion, INITIAL_PACKETS};

/// More than quinn paces.
const NO_BOUND: u64 = 1 << 33;

/// Makes controllers like `F` that can be told of the end.
#[derive(Debug)]
pub(super) struct EndsInTime<F>(pub Arc<F>);

impl<F: ControllerFactory + Send + Sync + 'static> ControllerFactory for EndsInTime<F> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Ending { inner: Arc::clone(&self.0).build(now, current_mtu), ends: Arc::default() })
    }
}

/// Lets the close of `connection` out, whatever is in flight.
pub(super) fn make_way(connection: &quinn::Connection) {
    if let Ok(controller) = connection.congestion_state().into_any().downcast::<Ending>() {
        controller.ends.store(true, Ordering::Relaxed);
    }
}

/// Copies share the flag: one of them is what [`make_way`] gets.
struct Ending {
    inner: Box<dyn Controller>,
    ends: Arc<AtomicBool>,
}

impl Controller for Ending {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.ends.load(Ordering::Relaxed) { NO_BOUND } else { self.inner.window() }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), ends: Arc::clone(&self.ends) })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Makes controllers that go by a model of the path.
#[derive(Debug)]
pub(super) struct Model;

impl ControllerFactory for Model {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let packet = u64::from(current_mtu);
        let initial = INITIAL_PACKETS * packet;
        Box::new(Modelled { congestion: Congestion::new(packet, initial), began: now, initial })
    }
}

#[derive(Clone, Debug)]
struct Modelled {
    congestion: Congestion,
    /// Times are counted from here.
    began: Instant,
    initial: u64,
}

impl Modelled {
    fn time(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.began)
    }
}

impl Controller for Modelled {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        self.congestion.sent(self.time(now), bytes);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _app_limited: bool, rtt: &RttEstimator) {
        self.congestion.acked(self.time(now), self.time(sent), bytes, rtt.get());
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, _largest: Option<u64>) {
        self.congestion.acks_end(self.time(now), in_flight, app_limited);
    }

    fn on_congestion_event(&mut self, _now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        if is_persistent_congestion {
            self.congestion.nothing_arrives();
        } else if lost_bytes == 0 {
            self.congestion.marked(self.time(sent));
        } else {
            self.congestion.lost(self.time(sent), lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.congestion.packets_of(new_mtu.into());
    }

    fn window(&self) -> u64 {
        self.congestion.window()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.initial
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
pub(super) fn shown(controller: &dyn Controller) -> String {
    let ending = controller.clone_box().into_any().downcast::<Ending>().unwrap();
    ending.inner.into_any().downcast::<Modelled>().unwrap().congestion.to_string()
}
