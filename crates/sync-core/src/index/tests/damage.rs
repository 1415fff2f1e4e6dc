//! Damage times place: whatever happens to the files, an index answers with true rows or says that it is damaged, and
//! after `rebuild` it works again. Never a panic, never a row that was not written, never another error.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::chunk::ChunkRef;
use crate::index::{Ack, Batch, Counts, IndexError, Intent, Stand, StandChange};
use crate::manifest::{Lineage, Version};

/// Files of an index at three moments of its life, and all rows that were ever in it, one for each path.
struct Specimen {
    temp: tempfile::TempDir,
    written: Vec<Row>,
    /// Closed after the first version.
    old: Vec<u8>,
    /// Closed after the second.
    new: Vec<u8>,
    /// The log of a third version that was not folded in.
    log: Vec<u8>,
}

fn version(number: u64) -> Version {
    Version {
        lineage: Lineage([1; 16]),
        number,
        parent: None,
        root: Digest::of(&number.to_le_bytes()),
        time: Time { sec: number as i64, nsec: 0 },
    }
}

fn stand(number: u64) -> Stand {
    let version = version(number);
    Stand { version: version.id(), number, lineage: version.lineage, root: version.root }
}

fn batch(number: u64, upserts: Vec<Row>, deletes: Vec<RelPath>) -> Batch {
    let chunks = (0..20).map(|i| (Digest::of(&[i]), vec![ChunkRef { digest: [i; 16], len: 9 }; 30])).collect();
    Batch {
        upserts,
        deletes,
        changed_in: number,
        version: Some((version(number), Counts::default())),
        stand: StandChange::Set(stand(number)),
        chunks,
        meta: vec![("source".to_owned(), b"/srv".to_vec())],
        ..Batch::default()
    }
}

fn ack(number: u64) -> Ack {
    let version = version(number);
    Ack { replica: "r".to_owned(), version: version.id(), number, root: version.root, time: version.time, exact: true }
}

impl Specimen {
    fn new() -> Self {
        // In memory where there is such a place: hundreds of indexes are flushed here.
        let temp = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let home = temp.path().join("home");
        let db = home.join("index.db");
        let mut written = tree(10, 40);
        let mut index = open(&home).index;
        index.mint_lineage([1; 16], None).unwrap();
        index.commit(batch(1, written.clone(), vec![])).unwrap();
        index.record_acks(&[ack(1)]).unwrap();
        drop(index);
        let old = fs::read(&db).unwrap();
        let step = |index: &Index, number: u64, written: &mut Vec<Row>| {
            let edited: Vec<_> = (0..200).map(|i| file(&format!("package-{:04}/v{number}-{i}", i % 10), i)).collect();
            let gone = written.iter().rev().step_by(3).take(150).map(|row| row.path.clone()).collect();
            index.commit(batch(number, edited.clone(), gone)).unwrap();
            index.record_acks(&[ack(number)]).unwrap();
            written.extend(edited);
        };
        index = open(&home).index;
        step(&index, 2, &mut written);
        drop(index);
        let new = fs::read(&db).unwrap();
        index = open(&home).index;
        step(&index, 3, &mut written);
        index.write(0, |writer| writer.note_addition(&path("added"))).unwrap();
        index.set_intent(&Intent { target: version(4).id(), paths: vec![path("a"), path("b")] }).unwrap();
        let log = fs::read(home.join("index.db-wal")).unwrap();
        assert_eq!(fs::read(&db).unwrap(), new, "the third version is in the log alone");
        drop(index);
        written.sort_by(|a, b| a.path.cmp(&b.path));
        Self { temp, written, old, new, log }
    }

    /// A directory with these files.
    fn home(&self, db: Option<&[u8]>, log: Option<&[u8]>) -> PathBuf {
        let home = self.temp.path().join("damaged");
        let _ = fs::remove_dir_all(&home);
        fs::create_dir(&home).unwrap();
        if let Some(bytes) = db {
            fs::write(home.join("index.db"), bytes).unwrap();
        }
        if let Some(bytes) = log {
            fs::write(home.join("index.db-wal"), bytes).unwrap();
        }
        home
    }

