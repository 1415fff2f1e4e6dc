//! A replica on a real disk, served to a master that these tests play themselves.

mod drafts;
mod drift;
mod owner;
mod stretches;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use super::{Share, Shares, serve};
use crate::fs::{StateDir, place};
use crate::hash::Digest;
use crate::index::{Index, Rows as _};
use crate::manifest::{Entry, Kind, Lineage, Merkle, Time, Version};
use crate::options::Policy;
use crate::path::RelPath;
use crate::roles::link::Control;
use crate::transport::{Code, Connection, Loopback, Settings};
use crate::wire::{
    Announce, Batch, BatchFile, Change, ContentFrame, Encoding, Hello, Piece, Splice, ToMaster, ToReplica, Unavailable,
};

fn change(path: &str, kind: Kind) -> Change {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mtime = Time { sec: 1_000_000, nsec: 1 };
    let entry = Entry { kind, mode: 0o755, uid, gid, mtime, xattrs: Box::default(), link: None };
    Change { path: RelPath::new(path).unwrap(), entry: Some(entry) }
}

fn version(changes: &[Change]) -> Version {
    let mut merkle = Merkle::new();
    for Change { path, entry } in changes {
        let entry = entry.as_ref().unwrap();
        merkle.push(path, entry.hash(), entry.is_dir());
    }
    Version { lineage: Lineage([1; 16]), number: 1, parent: None, root: merkle.finish().root, time: Time::default() }
}

/// The master's end.
struct Played {
    connection: Connection,
    control: Control<ToMaster>,
}

impl Played {
    /// Says hello to a replica at `top`.
    async fn greet(top: &Path, state: &Path) -> Self {
        Self::greet_with(top, state, 0).await
    }

    async fn greet_with(top: &Path, state: &Path, features: u64) -> Self {
        Self::greet_who_serves(Shares::only(Share::embedded(top.to_owned(), state.to_owned())), features).await
    }

    async fn greet_who_serves(shares: Shares, features: u64) -> Self {
        let ends = Loopback::open(Settings::default()).await.unwrap();
        let shares = Arc::new(shares);
        let (stop, shutdown) = watch::channel(false);
        tokio::spawn(async move {
            serve(ends.accepted, shares, shutdown).await;
            drop(stop);
        });
        let control = Control::open(&ends.dialed).await.unwrap();
        let played = Self { connection: ends.dialed, control };
        played.greets(features);
        played
    }

    fn greets(&self, features: u64) {
        self.say(ToReplica::Hello(Hello { features, share: String::new(), policy: Policy::default() }));
    }

    fn say(&self, message: ToReplica) {
        self.control.send(message.encode()).unwrap();
    }

    /// The numbers of the next contents that are wanted.
    async fn wanted(&mut self) -> Vec<u64> {
        match self.control.next().await.unwrap() {
            ToMaster::Want(wants) => wants.iter().map(|want| want.seq).collect(),
            other => panic!("{other:?}"),
        }
    }

    async fn send(&self, seq: u64, content: &'static [u8]) {
        let batch = Batch {
            files: vec![BatchFile { seq, literal: content.len() as u32, runs: Vec::new() }],
            encoding: Encoding::Plain,
        };
        self.send_frames(&[ContentFrame::Batch(batch, &[])], content).await;
    }

    /// On one stream, all but the first without content.
    async fn send_frames(&self, frames: &[ContentFrame<'_>], content: &'static [u8]) {
        let mut writer = self.connection.open_uni().await.unwrap();
        let mut content = Bytes::from_static(content);
        for frame in frames {
            let head = frame.head();
            writer.send_with(head.kind, head.version, &head.body, std::mem::take(&mut content)).await.unwrap();
        }
        writer.finish().unwrap();
    }
}

/// The first name of a content cannot be read any more: it comes by the second, in the same push.
#[tokio::test(flavor = "multi_thread")]
async fn a_content_comes_by_its_second_name() {
    let temp = tempfile::tempdir().unwrap();
    let top = temp.path().join("top");
    let mut master = Played::greet(&top, &temp.path().join("state")).await;
    assert!(matches!(master.control.next().await.unwrap(), ToMaster::Stand(_)));
    let file = || Kind::File { size: 4, digest: Digest::of(b"same") };
    let changes = vec![change("", Kind::Dir), change("a", file()), change("b", file())];
    let version = version(&changes);
    master.say(ToReplica::Changes(changes));
    let announce =
        Announce { holds: Vec::new(), held: 0, version: version.clone(), changes: 3, contents: 2, committed: false };
    master.say(ToReplica::Announce(announce));
    assert_eq!(master.wanted().await, [0]);
    master.say(ToReplica::Unavailable(Unavailable { seq: 0, reason: "gone".to_owned() }));
    assert_eq!(master.wanted().await, [1]);
    master.send(1, b"same").await;
    assert_eq!(master.control.next().await.unwrap(), ToMaster::Prepared(version.root));
    master.say(ToReplica::Publish(version.id()));
    let ToMaster::Ack(ack) = master.control.next().await.unwrap() else { panic!("no acknowledgement") };
    assert_eq!(ack.root, version.root);
    master.connection.close(Code::Done, "").await;
    for name in ["a", "b"] {
        assert_eq!(std::fs::read(top.join(name)).unwrap(), b"same");
    }
}

/// Two files of one content in a new directory.
struct Prepared {
    changes: [Change; 4],
    announce: Announce,
}

impl Prepared {
    const CONTENT: &'static [u8] = b"content";

