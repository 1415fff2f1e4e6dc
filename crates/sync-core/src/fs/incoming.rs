//! Content on its way into staging: written in order, hashed while it is written, visible only when it is whole.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};

use rustix::fs::{AtFlags, Mode, OFlags, ftruncate, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::basis_file::BasisFile;
use super::copying::{Block, Blocks};
use super::draft::Drafted;
use super::error::{FsError, IncomingError, is_full};
use super::sparse::{self, BLOCK};
use super::staging::{Phase, Stage, Staging, State, create, is_big, part_name};
use crate::chunk::{ChunkRef, Chunker, Chunking};
use crate::hash::{self, ContentHasher, Digest};
use crate::manifest::Metadata;
use crate::path::RelPath;

/// How many bytes are gathered before they are written, and read at a time.
const PIECE: usize = 256 << 10;

/// Ranges of an old file from this many bytes on are read beside the writing.
const BESIDE: u64 = 8 << 20;

/// Blocks of an old file are shared from this many bytes on: a shorter range costs more to share than to copy.
const SHARED: u64 = 64 << 10;

/// Pieces that are read ahead then.
const AHEAD: usize = 8;

/// The beginning of a big content, left by an interrupted push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Bytes that the chunks cover.
    pub size: u64,
    /// Its chunks, cut with the sizes for the whole content. The last one of the part is left out, since it may have
    /// been cut short.
    pub chunks: Vec<ChunkRef>,
}

/// One content being received. Dropped before it is finished, a big one leaves what has arrived of it as its part, if
/// that holds a whole chunk, and a smaller one nothing.
#[derive(Debug)]
pub struct Incoming {
    staging: Arc<Staging>,
    stage: Arc<Stage>,
    near: RelPath,
    digest: Digest,
    size: u64,
    fd: OwnedFd,
    /// What the file is called until it is whole.
    name: String,
    hasher: ContentHasher,
    /// Blocks beyond `written` that a draft has copied already.
    drafted: Blocks,
    /// Bytes that went to the file (or became holes), always a multiple of [`BLOCK`] until the end.
    written: u64,
    /// Bytes after those, not yet a whole piece.
    gathered: Vec<u8>,
    finished: bool,
}

impl Staging {
    /// Starts to receive a content of `size` bytes for `near` from its beginning; `None` if it is staged already.
    ///
    /// # Errors
    /// [`IncomingError::Elsewhere`] if it is being received already; [`IncomingError::Fs`] if the staging directory or the
    /// file cannot be made.
    pub fn begin(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        near: &RelPath,
    ) -> Result<Option<Incoming>, IncomingError> {
        let _going_on = self.going_on(near)?;
        let stage = self.stage_near(near)?;
        if !self.claim(digest, &stage)? {
            return Ok(None);
        }
        let name = if is_big(size) { part_name(digest) } else { self.fresh_name() };
        let fd = create(stage.fd(), name.as_bytes()).map_err(|errno| {
            self.contents().swap_remove(digest);
            if is_full(errno) {
                self.met_full_disk();
            }
            FsError::new("stage", near, errno)
        })?;
        Ok(Some(self.incoming(stage, fd, name, digest, size, near)))
    }

    /// The same for a big content that was drafted: what is copied from just there where the draft was is there already.
    ///
    /// # Errors
    /// As [`Staging::begin`].
    pub fn begin_drafted(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        near: &RelPath,
        draft: Drafted,
    ) -> Result<Option<Incoming>, IncomingError> {
        let going_on = self.going_on(near)?;
        let stage = self.stage_near(near)?;
        if draft.size() != size || !is_big(size) || !draft.is_in(&stage) {
            drop(going_on);
            return self.begin(digest, size, near);
        }
        if !self.claim(digest, &stage)? {
            return Ok(None);
        }
        let name = part_name(digest);
        let (fd, blocks) = draft.rename(&name).map_err(|errno| {
            self.contents().swap_remove(digest);
            FsError::new("stage", near, errno)
        })?;
        let mut incoming = self.incoming(stage, fd, name, digest, size, near);
        incoming.drafted = blocks;
        Ok(Some(incoming))
    }

