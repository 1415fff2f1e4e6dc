//! Sessions that go well, or wrong in one known way.

use std::sync::Arc;

use super::disk::path;
use super::push::{Push, Step, World, at_random, in_order};
use super::{grown, settled};
use crate::chunk::ChunkRef;
use crate::chunk::pieces::{Form, Pieces, small};
use crate::diff::Child;
use crate::hash::Digest;
use crate::manifest::{Entry, Holds, Metadata, Version};
use crate::monitor::{How, Item, Problem};
use crate::path::RelPath;
use crate::plan::Changes;
use crate::session::receiver::MOST_WANTED;
use crate::session::{
    Budget, End, Receiver, ReceiverInput, ReceiverOutput, Sender, SenderInput, SenderOutput, Settled, Told,
};
use crate::wire::{
    Ack, Announce, Change, Describe, Described, FOLLOW, Hello, Listing, MAX_CHUNKS, Moved, Offered, Parts, Refusal,
    ReplicaStats, Run, Stand, ToMaster, ToReplica, Touched, Unavailable, Wanted,
};

fn only(mut outcomes: Vec<super::push::Outcome>) -> super::push::Outcome {
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

#[test]
fn the_first_push_sends_everything_once() {
    let mut world = grown();
    let outcome = only(world.push_exactly());
    assert_eq!(outcome.changes, world.master.entries().len());
    assert_eq!((outcome.lists, outcome.restarts), (0, 0));
    // alpha, beta, 1, deep and linked: equal contents travel once, empty ones never.
    assert_eq!(outcome.wants, 5);
}

#[test]
fn what_an_offer_told_is_not_told_again() {
    let mut world = grown();
    let outcome = only(world.push_exactly());
    // Of files with content of their own there is nothing left to tell but attributes and hard links.
    let told = |entry: &Entry| entry.needs_content() && entry.xattrs.is_empty() && entry.link.is_none();
    let entries = world.master.entries();
    assert_eq!(outcome.in_full, entries.values().filter(|entry| !told(entry)).count());
    assert!(outcome.in_full < outcome.changes);
}

#[test]
fn only_what_was_offered_is_told_by_number_and_once() {
    let to = |receiver: &mut Receiver, message| receiver.handle(ReceiverInput::Received(message));
    let told = |first, count| ToReplica::AsOffered(vec![Run { first, count }]);
    let likely = super::disk::entry(crate::manifest::Kind::Fifo, 0o644).metadata();
    let file = |at: &str, size, mode| {
        let (path, digest) = (RelPath::new(at).unwrap(), Digest::of(b"x"));
        Offered { path, digest, size, likely: Metadata { mode, ..likely } }
    };
    let files =
        [file("a", 1, 0o644), file("b", 1, 0o644), file("c", 0, 0o644), file("d", 1, 0o77_777), file("", 1, 0o644)];
    let offered = || {
        let mut receiver = gathering();
        to(&mut receiver, ToReplica::Offer(files.to_vec())).unwrap();
        receiver
    };
    let mut receiver = offered();
    to(&mut receiver, told(0, 2)).unwrap();
    assert!(to(&mut receiver, told(1, 1)).is_err(), "twice");
    for (first, count, what) in [
        (2, 1, "an empty file"),
        (3, 1, "an impossible mode"),
        (4, 1, "the top"),
        (5, 1, "not offered"),
        (u64::MAX, 1, "no number"),
        (0, u32::MAX, "more than there are"),
    ] {
        assert!(to(&mut offered(), told(first, count)).is_err(), "{what}");
    }
}

#[test]
fn nothing_to_do_takes_five_messages() {
    let mut world = settled();
    let outcome = only(world.push_exactly());
    // Hello, announcement; stand, acknowledgement.
    assert_eq!((outcome.to_replica, outcome.to_master), (2, 2));
    assert_eq!((outcome.changes, outcome.wants), (0, 0));
}

#[test]
fn a_known_version_costs_its_changes_and_not_its_size() {
    let mut world = World::new(1);
    for dir in 0..10 {
        world.source().mkdir(&format!("{dir}"));
        for file in 0..30 {
            world.source().write(&format!("{dir}/{file}"), &format!("{dir} {file}"));
        }
    }
    world.push_exactly();
    world.source().write("3/7", "edited").rm("5/1").rename("7/7", "7/new");
    let outcome = only(world.push_exactly());
    // 3/7; 5/1; 7/7 and 7/new.
    assert_eq!((outcome.changes, outcome.lists, outcome.wants), (4, 0, 1));
    // One question about an old file, with two answers, among them.
    assert!(outcome.to_replica + outcome.to_master <= 14, "{outcome:#?}");
}

#[test]
fn other_metadata_and_other_names_are_told_against_the_known_version() {
    let mut world = settled();
    world.source().retime("a").chmod("h1", 0o600).rename("d", "moved").write("b", "beta, edited");
    let outcome = only(world.push_exactly());
    // a, h1 and h2; d under its new name; that d went, and b as it was offered.
    assert_eq!((outcome.touched, outcome.moved, outcome.in_full, outcome.changes), (3, 1, 1, 6));
    assert_eq!((outcome.restarts, outcome.wants), (0, 1));
    // Nothing is lost by that.
    let mut limited = world.clone();
    limited.policy.max_delete = Some(0);
    limited.source().rename("moved", "again").retime("a");
    let outcome = only(limited.push_exactly());
    assert_eq!((outcome.touched, outcome.moved, outcome.in_full), (1, 1, 1));
    // A version further back: all in full.
    let mut behind = world.clone();
    behind.replicas[0] = settled().replicas.remove(0);
    behind.source().retime("a");
    let outcome = only(behind.push_exactly());
    assert_eq!((outcome.touched, outcome.moved, outcome.restarts), (0, 0, 0));
    assert!(outcome.in_full > 6, "{outcome:#?}");
}

/// Rows that are not what the master thinks make another root, and that a comparison of the trees.
#[test]
fn what_cannot_be_made_from_the_rows_is_told_again_in_full() {
    type Drift = fn(&mut super::disk::Disk);
    let drifts: [(&str, Drift); 6] = [
        ("a touched file is gone", |disk| {
            disk.rm("a");
        }),
        ("a touched file is another", |disk| {
            disk.write("a", "tampered");
        }),
        ("a touched file is a directory", |disk| {
            disk.mkdir("a");
        }),
        ("the moved directory is gone", |disk| {
            disk.rm("d");
        }),
        ("the moved directory is another", |disk| {
            disk.write("d/e/deep", "tampered");
        }),
        ("something lies where it is moved to", |disk| {
            disk.mkdir("moved").write("moved/x", "?");
        }),
    ];
    for no_delete in [false, true] {
        for (what, drift) in drifts {
            let mut world = settled();
            world.policy.no_delete = no_delete;
            drift(&mut world.replicas[0].disk);
            world.source().retime("a").rename("d", "moved");
            let outcome = only(world.push_exactly());
            assert_eq!((outcome.touched, outcome.moved, outcome.restarts), (1, 1, 1), "{what}");
            assert!(world.is_identical(0), "{what}");
        }
    }
}

/// A directory that holds all names of a file is told in full, for they name each other.
#[test]
fn hard_links_move_well() {
    let mut world = settled();
    world.source().mkdir("g").write("g/1", "group").hard_link("g/1", "g/2").mkdir("o").hard_link("a", "o/a");
    world.push_exactly();
    world.source().rename("g", "g-moved").rename("o", "o-moved");
    let outcome = only(world.push_exactly());
    // The name in `o` belongs to a file that is somewhere else, before and after.
    assert_eq!((outcome.moved, outcome.restarts), (1, 0));
    assert!(world.is_identical(0));
    // Now it would come first.
    world.source().rename("o-moved", "0");
    let outcome = only(world.push_exactly());
    assert_eq!((outcome.moved, outcome.restarts), (0, 0));
}

#[test]
fn an_unknown_version_is_compared_directory_by_directory() {
    let mut world = World::new(1);
    for dir in 0..10 {
        world.source().mkdir(&format!("{dir}"));
        for file in 0..30 {
            world.source().write(&format!("{dir}/{file}"), &format!("{dir} {file}"));
        }
    }
    world.push_exactly();
    world.master.lose_index();
    world.source().write("3/7", "edited").rm("5/1");
    let outcome = only(world.push_exactly());
    // The top, then 3 and 5 in one list.
    assert_eq!((outcome.changes, outcome.lists, outcome.restarts, outcome.wants), (2, 2, 0, 1));
    let unchanged = only(world.push_exactly());
    assert_eq!(unchanged.changes, 0);
}

#[test]
fn a_diff_that_does_not_lead_to_the_root_starts_over() {
    let mut world = settled();
    let replica = &mut world.replicas[0].disk;
    replica.write("d/one", "tampered").rm("pipe").write("stray", "?").chmod("b", 0o600);
    world.source().write("a", "new");
    let outcome = only(world.push_exactly());
    assert_eq!((outcome.restarts, outcome.lists), (1, 2));
    assert!(world.is_identical(0));
}

#[test]
fn drift_alone_is_found_although_the_version_is_the_latest() {
    let mut world = settled();
    world.replicas[0].disk.write("d/one", "tampered");
    let outcome = only(world.push_exactly());
    // Nothing changed since that version, so the trees are compared at once.
    assert_eq!((outcome.restarts, outcome.lists), (0, 2));
}

#[test]
fn a_master_that_was_restored_from_an_old_copy_still_ends_exact() {
    let mut world = settled();
    let old = world.master.index.clone();
    world.source().write("a", "newer").rm("b");
    world.push_exactly();
    world.master.index = old;
    world.source().write("a", "newest");
    let outcome = only(world.push_exactly());
    assert!(outcome.lists > 0, "the version is unknown");
}

#[test]
fn a_replica_that_was_restored_from_an_old_copy_still_ends_exact() {
    let mut world = settled();
    let old = world.replicas[0].clone();
    world.source().write("a", "newer").rm("b");
    world.push_exactly();
    world.replicas[0] = old;
    world.source().swap("d/one", "d/same");
    world.push_exactly();
}

#[test]
fn types_change_into_each_other() {
    let mut world = settled();
    world.source().rm("d").write("d", "a file now").mkdir("a").write("a/x", "alpha").symlink("b", "x").fifo("h2");
    world.push_exactly();
    world.source().rm("d").mkdir("d").write("d/y", "a file now").rm("a").symlink("a", "d").write("pipe", "no pipe");
    world.push_exactly();
}

#[test]
fn names_swap_without_content_on_the_wire() {
    let mut world = settled();
    world.source().swap("a", "b").swap("d/one", "d/e/deep").rename("d/e", "e");
    let outcome = only(world.push_exactly());
    assert_eq!(outcome.wants, 0);
}

#[test]
fn no_delete_keeps_extras_and_a_later_push_removes_them() {
    let mut world = settled();
    world.policy.no_delete = true;
    world.source().rm("d/e").rm("pipe").write("new", "new");
    world.push_exactly();
    assert!(world.replicas[0].disk.at(&path("d/e/deep")).is_some());
    let again = only(world.push_exactly());
    assert_eq!(again.changes, 0, "extras are no reason to compare again");
    world.policy.no_delete = false;
    world.push_exactly();
    assert!(world.replicas[0].disk.at(&path("d/e")).is_none());
}

#[test]
fn what_cannot_be_read_stays_as_it_was() {
    let mut world = settled();
    world.source().rm("d/e").write("d/one", "unseen").write("a", "seen");
    world.master.holds = Holds::new([path("d")]);
    let outcome = only(world.push_exactly());
    assert_eq!(outcome.wants, 1);
    let held = world.replicas[0].disk.at(&path("d/one")).map(|inode| inode.content.clone());
    assert_eq!(held.as_deref(), Some(&b"1"[..]));
    assert!(world.replicas[0].disk.at(&path("d/e/deep")).is_some());
    world.master.holds = Holds::default();
    world.push_exactly();
    assert!(world.replicas[0].disk.at(&path("d/e")).is_none());
}

#[test]
fn what_cannot_be_read_is_not_sent_either() {
    let mut world = settled();
    world.master.lose_index();
    world.master.holds = Holds::new([path("d"), path("h1")]);
    world.source().write("a", "seen");
    let outcome = only(world.push_exactly());
    // a, and h2, which is the first name of its group now.
    assert_eq!((outcome.lists, outcome.changes), (1, 2));
}

#[test]
fn too_many_deletes_refuse_the_whole_plan() {
    let mut world = settled();
    world.source().rm("d").write("a", "new");
    world.policy.max_delete = Some(3);
    let before = world.replicas[0].disk.entries(|_| true);
    let outcome = only(world.push());
    assert!(matches!(outcome.end, Some(End::Refused(Refusal { for_a_person: true, .. }))), "{outcome:#?}");
    assert_eq!(world.replicas[0].disk.entries(|_| true), before);
    assert_eq!(outcome.wants, 0, "no content is asked for before the guard has spoken");
    // d, and in it one, same, e, e/deep and link; same goes although its content stays at a.
    world.policy.max_delete = Some(6);
    world.push_exactly();
}

/// The first plan, from what the master's index says changed, is no plan at all: nothing may be staged for it.
#[test]
fn too_many_deletes_after_a_restart_leave_nothing_behind() {
    let mut world = settled();
    world.source().rm("d").write("a", "new");
    world.replicas[0].disk.write("b", "tampered");
    world.policy.max_delete = Some(3);
    let before = world.replicas[0].disk.entries(|_| true);
    let outcome = only(world.push());
    assert!(matches!(outcome.end, Some(End::Refused(Refusal { for_a_person: true, .. }))), "{outcome:#?}");
    assert_eq!((outcome.restarts, outcome.wants, world.replicas[0].staged.len()), (1, 0, 0));
    assert_eq!(world.replicas[0].disk.entries(|_| true), before);
    world.policy.max_delete = Some(6);
    let outcome = only(world.push_exactly());
    assert_eq!(outcome.restarts, 1);
}

#[test]
fn a_dry_run_tells_and_changes_nothing() {
    for (master_lost, estimate) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut world = settled();
        world.source().write("a", "new").rm("pipe").rename("b", "c");
        world.policy.dry_run = true;
        world.policy.itemize = true;
        world.policy.estimate = estimate;
        if master_lost {
            world.master.lose_index();
        }
        let before = world.replicas[0].disk.entries(|_| true);
        let outcome = only(world.push_exactly());
        assert_eq!(world.replicas[0].disk.entries(|_| true), before);
        // Asked for once, and not again when it does not come.
        assert_eq!(outcome.wants, usize::from(estimate));
        let items: Vec<_> = outcome.items.iter().map(|item| format!("{} {}", item.code, item.path)).collect();
        assert_eq!(items, [">f.st...... a", "*deleting   b", "cf+++++++++ c", "*deleting   pipe"]);
    }
}

