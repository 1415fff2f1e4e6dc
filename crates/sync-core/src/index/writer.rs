//! Writing: every change is one transaction, and what others believe is on disk before the call returns.
//!
//! Two doors. [`Index::commit_with`] flushes (`synchronous=FULL`) and is the only one to versions, stands, intents and
//! acknowledgements. [`Index::write`] does not flush: a power cut may undo it, which for rows costs reading files again.

use std::ops::{Deref, DerefMut};
use std::path::Path;

use rusqlite::{Connection, ToSql, Transaction, TransactionBehavior, params};

use super::error::{Fault, IndexError, to_sql};
use super::rows::{any, blob};
use super::sums::{Mark, Summer};
use super::{Ack, Counts, Intent, Stand};
use super::{Index, contents, fact, rows, stand, versions};
use crate::chunk::ChunkRef;
use crate::hash::Digest;
use crate::manifest::{Lineage, Row, Version, VersionId};
use crate::path::RelPath;

/// Rows that are read before they are written again under other names.
const COPIED_AT_ONCE: usize = 1000;

/// Rows beneath a directory from which on they are removed at once.
const MANY: usize = 50;

const BENEATH: &str =
    "SELECT path, fact, hash, changed_in, sum FROM entries WHERE path >= ?1 AND path < ?2 ORDER BY path";

const REPLACE: &str = "INSERT OR REPLACE INTO entries (path, fact, hash, changed_in, sum) VALUES (?1, ?2, ?3, ?4, ?5)";

const UPDATE: &str = "UPDATE entries SET fact = ?2, hash = ?3, changed_in = ?4, sum = ?5 WHERE path = ?1";

/// What becomes of a replica's stand in a [`Batch`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StandChange {
    /// It stays.
    #[default]
    Keep,
    /// The replica stands nowhere any more.
    Clear,
    /// The replica stands here.
    Set(Stand),
}

/// Changes that are made together or not at all, for callers that have them at hand; [`Index::commit_with`] takes them
/// one at a time.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Rows that come or change.
    pub upserts: Vec<Row>,
    /// Rows that go.
    pub deletes: Vec<RelPath>,
    /// The version these changes belong to; 0 on a replica, which does not track them.
    pub changed_in: u64,
    /// Whether it must survive a power cut once this returns. Always so with a version, a stand or an intent.
    pub durable: bool,
    /// Chunk lists of contents.
    pub chunks: Vec<(Digest, Vec<ChunkRef>)>,
    /// The version that these rows are.
    pub version: Option<(Version, Counts)>,
    /// The replica's stand.
    pub stand: StandChange,
    /// Whether the intent is fulfilled.
    pub clear_intent: bool,
    /// Single values.
    pub meta: Vec<(String, Vec<u8>)>,
}

/// Rows, contents and single values inside a transaction.
pub struct Writer<'c> {
    pub(super) conn: &'c Connection,
    pub(super) dir: &'c Path,
    pub(super) summer: Summer,
    changed_in: u64,
    /// Whether a path that is written may be there already, or have a tombstone.
    may_exist: bool,
    may_be_buried: bool,
    /// The key that was written last.
    last: Vec<u8>,
    fact: Vec<u8>,
    touched: usize,
}

/// A [`Writer`] whose transaction is flushed: with it go the facts that others rely on.
pub struct Commit<'c>(Writer<'c>);

impl<'c> Deref for Commit<'c> {
    type Target = Writer<'c>;
    fn deref(&self) -> &Writer<'c> {
        &self.0
    }
}

