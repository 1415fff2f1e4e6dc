//! What a running daemon consists of: the shares that it is the master of, those that it holds for others, and how to
//! read its configuration again.

use std::path::{Path, PathBuf};

use sync_core::control::{ShareStatus, Status};
use sync_core::path::escape;
use sync_core::roles::master::OrderError;
use sync_core::roles::replica::DaemonHandle;
use tokio::sync::{Mutex, watch};

use crate::config::{Checked, Master, shown};
use crate::masters::Masters;
use crate::notify::Notifier;

/// Reads the configuration again.
pub type Reload = dyn Fn() -> anyhow::Result<Checked> + Send + Sync;

/// A running daemon.
pub struct Service {
    /// The shares that this machine is the master of.
    pub masters: Masters,
    /// Those that it holds for others.
    pub replicas: DaemonHandle,
    /// Hears how the daemon is.
    pub notifier: Notifier,
    changed: watch::Sender<()>,
    /// All that was asked for, as far as it is not replaced while the daemon runs.
    config: Mutex<Checked>,
    /// Its file, if it has one.
    file: Option<PathBuf>,
    reload: Option<Box<Reload>>,
}

impl Service {
    /// A daemon that does what the configuration says, with these shares held for others. `changed` is told of every change
    /// of their status, and of all others.
    pub fn start(
        config: Checked,
        replicas: DaemonHandle,
        changed: watch::Sender<()>,
        file: Option<PathBuf>,
        reload: Option<Box<Reload>>,
        notifier: Notifier,
    ) -> Self {
        let masters = Masters::start(config.masters.clone(), config.state_dir.clone(), changed.clone());
        Self { masters, replicas, notifier, changed, config: Mutex::new(config), file, reload }
    }

    /// Told whenever a status may have changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// How its shares are, by name.
    pub fn status(&self) -> Status {
        let mut shares = self.masters.status();
        shares.extend(self.replicas.status());
        shares.sort_by(|a, b| a.name.cmp(&b.name));
        Status { daemon: env!("CARGO_PKG_VERSION").to_owned(), config: self.file.as_deref().map(shown), shares }
    }

    /// The name of the share that is meant by a name or a path.
    ///
    /// # Errors
    /// There is none.
    pub fn named(&self, share: &str) -> Result<String, OrderError> {
        let held = self.replicas.status();
        let resolved = std::fs::canonicalize(Path::new(share)).map(|path| shown(&path)).ok();
        let is_meant =
            |held: &&ShareStatus| held.name == share || held.path == share || resolved.as_ref() == Some(&held.path);
        match (self.masters.find(share), held.iter().find(is_meant)) {
            (Ok((name, _)), _) => Ok(name),
            (Err(_), Some(held)) => Ok(held.name.clone()),
            (Err(_), None) => {
                let known: Vec<String> = self.status().shares.into_iter().map(|share| share.name).collect();
                let known = known.join(", ");
                Err(OrderError(format!("there is no share {} here; there are: {known}", escape(share.as_bytes()))))
            }
        }
    }

    /// Reads the configuration again and does what it says now. Says what changed.
    ///
    /// # Errors
    /// It makes no sense; then all stays as it was.
    pub async fn reload(&self) -> Result<String, OrderError> {
        let Some(reload) = &self.reload else {
            return Err(OrderError("this daemon has no configuration file to read again".to_owned()));
        };
        let _reloading = self.notifier.reloading();
        let mut config = self.config.lock().await;
        let kept = "; nothing was changed";
        let new = reload().map_err(|error| OrderError(format!("{}{kept}", crate::told(&error))))?;
        let is_held = |master: &Master| {
            let path = std::fs::canonicalize(&master.path).unwrap_or_else(|_| master.path.clone());
            config
                .shares
                .iter()
                .any(|held| held.name == master.name || held.path.starts_with(&path) || path.starts_with(&held.path))
        };
        if let Some(master) = new.masters.iter().find(|master| is_held(master)) {
            let name = &master.name;
            let why =
                format!("share {name} is held for another master here: only a restart makes this machine its master");
            return Err(OrderError(format!("{why}{kept}")));
        }
        let mut said = self.masters.configure(new.masters.clone());
        let restart = [
            ("state_dir", config.state_dir != new.state_dir),
            ("listen", config.listen != new.listen),
            ("log_format and log_level", (config.log_format, config.log_level) != (new.log_format, new.log_level)),
            ("shares without replicas", config.shares != new.shares),
        ];
        said.extend(
            restart
                .iter()
                .filter(|(_, changed)| *changed)
                .map(|(what, _)| format!("{what}: only a restart takes it over")),
        );
        config.masters = new.masters;
        if said.is_empty() {
            said.push("nothing changed".to_owned());
        }
        said.iter().for_each(|line| tracing::info!("reload: {line}"));
        Ok(said.join("\n"))
    }
}