#[test]
fn content_that_arrives_wrong_is_asked_for_whole() {
    let mut world = settled();
    world.source().write("b", "beta, edited");
    world.faults.false_matches = true;
    let outcome = only(world.push_exactly());
    assert_eq!((outcome.wants, outcome.wants_with_basis), (2, 1));
}

#[test]
fn content_that_arrives_wrong_twice_is_a_problem_of_that_file_alone() {
    let mut world = settled();
    world.source().write("b", "beta, edited").write("a", "alpha, edited");
    world.faults.torn.insert(path("b"));
    let outcome = only(world.push());
    assert!(matches!(outcome.end, Some(End::Acknowledged { exact: false, .. })), "{outcome:#?}");
    assert_eq!(outcome.problem_paths(), ["b"], "told once: {outcome:#?}");
    assert_eq!(outcome.wants, 3);
    let at = |p: &str| world.replicas[0].disk.at(&path(p)).unwrap().content.clone();
    assert_eq!((at("a"), at("b")), (b"alpha, edited".to_vec(), b"beta".to_vec()));
    world.faults.torn.clear();
    world.push_exactly();
}

#[test]
fn content_that_cannot_be_read_any_more_keeps_the_old_file() {
    let mut world = settled();
    world.source().write("b", "beta, edited").write("d/one", "one, edited");
    world.faults.unavailable.insert(path("b"));
    let outcome = only(world.push());
    assert!(matches!(outcome.end, Some(End::Acknowledged { exact: false, .. })), "{outcome:#?}");
    assert_eq!(outcome.problem_paths(), ["b"], "told once: {outcome:#?}");
    assert_eq!(world.replicas[0].disk.at(&path("b")).unwrap().content, b"beta");
    world.faults.unavailable.clear();
    world.push_exactly();
}

