//! What replicas that follow have acknowledged, on its way into the index: with the next version, or soon. Written one by one,
//! each would be a transaction and a flush of the disk, for every replica and every version.
//!
//! A power cut may take the last ones from the log. What a replica has it says itself when it is connected again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::index::{Ack, Index};
use crate::monitor::Monitor;

/// How long one waits for the next version to take it along.
pub const SOON: Duration = Duration::from_secs(1);

/// Acknowledgements that are not in the index.
#[derive(Default)]
pub struct Acks {
    waiting: Mutex<Waiting>,
    /// Held by who writes some: one of a replica must not overtake another.
    writing: Mutex<()>,
}

#[derive(Default)]
struct Waiting {
    acks: Vec<Ack>,
    /// Whether somebody writes them when it is time.
    is_due: bool,
}

impl Acks {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one. Says whether somebody has to record it [`SOON`]: else somebody is about to.
    pub fn add(&self, ack: Ack) -> bool {
        let mut waiting = self.waiting();
        waiting.acks.push(ack);
        !std::mem::replace(&mut waiting.is_due, true)
    }

    /// Writes down what was acknowledged until now. The replicas have it in any case, so a failure is only told.
    pub fn record(&self, index: &Index, monitor: &dyn Monitor) {
        let _turn = self.turn();
        self.waiting().is_due = false;
        let acks = self.take();
        if acks.is_empty() {
            return;
        }
        if let Err(error) = index.record_acks(&acks) {
            monitor.notice(None, &format!("acknowledgements could not be recorded: {error}"));
        }
    }

    /// Waits until nobody else writes any. To be held from before they are taken until they are written.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out what waits.
    pub fn take(&self) -> Vec<Ack> {
        std::mem::take(&mut self.waiting().acks)
    }

    /// Puts back what could not be written.
    pub fn put_back(&self, acks: Vec<Ack>) {
        self.waiting().acks.splice(..0, acks);
    }
}
