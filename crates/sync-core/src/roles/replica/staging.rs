//! Takes contents from the network into staging: verified, by digest, in whatever order they come.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::HashMap;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::basis::{self, OldFile};
use super::drafts::Drafts;
use super::open::Opened;
use crate::compress::{StreamDecompressor, decompress_after};
use crate::delta::patch::{self, Cuts, Run};
use crate::fs::{BasisFile, FsError, Incoming, IncomingError, Root, Staging};
use crate::manifest::Metadata;
use crate::monitor::Problem;
use crate::path::RelPath;
use crate::roles::link::LinkError;
use crate::session::{ProtocolError, Settled};
use crate::transport::{Connection, Frame, FrameReader};
use crate::wire::{
    self, Batch, BatchFile, ContentFrame, Encoding, MAX_CONTENT, MAX_PREFIX, MAX_RAW, Offered, Piece, Splice, gaps,
};

/// Content streams that a master may open in one session.
const MAX_STREAMS: usize = 16;

/// Bytes of old files that are held while a batch is opened and stored.
const MOST_OLD: usize = 16 << 20;

/// Bytes of cuts that are held for contents that will come; old files beyond are cut once more.
const MOST_CUTS: usize = 8 << 20;

/// A content that was asked for.
#[derive(Clone, Debug)]
pub struct Expected {
    /// What it is and where it belongs.
    pub file: Offered,
    /// The old file that its copies refer to, or another one that stands in for it.
    pub basis: Option<OldFile>,
    /// Where that is cut, if that is known.
    pub cuts: Option<Cuts>,
    /// Whether it will not come.
    pub given_up: bool,
}

impl Expected {
    fn has_stand_in(&self) -> bool {
        self.basis.as_ref().is_some_and(|(path, _)| *path != self.file.path)
    }
}

type Settlements = mpsc::UnboundedSender<Vec<(u64, Settled)>>;

struct Shared {
    expected: Mutex<HashMap<u64, Expected>>,
    replica: Mutex<Option<(Arc<Root>, Arc<Staging>)>>,
    settled: Settlements,
    /// Changes when a content is given up.
    given_up: watch::Sender<()>,
    copied: AtomicU64,
    stood_in: AtomicU64,
    drafts: Drafts,
    /// Bytes of cuts among what is expected.
    cuts: AtomicUsize,
}

impl Shared {
    fn new(settled: Settlements) -> Self {
        Self {
            expected: Mutex::default(),
            replica: Mutex::default(),
            settled,
            given_up: watch::Sender::default(),
            copied: AtomicU64::new(0),
            stood_in: AtomicU64::new(0),
            drafts: Drafts::default(),
            cuts: AtomicUsize::new(0),
        }
    }

    fn give_up(&self, seq: u64) {
        if let Some(expected) = self.expected().get_mut(&seq) {
            expected.given_up = true;
        }
        self.given_up.send_replace(());
    }