#[test]
fn a_small_file_that_could_not_be_stored_is_tried_once_more() {
    for (failures, wants) in [(1, 3), (2, 3)] {
        let mut world = settled();
        world.source().write("b", "beta, edited").write("d/one", "one, edited");
        world.faults.unstorable.insert(path("b"), failures);
        let outcome = only(world.push());
        assert_eq!((outcome.is_exact(), outcome.wants), (failures == 1, wants), "{outcome:#?}");
        assert_eq!(outcome.problem_paths().len(), failures as usize - 1, "{outcome:#?}");
        assert_eq!(world.replicas[0].disk.at(&path("d/one")).unwrap().content, b"one, edited");
        world.push_exactly();
    }
}

/// Together they filled the disk: by themselves some fit, and where one does not, no larger one is sent in vain.
#[test]
fn large_files_that_could_not_be_stored_are_tried_again_one_by_one() {
    let file = |at: &str, mebibytes: u64| Offered {
        path: path(at),
        digest: Digest::of(at.as_bytes()),
        size: mebibytes << 20,
        likely: super::disk::entry(crate::manifest::Kind::Fifo, 0o644).metadata(),
    };
    let files = vec![file("a", 7), file("b", 4), file("c", 6), file("d", 9)];
    let mut receiver = gathering();
    let wants = (0..4).map(Wanted::whole).zip(files.clone()).collect();
    receiver.handle(ReceiverInput::Received(ToReplica::Offer(files))).unwrap();
    receiver.handle(ReceiverInput::Considered(wants)).unwrap();
    receiver.handle(ReceiverInput::Received(ToReplica::Announce(Announce { contents: 4, ..announce() }))).unwrap();
    let mut settle = |seq, settled| {
        while receiver.poll().is_some() {}
        receiver.handle(ReceiverInput::Settled(seq, settled)).unwrap();
        receiver.poll()
    };
    let failed = || Settled::Failed(Problem { path: None, reason: "no space left".to_owned() });
    let wanted = |seq| Some(ReceiverOutput::Send(ToMaster::Want(vec![Wanted::whole(seq)])));
    for seq in [0, 1, 2] {
        assert_eq!(settle(seq, failed()), None);
    }
    assert_eq!(settle(3, failed()), wanted(1));
    assert_eq!(settle(1, Settled::Staged), wanted(2));
    assert!(matches!(settle(2, failed()), Some(ReceiverOutput::Plan(..))));
}

/// What is believed to be here by the beginning of its digest may not be: the plan finds out, and asks for it.
#[test]
fn content_that_only_seemed_to_be_there_is_asked_for_after_all() {
    for master_lost in [false, true] {
        let mut world = settled();
        world.source().write("b", "beta, edited").write("d/one", "beta, edited").write("d/e/deep", "deeper");
        for content in ["beta, edited", "deeper"] {
            world.replicas[0].mistaken.insert(Digest::of(content.as_bytes()));
        }
        if master_lost {
            world.master.lose_index();
        }
        let outcome = only(world.push_exactly());
        // Each content once, with the old file at hand.
        assert_eq!((outcome.wants, outcome.wants_with_basis, outcome.restarts), (2, 2, 0));
    }
    // In a dry run it is nothing to report.
    let mut world = settled();
    world.source().write("b", "beta, edited");
    world.replicas[0].mistaken.insert(Digest::of(b"beta, edited"));
    world.policy.dry_run = true;
    assert_eq!(only(world.push()).problems, []);
}

/// Also if it has to be asked for without a basis again, and if there is no end to its coming wrong.
#[test]
fn content_that_was_missing_and_comes_wrong_is_a_problem_of_that_file() {
    let mut world = settled();
    world.source().write("b", "beta, edited");
    world.replicas[0].mistaken.insert(Digest::of(b"beta, edited"));
    world.faults.false_matches = true;
    let outcome = only(world.clone().push_exactly());
    assert_eq!((outcome.wants, outcome.wants_with_basis), (2, 1));
    world.faults.torn.insert(path("b"));
    let outcome = only(world.push());
    assert_eq!((outcome.is_exact(), outcome.problem_paths()), (false, vec!["b".to_owned()]));
}

