//! Ends the daemon on SIGINT and SIGTERM: each push has less than five seconds to stop between two entries and clear up.

use std::future::Future;
use std::io;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sync_core::roles::Shutdown;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How long the daemon may take to end. Cutting it off loses nothing: every visible file is whole at any moment.
const GRACE: Duration = Duration::from_millis(4500);

/// For so long after the first signal others are taken for the same.
const ONCE: Duration = Duration::from_millis(200);

/// Runs `work` on threads of its own until it ends or a signal ends it. It is told of SIGHUP as well.
///
/// # Errors
/// What `work` says; or it did not end in time.
pub fn serve<F>(work: impl FnOnce(Shutdown, mpsc::Receiver<()>) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let workers =
        Builder::new_multi_thread().worker_threads(workers()).enable_all().build().context("cannot start threads")?;
    // Signals are waited for on this thread alone: work that keeps every worker busy cannot delay them.
    let waiting = Builder::new_current_thread().enable_all().build().context("cannot wait for signals")?;
    // Before any work, which tells that the daemon is ready: a signal from then on ends it in order.
    let signals = {
        let _entered = waiting.enter();
        Signals::new().context("cannot wait for signals")?
    };
    let (ask, shutdown) = watch::channel(false);
    // One that nobody has taken up yet stands for all that follow.
    let (hangup, hangups) = mpsc::channel(1);
    let task = workers.spawn(work(shutdown, hangups));
    let result = waiting.block_on(wait(signals, task, &ask, &hangup));
    workers.shutdown_background();
    result
}

/// Threads for what waits for the network, and to encrypt: one for two cores. The others are for what has threads of its own:
/// reading, hashing, writing, the index. Where there are more they wake each other for every change that goes to many replicas:
/// measured on two cores with 8 of them, that is an eighth of the CPU time; and a first push takes as long with half of the threads.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

struct Signals {
    int: Signal,
    term: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            hup: signal(SignalKind::hangup())?,
        })
    }
}

async fn wait(
    Signals { mut int, mut term, mut hup }: Signals,
    mut task: JoinHandle<anyhow::Result<()>>,
    ask: &watch::Sender<bool>,
    hangup: &mpsc::Sender<()>,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            result = &mut task => return result.context("the daemon ended unexpectedly")?,
            _ = int.recv() => break tracing::info!("SIGINT: ending"),
            _ = term.recv() => break tracing::info!("SIGTERM: ending"),
            _ = hup.recv() => drop(hangup.try_send(())),
        }
    }
    ask.send_replace(true);
    // What sends a signal may send it twice, to the process and to its group, as timeout(1) does: that is no impatience.
    let once = tokio::time::sleep(ONCE);
    tokio::pin!(once);
    loop {
        tokio::select! {
            result = &mut task => return result.context("the daemon ended unexpectedly")?,
            () = &mut once => break,
            _ = int.recv() => {}
            _ = term.recv() => {}
        }
    }
    tokio::select! {
        result = &mut task => result.context("the daemon ended unexpectedly")?,
        () = tokio::time::sleep(GRACE) => bail!("work did not end in time and was cut off; the next session repairs it"),
        _ = int.recv() => bail!("cut off by a second signal"),
        _ = term.recv() => bail!("cut off by a second signal"),
    }
}
