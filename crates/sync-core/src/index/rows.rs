//! Reading rows: one path, a directory's children, or everything in tree order as of one moment.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension as _};

use super::error::{Fault, IndexError, from_sql};
use super::fact::{self, Shown};
use super::sums::{Mark, Summer, exactly};
use super::{Index, Reader};
use crate::hash::Digest;
use crate::manifest::{Row, Tuple};
use crate::path::{Key, RelPath};

/// Most rows that a cursor holds.
const PAGE_ROWS: usize = 1000;

/// Stored bytes after which a page ends early: rows with a megabyte of attributes each must not add up.
const PAGE_BYTES: usize = 1 << 20;

/// What a [`Leaf`] is read from.
const LEAF: &str = "SELECT path, fact, hash FROM entries";

/// A row with what the index keeps beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The fact.
    pub row: Row,
    /// [`crate::manifest::Entry::hash`] of the row's entry, as computed when it was written.
    pub hash: Digest,
    /// The version that last changed the entry; 0 where changes are not tracked.
    pub changed_in: u64,
}

/// Rows in tree order, pulled one at a time: as they were at one moment, whatever is written meanwhile. Memory: one page of
/// rows.
pub struct RowCursor {
    /// `None` if no row is wanted at all.
    snapshot: Option<Snapshot>,
    page: Page,
    /// The key before which nothing is left to read, and whether it is still to be read itself.
    from: Vec<u8>,
    inclusive: bool,
    /// The first key that is not wanted any more.
    end: Option<Vec<u8>>,
    exhausted: bool,
    summer: Summer,
}

/// What the hash of a tree needs of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf<'a> {
    /// Where.
    pub key: Key<'a>,
    /// [`crate::manifest::Entry::hash`] of the row's entry.
    pub hash: Digest,
    /// Whether the entry is a directory.
    pub is_dir: bool,
    /// [`Row::extra`].
    pub extra: bool,
}

/// The index as it was at one moment, whatever is written meanwhile, even by a transaction of this process that is still
/// open. A connection of its own with a read transaction, which clones and cursors share. While there is one the log of the
/// database is not begun anew: for work that ends.
#[derive(Clone)]
pub struct Snapshot(Arc<Mutex<Reader>>);

impl Snapshot {
    /// Every row in tree order, to be pulled; see [`RowCursor`].
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn cursor(&self) -> Result<RowCursor, IndexError> {
        RowCursor::new(self.clone(), Vec::new(), None)
    }

    /// The row of `dir` and of everything beneath it, in tree order.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn cursor_beneath(&self, dir: &RelPath) -> Result<RowCursor, IndexError> {
        RowCursor::new(self.clone(), dir.to_key(), end_of(dir))
    }

    /// The row of `path` and every one that comes after it in tree order.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn cursor_from(&self, path: &RelPath) -> Result<RowCursor, IndexError> {
        RowCursor::new(self.clone(), path.to_key(), None)
    }

    pub(super) fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T, Fault>) -> Result<T, IndexError> {
        // A query that panicked has changed nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(query)
    }
}

/// What can be looked up: an index, or one as it was at one moment.
pub trait Rows {
    /// The row of one path.
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be read, or is not what was written.
    fn row(&self, path: &RelPath) -> Result<Option<Row>, IndexError>;

