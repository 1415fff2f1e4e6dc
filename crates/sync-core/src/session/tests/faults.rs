//! The matrix: at every step of a session the connection, the replica or the master goes away, or a message comes
//! twice. The next session always ends exact, and no session ever says exact of a wrong tree.

use super::push::{Push, Step, World, at_random, in_order};
use super::{grown, settled};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The connection is lost; both processes go on.
    Cut,
    /// The replica loses all that is not durable.
    ReplicaCrash,
    /// The master does.
    MasterCrash,
    /// Both do.
    PowerCut,
    /// The message comes twice.
    Duplicate,
}

const FAULTS: [Fault; 5] = [Fault::Cut, Fault::ReplicaCrash, Fault::MasterCrash, Fault::PowerCut, Fault::Duplicate];

fn choice(seed: u64) -> Box<dyn FnMut(&[Step]) -> Step> {
    if seed == 0 { Box::new(in_order) } else { Box::new(at_random(seed)) }
}

fn steps_of(world: &World, seed: u64) -> usize {
    let mut world = world.clone();
    let (mut count, mut choose) = (0, choice(seed));
    let outcomes = Push::new(&world).run(&mut world, &mut |steps| {
        count += 1;
        choose(steps)
    });
    assert!(outcomes[0].is_exact(), "{outcomes:#?}");
    count
}

/// Runs a session up to `step`, lets the fault happen, and pushes again.
fn survives(before: &World, seed: u64, at: usize, fault: Fault, keep: bool) {
    let mut world = before.clone();
    let mut push = Push::new(&world);
    let mut choose = choice(seed);
    for _ in 0..at {
        let step = choose(&push.steps());
        push.step(&mut world, step);
    }
    match fault {
        Fault::Duplicate => {
            let step = choose(&push.steps());
            if !push.duplicate(step) {
                return;
            }
            // The two copies arrive one after the other, as they would on a stream.
            push.step(&mut world, step);
            let outcomes = push.run(&mut world, &mut in_order);
            let ended_well = outcomes[0].is_exact() && outcomes[0].problems.is_empty();
            assert!(ended_well || outcomes[0].error.is_some(), "{outcomes:#?}");
        }
        Fault::Cut => {
            push.cut(0, &mut world.replicas[0], keep);
            world.master.commit();
        }
        Fault::MasterCrash => push.cut(0, &mut world.replicas[0], keep),
        Fault::ReplicaCrash | Fault::PowerCut => {
            if fault == Fault::ReplicaCrash {
                world.master.commit();
            }
            if !keep {
                world.replicas[0].staged.clear();
            }
        }
    }
    world.replicas[0].assert_rows_are_facts();
    // Whatever it was, the next session begins with a hello.
    world.goes_on = false;
    world.push_exactly();
    assert!(world.is_identical(0));
    let again = world.push_exactly();
    assert_eq!((again[0].changes, again[0].wants), (0, 0), "the second push finds something to do");
}

fn matrix(name: &str, world: &World) {
    for seed in [0, 7, 1234] {
        for at in 0..steps_of(world, seed) {
            for fault in FAULTS {
                for keep in [false, true] {
                    let place = format!("{name}: {fault:?} at step {at} of order {seed}, staged kept: {keep}");
                    let result = std::panic::catch_unwind(|| survives(world, seed, at, fault, keep));
                    assert!(result.is_ok(), "{place}");
                }
            }
        }
    }
}

#[test]
fn first_push() {
    matrix("first push", &grown());
}

#[test]
fn known_version() {
    let mut world = settled();
    world.source().write("a", "alpha, edited").rm("d/e").write("new", "new").write("new2", "new").chmod("b", 0o600);
    matrix("known version", &world);
}

#[test]
fn unknown_version() {
    let mut world = settled();
    world.master.lose_index();
    world.source().write("d/one", "edited").rm("pipe").mkdir("x").write("x/y", "y");
    matrix("unknown version", &world);
}