/// The master offers the content by its first name, and cannot read that one any more.
#[test]
fn content_is_asked_for_by_its_other_names() {
    let names = ["b", "new", "newer", "newest"];
    for unreadable in 1..=names.len() {
        for (restarts, lost) in [(0, false), (1, false), (0, true)] {
            let mut world = settled();
            for name in names {
                world.source().write(name, "the same");
            }
            world.faults.unavailable = names[..unreadable].iter().map(|name| path(name)).collect();
            if restarts == 1 {
                world.replicas[0].disk.write("a", "tampered");
            }
            if lost {
                world.master.lose_index();
            }
            let outcome = only(world.push());
            assert_eq!(outcome.restarts, restarts);
            assert_eq!(outcome.is_exact(), unreadable < names.len(), "{outcome:#?}");
            // The master tells of each name that it cannot read, and nobody else.
            assert_eq!(outcome.problem_paths(), names[..unreadable]);
            assert_eq!(outcome.wants, names.len().min(unreadable + 1));
            world.faults.unavailable.clear();
            world.push_exactly();
        }
    }
}

/// The inode of a file whose new content did not come is not given to another name, nor dressed for it.
#[test]
fn a_file_that_keeps_its_old_content_keeps_its_inode_to_itself() {
    let mut world = settled();
    world.source().rename("b", "c").chmod("c", 0o600).write("b", "beta, edited");
    world.faults.unavailable.insert(path("b"));
    let before = world.replicas[0].disk.at(&path("b")).unwrap().entry.clone();
    world.push();
    let disk = &world.replicas[0].disk;
    assert_ne!(disk.ino(&path("b")), disk.ino(&path("c")));
    assert_eq!(disk.at(&path("b")).unwrap().entry, before);
    assert_eq!(disk.at(&path("c")).unwrap().content, b"beta");
    world.faults.unavailable.clear();
    world.push_exactly();
}

/// A name whose group's content did not come must not become a link to the old content.
#[test]
fn a_link_to_a_file_whose_content_is_missing_waits_with_it() {
    let mut world = settled();
    world.source().write("b", "BETA").hard_link("b", "d/one");
    world.faults.unavailable.insert(path("b"));
    let outcome = only(world.push());
    assert!(!outcome.is_exact());
    assert_eq!(world.replicas[0].disk.at(&path("d/one")).unwrap().content, b"1");
    world.faults.unavailable.clear();
    world.push_exactly();
}

/// A directory is emptied only if what takes its place is there.
#[test]
fn a_directory_stays_whole_when_the_file_in_its_place_is_missing() {
    let mut world = settled();
    world.source().rm("d").write("d", "a file now");
    world.faults.unavailable.insert(path("d"));
    let outcome = only(world.push());
    assert!(!outcome.is_exact());
    assert!(world.replicas[0].disk.at(&path("d/e/deep")).is_some());
    world.faults.unavailable.clear();
    world.push_exactly();
    assert!(world.replicas[0].disk.at(&path("d/e")).is_none());
}

#[test]
fn with_no_delete_a_directory_stays_where_a_file_should_be() {
    let mut world = settled();
    world.policy.no_delete = true;
    world.source().rm("d").write("d", "a file now").write("a", "changed");
    for _ in 0..2 {
        let outcome = only(world.push());
        assert!(!outcome.is_exact());
        assert_eq!(outcome.problem_paths(), ["d"]);
        assert!(world.replicas[0].disk.at(&path("d/e/deep")).is_some());
    }
    world.policy.no_delete = false;
    world.push_exactly();
    assert!(world.replicas[0].disk.at(&path("d/e")).is_none());
}

#[test]
fn a_dead_replica_delays_no_other() {
    for seed in 0..40 {
        let mut world = World::new(3);
        world.source().write("a", "alpha").mkdir("d").write("d/x", "x").write("d/y", "y");
        let mut push = Push::new(&world);
        let mut choose = at_random(seed);
        for _ in 0..seed {
            let steps = push.steps();
            push.step(&mut world, choose(&steps));
        }
        push.cut(1, &mut world.replicas[1], false);
        let outcomes = push.run(&mut world, &mut choose);
        assert!(outcomes[0].is_exact() && outcomes[2].is_exact(), "{outcomes:#?}");
        assert!(world.is_identical(0) && world.is_identical(2));
        world.push_exactly();
        assert!(world.is_identical(1));
    }
}

#[test]
fn replicas_at_different_versions_are_served_at_once() {
    let mut world = World::new(3);
    world.source().write("a", "1").write("b", "2");
    world.push_exactly();
    let behind = world.replicas[0].clone();
    world.source().write("a", "3").mkdir("d");
    world.push_exactly();
    world.replicas[0] = behind;
    world.replicas[1] = super::replica::Replica::new();
    world.source().write("d/x", "4");
    let outcomes = world.push_exactly();
    assert_eq!(outcomes.iter().map(|o| o.changes).collect::<Vec<_>>(), [3, 5, 1]);
}

/// Any order of events that the network and the drivers can produce leads to the same end.
#[test]
fn the_order_of_events_does_not_matter() {
    for seed in 0..200 {
        let mut world = settled();
        world.source().swap("a", "b").write("d/one", "new").write("fresh", "fresh").rm("d/e").hard_link("a", "d/l");
        if seed % 3 == 0 {
            world.replicas[0].disk.write("d/same", "drift");
        }
        let outcomes = Push::new(&world).run(&mut world, &mut at_random(seed));
        assert!(outcomes[0].is_exact(), "seed {seed}: {outcomes:#?}");
    }
}

/// The parts of a simulation that every other test relies on, each broken on purpose.
#[test]
fn the_simulation_notices() {
    let mut world = settled();
    world.replicas[0].disk.chmod("a", 0o600);
    assert!(!world.is_identical(0));
    let mut world = settled();
    world.replicas[0].disk.rm("h2").write("h2", "linked");
    assert!(!world.is_identical(0), "a copy is no hard link");
    let mut push = Push::new(&grown());
    assert!(push.duplicate(push.steps()[0]));
    assert_eq!(in_order(&push.steps()), Step::ToReplica(0));
}

pub(super) fn hello() -> Hello {
    Hello { features: 0, share: "www".to_owned(), policy: crate::options::Policy::default() }
}

