//! The index against its own files: round trips, history, and every kind of damage.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the tests damage the files themselves")]

mod damage;
mod full;
mod history;
mod looking;
mod reading;
mod renaming;
mod speed;

use std::path::Path;
use std::time::Duration;

use super::{Index, IndexError, Opened, Rows as _};
use crate::hash::Digest;
use crate::manifest::{Entry, Kind, Refused, Row, Time, Tuple};
use crate::path::RelPath;

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

/// Another test may start a process, which holds every lock for a moment, until it becomes another program.
const FORK: Duration = Duration::from_secs(5);

fn open(dir: &Path) -> Opened {
    Index::open(dir, FORK).unwrap()
}

/// A row that differs from others in everything that `seed` can reach.
fn row(name: &str, kind: Kind, seed: u64) -> Row {
    let time = |offset: i64| Time { sec: 1_700_000_000 + seed as i64 + offset, nsec: (seed % 1_000_000_000) as u32 };
    Row {
        path: path(name),
        entry: Entry {
            kind,
            mode: 0o644 + (seed % 2) as u32,
            uid: 33,
            gid: 33,
            mtime: time(0),
            xattrs: Box::default(),
            link: None,
        },
        tuple: Some(Tuple { fs: 77, ino: 1000 + seed, size: seed, mtime: time(0), ctime: time(1) }),
        proven: true,
        refused: Refused::default(),
        extra: false,
        mount: false,
    }
}

fn file(name: &str, seed: u64) -> Row {
    row(name, Kind::File { size: seed, digest: Digest::of(&seed.to_le_bytes()) }, seed)
}

fn dir(name: &str) -> Row {
    row(name, Kind::Dir, 0)
}

/// A tree of `dirs` directories with `files` files each, in tree order.
fn tree(dirs: u64, files: u64) -> Vec<Row> {
    let mut rows = vec![dir("")];
    for d in 0..dirs {
        rows.push(dir(&format!("package-{d:04}")));
        for f in 0..files {
            rows.push(file(&format!("package-{d:04}/some-file-name-{f:05}.js"), d * files + f));
        }
    }
    rows
}

/// Every row, in the order the index gives them.
fn all(index: &Index) -> Vec<Row> {
    let mut cursor = index.cursor().unwrap();
    let mut rows = Vec::new();
    while let Some(row) = cursor.next().unwrap() {
        rows.push(row);
    }
    rows
}

fn upsert(index: &Index, changed_in: u64, rows: &[Row]) {
    index.commit_with(changed_in, |commit| rows.iter().try_for_each(|row| commit.upsert(row))).unwrap();
}
