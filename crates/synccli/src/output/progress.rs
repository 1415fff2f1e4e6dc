//! How far a push is: a bar on a terminal, a line a second where a terminal was missing and progress was asked for.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use sync_core::monitor::{Phase, Progress};

/// Time between two lines, where there are lines.
const BETWEEN: Duration = Duration::from_secs(1);

/// A bar on standard error.
pub struct Bar {
    bar: ProgressBar,
    phase: Mutex<Option<Phase>>,
}

impl Bar {
    /// A bar that shows at once and moves by itself.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(style(Phase::Scan));
        bar.set_message("starting");
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, phase: Mutex::new(None) }
    }

    /// Shows where the push is.
    pub fn show(&self, progress: &Progress) {
        let (done, total) = bytes(progress);
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if *phase != Some(progress.phase) {
            *phase = Some(progress.phase);
            self.bar.set_style(style(progress.phase));
            // Rate and time left are about this phase alone.
            self.bar.reset();
        }
        match total {
            Some(total) => self.bar.set_length(total.max(done)),
            None => self.bar.unset_length(),
        }
        self.bar.set_position(done);
        self.bar.set_message(words(progress));
    }

    /// Runs `print` with the bar out of the way.
    pub fn suspend(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    /// Removes the bar.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(phase: Phase) -> ProgressStyle {
    let template = match phase {
        Phase::Scan | Phase::Publish => "{spinner} {msg} {elapsed}",
        Phase::Hash | Phase::Send => "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
    };
    // The templates are constant and right; a plain bar would do, too.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

/// Lines for where no bar can be drawn.
pub struct Pace {
    state: Mutex<Option<Beat>>,
}

/// The last line, and where the phase began.
struct Beat {
    phase: Phase,
    began: Instant,
    from: u64,
    said: Instant,
}

impl Pace {
    /// Nothing said yet.
    pub fn new() -> Self {
        Self { state: Mutex::new(None) }
    }

    /// Whether it is time to speak again; if so, how long the phase has lasted and the bytes done in it.
    pub fn due(&self, progress: &Progress, now: Instant) -> Option<(Duration, u64)> {
        let (done, _) = bytes(progress);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *state {
            Some(beat) if beat.phase == progress.phase => {
                if now.saturating_duration_since(beat.said) < BETWEEN {
                    return None;
                }
                beat.said = now;
                Some((now.saturating_duration_since(beat.began), done.saturating_sub(beat.from)))
            }
            _ => {
                *state = Some(Beat { phase: progress.phase, began: now, from: done, said: now });
                Some((Duration::ZERO, 0))
            }
        }
    }
}

/// One line: what is done, how fast, how long it will take.
pub fn line(progress: &Progress, spent: Duration, in_phase: u64) -> String {
    let (done, total) = bytes(progress);
    let mut line = words(progress);
    if matches!(progress.phase, Phase::Scan | Phase::Publish) {
        return line;
    }
    line += &format!(": {}", HumanBytes(done));
    let rate = if spent.is_zero() { 0.0 } else { in_phase as f64 / spent.as_secs_f64() };
    if let Some(total) = total {
        line += &format!(" of {}", HumanBytes(total));
    }
    if rate >= 1.0 {
        line += &format!(", {}/s", HumanBytes(rate as u64));
        if let Some(left) = total.and_then(|total| total.checked_sub(done)) {
            line += &format!(", {} s left", (left as f64 / rate).ceil() as u64);
        }
    }
    line
}

fn words(progress: &Progress) -> String {
    match progress.phase {
        Phase::Scan => format!("scanning, {} entries", progress.scanned),
        Phase::Hash => "hashing".to_owned(),
        Phase::Send => "sending".to_owned(),
        Phase::Publish => "publishing".to_owned(),
    }
}

/// Bytes done and to do in this phase, over all destinations.
fn bytes(progress: &Progress) -> (u64, Option<u64>) {
    match progress.phase {
        Phase::Scan | Phase::Publish => (0, None),
        Phase::Hash => (progress.hashed, progress.to_hash),
        Phase::Send => (progress.sent.iter().sum(), Some(progress.to_send.iter().sum())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_rate_and_time_left() {
        let progress = Progress {
            phase: Phase::Send,
            sent: vec![1 << 20, 2 << 20],
            to_send: vec![3 << 20; 2],
            ..Progress::default()
        };
        assert_eq!(
            line(&progress, Duration::from_secs(1), 1 << 20),
            "sending: 3.00 MiB of 6.00 MiB, 1.00 MiB/s, 3 s left"
        );
        assert_eq!(line(&progress, Duration::ZERO, 0), "sending: 3.00 MiB of 6.00 MiB");
        let progress = Progress { scanned: 12, ..Progress::default() };
        assert_eq!(line(&progress, Duration::from_secs(9), 0), "scanning, 12 entries");
    }

    #[test]
    fn lines_come_once_a_second_and_at_each_phase() {
        let (pace, start) = (Pace::new(), Instant::now());
        let at = |phase, hashed, millis| {
            let progress = Progress { phase, hashed, ..Progress::default() };
            pace.due(&progress, start + Duration::from_millis(millis))
        };
        assert_eq!(at(Phase::Hash, 10, 0), Some((Duration::ZERO, 0)));
        assert_eq!(at(Phase::Hash, 20, 999), None);
        assert_eq!(at(Phase::Hash, 30, 1000), Some((Duration::from_secs(1), 20)));
        assert_eq!(at(Phase::Publish, 30, 1001), Some((Duration::ZERO, 0)));
    }
}
