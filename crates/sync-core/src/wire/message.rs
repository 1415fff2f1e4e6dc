//! The control messages. Each validates itself when it is decoded; after that the type is the proof.

use serde::{Deserialize, Serialize};

use super::{
    Envelope, MAX_BATCH, MAX_DIRS, MAX_GIVEN, MAX_ITEMS, MAX_LIST, MAX_MESSAGE, MAX_MESSAGE_XATTRS, MAX_PLAIN,
    WireError, envelope, malformed, open,
};
use crate::chunk::pieces::{MAX_PIECES, Pieces, small};
use crate::chunk::{ChunkRef, Chunking};
use crate::delta::CopyRange;
use crate::delta::patch::PieceHashes;
use crate::diff::Child;
use crate::filter;
use crate::hash::Digest;
use crate::manifest::{Entry, Kind, Metadata, Version, VersionId};
use crate::monitor::{Item, Problem};
use crate::options::Policy;
use crate::path::RelPath;
use crate::region::Region;

/// Longest share name in bytes.
const MAX_SHARE: usize = 64;

/// Most chunks in each list of a want: enough for 1 TiB at the largest chunks; beyond it a file is sent whole. Both
/// lists together stay below [`super::MAX_MESSAGE`], at 21 bytes for a chunk.
pub(crate) const MAX_CHUNKS: usize = 1 << 18;

/// Feature of a master: it keeps previous contents, so that a replica need only name what it has ([`Basis::Named`]).
pub const HISTORY: u64 = 1;

/// Feature of a master: it may open further sessions on this connection, one after the other, to follow a tree as it
/// changes. Feature of a replica: it stays open for them.
pub const FOLLOW: u64 = 2;

/// A bit of [`Hello::features`]: a person has decided that what the replica's own guard against deletions would hold is
/// meant; and of a directory of which the replica has told a person that it is empty and another one, or that nothing is mounted
/// there any more, that it is the right one.
pub const RELEASED: u64 = 4;

/// Feature of a master: a person has decided that the share becomes this master's, if it is another one's. Feature of a
/// replica: it keeps whose a share is.
pub const ADOPT: u64 = 8;

/// Feature of a replica: it takes a tree that it has nothing of in stretches ([`ToReplica::Stretch`]). Feature of a master that
/// does not follow its tree: it may tell one in that way, each stretch in a session of its own on this connection.
pub const STRETCHES: u64 = 16;

/// A bit of [`Hello::features`]: the replica looks at all of its tree, though it may have watched it since it looked last. Of
/// one session, and not of those that go on behind it.
pub const LOOK: u64 = 32;

/// A bit of [`Hello::features`]: bytes cost next to nothing between the two, so that contents of up to 64 MiB are asked for
/// whole, whatever is there in their place: to look into that would take longer.
pub const WHOLE: u64 = 64;

/// Opens the session: which share, and under what policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Bits for what the master can do and may: [`HISTORY`], [`FOLLOW`], [`RELEASED`], [`ADOPT`], [`LOOK`], [`WHOLE`].
    pub features: u64,
    /// The share's name; empty for an embedded replica.
    pub share: String,
    /// What was asked for.
    pub policy: Policy,
}

/// What a replica says it is at, after it looked at every name on its disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stand {
    /// Bits for what the replica can do: [`FOLLOW`], [`ADOPT`], [`STRETCHES`].
    pub features: u64,
    /// The version it acknowledged last, if its index knows one.
    pub version: Option<VersionId>,
    /// The hash of its tree, computed from its own rows.
    pub root: Digest,
    /// How many entries it has.
    pub entries: u64,
}

/// A file whose content the master has and the replica may lack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    /// Where it belongs: tells the replica which mount to stage it on and which old content may help.
    pub path: RelPath,
    /// The content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// What the file will probably have when it is published: the replica gives it to the staged file while it has it
    /// open, and does it again if the change says otherwise. Told by [`ToReplica::AsOffered`], the entry gets just this.
    pub likely: Metadata,
}

/// A content that the replica asks for, with what it has that may save sending some of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Counts offered files of this session from 0, in the order they were offered or came in changes.
    pub seq: u64,
    /// The old file.
    pub basis: Basis,
    /// The chunks of what an interrupted session left of this very content.
    pub part: Vec<ChunkRef>,
}

