//! Rows go in and come out the same, in tree order, as of one moment.

use std::ops::ControlFlow;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::index::{Batch, IndexError, Leaf, Shown};

/// One row of each kind with every optional part somewhere.
fn zoo() -> Vec<Row> {
    let mut rows = vec![
        dir(""),
        file("a", 1),
        row("char", Kind::CharDev { major: 1, minor: 3 }, 2),
        row("block", Kind::BlockDev { major: 259, minor: u32::MAX }, 3),
        row("fifo", Kind::Fifo, 4),
        row("socket", Kind::Socket, 5),
        row("link", Kind::Symlink { target: b"../\xff\n"[..].into() }, 6),
        dir("z"),
        file("z/hard", 1),
        file("z/with xattrs", 7),
    ];
    rows[2].tuple = None;
    rows[2].refused = Refused::DEVICE;
    rows[3].entry.mtime = Time { sec: -2_177_452_800, nsec: 999_999_999 };
    rows[4].extra = true;
    rows[5].proven = false;
    rows[7].mount = true;
    rows[8].entry.link = Some(path("a"));
    rows[9].entry.xattrs = Box::new([
        (b"security.capability"[..].into(), vec![0; 20].into()),
        (b"user.big"[..].into(), vec![7; 70_000].into()),
        (b"user.empty"[..].into(), Box::default()),
    ]);
    rows.sort_by(|a, b| a.path.cmp(&b.path));
    rows
}

#[test]
fn every_kind_of_row_survives_reopening() {
    let temp = tempfile::tempdir().unwrap();
    let rows = zoo();
    let opened = open(temp.path());
    assert!(opened.fresh && opened.rebuilt.is_none());
    upsert(&opened.index, 0, &rows);
    drop(opened);
    let opened = open(temp.path());
    assert!(!opened.fresh && opened.rebuilt.is_none());
    assert_eq!(all(&opened.index), rows);
    assert_eq!(opened.index.row_count().unwrap(), rows.len() as u64);
    for row in &rows {
        assert_eq!(opened.index.row(&row.path).unwrap().as_ref(), Some(row));
    }
    let asked = [path("a"), path("nothing"), path("z/hard")];
    let found = opened.index.rows_for(&asked).unwrap();
    assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
}

