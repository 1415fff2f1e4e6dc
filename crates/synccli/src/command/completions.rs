//! `synccli completions`: a script that teaches a shell the options.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Cli;
use crate::exit::Exit;
use crate::output::Sink;

/// Prints the script.
pub fn run(shell: Shell, out: &Sink) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "synccli", &mut script);
    out.bytes(&script);
    Exit::Done
}
