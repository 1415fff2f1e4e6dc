//! A scratch copy sees what is there and leaves no trace.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use super::*;
use crate::index::Stand;
use crate::manifest::{Lineage, VersionId};

/// Every file in a directory with its bytes and times.
fn listing(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|file| {
            let seen = (std::fs::read(&file).unwrap(), file.metadata().unwrap().modified().unwrap());
            (file, seen)
        })
        .collect()
}

fn looked(dir: &Path) -> Vec<Row> {
    let before = listing(dir);
    let scratch = Index::scratch_copy(dir).unwrap();
    assert_eq!(scratch.rebuilt, None);
    let rows = all(&scratch.index);
    // Writing to the copy stays in the copy.
    upsert(&scratch.index, 0, &[file("scratch", 1)]);
    drop(scratch);
    assert!(listing(dir) == before, "looking left a trace: {:?}", listing(dir).keys());
    rows
}

#[test]
fn a_closed_index_with_an_awkward_name() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("a?b #%20é");
    let rows = tree(2, 700);
    assert_eq!(Index::peek_stand(&dir).unwrap(), None);
    let index = open(&dir).index;
    upsert(&index, 0, &rows);
    let (version, root) = (VersionId(Digest::of(b"version")), Digest::of(b"root"));
    let stand = Stand { version, number: 7, lineage: Lineage([3; 16]), root };
    index.set_stand(Some(&stand)).unwrap();
    assert_eq!(Index::peek_stand(&dir).unwrap(), Some(stand), "while it is open");
    drop(index);
    assert!(!dir.join("index.db-wal").exists(), "closing folds the log in");
    assert_eq!(looked(&dir), rows);
    assert_eq!(Index::peek_stand(&dir).unwrap(), Some(stand));
}

#[test]
fn an_index_that_was_killed_with_its_log() {
    let temp = tempfile::tempdir().unwrap();
    let rows = tree(2, 700);
    let index = open(&temp.path().join("live")).index;
    upsert(&index, 0, &rows[..500]);
    index.tidy().unwrap();
    upsert(&index, 0, &rows[500..]);
    // What a kill leaves: all the files, and no process that holds them.
    let dead = temp.path().join("dead");
    std::fs::create_dir(&dead).unwrap();
    for name in ["index.db", "index.db-wal"] {
        std::fs::copy(temp.path().join("live").join(name), dead.join(name)).unwrap();
    }
    assert_eq!(looked(&dead), rows);
    assert_eq!(all(&open(&dead).index), rows);
}

#[test]
fn an_index_in_use() {
    let temp = tempfile::tempdir().unwrap();
    let rows = tree(1, 50);
    let index = open(temp.path()).index;
    upsert(&index, 0, &rows);
    let scratch = Index::scratch_copy(temp.path()).unwrap();
    assert_eq!(all(&scratch.index), rows);
    assert_eq!(all(&index.to_scratch().unwrap()), rows);
    drop(scratch);
    upsert(&index, 0, &[file("more", 1)]);
    assert_eq!(all(&index).len(), rows.len() + 1);
}

#[test]
fn nothing_and_noise_give_an_empty_copy() {
    let temp = tempfile::tempdir().unwrap();
    let absent = temp.path().join("absent");
    let scratch = Index::scratch_copy(&absent).unwrap();
    assert!(scratch.fresh && scratch.rebuilt.is_none());
    assert!(!absent.exists());
    std::fs::write(temp.path().join("index.db"), [0x5a; 9000]).unwrap();
    let before = listing(temp.path());
    let scratch = Index::scratch_copy(temp.path()).unwrap();
    assert!(scratch.fresh && scratch.rebuilt.is_some());
    assert_eq!(all(&scratch.index), []);
    assert!(listing(temp.path()) == before);
}
