//! The master's role in one push: look at the source, read what changed, commit a version, and bring every destination
//! to it, all at once.

mod acks;
mod compare;
mod config;
mod content;
mod delivery;
mod dial;
mod difference;
mod doubts;
mod error;
mod fate;
mod feed;
mod filling;
mod follow;
mod giving;
mod handle;
mod keeping;
mod meter;
mod mirror;
mod news;
mod outgoing;
mod packing;
mod permits;
mod portions;
mod previous;
mod queue;
mod reads;
mod recent;
mod ring;
mod source;
mod splicing;
mod stream;
mod telling;
mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

pub use config::{MirrorConfig, Monitors};
pub use error::PushError;
pub use handle::{MirrorHandle, OrderError};
pub use mirror::Mirror;
pub(crate) use source::SOURCE_PATH;

use crate::index::IndexError;
use crate::manifest::Version;
use crate::monitor::{Monitor, Problem};
use crate::options::{DestinationReport, PushReport, PushRequest};
use crate::roles::Shutdown;
use crate::roles::survey::{KnownContents, Survey};
use crate::transport::Dialer;
use crate::wire::{Draft, Offered};
use delivery::{Delivered, Delivery};
use feed::SourceEvent;
use meter::Meter;
use permits::Permits;
use source::{LOOKS, Offering, Source};

/// How often a push starts over for files that changed while they were sent.
const ROUNDS: u32 = 3;

/// Contents offered at once.
const OFFERS_PER_MESSAGE: usize = 128;

/// How long to let a source rest that changed while it was sent.
const REST: Duration = Duration::from_millis(200);

/// Makes every destination identical to the source, and returns when each is durable or has failed.
///
/// # Errors
/// [`PushError`] if nothing could be started: the source, the state directory or the request is at fault, and nothing
/// was touched. Failures of entries and destinations are in the report, told to `monitor` as they happen.
pub async fn push(
    request: PushRequest,
    monitor: Arc<dyn Monitor>,
    shutdown: Shutdown,
) -> Result<PushReport, PushError> {
    let source = tokio::task::block_in_place(|| Source::open(&request, &*monitor))?;
    let source = Arc::new(source);
    let pushed = push_rounds(&source, &request, &monitor, &shutdown).await;
    // After a failure, too, so that the next push finds the room; but whoever stops this one does not wait for that.
    if !matches!(pushed, Err(PushError::Stopped)) {
        tokio::task::block_in_place(|| source.tidy_history(&*monitor));
    }
    pushed
}

/// Pushes until the source rests meanwhile, or has had its chances.
async fn push_rounds(
    source: &Arc<Source>,
    request: &PushRequest,
    monitor: &Arc<dyn Monitor>,
    shutdown: &Shutdown,
) -> Result<PushReport, PushError> {
    let meter = Arc::new(Meter::new(Arc::clone(monitor), request.destinations.len()));
    let mut report: Option<PushReport> = None;
    for round in 1..=ROUNDS {
        // A dry run says once what it found.
        let last = round == ROUNDS || request.policy.dry_run;
        let pushed = match push_once(source, request, &meter, monitor, shutdown).await {
            Err(PushError::Index(IndexError::Damaged(reason))) => {
                tokio::task::block_in_place(|| source.rebuild_index(&reason, &**monitor))?;
                push_once(source, request, &meter, monitor, shutdown).await
            }
            pushed => pushed,
        };
        let Round { version, source_problems, delivered } = pushed?;
        let unsettled: Vec<Problem> = delivered.iter().flat_map(|d| d.source_changed.clone()).collect();
        let again = !unsettled.is_empty() && !last && !*shutdown.borrow();
        if !again {
            tell_once(&**monitor, &unsettled);
        }
        let now = PushReport {
            version,
            source_problems: source_problems + if again { 0 } else { unsettled.len() as u64 },
            destinations: delivered.into_iter().map(|d| d.report).collect(),
        };
        report = Some(match report {
            None => now,
            Some(before) => add_up(before, now),
        });
        if !again {
            break;
        }
        tokio::time::sleep(REST).await;
    }
    report.ok_or(PushError::Stopped)
}