#[test]
fn nothing_is_said_after_the_end() {
    let mut sender = Sender::new(hello());
    while sender.poll().is_some() {}
    sender.handle(SenderInput::Received(ToMaster::Stand(stand()))).unwrap();
    let refusal = Refusal { for_a_person: false, reason: "no".to_owned() };
    sender.handle(SenderInput::Received(ToMaster::Refuse(refusal.clone()))).unwrap();
    assert_eq!(sender.poll(), Some(SenderOutput::End(End::Refused(refusal.clone()))));
    sender
        .handle(SenderInput::Decided {
            version: announce().version,
            holds: Holds::default(),
            committed: true,
            offers_lead: false,
        })
        .unwrap();
    sender.handle(SenderInput::Unavailable { seq: 0, reason: String::new() }).unwrap();
    assert_eq!(sender.poll(), None);

    let mut receiver = Receiver::new();
    receiver.handle(ReceiverInput::Received(ToReplica::Hello(hello()))).unwrap();
    receiver.handle(ReceiverInput::Refuse(refusal.clone())).unwrap();
    receiver.handle(ReceiverInput::Notice("late".to_owned())).unwrap();
    receiver.handle(ReceiverInput::Problems(vec![Problem { path: None, reason: "late".to_owned() }])).unwrap();
    let said: Vec<_> = std::iter::from_fn(|| receiver.poll()).skip(1).collect();
    assert_eq!(said, [ReceiverOutput::Send(ToMaster::Refuse(refusal)), ReceiverOutput::End]);
}

/// A receiver that is ready for changes.
pub(super) fn gathering() -> Receiver {
    let mut receiver = Receiver::new();
    receiver.handle(ReceiverInput::Received(ToReplica::Hello(hello()))).unwrap();
    receiver.handle(ReceiverInput::Opened(stand())).unwrap();
    receiver
}

pub(super) fn stand() -> Stand {
    Stand { features: 0, version: None, root: Digest::empty(), entries: 0 }
}

pub(super) fn announce() -> Announce {
    let version = super::master::Master::new().commit().version;
    Announce { holds: Vec::new(), held: 0, version, changes: 0, contents: 0, committed: true }
}

/// The master's word is waited for where the version may still be forgotten.
#[test]
fn a_committed_version_is_published_without_a_further_word() {
    for (features, committed) in [(0, false), (0, true), (FOLLOW, false), (FOLLOW, true)] {
        let mut receiver = Receiver::new();
        let hello = Hello { features, ..hello() };
        receiver.handle(ReceiverInput::Received(ToReplica::Hello(hello))).unwrap();
        receiver.handle(ReceiverInput::Opened(stand())).unwrap();
        let announce = Announce { committed, ..announce() };
        receiver.handle(ReceiverInput::Received(ToReplica::Announce(announce.clone()))).unwrap();
        let root = announce.version.root;
        let planned = ReceiverInput::Planned { root, items: Vec::new(), missing: Vec::new(), changes: Changes::new() };
        receiver.handle(planned).unwrap();
        while receiver.poll().is_some() {}
        receiver.handle(ReceiverInput::Prepared(None)).unwrap();
        let expected = match committed {
            true => ReceiverOutput::Publish,
            false => ReceiverOutput::Send(ToMaster::Prepared(root)),
        };
        assert_eq!(receiver.poll(), Some(expected), "features {features}, committed {committed}");
        assert_eq!(receiver.poll(), None);
    }
}

#[test]
fn what_makes_no_sense_ends_the_session() {
    let to = |receiver: &mut Receiver, message| receiver.handle(ReceiverInput::Received(message));
    let from = |sender: &mut Sender, message| sender.handle(SenderInput::Received(message));
    assert!(to(&mut Receiver::new(), ToReplica::Restart(())).is_err(), "before the hello");
    assert!(to(&mut gathering(), ToReplica::Hello(hello())).is_err(), "two hellos");
    assert!(to(&mut gathering(), ToReplica::Publish(announce().version.id())).is_err(), "nothing is prepared");
    assert!(to(&mut gathering(), ToReplica::Announce(announce())).is_ok());
    let more_changes = Announce { changes: 1, ..announce() };
    assert!(to(&mut gathering(), ToReplica::Announce(more_changes)).is_err(), "a change is missing");
    let more_holds = Announce { held: 1, ..announce() };
    assert!(to(&mut gathering(), ToReplica::Announce(more_holds)).is_err(), "a held path is missing");
    let more_contents = Announce { contents: 1, ..announce() };
    assert!(to(&mut gathering(), ToReplica::Announce(more_contents)).is_err(), "a content is missing");

    let mut receiver = gathering();
    let version = announce().version;
    to(&mut receiver, ToReplica::Announce(Announce { committed: false, ..announce() })).unwrap();
    receiver
        .handle(ReceiverInput::Planned {
            root: version.root,
            items: Vec::new(),
            missing: Vec::new(),
            changes: Changes::new(),
        })
        .unwrap();
    receiver.handle(ReceiverInput::Prepared(None)).unwrap();
    let other = Version { number: 2, ..version.clone() };
    assert!(to(&mut receiver, ToReplica::Publish(other.id())).is_err(), "another version than the prepared one");
    assert!(to(&mut receiver, ToReplica::Publish(version.id())).is_ok());

    let mut sender = Sender::new(hello());
    assert!(from(&mut sender, ToMaster::Prepared(Digest::empty())).is_err(), "nothing is announced");
    let wanted = Wanted::whole(0);
    assert!(from(&mut sender, ToMaster::Want(vec![wanted])).is_err(), "nothing is offered");
    from(&mut sender, ToMaster::Stand(stand())).unwrap();
    assert!(from(&mut sender, ToMaster::Stand(stand())).is_err(), "two stands");
    sender
        .handle(SenderInput::Decided {
            version: version.clone(),
            holds: Holds::default(),
            committed: true,
            offers_lead: false,
        })
        .unwrap();
    sender.handle(SenderInput::Changes { told: Told::default(), done: true }).unwrap();
    let ack = Ack { version: other.id(), root: version.root, stats: ReplicaStats::default(), refused: [0; 6] };
    assert!(from(&mut sender, ToMaster::Ack(ack.clone())).is_err(), "an acknowledgement of another version");
    from(&mut sender, ToMaster::Ack(Ack { version: version.id(), ..ack })).unwrap();
}

#[test]
fn long_lists_travel_in_several_messages() {
    let mut receiver = Receiver::new();
    receiver.handle(ReceiverInput::Received(ToReplica::Hello(hello()))).unwrap();
    let problem = |i| Problem { path: Some(path(&format!("{i}"))), reason: "r".repeat(100) };
    receiver.handle(ReceiverInput::Problems((0..300_000).map(problem).collect())).unwrap();
    let mut told = 0;
    while let Some(output) = receiver.poll() {
        if let ReceiverOutput::Send(message) = output {
            assert!(message.encode().body.len() < crate::wire::MAX_MESSAGE);
            let ToMaster::Problems(problems) = message else { panic!("{message:?}") };
            told += problems.len();
        }
    }
    assert_eq!(told, 300_000);

    // One list for each level, however many directories.
    let mut world = World::new(1);
    let name = |c: char| c.to_string().repeat(250);
    world.source().mkdir(&name('d'));
    for i in 0..20 {
        let dir = format!("{}/{i}", name('d'));
        world.source().mkdir(&dir).write(&format!("{dir}/x"), "x");
    }
    world.push_exactly();
    world.master.lose_index();
    for i in 0..20 {
        world.source().write(&format!("{}/{i}/x", name('d')), &format!("{i}"));
    }
    let outcome = only(world.push_exactly());
    assert_eq!((outcome.changes, outcome.lists), (20, 3));
}

