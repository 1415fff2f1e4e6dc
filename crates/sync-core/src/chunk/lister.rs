//! The list of a file's chunks, made while it streams by.

use std::sync::Arc;

use foldhash::HashMap;

use super::settling::{Settled, Settling};
use super::{Boundaries, ChunkRef, Chunking};

/// Lists the chunks of a stream. One that *follows* an older list, that of the file before it changed, looks for
/// boundaries only where it did: if the bytes from a boundary on have the digest of the old chunk there, they end nowhere
/// before that did, and a look at the bytes around tells whether they end there too. To hash takes a tenth of the time
/// that it takes to search. The list is the same either way.
pub struct Lister {
    stream: Settling,
    listing: Listing,
}

struct Listing {
    boundaries: Boundaries,
    list: Vec<ChunkRef>,
    old: Option<Old>,
    /// How often a boundary was searched.
    #[cfg(test)]
    searches: usize,
}

/// The list that is followed.
struct Old {
    chunks: Arc<[ChunkRef]>,
    /// The longest that there can be.
    longest: usize,
    /// The first place of each. The last chunk of all is none: the end of the file cut it.
    places: HashMap<ChunkRef, usize>,
    /// What probably comes next.
    expected: Option<usize>,
    /// What was expected in place of the chunk that is being searched.
    replaced: Option<usize>,
}

impl Lister {
    /// At the beginning of a file.
    pub fn new(chunking: Chunking) -> Self {
        let listing = Listing {
            boundaries: Boundaries::new(chunking),
            list: Vec::new(),
            old: None,
            #[cfg(test)]
            searches: 0,
        };
        Self { stream: Settling::default(), listing }
    }

    /// The same, for a file that probably has much in common with one of these chunks, which were cut with the same
    /// sizes.
    pub fn following(chunking: Chunking, old: Arc<[ChunkRef]>) -> Self {
        let mut lister = Self::new(chunking);
        lister.listing.old = Some(Old::new(old, chunking.max()));
        lister
    }

    /// Takes the next bytes of the file. At most [`Chunking::max`] of them are held until it takes more.
    pub fn push(&mut self, bytes: &[u8]) {
        let Self { stream, listing } = self;
        stream.push(bytes, &mut |bytes| listing.settle(bytes));
    }

    /// The chunks that are settled so far.
    pub fn list(&self) -> &[ChunkRef] {
        &self.listing.list
    }

    /// Ends the file.
    pub fn finish(self) -> Vec<ChunkRef> {
        let Self { mut stream, mut listing } = self;
        let tail = stream.take();
        let mut rest = &tail[..];
        while !rest.is_empty() {
            match listing.settle(rest) {
                Ok(end) => rest = &rest[end..],
                // There is no more to wait for.
                Err(_) if listing.gives_up() => {}
                Err(_) => {
                    listing.list.push(ChunkRef::of(rest));
                    break;
                }
            }
        }
        listing.list
    }
}

impl Listing {
    /// Adds the chunk that begins `bytes`, if they settle it.
    fn settle(&mut self, bytes: &[u8]) -> Settled {
        if let Some(old) = &mut self.old
            && let Some(followed) = old.follow(bytes, &self.boundaries)
        {
            self.list.extend(followed.ok());
            return followed.map(|chunk| chunk.len as usize);
        }
        #[cfg(test)]
        {
            self.searches += 1;
        }
        let end = self.boundaries.settle(bytes)?;
        let chunk = ChunkRef::of(&bytes[..end]);
        self.list.push(chunk);
        if let Some(old) = &mut self.old {
            old.found(&chunk);
        }
        Ok(end)
    }

    /// Expects nothing any more of what comes next; whether it did.
    fn gives_up(&mut self) -> bool {
        self.old.as_mut().is_some_and(|old| old.expected.take().is_some())
    }
}

impl Old {
    fn new(chunks: Arc<[ChunkRef]>, longest: usize) -> Self {
        let mut places = HashMap::with_capacity_and_hasher(chunks.len(), Default::default());
        for (i, chunk) in chunks.iter().enumerate().take(chunks.len().saturating_sub(1)) {
            places.entry(*chunk).or_insert(i);
        }
        let mut old = Self { chunks, longest, places, expected: None, replaced: None };
        old.look_for(0);
        old
    }

    fn look_for(&mut self, i: usize) {
        let is_cut_by_content = i + 1 < self.chunks.len();
        // No chunker makes others; they would be waited for without end, or never come to one.
        let is_possible = |chunk: &ChunkRef| (1..=self.longest).contains(&(chunk.len as usize));
        self.expected = (is_cut_by_content && is_possible(&self.chunks[i])).then_some(i);
    }

    /// Compares what begins `bytes` with what is expected: the chunk, or how many bytes that takes. `None` if it is
    /// something else, or nothing is expected.
    fn follow(&mut self, bytes: &[u8], boundaries: &Boundaries) -> Option<Result<ChunkRef, usize>> {
        let i = self.expected?;
        let chunk = self.chunks[i];
        let len = chunk.len as usize;
        let Some(these) = bytes.get(..len) else { return Some(Err(len)) };
        match boundaries.is_end(bytes, len) {
            Ok(true) if ChunkRef::of(these) == chunk => {
                self.look_for(i + 1);
                return Some(Ok(chunk));
            }
            Ok(_) => {}
            Err(wanted) => return Some(Err(wanted)),
        }
        (self.expected, self.replaced) = (None, Some(i));
        None
    }

