//! What was read from disk and several destinations will soon ask for: small contents, which all of them may find here after the
//! ring has given them up, and blocks of big files. Each is read once as long as the destinations keep pace.

use bytes::Bytes;

use super::recent::Recent;
use crate::fs::{ReadError, SourceFile};
use crate::hash::Digest;
use crate::manifest::Tuple;

/// Bytes of a block.
const BLOCK: u64 = 1 << 20;

/// So many bytes, scattered over a file, cost less to read again than the blocks that they are in.
const FEW: usize = 64 << 10;

/// Bytes kept, with what it takes to keep each: how far two destinations may be apart and still share what is read.
const CAPACITY: usize = 64 << 20;

/// What was read.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    /// Of which file, as it was seen, that shall have which content, and which block. Not by content alone: a file that changes while it is
    /// read would spoil that for others that have it as well.
    Block(Tuple, Digest, u64),
    /// A whole content, which was verified.
    Content(Digest),
}

/// What was read lately.
pub struct Reads {
    recent: Recent<Key>,
}

impl Default for Reads {
    fn default() -> Self {
        Self { recent: Recent::new(CAPACITY) }
    }
}

impl Reads {
    /// So many bytes from `offset` of a file that shall have the content: of that, if it is here; or else of blocks, unless they are so
    /// few that they are read by themselves. What lies in one is that one's. Believe them only after [`SourceFile::verify`].
    ///
    /// # Errors
    /// As [`SourceFile::read_exact_at`].
    pub fn range(&self, file: &SourceFile, content: Digest, offset: u64, len: usize) -> Result<Bytes, ReadError> {
        let within = usize::try_from(offset).ok().and_then(|from| Some(from..from.checked_add(len)?));
        if let Some(whole) = self.get(&content)
            && let Some(range) = within.filter(|range| range.end <= whole.len())
        {
            return Ok(whole.slice(range));
        }
        if len <= FEW {
            return file.read_at(offset, len).map(Bytes::from);
        }
        let mut joined = Vec::new();
        loop {
            let at = offset + joined.len() as u64;
            let block = self.block(file, content, at / BLOCK)?;
            let start = usize::try_from(at % BLOCK).unwrap_or(0);
            let end = block.len().min(start + (len - joined.len()));
            if start >= end {
                return Err(ReadError::Changed);
            }
            if end - start == len {
                return Ok(block.slice(start..end));
            }
            joined.reserve_exact(len - joined.len());
            joined.extend_from_slice(&block[start..end]);
            if joined.len() == len {
                return Ok(joined.into());
            }
        }
    }

    /// The content with this digest and size; `read` gets and verifies it, if nobody has.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn content(
        &self,
        digest: Digest,
        size: u64,
        read: impl FnOnce() -> Result<Bytes, ReadError>,
    ) -> Result<Bytes, ReadError> {
        self.recent.once(Key::Content(digest), usize::try_from(size).unwrap_or(usize::MAX), read)
    }

    /// The content, if somebody has read it.
    pub fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.recent.get(&Key::Content(*digest))
    }

    /// Keeps a content that was just read and hashed.
    pub fn put(&self, digest: Digest, content: &Bytes) {
        let _ = self.content(digest, content.len() as u64, || Ok(content.clone()));
    }

    /// Gives up what was kept for long enough.
    pub fn forget_old(&self) {
        self.recent.forget_old();
    }

    fn block(&self, file: &SourceFile, content: Digest, number: u64) -> Result<Bytes, ReadError> {
        let tuple = *file.tuple();
        let start = number * BLOCK;
        let size = usize::try_from(BLOCK.min(tuple.size.saturating_sub(start))).unwrap_or(0);
        self.recent.once(Key::Block(tuple, content, number), size, || {
            let mut bytes = vec![0; size];
            file.read_exact_at(start, &mut bytes)?;
            Ok(Bytes::from(bytes))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::noise;
    use crate::fs::Root;
    use crate::path::RelPath;

    #[test]
    fn a_file_that_changes_while_it_is_read_does_not_spoil_another_of_the_same_content() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let content = noise(3 << 20, 1);
        let [first, second] = ["first", "second"].map(|name| {
            std::fs::write(dir.path().join(name), &content).unwrap();
            let path = RelPath::new(name).unwrap();
            let tuple = root.stat(&path).unwrap().unwrap().tuple;
            SourceFile::open(&root, &path, &tuple).unwrap()
        });
        std::fs::write(dir.path().join("first"), noise(3 << 20, 2)).unwrap();
        let reads = Reads::default();
        let digest = Digest::of(&content);
        let read = |file: &SourceFile| reads.range(file, digest, 500, 2 << 20).unwrap();
        read(&first);
        assert!(first.verify(&root).is_err());
        for _ in 0..2 {
            assert!(read(&second) == content[500..500 + (2 << 20)] && second.verify(&root).is_ok());
        }
        // Each is read once: what is there by now is not what was.
        std::fs::write(dir.path().join("second"), noise(3 << 20, 3)).unwrap();
        assert!(read(&second) == content[500..500 + (2 << 20)]);
        assert!(
            reads.range(&second, digest, (3 << 20) - 1, 2).is_err()
                && reads.range(&second, digest, 3 << 20, 1).is_err()
        );
        // Unless something else shall be there.
        let other = Digest::of(b"what is there by now");
        assert!(reads.range(&second, other, 500, 100_000).unwrap() != content[500..100_500]);
        // What is little is not kept, unless all of it is here already.
        assert!(reads.range(&second, digest, 500, 1000).unwrap() != content[500..1500]);
        reads.put(digest, &content.clone().into());
        assert!(reads.range(&second, digest, 500, 1000).unwrap() == content[500..1500]);
        assert!(reads.range(&second, digest, (3 << 20) - 1, 2).is_err());
    }
}
