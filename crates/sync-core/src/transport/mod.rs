//! The QUIC adapter: connections between two machines that know each other's keys, and nobody else's.
//!
//! A listener ([`Listener`]) and a dialer ([`Dialer`]) both end in a [`Connection`]: a peer that proved its key, and
//! streams of frames to it. [`pairing`] is the one door through which an unknown key becomes a known one.
//! [`Loopback`] is a whole listener and dialer in one process, for replicas that are a path.
//!
//! Not for: what the frames say (`wire`, `session`), who is trusted ([`Trust`] is asked, the roles answer), pacing.
//! This is the only module that knows quinn and rustls; none of their types leaves it.

// An adapter lives with the clock: deadlines of handshakes, idle timeouts.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod address;
mod closed;
mod congestion;
mod connection;
mod crypto;
mod dial;
mod error;
mod frames;
mod identity;
mod listen;
mod loopback;
mod offload;
pub mod pairing;
mod runtime;
mod tls;
mod tuning;
mod vigil;

pub use address::Address;
pub use closed::{Closed, Code};
pub use connection::{Connection, Traffic};
pub use dial::{Dialer, connect};
pub use error::{AcceptError, BindError, ConnectError, StreamError};
pub use frames::{Assembler, Frame, FrameReader, FrameWriter, Header};
pub use identity::{Identity, IdentityError, PeerId, PeerIdError, PublicKey};
pub use listen::{Arrival, Listener};
pub use loopback::{Loopback, LoopbackError};
pub use tls::{Only, Purpose, Trust};
pub use tuning::{CONTENT_STREAMS, Settings};

#[cfg(test)]
mod tests;
