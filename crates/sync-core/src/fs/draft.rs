//! A content begun before it is known: what it will probably have in common with an old file is copied into staging
//! while the master still reads.
//!
//! A draft proves nothing. When the content comes, a block that is to be copied from just where the draft copied it from
//! counts as written and hashed; at the first that is not, the rest of the draft is dropped: see [`super::incoming`].
//! Nor does it keep anything else from its place: it is begun only where there is room to spare, and if there is none any
//! more, what is certain to be wanted ends all drafts first.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};

use rustix::fs::{AtFlags, fstatvfs, ftruncate, renameat, unlinkat};
use rustix::io::Errno;

use super::basis_file::BasisFile;
use super::copying::{Block, Blocks, Copying, Threads};
use super::error::FsError;
use super::sparse;
use super::staging::{Stage, Staging, create};
use crate::delta::CopyRange;
use crate::hash::{BLOCK, BlockHash};
use crate::path::RelPath;

/// Blocks that are read and written at once, at most.
const TOGETHER: u64 = 4;

/// Pieces that are read ahead of the writing.
const AHEAD: usize = 2;

/// Ranges that wait to be copied: as many as one message may tell. What does not fit is copied later, as without a draft.
const QUEUE: usize = 4096;

/// Bytes of a content of which there is a draft: what is behind is copied later. So what is remembered of it takes up to 13 MB.
const MOST: u64 = 32 << 30;

/// What drafts leave free on their file system, in bytes.
const RESERVE: u64 = 64 << 20;

/// Some blocks in a row that were read.
struct Piece {
    /// Where they are in the content.
    at: u64,
    blocks: Vec<Block>,
    bytes: Vec<u8>,
    /// They are in the draft already: shared with the old file.
    is_there: bool,
}

/// A draft under way. Dropped, it leaves nothing; that waits for the blocks that are just being read and written.
#[derive(Debug)]
pub struct Draft {
    /// Where the ranges taken so far end.
    end: u64,
    // Before the file: it is removed when nobody writes to it any more.
    copying: Arc<Copying>,
    file: DraftFile,
}

/// What a draft has written. Dropped, it is removed.
#[derive(Debug)]
pub struct Drafted {
    file: DraftFile,
    fd: OwnedFd,
    blocks: Blocks,
}

/// The name of a draft in staging, and what it is for.
#[derive(Debug)]
struct DraftFile {
    staging: Arc<Staging>,
    stage: Arc<Stage>,
    near: RelPath,
    size: u64,
    /// Nothing once it is somebody else's.
    name: Option<String>,
}

impl Staging {
    /// Begins a draft of a content of `size` bytes for `near`, with what `basis` has of it. Two threads, which end with it.
    ///
    /// # Errors
    /// [`FsError`] if there is no room to spare for it, or if the staging directory, the file or a thread cannot be made.
    pub fn draft(self: &Arc<Self>, near: &RelPath, size: u64, basis: BasisFile) -> Result<Draft, FsError> {
        let mut under_way = self.drafts.all();
        under_way.retain(|(_, draft)| draft.strong_count() > 0);
        let going_on = self.going_on(near)?;
        let stage = self.stage_near(near)?;
        if !has_room(&stage, under_way.iter().fold(size, |sum, (size, _)| sum.saturating_add(*size))) {
            return Err(FsError::because("draft", near, "there is no room to spare for it"));
        }
        let name = self.fresh_name();
        let fd = create(stage.fd(), name.as_bytes()).map_err(|errno| FsError::new("stage", near, errno))?;
        let draft = fd.try_clone().map_err(|error| FsError::because("stage", near, error.to_string()))?;
        drop(going_on);
        let file = DraftFile { staging: Arc::clone(self), stage, near: near.clone(), size, name: Some(name) };
        let given_up = Arc::new(AtomicBool::new(false));
        let (ranges, told) = mpsc::sync_channel(QUEUE);
        let (full, pieces) = mpsc::sync_channel(AHEAD);
        let (done, empty) = mpsc::channel();
        let write = {
            let (staging, near) = (Arc::clone(self), near.clone());
            move || write(&staging, &near, fd, &pieces, &done)
        };
        let read = {
            let (staging, near, given_up) = (Arc::clone(self), near.clone(), Arc::clone(&given_up));
            let reader = Reader { staging, near, basis, draft, given_up };
            move || reader.read(&told, &full, &empty)
        };
        let fail = |error| FsError::because("copy", near, format!("no thread for it: {error}"));
        // One that finds no partner ends at once.
        let writing = std::thread::Builder::new().spawn(write).map_err(fail)?;
        let reading = std::thread::Builder::new().spawn(read).map_err(fail)?;
        let copying = Arc::new(Copying::new(given_up, Threads { ranges, reading, writing }));
        under_way.push((size, Arc::downgrade(&copying)));
        Ok(Draft { end: 0, copying, file })
    }

    /// Ends all drafts, and gives back the room of what they have: for what finds none and is certain to be wanted. Not
    /// while [`Staging::going_on`] is held.
    pub(super) fn end_drafts(&self) {
        let mut under_way = self.drafts.all();
        under_way.drain(..).filter_map(|(_, draft)| draft.upgrade()).for_each(|draft| draft.end());
    }
}

