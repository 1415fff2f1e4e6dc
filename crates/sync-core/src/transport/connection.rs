//! An established connection: a peer that proved its key, streams of frames, an orderly end.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::closed::{Closed, Code};
use super::congestion;
use super::error::StreamError;
use super::frames::{FrameReader, FrameWriter};
use super::identity::{PeerId, PublicKey};
use super::tls::Purpose;
use super::tuning::{self, Settings};
use super::vigil::{Fate, Vigil};

/// Bytes on the wire, UDP payloads counted, headers of IP and UDP not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sent from here.
    pub sent: u64,
    /// Received here.
    pub received: u64,
}

/// A connection to a peer that proved its key. Clones share it; when the last clone and the last stream are dropped
/// without [`Connection::close`], the peer sees [`Code::Abandoned`].
#[derive(Clone)]
pub struct Connection {
    inner: quinn::Connection,
    peer: PublicKey,
    purpose: Purpose,
    fate: Fate,
    _vigil: Arc<Vigil>,
}

impl Connection {
    pub(super) fn new(inner: quinn::Connection, peer: PublicKey, purpose: Purpose, settings: Settings) -> Self {
        let fate = Fate::default();
        let vigil = Vigil::keep(inner.clone(), settings, fate.clone());
        Self { inner, peer, purpose, fate, _vigil: Arc::new(vigil) }
    }

    /// The peer's id.
    pub fn peer(&self) -> PeerId {
        self.peer.id()
    }

    /// What was negotiated.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The peer's address.
    pub fn remote(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    /// The smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.inner.rtt()
    }

    /// Holds no more bytes to be sent than keep the link busy, so that who waits to write waits for the link, and not for
    /// megabytes of buffers. To be called again and again while much is written: it goes by how the link is now.
    pub fn hold_what_the_link_takes(&self) {
        let path = self.inner.stats().path;
        let window = match tuning::is_loopback(self.inner.remote_address().ip()) {
            true => tuning::HELD_WITHIN_MACHINE,
            false => tuning::held(path.cwnd, path.rtt),
        };
        self.inner.set_send_window(window);
    }

    /// What went over the wire so far.
    pub fn traffic(&self) -> Traffic {
        let stats = self.inner.stats();
        Traffic { sent: stats.udp_tx.bytes, received: stats.udp_rx.bytes }
    }

    /// Opens a stream both ways. The peer sees it when the first frame is sent. Waits while 16 are open.
    pub async fn open_bi(&self) -> Result<(FrameWriter, FrameReader), StreamError> {
        let (send, receive) = self.inner.open_bi().await.map_err(|e| self.fate.explain(e))?;
        Ok((FrameWriter::new(send, self.fate.clone()), FrameReader::new(receive, self.fate.clone())))
    }

    /// The next stream both ways that the peer opened, in its order.
    pub async fn accept_bi(&self) -> Result<(FrameWriter, FrameReader), StreamError> {
        let (send, receive) = self.inner.accept_bi().await.map_err(|e| self.fate.explain(e))?;
        Ok((FrameWriter::new(send, self.fate.clone()), FrameReader::new(receive, self.fate.clone())))
    }

    /// Opens a stream to the peer. The peer sees it when the first frame is sent. Waits while 16 are open.
    pub async fn open_uni(&self) -> Result<FrameWriter, StreamError> {
        let stream = self.inner.open_uni().await.map_err(|e| self.fate.explain(e))?;
        Ok(FrameWriter::new(stream, self.fate.clone()))
    }

    /// The next one-way stream that the peer opened, in its order.
    pub async fn accept_uni(&self) -> Result<FrameReader, StreamError> {
        let stream = self.inner.accept_uni().await.map_err(|e| self.fate.explain(e))?;
        Ok(FrameReader::new(stream, self.fate.clone()))
    }

    /// Waits until the connection is over, and says why.
    pub async fn closed(&self) -> Closed {
        self.fate.explain(self.inner.closed().await)
    }

    /// Why the connection is over; `None` while it lives.
    pub fn close_reason(&self) -> Option<Closed> {
        self.inner.close_reason().map(|e| self.fate.explain(e))
    }

    /// Closes at once. **Data in flight is lost**, on either side: after the last message was *heard*, or to break off.
    /// Returns when the peer was told, at the latest after 100 ms; a program that ends sooner leaves the peer waiting
    /// for its idle timeout. `reason` is for people and cut at 400 bytes.
    pub async fn close(&self, code: Code, reason: &str) {
        const PATIENCE: Duration = Duration::from_millis(100);
        /// What quinn mostly needs, and less than the shortest sleep, which is a millisecond or two.
        const AT_ONCE: Duration = Duration::from_micros(300);
        if self.inner.close_reason().is_some() {
            return;
        }
        congestion::make_way(&self.inner);
        let before = self.inner.stats().udp_tx.datagrams;
        let reason = reason.as_bytes();
        self.inner.close(code.to_wire(), reason.get(..400).unwrap_or(reason));
        // quinn sends from its own task, and counts what it has sent.
        let begun = Instant::now();
        while self.inner.stats().udp_tx.datagrams == before && begun.elapsed() < PATIENCE {
            match begun.elapsed() < AT_ONCE {
                true => tokio::task::yield_now().await,
                false => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// The end for the side that **sent the last message** (its writers finished): only the peer knows that it was
    /// heard, so wait until the peer closes with [`Code::Done`]; after `patience` close anyway. The peer, having read
    /// the last message, calls [`Connection::close`] with [`Code::Done`].
    ///
    /// `Ok` says that the peer heard everything. [`Closed::Here`] means that patience ran out.
    pub async fn finish(&self, patience: Duration) -> Result<(), Closed> {
        let Ok(closed) = tokio::time::timeout(patience, self.closed()).await else {
            self.close(Code::Done, "").await;
            return Err(Closed::Here);
        };
        if closed.is_done() { Ok(()) } else { Err(closed) }
    }

    pub(super) fn raw(&self) -> &quinn::Connection {
        &self.inner
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({:?} with {} at {})", self.purpose, self.peer(), self.remote())
    }
}
