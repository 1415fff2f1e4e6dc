//! What quinn runs on: tokio, but for timers that are put off.
//!
//! quinn sets a timer with each packet, for the case that it is lost, and puts it off for seconds once that is acknowledged.
//! tokio leaves such a timer where it was, wakes at that time and finds that there is nothing to do: a small cost where
//! packets follow each other, but on a master of many replicas that each hear of a change now and then, more than half of all wakeups.

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
