//! The shares that this machine is the master of: one mirror each, begun, changed and ended while the daemon runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sync_core::control::{Role, ShareState, ShareStatus};
use sync_core::destination::{addresses, label};
use sync_core::monitor::Monitor;
use sync_core::options::{Compress, Destination, Policy, PushRequest};
use sync_core::path::escape;
use sync_core::roles::master::{Mirror, MirrorConfig, MirrorHandle, OrderError, PushError};
use sync_core::roles::{Shutdown, pairing};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::{Master, shown};
use crate::monitor;

/// All of them, by name.
pub struct Masters {
    state_dir: PathBuf,
    running: Mutex<BTreeMap<String, Running>>,
    /// Told whenever something changes.
    changed: watch::Sender<()>,
    /// Told when nothing may be left to do, which the daemon waits for: a mirror has failed, or others are wanted.
    idles: watch::Sender<()>,
}

struct Running {
    master: Master,
    handle: MirrorHandle,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), PushError>>,
    ended: Arc<Mutex<Option<String>>>,
}

impl Running {
    fn start(master: Master, state_dir: &Path, changed: &watch::Sender<()>, idles: &watch::Sender<()>) -> Self {
        let monitors = {
            let share = master.name.clone();
            move |replica: Option<&Destination>| -> Arc<dyn Monitor> {
                Arc::new(monitor::Log::new(share.clone(), replica.map(label)))
            }
        };
        let (mirror, handle) = Mirror::new(config(&master, state_dir), Arc::new(monitors), changed.clone());
        let (stop, stopped) = watch::channel(false);
        let ended = Arc::new(Mutex::new(None));
        let task = tokio::spawn({
            let (name, ended) = (master.name.clone(), Arc::clone(&ended));
            let (changed, idles) = (changed.clone(), idles.clone());
            async move {
                let result = mirror.run(stopped).await;
                // The other shares go on.
                if let Err(error) = &result {
                    tracing::error!(share = name, "it is not mirrored: {error}");
                    *ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                    changed.send_replace(());
                    idles.send_replace(());
                }
                result
            }
        });
        Self { master, handle, stop, task, ended }
    }

    fn ended(&self) -> Option<String> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn status(&self) -> ShareStatus {
        let status = ShareStatus { name: self.master.name.clone(), ..self.handle.status() };
        match self.ended() {
            Some(reason) => {
                ShareStatus { state: ShareState::Failed, reason: Some(reason), role: Role::Master, ..status }
            }
            None => status,
        }
    }

    fn is_called(&self, share: &str) -> bool {
        let resolved = std::fs::canonicalize(&self.master.path).is_ok_and(|path| shown(&path) == share);
        self.master.name == share || shown(&self.master.path) == share || resolved
    }
}

impl Masters {
    /// Begins to mirror these shares, with indexes in the state directory.
    pub fn start(masters: Vec<Master>, state_dir: PathBuf, changed: watch::Sender<()>) -> Self {
        let idles = watch::channel(()).0;
        let start = |master: Master| (master.name.clone(), Running::start(master, &state_dir, &changed, &idles));
        let running = Mutex::new(masters.into_iter().map(start).collect());
        Self { state_dir, running, changed, idles }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mirrors these shares from now on, and no others. What goes on in both is not interrupted. Says what changed.
    pub fn configure(&self, masters: Vec<Master>) -> Vec<String> {
        let mut said = Vec::new();
        let mut running = self.running();
        let gone: Vec<String> =
            running.keys().filter(|name| !masters.iter().any(|m| m.name == **name)).cloned().collect();
        for name in gone {
            if let Some(gone) = running.remove(&name) {
                gone.stop.send_replace(true);
                said.push(format!("share {name} is not mirrored any more"));
            }
        }
        for master in masters {
            let known = running.get(&master.name).map_or(&[][..], |running| &running.master.replicas);
            let new = master.replicas.iter().filter(|replica| !known.contains(replica));
            let unpaired: Vec<String> = new.filter_map(|replica| self.unpaired(replica)).collect();
            match running.get_mut(&master.name) {
                Some(known) if known.ended().is_none() => {
                    if known.master != master {
                        said.push(changes(&known.master, &master));
                        known.handle.configure(config(&master, &self.state_dir));
                        known.master = master;
                    }
                }
                ended => {
                    let again = if ended.is_some() { " again" } else { "" };
                    said.push(format!("share {} is mirrored{again}", master.name));
                    let started = Running::start(master.clone(), &self.state_dir, &self.changed, &self.idles);
                    running.insert(master.name, started);
                }
            }
            said.extend(unpaired);
        }
        drop(running);
        self.changed.send_replace(());
        self.idles.send_replace(());
        said
    }

    /// What a person has to do before a replica can follow, if anything.
    fn unpaired(&self, replica: &Destination) -> Option<String> {
        let Destination::Remote { host, port, .. } = replica else { return None };
        let unpaired = pairing::unpaired(&self.state_dir, host, *port).ok().flatten()?;
        Some(format!("{} cannot follow yet: {unpaired}", label(replica)))
    }

    /// How they are.
    pub fn status(&self) -> Vec<ShareStatus> {
        self.running().values().map(Running::status).collect()
    }

    /// Whoever is reached there is tried again now.
    pub fn try_again_at(&self, host: &str, port: u16) {
        self.running().values().for_each(|running| running.handle.try_again_at(host, port));
    }

    /// The mirror of this name or path.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, share: &str) -> Result<(String, MirrorHandle), OrderError> {
        let running = self.running();
        let found = running.values().find(|running| running.is_called(share));
        let found = found.ok_or_else(|| {
            let known: Vec<_> =
                running.values().map(|r| format!("{} ({})", r.master.name, shown(&r.master.path))).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            OrderError(format!("this daemon is the master of no share {}; of {known}", escape(share.as_bytes())))
        })?;
        match found.ended() {
            Some(reason) => Err(OrderError(format!("share {} is not mirrored: {reason}", found.master.name))),
            None => Ok((found.master.name.clone(), found.handle.clone())),
        }
    }