/// Whether so many bytes can be written, and something is left. A file system that tells nothing has room until it
/// refuses.
fn has_room(stage: &Stage, bytes: u64) -> bool {
    // A tmpfs without a limit says that it has no blocks at all.
    let free = fstatvfs(stage.fd()).ok().filter(|now| now.f_blocks > 0);
    free.is_none_or(|now| bytes.saturating_add(RESERVE) <= now.f_bavail.saturating_mul(now.f_frsize))
}

impl Draft {
    /// Will copy the whole blocks of a range, unless too many wait already; one that has none, is not behind all before,
    /// or reaches beyond the content or the first 32 GiB of it, is passed over.
    pub fn copy(&mut self, range: CopyRange) {
        let end = range.at.saturating_add(range.len);
        if range.at >= self.end && end <= self.file.size.min(MOST) && range.has_block() {
            self.end = end;
            if let Some(threads) = &*self.copying.threads() {
                // If it failed, that shows in the end.
                let _ = threads.ranges.try_send(range);
            }
        }
    }

    /// Waits for all that was to be copied; `None` if that could not be done.
    pub fn finish(self) -> Option<Drafted> {
        let Self { copying, file, .. } = self;
        let (read, written) = copying.join()?;
        let (fd, blocks) = read.and(written).ok()?;
        Some(Drafted { file, fd, blocks })
    }
}

impl Drafted {
    /// Bytes of the content.
    pub fn size(&self) -> u64 {
        self.file.size
    }

    /// Whether it is in that staging directory.
    pub(super) fn is_in(&self, stage: &Arc<Stage>) -> bool {
        Arc::ptr_eq(&self.file.stage, stage)
    }

    /// Gives the file that name in its staging directory, and hands it over.
    pub(super) fn rename(mut self, name: &str) -> Result<(OwnedFd, Blocks), Errno> {
        let stage = Arc::clone(&self.file.stage);
        if let Some(now) = self.file.name.take()
            && let Err(errno) = renameat(stage.fd(), &now, stage.fd(), name)
        {
            let _ = unlinkat(stage.fd(), &now, AtFlags::empty());
            return Err(errno);
        }
        Ok((self.fd, self.blocks))
    }
}

impl Drop for DraftFile {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else { return };
        // When the session is over it has been dealt with, and the name may be a later session's by now.
        if let Ok(_going_on) = self.staging.going_on(&self.near) {
            let _ = unlinkat(self.stage.fd(), &name, AtFlags::empty());
        }
    }
}

/// Who reads for a draft.
struct Reader {
    staging: Arc<Staging>,
    near: RelPath,
    basis: BasisFile,
    /// What is shared with the old file is read here: what is hashed must be what is there.
    draft: OwnedFd,
    given_up: Arc<AtomicBool>,
}

impl Reader {
    /// Reads and hashes the blocks of the ranges.
    fn read(
        &self,
        ranges: &Receiver<CopyRange>,
        full: &SyncSender<Piece>,
        empty: &Receiver<Vec<u8>>,
    ) -> Result<(), FsError> {
        for range in ranges {
            let is_there = self.share(range)?;
            for piece in range.pieces(TOGETHER) {
                let mut bytes: Vec<u8> = empty.try_recv().unwrap_or_default();
                bytes.resize(usize::try_from(piece.len).unwrap_or(0), 0);
                if is_there {
                    self.read_draft(piece.at, &mut bytes)?;
                } else {
                    self.basis.read_exact_at(piece.from, &mut bytes)?;
                }
                let hashes = BlockHash::of_each(piece.at / BLOCK, &bytes);
                let blocks = piece.blocks().zip(hashes).map(|((i, from), hash)| Block { i, from, hash }).collect();
                let is_over = self.staging.is_stopped() || self.given_up.load(Ordering::Relaxed);
                // Nobody writes any more: that failed, and says so.
                if is_over || full.send(Piece { at: piece.at, blocks, bytes, is_there }).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Shares the blocks of the range with the old file, if that can be done.
    fn share(&self, range: CopyRange) -> Result<bool, FsError> {
        let _going_on = self.staging.going_on(&self.near)?;
        let Some(CopyRange { at, from, len }) = range.pieces(u64::MAX).next() else { return Ok(false) };
        self.basis.share(from, &self.draft, at, len).map_err(|errno| FsError::new("stage", &self.near, errno))
    }

    fn read_draft(&self, at: u64, bytes: &mut [u8]) -> Result<(), FsError> {
        sparse::read_exact_at(&self.draft, at, bytes)
            .map_err(|errno| FsError::new("read the draft of", &self.near, errno))
    }
}

/// Writes pieces as they come. After an error hardly any of them takes room, and none once
/// it is over.
fn write(
    staging: &Staging,
    near: &RelPath,
    fd: OwnedFd,
    pieces: &Receiver<Piece>,
    done: &Sender<Vec<u8>>,
) -> Result<(OwnedFd, Blocks), FsError> {
    let mut written = Blocks::new();
    for Piece { at, blocks, bytes, is_there } in pieces {
        let _going_on = staging.going_on(near)?;
        if !is_there && let Err(errno) = sparse::write_sparse(&fd, at, &bytes) {
            let _ = ftruncate(&fd, 0);
            return Err(FsError::new("stage", near, errno));
        }
        written.extend(blocks);
        // The last ones are wanted by nobody.
        let _ = done.send(bytes);
    }
    Ok((fd, written))
}

#[cfg(test)]
mod tests;
