//! The daemon's shell: arguments, configuration (raw, then checked), logging and signals around
//! [`sync_core::roles::replica::Daemon`]. It is a library, so that tests can run a daemon in their own process.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a program reads its environment and its configuration, and looks at the directories named there"
)]

mod args;
pub mod config;
mod log;
mod monitor;
mod signals;

use std::ffi::OsString;
use std::io::Write as _;
use std::sync::Arc;

use anyhow::Context as _;
use sync_core::destination::label;
use sync_core::options::{Compress, Policy, PushRequest};
use sync_core::roles::master::{Mirror, MirrorConfig};
use sync_core::roles::replica::{Daemon, DaemonConfig, ShareConfig};
use sync_core::roles::{Shutdown, pairing};
use tokio::task::JoinSet;

use args::Verb;
use config::{Checked, Master, Raw, shown};

/// It did what it was asked, and ended because it was asked.
const DONE: u8 = 0;
/// It failed.
const FAILED: u8 = 1;
/// The arguments or the configuration make no sense; nothing was touched.
const USAGE: u8 = 2;

/// The whole program but for its exit: `argv` begins with the program's name.
pub fn main(argv: &[OsString]) -> u8 {
    let cli = match args::parse(argv) {
        Ok(cli) => cli,
        Err(refusal) => {
            let _ = refusal.print();
            return if refusal.use_stderr() { USAGE } else { DONE };
        }
    };
    let raw = match cli.raw() {
        Ok(raw) => raw,
        Err(error) => return refuse(USAGE, &error),
    };
    match cli.verb {
        None => serve(&raw),
        Some(Verb::Invite) => print(&raw, |dir| Ok(pairing::invite(dir)?.to_string())),
        Some(Verb::Id) => print(&raw, |dir| Ok(pairing::id(dir)?.to_string())),
    }
}

/// Runs a daemon until `shutdown` says so.
///
/// # Errors
/// A share's directory cannot be made, or what [`Daemon::run`] says.
pub async fn run(config: Checked, shutdown: Shutdown) -> anyhow::Result<()> {
    for ShareConfig { name, path, .. } in &config.shares {
        // One level only: a missing parent is a typing error or a mount that is not there.
        match std::fs::create_dir(path) {
            Ok(()) => tracing::info!(share = %name, path = %shown(path), "made the share's directory"),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("share {name}: cannot make {}", shown(path)));
            }
        }
    }
    let Checked { state_dir, listen, shares, masters, .. } = config;
    let mut mirrors = JoinSet::new();
    for master in masters {
        let (name, shutdown) = (master.name.clone(), shutdown.clone());
        let mirror = mirror(master, &state_dir);
        mirrors.spawn(async move {
            let ended = mirror.run(shutdown).await;
            // The other shares go on; the exit code tells of this one.
            if let Err(error) = &ended {
                tracing::error!(share = name, "it is not mirrored: {error}");
            }
            (name, ended)
        });
    }
    // A machine that only is a master listens to nobody.
    if !shares.is_empty() {
        Daemon::run(DaemonConfig { state_dir, listen, shares }, shutdown).await?;
    }
    let mut failed = Ok(());
    while let Some(ended) = mirrors.join_next().await {
        let (name, ended) = ended.context("a mirror ended with a panic")?;
        failed = failed.and(ended.with_context(|| format!("share {name}")));
    }
    failed
}

/// The master's part of a share.
fn mirror(master: Master, state_dir: &std::path::Path) -> Mirror {
    let Master { name, path, replicas, exclude, settle_max, rescan } = master;
    let monitor = monitor::Log::new(name, replicas.iter().map(label).collect());
    let request = PushRequest {
        source: path,
        destinations: replicas,
        state_dir: state_dir.to_owned(),
        policy: Policy { rules: exclude, ..Policy::default() },
        bandwidth: None,
        compress: Compress::Auto,
        history: None,
    };
    Mirror::new(MirrorConfig { request, settle_max, rescan }, Arc::new(monitor))
}

fn serve(raw: &Raw) -> u8 {
    let config = match raw.check() {
        Ok(config) => config,
        Err(error) => return refuse(USAGE, &error.into()),
    };
    log::start(config.log_format, config.log_level);
    match signals::serve(|shutdown| run(config, shutdown)) {
        Ok(()) => DONE,
        Err(error) => refuse(FAILED, &error),
    }
}

/// Prints one line that depends on the state directory alone: a token or an identity.
fn print(raw: &Raw, line: impl FnOnce(&std::path::Path) -> anyhow::Result<String>) -> u8 {
    let said = raw.state_dir().map_err(anyhow::Error::from).and_then(|dir| line(&dir));
    match said.and_then(|line| writeln!(std::io::stdout(), "{line}").context("cannot write to standard output")) {
        Ok(()) => DONE,
        Err(error) => refuse(FAILED, &error),
    }
}

fn refuse(exit: u8, error: &anyhow::Error) -> u8 {
    // A closed standard error must not end in a panic.
    let _ = writeln!(std::io::stderr(), "error: {}", told(error));
    exit
}

/// The error with its causes, leaving out those that it tells itself.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
