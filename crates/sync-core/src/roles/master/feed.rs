//! What a session is told to bring its replica to: by a push as it reads its source, by a mirror whenever there is a newer version.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::difference::Difference;
use super::news::News;
use super::source::Decided;
use crate::manifest::VersionId;
use crate::wire::{Draft, Offered};

/// What there is to say of the source.
#[derive(Clone)]
pub enum SourceEvent {
    /// Contents that were just hashed.
    Hashed(Arc<Vec<Offered>>),
    /// What can be copied of a file that is being read.
    Draft(Arc<Draft>),
    /// The version to bring everybody to, how it differs from the one before, and whether it is in the index.
    Decided(Arc<Decided>, Arc<Difference>, bool),
    /// It is, now or already.
    Committed,
    /// There is a version that is in the index: the newest when this is heard.
    Published(watch::Receiver<Option<Arc<News>>>),
}

/// What a session hears.
pub enum Heard {
    /// This.
    Event(SourceEvent),
    /// The replica is to look at all of its tree.
    Look,
    /// Nothing any more: the source failed as a whole, and said why.
    Failed,
}

/// A look that a replica is to take.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    /// How many were asked for before its last one.
    pub looked: u64,
    /// Whether it goes before what is new: else, with new versions all the time, there would be none.
    pub goes_first: bool,
}

/// What is told once, and again to each further session.
pub struct Once<'a> {
    source: &'a mut mpsc::UnboundedReceiver<SourceEvent>,
    /// The version, once it is known.
    decided: Option<SourceEvent>,
    /// What comes before anything else.
    again: VecDeque<SourceEvent>,
}

impl<'a> Once<'a> {
    /// By who reads the source.
    pub fn new(source: &'a mut mpsc::UnboundedReceiver<SourceEvent>) -> Self {
        Self { source, decided: None, again: VecDeque::new() }
    }

    /// What comes next; `None` if the source failed as a whole. Cancel safe.
    async fn next(&mut self) -> Option<SourceEvent> {
        if let Some(event) = self.again.pop_front() {
            return Some(event);
        }
        let event = self.source.recv().await?;
        if let SourceEvent::Decided(decided, difference, _) = &event {
            self.decided = Some(SourceEvent::Decided(Arc::clone(decided), Arc::clone(difference), true));
        }
        Some(event)
    }
}

/// Where it hears that.
pub enum Feed<'a> {
    /// From a push, or whoever else tells a session once.
    Push(Once<'a>),
    /// From a mirror.
    Mirror {
        /// The newest version.
        news: &'a mut watch::Receiver<Option<Arc<News>>>,
        /// The one that the replica acknowledged last on this connection.
        acknowledged: Option<VersionId>,
        /// How many looks at all of their trees were asked of the replicas.
        looks: &'a mut watch::Receiver<u64>,
        /// Which of them is next.
        due: Due,
        /// Whether the session is ended for that, as one may be that went on behind another before anything is told in it. Else it is
        /// told of the newest version, and the next one is ended.
        ends: bool,
    },
}

impl Feed<'_> {
    /// A further session of a push hears of the same version, which is in the index by now.
    pub fn again(&mut self) {
        if let Self::Push(once) = self {
            once.again = once.decided.iter().cloned().chain([SourceEvent::Committed]).collect();
        }
    }

    /// What comes next. A mirror tells that it has a version which is not the one that the replica has acknowledged, or any
    /// at all if the replica has `drifted` from that. Cancel safe.
    pub async fn next(&mut self, drifted: bool) -> Heard {
        match self {
            Self::Push(events) => events.next().await.map_or(Heard::Failed, Heard::Event),
            Self::Mirror { news, acknowledged, looks, due, ends } => {
                let is_news = |news: &Option<Arc<News>>| {
                    news.as_ref().is_some_and(|news| drifted || Some(news.id()) != *acknowledged)
                };
                let waits = !due.goes_first && is_news(&news.borrow());
                let is_due = |asked: &u64| *asked > due.looked && !waits;
                let is_look = tokio::select! {
                    biased;
                    asked = looks.wait_for(is_due) => asked.map(|_| true),
                    told = news.wait_for(is_news) => told.map(|_| false),
                };
                let Ok(is_look) = is_look else {
                    // Who tells of them ends only on shutdown, which the session sees itself.
                    return std::future::pending().await;
                };
                if is_look && *ends { Heard::Look } else { Heard::Event(SourceEvent::Published(news.clone())) }
            }
        }
    }
}
