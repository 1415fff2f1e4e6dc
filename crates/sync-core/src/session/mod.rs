//! The two ends of a push as state machines without I/O, clock or tasks: inputs in, outputs out.
//!
//! A driver (in `roles`) hands in what it received and what its disk and index answered, and carries out what comes
//! out. So a crash between two steps, a lost connection or a message that comes twice is an ordinary unit test.

mod missing;
mod offered;
mod receiver;
mod sender;
#[cfg(test)]
mod tests;

pub use receiver::{Receiver, ReceiverInput, ReceiverOutput, Settled};
pub use sender::{ContentRequest, End, FEW, Load, Report, Sender, SenderInput, SenderOutput, Told};

/// A message that the protocol does not allow at this point: the session ends and nothing of the message is used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("protocol error: {0}")]
pub struct ProtocolError(pub String);

/// What a peer may still make this side hold or pass on in this session. What comes again counts again.
#[derive(Debug, Clone)]
struct Budget {
    entries: u64,
    bytes: u64,
}

impl Budget {
    fn new(entries: u64, bytes: u64) -> Self {
        Self { entries, bytes }
    }

    /// Takes `entries` with `bytes` of paths, attributes and targets from what is left.
    fn take(&mut self, entries: usize, bytes: usize) -> Result<(), ProtocolError> {
        let left = |left: u64, taken: usize| left.checked_sub(taken as u64);
        match (left(self.entries, entries), left(self.bytes, bytes)) {
            (Some(entries), Some(bytes)) => {
                *self = Self { entries, bytes };
                Ok(())
            }
            (None, _) => Err(ProtocolError("more entries than one session may have".to_owned())),
            (_, None) => Err(ProtocolError("more bytes of paths and attributes than one session may have".to_owned())),
        }
    }
}
