//! One replica that follows a tree: brought to the newest version, and kept there over one connection for as long as that
//! lasts. What it missed is in the index, so that nothing is queued for it, however long it was away.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::delivery::{Delivered, Delivery, Hold, Next, Session, broken, interrupted};
use super::dial::{Dialed, dial};
use super::fate::{Fate, Wish};
use super::feed::{Due, Feed};
use super::news::News;
use crate::backoff::{Backoff, LONGEST};
use crate::control::DeliveryStatus;
use crate::fs;
use crate::manifest::VersionId;
use crate::monitor::Problem;
use crate::path::RelPath;
use crate::roles::{Shutdown, memory};
use crate::transport::Connection;

/// The least time between two sessions with a replica on which something keeps failing: each begins with a look at all that
/// it has.
const PAUSE: Duration = Duration::from_secs(2);

/// The same after the first that failed: most often a file was gone before it was sent, and a newer version tells of that.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// How many times as long as such a session took it is left alone, for what fails may be sent each time; but no longer than
/// [`LONGEST`].
const SHARE: u32 = 10;

impl Delivery {
    /// Keeps the replica at the newest version until it is told to end. What goes wrong is told to the monitor and tried
    /// again, later each time.
    pub async fn follow(self, mut news: watch::Receiver<Option<Arc<News>>>, fate: Arc<Fate>) {
        let mut wish = fate.wish.subscribe();
        let mut backoff = Backoff::default();
        loop {
            match wish.wait_for(|wish| !matches!(wish, Wish::Rest | Wish::Pause)).await.as_deref() {
                Ok(Wish::Follow) => {}
                _ => return,
            }
            let (halt, mut halted) = watch::channel(false);
            let halting = async {
                // Nobody wishes any more if its place is gone.
                let _ = wish.wait_for(|wish| *wish != Wish::Follow).await;
                halt.send_replace(true);
                std::future::pending().await
            };
            let ended = tokio::select! {
                ended = self.keep_up(&mut news, &fate, &mut backoff, &mut halted) => ended,
                never = halting => match never {},
            };
            let is_halted = *halted.borrow();
            let wait = if is_halted { Duration::ZERO } else { backoff.next(random()) };
            fate.update(|fate| {
                (fate.connection, fate.is_current, fate.drift) = (None, false, None);
                fate.retry = (!is_halted).then(|| Instant::now() + wait);
                if let (Err(problem), false) = (&ended, is_halted) {
                    // Whether it is held still is not known.
                    (fate.problem, fate.held, fate.was_held) = (Some(problem.to_string()), false, false);
                }
            });
            if is_halted {
                continue;
            }
            if let Err(problem) = ended {
                self.monitor.problem(Some(self.dest), &problem);
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = fate.again.notified() => {}
                _ = wish.wait_for(|wish| *wish != Wish::Follow) => {}
            }
        }
    }

