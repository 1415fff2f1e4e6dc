//! A tree that comes in stretches.

use std::path::Path;

use super::{Played, Share, Shares, change, version};
use crate::guard::MaxDelete;
use crate::manifest::{Kind, Lineage, Version};
use crate::path::RelPath;
use crate::roles::link::Control;
use crate::transport::Code;
use crate::wire::{Ack, Announce, Change, FOLLOW, STRETCHES, Stand, ToMaster, ToReplica};

fn tree() -> Vec<Change> {
    vec![change("", Kind::Dir), change("a", Kind::Dir), change("a/x", Kind::Fifo), change("b", Kind::Fifo)]
}

fn announce(version: &Version, changes: usize) -> Announce {
    let changes = changes as u64;
    Announce { holds: Vec::new(), held: 0, version: version.clone(), changes, contents: 0, committed: true }
}

impl Played {
    /// What is heard until the stand: how far the replica has come, and that.
    async fn stands(&mut self) -> (Option<RelPath>, Stand) {
        match self.control.next().await.unwrap() {
            ToMaster::Reached(path) => match self.control.next().await.unwrap() {
                ToMaster::Stand(stand) => (Some(path), stand),
                other => panic!("{other:?}"),
            },
            ToMaster::Stand(stand) => (None, stand),
            other => panic!("{other:?}"),
        }
    }

    async fn acknowledged(&mut self) -> Ack {
        match self.control.next().await.unwrap() {
            ToMaster::Ack(ack) => ack,
            other => panic!("{other:?}"),
        }
    }

    /// Another session on the connection.
    async fn again(self) -> Self {
        let control = Control::open(&self.connection).await.unwrap();
        let again = Self { connection: self.connection, control };
        again.greets(FOLLOW);
        again
    }

