//! `synccli completions`: a script that teaches a shell the options.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Cli;
use crate::exit::{Exit, Failure};
use crate::output::Sink;

/// Prints the script.
pub fn run(shell: Shell, out: &Sink) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "synccli", &mut script);
    out.bytes(&script);
    Ok(Exit::Done)
}
