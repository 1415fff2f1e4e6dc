//! From a destination in words to a connection with a replica behind it.

use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::fs::{StateDir, place};
use crate::monitor::Problem;
use crate::options::Destination;
use crate::path::escape;
use crate::roles::Shutdown;
use crate::roles::pairing::{identity, not_paired};
use crate::roles::replica;
use crate::transport::{Address, Connection, Dialer, Loopback, PeerId, Purpose, Settings};

/// A connection with a replica at its other end.
pub struct Dialed {
    /// The connection.
    pub connection: Connection,
    /// The share to ask for.
    pub share: String,
    /// The replica's name in the log of acknowledgements.
    pub replica: String,
    /// The embedded replica's task, if it lives in this process.
    pub embedded: Option<JoinHandle<()>>,
}

/// Connects to a destination. A path gets a replica of its own in this process, reached over the loopback interface
/// with the same protocol as any other.
pub async fn dial(
    from: &Dialer,
    destination: &Destination,
    state_dir: &Path,
    shutdown: &Shutdown,
) -> Result<Dialed, Problem> {
    let failed = |reason: String| Problem { path: None, reason };
    match destination {
        Destination::Path(path) => {
            let ends = Loopback::open(Settings::default()).await.map_err(|e| failed(e.to_string()))?;
            let share = replica::Share::embedded(path.clone(), state_dir.to_owned());
            let shares = Arc::new(replica::Shares::only(share));
            let embedded = tokio::spawn(replica::serve(ends.accepted, shares, shutdown.clone()));
            let place = place::resolve(path).unwrap_or_else(|_| path.clone());
            let replica = escape(place.as_os_str().as_encoded_bytes());
            Ok(Dialed { connection: ends.dialed, share: String::new(), replica, embedded: Some(embedded) })
        }
        Destination::Remote { host, port, share, also } => {
            // Whoever is paired has a state directory and an identity: nothing needs to be made here.
            let state = StateDir::at(state_dir);
            let address = Address::new(host.clone(), *port);
            let pinned = state.known(&address.to_string()).map_err(|e| failed(e.to_string()))?;
            let Some(pinned) = pinned.and_then(|id| id.parse::<PeerId>().ok()) else {
                // `backup/www` may have been meant as a directory here.
                let is_dir = Path::new(host).is_dir();
                let hint = if is_dir {
                    format!("; if the directory {host} here is meant, put ./ before it")
                } else {
                    String::new()
                };
                return Err(failed(not_paired(&address) + &hint));
            };
            let identity = identity(&state).map_err(|e| failed(e.to_string()))?;
            let also: Vec<_> = also.iter().map(|also| Address::new(also.host.clone(), also.port)).collect();
            let connecting = from.connect(&address, &also, &identity, pinned, Purpose::Session, Settings::default());
            let connection = connecting.await.map_err(|e| failed(e.to_string()))?;
            let replica = format!("{address}/{share}");
            Ok(Dialed { connection, share: share.clone(), replica, embedded: None })
        }
    }
}
