//! History: lineages, versions, what changed since one, and what replicas acknowledged.

use std::vec;

use rusqlite::{Connection, params};

use super::error::{Fault, IndexError, from_sql, to_sql};
use super::rows::{blob, find};
use super::stand::{self, meta, put_meta};
use super::sums::{Mark, Summer, exactly};
use super::{Index, Snapshot, fact};
use crate::hash::Digest;
use crate::manifest::{Lineage, Row, Time, Version, VersionId};
use crate::path::RelPath;

const LINEAGE: &str = "index.lineage";

/// The lowest version number whose changes are all still known.
const OLDEST_DIFFABLE: &str = "index.oldest_diffable";

/// How many tombstones are kept.
pub(super) const TOMBSTONES: u64 = 200_000;

/// How many versions are kept, besides those that a replica acknowledged last.
pub(super) const VERSIONS: u64 = 100_000;

/// Of how many versions all acknowledgements are kept.
pub(super) const ACKS: u64 = 10_000;

/// What one version did to the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries in all.
    pub entries: u64,
    /// Entries that came.
    pub created: u64,
    /// Entries that changed in any way.
    pub updated: u64,
    /// Entries that went.
    pub deleted: u64,
}

/// A version in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The version.
    pub version: Version,
    /// What it did.
    pub counts: Counts,
}

/// What a replica said it holds, durable and indexed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The replica, as text that a role chooses.
    pub replica: String,
    /// The version it acknowledged.
    pub version: VersionId,
    /// That version's number.
    pub number: u64,
    /// The root of its own rows.
    pub root: Digest,
    /// When the acknowledgement came, by the master's clock.
    pub time: Time,
    /// Whether that root is the version's.
    pub exact: bool,
}

/// What the next version of this index is called, but for its root and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// The lineage.
    pub lineage: Lineage,
    /// One more than the highest number there is.
    pub number: u64,
    /// The version before, or what the lineage grew from.
    pub parent: Option<VersionId>,
}

/// One difference between two versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The entry came or changed.
    Upsert(Row),
    /// The entry went.
    Delete(RelPath),
}

/// Changes since a version in tree order, pulled one at a time, as of the moment it was made. Memory: the changed
/// paths.
pub struct ChangeCursor {
    snapshot: Snapshot,
    changes: vec::IntoIter<(RelPath, Option<u64>)>,
    summer: Summer,
}

impl ChangeCursor {
    /// How many changes are left.
    pub fn remaining(&self) -> usize {
        self.changes.len()
    }

    /// The next change in tree order.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    #[allow(clippy::should_implement_trait, reason = "fallible iteration: `?` inside `while let` is the use")]
    pub fn next(&mut self) -> Result<Option<Change>, IndexError> {
        Ok(self.next_numbered()?.map(|(change, _)| change))
    }

    /// The same with the version that it came with, the last one that changed the path.
    ///
    /// # Errors
    /// As [`ChangeCursor::next`].
    pub fn next_numbered(&mut self) -> Result<Option<(Change, u64)>, IndexError> {
        let Some((path, gone)) = self.changes.next() else { return Ok(None) };
        if let Some(version) = gone {
            return Ok(Some((Change::Delete(path), version)));
        }
        let found = self.snapshot.read(|conn| find(conn, &path, &mut self.summer))?;
        match found {
            Some(stored) => Ok(Some((Change::Upsert(stored.row), stored.changed_in))),
            None => Err(IndexError::Damaged(format!("the row of the change to {path} is missing"))),
        }
    }
}

