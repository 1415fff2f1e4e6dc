//! Versions, what changed since one, acknowledgements, stands, intents and chunk lists.

use super::*;
use crate::chunk::ChunkRef;
use crate::index::versions::{forget_tombstones, forget_versions};
use crate::index::{Ack, Batch, Change, Counts, IndexError, Intent, Stand, StandChange};
use crate::manifest::{Version, VersionId};

const COUNTS: Counts = Counts { entries: 5, created: 3, updated: 1, deleted: 2 };

fn publish(index: &Index, upserts: Vec<Row>, deletes: &[&str]) -> Version {
    let next = index.next_version().unwrap().unwrap();
    let version = Version {
        lineage: next.lineage,
        number: next.number,
        parent: next.parent,
        root: Digest::of(&next.number.to_le_bytes()),
        time: Time { sec: 1_800_000_000, nsec: 5 },
    };
    let deletes = deletes.iter().map(|name| path(name)).collect();
    let batch = Batch {
        upserts,
        deletes,
        changed_in: next.number,
        version: Some((version.clone(), COUNTS)),
        ..Batch::default()
    };
    index.commit(batch).unwrap();
    version
}

/// Changes since a version as `+path` and `-path`.
fn changes(index: &Index, number: u64) -> Option<Vec<String>> {
    let mut cursor = index.changes_since(number).unwrap()?;
    let mut changes = Vec::new();
    while let Some(change) = cursor.next().unwrap() {
        changes.push(match change {
            Change::Upsert(row) => format!("+{}", row.path),
            Change::Delete(path) => format!("-{path}"),
        });
    }
    Some(changes)
}

fn with_lineage() -> Index {
    let index = Index::in_memory().unwrap();
    index.mint_lineage([1; 16], None).unwrap();
    index
}

#[test]
fn versions_chain_within_a_lineage_and_numbers_rise_through_all() {
    let index = Index::in_memory().unwrap();
    assert_eq!(index.next_version().unwrap(), None);
    index.mint_lineage([1; 16], None).unwrap();
    let one = publish(&index, vec![], &[]);
    let two = publish(&index, vec![], &[]);
    assert_eq!((one.number, one.parent), (1, None));
    assert_eq!((two.number, two.parent), (2, Some(one.id())));
    let stranger = VersionId(Digest::of(b"of a replica that knows more"));
    let lineage = index.mint_lineage([2; 16], Some(stranger)).unwrap();
    assert_eq!(index.lineage().unwrap(), Some(lineage));
    let three = publish(&index, vec![], &[]);
    assert_eq!((three.number, three.parent, three.lineage), (3, Some(stranger), lineage));
    let four = publish(&index, vec![], &[]);
    assert_eq!(four.parent, Some(three.id()));
    assert_eq!(index.latest_version().unwrap().unwrap().version, four);
    assert_eq!(index.version(two.id()).unwrap().unwrap().counts, COUNTS);
    assert_eq!(index.version(stranger).unwrap(), None);
    let history: Vec<_> = index.versions().unwrap().into_iter().map(|published| published.version).collect();
    assert_eq!(history, [one, two.clone(), three, four]);
    let again = index.commit(Batch { version: Some((two, COUNTS)), ..Batch::default() });
    assert!(matches!(again, Err(IndexError::Order { number: 2, latest: 4 })), "{again:?}");
}

