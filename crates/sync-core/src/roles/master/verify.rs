//! Whether a replica that follows is what it should be: a push that changes nothing, while its follower rests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::delivery::Delivery;
use super::fate::{Fate, Wish};
use super::feed::SourceEvent;
use super::handle::{Follower, MirrorHandle, Opened, OrderError};
use super::news::News;
use crate::control::Reply;
use crate::destination::label;
use crate::monitor::{Item, Monitor, Problem};
use crate::options::{Policy, PushRequest};

/// How long a follower may take to come to rest.
const REST: Duration = Duration::from_secs(10);

impl MirrorHandle {
    /// Compares a replica with the newest version: what it knows of its tree after a look at that, or with `deep` every
    /// byte of it. Tells each difference, and in the end a [`Reply::Verified`]. Dropping the receiver ends it.
    ///
    /// # Errors
    /// There is no such replica, or no version to compare it with.
    pub fn verify(&self, replica: &str, deep: bool) -> Result<mpsc::UnboundedReceiver<Reply>, OrderError> {
        let follower = self.follower(replica)?;
        let opened = self.opened()?;
        if let (None, Some(why)) = (&*opened.newest.borrow(), self.obstacle()) {
            return Err(OrderError(format!("{why}; nothing was compared")));
        }
        let (replies, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let name = label(&follower.destination);
            let (differs, first) = (AtomicBool::new(false), Mutex::default());
            let found = Arc::new(Found { name: name.clone(), replies: replies.clone(), differs, first });
            let (halt, halted) = watch::channel(false);
            let mut newest = opened.newest.clone();
            let id = |newest: &watch::Receiver<Option<Arc<News>>>| newest.borrow().as_ref().map(|news| news.id());
            let wanted = id(&newest);
            let comparing = compare(&follower, opened, deep, Arc::clone(&found), halted);
            tokio::pin!(comparing);
            // Nobody listens, or the tree is opened anew, which waits for all who have it open.
            let over = async {
                let closed = async { while newest.changed().await.is_ok() {} };
                tokio::select! {
                    () = replies.closed() => {}
                    () = closed => {}
                }
            };
            let mut problems = tokio::select! {
                problems = &mut comparing => problems,
                () = over => {
                    halt.send_replace(true);
                    comparing.await
                }
            };
            if found.differs.load(Ordering::Relaxed) && id(&newest) != wanted {
                problems.push("the share changed meanwhile, so this may be no more than that; try again".to_owned());
            }
            back_to_following(&follower.fate).await;
            let identical = problems.is_empty() && !found.differs.load(Ordering::Relaxed);
            let _ = replies.send(Reply::Verified { replica: name, identical, problems });
        });
        Ok(receiver)
    }
}

/// Waits until the replica is followed again, so that whoever asks next does not hear that it is behind.
async fn back_to_following(fate: &Fate) {
    let is_followed = || {
        let following = fate.get();
        following.is_current || following.retry.is_some() || *fate.wish.borrow() != Wish::Follow
    };
    let followed = async {
        while !is_followed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(REST, followed).await;
}

/// Says what is in the way, if something is.
async fn compare(
    follower: &Follower,
    opened: Opened,
    deep: bool,
    found: Arc<Found>,
    halted: watch::Receiver<bool>,
) -> Vec<String> {
    let Opened { source, newest, request } = opened;
    let wanted = newest.borrow().as_ref().map(|news| (news.decided.version.number, news.id()));
    let Some(wanted) = wanted else { return vec!["there is no version yet".to_owned()] };
    if *follower.fate.wish.borrow() == Wish::Pause {
        return vec!["it is paused: `synccli replica resume` lets it follow again".to_owned()];
    }
    let following = follower.fate.get();
    if following.version != Some(wanted) {
        let why = following.problem.map(|why| format!(": {why}")).unwrap_or_default();
        return vec![format!("it does not have version {} yet{why}", wanted.0)];
    }
    let Some(_resting) = Resting::begin(&follower.fate).await else {
        return vec!["it is being brought to a version; try again".to_owned()];
    };
    let policy = Policy { dry_run: true, itemize: true, checksum: deep, ..request.policy.clone() };
    let request = PushRequest { policy, adopt: false, ..request };
    let monitor: Arc<dyn Monitor> = Arc::<Found>::clone(&found);
    let delivery = Delivery::of(&request, follower.destination.clone(), &source, monitor);
    let (events, heard) = mpsc::unbounded_channel();
    let _ = events.send(SourceEvent::Published(newest));
    let delivered = delivery.run(heard, halted).await;
    drop(events);
    match (delivered.report.exact, delivered.report.problems, delivered.hold.and(delivered.problem)) {
        (true, 0, _) => Vec::new(),
        (_, _, Some(problem)) => vec![problem.to_string()],
        _ => {
            let first = found.first.lock().unwrap_or_else(PoisonError::into_inner).take();
            let why = first.unwrap_or_else(|| "what was in the way is in the daemon's log".to_owned());
            vec![format!("it could not be compared: {why}")]
        }
    }
}

/// A follower that is at rest for as long as this lives.
struct Resting<'a>(&'a Fate);

impl<'a> Resting<'a> {
    /// `None` if it does not come to rest, or does not follow.
    async fn begin(fate: &'a Fate) -> Option<Self> {
        let follows = fate.wish.send_if_modified(|wish| {
            let follows = *wish == Wish::Follow;
            if follows {
                *wish = Wish::Rest;
                fate.is_compared.store(true, Ordering::Relaxed);
            }
            follows
        });
        let resting = follows.then_some(Self(fate))?;
        let rested = tokio::time::timeout(REST, async {
            while fate.get().connection.is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        rested.await.is_ok().then_some(resting)
    }
}

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        // Unless it was told something else meanwhile.
        self.0.wish.send_if_modified(|wish| {
            self.0.is_compared.store(false, Ordering::Relaxed);
            let rests = *wish == Wish::Rest;
            if rests {
                *wish = Wish::Follow;
            }
            rests
        });
    }
}

/// Hears what differs.
struct Found {
    name: String,
    replies: mpsc::UnboundedSender<Reply>,
    differs: AtomicBool,
    /// What went wrong first.
    first: Mutex<Option<String>>,
}

impl Monitor for Found {
    fn problem(&self, _: Option<usize>, problem: &Problem) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| problem.to_string());
        let path = problem.path.as_ref().map(ToString::to_string);
        tracing::warn!(replica = self.name, path, "verify: {}", problem.reason);
    }

    fn item(&self, _: usize, item: &Item) {
        self.differs.store(true, Ordering::Relaxed);
        let (code, path) = (item.code.clone(), item.path.display());
        let _ = self.replies.send(Reply::Differs { replica: self.name.clone(), code, path });
    }
}