impl DerefMut for Commit<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Index {
    /// Runs `work` in one transaction that is on disk when this returns; an error from it undoes everything.
    /// `changed_in` is the version that changed rows belong to, 0 on a replica.
    ///
    /// The index is locked meanwhile: `work` must not call methods of the `Index` itself.
    ///
    /// # Errors
    /// Those of `work`, and [`IndexError`] if the transaction fails.
    pub fn commit_with<T, E: From<IndexError>>(
        &self,
        changed_in: u64,
        work: impl FnOnce(&mut Commit<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.transact(changed_in, true, |writer| {
            let mut commit = Commit(writer);
            let done = work(&mut commit)?;
            Ok((done, commit.0))
        })
    }

    /// Runs `work` in one transaction that a power cut may undo as a whole.
    ///
    /// The index is locked meanwhile: `work` must not call methods of the `Index` itself.
    ///
    /// # Errors
    /// Those of `work`, and [`IndexError`] if the transaction fails.
    pub fn write<T, E: From<IndexError>>(
        &self,
        changed_in: u64,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.transact(changed_in, false, |mut writer| {
            let done = work(&mut writer)?;
            Ok((done, writer))
        })
    }

    /// Makes the changes of `batch` in one transaction.
    ///
    /// # Errors
    /// [`IndexError`]; nothing is changed then.
    pub fn commit(&self, mut batch: Batch) -> Result<(), IndexError> {
        // In tree order each leaf of the table is visited once.
        batch.upserts.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        batch.deletes.sort_unstable();
        let flushed =
            batch.durable || batch.version.is_some() || batch.stand != StandChange::Keep || batch.clear_intent;
        if !flushed {
            return self.write(batch.changed_in, |writer| writer.apply(&batch));
        }
        self.commit_with(batch.changed_in, |commit| {
            commit.apply(&batch)?;
            if let Some((version, counts)) = &batch.version {
                commit.add_version(version, counts)?;
            }
            match &batch.stand {
                StandChange::Keep => {}
                StandChange::Clear => commit.set_stand(None)?,
                StandChange::Set(stand) => commit.set_stand(Some(stand))?,
            }
            if batch.clear_intent {
                commit.clear_intent()?;
            }
            Ok(())
        })
    }

    /// The one place where a transaction begins and ends.
    fn transact<T, E: From<IndexError>>(
        &self,
        changed_in: u64,
        flushed: bool,
        work: impl FnOnce(Writer<'_>) -> Result<(T, Writer<'_>), E>,
    ) -> Result<T, E> {
        let conn = self.inner.writer();
        let dir = self.inner.dir();
        let failed = |fault: Fault| fault.at("write", dir);
        let tx = begin(&conn, flushed).map_err(failed)?;
        let writer = Writer::new(&tx, dir, changed_in).map_err(failed)?;
        let (done, mut writer) = work(writer)?;
        writer.bury_old().map_err(failed)?;
        let touched = writer.touched;
        drop(writer);
        tx.commit().map_err(|error| failed(error.into()))?;
        self.inner.grown(&conn, touched).map_err(failed)?;
        Ok(done)
    }
}

fn begin(conn: &Connection, flushed: bool) -> Result<Transaction<'_>, Fault> {
    // In WAL mode, FULL is an fsync of the log at each commit, NORMAL is none; neither can tear a transaction.
    // <https://www.sqlite.org/pragma.html#pragma_synchronous>
    conn.pragma_update(None, "synchronous", if flushed { "FULL" } else { "NORMAL" })?;
    Ok(Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?)
}

impl<'c> Writer<'c> {
    fn new(conn: &'c Connection, dir: &'c Path, changed_in: u64) -> Result<Self, Fault> {
        to_sql(changed_in)?;
        Ok(Self {
            conn,
            dir,
            summer: Summer::default(),
            changed_in,
            may_exist: any(conn, "SELECT 1 FROM entries LIMIT 1")?,
            may_be_buried: any(conn, "SELECT 1 FROM tombstones LIMIT 1")?,
            last: Vec::new(),
            fact: Vec::new(),
            touched: 0,
        })
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), IndexError> {
        for path in &batch.deletes {
            self.delete(path)?;
        }
        for row in &batch.upserts {
            self.upsert(row)?;
        }
        for (digest, chunks) in &batch.chunks {
            self.put_chunks(digest, chunks)?;
        }
        for (key, value) in &batch.meta {
            self.set_meta(key, Some(value))?;
        }
        Ok(())
    }