#[test]
fn stored_hashes_are_those_of_the_entries() {
    let index = Index::in_memory().unwrap();
    upsert(&index, 3, &zoo());
    let mut seen = 0;
    index
        .rows(&mut |stored| {
            assert_eq!(stored.hash, stored.row.entry.hash());
            assert_eq!(stored.changed_in, 3);
            seen += 1;
            if seen == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(seen, 4);
}

/// Pages end after 1000 rows and after a mebibyte; nothing is lost or doubled at the seams.
#[test]
fn pages_join_without_a_seam() {
    let index = Index::in_memory().unwrap();
    for count in [999, 1000, 1001, 2000] {
        let rows = tree(1, count - 2);
        index
            .commit_with(0, |commit| {
                for row in &rows {
                    commit.upsert(row)?;
                }
                Ok::<_, IndexError>(())
            })
            .unwrap();
        assert_eq!(all(&index).len(), count as usize);
    }
    let heavy: Vec<_> = (0..5)
        .map(|i| {
            let mut row = file(&format!("heavy-{i}"), i);
            row.entry.xattrs = Box::new([(b"user.x"[..].into(), vec![i as u8; 900_000].into())]);
            row
        })
        .collect();
    let index = Index::in_memory().unwrap();
    upsert(&index, 0, &heavy);
    assert_eq!(all(&index), heavy);
}

#[test]
fn a_cursor_sees_one_moment() {
    let temp = tempfile::tempdir().unwrap();
    for index in [open(temp.path()).index, Index::in_memory().unwrap()] {
        let rows = tree(3, 1000);
        upsert(&index, 0, &rows);
        let mut cursor = index.cursor().unwrap();
        assert_eq!(cursor.next().unwrap().unwrap(), rows[0]);
        let doomed = rows.iter().map(|row| row.path.clone()).collect();
        index.commit(Batch { deletes: doomed, upserts: vec![file("new", 1)], ..Batch::default() }).unwrap();
        for row in &rows[1..] {
            assert_eq!(cursor.next().unwrap().as_ref(), Some(row));
        }
        assert_eq!(cursor.next().unwrap(), None);
        assert_eq!(cursor.next().unwrap(), None);
        assert_eq!(all(&index), [file("new", 1)]);
    }
}

/// A leaf with a path of its own.
type Known = (RelPath, Digest, bool, bool);

fn leaf(row: &Row) -> Known {
    (row.path.clone(), row.entry.hash(), row.entry.is_dir(), row.extra)
}

fn known(leaf: Leaf<'_>) -> Known {
    (leaf.key.to_path().unwrap(), leaf.hash, leaf.is_dir, leaf.extra)
}

fn leaves_in(index: &Index, dir: &RelPath) -> Vec<Known> {
    let mut leaves = Vec::new();
    index.leaves_in(dir, &mut |leaf| leaves.push(known(leaf))).unwrap();
    leaves
}

#[test]
fn children_are_those_and_no_others() {
    let index = Index::in_memory().unwrap();
    let names =
        ["", "a", "a/b", "a/b/c", "a/b/d", "a/b\u{1}", "a/b\u{1}/x", "a/bc", "a\u{1}", "a-", "b", "b/orphan/deep"];
    for name in names {
        let is_dir = matches!(name, "" | "a" | "a/b" | "a/b\u{1}" | "b");
        upsert(&index, 0, &[if is_dir { dir(name) } else { file(name, 1) }]);
    }
    let children = |of: &str| -> Vec<String> {
        let rows = leaves_in(&index, &path(of));
        rows.iter().map(|(path, ..)| String::from_utf8(path.as_bytes().to_vec()).unwrap()).collect()
    };
    assert_eq!(children(""), ["a", "a\u{1}", "a-", "b"]);
    assert_eq!(children("a"), ["a/b", "a/b\u{1}", "a/bc"]);
    assert_eq!(children("a/b"), ["a/b/c", "a/b/d"]);
    assert_eq!(children("b"), [""; 0]);
    assert_eq!(children("a-"), [""; 0]);
    let mut cursor = index.cursor_beneath(&path("a")).unwrap();
    let mut beneath = Vec::new();
    while let Some(row) = cursor.next().unwrap() {
        beneath.push(row.path);
    }
    assert_eq!(beneath, ["a", "a/b", "a/b/c", "a/b/d", "a/b\u{1}", "a/b\u{1}/x", "a/bc"].map(path));
}

#[test]
fn one_transaction_may_write_a_path_twice_and_in_any_order() {
    for names in [["a", "a", "b"], ["b", "a", "b"], ["b", "a", "a"]] {
        for changed_in in [0, 5] {
            let index = Index::in_memory().unwrap();
            let rows: Vec<_> = names.iter().zip(1..).map(|(name, seed)| file(name, seed)).collect();
            upsert(&index, changed_in, &rows);
            let expected = ["a", "b"].map(|name| rows.iter().rfind(|row| row.path == path(name)).unwrap().clone());
            assert_eq!(all(&index), expected);
        }
    }
}

#[test]
fn an_error_in_a_transaction_undoes_all_of_it() {
    let index = Index::in_memory().unwrap();
    let mut bad = file("bad", 2);
    bad.entry.mode = 0o10_000;
    let done = index.commit(Batch { upserts: vec![file("a", 1), bad], ..Batch::default() });
    assert!(matches!(done, Err(IndexError::Entry { .. })), "{done:?}");
    assert_eq!(all(&index), []);
    upsert(&index, 0, &[file("a", 1)]);
    assert_eq!(all(&index).len(), 1);
}

#[test]
fn a_panic_in_a_transaction_undoes_it_and_leaves_the_index_usable() {
    let index = Index::in_memory().unwrap();
    let clone = index.clone();
    let panicked = std::thread::spawn(move || {
        clone.write(0, |writer| -> Result<(), IndexError> {
            writer.upsert(&file("a", 1))?;
            panic!("on purpose")
        })
    });
    assert!(panicked.join().is_err());
    assert_eq!(all(&index), []);
    upsert(&index, 0, &[file("b", 1)]);
    assert_eq!(all(&index).len(), 1);
}

#[test]
fn a_second_opener_waits_and_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let first = open(temp.path());
    let second = Index::open(temp.path(), Duration::from_millis(30));
    assert!(matches!(second, Err(IndexError::Busy(_))));
    let cursor = first.index.cursor().unwrap();
    drop(first);
    assert!(matches!(Index::open(temp.path(), Duration::ZERO), Err(IndexError::Busy(_))), "a cursor still reads");
    drop(cursor);
    assert!(Index::open(temp.path(), FORK).is_ok());
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![1u8, b'-', b'.', b'a', b'b', 0xff]), 1..3)
        .prop_filter("a name", |name| name != b"." && name != b"..")
}

