//! The index: what a tree held when it was last looked at, which versions were published, who acknowledged them.
//!
//! One SQLite database, the same on a master and on a replica. It is a cache of the truth on disk, except for lineage
//! and versions: deleted, rolled back or damaged it costs a scan, never a wrong replica. So every row carries its own
//! checksum, everything read is checked like a stranger's, and [`IndexError::Damaged`] is an ordinary answer, after
//! which [`Index::rebuild`] starts afresh.
//!
//! One connection writes, behind a mutex, and every change is one `BEGIN IMMEDIATE` transaction; a thread of its own
//! with a channel would give the same order of events with one more queue to drain at the end. Cursors own connections
//! and read snapshots. All calls block: roles make them where blocking is allowed.
//!
//! Not for use over a network file system (POSIX locks and shared memory must work), and never inside a tree that is
//! pushed.

mod additions;
mod contents;
mod damage;
mod error;
mod fact;
mod rows;
mod schema;
mod stand;
mod sums;
mod versions;
mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use rusqlite::Connection;

pub use damage::Stamp;
pub use error::IndexError;
pub use fact::Shown;
pub use rows::{Encoded, Leaf, RowCursor, Rows, Snapshot, Stored};
pub use stand::{Intent, Stand};
pub use versions::{Ack, Change, ChangeCursor, Counts, Next, Published};
pub use writer::{Batch, Commit, StandChange, Writer};

use damage::{Files, Found, Holder, Lock};
use error::Fault;
use schema::Look;

/// Rows written after which the log is folded into the database without being asked, to bound its size.
const CHECKPOINT_ROWS: usize = 100_000;

/// As how many rows a transaction counts at the least: it takes whole pages of the log, some ten for a single row of a version.
const COMMIT_ROWS: usize = 200;

/// An open index. Clones are handles to the same one; it is closed, and its lock let go, with the last of them and of
/// its cursors.
#[derive(Clone)]
pub struct Index {
    inner: Arc<Inner>,
}

/// An index that has just been opened.
pub struct Opened {
    /// The index.
    pub index: Index,
    /// Why the index that was there had to be given up, if it had to.
    pub rebuilt: Option<String>,
    /// Whether it starts empty: there was none, or it had to be given up.
    pub fresh: bool,
}

struct Inner {
    /// `None` for one in memory.
    files: Option<Files>,
    /// A connection that read a snapshot and may read another one: opening one costs as much as reading hundreds of rows.
    // Before the writer, which folds in the log if it is closed last.
    idle: Mutex<Option<Connection>>,
    writer: Mutex<Connection>,
    /// How often the database was replaced.
    rebuilt: AtomicUsize,
    /// Rows written since the log was last folded in.
    unfolded: AtomicUsize,
    // After the connection, so that it is closed under the lock. Who took the lock before may hold it, too.
    _lock: Option<Arc<Lock>>,
}

/// The lock of an index that is not open yet.
pub struct Locked {
    files: Files,
    lock: Arc<Lock>,
}

impl Locked {
    /// Opens it, as [`Index::open`] does. The lock is let go with this and the index.
    ///
    /// # Errors
    /// Those of [`Index::open`] but [`IndexError::Busy`]; it may be tried again.
    pub fn open(&self) -> Result<Opened, IndexError> {
        Index::open_locked(&self.files, Arc::clone(&self.lock))
    }

    /// Bytes of the index and its log, for an estimate of what such an index needs.
    pub fn bytes(&self) -> u64 {
        self.files.bytes()
    }
}

impl Index {
    /// Opens the index in the directory `dir`, made if absent, waiting up to `wait` for another process that has it
    /// open. A database that is damaged, foreign or of a newer program is kept aside as `index.db.damaged` in place of
    /// an earlier one, and the index starts afresh.
    ///
    /// # Errors
    /// [`IndexError::Busy`] after `wait`; others if files cannot be made or read.
    pub fn open(dir: &Path, wait: Duration) -> Result<Opened, IndexError> {
        Self::lock(dir, wait)?.open()
    }

