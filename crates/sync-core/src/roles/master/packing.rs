//! Compresses what goes to replicas: once what goes to several of them alike.
//!
//! What a stream carries compressed builds on all that it has carried before (see [`StreamCompressor`]). So streams that carry the same
//! from their beginning on are one *chain*: whoever comes first to a block has the chain's compressor take it, and the others find what
//! that made. A stream that carries something else, or comes when what it needs is not kept any more, ends its zstd frame and goes on
//! with another chain, which others may join at its beginning. Now and then all do that, at blocks that only their content decides: so
//! those that were apart meet again.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use foldhash::HashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::recent::Recent;
use crate::compress::{FRAME_END, LIGHT_LEVEL, STRONG_LEVEL, StreamCompressor, compress_after};
use crate::hash::Digest;
use crate::session::ContentRequest;
use crate::wire::Encoding;

/// Bytes kept for those that come later; a block counts with what it was before. So far two streams of a chain may be apart.
const CAPACITY: usize = 64 << 20;

/// Chains that compress strongly at the same time because a link is slow, each with some 50 MB. When a person asks for a level, all do.
const MOST_STRONG: usize = 4;

/// All chains end, and others begin, after about so many bytes: twice what the widest window reaches.
const CHAIN: u64 = 64 << 20;

/// A chain, by its number, and how many of its blocks were carried; `None` if there is none yet.
pub type Place = Option<(u64, u64)>;

/// Whether these bytes, of which so many are between two such on average, are where streams that were apart come together: that only they
/// themselves decide.
pub fn is_meeting(digest: &Digest, len: u64, between: u64) -> bool {
    u128::from(digest.prefix()) * u128::from(between) < u128::from(len) << 64
}

/// What is kept for others.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    /// The first block of a chain, of any: nothing is before it.
    First(Digest),
    /// A block of the chain with this number, and how many were before it.
    Next(u64, u64, Digest),
    /// A block behind old bytes that both sides have.
    Behind(Digest, Digest),
    /// The digests of the contents in a batch that begins with this one, in a stream at this place.
    Batch(Place, Digest),
}

/// What the streams of a source share.
pub struct Packing {
    /// `None` if there is just one destination.
    recent: Option<Recent<Key>>,
    /// Chains by their first block.
    beginnings: Mutex<HashMap<Digest, Weak<Chain>>>,
    chains: AtomicU64,
    strong: Arc<Semaphore>,
}

impl Packing {
    /// For so many destinations.
    pub fn new(destinations: usize) -> Self {
        Self {
            recent: (destinations > 1).then(|| Recent::new(CAPACITY)),
            beginnings: Mutex::default(),
            chains: AtomicU64::new(0),
            strong: Arc::new(Semaphore::new(MOST_STRONG)),
        }
    }

    /// How many chains were begun.
    #[cfg(test)]
    pub fn chains(&self) -> u64 {
        self.chains.load(Ordering::Relaxed)
    }

    /// Whether there are others that may find something here.
    pub fn is_shared(&self) -> bool {
        self.recent.is_some()
    }

    /// Gives up what was kept for long enough.
    pub fn forget_old(&self) {
        if let Some(recent) = &self.recent {
            recent.forget_old();
        }
    }

    /// Which contents went together in a batch that began with this one, for somebody at the same place: where others put the same
    /// together, that is compressed once.
    pub fn batch(&self, place: Place, first: &Digest) -> Option<Bytes> {
        self.recent.as_ref()?.get(&Key::Batch(place, *first))
    }

    /// These go together.
    pub fn batched(&self, place: Place, requests: &[ContentRequest]) {
        let (Some(recent), Some(first)) = (&self.recent, requests.first()) else { return };
        let digests = || requests.iter().flat_map(|request| request.file.digest.0).collect::<Vec<u8>>();
        let size = size_of::<Digest>() * requests.len();
        let _ = recent.once(Key::Batch(place, first.file.digest), size, || Ok::<_, ()>(digests().into()));
    }

    /// What this is to be called for others that may have it as well.
    fn block(&self, bytes: &[u8]) -> Digest {
        // Alone there is nobody to find it.
        if self.recent.is_some() { Digest::of(bytes) } else { Digest::empty() }
    }