#[test]
fn a_diff_that_starts_over() {
    let mut world = settled();
    world.replicas[0].disk.write("d/one", "tampered").mkdir("stray").write("stray/x", "?");
    world.source().write("a", "alpha, edited").write("d/same", "other");
    matrix("start over", &world);
}

#[test]
fn moves_swaps_and_changes_of_type() {
    let mut world = settled();
    world.source().swap("a", "b").rename("d/e", "e").rm("pipe").mkdir("pipe").write("pipe/x", "linked");
    world.source().rm("h1").write("h3", "h").hard_link("h3", "empty").symlink("d/one", "gone");
    matrix("moves", &world);
}

#[test]
fn keeping_extras() {
    let mut world = settled();
    world.source().rm("d/e").write("b", "beta, edited").rm("d/one").write("new", "new");
    world.policy.no_delete = true;
    matrix("no delete", &world);
}

#[test]
fn under_a_delete_limit() {
    let mut world = settled();
    world.replicas[0].disk.write("d/one", "tampered");
    world.source().rm("d/e").write("b", "beta, edited").rename("a", "new").write("x", "x");
    world.policy.max_delete = Some(2);
    matrix("delete limit", &world);
}

#[test]
fn touched_and_moved() {
    let mut world = settled();
    world.source().retime("a").chmod("b", 0o600).retime("d/one").chmod("d", 0o700).retime("h1").rename("d/e", "e");
    world.source().write("d/link", "a file now").write("new", "new");
    matrix("touched and moved", &world);
    // What they are told against is not what is there.
    world.replicas[0].disk.write("a", "tampered").write("d/e/deep", "tampered").rm("b");
    matrix("touched and moved, drifted", &world);
}

#[test]
fn moved_under_a_delete_limit() {
    let mut world = settled();
    world.source().rename("d/e", "moved").retime("b");
    // After a crash in the middle what is left at the old place is to be deleted.
    world.policy.max_delete = Some(2);
    matrix("moved, delete limit", &world);
}

/// A master that follows its tree has one session behind the other: no hello, no look, no stand.
#[test]
fn going_on_behind_another_session() {
    let mut world = settled();
    world.goes_on = true;
    matrix("going on, nothing new", &world);
    world.source().write("a", "alpha, edited").rm("d/e").write("new", "new").write("new2", "new").chmod("b", 0o600);
    matrix("going on", &world);
    world.policy.max_delete = Some(4);
    matrix("going on, delete limit", &world);
    world.policy.max_delete = None;
    world.source().rename("d", "moved").retime("h1").write("moved/link", "a file now");
    matrix("going on, moved and touched", &world);
    // What it waits with is not what it acknowledged, which it says before the master has said anything or after that.
    world.replicas[0].disk.write("b", "tampered").mkdir("stray").write("stray/x", "?").rm("d/one");
    matrix("going on, drifted", &world);
}

/// Somebody changes the disk of a replica that waits, and it says so: whatever the master has told against the stand before,
/// the session ends exact.
#[test]
fn drift_while_the_replica_waits() {
    let mut changed = settled();
    changed.source().write("a", "alpha, edited").rm("d/e").write("new", "new");
    let going_on = World { goes_on: true, ..changed.clone() };
    for (name, before) in
        [("nothing new", settled()), ("a new version", changed), ("first push", grown()), ("going on", going_on)]
    {
        let mut told = 0;
        for seed in [0, 7, 1234] {
            for at in 0..steps_of(&before, seed) {
                let mut world = before.clone();
                let mut push = Push::new(&world);
                let mut choose = choice(seed);
                for _ in 0..at {
                    let step = choose(&push.steps());
                    push.step(&mut world, step);
                }
                world.replicas[0].disk.write("b", "tampered").mkdir("stray").write("stray/x", "?");
                if push.drift(0, &mut world.replicas[0]) {
                    told += 1;
                    let outcome = &push.run(&mut world, &mut choose)[0];
                    let place = format!("{name}: step {at} of order {seed}: {outcome:#?}");
                    assert!(outcome.is_exact() && outcome.problems.is_empty(), "{place}");
                }
            }
        }
        assert!(told > 2, "{name}: {told}");
    }
}