#[test]
fn changes_are_what_differs_and_nothing_else() {
    let index = with_lineage();
    publish(&index, vec![dir(""), dir("d"), file("d/a", 1), file("d/b", 2), file("e", 3)], &[]);
    publish(&index, vec![file("d/a", 9)], &["e"]);
    let mut touched = file("d/b", 2);
    touched.tuple = None;
    publish(&index, vec![touched.clone(), file("d/c", 4)], &["nothing"]);
    assert_eq!(changes(&index, 3).unwrap(), [""; 0]);
    assert_eq!(changes(&index, 2).unwrap(), ["+d/c"], "a new tuple is no change");
    assert_eq!(changes(&index, 1).unwrap(), ["+d/a", "+d/c", "-e"]);
    assert_eq!(changes(&index, 0).unwrap(), ["+./", "+d", "+d/a", "+d/b", "+d/c", "-e"]);
    assert_eq!(index.row(&path("d/b")).unwrap().as_ref(), Some(&touched), "but it is kept");
    touched.proven = false;
    upsert(&index, 0, &[touched.clone()]);
    assert_eq!(changes(&index, 0).unwrap().len(), 6, "nor does an untracked one take a number away");
    publish(&index, vec![file("e", 3)], &["d/a"]);
    publish(&index, vec![file("d/a", 1)], &["e"]);
    assert_eq!(changes(&index, 3).unwrap(), ["+d/a", "-e"]);
    assert_eq!(changes(&index, 4).unwrap(), ["+d/a", "-e"]);
}

#[test]
fn forgotten_tombstones_end_what_can_be_diffed() {
    let index = with_lineage();
    publish(&index, (0..10).map(|i| file(&format!("f{i}"), i)).collect(), &[]);
    publish(&index, vec![], &["f0", "f1", "f2"]);
    publish(&index, vec![], &["f3", "f4"]);
    index
        .commit_with(0, |commit| {
            let (conn, summer) = (commit.conn, &mut Default::default());
            forget_tombstones(conn, 4, summer).map_err(|fault| fault.at("write", std::path::Path::new("")))
        })
        .unwrap();
    assert_eq!(changes(&index, 1), None);
    assert_eq!(changes(&index, 2).unwrap(), ["-f3", "-f4"]);
}

#[test]
fn acknowledgements_are_kept_by_replica_and_version() {
    let index = with_lineage();
    let version = publish(&index, vec![], &[]);
    let ack = |replica: &str, number, exact| Ack {
        replica: replica.to_owned(),
        version: VersionId(Digest::of(&[number as u8])),
        number,
        root: version.root,
        time: Time { sec: 7, nsec: 8 },
        exact,
    };
    for ack in [ack("b", 2, true), ack("a", 2, false), ack("a", 1, true), ack("a", 2, true)] {
        index.record_acks(&[ack]).unwrap();
    }
    assert_eq!(index.acks().unwrap(), [ack("a", 1, true), ack("a", 2, true), ack("b", 2, true)]);
    let one = ack("a", 2, true);
    let later = Ack { time: Time { sec: 1 << 40, nsec: 0 }, ..one.clone() };
    index.record_acks(std::slice::from_ref(&later)).unwrap();
    assert_eq!(index.acks().unwrap()[1], one, "told again");
    let other = Ack { exact: false, ..later };
    index.record_acks(std::slice::from_ref(&other)).unwrap();
    assert_eq!(index.acks().unwrap()[1], other);
}

#[test]
fn forgotten_versions_are_old_and_nobody_stands_there() {
    let index = with_lineage();
    let versions: Vec<_> = (0..9).map(|_| publish(&index, vec![], &[])).collect();
    let ack = |replica: &str, number: u64, exact| {
        let Version { root, time, .. } = versions[number as usize - 1];
        let version = versions[number as usize - 1].id();
        Ack { replica: replica.to_owned(), version, number, root, time, exact }
    };
    let kept = [ack("away", 3, true), ack("away", 4, false), ack("here", 7, true), ack("here", 8, true)];
    let gone = [ack("away", 1, false), ack("away", 2, true), ack("here", 1, true), ack("here", 5, false)];
    kept.iter().chain(&gone).for_each(|ack| index.record_acks(std::slice::from_ref(ack)).unwrap());
    index
        .commit_with(0, |commit| {
            forget_versions(commit.conn, 3, 3).map_err(|fault| fault.at("write", std::path::Path::new("")))
        })
        .unwrap();
    let numbers: Vec<_> = index.versions().unwrap().iter().map(|published| published.version.number).collect();
    assert_eq!(numbers, [3, 4, 7, 8, 9]);
    assert_eq!(index.acks().unwrap(), kept);
    assert_eq!(index.last_acks().unwrap(), [ack("away", 3, true), ack("here", 8, true)]);
    assert_eq!(publish(&index, vec![], &[]).number, 10);
}

