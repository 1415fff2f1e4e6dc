//! Reading rows: one path, a directory's children, or everything in tree order as of one moment.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::vec;

use rusqlite::{Connection, OptionalExtension as _};

use super::error::{Fault, IndexError, from_sql};
use super::sums::{Mark, Summer, exactly};
use super::{Index, Inner, fact};
use crate::hash::Digest;
use crate::manifest::Row;
use crate::path::{Key, RelPath};

/// Most rows that a cursor holds decoded.
const PAGE_ROWS: usize = 1000;

/// Stored bytes after which a page ends early: rows with a megabyte of attributes each must not add up.
const PAGE_BYTES: usize = 1 << 20;

const COLUMNS: &str = "SELECT path, fact, hash, changed_in, sum FROM entries";

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

/// Rows in tree order, pulled one at a time. It owns a connection with a read transaction: it sees the index as it was
/// when the cursor was made, whatever is written meanwhile. Memory: one page of rows.
pub struct RowCursor {
    conn: Connection,
    page: vec::IntoIter<Stored>,
    /// The key before which nothing is left to read, and whether it is still to be read itself.
    from: Vec<u8>,
    inclusive: bool,
    /// The first key that is not wanted any more.
    end: Option<Vec<u8>>,
    exhausted: bool,
    summer: Summer,
    // Last, so that the connection above is closed while the index still holds its lock.
    inner: Arc<Inner>,
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

/// The rows as they were at one moment, whatever is written meanwhile, even by a transaction of this process that is
/// still open.
pub struct Snapshot {
    conn: Connection,
    // Last, so that the connection above is closed while the index still holds its lock.
    inner: Arc<Inner>,
}

impl Snapshot {
    /// The row of one path.
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be read, or is not what was written.
    pub fn row(&self, path: &RelPath) -> Result<Option<Row>, IndexError> {
        let found =
            find(&self.conn, path, &mut Summer::default()).map_err(|fault| fault.at("read", self.inner.dir()))?;
        Ok(found.map(|stored| stored.row))
    }
}

impl RowCursor {
    fn new(inner: Arc<Inner>, from: Vec<u8>, end: Option<Vec<u8>>) -> Result<Self, IndexError> {
        let conn = inner.snapshot()?;
        let (page, summer) = (Vec::new().into_iter(), Summer::default());
        let mut cursor = Self { conn, page, from, inclusive: true, end, exhausted: false, summer, inner };
        // The first read is what fixes the snapshot.
        cursor.fill()?;
        Ok(cursor)
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
        loop {
            if let Some(stored) = self.page.next() {
                return Ok(Some(stored));
            }
            if self.exhausted {
                return Ok(None);
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<(), IndexError> {
        let page = self.read_page().map_err(|fault| fault.at("read", self.inner.dir()))?;
        self.page = page.into_iter();
        Ok(())
    }

    fn read_page(&mut self) -> Result<Vec<Stored>, Fault> {
        let sql = if self.inclusive {
            "SELECT path, fact, hash, changed_in, sum FROM entries WHERE path >= ?1 ORDER BY path"
        } else {
            "SELECT path, fact, hash, changed_in, sum FROM entries WHERE path > ?1 ORDER BY path"
        };
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.query([&self.from])?;
        let mut page = Vec::with_capacity(PAGE_ROWS);
        let mut bytes = 0;
        while page.len() < PAGE_ROWS && bytes < PAGE_BYTES {
            let Some(row) = rows.next()? else {
                self.exhausted = true;
                break;
            };
            let key = blob(row, 0)?;
            // A B-tree whose inner pages are wrong can show a key twice or out of order.
            if key < &*self.from || (key == self.from && !self.inclusive) {
                return Err(Fault::Damaged("rows are out of order".to_owned()));
            }
            if self.end.as_deref().is_some_and(|end| key >= end) {
                self.exhausted = true;
                break;
            }
            bytes += key.len() + blob(row, 1)?.len();
            page.push(read_stored(row, &mut self.summer)?);
            self.from.clear();
            self.from.extend_from_slice(key);
            self.inclusive = false;
        }
        Ok(page)
    }
}

impl Index {
    /// The rows as they are now.
    ///
    /// # Errors
    /// [`IndexError`] if they cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, IndexError> {
        let snapshot = Snapshot { conn: self.inner.snapshot()?, inner: Arc::clone(&self.inner) };
        // The first read is what fixes it.
        snapshot.row(&RelPath::root())?;
        Ok(snapshot)
    }

    /// Every row in tree order, to be pulled; see [`RowCursor`].
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn cursor(&self) -> Result<RowCursor, IndexError> {
        RowCursor::new(self.inner.clone(), Vec::new(), None)
    }

    /// The row of `dir` and of everything beneath it, in tree order.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn cursor_beneath(&self, dir: &RelPath) -> Result<RowCursor, IndexError> {
        RowCursor::new(self.inner.clone(), dir.to_key(), end_of(dir))
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

    /// The row of one path.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn row(&self, path: &RelPath) -> Result<Option<Row>, IndexError> {
        self.read(|conn| Ok(find(conn, path, &mut Summer::default())?.map(|stored| stored.row)))
    }

    /// As [`Index::row`]; `None` also while somebody writes, who may take long.
    ///
    /// # Errors
    /// As [`Index::row`].
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

    /// What the hash of the tree needs of the entries directly in `dir`, in order of their names. Costs a look-up for
    /// each child directory, not for what lies beneath it. Several times as fast as reading rows, because sums are not
    /// checked and nothing is decoded: for rows that were read in this session. The index is locked meanwhile: `visit`
    /// must not call its methods.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn leaves_in(&self, dir: &RelPath, visit: &mut dyn FnMut(Leaf<'_>)) -> Result<(), IndexError> {
        self.read(|conn| leaves_in(conn, dir, visit))
    }

    /// All rows in tree order, as [`Index::leaves_in`] reads them. The index is locked meanwhile: `visit` must not call
    /// its methods.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn leaves(&self, visit: &mut dyn FnMut(Leaf<'_>)) -> Result<(), IndexError> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached(&format!("{COLUMNS} ORDER BY path"))?;
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

fn leaves_in(conn: &Connection, dir: &RelPath, visit: &mut dyn FnMut(Leaf<'_>)) -> Result<(), Fault> {
    let mut prefix = dir.to_key();
    if !dir.is_root() {
        prefix.push(0);
    }
    let end = end_of(dir);
    let mut statement = conn.prepare_cached(&format!("{COLUMNS} WHERE path >= ?1 ORDER BY path"))?;
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

/// Decodes a row of `entries` with the columns of [`COLUMNS`] after checking its sum.
pub(super) fn read_stored(row: &rusqlite::Row<'_>, summer: &mut Summer) -> Result<Stored, Fault> {
    let (key, fact, hash) = (blob(row, 0)?, blob(row, 1)?, blob(row, 2)?);
    let changed_in: i64 = row.get(3)?;
    let fields: [&[u8]; 4] = [key, fact, hash, &changed_in.to_le_bytes()];
    if summer.sum(Mark::Entry, &fields) != blob(row, 4)? {
        return Err(mismatch(key));
    }
    Ok(Stored { row: fact::decode(key, fact)?, hash: Digest(exactly(hash)?), changed_in: from_sql(changed_in)? })
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
