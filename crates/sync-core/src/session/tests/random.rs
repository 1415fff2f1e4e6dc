//! Random trees, edits, drift, policies and faults, through the same simulation.

use proptest::prelude::*;

use super::disk::{Disk, path};
use super::push::{Push, World, at_random};
use crate::manifest::Holds;
use crate::session::End;

#[derive(Clone, Debug)]
enum Edit {
    Write(&'static str, &'static str),
    Mkdir(&'static str),
    Symlink(&'static str),
    Fifo(&'static str),
    HardLink(&'static str, &'static str),
    Remove(&'static str),
    Rename(&'static str, &'static str),
    Swap(&'static str, &'static str),
    Chmod(&'static str, u32),
    Retime(&'static str),
}

/// Names that sort around each other's slashes.
const NAMES: [&str; 10] = ["a", "a-", "a/x", "a/x/deep", "a/y", "b", "b/x", "b/z", "c", "d"];
/// Few, so that contents meet again at other names.
const CONTENTS: [&str; 5] = ["", "one", "two", "three", "six"];

fn edit() -> impl Strategy<Value = Edit> {
    let name = || prop::sample::select(&NAMES[..]);
    let content = || prop::sample::select(&CONTENTS[..]);
    prop_oneof![
        4 => (name(), content()).prop_map(|(n, c)| Edit::Write(n, c)),
        3 => name().prop_map(Edit::Mkdir),
        1 => name().prop_map(Edit::Symlink),
        1 => name().prop_map(Edit::Fifo),
        2 => (name(), name()).prop_map(|(a, b)| Edit::HardLink(a, b)),
        2 => name().prop_map(Edit::Remove),
        2 => (name(), name()).prop_map(|(a, b)| Edit::Rename(a, b)),
        2 => (name(), name()).prop_map(|(a, b)| Edit::Swap(a, b)),
        2 => name().prop_map(Edit::Retime),
        2 => (name(), prop_oneof![Just(0o600u32), Just(0o640)]).prop_map(|(n, m)| Edit::Chmod(n, m)),
    ]
}

fn has_room(disk: &Disk, at: &str) -> bool {
    path(at).parent().is_some_and(|dir| disk.at(&dir).is_some_and(|inode| inode.entry.is_dir()))
}

/// Applies an edit if it makes sense there.
fn apply(disk: &mut Disk, edit: &Edit) {
    let exists = |disk: &Disk, at: &str| disk.at(&path(at)).is_some();
    let is_file = |disk: &Disk, at: &str| disk.at(&path(at)).is_some_and(|inode| !inode.entry.is_dir());
    let apart = |a: &str, b: &str| a != b && !path(a).is_beneath(&path(b)) && !path(b).is_beneath(&path(a));
    match *edit {
        Edit::Write(at, content) if has_room(disk, at) => drop(disk.write(at, content)),
        Edit::Mkdir(at) if has_room(disk, at) => drop(disk.mkdir(at)),
        Edit::Symlink(at) if has_room(disk, at) => drop(disk.symlink(at, "target")),
        Edit::Fifo(at) if has_room(disk, at) => drop(disk.fifo(at)),
        Edit::HardLink(a, b) if is_file(disk, a) && has_room(disk, b) && apart(a, b) => drop(disk.hard_link(a, b)),
        Edit::Remove(at) => drop(disk.rm(at)),
        Edit::Rename(a, b) if exists(disk, a) && has_room(disk, b) && apart(a, b) => drop(disk.rename(a, b)),
        Edit::Swap(a, b) if exists(disk, a) && exists(disk, b) && apart(a, b) => drop(disk.swap(a, b)),
        Edit::Retime(at) => drop(disk.retime(at)),
        Edit::Chmod(at, mode) => drop(disk.chmod(at, mode)),
        _ => {}
    }
}

#[derive(Clone, Debug)]
enum Ending {
    Completes,
    Cut(usize),
    ReplicaCrash(usize),
}

#[derive(Clone, Debug)]
struct Round {
    edits: Vec<Edit>,
    /// One after each stretch.
    between: Vec<Edit>,
    drift: Vec<Edit>,
    hold: Option<&'static str>,
    unavailable: Option<&'static str>,
    no_delete: bool,
    lose_master: bool,
    lose_rows: bool,
    keep_staged: bool,
    ending: Ending,
    order: u64,
}

fn round() -> impl Strategy<Value = Round> {
    let ending = prop_oneof![
        3 => Just(Ending::Completes),
        1 => (0usize..60).prop_map(Ending::Cut),
        1 => (0usize..60).prop_map(Ending::ReplicaCrash),
    ];
    let sometimes = || prop::option::weighted(0.2, prop::sample::select(&NAMES[..]));
    let edits = (proptest::collection::vec(edit(), 0..10), proptest::collection::vec(edit(), 0..4));
    let drift = prop_oneof![3 => Just(Vec::new()), 1 => proptest::collection::vec(edit(), 1..5)];
    let flags = (any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.1), any::<bool>());
    (edits, drift, sometimes(), sometimes(), flags, ending, any::<u64>()).prop_map(
        |(
            (edits, between),
            drift,
            hold,
            unavailable,
            (no_delete, lose_master, lose_rows, keep_staged),
            ending,
            order,
        )| Round {
            edits,
            between,
            drift,
            hold,
            unavailable,
            no_delete,
            lose_master,
            lose_rows,
            keep_staged,
            ending,
            order,
        },
    )
}

fn push(world: &mut World, round: &Round) {
    world.faults.gives = round.order % 2 == 1;
    world.stretch = (round.order % 4 >= 2).then_some(3);
    let mut push = Push::new(world);
    let mut choose = at_random(round.order);
    let mut edits = round.between.iter();
    let at = match round.ending {
        Ending::Completes => usize::MAX,
        Ending::Cut(at) | Ending::ReplicaCrash(at) => at,
    };
    for _ in 0..at {
        let steps = push.steps();
        if steps.is_empty() {
            let outcomes = push.conclude(world);
            let outcome = &outcomes[0];
            if matches!(outcome.end, Some(End::Reached(..))) {
                let between = edits.next();
                between.into_iter().for_each(|edit| apply(world.source(), edit));
                push = Push::new(world);
                continue;
            }
            // A directory that is kept may be in the way of a file.
            let blocked = round.no_delete && !outcome.problems.is_empty();
            assert!(outcome.is_exact() || round.unavailable.is_some() || blocked, "{outcome:#?}");
            assert_eq!(outcome.error, None);
            return;
        }
        push.step(world, choose(&steps));
    }
    match round.ending {
        Ending::Cut(_) => push.cut(0, &mut world.replicas[0], round.keep_staged),
        _ if !round.keep_staged => world.replicas[0].staged.clear(),
        _ => {}
    }
}

/// What a held path and all beneath it hold on the replica.
fn held(world: &World) -> Vec<(String, Vec<u8>)> {
    let disk = &world.replicas[0].disk;
    let held = disk.paths().filter(|path| world.master.holds.covers(path));
    held.map(|path| (path.display(), disk.at(path).unwrap().content.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_happened_the_next_push_ends_exact(rounds in proptest::collection::vec(round(), 1..6)) {
        let mut world = World::new(1);
        for round in &rounds {
            round.edits.iter().for_each(|edit| apply(world.source(), edit));
            round.drift.iter().for_each(|edit| apply(&mut world.replicas[0].disk, edit));
            world.policy.no_delete = round.no_delete;
            world.policy.max_delete = (round.order % 3 == 0).then_some(100);
            // What cannot be read is at least seen in its directory.
            let hold = round.hold.filter(|at| has_room(&world.master.disk, at));
            world.master.holds = Holds::new(hold.map(path));
            world.faults.unavailable = round.unavailable.map(path).into_iter().collect();
            if round.lose_master {
                world.master.lose_index();
            }
            if round.lose_rows {
                world.replicas[0].rows.clear();
                world.replicas[0].stand = None;
            }
            let before = held(&world);
            push(&mut world, round);
            prop_assert_eq!(held(&world), before);
            world.replicas[0].assert_rows_are_facts();
        }
        world.policy = crate::options::Policy::default();
        world.master.holds = Holds::default();
        world.faults.unavailable.clear();
        world.push_exactly();
        prop_assert!(world.is_identical(0));
        let again = world.push_exactly();
        prop_assert_eq!((again[0].changes, again[0].wants), (0, 0));
    }
}