    /// Told whenever something may have changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Waits for the end that was asked for, or until none is mirrored any more because each has failed: then a daemon
    /// that serves nothing else has nothing to do.
    ///
    /// # Errors
    /// That of the first share that failed.
    pub async fn run(&self, mut shutdown: Shutdown, serves_others: impl Fn() -> bool) -> anyhow::Result<()> {
        let mut idle = self.idles.subscribe();
        let all_failed = || {
            let running = self.running();
            !serves_others() && !running.is_empty() && running.values().all(|running| running.ended().is_some())
        };
        while !all_failed() {
            tokio::select! {
                _ = idle.changed() => {}
                _ = shutdown.wait_for(|stop| *stop) => break,
            }
        }
        let running = std::mem::take(&mut *self.running());
        for running in running.values() {
            running.stop.send_replace(true);
        }
        let mut failed = Ok(());
        for (name, running) in running {
            let ended = running.task.await.map_err(|_| anyhow::anyhow!("a mirror ended with a panic"));
            let ended = ended.and_then(|ended| ended.map_err(anyhow::Error::from));
            failed = failed.and(ended.map_err(|error| error.context(format!("share {name}"))));
        }
        failed
    }
}

/// What changed, in words.
fn changes(before: &Master, after: &Master) -> String {
    let name = &after.name;
    let only_in = |these: &Master, those: &Master| -> Vec<String> {
        let only_here = these.replicas.iter().filter(|replica| !those.replicas.contains(replica));
        only_here.map(|replica| addresses(replica).iter().map(label).collect::<Vec<_>>().join(" or ")).collect()
    };
    let mut parts = Vec::new();
    for (verb, replicas) in [("is added", only_in(after, before)), ("does not follow any more", only_in(before, after))]
    {
        parts.extend(replicas.iter().map(|replica| format!("{replica} {verb}")));
    }
    let kept = |master: &Master| (master.path.clone(), master.exclude.clone(), master.history, master.bandwidth);
    if kept(before) != kept(after) {
        parts.push("it is looked at anew".to_owned());
    }
    let rest = |master: &Master| (master.settle_max, master.rescan, master.max_delete);
    if rest(before) != rest(after) {
        parts.push("settle_max, rescan and max_delete are taken over".to_owned());
    }
    format!("share {name}: {}", parts.join(", "))
}

/// What a mirror is asked for.
fn config(master: &Master, state_dir: &Path) -> MirrorConfig {
    let Master { path, replicas, exclude, settle_max, history, bandwidth, rescan, max_delete, .. } = master.clone();
    let request = PushRequest {
        source: path,
        destinations: replicas,
        state_dir: state_dir.to_owned(),
        policy: Policy { rules: exclude, ..Policy::default() },
        adopt: false,
        bandwidth,
        compress: Compress::Auto,
        history,
    };
    MirrorConfig { request, settle_max, max_delete, rescan }
}
