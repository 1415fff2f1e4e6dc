//! `synccli verify`: whether the replicas of a share are identical, and what differs.

use std::path::Path;

use sync_core::control::{Order, Reply};

use crate::args::{VerifyArgs, share_text};
use crate::daemon::ask;
use crate::exit::{Exit, Failure};
use crate::output::{Sink, status, text};

/// Has the daemon compare.
pub fn run(args: &VerifyArgs, state_dir: &Path, out: &Sink, err: &Sink) -> Result<Exit, Failure> {
    let (share, replica) = (share_text(&args.share), args.replica.clone());
    let mut answers = ask(state_dir, Order::Verify { share, replica, deep: args.deep })?;
    let mut exit = Exit::Done;
    let mut differ = 0;
    loop {
        let reply = answers.reply()?;
        if args.json {
            let line = serde_json::to_string(&reply).map_err(|error| Failure::failed(error.to_string()))?;
            out.line(&line);
        }
        match reply {
            Reply::Differs { replica, code, path } => {
                differ += 1;
                if !args.json {
                    out.line(&format!("{replica}: {} {path}", text::escape_text(&code)));
                }
            }
            Reply::Verified { replica, identical, problems } => {
                if !identical {
                    exit = Exit::Failed;
                }
                if !args.json {
                    problems
                        .iter()
                        .for_each(|problem| err.line(&format!("error: {replica}: {}", text::escape_text(problem))));
                    match (identical, problems.is_empty()) {
                        (true, _) => out.line(&format!("{replica}: identical")),
                        (false, true) => {
                            out.line(&format!(
                                "{replica}: {}",
                                text::plural(differ, "entry differs", "entries differ")
                            ));
                        }
                        (false, false) => {}
                    }
                }
                differ = 0;
            }
            Reply::Unread { share, unread } => {
                exit = Exit::Failed;
                if !args.json {
                    err.line(&format!("error: {share}: {}", status::unread_text(&unread)));
                }
            }
            Reply::Done { .. } => return Ok(exit),
            _ => {}
        }
    }
}