    /// What the hash of the tree needs of the entries directly in `dir`, in order of their names. Costs a look-up for
    /// each child directory, not for what lies beneath it. Several times as fast as reading rows, because sums are not
    /// checked and nothing is decoded: for rows that were read in this session. The index is locked meanwhile: `visit`
    /// must not call its methods.
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be read.
    fn leaves_in(&self, dir: &RelPath, visit: &mut dyn FnMut(Leaf<'_>)) -> Result<(), IndexError>;
}

impl Rows for Index {
    fn row(&self, path: &RelPath) -> Result<Option<Row>, IndexError> {
        self.read(|conn| Ok(find(conn, path, &mut Summer::default())?.map(|stored| stored.row)))
    }

    fn leaves_in(&self, dir: &RelPath, visit: &mut dyn FnMut(Leaf<'_>)) -> Result<(), IndexError> {
        self.read(|conn| leaves_in(conn, dir, visit))
    }
}

impl Rows for Snapshot {
    fn row(&self, path: &RelPath) -> Result<Option<Row>, IndexError> {
        self.read(|conn| Ok(find(conn, path, &mut Summer::default())?.map(|stored| stored.row)))
    }

    fn leaves_in(&self, dir: &RelPath, visit: &mut dyn FnMut(Leaf<'_>)) -> Result<(), IndexError> {
        self.read(|conn| leaves_in(conn, dir, visit))
    }
}

/// A row as it is stored, with a sum that is right. Most rows of a tree that is looked at are only compared with what the
/// disk shows, for which nothing needs to be decoded.
#[derive(Clone, Copy, Debug)]
pub struct Encoded<'a> {
    /// Where.
    pub key: Key<'a>,
    /// [`crate::manifest::Entry::hash`] of the row's entry, as computed when it was written.
    pub hash: Digest,
    fact: &'a [u8],
}

impl Encoded<'_> {
    /// What the row says without being decoded, if there is nothing particular about it, and an inode with this tuple
    /// proves it: it is proven, nothing was refused, and it is no extra and no further name of a hard link. `mount` is
    /// whether something is mounted there.
    pub fn shown_by(&self, tuple: &Tuple, mount: bool) -> Option<Shown> {
        fact::shown_by(self.fact, tuple, mount)
    }
}

/// Rows as they are stored, in one piece of memory.
#[derive(Default)]
struct Page {
    bytes: Vec<u8>,
    rows: Vec<Place>,
    /// How many of them were taken.
    taken: usize,
}

/// Where in a page a row is: its key, then its fact.
struct Place {
    start: usize,
    key_len: usize,
    fact_len: usize,
    hash: Digest,
    changed_in: u64,
}

impl Page {
    fn clear(&mut self) {
        self.bytes.clear();
        self.rows.clear();
        self.taken = 0;
    }

    fn push(&mut self, key: &[u8], fact: &[u8], hash: Digest, changed_in: u64) {
        let place = Place { start: self.bytes.len(), key_len: key.len(), fact_len: fact.len(), hash, changed_in };
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(fact);
        self.rows.push(place);
    }

    fn key_and_fact(&self, place: &Place) -> (&[u8], &[u8]) {
        self.bytes[place.start..][..place.key_len + place.fact_len].split_at(place.key_len)
    }

    /// The row that is to be taken next, and the version it changed in.
    fn next(&self) -> Option<(Encoded<'_>, u64)> {
        let place = self.rows.get(self.taken)?;
        let (key, fact) = self.key_and_fact(place);
        Some((Encoded { key: Key::new(key), hash: place.hash, fact }, place.changed_in))
    }

    fn last_key(&self) -> Option<&[u8]> {
        self.rows.last().map(|last| self.key_and_fact(last).0)
    }
}

impl RowCursor {
    fn new(snapshot: Snapshot, from: Vec<u8>, end: Option<Vec<u8>>) -> Result<Self, IndexError> {
        let mut cursor = Self { snapshot: Some(snapshot), from, end, exhausted: false, ..Self::empty() };
        // The first read is what fixes the snapshot.
        cursor.fill()?;
        Ok(cursor)
    }

    /// A cursor over no rows, which costs nothing.
    pub fn empty() -> Self {
        Self {
            snapshot: None,
            page: Page::default(),
            from: Vec::new(),
            inclusive: true,
            end: None,
            exhausted: true,
            summer: Summer::default(),
        }
    }

    /// The next row in tree order.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] if a row is not what was written; the rows before it were.
    #[allow(clippy::should_implement_trait, reason = "fallible iteration: `?` inside `while let` is the use")]
    pub fn next(&mut self) -> Result<Option<Row>, IndexError> {
        Ok(self.next_stored()?.map(|stored| stored.row))
    }

    /// [`RowCursor::next`] with the entry's hash and the version it changed in.
    ///
    /// # Errors
    /// As [`RowCursor::next`].
    pub fn next_stored(&mut self) -> Result<Option<Stored>, IndexError> {
        self.fill_to_next()?;
        let Some((Encoded { key, hash, fact }, changed_in)) = self.page.next() else { return Ok(None) };
        let Some(snapshot) = &self.snapshot else { return Ok(None) };
        // The lock is for the place in the error alone.
        let row = fact::decode(key.as_bytes(), fact).or_else(|fault| snapshot.read(|_| Err(fault)))?;
        self.pass();
        Ok(Some(Stored { row, hash, changed_in }))
    }

    /// The next row, which stays the next one.
    ///
    /// # Errors
    /// As [`RowCursor::next`].
    pub fn peek(&mut self) -> Result<Option<Encoded<'_>>, IndexError> {
        self.fill_to_next()?;
        Ok(self.page.next().map(|(next, _)| next))
    }

    /// Leaves out the row that [`RowCursor::peek`] showed.
    pub fn pass(&mut self) {
        self.page.taken += 1;
    }

    /// Sees to it that the page has the next row, if there is one.
    fn fill_to_next(&mut self) -> Result<(), IndexError> {
        while self.page.taken >= self.page.rows.len() && !self.exhausted {
            self.fill()?;
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<(), IndexError> {
        let Some(snapshot) = self.snapshot.clone() else { return Ok(()) };
        snapshot.read(|conn| self.read_page(conn))
    }

    fn read_page(&mut self, conn: &Connection) -> Result<(), Fault> {
        let sql = if self.inclusive {
            "SELECT path, fact, hash, changed_in, sum FROM entries WHERE path >= ?1 ORDER BY path"
        } else {
            "SELECT path, fact, hash, changed_in, sum FROM entries WHERE path > ?1 ORDER BY path"
        };
        let mut statement = conn.prepare_cached(sql)?;
        let mut rows = statement.query([&self.from])?;
        self.page.clear();
        while self.page.rows.len() < PAGE_ROWS && self.page.bytes.len() < PAGE_BYTES {
            let Some(row) = rows.next()? else {
                self.exhausted = true;
                break;
            };
            let key = blob(row, 0)?;
            // A B-tree whose inner pages are wrong can show a key twice or out of order.
            let is_after = match self.page.last_key() {
                Some(last) => key > last,
                None => key > &*self.from || (key == self.from && self.inclusive),
            };
            if !is_after {
                return Err(Fault::Damaged("rows are out of order".to_owned()));
            }
            if self.end.as_deref().is_some_and(|end| key >= end) {
                self.exhausted = true;
                break;
            }
            let (fact, hash, changed_in) = read_checked(row, key, &mut self.summer)?;
            self.page.push(key, fact, hash, changed_in);
        }
        drop(rows);
        if let Some(last) = self.page.last_key() {
            self.from.clear();
            self.from.extend_from_slice(last);
            self.inclusive = false;
        }
        Ok(())
    }
}

impl Index {
    /// The index as it is now.
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, IndexError> {
        let snapshot = self.begin_snapshot()?;
        // The first read is what fixes it.
        snapshot.row(&RelPath::root())?;
        Ok(snapshot)
    }

    /// A snapshot that the first read fixes.
    pub(super) fn begin_snapshot(&self) -> Result<Snapshot, IndexError> {
        Ok(Snapshot(Arc::new(Mutex::new(self.inner.snapshot()?))))
    }

    /// Whether there is any row.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn has_rows(&self) -> Result<bool, IndexError> {
        self.read(|conn| any(conn, "SELECT 1 FROM entries LIMIT 1"))
    }

    /// Every row in tree order, to be pulled; see [`RowCursor`].
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn cursor(&self) -> Result<RowCursor, IndexError> {
        self.begin_snapshot()?.cursor()
    }

    /// The row of `dir` and of everything beneath it, in tree order.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn cursor_beneath(&self, dir: &RelPath) -> Result<RowCursor, IndexError> {
        self.begin_snapshot()?.cursor_beneath(dir)
    }

    /// The row of `path` and every one that comes after it in tree order.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn cursor_from(&self, path: &RelPath) -> Result<RowCursor, IndexError> {
        self.begin_snapshot()?.cursor_from(path)
    }

