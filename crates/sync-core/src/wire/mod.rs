//! The bytes between a master and a replica: envelopes, messages, and the bounds every one of them is held to.
//!
//! An envelope is `{type: u16, version: u8, length: u32}`, little endian, then `length` bytes of
//! [postcard](https://postcard.jamesmunns.com/wire-format), compressed if a bit of the version says so. Types that a side
//! does not know are skipped by length. What a message means is in `docs/protocol.md`; golden bytes in the tests pin the encoding.

mod content;
mod message;
mod packed;
#[cfg(test)]
mod tests;

pub(crate) use message::MAX_CHUNKS;

pub use content::{Batch, BatchFile, ContentFrame, Encoding, MAX_PREFIX, Piece, Splice, gaps};
pub use message::{
    ADOPT, Ack, Announce, Basis, Change, Describe, Described, Draft, FOLLOW, Given, HISTORY, Hello, LOOK, Listing,
    Moved, Offered, Parts, RELEASED, Refusal, ReplicaStats, Run, STRETCHES, Stand, ToMaster, ToReplica, Touched,
    Unavailable, Unhealed, WHOLE, Wanted,
};
pub use packed::Packer;

/// Most bytes of one control message. Senders stay below by sending several.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Most bytes of a control message that is neither a list nor has lists of chunks or children: texts and filter rules.
pub(crate) const MAX_PLAIN: usize = 1 << 20;

/// Most bytes of a list in one control message: [`MESSAGE`], or a single item, which has less than 1.5 MiB.
pub(crate) const MAX_LIST: usize = 2 << 20;

/// Most extended attributes in one message of changes: each takes 9 bytes of [`MESSAGE`] at least. Small ones take
/// twenty times as much in memory as in a message.
pub(crate) const MAX_MESSAGE_XATTRS: usize = 1 << 17;

/// Most files in one batch of contents. Senders stay below by sending at most 512 KiB in one: contents are distinct, so
/// that nearly all of them have three bytes or more.
pub(crate) const MAX_BATCH: usize = 1 << 18;

/// Long lists are sent in messages of about this many bytes, far below [`MAX_MESSAGE`]: no single item comes near it.
const MESSAGE: usize = 1 << 20;

/// Most directories that one list asks for: each is answered with all of its children.
pub(crate) const MAX_DIRS: usize = 256;

/// Most items in one message that is a list of anything else. Senders stay below by sending several.
pub(crate) const MAX_ITEMS: usize = 4096;

/// Most bytes of contents that a master gives in one session without being asked, and a replica holds until it knows whether
/// it lacks them.
pub const MAX_GIVEN: usize = 64 << 10;

/// Most bytes of one content frame, header not counted.
pub const MAX_CONTENT: usize = 4 << 20;

/// Most content bytes that one frame may decompress to.
pub const MAX_RAW: usize = 4 << 20;

/// Most entries that one session will hold in memory before it refuses to go on: a bound on what a peer can cost.
pub const MAX_ENTRIES: u64 = 1 << 26;

/// Most bytes of paths, extended attributes and targets that one session will take before it refuses to go on.
pub(crate) const MAX_ENTRY_BYTES: u64 = 4 << 30;

/// A message ready for its envelope. The header itself is written and read by the `transport` adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Which message.
    pub kind: u16,
    /// The version of that message's layout.
    pub version: u8,
    /// The encoded message.
    pub body: Vec<u8>,
}

/// Why received bytes are refused. Every one of these ends the session; nothing of the message is used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
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

/// Cuts a list into messages: at most `most` items in each, and about a megabyte, `size` being what an item takes.
pub(crate) fn in_messages<T>(items: Vec<T>, most: usize, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    // Nearly always.
    if !items.is_empty() && items.len() <= most && items.iter().map(&size).sum::<usize>() <= MESSAGE {
        return vec![items];
    }
    let mut messages = Vec::new();
    let mut message = Vec::new();
    let mut bytes = 0;
    for item in items {
        let more = size(&item);
        if !message.is_empty() && (message.len() >= most || bytes + more > MESSAGE) {
            messages.push(std::mem::take(&mut message));
            bytes = 0;
        }
        bytes += more;
        message.push(item);
    }
    if !message.is_empty() {
        messages.push(message);
    }
    messages
}

/// The version of every message's layout today.
const LAYOUT: u8 = 1;

/// Bytes of a body that are made room for at once.
const USUAL: usize = 256;

/// Puts `body` into an envelope. Serializing our own types into memory cannot fail; an empty body would be refused by
/// the peer, so even a broken invariant cannot pass as a message.
fn envelope<T: serde::Serialize>(kind: u16, body: &T) -> Envelope {
    // Most messages fit, and a few bytes at a time it would grow as often as they have fields.
    let body = postcard::to_extend(body, Vec::with_capacity(USUAL)).unwrap_or_default();
    Envelope { kind, version: LAYOUT, body }
}

/// The message that a body is, packed or not.
fn open<T: serde::de::DeserializeOwned>(kind: u16, version: u8, body: &[u8]) -> Result<T, WireError> {
    if version & !packed::PACKED != LAYOUT {
        return Err(WireError::Version { kind, version });
    }
    let body = packed::unpack(kind, version, body)?;
    let (message, rest) = take(kind, LAYOUT, &body)?;
    if rest.is_empty() { Ok(message) } else { Err(malformed(kind, "bytes after its end")) }
}

/// What a body begins with, and what comes after it.
fn take<'a, T: serde::Deserialize<'a>>(kind: u16, version: u8, body: &'a [u8]) -> Result<(T, &'a [u8]), WireError> {
    if version != LAYOUT {
        return Err(WireError::Version { kind, version });
    }
    message::check_length(kind, body)?;
    postcard::take_from_bytes(body).map_err(|e| malformed(kind, e))
}

fn malformed(kind: u16, reason: impl ToString) -> WireError {
    WireError::Malformed { kind, reason: reason.to_string() }
}
