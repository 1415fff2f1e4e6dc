//! A tree that a replica has nothing of, told in stretches.

use std::sync::Arc;

use super::disk::{entry, path};
use super::grown;
use super::push::{Outcome, Push, World, in_order};
use super::scenarios::{announce, hello, stand};
use crate::hash::Digest;
use crate::manifest::{Holds, Kind, VersionId};
use crate::options::Policy;
use crate::path::RelPath;
use crate::session::{End, Load, Receiver, ReceiverInput, Sender, SenderInput, SenderOutput, Told};
use crate::wire::{Announce, Change, FOLLOW, Hello, Offered, STRETCHES, Stand, ToMaster, ToReplica};

/// As many stretches as there are, and what the sessions were.
fn bring(world: &mut World, between: &mut dyn FnMut(usize, &mut World)) -> Vec<Outcome> {
    let mut sessions = Push::new(world).run(world, &mut in_order);
    while let Some(Outcome { end: Some(End::Reached(..)), .. }) = sessions.last() {
        between(sessions.len(), world);
        sessions.extend(Push::new(world).run(world, &mut in_order));
    }
    sessions
}

fn in_stretches(world: World) -> World {
    World { stretch: Some(3), ..world }
}

#[test]
fn a_tree_comes_in_stretches_and_nothing_of_it_twice() {
    let mut world = in_stretches(grown());
    let sessions = bring(&mut world, &mut |_, world| assert_eq!(world.replicas[0].stand, None));
    // The top, a, b; b, d, d/e; d, d/e, d/e/deep; these, d/link, d/one, d/same; d, d/same, empty; empty, h1, h2; h2, pipe.
    let told: Vec<_> = sessions.iter().map(|session| session.changes).collect();
    assert_eq!(told, [3, 3, 3, 6, 3, 3, 2]);
    assert_eq!(sessions.iter().map(|session| session.wants).sum::<usize>(), 5);
    let last = sessions.last().unwrap();
    assert!(last.is_exact() && world.is_identical(0), "{last:#?}");
    assert!(sessions.iter().all(|session| (session.lists, session.restarts) == (0, 0)));
    // And then it is a replica like any other.
    world.source().write("a", "edited");
    let sessions = bring(&mut world, &mut |_, _| panic!("a stretch of a change"));
    assert_eq!((sessions[0].is_exact(), sessions[0].lists, sessions[0].wants), (true, 0, 1));
}

#[test]
fn a_cut_costs_what_was_under_way_and_no_comparison() {
    for steps in 0..40 {
        let mut world = in_stretches(grown());
        for _ in 0..2 {
            assert!(matches!(Push::new(&world).run(&mut world, &mut in_order)[0].end, Some(End::Reached(..))));
        }
        let mut third = Push::new(&world);
        for _ in 0..steps {
            let Some(step) = third.steps().first().copied() else { break };
            third.step(&mut world, step);
        }
        third.cut(0, &mut world.replicas[0], true);
        let sessions = bring(&mut world, &mut |_, _| {});
        assert!(sessions.last().unwrap().is_exact() && world.is_identical(0), "after {steps} steps");
        let told = sessions.iter().map(|session| session.changes).sum::<usize>();
        assert!(told == 17 || told == 14, "after {steps} steps: {told}");
        assert!(sessions.iter().all(|session| (session.lists, session.restarts) == (0, 0)), "after {steps} steps");
    }
}

#[test]
fn what_changes_while_stretches_come_is_found_in_the_end() {
    let mut world = in_stretches(grown());
    let sessions = bring(&mut world, &mut |after, world| {
        // One that was told, one that was not, and the place that was reached.
        match after {
            1 => drop(world.source().write("a", "edited").write("pipe2", "new").rm("b")),
            3 => drop(world.source().write("d/one", "edited")),
            _ => {}
        }
    });
    let last = sessions.last().unwrap();
    assert!(last.is_exact() && world.is_identical(0), "{last:#?}");
    assert_eq!((last.restarts, last.problems.len()), (1, 0));
}

/// Else the name would be linked to the old content and said to have the new one, which the first name would be copied from.
#[test]
fn a_further_name_of_what_changed_since_comes_in_the_end() {
    let mut world = in_stretches(grown());
    world.source().hard_link("a", "c");
    let sessions = bring(&mut world, &mut |after, world| {
        if after == 1 {
            world.source().write("a", "ALPHA");
        }
    });
    let last = sessions.last().unwrap();
    assert!(last.is_exact() && last.restarts == 1 && world.is_identical(0), "{last:#?}");
    assert_eq!(world.replicas[0].disk.at(&path("c")).unwrap().content, b"ALPHA");
}

