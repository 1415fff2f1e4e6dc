//! Opening connections: settings, migrations, and the check that a database is ours and whole enough to read.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, MAIN_DB, OpenFlags, ffi};

use super::error::Fault;

/// Marks the file as ours (`sync` in ASCII); see <https://www.sqlite.org/pragma.html#pragma_application_id>.
const APPLICATION_ID: i32 = 0x7379_6e63;

/// Each migration takes the schema one version further. Released ones are never edited.
const MIGRATIONS: [&str; 3] = [
    include_str!("schema/0001_index.sql"),
    include_str!("schema/0002_additions.sql"),
    include_str!("schema/0003_acks.sql"),
];

/// How long a statement waits for a reader or writer of another connection.
const BUSY: Duration = Duration::from_secs(5);

/// Page cache of the writing connection in KiB. Larger transactions spill into the log, so memory stays flat.
const WRITER_CACHE_KIB: i32 = 4 << 10;

/// The same for a connection that reads rows in order, which needs little more than the path to a leaf.
const READER_CACHE_KIB: i32 = 1 << 10;

const FLAGS: OpenFlags = OpenFlags::SQLITE_OPEN_NO_MUTEX.union(OpenFlags::SQLITE_OPEN_EXRESCODE);

/// Opens the database at `path` for writing and brings its schema up to date. `new` says that the file was just made;
/// else it must be a database of ours already.
pub(super) fn open_writer(path: &Path, new: bool) -> Result<Connection, Fault> {
    let conn = Connection::open_with_flags(path, FLAGS | OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    if conn.is_readonly(MAIN_DB)? {
        // SQLite falls back to reading when a file may not be written.
        return Err(Fault::Sqlite(refused(ffi::SQLITE_READONLY, "the database may not be written")));
    }
    harden(&conn, WRITER_CACHE_KIB)?;
    if user_version(&conn)? == 0 && !new {
        // SQLite takes a file below the size of its header for an empty database.
        return Err(Fault::Damaged("it is no database of ours, or was never finished".to_owned()));
    }
    if conn.is_readonly(MAIN_DB)? {
        return Err(Fault::Damaged("its header names a format that this program cannot write".to_owned()));
    }
    let mode: String = conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        let why = "the file system of the state directory has no shared memory for write-ahead logging";
        return Err(Fault::Sqlite(refused(ffi::SQLITE_CANTOPEN, why)));
    }
    // Checkpoints come from `Index::tidy` and from closing, not from the middle of a commit somebody waits for.
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    migrate(&conn)?;
    check(&conn)?;
    Ok(conn)
}

fn refused(code: i32, why: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(why.to_owned()))
}

fn user_version(conn: &Connection) -> Result<usize, Fault> {
    let version: u32 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok(version as usize)
}

/// A second connection to the same database that sees a stable snapshot while the first one writes.
pub(super) fn open_reader(path: &Path) -> Result<Connection, Fault> {
    let conn = Connection::open_with_flags(path, FLAGS | OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    harden(&conn, READER_CACHE_KIB)?;
    conn.pragma_update(None, "query_only", true)?;
    // Only the writer folds the log into the database; a reader that outlives a rebuild must leave the new files alone.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(conn)
}

/// A new database in memory, with our schema.
pub(super) fn open_memory() -> Result<Connection, Fault> {
    let conn = bare_memory()?;
    migrate(&conn)?;
    Ok(conn)
}

/// A copy of all of `source` in memory.
pub(super) fn copy_to_memory(source: &Connection) -> Result<Connection, Fault> {
    let mut copy = bare_memory()?;
    rusqlite::backup::Backup::new(source, &mut copy)?.run_to_completion(1024, Duration::ZERO, None)?;
    // What this program would do to the index itself.
    migrate(&copy)?;
    check(&copy)?;
    Ok(copy)
}

fn bare_memory() -> Result<Connection, Fault> {
    let conn = Connection::open_in_memory_with_flags(
        FLAGS | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_MEMORY,
    )?;
    harden(&conn, WRITER_CACHE_KIB)?;
    Ok(conn)
}

/// How a database that is only to be looked at is opened without writing a byte beside it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look {
    /// Another process has it open, so that its log and shared memory exist and are in order.
    Live,
    /// Nobody has it open, and there is no log.
    Closed,
    /// Nobody has it open, and a crash left a log that must be read with it.
    Crashed,
}

