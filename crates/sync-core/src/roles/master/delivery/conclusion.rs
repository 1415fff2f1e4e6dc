//! The end of a session: what becomes of its connection, what is written down of it, and what is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::acks;
use super::super::content::Sent;
use super::{Delivered, Hold, Next, Open, Session, broken, interrupted};
use crate::fs;
use crate::index::Ack as IndexedAck;
use crate::monitor::Problem;
use crate::options::{DestinationReport, Stats};
use crate::roles::link::LinkError;
use crate::session::End;
use crate::transport::{Closed, Code};
use crate::wire::{ADOPT, Ack, FOLLOW, Stand};

/// How long it may take to send what is queued to the end of a session.
const GOODBYE: Duration = Duration::from_secs(5);

impl Session<'_> {
    /// Closes the connection in the way that fits the end, and writes the report.
    pub(super) async fn conclude(mut self, end: Result<End, LinkError>, replica: &str) -> Delivered {
        self.clock_stops();
        // Whatever was being done when the connection was closed, this is why.
        let end = end.map_err(|error| match self.connection.close_reason() {
            Some(Closed::ByPeer { code: Code::NotOwner, reason }) => LinkError::NotOwner(reason),
            _ => error,
        });
        self.conclude_adoption(&end);
        let mut in_order = false;
        let goes_on = match &end {
            Ok(End::Acknowledged { .. }) => self.fate.is_some(),
            end => matches!(end, Ok(End::Reached(..))),
        };
        if goes_on {
            in_order = tokio::time::timeout(GOODBYE, self.contents.finish()).await.is_ok();
        }
        let sent = self.contents.stop();
        let mut stats = self.stats(sent);
        let mut exact = false;
        let (mut open_at, mut anew) = (None, None);
        let hold = match &end {
            Err(LinkError::NotOwner(_)) => Some(Hold::Adoption),
            Err(LinkError::Held(_)) => Some(Hold::Release),
            Err(LinkError::TreeHeld(_)) => Some(Hold::Tree),
            Ok(End::Refused(refusal)) => refusal.for_a_person.then_some(Hold::Release),
            _ => None,
        };
        let mut refused = [0; 6];
        let (heard, acknowledged) = (end.is_ok(), matches!(end, Ok(End::Acknowledged { .. })));
        match end {
            Ok(End::Acknowledged { ack, exact: identical }) => {
                match (in_order, identical) {
                    (true, true) => open_at = self.stand_at(&ack),
                    (true, false) => anew = Some(Next::Again),
                    _ => {}
                }
                if open_at.is_none() && anew.is_none() {
                    self.connection.close(Code::Done, "").await;
                }
                exact = identical || (self.delivery.policy.dry_run && self.problems == 0);
                refused = ack.refused;
                fill(&mut stats, &ack);
                stats.resumed_bytes = self.resumed.saturating_add(sent.resumed);
                stats.reused_bytes = stats.reused_bytes.saturating_add(stats.resumed_bytes);
                if self.delivery.policy.estimate {
                    // No copy was made there.
                    stats.old_file_bytes = sent.copied;
                    stats.reused_bytes += sent.copied;
                }
                if !self.delivery.policy.dry_run {
                    self.conclude_release();
                    self.record(&ack, identical, replica);
                }
                if !exact && self.problems == 0 && self.source_changed.is_empty() {
                    let reason = "it changed while it was pushed to; push again".to_owned();
                    self.problem(&Problem { path: None, reason });
                }
            }
            Ok(End::Reached(last, ack)) => {
                refused = ack.refused;
                fill(&mut stats, &ack);
                stats.resumed_bytes = self.resumed.saturating_add(sent.resumed);
                stats.reused_bytes = stats.reused_bytes.saturating_add(stats.resumed_bytes);
                // What there was to decide, it has taken.
                self.conclude_release();
                if in_order {
                    let had = self.sender.stand().map_or(0, |stand| stand.entries);
                    anew = Some(Next::Reached(last, had + self.announced.unwrap_or(0)));
                } else {
                    self.connection.close(Code::Done, "").await;
                    if self.fate.is_none() {
                        let reason = "what was sent could not be ended in order; push again".to_owned();
                        self.problem(&Problem { path: None, reason });
                    }
                }
            }
            Ok(End::Refused(refusal)) => {
                self.connection.close(Code::Done, "").await;
                let reason = crate::path::escape(refusal.reason.as_bytes());
                // One that was open before that was released did not say so: the next one does.
                let is_over = refusal.for_a_person && !self.said_released && self.delivery.permits.is_released();
                if !is_over {
                    self.problem(&Problem { path: None, reason });
                }
            }
            Err(LinkError::NoSource) => self.connection.close(Code::Cancelled, "the source failed").await,
            Err(LinkError::Interrupted) => {
                self.connection.close(Code::Cancelled, "interrupted").await;
                // Who follows is asked to stop when all is well.
                if self.fate.is_none() {
                    self.problem(&interrupted());
                }
            }
            Err(error) => {
                self.connection.close(error.code(), &error.to_string()).await;
                self.problem(&broken(&error));
            }
        }
        let unheard = self.timing.publishing.is_some() && !heard;
        let report = DestinationReport { exact, problems: self.problems, unheard, stats, refused };
        let tried = self.decided.as_ref().map(|decided| decided.id);
        let version = self.decided.as_ref().filter(|_| exact).map(|decided| (decided.version.number, decided.id));
        let next = match open_at {
            Some(stand) => Some(Next::Open(Box::new(Open { control: self.control, hello: self.hello, stand }))),
            None => {
                if anew.is_some() {
                    // The replica begins the next session when it has seen that this one is over.
                    tokio::spawn(self.control.read_to_end());
                }
                anew
            }
        };
        // Of what changed while it was sent the caller of a push hears when the rounds are over.
        let problem = self.first_problem.or_else(|| self.source_changed.first().cloned());
        let took = self.timing.told.map_or(Duration::ZERO, |told| told.elapsed());
        let Self { source_changed, said_released, unhealed, postponed, .. } = self;
        Delivered {
            report,
            source_changed,
            version,
            tried,
            next,
            hold,
            said_released,
            problem,
            took,
            unhealed,
            postponed,
            acknowledged,
        }
    }

    /// A release is used up by what the replica has taken.
    fn conclude_release(&self) {
        if let Some(decided) = &self.decided {
            self.delivery.permits.acknowledged(decided.version.number, self.said_released);
        }
    }

    /// What was said of adoption is used up once the replica may have published.
    fn conclude_adoption(&self, end: &Result<End, LinkError>) {
        let Some(stand) = self.sender.stand().filter(|_| self.said_adopts) else { return };
        // What does not lead to the announced root is not published.
        if self.announced.is_some() && !matches!(end, Err(LinkError::Protocol(_))) {
            self.delivery.permits.adopted();
        }
        if stand.features & ADOPT == 0 {
            let text = "its release does not know whose a share is: there is nothing to adopt, and any other master may push there";
            self.delivery.monitor.notice(Some(self.delivery.dest), text);
        }
    }

    /// Where the replica is now, if it stays for another session.
    fn stand_at(&self, ack: &Ack) -> Option<Stand> {
        let features = self.sender.stand()?.features;
        let entries = self.decided.as_ref()?.entries;
        (features & FOLLOW != 0).then_some(Stand { features, version: Some(ack.version), root: ack.root, entries })
    }

    fn clock_stops(&mut self) {
        let now = Instant::now();
        // What is asked for behind a small version that is committed is sent and published in one, and counts as sent.
        let is_sent = |at: &Instant| self.timing.first_want.is_none_or(|first| first <= *at);
        let publishing = self.timing.publishing.filter(is_sent).unwrap_or(now);
        self.timing.send = self.timing.first_want.map_or(Duration::ZERO, |first| publishing - first);
        self.timing.publish = now - publishing;
    }

    fn stats(&self, sent: Sent) -> Stats {
        let (scan, hash, entries) =
            self.decided.as_ref().map_or_else(Default::default, |d| (d.scan, d.hash, d.entries));
        Stats {
            scanned: entries,
            literal_bytes: sent.literal + self.given,
            compressed_bytes: sent.compressed + self.given,
            scan_seconds: scan.as_secs_f64(),
            hash_seconds: hash.as_secs_f64(),
            send_seconds: self.timing.send.as_secs_f64(),
            publish_seconds: self.timing.publish.as_secs_f64(),
            ..Stats::default()
        }
    }

    fn record(&self, ack: &Ack, exact: bool, replica: &str) {
        let Some(decided) = &self.decided else { return };
        let indexed = IndexedAck {
            replica: replica.to_owned(),
            version: ack.version,
            number: decided.version.number,
            root: ack.root,
            time: fs::clock::now(),
            exact,
        };
        let (source, monitor) = (&self.delivery.source, Arc::clone(&self.delivery.monitor));
        let is_due = source.acks.add(indexed);
        if self.fate.is_none() {
            tokio::task::block_in_place(|| source.acks.record(&source.index, &*monitor));
        } else if is_due {
            // The tree may be opened anew meanwhile, and then its index belongs to whoever does that.
            let source = Arc::downgrade(source);
            tokio::spawn(async move {
                tokio::time::sleep(acks::SOON).await;
                if let Some(source) = source.upgrade() {
                    tokio::task::block_in_place(|| source.acks.record(&source.index, &*monitor));
                }
            });
        }
    }
}

fn fill(stats: &mut Stats, ack: &Ack) {
    stats.created = ack.stats.created;
    stats.updated = ack.stats.updated;
    stats.metadata_only = ack.stats.metadata_only;
    stats.moved = ack.stats.moved;
    stats.deleted = ack.stats.deleted;
    stats.old_file_bytes = ack.stats.old_file_bytes;
    stats.copied_bytes = ack.stats.copied_bytes;
    stats.moved_bytes = ack.stats.moved_bytes;
    stats.reused_bytes = [stats.old_file_bytes, stats.copied_bytes, stats.moved_bytes].iter().sum();
}