/// The directories that did not fit come before those that were found meanwhile, and not in tree order.
#[test]
fn directories_are_asked_for_in_tree_order() {
    let mut world = World::new(1);
    for i in 0..300 {
        let dir = format!("{i:03}");
        world.source().mkdir(&dir).mkdir(&format!("{dir}/d")).write(&format!("{dir}/d/x"), "x");
    }
    world.push_exactly();
    world.master.lose_index();
    for i in 0..300 {
        world.source().write(&format!("{i:03}/d/x"), &format!("{i}"));
    }
    let outcome = only(world.push_exactly());
    assert_eq!((outcome.changes, outcome.lists), (300, 4));
}

/// More held paths than one message holds: all of them are left alone, after a restart as well.
#[test]
fn many_paths_are_held() {
    let mut world = settled();
    let names: Vec<String> = (0..2500).map(|i| format!("z{i:04}")).collect();
    for name in &names {
        world.source().write(name, "held");
        world.replicas[0].disk.write(name, "theirs");
    }
    world.master.holds = Holds::new(names.iter().map(|name| path(name)));
    world.source().write("a", "alpha, edited");
    world.replicas[0].disk.write("d/one", "tampered");
    let outcome = only(world.push());
    assert!(outcome.is_exact() && outcome.restarts == 1, "{outcome:#?}");
    assert!(world.is_identical(0));
    assert!(names.iter().all(|name| world.replicas[0].disk.at(&path(name)).unwrap().content == b"theirs"));
}

/// Whatever a master repeats costs it something, in one session and across its kinds of messages.
#[test]
fn what_a_master_sends_is_counted() {
    let offer = ToReplica::Offer(vec![Offered {
        path: path("abcd"),
        digest: Digest::of(b"x"),
        size: 1,
        likely: super::disk::entry(crate::manifest::Kind::Fifo, 0o644).metadata(),
    }]);
    let change = ToReplica::Changes(vec![Change { path: path("abcd"), entry: None }]);
    let (hold, list) = (ToReplica::Holds(vec![path("abcd")]), ToReplica::List(vec![path("abcd")]));
    let last = ToReplica::Announce(Announce { holds: vec![path("abcd")], ..announce() });
    let to = |receiver: &mut Receiver, message: &ToReplica| receiver.handle(ReceiverInput::Received(message.clone()));
    for (entries, bytes) in [(4, 1 << 20), (1 << 20, 19)] {
        for extra in [&offer, &change, &hold, &list, &last] {
            let mut receiver = gathering();
            receiver.budget = Budget::new(entries, bytes);
            for message in [&offer, &change, &hold, &list] {
                to(&mut receiver, message).unwrap();
            }
            let error = to(&mut receiver, extra).unwrap_err().to_string();
            assert!(error.contains("than one session may have"), "{extra:?}: {error}");
        }
    }

    // A message of one path makes as many entries as lie beneath it.
    let moved = |from: &str, to: &str| Moved { from: path(from), to: path(to), hash: Digest::of(b"d") };
    let metadata = super::disk::entry(crate::manifest::Kind::Fifo, 0o644).metadata();
    let touched = |at: &str| ToReplica::Touched(vec![Touched { path: path(at), metadata }]);
    let told = |entries: u64, bytes: u64| {
        let mut receiver = gathering();
        receiver.budget = Budget::new(entries, bytes);
        to(&mut receiver, &touched("abcd"))?;
        to(&mut receiver, &ToReplica::Moved(vec![moved("abcd", "efgh")]))?;
        to(&mut receiver, &ToReplica::Announce(Announce { changes: 2, ..announce() }))?;
        receiver.handle(ReceiverInput::Expanded(vec![Change { path: path("abcd"), entry: None }; 5]))
    };
    assert_eq!(told(7, 32), Ok(()));
    for (entries, bytes) in [(6, 32), (7, 31), (1, 32), (7, 11)] {
        assert!(told(entries, bytes).is_err(), "{entries} entries and {bytes} bytes");
    }
    // No row twice.
    for (at, good) in [("a", false), ("b", false), ("b/c", true)] {
        let mut receiver = gathering();
        to(&mut receiver, &touched("b")).unwrap();
        assert_eq!(to(&mut receiver, &touched(at)).is_ok(), good, "{at}");
    }
    for (one, two) in [("a", "a"), ("a", "a/b"), ("a/b/c", "a")] {
        let mut receiver = gathering();
        to(&mut receiver, &ToReplica::Moved(vec![moved(one, "x")])).unwrap();
        to(&mut receiver, &ToReplica::Moved(vec![moved(two, "y")])).unwrap();
        assert!(to(&mut receiver, &ToReplica::Announce(Announce { changes: 2, ..announce() })).is_err(), "{two}");
    }

    // A restart gives nothing back.
    let restarted = |entries| {
        let mut receiver = gathering();
        receiver.budget = Budget::new(entries, 1 << 20);
        to(&mut receiver, &change).unwrap();
        to(&mut receiver, &ToReplica::Announce(Announce { changes: 1, ..announce() })).unwrap();
        receiver
            .handle(ReceiverInput::Planned {
                root: Digest::of(b"another"),
                items: Vec::new(),
                missing: Vec::new(),
                changes: Changes::new(),
            })
            .unwrap();
        to(&mut receiver, &ToReplica::Restart(())).unwrap();
        receiver
    };
    let mut receiver = restarted(2);
    to(&mut receiver, &change).unwrap();
    assert!(to(&mut receiver, &change).is_err());
    // After it everything is told in full.
    assert!(to(&mut restarted(10), &touched("a")).is_err());
    assert!(to(&mut restarted(10), &ToReplica::Moved(vec![moved("a", "b")])).is_err());
    assert!(to(&mut restarted(10), &change).is_ok());
}

