//! What a running daemon consists of: the shares that it is the master of, those that it holds for others, and how to
//! read its configuration again.

use std::path::{Path, PathBuf};

use sync_core::control::{ShareStatus, Status};
use sync_core::path::escape;
use sync_core::roles::master::{MirrorHandle, OrderError};
use sync_core::roles::replica::{DaemonHandle, ShareConfig};
use tokio::sync::{Mutex, watch};

use crate::config::{Checked, shown};
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

    /// The mirror of this name or path.
    ///
    /// # Errors
    /// There is none, or what is meant is a replica, of which its master is to be asked.
    pub fn mirror(&self, share: &str) -> Result<(String, MirrorHandle), OrderError> {
        self.masters.find(share).map_err(|error| match self.held(share) {
            Some(ShareStatus { name, copy, .. }) => {
                let master = copy.and_then(|copy| copy.master);
                let at = master.map(|master| format!(" ({})", master.address)).unwrap_or_default();
                OrderError(format!("share {name} is a replica here: say that on the machine of its master{at}"))
            }
            None => error,
        })
    }

    /// The replica here of this name or path.
    fn held(&self, share: &str) -> Option<ShareStatus> {
        let resolved = std::fs::canonicalize(Path::new(share)).map(|path| shown(&path)).ok();
        let is_meant =
            |held: &ShareStatus| held.name == share || held.path == share || resolved.as_ref() == Some(&held.path);
        self.replicas.status().into_iter().find(is_meant)
    }

    /// The name of the share that is meant by a name or a path.
    ///
    /// # Errors
    /// There is none.
    pub fn named(&self, share: &str) -> Result<String, OrderError> {
        match (self.masters.find(share), self.held(share)) {
            (Ok((name, _)), _) => Ok(name),
            (Err(_), Some(held)) => Ok(held.name),
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
        config.may_become(&new).map_err(|reason| OrderError(format!("{reason}{kept}")))?;
        let added = new.shares.iter().filter(|share| !config.shares.contains(share));
        for ShareConfig { name, path, .. } in added {
            crate::make_share(name, path).map_err(|error| OrderError(format!("{}{kept}", crate::told(&error))))?;
        }
        let replicas = tokio::task::block_in_place(|| self.replicas.configure(new.shares.clone(), &new.listen));
        let mut said = replicas.map_err(|error| OrderError(format!("{error}{kept}")))?;
        said.extend(self.masters.configure(new.masters.clone()));
        let restart = [
            ("state_dir", config.state_dir != new.state_dir),
            ("log_format", config.log_format != new.log_format),
            ("log_level", config.log_level != new.log_level),
        ];
        let restart = restart.iter().filter(|(_, changed)| *changed);
        said.extend(restart.map(|(what, _)| format!("{what}: takes effect at a restart")));
        config.shares = new.shares;
        config.masters = new.masters;
        if said.is_empty() {
            said.push("nothing changed".to_owned());
        }
        said.iter().for_each(|line| tracing::info!("reload: {line}"));
        Ok(said.join("\n"))
    }
}