    /// Writes a row. The entry counts as changed in this transaction's version only if its hash differs from what was
    /// stored: a new tuple for the same entry is no change. Fastest in tree order.
    ///
    /// # Errors
    /// [`IndexError::Entry`] for an entry that breaks a rule, else as any write.
    pub fn upsert(&mut self, row: &Row) -> Result<(), IndexError> {
        row.entry.validate().map_err(|source| IndexError::Entry { path: row.path.clone(), source })?;
        self.try_upsert(row).map_err(|fault| fault.at("write", self.dir))
    }

    fn try_upsert(&mut self, row: &Row) -> Result<(), Fault> {
        let key = row.path.to_key();
        let hash = row.entry.hash();
        fact::encode(row, &mut self.fact);
        // Into a table that was empty, rows in tree order are new without looking.
        self.may_exist |= key <= self.last && self.touched > 0;
        if self.may_exist && self.changed_in == 0 && self.replaced(&key, &hash)? {
            return self.wrote(key);
        }
        let earlier = if self.may_exist { self.earlier(&key, &hash)? } else { Earlier::Absent };
        let changed_in = match earlier {
            Earlier::Same => return Ok(()),
            Earlier::SameEntry(number) => number,
            Earlier::Different | Earlier::Absent => to_sql(self.changed_in)?,
        };
        let fields: [&[u8]; 4] = [&key, &self.fact, &hash.0, &changed_in.to_le_bytes()];
        let sum = self.summer.sum(Mark::Entry, &fields);
        // Three statements rather than one upsert: an update in place is half the work, and one that leaves the number
        // alone does not touch the index on it.
        let sql = match earlier {
            Earlier::SameEntry(_) => {
                "UPDATE entries SET fact = ?2, hash = ?3, sum = ?5 WHERE path = ?1 AND changed_in = ?4"
            }
            Earlier::Different => UPDATE,
            _ => "INSERT INTO entries (path, fact, hash, changed_in, sum) VALUES (?1, ?2, ?3, ?4, ?5)",
        };
        self.conn.prepare_cached(sql)?.execute(params![key, self.fact, hash.0, changed_in, sum])?;
        self.wrote(key)
    }

    /// Puts the fact laid out last in the place of what is stored under `key`; says whether there is anything. Where
    /// changes are not tracked nobody asks what that was, and looking for it would be half the work.
    fn replaced(&mut self, key: &[u8], hash: &Digest) -> Result<bool, Fault> {
        let sum = self.summer.sum(Mark::Entry, &[key, &self.fact, &hash.0, &0_i64.to_le_bytes()]);
        let sql = "UPDATE entries SET fact = ?2, hash = ?3, sum = ?4 WHERE path = ?1 AND changed_in = 0";
        Ok(self.conn.prepare_cached(sql)?.execute(params![key, self.fact, hash.0, sum])? > 0)
    }

    /// Writes a row whose entry, which has this hash, is known to differ from what is stored: without looking what that
    /// is, which is half the work of [`Writer::upsert`]. It counts as changed in any case.
    ///
    /// # Errors
    /// As [`Writer::upsert`].
    pub fn change(&mut self, row: &Row, hash: &Digest) -> Result<(), IndexError> {
        row.entry.validate().map_err(|source| IndexError::Entry { path: row.path.clone(), source })?;
        self.try_change(row, hash).map_err(|fault| fault.at("write", self.dir))
    }

    fn try_change(&mut self, row: &Row, hash: &Digest) -> Result<(), Fault> {
        let (key, changed_in) = (row.path.to_key(), to_sql(self.changed_in)?);
        fact::encode(row, &mut self.fact);
        let sum = self.summer.sum(Mark::Entry, &[&key, &self.fact, &hash.0, &changed_in.to_le_bytes()]);
        let updated = self.conn.prepare_cached(UPDATE)?.execute(params![key, self.fact, hash.0, changed_in, sum])?;
        if updated == 0 {
            self.conn.prepare_cached(REPLACE)?.execute(params![key, self.fact, hash.0, changed_in, sum])?;
        }
        self.wrote(key)
    }

