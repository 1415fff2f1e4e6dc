//! One replica that follows a tree: brought to the newest version, and kept there over one connection for as long as that
//! lasts. What it missed is in the index, so that nothing is queued for it, however long it was away.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};

use super::delivery::{Delivered, Delivery, Session, SourceEvent, broken, interrupted};
use super::dial::{Dialed, dial};
use super::difference::Difference;
use super::source::Decided;
use crate::backoff::Backoff;
use crate::fs;
use crate::manifest::{Time, VersionId};
use crate::monitor::Problem;
use crate::roles::Shutdown;
use crate::wire::FOLLOW;

/// The newest version, which is in the master's index, and how it differs from the one before.
pub struct News {
    /// The version.
    pub decided: Arc<Decided>,
    /// From the one before.
    pub difference: Arc<Difference>,
}

impl News {
    /// The version's identity.
    pub fn id(&self) -> VersionId {
        self.decided.version.id()
    }
}

/// How a replica fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Following {
    /// Whether there is a session with it.
    pub connected: bool,
    /// The version that it acknowledged last in this process, as the number and the identity.
    pub version: Option<(u64, VersionId)>,
    /// When that was.
    pub since: Option<Time>,
    /// What went wrong last, until a version is acknowledged.
    pub problem: Option<String>,
    /// When it is tried again, if it is waited for.
    pub retry: Option<Duration>,
}

/// Where [`Following`] is kept for whoever asks.
pub type Fate = Arc<Mutex<Following>>;

impl Delivery {
    /// Keeps the replica at the newest version until shutdown. What goes wrong is told to the monitor and tried again,
    /// later each time.
    pub async fn follow(self, mut news: watch::Receiver<Option<Arc<News>>>, fate: Fate, mut shutdown: Shutdown) {
        let mut backoff = Backoff::default();
        loop {
            let ended = self.keep_up(&mut news, &fate, &mut backoff, &mut shutdown).await;
            if *shutdown.borrow() {
                return;
            }
            let wait = backoff.next(random());
            update(&fate, |fate| {
                fate.connected = false;
                fate.retry = Some(wait);
                if let Err(problem) = &ended {
                    fate.problem = Some(problem.reason.clone());
                }
            });
            if let Err(problem) = ended {
                self.monitor.problem(Some(self.dest), &problem);
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// One connection, and a session on it for each version. Ends when one did not make the replica identical, or when the
    /// replica can have but one session.
    async fn keep_up(
        &self,
        news: &mut watch::Receiver<Option<Arc<News>>>,
        fate: &Fate,
        backoff: &mut Backoff,
        shutdown: &mut Shutdown,
    ) -> Result<(), Problem> {
        let for_replica = shutdown.clone();
        let dialed = tokio::select! {
            dialed = dial(&self.destination, &self.state_dir, &for_replica) => dialed?,
            _ = shutdown.wait_for(|stop| *stop) => return Err(interrupted()),
        };
        let Dialed { connection, share, replica, embedded } = dialed;
        tracing::info!(to = %connection.remote(), peer = %connection.peer(), "connected");
        let mut acknowledged = None;
        let ended = loop {
            let opened = Session::open(self, connection.clone(), share.clone(), FOLLOW).await;
            let session = match opened {
                Ok(session) => session,
                Err(error) => break Err(broken(&error)),
            };
            update(fate, |fate| (fate.connected, fate.retry) = (true, None));
            let (events, mut source) = mpsc::unbounded_channel();
            let drifted = session.drifted();
            let run = session.run(&mut source, shutdown, &replica);
            let Delivered { version, open, .. } = tokio::select! {
                delivered = run => delivered,
                never = tell(news, acknowledged, &drifted, events) => match never {},
            };
            let Some(version) = version else { break Ok(()) };
            acknowledged = Some(version.id());
            let version = Some((version.number, version.id()));
            update(fate, |fate| (fate.version, fate.since, fate.problem) = (version, Some(fs::clock::now()), None));
            backoff.reset();
            if !open {
                break Ok(());
            }
        };
        if let Some(embedded) = embedded {
            let _ = embedded.await;
        }
        ended
    }
}

/// Tells a session when there is a version that is not the one that the replica has acknowledged, or any once the replica
/// has drifted from that, and stays.
async fn tell(
    news: &mut watch::Receiver<Option<Arc<News>>>,
    acknowledged: Option<VersionId>,
    drifted: &Notify,
    events: mpsc::UnboundedSender<SourceEvent>,
) -> std::convert::Infallible {
    let is_news = |news: &Option<Arc<News>>| news.as_ref().is_some_and(|news| Some(news.id()) != acknowledged);
    let heard = tokio::select! {
        heard = news.wait_for(is_news) => heard.map(drop),
        () = drifted.notified() => Ok(()),
    };
    // Whoever makes the news ends only on shutdown, which the session sees itself; nor is one heard that is over.
    if heard.is_ok() && news.wait_for(Option::is_some).await.is_ok() {
        let _ = events.send(SourceEvent::Published(news.clone()));
    }
    let _events = events;
    std::future::pending().await
}

fn update(fate: &Fate, change: impl FnOnce(&mut Following)) {
    change(&mut fate.lock().unwrap_or_else(PoisonError::into_inner));
}

/// For waits that shall differ; any number does if the kernel has none.
fn random() -> u64 {
    fs::random().map_or(0, u64::from_le_bytes)
}