#[test]
fn somebody_who_changes_the_replica_meanwhile_is_noticed_at_once() {
    let mut world = in_stretches(grown());
    let sessions = bring(&mut world, &mut |after, world| {
        if after == 2 {
            world.replicas[0].disk.write("a", "foreign").write("mine", "x");
        }
    });
    // The trees are compared instead, and that is no stretch.
    assert_eq!(sessions.len(), 3);
    assert!(sessions[2].is_exact() && sessions[2].lists > 0 && world.is_identical(0), "{:#?}", sessions[2]);
}

/// Most new file systems have something in them.
#[test]
fn a_replica_that_has_little_of_its_own_gets_a_tree_in_stretches_as_well() {
    for (own, stretches) in [(1, 3), (2, 0)] {
        let mut world = World { stretch: Some(32), ..World::new(1) };
        for i in 0..100 {
            world.source().write(&format!("{i:03}"), "x");
        }
        for i in 0..own {
            world.replicas[0].disk.mkdir(&format!("lost+found{i}"));
        }
        let sessions = bring(&mut world, &mut |_, _| {});
        assert_eq!(sessions.len() - 1, stretches, "{own}");
        let last = sessions.last().unwrap();
        assert!(last.is_exact() && world.is_identical(0), "{last:#?}");
    }
}

#[test]
fn what_failed_in_a_stretch_is_tried_again_in_the_end() {
    let mut world = in_stretches(grown());
    world.faults.unavailable = [path("d/one")].into();
    let sessions = bring(&mut world, &mut |after, world| {
        if after == 4 {
            world.faults.unavailable.clear();
        }
    });
    assert_eq!(sessions[3].problem_paths(), ["d/one"]);
    let last = sessions.last().unwrap();
    assert!(last.is_exact() && last.restarts == 1 && world.is_identical(0), "{last:#?}");

    let mut world = in_stretches(grown());
    world.faults.unavailable = [path("d/one")].into();
    let sessions = bring(&mut world, &mut |_, _| {});
    let last = sessions.last().unwrap();
    assert!(matches!(last.end, Some(End::Acknowledged { exact: false, .. })), "{last:#?}");
    assert_eq!((last.problem_paths(), world.replicas[0].stand), (vec!["d/one".to_owned()], None));
    world.faults.unavailable.clear();
    world.push_exactly();
    assert!(world.is_identical(0));
}

/// What a sender wants of the index first, and whether it makes a stretch of the two changes that it is told.
fn told_two(hello: &Hello, stand: Stand, committed: bool, reached: Option<RelPath>) -> (Load, bool) {
    let version = announce().version;
    let mut sender = Sender::new(hello.clone()).in_stretches(2);
    if let Some(reached) = reached {
        sender.handle(SenderInput::Received(ToMaster::Reached(reached))).unwrap();
    }
    sender.handle(SenderInput::Received(ToMaster::Stand(stand))).unwrap();
    sender.handle(SenderInput::Decided { version, holds: Holds::default(), committed, offers_lead: false }).unwrap();
    let load = std::iter::from_fn(|| sender.poll()).find_map(|output| match output {
        SenderOutput::Load(load) => Some(load),
        _ => None,
    });
    let changes = [("", Kind::Dir), ("a", Kind::Fifo)];
    let changes = changes.map(|(at, kind)| Change { path: path(at), entry: Some(entry(kind, 0o755)) }).to_vec();
    sender.handle(SenderInput::Changes { told: Told::from(changes), done: false }).unwrap();
    let is_stretch = |output| matches!(output, SenderOutput::Send(ToReplica::Stretch(_)));
    (load.unwrap(), std::iter::from_fn(|| sender.poll()).any(is_stretch))
}

