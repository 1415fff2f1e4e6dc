//! What `synccli diff` says: how an entry would be made, and why; what changed between versions. Every name escaped.

use sync_core::monitor::{How, Item};
use sync_core::options::Stats;
use sync_core::roles::changes::{ChangedPath, Changes, Known};

use super::text;

/// How an entry becomes what it should be, in one word.
pub fn how(item: &Item) -> &'static str {
    match item.how {
        How::Metadata => "metadata",
        How::Content { .. } | How::Made if is_new(item) => "new",
        How::Content { .. } | How::Made => "changed",
        How::Moved { .. } => "moved",
        How::Copied { .. } => "copied",
        How::Linked => "linked",
        How::Deleted { .. } => "deleted",
    }
}

fn is_new(item: &Item) -> bool {
    item.code.ends_with("+++++++++")
}

/// What of an entry's metadata differs, as its letters tell.
pub fn metadata(item: &Item) -> Vec<&'static str> {
    let names =
        [('t', "time"), ('p', "mode"), ('o', "owner"), ('g', "group"), ('a', "ACL"), ('x', "extended attributes")];
    let letters = item.code.get(2..).unwrap_or_default();
    names.iter().filter(|(letter, _)| letters.contains(*letter)).map(|(_, name)| *name).collect()
}

/// An item with how it would be made, and why.
pub fn explained(item: &Item) -> String {
    format!("{}  ({})", text::item(item), why(item))
}

fn why(item: &Item) -> String {
    let word = how(item);
    match &item.how {
        How::Metadata => format!("metadata only: {}", metadata(item).join(", ")),
        How::Content { size, old } => format!("{word}: {}", content(*size, *old, item.literal)),
        How::Made if is_new(item) => "new: no content".to_owned(),
        How::Made => "changed: made anew, no content".to_owned(),
        How::Moved { from, size: 0 } => format!("moved from {}", from.display()),
        How::Moved { from, size } => format!("moved from {}: {} stay there", from.display(), bytes(*size)),
        How::Copied { from, size } => format!("copied there from {}: {}", from.display(), bytes(*size)),
        How::Linked => "another name: nothing is sent".to_owned(),
        How::Deleted { moved_to: Some(to), .. } => format!("moves to {}", to.display()),
        How::Deleted { moved_to: None, .. } => "deleted".to_owned(),
    }
}

/// How content would get there; without a number of literal bytes it comes with that of another file.
fn content(size: u64, old: Option<u64>, literal: Option<u64>) -> String {
    match (literal, old) {
        (None, _) => format!("the {} of another file that would be sent", bytes(size)),
        (Some(literal), None) if literal == size => format!("{} would be sent", bytes(size)),
        (Some(literal), None) => {
            format!("{literal} of {} would be sent, the rest is zeros or in a file much like it", bytes(size))
        }
        (Some(literal), Some(_)) if literal == size => {
            format!("all {} would be sent, the old file has none of them", bytes(size))
        }
        (Some(literal), Some(_)) => {
            format!("{literal} of {} would be sent, the rest is in the old file", bytes(size))
        }
    }
}

fn bytes(count: u64) -> String {
    text::plural(count, "byte", "bytes")
}

/// What a push would cost, after its changes.
pub fn totals(stats: &Stats) -> Vec<String> {
    let mut rows = vec![("would be sent", stats.literal_bytes, "bytes of content")];
    if stats.compressed_bytes != stats.literal_bytes {
        rows.push(("compressed", stats.compressed_bytes, "bytes that these would take"));
    }
    rows.push(("in old files", stats.old_file_bytes, "bytes of changed files that are there in the file of that name"));
    rows.push(("copied there", stats.copied_bytes, "bytes of files that are there under another name, which stays"));
    rows.push(("moved there", stats.moved_bytes, "bytes of files that only get another name"));
    text::aligned(&rows)
}

/// How many paths were added or changed, were removed, or are unknown.
pub fn count(changes: &Changes) -> [usize; 3] {
    [Known::AddedOrChanged, Known::Removed, Known::No]
        .map(|known| changes.changes.iter().filter(|change| change.known == known).count())
}

/// A path that changed between two versions.
pub fn change(change: &ChangedPath) -> String {
    let name = text::path(&change.path, change.is_dir);
    let ChangedPath { version, .. } = change;
    match change.known {
        Known::AddedOrChanged => format!("changed  {name}  (added or changed, last in version {version})"),
        Known::Removed => format!("removed  {name}  (in version {version})"),
        Known::No => format!("unknown  {name}  (changed again in version {version}; what it was before is not kept)"),
    }
}

/// What there is to say after the changes between two versions.
pub fn changes(changes: &Changes) -> String {
    let [changed, removed, unknown] = count(changes);
    let Changes { from, to, .. } = changes;
    format!(
        "version {from} to {to}: {changed} added or changed, {removed} removed, {unknown} unknown; \
         everything else is the same in both"
    )
}

#[cfg(test)]
mod tests {
    use sync_core::path::RelPath;

    use super::*;

    fn path(text: &[u8]) -> RelPath {
        RelPath::new(text).unwrap()
    }

    #[test]
    fn each_way_has_its_words() {
        let content = |size, old| How::Content { size, old };
        let table = [
            (">f+++++++++", content(1, None), Some(1), "new: 1 byte would be sent"),
            (
                ">f+++++++++",
                content(9, None),
                Some(2),
                "new: 2 of 9 bytes would be sent, the rest is zeros or in a file much like it",
            ),
            (">f+++++++++", content(9, None), None, "new: the 9 bytes of another file that would be sent"),
            (
                ">f.st......",
                content(9, Some(8)),
                Some(0),
                "changed: 0 of 9 bytes would be sent, the rest is in the old file",
            ),
            (
                ">f.st......",
                content(9, Some(8)),
                Some(9),
                "changed: all 9 bytes would be sent, the old file has none of them",
            ),
            (".f..tpogax.", How::Metadata, None, "metadata only: time, mode, owner, group, ACL, extended attributes"),
            ("cS+++++++++", How::Made, None, "new: no content"),
            ("cLc........", How::Made, None, "changed: made anew, no content"),
            ("cf+++++++++", How::Moved { from: path(b"\x1b"), size: 7 }, None, "moved from \\x1b: 7 bytes stay there"),
            ("cf+++++++++", How::Copied { from: path(b"a"), size: 7 }, None, "copied there from a: 7 bytes"),
            ("hf+++++++++", How::Linked, None, "another name: nothing is sent"),
            ("*deleting  ", How::Deleted { dir: false, moved_to: None }, None, "deleted"),
            ("*deleting  ", How::Deleted { dir: false, moved_to: Some(path(b"\n")) }, None, "moves to \\n"),
        ];
        for (code, how, literal, words) in table {
            let item = Item { code: code.to_owned(), path: path(b"x"), target: None, how, literal };
            assert!(explained(&item).ends_with(&format!(" x  ({words})")), "{}", explained(&item));
        }
    }

    #[test]
    fn totals_stand_in_columns_and_tell_of_compression_if_there_was_any() {
        let mut stats = Stats { literal_bytes: 1000, compressed_bytes: 1000, moved_bytes: 7, ..Stats::default() };
        let lines = totals(&stats);
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0], "  would be sent: 1000  bytes of content");
        assert!(lines[3].starts_with("  moved there:      7  "), "{lines:?}");
        stats.compressed_bytes = 300;
        assert_eq!(totals(&stats)[1], "  compressed:     300  bytes that these would take");
    }
}
