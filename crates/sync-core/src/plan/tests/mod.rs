use std::collections::{BTreeMap, HashMap};

use super::*;
use crate::hash::Digest;
use crate::manifest::{Holds, Kind, Refused, Time, Tuple};

mod rename;

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn entry(kind: Kind) -> Entry {
    Entry { kind, mode: 0o644, uid: 0, gid: 0, mtime: Time::default(), xattrs: Box::default(), link: None }
}

fn file(content: &str) -> Entry {
    entry(Kind::File { size: content.len() as u64, digest: Digest::of(content.as_bytes()) })
}

fn dir() -> Entry {
    entry(Kind::Dir)
}

fn linked(content: &str, first: &str) -> Entry {
    Entry { link: Some(path(first)), ..file(content) }
}

fn rows(entries: &[(&str, Entry)]) -> BTreeMap<RelPath, Row> {
    let row = |(i, (p, e)): (usize, &(&str, Entry))| {
        let tuple = Tuple { fs: 1, ino: i as u64 + 10, size: 0, mtime: Time::default(), ctime: Time::default() };
        let row = Row {
            path: path(p),
            entry: e.clone(),
            tuple: Some(tuple),
            proven: true,
            refused: Refused::default(),
            extra: false,
            mount: false,
        };
        (path(p), row)
    };
    entries.iter().enumerate().map(row).collect()
}

fn plan(have: &[(&str, Entry)], want: &[(&str, Option<Entry>)], staged: &[&str]) -> Plan {
    plan_with(have, want, staged, &[], false)
}

fn plan_with(
    have: &[(&str, Entry)],
    want: &[(&str, Option<Entry>)],
    staged: &[&str],
    holds: &[&str],
    no_delete: bool,
) -> Plan {
    let rows = rows(have);
    let mut sources: HashMap<Digest, Vec<RelPath>> = HashMap::new();
    for (p, row) in &rows {
        if let Some((_, digest)) = row.entry.content() {
            sources.entry(digest).or_default().push(p.clone());
        }
    }
    let staged: Vec<Digest> = staged.iter().map(|s| Digest::of(s.as_bytes())).collect();
    let holds = Holds::new(holds.iter().map(|h| path(h)));
    let changes: Changes = want.iter().map(|(p, e)| (path(p), e.clone().map(Box::new))).collect();
    let now = Situation { rows, sources: &sources, staged: &|d| staged.contains(d), holds: &holds, no_delete };
    decide(changes, now)
}

fn actions(plan: &Plan) -> Vec<(String, Action)> {
    plan.steps.iter().map(|s| (s.path.display(), s.action.clone())).collect()
}

#[test]
fn new_content_is_staged_and_old_content_stays_where_it_is() {
    let p = plan(
        &[("a", file("1")), ("b", file("2"))],
        &[("a", Some(file("9"))), ("b", Some(Entry { mode: 0o600, ..file("2") })), ("c", Some(file("lost")))],
        &["9"],
    );
    assert_eq!(actions(&p), [("a".into(), Action::Content), ("b".into(), Action::Metadata)]);
    assert_eq!(p.missing, [path("c")]);
}

#[test]
fn swap_moves_both() {
    let p = plan(&[("a", file("1")), ("b", file("2"))], &[("a", Some(file("2"))), ("b", Some(file("1")))], &[]);
    assert_eq!(
        actions(&p),
        [("a".into(), Action::Move { from: path("b") }), ("b".into(), Action::Move { from: path("a") })]
    );
}

#[test]
fn one_inode_moves_once_and_is_copied_after() {
    let p = plan(&[("a", file("1"))], &[("a", None), ("b", Some(file("1"))), ("c", Some(file("1")))], &[]);
    assert_eq!(
        actions(&p),
        [
            ("a".into(), Action::Delete),
            ("b".into(), Action::Move { from: path("a") }),
            ("c".into(), Action::Copy { from: path("a") })
        ]
    );
    assert_eq!(p.deletes, 0, "a move deletes nothing");
}

#[test]
fn a_source_that_stays_is_copied() {
    let p = plan(&[("a", file("1"))], &[("b", Some(file("1")))], &[]);
    assert_eq!(actions(&p), [("b".into(), Action::Copy { from: path("a") })]);
}

#[test]
fn a_new_first_name_takes_the_inode_of_its_group() {
    let p = plan(&[("b", file("1"))], &[("a", Some(file("1"))), ("b", Some(linked("1", "a")))], &[]);
    assert_eq!(
        actions(&p),
        [("a".into(), Action::Move { from: path("b") }), ("b".into(), Action::Link { first: path("a") })]
    );
}

#[test]
fn a_name_that_leaves_its_group_gets_its_own_inode() {
    let p = plan(&[("a", file("1")), ("b", linked("1", "a"))], &[("b", Some(file("1")))], &[]);
    assert_eq!(actions(&p), [("b".into(), Action::Copy { from: path("a") })]);
}

