//! A connection of a process with itself: what serves a replica that is a path. The same listener, dialer, keys and
//! packets as between two machines; only the keys are made for the occasion and forgotten.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::address::Address;
use super::connection::Connection;
use super::dial::connect;
use super::error::{AcceptError, BindError, ConnectError};
use super::identity::{Identity, IdentityError};
use super::listen::Listener;
use super::tls::{Only, Purpose};
use super::tuning::Settings;

/// Both ends of a connection within this process.
#[derive(Debug)]
pub struct Loopback {
    /// The end that dialed: the master's.
    pub dialed: Connection,
    /// The end that listened: the replica's.
    pub accepted: Connection,
}

impl Loopback {
    /// Opens one on 127.0.0.1, with fresh keys that are pinned both ways.
    pub async fn open(settings: Settings) -> Result<Self, LoopbackError> {
        let (master, _) = Identity::generate()?;
        let (replica, _) = Identity::generate()?;
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = Listener::bind(here, &replica, Arc::new(Only(master.id())), settings)?;
        let address = Address::from(listener.address());
        let dialing = connect(&address, &master, replica.id(), Purpose::Session, settings);
        let dialing = async { Ok::<_, LoopbackError>(dialing.await?) };
        // The first failure ends both: nobody will come if the dialer gave up.
        let (dialed, accepted) = tokio::try_join!(dialing, accept_one(&listener, &master))?;
        listener.take_no_more();
        Ok(Self { dialed, accepted })
    }
}

/// The connection of the one client that is expected. Another program may knock at the port; it has not the key.
async fn accept_one(listener: &Listener, master: &Identity) -> Result<Connection, LoopbackError> {
    let mut last = LoopbackError::Ended;
    while let Some(arrival) = listener.accept().await {
        match arrival.establish().await {
            Ok(connection) if connection.peer() == master.id() => return Ok(connection),
            Ok(_) => {}
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// Why a process could not connect with itself.
#[derive(Debug, thiserror::Error)]
pub enum LoopbackError {
    /// No keys.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No socket.
    #[error("the loopback interface is needed for a replica that is a path: {0}")]
    Bind(#[from] BindError),
    /// The dialing side failed.
    #[error("the loopback interface is needed for a replica that is a path: {0}")]
    Connect(#[from] ConnectError),
    /// The listening side failed.
    #[error("the loopback interface is needed for a replica that is a path: {0}")]
    Accept(#[from] AcceptError),
    /// The listener ended first.
    #[error("the loopback listener ended before its connection came")]
    Ended,
}
