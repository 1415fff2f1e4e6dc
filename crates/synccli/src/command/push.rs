//! `synccli push`: options become a request, the monitor becomes text, the report becomes an exit code.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sync_core::control::{Order, Reply, Role, ShareStatus};
use sync_core::options::{Policy, PushReport, PushRequest};
use sync_core::roles::master;

use super::interrupted;
use crate::args::{CompareArgs, PushArgs, rules};
use crate::daemon::ask;
use crate::exit::{Exit, Failure};
use crate::output::{Reporter, Say, Sink, trace};
use crate::signals::{self, Outcome};

/// How long a daemon may take to say what it mirrors.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pushes.
pub fn run(args: PushArgs, state_dir: PathBuf, out: &Sink, err: &Sink) -> Result<Exit, Failure> {
    args.check_for_destinations()?;
    if !args.dry_run {
        refuse_a_mirrored_source(&args.source, &state_dir)?;
    }
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

/// The daemon has the index of what it mirrors for itself, and its replicas are what it says.
fn refuse_a_mirrored_source(source: &Path, state_dir: &Path) -> Result<(), Failure> {
    // Where no daemon runs, none is in the way.
    let Ok(mut answers) = ask(state_dir, Order::Status { share: None, follow: false }) else { return Ok(()) };
    let Ok(Some(Reply::Status(status))) = answers.next(Some(PATIENCE)) else { return Ok(()) };
    let Ok(source) = std::fs::canonicalize(source) else { return Ok(()) };
    // A share that is a link keeps its index wherever that leads.
    let place = |path: &Path| Some(std::fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?));
    let is_source = |share: &&ShareStatus| {
        share.role == Role::Master && place(Path::new(&share.path)).is_some_and(|at| at == source)
    };
    let Some(ShareStatus { name, path, .. }) = status.shares.iter().find(is_source) else { return Ok(()) };
    Err(Failure::usage(format!(
        "syncd mirrors {path} as the share {name}: `synccli push {name}` brings it to its replicas now, and `synccli replica \
         add` makes another one follow"
    )))
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
