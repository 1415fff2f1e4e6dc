//! `kill -9` of either side at any moment, then a push: exact, no leftovers. And signals that ask politely.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test drives the disk itself, and its failure is its report"
)]

mod support;

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use support::*;

/// What a cut push may leave: whole files, and nothing of ours outside the one staging directory at the top.
#[track_caller]
fn nothing_torn(old: &Tree, new: &Tree, scratch: &Scratch) {
    if scratch.dst().exists() {
        assert_old_or_new(old, new, &snapshot(&scratch.dst()));
    }
}

#[track_caller]
fn exact_and_clean(scratch: &Scratch) {
    assert_exact(&scratch.src(), &scratch.dst());
    assert_no_differences("left over", &leftovers(&snapshot(&scratch.dst())));
}

/// Two versions of one tree: `a` and `b`, of about `count` files with one of a few megabytes.
fn two_versions(scratch: &Scratch, count: usize) {
    let a = scratch.path("a");
    many(&a, count, 1);
    write(a.join("large"), noise(50, 3 << 20));
    write(a.join("hard1"), b"hard");
    hard_link(a.join("hard1"), a.join("hard2"));
    link_to("one", a.join("link"));
    write(a.join("becomes dir"), b"file");
    write(a.join("becomes file/with/content"), b"content");
    copy_tree(&a, &scratch.path("b"));
    let b = scratch.path("b");
    edit_many(&b, count, 2);
    write(b.join("large"), noise(51, 3 << 20));
    remove(&b.join("link"));
    link_to("two", b.join("link"));
    remove(&b.join("hard2"));
    write(b.join("hard2"), b"split");
    remove(&b.join("becomes dir"));
    write(b.join("becomes dir/now"), b"dir");
    remove(&b.join("becomes file"));
    write(b.join("becomes file"), b"file");
    std::fs::rename(b.join("d001"), b.join("renamed directory")).unwrap();
}

/// How long a push takes here and now, to spread the moments of signals over it. The machine may be quicker than it was
/// when this was measured: a push that was through before its moment came took less than that.
struct Length(Duration);

impl Length {
    fn moment(&self, point: u32, points: u32) -> Duration {
        self.0 * point / points
    }

    fn was_through(&mut self, point: u32, points: u32) {
        self.0 = self.moment(point, points).max(Duration::from_millis(10));
    }
}

/// Kills an embedded push from a to b at `points` moments spread over the time a whole one takes.
fn killed_embedded(points: u32, count: usize) {
    let scratch = Scratch::new();
    two_versions(&scratch, count);
    let (a, b) = (snapshot(&scratch.path("a")), snapshot(&scratch.path("b")));
    use_version(&scratch, "a");
    scratch.push().ok();
    use_version(&scratch, "b");
    let mut length = Length(scratch.push().ok().took);
    let mut cut = 0;
    for point in 0..points {
        let (version, old, new) = if point % 2 == 0 { ("a", &b, &a) } else { ("b", &a, &b) };
        use_version(&scratch, version);
        let mut push = scratch.push().start();
        std::thread::sleep(length.moment(point, points));
        push.signal(Signal::KILL);
        if push.wait().status.success() {
            length.was_through(point, points);
        } else {
            cut += 1;
        }
        nothing_torn(old, new, &scratch);
        scratch.push().ok();
        exact_and_clean(&scratch);
    }
    assert!(cut * 2 > points, "only {cut} of {points} pushes were cut");
}

#[test]
fn a_killed_embedded_push_is_repaired_by_the_next() {
    killed_embedded(24, 600);
}

#[test]
fn a_killed_first_push_is_repaired_by_the_next() {
    let scratch = Scratch::new();
    two_versions(&scratch, 600);
    let new = snapshot(&scratch.path("a"));
    use_version(&scratch, "a");
    let whole = scratch.push().ok().took;
    for point in 0..12 {
        remove(&scratch.dst());
        remove(&scratch.state());
        let mut push = scratch.push().start();
        std::thread::sleep(whole * point / 12);
        push.signal(Signal::KILL);
        push.wait();
        nothing_torn(&Tree::new(), &new, &scratch);
        scratch.push().ok();
        exact_and_clean(&scratch);
    }
}

