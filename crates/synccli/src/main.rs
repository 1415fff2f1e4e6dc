//! `synccli`: the command that pushes a tree to its replicas. This file only joins: arguments in, one command, an exit
//! code out. What a push *is* stands in `sync_core::roles`.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a program reads its environment, the files it is given on the command line, and the clock"
)]

mod args;
mod command;
mod daemon;
mod exit;
mod output;
mod signals;

use std::process::ExitCode;

fn main() -> ExitCode {
    sync_core::roles::memory::return_what_is_freed();
    let argv: Vec<_> = std::env::args_os().collect();
    let exit = match args::parse(&argv) {
        Ok(cli) => command::run(cli),
        Err(refusal) => output::failure::arguments(&refusal, args::asks_for_json(&argv)),
    };
    exit.into()
}
