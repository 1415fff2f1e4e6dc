//! The monitor of a push: decides what is said, where and when. Standard output has what was asked for, standard error
//! has what a person must know.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, stderr};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sync_core::monitor::{Item, Monitor, Problem, Progress};
use sync_core::options::{PushReport, PushRequest};
use sync_core::path::escape;

use super::progress::{Bar, Pace, line};
use super::{Sink, explain, json, text};
use crate::args::{DiffArgs, PushArgs, SayArgs, label};
use crate::exit::Exit;

/// How many problems with the same reason are listed on standard error, without `-v`.
const LISTED: u64 = 20;

/// How much is said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Say {
    json: bool,
    quiet: bool,
    stats: bool,
    progress: bool,
    itemize: bool,
    dry_run: bool,
    /// Whether each entry comes with how it would be made, and why.
    explain: bool,
    /// How many `-v`.
    pub verbose: u8,
}

impl Say {
    /// What the options of a push ask for.
    pub fn push(args: &PushArgs) -> Self {
        Self { itemize: args.itemize_changes, dry_run: args.dry_run, ..Self::of(&args.say) }
    }

    /// What the options of a comparison ask for.
    pub fn diff(args: &DiffArgs) -> Self {
        Self { dry_run: true, explain: true, ..Self::of(&args.say) }
    }

    fn of(args: &SayArgs) -> Self {
        let SayArgs { stats, json, verbose, quiet, progress } = *args;
        Self { json, quiet, stats, progress, verbose, ..Self::default() }
    }
}

/// What becomes of progress.
enum Showing {
    Nothing,
    Bar(Bar),
    Lines(Pace),
}

/// A [`Monitor`] that prints.
pub struct Reporter {
    say: Say,
    source: String,
    destinations: Vec<String>,
    out: Sink,
    err: Sink,
    showing: Showing,
    /// How many problems of entries had the same reason, at each destination and at the source.
    same: Mutex<BTreeMap<(Option<usize>, String), u64>>,
}

impl Reporter {
    /// A reporter for one push.
    pub fn new(say: Say, request: &PushRequest, out: Sink, err: Sink) -> Self {
        let showing = if say.progress && (say.json || !stderr().is_terminal()) {
            Showing::Lines(Pace::new())
        } else if !say.json && stderr().is_terminal() && (say.progress || !say.quiet) {
            Showing::Bar(Bar::new())
        } else {
            Showing::Nothing
        };
        Self {
            say,
            source: escape(request.source.as_os_str().as_bytes()),
            destinations: request.destinations.iter().map(label).collect(),
            out,
            err,
            showing,
            same: Mutex::default(),
        }
    }

    /// All that happened was told: takes the bar off the screen, and says how many problems were not listed.
    pub fn end_progress(&self) {
        if let Showing::Bar(bar) = &self.showing {
            bar.end();
        }
        for ((dest, reason), count) in std::mem::take(&mut *self.same()) {
            let more = count.saturating_sub(LISTED);
            if more > 0 {
                let name = self.name(dest).unwrap_or(&self.source);
                let reason = text::escape_text(&reason);
                self.err.line(&format!("error: {name}: and {more} more for the same reason (-v lists them): {reason}"));
            }
        }
    }

    fn same(&self) -> MutexGuard<'_, BTreeMap<(Option<usize>, String), u64>> {
        self.same.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a problem is one of many that say the same of other entries.
    fn is_one_of_many(&self, dest: Option<usize>, problem: &Problem) -> bool {
        if problem.path.is_none() || self.say.verbose > 0 {
            return false;
        }
        let mut same = self.same();
        let count = same.entry((dest, problem.reason.clone())).or_default();
        *count += 1;
        *count > LISTED
    }

