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

/// Lets out what is held.
pub fn release(share: &std::ffi::OsStr, state_dir: &Path, out: &Sink) -> Result<Exit, Failure> {
    tell(Order::Release { share: share_text(share) }, state_dir, out)
}
