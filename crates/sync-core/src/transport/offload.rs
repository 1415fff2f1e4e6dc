//! The socket for packets within one machine: as many at once as the kernel takes in one piece.
//!
//! Quinn hands over up to ten packets in one call, which the kernel carries through its stack as one (UDP_SEGMENT, udp(7))
//! and the other side reads as one. Of more than a datagram can hold it drops all without a word.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::tuning::LOOPBACK_MTU;

/// Bytes that a datagram of IPv4 can hold beside its headers.
const DATAGRAM: usize = 65_507;

/// A socket that is never given more packets of [`LOOPBACK_MTU`] at once than a datagram can hold.
#[derive(Debug)]
pub(super) struct WithinMachine(pub Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for WithinMachine {
    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments().min(DATAGRAM / usize::from(LOOPBACK_MTU))
    }

    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }
}

#[cfg(test)]
mod tests {
    use quinn::Runtime as _;

    use super::*;
    use crate::transport::runtime::Tokio;

    #[tokio::test]
    async fn as_many_packets_go_at_once_as_the_kernel_takes() {
        let here = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let there = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        there.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let socket = Arc::new(WithinMachine(Tokio.wrap_udp_socket(here).unwrap()));
        let mut poller = Arc::clone(&socket).create_io_poller();
        std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
        let most = socket.max_transmit_segments();
        let packet = usize::from(LOOPBACK_MTU);
        assert!(most >= 1 && most * packet <= DATAGRAM && (most == 1 || (most + 1) * packet > DATAGRAM), "{most}");
        let contents = vec![7; most * packet];
        let destination = there.local_addr().unwrap();
        let transmit =
            Transmit { destination, ecn: None, contents: &contents, segment_size: Some(packet), src_ip: None };
        socket.try_send(&transmit).unwrap();
        let mut buffer = vec![0; 1 << 16];
        for _ in 0..most {
            assert_eq!(there.recv(&mut buffer).unwrap(), packet);
        }
    }
}