    /// Says how the push ended.
    pub fn finish(&self, report: &PushReport, exit: Exit) {
        if report.source_problems > 0 {
            let entries = text::plural(report.source_problems, "problem", "problems");
            self.err.line(&format!(
                "error: {}: {entries} in the source; copies of what failed stay as they were",
                self.source
            ));
        }
        for (name, destination) in self.destinations.iter().zip(&report.destinations) {
            let failed = !destination.exact || destination.problems > 0;
            let ending = format!("{name}: {}", {
                let version = report.version.as_ref();
                text::ending(destination, version, report.source_problems, self.say.dry_run)
            });
            if failed {
                self.err.line(&format!("error: {ending}"));
            }
            if self.say.json {
                self.out.line(&json::destination(name, destination, report.source_problems).to_string());
                continue;
            }
            if !self.say.quiet {
                text::refused(&destination.refused)
                    .iter()
                    .for_each(|kind| self.err.line(&format!("notice: {name}: {kind}")));
            }
            if !failed && !self.say.quiet {
                // With -i standard output is a list of changes, and nothing else may stand in it.
                let stream = if self.say.itemize { &self.err } else { &self.out };
                stream.line(&ending);
            }
            if self.say.explain && !self.say.quiet && destination.stats.changes() > 0 {
                explain::totals(&destination.stats).iter().for_each(|line| self.out.line(line));
            }
            if self.say.stats {
                self.out.line(&format!("{name}:"));
                text::stats(&destination.stats).iter().for_each(|line| self.out.line(line));
            }
        }
        if self.say.json {
            self.out.line(&json::summary(report, self.say.dry_run, exit).to_string());
        }
    }

    fn name(&self, dest: Option<usize>) -> Option<&str> {
        dest.and_then(|dest| self.destinations.get(dest)).map(String::as_str)
    }

    fn print(&self, print: impl FnOnce()) {
        match &self.showing {
            Showing::Bar(bar) => bar.suspend(print),
            _ => print(),
        }
    }
}

impl Monitor for Reporter {
    fn notice(&self, dest: Option<usize>, notice: &str) {
        if self.say.quiet {
            return;
        }
        let name = self.name(dest);
        self.print(|| {
            if self.say.json {
                self.out.line(&json::notice(name, notice).to_string());
                self.out.flush();
            } else {
                let place = name.map(|name| format!("{name}: ")).unwrap_or_default();
                self.err.line(&format!("notice: {place}{}", text::escape_text(notice)));
            }
        });
    }

    fn problem(&self, dest: Option<usize>, problem: &Problem) {
        let name = self.name(dest);
        let listed = !self.is_one_of_many(dest, problem);
        self.print(|| {
            if listed {
                self.err.line(&format!("error: {}", text::problem(name.unwrap_or(&self.source), problem)));
            }
            if self.say.json {
                self.out.line(&json::problem(name, problem).to_string());
                self.out.flush();
            }
        });
    }

    fn item(&self, dest: usize, item: &Item) {
        let name = self.name(Some(dest)).unwrap_or_default();
        self.print(|| {
            if self.say.json {
                self.out.line(&json::item(name, item, self.say.explain).to_string());
            } else if self.say.explain {
                self.out.line(&explain::explained(item));
            } else if self.destinations.len() > 1 {
                self.out.line(&format!("{name}: {}", text::item(item)));
            } else {
                self.out.line(&text::item(item));
            }
        });
    }

