//! `synccli push`: options become a request, the monitor becomes text, the report becomes an exit code.

use std::path::PathBuf;
use std::sync::Arc;

use sync_core::options::{Policy, PushReport, PushRequest};
use sync_core::roles::master;

use super::interrupted;
use crate::args::{CompareArgs, PushArgs, rules};
use crate::exit::{Exit, Failure};
use crate::output::{Reporter, Say, Sink, trace};
use crate::signals::{self, Outcome};

/// Pushes.
pub fn run(args: PushArgs, state_dir: PathBuf, out: &Sink, err: &Sink) -> Result<Exit, Failure> {
    args.check_adoption()?;
    let say = Say::push(&args);
    let policy = Policy {
        dry_run: args.dry_run,
        itemize: args.itemize_changes,
        max_delete: args.max_delete,
        ..compared(&args.compare)?
    };
    let request = PushRequest {
        bandwidth: args.bandwidth(),
        history: args.history(),
        source: args.source,
        destinations: args.destinations,
        state_dir,
        policy,
        adopt: args.adopt,
        compress: args.compress,
    };
    carry_out(request, say, exit_of, out, err)
}

/// Carries out a request and says how it went, with the exit code that `judge` finds for that.
pub fn carry_out(
    request: PushRequest,
    say: Say,
    judge: impl Fn(&PushReport) -> Exit,
    out: &Sink,
    err: &Sink,
) -> Result<Exit, Failure> {
    trace::start(say.verbose);
    let reporter = Arc::new(Reporter::new(say, &request, out.clone(), err.clone()));
    let outcome = signals::run({
        let monitor = Arc::clone(&reporter);
        |shutdown| master::push(request, monitor, shutdown)
    });
    reporter.end_progress();
    match outcome.map_err(|error| Failure::failed(format!("the push ended unexpectedly: {error}")))? {
        Outcome::Ended(Ok(report)) => {
            let exit = judge(&report);
            reporter.finish(&report, exit);
            Ok(exit)
        }
        Outcome::Ended(Err(error)) if error.is_usage() => Err(Failure::usage(error)),
        Outcome::Ended(Err(error)) => Err(Failure::failed(error)),
        Outcome::Signalled { exit, cleaned } => Err(Failure { exit, message: interrupted(cleaned).to_owned() }),
    }
}

/// The part of a policy that tells what is compared.
pub fn compared(args: &CompareArgs) -> Result<Policy, Failure> {
    Ok(Policy {
        checksum: args.checksum,
        one_file_system: args.one_file_system,
        no_delete: args.no_delete,
        delete_excluded: args.delete_excluded,
        rules: rules(&args.filters, |file| std::fs::read(file))?,
        ..Policy::default()
    })
}

/// The exit code of a push that ended so.
pub fn exit_of(report: &PushReport) -> Exit {
    if report.is_exact() { Exit::Done } else { Exit::Failed }
}