    /// Shows every row in tree order to `visit`, until it breaks.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn rows(&self, visit: &mut dyn FnMut(Stored) -> ControlFlow<()>) -> Result<(), IndexError> {
        let mut cursor = self.cursor()?;
        while let Some(stored) = cursor.next_stored()? {
            if visit(stored).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// As [`Rows::row`]; `None` also while somebody writes, who may take long.
    ///
    /// # Errors
    /// As [`Rows::row`].
    pub fn row_unless_busy(&self, path: &RelPath) -> Result<Option<Row>, IndexError> {
        let Some(conn) = self.inner.writer_if_free() else { return Ok(None) };
        let found = find(&conn, path, &mut Summer::default()).map_err(|fault| fault.at("read", self.inner.dir()))?;
        Ok(found.map(|stored| stored.row))
    }

    /// The rows of `paths`, each at the place of its path; `None` where there is none. Fastest in tree order.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn rows_for(&self, paths: &[RelPath]) -> Result<Vec<Option<Row>>, IndexError> {
        let mut summer = Summer::default();
        self.read(|conn| {
            // One transaction: each would take and give back locks of its own.
            let tx = conn.unchecked_transaction()?;
            paths.iter().map(|path| Ok(find(&tx, path, &mut summer)?.map(|stored| stored.row))).collect()
        })
    }

