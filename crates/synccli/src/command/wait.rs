//! `synccli push` without DEST: the daemon publishes, this waits until the replicas have it.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use sync_core::control::{DeliveryStatus, Order, ReplicaState, ReplicaStatus, Reply, VersionStatus};

use crate::args::{PushArgs, Wait, share_text};
use crate::daemon::ask;
use crate::exit::{Exit, Failure};
use crate::output::{Sink, status, text};

/// Without `--timeout`, how long a replica is waited for that cannot be reached, on which something fails, or that drifted.
const UNREACHABLE: Duration = Duration::from_secs(30);

/// Who is at it for so long has overcome what was in the way.
const AT_IT: Duration = Duration::from_secs(5);

/// How often the time is looked at.
const TICK: Duration = Duration::from_millis(200);

/// Has the daemon push a share, and waits.
pub fn run(args: &PushArgs, state_dir: &Path, out: &Sink, err: &Sink) -> Result<Exit, Failure> {
    args.check_for_daemon()?;
    let started = Instant::now();
    let asked = ask(state_dir, Order::Push { share: share_text(args.source.as_os_str()) });
    let mut answers = asked.map_err(|Failure { exit, message }| Failure {
        exit,
        message: message + "; or push without one: synccli push SRC DEST",
    })?;
    let mut waiting = Waiting::default();
    let say = Say { json: args.say.json, quiet: args.say.quiet, out, err };
    loop {
        if let Some(reply) = answers.next(Some(TICK))? {
            if waiting.is_news(&reply) {
                say.reply(&reply)?;
            }
            waiting.hear(reply, Instant::now());
        }
        let now = Instant::now();
        let given_up = match args.timeout {
            Some(timeout) => now - started >= timeout,
            None => waiting.is_hopeless(now),
        };
        if waiting.is_enough(args.wait()) || given_up {
            break;
        }
    }
    let Some(version) = &waiting.version else {
        return Err(Failure::failed("no version was published in time; `synccli status` tells how the share is"));
    };
    if waiting.is_enough(args.wait()) {
        return Ok(if waiting.unread { Exit::Failed } else { Exit::Done });
    }
    let behind: Vec<String> = waiting.behind.iter().map(|behind| status::behind(&behind.replica)).collect();
    let missing = text::plural(behind.len() as u64, "replica has", "replicas have");
    let needed = match args.wait() {
        Wait::Quorum => format!(" ({} of {} would be enough)", waiting.quorum(), waiting.replicas()),
        Wait::All | Wait::None => String::new(),
    };
    Err(Failure::failed(format!("{missing} not confirmed version {}{needed}: {}", version.number, behind.join("; "))))
}

/// What is known of a push that the daemon makes.
#[derive(Default)]
struct Waiting {
    version: Option<VersionStatus>,
    /// How many there were when it began, less those that left: fewer than are known if others came.
    replicas: usize,
    acknowledged: HashSet<String>,
    /// Whether the daemon says that all who follow have it.
    done: bool,
    /// Whether the daemon cannot read all of the share, and said so.
    unread: bool,
    /// Who has not.
    behind: Vec<Behind>,
    /// What was said of those.
    said: HashSet<String>,
}

/// A replica that does not have the version.
struct Behind {
    replica: ReplicaStatus,
    /// In what state something is in the way, or was, and since when.
    since: Option<(ReplicaState, Instant)>,
    /// Since when nothing is any more.
    at_it: Option<Instant>,
}

impl Waiting {
    /// Whether that was not said before: who is tried again and again may fail in the same way each time.
    fn is_news(&mut self, reply: &Reply) -> bool {
        match reply {
            Reply::Behind { replica } => self.said.insert(status::behind(replica)),
            _ => true,
        }
    }

    fn hear(&mut self, reply: Reply, now: Instant) {
        match reply {
            Reply::Published { version, replicas, .. } => {
                (self.version, self.replicas) = (Some(version), usize::try_from(replicas).unwrap_or(usize::MAX));
            }
            Reply::Unread { .. } => self.unread = true,
            Reply::Acknowledged { replica, .. } => {
                self.behind.retain(|behind| behind.replica.name != replica);
                self.acknowledged.insert(replica);
            }
            Reply::Left { replica } => {
                self.behind.retain(|behind| behind.replica.name != replica);
                self.acknowledged.remove(&replica);
                self.replicas = self.replicas.saturating_sub(1);
            }
            Reply::Done { .. } => self.done = true,
            Reply::Behind { replica } => {
                let at = self.behind.iter().position(|known| known.replica.name == replica.name);
                let known = at.map(|at| self.behind.swap_remove(at));
                let (since, at_it) = known.map_or((None, None), |known| (known.since, known.at_it));
                let is_stuck = replica.state != ReplicaState::CatchingUp || replica.problem.is_some();
                // Each attempt of who refuses begins with a connection.
                let goes_on = |(state, _): &(ReplicaState, Instant)| {
                    *state == replica.state && at_it.is_none_or(|at_it| now - at_it < AT_IT)
                };
                self.behind.push(match is_stuck {
                    true => {
                        let since = since.filter(goes_on).unwrap_or((replica.state, now));
                        Behind { replica, since: Some(since), at_it: None }
                    }
                    false => Behind { replica, since, at_it: Some(at_it.unwrap_or(now)) },
                });
            }
            _ => {}
        }
    }