    /// Takes the lock of the index in the directory `dir`, made if absent, waiting up to `wait` for another process that
    /// has it open: for whoever has something to do before it is opened.
    ///
    /// # Errors
    /// [`IndexError::Busy`] after `wait`; [`IndexError::File`] if the directory or the lock cannot be made.
    pub fn lock(dir: &Path, wait: Duration) -> Result<Locked, IndexError> {
        let files = Files::new(dir);
        let lock = files.lock(wait)?;
        Ok(Locked { files, lock: Arc::new(lock) })
    }

    fn open_locked(files: &Files, lock: Arc<Lock>) -> Result<Opened, IndexError> {
        let dir = files.dir.as_path();
        let found = files.found()?;
        let opened = match found {
            Found::Database => open_writer(files),
            Found::Nothing => create(files),
            Found::Remains => Err(Fault::Damaged("the database is empty or gone".to_owned())),
        };
        let (conn, rebuilt) = match opened {
            Ok(conn) => (conn, None),
            Err(Fault::Damaged(reason)) => {
                files.move_aside()?;
                (create(files).map_err(|fault| fault.at("make", dir))?, Some(reason))
            }
            Err(fault) => return Err(fault.at("open", dir)),
        };
        let fresh = rebuilt.is_some() || found != Found::Database;
        let index = Self { inner: Inner::new(Some(files.clone()), conn, Some(lock)) };
        Ok(Opened { index, rebuilt, fresh })
    }

    /// A copy in memory of the index in `dir`, for a run that must change nothing at all: no file is made or written,
    /// not even a lock. Empty if there is no index or it is damaged. An index that is in use is copied as it is.
    ///
    /// # Errors
    /// [`IndexError`] if there is an index that cannot be read.
    pub fn scratch_copy(dir: &Path) -> Result<Opened, IndexError> {
        let files = Files::new(dir);
        let found = files.found()?;
        let (copied, found_any) = if found == Found::Database {
            (look(&files, schema::copy_to_memory), true)
        } else {
            (schema::open_memory(), false)
        };
        let (conn, rebuilt) = match copied {
            Ok(conn) => (conn, None),
            Err(Fault::Damaged(reason)) => {
                (schema::open_memory().map_err(|fault| fault.at("copy", dir))?, Some(reason))
            }
            Err(fault) => return Err(fault.at("copy", dir)),
        };
        let fresh = rebuilt.is_some() || !found_any;
        Ok(Opened { index: Self { inner: Inner::new(None, conn, None) }, rebuilt, fresh })
    }

    /// The index in `dir` for who only reads: itself, which nobody else opens meanwhile. Where that cannot be, on a disk that is
    /// full for one, or if a crash has left it or it is damaged, as [`Index::scratch_copy`], which takes as much memory as the index.
    ///
    /// # Errors
    /// [`IndexError`] if there is an index that cannot be read.
    pub fn open_to_read(dir: &Path, wait: Duration) -> Result<Self, IndexError> {
        let files = Files::new(dir);
        if files.found()? == Found::Database
            && let Ok(lock) = files.lock(wait)
            // Whoever opens it next is to see what a crash has left.
            && !files.has_log()?
            && let Ok(conn) = open_writer(&files)
            && conn.pragma_update(None, "query_only", true).is_ok()
        {
            return Ok(Self { inner: Inner::new(Some(files), conn, Some(Arc::new(lock))) });
        }
        Ok(Self::scratch_copy(dir)?.index)
    }

    /// Where the replica stands whose index is in `dir`, read without copying it. As [`Index::scratch_copy`] it makes and
    /// writes no file.
    ///
    /// # Errors
    /// [`IndexError`] if there is an index that cannot be read, or is damaged.
    pub fn peek_stand(dir: &Path) -> Result<Option<Stand>, IndexError> {
        let files = Files::new(dir);
        if files.found()? != Found::Database {
            return Ok(None);
        }
        look(&files, |conn| schema::check(conn).and_then(|()| stand::find(conn))).map_err(|fault| fault.at("read", dir))
    }

