//! On a replica: paths that somebody else added to its tree, and that no version had.

use super::error::{Fault, IndexError};
use super::rows::blob;
use super::sums::Mark;
use super::writer::{Commit, Writer};
use super::{Index, fact};
use crate::path::RelPath;

impl Index {
    /// All of them, in tree order.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn additions(&self) -> Result<Vec<RelPath>, IndexError> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached("SELECT path, sum FROM additions ORDER BY path")?;
            let mut rows = statement.query([])?;
            let (mut summer, mut found) = (super::sums::Summer::default(), Vec::new());
            while let Some(row) = rows.next()? {
                let key = blob(row, 0)?;
                summer.check(Mark::Addition, &[key], blob(row, 1)?, "an addition")?;
                found.push(fact::path_of(key)?);
            }
            Ok(found)
        })
    }
}

impl Writer<'_> {
    /// Notes a path that somebody else added.
    ///
    /// # Errors
    /// As any write.
    pub fn note_addition(&mut self, path: &RelPath) -> Result<(), IndexError> {
        let key = path.to_key();
        let sum = self.summer.sum(Mark::Addition, &[&key]);
        let note = || -> Result<(), Fault> {
            let sql = "INSERT OR REPLACE INTO additions (path, sum) VALUES (?1, ?2)";
            self.conn.prepare_cached(sql)?.execute(rusqlite::params![key, sum])?;
            Ok(())
        };
        note().map_err(|fault| fault.at("write", self.dir))
    }
}

impl Commit<'_> {
    /// There are none any more.
    ///
    /// # Errors
    /// As any write.
    pub fn clear_additions(&mut self) -> Result<(), IndexError> {
        let clear = || -> Result<(), Fault> {
            self.conn.prepare_cached("DELETE FROM additions")?.execute([])?;
            Ok(())
        };
        clear().map_err(|fault| fault.at("write", self.dir))
    }
}
