//! Content frames: many small files in one batch, or one piece of a big file.
//!
//! The body is a postcard head followed by the content bytes themselves, so that megabytes are neither copied into nor
//! out of a serializer.

use serde::{Deserialize, Serialize};

use super::{Envelope, MAX_RAW, WireError, envelope, malformed, take};
use crate::delta::patch::Run;

/// How content bytes are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoding {
    /// As they are.
    Plain,
    /// The next block of the stream's one zstd frame.
    Zstd,
}

/// Contents of several small files, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The files.
    pub files: Vec<BatchFile>,
    /// How all of the bytes together are encoded.
    pub encoding: Encoding,
}

/// One file of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchFile {
    /// Which.
    pub seq: u64,
    /// Bytes of it that are in the batch.
    pub literal: u32,
    /// What comes from the pieces of the old file; nothing in a file that is sent whole.
    pub runs: Vec<Run>,
}

/// Some bytes of a file and what follows them in the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Splice {
    /// Bytes that are in the frame.
    pub literal: u32,
    /// Zeros behind them.
    pub zeros: u32,
    /// How far behind the end of the last copied range the next one begins; negative before it.
    pub skip: i64,
    /// Bytes to copy.
    pub copy: u64,
}

/// One piece of a file; pieces of a file come in order on one stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// Bytes.
    Literal {
        /// Which file.
        seq: u64,
        /// Where they go.
        offset: u64,
        /// How many there are, decoded.
        len: u32,
        /// How they are encoded.
        encoding: Encoding,
    },
    /// Zeros.
    Zeros {
        /// Which file.
        seq: u64,
        /// Where they go.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// Bytes in turn with ranges of the old file at that path.
    Spliced {
        /// Which file.
        seq: u64,
        /// Where the first of them goes.
        offset: u64,
        /// The ranges. The first skips from the beginning of the old file.
        splices: Vec<Splice>,
        /// How the bytes of all together are encoded.
        encoding: Encoding,
    },
    /// The file is complete.
    End {
        /// Which file.
        seq: u64,
    },
}

/// What a content stream carries, borrowing the bytes that follow the head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentFrame<'a> {
    /// Small files.
    Batch(Batch, &'a [u8]),
    /// A piece of a big one.
    Piece(Piece, &'a [u8]),
}

const BATCH: u16 = 201;
const PIECE: u16 = 202;

impl ContentFrame<'_> {
    /// The envelope with the frame's head; the content bytes follow it in the same body.
    pub fn head(&self) -> Envelope {
        match self {
            Self::Batch(batch, _) => envelope(BATCH, batch),
            Self::Piece(piece, _) => envelope(PIECE, piece),
        }
    }

    /// The frame in `body`; `None` for a type this build does not know.
    ///
    /// # Errors
    /// [`WireError`] if it is malformed or claims more than [`MAX_RAW`] decoded bytes.
    pub fn decode(kind: u16, version: u8, body: &[u8]) -> Result<Option<ContentFrame<'_>>, WireError> {
        let frame = match kind {
            BATCH => {
                let (batch, bytes) = take::<Batch>(kind, version, body)?;
                let total: u64 = batch.files.iter().map(|file| u64::from(file.literal)).sum();
                check(kind, total, batch.encoding, bytes.len())?;
                ContentFrame::Batch(batch, bytes)
            }
            PIECE => {
                let (piece, bytes) = take::<Piece>(kind, version, body)?;
                match &piece {
                    Piece::Literal { len, encoding, .. } => check(kind, u64::from(*len), *encoding, bytes.len())?,
                    Piece::Spliced { splices, encoding, .. } => {
                        let total = splices.iter().map(|splice| u64::from(splice.literal)).sum();
                        check(kind, total, *encoding, bytes.len())?;
                    }
                    _ => check(kind, 0, Encoding::Plain, bytes.len())?,
                }
                ContentFrame::Piece(piece, bytes)
            }
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }
}

fn check(kind: u16, raw: u64, encoding: Encoding, encoded: usize) -> Result<(), WireError> {
    if raw > MAX_RAW as u64 {
        return Err(malformed(kind, format!("{raw} content bytes, more than the {MAX_RAW} allowed")));
    }
    if encoding == Encoding::Plain && encoded as u64 != raw {
        return Err(malformed(kind, format!("{encoded} content bytes where {raw} were announced")));
    }
    Ok(())
}