    /// What tells whether somebody else wrote the index in `dir` while it was closed; `None` if there is none.
    pub fn stamp(dir: &Path) -> Option<Stamp> {
        Files::new(dir).stamp()
    }

    /// A copy of this index in memory, as it is now.
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be read.
    pub fn to_scratch(&self) -> Result<Self, IndexError> {
        let conn = self.read(schema::copy_to_memory)?;
        Ok(Self { inner: Inner::new(None, conn, None) })
    }

    /// An empty index in memory.
    ///
    /// # Errors
    /// [`IndexError`] if SQLite has no memory for it.
    pub fn in_memory() -> Result<Self, IndexError> {
        let conn = schema::open_memory().map_err(|fault| fault.at("make", Path::new("(memory)")))?;
        Ok(Self { inner: Inner::new(None, conn, None) })
    }

    /// Starts afresh in place after [`IndexError::Damaged`]: the database is kept aside, all clones of this handle see
    /// an empty index, and cursors go on with what they were reading.
    ///
    /// # Errors
    /// [`IndexError`] if files cannot be moved or made; the index is unusable then.
    pub fn rebuild(&self) -> Result<(), IndexError> {
        let mut writer = self.inner.writer();
        let failed = |fault: Fault| fault.at("rebuild", self.inner.dir());
        // Closes the old connection, because its files are about to be moved.
        *writer = schema::open_memory().map_err(failed)?;
        self.inner.rebuilt.fetch_add(1, Ordering::Relaxed);
        drop(self.inner.idle().take());
        if let Some(files) = &self.inner.files {
            files.move_aside()?;
            *writer = create(files).map_err(failed)?;
        }
        Ok(())
    }

    /// Where the index lives; `None` for one in memory.
    pub fn dir(&self) -> Option<&Path> {
        self.inner.files.as_ref().map(|files| files.dir.as_path())
    }

    /// Where a damaged database is kept aside; `None` for one in memory.
    pub fn damaged_path(&self) -> Option<PathBuf> {
        self.inner.files.as_ref().map(Files::aside)
    }

    /// Runs a query on the writing connection.
    fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T, Fault>) -> Result<T, IndexError> {
        query(&self.inner.writer()).map_err(|fault| fault.at("read", self.inner.dir()))
    }

    /// Folds the log into the database as far as no reader is in the way.
    fn checkpoint(&self) -> Result<(), IndexError> {
        let conn = self.inner.writer();
        self.inner.fold(&conn).map_err(|fault| fault.at("write", self.inner.dir()))
    }
}

impl Inner {
    fn new(files: Option<Files>, conn: Connection, lock: Option<Arc<Lock>>) -> Arc<Self> {
        Arc::new(Self {
            files,
            writer: Mutex::new(conn),
            idle: Mutex::default(),
            rebuilt: AtomicUsize::new(0),
            unfolded: AtomicUsize::new(0),
            _lock: lock,
        })
    }

