//! The two ends of a push as state machines without I/O, clock or tasks: inputs in, outputs out.
//!
//! A driver (in `roles`) hands in what it received and what its disk and index answered, and carries out what comes
//! out. So a crash between two steps, a lost connection or a message that comes twice is an ordinary unit test.

mod receiver;
mod sender;
#[cfg(test)]
mod tests;

pub use receiver::{Receiver, ReceiverInput, ReceiverOutput, Settled};
pub use sender::{ContentRequest, End, Load, Report, Sender, SenderInput, SenderOutput};

/// A message that the protocol does not allow at this point: the session ends and nothing of the message is used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("protocol error: {0}")]
pub struct ProtocolError(pub String);
