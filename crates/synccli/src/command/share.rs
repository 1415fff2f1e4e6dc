//! The commands that only tell the running daemon something: `release`, `reload`, `replica pause` and `resume`.

use std::path::Path;

use sync_core::control::{Order, Reply};

use crate::args::share_text;
use crate::daemon::ask;
use crate::exit::{Exit, Failure};
use crate::output::Sink;

/// Has the daemon do it, and prints what it says.
pub fn tell(order: Order, state_dir: &Path, out: &Sink) -> Result<Exit, Failure> {
    let mut answers = ask(state_dir, order)?;
    loop {
        if let Reply::Done { text } = answers.reply()? {
            text.lines().for_each(|line| out.line(line));
            return Ok(Exit::Done);
        }
    }
}

/// Lets out what is held, or takes over what another master owns.
pub fn release(share: &std::ffi::OsStr, adopt: bool, state_dir: &Path, out: &Sink) -> Result<Exit, Failure> {
    let share = share_text(share);
    tell(if adopt { Order::Adopt { share } } else { Order::Release { share } }, state_dir, out)
}
