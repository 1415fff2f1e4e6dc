//! The contents of a session by their numbers, each kept once however often it is numbered.

use std::hash::BuildHasher;
use std::ops::Deref;
use std::sync::Arc;

use foldhash::HashMap;
use foldhash::quality::RandomState;

use crate::hash::Digest;
use crate::manifest::Entry;
use crate::path::RelPath;
use crate::wire::Offered;

/// How often a replica may want one content: at first, again when it came wrong or found no room, and once to spare.
pub(super) const WANTS: u8 = 3;

#[derive(Debug, Default)]
pub(super) struct Contents {
    files: Vec<File>,
    /// For each number: which file, and how often it was wanted.
    numbers: Vec<(u32, u8)>,
    /// Files by a hash of path and digest, salted so that nobody can make two meet; the last one if two do.
    known: HashMap<u64, u32>,
    salt: RandomState,
}

/// One of those that were offered together to all replicas, or one that came in a change to this one.
#[derive(Debug)]
pub(super) enum Held {
    Together(Arc<Vec<Offered>>, u32),
    Alone(Box<Offered>),
}

impl Deref for Held {
    type Target = Offered;

    fn deref(&self) -> &Offered {
        match self {
            Self::Together(files, i) => &files[*i as usize],
            Self::Alone(file) => file,
        }
    }
}

#[derive(Debug)]
struct File {
    file: Held,
    /// Its first number.
    first: u64,
    /// Whether a change was told by that number.
    used: bool,
}

impl Contents {
    /// How many numbers were given.
    pub fn len(&self) -> u64 {
        self.numbers.len() as u64
    }

    /// Gives a content at a path the next number. One that was offered is numbered again when it comes in a change;
    /// `file` makes one that is new.
    pub fn number(&mut self, path: &RelPath, digest: &Digest, file: impl FnOnce() -> Held) {
        let hash = self.salt.hash_one((path, digest));
        let same = |i: &&u32| {
            let known = &self.files[**i as usize].file;
            (&known.path, &known.digest) == (path, digest)
        };
        let index = match self.known.get(&hash).filter(same) {
            Some(known) => *known,
            None => {
                let index = self.files.len() as u32;
                self.known.insert(hash, index);
                if self.files.len() == self.files.capacity() {
                    self.files.reserve_exact(2 + self.files.len() / 8);
                }
                self.files.push(File { file: file(), first: self.numbers.len() as u64, used: false });
                index
            }
        };
        self.numbers.push((index, 0));
    }

    /// The number, below `offers`, under which just this was offered: this content at this path, and nothing about the
    /// entry that an offer does not tell. Only once.
    pub fn use_offer(&mut self, offers: u64, path: &RelPath, entry: &Entry) -> Option<u64> {
        let (_, digest) = entry.content()?;
        let index = self.known.get(&self.salt.hash_one((path, &digest)))?;
        let File { file, first, used } = &mut self.files[*index as usize];
        let same = file.path == *path && file.likely == entry.metadata() && file.entry() == *entry;
        let usable = same && *first < offers && !*used;
        *used |= usable;
        usable.then_some(*first)
    }

    /// The file of that number, wanted once more; an error says why it cannot be had.
    pub fn want(&mut self, seq: u64) -> Result<Offered, String> {
        let number = usize::try_from(seq).ok().and_then(|i| self.numbers.get_mut(i));
        let (index, wanted) = number.ok_or_else(|| format!("content {seq} was wanted but never offered"))?;
        if *wanted >= WANTS {
            return Err(format!("content {seq} was wanted more than {WANTS} times"));
        }
        *wanted += 1;
        Ok(Offered::clone(&self.files[*index as usize].file))
    }
}
