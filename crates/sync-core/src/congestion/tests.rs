use std::time::Duration;

use super::*;

const PACKET: u64 = 1452;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A packet each millisecond over a path of 20 ms, for so long.
fn steadily(congestion: &mut Congestion, millis: u64) {
    for i in 0..millis {
        congestion.sent(ms(i), PACKET);
        if let Some(at) = i.checked_sub(20) {
            congestion.acked(ms(i), ms(at), PACKET, ms(20));
            congestion.acks_end(ms(i), 20 * PACKET, false);
        }
    }
    assert!(congestion.phase != Phase::Start && congestion.rate() > 1_400_000.0, "{congestion}");
}

#[test]
fn nothing_goes_below_what_keeps_acknowledgements_flowing() {
    let mut congestion = Congestion::new(PACKET, 0);
    assert_eq!(congestion.window(), LEAST_PACKETS * PACKET);
    steadily(&mut congestion, 1000);
    for _ in 0..1000 {
        congestion.marked(ms(999));
        congestion.lost(ms(999), 10 * PACKET);
        assert!(congestion.window() >= LEAST_PACKETS * PACKET);
    }
    congestion.nothing_arrives();
    assert_eq!(congestion.window(), LEAST_PACKETS * PACKET);
    congestion.packets_of(9000);
    assert_eq!(congestion.window(), LEAST_PACKETS * 9000);
}

#[test]
fn a_mark_of_the_path_lowers_the_window_once_in_a_round() {
    let mut congestion = Congestion::new(PACKET, INITIAL_PACKETS * PACKET);
    steadily(&mut congestion, 1000);
    let before = congestion.window();
    congestion.marked(ms(999));
    let marked = congestion.window();
    assert!(marked < before, "{before} {marked}");
    congestion.marked(ms(999));
    assert_eq!(congestion.window(), marked);
}

#[test]
fn the_rate_is_that_of_what_arrives() {
    let mut sampler = Sampler::default();
    // A packet each millisecond, heard of 20 ms later.
    let mut rates = Vec::new();
    for i in 0..200 {
        sampler.sent(ms(i), 1000);
        if let Some(at) = i.checked_sub(20) {
            sampler.acked(ms(i), ms(at), 1000);
            rates.extend(sampler.batch_ends(20_000, false));
        }
    }
    let settled = &rates[60..];
    assert!(settled.iter().all(|sample| (sample.rate - 1_000_000.0).abs() < 60_000.0 && !sample.idle), "{settled:?}");
}

#[test]
fn acknowledgements_in_a_heap_are_no_fast_path() {
    let mut sampler = Sampler::default();
    // A packet each millisecond. Nothing is heard until 100 ms, then of the first alone, ...
    for i in 0..100 {
        sampler.sent(ms(i), 1000);
    }
    sampler.acked(ms(100), ms(0), 1000);
    sampler.batch_ends(99_000, false);
    // ... and 21 ms later of all others and one that was sent just before.
    sampler.sent(ms(101), 1000);
    for i in (1..100).chain([101]) {
        sampler.acked(ms(121), ms(i), 1000);
    }
    let rate = sampler.batch_ends(0, false).unwrap().rate;
    assert!(rate <= 1_010_000.0, "{rate}");
}

#[test]
fn what_is_remembered_of_a_long_path_is_bounded() {
    let mut sampler = Sampler::default();
    let at = |i: u64| Duration::from_micros(60 * i);
    for i in 0..50_000 {
        sampler.sent(at(i), 1000);
        assert!(sampler.remembered() <= 4096);
    }
    for i in 0..50_000 {
        sampler.acked(at(50_000 + i), at(i), 1000);
        let sample = sampler.batch_ends(1000, false).unwrap();
        assert!(sample.rate < 1000.0 / 60e-6 + 1e6, "{i} {sample:?}");
    }
}

#[test]
fn who_has_little_in_flight_is_not_slowed_down_by_what_others_do() {
    let mut congestion = Congestion::new(PACKET, INITIAL_PACKETS * PACKET);
    steadily(&mut congestion, 1000);
    congestion.acks_end(ms(1000), 0, true);
    let before = congestion.window();
    congestion.sent(ms(2000), PACKET);
    congestion.marked(ms(2000));
    assert_eq!(congestion.window(), before);
}
