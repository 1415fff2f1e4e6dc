//! An established connection: a peer that proved its key, streams of frames, an orderly end.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionError, VarInt};

use super::error::StreamError;
use super::frames::{FrameReader, FrameWriter};
use super::identity::{PeerId, PublicKey};
use super::tls::Purpose;
use super::tuning::Settings;
use super::vigil::{Fate, Vigil};
use crate::path::escape;

/// Why a side closes a connection: the application code of QUIC's CONNECTION_CLOSE. Codes are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 0: the last handle was dropped. QUIC libraries send it by themselves, so it must not mean success.
    Abandoned,
    /// 1: everything was said and heard.
    Done,
    /// 2: the key is not paired.
    UnknownKey,
    /// 3: pairing, but no invitation is open.
    NoInvitation,
    /// 4: the program ends.
    ShuttingDown,
    /// 7: the peer broke the protocol.
    Protocol,
    /// 8: a person or a deadline ended it.
    Cancelled,
    /// 9: this side failed.
    Internal,
    /// A code of a later version.
    Other(u64),
}

impl Code {
    const KNOWN: [(u32, Self); 8] = [
        (0, Self::Abandoned),
        (1, Self::Done),
        (2, Self::UnknownKey),
        (3, Self::NoInvitation),
        (4, Self::ShuttingDown),
        (7, Self::Protocol),
        (8, Self::Cancelled),
        (9, Self::Internal),
    ];

    fn from_wire(code: u64) -> Self {
        let known = Self::KNOWN.iter().find(|(number, _)| u64::from(*number) == code);
        known.map_or(Self::Other(code), |(_, code)| *code)
    }

    pub(super) fn to_wire(self) -> VarInt {
        match self {
            Self::Other(code) => VarInt::from_u64(code).unwrap_or(VarInt::MAX),
            known => {
                let found = Self::KNOWN.iter().find(|(_, code)| *code == known);
                VarInt::from_u32(found.map_or(0, |(number, _)| *number))
            }
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Abandoned => "it broke off",
            Self::Done => "it was done",
            Self::UnknownKey => "it does not know this machine's key",
            Self::NoInvitation => "it has no open invitation",
            Self::ShuttingDown => "it is shutting down",
            Self::Protocol => "it did not understand what it was told",
            Self::Cancelled => "it was cancelled there",
            Self::Internal => "it failed",
            Self::Other(code) => return write!(f, "code {code}, unknown to this version"),
        })
    }
}

/// Why a connection is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The peer closed it.
    #[error("the other side closed the connection: {}", describe(.code, .reason))]
    ByPeer {
        /// Why, for programs.
        code: Code,
        /// Why, for people: escaped and bounded, possibly empty.
        reason: String,
    },
    /// Nothing was heard from the peer for the idle timeout.
    #[error(
        "the other side stopped answering; when it and the network are up again, push again: what it has is not sent twice"
    )]
    Vanished,
    /// The peer was restarted and knows nothing of this connection.
    #[error("the other side was restarted meanwhile; push again: what it has is not sent twice")]
    Restarted,
    /// This side closed it.
    #[error("the connection was closed on this side")]
    Here,
    /// TLS refused: the alert that came or was sent (RFC 8446, section 6), and the peer's words.
    #[error("the TLS handshake was refused (alert {alert}): {reason}")]
    Tls {
        /// The alert's number.
        alert: u8,
        /// More of it, escaped and bounded.
        reason: String,
    },
    /// The peer's QUIC takes no connection now.
    #[error("the other side takes no connection at the moment")]
    Refused,
    /// QUIC itself failed: a broken peer or noise.
    #[error("the QUIC connection broke: {0}")]
    Broken(String),
}

impl Closed {
    /// Whether the peer ended the connection in order.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::ByPeer { code: Code::Done, .. })
    }
}

fn describe(code: &Code, reason: &str) -> String {
    if reason.is_empty() { code.to_string() } else { format!("{code}: {reason}") }
}

/// A peer's words, harmless and short.
fn words(bytes: &[u8]) -> String {
    const LONGEST: usize = 400;
    escape(bytes.get(..LONGEST).unwrap_or(bytes))
}

impl From<ConnectionError> for Closed {
    fn from(error: ConnectionError) -> Self {
        /// The transport codes 0x100 to 0x1ff carry a TLS alert (RFC 9001, section 4.8).
        fn alert(code: u64) -> Option<u8> {
            code.checked_sub(0x100).and_then(|alert| u8::try_from(alert).ok())
        }
        match error {
            ConnectionError::ApplicationClosed(close) => {
                Self::ByPeer { code: Code::from_wire(close.error_code.into_inner()), reason: words(&close.reason) }
            }
            ConnectionError::ConnectionClosed(close) => {
                let code = u64::from(close.error_code);
                match alert(code) {
                    Some(alert) => Self::Tls { alert, reason: words(&close.reason) },
                    None if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED => Self::Refused,
                    None => Self::Broken(format!("{}, {}", close.error_code, words(&close.reason))),
                }
            }
            ConnectionError::TransportError(error) => match alert(u64::from(error.code)) {
                Some(alert) => Self::Tls { alert, reason: words(error.reason.as_bytes()) },
                None => Self::Broken(words(error.to_string().as_bytes())),
            },
            ConnectionError::TimedOut => Self::Vanished,
            ConnectionError::Reset => Self::Restarted,
            ConnectionError::LocallyClosed => Self::Here,
            other @ (ConnectionError::VersionMismatch | ConnectionError::CidsExhausted) => {
                Self::Broken(other.to_string())
            }
        }
    }
}

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
        const PATIENCE: u32 = 100;
        if self.inner.close_reason().is_some() {
            return;
        }
        let before = self.inner.stats().udp_tx.datagrams;
        let reason = reason.as_bytes();
        self.inner.close(code.to_wire(), reason.get(..400).unwrap_or(reason));
        // quinn sends from its own task, and counts what it has sent.
        for _ in 0..PATIENCE {
            if self.inner.stats().udp_tx.datagrams > before {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
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
