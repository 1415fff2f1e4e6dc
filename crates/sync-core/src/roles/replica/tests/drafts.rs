//! Drafts: made while the master reads, used by the content they are for, and out of the way of everything else.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use super::*;
use crate::chunk::noise;
use crate::delta::CopyRange;
use crate::fs::STAGING_NAME;
use crate::wire::{Draft, Offered};

const M: u64 = 1 << 20;

/// Content that is large enough for a draft, and mostly a hole.
fn old() -> Vec<u8> {
    let mut content = noise(3 << 20, 5);
    content.resize(66 << 20, 0);
    content
}

/// A replica with that content in these files, which are one, and a master that has said hello.
struct Bed {
    temp: tempfile::TempDir,
    played: Played,
    old: Vec<u8>,
}

impl Bed {
    async fn new(names: &[&str]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let (top, old) = (temp.path().join("top"), old());
        std::fs::create_dir(&top).unwrap();
        let file = std::fs::File::create(top.join(names[0])).unwrap();
        file.write_all_at(&old[..3 << 20], 0).unwrap();
        file.set_len(old.len() as u64).unwrap();
        names[1..].iter().for_each(|name| std::fs::hard_link(top.join(names[0]), top.join(name)).unwrap());
        Self::greet(temp, old).await
    }

    async fn greet(temp: tempfile::TempDir, old: Vec<u8>) -> Self {
        let mut played = Played::greet(&temp.path().join("top"), &temp.path().join("state")).await;
        // It has files and no index.
        while !matches!(played.control.next().await.unwrap(), ToMaster::Stand(_)) {}
        Self { temp, played, old }
    }

    fn top(&self) -> PathBuf {
        self.temp.path().join("top")
    }

    /// Tells that all of the old content is in the new one, behind some bytes.
    fn draft(&self, path: &str, behind: u64) {
        let len = self.old.len() as u64;
        let ranges = vec![CopyRange { at: behind, from: 0, len }];
        let (path, old) = (RelPath::new(path).unwrap(), Digest::of(&self.old));
        self.played.say(ToReplica::Draft(Draft { ranges, path, size: len + behind, old }));
    }

    fn offer(&self, files: &[(&str, &[u8])]) {
        let offered = files.iter().map(|(path, content)| offered(path, content)).collect();
        self.played.say(ToReplica::Offer(offered));
    }

    /// What is under way in staging under names of the moment.
    fn drafts(&self) -> usize {
        self.staged(|name, _| name.starts_with('t'))
    }

    fn staged(&self, is_it: impl Fn(&str, u64) -> bool) -> usize {
        let entries = std::fs::read_dir(self.top().join(STAGING_NAME)).into_iter().flatten().flatten();
        let found = entries.filter(|entry| {
            entry.metadata().is_ok_and(|metadata| is_it(entry.file_name().to_str().unwrap(), metadata.blocks() * 512))
        });
        found.count()
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until so many drafts have what there is to copy.
    async fn drafted(&self, count: usize) {
        self.until("nothing is drafted", |bed| {
            bed.staged(|name, held| name.starts_with('t') && held >= 2 * M) == count
        })
        .await;
    }

    async fn no_draft(&self, why: &str) {
        self.until(why, |bed| bed.drafts() == 0).await;
    }
}

fn offered(path: &str, content: &[u8]) -> Offered {
    let change = change(path, Kind::File { size: content.len() as u64, digest: Digest::of(content) });
    let (path, entry) = (change.path, change.entry.unwrap());
    let (size, digest) = entry.content().unwrap();
    Offered { path, digest, size, likely: entry.metadata() }
}

fn spliced(offset: u64, literal: u32, copy: u64) -> ContentFrame<'static> {
    let splices = vec![Splice { literal, zeros: 0, skip: 0, copy }];
    ContentFrame::Piece(Piece::Spliced { seq: 0, offset, splices, encoding: Encoding::Plain }, &[])
}

/// The old file changes when the content has begun: only what was drafted before has the right bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_content_is_made_of_its_draft() {
    let mut bed = Bed::new(&["f"]).await;
    let new = [b"X", &bed.old[..]].concat();
    bed.draft("f", 1);
    bed.drafted(1).await;
    bed.offer(&[("f", &new)]);
    assert_eq!(bed.played.wanted().await, [0]);
    let mut writer = bed.played.connection.open_uni().await.unwrap();
    let head = spliced(0, 1, 0).head();
    writer.send_with(head.kind, head.version, &head.body, Bytes::from_static(b"X")).await.unwrap();
    bed.until("the draft is not taken", |bed| bed.staged(|name, _| name.ends_with(".part")) == 1).await;
    assert_eq!(bed.drafts(), 0);
    let file = std::fs::File::options().write(true).open(bed.top().join("f")).unwrap();
    file.write_all_at(b"other", 2 * M - 100).unwrap();
    for frame in [spliced(1, 0, bed.old.len() as u64), ContentFrame::Piece(Piece::End { seq: 0 }, &[])] {
        let head = frame.head();
        writer.send_with(head.kind, head.version, &head.body, Bytes::new()).await.unwrap();
    }
    writer.finish().unwrap();
    let file = Kind::File { size: new.len() as u64, digest: Digest::of(&new) };
    let changes = vec![change("", Kind::Dir), change("f", file)];
    let version = version(&changes);
    bed.played.say(ToReplica::Changes(changes));
    let announce =
        Announce { holds: Vec::new(), held: 0, version: version.clone(), changes: 2, contents: 2, committed: false };
    bed.played.say(ToReplica::Announce(announce));
    assert_eq!(bed.played.control.next().await.unwrap(), ToMaster::Prepared(version.root));
}