#[test]
fn only_who_may_go_on_tells_stretches_and_only_of_what_is_published_and_new() {
    let follows = Hello { features: FOLLOW, ..hello() };
    let with = |policy: Policy| Hello { policy, ..follows.clone() };
    let empty = Stand { features: STRETCHES, version: None, entries: 0, ..stand() };
    let all = || Load::Subtree(path(""));
    assert_eq!(told_two(&follows, empty.clone(), true, None), (all(), true));
    let push = Hello { features: STRETCHES, ..hello() };
    assert_eq!(told_two(&push, empty.clone(), true, None), (all(), true));
    assert_eq!(told_two(&hello(), empty.clone(), true, None), (all(), false), "who has one session alone");
    let may_not = [Policy { dry_run: true, ..Policy::default() }, Policy { max_delete: Some(9), ..Policy::default() }];
    for policy in may_not {
        assert_eq!(told_two(&with(policy), empty.clone(), true, None), (all(), false));
    }
    assert_eq!(told_two(&follows, empty.clone(), false, None), (all(), false), "not published");
    let of_old = Stand { features: FOLLOW, ..empty.clone() };
    assert_eq!(told_two(&follows, of_old, true, None), (all(), false), "a replica that knows of no stretches");
    let known = Stand { version: Some(VersionId(Digest::of(b"v"))), entries: 3, ..empty.clone() };
    assert!(matches!(told_two(&follows, known.clone(), true, None), (Load::Since(_), false)));

    // Behind what the replica has, if it says so and stands at no version.
    let (there, reached) = (Stand { entries: 3, ..empty }, Some(path("A")));
    assert_eq!(told_two(&follows, there.clone(), true, reached.clone()), (Load::Behind(path("A")), true));
    let moved_on = Stand { version: known.version, ..there.clone() };
    assert!(matches!(told_two(&follows, moved_on, true, reached.clone()), (Load::Since(_), false)));
    // What was told again alone is no stretch.
    assert_eq!(told_two(&follows, there.clone(), true, Some(path("b"))), (Load::Behind(path("b")), false));
    let mut sender = Sender::new(hello()).in_stretches(2);
    sender.handle(SenderInput::Received(ToMaster::Reached(path("m")))).unwrap();
    sender.handle(SenderInput::Received(ToMaster::Stand(there))).unwrap();
    let (version, holds) = (announce().version, Holds::default());
    sender.handle(SenderInput::Decided { version, holds, committed: true, offers_lead: false }).unwrap();
    let lists = |output| matches!(output, SenderOutput::Send(ToReplica::List(_)));
    assert!(std::iter::from_fn(|| sender.poll()).any(lists), "who has one session alone compares");
    // Once, and first of all.
    assert!(sender.handle(SenderInput::Received(ToMaster::Reached(path("z")))).is_err());
}

#[test]
fn a_replica_takes_stretches_from_who_may_go_on_alone() {
    let takes = |hello: Hello, announced: Announce| {
        let mut receiver = Receiver::new();
        receiver.handle(ReceiverInput::Received(ToReplica::Hello(hello))).unwrap();
        receiver.handle(ReceiverInput::Opened(stand())).unwrap();
        receiver.handle(ReceiverInput::Received(ToReplica::Stretch(announced))).map_err(|error| error.to_string())
    };
    let follows = Hello { features: FOLLOW, ..hello() };
    let stretch = || Announce { committed: true, ..announce() };
    assert_eq!(takes(follows.clone(), stretch()), Ok(()));
    assert_eq!(takes(Hello { features: STRETCHES, ..hello() }, stretch()), Ok(()));
    let limited = Policy { max_delete: Some(1), ..Policy::default() };
    let dry_run = Policy { dry_run: true, ..Policy::default() };
    for (hello, announced) in [
        (hello(), stretch()),
        (follows.clone(), Announce { committed: false, ..stretch() }),
        (Hello { policy: limited, ..follows.clone() }, stretch()),
        (Hello { policy: dry_run, ..follows }, stretch()),
    ] {
        assert!(takes(hello, announced).unwrap_err().contains("a stretch where none may come"));
    }
}

/// What is offered ahead belongs to the first stretch, or there is none.
#[test]
fn a_stretch_has_all_that_was_offered() {
    for (offers, offers_lead, is_stretch) in [(0, false, true), (2, true, true), (2, false, false), (3, true, false)] {
        let mut sender = Sender::new(Hello { features: STRETCHES, ..hello() }).in_stretches(2);
        let offered = |i: u64| Offered {
            path: path(&format!("f{i}")),
            digest: Digest::of(&i.to_le_bytes()),
            size: 8,
            likely: entry(Kind::Dir, 0o600).metadata(),
        };
        sender.handle(SenderInput::Hashed(Arc::new((0..offers).map(offered).collect()))).unwrap();
        let empty = Stand { features: STRETCHES, version: None, entries: 0, ..stand() };
        sender.handle(SenderInput::Received(ToMaster::Stand(empty))).unwrap();
        let (version, holds) = (announce().version, Holds::default());
        sender.handle(SenderInput::Decided { version, holds, committed: true, offers_lead }).unwrap();
        let changes = ["", "a"].map(|at| Change { path: path(at), entry: Some(entry(Kind::Dir, 0o755)) }).to_vec();
        sender.handle(SenderInput::Changes { told: Told::from(changes), done: false }).unwrap();
        let mut outputs = std::iter::from_fn(|| sender.poll());
        let found = outputs.any(|output| matches!(output, SenderOutput::Send(ToReplica::Stretch(_))));
        assert_eq!(found, is_stretch, "{offers} offers, {offers_lead}");
    }
}