/// What a replica has in place of a wanted file, or, where it has none, a file that may resemble it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Basis {
    /// Nothing that would save any bytes.
    #[default]
    None,
    /// A small file.
    Pieces(PieceHashes),
    /// A larger one.
    File {
        /// Its content.
        digest: Digest,
        /// Bytes.
        size: u64,
        /// Its chunks, under the chunking of its size; none if the master probably knows that content: it asks if not.
        chunks: Vec<ChunkRef>,
        /// Whether it is a file of another name that may resemble the wanted one.
        guess: bool,
    },
    /// A small file that a master with [`HISTORY`] probably has: the first bytes of its digest.
    Named([u8; 8]),
}

/// What a master asks about the old file of a wanted content, once it has compared the chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Describe {
    /// Which content.
    pub seq: u64,
    /// The sizes of the pieces; `None` for its chunks instead.
    pub pieces: Option<Chunking>,
    /// Ranges of the old file, offset and bytes, each to be cut by itself; none of no bytes.
    pub ranges: Vec<(u64, u64)>,
}

impl Describe {
    /// Most parts that the answer has, if the old file has so many bytes.
    pub fn most_parts(&self, old: u64) -> u64 {
        match self.pieces {
            Some(sizes) => self.ranges.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(sizes.most_chunks(*bytes))),
            None => Chunking::for_size(old).most_chunks(old).min(MAX_CHUNKS as u64),
        }
    }
}

/// A part of the answer to [`Describe`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// Which content.
    pub seq: u64,
    /// What.
    pub parts: Parts,
    /// Whether that is all.
    pub done: bool,
}

/// What an old file consists of, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Parts {
    /// All of its chunks.
    Chunks(Vec<ChunkRef>),
    /// The pieces of the ranges.
    Pieces(Pieces),
    /// The file is not what it was: there is nothing to say.
    Gone,
}

/// What a version wants of one path: an entry, or nothing there and beneath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Where.
    pub path: RelPath,
    /// What.
    pub entry: Option<Entry>,
}

/// An entry that is what it was in the version that the replica stands at, but for its metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// Where.
    pub path: RelPath,
    /// What it has now.
    pub metadata: Metadata,
}

/// A directory that is new at its path and, with all beneath it, what another was in the version that the replica stands
/// at. That the other one goes is a change of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Where it was.
    pub from: RelPath,
    /// Where it is.
    pub to: RelPath,
    /// The hash of the directory with all beneath it, at either place.
    pub hash: Digest,
}

/// What a file that the master is still reading will probably have in common with the replica's: so much can be copied
/// meanwhile. A hint: nothing follows if it is not used, or if the content turns out to be another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    /// In order of the content, and none overlaps with one before. First, so that their count is seen before anything is
    /// decoded.
    pub ranges: Vec<CopyRange>,
    /// Where the file is.
    pub path: RelPath,
    /// Bytes that it has now.
    pub size: u64,
    /// The content that it had, which the ranges are copied from.
    pub old: Digest,
}

/// A content that the replica probably lacks, ahead of the change that gives it this number: the next ones do. A hint, and
/// it spares a round trip: a replica that passes it over asks for the content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// See [`Wanted::seq`].
    pub seq: u64,
    /// All of it.
    pub content: Vec<u8>,
}

/// Consecutive content numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u32,
}

/// The version to prepare; the changes that lead to it came before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// Paths that the master could not read: outside this version, left alone with all beneath. Those that do not fit
    /// came before, in [`ToReplica::Holds`]. First, so that their count is seen before anything is decoded.
    pub holds: Vec<RelPath>,
    /// How many such paths there are in all.
    pub held: u64,
    /// Its identity and root.
    pub version: Version,
    /// How many changes were sent since the hello or the last restart.
    pub changes: u64,
    /// How many contents have a number by now: see [`Wanted::seq`].
    pub contents: u64,
    /// Whether the master's index has the version already: then a plan without steps is acknowledged at once. Else the
    /// master publishes it when its index has it.
    pub committed: bool,
}

/// The children of one directory as the replica has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Which directory.
    pub dir: RelPath,
    /// The hash of the directory's own entry; `None` if the replica has no such directory.
    pub own: Option<Digest>,
    /// Sorted by name; a big directory comes in several messages.
    pub children: Vec<Child>,
    /// Whether this is the last message about this directory.
    pub last: bool,
}

