//! Ends work promptly on SIGINT and SIGTERM: the first asks it to clean up, a second, a moment later, ends the process at once.

use std::future::Future;
use std::io;
use std::time::{Duration, Instant};

use sync_core::roles::Shutdown;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

use crate::exit::Exit;

/// How long work may clean up after the first signal.
const GRACE: Duration = Duration::from_secs(5);

/// What comes within this time of the first signal is the same request: timeout(1) signals a program and then its whole group, and so
/// do some shells.
const SAME: Duration = Duration::from_millis(300);

/// How a piece of work ended.
#[derive(Debug)]
pub enum Outcome<T> {
    /// By itself.
    Ended(T),
    /// By a signal; `cleaned` tells whether it came to an end within [`GRACE`].
    Signalled { exit: Exit, cleaned: bool },
}

/// Runs `work` on threads of its own until it ends or a signal ends it.
///
/// # Errors
/// No threads or no signal handler can be had, or the work panicked.
pub fn run<T, F>(work: impl FnOnce(Shutdown) -> F) -> io::Result<Outcome<T>>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let workers = Builder::new_multi_thread().enable_all().build()?;
    // Signals are waited for on this thread alone: work that keeps every worker busy cannot delay them.
    let waiting = Builder::new_current_thread().enable_all().build()?;
    // Before any work: what a signal ends from then on is cleaned up.
    let signals = {
        let _entered = waiting.enter();
        Signals { int: signal(SignalKind::interrupt())?, term: signal(SignalKind::terminate())? }
    };
    let (ask, shutdown) = watch::channel(false);
    let task = workers.spawn(work(shutdown));
    let outcome = waiting.block_on(wait(signals, task, &ask));
    // Blocking calls of abandoned work must not hold the process back.
    workers.shutdown_background();
    outcome
}

async fn wait<T>(mut signals: Signals, mut task: JoinHandle<T>, ask: &watch::Sender<bool>) -> io::Result<Outcome<T>> {
    let ended = |result: Result<T, JoinError>| result.map(Outcome::Ended).map_err(io::Error::other);
    let exit = tokio::select! {
        result = &mut task => return ended(result),
        exit = signals.next() => exit,
    };
    ask.send_replace(true);
    let first = Instant::now();
    let again = async {
        loop {
            let again = signals.next().await;
            if first.elapsed() >= SAME {
                return again;
            }
        }
    };
    let cleaned = tokio::select! {
        _ = &mut task => true,
        () = tokio::time::sleep(GRACE) => false,
        again = again => std::process::exit(again.code().into()),
    };
    Ok(Outcome::Signalled { exit, cleaned })
}

struct Signals {
    int: Signal,
    term: Signal,
}

impl Signals {
    async fn next(&mut self) -> Exit {
        tokio::select! {
            _ = self.int.recv() => Exit::Interrupted,
            _ = self.term.recv() => Exit::Terminated,
        }
    }
}
