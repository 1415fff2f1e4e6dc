//! How a connection ends: the codes that sides close with, and what the other side makes of it.

use std::fmt;

use quinn::{ConnectionError, VarInt};

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
    /// 10: the share is another master's.
    NotOwner,
    /// A code of a later version.
    Other(u64),
}

impl Code {
    const KNOWN: [(u32, Self); 9] = [
        (0, Self::Abandoned),
        (1, Self::Done),
        (2, Self::UnknownKey),
        (3, Self::NoInvitation),
        (4, Self::ShuttingDown),
        (7, Self::Protocol),
        (8, Self::Cancelled),
        (9, Self::Internal),
        (10, Self::NotOwner),
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
            Self::NotOwner => "another master owns the share",
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
    /// Whether neither side wanted the end: the network failed, or the peer did.
    pub fn is_cut(&self) -> bool {
        match self {
            Self::Vanished | Self::Restarted | Self::Broken(_) => true,
            Self::ByPeer { code, .. } => matches!(code, Code::Abandoned | Code::Internal),
            Self::Here | Self::Tls { .. } | Self::Refused => false,
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_cut_by_who_fails_and_not_by_who_ends_it() {
        let by = |code| Closed::ByPeer { code, reason: String::new() };
        for cut in [Closed::Vanished, Closed::Restarted, Closed::Broken(String::new())] {
            assert!(cut.is_cut(), "{cut:?}");
        }
        for (_, code) in Code::KNOWN {
            assert_eq!(by(code).is_cut(), matches!(code, Code::Abandoned | Code::Internal), "{code:?}");
        }
        for ended in [Closed::Here, Closed::Refused, by(Code::Other(77))] {
            assert!(!ended.is_cut(), "{ended:?}");
        }
    }
}
