//! What is compressed once, what each replica can open of it, and how strongly.

use proptest::prelude::*;

use super::*;
use crate::chunk::noise;
use crate::compress::StreamDecompressor;

const LIMIT: usize = 1 << 20;

/// Lines that resemble each other, and not much those of another number.
fn text(n: u64) -> Vec<u8> {
    noise(1 + n as usize % 7 * 500, n).iter().flat_map(|b| format!("{n} and {b}\n").into_bytes()).collect()
}

/// A stream, and the replica that opens what it carries.
struct Both {
    packer: Packer,
    replica: StreamDecompressor,
}

impl Both {
    fn of(packing: &Arc<Packing>) -> Self {
        Self { packer: Packer::new(Arc::clone(packing), false), replica: StreamDecompressor::new().unwrap() }
    }

    /// Carries a block, and looks that it arrives; what was sent.
    fn carry(&mut self, bytes: &[u8], level: i32) -> Option<Bytes> {
        let (encoding, small) = self.packer.pack(bytes, &[], Some(level))?;
        assert_eq!(encoding, Encoding::Zstd);
        assert_eq!(self.replica.decompress(&small, bytes.len(), LIMIT).unwrap(), bytes);
        Some(small)
    }

    fn chain(&self) -> &Arc<Chain> {
        &self.packer.place.as_ref().unwrap().0
    }
}

/// Whether it is the same memory: it was not made twice.
fn is_same(one: &Option<Bytes>, other: &Option<Bytes>) -> bool {
    one.as_ref().zip(other.as_ref()).is_some_and(|(one, other)| one.as_ptr() == other.as_ptr())
}

#[test]
fn what_streams_carry_alike_is_compressed_once_whoever_comes_first() {
    let packing = Arc::new(Packing::new(3));
    let mut streams: Vec<_> = (0..3).map(|_| Both::of(&packing)).collect();
    for n in 0..30 {
        let first = n as usize % 3;
        let small = streams[first].carry(&text(n), 3);
        for later in [(first + 1) % 3, (first + 2) % 3] {
            assert!(is_same(&small, &streams[later].carry(&text(n), 3)), "{n}");
        }
    }
    // One may be ahead of the others.
    let ahead: Vec<_> = (30..60).map(|n| streams[1].carry(&text(n), 3)).collect();
    for (n, small) in (30..60).zip(&ahead) {
        assert!(is_same(small, &streams[2].carry(&text(n), 3)));
    }
    assert_eq!(streams[0].chain().state().taken, 60);
    assert_eq!(packing.chains.load(Ordering::Relaxed), 1);
    // Alone nothing is kept, and nothing found.
    let packing = Arc::new(Packing::new(1));
    let [mut one, mut other] = [(); 2].map(|()| Both::of(&packing));
    assert!(!is_same(&one.carry(&text(1), 3), &other.carry(&text(1), 3)) && !packing.is_shared());
}

#[test]
fn a_stream_that_carries_something_else_goes_on_alone() {
    let packing = Arc::new(Packing::new(2));
    let [mut one, mut other] = [(); 2].map(|()| Both::of(&packing));
    for n in 0..5 {
        assert!(is_same(&one.carry(&text(n), 3), &other.carry(&text(n), 3)));
    }
    one.carry(&text(5), 3);
    // It comes too late for this one, which no longer builds on what both have.
    let leaves = other.carry(&text(6), 3).unwrap();
    assert!(leaves.starts_with(&FRAME_END));
    assert_ne!(one.chain().number, other.chain().number);
    // Both go on, and what each had helps it further.
    for n in [5, 6, 7] {
        let again = [one.carry(&text(n), 3), other.carry(&text(n), 3)];
        assert!(!is_same(&again[0], &again[1]));
    }
    let again = other.carry(&text(6), 3).unwrap();
    assert!(again.len() * 10 < text(6).len(), "{} of {}", again.len(), text(6).len());
    // A third one, which begins as the second went on, is with it as far as that got.
    let mut third = Both::of(&packing);
    for n in [6, 5, 6, 7, 6] {
        third.carry(&text(n), 3);
    }
    assert_eq!(third.chain().number, other.chain().number);
    assert_eq!(packing.chains.load(Ordering::Relaxed), 2);
}

#[test]
fn what_is_not_kept_any_more_is_compressed_again() {
    let packing = Packing { recent: Some(Recent::new(10_000)), ..Packing::new(2) };
    let packing = Arc::new(packing);
    let [mut fast, mut slow] = [(); 2].map(|()| Both::of(&packing));
    for n in 0..20 {
        fast.carry(&text(n), 3);
    }
    for n in 0..20 {
        slow.carry(&text(n), 3);
    }
    assert_ne!(fast.chain().number, slow.chain().number);
    assert_eq!([fast.chain().state().taken, slow.chain().state().taken], [20, 20]);
    // Where nobody can follow any more, nothing is kept that could be of use to somebody elsewhere.
    let last = Key::Next(slow.chain().number, 19, Digest::of(&text(19)));
    assert!(!packing.recent.as_ref().unwrap().has(&last));
    // Who begins again finds neither beginning.
    assert!(Both::of(&packing).carry(&text(0), 3).is_some());
    assert_eq!(packing.chains.load(Ordering::Relaxed), 3);
}