impl Index {
    /// The lineage that versions of this index belong to; `None` before the first was minted.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn lineage(&self) -> Result<Option<Lineage>, IndexError> {
        self.read(|conn| Ok(minted(conn)?.map(|(lineage, _)| lineage)))
    }

    /// Begins a lineage, durably; see [`super::Commit::mint_lineage`].
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be written.
    pub fn mint_lineage(&self, random: [u8; 16], parent: Option<VersionId>) -> Result<Lineage, IndexError> {
        self.commit_with(0, |commit| commit.mint_lineage(random, parent))
    }

    /// What the next version is called; `None` before a lineage was minted.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn next_version(&self) -> Result<Option<Next>, IndexError> {
        self.read(|conn| {
            let Some((lineage, origin)) = minted(conn)? else { return Ok(None) };
            let latest = latest(conn)?.map(|published| published.version);
            let parent = latest.as_ref().filter(|version| version.lineage == lineage).map(Version::id).or(origin);
            Ok(Some(Next { lineage, number: latest.map_or(0, |version| version.number) + 1, parent }))
        })
    }

    /// The version published last.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn latest_version(&self) -> Result<Option<Published>, IndexError> {
        self.read(latest)
    }

    /// The version with this id, if it is in the history.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn version(&self, id: VersionId) -> Result<Option<Published>, IndexError> {
        self.read(|conn| with_id(conn, id))
    }

    /// The whole history, oldest first.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn versions(&self) -> Result<Vec<Published>, IndexError> {
        self.read(|conn| published(conn, "ORDER BY number", &[]))
    }

    /// What changed since version `number` of this history, in tree order; `None` if some of it has been forgotten.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn changes_since(&self, number: u64) -> Result<Option<ChangeCursor>, IndexError> {
        self.begin_snapshot()?.changes_since(number)
    }

    /// Of each replica, the acknowledgement of the last version that it said to hold exactly.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn last_acks(&self) -> Result<Vec<Ack>, IndexError> {
        // With `max`, SQLite takes the other columns from the row that has it.
        self.read(|conn| acks(conn, "max(number)", "WHERE exact = 1 GROUP BY replica", []))
    }

    /// Every acknowledgement, by replica and then by version number.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn acks(&self) -> Result<Vec<Ack>, IndexError> {
        self.read(|conn| acks(conn, "number", "", []))
    }

    /// Records what replicas acknowledged, durably. What is known stays as it was, with the time when it was told first.
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be written.
    pub fn record_acks(&self, acks: &[Ack]) -> Result<(), IndexError> {
        self.commit_with(0, |commit| commit.record_acks(acks))
    }
}

impl Snapshot {
    /// As [`Index::latest_version`].
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn latest_version(&self) -> Result<Option<Published>, IndexError> {
        self.read(latest)
    }

    /// As [`Index::version`].
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn version(&self, id: VersionId) -> Result<Option<Published>, IndexError> {
        self.read(|conn| with_id(conn, id))
    }

    /// As [`Index::changes_since`].
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn changes_since(&self, number: u64) -> Result<Option<ChangeCursor>, IndexError> {
        let changes = self.read(|conn| changed_paths(conn, number))?;
        let (snapshot, summer) = (self.clone(), Summer::default());
        Ok(changes.map(|changes| ChangeCursor { snapshot, changes: changes.into_iter(), summer }))
    }
}

pub(super) fn mint(
    conn: &Connection,
    random: [u8; 16],
    parent: Option<VersionId>,
    summer: &mut Summer,
) -> Result<Lineage, Fault> {
    let parent = parent.map_or(Vec::new(), |VersionId(id)| id.0.to_vec());
    put_meta(conn, LINEAGE, Some(&[&random[..], &parent].concat()), summer)?;
    Ok(Lineage(random))
}

fn minted(conn: &Connection) -> Result<Option<(Lineage, Option<VersionId>)>, Fault> {
    let Some(value) = meta(conn, LINEAGE)? else { return Ok(None) };
    let (lineage, parent) = value.split_at(value.len().min(16));
    let parent = if parent.is_empty() { None } else { Some(VersionId(Digest(exactly(parent)?))) };
    Ok(Some((Lineage(exactly(lineage)?), parent)))
}

fn latest(conn: &Connection) -> Result<Option<Published>, Fault> {
    Ok(published(conn, "ORDER BY number DESC LIMIT 1", &[])?.pop())
}

fn with_id(conn: &Connection, id: VersionId) -> Result<Option<Published>, Fault> {
    Ok(published(conn, "WHERE id = ?1", &[&id.0.0])?.pop())
}

/// The sum of a version's row. The id stands for lineage, number, parent and root, which are checked against it.
fn version_sum(version: &Version, counts: &Counts, summer: &mut Summer) -> [u8; 8] {
    let counts = [counts.entries, counts.created, counts.updated, counts.deleted].map(u64::to_le_bytes);
    let time = (version.time.sec.to_le_bytes(), version.time.nsec.to_le_bytes());
    summer.sum(Mark::Version, &[&version.id().0.0, &time.0, &time.1, counts.as_flattened()])
}