    /// A chunk was found by searching: a known one leads back to the list, and so does one that is as long as what was
    /// expected in its place, where bytes were overwritten.
    fn found(&mut self, chunk: &ChunkRef) {
        let replaced = self.replaced.take().filter(|i| self.chunks[*i].len == chunk.len);
        if let Some(i) = self.places.get(chunk).copied().or(replaced) {
            self.look_for(i + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{chunks_of, noise, tests::smallest};
    use crate::delta::tests::{edit, edited};
    use proptest::prelude::*;

    fn follow(new: &[u8], old: &[ChunkRef], slice: usize) -> Vec<ChunkRef> {
        let mut lister = Lister::following(smallest(), old.into());
        new.chunks(slice).for_each(|bytes| lister.push(bytes));
        lister.finish()
    }

    #[test]
    fn what_is_as_before_is_not_searched() {
        let content = noise(300_000, 5);
        let old = chunks_of(&content, smallest());
        let mut lister = Lister::following(smallest(), old.clone().into());
        lister.push(&content);
        assert_eq!(lister.listing.list[..old.len() - 1], old[..old.len() - 1]);
        // The end of the file is none that content makes.
        assert_eq!(lister.listing.searches, 1);
    }

    #[test]
    fn a_chunk_that_the_end_of_the_file_cut_is_no_boundary() {
        let content = noise(100_000, 9);
        for cut in [1, 500, 1023, 1025, 50_000, 99_999] {
            let old = chunks_of(&content[..cut], smallest());
            let new = chunks_of(&content, smallest());
            assert_eq!(follow(&content, &old, 7_000), new, "{cut}");
            assert_eq!(follow(&content[..cut], &new, 7_000), old, "{cut}");
        }
    }

    /// The byte after a chunk has a part in where it ends.
    #[test]
    fn a_change_right_behind_a_chunk_is_noticed() {
        let old = noise(200_000, 17);
        let list = chunks_of(&old, smallest());
        let ends = list.iter().scan(0, |at, chunk| {
            *at += chunk.len as usize;
            Some(*at)
        });
        let mut moved = 0;
        for end in ends.take(list.len() - 1) {
            for new in
                [[&old[..end], &[!old[end]], &old[end + 1..]].concat(), old[..end + 1].to_vec(), old[..end].to_vec()]
            {
                let right = chunks_of(&new, smallest());
                moved += usize::from(right.iter().zip(&list).any(|(new, old)| new.len != old.len));
                assert_eq!(follow(&new, &list, 7_000), right, "{end}");
            }
        }
        assert!(moved > list.len() / 2, "{moved}");
    }

    #[test]
    fn after_an_edit_the_old_list_is_found_again() {
        let old = noise(400_000, 3);
        let mut new = old.clone();
        new.insert(10, 1);
        new[200_000] ^= 1;
        let list = chunks_of(&old, smallest());
        let mut lister = Lister::following(smallest(), list.into());
        // What is held back at the end of a slice is not looked for yet.
        let mut followed = 0;
        for bytes in new.chunks(1000) {
            lister.push(bytes);
            followed += usize::from(lister.listing.old.as_ref().is_some_and(|old| old.expected.is_some()));
        }
        assert!(followed > 300, "{followed} of 401");
        assert_eq!(lister.finish(), chunks_of(&new, smallest()));
    }

    /// A list from a damaged place may hold anything.
    #[test]
    fn lists_that_no_chunker_made_do_no_harm() {
        let content = noise(50_000, 4);
        let right = chunks_of(&content, smallest());
        let nothing = ChunkRef { digest: ChunkRef::of(b"").digest, len: 0 };
        let endless = ChunkRef { digest: [7; 16], len: u32::MAX };
        for old in [vec![], vec![nothing; 3], vec![endless, right[0], right[1]], vec![right[2], nothing, right[1]]] {
            assert_eq!(follow(&content, &old, 999), right, "{old:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Whatever was edited, and however the stream is sliced, the list is that of a file cut anew.
        #[test]
        fn a_followed_list_is_that_of_the_file(
            len in 0usize..400_000,
            block in prop_oneof![Just(400_000usize), 1usize..20_000],
            seed in any::<u64>(),
            edits in proptest::collection::vec(edit(), 0..6),
            slice in prop_oneof![1usize..50, 1000usize..5000, 1usize..400_000],
        ) {
            // Blocks shorter than the content repeat.
            let old: Vec<u8> = noise(block, seed | 1).into_iter().cycle().take(len).collect();
            let new = edited(old.clone(), &edits);
            prop_assert_eq!(follow(&new, &chunks_of(&old, smallest()), slice), chunks_of(&new, smallest()));
        }
    }
}
