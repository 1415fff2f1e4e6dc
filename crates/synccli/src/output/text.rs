//! Lines for people. Pure: facts in, text out, every name escaped.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use sync_core::manifest::{Refused, Time, Version};
use sync_core::monitor::{Arrow, How, Item, Problem};
use sync_core::options::{DestinationReport, Stats};
use sync_core::path::{RelPath, escape};
use sync_core::roles::log::LoggedVersion;

/// The name of an item as rsync prints it: a directory ends in a slash.
pub fn item_name(item: &Item) -> String {
    let is_dir = match item.how {
        How::Deleted { dir, .. } => dir,
        // A `*` has another meaning for what follows it.
        _ => item.code.as_bytes().get(1) == Some(&b'd') && !item.code.starts_with('*'),
    };
    path(&item.path, is_dir)
}

/// A path; that of a directory ends in a slash.
pub fn path(path: &RelPath, is_dir: bool) -> String {
    let mut name = path.display();
    if is_dir && !name.ends_with('/') {
        name.push('/');
    }
    name
}

/// `CODE NAME[ -> target]`.
pub fn item(item: &Item) -> String {
    // The code is letters by contract, but it comes from a peer.
    let mut line = format!("{:<11} {}", escape(item.code.as_bytes()), item_name(item));
    if let Some((arrow, target)) = &item.target {
        let arrow = match arrow {
            Arrow::Symlink => "->",
            Arrow::HardLink => "=>",
        };
        let _ = write!(line, " {arrow} {}", escape(target));
    }
    line
}

/// `WHERE/NAME: REASON`, or `WHERE: REASON` if all of it is meant.
pub fn problem(place: &str, problem: &Problem) -> String {
    let reason = escape_text(&problem.reason);
    match problem.path.as_ref().filter(|path| !path.is_root()) {
        Some(path) => format!("{}: {reason}", joined(place, path)),
        None => format!("{place}: {reason}"),
    }
}

fn joined(place: &str, path: &RelPath) -> String {
    format!("{}/{}", place.trim_end_matches('/'), path.display())
}

/// Text that is ready for people except for control characters that a peer may have put into it. Its backslashes
/// are left alone: they are escapes already.
pub fn escape_text(text: &str) -> String {
    text.split('\\').map(|piece| escape(piece.as_bytes())).collect::<Vec<_>>().join("\\")
}

/// How one destination ended, in one line after its name. A version has nothing of what could not be read in the source.
pub fn ending(report: &DestinationReport, version: Option<&Version>, source_problems: u64, dry_run: bool) -> String {
    let changes = changes(&report.stats);
    if !report.exact || report.problems > 0 {
        let problems = plural(report.problems, "problem", "problems");
        let done = match changes {
            _ if report.unheard => "it is not known what was changed there".to_owned(),
            changes if changes.is_empty() => "nothing changed".to_owned(),
            changes => changes,
        };
        return match (report.problems, dry_run) {
            (0, _) => format!("not identical ({done})"),
            (_, true) => format!("{problems} ({done} so far as planned)"),
            (_, false) => format!("not identical: {problems} ({done})"),
        };
    }
    let at = version.map(|version| format!(" to version {}", version.number)).unwrap_or_default();
    let but = match source_problems {
        0 => String::new(),
        some => format!(", but for {} in the source", plural(some, "problem", "problems")),
    };
    match (changes.as_str(), dry_run) {
        ("", true) => format!("nothing to do{but}"),
        ("", false) => format!("nothing to do, identical{at}{but}"),
        (changes, true) => format!("would change: {changes}{but}"),
        (changes, false) => format!("{changes}; identical{at} and durable{but}"),
    }
}

/// `12 created, 1 deleted`; empty if nothing changed.
fn changes(stats: &Stats) -> String {
    let counts = [
        (stats.created, "created"),
        (stats.updated, "updated"),
        (stats.metadata_only, "metadata only"),
        (stats.moved, "moved"),
        (stats.deleted, "deleted"),
    ];
    let some: Vec<_> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    some.join(", ")
}

/// One line for each kind of thing that the kernel refused at a destination.
pub fn refused(counts: &[u64; 6]) -> Vec<String> {
    let kinds = Refused::KINDS.iter().zip(counts).filter(|(_, count)| **count > 0);
    kinds
        .map(|((_, what), &count)| {
            let entries = plural(count, "entry", "entries");
            format!("{entries}: the kernel refused the {what}; the index keeps what was wanted")
        })
        .collect()
}

