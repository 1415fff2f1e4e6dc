//! Whether compression pays, from how the link behaves.

use std::time::Duration;

use super::{LIGHT_LEVEL, STRONG_LEVEL};

/// What one sender did since it last told. There may be several, each of which tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Bytes of content handed to the link, counted before compression.
    pub content: u64,
    /// The same, after it.
    pub sent: u64,
    /// When it began with that, on a clock that all senders share: with compressing, handing over and waiting for the link, but
    /// not with waiting for content.
    pub begun: Duration,
    /// When it ended.
    pub ended: Duration,
    /// The part in between that was spent waiting for the link.
    pub blocked: Duration,
}

/// What all senders did in a time.
#[derive(Clone, Debug, Default)]
struct Window {
    content: u64,
    sent: u64,
    /// Of all senders together.
    working: Duration,
    blocked: Duration,
    /// When any of them worked.
    spans: Vec<(Duration, Duration)>,
}

impl Window {
    fn add(&mut self, seen: Observation) {
        self.content = self.content.saturating_add(seen.content);
        self.sent = self.sent.saturating_add(seen.sent);
        self.working = self.working.saturating_add(seen.ended.saturating_sub(seen.begun));
        self.blocked = self.blocked.saturating_add(seen.blocked);
        self.spans.push((seen.begun, seen.ended));
    }

    /// Bytes of content per second in which any sender worked: so it does not matter how many there were. At least 1, so that a
    /// tenth more is always more.
    fn rate(&mut self) -> u64 {
        self.spans.sort_unstable();
        let (mut time, mut until) = (Duration::ZERO, Duration::ZERO);
        for &(begun, ended) in &self.spans {
            time = time.saturating_add(ended.saturating_sub(begun.max(until)));
            until = until.max(ended);
        }
        let rate = u128::from(self.content) * 1_000_000_000 / time.as_nanos().max(1);
        u64::try_from(rate).unwrap_or(u64::MAX).max(1)
    }
}

/// Decides whether to compress and how strongly, from what a sender sees of its link. Sans-IO: observations in, an answer out.
///
/// It starts on, because the buffers on the way take in megabytes before a slow link shows: for as long as they may, it is
/// enough that content shrinks, and then that the link is waited for. Once it was off it tries compression again when the link is
/// what everything waits for. What was sent before is still on its way then, and says how fast the link is, not how well
/// compression does: again it is enough that content shrinks. Then it compares: compression stays as long as it brings more content across in the same
/// time. That one rule covers the link that outruns the compressor and a replica whose disk is the narrow place; content that
/// does not shrink is passed over on a slow link; each attempt that brings nothing doubles the wait before the next, and now and then a window goes
/// plain to see whether the link got faster. A link beyond [`FAST_LINK`] is never tried: there a CPU that both sides may
/// share has better things to do.
///
/// While it is on, it is strong where the link is waited for nearly all the time, and light again once it hardly ever is.
#[derive(Clone, Debug, Default)]
pub struct AutoCompress {
    on: bool,
    window: Window,
    /// Bytes per second without compression, while the link was the narrow place; 0 before that was seen.
    plain_rate: u64,
    /// Whether the link was waited for in the window before this one: part of the first goes into buffers.
    was_narrow: bool,
    /// Windows left before another attempt.
    hold: u32,
    /// Attempts in a row that brought nothing.
    failures: u32,
    /// Periods in a row in which it brought more.
    successes: u32,
    /// Windows since compression was turned on, and bytes sent in them.
    on_for: u32,
    sent_on: u64,
    /// Whether it takes the time that the link leaves.
    is_strong: bool,
    /// Windows left before it may again, after it took too much.
    strong_hold: u32,
    /// Whether most of the window before this one was spent waiting for the link.
    was_idle: bool,
}

/// Bytes per second beyond which compression is not tried: about what zstd takes at [`LIGHT_LEVEL`] on one core, so that the
/// outcome is open.
pub const FAST_LINK: u64 = 150_000_000;

