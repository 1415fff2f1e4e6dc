//! The daemon's shell: arguments, configuration (raw, then checked), logging and signals around
//! [`sync_core::roles::replica::Daemon`]. It is a library, so that tests can run a daemon in their own process.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a program reads its environment and its configuration, and looks at the directories named there"
)]

mod args;
pub mod config;
mod control;
mod log;
mod masters;
mod monitor;
mod notify;
mod service;
mod signals;

use std::ffi::OsString;
use std::io::{ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::generate;
use clap_mangen::Man;
use sync_core::control::SOCKET;
use sync_core::fs::StateDir;
use sync_core::roles::replica::{Daemon, DaemonConfig, ShareConfig};
use sync_core::roles::{Shutdown, pairing};
use tokio::sync::{mpsc, watch};

use args::{Cli, Verb};
use config::{Checked, Raw, shown};
use control::Socket;
use notify::Notifier;
use service::{Reload, Service};

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
    // What teaches needs no configuration.
    match cli.verb {
        Some(Verb::Completions { shell }) => {
            return show(|script| {
                generate(shell, &mut Cli::command(), "syncd", script);
                Ok(())
            });
        }
        Some(Verb::Man) => return show(|page| Man::new(Cli::command()).render(page)),
        _ => {}
    }
    let raw = match cli.raw() {
        Ok(raw) => raw,
        Err(error) => return refuse(USAGE, &error),
    };
    match cli.verb {
        Some(Verb::Invite) => print(&raw, |dir| {
            let token = pairing::invite(dir)?;
            let nobody =
                |error: std::io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused);
            if UnixStream::connect(dir.join(SOCKET)).is_err_and(nobody) {
                let text =
                    format!("note: no syncd runs with the state directory {}: start one before you pair\n", shown(dir));
                let _ = std::io::stderr().write_all(text.as_bytes());
            }
            Ok(token.to_string())
        }),
        Some(Verb::Id) => print(&raw, |dir| Ok(pairing::id(dir)?.to_string())),
        _ => serve(cli, &raw),
    }
}

/// Prints what `write` writes.
fn show(write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> u8 {
    let mut page = Vec::new();
    match write(&mut page).and_then(|()| std::io::stdout().write_all(&page)) {
        Ok(()) => DONE,
        // Whoever read has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => DONE,
        Err(error) => refuse(FAILED, &error.into()),
    }
}

/// Runs a daemon until `shutdown` says so. `reload` reads the configuration again, whenever `hangups` says so or
/// `synccli reload` does; `file` is where it comes from.
///
/// # Errors
/// A share's directory cannot be made, another daemon runs with the state directory, what [`Daemon::listen`] says, or why a
/// share could not be mirrored.
pub async fn run(
    config: Checked,
    file: Option<PathBuf>,
    reload: Option<Box<Reload>>,
    mut hangups: mpsc::Receiver<()>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    for ShareConfig { name, path, .. } in &config.shares {
        make_share(name, path)?;
    }
    let Checked { state_dir, listen, shares, .. } = config.clone();
    StateDir::open(&state_dir)?;
    let socket = Socket::bind(&state_dir).await?;
    let changed = watch::channel(()).0;
    // A machine that only is a master listens to nobody.
    let daemon = Daemon::listen(DaemonConfig { state_dir, listen, shares }, changed.clone())?;
    let service = Arc::new(Service::start(config, daemon.handle(), changed, file, reload, Notifier::from_env()));
    let answering = tokio::spawn(socket.serve(Arc::clone(&service), shutdown.clone()));
    let reloading = tokio::spawn({
        let service = Arc::clone(&service);
        async move {
            while hangups.recv().await.is_some() {
                if let Err(error) = service.reload().await {
                    tracing::error!("reload: {error}");
                }
            }
        }
    });
    let telling = service.notifier.is_heard().then(|| {
        let (service, shutdown) = (Arc::clone(&service), shutdown.clone());
        let alive = Arc::clone(&service);
        service.notifier.ready(&tokio::task::block_in_place(|| service.status()));
        let alive = tokio::spawn(async move { notify::keep_alive(&alive.notifier).await });
        let following = async move {
            notify::follow(&service.notifier, service.changes(), || service.status(), shutdown).await;
        };
        (alive, tokio::spawn(following))
    });
    // When nothing is left to do, nobody needs to ask for the end.
    let (end, ended) = watch::channel(false);
    let relaying = tokio::spawn({
        let (mut shutdown, end) = (shutdown.clone(), end.clone());
        async move {
            let _ = shutdown.wait_for(|stop| *stop).await;
            end.send_replace(true);
        }
    });
    let mirroring = async {
        let mirrors = service.masters.run(shutdown.clone(), || service.replicas.serves()).await;
        end.send_replace(true);
        mirrors
    };
    let ((), mirrors) = tokio::join!(daemon.run(ended), mirroring);
    relaying.abort();
    if let Some((alive, following)) = telling {
        alive.abort();
        if *shutdown.borrow() {
            // That it ends is said before it has ended.
            let _ = following.await;
        } else {
            following.abort();
        }
    }
    reloading.abort();
    answering.abort();
    // The socket goes with it.
    let _ = answering.await;
    mirrors
}

/// Makes a share's directory if it is missing. One level only: a missing parent is a typing error or a mount that is not
/// there.
pub(crate) fn make_share(name: &str, path: &std::path::Path) -> anyhow::Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => tracing::info!(share = %name, path = %shown(path), "made the share's directory"),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(|| format!("share {name}: cannot make {}", shown(path))),
    }
    Ok(())
}

fn serve(cli: args::Cli, raw: &Raw) -> u8 {
    let config = match raw.check() {
        Ok(config) => config,
        Err(error) => return refuse(USAGE, &error.into()),
    };
    log::start(config.log_format, config.log_level);
    let file = cli.file();
    let reload: Box<Reload> = Box::new(move || Ok(cli.raw()?.check()?));
    match signals::serve(|shutdown, hangups| run(config, file, Some(reload), hangups, shutdown)) {
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