    /// Goes on with a part from `offset`, which must end a chunk that the peer confirmed (or be 0). What the part has
    /// beyond it is cut off; what it has before is hashed again here.
    ///
    /// # Errors
    /// [`IncomingError::Elsewhere`] if it is being received already; [`IncomingError::Fs`] if there is no such part, it is
    /// shorter than `offset`, or the disk refuses; also if the session is asked to stop meanwhile, and then the part stays
    /// as it is.
    pub fn begin_at(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        near: &RelPath,
        offset: u64,
    ) -> Result<Option<Incoming>, IncomingError> {
        if offset == 0 {
            return self.begin(digest, size, near);
        }
        let stage = {
            let _going_on = self.going_on(near)?;
            let mut contents = self.contents();
            match contents.get_mut(digest) {
                Some(content) if content.state == State::Part => {
                    content.state = State::Receiving;
                    Arc::clone(&content.stage)
                }
                Some(content) if content.state == State::Receiving => return Err(IncomingError::Elsewhere),
                Some(_) => return Ok(None),
                None => return Err(FsError::because("resume", near, "no part of it is staged").into()),
            }
        };
        let fail = |errno| {
            self.settle(digest, State::Part);
            FsError::new("resume", near, errno)
        };
        // Nobody else begins what is being received, and the end of the session need not wait for the reading.
        let (fd, hasher) = read_part(&stage, digest, size, offset, &self.stop).map_err(fail)?;
        // Writing goes on at a block's beginning: the bytes of a begun block are gathered again.
        let aligned = offset - offset % BLOCK as u64;
        let mut begun = vec![0; (offset - aligned) as usize];
        let read = sparse::read_at(&fd, aligned, &mut begun).map_err(fail)?;
        if read != begun.len() {
            return Err(fail(Errno::INVAL).into());
        }
        let going_on = self.going_on(near)?;
        ftruncate(&fd, offset).map_err(fail)?;
        drop(going_on);
        let mut incoming = self.incoming(stage, fd, part_name(digest), digest, size, near);
        (incoming.hasher, incoming.written, incoming.gathered) = (hasher, aligned, begun);
        Ok(Some(incoming))
    }

    /// The part of a content of `target_size` bytes that an interrupted push left, with its chunks; it is read for
    /// that. `None` if there is none worth resuming, or the session is asked to stop.
    ///
    /// # Errors
    /// [`FsError`] if the part cannot be read.
    pub fn part(&self, digest: &Digest, target_size: u64) -> Result<Option<Part>, FsError> {
        let stage = match self.contents().get(digest) {
            Some(content) if content.state == State::Part => Arc::clone(&content.stage),
            _ => return Ok(None),
        };
        let fail = |errno| FsError::new("read the part in", &stage.mount.staging_path(), errno);
        let fd = open_part(&stage, digest).map_err(fail)?;
        let chunks = match whole_chunks(&fd, target_size, target_size, &self.stop) {
            Err(Errno::CANCELED) => return Ok(None),
            chunks => chunks.map_err(fail)?,
        };
        let size = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
        Ok((size > 0).then_some(Part { size, chunks }))
    }

    fn incoming(
        self: &Arc<Self>,
        stage: Arc<Stage>,
        fd: OwnedFd,
        name: String,
        digest: &Digest,
        size: u64,
        near: &RelPath,
    ) -> Incoming {
        Incoming {
            staging: Arc::clone(self),
            stage,
            near: near.clone(),
            digest: *digest,
            size,
            fd,
            name,
            hasher: ContentHasher::default(),
            drafted: Blocks::new(),
            written: 0,
            gathered: Vec::new(),
            finished: false,
        }
    }
}

impl Incoming {
    /// Bytes received so far.
    pub fn position(&self) -> u64 {
        self.written + self.gathered.len() as u64
    }

