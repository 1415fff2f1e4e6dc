//! What quinn runs on: tokio, but for timers that are put off.
//!
//! quinn sets a timer with each packet, for the case that it is lost, and puts it off for seconds once that is acknowledged.
//! tokio leaves such a timer where it was, wakes at that time and finds that there is nothing to do: a small cost where
//! packets follow each other, but a third of all wakeups on a master of 8 replicas that hear of a change 20 times a second.

use std::future::Future;
use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::time::{Sleep, sleep_until};

/// Who puts a timer off by less may do so again in a moment, and is not worth the work.
const AT_REST: Duration = Duration::from_secs(1);

/// Tokio, and timers that wake nobody before their time.
#[derive(Debug)]
pub(super) struct Tokio;

impl Runtime for Tokio {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(Timer(Box::pin(sleep_until(at.into()))))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

#[derive(Debug)]
struct Timer(Pin<Box<Sleep>>);

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        let at = tokio::time::Instant::from_std(at);
        if at.saturating_duration_since(self.0.deadline()) < AT_REST {
            self.0.as_mut().reset(at);
        } else {
            self.0.set(sleep_until(at));
        }
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self.0.as_mut(), cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// How often a thread goes to sleep within 500 ms, after a timer of 50 ms was put off to this time.
    fn sleeps(runs_on: &dyn Runtime, put_off: Duration) -> u32 {
        let slept = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&slept);
        let mut threads = tokio::runtime::Builder::new_current_thread();
        threads.enable_all().on_thread_park(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        threads.build().unwrap().block_on(async {
            let began = Instant::now();
            let mut timer = runs_on.new_timer(began + Duration::from_millis(50));
            let mut cx = Context::from_waker(std::task::Waker::noop());
            assert!(timer.as_mut().poll(&mut cx).is_pending());
            timer.as_mut().reset(began + put_off);
            assert!(timer.as_mut().poll(&mut cx).is_pending());
            tokio::time::sleep_until((began + Duration::from_millis(500)).into()).await;
            assert_eq!(timer.as_mut().poll(&mut cx).is_ready(), put_off < Duration::from_millis(500));
        });
        slept.load(Ordering::Relaxed)
    }

    #[test]
    fn a_timer_that_is_put_off_wakes_nobody_before_its_time() {
        let rest = Duration::from_secs(5);
        assert!(sleeps(&Tokio, rest) < sleeps(&TokioRuntime, rest), "tokio does so itself: this module is of no use");
    }
}