/// An opinion is formed after this much content, which is a few round trips' worth on most links, …
const WINDOW_BYTES: u64 = 1 << 20;
/// … in so many blocks, since one says how fast its sender is and not how fast all are; …
const WINDOW_SPANS: usize = 4;
/// … or this much time, on the slow ones.
const WINDOW_TIME: Duration = Duration::from_millis(100);
/// Bytes that may be on their way when compression is turned on: in the buffers of this side, the link and the replica.
const UNDER_WAY: u64 = 16 << 20;
/// Most windows between two attempts.
const LONGEST_HOLD: u32 = 64;
/// Windows after which what is seen is of plain content alone.
const CLEAR: u32 = 3;
/// Windows of compression before the plain rate is measured first; each time that compression does better then doubles it, …
const FIRST_ON: u32 = 128;
/// … up to so many times, while the link is waited for.
const MOST_DOUBLED: u32 = 5;

impl AutoCompress {
    /// On, until the link proves fast.
    pub fn new() -> Self {
        Self { on: true, ..Self::default() }
    }

    /// Whether the next block should be compressed.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// How strongly the next block should be compressed, if at all.
    pub fn level(&self) -> Option<i32> {
        self.on.then_some(if self.is_strong { STRONG_LEVEL } else { LIGHT_LEVEL })
    }

    /// Takes what was done under the present answer, and returns the next answer.
    pub fn observe(&mut self, seen: Observation) -> bool {
        self.window.add(seen);
        let is_enough = self.window.content >= WINDOW_BYTES && self.window.spans.len() >= WINDOW_SPANS;
        if is_enough || self.window.working >= WINDOW_TIME {
            let window = std::mem::take(&mut self.window);
            // Without content there is nothing to compare.
            if window.content > 0 {
                self.judge(window);
            }
        }
        self.on
    }

    /// More is done while the link leaves the time for it, and no more once it waits for the compressor.
    fn strengthen(&mut self, window: &Window) {
        let is_idle = window.blocked >= window.working / 4 * 3;
        self.strong_hold = self.strong_hold.saturating_sub(1);
        if self.is_strong && window.blocked < window.working / 8 {
            self.weaken();
        } else if is_idle && self.was_idle && self.strong_hold == 0 {
            self.is_strong = true;
        }
        self.was_idle = is_idle;
    }

    fn weaken(&mut self) {
        (self.is_strong, self.strong_hold) = (false, LONGEST_HOLD);
    }