    /// One connection, and on it a session for each version, for each stretch of a large one, and after a while for one that did
    /// not make the replica identical. Ends when there can be no other.
    async fn keep_up(
        &self,
        news: &mut watch::Receiver<Option<Arc<News>>>,
        fate: &Fate,
        backoff: &mut Backoff,
        halted: &mut Shutdown,
    ) -> Result<(), Problem> {
        let for_replica = halted.clone();
        let dialed = tokio::select! {
            dialed = dial(&self.dialer, &self.destination, &self.state_dir, &for_replica) => dialed?,
            _ = halted.wait_for(|stop| *stop) => return Err(interrupted()),
        };
        let Dialed { connection, share, replica, embedded } = dialed;
        tracing::info!(to = %connection.remote(), share, peer = %connection.peer(), "connected");
        // Why it could not be reached is over.
        fate.update(|fate| fate.problem = fate.problem.take().filter(|_| fate.held || fate.was_held));
        let mut looks = fate.looks.subscribe();
        let (mut acknowledged, mut next, mut is_known) = (None, None, false);
        // Of the looks that are asked for.
        let mut due = Due { looked: 0, goes_first: false };
        // How many sessions in a row did not make it identical.
        let mut in_a_row = 0;
        // How far it has come in stretches, and what it took so far to bring it to a version.
        let (mut reached, mut carried): (Option<RelPath>, _) = (None, (0, Duration::ZERO));
        let ended = loop {
            if let Some(news) = &*news.borrow() {
                // What is released is not said of what came much later. Once it is said, it holds for whatever is the newest version
                // when the replica has looked at its tree: that may take longer, and what comes to that is guarded here as well.
                self.permits.releases(news.decided.version.number);
            }
            let asked = *looks.borrow();
            let is_due = asked > due.looked;
            let opened = Session::open(self, connection.clone(), share.clone(), Some((fate, is_due)), next).await;
            let session = match opened {
                Ok(session) => session,
                Err(error) => break Err(broken(&error)),
            };
            // Who is told of every change need not hear of a session that goes on behind another.
            if !is_known {
                fate.update(|fate| (fate.connection, fate.retry) = (Some(connection.clone()), None));
                is_known = true;
            }
            if session.looks() {
                // It acknowledges what it has, whatever that is, so that it is known to have looked.
                (due, acknowledged) = (Due { looked: asked, goes_first: false }, None);
            }
            let before = connection.traffic();
            let ends = session.goes_on();
            let mut feed = Feed::Mirror { news: &mut *news, acknowledged, looks: &mut looks, due, ends };
            let delivered = session.run(&mut feed, halted, &replica).await;
            let traffic = connection.traffic();
            let wire_bytes = (traffic.sent + traffic.received).saturating_sub(before.sent + before.received);
            let Delivered { version, tried, hold, said_released, problem, took, unhealed, report, .. } = delivered;
            next = delivered.next;
            (carried.0, carried.1) = (carried.0 + wire_bytes, carried.1 + took);
            if let Some(Next::Reached(last, entries)) = &next {
                // Who acknowledges the same again and again gets nowhere.
                if reached.as_ref().is_none_or(|before| before < last) {
                    (reached, acknowledged) = (Some(last.clone()), None);
                    backoff.reset();
                    fate.update(|fate| {
                        (fate.is_current, fate.held, fate.was_held, fate.came) = (false, false, false, *entries);
                        fate.problem = problem.map(|problem| problem.to_string());
                    });
                    memory::trim_after(wire_bytes);
                    continue;
                }
                next = Some(Next::Again);
            }
            if let Some(Next::Anew) = next {
                acknowledged = None;
                continue;
            }
            reached = None;
            let Some(version) = version else {
                if said_released && hold == Some(Hold::Release) {
                    // What was decided was another thing.
                    self.permits.withdraw();
                }
                fate.update(|fate| {
                    // A session that was open before it was decided did not say so: the next one does.
                    let decided = hold.map(|hold| match hold {
                        Hold::Release => self.permits.is_released(),
                        Hold::Adoption => self.permits.adopts(),
                        Hold::Tree => false,
                    });
                    (fate.held, fate.was_held) = (decided.is_some_and(|decided| !decided), false);
                    if fate.held && hold == Some(Hold::Adoption) {
                        fate.is_anothers = true;
                        // It went with an adoption that came to nothing, and must not lie in wait for another day.
                        self.permits.withdraw();
                    }
                    fate.problem = problem.map(|problem| problem.to_string()).or(fate.problem.take());
                });
                let (Some(Next::Again), Some(tried)) = (&next, tried) else { break Ok(()) };
                let least = pause(took, in_a_row);
                in_a_row = in_a_row.saturating_add(1);
                let wait = backoff.next(random()).max(least);
                fate.update(|fate| (fate.is_current, fate.retry) = (false, Some(Instant::now() + wait)));
                (is_known, acknowledged) = (false, None);
                another(news, tried, least..wait, fate, &connection, halted).await;
                continue;
            };
            let (number, id) = version;
            acknowledged = Some(id);
            due.goes_first = is_due && asked > due.looked;
            fate.update(|fate| {
                (fate.version, fate.is_current, fate.looked) = (Some(version), true, due.looked);
                (fate.problem, fate.held, fate.was_held) = (None, false, false);
                (fate.is_anothers, fate.drift) = (false, unhealed);
                // A look that found nothing to do is no part of what it took.
                if report.stats.changes() > 0 || fate.delivery.as_ref().is_none_or(|last| last.version != number) {
                    let (wire_bytes, seconds) = (carried.0, carried.1.as_secs_f64());
                    fate.delivery = Some(DeliveryStatus { version: number, wire_bytes, seconds });
                }
            });
            (carried, in_a_row) = ((0, Duration::ZERO), 0);
            backoff.reset();
            self.monitor.recovered(Some(self.dest));
            memory::trim_after(wire_bytes);
            if next.is_none() {
                break Ok(());
            }
        };
        if let Some(embedded) = embedded {
            let _ = embedded.await;
        }
        ended
    }
}

/// How long a replica is left alone after a session that did not make it identical, though there may be a newer version:
/// as long as the session took, and after each further one in a row twice as long, up to [`SHARE`] times.
fn pause(took: Duration, in_a_row: u32) -> Duration {
    let longest = PAUSE.max(took.saturating_mul(SHARE)).min(LONGEST);
    FIRST_PAUSE.max(took).saturating_mul(1 << in_a_row.min(16)).min(longest)
}

/// Waits until there is a point in another session with a replica that did not come to be at the version that was tried: a
/// newer one after the one time, or any after the other. What else changed is not kept waiting for what fails.
async fn another(
    news: &mut watch::Receiver<Option<Arc<News>>>,
    tried: VersionId,
    wait: Range<Duration>,
    fate: &Fate,
    connection: &Connection,
    halted: &mut Shutdown,
) {
    let is_newer = |news: &Option<Arc<News>>| news.as_ref().is_some_and(|news| news.id() != tried);
    let newer = async {
        tokio::time::sleep(wait.start).await;
        // Whoever makes the news ends only on shutdown.
        if news.wait_for(is_newer).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = newer => {}
        () = tokio::time::sleep(wait.end) => {}
        () = fate.again.notified() => {}
        _ = connection.closed() => {}
        _ = halted.wait_for(|stop| *stop) => {}
    }
}

/// For waits that shall differ; any number does if the kernel has none.
fn random() -> u64 {
    fs::random().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_once_waits_a_moment_and_what_goes_on_failing_ten_times_as_long_as_it_took() {
        let pauses = |took| [0, 1, 5, 6, 99].map(|in_a_row| pause(Duration::from_millis(took), in_a_row).as_millis());
        assert_eq!(pauses(3), [50, 100, 1600, 2000, 2000]);
        assert_eq!(pauses(1000), [1000, 2000, 10_000, 10_000, 10_000]);
        assert_eq!(pauses(90_000), [60_000; 5]);
    }
}
