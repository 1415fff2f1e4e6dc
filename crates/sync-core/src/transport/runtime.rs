//! What quinn runs on: tokio, but for what wakes it for nothing. On a master of many replicas that each hear of a change now and
//! then, that was more than half of all wakeups, and two system calls of each five.
//!
//! - quinn sets a timer with each packet, for the case that it is lost, and puts it off for seconds once that is acknowledged.
//!   tokio leaves such a timer where it was, wakes at that time and finds that there is nothing to do.
//! - The kernel tells each time that a socket has room for more, and whoever reads from one asks until there is nothing. A UDP socket
//!   has room nearly always; and a read that did not fill its buffers has emptied it, or there will be another event.

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Sleep, sleep_until};

/// Who puts a timer off by less may do so again in a moment, and is not worth the work.
const AT_REST: Duration = Duration::from_secs(1);

/// Tokio, and what wakes nobody for nothing.
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
        // It also makes it one that does not block.
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Arc::new(Socket { state, socket: registered(socket, Interest::READABLE)? }))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// Who hears of a descriptor. What tokio warns of is a type that changes its number meanwhile, which neither of ours does.
#[allow(deprecated, reason = "the other one is unsafe to call")]
fn registered<T: AsRawFd>(descriptor: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(descriptor, interest)
}

/// A socket that tells when there is something to read.
#[derive(Debug)]
struct Socket {
    state: UdpSocketState,
    socket: AsyncFd<UdpSocket>,
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room { of: self, awaited: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.state.send(UdpSockRef::from(self.socket.get_ref()), transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut is_readable = ready!(self.socket.poll_read_ready(cx))?;
            match self.state.recv(UdpSockRef::from(self.socket.get_ref()), bufs, meta) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => is_readable.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => {
                    // What has come since, the kernel tells of again.
                    if received.as_ref().is_ok_and(|received| *received < bufs.len().min(meta.len())) {
                        is_readable.clear_ready();
                    }
                    return Poll::Ready(received);
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

/// Waits for room in a socket that had none.
#[derive(Debug)]
struct Room {
    of: Arc<Socket>,
    /// The same socket under another number, for as long as that is waited for.
    awaited: Option<AsyncFd<OwnedFd>>,
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let awaited = match self.awaited.take() {
            Some(awaited) => awaited,
            None => registered(self.of.socket.as_fd().try_clone_to_owned()?, Interest::WRITABLE)?,
        };
        if let Poll::Ready(has_room) = awaited.poll_write_ready(cx) {
            return Poll::Ready(has_room.map(drop));
        }
        self.awaited = Some(awaited);
        Poll::Pending
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

    #[tokio::test]
    async fn a_socket_gives_all_that_comes_and_says_when_it_has_room() {
        let here = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = here.local_addr().unwrap();
        let socket = Tokio.wrap_udp_socket(here).unwrap();
        let there = UdpSocket::bind("127.0.0.1:0").unwrap();
        // More and fewer than fit into the buffers, and just as many.
        for count in [1, 3, 8, 16, 17, 0, 50] {
            (0..count).for_each(|_| drop(there.send_to(b"x", to).unwrap()));
            let mut received = 0;
            while received < count {
                let mut room = [[0; 2000]; 8];
                let mut bufs = room.each_mut().map(|room| IoSliceMut::new(room));
                let mut meta = [RecvMeta::default(); 8];
                let next = std::future::poll_fn(|cx| socket.poll_recv(cx, &mut bufs, &mut meta));
                let next = tokio::time::timeout(Duration::from_secs(20), next).await.expect("it says that it is empty");
                // The kernel may hand over several in one piece.
                received += meta[..next.unwrap()].iter().map(|meta| meta.len).sum::<usize>();
            }
            assert_eq!(received, count);
        }
        let mut room = Arc::clone(&socket).create_io_poller();
        for _ in 0..2 {
            std::future::poll_fn(|cx| room.as_mut().poll_writable(cx)).await.unwrap();
        }
    }
}