/// A name, a number and an explanation in each line.
pub fn aligned(rows: &[(&str, u64, &str)]) -> Vec<String> {
    let name = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0) + 1;
    let number = rows.iter().map(|(_, count, _)| count.to_string().len()).max().unwrap_or(0);
    let line = |(label, count, what): &(&str, u64, &str)| {
        format!("  {:<name$} {count:>number$}  {what}", format!("{label}:")).trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// `--stats` for one destination.
pub fn stats(stats: &Stats) -> Vec<String> {
    let sums = "content that was there already; it is the sum of the next four:";
    let rows = [
        ("entries scanned", stats.scanned, "looked at in SRC"),
        ("created", stats.created, "new names with new content, or none"),
        ("updated", stats.updated, "other content, or another kind"),
        ("metadata only", stats.metadata_only, "owner, mode, time, attributes"),
        ("moved", stats.moved, "entries that got another name"),
        ("deleted", stats.deleted, "not in SRC"),
        ("reused bytes", stats.reused_bytes, sums),
        ("- from old files", stats.old_file_bytes, "of the file that had the name, or of one much like it"),
        ("- copied there", stats.copied_bytes, "from a file of another name, which stays"),
        ("- moved there", stats.moved_bytes, "of files that got another name"),
        ("- resumed", stats.resumed_bytes, "that an interrupted push had sent"),
        ("literal bytes", stats.literal_bytes, "content that was not there, and was sent"),
        ("compressed bytes", stats.compressed_bytes, "what these took after compression"),
        ("wire bytes sent", stats.wire_sent, "all of it, with handshake and what describes the tree"),
        ("wire bytes received", stats.wire_received, "with acknowledgements and what tells of old files"),
    ];
    let seconds = [
        ("seconds scanning", stats.scan_seconds),
        ("seconds hashing", stats.hash_seconds),
        ("seconds sending", stats.send_seconds),
        ("seconds publishing", stats.publish_seconds),
    ];
    let seconds = seconds.iter().map(|(name, seconds)| format!("  {:<20} {seconds:.3}", format!("{name}:")));
    aligned(&rows).into_iter().chain(seconds).collect()
}

/// One version of `synccli log`: a line, and a line for each acknowledgement.
pub fn logged(logged: &LoggedVersion) -> Vec<String> {
    let LoggedVersion { version, created, updated, deleted, .. } = logged;
    let root: String = version.root.to_hex().chars().take(12).collect();
    let mut lines = vec![format!(
        "  version {}  {}  root {root}  {created} created, {updated} updated, {deleted} deleted",
        version.number,
        time(version.time)
    )];
    lines.extend(logged.acks.iter().map(|ack| {
        let how = if ack.exact { "exact" } else { "with exceptions" };
        format!("    {}  {}  {how}", time(ack.time), escape_text(&ack.replica))
    }));
    lines
}

/// RFC 3339 in UTC, to the second.
pub fn time(time: Time) -> String {
    // The formatter knows the years 1970 to 9999 and panics beyond; an index on disk may say anything.
    const LAST: u64 = 253_402_300_799;
    let seconds = u64::try_from(time.sec).unwrap_or(0).min(LAST);
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// `1 problem`, `2 problems`.
pub fn plural(count: u64, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

#[cfg(test)]
mod tests {
    use sync_core::hash::Digest;
    use sync_core::manifest::Lineage;
    use sync_core::monitor::How;
    use sync_core::roles::log::LoggedAck;

    use super::*;

    fn path(text: &[u8]) -> RelPath {
        RelPath::new(text).unwrap()
    }

    pub fn version(number: u64) -> Version {
        Version {
            lineage: Lineage([7; 16]),
            number,
            parent: None,
            root: Digest::of(b"root"),
            time: Time { sec: 1_000_000_000, nsec: 5 },
        }
    }

    #[test]
    fn hostile_names_are_itemized_harmless() {
        let table = [
            (">f+++++++++", &b"a\nb\x1b[31m"[..], None, ">f+++++++++ a\\nb\\x1b[31m"),
            ("cd+++++++++", b"dir", None, "cd+++++++++ dir/"),
            (".d..t......", b"", None, ".d..t...... ./"),
            ("*deleting", b"-rf \xff", None, "*deleting   -rf \\xff"),
            ("cL+++++++++", b"l", Some((Arrow::Symlink, b"../x\r\x07".to_vec())), "cL+++++++++ l -> ../x\\r\\x07"),
            ("hf+++++++++", b"h", Some((Arrow::HardLink, b"a\\b".to_vec())), "hf+++++++++ h => a\\\\b"),
        ];
        for (code, name, target, line) in table {
            assert_eq!(
                item(&Item { code: code.into(), path: path(name), target, how: How::Made, literal: None }),
                line
            );
        }
        let how = How::Deleted { dir: true, moved_to: None };
        let gone = Item { code: "*deleting  ".into(), path: path(b"d/e"), target: None, how, literal: None };
        assert_eq!(item(&gone), "*deleting   d/e/");
    }

    #[test]
    fn a_problem_names_its_place() {
        let of = |path: Option<RelPath>| Problem { path, reason: "cannot read a\\nb: no\u{1b}".into() };
        assert_eq!(problem("./d/", &of(Some(path(b"x\ny")))), "./d/x\\ny: cannot read a\\nb: no\\x1b");
        assert_eq!(problem("./d", &of(Some(RelPath::root()))), "./d: cannot read a\\nb: no\\x1b");
        assert_eq!(problem("h/s", &of(None)), "h/s: cannot read a\\nb: no\\x1b");
    }

    #[test]
    fn endings_read_as_sentences() {
        let report = |exact, problems, created, deleted| DestinationReport {
            exact,
            problems,
            unheard: false,
            stats: Stats { created, deleted, ..Stats::default() },
            refused: [0; 6],
        };
        let v7 = version(7);
        let table = [
            (report(true, 0, 0, 0), Some(&v7), false, "nothing to do, identical to version 7"),
            (report(true, 0, 0, 0), None, true, "nothing to do"),
            (report(true, 0, 2, 1), Some(&v7), false, "2 created, 1 deleted; identical to version 7 and durable"),
            (report(true, 0, 2, 0), None, true, "would change: 2 created"),
            (report(true, 1, 2, 0), Some(&v7), false, "not identical: 1 problem (2 created)"),
            (report(false, 2, 0, 0), None, false, "not identical: 2 problems (nothing changed)"),
            (report(false, 0, 0, 0), None, false, "not identical (nothing changed)"),
        ];
        for (report, version, dry_run, line) in table {
            assert_eq!(ending(&report, version, 0, dry_run), line);
        }
        let but = [
            (report(true, 0, 0, 0), false, "nothing to do, identical to version 7, but for 2 problems in the source"),
            (
                report(true, 0, 2, 0),
                false,
                "2 created; identical to version 7 and durable, but for 2 problems in the source",
            ),
            (report(true, 0, 0, 0), true, "nothing to do, but for 2 problems in the source"),
        ];
        for (report, dry_run, line) in but {
            assert_eq!(ending(&report, Some(&v7), 2, dry_run), line);
        }
        let unheard = DestinationReport { unheard: true, ..report(false, 1, 0, 0) };
        assert_eq!(
            ending(&unheard, None, 0, false),
            "not identical: 1 problem (it is not known what was changed there)"
        );
    }

    #[test]
    fn refusals_are_counted_once_per_kind() {
        assert_eq!(
            refused(&[1, 0, 0, 9, 0, 0]),
            [
                "1 entry: the kernel refused the owner or group; the index keeps what was wanted",
                "9 entries: the kernel refused the hard link; the index keeps what was wanted",
            ]
        );
    }

    #[test]
    fn times_beyond_the_calendar_do_no_harm() {
        assert_eq!(time(Time { sec: 1_000_000_000, nsec: 9 }), "2001-09-09T01:46:40Z");
        assert_eq!(time(Time { sec: i64::MIN, nsec: 0 }), "1970-01-01T00:00:00Z");
        assert_eq!(time(Time { sec: i64::MAX, nsec: 0 }), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn a_version_lists_its_acknowledgements() {
        let ack = |replica: &str, exact| LoggedAck {
            replica: replica.into(),
            exact,
            time: Time { sec: 1_000_000_001, nsec: 0 },
        };
        let entry = LoggedVersion {
            tree: b"/t".to_vec(),
            version: version(3),
            created: 1,
            updated: 2,
            deleted: 0,
            acks: vec![ack("abc", true), ack("d\u{1b}", false)],
        };
        assert_eq!(
            logged(&entry),
            [
                &format!(
                    "  version 3  2001-09-09T01:46:40Z  root {}  1 created, 2 updated, 0 deleted",
                    &version(3).root.to_hex()[..12]
                ),
                "    2001-09-09T01:46:41Z  abc  exact",
                "    2001-09-09T01:46:41Z  d\\x1b  with exceptions",
            ]
        );
    }
}
