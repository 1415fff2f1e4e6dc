//! The one place where a failure becomes text.

use super::{Sink, json};
use crate::exit::{Exit, Failure};

/// Says on standard error why a command ended early and, if the caller reads JSON, on standard output too.
pub fn command(failure: &Failure, out: &Sink, err: &Sink, json: bool) -> Exit {
    err.line(&format!("error: {}", failure.message));
    if json {
        out.line(&json::failure(&failure.message, failure.exit).to_string());
    }
    failure.exit
}

/// Prints what clap has to say about the arguments: help and version are no errors.
pub fn arguments(refusal: &clap::Error, json: bool) -> Exit {
    let _ = refusal.print();
    if !refusal.use_stderr() {
        return Exit::Done;
    }
    if json {
        let text = refusal.render().to_string();
        let message = text.trim().trim_start_matches("error: ");
        let out = Sink::stdout();
        out.line(&json::failure(message, Exit::Usage).to_string());
        out.flush();
    }
    Exit::Usage
}