/// A mirror commits a row or two at a time, for months.
#[test]
fn the_log_stays_small_however_many_versions_there_are() {
    let temp = tempfile::tempdir().unwrap();
    let index = open(temp.path()).index;
    index.mint_lineage([1; 16], None).unwrap();
    for i in 0..3000 {
        publish(&index, vec![file("f", i)], &[]);
    }
    let log = std::fs::metadata(temp.path().join("index.db-wal")).unwrap().len();
    assert!(log < 32 << 20, "{log} bytes");
}

#[test]
fn an_intent_takes_the_stand_away_and_the_end_gives_it_back() {
    let temp = tempfile::tempdir().unwrap();
    let stand = Stand {
        version: VersionId(Digest::of(b"v")),
        number: 4,
        lineage: crate::manifest::Lineage([3; 16]),
        root: Digest::of(b"r"),
    };
    let index = open(temp.path()).index;
    assert_eq!((index.stand().unwrap(), index.intent().unwrap()), (None, None));
    index.commit(Batch { stand: StandChange::Set(stand), ..Batch::default() }).unwrap();
    assert_eq!(index.stand().unwrap(), Some(stand));
    let intent = Intent { target: stand.version, paths: vec![path(""), path("a"), path("a/b")] };
    index.set_intent(&intent).unwrap();
    drop(index);
    let index = open(temp.path()).index;
    assert_eq!((index.stand().unwrap(), index.intent().unwrap()), (None, Some(intent)));
    let end = Batch { stand: StandChange::Set(stand), clear_intent: true, ..Batch::default() };
    index.commit(end).unwrap();
    assert_eq!((index.stand().unwrap(), index.intent().unwrap()), (Some(stand), None));
    index.commit(Batch { stand: StandChange::Clear, ..Batch::default() }).unwrap();
    assert_eq!(index.stand().unwrap(), None);
}

#[test]
fn values_are_kept_until_forgotten() {
    let index = Index::in_memory().unwrap();
    index.set_meta("source", Some(b"/srv/\xff")).unwrap();
    assert_eq!(index.meta("source").unwrap().as_deref(), Some(&b"/srv/\xff"[..]));
    index.set_meta("source", None).unwrap();
    assert_eq!(index.meta("source").unwrap(), None);
}

#[test]
fn chunk_lists_go_when_no_row_needs_them() {
    let index = Index::in_memory().unwrap();
    let list = |seed: u8| vec![ChunkRef { digest: [seed; 16], len: u32::MAX }, ChunkRef { digest: [0; 16], len: 1 }];
    let digest = |i: u64| Digest::of(&i.to_le_bytes());
    let rows = (0..10).map(|i| file(&format!("{i}"), i)).collect();
    let chunks = (0..300).map(|i| (digest(i), list(i as u8))).collect();
    index.commit(Batch { upserts: rows, chunks, ..Batch::default() }).unwrap();
    assert_eq!(index.chunks(&digest(299)).unwrap(), Some(list(43)));
    index.tidy().unwrap();
    assert_eq!(index.chunks(&digest(9)).unwrap(), Some(list(9)));
    assert_eq!(index.chunks(&digest(10)).unwrap(), None);
    assert_eq!(index.chunks(&digest(299)).unwrap(), None);
}

/// The promise behind every acknowledgement: 2 is FULL, 1 is NORMAL (<https://www.sqlite.org/pragma.html#pragma_synchronous>).
#[test]
fn what_others_rely_on_is_flushed() {
    let temp = tempfile::tempdir().unwrap();
    let index = open(temp.path()).index;
    let level = |conn: &rusqlite::Connection| conn.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0));
    let level = |conn: &rusqlite::Connection| level(conn).unwrap();
    assert_eq!(index.write(0, |writer| Ok::<_, IndexError>(level(writer.conn))).unwrap(), 1);
    assert_eq!(index.commit_with(0, |commit| Ok::<_, IndexError>(level(commit.conn))).unwrap(), 2);
    assert_eq!(index.write(0, |writer| Ok::<_, IndexError>(level(writer.conn))).unwrap(), 1);
}

