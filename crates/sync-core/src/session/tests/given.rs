//! What is not said or asked for: sessions that go on behind others, contents that come by themselves.

use super::disk::{entry, path};
use super::master::Master;
use super::push::World;
use super::scenarios::{announce, gathering, hello, stand};
use crate::hash::Digest;
use crate::manifest::{Holds, Kind, VersionId};
use crate::session::{
    Load, Receiver, ReceiverInput, ReceiverOutput, Report, Sender, SenderInput, SenderOutput, Settled, Told,
};
use crate::wire::{Announce, Change, FOLLOW, Given, Hello, MAX_GIVEN, Offered, Stand, ToMaster, ToReplica, Wanted};

fn given(seq: u64, content: &[u8]) -> ToReplica {
    ToReplica::Given(vec![Given { seq, content: content.to_vec() }])
}

fn files(names: &[&str]) -> Vec<Offered> {
    let likely = entry(Kind::Fifo, 0o644).metadata();
    let file = |name: &&str| Offered { path: path(name), digest: Digest::of(name.as_bytes()), size: 1, likely };
    names.iter().map(file).collect()
}

fn to(receiver: &mut Receiver, message: ToReplica) -> Result<(), String> {
    receiver.handle(ReceiverInput::Received(message)).map_err(|error| error.to_string())
}

fn outputs(receiver: &mut Receiver) -> Vec<ReceiverOutput> {
    std::iter::from_fn(|| receiver.poll()).collect()
}

#[test]
fn what_was_given_is_taken_if_it_is_wanted_and_asked_for_only_if_it_is_wrong() {
    let mut receiver = gathering();
    to(&mut receiver, given(1, b"b")).unwrap();
    to(&mut receiver, given(2, b"c")).unwrap();
    let files = files(&["a", "b", "c"]);
    to(&mut receiver, ToReplica::Offer(files.clone())).unwrap();
    assert_eq!([0, 1, 2, 3].map(|seq| receiver.is_given(seq)), [false, true, true, false]);
    outputs(&mut receiver);
    // The third is here already.
    let wants = [0, 1].map(Wanted::whole).into_iter().zip(files).collect();
    receiver.handle(ReceiverInput::Considered(wants)).unwrap();
    let asks = |seq| ReceiverOutput::Send(ToMaster::Want(vec![Wanted::whole(seq)]));
    assert_eq!(outputs(&mut receiver), [ReceiverOutput::Take(1, b"b".to_vec()), asks(0)]);
    receiver.handle(ReceiverInput::Settled(1, Settled::Mismatch)).unwrap();
    assert_eq!(outputs(&mut receiver), [asks(1)]);
}

#[test]
fn what_is_given_is_bounded_and_comes_once_and_before_its_number() {
    let half = vec![0; MAX_GIVEN / 2];
    let mut receiver = gathering();
    to(&mut receiver, given(0, &half)).unwrap();
    to(&mut receiver, given(1, &half)).unwrap();
    assert!(to(&mut receiver, given(3, b"x")).unwrap_err().contains("more than 65536 bytes"));

    let mut receiver = gathering();
    to(&mut receiver, given(1, b"x")).unwrap();
    assert!(to(&mut receiver, given(1, b"x")).unwrap_err().contains("too late, or twice"));
    let mut receiver = gathering();
    to(&mut receiver, ToReplica::Offer(files(&["a"]))).unwrap();
    assert!(to(&mut receiver, given(0, b"a")).unwrap_err().contains("too late, or twice"));
    assert!(to(&mut Receiver::new(), given(0, b"a")).is_err(), "before the hello");
}

/// A session behind one that ended well begins without a word.
#[test]
fn a_session_that_goes_on_waits_for_a_version_or_for_drift() {
    let open = || {
        let mut receiver = Receiver::new();
        let follows = Hello { features: FOLLOW, ..hello() };
        to(&mut receiver, ToReplica::Hello(follows)).unwrap();
        assert!(matches!(outputs(&mut receiver)[..], [ReceiverOutput::Open(..)]));
        receiver.handle(ReceiverInput::Reopened).unwrap();
        assert!(receiver.is_waiting() && outputs(&mut receiver).is_empty());
        receiver
    };
    let mut receiver = open();
    receiver.handle(ReceiverInput::Drifted(stand())).unwrap();
    assert_eq!(outputs(&mut receiver), [ReceiverOutput::Send(ToMaster::Drifted(stand()))]);
    let mut receiver = open();
    to(&mut receiver, ToReplica::Announce(announce())).unwrap();
    assert!(matches!(outputs(&mut receiver)[..], [ReceiverOutput::Plan(..)]));
    assert!(to(&mut open(), ToReplica::Hello(hello())).is_err(), "that is said on another stream");

    let mut sender = Sender::going_on(&Hello { features: FOLLOW, ..hello() }, stand());
    assert_eq!(sender.poll(), None);
    sender.handle(SenderInput::Received(ToMaster::Drifted(stand()))).unwrap();
    assert_eq!(sender.poll(), Some(SenderOutput::Report(Report::Drifted)));
    assert!(sender.handle(SenderInput::Received(ToMaster::Stand(stand()))).is_err());
}

#[test]
fn contents_go_ahead_of_the_changes_that_number_them() {
    let root = Digest::of(b"another root");
    let at = Stand { version: Some(VersionId(Digest::of(b"before"))), root, entries: 1, ..stand() };
    let mut sender = Sender::going_on(&hello(), at);
    let version = Master::new().commit().version;
    sender
        .handle(SenderInput::Decided { version, holds: Holds::default(), committed: true, offers_lead: false })
        .unwrap();
    assert!(matches!(sender.poll(), Some(SenderOutput::Load(Load::Since(_)))), "nothing is said again");
    let changes: Vec<Change> = files(&["a", "b", "c"])
        .iter()
        .map(|file| Change { path: file.path.clone(), entry: Some(file.entry()) })
        .collect();
    let contents = vec![(Digest::of(b"c"), "c".into()), (Digest::of(b"b"), "b".into())];
    let told = Told { changes: changes.clone(), contents, ..Told::default() };
    sender.handle(SenderInput::Changes { told, done: true }).unwrap();
    let [b, c] = [(1, b"b"), (2, b"c")].map(|(seq, content)| Given { seq, content: content.to_vec() });
    assert_eq!(sender.poll(), Some(SenderOutput::Send(ToReplica::Given(vec![b, c]))));
    assert_eq!(sender.poll(), Some(SenderOutput::Send(ToReplica::Changes(changes))));
    assert!(matches!(sender.poll(), Some(SenderOutput::Send(ToReplica::Announce(Announce { contents: 3, .. })))));
}

#[test]
fn contents_that_come_by_themselves_change_nothing_else() {
    let mut world = World::new(1);
    world.source().mkdir("d");
    world.source().write("d/a", "one");
    world.push_exactly();
    for gives in [true, false] {
        world.faults.gives = gives;
        world.source().write("d/a", &format!("two {gives}"));
        world.source().write("d/b", &format!("three {gives}"));
        world.source().hard_link("d/b", "d/c");
        // It was published before this session, so that nothing is offered in it.
        world.master.commit();
        let outcomes = world.push_exactly();
        assert_eq!(outcomes[0].wants, if gives { 0 } else { 2 });
        assert!(world.is_identical(0));
    }

    world.faults.gives = true;
    world.source().write("d/a", "three and four");
    world.faults.torn.insert(path("d/a"));
    assert!(!world.push()[0].is_exact());
    world.faults.torn.clear();
    world.push_exactly();
    assert!(world.is_identical(0));
}