    /// Compares what is stored under `key` with the fact laid out last.
    fn earlier(&mut self, key: &[u8], hash: &Digest) -> Result<Earlier, Fault> {
        let mut statement =
            self.conn.prepare_cached("SELECT fact, hash, changed_in, sum FROM entries WHERE path = ?1")?;
        let mut rows = statement.query([key])?;
        let Some(row) = rows.next()? else { return Ok(Earlier::Absent) };
        let (fact, stored_hash) = (blob(row, 0)?, blob(row, 1)?);
        let changed_in: i64 = row.get(2)?;
        let sum = self.summer.sum(Mark::Entry, &[key, fact, stored_hash, &changed_in.to_le_bytes()]);
        // A row that was damaged is written over like one that differs: its number must not get a valid sum.
        let believed = sum == blob(row, 3)? && stored_hash == hash.0;
        Ok(if !believed || (changed_in == 0 && self.changed_in > 0) {
            Earlier::Different
        } else if fact == self.fact {
            Earlier::Same
        } else {
            Earlier::SameEntry(changed_in)
        })
    }

    /// Removes a row; says whether there was one.
    ///
    /// # Errors
    /// As any write.
    pub fn delete(&mut self, path: &RelPath) -> Result<bool, IndexError> {
        self.try_delete(path).map_err(|fault| fault.at("write", self.dir))
    }

    fn try_delete(&mut self, path: &RelPath) -> Result<bool, Fault> {
        let key = path.to_key();
        if self.conn.prepare_cached("DELETE FROM entries WHERE path = ?1")?.execute([&key])? == 0 {
            return Ok(false);
        }
        self.touched += 1;
        self.bury(&key)?;
        Ok(true)
    }

    /// Remembers that a path went away, where changes are tracked.
    fn bury(&mut self, key: &[u8]) -> Result<(), Fault> {
        if self.changed_in > 0 {
            let number = to_sql(self.changed_in)?;
            let sum = self.summer.sum(Mark::Tombstone, &[key, &number.to_le_bytes()]);
            self.conn
                .prepare_cached("INSERT OR REPLACE INTO tombstones (path, deleted_in, sum) VALUES (?1, ?2, ?3)")?
                .execute(params![key, number, sum])?;
            self.may_be_buried = true;
        }
        Ok(())
    }

    /// Writes a row that is expected to be new, without looking what is there: half the work of [`Writer::upsert`], and
    /// the entry counts as changed in any case.
    ///
    /// # Errors
    /// As [`Writer::upsert`].
    pub fn insert(&mut self, row: &Row) -> Result<(), IndexError> {
        row.entry.validate().map_err(|source| IndexError::Entry { path: row.path.clone(), source })?;
        self.try_insert(row).map_err(|fault| fault.at("write", self.dir))
    }

    fn try_insert(&mut self, row: &Row) -> Result<(), Fault> {
        let (key, hash, changed_in) = (row.path.to_key(), row.entry.hash(), to_sql(self.changed_in)?);
        fact::encode(row, &mut self.fact);
        let sum = self.summer.sum(Mark::Entry, &[&key, &self.fact, &hash.0, &changed_in.to_le_bytes()]);
        self.conn.prepare_cached(REPLACE)?.execute(params![key, self.fact, hash.0, changed_in, sum])?;
        self.wrote(key)
    }

    /// To be called after a row was written under `key`.
    fn wrote(&mut self, key: Vec<u8>) -> Result<(), Fault> {
        self.last = key;
        if self.may_be_buried {
            self.conn.prepare_cached("DELETE FROM tombstones WHERE path = ?1")?.execute([&self.last])?;
        }
        self.touched += 1;
        Ok(())
    }

    /// Removes rows, which come in tree order. A directory with many beneath it goes with them at once.
    ///
    /// # Errors
    /// As any write.
    pub fn delete_all(&mut self, gone: &[Row]) -> Result<(), IndexError> {
        self.try_delete_all(gone).map_err(|fault| fault.at("write", self.dir))
    }