/// Kills one side of a push to a daemon.
fn killed_over_the_wire(kill_daemon: bool, points: u32) {
    let scratch = Scratch::new();
    two_versions(&scratch, 600);
    mkdir(scratch.dst());
    let (a, b) = (snapshot(&scratch.path("a")), snapshot(&scratch.path("b")));
    let mut daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.state());
    use_version(&scratch, "a");
    scratch.push_to(&[daemon.dest("www")]).ok();
    use_version(&scratch, "b");
    let whole = scratch.push_to(&[daemon.dest("www")]).ok().took;
    for point in 0..points {
        let (version, old, new) = if point % 2 == 0 { ("a", &b, &a) } else { ("b", &a, &b) };
        use_version(&scratch, version);
        let mut push = scratch.push_to(&[daemon.dest("www")]).timeout(90).start();
        std::thread::sleep(whole * point / points);
        if kill_daemon {
            daemon.kill();
            if point != points / 2 {
                push.signal(Signal::INT);
            }
            // Left alone it finds out by itself, which takes an idle timeout: once is enough. It never claims a success
            // that it does not have.
            let ran = push.wait();
            if ran.status.success() {
                exact_and_clean(&scratch);
            } else if point == points / 2 {
                ran.code(1).names("www");
            }
        } else {
            push.signal(Signal::KILL);
            push.wait();
        }
        nothing_torn(old, new, &scratch);
        if kill_daemon {
            daemon.up();
        }
        scratch.push_to(&[daemon.dest("www")]).ok();
        exact_and_clean(&scratch);
    }
}

#[test]
fn a_killed_master_is_repaired_by_the_next_push() {
    killed_over_the_wire(false, 14);
}

#[test]
fn a_killed_daemon_is_repaired_by_the_next_push() {
    killed_over_the_wire(true, 14);
}

#[test]
fn a_push_killed_twice_in_a_row_is_repaired() {
    let scratch = Scratch::new();
    two_versions(&scratch, 600);
    use_version(&scratch, "a");
    let whole = scratch.push().ok().took;
    for (version, first, second) in [("b", 2, 5), ("a", 4, 3), ("b", 5, 6), ("a", 7, 7)] {
        use_version(&scratch, version);
        for eighths in [first, second] {
            let mut push = scratch.push().start();
            std::thread::sleep(whole * eighths / 8);
            push.signal(Signal::KILL);
            push.wait();
        }
        scratch.push().ok();
        exact_and_clean(&scratch);
    }
}

#[test]
fn drift_after_a_kill_is_seen_too() {
    let scratch = Scratch::new();
    two_versions(&scratch, 400);
    use_version(&scratch, "a");
    let whole = scratch.push().ok().took;
    for point in 3..8 {
        use_version(&scratch, if point % 2 == 0 { "a" } else { "b" });
        let mut push = scratch.push().start();
        std::thread::sleep(whole * point / 8);
        push.signal(Signal::KILL);
        push.wait();
        write(scratch.dst().join("large"), b"drift");
        write(scratch.dst().join("extra"), b"drift");
        scratch.push().ok();
        exact_and_clean(&scratch);
    }
}

/// Sends the signal at several moments; the push ends at once with the documented code and leaves nothing.
fn signalled(signal: Signal, number: i32) {
    let scratch = Scratch::new();
    two_versions(&scratch, 800);
    let (a, b) = (snapshot(&scratch.path("a")), snapshot(&scratch.path("b")));
    use_version(&scratch, "a");
    let mut length = Length(scratch.push().ok().took);
    let mut cut = 0;
    for point in 0..10 {
        let (version, old, new) = if point % 2 == 0 { ("b", &a, &b) } else { ("a", &b, &a) };
        use_version(&scratch, version);
        let mut push = scratch.push().start();
        // Not before the program has had the time to set itself up: an exec that is not done dies of the signal itself.
        std::thread::sleep(Duration::from_millis(15) + length.moment(point, 10));
        let asked = std::time::Instant::now();
        push.signal(signal);
        let ran = push.wait();
        let waited = asked.elapsed();
        assert!(waited < Duration::from_secs(5), "{waited:?} from signal to end\n{ran}");
        let told = format!("left after a signal at point {point} of 10, {waited:?} to the end\n{ran}");
        if ran.status.success() {
            length.was_through(point, 10);
        } else {
            ran.by_signal(number);
            cut += 1;
        }
        let seen = snapshot(&scratch.dst());
        assert_old_or_new(old, new, &seen);
        // No file here is over 64 MiB, so there is nothing to keep for a resume.
        assert_no_differences(&told, &leftovers(&seen));
        scratch.push().ok();
        exact_and_clean(&scratch);
    }
    assert!(cut >= 4, "only {cut} pushes were cut");
}

#[test]
fn sigint_ends_a_push_with_130_and_leaves_nothing() {
    signalled(Signal::INT, 2);
}

#[test]
fn sigterm_ends_a_push_with_143_and_leaves_nothing() {
    signalled(Signal::TERM, 15);
}