/// Counts that only the replica knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStats {
    /// See [`crate::options::Stats`] for this and the next five.
    pub created: u64,
    /// Content or kind changed.
    pub updated: u64,
    /// Only metadata changed.
    pub metadata_only: u64,
    /// Content taken over from another name.
    pub moved: u64,
    /// Removed.
    pub deleted: u64,
    /// See [`crate::options::Stats`] for this and the next two.
    pub old_file_bytes: u64,
    /// Copied from another file.
    pub copied_bytes: u64,
    /// Taken over with another name.
    pub moved_bytes: u64,
}

/// The end of a push at the replica: durable, and in its index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The version that was announced.
    pub version: VersionId,
    /// The hash of the tree computed from the replica's rows after the work.
    pub root: Digest,
    /// What was done, or in a dry run would be.
    pub stats: ReplicaStats,
    /// How many entries of each kind of [`crate::manifest::Refused::KINDS`] the kernel refused.
    pub refused: [u64; 6],
}

/// Why a replica will not go on, in words for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Whether a person on the master may decide that it goes on all the same: the delete limit, or an empty directory that is
    /// not the one that it was.
    pub for_a_person: bool,
    /// The reason, and what to do next.
    pub reason: String,
}

/// What somebody else changed in a replica's tree, and nobody has undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unhealed {
    /// How many names.
    pub entries: u64,
    /// The first of them in tree order, if there are any.
    pub first: Option<RelPath>,
}

/// An offered content that cannot be sent after all: its file changed or vanished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unavailable {
    /// Which.
    pub seq: u64,
    /// Why.
    pub reason: String,
}

/// Messages from a master to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToReplica {
    /// Opens the session.
    Hello(Hello),
    /// Asks for the children of these directories, in tree order and each once.
    List(Vec<RelPath>),
    /// Contents found while the tree is still being read.
    Offer(Vec<Offered>),
    /// A part of the difference to the version that will be announced.
    Changes(Vec<Change>),
    /// Forget the changes so far: they did not lead to the root.
    Restart(()),
    /// All changes are there: plan and prepare.
    Announce(Announce),
    /// Make it visible.
    Publish(VersionId),
    /// An offered content cannot be sent after all.
    Unavailable(Unavailable),
    /// A part of the held paths of the version that will be announced.
    Holds(Vec<RelPath>),
    /// Changes that were told with the offers of these contents already: each file is at its path, with that content and
    /// what was likely, without extended attributes, and no further name of a group.
    AsOffered(Vec<Run>),
    /// Asks about the old file of a wanted content.
    Describe(Describe),
    /// Changes to nothing but metadata, against the version that the replica stands at.
    Touched(Vec<Touched>),
    /// Directories that came, against the version that the replica stands at: with all beneath them they are what others
    /// were.
    Moved(Vec<Moved>),
    /// What can be copied of a large file before its content is known.
    Draft(Draft),
    /// Where the source is, for a replica on the same machine: before the hello.
    Place(Region),
    /// Contents of the changes that come next.
    Given(Vec<Given>),
    /// In place of the announcement, from a master that follows: the changes are only the next stretch of a version's tree, in
    /// tree order. It is published and acknowledged with the root of what is there then, and the next session
    /// goes on behind it, so that neither side ever holds a large tree as a whole.
    Stretch(Announce),
}

/// Messages from a replica to a master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToMaster {
    /// Answers the hello.
    Stand(Stand),
    /// Answers a list, once for each directory.
    Listing(Listing),
    /// Contents to send.
    Want(Vec<Wanted>),
    /// The plan is made and all of it staged and flushed; the root it leads to.
    Prepared(Digest),
    /// Durable.
    Ack(Ack),
    /// Entries that failed.
    Problems(Vec<Problem>),
    /// Changed entries, if they were asked for.
    Items(Vec<Item>),
    /// Something a person should know.
    Notice(String),
    /// The replica ends the session.
    Refuse(Refusal),
    /// Tells about the old file of a wanted content.
    Described(Described),
    /// How many bytes the plan takes of whole contents that an interrupted session left: before the acknowledgement, if
    /// there are any.
    Resumed(u64),
    /// Its tree is not what its stand said any more, because somebody else changed it: this is its stand now. Only to a
    /// master that follows, and only before that has told anything.
    Drifted(Stand),
    /// How much of its tree somebody else changed that is not undone, whenever that is another number than was told in the
    /// session, which begins with none. For people; only to a master that follows.
    Unhealed(Unhealed),
    /// Before the stand, from a replica that takes stretches and has come so far with them: nobody has changed what it has
    /// since, and this is the last path that it was told.
    Reached(RelPath),
}