    fn expected(&self) -> MutexGuard<'_, HashMap<u64, Expected>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts content streams and stages what they carry.
pub struct Stager {
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Stager {
    /// Starts to accept streams; what became of each content goes to `settled`.
    pub fn new(connection: Connection, settled: Settlements) -> Self {
        let shared = Arc::new(Shared::new(settled));
        let accepting = tokio::spawn(accept(connection, Arc::clone(&shared)));
        Self { shared, accepting }
    }

    /// Where to stage.
    pub fn use_replica(&self, opened: &Opened) {
        let place = opened.root.clone().zip(opened.staging.clone());
        *self.shared.replica.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    /// A content is about to be asked for.
    pub fn expect(&self, seq: u64, mut expected: Expected) {
        self.shared.drafts.claim(seq, &expected.file, expected.basis.as_ref());
        let held = self.shared.cuts.load(Ordering::Relaxed);
        expected.cuts = expected.cuts.filter(|cuts| held + cuts.size() <= MOST_CUTS);
        self.shared.cuts.fetch_add(expected.cuts.as_ref().map_or(0, Cuts::size), Ordering::Relaxed);
        self.shared.expected().insert(seq, expected);
    }

    /// Takes a content that is expected and came by itself.
    pub fn take(&self, seq: u64, content: &[u8]) -> Result<(), LinkError> {
        let literal = u32::try_from(content.len()).map_err(|_| protocol("a content that is too long to be given"))?;
        let batch = Batch { files: vec![BatchFile { seq, literal, runs: Vec::new() }], encoding: Encoding::Plain };
        Files::new(Arc::clone(&self.shared)).batch(&batch, content)
    }

    /// Copies what a content will probably have in common with an old file.
    pub fn draft(&self, opened: &Opened, draft: wire::Draft) {
        if let (Some(root), Some(staging)) = (&opened.root, &opened.staging)
            && !opened.holds.covers(&draft.path)
        {
            self.shared.drafts.take(root, &opened.index, staging, draft);
        }
    }

    /// The content at that path is not asked for now.
    pub fn pass_over(&self, path: &RelPath) {
        self.shared.drafts.forget(path);
    }

    /// All contents are there, and what was drafted of others is of no use.
    pub fn drop_drafts(&self) {
        self.shared.drafts.clear();
    }

    /// The master cannot send a content after all; what is still under way of it is ignored.
    pub fn give_up(&self, seq: u64) {
        tokio::task::block_in_place(|| self.shared.drafts.give_up(seq));
        self.shared.give_up(seq);
    }

    /// The old file in place of an awaited content.
    pub fn basis_of(&self, seq: u64) -> Option<OldFile> {
        self.shared.expected().get(&seq)?.basis.clone()
    }

    /// Content bytes that came from old files so far.
    pub fn copied_bytes(&self) -> u64 {
        self.shared.copied.load(Ordering::Relaxed)
    }

    /// How many contents came in part from a file that stood in for an old one.
    pub fn stood_in(&self) -> u64 {
        self.shared.stood_in.load(Ordering::Relaxed)
    }

    /// Stops accepting; returns when nothing is written any more.
    pub async fn stop(&mut self) {
        self.accepting.abort();
        // Aborted or not: its streams are aborted with it.
        let _ = (&mut self.accepting).await;
        tokio::task::block_in_place(|| self.drop_drafts());
    }
}

async fn accept(connection: Connection, shared: Arc<Shared>) {
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..MAX_STREAMS {
        let Ok(reader) = connection.accept_uni().await else { break };
        let (shared, connection) = (Arc::clone(&shared), connection.clone());
        streams.spawn(async move {
            if let Err(error) = receive(reader, shared).await
                && connection.close_reason().is_none()
            {
                tracing::info!(%error, "content stream broke");
                connection.close(error.code(), &error.to_string()).await;
            }
        });
    }
    while streams.join_next().await.is_some() {}
}

/// A stream's contents, frame by frame.
async fn receive(mut reader: FrameReader, shared: Arc<Shared>) -> Result<(), LinkError> {
    let mut given_up = shared.given_up.subscribe();
    let mut files = Files::new(shared);
    loop {
        let mut next = std::pin::pin!(reader.next(MAX_CONTENT + (1 << 20)));
        let frame = loop {
            tokio::select! {
                frame = &mut next => break frame?,
                // Whoever tells of it is there as long as this stream.
                _ = given_up.changed() => tokio::task::block_in_place(|| files.drop_given_up()),
            }
        };
        let Some(frame) = frame else { return Ok(()) };
        tokio::task::block_in_place(|| files.take(&frame))?;
    }
}

/// The big files of one stream that are under way.
struct Files {
    shared: Arc<Shared>,
    open: HashMap<u64, Open>,
    decompressor: Option<StreamDecompressor>,
}

struct Open {
    path: RelPath,
    likely: Metadata,
    incoming: Option<Incoming>,
    basis: Option<BasisFile>,
    /// Whether that is another file than the one in place.
    stands_in: bool,
    /// Bytes that were taken of it.
    reused: u64,
    /// The first failure; the rest of the file is skipped.
    failed: Option<Settled>,
}

fn unasked(seq: u64) -> LinkError {
    protocol(format!("content {seq} came without being asked for"))
}

fn protocol(text: impl Into<String>) -> LinkError {
    ProtocolError(text.into()).into()
}

impl Files {
    fn new(shared: Arc<Shared>) -> Self {
        Self { shared, open: HashMap::default(), decompressor: None }
    }

    fn take(&mut self, frame: &Frame) -> Result<(), LinkError> {
        match ContentFrame::decode(frame.kind, frame.version, &frame.body)? {
            Some(ContentFrame::Batch(batch, bytes)) => self.batch(&batch, bytes),
            Some(ContentFrame::Piece(piece, bytes)) => self.piece(&piece, bytes),
            None => Ok(()),
        }
    }

    fn expected(&self, seq: u64) -> Result<Expected, LinkError> {
        self.shared.expected().get(&seq).cloned().ok_or_else(|| unasked(seq))
    }

    fn place(&self) -> Result<(Arc<Root>, Arc<Staging>), LinkError> {
        let place = self.shared.replica.lock().unwrap_or_else(PoisonError::into_inner);
        place.clone().ok_or_else(|| protocol("content came in a session that takes none"))
    }

    /// Frames are decoded in their order, each once, whatever becomes of what they hold.
    fn decode<'a>(&mut self, encoding: Encoding, bytes: &'a [u8], len: usize) -> Result<Cow<'a, [u8]>, LinkError> {
        if encoding == Encoding::Plain {
            return Ok(bytes.into());
        }
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => none.insert(StreamDecompressor::new().map_err(|e| protocol(format!("cannot decompress: {e}")))?),
        };
        decompressor.decompress(bytes, len, MAX_RAW).map(Into::into).map_err(|e| protocol(e.to_string()))
    }