    fn new() -> Self {
        let kind = Kind::File { size: Self::CONTENT.len() as u64, digest: Digest::of(Self::CONTENT) };
        let changes = [change("", Kind::Dir), change("d", Kind::Dir), change("d/a", kind.clone()), change("d/b", kind)];
        let announce = Announce {
            holds: Vec::new(),
            held: 0,
            version: version(&changes),
            changes: changes.len() as u64,
            contents: 2,
            committed: false,
        };
        Self { changes, announce }
    }

    /// A session with a replica that stands nowhere and has nothing, up to its word that all is prepared; the content is
    /// sent if it is wanted, which is told.
    async fn play(&self, top: &Path, state: &Path) -> (Played, bool) {
        let mut played = Played::greet(top, state).await;
        let ToMaster::Stand(stand) = played.control.next().await.unwrap() else { panic!("no stand") };
        assert_eq!((stand.version, stand.entries), (None, 0), "a row of what was never published");
        played.say(ToReplica::Changes(self.changes.to_vec()));
        played.say(ToReplica::Announce(self.announce.clone()));
        let mut said = played.control.next().await.unwrap();
        let wanted = match &said {
            ToMaster::Want(wants) => wants.iter().map(|want| want.seq).collect(),
            _ => Vec::new(),
        };
        if !wanted.is_empty() {
            assert_eq!(wanted, [0]);
            played.send(0, Self::CONTENT).await;
            said = played.control.next().await.unwrap();
        }
        assert_eq!(said, ToMaster::Prepared(self.announce.version.root));
        assert_eq!(std::fs::read_dir(top).unwrap().count(), 1, "only staging");
        (played, !wanted.is_empty())
    }

    async fn publish(&self, mut played: Played, top: &Path) {
        played.say(ToReplica::Publish(self.announce.version.id()));
        let mut said = played.control.next().await.unwrap();
        if said == ToMaster::Resumed(Self::CONTENT.len() as u64) {
            said = played.control.next().await.unwrap();
        }
        let ToMaster::Ack(ack) = said else { panic!("no acknowledgement: {said:?}") };
        assert_eq!(ack.root, self.announce.version.root);
        assert_eq!(std::fs::read(top.join("d/b")).unwrap(), Self::CONTENT);
        assert_eq!(std::fs::read_dir(top).unwrap().count(), 1, "only what was published");
    }
}

/// By this process: one that is started would hold the locks of other tests for a moment.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let (from, to) = (item.as_ref().unwrap().path(), to.join(item.unwrap().file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
    std::fs::set_permissions(to, std::fs::metadata(from).unwrap().permissions()).unwrap();
}

/// Closes the connection, and waits until the replica has tidied up.
async fn leave(played: Played, top: &Path) {
    played.connection.close(Code::Cancelled, "gone").await;
    let begun = Instant::now();
    // It was made for this push, and goes again.
    while top.exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the replica does not tidy up");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What was prepared is in staging, and its rows are in the index: nothing of either may be believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_leaves_before_it_publishes_changes_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let (top, state) = (temp.path().join("top"), temp.path().join("state"));
    let push = Prepared::new();
    for _ in 0..2 {
        let (played, sent) = push.play(&top, &state).await;
        assert!(sent);
        leave(played, &top).await;
    }
    let (played, _) = push.play(&top, &state).await;
    push.publish(played, &top).await;
}

/// A frame that lies behind what the replica does not have is a content that arrived wrong, whatever it opens to.
#[tokio::test(flavor = "multi_thread")]
async fn a_content_behind_old_content_that_is_not_there_is_wanted_again() {
    let push = Prepared::new();
    let len = Prepared::CONTENT.len() as u32;
    let encoding = Encoding::AfterGaps;
    let batch = Batch { files: vec![BatchFile { seq: 0, literal: len, runs: Vec::new() }], encoding };
    let splices = vec![Splice { literal: len, zeros: 0, skip: 0, copy: 0 }];
    let patched = Piece::Patched { seq: 0, offset: 0, from: 1 << 40, tail: u64::MAX, splices, encoding };
    let end = Piece::End { seq: 0 };
    let ways =
        [vec![ContentFrame::Batch(batch, &[])], vec![ContentFrame::Piece(patched, &[]), ContentFrame::Piece(end, &[])]];
    for frames in ways {
        let temp = tempfile::tempdir().unwrap();
        let (top, state) = (temp.path().join("top"), temp.path().join("state"));
        let mut played = Played::greet(&top, &state).await;
        assert!(matches!(played.control.next().await.unwrap(), ToMaster::Stand(_)));
        played.say(ToReplica::Changes(push.changes.to_vec()));
        played.say(ToReplica::Announce(push.announce.clone()));
        assert_eq!(played.wanted().await, [0]);
        played.send_frames(&frames, b"no frame of zstd").await;
        assert_eq!(played.wanted().await, [0]);
        played.send(0, Prepared::CONTENT).await;
        assert_eq!(played.control.next().await.unwrap(), ToMaster::Prepared(push.announce.version.root));
        push.publish(played, &top).await;
    }
}

