//! Single values: where a replica stands, what it is about to touch, and what the roles keep.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::error::{Fault, IndexError};
use super::rows::blob;
use super::sums::{Mark, Summer, exactly};
use super::{Index, fact};
use crate::hash::Digest;
use crate::manifest::{Lineage, VersionId};
use crate::path::RelPath;

const STAND: &str = "index.stand";
const INTENT: &str = "index.intent";

/// Where a replica is: the version it holds, and the root computed from its own rows when it got there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stand {
    /// The version's id.
    pub version: VersionId,
    /// Its number, for people.
    pub number: u64,
    /// The lineage the number belongs to.
    pub lineage: Lineage,
    /// The root of the replica's own rows.
    pub root: Digest,
}

/// What a publish is about to touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The version it leads to.
    pub target: VersionId,
    /// Every name it touches, and their parents; in tree order when read back.
    pub paths: Vec<RelPath>,
}

impl Index {
    /// Where the replica stands; `None` if nowhere or in between.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn stand(&self) -> Result<Option<Stand>, IndexError> {
        self.read(find)
    }

    /// Says where the replica stands, durably.
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be written.
    pub fn set_stand(&self, stand: Option<&Stand>) -> Result<(), IndexError> {
        self.commit_with(0, |commit| commit.set_stand(stand))
    }

    /// Records durably what is about to be touched; the stand is none from here on.
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be written.
    pub fn set_intent(&self, intent: &Intent) -> Result<(), IndexError> {
        self.commit_with(0, |commit| commit.set_intent(intent))
    }

    /// The intent of a publish that was cut off. It stays until [`super::Commit::clear_intent`], so that a second
    /// crash while it is being looked at loses nothing.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn intent(&self) -> Result<Option<Intent>, IndexError> {
        self.read(find_intent)
    }

    /// A value that a role keeps.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        self.read(|conn| meta(conn, key))
    }

    /// Keeps a value for a role durably, or forgets it.
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be written.
    pub fn set_meta(&self, key: &str, value: Option<&[u8]>) -> Result<(), IndexError> {
        self.commit_with(0, |commit| commit.set_meta(key, value))
    }
}

pub(super) fn find(conn: &Connection) -> Result<Option<Stand>, Fault> {
    meta(conn, STAND)?.map(|value| decode_stand(&value)).transpose()
}

pub(super) fn meta(conn: &Connection, key: &str) -> Result<Option<Vec<u8>>, Fault> {
    let mut statement = conn.prepare_cached("SELECT value, sum FROM meta WHERE key = ?1")?;
    let mut rows = statement.query([key])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let value = blob(row, 0)?;
    Summer::default().check(Mark::Meta, &[key.as_bytes(), value], blob(row, 1)?, key)?;
    Ok(Some(value.to_vec()))
}

/// A number kept as a value; 0 if there is none.
pub(super) fn number(conn: &Connection, key: &str) -> Result<u64, Fault> {
    Ok(match meta(conn, key)? {
        None => 0,
        Some(value) => u64::from_le_bytes(exactly(&value)?),
    })
}

pub(super) fn put_meta(conn: &Connection, key: &str, value: Option<&[u8]>, summer: &mut Summer) -> Result<(), Fault> {
    match value {
        None => conn.prepare_cached("DELETE FROM meta WHERE key = ?1")?.execute([key])?,
        Some(value) => {
            let sum = summer.sum(Mark::Meta, &[key.as_bytes(), value]);
            conn.prepare_cached("INSERT OR REPLACE INTO meta (key, value, sum) VALUES (?1, ?2, ?3)")?
                .execute(params![key, value, sum])?
        }
    };
    Ok(())
}

pub(super) fn put_stand(conn: &Connection, stand: Option<&Stand>, summer: &mut Summer) -> Result<(), Fault> {
    let value = stand.map(|stand| {
        let number = stand.number.to_le_bytes();
        [&stand.version.0.0[..], &number, &stand.lineage.0, &stand.root.0].concat()
    });
    put_meta(conn, STAND, value.as_deref(), summer)
}

fn decode_stand(value: &[u8]) -> Result<Stand, Fault> {
    let value: [u8; 88] = exactly(value)?;
    Ok(Stand {
        version: VersionId(Digest(exactly(&value[..32])?)),
        number: u64::from_le_bytes(exactly(&value[32..40])?),
        lineage: Lineage(exactly(&value[40..56])?),
        root: Digest(exactly(&value[56..])?),
    })
}

pub(super) fn put_intent(conn: &Connection, intent: &Intent, summer: &mut Summer) -> Result<(), Fault> {
    clear_intent(conn)?;
    put_stand(conn, None, summer)?;
    let mut statement = conn.prepare_cached("INSERT OR REPLACE INTO intent (path, sum) VALUES (?1, ?2)")?;
    for path in &intent.paths {
        let key = path.to_key();
        let sum = summer.sum(Mark::Intent, &[&key]);
        statement.execute(params![key, sum])?;
    }
    let count: i64 = conn.query_row("SELECT count(*) FROM intent", [], |row| row.get(0))?;
    // The number of paths goes with the target, so that a list that lost some is noticed.
    put_meta(conn, INTENT, Some(&[&intent.target.0.0[..], &count.to_le_bytes()].concat()), summer)
}

pub(super) fn clear_intent(conn: &Connection) -> Result<(), Fault> {
    conn.execute("DELETE FROM intent", [])?;
    conn.execute("DELETE FROM meta WHERE key = ?1", [INTENT])?;
    Ok(())
}

fn find_intent(conn: &Connection) -> Result<Option<Intent>, Fault> {
    let Some(value) = meta(conn, INTENT)? else {
        let orphan = conn.query_row("SELECT 1 FROM intent LIMIT 1", [], |_| Ok(())).optional()?;
        return match orphan {
            None => Ok(None),
            Some(()) => Err(Fault::Damaged("paths of an intent without its target".to_owned())),
        };
    };
    let value: [u8; 40] = exactly(&value)?;
    let mut intent = Intent { target: VersionId(Digest(exactly(&value[..32])?)), paths: Vec::new() };
    let mut summer = Summer::default();
    let mut statement = conn.prepare_cached("SELECT path, sum FROM intent ORDER BY path")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let key = blob(row, 0)?;
        summer.check(Mark::Intent, &[key], blob(row, 1)?, "a path of the intent")?;
        intent.paths.push(fact::path_of(key)?);
    }
    if intent.paths.len() as u64 != u64::from_le_bytes(exactly(&value[32..])?) {
        return Err(Fault::Damaged("paths of the intent are missing".to_owned()));
    }
    Ok(Some(intent))
}
