//! A session with a replica that these tests play: what becomes of a person's word.

#![allow(clippy::disallowed_methods, reason = "the tests make trees of their own")]

use std::sync::Mutex;

use super::*;
use crate::hash::Digest;
use crate::transport::{Code, Loopback, Settings};
use crate::wire::{Ack, Listing, Refusal, Stand};

/// What a person hears.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Monitor for Heard {
    fn notice(&self, _: Option<usize>, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }

    fn problem(&self, _: Option<usize>, problem: &Problem) {
        self.0.lock().unwrap().push(problem.to_string());
    }
}

/// What the replica does with a master that adopts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replica {
    /// It closes the connection in place of a stand.
    NotOwner,
    /// It refuses in place of a stand, because it is locked for instance.
    Refuses,
    /// It finds that the plan leads elsewhere.
    Mismatches,
    /// It goes away when it has been told what to publish.
    Vanishes,
    /// It refuses what it has been told to publish.
    RefusesPlan,
    /// It acknowledges.
    Acknowledges,
}

/// Plays it with these features; returns those of the hello.
async fn play(connection: Connection, replica: Replica, features: u64) -> u64 {
    let mut control: Control<ToReplica> = Control::accept(&connection).await.unwrap();
    let mut hello = 0;
    let refuse = || ToMaster::Refuse(Refusal { for_a_person: false, reason: "no".to_owned() });
    while let Ok(message) = control.next().await {
        let answer = match (message, replica) {
            (ToReplica::Hello(said), _) => {
                hello = said.features;
                match replica {
                    Replica::NotOwner => {
                        connection.close(Code::NotOwner, "it is another's").await;
                        break;
                    }
                    Replica::Refuses => refuse(),
                    _ => ToMaster::Stand(Stand { features, version: None, root: Digest::empty(), entries: 0 }),
                }
            }
            (ToReplica::List(dirs), _) => {
                for dir in dirs {
                    let listing = Listing { dir, own: None, children: Vec::new(), last: true };
                    control.send(ToMaster::Listing(listing).encode()).unwrap();
                }
                continue;
            }
            (ToReplica::Announce(_), Replica::Mismatches) => ToMaster::Prepared(Digest::of(b"elsewhere")),
            (ToReplica::Announce(_), Replica::Vanishes) => {
                connection.close(Code::ShuttingDown, "").await;
                break;
            }
            (ToReplica::Announce(_), Replica::RefusesPlan) => refuse(),
            (ToReplica::Announce(announce), _) => ToMaster::Prepared(announce.version.root),
            (ToReplica::Publish(version), _) => ToMaster::Ack(Ack {
                version,
                root: Digest::of(b"not quite"),
                stats: Default::default(),
                refused: [0; 6],
            }),
            _ => continue,
        };
        control.send(answer.encode()).unwrap();
    }
    hello
}

/// A session of a master that adopts: how it ended, whether that is used up, and what was heard.
async fn adopt(replica: Replica, features: u64) -> (Delivered, bool, Vec<String>) {
    let temp = tempfile::tempdir().unwrap();
    let top = temp.path().join("src");
    std::fs::create_dir(&top).unwrap();
    std::fs::write(top.join("f"), b"").unwrap();
    let to = Destination::Remote { host: "nobody".to_owned(), port: 1, share: "www".to_owned(), also: Vec::new() };
    let request = PushRequest {
        source: top,
        destinations: vec![to.clone()],
        state_dir: temp.path().join("state"),
        policy: Policy::default(),
        adopt: true,
        bandwidth: None,
        compress: Compress::Never,
        history: None,
    };
    let heard: Arc<Heard> = Arc::default();
    let source = Arc::new(Source::open(&request, &*heard).unwrap());
    let delivery = Delivery::of(&request, to, &source, heard.clone());
    let (events, mut hears) = mpsc::unbounded_channel();
    let tell = |event| drop(events.send(event));
    super::super::read_once(&source, &std::sync::atomic::AtomicBool::new(false), &delivery.meter, &*heard, &tell)
        .unwrap();
    let ends = Loopback::open(Settings::default()).await.unwrap();
    let played = tokio::spawn(play(ends.accepted, replica, features));
    let session = Session::open(&delivery, ends.dialed, "www".to_owned(), None, None).await.unwrap();
    let (_stop, mut shutdown) = watch::channel(false);
    let delivered = session.run(&mut Feed::Push(Once::new(&mut hears)), &mut shutdown, "r").await;
    assert_eq!(played.await.unwrap() & ADOPT, ADOPT, "it did not say so");
    let is_used_up = !delivery.permits.adopts();
    let heard = heard.0.lock().unwrap().clone();
    (delivered, is_used_up, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adoption_is_used_up_when_it_may_have_taken_place() {
    use Replica::{Acknowledges, Mismatches, NotOwner, Refuses, RefusesPlan, Vanishes};
    for (replica, wanted) in [
        (NotOwner, false),
        (Refuses, false),
        (Mismatches, false),
        (Vanishes, true),
        (RefusesPlan, true),
        (Acknowledges, true),
    ] {
        let (delivered, is_used_up, heard) = adopt(replica, ADOPT).await;
        assert_eq!(is_used_up, wanted, "{replica:?}: {heard:?}");
        let hold = if replica == NotOwner { Some(Hold::Adoption) } else { None };
        assert_eq!(delivered.hold, hold, "{replica:?}: {heard:?}");
        assert!(!heard.iter().any(|text| text.contains("release")), "{replica:?}: {heard:?}");
    }
}

/// The version is a small one, and its announcement is the word to publish.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_replica_that_vanishes_behind_the_announcement_it_is_not_known_what_it_changed() {
    use Replica::{Acknowledges, Mismatches, Refuses, RefusesPlan, Vanishes};
    for replica in [Refuses, Mismatches, Vanishes, RefusesPlan, Acknowledges] {
        let (delivered, _, heard) = adopt(replica, ADOPT).await;
        assert_eq!(delivered.report.unheard, replica == Vanishes, "{replica:?}: {heard:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reason_is_what_the_replica_said() {
    let (delivered, _, heard) = adopt(Replica::NotOwner, ADOPT).await;
    assert_eq!(delivered.problem.unwrap().to_string(), "it is another's");
    assert_eq!(heard.last().unwrap(), "it is another's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_an_older_release_has_nothing_to_adopt() {
    let (_, _, heard) = adopt(Replica::Acknowledges, FOLLOW).await;
    assert!(heard.iter().any(|text| text.contains("there is nothing to adopt")), "{heard:?}");
}