pub(super) fn add(conn: &Connection, version: &Version, counts: &Counts, summer: &mut Summer) -> Result<(), Fault> {
    let latest: Option<i64> = conn.query_row("SELECT max(number) FROM versions", [], |row| row.get(0))?;
    let latest = from_sql(latest.unwrap_or(0))?;
    if version.number <= latest {
        return Err(IndexError::Order { number: version.number, latest }.into());
    }
    let sum = version_sum(version, counts, summer);
    let Time { sec, nsec } = version.time;
    conn.prepare_cached(
        "INSERT INTO versions
             (number, id, lineage, parent, root, sec, nsec, entries, created, updated, deleted, sum)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?
    .execute(params![
        to_sql(version.number)?,
        version.id().0.0,
        version.lineage.0,
        version.parent.map(|VersionId(parent)| parent.0),
        version.root.0,
        sec,
        nsec,
        to_sql(counts.entries)?,
        to_sql(counts.created)?,
        to_sql(counts.updated)?,
        to_sql(counts.deleted)?,
        sum,
    ])?;
    Ok(())
}

fn published(conn: &Connection, rest: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<Published>, Fault> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT number, id, lineage, parent, root, sec, nsec, entries, created, updated, deleted, sum
         FROM versions {rest}"
    ))?;
    let mut rows = statement.query(values)?;
    let mut summer = Summer::default();
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read_published(row, &mut summer)?);
    }
    Ok(found)
}

fn read_published(row: &rusqlite::Row<'_>, summer: &mut Summer) -> Result<Published, Fault> {
    let parent = match row.get_ref(3)? {
        rusqlite::types::ValueRef::Null => None,
        _ => Some(VersionId(Digest(exactly(blob(row, 3)?)?))),
    };
    let version = Version {
        lineage: Lineage(exactly(blob(row, 2)?)?),
        number: from_sql(row.get(0)?)?,
        parent,
        root: Digest(exactly(blob(row, 4)?)?),
        time: Time { sec: row.get(5)?, nsec: row.get(6)? },
    };
    let counts = Counts {
        entries: from_sql(row.get(7)?)?,
        created: from_sql(row.get(8)?)?,
        updated: from_sql(row.get(9)?)?,
        deleted: from_sql(row.get(10)?)?,
    };
    if version.id().0.0 != blob(row, 1)? || version_sum(&version, &counts, summer) != blob(row, 11)? {
        return Err(Fault::Damaged("the checksum of a version does not match".to_owned()));
    }
    Ok(Published { version, counts })
}

/// The paths that changed since `number`, those that are gone with the version they went in, in tree order.
fn changed_paths(conn: &Connection, number: u64) -> Result<Option<Vec<(RelPath, Option<u64>)>>, Fault> {
    // One transaction is open already, so that the three queries see the same moment.
    if number < stand::number(conn, OLDEST_DIFFABLE)? {
        return Ok(None);
    }
    let number = to_sql(number)?;
    let mut changes = Vec::new();
    // The second condition is what lets SQLite use the partial index.
    let mut statement = conn.prepare(match number {
        0 => "SELECT path FROM entries WHERE changed_in > ?1",
        _ => "SELECT path FROM entries WHERE changed_in > ?1 AND changed_in > 1",
    })?;
    let mut rows = statement.query([number])?;
    while let Some(row) = rows.next()? {
        changes.push((fact::path_of(blob(row, 0)?)?, None));
    }
    let mut summer = Summer::default();
    let mut statement = conn.prepare("SELECT path, deleted_in, sum FROM tombstones WHERE deleted_in > ?1")?;
    let mut rows = statement.query([number])?;
    while let Some(row) = rows.next()? {
        let (key, deleted_in) = (blob(row, 0)?, row.get::<_, i64>(1)?);
        summer.check(Mark::Tombstone, &[key, &deleted_in.to_le_bytes()], blob(row, 2)?, "a tombstone")?;
        changes.push((fact::path_of(key)?, Some(from_sql(deleted_in)?)));
    }
    changes.sort_unstable();
    if changes.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(Fault::Damaged("a path is both there and gone".to_owned()));
    }
    Ok(Some(changes))
}

