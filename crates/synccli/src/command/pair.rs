//! `synccli pair`: pins the keys of this master and a replica to each other.

use std::path::PathBuf;
use std::time::Duration;

use sync_core::control::Order;
use sync_core::roles::pairing;

use super::interrupted;
use crate::args::{HostPort, PairArgs};
use crate::daemon;
use crate::exit::{Exit, Failure};
use crate::output::Sink;
use crate::signals::{self, Outcome};

/// How long a daemon may take to hear of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pairs, and prints the replica's id.
pub fn run(args: PairArgs, state_dir: PathBuf, out: &Sink) -> Result<Exit, Failure> {
    let PairArgs { peer: HostPort { host, port }, token } = args;
    let paired = (state_dir.clone(), host.clone(), port);
    let outcome = signals::run(|_| async move { pairing::pair(&state_dir, &host, port, &token).await });
    match outcome.map_err(|error| Failure::failed(format!("pairing ended unexpectedly: {error}")))? {
        Outcome::Ended(Ok(replica)) => {
            out.line(&format!("paired with replica {replica}"));
            // A daemon that was refused there before would wait for up to a minute. Often none runs yet.
            let (state_dir, host, port) = paired;
            if let Ok(mut answers) = daemon::ask(&state_dir, Order::TryAgain { host, port }) {
                let _ = answers.next(Some(PATIENCE));
            }
            Ok(Exit::Done)
        }
        Outcome::Ended(Err(error)) => Err(Failure::failed(error)),
        Outcome::Signalled { exit, cleaned } => Err(Failure { exit, message: interrupted(cleaned).to_owned() }),
    }
}