    fn wrote(&self, row: &Row) -> bool {
        self.written.binary_search_by(|written| written.path.cmp(&row.path)).is_ok_and(|at| self.written[at] == *row)
    }

    /// Looks at everything an index offers; whatever it answers must have been true once.
    fn read_everything(&self, index: &Index) -> Result<usize, IndexError> {
        let mut cursor = index.cursor()?;
        let (mut count, mut last) = (0, None);
        while let Some(stored) = cursor.next_stored()? {
            assert!(self.wrote(&stored.row), "a row that was never written: {:?}", stored.row);
            assert_eq!(stored.hash, stored.row.entry.hash());
            assert!(last < Some(stored.row.path.clone()));
            last = Some(stored.row.path);
            count += 1;
        }
        for row in index.rows_for(&self.written.iter().map(|row| row.path.clone()).collect::<Vec<_>>())? {
            assert!(row.is_none_or(|row| self.wrote(&row)));
        }
        // Sums are not checked here: damage may show as an error or as another hash, never as a panic.
        index.leaves_in(&RelPath::root(), &mut |_| {})?;
        index.leaves(&mut |_| {})?;
        index.row_count()?;
        for published in index.versions()? {
            assert_eq!(published.version, version(published.version.number));
        }
        index.version(version(2).id())?;
        for since in 0..4 {
            let Some(mut changes) = index.changes_since(since)? else { continue };
            while changes.next()?.is_some() {}
        }
        assert!(index.acks()?.iter().all(|stored| *stored == ack(stored.number)));
        assert!(index.stand()?.is_none_or(|found| found == stand(found.number)));
        assert!(index.intent()?.is_none_or(|found| found.target == version(4).id()));
        assert!(index.additions()?.iter().all(|found| *found == path("added")));
        assert!(index.lineage()?.is_none_or(|lineage| lineage == Lineage([1; 16])));
        assert!(index.meta("source")?.is_none_or(|source| source == b"/srv"));
        for i in 0..20 {
            let chunks = index.chunks(&Digest::of(&[i]))?;
            assert!(chunks.is_none_or(|list| list == vec![ChunkRef { digest: [i; 16], len: 9 }; 30]));
        }
        Ok(count)
    }

    fn write_something(&self, index: &Index) -> Result<(), IndexError> {
        let gone = self.written.iter().step_by(7).map(|row| row.path.clone()).collect();
        let some = self.written.iter().step_by(3).cloned().collect();
        index.commit(batch(9, some, gone))?;
        index.tidy()
    }

    /// Opens and uses what lies in `home`; says how many rows were read if nothing was found wrong.
    fn survey(&self, home: &Path, what: &str) -> Option<usize> {
        let opened = Index::open(home, FORK).unwrap_or_else(|error| panic!("{what}: {error}"));
        let index = opened.index;
        if opened.rebuilt.is_some() {
            assert!(opened.fresh && all(&index).is_empty(), "{what}");
        }
        let used = self.read_everything(&index).and_then(|count| {
            self.write_something(&index)?;
            self.read_everything(&index)?;
            Ok(count)
        });
        match used {
            Ok(count) => return opened.rebuilt.is_none().then_some(count),
            Err(IndexError::Damaged(_)) => {}
            Err(error) => panic!("{what}: {error} ({error:?})"),
        }
        index.rebuild().unwrap();
        assert!(home.join("index.db.damaged").exists());
        assert_eq!(all(&index), [], "{what}");
        self.write_something(&index).unwrap();
        drop(index);
        let opened = open(home);
        assert!(opened.rebuilt.is_none(), "{what}: {:?}", opened.rebuilt);
        self.read_everything(&opened.index).unwrap();
        None
    }
}

/// Numbers that look random and are the same in every run (Knuth's MMIX generator).
fn numbers(mut seed: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    }
}

#[test]
fn healthy_files_are_believed_whole() {
    let specimen = Specimen::new();
    let count = |db: &[u8], log: Option<&[u8]>| specimen.survey(&specimen.home(Some(db), log), "healthy");
    assert_eq!(count(&specimen.old, None), Some(411));
    assert_eq!(count(&specimen.new, None), Some(411 + 200 - 137));
    assert!(count(&specimen.new, Some(&specimen.log)) > count(&specimen.new, None), "the log counts");
}