#[test]
fn a_row_that_is_known_to_differ_is_written_without_a_look_at_the_old_one() {
    let index = Index::in_memory().unwrap();
    upsert(&index, 1, &[file("a", 1), file("b", 1)]);
    let rows = [file("a", 2), file("new", 3)];
    index.commit_with(2, |commit| rows.iter().try_for_each(|row| commit.change(row, &row.entry.hash()))).unwrap();
    assert_eq!(all(&index), [file("a", 2), file("b", 1), file("new", 3)]);
    let mut changed = Vec::new();
    index
        .rows(&mut |stored| {
            assert_eq!(stored.hash, stored.row.entry.hash());
            changed.push(stored.changed_in);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(changed, [2, 1, 2]);
    // What went and comes back is not gone any more.
    index.write(3, |writer| writer.delete(&path("b"))).unwrap();
    index.commit_with(4, |commit| commit.change(&file("b", 9), &file("b", 9).entry.hash())).unwrap();
    assert_eq!(all(&index)[1], file("b", 9));
    assert_eq!(index.inner.writer().query_row("SELECT count(*) FROM tombstones", [], |row| row.get(0)), Ok(0));
}

#[test]
fn additions_are_kept_until_the_replica_is_at_a_version() {
    let temp = tempfile::tempdir().unwrap();
    let index = open(temp.path()).index;
    let noted = ["b/c", "a", "b", "a"].map(path);
    index.write(0, |writer| noted.iter().try_for_each(|path| writer.note_addition(path))).unwrap();
    drop(index);
    let index = open(temp.path()).index;
    assert_eq!(index.additions().unwrap(), ["a", "b", "b/c"].map(path));
    let reached = index.commit_with(0, |commit| {
        commit.clear_additions()?;
        commit.set_stand(None)
    });
    reached.unwrap();
    assert_eq!(index.additions().unwrap(), []);
}

#[test]
fn an_index_of_the_first_format_is_brought_up_to_date() {
    let temp = tempfile::tempdir().unwrap();
    let index = open(temp.path()).index;
    upsert(&index, 0, &[file("a", 1)]);
    let acks = ["b", "a"].map(|replica| Ack {
        replica: replica.to_owned(),
        version: VersionId(Digest::of(b"version")),
        number: 7,
        root: Digest::of(b"root"),
        time: Time { sec: 7, nsec: 8 },
        exact: true,
    });
    index.record_acks(&acks).unwrap();
    drop(index);
    let old = rusqlite::Connection::open(temp.path().join("index.db")).unwrap();
    let first = include_str!("../schema/0001_index.sql");
    let (_, table) = first.split_once("CREATE TABLE acks").unwrap();
    let (table, _) = table.split_once(';').unwrap();
    let columns = "replica, version, number, root, sec, nsec, exact, sum";
    old.execute_batch(&format!(
        "DROP TABLE additions;
         ALTER TABLE acks RENAME TO newer;
         CREATE TABLE acks {table};
         INSERT INTO acks ({columns}) SELECT {columns} FROM newer;
         DROP TABLE newer;
         PRAGMA user_version = 1"
    ))
    .unwrap();
    drop(old);
    // Who only looks does not need to have it done before.
    let looked = Index::scratch_copy(temp.path()).unwrap();
    assert_eq!((looked.rebuilt, all(&looked.index).len()), (None, 1));
    let opened = open(temp.path());
    assert_eq!((opened.rebuilt, all(&opened.index).len()), (None, 1));
    assert_eq!(opened.index.additions().unwrap(), []);
    let [b, a] = acks;
    assert_eq!(opened.index.acks().unwrap(), [a, b]);
}