#[test]
fn a_signal_ends_a_push_that_waits_for_a_silent_daemon() {
    let scratch = Scratch::new();
    many(&scratch.src(), 50, 1);
    mkdir(scratch.dst());
    let mut daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.state());
    daemon.signal(Signal::STOP);
    let mut push = scratch.push_to(&[daemon.dest("www")]).arg("--json").start();
    std::thread::sleep(Duration::from_millis(300));
    let asked = std::time::Instant::now();
    // As timeout(1) does, which signals the program and then its group: that is no second request to end at once, untidily.
    push.signal(Signal::INT);
    push.signal(Signal::TERM);
    let ran = push.wait();
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert!(matches!(ran.status.code(), Some(130 | 143)), "{ran}");
    assert!(ran.out().contains("\"error\""), "it says nothing: {ran}");
    daemon.signal(Signal::CONT);
    scratch.push_to(&[daemon.dest("www")]).ok();
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn a_signal_that_ends_the_master_leaves_the_daemon_clean() {
    let scratch = Scratch::new();
    two_versions(&scratch, 600);
    mkdir(scratch.dst());
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.state());
    use_version(&scratch, "a");
    let whole = scratch.push_to(&[daemon.dest("www")]).ok().took;
    for point in 1..6 {
        use_version(&scratch, if point % 2 == 0 { "a" } else { "b" });
        let mut push = scratch.push_to(&[daemon.dest("www")]).start();
        std::thread::sleep(whole * point / 6);
        push.signal(Signal::TERM);
        push.wait().one_of_or_signal();
        // The daemon hears of it and clears up by itself.
        wait_for("the daemon to clear its staging", 10, || leftovers(&snapshot(&scratch.dst())).is_empty());
        scratch.push_to(&[daemon.dest("www")]).ok();
        exact_and_clean(&scratch);
    }
}

/// The endings a signal may have when it came late.
trait Ended {
    fn one_of_or_signal(self);
}

impl Ended for Ran {
    #[track_caller]
    fn one_of_or_signal(self) {
        if !self.status.success() {
            self.by_signal(15);
        }
    }
}

#[test]
fn two_pushes_to_one_dest_at_once_are_never_a_mix() {
    let scratch = Scratch::new();
    two_versions(&scratch, 400);
    let (a, b) = (snapshot(&scratch.path("a")), snapshot(&scratch.path("b")));
    for round in 0..8 {
        // Two masters that know nothing of each other, and one command typed twice.
        let states = if round % 2 == 0 { ["state a", "state b"] } else { ["state", "state"] };
        let first = push_with(&scratch.path(states[0]), &scratch.path("a"), &[scratch.dst()]).start();
        std::thread::sleep(Duration::from_millis(round * 9));
        let second = push_with(&scratch.path(states[1]), &scratch.path("b"), &[scratch.dst()]).start();
        let (first, second) = (first.wait(), second.wait());
        for ran in [&first, &second] {
            assert!(ran.status.success() || (ran.status.code() == Some(1) && !ran.raw_err.is_empty()), "{ran}");
        }
        assert!(first.status.success() || second.status.success(), "both were refused\n{first}\n{second}");
        let seen = snapshot(&scratch.dst());
        let (to_a, to_b) = (differences(&a, &seen), differences(&b, &seen));
        assert!(to_a.is_empty() || to_b.is_empty(), "a mix: {:?} {:?}\n{first}\n{second}", &to_a[0], &to_b[0]);
        if !second.status.success() {
            assert!(to_a.is_empty(), "the one that succeeded is not there\n{second}");
        }
        if !first.status.success() {
            assert!(to_b.is_empty(), "the one that succeeded is not there\n{first}");
        }
    }
}

#[test]
fn two_masters_at_one_daemon_at_once_are_never_a_mix() {
    let scratch = Scratch::new();
    two_versions(&scratch, 400);
    mkdir(scratch.dst());
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.path("state a"));
    let (a, b) = (snapshot(&scratch.path("a")), snapshot(&scratch.path("b")));
    for round in 0..6 {
        let push = |tree: &str| push_with(&scratch.path("state a"), &scratch.path(tree), &[daemon.dest("www")]).start();
        let first = push("a");
        std::thread::sleep(Duration::from_millis(round * 13));
        let second = push("b");
        let (first, second) = (first.wait(), second.wait());
        assert!(first.status.success() || second.status.success(), "both were refused\n{first}\n{second}");
        let seen = snapshot(&scratch.dst());
        let (to_a, to_b) = (differences(&a, &seen), differences(&b, &seen));
        assert!(to_a.is_empty() || to_b.is_empty(), "a mix: {:?} {:?}\n{first}\n{second}", &to_a[0], &to_b[0]);
    }
}