/// Opens the database at `path` to look at it, changing nothing on disk.
pub(super) fn open_looking(path: &Path, look: Look) -> Result<Connection, Fault> {
    let how = match look {
        Look::Live => "mode=ro",
        // Promises SQLite that nobody writes, upon which it makes no log and no shared memory.
        Look::Closed => "mode=ro&immutable=1",
        // An exclusive connection keeps the log's index in memory instead of a file. The lock that it would need cannot
        // be had on a descriptor that only reads, so this takes none; our own lock keeps others out.
        Look::Crashed => "mode=ro&vfs=unix-none",
    };
    let flags = FLAGS | OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let conn = Connection::open_with_flags(uri(path, how), flags)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    if matches!(look, Look::Crashed) {
        // Before anything is read: without shared memory, the log cannot be opened in any other mode.
        conn.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    }
    harden(&conn, READER_CACHE_KIB)?;
    Ok(conn)
}

/// <https://www.sqlite.org/uri.html>: everything but plain characters is escaped, so that any path may be named.
fn uri(path: &Path, parameters: &str) -> String {
    let mut uri = "file:".to_owned();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'-' | b'_') {
            uri.push(char::from(byte));
        } else {
            let _ = write!(uri, "%{byte:02x}");
        }
    }
    uri.push('?');
    uri.push_str(parameters);
    uri
}

/// Settings that make wrong bytes an error rather than a surprise, and bound memory.
fn harden(conn: &Connection, cache_kib: i32) -> Result<(), Fault> {
    conn.busy_timeout(BUSY)?;
    conn.set_prepared_statement_cache_capacity(64);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    conn.pragma_update(None, "cell_size_check", true)?;
    // With a mapped file, a truncated database would be a SIGBUS instead of an error.
    conn.pragma_update(None, "mmap_size", 0)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    conn.pragma_update(None, "cache_size", -cache_kib)?;
    Ok(())
}

/// Brings a database up to date; a new one is made whole in one transaction.
fn migrate(conn: &Connection) -> Result<(), Fault> {
    let version = user_version(conn)?;
    if version == MIGRATIONS.len() {
        return Ok(());
    }
    let pending = MIGRATIONS
        .get(version..)
        .ok_or_else(|| Fault::Damaged(format!("its format {version} is newer than this program")))?;
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if version == 0 && tables > 0 {
        return Err(Fault::Damaged("it is the database of something else".to_owned()));
    }
    let tx = rusqlite::Transaction::new_unchecked(conn, rusqlite::TransactionBehavior::Immediate)?;
    for sql in pending {
        tx.execute_batch(sql)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", MIGRATIONS.len() as u32)?;
    tx.commit()?;
    Ok(())
}

/// Whether a database is ours and has exactly our schema. Rows are checked one by one when they are read.
pub(super) fn check(conn: &Connection) -> Result<(), Fault> {
    let id: i32 = conn.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if id != APPLICATION_ID || user_version(conn)? != MIGRATIONS.len() {
        return Err(Fault::Damaged("its header is not that of an index of this format".to_owned()));
    }
    // A flipped bit in the stored schema would make SQLite read rows by other rules than they were written by.
    if objects(conn)? != objects(&open_memory()?)? {
        return Err(Fault::Damaged("its schema is not ours".to_owned()));
    }
    Ok(())
}

/// Whether every page is where it belongs. Reads the whole database, without the values.
pub(super) fn check_structure(conn: &Connection) -> Result<(), Fault> {
    let answer: String = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if answer == "ok" { Ok(()) } else { Err(Fault::Damaged(answer)) }
}

type Object = (String, String, String, Option<String>);

fn objects(conn: &Connection) -> Result<Vec<Object>, Fault> {
    let mut statement = conn.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name")?;
    let objects = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    Ok(objects.collect::<Result<_, _>>()?)
}
