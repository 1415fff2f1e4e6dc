//! Envelopes with a compressed body. A list of entries shrinks several times: its paths have most of their bytes in common.

use std::borrow::Cow;

use super::{Envelope, WireError, malformed, message};
use crate::compress::{Compressor, decompress};

/// This bit of an envelope's version says that the body is packed: its length as u32, and one zstd frame.
pub(super) const PACKED: u8 = 0x80;

/// Bytes from which on a body may be packed: below, what it saves is less than a packet.
const WORTHWHILE: usize = 1 << 10;

/// The level. A message waits for its compression, and a stronger one saves little of what are mostly digests.
const LEVEL: i32 = 1;

/// Packs one side's messages.
#[derive(Default)]
pub struct Packer {
    /// Made when it is first needed: most sessions have nothing to pack.
    compressor: Option<Compressor>,
}

impl Packer {
    /// The same message, with its body compressed if that pays.
    pub fn pack(&mut self, message: Envelope) -> Envelope {
        if message.body.len() < WORTHWHILE {
            return message;
        }
        // A message that cannot be packed goes as it is, which is always right.
        let Ok(len) = u32::try_from(message.body.len()) else { return message };
        if self.compressor.is_none() {
            self.compressor = Compressor::new(LEVEL).ok();
        }
        let frame = self.compressor.as_mut().and_then(|compressor| compressor.compress(&message.body));
        let Some(frame) = frame else { return message };
        let body = [&len.to_le_bytes()[..], &frame].concat();
        Envelope { version: message.version | PACKED, body, ..message }
    }
}

/// The body as it was before [`Packer::pack`]. Nothing is allocated for one that is longer than its kind may be.
pub(super) fn unpack(kind: u16, version: u8, body: &[u8]) -> Result<Cow<'_, [u8]>, WireError> {
    if version & PACKED == 0 {
        return Ok(Cow::Borrowed(body));
    }
    let (len, frame) = body.split_first_chunk().ok_or_else(|| malformed(kind, "a packed body without its length"))?;
    let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|error| malformed(kind, error))?;
    let body = decompress(frame, len, message::most_bytes(kind)).map_err(|error| malformed(kind, error))?;
    Ok(Cow::Owned(body))
}
