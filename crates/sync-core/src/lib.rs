//! The engine of the replication service: a pure layer that decides, adapters that touch the world, roles that join them.
//!
//! Arrows point down only: `roles` use `session` and the adapters (`fs`, `index`, `transport`); adapters use pure
//! modules and never each other; pure modules have no I/O, no clock and no randomness of their own.

// The pure layer.
pub mod backoff;
pub mod chunk;
pub mod compress;
pub mod congestion;
pub mod control;
pub mod delta;
pub mod destination;
pub mod diff;
pub mod duration;
pub mod filter;
pub mod guard;
pub mod hash;
pub mod heal;
pub mod manifest;
pub mod monitor;
pub mod options;
pub mod pace;
pub mod path;
pub mod plan;
pub mod region;
pub mod relative;
pub mod session;
pub mod settle;
pub mod similar;
pub mod size;
pub mod wire;
mod zeros;

// The adapters, and the roles that own the tasks.
#[cfg(feature = "adapters")]
pub mod fs;
#[cfg(feature = "adapters")]
pub mod index;
#[cfg(feature = "adapters")]
pub mod roles;
#[cfg(feature = "adapters")]
pub mod transport;
