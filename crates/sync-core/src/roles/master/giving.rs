//! Small contents that go with a version, so that a replica need not ask: that takes a round trip, a stream and most of what a
//! small change costs where there are many replicas.

use super::difference::Difference;
use super::ring::Ring;
use crate::hash::Digest;
use crate::session;
use crate::wire::{Change, MAX_GIVEN, Offered};

/// Most rows of a version that goes with contents: one with more is worth asking about.
pub const FEW: usize = session::FEW as usize;

/// Most bytes of such a content. What the replica's old file would save of more may be worth a round trip on a slow link.
const SMALL: u64 = 16 << 10;

/// Whether all of these can go with the version, and none need be offered before.
pub fn are_few(offers: &[Offered]) -> bool {
    let room = |room: u64, offer: &Offered| room.checked_sub(offer.size).filter(|_| offer.size <= SMALL);
    offers.len() <= FEW && offers.iter().try_fold(MAX_GIVEN as u64, room).is_some()
}

/// Contents of `changes` that are still in memory and new to a replica that stands where the difference begins: at most
/// [`MAX_GIVEN`] bytes.
pub fn contents(difference: &Difference, changes: &[Change], ring: &Ring) -> Vec<(Digest, Vec<u8>)> {
    let mut contents: Vec<(Digest, Vec<u8>)> = Vec::new();
    if difference.len() > FEW {
        return contents;
    }
    let mut room = MAX_GIVEN;
    for change in changes {
        let Some(entry) = change.entry.as_ref().filter(|entry| entry.needs_content()) else { continue };
        // What does not go along must stay in memory: a ring with one session forgets what it gives.
        let fits = |(size, _): &(u64, Digest)| *size <= SMALL && *size <= room as u64;
        let Some((_, digest)) = entry.content().filter(fits) else { continue };
        // It is there under another name.
        let moved = difference.gone.iter().any(|row| row.entry.content().is_some_and(|(_, gone)| gone == digest));
        if moved || contents.iter().any(|(is, _)| *is == digest) {
            continue;
        }
        if let Some(content) = ring.take(&digest) {
            room = room.saturating_sub(content.len());
            contents.push((digest, content.to_vec()));
        }
    }
    contents
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Entry, Kind, Row, Time};
    use crate::path::RelPath;

    fn content(byte: u8, size: usize) -> (Digest, Vec<u8>) {
        let content = vec![byte; size];
        (Digest::of(&content), content)
    }

    fn change(name: &str, (digest, content): &(Digest, Vec<u8>)) -> Change {
        let kind = Kind::File { size: content.len() as u64, digest: *digest };
        let mtime = Time { sec: 0, nsec: 0 };
        let entry = Entry { kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: Box::default(), link: None };
        Change { path: RelPath::new(name).unwrap(), entry: Some(entry) }
    }

    fn gone(name: &str, content: &(Digest, Vec<u8>)) -> Row {
        let Change { path, entry } = change(name, content);
        let refused = Default::default();
        Row { path, entry: entry.unwrap(), tuple: None, proven: true, refused, extra: false, mount: false }
    }

    /// The digests that go along.
    fn given(changes: &[Change], gone: Vec<Row>, kept: &[&(Digest, Vec<u8>)]) -> Vec<Digest> {
        let ring = Ring::new(2);
        kept.iter().for_each(|(digest, content)| ring.put(*digest, content.clone().into()));
        let difference = Difference::new(None, Vec::new(), gone, Vec::new());
        let contents = contents(&difference, changes, &ring);
        assert!(contents.iter().all(|(digest, content)| Digest::of(content) == *digest));
        assert!(contents.iter().map(|(_, content)| content.len()).sum::<usize>() <= MAX_GIVEN);
        contents.into_iter().map(|(digest, _)| digest).collect()
    }

    #[test]
    fn small_contents_go_along_each_once_unless_the_replica_has_them() {
        let [small, most, large, moved, away] =
            [(1, 1), (2, 16 << 10), (3, (16 << 10) + 1), (4, 1), (5, 1)].map(|(byte, size)| content(byte, size));
        let changes = [("a", &small), ("b", &small), ("c", &most), ("d", &large), ("e", &moved), ("f", &away)];
        let changes = changes.map(|(name, content)| change(name, content));
        // What is in memory no more is asked for.
        let kept = [&small, &most, &large, &moved];
        assert_eq!(given(&changes, vec![gone("x", &moved)], &kept), [small.0, most.0]);
    }

    #[test]
    fn what_finds_no_room_stays_in_memory() {
        let kept: Vec<_> = (0..8).map(|byte| content(byte, 15 << 10)).collect();
        let ring = Ring::new(1);
        kept.iter().for_each(|(digest, content)| ring.put(*digest, content.clone().into()));
        let changes: Vec<_> = kept.iter().map(|content| change("a", content)).collect();
        assert_eq!(contents(&Difference::new(None, Vec::new(), Vec::new(), Vec::new()), &changes, &ring).len(), 4);
        assert_eq!(kept.iter().filter(|(digest, _)| ring.take(digest).is_some()).count(), 4);
    }

    #[test]
    fn all_of_them_together_are_bounded_and_so_are_the_rows() {
        let contents: Vec<_> = (0..8).map(|byte| content(byte, 15 << 10)).collect();
        let changes: Vec<_> = contents.iter().map(|content| change("a", content)).collect();
        let kept: Vec<_> = contents.iter().collect();
        assert_eq!(given(&changes, Vec::new(), &kept).len(), 4);
        let other = content(9, 1);
        let rows = |count: usize| (0..count).map(|i| gone(&format!("x{i}"), &other)).collect();
        assert_eq!(given(&changes, rows(FEW), &kept).len(), 4);
        assert_eq!(given(&changes, rows(FEW + 1), &kept).len(), 0);
    }
}
