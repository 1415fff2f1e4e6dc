//! `synccli diff`: a push that only finds out what it would do, and what it would cost; or what changed between versions.

use std::path::{Path, PathBuf};

use sync_core::options::{Policy, PushReport, PushRequest};
use sync_core::roles::changes;

use super::push::{carry_out, compared, exit_of};
use crate::args::DiffArgs;
use crate::exit::{Exit, Failure};
use crate::output::{Say, Sink, explain, json};

/// Compares.
pub fn run(args: DiffArgs, state_dir: PathBuf, out: &Sink, err: &Sink) -> Result<Exit, Failure> {
    args.check()?;
    if let Some(range) = args.range() {
        return versions(&args, range, &state_dir, out);
    }
    let say = Say::diff(&args);
    let policy = Policy { dry_run: true, itemize: true, estimate: true, ..compared(&args.compare)? };
    let request = PushRequest {
        source: args.source,
        destinations: args.destination.into_iter().collect(),
        state_dir,
        policy,
        adopt: false,
        bandwidth: None,
        history: None,
        compress: args.compress,
    };
    let judge = |report: &PushReport| match exit_of(report) {
        Exit::Done if args.exit_code && differs(report) => Exit::Differs,
        exit => exit,
    };
    carry_out(request, say, judge, out, err)
}

fn differs(report: &PushReport) -> bool {
    report.destinations.iter().any(|destination| destination.stats.changes() > 0)
}

fn versions(args: &DiffArgs, range: (u64, Option<u64>), state_dir: &Path, out: &Sink) -> Result<Exit, Failure> {
    let found = changes::between(state_dir, &args.source, range.0, range.1).map_err(Failure::failed)?;
    for change in &found.changes {
        match args.say.json {
            true => out.line(&json::change(change).to_string()),
            false => out.line(&explain::change(change)),
        }
    }
    let exit = if args.exit_code && !found.changes.is_empty() { Exit::Differs } else { Exit::Done };
    match (args.say.json, args.say.quiet) {
        (true, _) => out.line(&json::changes(&found, exit).to_string()),
        (false, false) => out.line(&explain::changes(&found)),
        (false, true) => {}
    }
    Ok(exit)
}
