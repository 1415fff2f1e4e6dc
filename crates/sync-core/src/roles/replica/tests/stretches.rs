//! A tree that comes in stretches.

use std::path::Path;

use super::{Played, change, version};
use crate::manifest::{Kind, Version};
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
