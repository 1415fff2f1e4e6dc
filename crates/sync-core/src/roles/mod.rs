//! The two roles of a push, and what both do with a tree and its index. The only place that joins the adapters;
//! the tasks of a session live here, those of a connection in `transport`.

// Roles drive the adapters: they measure phases with the clock and check paths of a request before a root is open.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod changes;
pub mod log;
pub mod master;
pub mod memory;
pub mod pairing;
pub mod replica;

mod guarding;
mod identify;
mod link;
mod survey;
mod tree;
mod watching;

/// Turns true once when the process is asked to stop; every long step looks at it.
pub type Shutdown = tokio::sync::watch::Receiver<bool>;
