//! A long-running replica: listens, lets in who is paired, serves one push after the other on each share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::lookout::Lookout;
use super::owner::Ownership;
use super::share::Share;
use super::shares::{Held, Shares};
use super::standing::Standing;
use crate::control::ShareStatus;
use crate::fs::StateDir;
use crate::guard::MaxDelete;
use crate::heal::Heal;
use crate::index::Index;
use crate::path::escape;
use crate::roles::Shutdown;
use crate::roles::guarding::Guard;
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
    held: DaemonHandle,
    listening: mpsc::UnboundedReceiver<Listening>,
}

/// The shares of a daemon, as others see and change them while it runs.
#[derive(Clone)]
pub struct DaemonHandle(Arc<Registry>);

/// What a daemon holds.
struct Registry {
    state: StateDir,
    state_dir: PathBuf,
    trust: Arc<StateTrust>,
    shares: Arc<Shares>,
    running: Mutex<BTreeMap<String, Running>>,
    /// Where it listens, as long as there is a share, and what ends that.
    listens: Mutex<Option<(Vec<SocketAddr>, watch::Sender<bool>)>>,
    begin: mpsc::UnboundedSender<Listening>,
    changed: watch::Sender<()>,
}

/// Sockets that somebody has to serve.
struct Listening {
    listeners: Vec<Listener>,
    over: Shutdown,
}

/// A share that is held.
struct Running {
    config: ShareConfig,
    held: Held,
    left: watch::Sender<Option<&'static str>>,
    /// Ends its lookout.
    over: watch::Sender<bool>,
    watching: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Holds these shares and, if there are any, listens at every address; who comes is let in by [`Daemon::run`].
    /// `changed` is told whenever the status of a share may have changed. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`DaemonError`] if it cannot start.
    pub fn listen(config: DaemonConfig, changed: watch::Sender<()>) -> Result<Self, DaemonError> {
        let DaemonConfig { state_dir, listen, shares } = config;
        let open = || StateDir::open(&state_dir).map_err(|e| DaemonError::State(e.to_string()));
        let (state, trust) = (open()?, Arc::new(StateTrust::new(open()?)));
        let (begin, listening) = mpsc::unbounded_channel();
        let registry = Registry {
            state,
            state_dir,
            trust,
            shares: Arc::default(),
            running: Mutex::default(),
            listens: Mutex::default(),
            begin,
            changed,
        };
        let held = DaemonHandle(Arc::new(registry));
        held.configure(shares, &listen)?;
        Ok(Self { held, listening })
    }

    /// What its shares can be seen and changed by.
    pub fn handle(&self) -> DaemonHandle {
        self.held.clone()
    }

    /// Serves until `shutdown`; pushes under way end with nothing half done.
    pub async fn run(self, mut shutdown: Shutdown) {
        let Self { held, mut listening } = self;
        let (mut tasks, for_clients) = (JoinSet::new(), shutdown.clone());
        loop {
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => break,
                Some(Listening { listeners, over }) = listening.recv() => for listener in listeners {
                    let (trust, shares) = (Arc::clone(&held.0.trust), Arc::clone(&held.0.shares));
                    tasks.spawn(listen(listener, trust, shares, over.clone(), for_clients.clone()));
                },
                Some(_) = tasks.join_next() => {}
            }
        }
        let all = std::mem::take(&mut *held.running());
        for running in all.into_values() {
            running.over.send_replace(true);
            if let Some(watching) = running.watching {
                let _ = watching.await;
            }
        }
        while tasks.join_next().await.is_some() {}
    }
}

impl DaemonHandle {
    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a share.
    pub fn serves(&self) -> bool {
        !self.running().is_empty()
    }

    /// How they are, by name.
    pub fn status(&self) -> Vec<ShareStatus> {
        let status = |Running { config, held, .. }: &Running| {
            let status = held.standing.status(&config.name, escape(config.path.as_os_str().as_encoded_bytes()));
            match held.ownership.as_ref().map(|ownership| ownership.status()) {
                None => status,
                Some(Err(error)) => ShareStatus { reason: status.reason.or(Some(error)), ..status },
                Some(Ok((owner, refused))) => {
                    let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
                    let told = format!("refused lately, because it is not the owner: {}", refused.join(", "));
                    let reason = status.reason.or((!refused.is_empty()).then_some(told));
                    ShareStatus { owner: owner.map(|owner| owner.to_string()), reason, ..status }
                }
            }
        };
        self.running().values().map(status).collect()
    }

    /// Holds these shares from now on, and no others. The sessions of those that go, or that another directory or another
    /// way to heal is asked for, end when what they publish is published; those of all others go on. Begins to listen with
    /// the first share, and ends that with the last. Says what changed. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`DaemonError`] if it cannot listen; then nothing has changed.
    pub fn configure(&self, shares: Vec<ShareConfig>, listen: &[SocketAddr]) -> Result<Vec<String>, DaemonError> {
        let mut said = Vec::new();
        said.extend(self.listen(shares.is_empty(), listen)?);
        let mut running = self.running();
        let mut before = std::mem::take(&mut *running);
        let mut leaving = Vec::new();
        for config in shares {
            let name = config.name.clone();
            let now = match before.remove(&name) {
                Some(known) if known.config == config => known,
                Some(known) => {
                    said.push(format!("share {name}: {}", known.changes(&config)));
                    let (now, instead_of) = self.change(known, config);
                    leaving.extend(instead_of);
                    now
                }
                None => {
                    said.push(format!("share {name} is held"));
                    let guard = Guard::new(config.max_delete);
                    let ownership = Ownership::new(self.0.state.clone(), config.name.clone());
                    self.start(config, guard, ownership)
                }
            };
            running.insert(name, now);
        }
        self.0.shares.set(running.values().map(|running| running.held.clone()));
        drop(running);
        // Who comes again at once finds what is held from now on.
        for instead_of in leaving {
            instead_of.leave("is held in another way from now on");
        }
        for (name, gone) in before {
            gone.leave("is not held here any more");
            said.push(format!("share {name} is not held any more"));
        }
        self.0.changed.send_replace(());
        Ok(said)
    }