#[test]
fn what_differs_from_old_contents_is_compressed_once() {
    let packing = Arc::new(Packing::new(2));
    let (old, new) = (noise(100_000, 1), [noise(100_000, 1), b"and more".to_vec()].concat());
    let [mut one, mut other] = [(); 2].map(|()| Packer::new(Arc::clone(&packing), false));
    let packed = [&mut one, &mut other].map(|packer| packer.pack(&new, &old, Some(3)).unwrap());
    assert!(packed.iter().all(|(encoding, small)| *encoding == Encoding::AfterGaps && small.len() < 1000));
    assert_eq!(packed[0].1.as_ptr(), packed[1].1.as_ptr());
    // Behind another old content it is something else; at another level it is what there is.
    let (_, small) = other.pack(&new, &old[..50_000], Some(3)).unwrap();
    assert!(small.len() > 1000);
    assert_eq!(other.pack(&new, &old, Some(9)).unwrap().1.as_ptr(), packed[0].1.as_ptr());
}

/// Links that are a little different must not part over it, nor change the level in turns, which would end the frame each time.
#[test]
fn who_follows_takes_what_there_is_at_any_level() {
    let packing = Arc::new(Packing::new(2));
    let [mut one, mut other] = [(); 2].map(|()| Both::of(&packing));
    for n in 0..20 {
        let (first, later) = if n % 2 == 0 { (&mut one, &mut other) } else { (&mut other, &mut one) };
        let (level, another) = if n % 2 == 0 { (3, 9) } else { (9, 3) };
        let small = first.carry(&text(n), level);
        assert!(is_same(&small, &later.carry(&text(n), another)), "{n}");
        assert_eq!(first.chain().state().level(), Some(3));
    }
    // Who is alone gets what it wants.
    drop(other);
    one.carry(&text(20), 9);
    assert_eq!(one.chain().state().level(), Some(9));
}

/// However they came apart: another order, something that one of them does not want, one too far behind.
#[test]
fn streams_that_are_apart_meet_again() {
    let lines = |n: u32| format!("line {n} and others\n").repeat(4000).into_bytes();
    let meets = |bytes: &[u8]| is_meeting(&Digest::of(bytes), bytes.len() as u64, CHAIN);
    let meeting = (0..).map(lines).find(|bytes| meets(bytes)).unwrap();
    assert!(!(0..6).any(|n| meets(&text(n))));
    let packing = Arc::new(Packing::new(2));
    let [mut one, mut other] = [(); 2].map(|()| Both::of(&packing));
    for n in [0, 1, 2, 3] {
        one.carry(&text(n), 3);
    }
    for n in [0, 1, 3, 2] {
        other.carry(&text(n), 3);
    }
    assert_ne!(one.chain().number, other.chain().number);
    // Both end their frames there.
    assert_eq!(one.carry(&meeting, 3).unwrap(), other.carry(&meeting, 3).unwrap());
    assert_eq!(one.chain().number, other.chain().number);
    for n in [4, 5] {
        let small = one.carry(&text(n), 3);
        assert!(is_same(&small, &other.carry(&text(n), 3)));
    }
    // As often as is said: so many bytes are between two of them.
    let met = (0..10_000u32).filter(|n| is_meeting(&Digest::of(&n.to_le_bytes()), 1000, 100_000)).count();
    assert!((70..130).contains(&met), "{met}");
    assert!(is_meeting(&Digest([255; 32]), 2, 1) && !is_meeting(&Digest([255; 32]), 1, 2));
}

/// As the sessions of a mirror do, one for each version.
#[test]
fn who_begins_when_others_have_ended_finds_what_they_began_with() {
    let packing = Arc::new(Packing::new(2));
    let small = Both::of(&packing).carry(&text(1), 3);
    let mut later = Both::of(&packing);
    assert!(is_same(&small, &later.carry(&text(1), 3)));
    // What was made of it is still here, what it was made by is not.
    for n in 2..6 {
        later.carry(&text(n), 3);
    }
}

#[test]
fn a_stream_that_goes_on_plainly_waits_for_no_compressor() {
    let packing = Arc::new(Packing::new(2));
    let [mut one, mut other] = [(); 2].map(|()| Both::of(&packing));
    one.carry(&text(1), 3);
    other.carry(&text(1), 3);
    let chain = Arc::clone(one.chain());
    let at_work = chain.state();
    assert!(other.packer.pack(&text(2), &[], None).is_none());
    drop(at_work);
}

#[test]
fn streams_beside_each_other_carry_what_their_replicas_open() {
    for capacity in [0, 20_000, 10 << 20] {
        let packing = Arc::new(Packing { recent: Some(Recent::new(capacity)), ..Packing::new(4) });
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let mut stream = Both::of(&packing);
                scope.spawn(move || {
                    for n in 0..80 {
                        // Now and then one of them has something else to say.
                        let n = if n % 23 == 5 * thread { n + thread } else { n };
                        stream.carry(&text(n % 30), 3);
                    }
                });
            }
        });
    }
}