struct Round {
    version: Option<Version>,
    source_problems: u64,
    delivered: Vec<Delivered>,
}

/// One pass: the source is read once, while each destination is looked at and served in a task of its own.
async fn push_once(
    source: &Arc<Source>,
    request: &PushRequest,
    meter: &Arc<Meter>,
    monitor: &Arc<dyn Monitor>,
    shutdown: &Shutdown,
) -> Result<Round, PushError> {
    let mut tasks = Vec::new();
    let mut events = Vec::new();
    let dialer = Dialer::default();
    for (dest, destination) in request.destinations.iter().enumerate() {
        let (sender, receiver) = mpsc::unbounded_channel();
        let delivery = Delivery {
            dest,
            destination: destination.clone(),
            policy: request.policy.clone(),
            compress: request.compress,
            bandwidth: request.bandwidth,
            state_dir: request.state_dir.clone(),
            dialer: dialer.clone(),
            source: Arc::clone(source),
            meter: Arc::clone(meter),
            monitor: Arc::clone(monitor),
            permits: Arc::new(Permits::adopting(request.adopt)),
            is_mirror: false,
        };
        tasks.push(tokio::spawn(delivery.run(receiver, shutdown.clone())));
        events.push(sender);
    }
    // When the reading fails the destinations hear it by their channels closing; each ends in order first.
    let read = read_source(source, meter, monitor, shutdown, events).await;
    let mut delivered = Vec::new();
    for task in tasks {
        delivered.push(task.await.map_err(|e| PushError::Internal(e.to_string()))?);
    }
    let (version, source_problems) = read?;
    Ok(Round { version, source_problems, delivered })
}