    fn try_delete_all(&mut self, mut gone: &[Row]) -> Result<(), Fault> {
        while let Some((top, rest)) = gone.split_first() {
            let beneath = match top.entry.is_dir() {
                true => rest.iter().take_while(|row| row.path.is_beneath(&top.path)).count(),
                false => 0,
            };
            let range = params![top.path.to_key(), rows::end_of(&top.path)];
            if beneath < MANY || !self.holds_just(beneath + 1, range)? {
                self.try_delete(&top.path)?;
                gone = rest;
                continue;
            }
            self.conn.prepare_cached("DELETE FROM entries WHERE path >= ?1 AND path < ?2")?.execute(range)?;
            let (subtree, others) = gone.split_at(beneath + 1);
            subtree.iter().try_for_each(|row| self.bury(&row.path.to_key()))?;
            self.touched += subtree.len();
            gone = others;
        }
        Ok(())
    }

    /// Whether there are as many rows in a range.
    fn holds_just(&self, count: usize, range: &[&dyn ToSql]) -> Result<bool, Fault> {
        let sql = "SELECT count(*) FROM entries WHERE path >= ?1 AND path < ?2";
        let found: i64 = self.conn.prepare_cached(sql)?.query_row(range, |row| row.get(0))?;
        Ok(i64::try_from(count) == Ok(found))
    }

    /// Writes the rows of `from` and all beneath it again, for `to`: what they will be once the directory is renamed. Far
    /// cheaper than a write for each row, because nothing is laid out or hashed anew but hard links. For a replica, where
    /// changes are not tracked.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] if one of them is not what was written, else as any write.
    pub fn copy_beneath(&mut self, from: &RelPath, to: &RelPath) -> Result<(), IndexError> {
        self.try_copy_beneath(from, to).map_err(|fault| fault.at("write", self.dir))
    }

    fn try_copy_beneath(&mut self, from: &RelPath, to: &RelPath) -> Result<(), Fault> {
        let (top, new_top) = (from.to_key(), to.to_key());
        let changed_in = to_sql(self.changed_in)?;
        let mut read = self.conn.prepare_cached(BENEATH)?;
        let mut insert = self.conn.prepare_cached(REPLACE)?;
        let mut at = Some(top.clone());
        while let Some(start) = at.take() {
            // A page at a time: a reader that is overtaken by writes finds its place again at every step.
            let mut page: Vec<[Vec<u8>; 3]> = Vec::new();
            let mut rows = read.query(params![start, rows::end_of(from)])?;
            while let Some(row) = rows.next()? {
                if page.len() == COPIED_AT_ONCE {
                    at = Some(blob(row, 0)?.to_vec());
                    break;
                }
                page.push(self.renamed(row, &top, &new_top)?);
            }
            drop(rows);
            for [key, fact, hash] in &page {
                let sum = self.summer.sum(Mark::Entry, &[key, fact, hash, &changed_in.to_le_bytes()]);
                insert.execute(params![key, fact, hash, changed_in, sum])?;
            }
            self.touched += page.len();
        }
        Ok(())
    }

    /// Key, fact and hash of a row when the key `top` it begins with has become another.
    fn renamed(&mut self, row: &rusqlite::Row<'_>, top: &[u8], new_top: &[u8]) -> Result<[Vec<u8>; 3], Fault> {
        let (key, fact, hash) = (blob(row, 0)?, blob(row, 1)?, blob(row, 2)?);
        let changed_in: i64 = row.get(3)?;
        if self.summer.sum(Mark::Entry, &[key, fact, hash, &changed_in.to_le_bytes()]) != blob(row, 4)? {
            return Err(rows::mismatch(key));
        }
        let renamed = |key: &[u8]| key.strip_prefix(top).map(|rest| [new_top, rest].concat());
        let Some(new_key) = renamed(key) else { return Err(Fault::Damaged("rows are out of order".to_owned())) };
        if !fact::is_link(fact) {
            return Ok([new_key, fact.to_vec(), hash.to_vec()]);
        }
        let mut linked = fact::decode(key, fact)?;
        if let Some(first) = linked.entry.link.as_ref().and_then(|first| renamed(&first.to_key())) {
            linked.entry.link = Some(fact::path_of(&first)?);
        }
        let mut fact = Vec::new();
        fact::encode(&linked, &mut fact);
        Ok([new_key, fact, linked.entry.hash().0.to_vec()])
    }