/// What is told after the announcement would come too late; what it is made of may come late.
#[test]
fn the_plan_waits_for_what_is_made_from_rows() {
    let to = |receiver: &mut Receiver, message| receiver.handle(ReceiverInput::Received(message));
    let metadata = super::disk::entry(crate::manifest::Kind::Fifo, 0o644).metadata();
    let touched = vec![Touched { path: path("a"), metadata }];
    let told = || {
        let mut receiver = gathering();
        to(&mut receiver, ToReplica::Touched(touched.clone())).unwrap();
        outputs(&mut receiver);
        receiver
    };
    assert!(to(&mut told(), ToReplica::Announce(announce())).is_err(), "one change more than announced");
    let mut receiver = told();
    let announced = Announce { changes: 1, ..announce() };
    to(&mut receiver, ToReplica::Announce(announced.clone())).unwrap();
    assert_eq!(outputs(&mut receiver), [ReceiverOutput::Expand(Vec::new(), touched.clone())]);
    let change = Change { path: path("a"), entry: None };
    receiver.handle(ReceiverInput::Expanded(vec![change])).unwrap();
    let changes = Changes::from([(path("a"), None)]);
    assert_eq!(outputs(&mut receiver), [ReceiverOutput::Plan(announced.clone(), changes)]);

    let mut receiver = told();
    to(&mut receiver, ToReplica::Announce(announced)).unwrap();
    assert!(to(&mut receiver, ToReplica::Touched(touched.clone())).is_err());
}

/// A replica may not have the same content read and sent for ever.
#[test]
fn a_content_is_wanted_three_times_at_most() {
    let from = |sender: &mut Sender, message| sender.handle(SenderInput::Received(message));
    let want = |seq| ToMaster::Want(vec![Wanted::whole(seq)]);
    let mut sender = Sender::new(hello());
    let file = Offered {
        path: path("a"),
        digest: Digest::of(b"x"),
        size: 1,
        likely: super::disk::entry(crate::manifest::Kind::Fifo, 0o644).metadata(),
    };
    sender.handle(SenderInput::Hashed(Arc::new(vec![file.clone(), file]))).unwrap();
    for _ in 0..3 {
        from(&mut sender, want(0)).unwrap();
    }
    from(&mut sender, want(1)).unwrap();
    assert!(from(&mut sender, want(0)).is_err());
    // Of one byte there is one chunk at most.
    let part = vec![ChunkRef { digest: [0; 16], len: 1 }; 2];
    assert!(from(&mut sender, ToMaster::Want(vec![Wanted { part, ..Wanted::whole(1) }])).is_err());
    let sent = std::iter::from_fn(|| sender.poll()).filter(|o| matches!(o, SenderOutput::Content(_))).count();
    assert_eq!(sent, 4);
}

/// A plan costs a look at the index, also for no changes at all.
#[test]
fn a_master_starts_over_once() {
    let to = |receiver: &mut Receiver, message| receiver.handle(ReceiverInput::Received(message));
    let mut receiver = gathering();
    let plan_fails = |receiver: &mut Receiver| {
        to(receiver, ToReplica::Announce(announce())).unwrap();
        let root = Digest::of(b"another");
        let planned = ReceiverInput::Planned { root, items: Vec::new(), missing: Vec::new(), changes: Changes::new() };
        receiver.handle(planned).unwrap();
    };
    plan_fails(&mut receiver);
    to(&mut receiver, ToReplica::Restart(())).unwrap();
    plan_fails(&mut receiver);
    let error = to(&mut receiver, ToReplica::Restart(())).unwrap_err().to_string();
    assert!(error.contains("more than 1 restart"), "{error}");
}

/// What is awaited is answered once.
#[test]
fn only_awaited_contents_are_unavailable() {
    let to = |receiver: &mut Receiver, message| receiver.handle(ReceiverInput::Received(message));
    let unavailable = |seq| ToReplica::Unavailable(Unavailable { seq, reason: "r".to_owned() });
    let mut receiver = gathering();
    let file = Offered {
        path: path("a"),
        digest: Digest::of(b"x"),
        size: 1,
        likely: super::disk::entry(crate::manifest::Kind::Fifo, 0o644).metadata(),
    };
    to(&mut receiver, ToReplica::Offer(vec![file.clone(), file.clone()])).unwrap();
    let wanted = Wanted::whole(0);
    receiver.handle(ReceiverInput::Considered(vec![(wanted, file)])).unwrap();
    let error = to(&mut receiver, unavailable(1)).unwrap_err().to_string();
    assert!(error.contains("content 1 is said to be unavailable"), "{error}");
    to(&mut receiver, unavailable(0)).unwrap();
    assert!(to(&mut receiver, unavailable(0)).is_err());
}

/// What is kept of a content until it has come is kept of so many: a first push of a million files asks for no more at once.
#[test]
fn as_many_contents_as_are_under_way_are_asked_for_at_once() {
    const FILES: u64 = MOST_WANTED as u64 + 10_000;
    let mut receiver = gathering();
    let (mut wanted, mut came) = (0, 0);
    // Answers what it asks about; returns how many it has wanted, and whether it plans.
    let mut answer = |receiver: &mut Receiver| {
        let mut plans = false;
        while let Some(output) = receiver.poll() {
            match output {
                ReceiverOutput::Consider(first, files) => {
                    let wants = (first..).map(Wanted::whole).zip(files).collect();
                    receiver.handle(ReceiverInput::Considered(wants)).unwrap();
                }
                ReceiverOutput::Send(ToMaster::Want(wants)) => wanted += wants.len() as u64,
                ReceiverOutput::Plan(..) => plans = true,
                _ => {}
            }
        }
        (wanted, plans)
    };
    for first in (0..FILES).step_by(1000) {
        let file = |seq: u64| Offered {
            path: path(&seq.to_string()),
            digest: Digest::of(&seq.to_le_bytes()),
            size: 1,
            likely: super::disk::entry(crate::manifest::Kind::Fifo, 0o644).metadata(),
        };
        let files = (first..FILES.min(first + 1000)).map(file).collect();
        receiver.handle(ReceiverInput::Received(ToReplica::Offer(files))).unwrap();
        answer(&mut receiver);
    }
    let most = MOST_WANTED as u64 + 1000;
    assert!((MOST_WANTED as u64..most).contains(&answer(&mut receiver).0));
    receiver.handle(ReceiverInput::Received(ToReplica::Announce(Announce { contents: FILES, ..announce() }))).unwrap();
    while came < FILES {
        receiver.handle(ReceiverInput::Settled(came, Settled::Staged)).unwrap();
        came += 1;
        let (wanted, plans) = answer(&mut receiver);
        assert!(wanted - came <= most, "{came} came");
        assert_eq!(plans, came == FILES, "{came} came");
    }
}

fn outputs(receiver: &mut Receiver) -> Vec<ReceiverOutput> {
    std::iter::from_fn(|| receiver.poll()).collect()
}

fn describe(seq: u64, ranges: Vec<(u64, u64)>) -> Describe {
    Describe { seq, pieces: Some(small()), ranges }
}