    /// What was made, without room to grow if it is kept.
    fn keep(&self, small: Option<Vec<u8>>) -> Bytes {
        let small = small.unwrap_or_default();
        if self.recent.is_some() { small.into_boxed_slice().into() } else { small.into() }
    }

    fn new_chain(&self, first: Digest) -> Arc<Chain> {
        Arc::new(Chain { number: self.chains.fetch_add(1, Ordering::Relaxed), first, state: Mutex::default() })
    }

    /// The chain that begins with this block; a new one if there is none.
    fn chain(&self, block: Digest) -> Arc<Chain> {
        if self.recent.is_none() {
            return self.new_chain(block);
        }
        let mut beginnings = self.beginnings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chain) = beginnings.get(&block).and_then(Weak::upgrade) {
            return chain;
        }
        beginnings.retain(|_, chain| chain.strong_count() > 0);
        let chain = self.new_chain(block);
        beginnings.insert(block, Arc::downgrade(&chain));
        chain
    }

    /// What begins with this block begins anew: of the chain that did, the beginning is not kept any more.
    fn renew(&self, block: Digest) -> Arc<Chain> {
        self.beginnings.lock().unwrap_or_else(PoisonError::into_inner).remove(&block);
        self.chain(block)
    }
}

/// Blocks that build on each other.
struct Chain {
    number: u64,
    /// What others that join it begin with.
    first: Digest,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Blocks that it has taken.
    taken: u64,
    /// Made when first something is compressed; it may fail once and for all.
    compressor: Option<io::Result<StreamCompressor>>,
    /// Held while the compressor is a strong one because a link is slow.
    strong: Option<OwnedSemaphorePermit>,
}

impl Chain {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The next block, of which this is what is sent; `None` if it goes as it is. Others that follow may want another level, but in turns
    /// none would have anything of what was before: it stays as it is.
    fn compress(
        &mut self,
        bytes: &[u8],
        level: i32,
        is_followed: bool,
        strong: Option<&Arc<Semaphore>>,
    ) -> Option<Vec<u8>> {
        self.taken += 1;
        let level = match strong {
            _ if is_followed && let Some(level) = self.level() => level,
            Some(strong) if level == STRONG_LEVEL => {
                if self.strong.is_none() {
                    self.strong = Arc::clone(strong).try_acquire_owned().ok();
                }
                // Many slow links at the same time shall not take all the memory.
                if self.strong.is_some() { level } else { LIGHT_LEVEL }
            }
            _ => level,
        };
        let compressor = self.compressor.get_or_insert_with(|| StreamCompressor::new(level));
        let compressed = match compressor.as_mut().map(|zstd| zstd.compress(bytes, level)) {
            Ok(Ok(small)) => small,
            Ok(Err(error)) => {
                *compressor = Err(error);
                None
            }
            // Without memory for it, content goes as it is.
            Err(_) => None,
        };
        self.rest();
        compressed
    }

    /// Others may compress strongly, unless what is in the frame that is open was: it stays as large as it is while nothing comes.
    fn rest(&mut self) {
        if self.level() != Some(STRONG_LEVEL) {
            self.strong = None;
        }
    }

    /// How strongly what is in the frame that is open was compressed.
    fn level(&self) -> Option<i32> {
        self.compressor.as_ref()?.as_ref().ok().map(StreamCompressor::level)
    }
}

/// Compresses what one stream carries.
pub struct Packer {
    packing: Arc<Packing>,
    /// Whether the level is one that a slow link suggests, of which there are only so many.
    is_auto: bool,
    /// The chain, and how many of its blocks were carried. `None` until something is compressed.
    place: Option<(Arc<Chain>, u64)>,
    frame: Frame,
}

/// What the replica has of zstd frames.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// Nothing of one that has not ended.
    None,
    /// The chain's.
    Open,
    /// That of a chain that was left: it is to be ended before another one begins.
    Left,
}

impl Packer {
    /// For a stream from its beginning on.
    pub fn new(packing: Arc<Packing>, is_auto: bool) -> Self {
        Self { packing, is_auto, place: None, frame: Frame::None }
    }