/// Keeps the newest `keep` tombstones, whole versions at a time, and notes from where on changes are complete.
pub(super) fn forget_tombstones(conn: &Connection, keep: u64, summer: &mut Summer) -> Result<(), Fault> {
    let count: i64 = conn.prepare_cached("SELECT count(*) FROM tombstones")?.query_row([], |row| row.get(0))?;
    let count = from_sql(count)?;
    if count <= keep {
        return Ok(());
    }
    let last: i64 = conn
        .prepare_cached("SELECT deleted_in FROM tombstones ORDER BY deleted_in LIMIT 1 OFFSET ?1")?
        .query_row([to_sql(count - keep - 1)?], |row| row.get(0))?;
    conn.prepare_cached("DELETE FROM tombstones WHERE deleted_in <= ?1")?.execute([last])?;
    let oldest = from_sql(last)?.max(stand::number(conn, OLDEST_DIFFABLE)?);
    put_meta(conn, OLDEST_DIFFABLE, Some(&oldest.to_le_bytes()), summer)
}

/// Forgets all versions but so many of the newest and those that a replica acknowledged last, and all other
/// acknowledgements but those of so many: what a replica has acknowledged stays known, however long it is away.
pub(super) fn forget_versions(conn: &Connection, versions: u64, acks: u64) -> Result<(), Fault> {
    let newest: i64 = conn.query_row("SELECT ifnull(max(number), 0) FROM versions", [], |row| row.get(0))?;
    let newest = from_sql(newest)?;
    conn.execute(
        "DELETE FROM acks WHERE number <= ?1 AND EXISTS (
             SELECT 1 FROM acks AS later
             WHERE later.replica = acks.replica AND later.exact >= acks.exact AND later.number > acks.number)",
        [to_sql(newest.saturating_sub(acks))?],
    )?;
    conn.execute(
        "DELETE FROM versions WHERE number <= ?1 AND id NOT IN (SELECT version FROM acks WHERE number <= ?1)",
        [to_sql(newest.saturating_sub(versions))?],
    )?;
    Ok(())
}

fn ack_sum(ack: &Ack, summer: &mut Summer) -> [u8; 8] {
    let (number, exact) = (ack.number.to_le_bytes(), [u8::from(ack.exact)]);
    let time = (ack.time.sec.to_le_bytes(), ack.time.nsec.to_le_bytes());
    let fields: [&[u8]; 7] = [ack.replica.as_bytes(), &ack.version.0.0, &number, &ack.root.0, &time.0, &time.1, &exact];
    summer.sum(Mark::Ack, &fields)
}

pub(super) fn record_acks(conn: &Connection, acks: &[Ack], summer: &mut Summer) -> Result<(), Fault> {
    if acks.is_empty() {
        return Ok(());
    }
    let mut insert = conn.prepare_cached(
        "INSERT INTO acks (replica, version, number, root, sec, nsec, exact, sum)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (number, replica, version) DO UPDATE
         SET (root, sec, nsec, exact, sum) = (?4, ?5, ?6, ?7, ?8) WHERE root != ?4 OR exact != ?7",
    )?;
    for ack in acks {
        let sum = ack_sum(ack, summer);
        let (number, exact) = (to_sql(ack.number)?, i64::from(ack.exact));
        let Time { sec, nsec } = ack.time;
        insert.execute(params![ack.replica, ack.version.0.0, number, ack.root.0, sec, nsec, exact, sum])?;
    }
    Ok(())
}

/// All, or those that a condition leaves.
fn acks(conn: &Connection, number: &str, condition: &str, values: impl rusqlite::Params) -> Result<Vec<Ack>, Fault> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT replica, version, {number}, root, sec, nsec, exact, sum FROM acks {condition}
         ORDER BY replica, number, sec",
    ))?;
    let mut rows = statement.query(values)?;
    let mut summer = Summer::default();
    let mut acks = Vec::new();
    while let Some(row) = rows.next()? {
        let ack = Ack {
            replica: row.get(0)?,
            version: VersionId(Digest(exactly(blob(row, 1)?)?)),
            number: from_sql(row.get(2)?)?,
            root: Digest(exactly(blob(row, 3)?)?),
            time: Time { sec: row.get(4)?, nsec: row.get(5)? },
            exact: row.get::<_, i64>(6)? != 0,
        };
        if ack_sum(&ack, &mut summer) != blob(row, 7)? {
            return Err(Fault::Damaged(format!(
                "the checksum of an acknowledgement of {} does not match",
                ack.replica
            )));
        }
        acks.push(ack);
    }
    Ok(acks)
}
