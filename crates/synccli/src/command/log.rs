//! `synccli log`: the versions of pushed trees and what each replica acknowledged.

use std::path::Path;

use sync_core::roles::log;

use crate::args::LogArgs;
use crate::exit::{Exit, Failure};
use crate::output::{Sink, json, text};

/// Lists versions, oldest first.
pub fn run(args: &LogArgs, state_dir: &Path, out: &Sink) -> Result<Exit, Failure> {
    let versions = log::versions(state_dir, args.tree.as_deref()).map_err(Failure::failed)?;
    if versions.is_empty() && !args.json {
        out.line("no versions yet");
    }
    let mut tree = None;
    for logged in &versions {
        if args.json {
            out.line(&json::logged(logged).to_string());
            continue;
        }
        if tree != Some(&logged.tree) {
            out.line(&sync_core::path::escape(&logged.tree));
            tree = Some(&logged.tree);
        }
        text::logged(logged).iter().for_each(|line| out.line(line));
    }
    Ok(Exit::Done)
}
