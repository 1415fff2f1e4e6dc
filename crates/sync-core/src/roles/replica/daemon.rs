//! A long-running replica: listens, lets in who is paired, serves one push after the other on each share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::lookout::Lookout;
use super::shares::{Guard, Held, Share, Shares};
use super::standing::Standing;
use crate::control::ShareStatus;
use crate::fs::StateDir;
use crate::guard::MaxDelete;
use crate::heal::Heal;
use crate::index::Index;
use crate::path::escape;
use crate::roles::Shutdown;
use crate::roles::pairing::{self, StateTrust};
use crate::transport::{Arrival, BindError, Code, Listener, Purpose, Settings};

/// What a daemon needs; checked by `syncd`.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// Where identity, trust and indexes live.
    pub state_dir: PathBuf,
    /// UDP addresses.
    pub listen: Vec<SocketAddr>,
    /// What is held here.
    pub shares: Vec<ShareConfig>,
}

/// A share that a daemon holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareConfig {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// What is done when somebody else changes it.
    pub heal: Heal,
    /// How much of it a master that follows its tree may delete unless a person says so.
    pub max_delete: MaxDelete,
    /// How often all of it is looked at, to find what no event told. Each time it is up to a quarter more or less.
    pub rescan: Duration,
}

/// Why a daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The state directory or the identity in it.
    #[error("{0}")]
    State(String),
    /// An address.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// A long-running replica.
pub struct Daemon {
    listeners: Vec<Listener>,
    trust: Arc<StateTrust>,
    held: DaemonHandle,
}

/// How the shares of a daemon are, for whoever asks.
#[derive(Clone)]
pub struct DaemonHandle(Arc<Registry>);

/// What a daemon holds.
struct Registry {
    shares: Arc<Shares>,
    running: Mutex<BTreeMap<String, Running>>,
}

/// A share that is held.
struct Running {
    config: ShareConfig,
    held: Held,
}

impl Daemon {
    /// Listens at every address; who comes is let in by [`Daemon::run`]. `changed` is told whenever the status of a share
    /// may have changed. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`DaemonError`] if it cannot start.
    pub fn listen(config: DaemonConfig, changed: &watch::Sender<()>) -> Result<Self, DaemonError> {
        let state = StateDir::open(&config.state_dir).map_err(|e| DaemonError::State(e.to_string()))?;
        let identity = pairing::identity(&state).map_err(|e| DaemonError::State(e.to_string()))?;
        let start = |share: ShareConfig| (share.name.clone(), Running::new(share, &config.state_dir, changed));
        let running: BTreeMap<_, _> = config.shares.into_iter().map(start).collect();
        let shares = Arc::new(Shares::new(running.values().map(|running| running.held.clone())));
        let trust = Arc::new(StateTrust::new(state));
        let mut listeners = Vec::new();
        for address in config.listen {
            let listener = Listener::bind(address, &identity, trust.clone(), Settings::default())?;
            tracing::info!("listening on {}", listener.address());
            listeners.push(listener);
        }
        Ok(Self { listeners, trust, held: DaemonHandle(Arc::new(Registry { shares, running: Mutex::new(running) })) })
    }

    /// What its shares can be seen by.
    pub fn handle(&self) -> DaemonHandle {
        self.held.clone()
    }

    /// Serves until `shutdown`; pushes under way end with nothing half done.
    pub async fn run(self, shutdown: Shutdown) {
        let Self { listeners, trust, held } = self;
        let mut tasks = JoinSet::new();
        for listener in listeners {
            tasks.spawn(listen(listener, Arc::clone(&trust), Arc::clone(&held.0.shares), shutdown.clone()));
        }
        for lookout in held.running().values().filter_map(|running| running.held.lookout.clone()) {
            tasks.spawn(lookout.run(shutdown.clone()));
        }
        while tasks.join_next().await.is_some() {}
    }
}

impl DaemonHandle {
    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How they are, by name.
    pub fn status(&self) -> Vec<ShareStatus> {
        let status = |Running { config, held }: &Running| {
            held.standing.status(&config.name, escape(config.path.as_os_str().as_encoded_bytes()))
        };
        self.running().values().map(status).collect()
    }
}

impl Running {
    fn new(config: ShareConfig, state_dir: &Path, changed: &watch::Sender<()>) -> Self {
        let ShareConfig { name, path, heal, max_delete, rescan } = config.clone();
        let index = StateDir::at(state_dir).share_index_dir(&name);
        // One that cannot be read says so to who opens it.
        let stand = Index::peek_stand(&index).ok().flatten();
        let share = Share { name, path, state_dir: state_dir.to_owned() };
        let standing = Standing::new(heal, stand.as_ref(), changed.clone());
        let lookout = Lookout::new(share.clone(), heal, rescan, Arc::clone(&standing));
        let left = watch::channel(None).1;
        Self { held: Held { share, lookout, guard: Guard::new(max_delete), standing, left }, config }
    }
}

async fn listen(listener: Listener, trust: Arc<StateTrust>, shares: Arc<Shares>, mut shutdown: Shutdown) {
    let mut clients = JoinSet::new();
    let for_clients = shutdown.clone();
    loop {
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => break,
            arrival = listener.accept() => match arrival {
                Some(arrival) => {
                    clients.spawn(welcome(arrival, Arc::clone(&trust), Arc::clone(&shares), for_clients.clone()));
                }
                None => break,
            },
            Some(_) = clients.join_next() => {}
        }
    }
    // Each session sees the shutdown itself and leaves its staging directory in order.
    while clients.join_next().await.is_some() {}
    listener.close().await;
}

async fn welcome(arrival: Arrival, trust: Arc<StateTrust>, shares: Arc<Shares>, mut shutdown: Shutdown) {
    let from = arrival.from();
    // Who has not shown a key yet keeps nobody from ending.
    let mut over = shutdown.clone();
    let established = tokio::select! {
        established = arrival.establish() => established,
        _ = over.wait_for(|stop| *stop) => return,
    };
    let connection = match established {
        Ok(connection) => connection,
        Err(error) => {
            tracing::warn!(%from, %error, "refused");
            return;
        }
    };
    let peer = connection.peer();
    match connection.purpose() {
        Purpose::Session => {
            tracing::info!(%from, %peer, "push");
            super::serve(connection.clone(), shares, shutdown).await;
            tracing::info!(%from, %peer, "push ended");
        }
        Purpose::Pairing => match tokio::select! {
            served = trust.serve_pairing(&connection) => served,
            _ = shutdown.wait_for(|stop| *stop) => return,
        } {
            Ok(Some(peer)) => tracing::info!(%from, %peer, "paired"),
            Ok(None) => tracing::warn!(%from, %peer, "pairing refused: no such invitation, or it is used up"),
            Err(error) => {
                tracing::warn!(%from, %error, "pairing broke off");
                connection.close(Code::Internal, "").await;
            }
        },
    }
}
