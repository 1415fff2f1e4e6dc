//! Large files, read and hashed by several threads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};

use super::{ReadError, SourceFile};
use crate::fs::Root;
use crate::hash::{BLOCK, BlockHash, BlockTree, Digest};

/// Most threads that read one file: a few outrun whatever is made of the content in order.
const READERS: usize = 4;

/// Bytes that are read at once: several blocks, whose hashes are handed over together.
const PIECE: u64 = 4 * BLOCK;

/// Pieces beyond one for each of them: read, and not yet taken.
const AHEAD: usize = 2;

/// A piece, and the hash of each of its blocks.
type Piece = (Vec<BlockHash>, Vec<u8>);

/// A piece's number, and what was read of it.
type Outcome = (u64, Result<Piece, ReadError>);

/// The number of what a reader sends that panics, and sends no piece any more.
const LOST: u64 = u64::MAX;

/// A reader's end of the channel. The other readers keep it open, so that one that panics must say so.
struct Reader(Sender<Outcome>);

impl Drop for Reader {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Without anybody who waits, nobody needs to know.
            let _ = self.0.send((LOST, Err(ReadError::Cancelled)));
        }
    }
}

/// Reads and hashes a file of more than one [`BLOCK`]; `take` gets it in order, piece by piece. `None` if there is no
/// thread for it, and then nothing was taken.
///
/// Holds a few pieces. Believe it only after [`SourceFile::verify`].
///
/// # Errors
/// [`ReadError`] of the first piece that cannot be read; [`ReadError::Cancelled`] within a few pieces after `cancel`
/// turned true.
pub(super) fn hash(
    root: &Root,
    file: &SourceFile,
    cancel: &AtomicBool,
    take: &mut dyn FnMut(&[u8]),
) -> Result<Option<Digest>, ReadError> {
    let size = file.expected.size;
    let readers = std::thread::available_parallelism().map_or(1, |n| n.get().min(READERS));
    let (room, rooms) = mpsc::channel();
    let rooms = &Mutex::new(rooms);
    let next = &AtomicU64::new(0);
    let (full, pieces) = mpsc::channel();
    std::thread::scope(|scope| {
        // Dropped when this ends, however it does: then the readers end.
        let room = room;
        let mut reading = false;
        for _ in 0..readers {
            let full = Reader(full.clone());
            let read = move || {
                while let Some(piece) = read_next(file, size, next, rooms) {
                    if full.0.send(piece).is_err() {
                        break;
                    }
                }
            };
            reading |= std::thread::Builder::new().spawn_scoped(scope, read).is_ok();
        }
        drop(full);
        if !reading {
            return Ok(None);
        }
        // There is room for as many, so that nothing waits for room but the readers.
        (0..readers + AHEAD).for_each(|_| drop(room.send(Vec::new())));
        let mut tree = BlockTree::default();
        let mut early = BTreeMap::new();
        for at in 0..size.div_ceil(PIECE) {
            if cancel.load(Ordering::Relaxed) {
                return Err(ReadError::Cancelled);
            }
            let (hashes, bytes) = match await_piece(at, &pieces, &mut early) {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => {
                    // What cannot be read may be something else by now, a directory say.
                    file.verify(root)?;
                    return Err(error);
                }
                // A reader that panicked; leaving the scope tells it.
                None => return Err(ReadError::Cancelled),
            };
            hashes.into_iter().for_each(|hash| tree.push(hash));
            take(&bytes);
            // After the last piece nobody wants it.
            let _ = room.send(bytes);
        }
        Ok(tree.finish())
    })
}

/// The piece whose turn it is; `early` has those that came before their turn.
fn await_piece(
    at: u64,
    pieces: &Receiver<Outcome>,
    early: &mut BTreeMap<u64, Result<Piece, ReadError>>,
) -> Option<Result<Piece, ReadError>> {
    loop {
        if let Some(piece) = early.remove(&at) {
            return Some(piece);
        }
        let (at, piece) = pieces.recv().ok().filter(|(at, _)| *at != LOST)?;
        early.insert(at, piece);
    }
}

/// Reads the next piece that nobody reads yet, once there is room for it; `None` after the last.
fn read_next(file: &SourceFile, size: u64, next: &AtomicU64, rooms: &Mutex<Receiver<Vec<u8>>>) -> Option<Outcome> {
    // First the room, then the piece: nobody who has room waits for one who has none.
    let mut bytes = rooms.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()?;
    let i = next.fetch_add(1, Ordering::Relaxed);
    let at = i.checked_mul(PIECE).filter(|at| *at < size)?;
    bytes.resize(usize::try_from(PIECE.min(size - at)).unwrap_or(0), 0);
    Some((i, file.read_exact_at(at, &mut bytes).map(|()| (BlockHash::of_each(at / BLOCK, &bytes), bytes))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_panics_is_not_waited_for() {
        let (full, blocks) = mpsc::channel();
        // Another one that has nothing to say.
        let _other = full.clone();
        let reader = Reader(full);
        let panics = move || {
            let _reader = reader;
            panic!("on purpose");
        };
        assert!(std::thread::spawn(panics).join().is_err());
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || done.send(await_piece(0, &blocks, &mut BTreeMap::new()).is_none()));
        assert_eq!(ended.recv_timeout(std::time::Duration::from_secs(10)), Ok(true));
    }
}