proptest! {
    /// Whatever is written and removed in whatever order, the index is the map that the same steps make.
    #[test]
    fn behaves_like_a_sorted_map(
        steps in prop::collection::vec((prop::collection::vec(any_name(), 1..4), any::<u8>(), any::<bool>()), 1..60)
    ) {
        let index = Index::in_memory().unwrap();
        let mut model = std::collections::BTreeMap::new();
        for (names, seed, gone) in steps {
            let at = RelPath::new(names.join(&b'/')).unwrap();
            if gone {
                let was = index.write(0, |writer| writer.delete(&at)).unwrap();
                prop_assert_eq!(was, model.remove(&at).is_some());
            } else {
                let mut row = file("x", u64::from(seed));
                row.path = at.clone();
                index.write(0, |writer| writer.upsert(&row)).unwrap();
                model.insert(at, row);
            }
        }
        prop_assert_eq!(all(&index), model.values().cloned().collect::<Vec<_>>());
        for dir in model.keys().chain([&RelPath::root()]) {
            let expected: Vec<_> = model.values().filter(|row| row.path.parent().as_ref() == Some(dir)).map(leaf).collect();
            prop_assert_eq!(leaves_in(&index, dir), expected);
        }
        let absent = RelPath::new("b").unwrap();
        for of in model.keys().chain([&absent]) {
            // Also of a directory that has no row of its own.
            let of_dir = of.parent().unwrap();
            let children: std::collections::BTreeSet<_> =
                model.keys().filter(|at| at.is_beneath(&of_dir)).filter_map(|at| at.way_from(&of_dir).next()).collect();
            let before: Vec<_> = children.iter().rev().filter(|at| *at < of).take(2).cloned().collect();
            let after: Vec<_> = children.iter().filter(|at| *at > of).take(2).cloned().collect();
            let in_turn = (0..2).flat_map(|i| [before.get(i).cloned(), after.get(i).cloned()]).flatten();
            prop_assert_eq!(index.neighbours(of, 2).unwrap(), in_turn.collect::<Vec<_>>());
        }
        let mut leaves = Vec::new();
        index.leaves(&mut |leaf| leaves.push(known(leaf))).unwrap();
        prop_assert_eq!(leaves, model.values().map(leaf).collect::<Vec<_>>());
    }
}

#[test]
fn a_row_that_nobody_waits_for_is_told_unless_somebody_writes() {
    let temp = tempfile::tempdir().unwrap();
    let index = open(temp.path()).index;
    let wanted = file("a", 1);
    upsert(&index, 0, std::slice::from_ref(&wanted));
    assert_eq!(index.row_unless_busy(&wanted.path).unwrap().as_ref(), Some(&wanted));
    index
        .commit_with(0, |_| -> Result<(), IndexError> {
            let (told, heard) = std::sync::mpsc::channel();
            let (index, path) = (index.clone(), wanted.path.clone());
            std::thread::spawn(move || told.send(index.row_unless_busy(&path).unwrap()).unwrap());
            let row = heard.recv_timeout(Duration::from_secs(20)).expect("it waits for the writer");
            assert_eq!(row, None);
            Ok(())
        })
        .unwrap();
    assert_eq!(index.row_unless_busy(&wanted.path).unwrap(), Some(wanted));
}

