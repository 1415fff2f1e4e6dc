//! Chunk lists of large contents, one blob each: 20 bytes a chunk, digest then length.
//!
//! A list is a hint that can be made again by reading the file, so one that is damaged is treated as absent.

use std::collections::HashSet;

use rusqlite::{Connection, params};

use super::Index;
use super::error::{Fault, IndexError, from_sql};
use super::rows::blob;
use super::sums::{Mark, Summer, exactly};
use super::versions;
use crate::chunk::ChunkRef;
use crate::hash::Digest;

const CHUNK_BYTES: usize = 20;

/// Lists below this number are not worth a pass over all rows to find those nobody needs.
const PRUNE_FROM: u64 = 256;

/// How many lists the last pruning left.
const KEPT: &str = "index.contents_kept";

pub(super) fn put(conn: &Connection, digest: &Digest, chunks: &[ChunkRef], summer: &mut Summer) -> Result<(), Fault> {
    let mut list = Vec::with_capacity(chunks.len() * CHUNK_BYTES);
    for chunk in chunks {
        list.extend_from_slice(&chunk.digest);
        list.extend_from_slice(&chunk.len.to_le_bytes());
    }
    let sum = summer.sum(Mark::Content, &[&digest.0, &list]);
    conn.prepare_cached("INSERT OR REPLACE INTO contents (digest, chunks, sum) VALUES (?1, ?2, ?3)")?
        .execute(params![digest.0, list, sum])?;
    Ok(())
}

fn find(conn: &Connection, digest: &Digest) -> Result<Option<Vec<ChunkRef>>, Fault> {
    let mut statement = conn.prepare_cached("SELECT chunks, sum FROM contents WHERE digest = ?1")?;
    let mut rows = statement.query([digest.0])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let list = blob(row, 0)?;
    let sum = Summer::default().sum(Mark::Content, &[&digest.0, list]);
    let (chunks, rest) = list.as_chunks::<CHUNK_BYTES>();
    if sum != blob(row, 1)? || !rest.is_empty() {
        return Ok(None);
    }
    Ok(Some(chunks.iter().map(decode).collect()))
}

fn decode(bytes: &[u8; CHUNK_BYTES]) -> ChunkRef {
    let [digest @ .., a, b, c, d] = *bytes;
    ChunkRef { digest, len: u32::from_le_bytes([a, b, c, d]) }
}

impl Index {
    /// The chunk list of a content, if it is known.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read.
    pub fn chunks(&self, digest: &Digest) -> Result<Option<Vec<ChunkRef>>, IndexError> {
        self.read(|conn| find(conn, digest))
    }

    /// Work for when nobody waits: forgets old versions, and chunk lists that no row needs, once they are many, and folds
    /// the log into the database as far as no reader is in the way.
    ///
    /// # Errors
    /// [`IndexError`] if the index cannot be read or written.
    pub fn tidy(&self) -> Result<(), IndexError> {
        let (lists, kept, history) = self.read(|conn| {
            let lists = conn.query_row("SELECT count(*) FROM contents", [], |row| row.get(0))?;
            let history = conn.query_row("SELECT count(*) FROM versions", [], |row| row.get(0))?;
            Ok((from_sql(lists)?, super::stand::number(conn, KEPT)?, from_sql(history)?))
        })?;
        if lists > PRUNE_FROM.max(2 * kept) {
            self.prune_contents()?;
        }
        if history > versions::ACKS {
            self.write(0, |writer| {
                let forgotten = versions::forget_versions(writer.conn, versions::VERSIONS, versions::ACKS);
                forgotten.map_err(|fault| fault.at("write", writer.dir))
            })?;
        }
        self.checkpoint()
    }

    fn prune_contents(&self) -> Result<(), IndexError> {
        let mut unused: HashSet<Digest> = self.read(|conn| {
            let mut statement = conn.prepare("SELECT digest FROM contents")?;
            let mut rows = statement.query([])?;
            let mut digests = HashSet::new();
            while let Some(row) = rows.next()? {
                digests.insert(Digest(exactly(blob(row, 0)?)?));
            }
            Ok(digests)
        })?;
        let all = unused.len();
        let mut rows = self.cursor()?;
        while let Some(row) = rows.next()? {
            if let Some((_, digest)) = row.entry.content() {
                unused.remove(&digest);
            }
        }
        self.write(0, |writer| {
            for digest in &unused {
                forget(writer.conn, digest).map_err(|fault| fault.at("write", writer.dir))?;
            }
            let kept = (all - unused.len()) as u64;
            writer.set_meta(KEPT, Some(&kept.to_le_bytes()))
        })
    }
}

fn forget(conn: &Connection, digest: &Digest) -> Result<(), Fault> {
    conn.prepare_cached("DELETE FROM contents WHERE digest = ?1")?.execute([digest.0])?;
    Ok(())
}