    /// The writing connection. A panic in a transaction has rolled it back, so a poisoned lock is in order.
    fn writer(&self) -> MutexGuard<'_, Connection> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, unless it is in use.
    fn writer_if_free(&self) -> Option<MutexGuard<'_, Connection>> {
        match self.writer.try_lock() {
            Ok(conn) => Some(conn),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn dir(&self) -> &Path {
        rows::dir_of(self.files.as_ref())
    }

    fn idle(&self) -> MutexGuard<'_, Option<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection of its own with a read transaction begun; the first read fixes what it sees. An index in memory
    /// cannot be shared by connections and is copied.
    fn snapshot(self: &Arc<Self>) -> Result<Reader, IndexError> {
        let rebuilt = self.rebuilt.load(Ordering::Relaxed);
        let idle = self.idle().take();
        let conn = match (idle, &self.files) {
            (Some(idle), _) => Ok(idle),
            (None, Some(files)) => schema::open_reader(&files.db),
            (None, None) => schema::copy_to_memory(&self.writer()),
        };
        let begun = conn.and_then(|conn| {
            conn.execute_batch("BEGIN")?;
            Ok(conn)
        });
        let conn = begun.map_err(|fault| fault.at("read", self.dir()))?;
        Ok(Reader { conn: Some(conn), rebuilt, inner: Arc::clone(self) })
    }

    /// Notes a transaction that wrote this many rows, and bounds the log.
    fn grown(&self, conn: &Connection, rows: usize) -> Result<(), Fault> {
        let rows = rows.max(COMMIT_ROWS);
        if self.unfolded.fetch_add(rows, Ordering::Relaxed) + rows > CHECKPOINT_ROWS {
            match self.fold(conn) {
                // What was written is in the log, and read from there. More is folded in when there is room again.
                Err(Fault::Sqlite(error)) if error::is_full(&error) => {}
                folded => folded?,
            }
        }
        Ok(())
    }

    fn fold(&self, conn: &Connection) -> Result<(), Fault> {
        self.unfolded.store(0, Ordering::Relaxed);
        // The answer is a row with how far it got; readers in the way are no error.
        conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        Ok(())
    }
}

/// A connection that reads a snapshot, and is kept for the next when that is over.
struct Reader {
    /// Until this is dropped.
    conn: Option<Connection>,
    /// [`Inner::rebuilt`] when it was made: the files may be others by now.
    rebuilt: usize,
    // Last, so that the connection above is closed while the index still holds its lock.
    inner: Arc<Inner>,
}

impl Reader {
    fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T, Fault>) -> Result<T, IndexError> {
        let Some(conn) = &self.conn else {
            return Err(Fault::Damaged("the snapshot is over".to_owned()).at("read", self.dir()));
        };
        query(conn).map_err(|fault| fault.at("read", self.dir()))
    }

    fn dir(&self) -> &Path {
        self.inner.dir()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let Some(conn) = self.conn.take() else { return };
        // What is in memory is a copy of what was then.
        if self.inner.files.is_none() || conn.execute_batch("ROLLBACK").is_err() {
            return;
        }
        let mut idle = self.inner.idle();
        if idle.is_none() && self.inner.rebuilt.load(Ordering::Relaxed) == self.rebuilt {
            *idle = Some(conn);
        }
    }
}

/// Opens a database that is there. One that was not closed in order is looked through first: a log that belongs to
/// another copy of the database leaves a tree of pages that never were one, and writing into it spreads the damage.
fn open_writer(files: &Files) -> Result<Connection, Fault> {
    let crashed = files.has_log()?;
    let conn = schema::open_writer(&files.db, false)?;
    if crashed {
        schema::check_structure(&conn)?;
    }
    Ok(conn)
}

/// Makes a new database where there is none, or an empty file.
fn create(files: &Files) -> Result<Connection, Fault> {
    files.create()?;
    schema::open_writer(&files.db, true)
}

/// How often a look begins anew when the process that had the index open closes it at that moment.
const LOOKS: usize = 5;

/// Reads a database on disk, leaving no trace.
fn look<T>(files: &Files, read: impl Fn(&Connection) -> Result<T, Fault>) -> Result<T, Fault> {
    for _ in 1..LOOKS {
        // Its log and shared memory go when the holder closes it; the next look then finds it closed.
        match look_once(files, &read) {
            Err((Look::Live, Fault::Sqlite(_))) => {}
            looked => return looked.map_err(|(_, fault)| fault),
        }
    }
    look_once(files, &read).map_err(|(_, fault)| fault)
}

fn look_once<T>(files: &Files, read: &dyn Fn(&Connection) -> Result<T, Fault>) -> Result<T, (Look, Fault)> {
    let held = |error: IndexError| (Look::Closed, Fault::from(error));
    // Kept until all is read, so that nobody opens the index meanwhile.
    let holder = files.holder().map_err(held)?;
    let how = match &holder {
        Holder::Somebody => Look::Live,
        Holder::Nobody { .. } if files.has_log().map_err(held)? => Look::Crashed,
        Holder::Nobody { .. } => Look::Closed,
    };
    let found = schema::open_looking(&files.db, how).and_then(|source| read(&source));
    drop(holder);
    found.map_err(|fault| (how, fault))
}
