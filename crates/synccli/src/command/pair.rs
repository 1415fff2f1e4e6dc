//! `synccli pair`: pins the keys of this master and a replica to each other.

use std::path::PathBuf;

use sync_core::roles::pairing;

use super::interrupted;
use crate::args::{HostPort, PairArgs};
use crate::exit::{Exit, Failure};
use crate::output::Sink;
use crate::signals::{self, Outcome};

/// Pairs, and prints the replica's id.
pub fn run(args: PairArgs, state_dir: PathBuf, out: &Sink) -> Result<Exit, Failure> {
    let PairArgs { peer: HostPort { host, port }, token } = args;
    let outcome = signals::run(|_| async move { pairing::pair(&state_dir, &host, port, &token).await });
    match outcome.map_err(|error| Failure::failed(format!("pairing ended unexpectedly: {error}")))? {
        Outcome::Ended(Ok(replica)) => {
            out.line(&format!("paired with replica {replica}"));
            Ok(Exit::Done)
        }
        Outcome::Ended(Err(error)) => Err(Failure::failed(error)),
        Outcome::Signalled { exit, cleaned } => Err(Failure { exit, message: interrupted(cleaned).to_owned() }),
    }
}