#[test]
fn a_batch_is_known_by_its_place_and_its_first_content() {
    use crate::manifest::{Metadata, Time};
    use crate::path::RelPath;
    use crate::wire::{Basis, Offered};
    let request = |n: u8| {
        let likely = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Time { sec: 0, nsec: 0 } };
        let file = Offered { path: RelPath::new(b"f").unwrap(), digest: Digest::of(&[n]), size: 1, likely };
        ContentRequest { seq: u64::from(n), file, basis: Basis::None, part: Vec::new() }
    };
    let packing = Packing::new(2);
    packing.batched(None, &[request(1), request(2)]);
    packing.batched(None, &[request(1)]);
    packing.batched(Some((7, 8)), &[request(1)]);
    let expected = [Digest::of(&[1]).0, Digest::of(&[2]).0].concat();
    assert_eq!(packing.batch(None, &Digest::of(&[1])), Some(expected.into()));
    assert_eq!(packing.batch(Some((7, 8)), &Digest::of(&[1])), Some(Bytes::copy_from_slice(&Digest::of(&[1]).0)));
    assert_eq!(packing.batch(None, &Digest::of(&[2])), None);
}

/// A block that shrinks; the level that it was compressed at.
fn level_of_a_block(packer: &mut Packer) -> i32 {
    assert!(packer.pack(&text(6).repeat(10), &[], Some(STRONG_LEVEL)).is_some());
    packer.place.as_ref().unwrap().0.state().level().unwrap()
}

fn slow(packing: &Arc<Packing>) -> Packer {
    Packer::new(Arc::clone(packing), true)
}

/// Each takes some 50 MB at the strong level: many slow links at the same time shall not take all the memory.
#[test]
fn four_streams_of_a_source_compress_strongly_and_the_others_lightly() {
    let packing = Arc::new(Packing::new(1));
    let mut streams: Vec<_> = (0..6).map(|_| slow(&packing)).collect();
    let levels = |streams: &mut [Packer]| streams.iter_mut().map(level_of_a_block).collect::<Vec<_>>();
    for _ in 0..3 {
        assert_eq!(levels(&mut streams), [9, 9, 9, 9, 3, 3]);
    }
    // A person who asks for it gets it, and takes nobody's place.
    assert_eq!(level_of_a_block(&mut Packer::new(Arc::clone(&packing), false)), 9);
    assert_eq!(levels(&mut streams), [9, 9, 9, 9, 3, 3]);

    // One that ends gives its place to the next that sends a block, and to one alone.
    drop(streams.remove(1));
    assert_eq!(levels(&mut streams), [9, 9, 9, 9, 3]);
    // So does one whose link is not waited for any more, once its compressor is a small one.
    assert!(streams[0].pack(&text(3), &[], Some(LIGHT_LEVEL)).is_some());
    assert_eq!(levels(&mut streams[4..]), [9]);
    assert_eq!(levels(&mut streams), [3, 9, 9, 9, 9]);
    // One that only pauses stays as large as it is.
    assert!(streams[1].pack(&text(3), &[], None).is_none());
    assert_eq!(level_of_a_block(&mut slow(&packing)), 3);
    // What differs from old contents takes a place only while it is compressed.
    drop(streams.remove(1));
    let (old, new) = (noise(100_000, 1), [noise(100_000, 1), b"and more".to_vec()].concat());
    let mut patches = slow(&packing);
    assert!(matches!(patches.pack(&new, &old, Some(STRONG_LEVEL)), Some((Encoding::AfterGaps, _))));
    assert_eq!(level_of_a_block(&mut slow(&packing)), 9);
    // When all have ended, nothing is held.
    drop(streams);
    assert_eq!(levels(&mut (0..5).map(|_| slow(&packing)).collect::<Vec<_>>()), [9, 9, 9, 9, 3]);
}

#[test]
fn a_chain_takes_one_place_however_many_streams_follow_it() {
    let packing = Arc::new(Packing::new(6));
    let mut streams: Vec<_> = (0..6).map(|_| slow(&packing)).collect();
    let levels: Vec<i32> = streams.iter_mut().map(level_of_a_block).collect();
    assert_eq!((levels, packing.strong.available_permits()), (vec![9; 6], MOST_STRONG - 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever streams carry in whatever order, at which levels and with how little kept.
    #[test]
    fn every_replica_opens_what_its_stream_carried(
        capacity in prop::sample::select(&[0usize, 10_000, 100_000, 10 << 20][..]),
        steps in proptest::collection::vec((0usize..4, 0u64..6, prop::sample::select(&[1, 3, 7][..]), any::<bool>()), 1..60),
    ) {
        let packing = Arc::new(Packing { recent: Some(Recent::new(capacity)), ..Packing::new(4) });
        let mut streams: Vec<_> = (0..4).map(|_| Both::of(&packing)).collect();
        for (stream, n, level, is_noise) in steps {
            let bytes = if is_noise { noise(70_000, n + 1) } else { text(n) };
            let sent = streams[stream].carry(&bytes, level);
            prop_assert_eq!(sent.is_none(), is_noise);
        }
    }
}