    /// Adds the next bytes.
    ///
    /// # Errors
    /// [`IncomingError::Mismatch`] if there are more than announced; [`IncomingError::Fs`] if the disk refuses.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), IncomingError> {
        if bytes.len() as u64 > self.size.saturating_sub(self.position()) {
            return Err(IncomingError::Mismatch);
        }
        self.hasher.update(bytes);
        self.gather(bytes)
    }

    /// Writes what makes whole blocks, and keeps the rest.
    fn gather(&mut self, mut bytes: &[u8]) -> Result<(), IncomingError> {
        if self.gathered.is_empty() && bytes.len() >= PIECE {
            let whole = bytes.len() - bytes.len() % BLOCK;
            self.put(&bytes[..whole])?;
            bytes = &bytes[whole..];
        }
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= PIECE { self.put_gathered() } else { Ok(()) }
    }

    /// Writes the whole blocks of what is gathered.
    fn put_gathered(&mut self) -> Result<(), IncomingError> {
        let mut gathered = std::mem::take(&mut self.gathered);
        let whole = gathered.len() - gathered.len() % BLOCK;
        self.put(&gathered[..whole])?;
        gathered.drain(..whole);
        self.gathered = gathered;
        Ok(())
    }

    /// Adds `count` zeros, which become a hole as far as blocks allow.
    ///
    /// # Errors
    /// As [`Incoming::write`].
    pub fn zeros(&mut self, mut count: u64) -> Result<(), IncomingError> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        while count > 0 {
            let now = count.min(ZEROS.len() as u64);
            self.write(&ZEROS[..now as usize])?;
            count -= now;
        }
        Ok(())
    }

    /// Adds `len` bytes of a file that the replica has, from `offset`.
    ///
    /// # Errors
    /// As [`Incoming::write`]; [`IncomingError::Mismatch`] also if that file cannot be read so far: the content may still
    /// come in another way.
    pub fn copy_from(&mut self, basis: &BasisFile, mut offset: u64, mut len: u64) -> Result<(), IncomingError> {
        if len > self.size.saturating_sub(self.position()) {
            return Err(IncomingError::Mismatch);
        }
        while let Some(before) = self.until_drafted(offset, len) {
            self.copy(basis, offset, before)?;
            self.put_gathered()?;
            self.take_drafted()?;
            offset += before + hash::BLOCK;
            len -= before + hash::BLOCK;
        }
        self.copy(basis, offset, len)
    }

    /// How many bytes there are before a drafted block in what is copied from `offset` on.
    fn until_drafted(&self, offset: u64, len: u64) -> Option<u64> {
        let Block { i, from, .. } = *self.drafted.front()?;
        let before = i.checked_mul(hash::BLOCK)?.checked_sub(self.position())?;
        let is_it = before.checked_add(hash::BLOCK)? <= len && offset.checked_add(before)? == from;
        is_it.then_some(before)
    }

    /// Counts the first drafted block as written; it begins where the writing is.
    fn take_drafted(&mut self) -> Result<(), IncomingError> {
        let Some(Block { hash, .. }) = self.drafted.pop_front() else { return Ok(()) };
        // Out of step, which does not happen, the content would only come out wrong.
        if !self.hasher.take_block(hash) {
            return Err(IncomingError::Mismatch);
        }
        self.written += hash::BLOCK;
        Ok(())
    }

    fn copy(&mut self, basis: &BasisFile, mut offset: u64, mut len: u64) -> Result<(), IncomingError> {
        // The bytes must be read to be hashed, so that asking the kernel to copy them would save nothing.
        if len >= SHARED {
            // From a block's beginning on, blocks can be shared, and what is read is written as it is and need not be gathered.
            let begun = ((BLOCK - self.gathered.len() % BLOCK) % BLOCK) as u64;
            self.copy_through(basis, offset, begun)?;
            self.put_gathered()?;
            (offset, len) = (offset + begun, len - begun);
            let whole = len - len % BLOCK as u64;
            if self.share(basis, offset, whole)? {
                (offset, len) = (offset + whole, len - whole);
            }
        }
        if len >= BESIDE {
            return self.copy_beside(basis, offset, len);
        }
        self.copy_through(basis, offset, len)
    }

    /// Adds whole blocks of a file by sharing them, if that can be done, where nothing is gathered; tells whether.
    fn share(&mut self, basis: &BasisFile, offset: u64, len: u64) -> Result<bool, IncomingError> {
        let staging = Arc::clone(&self.staging);
        let going_on = staging.going_on(&self.near)?;
        self.drop_draft(len).map_err(|errno| self.fail(errno))?;
        if !basis.share(offset, &self.fd, self.written, len).map_err(|errno| self.fail(errno))? {
            return Ok(false);
        }
        drop(going_on);
        let end = self.written + len;
        let mut buffer = vec![0; PIECE];
        while self.written < end {
            let piece = usize::try_from(end - self.written).map_or(PIECE, |left| left.min(PIECE));
            let read = sparse::read_exact_at(&self.fd, self.written, &mut buffer[..piece]);
            read.map_err(|errno| FsError::new("read the staged content of", &self.near, errno))?;
            self.hasher.update(&buffer[..piece]);
            self.written += piece as u64;
        }
        Ok(true)
    }

    fn copy_through(&mut self, basis: &BasisFile, mut offset: u64, mut len: u64) -> Result<(), IncomingError> {
        let mut buffer = vec![0; PIECE.min(usize::try_from(len).unwrap_or(PIECE))];
        while len > 0 {
            let now = usize::try_from(len).map_or(buffer.len(), |len| len.min(buffer.len()));
            basis.read_exact_at(offset, &mut buffer[..now]).map_err(|_| IncomingError::Mismatch)?;
            self.write(&buffer[..now])?;
            offset += now as u64;
            len -= now as u64;
        }
        Ok(())
    }

    /// The same for a long range: another thread reads and hashes while this one writes, which takes as long.
    fn copy_beside(&mut self, basis: &BasisFile, offset: u64, len: u64) -> Result<(), IncomingError> {
        let mut hasher = std::mem::take(&mut self.hasher);
        let (full, pieces) = mpsc::sync_channel::<Vec<u8>>(AHEAD);
        let (done, empty) = mpsc::channel::<Vec<u8>>();
        std::thread::scope(|scope| {
            let read = move || {
                let mut at = 0;
                while at < len {
                    let mut piece = empty.try_recv().unwrap_or_default();
                    piece.resize(usize::try_from(len - at).map_or(PIECE, |rest| rest.min(PIECE)), 0);
                    basis.read_exact_at(offset + at, &mut piece)?;
                    hasher.update(&piece);
                    at += piece.len() as u64;
                    // Nobody writes any more: that failed, and says so.
                    if full.send(piece).is_err() {
                        break;
                    }
                }
                Ok::<_, FsError>(hasher)
            };
            let reading = std::thread::Builder::new().spawn_scoped(scope, read);
            let reading =
                reading.map_err(|e| FsError::because("copy", &self.near, format!("no thread for it: {e}")))?;
            for piece in pieces {
                self.gather(&piece)?;
                // The last ones are wanted by nobody.
                let _ = done.send(piece);
            }
            let read = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            self.hasher = read.map_err(|_| IncomingError::Mismatch)?;
            Ok(())
        })
    }

    /// Ends the content: verified, it gets its digest as a name and counts as staged. `likely` is as for
    /// [`Staging::store`].
    ///
    /// # Errors
    /// [`IncomingError::Mismatch`] if size or digest are wrong, and then nothing of it is left;
    /// [`IncomingError::Fs`] if the disk refuses.
    pub fn finish(mut self, likely: Option<&Metadata>) -> Result<(), IncomingError> {
        if self.position() != self.size || std::mem::take(&mut self.hasher).finish() != Some(self.digest) {
            self.discard();
            return Err(IncomingError::Mismatch);
        }
        let last = std::mem::take(&mut self.gathered);
        self.put(&last)?;
        let staging = Arc::clone(&self.staging);
        let phase = staging.going_on(&self.near)?;
        let ended =
            ftruncate(&self.fd, self.size).and_then(|()| self.stage.dress_ahead(self.fd.as_fd(), 0o600, likely));
        let dressed = ended.map_err(|errno| self.fail(errno))?;
        let gathering = *phase == Phase::Gathering;
        let in_place = match staging.take_place(&self.near, &self.stage, &self.name, gathering, self.size) {
            true => Some(staging.in_place(&self.near, &self.stage, &self.fd, self.size, dressed.as_ref())),
            false => {
                renameat(self.stage.fd(), &self.name, self.stage.fd(), self.digest.to_hex())
                    .map_err(|errno| self.fail(errno))?;
                None
            }
        };
        self.finished = true;
        self.staging.complete(&self.digest, dressed, in_place);
        Ok(())
    }

    /// Writes bytes that begin at a block. If the disk refuses, also without any drafts beside it, what it has of the
    /// content goes: on a full one it would take the room of everything after it.
    fn put(&mut self, bytes: &[u8]) -> Result<(), IncomingError> {
        let staging = Arc::clone(&self.staging);
        let mut going_on = staging.going_on(&self.near)?;
        let mut written = self.try_put(bytes);
        if written.is_err_and(is_full) {
            drop(going_on);
            staging.end_drafts();
            going_on = staging.going_on(&self.near)?;
            written = self.try_put(bytes);
        }
        if let Err(errno) = written {
            self.discard();
            return Err(self.fail(errno).into());
        }
        drop(going_on);
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn try_put(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.drop_draft(bytes.len() as u64)?;
        sparse::write_sparse(&self.fd, self.written, bytes)
    }

    /// Takes back what a draft has, if any of it is where the next `len` bytes go: zeros among them leave holes, where
    /// nothing else may be.
    fn drop_draft(&mut self, len: u64) -> Result<(), Errno> {
        let end = self.written + len;
        let is_in_the_way = self.drafted.front().is_some_and(|block| block.i.saturating_mul(hash::BLOCK) < end);
        if is_in_the_way {
            self.drafted.clear();
            ftruncate(&self.fd, self.written)?;
        }
        Ok(())
    }

    fn fail(&self, errno: Errno) -> FsError {
        if is_full(errno) {
            self.staging.met_full_disk();
        }
        FsError::new("stage", &self.near, errno)
    }

    /// Makes what has arrived a part, whose holes at the end count; `false` if it is none worth keeping.
    fn keep_part(&mut self) -> bool {
        let last = std::mem::take(&mut self.gathered);
        let arrived = self.written + last.len() as u64;
        let untouched = self.drop_draft(u64::MAX - self.written);
        let whole = || {
            untouched?;
            sparse::write_sparse(&self.fd, self.written, &last)?;
            ftruncate(&self.fd, arrived)?;
            // No chunk is longer, so that the first, if it is whole, ends within this.
            let limit = arrived.min(Chunking::for_size(self.size).max() as u64);
            // So little is read when the session is about to stop as well.
            whole_chunks(&self.fd, limit, self.size, &AtomicBool::new(false))
        };
        is_big(self.size) && whole().is_ok_and(|chunks| !chunks.is_empty())
    }

    /// Removes the file: there is nothing in it that could be of use.
    fn discard(&mut self) {
        let _ = unlinkat(self.stage.fd(), &self.name, AtFlags::empty());
        self.staging.contents().swap_remove(&self.digest);
        self.finished = true;
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let staging = Arc::clone(&self.staging);
        // When the session is over it has been dealt with, and a part may be a later session's by now.
        let Ok(_going_on) = staging.going_on(&self.near) else { return };
        if self.keep_part() {
            self.staging.settle(&self.digest, State::Part);
        } else {
            self.discard();
        }
    }
}