    fn settle(&self, settled: Vec<(u64, Settled)>) {
        {
            let mut expected = self.shared.expected();
            // What failed may be asked for once more.
            let staged = settled.iter().filter(|(_, settled)| *settled == Settled::Staged);
            staged.for_each(|(seq, _)| drop(expected.remove(seq)));
            if expected.is_empty() {
                expected.shrink_to_fit();
            }
        }
        // If the session is over, nobody needs to know.
        let _ = self.shared.settled.send(settled);
    }

    fn batch(&mut self, batch: &Batch, bytes: &[u8]) -> Result<(), LinkError> {
        let total: usize = batch.files.iter().map(|file| file.literal as usize).sum();
        let (root, staging) = self.place()?;
        let expected = self.take_expected(batch)?;
        let mut old = Old::default();
        let raw = match batch.encoding {
            Encoding::AfterGaps => old.open(&root, batch, &expected, bytes, total),
            encoding => Some(self.decode(encoding, bytes, total)?),
        };
        let mut settled = Vec::with_capacity(batch.files.len());
        let mut rest = raw.as_deref();
        for (i, (BatchFile { seq, literal, runs }, mut expected)) in batch.files.iter().zip(expected).enumerate() {
            let literals = match rest.map(|rest| rest.split_at_checked(*literal as usize)) {
                Some(Some((literals, after))) => {
                    rest = Some(after);
                    Some(literals)
                }
                Some(None) => return Err(protocol("a batch holds less than it says")),
                None => None,
            };
            let cuts = expected.cuts.take();
            let file = &expected.file;
            if expected.given_up {
                continue;
            }
            let old = old.files.get_mut(i).and_then(Option::take);
            let old = OldContent { read: old, cuts };
            let stored = match literals.and_then(|literals| content(&root, &expected, old, runs, literals)) {
                Some(content) => staging.store(&file.digest, &content, &file.path, Some(&file.likely)),
                None => Err(IncomingError::Mismatch),
            };
            if stored.is_ok() {
                self.shared.copied.fetch_add(file.size.saturating_sub(u64::from(*literal)), Ordering::Relaxed);
                self.shared
                    .stood_in
                    .fetch_add(u64::from(!runs.is_empty() && expected.has_stand_in()), Ordering::Relaxed);
            }
            match stored {
                Ok(()) => settled.push((*seq, Settled::Staged)),
                Err(error) => {
                    settled.push((*seq, failed(error, &file.path)));
                    // It may be asked for once more.
                    self.shared.expected().insert(*seq, expected);
                }
            }
        }
        self.settle(settled);
        Ok(())
    }

    /// What the batch was asked for.
    fn take_expected(&self, batch: &Batch) -> Result<Vec<Expected>, LinkError> {
        let mut expected = self.shared.expected();
        let mut take = |seq: u64| expected.remove(&seq).ok_or_else(|| unasked(seq));
        let taken: Vec<_> = batch.files.iter().map(|file| take(file.seq)).collect::<Result<_, _>>()?;
        let cuts = taken.iter().filter_map(|expected| expected.cuts.as_ref()).map(Cuts::size).sum();
        self.shared.cuts.fetch_sub(cuts, Ordering::Relaxed);
        Ok(taken)
    }