#[test]
fn absent_and_empty_databases() {
    let specimen = Specimen::new();
    let opened = open(&specimen.home(None, None));
    assert!(opened.fresh && opened.rebuilt.is_none());
    drop(opened);
    for (db, log) in [(Some(&b""[..]), None), (Some(&b""[..]), Some(&*specimen.log)), (None, Some(&*specimen.log))] {
        let home = specimen.home(db, log);
        let opened = open(&home);
        assert!(opened.rebuilt.is_some(), "a database was here");
        assert_eq!(all(&opened.index), []);
        drop(opened);
        assert_eq!(specimen.survey(&home, "emptied"), Some(0));
    }
}

#[test]
fn any_truncation() {
    let specimen = Specimen::new();
    let size = specimen.new.len();
    // Around the header, around page borders, and in the middle of pages.
    let mut cuts = vec![1, 15, 16, 99, 100, 101, 511, 512, 4095, 4096, 4097, size - 4096, size - 1];
    cuts.extend((2..size / 4096).step_by(3).flat_map(|page| [page * 4096, page * 4096 + 2000]));
    let mut noticed = 0;
    for &cut in &cuts {
        for log in [None, Some(&*specimen.log)] {
            let home = specimen.home(Some(&specimen.new[..cut]), log);
            noticed += usize::from(specimen.survey(&home, &format!("cut at {cut}")).is_none());
        }
    }
    assert!(noticed >= cuts.len(), "{noticed} of {}", 2 * cuts.len());
    let [before, after] = [None, Some(&*specimen.log)]
        .map(|log| specimen.survey(&specimen.home(Some(&specimen.new), log), "healthy").unwrap());
    for cut in [1, 31, 32, 33, 100, 4000, specimen.log.len() / 4, specimen.log.len() / 2, specimen.log.len() - 1] {
        let home = specimen.home(Some(&specimen.new), Some(&specimen.log[..cut]));
        let count = specimen.survey(&home, &format!("log cut at {cut}")).expect("a log may end anywhere");
        assert!(count == before || count == after, "half a transaction: {count} rows");
    }
}

#[test]
fn one_flipped_bit() {
    let specimen = Specimen::new();
    let mut number = numbers(1);
    let (mut noticed, mut tried) = (0, 0);
    // Each byte of the file's header, then anywhere.
    let places = (0..100).map(|byte| byte * 8 + byte % 8);
    let anywhere: Vec<_> = (0..250).map(|_| number(specimen.new.len() * 8)).collect();
    for bit in places.chain(anywhere) {
        let mut bytes = specimen.new.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let home = specimen.home(Some(&bytes), None);
        noticed += usize::from(specimen.survey(&home, &format!("bit {bit}")).is_none());
        tried += 1;
    }
    assert!(noticed * 3 > tried, "{noticed} of {tried}: are the checksums looked at?");
    for _ in 0..50 {
        let bit = number(specimen.log.len() * 8);
        let mut log = specimen.log.clone();
        log[bit / 8] ^= 1 << (bit % 8);
        let home = specimen.home(Some(&specimen.new), Some(&log));
        specimen.survey(&home, &format!("bit {bit} of the log"));
    }
}

#[test]
fn noise_instead_of_everything_or_a_page() {
    let specimen = Specimen::new();
    let mut number = numbers(2);
    let mut noise = |size: usize| -> Vec<u8> { (0..size).map(|_| number(256) as u8).collect() };
    for size in [1, 100, 4096, 50_000] {
        let home = specimen.home(Some(&noise(size)), None);
        assert_eq!(specimen.survey(&home, "noise"), None);
        let home = specimen.home(Some(&specimen.new), Some(&noise(size)));
        assert!(specimen.survey(&home, "a noisy log").is_some(), "a log that is none is not read");
    }
    for page in 0..specimen.new.len() / 4096 {
        let mut bytes = specimen.new.clone();
        bytes[page * 4096..][..4096].copy_from_slice(&noise(4096));
        specimen.survey(&specimen.home(Some(&bytes), None), &format!("noise in page {page}"));
        bytes[page * 4096..][..4096].fill(0);
        specimen.survey(&specimen.home(Some(&bytes), None), &format!("zeros in page {page}"));
    }
}

