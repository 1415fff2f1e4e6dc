//! Drafts: hints that change nothing but when something is copied.

use super::scenarios::{announce, gathering, hello, stand};
use crate::delta::CopyRange;
use crate::hash::Digest;
use crate::manifest::Holds;
use crate::options::Policy;
use crate::path::RelPath;
use crate::session::{Budget, Receiver, ReceiverInput, ReceiverOutput, Sender, SenderInput, SenderOutput};
use crate::wire::{Draft, Hello, ToReplica};

fn draft() -> Draft {
    let ranges = [0, 2, 4].map(|at| CopyRange { at, from: 1, len: 2 }).to_vec();
    Draft { ranges, path: RelPath::new("big").unwrap(), size: 9, old: Digest::of(b"old") }
}

/// Whether a sender with that policy passes a draft on.
fn is_told(sender: &mut Sender) -> bool {
    while sender.poll().is_some() {}
    sender.handle(SenderInput::Draft(draft())).unwrap();
    sender.poll() == Some(SenderOutput::Send(ToReplica::Draft(draft())))
}

#[test]
fn a_master_tells_drafts_until_it_knows_the_version() {
    let mut sender = Sender::new(hello());
    assert!(is_told(&mut sender) && is_told(&mut sender));
    sender.handle(SenderInput::Received(crate::wire::ToMaster::Stand(stand()))).unwrap();
    assert!(is_told(&mut sender));
    let version = announce().version;
    sender
        .handle(SenderInput::Decided { version, holds: Holds::default(), committed: true, offers_lead: false })
        .unwrap();
    assert!(!is_told(&mut sender));
    let policy = Policy { dry_run: true, ..Policy::default() };
    assert!(!is_told(&mut Sender::new(Hello { policy, ..hello() })), "in a dry run");
}

/// It would end the session, which it is not worth.
#[test]
fn a_master_does_not_tell_a_draft_that_no_replica_takes() {
    let mut sender = Sender::new(hello());
    while sender.poll().is_some() {}
    for size in [5, 6] {
        sender.handle(SenderInput::Draft(Draft { size, ..draft() })).unwrap();
        assert_eq!(sender.poll().is_some(), size == 6, "the ranges end at 6, the content at {size}");
    }
}

#[test]
fn a_replica_copies_nothing_for_a_dry_run_or_before_a_delete_limit_is_kept() {
    let policies = [
        (Policy::default(), true),
        (Policy { dry_run: true, ..Policy::default() }, false),
        (Policy { max_delete: Some(1), ..Policy::default() }, false),
    ];
    for (policy, copies) in policies {
        let mut receiver = Receiver::new();
        receiver.handle(ReceiverInput::Received(ToReplica::Hello(Hello { policy, ..hello() }))).unwrap();
        while receiver.poll().is_some() {}
        // It may overtake the answer to the hello.
        receiver.handle(ReceiverInput::Received(ToReplica::Draft(draft()))).unwrap();
        assert_eq!(receiver.poll(), copies.then(|| ReceiverOutput::Draft(draft())));
    }
}

#[test]
fn drafts_are_counted_and_come_before_the_announcement() {
    let take = |receiver: &mut Receiver| receiver.handle(ReceiverInput::Received(ToReplica::Draft(draft())));
    for (entries, bytes) in [(7, 100), (100, 5)] {
        let mut receiver = gathering();
        receiver.budget = Budget::new(entries, bytes);
        take(&mut receiver).unwrap();
        assert!(take(&mut receiver).is_err(), "{entries} drafts and ranges, {bytes} bytes of paths");
    }
    let mut receiver = gathering();
    receiver.handle(ReceiverInput::Received(ToReplica::Announce(announce()))).unwrap();
    assert!(take(&mut receiver).is_err());
}