macro_rules! messages {
    ($type:ident { $($kind:literal => $name:ident),* $(,)? }) => {
        impl $type {
            /// The message in its envelope.
            pub fn encode(&self) -> Envelope {
                match self { $(Self::$name(body) => envelope($kind, body),)* }
            }
            /// The message in `body`; `None` for a type this build does not know, which is to be skipped.
            ///
            /// # Errors
            /// [`WireError`] if it is malformed or breaks a bound.
            pub fn decode(kind: u16, version: u8, body: &[u8]) -> Result<Option<Self>, WireError> {
                let message = match kind {
                    $($kind => Self::$name(open(kind, version, body)?),)*
                    _ => return Ok(None),
                };
                message.validate().map_err(|reason| malformed(kind, reason))?;
                Ok(Some(message))
            }
        }
    };
}

messages!(ToReplica {
    1 => Hello,
    2 => List,
    3 => Offer,
    4 => Changes,
    5 => Restart,
    6 => Announce,
    7 => Publish,
    8 => Unavailable,
    9 => Holds,
    10 => AsOffered,
    11 => Touched,
    12 => Moved,
    13 => Describe,
    14 => Draft,
    15 => Place,
    16 => Given,
    17 => Stretch,
});

messages!(ToMaster {
    101 => Stand,
    102 => Listing,
    103 => Want,
    104 => Prepared,
    105 => Ack,
    106 => Problems,
    107 => Items,
    108 => Notice,
    109 => Refuse,
    110 => Described,
    111 => Resumed,
    112 => Drifted,
    113 => Unhealed,
    114 => Reached,
});

/// Most items in a message that is a list or starts with one.
fn most_items(kind: u16) -> Option<usize> {
    match kind {
        2 => Some(MAX_DIRS),
        3 | 4 | 6 | 9..=12 | 14..=17 | 103 | 106 | 107 => Some(MAX_ITEMS),
        201 => Some(MAX_BATCH),
        _ => None,
    }
}

/// Most bytes in the body of a control message. Frames of content are bounded where they are read.
pub(super) fn most_bytes(kind: u16) -> usize {
    match kind {
        2 | 3 | 4 | 6 | 9 | 11 | 12 | 13 | 14 | 17 | 106 | 107 => MAX_LIST,
        102 | 103 | 110 => MAX_MESSAGE,
        201.. => usize::MAX,
        _ => MAX_PLAIN,
    }
}

/// Refuses too long a message, and too long a list by its count alone: an item of one byte may take hundreds in memory.
pub(super) fn check_length(kind: u16, body: &[u8]) -> Result<(), WireError> {
    let (bytes, most) = (body.len(), most_bytes(kind));
    if bytes > most {
        return Err(malformed(kind, format!("{bytes} bytes, more than the {most} allowed")));
    }
    let Some(most) = most_items(kind) else { return Ok(()) };
    let (count, _) = postcard::take_from_bytes::<u64>(body).map_err(|e| malformed(kind, e))?;
    if count > most as u64 {
        return Err(malformed(kind, format!("{count} items, more than the {most} allowed")));
    }
    Ok(())
}

