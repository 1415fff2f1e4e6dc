//! What one replica waits for, and which stream takes what of it.

use std::collections::{HashMap, VecDeque};

use super::compare::Comparison;
use crate::options::Compress;
use crate::session::ContentRequest;
use crate::wire::Basis;

/// Files up to this size travel in batches.
pub const SMALL: u64 = 256 << 10;

/// What waits.
#[derive(Default)]
pub struct Queue {
    small: VecDeque<ContentRequest>,
    /// Small ones whose old content is probably kept: in batches of their own, which are not in the stream's frame.
    named: VecDeque<ContentRequest>,
    /// Large ones.
    pub big: VecDeque<ContentRequest>,
    /// What the replica was asked about.
    pub waiting: HashMap<u64, Comparison>,
    /// What it has answered.
    pub answered: VecDeque<Comparison>,
}

/// What a stream takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kinds {
    /// Whatever there is.
    All,
    /// What goes into batches.
    Small,
    /// What does not.
    Big,
}

/// Where everything is compressed, small files are all in one stream and big ones in another, where each helps with the
/// others: measured, dealing either out to both costs more than it saves in time.
pub fn kinds(compress: Compress, stream: usize) -> Kinds {
    match (compress, stream) {
        (Compress::Auto | Compress::Never, _) => Kinds::All,
        (Compress::Zstd(_), 0) => Kinds::Small,
        (Compress::Zstd(_), _) => Kinds::Big,
    }
}

/// What a stream does next.
pub enum Job {
    /// Small files, as many as make a batch.
    Small(Vec<ContentRequest>),
    /// A file to compare or to send whole.
    Big(ContentRequest),
    /// One whose old file is known now.
    GoOn(Comparison),
}

impl Queue {
    /// Adds a content.
    pub fn push(&mut self, request: ContentRequest, batch: u64) {
        let queue = match &request.basis {
            Basis::Named(_) if is_small(&request, batch) => &mut self.named,
            _ if is_small(&request, batch) => &mut self.small,
            _ => &mut self.big,
        };
        queue.push_back(request);
    }

    /// What a stream that takes these kinds does next.
    pub fn next(&mut self, batch: u64, kinds: Kinds) -> Option<Job> {
        match kinds {
            // What the replica has to be asked about goes first.
            Kinds::All => self.big().or_else(|| self.small(batch)),
            Kinds::Small => self.small(batch),
            Kinds::Big => self.big(),
        }
    }

    fn big(&mut self) -> Option<Job> {
        self.answered.pop_front().map(Job::GoOn).or_else(|| self.big.pop_front().map(Job::Big))
    }

    fn small(&mut self, batch: u64) -> Option<Job> {
        let queue = if self.named.is_empty() { &mut self.small } else { &mut self.named };
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(next) = queue.front().filter(|next| taken.is_empty() || bytes + next.file.size <= batch) {
            bytes += next.file.size;
            taken.extend(queue.pop_front());
        }
        (!taken.is_empty()).then_some(Job::Small(taken))
    }
}

/// Whether the content goes into a batch.
fn is_small(request: &ContentRequest, batch: u64) -> bool {
    let most = match &request.basis {
        Basis::None => SMALL.min(batch),
        // What is sent of it is probably much less.
        Basis::Pieces(_) | Basis::Named(_) => SMALL,
        Basis::File { .. } => 0,
    };
    request.file.size <= most && request.part.is_empty()
}