    fn piece(&mut self, piece: &Piece, bytes: &[u8]) -> Result<(), LinkError> {
        match *piece {
            Piece::Spliced { seq, offset, ref splices, encoding } => {
                let raw = self.decode(encoding, bytes, literal_bytes(splices))?;
                self.spliced(seq, offset, 0, splices, Some(&raw))?;
            }
            Piece::Patched { seq, offset, from, tail, ref splices, encoding } => {
                let raw = match encoding {
                    Encoding::AfterGaps => {
                        self.open(seq, offset)?.after_gaps(&gaps(from, tail, splices), bytes, splices)
                    }
                    encoding => Some(self.decode(encoding, bytes, literal_bytes(splices))?),
                };
                self.spliced(seq, offset, from, splices, raw.as_deref())?;
            }
            Piece::Literal { seq, offset, len, encoding } => {
                let raw = self.decode(encoding, bytes, len as usize)?;
                self.open(seq, offset)?.then(|incoming, _| incoming.write(&raw));
            }
            Piece::Zeros { seq, offset, len } => {
                self.open(seq, offset)?.then(|incoming, _| incoming.zeros(len));
            }
            Piece::End { seq } => {
                let Some(open) = self.open.remove(&seq) else {
                    return Err(protocol(format!("content {seq} ends before it begins")));
                };
                let (reused, stands_in) = (open.reused, open.stands_in && open.reused > 0);
                let settled = open.finish();
                if settled == Settled::Staged {
                    self.shared.copied.fetch_add(reused, Ordering::Relaxed);
                    self.shared.stood_in.fetch_add(u64::from(stands_in), Ordering::Relaxed);
                }
                self.settle(vec![(seq, settled)]);
            }
        }
        Ok(())
    }

    /// Bytes in turn with ranges of the old file; without the bytes, the file is not to be had in this way.
    fn spliced(
        &mut self,
        seq: u64,
        offset: u64,
        mut from: u64,
        splices: &[Splice],
        raw: Option<&[u8]>,
    ) -> Result<(), LinkError> {
        let open = self.open(seq, offset)?;
        let Some(mut rest) = raw else {
            open.then(|_, _| Err(IncomingError::Mismatch));
            return Ok(());
        };
        for Splice { literal, zeros, skip, copy } in splices {
            let (literal, after) = rest.split_at_checked(*literal as usize).unwrap_or((rest, &[]));
            rest = after;
            let begin = from.wrapping_add_signed(*skip);
            from = begin.wrapping_add(*copy);
            let done = open.then(|incoming, basis| {
                incoming.write(literal)?;
                incoming.zeros(u64::from(*zeros))?;
                match basis {
                    _ if *copy == 0 => Ok(()),
                    Some(basis) => incoming.copy_from(basis, begin, *copy),
                    None => Err(IncomingError::Mismatch),
                }
            });
            if !done {
                break;
            }
            open.reused += copy;
        }
        Ok(())
    }

    /// Lets go of what will not come to its end: it may be on its way by another of its names, in another stream.
    fn drop_given_up(&mut self) {
        for (seq, open) in &mut self.open {
            if self.shared.expected().get(seq).is_some_and(|expected| expected.given_up) {
                open.give_up();
            }
        }
    }

    /// The file of this piece, opened by its first: which says by its offset where an interrupted one goes on.
    fn open(&mut self, seq: u64, offset: u64) -> Result<&mut Open, LinkError> {
        if !self.open.contains_key(&seq) {
            // A master sends one file after the other: one without an end was given up.
            self.open.clear();
            let expected = self.expected(seq)?;
            let (root, staging) = self.place()?;
            let open = if expected.given_up {
                let Offered { path, likely, .. } = expected.file;
                let mut open =
                    Open { path, likely, incoming: None, basis: None, stands_in: false, reused: 0, failed: None };
                open.give_up();
                open
            } else {
                Open::begin(&root, &staging, &self.shared.drafts, seq, &expected, offset)
            };
            self.open.insert(seq, open);
        }
        let open = self.open.get_mut(&seq).ok_or_else(|| protocol("no such file"))?;
        if open.incoming.as_ref().is_some_and(|incoming| incoming.position() != offset) {
            return Err(protocol(format!("the pieces of content {seq} are out of order")));
        }
        Ok(open)
    }
}