#[test]
fn a_directory_that_becomes_a_file_takes_everything_beneath_with_it() {
    let have = [("d", dir()), ("d/x", file("1")), ("d/e", dir()), ("d/e/y", file("2"))];
    let p = plan(&have, &[("d", Some(file("9")))], &["9"]);
    assert_eq!(p.steps.len(), 4);
    assert_eq!(p.steps.iter().filter(|s| s.action == Action::Delete).count(), 3);
    assert!(p.kept.is_empty());
}

#[test]
fn where_nothing_is_deleted_a_directory_with_anything_in_it_makes_no_way() {
    let have = [("d", dir()), ("d/e", dir()), ("empty", dir()), ("g", dir()), ("g/x", file("1"))];
    let becomes = [file("9"), file(""), entry(Kind::Fifo), entry(Kind::Symlink { target: b"t"[..].into() })];
    for new in becomes {
        let is_file = new.content().is_some();
        let want = [("d", Some(new.clone())), ("d/e", None), ("empty", Some(new)), ("z", Some(linked("9", "d")))];
        let p = plan_with(&have, &want[..if is_file { 4 } else { 3 }], &["9"], &[], true);
        assert_eq!(p.steps.iter().map(|s| s.path.display()).collect::<Vec<_>>(), ["empty"]);
        let blocked = [(path("d"), path("d")), (path("z"), path("d"))];
        assert_eq!(p.blocked.into_iter().collect::<Vec<_>>(), blocked[..if is_file { 2 } else { 1 }]);
        assert_eq!((p.kept, p.missing), (vec![path("d/e")], vec![]));
    }
    // A name that stays as it is gives its inode to no other.
    let have = [("d", dir()), ("d/e", dir()), ("z", file("1"))];
    let want = [("d", Some(file("9"))), ("new", Some(file("1"))), ("z", Some(linked("9", "d")))];
    let p = plan_with(&have, &want, &["9"], &[], true);
    assert_eq!(actions(&p), [("new".into(), Action::Copy { from: path("z") })]);
}

#[test]
fn a_deleted_directory_deletes_what_it_holds() {
    let p = plan(&[("d", dir()), ("d/x", file("1"))], &[("d", None)], &[]);
    assert_eq!(p.deletes, 2);
    let kept = plan_with(&[("d", dir()), ("d/x", file("1"))], &[("d", None)], &[], &[], true);
    assert_eq!((kept.steps.len(), kept.kept), (0, vec![path("d"), path("d/x")]));
}

#[test]
fn what_is_held_is_left_alone() {
    let have = [("d", dir()), ("d/x", file("1")), ("e", file("2"))];
    let p = plan_with(&have, &[("d", None), ("d/x", None), ("e", None)], &[], &["d"], false);
    assert_eq!(actions(&p), [("e".into(), Action::Delete)]);
}

#[test]
fn a_renamed_directory_deletes_nothing() {
    let have = [("old", dir()), ("old/x", file("1")), ("old/l", entry(Kind::Fifo))];
    let want = [("old", None), ("new", Some(dir())), ("new/x", Some(file("1"))), ("new/l", Some(entry(Kind::Fifo)))];
    assert_eq!(plan(&have, &want, &[]).deletes, 0);
}

#[test]
fn a_type_change_deletes_nothing() {
    let p = plan(&[("a", file("1"))], &[("a", Some(entry(Kind::Fifo)))], &[]);
    assert_eq!((actions(&p), p.deletes), (vec![("a".into(), Action::Make)], 0));
}

#[test]
fn empty_files_need_no_content() {
    assert_eq!(actions(&plan(&[], &[("a", Some(file("")))], &[])), [("a".into(), Action::Make)]);
}

#[test]
fn nothing_to_do_is_nothing() {
    assert_eq!(plan(&[("a", file("1"))], &[("a", Some(file("1"))), ("b", None)], &[]), Plan::default());
}

#[test]
fn a_file_whose_content_is_missing_keeps_its_inode() {
    let have = [("a", file("1")), ("b", file("2"))];
    let p = plan(&have, &[("a", Some(file("lost"))), ("b", Some(file("1")))], &[]);
    assert_eq!(actions(&p), [("b".into(), Action::Copy { from: path("a") })]);
    assert_eq!(p.missing, [path("a")]);
}

#[test]
fn a_link_to_missing_content_is_missing_too() {
    let have = [("a", file("1")), ("b", file("2"))];
    let p = plan(&have, &[("a", Some(file("lost"))), ("b", Some(linked("lost", "a")))], &[]);
    assert_eq!((actions(&p), p.missing), (vec![], vec![path("a"), path("b")]));
}

#[test]
fn nothing_makes_room_for_a_file_whose_content_is_missing() {
    let have = [("d", dir()), ("d/x", file("1")), ("d/e", dir()), ("d/e/y", file("2"))];
    let want = [("d", Some(file("lost"))), ("d/x", None), ("z", Some(file("1")))];
    let p = plan(&have, &want, &[]);
    assert_eq!(actions(&p), [("z".into(), Action::Copy { from: path("d/x") })]);
    assert_eq!((p.missing, p.deletes, p.kept.len()), (vec![path("d")], 0, 0));
}