    /// How many follow.
    fn replicas(&self) -> usize {
        self.replicas.max(self.acknowledged.len() + self.behind.len())
    }

    /// How many are a majority. Of none there is nobody to wait for.
    fn quorum(&self) -> usize {
        self.replicas().min(self.replicas() / 2 + 1)
    }

    fn is_enough(&self, wait: Wait) -> bool {
        let (replicas, acknowledged) = (self.replicas(), self.acknowledged.len());
        self.version.is_some()
            && match wait {
                Wait::None => true,
                _ if self.done => true,
                Wait::Quorum => acknowledged >= self.quorum(),
                Wait::All => acknowledged >= replicas,
            }
    }

    /// Whether nobody who is waited for will have it soon.
    fn is_hopeless(&self, now: Instant) -> bool {
        let is_hopeless = |Behind { replica, since, .. }: &Behind| match replica.state {
            ReplicaState::Paused | ReplicaState::Held => true,
            // It may have failed at first, and be at it since.
            ReplicaState::CatchingUp if replica.retry_seconds.is_none() => false,
            ReplicaState::Offline | ReplicaState::CatchingUp | ReplicaState::Drifted => {
                since.is_some_and(|(_, since)| now - since >= UNREACHABLE)
            }
            ReplicaState::InSync => false,
        };
        self.version.is_some()
            && self.acknowledged.len() + self.behind.len() >= self.replicas()
            && self.behind.iter().all(is_hopeless)
    }
}

/// Where it is said, and how.
struct Say<'a> {
    json: bool,
    quiet: bool,
    out: &'a Sink,
    err: &'a Sink,
}

impl Say<'_> {
    fn reply(&self, reply: &Reply) -> Result<(), Failure> {
        if self.json {
            let line = serde_json::to_string(reply).map_err(|error| Failure::failed(error.to_string()))?;
            self.out.line(&line);
            self.out.flush();
            return Ok(());
        }
        match reply {
            Reply::Published { share, version, replicas } if !self.quiet => {
                let entries = version.entries.map_or_else(String::new, |entries| format!(", {entries} entries"));
                self.out.line(&format!("{share}: version {}{entries}", version.number));
                if *replicas == 0 {
                    self.err.line(&format!("warning: nobody follows {share}: see `synccli replica add`"));
                }
            }
            Reply::Acknowledged { replica, delivery } if !self.quiet => {
                let took = delivery.as_ref().map(took).unwrap_or_default();
                self.out.line(&format!("{replica}: identical and durable{took}"));
            }
            Reply::Left { replica } => self.err.line(&format!("warning: {replica} does not follow any more")),
            Reply::Unread { share, unread } => {
                self.err.line(&format!("error: {share}: {}", status::unread_text(unread)));
            }
            Reply::Behind { replica } if replica.problem.is_some() => {
                self.err.line(&format!("warning: {}", status::behind(replica)));
            }
            _ => {}
        }
        self.out.flush();
        Ok(())
    }
}