/// Surveys, hashes and commits in a blocking thread, and tells every destination as it goes.
async fn read_source(
    source: &Arc<Source>,
    meter: &Arc<Meter>,
    monitor: &Arc<dyn Monitor>,
    shutdown: &Shutdown,
    events: Vec<mpsc::UnboundedSender<SourceEvent>>,
) -> Result<(Option<Version>, u64), PushError> {
    let stop = Arc::new(AtomicBool::new(*shutdown.borrow()));
    let watch = tokio::spawn({
        let (stop, mut shutdown) = (Arc::clone(&stop), shutdown.clone());
        async move {
            if shutdown.wait_for(|stop| *stop).await.is_ok() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    let (source, meter, monitor) = (Arc::clone(source), Arc::clone(meter), Arc::clone(monitor));
    let read = tokio::task::spawn_blocking(move || {
        let decided = AtomicBool::new(false);
        let tell = |event: SourceEvent| {
            decided.fetch_or(matches!(event, SourceEvent::Decided(..)), Ordering::Relaxed);
            for destination in &events {
                // A destination that is over does not listen any more.
                let _ = destination.send(event.clone());
            }
        };
        let read = read_once(&source, &stop, &meter, &*monitor, &tell);
        let Err(PushError::Index(IndexError::Damaged(reason))) = read else { return read };
        if decided.load(Ordering::Relaxed) {
            // The destinations are preparing that version: they start over, too.
            return Err(PushError::Index(IndexError::Damaged(reason)));
        }
        source.rebuild_index(&reason, &*monitor)?;
        read_once(&source, &stop, &meter, &*monitor, &tell)
    })
    .await;
    watch.abort();
    read.map_err(|e| PushError::Internal(e.to_string()))?
}

fn read_once(
    source: &Source,
    stop: &AtomicBool,
    meter: &Meter,
    monitor: &dyn Monitor,
    tell: &(dyn Fn(SourceEvent) + Sync),
) -> Result<(Option<Version>, u64), PushError> {
    let (mut offers, mut offered): (Vec<Offered>, bool) = (Vec::new(), false);
    let mut offer = |offer: Option<Offered>, more: bool| {
        offers.extend(offer);
        let is_portion = if more { offers.len() >= OFFERS_PER_MESSAGE } else { !offers.is_empty() };
        // What goes with the version is not offered before: it would be asked for, which takes a round trip.
        if is_portion && (offered || !giving::are_few(&offers)) {
            offered = true;
            tell(SourceEvent::Hashed(Arc::new(std::mem::take(&mut offers))));
        }
    };
    let draft = |draft| tell(SourceEvent::Draft(Arc::new(draft)));
    let Looked { survey, scanned, hashed } = look(source, stop, meter, monitor, &mut offer, &draft)?;
    let restless = survey.restless();
    let failures = Source::report_failures(&survey, monitor) + restless.len() as u64;
    restless.for_each(|error| monitor.problem(None, &error.to_problem()));
    let (decided, difference) = source.decide(survey, scanned, hashed)?;
    if difference.len() > giving::FEW && !offers.is_empty() {
        tell(SourceEvent::Hashed(Arc::new(offers)));
    }
    let (decided, difference) = (Arc::new(decided), Arc::new(difference));
    tracing::info!(entries = decided.entries, version = decided.version.number, "looked at the source");
    // A small version is in the index before a replica has said where it stands. Then it need not wait for another word.
    let first = difference.len() <= giving::FEW || difference.is_indexed();
    if first {
        source.commit(&decided, &difference, None, monitor)?;
    }
    tell(SourceEvent::Decided(Arc::clone(&decided), Arc::clone(&difference), first));
    if !first {
        source.commit(&decided, &difference, None, monitor)?;
    }
    tell(SourceEvent::Committed);
    // While the destinations publish.
    source.keep_contents(&difference)?;
    drop(difference);
    if let Err(error) = source.index.tidy() {
        monitor.notice(None, &format!("the index of the source could not be tidied: {error}"));
    }
    Ok((decided.minted.clone(), failures))
}

/// What a look at the whole source found, and how long it took to look and to read.
struct Looked {
    survey: Survey,
    scanned: Duration,
    hashed: Duration,
}

/// Looks at the whole source until nothing moves meanwhile, or holds what does.
fn look(
    source: &Source,
    stop: &AtomicBool,
    meter: &Meter,
    monitor: &dyn Monitor,
    offer: &mut Offering<'_>,
    draft: &(dyn Fn(Draft) + Sync),
) -> Result<Looked, PushError> {
    let started = Instant::now();
    let mut scanned = Duration::ZERO;
    let mut known = KnownContents::new();
    let mut look = 1;
    let survey = loop {
        let (mut survey, looked) = source.look(&known, stop, meter, monitor, offer, draft)?;
        scanned += looked;
        if survey.vanished.is_empty() && survey.torn.is_empty() {
            break survey;
        }
        if look == LOOKS {
            if !survey.vanished.is_empty() {
                survey.hold_what_moves();
            }
            survey.hold_what_is_torn();
            break survey;
        }
        // A file was listed and is gone: it may be back under a name that was not listed. Or two of its names differ.
        known.extend(survey.hashed());
        look += 1;
    };
    if stop.load(Ordering::Relaxed) {
        return Err(PushError::Stopped);
    }
    Ok(Looked { survey, scanned, hashed: started.elapsed().saturating_sub(scanned) })
}

/// A file that changed under several destinations is one problem of the source.
fn tell_once(monitor: &dyn Monitor, problems: &[Problem]) {
    let mut told = std::collections::HashSet::new();
    for problem in problems.iter().filter(|problem| told.insert(problem.path.clone())) {
        monitor.problem(None, problem);
    }
}

/// The report of several rounds: counts add up, verdicts are the last round's.
fn add_up(before: PushReport, now: PushReport) -> PushReport {
    let both = before.destinations.into_iter().zip(now.destinations);
    let destinations = both.map(|(old, new)| DestinationReport { stats: old.stats.plus(&new.stats), ..new }).collect();
    PushReport { destinations, ..now }
}
