use std::collections::HashMap as Map;

use proptest::prelude::*;

use super::*;

fn path(path: &str) -> RelPath {
    RelPath::new(path).unwrap()
}

fn changed(name: &str) -> Hint {
    Hint::Changed(path(name))
}

fn at_rest(name: &str) -> Hint {
    Hint::AtRest(path(name))
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[allow(clippy::unnecessary_wraps, reason = "it is what a poll gives")]
fn names<const N: usize>(names: [&str; N]) -> Option<Batch> {
    Some(Batch { names: names.into_iter().map(path).collect(), everything: false })
}

#[allow(clippy::unnecessary_wraps, reason = "it is what a poll gives")]
fn everything() -> Option<Batch> {
    Some(Batch { names: BTreeSet::new(), everything: true })
}

fn settle() -> Settle {
    Settle::new(SettleOptions::default())
}

/// Takes hints at their times, polling whenever something is due; each batch with its time.
fn drive(settle: &mut Settle, hints: impl IntoIterator<Item = (u64, Hint)>, until: u64) -> Vec<(u64, Batch)> {
    let mut batches = Vec::new();
    let hints = hints.into_iter().map(|(at, hint)| (at, Some(hint))).chain([(until, None)]);
    for (at, hint) in hints {
        while let Some(due) = settle.timeout().filter(|due| *due <= ms(at)) {
            let batch = settle.poll(due).expect("what is due comes");
            batches.push((u64::try_from(due.as_millis()).unwrap(), batch));
        }
        if let Some(hint) = hint {
            settle.hint(ms(at), hint);
        }
    }
    batches
}

/// When `name` was in a batch.
fn times(batches: &[(u64, Batch)], name: &str) -> Vec<u64> {
    batches.iter().filter(|(_, batch)| batch.names.contains(&path(name))).map(|(at, _)| *at).collect()
}

#[test]
fn all_that_waits_can_be_taken_at_once() {
    let mut settle = Settle::new(SettleOptions::default());
    assert_eq!(settle.take_all(ms(0)), None);
    let names = ["a", "b"].map(|name| RelPath::new(name).unwrap());
    settle.hint(ms(0), Hint::Changed(names[0].clone()));
    settle.hint(ms(1), Hint::AtRest(names[1].clone()));
    let batch = settle.take_all(ms(1)).unwrap();
    assert_eq!((batch.names, batch.everything), (BTreeSet::from(names.clone()), false));
    assert_eq!((settle.timeout(), settle.take_all(ms(1))), (None, None));
    // Also what was looked at just now, and would wait.
    for _ in 0..2 {
        settle.hint(ms(2), Hint::Overflow);
        settle.hint(ms(2), Hint::AtRest(names[0].clone()));
        assert!(settle.take_all(ms(2)).unwrap().everything);
        assert_eq!(settle.timeout(), None);
    }
}

#[test]
fn a_name_at_rest_goes_at_once_with_all_that_is_ready() {
    let mut settle = settle();
    assert_eq!((settle.poll(ms(5)), settle.timeout()), (None, None));
    settle.hint(ms(10), at_rest("a"));
    settle.hint(ms(11), at_rest("b/c"));
    settle.hint(ms(12), changed("d"));
    assert_eq!(settle.timeout(), Some(ms(10)));
    assert_eq!(settle.poll(ms(12)), names(["a", "b/c"]));
    assert_eq!((settle.poll(ms(13)), settle.timeout()), (None, Some(ms(112))));
    assert_eq!(settle.poll(ms(112)), names(["d"]));
    assert_eq!(settle.timeout(), None);
}

#[test]
fn a_write_without_a_close_waits_for_quiet_and_a_close_ends_the_waiting() {
    let mut settle = settle();
    for at in [0, 60, 120, 180] {
        settle.hint(ms(at), changed("a"));
        settle.hint(ms(at), changed("b"));
        assert_eq!(settle.poll(ms(at)), None);
    }
    settle.hint(ms(190), at_rest("b"));
    assert_eq!(settle.poll(ms(190)), names(["b"]));
    assert_eq!((settle.poll(ms(279)), settle.timeout()), (None, Some(ms(280))));
    assert_eq!(settle.poll(ms(280)), names(["a"]));
}

#[test]
fn what_is_written_again_before_it_went_is_not_at_rest_any_more() {
    let mut settle = settle();
    settle.hint(ms(0), at_rest("a"));
    settle.hint(ms(1), changed("a"));
    assert_eq!((settle.poll(ms(50)), settle.poll(ms(101))), (None, names(["a"])));
}

#[test]
fn a_file_written_for_minutes_goes_every_ten_seconds_and_delays_nobody() {
    let writes = (0..60_000).step_by(10).map(|at| (at, changed("a")));
    let others = (3000..60_000).step_by(1000).map(|at| (at + 1, at_rest(&format!("b{at}"))));
    let mut hints: Vec<_> = writes.chain(others).collect();
    hints.sort_by_key(|(at, _)| *at);
    let batches = drive(&mut settle(), hints, 100_000);
    // Each wait begins with the first write that no batch has served.
    assert_eq!(times(&batches, "a"), [10_000, 20_000, 30_000, 40_000, 50_000, 60_000]);
    for at in (3000..60_000).step_by(1000) {
        assert_eq!(times(&batches, &format!("b{at}")), [at + 1]);
    }
}

#[test]
fn a_log_appended_by_open_write_close_costs_ever_fewer_batches_until_it_rests() {
    let appends = |from: u64, until: u64| {
        (from..until).step_by(50).flat_map(|at| [(at, changed("log")), (at, at_rest("log"))]).collect::<Vec<_>>()
    };
    let mut settle = settle();
    let seen = times(&drive(&mut settle, appends(0, 60_000), 60_000), "log");
    assert_eq!(seen, [0, 100, 300, 700, 1500, 3100, 6300, 12_700, 22_700, 32_700, 42_700, 52_700]);
    // What was appended last is not forgotten, and ten quiet seconds later it is a name like any other.
    let seen = times(&drive(&mut settle, appends(80_000, 81_000), 90_000), "log");
    assert_eq!(seen, [62_700, 80_000, 80_100, 80_300, 80_700, 81_500]);
}

#[test]
fn a_name_that_changes_now_and_then_goes_at_once_each_time() {
    let hints = (0..100).map(|i| (i * 400, at_rest("a")));
    assert_eq!(times(&drive(&mut settle(), hints, 60_000), "a"), (0..100).map(|i| i * 400).collect::<Vec<_>>());
    // So do twenty different ones a second, whatever a log does meanwhile.
    let hints = (0..2000).flat_map(|i| [(i * 50, at_rest("log")), (i * 50 + 7, at_rest(&format!("f{i}")))]);
    let batches = drive(&mut settle(), hints, 200_000);
    assert!((0..2000).all(|i| times(&batches, &format!("f{i}")) == [i * 50 + 7]));
}

#[test]
fn a_second_change_right_after_the_first_waits_a_tenth_of_a_second() {
    let hints = [(0, at_rest("a")), (3, at_rest("a")), (5000, at_rest("a"))];
    assert_eq!(times(&drive(&mut settle(), hints, 10_000), "a"), [0, 100, 5000]);
}

#[test]
fn an_overflow_covers_all_names_and_its_repetitions_wait_longer() {
    let mut settle = settle();
    settle.hint(ms(0), changed("a"));
    settle.hint(ms(0), at_rest("b"));
    settle.hint(ms(1), Hint::Overflow);
    settle.hint(ms(1), Hint::RootGone);
    assert_eq!(settle.poll(ms(1)), everything());
    assert_eq!((settle.poll(ms(20_000)), settle.timeout()), (None, None));

    let storm = (0..30_000).step_by(20).flat_map(|at| [(at, Hint::Overflow), (at, at_rest(&format!("f{at}")))]);
    let batches = drive(&mut Settle::new(SettleOptions::default()), storm, 60_000);
    let scans: Vec<u64> = batches.iter().filter(|(_, batch)| batch.everything).map(|(at, _)| *at).collect();
    assert_eq!(scans, [0, 100, 300, 700, 1500, 3100, 6300, 12_700, 22_700, 32_700]);
    // Names do not wait for the scan.
    assert_eq!(times(&batches, "f14000"), [14_000]);
}

#[test]
fn more_names_than_fit_are_everything() {
    let mut settle = Settle::new(SettleOptions { names: 3, ..SettleOptions::default() });
    for name in ["a", "b", "c", "a", "b"] {
        settle.hint(ms(0), changed(name));
    }
    assert_eq!(settle.timeout(), Some(ms(100)));
    settle.hint(ms(50), changed("d"));
    assert_eq!(settle.poll(ms(50)), everything());
    assert_eq!(settle.timeout(), None);
}

#[test]
fn extreme_numbers_do_no_harm() {
    let huge = SettleOptions { quiet: Duration::MAX, settle_max: Duration::ZERO, names: 0 };
    let mut settle = Settle::new(huge);
    settle.hint(Duration::MAX, at_rest("a"));
    assert_eq!(settle.poll(Duration::MAX), everything());
    let mut settle = Settle::new(SettleOptions { names: 2, ..huge });
    for now in [Duration::MAX, Duration::ZERO, Duration::MAX] {
        settle.hint(now, at_rest("a"));
        settle.hint(now, changed("b"));
        settle.poll(now);
        settle.hint(now, Hint::Overflow);
        settle.poll(now);
    }
}

/// A hint after some milliseconds, and whether the caller polls then (it is late if it is busy).
fn moment() -> impl Strategy<Value = (u64, Hint, bool)> {
    let hint = prop_oneof![
        10 => (0..12u8).prop_map(|i| changed(&format!("n{i}"))),
        10 => (0..12u8).prop_map(|i| at_rest(&format!("n{i}"))),
        10 => Just(at_rest("log")),
        1 => Just(Hint::Overflow),
        1 => Just(Hint::RootGone),
    ];
    (prop_oneof![4 => 0..30u64, 2 => 0..300u64, 1 => 0..15_000u64], hint, any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// No hint is lost, none waits too long, and no more is kept than is allowed.
    #[test]
    fn every_hint_is_served_in_time(moments in prop::collection::vec(moment(), 1..300), bound in 1..16usize) {
        let options = SettleOptions { names: bound, ..SettleOptions::default() };
        let mut settle = Settle::new(options);
        // The first hint at each name (or at everything: `None`) that no batch has served.
        let mut unserved: Map<Option<RelPath>, Duration> = Map::new();
        let mut now = Duration::ZERO;
        let serve = |settle: &mut Settle, unserved: &mut Map<Option<RelPath>, Duration>, now: Duration| {
            let due = settle.timeout().is_some_and(|due| due <= now);
            let batch = settle.poll(now);
            prop_assert_eq!(batch.is_some(), due);
            let Some(batch) = batch else { return Ok(()) };
            prop_assert!(batch.everything == batch.names.is_empty() && batch.names.len() <= bound);
            if batch.everything {
                unserved.clear();
            }
            for name in batch.names {
                prop_assert!(unserved.remove(&Some(name)).is_some(), "a name that nobody hinted at");
            }
            Ok(())
        };
        for (after, hint, is_idle) in moments {
            let then = now + ms(after);
            // An idle caller is woken in time.
            while let Some(due) = settle.timeout().filter(|due| is_idle && *due < then) {
                now = now.max(due);
                serve(&mut settle, &mut unserved, now)?;
            }
            now = then;
            let key = match &hint {
                Hint::Changed(path) | Hint::AtRest(path) => Some(path.clone()),
                Hint::Overflow | Hint::RootGone => None,
            };
            settle.hint(now, hint);
            unserved.entry(key).or_insert(now);
            prop_assert!(settle.waiting.len() <= bound && settle.due.len() == settle.waiting.len());
            if let Some(first) = unserved.values().min() {
                let timeout = settle.timeout();
                prop_assert!(timeout.is_some_and(|due| due <= *first + options.settle_max), "{timeout:?}");
            }
            if is_idle {
                serve(&mut settle, &mut unserved, now)?;
            }
            prop_assert!(settle.restless.len() <= 2 * bound);
        }
        while let Some(due) = settle.timeout() {
            now = now.max(due);
            serve(&mut settle, &mut unserved, now)?;
        }
        prop_assert!(unserved.is_empty(), "{unserved:?}");
    }
}
