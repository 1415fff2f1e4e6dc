//! What goes into a [`Receiver`](super::Receiver) and what comes out of it.

use crate::hash::Digest;
use crate::monitor::{Item, Problem};
use crate::path::RelPath;
use crate::plan::Changes;
use crate::region::Region;
use crate::wire::{
    Ack, Announce, Change, Describe, Described, Draft, Hello, Listing, Moved, Offered, Refusal, Stand, ToMaster,
    ToReplica, Touched, Unhealed, Wanted,
};

/// What became of a wanted content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Verified and staged.
    Staged,
    /// What came was not that content: a false match of chunks, or a file that changed underway.
    Mismatch,
    /// It was on its way in another stream, which may never bring all of it.
    Elsewhere,
    /// It could not be stored.
    Failed(Problem),
}

/// What the driver tells the receiver.
#[derive(Clone, Debug)]
pub enum ReceiverInput {
    /// A message from the master.
    Received(ToReplica),
    /// Before the next: what is there are stretches of a tree up to this path.
    Reached(RelPath),
    /// The share is open and its tree was looked at.
    Opened(Stand),
    /// The same, in a session behind one that ended well on the same stream: the master knows the stand.
    Reopened,
    /// Answers [`ReceiverOutput::List`], once for each directory or part of one.
    Listed(Listing),
    /// Answers [`ReceiverOutput::Consider`] and [`ReceiverOutput::Fetch`]: what is missing of it.
    Considered(Vec<(Wanted, Offered)>),
    /// A part of the answer to [`ReceiverOutput::Describe`].
    Described(Described),
    /// Answers [`ReceiverOutput::Expand`]. What cannot be made from the rows is left out: the root will tell.
    Expanded(Vec<Change>),
    /// A wanted content is dealt with.
    Settled(u64, Settled),
    /// Answers [`ReceiverOutput::Guard`] with the root that the plan leads to: if that is the announced one, the plan
    /// keeps to the delete limit. (One that does not is refused.)
    Guarded(Digest),
    /// Answers [`ReceiverOutput::Plan`]: the root that the plan leads to, and the changed entries if asked for.
    Planned {
        /// The root.
        root: Digest,
        /// For a person.
        items: Vec<Item>,
        /// Paths that stay as they are, because their content is nowhere.
        missing: Vec<RelPath>,
        /// The changes given back, if something is missing.
        changes: Changes,
    },
    /// Answers [`ReceiverOutput::Prepare`]: everything is staged and flushed. With an acknowledgement if there is
    /// nothing to publish, or this is a dry run.
    Prepared(Option<Ack>),
    /// Answers [`ReceiverOutput::Publish`].
    Published(Ack),
    /// Entries that failed; may come at any time.
    Problems(Vec<Problem>),
    /// Worth a line to a person.
    Notice(String),
    /// So many bytes were staged when the session began, and the plan uses them.
    Resumed(u64),
    /// Somebody else changed the tree while the receiver was waiting, and this is the stand now.
    Drifted(Stand),
    /// So much of what somebody else changed is not undone; after the stand.
    Unhealed(Unhealed),
    /// The replica cannot go on.
    Refuse(Refusal),
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum ReceiverOutput {
    /// Send a control message.
    Send(ToMaster),
    /// Lock the share and look at its tree, unless it overlaps with the source, if that said where it is.
    Open(Hello, Option<Region>),
    /// Read these directories' children from the index.
    List(Vec<RelPath>),
    /// Find out which of these contents are missing; the first has this number.
    Consider(u64, Vec<Offered>),
    /// Copy what a content will probably have in common with an old file, if there is nothing better to do.
    Draft(Draft),
    /// Contents with these numbers are missing for certain: find out what may save sending some of them.
    Fetch(Vec<(u64, Offered)>),
    /// Stage the content of this number, which is not asked for because it is here.
    Take(u64, Vec<u8>),
    /// Read the old file of a content that is awaited, and tell of what it consists.
    Describe(Describe),
    /// Make changes of what was told relative to the version that the replica stands at, from its own rows. The touched
    /// entries are in tree order, each once; the moved directories come from places apart from each other.
    Expand(Vec<Moved>, Vec<Touched>),
    /// Count what a plan for these changes would delete; answered by [`ReceiverInput::Guarded`].
    Guard(Announce, Changes),
    /// Decide the steps.
    Plan(Announce, Changes),
    /// Stage everything and flush it.
    Prepare,
    /// Make it visible and durable.
    Publish,
    /// Forget a plan that does not lead to the announced root.
    Discard,
    /// It is over: the last message was sent.
    End,
}
