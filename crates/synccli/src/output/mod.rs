//! What a person or a program reads. The library prints nothing; everything passes through here, escaped.

pub mod explain;
pub mod failure;
pub mod json;
mod progress;
mod reporter;
mod sink;
pub mod status;
pub mod text;
pub mod trace;

pub use reporter::{Reporter, Say};
pub use sink::Sink;
