use std::time::Duration;

use super::*;

const PACKET: u64 = 1452;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Some packets a round over a path of 10 ms, each acknowledged.
fn rounds(congestion: &mut Congestion, rounds: u64) {
    for round in 0..rounds {
        for i in 0..20 {
            let at = ms(20 * round + i);
            congestion.sent(at, PACKET);
            congestion.acked(at + ms(10), at, PACKET, ms(10));
            congestion.acks_end(at + ms(10), 10 * PACKET, false);
        }
    }
}

#[test]
fn nothing_goes_below_what_keeps_acknowledgements_flowing() {
    let mut congestion = Congestion::new(PACKET, 0);
    assert_eq!(congestion.window(), LEAST_PACKETS * PACKET);
    rounds(&mut congestion, 20);
    for i in 0..1000 {
        congestion.marked(ms(200 + i));
        congestion.lost(ms(200 + i), 10 * PACKET);
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
    rounds(&mut congestion, 20);
    let before = congestion.window();
    congestion.marked(ms(400));
    let marked = congestion.window();
    assert!(marked < before, "{before} {marked}");
    congestion.marked(ms(400));
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
            rates.extend(sampler.batch_ends(ms(20), 20_000, false));
        }
    }
    let settled = &rates[60..];
    assert!(settled.iter().all(|sample| (sample.rate - 1_000_000.0).abs() < 60_000.0 && !sample.idle), "{settled:?}");
}

#[test]
fn acknowledgements_in_a_heap_are_no_fast_path() {
    let mut sampler = Sampler::default();
    for i in 0..100 {
        sampler.sent(ms(i), 1000);
    }
    let mut fastest: f64 = 0.0;
    for i in 0..100 {
        // All at once, long after the first could have come.
        sampler.acked(ms(150), ms(i), 1000);
        fastest = fastest.max(sampler.batch_ends(ms(50), (99 - i) * 1000, false).unwrap().rate);
    }
    assert!(fastest <= 1_010_000.0, "{fastest}");
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
        let sample = sampler.batch_ends(at(50_000), 1000, false).unwrap();
        assert!(sample.rate < 1000.0 / 60e-6 + 1e6, "{i} {sample:?}");
    }
}