    /// The first three entries, as a stretch.
    async fn first_stretch(top: &Path, state: &Path) -> Self {
        let mut played = Self::greet_with(top, state, FOLLOW).await;
        let (reached, stand) = played.stands().await;
        assert_eq!((reached, stand.entries, stand.features & STRETCHES), (None, 0, STRETCHES));
        played.say(ToReplica::Changes(tree()[..3].to_vec()));
        played.say(ToReplica::Stretch(announce(&version(&tree()), 3)));
        assert_eq!(played.acknowledged().await.root, version(&tree()[..3]).root);
        played
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_says_how_far_it_has_come_until_it_is_at_a_version() {
    let temp = tempfile::tempdir().unwrap();
    let (top, state) = (temp.path().join("top"), temp.path().join("state"));
    let there = version(&tree()[..3]).root;
    let mut played = Played::first_stretch(&top, &state).await.again().await;
    for is_other in [false, true] {
        let (reached, stand) = played.stands().await;
        assert_eq!(reached, Some(RelPath::new("a/x").unwrap()), "on another connection: {is_other}");
        assert_eq!((stand.version, stand.root, stand.entries), (None, there, 2));
        if !is_other {
            played.connection.close(Code::Cancelled, "gone").await;
            played = Played::greet_with(&top, &state, FOLLOW).await;
        }
    }
    played.say(ToReplica::Changes(tree()[3..].to_vec()));
    played.say(ToReplica::Announce(announce(&version(&tree()), 1)));
    assert_eq!(played.acknowledged().await.root, version(&tree()).root);
    played.connection.close(Code::Done, "").await;
    let (reached, stand) = Played::greet_with(&top, &state, FOLLOW).await.stands().await;
    assert_eq!((reached, stand.version), (None, Some(version(&tree()).id())));
}

/// Else a push that was cut off, after which the replica stands nowhere, would make it a beginning again.
#[tokio::test(flavor = "multi_thread")]
async fn a_stretch_that_is_all_of_the_tree_leaves_nothing_behind() {
    let temp = tempfile::tempdir().unwrap();
    let (top, state) = (temp.path().join("top"), temp.path().join("state"));
    let whole = version(&tree());
    let mut played = Played::greet_with(&top, &state, FOLLOW).await;
    played.stands().await;
    played.say(ToReplica::Changes(tree()));
    played.say(ToReplica::Stretch(announce(&whole, 4)));
    assert_eq!(played.acknowledged().await.root, whole.root);
    let mut played = played.again().await;
    let (reached, stand) = played.stands().await;
    assert_eq!((reached, stand.version), (None, Some(whole.id())));
    played.say(ToReplica::Announce(announce(&whole, 0)));
    assert_eq!(played.acknowledged().await.root, whole.root);
    played.connection.close(Code::Done, "").await;

    let mut pushed = Played::greet(&top, &state).await;
    pushed.stands().await;
    let more = [&tree()[..], &[change("c", Kind::Fifo)]].concat();
    let next = Version { number: 2, parent: Some(whole.id()), ..version(&more) };
    pushed.say(ToReplica::Changes(more[4..].to_vec()));
    pushed.say(ToReplica::Announce(Announce { committed: false, ..announce(&next, 1) }));
    assert_eq!(pushed.control.next().await.unwrap(), ToMaster::Prepared(next.root));
    pushed.connection.close(Code::Cancelled, "").await;
    let (reached, stand) = Played::greet_with(&top, &state, FOLLOW).await.stands().await;
    assert_eq!((reached, stand.root), (None, whole.root));
}

/// Who brought a part of a tree has counted all of it; who comes with another history has not.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_from_a_part_of_a_tree_is_held_unless_it_is_of_the_same_history() {
    let temp = tempfile::tempdir().unwrap();
    let (top, state) = (temp.path().join("top"), temp.path().join("state"));
    let many = (0..150).map(|i| change(&format!("{i:03}"), Kind::Fifo));
    let all: Vec<Change> = std::iter::once(change("", Kind::Dir)).chain(many).collect();
    let mut played = Played::greet_with(&top, &state, FOLLOW).await;
    played.stands().await;
    played.say(ToReplica::Changes(all[..141].to_vec()));
    played.say(ToReplica::Stretch(announce(&version(&all), 141)));
    assert_eq!(played.acknowledged().await.root, version(&all[..141]).root);
    played.connection.close(Code::Done, "").await;
    let few = version(&all[..3]);
    let gone: Vec<Change> = all[3..141].iter().map(|gone| Change { entry: None, ..gone.clone() }).collect();
    for lineage in [Lineage([2; 16]), few.lineage] {
        let shares = Shares::only(Share::embedded(top.clone(), state.clone()));
        shares.find("").unwrap().guard.allow(MaxDelete::default());
        let mut played = Played::greet_who_serves(shares, FOLLOW).await;
        let (reached, _) = played.stands().await;
        assert_eq!(reached.map(|path| path.to_string()).as_deref(), Some("139"));
        played.say(ToReplica::Changes(gone.clone()));
        played.say(ToReplica::Announce(announce(&Version { lineage, ..few.clone() }, gone.len())));
        match played.control.next().await.unwrap() {
            ToMaster::Refuse(refusal) => {
                assert!(lineage != few.lineage && refusal.for_a_person, "{refusal:?}");
                assert_eq!(std::fs::read_dir(&top).unwrap().count(), 140);
            }
            ToMaster::Ack(ack) => assert!(lineage == few.lineage && ack.root == few.root, "{ack:?}"),
            other => panic!("{other:?}"),
        }
        played.connection.close(Code::Cancelled, "").await;
    }
    assert_eq!(std::fs::read_dir(&top).unwrap().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_somebody_changed_since_has_reached_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let (top, state) = (temp.path().join("top"), temp.path().join("state"));
    let played = Played::first_stretch(&top, &state).await;
    played.connection.close(Code::Cancelled, "gone").await;
    std::fs::write(top.join("a/mine"), b"mine").unwrap();
    let (reached, stand) = Played::greet_with(&top, &state, FOLLOW).await.stands().await;
    assert_eq!((reached, stand.version, stand.entries), (None, None, 3));
}