/// Comparing a row as it is stored and comparing it decoded are one.
#[test]
fn a_row_is_shown_by_its_inode_alone_if_nothing_is_particular_about_it() {
    let plain = [
        dir("d"),
        file("f", 3),
        row("l", Kind::Symlink { target: b"to"[..].into() }, 4),
        row("p", Kind::Fifo, 5),
        row("c", Kind::CharDev { major: 1, minor: 2 }, 6),
    ];
    let edits: [fn(&mut Row); 8] = [
        |_| {},
        |row| row.proven = false,
        |row| row.extra = true,
        |row| row.mount = true,
        |row| row.refused = Refused::TIME,
        |row| row.tuple = None,
        |row| row.entry.link = Some(RelPath::new("a").unwrap()),
        |row| row.entry.xattrs = Box::new([(b"user.a"[..].into(), b"1"[..].into())]),
    ];
    for old in &plain {
        let tuple = old.tuple.unwrap();
        let others = [
            Tuple { fs: 1, ..tuple },
            Tuple { ino: 1, ..tuple },
            Tuple { size: 99, ..tuple },
            Tuple { mtime: Time { nsec: 77, ..tuple.mtime }, ..tuple },
            Tuple { ctime: Time { sec: 77, ..tuple.ctime }, ..tuple },
        ];
        for edit in edits {
            let mut edited = old.clone();
            edit(&mut edited);
            if edited.entry.validate().is_err() {
                continue;
            }
            let index = Index::in_memory().unwrap();
            upsert(&index, 0, std::slice::from_ref(&edited));
            let mut cursor = index.cursor().unwrap();
            for mount in [false, true] {
                let usual = edited.proven
                    && !edited.extra
                    && edited.refused.is_empty()
                    && edited.entry.link.is_none()
                    && edited.mount == mount;
                for seen in others.iter().chain([&tuple]) {
                    let next = cursor.peek().unwrap().unwrap();
                    assert_eq!((next.key.to_path().unwrap(), next.hash), (edited.path.clone(), edited.entry.hash()));
                    let digest = edited.entry.content().map(|(_, digest)| digest);
                    let shown = Shown { is_dir: edited.entry.is_dir(), digest };
                    let expected = (usual && edited.tuple == Some(*seen)).then_some(shown);
                    assert_eq!(next.shown_by(seen, mount), expected, "{edited:?} seen as {seen:?}");
                }
            }
            assert_eq!(cursor.next().unwrap(), Some(edited));
            assert!(cursor.peek().unwrap().is_none());
        }
    }
}

#[test]
fn rows_are_peeked_at_and_passed_in_order_across_pages() {
    let index = Index::in_memory().unwrap();
    let rows = tree(3, 900);
    index.write(0, |writer| rows.iter().try_for_each(|row| writer.upsert(row))).unwrap();
    let mut cursor = index.cursor().unwrap();
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(cursor.peek().unwrap().unwrap().key.to_path().unwrap(), row.path);
        match i % 3 {
            0 => assert_eq!(cursor.next().unwrap().as_ref(), Some(row)),
            _ => cursor.pass(),
        }
    }
    assert!(cursor.peek().unwrap().is_none() && cursor.next().unwrap().is_none());
}

/// The connection of a cursor that is over serves the next one, which must see what was written since, and none of an index
/// that was given up.
#[test]
fn a_cursor_sees_what_is_there_when_it_is_made() {
    let temp = tempfile::tempdir().unwrap();
    let index = Index::open(temp.path(), Duration::ZERO).unwrap().index;
    upsert(&index, 1, &[dir("")]);
    assert_eq!(all(&index).len(), 1);
    upsert(&index, 2, &[file("a", 1)]);
    let before = index.cursor().unwrap();
    upsert(&index, 3, &[file("b", 1)]);
    assert_eq!(all(&index).len(), 3);
    drop(before);
    assert_eq!(all(&index).len(), 3);
    let old = index.cursor().unwrap();
    index.rebuild().unwrap();
    drop(old);
    assert!(all(&index).is_empty(), "rows of an index that was given up");
}

/// Every version of a mirror is a transaction of a row or two.
#[test]
fn the_log_of_many_small_transactions_is_folded_in() {
    let temp = tempfile::tempdir().unwrap();
    let index = Index::open(temp.path(), Duration::ZERO).unwrap().index;
    let log = || std::fs::metadata(temp.path().join("index.db-wal")).unwrap().len();
    let rounds = |count: usize| {
        for i in 0..count {
            index.write(1, |writer| writer.upsert(&file("f", i as u64))).unwrap();
        }
    };
    rounds(super::super::CHECKPOINT_ROWS / super::super::COMMIT_ROWS);
    let most = log();
    rounds(super::super::CHECKPOINT_ROWS / super::super::COMMIT_ROWS);
    assert!(log() < most * 3 / 2, "{} bytes of log after {most}", log());
}