    fn progress(&self, progress: &Progress) {
        match &self.showing {
            Showing::Nothing => {}
            Showing::Bar(bar) => bar.show(progress),
            Showing::Lines(pace) => {
                let Some((spent, in_phase)) = pace.due(progress, Instant::now()) else { return };
                if self.say.json {
                    self.out.line(&json::progress(progress).to_string());
                    self.out.flush();
                } else {
                    self.err.line(&line(progress, spent, in_phase));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use sync_core::monitor::How;
    use sync_core::options::{Compress, Destination, DestinationReport, Policy, Stats};
    use sync_core::path::RelPath;

    use super::*;

    struct Run {
        reporter: Reporter,
        out: Sink,
        err: Sink,
    }

    fn run(say: Say, destinations: &[&str]) -> Run {
        let request = PushRequest {
            source: "src\u{7}".into(),
            destinations: destinations.iter().map(|path| Destination::Path(PathBuf::from(path))).collect(),
            state_dir: "state".into(),
            policy: Policy::default(),
            adopt: false,
            bandwidth: None,
            compress: Compress::Auto,
            history: None,
        };
        let (out, err) = (Sink::memory(), Sink::memory());
        // Whatever the test runner's standard error is, a snapshot has no bar.
        let mut reporter = Reporter::new(say, &request, out.clone(), err.clone());
        reporter.end_progress();
        reporter.showing = if say.progress { Showing::Lines(Pace::new()) } else { Showing::Nothing };
        Run { reporter, out, err }
    }

    fn hostile() -> RelPath {
        RelPath::new(&b"\x1b]0;x\x07/a\nerror: \xff"[..]).unwrap()
    }

    fn item() -> Item {
        Item { code: ">f+++++++++".into(), path: hostile(), target: None, how: How::Made, literal: None }
    }

    fn report(created: u64, problems: u64) -> PushReport {
        let stats = Stats { created, ..Stats::default() };
        let destination =
            DestinationReport { exact: problems == 0, problems, unheard: false, stats, refused: [0, 2, 0, 0, 0, 0] };
        PushReport { version: None, source_problems: problems, destinations: vec![destination] }
    }

    /// Everything a push may say, with names that attack the terminal.
    fn everything(run: &Run) {
        run.reporter.notice(Some(0), "index rebuilt: \u{1b}[31m");
        run.reporter.problem(None, &Problem { path: Some(hostile()), reason: "cannot read: no".into() });
        run.reporter.item(0, &item());
        run.reporter.finish(&report(1, 1), Exit::Failed);
    }

    #[test]
    fn text_keeps_the_streams_apart() {
        let run = run(Say { itemize: true, ..Say::default() }, &["./d"]);
        everything(&run);
        assert_eq!(run.out.text(), ">f+++++++++ \\x1b]0;x\\x07/a\\nerror: \\xff\n");
        let expected = [
            "notice: ./d: index rebuilt: \\x1b[31m",
            "error: src\\x07/\\x1b]0;x\\x07/a\\nerror: \\xff: cannot read: no",
            "error: src\\x07: 1 problem in the source; copies of what failed stay as they were",
            "error: ./d: not identical: 1 problem (1 created)",
            "notice: ./d: 2 entries: the kernel refused the device node; the index keeps what was wanted",
        ];
        assert_eq!(run.err.text().lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn json_is_one_object_a_line_and_failures_are_in_it() {
        let run = run(Say { json: true, progress: true, ..Say::default() }, &["./d\u{1b}"]);
        everything(&run);
        run.reporter.progress(&Progress::default());
        let mut types = Vec::new();
        for line in run.out.text().lines() {
            assert!(!line.contains('\u{1b}'), "{line:?}");
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            types.push(value["type"].as_str().unwrap().to_owned());
            match types.last().map(String::as_str) {
                Some("item") => assert_eq!(value["path"], "\\x1b]0;x\\x07/a\\nerror: \\xff"),
                Some("destination") => assert_eq!(value["refused"]["device node"], 2),
                Some("summary") => assert_eq!(value["exit"], 1),
                _ => {}
            }
        }
        assert_eq!(types, ["notice", "problem", "item", "destination", "summary", "progress"]);
    }

    #[test]
    fn many_problems_with_one_reason_are_counted_and_json_has_them_all() {
        let many = |say| {
            let run = run(say, &["./d"]);
            for i in 0..154 {
                let path = RelPath::new(format!("f{i}").into_bytes()).ok();
                run.reporter.problem(Some(0), &Problem { path, reason: "cannot stage: full".into() });
            }
            run.reporter.problem(Some(0), &Problem { path: None, reason: "another".into() });
            run.reporter.end_progress();
            (run.out.text().lines().count(), run.err.text())
        };
        let (_, err) = many(Say::default());
        assert_eq!(err.lines().count(), 22, "{err}");
        assert!(err.contains("./d/f19: cannot stage: full\n") && !err.contains("./d/f20: "), "{err}");
        assert!(
            err.ends_with("error: ./d: and 134 more for the same reason (-v lists them): cannot stage: full\n"),
            "{err}"
        );
        assert_eq!(many(Say { verbose: 1, ..Say::default() }).1.lines().count(), 155);
        let (objects, err) = many(Say { json: true, ..Say::default() });
        assert_eq!((objects, err.lines().count()), (155, 22));
    }

    #[test]
    fn nothing_to_do_is_said_unless_quiet_and_beside_the_list() {
        let exact = |say| {
            let run = run(say, &["./d"]);
            let mut report = report(0, 0);
            report.destinations[0].refused = [0; 6];
            run.reporter.finish(&report, Exit::Done);
            (run.out.text(), run.err.text())
        };
        let said = "./d: nothing to do, identical\n".to_owned();
        assert_eq!(exact(Say::default()), (said.clone(), String::new()));
        assert_eq!(exact(Say { itemize: true, ..Say::default() }), (String::new(), said));
        assert_eq!(exact(Say { quiet: true, ..Say::default() }), (String::new(), String::new()));
    }

    #[test]
    fn items_of_several_destinations_name_theirs() {
        let run = run(Say { itemize: true, ..Say::default() }, &["./a", "./b"]);
        run.reporter.item(1, &Item { code: "*deleting".into(), path: RelPath::new("x").unwrap(), ..item() });
        assert_eq!(run.out.text(), "./b: *deleting   x\n");
    }
}