    /// The entries of the same directory that come before and after `path` in the order of names, whether or not it is
    /// there itself: at most `most` of each, in turn, nearest first. Costs a look-up for each, however many there are.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn neighbours(&self, path: &RelPath, most: usize) -> Result<Vec<RelPath>, IndexError> {
        let Some(dir) = path.parent() else { return Ok(Vec::new()) };
        self.read(|conn| {
            let prefix = prefix_of(&dir);
            let (mut before, mut after) = (path.to_key(), [&*path.to_key(), &[1]].concat());
            let mut found = Vec::new();
            for _ in 0..most {
                let sql = "SELECT path FROM entries WHERE path < ?1 ORDER BY path DESC LIMIT 1";
                if let Some(child) = child_at(conn, sql, &before, &prefix)? {
                    found.push(fact::path_of(&child)?);
                    before = child;
                }
                let sql = "SELECT path FROM entries WHERE path >= ?1 ORDER BY path LIMIT 1";
                if let Some(child) = child_at(conn, sql, &after, &prefix)? {
                    found.push(fact::path_of(&child)?);
                    // After all of it.
                    after = child;
                    after.push(1);
                }
            }
            Ok(found)
        })
    }

    /// All rows in tree order, as [`Rows::leaves_in`] reads them. The index is locked meanwhile: `visit` must not call
    /// its methods.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn leaves(&self, visit: &mut dyn FnMut(Leaf<'_>)) -> Result<(), IndexError> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached(&format!("{LEAF} ORDER BY path"))?;
            let mut rows = statement.query([])?;
            let mut last = Vec::new();
            while let Some(row) = rows.next()? {
                let key = blob(row, 0)?;
                if key <= &*last && !last.is_empty() {
                    return Err(Fault::Damaged("rows are out of order".to_owned()));
                }
                visit(read_leaf(row)?);
                last.clear();
                last.extend_from_slice(key);
            }
            Ok(())
        })
    }

    /// How many rows there are.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn row_count(&self) -> Result<u64, IndexError> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached("SELECT count(*) FROM entries")?;
            from_sql(statement.query_row([], |row| row.get(0))?)
        })
    }
}