fn took(delivery: &DeliveryStatus) -> String {
    format!(" ({} in {})", status::bytes(delivery.wire_bytes), status::seconds(delivery.seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(name: &str, state: ReplicaState) -> Reply {
        let name = name.to_owned();
        let replica = ReplicaStatus {
            name,
            state,
            version: None,
            lag: None,
            drift: None,
            problem: None,
            retry_seconds: None,
            link: None,
            delivery: None,
        };
        Reply::Behind { replica }
    }

    fn waiting(replicas: u64, now: Instant) -> Waiting {
        let mut waiting = Waiting::default();
        let version = VersionStatus { number: 3, id: String::new(), time: None, entries: Some(1) };
        waiting.hear(Reply::Published { share: "www".into(), version, replicas }, now);
        waiting
    }

    #[test]
    fn a_quorum_is_more_than_half() {
        let now = Instant::now();
        for (replicas, enough) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)] {
            let mut waiting = waiting(replicas, now);
            for i in 1..=replicas {
                assert!(waiting.is_enough(Wait::None));
                assert_eq!(waiting.is_enough(Wait::Quorum), i > enough, "{i} of {replicas}");
                assert!(!waiting.is_enough(Wait::All));
                waiting.hear(Reply::Acknowledged { replica: i.to_string(), delivery: None }, now);
            }
            assert!(waiting.is_enough(Wait::All));
        }
        assert!(!Waiting::default().is_enough(Wait::None), "nothing was published");
    }

    #[test]
    fn who_comes_is_waited_for_and_who_leaves_is_not() {
        let now = Instant::now();
        let acknowledged = |name: &str| Reply::Acknowledged { replica: name.into(), delivery: None };
        let left = |name: &str| Reply::Left { replica: name.into() };
        let mut waiting = waiting(2, now);
        waiting.hear(replica("b", ReplicaState::Offline), now);
        waiting.hear(acknowledged("a"), now);
        // Another one does not stand for it.
        waiting.hear(acknowledged("c"), now);
        assert!(!waiting.is_enough(Wait::All) && waiting.is_enough(Wait::Quorum));
        waiting.hear(left("b"), now);
        assert!(waiting.is_enough(Wait::All));
        waiting.hear(replica("d", ReplicaState::CatchingUp), now);
        waiting.hear(replica("e", ReplicaState::Offline), now);
        assert!(!waiting.is_enough(Wait::All) && !waiting.is_enough(Wait::Quorum));
        assert!(!waiting.is_hopeless(now + 2 * UNREACHABLE), "one is at it");
        waiting.hear(left("d"), now);
        assert!(waiting.is_hopeless(now + 2 * UNREACHABLE));
        waiting.hear(left("e"), now);
        assert!(waiting.is_enough(Wait::All));
        // One that left before anything was told of it.
        let mut unheard = super::tests::waiting(1, now);
        assert!(!unheard.is_enough(Wait::All));
        unheard.hear(Reply::Done { text: String::new() }, now);
        assert!(unheard.is_enough(Wait::All));
    }

    #[test]
    fn who_fails_or_drifted_is_not_waited_for_without_end_and_who_is_at_it_is() {
        let failing = |problem: Option<&str>, retry_seconds| {
            let Reply::Behind { mut replica } = replica("a", ReplicaState::CatchingUp) else { unreachable!() };
            (replica.problem, replica.retry_seconds) = (problem.map(str::to_owned), retry_seconds);
            Reply::Behind { replica }
        };
        let now = Instant::now();
        let mut failed = waiting(1, now);
        failed.hear(failing(Some("full"), Some(1.0)), now);
        assert!(!failed.is_hopeless(now + UNREACHABLE / 2) && failed.is_hopeless(now + UNREACHABLE));
        // Another attempt does not begin the wait anew, and is not given up while it lasts.
        failed.hear(failing(Some("full"), None), now + UNREACHABLE / 2);
        assert!(!failed.is_hopeless(now + 10 * UNREACHABLE));
        failed.hear(failing(Some("full"), Some(1.0)), now + UNREACHABLE);
        assert!(failed.is_hopeless(now + UNREACHABLE));
        // Who refuses is connected for a moment each time.
        let mut refuses = waiting(1, now);
        for seconds in [0, 4, 12, 29].map(Duration::from_secs) {
            refuses.hear(replica("a", ReplicaState::CatchingUp), now + seconds);
            refuses.hear(replica("a", ReplicaState::Offline), now + seconds);
        }
        assert!(!refuses.is_hopeless(now + UNREACHABLE / 2) && refuses.is_hopeless(now + UNREACHABLE));
        let mut drifted = waiting(1, now);
        drifted.hear(replica("a", ReplicaState::Drifted), now);
        assert!(!drifted.is_hopeless(now + UNREACHABLE / 2) && drifted.is_hopeless(now + UNREACHABLE));
        // What it could not be reached for does not count against it once it can be.
        let mut back = waiting(1, now);
        back.hear(replica("a", ReplicaState::Offline), now);
        back.hear(failing(Some("away"), Some(1.0)), now + UNREACHABLE);
        assert!(!back.is_hopeless(now + UNREACHABLE));
    }

    #[test]
    fn the_same_is_said_once() {
        let mut waiting = Waiting::default();
        let [offline, at_it] = [ReplicaState::Offline, ReplicaState::CatchingUp].map(|state| replica("a", state));
        let said = [&offline, &at_it, &offline, &at_it].map(|reply| waiting.is_news(reply));
        assert_eq!(said, [true, true, false, false]);
    }

    #[test]
    fn who_cannot_be_reached_is_not_waited_for_without_end() {
        let now = Instant::now();
        let mut waiting = waiting(2, now);
        waiting.hear(replica("a", ReplicaState::Offline), now);
        assert!(!waiting.is_hopeless(now + UNREACHABLE), "the other one was not heard of yet");
        waiting.hear(replica("b", ReplicaState::CatchingUp), now);
        assert!(!waiting.is_hopeless(now + 10 * UNREACHABLE), "the other one is at it");
        waiting.hear(Reply::Acknowledged { replica: "b".into(), delivery: None }, now);
        // Told again, it does not begin anew.
        waiting.hear(replica("a", ReplicaState::Offline), now + UNREACHABLE / 2);
        assert!(!waiting.is_hopeless(now + UNREACHABLE / 2));
        assert!(waiting.is_hopeless(now + UNREACHABLE));
        waiting.hear(replica("a", ReplicaState::CatchingUp), now + UNREACHABLE);
        waiting.hear(replica("a", ReplicaState::Offline), now + UNREACHABLE + AT_IT);
        assert!(!waiting.is_hopeless(now + UNREACHABLE + AT_IT));
        waiting.hear(replica("a", ReplicaState::Paused), now + UNREACHABLE + AT_IT);
        assert!(waiting.is_hopeless(now + UNREACHABLE));
    }
}