#[tokio::test(flavor = "multi_thread")]
async fn drafts_of_contents_that_are_not_wanted_go_and_make_room_for_others() {
    let bed = Bed::new(&["f0", "f1", "f2", "f3", "f4"]).await;
    let names = ["f0", "f1", "f2", "f3"];
    names.iter().for_each(|name| bed.draft(name, 1));
    bed.drafted(4).await;
    // They are what is there under another name.
    bed.offer(&names.map(|name| (name, &bed.old[..])));
    bed.no_draft("a draft of what is there stays").await;
    bed.draft("f4", 1);
    bed.drafted(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_draft_of_a_content_that_comes_under_another_name_goes() {
    let mut bed = Bed::new(&["f"]).await;
    let new = [b"X", &bed.old[..]].concat();
    bed.draft("f", 1);
    bed.drafted(1).await;
    bed.offer(&[("a", &new), ("f", &new)]);
    assert_eq!(bed.played.wanted().await, [0]);
    bed.no_draft("a draft that no content comes for stays").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_draft_of_another_size_goes() {
    let mut bed = Bed::new(&["f"]).await;
    bed.draft("f", 1);
    bed.drafted(1).await;
    bed.offer(&[("f", &[b"XX", &bed.old[..]].concat())]);
    assert_eq!(bed.played.wanted().await, [0]);
    bed.no_draft("a draft of another size stays").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_draft_of_a_content_that_cannot_come_goes() {
    let mut bed = Bed::new(&["f"]).await;
    let new = [b"X", &bed.old[..]].concat();
    bed.draft("f", 1);
    bed.drafted(1).await;
    bed.offer(&[("f", &new)]);
    assert_eq!(bed.played.wanted().await, [0]);
    assert_eq!(bed.drafts(), 1);
    bed.played.say(ToReplica::Unavailable(Unavailable { seq: 0, reason: "gone".to_owned() }));
    bed.no_draft("a draft of what cannot come stays").await;
}

/// What is left of the content itself is better than a draft of it, and takes the same room.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_drafted_beside_a_part() {
    let bed = Bed::new(&["f"]).await;
    let new = [b"X", &bed.old[..]].concat();
    let Bed { temp, played, old } = bed;
    played.connection.close(Code::Done, "").await;
    let staging = temp.path().join("top").join(STAGING_NAME);
    std::fs::create_dir(&staging).unwrap();
    std::fs::set_permissions(&staging, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let part = staging.join(format!("{}.part", Digest::of(&new).to_hex()));
    std::fs::write(&part, &new[..4 << 20]).unwrap();
    std::fs::set_permissions(&part, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut bed = Bed::greet(temp, old).await;
    bed.draft("f", 1);
    bed.offer(&[("f", &new)]);
    let ToMaster::Want(wants) = bed.played.control.next().await.unwrap() else { panic!("nothing is wanted") };
    assert!(!wants[0].part.is_empty(), "there is no part: this tests nothing");
    assert_eq!(bed.drafts(), 0);
}

/// Another content that is made of the same old file does not take the draft, nor throw it away.
#[tokio::test(flavor = "multi_thread")]
async fn a_draft_waits_for_the_content_it_is_for() {
    let mut bed = Bed::new(&["dump-1.sql"]).await;
    let (new, other) = ([b"X", &bed.old[..]].concat(), vec![0; 20 << 20]);
    bed.draft("dump-1.sql", 1);
    bed.drafted(1).await;
    bed.offer(&[("dump-2.sql", &other), ("dump-1.sql", &new)]);
    let ToMaster::Want(wants) = bed.played.control.next().await.unwrap() else { panic!("nothing is wanted") };
    assert_eq!(wants.len(), 2);
    assert!(matches!(wants[0].basis, crate::wire::Basis::File { guess: true, .. }), "{:?}", wants[0]);
    let zeros = Piece::Zeros { seq: 0, offset: 0, len: other.len() as u64 };
    let frames = [zeros, Piece::End { seq: 0 }].map(|piece| ContentFrame::Piece(piece, &[]));
    bed.played.send_frames(&frames, b"").await;
    let name = Digest::of(&other).to_hex();
    bed.until("the other content does not come", |bed| bed.staged(|staged, _| staged == name) == 1).await;
    assert_eq!(bed.drafts(), 1);
}

/// A size is only a peer's word: nothing of this size would be made of the old file.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_many_times_the_old_file_or_small_is_not_drafted() {
    let mut bed = Bed::new(&["f", "g"]).await;
    bed.draft("f", 2000 * M);
    let (path, old) = (RelPath::new("g").unwrap(), Digest::of(&bed.old));
    let ranges = vec![CopyRange { at: 0, from: 0, len: 64 * M }];
    bed.played.say(ToReplica::Draft(Draft { ranges, path, size: 64 * M, old }));
    bed.offer(&[("h", b"new")]);
    assert_eq!(bed.played.wanted().await, [0]);
    assert_eq!(bed.drafts(), 0);
}
