//! The replica's role in a push: open the share and look at it, take in contents and changes, plan, prepare, publish,
//! acknowledge. A master that follows its tree has one session after the other on its connection; between them the share
//! stays open.

mod apply;
mod basis;
mod daemon;
mod drafts;
mod drift;
mod error;
mod expand;
mod followed;
mod inputs;
mod ledger;
mod listing;
mod lookout;
mod open;
mod owner;
mod reached;
mod session;
mod share;
mod shares;
mod staging;
mod stand_in;
mod standing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use daemon::{Daemon, DaemonConfig, DaemonError, DaemonHandle, ShareConfig};
pub use owner::Ownership;
pub use share::Share;
pub use shares::Shares;

use crate::roles::link::{Control, LinkError};
use crate::roles::{Shutdown, memory};
use crate::transport::Connection;
use crate::wire::ToReplica;
use followed::{Followed, Said};
use session::Session;

/// How long a master may take to open its session once it is connected.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves a push over `connection`, or one after the other if the master follows its tree, to the end, whatever end that
/// is.
pub async fn serve(connection: Connection, shares: Arc<Shares>, mut shutdown: Shutdown) {
    let mut followed: Option<Followed> = None;
    loop {
        let (control, said) = match followed.as_mut().and_then(Followed::goes_on) {
            Some((control, said)) => (control, Some(said)),
            None => {
                let accepted = tokio::select! {
                    accepted = accept(&connection, followed.is_some()) => accepted,
                    () = Followed::left(followed.as_ref()) => Err(LinkError::Interrupted),
                    _ = shutdown.wait_for(|stop| *stop) => Err(LinkError::Interrupted),
                };
                match accepted {
                    Ok(control) => (control, None),
                    Err(error) => {
                        tracing::debug!(%error, "no session");
                        followed.into_iter().for_each(Followed::close);
                        connection.close(error.code(), "no session was opened").await;
                        return;
                    }
                }
            }
        };
        match serve_one(&connection, &shares, &shutdown, (control, said), followed).await {
            Some(open) => followed = Some(open),
            None => return,
        }
    }
}

/// Waits for a session: for the first not long.
async fn accept(connection: &Connection, is_followed: bool) -> Result<Control<ToReplica>, LinkError> {
    match is_followed {
        true => Control::accept(connection).await,
        false => tokio::time::timeout(PATIENCE, Control::accept(connection)).await.unwrap_or(Err(LinkError::Ended)),
    }
}

/// What is left of a session for the next one on its connection, if there may be one.
async fn serve_one(
    connection: &Connection,
    shares: &Arc<Shares>,
    shutdown: &Shutdown,
    (control, said): (Control<ToReplica>, Option<Said>),
    followed: Option<Followed>,
) -> Option<Followed> {
    let session = Session::new(connection.clone(), Arc::clone(shares), followed);
    let interrupt = tokio::spawn(session.interruption(shutdown));
    let before = connection.traffic().received;
    let followed = session.run(control, said).await;
    interrupt.abort();
    memory::trim_after(connection.traffic().received.saturating_sub(before));
    followed
}