    /// Removes the rows of `dir` and all beneath it. For a replica, where changes are not tracked.
    ///
    /// # Errors
    /// As any write.
    pub fn delete_beneath(&mut self, dir: &RelPath) -> Result<(), IndexError> {
        let delete = || -> Result<usize, Fault> {
            let mut delete = self.conn.prepare_cached("DELETE FROM entries WHERE path >= ?1 AND path < ?2")?;
            Ok(delete.execute(params![dir.to_key(), rows::end_of(dir)])?)
        };
        self.touched += delete().map_err(|fault| fault.at("write", self.dir))?;
        Ok(())
    }

    /// The row of one path as this transaction sees it.
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be read.
    pub fn row(&mut self, path: &RelPath) -> Result<Option<Row>, IndexError> {
        let found = rows::find(self.conn, path, &mut self.summer).map_err(|fault| fault.at("read", self.dir))?;
        Ok(found.map(|stored| stored.row))
    }

    /// Keeps the chunk list of a content.
    ///
    /// # Errors
    /// As any write.
    pub fn put_chunks(&mut self, digest: &Digest, chunks: &[ChunkRef]) -> Result<(), IndexError> {
        contents::put(self.conn, digest, chunks, &mut self.summer).map_err(|fault| fault.at("write", self.dir))
    }

    /// Keeps a single value, or forgets it. Keys that start with `index.` are this module's.
    ///
    /// # Errors
    /// As any write.
    pub fn set_meta(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), IndexError> {
        stand::put_meta(self.conn, key, value, &mut self.summer).map_err(|fault| fault.at("write", self.dir))
    }

    /// Forgets the oldest tombstones beyond what is kept.
    fn bury_old(&mut self) -> Result<(), Fault> {
        if self.changed_in == 0 || !self.may_be_buried {
            return Ok(());
        }
        versions::forget_tombstones(self.conn, versions::TOMBSTONES, &mut self.summer)
    }
}

enum Earlier {
    /// The very same row.
    Same,
    /// The same entry with another tuple or mark, last changed in this version.
    SameEntry(i64),
    /// Another entry, one that cannot be believed, or one that was not tracked and now is.
    Different,
    /// None.
    Absent,
}

impl Commit<'_> {
    /// Adds a version to the history. Its number must be above all others.
    ///
    /// # Errors
    /// [`IndexError::Order`], else as any write.
    pub fn add_version(&mut self, version: &Version, counts: &Counts) -> Result<(), IndexError> {
        versions::add(self.conn, version, counts, &mut self.0.summer).map_err(|fault| fault.at("write", self.dir))
    }

    /// Begins a lineage: `random` names it, and its first version grows from `parent`.
    ///
    /// # Errors
    /// As any write.
    pub fn mint_lineage(&mut self, random: [u8; 16], parent: Option<VersionId>) -> Result<Lineage, IndexError> {
        versions::mint(self.conn, random, parent, &mut self.0.summer).map_err(|fault| fault.at("write", self.dir))
    }

    /// Records what replicas acknowledged.
    ///
    /// # Errors
    /// As any write.
    pub fn record_acks(&mut self, acks: &[Ack]) -> Result<(), IndexError> {
        versions::record_acks(self.conn, acks, &mut self.0.summer).map_err(|fault| fault.at("write", self.dir))
    }

    /// Says where a replica stands, or that it stands nowhere.
    ///
    /// # Errors
    /// As any write.
    pub fn set_stand(&mut self, stand: Option<&Stand>) -> Result<(), IndexError> {
        stand::put_stand(self.conn, stand, &mut self.0.summer).map_err(|fault| fault.at("write", self.dir))
    }

    /// Records what is about to be touched, in place of an earlier intent; the stand is none from here on.
    ///
    /// # Errors
    /// As any write.
    pub fn set_intent(&mut self, intent: &Intent) -> Result<(), IndexError> {
        stand::put_intent(self.conn, intent, &mut self.0.summer).map_err(|fault| fault.at("write", self.dir))
    }

    /// The intent is fulfilled, or what it touched has been looked at.
    ///
    /// # Errors
    /// As any write.
    pub fn clear_intent(&mut self) -> Result<(), IndexError> {
        stand::clear_intent(self.conn).map_err(|fault| fault.at("write", self.dir))
    }
}
