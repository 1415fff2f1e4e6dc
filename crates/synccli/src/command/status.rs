//! `synccli status`: how the daemon's shares and their replicas are.

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::SystemTime;

use sync_core::control::{CopyState, CopyStatus, Order, ReplicaState, Reply, ShareState, Status};

use crate::args::{StatusArgs, share_text};
use crate::daemon::ask;
use crate::exit::{Exit, Failure};
use crate::output::{Sink, status};

/// Prints the status, once or whenever it changes.
pub fn run(args: &StatusArgs, state_dir: &Path, out: &Sink) -> Result<Exit, Failure> {
    let share = args.share.as_deref().map(share_text);
    let mut answers = ask(state_dir, Order::Status { share, follow: args.watch })?;
    let redraws = args.watch && !args.json && std::io::stdout().is_terminal();
    let mut exit = Exit::Done;
    loop {
        match answers.reply()? {
            Reply::Status(now) => {
                exit = if is_well(&now) { Exit::Done } else { Exit::Differs };
                if args.json {
                    let reply = serde_json::to_string(&Reply::Status(now));
                    out.line(&reply.map_err(|error| Failure::failed(error.to_string()))?);
                } else {
                    if redraws {
                        out.bytes(b"\x1b[H\x1b[2J");
                    }
                    status::lines(&now, SystemTime::now()).iter().for_each(|line| out.line(line));
                }
                out.flush();
                if args.watch && !redraws && !args.json {
                    out.line("");
                }
            }
            Reply::Done { .. } => return Ok(if args.exit_code { exit } else { Exit::Done }),
            _ => {}
        }
        if out.is_closed() {
            return Ok(Exit::Done);
        }
    }
}

/// Whether every share is as it should be, on every replica.
fn is_well(status: &Status) -> bool {
    status.shares.iter().all(|share| {
        let reads_all = share.state == ShareState::Ready && share.unread.is_none();
        let ready = reads_all && share.copy.as_ref().is_none_or(copy_is_well);
        ready && share.replicas.iter().all(|replica| replica.state == ReplicaState::InSync)
    })
}

/// A share that is pushed to by hand has no master that would have to be there.
fn copy_is_well(copy: &CopyStatus) -> bool {
    let by_hand = copy.master.as_ref().is_some_and(|master| !master.follows);
    match copy.state {
        CopyState::InSync => true,
        CopyState::Away => by_hand && copy.problem.is_none(),
        CopyState::Receiving | CopyState::Held | CopyState::Drifted => false,
    }
}