#[test]
fn an_embedded_push_and_a_daemon_exclude_each_other() {
    let scratch = Scratch::new();
    two_versions(&scratch, 400);
    mkdir(scratch.dst());
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.path("m"));
    let (a, b) = (snapshot(&scratch.path("a")), snapshot(&scratch.path("b")));
    for round in 0..6 {
        let first = push_with(&scratch.path("m"), &scratch.path("a"), &[daemon.dest("www")]).start();
        std::thread::sleep(Duration::from_millis(round * 13));
        let second = push_with(&scratch.path("e"), &scratch.path("b"), &[scratch.dst()]).start();
        let (first, second) = (first.wait(), second.wait());
        assert!(first.status.success() || second.status.success(), "both were refused\n{first}\n{second}");
        let seen = snapshot(&scratch.dst());
        let (to_a, to_b) = (differences(&a, &seen), differences(&b, &seen));
        assert!(to_a.is_empty() || to_b.is_empty(), "a mix: {:?} {:?}\n{first}\n{second}", &to_a[0], &to_b[0]);
    }
}

#[test]
fn a_signal_while_new_contents_are_read_leaves_nothing() {
    // Contents are staged while the source is still being read; what is staged goes again when the reading is cut.
    let scratch = Scratch::new();
    for i in 0..2500_u64 {
        write(scratch.src().join(format!("d{}/f{i}", i % 20)), noise(i, 60_000));
    }
    let mut cut = 0;
    for moment in 1..7_u32 {
        let dst = scratch.path(format!("dst{moment}"));
        let mut push = push_with(&scratch.path(format!("state{moment}")), &scratch.src(), &[&dst]).start();
        std::thread::sleep(Duration::from_millis(90) * moment);
        push.signal(Signal::INT);
        let ran = push.wait().one_of(&[0, 130]);
        cut += u32::from(!ran.status.success());
        if dst.exists() {
            assert_no_differences(&format!("left after a signal\n{ran}"), &leftovers(&snapshot(&dst)));
        }
    }
    assert!(cut >= 2, "only {cut} pushes were cut");
}

/// A push of many files into directories that are there already, at the moment when the first of their names are
/// visible. (A directory that is new becomes visible with all that is in it.)
fn publishing(scratch: &Scratch, push: impl Fn() -> Run) -> Running {
    for dir in 0..12_000 / 50 {
        mkdir(scratch.src().join(format!("d{dir:03}")));
    }
    push().ok();
    many(&scratch.src(), 12_000, 1);
    let mut running = push().timeout(60).start();
    while !scratch.dst().join("d000/f00000").exists() {
        assert!(running.is_running(), "ended before anything was visible");
        std::thread::sleep(Duration::from_millis(1));
    }
    running
}

/// The last name of that push.
fn last(scratch: &Scratch) -> PathBuf {
    scratch.dst().join(format!("d{:03}/f{:05}", 12_000 / 50 - 1, 12_000 - 1))
}

/// It was stopped in between: what is there is whole, and nothing else is left.
#[track_caller]
fn stopped_between_names(scratch: &Scratch, ran: &Ran) {
    let seen = snapshot(&scratch.dst());
    assert!(!last(scratch).exists(), "it published everything first\n{ran}");
    assert_old_or_new(&Tree::new(), &snapshot(&scratch.src()), &seen);
    assert_no_differences("left after a signal", &leftovers(&seen));
}

#[test]
fn a_signal_stops_a_push_between_two_names() {
    let scratch = Scratch::new();
    let mut push = publishing(&scratch, || scratch.push());
    push.signal(Signal::INT);
    stopped_between_names(&scratch, &push.wait().by_signal(2));
    scratch.push().ok();
    exact_and_clean(&scratch);
}

#[test]
fn sigterm_stops_a_daemon_between_two_names() {
    let scratch = Scratch::new();
    mkdir(scratch.dst());
    let mut daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.state());
    let push = publishing(&scratch, || scratch.push_to(&[daemon.dest("www")]));
    let (took, status) = daemon.term();
    assert!(took < Duration::from_secs(5) && status.success(), "{took:?} {status}");
    stopped_between_names(&scratch, &push.wait().one_of(&[1]).says("asked to stop"));
    daemon.up();
    scratch.push_to(&[daemon.dest("www")]).ok();
    exact_and_clean(&scratch);
}

#[test]
fn a_daemon_that_is_publishing_goes_on_when_its_master_is_gone() {
    let scratch = Scratch::new();
    mkdir(scratch.dst());
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.state());
    let mut push = publishing(&scratch, || scratch.push_to(&[daemon.dest("www")]));
    push.signal(Signal::INT);
    push.wait().by_signal(2);
    wait_for("the rest to be published", 30, || last(&scratch).exists());
    scratch.push_to(&[daemon.dest("www")]).ok();
    exact_and_clean(&scratch);
}
