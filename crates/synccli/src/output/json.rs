//! Lines for programs: one object each, told apart by `"type"`. Names are escaped as on the screen, which loses nothing:
//! `\\` is a backslash, `\xNN` a byte.

use serde_json::{Map, Value, json};
use sync_core::manifest::{Refused, Version};
use sync_core::monitor::{Arrow, How, Item, Problem, Progress};
use sync_core::options::{DestinationReport, PushReport};
use sync_core::path::escape;
use sync_core::roles::changes::{ChangedPath, Changes, Known};
use sync_core::roles::log::LoggedVersion;

use super::{explain, text};
use crate::exit::Exit;

/// `{"type":"notice"}`; `dest` is the destination's name.
pub fn notice(dest: Option<&str>, notice: &str) -> Value {
    json!({ "type": "notice", "destination": dest, "text": text::escape_text(notice) })
}

/// `{"type":"problem"}`: a contained failure of an entry, of a destination or of the source (`destination` is null).
pub fn problem(dest: Option<&str>, problem: &Problem) -> Value {
    json!({
        "type": "problem",
        "destination": dest,
        "path": problem.path.as_ref().map(ToString::to_string),
        "reason": text::escape_text(&problem.reason),
    })
}

/// `{"type":"item"}`: one changed entry; `literal` tells whether how much of its content would be sent is known.
pub fn item(dest: &str, item: &Item, literal: bool) -> Value {
    let mut value = json!({
        "type": "item",
        "destination": dest,
        "code": escape(item.code.as_bytes()),
        "path": text::item_name(item),
        "how": explain::how(item),
    });
    if let Some((arrow, target)) = &item.target {
        let key = match arrow {
            Arrow::Symlink => "symlink_target",
            Arrow::HardLink => "hard_link_to",
        };
        value[key] = escape(target).into();
    }
    match &item.how {
        How::Metadata => value["metadata"] = explain::metadata(item).into(),
        How::Content { size, old } => {
            (value["size"], value["old_size"]) = ((*size).into(), (*old).into());
            if literal {
                value["literal_bytes"] = item.literal.unwrap_or(0).into();
            }
        }
        How::Moved { from, size } | How::Copied { from, size } => {
            (value["from"], value["size"]) = (from.display().into(), (*size).into());
        }
        How::Deleted { moved_to: Some(to), .. } => value["moved_to"] = to.display().into(),
        How::Deleted { moved_to: None, .. } | How::Linked | How::Made => {}
    }
    value
}

/// `{"type":"change"}`: a path that changed between two versions.
pub fn change(change: &ChangedPath) -> Value {
    let what = match change.known {
        Known::AddedOrChanged => "added or changed",
        Known::Removed => "removed",
        Known::No => "unknown",
    };
    json!({ "type": "change", "path": text::path(&change.path, change.is_dir), "what": what, "version": change.version })
}

/// `{"type":"summary"}`: the last line of a comparison of versions.
pub fn changes(changes: &Changes, exit: Exit) -> Value {
    let [changed, removed, unknown] = explain::count(changes);
    json!({
        "type": "summary",
        "from": changes.from,
        "to": changes.to,
        "added_or_changed": changed,
        "removed": removed,
        "unknown": unknown,
        "exit": exit.code(),
    })
}

/// `{"type":"progress"}`.
pub fn progress(progress: &Progress) -> Value {
    json!({
        "type": "progress",
        "phase": format!("{:?}", progress.phase).to_lowercase(),
        "scanned": progress.scanned,
        "hashed": progress.hashed,
        "to_hash": progress.to_hash,
        "sent": progress.sent,
        "to_send": progress.to_send,
    })
}

/// `{"type":"destination"}`: how one destination ended.
pub fn destination(dest: &str, report: &DestinationReport, source_problems: u64) -> Value {
    let kinds = Refused::KINDS.iter().zip(report.refused).filter(|(_, count)| *count > 0);
    let refused: Map<String, Value> = kinds.map(|((_, what), count)| ((*what).to_owned(), count.into())).collect();
    json!({
        "type": "destination",
        "destination": dest,
        "exact": report.exact,
        "unheard": report.unheard,
        "problems": report.problems,
        "source_problems": source_problems,
        "changes": report.stats.changes(),
        "stats": report.stats,
        "refused": refused,
    })
}

/// `{"type":"summary"}`: the last line of a push that came to its end.
pub fn summary(report: &PushReport, dry_run: bool, exit: Exit) -> Value {
    json!({
        "type": "summary",
        "version": report.version.as_ref().map(version),
        "dry_run": dry_run,
        "exact": report.is_exact(),
        "source_problems": report.source_problems,
        "exit": exit.code(),
    })
}

/// `{"type":"error"}`: the last line of a command that did not come to its end.
pub fn failure(message: &str, exit: Exit) -> Value {
    json!({ "type": "error", "message": message, "exit": exit.code() })
}

/// `{"type":"version"}`: one version of `synccli log`.
pub fn logged(logged: &LoggedVersion) -> Value {
    let acks = logged.acks.iter().map(
        |ack| json!({ "replica": text::escape_text(&ack.replica), "exact": ack.exact, "time": text::time(ack.time) }),
    );
    json!({
        "type": "version",
        "tree": escape(&logged.tree),
        "version": version(&logged.version),
        "created": logged.created,
        "updated": logged.updated,
        "deleted": logged.deleted,
        "acks": acks.collect::<Vec<_>>(),
    })
}

fn version(version: &Version) -> Value {
    json!({
        "number": version.number,
        "id": version.id().0.to_hex(),
        "root": version.root.to_hex(),
        "time": text::time(version.time),
    })
}
