//! The bytes between a master and a replica: envelopes, messages, and the bounds every one of them is held to.
//!
//! An envelope is `{type: u16, version: u8, length: u32}`, little endian, then `length` bytes of
//! [postcard](https://postcard.jamesmunns.com/wire-format). Types that a side does not know are skipped by length. What
//! a message means is in `docs/protocol.md`; golden bytes in the tests pin the encoding.

mod content;
mod message;
#[cfg(test)]
mod tests;

pub use content::{Batch, ContentFrame, Encoding, Piece};
pub use message::{
    Ack, Announce, Change, Hello, Listing, MAX_RULES, Offered, ReplicaStats, Refusal, Stand, ToMaster, ToReplica,
    Unavailable, Wanted,
};

/// Bytes of an envelope's header.
pub const HEADER: usize = 7;

/// Most bytes of one control message. Senders stay below by sending several.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Most bytes of one content frame, header not counted.
pub const MAX_CONTENT: usize = 4 << 20;

/// Most content bytes that one frame may decompress to.
pub const MAX_RAW: usize = 4 << 20;

/// Most entries that one session will hold in memory before it refuses to go on: a bound on what a peer can cost.
pub const MAX_ENTRIES: u64 = 1 << 26;

/// What an envelope says of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which message.
    pub kind: u16,
    /// The version of that message's layout.
    pub version: u8,
    /// Bytes of the body.
    pub len: u32,
}

impl Header {
    /// As on the wire.
    pub fn encode(self) -> [u8; HEADER] {
        let [k0, k1] = self.kind.to_le_bytes();
        let [l0, l1, l2, l3] = self.len.to_le_bytes();
        [k0, k1, self.version, l0, l1, l2, l3]
    }

    /// The inverse of [`Header::encode`].
    ///
    /// # Errors
    /// [`WireError::TooLong`] if the body would be longer than `max` bytes.
    pub fn decode(bytes: [u8; HEADER], max: usize) -> Result<Self, WireError> {
        let [k0, k1, version, l0, l1, l2, l3] = bytes;
        let header = Self { kind: u16::from_le_bytes([k0, k1]), version, len: u32::from_le_bytes([l0, l1, l2, l3]) };
        if header.len as usize > max {
            return Err(WireError::TooLong { kind: header.kind, len: header.len, max });
        }
        Ok(header)
    }
}

/// Why received bytes are refused. Every one of these ends the session; nothing of the message is used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A body over the bound.
    #[error("message {kind} claims {len} bytes, more than the {max} allowed")]
    TooLong {
        /// Message type.
        kind: u16,
        /// Claimed length.
        len: u32,
        /// Allowed length.
        max: usize,
    },
    /// Not the encoding of that message.
    #[error("message {kind} does not decode: {reason}")]
    Malformed {
        /// Message type.
        kind: u16,
        /// What is wrong.
        reason: String,
    },
    /// A message version we do not speak.
    #[error("message {kind} has version {version}, this build knows only version 1: update it")]
    Version {
        /// Message type.
        kind: u16,
        /// Its version.
        version: u8,
    },
}

/// The version of every message's layout today.
const LAYOUT: u8 = 1;

/// Puts `body` into an envelope.
fn envelope<T: serde::Serialize>(kind: u16, body: &T) -> Vec<u8> {
    // The header's length is only known afterwards. Serializing our own types into memory cannot fail; an empty body
    // would be refused by the peer, so even a broken invariant cannot pass as a message.
    let bytes = postcard::to_extend(body, vec![0; HEADER]).unwrap_or_else(|_| vec![0; HEADER]);
    seal(kind, bytes)
}

/// Writes the header into the first [`HEADER`] bytes of `bytes`.
fn seal(kind: u16, mut bytes: Vec<u8>) -> Vec<u8> {
    let len = (bytes.len() - HEADER) as u32;
    bytes[..HEADER].copy_from_slice(&Header { kind, version: LAYOUT, len }.encode());
    bytes
}

fn open<'a, T: serde::Deserialize<'a>>(header: Header, body: &'a [u8]) -> Result<(T, &'a [u8]), WireError> {
    if header.version != LAYOUT {
        return Err(WireError::Version { kind: header.kind, version: header.version });
    }
    postcard::take_from_bytes(body).map_err(|e| malformed(header, e))
}

fn malformed(header: Header, reason: impl ToString) -> WireError {
    WireError::Malformed { kind: header.kind, reason: reason.to_string() }
}