impl Open {
    fn begin(root: &Root, staging: &Arc<Staging>, drafts: &Drafts, seq: u64, expected: &Expected, offset: u64) -> Self {
        let Expected { file, basis, .. } = expected;
        // An old file that cannot be used is no failure: what was to be taken of it does not match then, and is sent.
        let basis = basis.as_ref().and_then(|(path, tuple)| BasisFile::open(root, path, tuple).ok());
        // What goes on behind a part has no use for a draft.
        let begun = match drafts.finish(seq).filter(|_| offset == 0) {
            Some(drafted) => staging.begin_drafted(&file.digest, file.size, &file.path, drafted),
            None if offset == 0 => staging.begin(&file.digest, file.size, &file.path),
            None => staging.begin_at(&file.digest, file.size, &file.path, offset),
        };
        let (path, likely, stands_in) = (file.path.clone(), file.likely, expected.has_stand_in());
        let (incoming, failed) = match begun {
            Ok(incoming) => (incoming, None),
            Err(error) => (None, Some(failed(error, &path))),
        };
        Self { path, likely, incoming, basis, stands_in, reused: 0, failed }
    }

    /// Opens a frame that lies behind ranges of the old file; `None` if that is not what it was made behind.
    fn after_gaps(&self, gaps: &[(u64, u64)], frame: &[u8], splices: &[Splice]) -> Option<Cow<'static, [u8]>> {
        let basis = self.basis.as_ref()?;
        let mut prefix = Vec::new();
        for (at, len) in gaps {
            let begin = prefix.len();
            prefix.resize(begin.checked_add(usize::try_from(*len).ok()?)?, 0);
            basis.read_exact_at(*at, &mut prefix[begin..]).ok()?;
        }
        decompress_after(&prefix, frame, literal_bytes(splices), MAX_RAW).ok().map(Cow::Owned)
    }

    /// It does not come: the rest is skipped, and what there is of it is left for who may bring it.
    fn give_up(&mut self) {
        let reason = "the master cannot send it".to_owned();
        self.failed = Some(Settled::Failed(Problem { path: Some(self.path.clone()), reason }));
        self.incoming = None;
    }

    /// Does something with the file unless it has failed; says whether it went well.
    fn then(&mut self, work: impl FnOnce(&mut Incoming, Option<&BasisFile>) -> Result<(), IncomingError>) -> bool {
        // Nothing incoming and nothing failed: the content is staged already.
        let Some(incoming) = &mut self.incoming else { return false };
        match work(incoming, self.basis.as_ref()) {
            Ok(()) => true,
            Err(error) => {
                self.failed = Some(failed(error, &self.path));
                self.incoming = None;
                false
            }
        }
    }

    fn finish(self) -> Settled {
        match (self.failed, self.incoming) {
            (Some(failed), _) => failed,
            (None, None) => Settled::Staged,
            (None, Some(incoming)) => {
                incoming.finish(Some(&self.likely)).map_or_else(|error| failed(error, &self.path), |()| Settled::Staged)
            }
        }
    }
}

/// The old files of a batch, as far as they were read to open it.
#[derive(Default)]
struct Old {
    files: Vec<Option<(Vec<u8>, Cuts)>>,
    bytes: usize,
}

/// What is known of an old file already.
struct OldContent {
    /// All of it.
    read: Option<(Vec<u8>, Cuts)>,
    /// Where it was cut when it was told of.
    cuts: Option<Cuts>,
}