/// The row of one path, checked.
pub(super) fn find(conn: &Connection, path: &RelPath, summer: &mut Summer) -> Result<Option<Stored>, Fault> {
    let mut statement = conn.prepare_cached("SELECT path, fact, hash, changed_in, sum FROM entries WHERE path = ?1")?;
    let mut rows = statement.query([path.to_key()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let stored = read_stored(row, summer)?;
    if stored.row.path != *path {
        return Err(Fault::Damaged(format!("a look-up of {path} gave {}", stored.row.path)));
    }
    Ok(Some(stored))
}

/// The first key after everything beneath `dir`; `None` for the top, after which nothing comes.
pub(super) fn end_of(dir: &RelPath) -> Option<Vec<u8>> {
    (!dir.is_root()).then(|| {
        let mut key = dir.to_key();
        key.push(1);
        key
    })
}

fn read_leaf<'a>(row: &'a rusqlite::Row<'_>) -> Result<Leaf<'a>, Fault> {
    let (key, fact, hash) = (blob(row, 0)?, blob(row, 1)?, blob(row, 2)?);
    let (is_dir, extra) = fact::kind_of(key, fact)?;
    Ok(Leaf { key: Key::new(key), hash: Digest(exactly(hash)?), is_dir, extra })
}

/// What the keys of everything beneath `dir` begin with.
fn prefix_of(dir: &RelPath) -> Vec<u8> {
    let mut prefix = dir.to_key();
    if !dir.is_root() {
        prefix.push(0);
    }
    prefix
}

/// The key of the child whose own or whose descendant's row `sql` finds from `key` on, if it has that prefix.
fn child_at(conn: &Connection, sql: &str, key: &[u8], prefix: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query([key])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let key = blob(row, 0)?;
    let name = key.strip_prefix(prefix).filter(|name| !name.is_empty());
    let len = name.map(|name| name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
    Ok(len.map(|len| key[..prefix.len() + len].to_vec()))
}

fn leaves_in(conn: &Connection, dir: &RelPath, visit: &mut dyn FnMut(Leaf<'_>)) -> Result<(), Fault> {
    let prefix = prefix_of(dir);
    let end = end_of(dir);
    let mut statement = conn.prepare_cached(&format!("{LEAF} WHERE path >= ?1 ORDER BY path"))?;
    let mut from = prefix.clone();
    'seek: loop {
        let mut rows = statement.query([&from])?;
        while let Some(row) = rows.next()? {
            let key = blob(row, 0)?;
            if key < &*from {
                return Err(Fault::Damaged("rows are out of order".to_owned()));
            }
            if end.as_deref().is_some_and(|end| key >= end) {
                break;
            }
            let Some(name) = key.strip_prefix(&*prefix) else {
                return Err(Fault::Damaged("rows are out of order".to_owned()));
            };
            if name.is_empty() {
                // Only the top has the key that its children's keys begin with.
                continue;
            }
            if let Some(deeper) = name.iter().position(|&byte| byte == 0) {
                // Beneath a child: go on after all of it. Its next sibling's key is at least its own and a 1.
                from.truncate(prefix.len());
                from.extend_from_slice(&name[..deeper]);
                from.push(1);
                continue 'seek;
            }
            visit(read_leaf(row)?);
            from.clear();
            from.extend_from_slice(key);
        }
        return Ok(());
    }
}

/// One column that must be a blob.
pub(super) fn blob<'a>(row: &'a rusqlite::Row<'_>, column: usize) -> Result<&'a [u8], Fault> {
    row.get_ref(column)?.as_blob().map_err(|_| Fault::Damaged("a column has the wrong type".to_owned()))
}

/// Decodes a row of `entries`, with the columns path, fact, hash, changed_in and sum, after checking its sum.
pub(super) fn read_stored(row: &rusqlite::Row<'_>, summer: &mut Summer) -> Result<Stored, Fault> {
    let key = blob(row, 0)?;
    let (fact, hash, changed_in) = read_checked(row, key, summer)?;
    Ok(Stored { row: fact::decode(key, fact)?, hash, changed_in })
}

/// The columns of such a row after its key, if its sum is right: fact, hash, and the version it changed in.
fn read_checked<'a>(
    row: &'a rusqlite::Row<'_>,
    key: &[u8],
    summer: &mut Summer,
) -> Result<(&'a [u8], Digest, u64), Fault> {
    let (fact, hash) = (blob(row, 1)?, blob(row, 2)?);
    let changed_in: i64 = row.get(3)?;
    if summer.sum(Mark::Entry, &[key, fact, hash, &changed_in.to_le_bytes()]) != blob(row, 4)? {
        return Err(mismatch(key));
    }
    Ok((fact, Digest(exactly(hash)?), from_sql(changed_in)?))
}

/// What is said of a row whose sum is wrong.
pub(super) fn mismatch(key: &[u8]) -> Fault {
    let path = crate::path::escape(&key.iter().map(|&b| if b == 0 { b'/' } else { b }).collect::<Vec<_>>());
    Fault::Damaged(format!("the checksum of the row of {path} does not match"))
}

/// Whether a table has any row.
pub(super) fn any(conn: &Connection, sql: &str) -> Result<bool, Fault> {
    Ok(conn.prepare_cached(sql)?.query_row([], |_| Ok(())).optional()?.is_some())
}

/// The directory an index lives in, for messages; `(memory)` for a scratch copy.
pub(super) fn dir_of(files: Option<&super::damage::Files>) -> &Path {
    files.map_or(Path::new("(memory)"), |files| &files.dir)
}