impl ToReplica {
    /// What the types do not say already. Paths prove themselves when they are decoded.
    fn validate(&self) -> Result<(), String> {
        match self {
            Self::Hello(hello) => hello.validate(),
            Self::Changes(changes) => {
                let mut xattrs = 0;
                for Change { path, entry } in changes {
                    if path.is_reserved() {
                        return Err(format!("entry {path}: that name is reserved"));
                    }
                    let Some(entry) = entry else { continue };
                    xattrs += entry.xattrs.len();
                    if xattrs > MAX_MESSAGE_XATTRS {
                        return Err(format!("more than {MAX_MESSAGE_XATTRS} extended attributes"));
                    }
                    entry.validate().map_err(|e| format!("entry {path}: {e}"))?;
                    if entry.link.as_ref().is_some_and(|first| first >= path) {
                        return Err(format!("entry {path}: its hard-link group starts after it"));
                    }
                    if path.is_root() && !entry.is_dir() {
                        return Err("the top of a tree must be a directory".to_owned());
                    }
                }
                Ok(())
            }
            Self::Offer(files) if files.iter().any(|file| file.path.is_reserved()) => {
                Err("a file of a reserved name".to_owned())
            }
            Self::Touched(touched) => {
                if !touched.is_sorted_by(|a, b| a.path < b.path) {
                    return Err("its entries are not in tree order, or not distinct".to_owned());
                }
                match touched.iter().find_map(|touched| Some((touched, touched.metadata.validate().err()?))) {
                    Some((Touched { path, .. }, error)) => Err(format!("entry {path}: {error}")),
                    None => Ok(()),
                }
            }
            Self::Moved(moved) => match moved.iter().find(|moved| !moved.is_apart()) {
                Some(Moved { from, to, .. }) => Err(format!("{from} cannot have moved to {to}")),
                None if moved.iter().any(|moved| moved.to.is_reserved()) => {
                    Err("a directory of a reserved name".to_owned())
                }
                None => Ok(()),
            },
            Self::List(dirs) if !dirs.is_sorted_by(|a, b| a < b) => {
                Err("its directories are not in tree order, or not distinct".to_owned())
            }
            Self::List(_)
            | Self::Offer(_)
            | Self::Restart(())
            | Self::Announce(_)
            | Self::Stretch(_)
            | Self::Publish(_)
            | Self::Unavailable(_)
            | Self::Holds(_)
            | Self::AsOffered(_) => Ok(()),
            Self::Place(region) if region.is_bounded() => Ok(()),
            Self::Place(_) => Err("it has more marks than it may have".to_owned()),
            Self::Given(given) if given.iter().any(|given| given.content.is_empty()) => {
                Err("a content of no bytes, which nobody needs".to_owned())
            }
            Self::Given(given) if given.iter().map(|given| given.content.len()).sum::<usize>() <= MAX_GIVEN => Ok(()),
            Self::Given(_) => Err(format!("more than {MAX_GIVEN} bytes of contents that nobody asked for")),
            Self::Draft(draft) => draft.validate(),
            Self::Describe(Describe { seq, ranges, .. }) => {
                let fits = |(at, len): &(u64, u64)| *len > 0 && at.checked_add(*len).is_some();
                let total = ranges.iter().try_fold(0u64, |sum, (_, len)| sum.checked_add(*len));
                match total.is_some() && ranges.iter().all(fits) {
                    true => Ok(()),
                    false => Err(format!("ranges of content {seq} that no file has")),
                }
            }
        }
    }
}

impl Basis {
    /// The chunks that are told of it.
    pub fn chunks(&self) -> &[ChunkRef] {
        match self {
            Self::File { chunks, .. } => chunks,
            Self::None | Self::Pieces(_) | Self::Named(_) => &[],
        }
    }

    /// Whether it has no more parts than such a file can have, nor than a message may.
    fn is_plausible(&self) -> bool {
        match self {
            Self::None | Self::Named(_) => true,
            Self::Pieces(hashes) => hashes.size() as u64 <= 4 * small().most_chunks(MAX_PIECES),
            Self::File { size, chunks, .. } => {
                chunks.len() <= MAX_CHUNKS && chunks.len() as u64 <= Chunking::for_size(*size).most_chunks(*size)
            }
        }
    }

    /// About how many bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::None | Self::Named(_) => 0,
            Self::Pieces(hashes) => hashes.size(),
            Self::File { chunks, .. } => size_of_val(&**chunks),
        }
    }
}

impl Wanted {
    /// All of a content, whatever there is in its place.
    pub(crate) fn whole(seq: u64) -> Self {
        Self { seq, basis: Basis::None, part: Vec::new() }
    }

    /// About how many bytes it takes in a message.
    pub(crate) fn size(&self) -> usize {
        const FIXED: usize = 64;
        const CHUNK: usize = 20;
        let pieces = if let Basis::Pieces(hashes) = &self.basis { hashes.size() } else { 0 };
        FIXED + pieces + CHUNK * (self.basis.chunks().len() + self.part.len())
    }
}