impl Old {
    /// Opens a batch that lies behind what its files do not take of their old ones; `None` if these are not what it was
    /// made behind.
    fn open(
        &mut self,
        root: &Root,
        batch: &Batch,
        expected: &[Expected],
        frame: &[u8],
        len: usize,
    ) -> Option<Cow<'static, [u8]>> {
        let mut prefix = Vec::new();
        for (file, expected) in batch.files.iter().zip(expected) {
            let old = expected.basis.as_ref().and_then(|old| basis::read_small(root, old).ok());
            let old = old.map(|old| {
                let cuts = Cuts::of(&old);
                (old, cuts)
            });
            if let Some((old, cuts)) = &old {
                patch::gaps(old, cuts, &file.runs, MAX_PREFIX, &mut prefix);
            }
            // What does not fit is read again.
            self.bytes += old.as_ref().map_or(0, |(old, cuts)| old.len() + cuts.size());
            self.files.push(old.filter(|_| self.bytes <= MOST_OLD));
        }
        decompress_after(&prefix, frame, len, MAX_RAW).ok().map(Cow::Owned)
    }
}

fn literal_bytes(splices: &[Splice]) -> usize {
    splices.iter().map(|splice| splice.literal as usize).sum()
}

/// The content of a small file; `None` if that is not what was announced, or the old file is not what it was.
fn content<'a>(
    root: &Root,
    expected: &Expected,
    old: OldContent,
    runs: &[Run],
    literals: &'a [u8],
) -> Option<Cow<'a, [u8]>> {
    let size = expected.file.size;
    if runs.is_empty() {
        return (literals.len() as u64 == size).then_some(Cow::Borrowed(literals));
    }
    let (old, cuts) = match old.read {
        Some(read) => read,
        None => {
            let content = basis::read_small(root, expected.basis.as_ref()?).ok()?;
            let cuts = old.cuts.unwrap_or_else(|| Cuts::of(&content));
            (content, cuts)
        }
    };
    let size = usize::try_from(size).ok().filter(|size| *size <= MAX_RAW)?;
    patch::apply(&old, &cuts, runs, literals, size).map(Cow::Owned)
}

fn failed(error: IncomingError, path: &RelPath) -> Settled {
    match error {
        IncomingError::Mismatch => Settled::Mismatch,
        IncomingError::Elsewhere => Settled::Elsewhere,
        IncomingError::Fs(error) => problem(&error, path),
    }
}

/// A problem of the file that was to be staged, wherever exactly it showed.
fn problem(error: &FsError, path: &RelPath) -> Settled {
    Settled::Failed(Problem { path: Some(path.clone()), ..error.to_problem() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Digest;
    use crate::manifest::Time;

    /// The master fails in mid-file, and sends no end: the content is asked for by its other name, and comes in another
    /// stream.
    #[test]
    fn what_was_given_up_in_mid_file_does_not_count_as_staged() {
        let dir = tempfile::tempdir().unwrap();
        let root = Arc::new(Root::open(dir.path()).unwrap());
        let staging = Arc::new(Staging::new(Arc::clone(&root)));
        let (sender, mut settled) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(sender));
        *shared.replica.lock().unwrap() = Some((root, Arc::clone(&staging)));
        let content = vec![7; 300_000];
        let (digest, likely) = (Digest::of(&content), Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Time::default() });
        for (seq, name) in ["a", "b"].into_iter().enumerate() {
            let file = Offered { path: RelPath::new(name).unwrap(), digest, size: content.len() as u64, likely };
            let expected = Expected { file, basis: None, cuts: None, given_up: false };
            shared.expected().insert(seq as u64, expected);
        }
        let [mut first, mut second] = [(); 2].map(|()| Files::new(Arc::clone(&shared)));
        let send = |files: &mut Files, seq, bytes: &[u8]| {
            let len = u32::try_from(bytes.len()).unwrap();
            files.piece(&Piece::Literal { seq, offset: 0, len, encoding: Encoding::Plain }, bytes).unwrap();
        };
        send(&mut first, 0, &content[..1000]);
        let mut whole_by_the_other = || {
            send(&mut second, 1, &content);
            second.piece(&Piece::End { seq: 1 }, &[]).unwrap();
            settled.try_recv().unwrap()
        };
        assert_eq!(whole_by_the_other(), [(1, Settled::Elsewhere)]);
        assert!(!staging.has(&digest));
        shared.give_up(0);
        first.drop_given_up();
        assert_eq!(whole_by_the_other(), [(1, Settled::Staged)]);
        assert!(staging.has(&digest));
        // What was still under way does not matter.
        first.piece(&Piece::Literal { seq: 0, offset: 1000, len: 1, encoding: Encoding::Plain }, &[7]).unwrap();
        assert!(staging.has(&digest));
    }
}