/// The chunks of the first `limit` bytes, cut with the sizes for a content of `target_size`. The last is left out unless
/// it has the greatest length: what comes after it may belong to it.
fn whole_chunks(fd: impl AsFd, limit: u64, target_size: u64, stop: &AtomicBool) -> Result<Vec<ChunkRef>, Errno> {
    let chunking = Chunking::for_size(target_size);
    let mut chunker = Chunker::new(chunking);
    let mut chunks: Vec<ChunkRef> = Vec::new();
    sparse::each_piece(fd, limit, stop, |piece| chunker.push(piece, &mut |chunk| chunks.push(ChunkRef::of(chunk))))?;
    chunker.finish(&mut |chunk| chunks.push(ChunkRef::of(chunk)));
    chunks.pop_if(|last| (last.len as usize) < chunking.max());
    Ok(chunks)
}

fn open_part(stage: &Stage, digest: &Digest) -> Result<OwnedFd, Errno> {
    openat(stage.fd(), part_name(digest), OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a part, and hashes what it has before `offset`.
fn read_part(
    stage: &Stage,
    digest: &Digest,
    size: u64,
    offset: u64,
    stop: &AtomicBool,
) -> Result<(OwnedFd, ContentHasher), Errno> {
    let fd = open_part(stage, digest)?;
    let has = rustix::fs::fstat(&fd)?.st_size;
    if offset > size || u64::try_from(has).unwrap_or(0) < offset {
        return Err(Errno::INVAL);
    }
    let mut hasher = ContentHasher::default();
    sparse::each_piece(&fd, offset, stop, |piece| hasher.update(piece))?;
    Ok((fd, hasher))
}

#[cfg(test)]
mod tests;