    fn judge(&mut self, mut window: Window) {
        let rate = window.rate();
        let is_narrow = window.blocked.saturating_mul(2) >= window.working;
        if self.on {
            self.on_for += 1;
            self.sent_on = self.sent_on.saturating_add(window.sent);
            let is_first = self.plain_rate == 0;
            let is_trial = (is_narrow || is_first) && self.sent_on < UNDER_WAY;
            let shrinks = window.sent <= window.content - window.content / 10;
            // Content that does not shrink is found out by a sample and costs next to nothing: on a slow link it says nothing about
            // what comes after it.
            let is_passed = !shrinks && is_narrow;
            let pays = is_passed
                || match (is_trial, is_first) {
                    (true, _) => shrinks,
                    (false, true) => shrinks && is_narrow,
                    // A tenth more, or it is not worth the heat.
                    (false, false) => rate >= self.plain_rate.saturating_add(self.plain_rate / 10),
                };
            if !pays && self.is_strong {
                // Less of it may.
                self.weaken();
            } else if pays {
                self.failures = if is_trial { self.failures } else { 0 };
                let doubled = if is_narrow { self.successes.min(MOST_DOUBLED) } else { 0 };
                self.on = self.on_for < FIRST_ON << doubled;
                self.successes = self.successes.saturating_add(u32::from(!self.on && !is_first));
                // What is under way then is not plain yet.
                self.hold = if self.on { 0 } else { CLEAR };
            } else {
                (self.on, self.successes) = (false, 0);
                self.hold = (4u32 << self.failures.min(8)).min(LONGEST_HOLD);
                self.failures = self.failures.saturating_add(1);
            }
            if self.on {
                self.strengthen(&window);
            }
        } else {
            self.hold = self.hold.saturating_sub(1);
            if is_narrow && self.was_narrow && self.hold == 0 && rate < FAST_LINK {
                self.plain_rate = rate;
                (self.on, self.on_for, self.sent_on) = (true, 0, 0);
            }
        }
        self.was_narrow = is_narrow;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    /// What a sender works with, in bytes per second; a replica takes so much content, and a link so many bytes.
    #[derive(Clone, Copy)]
    struct World {
        link: u64,
        compressor: u64,
        ratio: u64,
        replica: u64,
        /// Bytes that are taken in before anybody waits.
        buffer: u64,
        /// How much longer the strong level takes.
        effort: u64,
    }

    const HOME: World =
        World { link: 12 * MB, compressor: 300 * MB, ratio: 3, replica: u64::MAX, buffer: 256 << 10, effort: 2 };

    /// What was sent.
    #[derive(Default)]
    struct Driven {
        /// Blocks that were compressed, …
        compressed: usize,
        /// … and strongly.
        strong: usize,
        /// Changes between strong and light.
        turns: usize,
        /// Seconds.
        took: f64,
    }

    /// Sends so many blocks.
    fn drive(auto: &mut AutoCompress, world: World, blocks: usize) -> Driven {
        let World { link, compressor, ratio, replica, buffer, effort } = world;
        let (content, mut driven, mut now) = (256u64 << 10, Driven::default(), 0.0);
        // What is under way: bytes, and when they have arrived.
        let mut was_strong = false;
        let (mut queue, mut queued, mut last) = (std::collections::VecDeque::<(u64, f64)>::new(), 0, 0.0);
        for _ in 0..blocks {
            let level = auto.level();
            assert_eq!(level.is_some(), auto.is_on());
            let is_strong = level == Some(STRONG_LEVEL);
            driven.compressed += usize::from(level.is_some());
            driven.strong += usize::from(is_strong);
            if level.is_some() {
                driven.turns += usize::from(is_strong != was_strong);
                was_strong = is_strong;
            }
            let (sent, speed) = match level {
                None => (content, 2000 * MB),
                Some(STRONG_LEVEL) if ratio > 1 => (content / ratio * 7 / 8, compressor / effort),
                Some(_) => (content / ratio, compressor),
            };
            let started = now;
            now += content as f64 / speed as f64;
            let compressed_at = now;
            last = f64::max(last, now) + (sent as f64 / link as f64).max(content as f64 / replica as f64);
            queue.push_back((sent, last));
            queued += sent;
            while let Some(&(bytes, arrived)) = queue.front()
                && (arrived <= now || queued > buffer)
            {
                queue.pop_front();
                queued -= bytes;
                now = f64::max(now, arrived);
            }
            let seconds = Duration::from_secs_f64;
            let (begun, ended, blocked) = (seconds(started), seconds(now), seconds(now - compressed_at));
            auto.observe(Observation { content, sent, begun, ended, blocked });
        }
        driven.took = now;
        driven
    }

    #[test]
    fn it_compresses_where_that_is_faster() {
        // Whether most of 4000 blocks are compressed.
        let table = [
            (HOME, true),
            (World { link: 110 * MB, ..HOME }, true),
            (World { link: MB / 100, ..HOME }, true),
            // So well that the link is never waited for again: still faster.
            (World { link: 50 * MB, ratio: 100, ..HOME }, true),
            // Loopback.
            (World { link: 1500 * MB, ..HOME }, false),
            (World { link: 250 * MB, ..HOME }, false),
            // The link outruns the compressor.
            (World { link: 150 * MB, compressor: 120 * MB, ..HOME }, false),
            // Content that does not shrink, where the link is not slow.
            (World { ratio: 1, link: 250 * MB, ..HOME }, false),
        ];
        for (world, expected) in table {
            for buffer in [256 << 10, 1 << 20, 8 << 20] {
                let (mut auto, world) = (AutoCompress::new(), World { buffer, ..world });
                assert!(auto.is_on());
                let Driven { compressed, .. } = drive(&mut auto, world, 4000);
                let share = if expected { 3600..=4000 } else { 0..=700 };
                let World { link, compressor, ratio, replica, .. } = world;
                assert!(share.contains(&compressed), "{link} {compressor} {ratio} {replica} {buffer}: {compressed}");
            }
        }
    }

    /// Then it costs nothing but work of a CPU that would wait for the disk; where little is under way that is found out.
    #[test]
    fn a_replica_whose_disk_is_slower_than_the_link_loses_no_time() {
        for buffer in [256 << 10, 2 << 20, 16 << 20] {
            let world = World { link: 100 * MB, replica: 50 * MB, buffer, ..HOME };
            let Driven { compressed, took, .. } = drive(&mut AutoCompress::new(), world, 4000);
            let plain = drive(&mut AutoCompress::new(), World { compressor: u64::MAX, effort: 1, ..world }, 4000).took;
            assert!(took < plain * 1.02, "{buffer}: {took} s, {plain} s where compressing takes no time");
            assert!(compressed > 100 && (compressed < 2900 || buffer > 1 << 20), "{buffer}: {compressed}");
        }
    }

    /// What is under way when compression begins says nothing about it.
    #[test]
    fn a_push_of_some_hundred_megabytes_gains_what_it_can() {
        let world = World { link: 25 * MB, ratio: 5, buffer: 8 << 20, ..HOME };
        let Driven { took: plain, .. } = drive(&mut AutoCompress::new(), World { ratio: 1, ..world }, 1000);
        let Driven { compressed, took, .. } = drive(&mut AutoCompress::new(), world, 1000);
        assert!(compressed > 930 && took * 3.5 < plain, "{compressed} of 1000 in {took} s, {plain} s without");
    }

    #[test]
    fn a_slow_link_leaves_the_time_for_more() {
        for link in [MB / 100, MB, 2 * MB, 12 * MB] {
            let Driven { compressed, strong, turns, .. } =
                drive(&mut AutoCompress::new(), World { link, ..HOME }, 2000);
            assert!(strong > 1900 && compressed > 1970 && turns == 1, "{link}: {strong} of {compressed}, {turns}");
        }
        // Where the strong level would be the narrow place it is found out now and then, since each change forgets what was sent.
        for (link, compressor, effort) in [(24 * MB, 300 * MB, 16), (80 * MB, 300 * MB, 2), (MB, 3 * MB, 40)] {
            let world = World { link, compressor, effort, ..HOME };
            let Driven { strong, turns, took, .. } = drive(&mut AutoCompress::new(), world, 2000);
            assert!(strong < 150 && turns < 25, "{link} {compressor} {effort}: {strong}, {turns}");
            let light = drive(&mut AutoCompress::new(), World { effort: 1, ..world }, 2000);
            assert!(took < light.took * 1.5, "{link} {compressor} {effort}: {took} s, {} s", light.took);
        }
    }

    #[test]
    fn it_follows_a_change() {
        let mut auto = AutoCompress::new();
        let mut share = |world, blocks| drive(&mut auto, world, blocks).compressed;
        share(World { ratio: 1, ..HOME }, 2000);
        assert!(share(HOME, 200) > 150, "content that shrinks after some that does not");
        share(HOME, 1800);
        assert!(share(World { link: 1500 * MB, ..HOME }, 2000) < 600, "a link that got faster");
    }

    /// Two senders that share a link are as fast as one that has it.
    #[test]
    fn the_number_of_senders_does_not_matter() {
        let ms = Duration::from_millis;
        let span =
            |begun, ended| Observation { content: 1000, begun: ms(begun), ended: ms(ended), ..Observation::default() };
        for (spans, milliseconds) in [
            (vec![(0, 10)], 10),
            (vec![(8, 9), (0, 10), (0, 10), (3, 4)], 10),
            (vec![(0, 10), (20, 30), (5, 25)], 30),
            (vec![(0, 10), (20, 30), (5, 8)], 20),
            (vec![(7, 7)], 0),
        ] {
            let mut window = Window::default();
            spans.iter().for_each(|&(begun, ended)| window.add(span(begun, ended)));
            let rate = (spans.len() as u64 * 1_000_000).checked_div(milliseconds);
            assert_eq!(window.rate(), rate.unwrap_or(1_000_000_000_000), "{spans:?}");
        }
    }

    #[test]
    fn waiting_for_content_is_no_reason() {
        let mut auto = AutoCompress::new();
        for i in 0..1000 {
            let (begun, blocked) = (Duration::from_millis(100 * i), Duration::from_millis(1));
            let ended = begun + Duration::from_millis(10);
            let on = auto.observe(Observation { content: 10_000, sent: 10_000, begun, ended, blocked });
            assert!(!on || i < 10, "{i}");
        }
        auto.observe(Observation::default());
        let forever =
            Observation { content: 0, sent: 0, begun: Duration::ZERO, ended: Duration::MAX, blocked: Duration::MAX };
        assert!(!auto.observe(forever));
    }
}
