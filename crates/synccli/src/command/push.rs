//! `synccli push`: options become a request, the monitor becomes text, the report becomes an exit code.

use std::path::PathBuf;
use std::sync::Arc;

use sync_core::options::{Policy, PushReport, PushRequest};
use sync_core::roles::master;

use super::interrupted;
use crate::args::{PushArgs, rules};
use crate::exit::{Exit, Failure};
use crate::output::{Reporter, Say, Sink, trace};
use crate::signals::{self, Outcome};

/// Pushes.
pub fn run(args: PushArgs, state_dir: PathBuf, out: &Sink, err: &Sink) -> Result<Exit, Failure> {
    let say = Say::new(&args);
    trace::start(say.verbose);
    let request = request(args, state_dir)?;
    let reporter = Arc::new(Reporter::new(say, &request, out.clone(), err.clone()));
    let outcome = signals::run({
        let monitor = Arc::clone(&reporter);
        |shutdown| master::push(request, monitor, shutdown)
    });
    reporter.end_progress();
    match outcome.map_err(|error| Failure::failed(format!("the push ended unexpectedly: {error}")))? {
        Outcome::Ended(Ok(report)) => {
            let exit = exit_of(&report);
            reporter.finish(&report, exit);
            Ok(exit)
        }
        Outcome::Ended(Err(error)) if error.is_usage() => Err(Failure::usage(error)),
        Outcome::Ended(Err(error)) => Err(Failure::failed(error)),
        Outcome::Signalled { exit, cleaned } => Err(Failure { exit, message: interrupted(cleaned).to_owned() }),
    }
}

fn request(args: PushArgs, state_dir: PathBuf) -> Result<PushRequest, Failure> {
    let (bandwidth, history) = (args.bandwidth(), args.history());
    let policy = Policy {
        dry_run: args.dry_run,
        itemize: args.itemize_changes,
        checksum: args.checksum,
        one_file_system: args.one_file_system,
        no_delete: args.no_delete,
        delete_excluded: args.delete_excluded,
        max_delete: args.max_delete,
        rules: rules(&args.filters, |file| std::fs::read(file))?,
    };
    Ok(PushRequest {
        source: args.source,
        destinations: args.destinations,
        state_dir,
        policy,
        bandwidth,
        compress: args.compress,
        history,
    })
}

fn exit_of(report: &PushReport) -> Exit {
    if report.is_exact() { Exit::Done } else { Exit::Failed }
}