/// Restored from a backup, with a page of another moment, or beside a log that was written for another copy.
#[test]
fn old_copies() {
    let specimen = Specimen::new();
    assert!(specimen.survey(&specimen.home(Some(&specimen.old), None), "old").is_some());
    specimen.survey(&specimen.home(Some(&specimen.old), Some(&specimen.log)), "old with a newer log");
    for page in 0..specimen.old.len() / 4096 {
        let mut bytes = specimen.new.clone();
        bytes[page * 4096..][..4096].copy_from_slice(&specimen.old[page * 4096..][..4096]);
        specimen.survey(&specimen.home(Some(&bytes), None), &format!("page {page} is old"));
    }
}

/// Files of other programs, and of a later one of ours.
#[test]
fn foreign_databases_are_moved_aside() {
    let temp = tempfile::tempdir().unwrap();
    let db = temp.path().join("index.db");
    let foreign = ["CREATE TABLE t (x)", "PRAGMA user_version = 99", "PRAGMA application_id = 7; CREATE TABLE t (x)"];
    for sql in foreign {
        rusqlite::Connection::open(&db).unwrap().execute_batch(sql).unwrap();
        let opened = open(temp.path());
        assert!(opened.rebuilt.is_some(), "{sql}");
        assert_eq!(all(&opened.index), []);
        drop(opened);
        assert!(open(temp.path()).rebuilt.is_none());
        fs::remove_file(&db).unwrap();
    }
}

/// A rule of the schema that was changed behind our back would make SQLite read by other rules than it wrote by.
#[test]
fn a_changed_schema_is_damage() {
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()));
    let conn = rusqlite::Connection::open(temp.path().join("index.db")).unwrap();
    conn.execute_batch("DROP INDEX tombstones_by_change").unwrap();
    drop(conn);
    assert!(open(temp.path()).rebuilt.is_some());
}

#[test]
fn values_that_are_wrong_but_well_formed_never_pass() {
    let temp = tempfile::tempdir().unwrap();
    let edits = [
        "UPDATE entries SET changed_in = changed_in + 1 WHERE path = x'61'",
        "UPDATE entries SET path = x'6161' WHERE path = x'61'",
        "UPDATE entries SET hash = zeroblob(32) WHERE path = x'61'",
        "UPDATE entries SET fact = (SELECT fact FROM entries WHERE path = x'62') WHERE path = x'61'",
        "UPDATE entries SET sum = x'' WHERE path = x'61'",
    ];
    for sql in edits {
        let index = open(temp.path()).index;
        upsert(&index, 1, &[file("a", 1), file("b", 2)]);
        drop(index);
        let conn = rusqlite::Connection::open(temp.path().join("index.db")).unwrap();
        assert_eq!(conn.execute(sql, []).unwrap(), 1);
        drop(conn);
        let index = open(temp.path()).index;
        let mut cursor = index.cursor();
        let read = cursor.as_mut().map(super::super::rows::RowCursor::next);
        assert!(matches!(read, Err(IndexError::Damaged(_))), "{sql}: {read:?}");
        drop((cursor, index));
        fs::remove_file(temp.path().join("index.db")).unwrap();
    }
}

/// Somebody still reads while the index starts afresh: they finish, and closing does no harm to the new files.
#[test]
fn a_cursor_outlives_a_rebuild() {
    let temp = tempfile::tempdir().unwrap();
    let rows = tree(1, 1500);
    let index = open(temp.path()).index;
    upsert(&index, 0, &rows);
    let mut cursor = index.cursor().unwrap();
    cursor.next().unwrap();
    index.rebuild().unwrap();
    upsert(&index, 0, &[file("fresh", 1)]);
    let mut left = 0;
    while cursor.next().unwrap().is_some() {
        left += 1;
    }
    assert_eq!(left, rows.len() - 1);
    drop(cursor);
    upsert(&index, 0, &[file("more", 1)]);
    drop(index);
    let opened = open(temp.path());
    assert_eq!(opened.rebuilt, None);
    assert_eq!(all(&opened.index).len(), 2);
}
