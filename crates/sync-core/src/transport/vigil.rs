//! Noticing early that the other side is gone: a port that is closed says so by ICMP, long before the idle timeout.
//!
//! QUIC's own socket is not connected, so the system never tells it. A second, connected socket knocks with one byte,
//! which is no QUIC packet and is dropped without an answer by whoever lives there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quinn::{ConnectionError, VarInt};
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::closed::Closed;
use super::tuning::{self, Settings};

/// How long an answer to a knock is listened for.
const LISTEN: Duration = Duration::from_secs(1);
/// How often a connection is looked at. Each time wakes a machine that may have nothing else to do.
const ROUND: Duration = Duration::from_secs(2);

/// A socket that only ever sends one byte to `address` and hears what the system says about it.
async fn knocker(address: SocketAddr) -> io::Result<UdpSocket> {
    let local: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(local, 0)).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// Knocks once; an error is what the system or the network said.
async fn knock(socket: &UdpSocket) -> io::Result<()> {
    socket.send(&[0]).await?;
    match timeout(LISTEN, socket.recv(&mut [0; 8])).await {
        Ok(Err(e)) => Err(e),
        // Silence, or somebody who answers: not closed.
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

/// Resolves when the system says that nothing sent to `address` can arrive, and never otherwise.
pub(super) async fn closed_port(address: SocketAddr) -> io::Error {
    async fn try_it(address: SocketAddr) -> io::Result<()> {
        let socket = knocker(address).await?;
        for _ in 0..3 {
            knock(&socket).await?;
        }
        Ok(())
    }
    match try_it(address).await {
        Err(e) if is_final(&e) => e,
        // Another error may be about the knock alone (a local firewall's EPERM).
        _ => std::future::pending().await,
    }
}

fn is_final(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
}

/// Why a connection ended, where that is more than QUIC knows. Shared by a connection and its streams.
#[derive(Clone, Debug, Default)]
pub(super) struct Fate(Arc<OnceLock<Closed>>);

impl Fate {
    /// The end of the connection as a person should hear it.
    pub(super) fn explain(&self, error: ConnectionError) -> Closed {
        match (error, self.0.get()) {
            (ConnectionError::LocallyClosed, Some(fate)) => fate.clone(),
            (error, _) => error.into(),
        }
    }
}

/// Watches a connection until it is dropped.
#[derive(Debug)]
pub(super) struct Vigil(AbortHandle);

impl Drop for Vigil {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Vigil {
    /// Begins to watch `connection`.
    pub(super) fn keep(connection: quinn::Connection, settings: Settings, fate: Fate) -> Self {
        Self(tokio::spawn(watch(connection, settings, fate)).abort_handle())
    }
}

async fn watch(connection: quinn::Connection, settings: Settings, fate: Fate) {
    // Within one machine a closed port is proof. Elsewhere a firewall may reject the knock of a port it does not know
    // while the connection is well, so keep-alives must have stayed out too.
    let silence = match tuning::is_loopback(connection.remote_address().ip()) {
        true => ROUND,
        false => settings.keep_alive * 5 / 2,
    };
    let datagrams = || {
        let stats = connection.stats();
        (stats.udp_rx.datagrams, stats.udp_tx.datagrams)
    };
    let (mut received, mut sent) = datagrams();
    let mut heard = Instant::now();
    loop {
        sleep(ROUND).await;
        if connection.close_reason().is_some() {
            return;
        }
        let now = datagrams();
        if now.0 != received {
            ((received, sent), heard) = (now, Instant::now());
        } else if now.1 != sent && heard.elapsed() >= silence && refuses(connection.remote_address()).await {
            // Nobody who is not spoken to answers. A last look: it may have spoken while we knocked.
            if datagrams().0 == received {
                let _ = fate.0.set(Closed::Vanished);
                connection.close(VarInt::from_u32(0), b"");
                return;
            }
        }
    }
}

/// Whether the port at `address` is closed: twice, because a single ICMP message may be about something older.
async fn refuses(address: SocketAddr) -> bool {
    let Ok(socket) = knocker(address).await else {
        return false;
    };
    for _ in 0..2 {
        match knock(&socket).await {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
            _ => return false,
        }
    }
    true
}