impl Offered {
    /// The entry, if the file is just what was offered: without extended attributes, and no further name of a group.
    pub(crate) fn entry(&self) -> Entry {
        let Metadata { mode, uid, gid, mtime } = self.likely;
        let kind = Kind::File { size: self.size, digest: self.digest };
        Entry { kind, mode, uid, gid, mtime, xattrs: Box::default(), link: None }
    }
}

impl Touched {
    /// About how many bytes it takes in a message.
    pub(crate) fn size(&self) -> usize {
        const FIXED: usize = 48;
        FIXED + self.path.as_bytes().len()
    }
}

impl Moved {
    /// About how many bytes it takes in a message.
    pub(crate) fn size(&self) -> usize {
        const FIXED: usize = 48;
        FIXED + self.bytes()
    }

    /// How many bytes its paths take.
    pub(crate) fn bytes(&self) -> usize {
        self.from.as_bytes().len() + self.to.as_bytes().len()
    }

    /// Whether neither place lies in the other, and so none is the top.
    fn is_apart(&self) -> bool {
        let Self { from, to, .. } = self;
        from != to && !from.is_beneath(to) && !to.is_beneath(from)
    }
}

impl Change {
    /// About how many bytes it takes in a message.
    pub(crate) fn size(&self) -> usize {
        const FIXED: usize = 96;
        FIXED + self.bytes()
    }

    /// How many bytes its parts of any length take: paths, attributes, a target.
    pub(crate) fn bytes(&self) -> usize {
        let Some(entry) = &self.entry else { return self.path.as_bytes().len() };
        let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        let target = if let Kind::Symlink { target } = &entry.kind { target.len() } else { 0 };
        let link = entry.link.as_ref().map_or(0, |first| first.as_bytes().len());
        self.path.as_bytes().len() + xattrs + target + link
    }
}

impl Draft {
    /// What a replica makes sure of before it takes it.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn validate(&self) -> Result<(), String> {
        let Self { ranges, path, size, .. } = self;
        if path.is_reserved() {
            return Err("a draft of a reserved name".to_owned());
        }
        let mut end = 0;
        let fits = |CopyRange { at, from, len }: &CopyRange| {
            let follows = *at >= end && *len > 0 && from.checked_add(*len).is_some();
            end = at.checked_add(*len).filter(|end| follows && end <= size)?;
            Some(())
        };
        match ranges.iter().map(fits).all(|fits| fits.is_some()) {
            true => Ok(()),
            false => Err(format!("ranges of a draft of {path} that overlap or lie outside")),
        }
    }
}

impl Hello {
    fn validate(&self) -> Result<(), String> {
        if self.share.len() > MAX_SHARE {
            return Err(format!("a share name over {MAX_SHARE} bytes"));
        }
        filter::check_length(&self.policy.rules).map_err(|error| error.to_string())
    }
}

/// Whether there are chunks that no bytes bound.
fn has_empty(chunks: &[ChunkRef]) -> bool {
    chunks.iter().any(|chunk| chunk.len == 0)
}

impl ToMaster {
    fn validate(&self) -> Result<(), String> {
        match self {
            Self::Want(wants) => {
                let too_long = |w: &&Wanted| !w.basis.is_plausible() || w.part.len() > MAX_CHUNKS;
                if let Some(w) = wants.iter().find(too_long) {
                    return Err(format!("want {} has more chunks or pieces than it can have", w.seq));
                }
                match wants.iter().find(|w| has_empty(w.basis.chunks()) || has_empty(&w.part)) {
                    Some(w) => Err(format!("want {} has chunks of no bytes", w.seq)),
                    None => Ok(()),
                }
            }
            Self::Described(Described { seq, parts: Parts::Chunks(chunks), .. }) if has_empty(chunks) => {
                Err(format!("the description of the old file of content {seq} has chunks of no bytes"))
            }
            Self::Listing(listing) => {
                let names = || listing.children.iter().map(|c| &c.name);
                if !names().zip(names().skip(1)).all(|(a, b)| a < b) {
                    return Err(format!("the listing of {} is not sorted", listing.dir));
                }
                match names().find(|name| listing.dir.join(name).is_err()) {
                    Some(name) => Err(format!("the listing of {} holds {:?}", listing.dir, crate::path::escape(name))),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}