/// A question makes a replica read a file.
#[test]
fn the_old_file_of_an_awaited_content_is_asked_about_twice_at_most() {
    let to = |receiver: &mut Receiver, message| receiver.handle(ReceiverInput::Received(message));
    let mut receiver = gathering();
    let likely = super::disk::entry(crate::manifest::Kind::Fifo, 0o644).metadata();
    let file = Offered { path: path("a"), digest: Digest::of(b"x"), size: 1, likely };
    to(&mut receiver, ToReplica::Offer(vec![file.clone()])).unwrap();
    let ask = || ToReplica::Describe(describe(0, vec![(0, 1)]));
    let error = to(&mut receiver, ask()).unwrap_err().to_string();
    assert!(error.contains("content 0 is asked about, and is not awaited"), "{error}");
    receiver.handle(ReceiverInput::Considered(vec![(Wanted::whole(0), file)])).unwrap();
    outputs(&mut receiver);
    for _ in 0..2 {
        to(&mut receiver, ask()).unwrap();
        assert_eq!(outputs(&mut receiver), [ReceiverOutput::Describe(describe(0, vec![(0, 1)]))]);
    }
    let error = to(&mut receiver, ask()).unwrap_err().to_string();
    assert!(error.contains("asked about too often"), "{error}");
}

/// What a replica tells is held until it is complete.
#[test]
fn a_description_is_asked_for_and_has_no_more_parts_than_its_ranges_can() {
    let mut sender = Sender::new(hello());
    let form = Form::of_ranges(1);
    let tell = |sender: &mut Sender, seq, pieces, done| {
        let parts = Parts::Pieces(Pieces { form, list: vec![form.piece(b"piece"); pieces] });
        sender.handle(SenderInput::Received(ToMaster::Described(Described { seq, parts, done })))
    };
    assert!(tell(&mut sender, 0, 1, true).is_err(), "nobody asked");
    // Two ranges, of at most three and one pieces.
    let least = small().min() as u64;
    let ask = || SenderInput::Describe(describe(0, vec![(0, 3 * least), (9 * least, least - 1)]), 99 * least);
    sender.handle(ask()).unwrap();
    assert!(tell(&mut sender, 1, 1, true).is_err(), "another one");
    tell(&mut sender, 0, 3, false).unwrap();
    tell(&mut sender, 0, 1, true).unwrap();
    assert!(tell(&mut sender, 0, 0, true).is_err(), "it was complete");
    sender.handle(ask()).unwrap();
    tell(&mut sender, 0, 3, false).unwrap();
    let error = tell(&mut sender, 0, 2, true).unwrap_err().to_string();
    assert!(error.contains("more parts than it can have"), "{error}");
    // The same for chunks, by the size that the file is said to have.
    let tell = |sender: &mut Sender, count| {
        let parts = Parts::Chunks(vec![ChunkRef { digest: [0; 16], len: 1 }; count]);
        sender.handle(SenderInput::Received(ToMaster::Described(Described { seq: 0, parts, done: false })))
    };
    for (bytes, most) in [(300_000, 37), (1, 1), (u64::MAX, MAX_CHUNKS)] {
        let mut sender = Sender::new(hello());
        let ask = Describe { seq: 0, pieces: None, ranges: Vec::new() };
        sender.handle(SenderInput::Describe(ask, bytes)).unwrap();
        tell(&mut sender, most).unwrap();
        assert!(tell(&mut sender, 1).is_err(), "more than {most} for {bytes} bytes");
    }
}

#[test]
fn a_content_that_is_on_its_way_twice_is_asked_for_again_when_all_others_are_done() {
    let likely = super::disk::entry(crate::manifest::Kind::Fifo, 0o644).metadata();
    let mut receiver = gathering();
    let files = ["a", "b"].map(|name| {
        // As large as it likes.
        Offered { path: path(name), digest: Digest::of(name.as_bytes()), size: 1 << 40, likely }
    });
    receiver.handle(ReceiverInput::Received(ToReplica::Offer(files.to_vec()))).unwrap();
    let wants = (0..).map(Wanted::whole).zip(files).collect();
    receiver.handle(ReceiverInput::Considered(wants)).unwrap();
    receiver.handle(ReceiverInput::Received(ToReplica::Announce(Announce { contents: 2, ..announce() }))).unwrap();
    outputs(&mut receiver);
    receiver.handle(ReceiverInput::Settled(0, Settled::Elsewhere)).unwrap();
    assert_eq!(outputs(&mut receiver), []);
    receiver.handle(ReceiverInput::Settled(1, Settled::Staged)).unwrap();
    assert_eq!(outputs(&mut receiver), [ReceiverOutput::Send(ToMaster::Want(vec![Wanted::whole(0)]))]);
    // Once more is enough.
    receiver.handle(ReceiverInput::Settled(0, Settled::Elsewhere)).unwrap();
    assert!(matches!(outputs(&mut receiver)[..], [ReceiverOutput::Plan(..)]));
}

/// All that a question for some directories brings is held at the same time.
#[test]
fn what_a_replica_lists_is_bounded() {
    let list = |sender: &mut Sender, dir: &str, name: &str| {
        let child = Child { name: name.as_bytes().into(), hash: Digest::of(b""), own: Digest::of(b""), is_dir: false };
        let listing = Listing { dir: path(dir), own: None, children: vec![child], last: false };
        sender.handle(SenderInput::Received(ToMaster::Listing(listing)))
    };
    for (entries, bytes, good) in [(3, 9, true), (2, 9, false), (3, 8, false)] {
        let mut sender = Sender::new(hello());
        sender.handle(SenderInput::Received(ToMaster::Stand(Stand { entries: 1, ..stand() }))).unwrap();
        let version = Version { root: Digest::of(b"another"), ..announce().version };
        sender
            .handle(SenderInput::Decided { version, holds: Holds::default(), committed: true, offers_lead: false })
            .unwrap();
        sender.listed = Budget::new(entries, bytes);
        list(&mut sender, "", "aaa").unwrap();
        list(&mut sender, "", "bbb").unwrap_or_else(|error| assert!(!good, "{error}"));
        assert_eq!(list(&mut sender, "", "ccc").is_ok(), good);
    }
}

#[test]
fn a_replica_has_few_notices() {
    let mut sender = Sender::new(hello());
    let mut notice = || sender.handle(SenderInput::Received(ToMaster::Notice("n".to_owned())));
    for _ in 0..64 {
        notice().unwrap();
    }
    let error = notice().unwrap_err().to_string();
    assert!(error.contains("more than 64 notices"), "{error}");
}

#[test]
fn what_a_replica_reports_is_counted() {
    let from = |sender: &mut Sender, message| sender.handle(SenderInput::Received(message));
    let problems = ToMaster::Problems(vec![Problem { path: None, reason: "r".to_owned() }]);
    let items = ToMaster::Items(vec![Item {
        code: "c".to_owned(),
        path: path("a"),
        target: None,
        how: How::Made,
        literal: None,
    }]);
    for extra in [&problems, &items] {
        let mut sender = Sender::new(hello());
        sender.budget = Budget::new(2, 0);
        from(&mut sender, problems.clone()).unwrap();
        from(&mut sender, items.clone()).unwrap();
        assert!(from(&mut sender, extra.clone()).is_err(), "{extra:?}");
    }
}
