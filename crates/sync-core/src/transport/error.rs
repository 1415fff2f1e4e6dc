//! What can go wrong between two machines, each with what to do next. One enum per operation.

use std::io;
use std::net::SocketAddr;

use super::address::Address;
use super::closed::Closed;
use super::identity::PeerId;
use super::tls::SetupError;

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken, not ours, or needs a privilege.
    #[error("cannot listen on UDP {address}: {source}; {}", way_out(.source))]
    Address {
        /// Where it was to listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS could not be set up.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// `access_denied`: what TLS says for a key that is not the one that was pinned.
const ACCESS_DENIED: u8 = 49;

/// What to do about the end of a handshake, where that can be known.
fn meaning(why: &Closed) -> &'static str {
    match why {
        Closed::Tls { alert: ACCESS_DENIED, .. } => {
            "; perhaps the other side knows another key for this machine: pair the two again"
        }
        _ => "",
    }
}

/// What to do about an address that cannot be listened at.
fn way_out(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "a port below 1024 takes root: choose another one with --listen",
        _ => "stop what uses that address, or choose another one with --listen",
    }
}

/// Why an incoming connection came to nothing. For the log: the peer is told separately.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The handshake failed: an unknown key, another protocol, noise.
    #[error("handshake with {from} failed: {why}{}", meaning(.why))]
    Handshake {
        /// The peer's address.
        from: SocketAddr,
        /// What ended it.
        why: Closed,
    },
    /// The handshake took too long.
    #[error("{from} did not complete the handshake in time")]
    Deadline {
        /// The peer's address.
        from: SocketAddr,
    },
    /// The key may pair while an invitation is open, but asked for a session.
    #[error("refused {from}: the key {peer} is not paired with this machine")]
    UnknownKey {
        /// The peer's address.
        from: SocketAddr,
        /// Its key.
        peer: PeerId,
    },
    /// The peer wants to pair, but nobody invited it.
    #[error("refused {from}: it wants to pair, but no invitation is open")]
    NoInvitation {
        /// The peer's address.
        from: SocketAddr,
    },
}

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("cannot find an address for {}: {source}; check the name", .to.host())]
    Resolve {
        /// What was dialed.
        to: Address,
        /// What the resolver said.
        source: io::Error,
    },
    /// No socket could be opened here.
    #[error("cannot open a UDP socket to reach {to}: {source}")]
    Socket {
        /// What was dialed.
        to: Address,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing answered within the deadline.
    #[error(
        "no answer from {to} within {seconds} s; check that syncd runs there and that no firewall drops UDP port {}", .to.port()
    )]
    Unreachable {
        /// What was dialed.
        to: Address,
        /// The deadline.
        seconds: u64,
    },
    /// The machine is there, but the port is closed (ICMP port unreachable).
    #[error("nothing listens on UDP {to}; start syncd there, or check the port")]
    NotListening {
        /// What was dialed.
        to: Address,
    },
    /// The system cannot send there at all (no route, no permission).
    #[error("cannot send to {to}: {source}")]
    NoRoute {
        /// What was dialed.
        to: Address,
        /// What the system said.
        source: io::Error,
    },
    /// The other side does not know our key.
    #[error(
        "{to} does not know this machine's key; on the replica run `syncd invite`, then here `synccli pair {to} TOKEN`"
    )]
    UnknownKey {
        /// What was dialed.
        to: Address,
    },
    /// The other side shows another key than the pinned one.
    #[error(
        "{to} is not the machine that was paired: it shows the identity {found}, expected was {expected}; if it was \
         reinstalled, run `syncd invite` there and `synccli pair {to} TOKEN` here, otherwise somebody answers in its place"
    )]
    WrongKey {
        /// What was dialed.
        to: Address,
        /// The pinned key.
        expected: PeerId,
        /// The key it showed.
        found: PeerId,
    },
    /// The other side speaks no protocol that we speak.
    #[error("{to} speaks another version of the protocol; install the same release of synccli and syncd on both sides")]
    Version {
        /// What was dialed.
        to: Address,
    },
    /// Pairing was asked for, but no invitation is open there.
    #[error("{to} has no open invitation; run `syncd invite` there and use the token it prints within 10 minutes")]
    NoInvitation {
        /// What was dialed.
        to: Address,
    },
    /// The other side takes no more connections.
    #[error("{to} takes no connection at the moment (it is ending, or has too many); try again in a while")]
    Overloaded {
        /// What was dialed.
        to: Address,
    },
    /// The connection ended before it was usable, for another reason.
    #[error("the connection to {to} failed: {why}")]
    Closed {
        /// What was dialed.
        to: Address,
        /// What ended it.
        why: Closed,
    },
    /// TLS could not be set up.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// Why a stream of frames ended before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The whole connection is gone.
    #[error(transparent)]
    Lost(#[from] Closed),
    /// The peer gave the stream up while sending.
    #[error("the other side gave up sending (code {0})")]
    Reset(u64),
    /// The peer wants no more of what we send.
    #[error("the other side wants no more data (code {0})")]
    Stopped(u64),
    /// The stream ended within a frame.
    #[error("a message was cut off")]
    Truncated,
    /// A frame is longer than its place allows; nothing of its body was kept.
    #[error("a message of type {kind} has {len} bytes where at most {max} are allowed")]
    TooLarge {
        /// The frame's type.
        kind: u16,
        /// Its announced length.
        len: u64,
        /// The bound.
        max: u64,
    },
    /// The stream was used after its end, which is our own mistake.
    #[error("the stream has ended already")]
    Ended,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_depends_on_what_was_in_the_way() {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let bind = |kind: io::ErrorKind| BindError::Address { address, source: kind.into() }.to_string();
        assert!(bind(io::ErrorKind::PermissionDenied).contains("a port below 1024 takes root"));
        assert!(bind(io::ErrorKind::AddrInUse).contains("stop what uses that address"));
        let refused = |alert| {
            let why = Closed::Tls { alert, reason: String::new() };
            AcceptError::Handshake { from: address, why }.to_string()
        };
        assert!(refused(ACCESS_DENIED).ends_with("pair the two again"));
        assert!(!refused(40).contains("pair"));
    }
}