    /// Listens as long as there is a share. Says so if it does at other addresses than these.
    fn listen(&self, is_empty: bool, addresses: &[SocketAddr]) -> Result<Option<String>, DaemonError> {
        let mut listens = self.0.listens.lock().unwrap_or_else(PoisonError::into_inner);
        match &*listens {
            Some((_, over)) if is_empty => {
                over.send_replace(true);
                *listens = None;
                Ok(None)
            }
            Some((known, _)) => Ok((known != addresses).then(|| "listen: takes effect at a restart".to_owned())),
            None if is_empty => Ok(None),
            None => {
                let identity = pairing::identity(&self.0.state).map_err(|e| DaemonError::State(e.to_string()))?;
                let bind = |address: &SocketAddr| {
                    let listener = Listener::bind(*address, &identity, self.0.trust.clone(), Settings::default())?;
                    tracing::info!("listening on {}", listener.address());
                    Ok::<_, BindError>(listener)
                };
                let listeners = addresses.iter().map(bind).collect::<Result<_, _>>()?;
                let (stop, over) = watch::channel(false);
                // Nobody serves them if the daemon ends.
                let _ = self.0.begin.send(Listening { listeners, over });
                *listens = Some((addresses.to_vec(), stop));
                Ok(None)
            }
        }
    }

    fn start(&self, config: ShareConfig, guard: Arc<Guard>, ownership: Arc<Ownership>) -> Running {
        let ShareConfig { name, path, heal, rescan, .. } = config.clone();
        let index = StateDir::at(&self.0.state_dir).share_index_dir(&name);
        // One that cannot be read says so to who opens it.
        let stand = Index::peek_stand(&index).ok().flatten();
        let share = Share { name, path, state_dir: self.0.state_dir.clone() };
        let standing = Standing::new(heal, stand.as_ref(), self.0.changed.clone());
        let lookout = Lookout::new(share.clone(), heal, rescan, Arc::clone(&standing));
        let ((over, ended), (leave, left)) = (watch::channel(false), watch::channel(None));
        let watching = lookout.clone().map(|lookout| tokio::spawn(lookout.run(ended)));
        Running {
            config,
            held: Held { share, lookout, guard, ownership: Some(ownership), standing, left },
            left: leave,
            over,
            watching,
        }
    }

    /// Only the guard can be changed while a session has the share; otherwise says what is to leave, too.
    fn change(&self, known: Running, config: ShareConfig) -> (Running, Option<Running>) {
        known.held.guard.allow(config.max_delete);
        if (ShareConfig { max_delete: config.max_delete, ..known.config.clone() }) == config {
            return (Running { config, ..known }, None);
        }
        let guard = match known.config.path == config.path {
            true => Arc::clone(&known.held.guard),
            false => Guard::new(config.max_delete),
        };
        let ownership = known.held.ownership.clone();
        let ownership = ownership.unwrap_or_else(|| Ownership::new(self.0.state.clone(), config.name.clone()));
        (self.start(config, guard, ownership), Some(known))
    }
}

impl Running {
    /// What becomes another, in words.
    fn changes(&self, new: &ShareConfig) -> String {
        let ShareConfig { name: _, path, heal, max_delete, rescan } = &self.config;
        let changes = [
            ("path", *path != new.path),
            ("heal", *heal != new.heal),
            ("max_delete", *max_delete != new.max_delete),
            ("rescan", *rescan != new.rescan),
        ];
        let changed: Vec<&str> = changes.iter().filter(|(_, changed)| *changed).map(|(what, _)| *what).collect();
        format!("{} taken over", changed.join(", "))
    }

    /// Nobody finds it any more, and who has it ends.
    fn leave(self, how: &'static str) {
        self.over.send_replace(true);
        self.left.send_replace(Some(how));
    }
}

/// Lets in who comes, until nobody is to come any more; then waits until all have gone.
async fn listen(
    listener: Listener,
    trust: Arc<StateTrust>,
    shares: Arc<Shares>,
    mut over: Shutdown,
    mut shutdown: Shutdown,
) {
    let mut clients = JoinSet::new();
    let for_clients = shutdown.clone();
    loop {
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => break,
            _ = over.wait_for(|over| *over) => break,
            arrival = listener.accept() => match arrival {
                Some(arrival) => {
                    clients.spawn(welcome(arrival, Arc::clone(&trust), Arc::clone(&shares), for_clients.clone()));
                }
                None => break,
            },
            Some(_) = clients.join_next() => {}
        }
    }
    // Each session sees the shutdown, or that its share is gone, and leaves its staging directory in order.
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