/// Whatever is wrong with an old file, what was to be made of it may still be sent whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_content_made_of_an_old_file_that_cannot_be_used_is_wanted_again() {
    const OLD: &[u8] = &[b'o'; 300 << 10];
    const NEW: &[u8] = &[b'n'; 300 << 10];
    let file = |content: &[u8]| Kind::File { size: content.len() as u64, digest: Digest::of(content) };
    let announce = |version: &Version, changes| Announce {
        holds: Vec::new(),
        held: 0,
        version: version.clone(),
        changes,
        contents: 1,
        committed: false,
    };
    let temp = tempfile::tempdir().unwrap();
    let (top, state) = (temp.path().join("top"), temp.path().join("state"));
    let old = vec![change("", Kind::Dir), change("f", file(OLD))];
    let first = version(&old);
    let mut played = Played::greet(&top, &state).await;
    assert!(matches!(played.control.next().await.unwrap(), ToMaster::Stand(_)));
    played.say(ToReplica::Changes(old));
    played.say(ToReplica::Announce(announce(&first, 2)));
    assert_eq!(played.wanted().await, [0]);
    let len = OLD.len() as u32;
    let literal = Piece::Literal { seq: 0, offset: 0, len, encoding: Encoding::Plain };
    let end = || ContentFrame::Piece(Piece::End { seq: 0 }, &[]);
    played.send_frames(&[ContentFrame::Piece(literal.clone(), &[]), end()], OLD).await;
    assert_eq!(played.control.next().await.unwrap(), ToMaster::Prepared(first.root));
    played.say(ToReplica::Publish(first.id()));
    assert!(matches!(played.control.next().await.unwrap(), ToMaster::Ack(_)));
    played.connection.close(Code::Done, "").await;

    let new = vec![change("", Kind::Dir), change("f", file(NEW))];
    let second = Version { number: 2, parent: Some(first.id()), ..version(&new) };
    let mut played = Played::greet(&top, &state).await;
    assert!(matches!(played.control.next().await.unwrap(), ToMaster::Stand(_)));
    played.say(ToReplica::Changes(new[1..].to_vec()));
    played.say(ToReplica::Announce(announce(&second, 1)));
    assert_eq!(played.wanted().await, [0]);
    std::fs::remove_file(top.join("f")).unwrap();
    let splices = vec![Splice { literal: 0, zeros: 0, skip: 0, copy: OLD.len() as u64 }];
    let spliced = Piece::Spliced { seq: 0, offset: 0, splices, encoding: Encoding::Plain };
    played.send_frames(&[ContentFrame::Piece(spliced, &[]), end()], b"").await;
    assert_eq!(played.wanted().await, [0]);
    played.send_frames(&[ContentFrame::Piece(literal, &[]), end()], NEW).await;
    assert_eq!(played.control.next().await.unwrap(), ToMaster::Prepared(second.root));
}

/// As a kill at that moment leaves it: with staging, and with rows of what is not visible.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_between_intent_and_publication_goes_on_without_what_it_had_written() {
    let temp = tempfile::tempdir().unwrap();
    let (top, state) = (temp.path().join("top"), temp.path().join("state"));
    let push = Prepared::new();
    let (played, _) = push.play(&top, &state).await;
    let (killed_top, killed_state) = (temp.path().join("killed top"), temp.path().join("killed state"));
    for (from, to) in [(&top, &killed_top), (&state, &killed_state)] {
        copy(from, to);
    }
    leave(played, &top).await;
    for (from, to) in [(&killed_top, &top), (&killed_state, &state)] {
        if to.exists() {
            std::fs::remove_dir_all(to).unwrap();
        }
        std::fs::rename(from, to).unwrap();
    }
    let index = StateDir::at(&state).replica_index_dir(&place::resolve(&top).unwrap());
    let index = Index::open(&index, Duration::ZERO).unwrap().index;
    assert!(
        index.row(&RelPath::new("d/a").unwrap()).unwrap().is_some(),
        "nothing was written ahead: this tests nothing"
    );
    drop(index);
    let (played, sent) = push.play(&top, &state).await;
    assert!(!sent, "what was verified before was sent again");
    push.publish(played, &top).await;
}