    /// Where the stream is.
    pub fn place(&self) -> Place {
        self.place.as_ref().map(|(chain, before)| (chain.number, *before))
    }

    /// What to send of a block, and how that is encoded; `None` if the block goes as it is. `prefix` is what the replica has for it to
    /// lie behind, and without a level nothing is compressed.
    pub fn pack(&mut self, bytes: &[u8], prefix: &[u8], level: Option<i32>) -> Option<(Encoding, Bytes)> {
        let Some(level) = level else {
            // Who is at work there does the same behind it.
            if let Some((chain, _)) = &self.place
                && let Ok(mut state) = chain.state.try_lock()
            {
                state.rest();
            }
            return None;
        };
        if !prefix.is_empty() && !bytes.is_empty() {
            let small = self.behind(prefix, bytes, level);
            if !small.is_empty() {
                return Some((Encoding::AfterGaps, small));
            }
        }
        let small = self.next(bytes, level);
        (!small.is_empty()).then_some((Encoding::Zstd, small))
    }

    /// A block behind its prefix; nothing if that does not help.
    fn behind(&self, prefix: &[u8], bytes: &[u8], level: i32) -> Bytes {
        let compress = || {
            // No chain is held up for it, nor is its place kept.
            let place = if self.is_auto { Arc::clone(&self.packing.strong).try_acquire_owned().ok() } else { None };
            let level = if self.is_auto && place.is_none() { level.min(LIGHT_LEVEL) } else { level };
            self.packing.keep(compress_after(prefix, bytes, level))
        };
        match &self.packing.recent {
            Some(recent) => {
                let key = Key::Behind(Digest::of(prefix), self.packing.block(bytes));
                recent.once(key, bytes.len(), || Ok::<_, ()>(compress())).unwrap_or_default()
            }
            None => compress(),
        }
    }

    /// The next block of the stream.
    fn next(&mut self, bytes: &[u8], level: i32) -> Bytes {
        let block = self.packing.block(bytes);
        let link = |packing: &Packing, chain: &Arc<Chain>, before| {
            let strong = if self.is_auto { Some(&packing.strong) } else { None };
            let compress = || {
                let is_followed = Arc::strong_count(chain) > 1;
                let mut state = chain.state();
                let is_next = state.taken == before;
                is_next.then(|| packing.keep(state.compress(bytes, level, is_followed, strong))).ok_or(())
            };
            let key = if before == 0 { Key::First(block) } else { Key::Next(chain.number, before, block) };
            match &packing.recent {
                // What nobody else can come to shall not take the place of what somebody may.
                Some(recent) if before == 0 || Arc::strong_count(chain) > 1 || recent.has(&Key::First(chain.first)) => {
                    recent.once(key, bytes.len(), compress).ok()
                }
                _ => compress().ok(),
            }
        };
        if let Some((chain, before)) = &mut self.place {
            let is_meeting = self.packing.recent.is_some() && is_meeting(&block, bytes.len() as u64, CHAIN);
            if !is_meeting && let Some(small) = link(&self.packing, chain, *before) {
                *before += 1;
                return self.framed(small);
            }
            if self.frame == Frame::Open {
                self.frame = Frame::Left;
            }
        }
        // If nobody else is there, its memory and its right to be strong are free for the next.
        self.place = None;
        let packing = Arc::clone(&self.packing);
        let mut chain = packing.chain(block);
        loop {
            if let Some(small) = link(&packing, &chain, 0) {
                self.place = Some((chain, 1));
                return self.framed(small);
            }
            chain = packing.renew(block);
        }
    }

    /// What was made of a block, behind the end of the frame before if that is still open.
    fn framed(&mut self, small: Bytes) -> Bytes {
        match self.frame {
            _ if small.is_empty() => small,
            Frame::Left => {
                self.frame = Frame::Open;
                [&FRAME_END, &small[..]].concat().into()
            }
            Frame::None | Frame::Open => {
                self.frame = Frame::Open;
                small
            }
        }
    }
}

#[cfg(test)]
mod tests;
