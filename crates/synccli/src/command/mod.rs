//! One file per verb; this one picks it.

mod completions;
mod diff;
mod id;
mod log;
mod man;
mod pair;
mod push;
mod replica;
mod share;
mod status;
mod verify;
mod wait;

use sync_core::control::Order;

use crate::args::{Cli, Command};
use crate::exit::{Exit, Failure};
use crate::output::{Sink, failure};

/// Runs the command and says on standard error why, if it fails.
pub fn run(cli: Cli) -> Exit {
    let (out, err) = (Sink::stdout(), Sink::stderr());
    let state_dir = cli.state_dir();
    let mut json = false;
    let result = match cli.command {
        Command::Push(args) => {
            json = args.say.json;
            state_dir.and_then(|dir| match args.destinations.is_empty() {
                true => wait::run(&args, &dir, &out, &err),
                false => push::run(args, dir, &out, &err),
            })
        }
        Command::Status(args) => {
            json = args.json;
            state_dir.and_then(|dir| status::run(&args, &dir, &out))
        }
        Command::Verify(args) => {
            json = args.json;
            state_dir.and_then(|dir| verify::run(&args, &dir, &out, &err))
        }
        Command::Release { share, adopt } => state_dir.and_then(|dir| share::release(&share, adopt, &dir, &out)),
        Command::Replica(args) => state_dir.and_then(|dir| replica::run(args, &dir, &out)),
        Command::Reload => state_dir.and_then(|dir| share::tell(Order::Reload, &dir, &out)),
        Command::Diff(args) => {
            json = args.say.json;
            state_dir.and_then(|dir| diff::run(args, dir, &out, &err))
        }
        Command::Pair(args) => state_dir.and_then(|dir| pair::run(args, dir, &out)),
        Command::Log(args) => {
            json = args.json;
            state_dir.and_then(|dir| log::run(&args, &dir, &out))
        }
        Command::Id => state_dir.and_then(|dir| id::run(&dir, &out)),
        Command::Completions { shell } => Ok(completions::run(shell, &out)),
        Command::Man { verb } => man::run(verb.as_deref(), &out),
    };
    let exit = result.unwrap_or_else(|failure: Failure| failure::command(&failure, &out, &err, json));
    match out.finish() {
        Ok(()) => exit,
        Err(error) => {
            err.line(&format!("error: cannot write to standard output: {error}"));
            if exit == Exit::Done { Exit::Failed } else { exit }
        }
    }
}

/// What a run that a signal ended says about itself.
fn interrupted(cleaned: bool) -> &'static str {
    if cleaned { "interrupted" } else { "interrupted before it could clean up; the next push does" }
}
