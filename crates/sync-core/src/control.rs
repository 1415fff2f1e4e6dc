//! What a program asks the daemon on its machine, and what that answers: JSON objects, one a line, over a unix socket in
//! the state directory. No I/O: the types alone.
//!
//! A connection carries one [`Request`] and then [`Reply`]s up to a [`Reply::Done`] or a [`Reply::Failed`]. Whoever has
//! heard enough hangs up. Fields that are not known are ignored on both sides; [`PROTOCOL`] changes when that is not
//! enough.

use serde::{Deserialize, Serialize};

use crate::heal::Heal;
use crate::manifest::Time;

/// The version of what is said here.
pub const PROTOCOL: u32 = 1;

/// The socket's name in the state directory.
pub const SOCKET: &str = "control.sock";

/// The longest request, in bytes with its end of line.
pub const MAX_REQUEST: usize = 64 << 10;

/// The longest reply, in bytes with its end of line: the status of some ten thousand replicas.
pub const MAX_REPLY: usize = 16 << 20;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// What to do.
    #[serde(flatten)]
    pub order: Order,
}

impl From<Order> for Request {
    fn from(order: Order) -> Self {
        Self { protocol: PROTOCOL, order }
    }
}

/// What the daemon is to do. A share is named by its name, or by its path as [`crate::path::escape`] writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// Tell how one share, or all, and their replicas are.
    Status {
        /// Which; `None` for all.
        share: Option<String>,
        /// Again whenever it changes, until the asking side hangs up.
        #[serde(default)]
        follow: bool,
    },
    /// Look at all of a share now, publish what changed, try every replica at once, and tell of each that has it.
    Push {
        /// Which.
        share: String,
    },
    /// Let a version go out that is held, once.
    Release {
        /// Which.
        share: String,
    },
    /// Make this machine the owner of the replicas that are held because another one is, once. Nothing else is let out.
    Adopt {
        /// Which share.
        share: String,
    },
    /// Leave a replica alone until [`Order::Resume`] or the daemon's end.
    Pause {
        /// Which share.
        share: String,
        /// Which replica, as [`ReplicaStatus::name`] has it.
        replica: String,
    },
    /// Follow again.
    Resume {
        /// Which share.
        share: String,
        /// Which replica.
        replica: String,
    },
    /// Compare replicas with the newest version, and change nothing.
    Verify {
        /// Which share.
        share: String,
        /// Which replica; `None` for all.
        replica: Option<String>,
        /// Have each replica read every byte, instead of believing what it knows.
        deep: bool,
    },
    /// Read the configuration again.
    Reload,
    /// Try those replicas again now that are reached there: a moment ago they may have answered otherwise.
    TryAgain {
        /// A host's name or address, as the configuration has it.
        host: String,
        /// Its port.
        port: u16,
    },
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// How things are.
    Status(Status),
    /// The newest version, after a look.
    Published {
        /// The share's name.
        share: String,
        /// The version.
        version: VersionStatus,
        /// How many replicas there are to have it.
        replicas: u64,
    },
    /// A replica has that version, durable.
    Acknowledged {
        /// Which.
        replica: String,
        /// What it took.
        delivery: Option<DeliveryStatus>,
    },
    /// A replica does not have it yet. Told when a push begins, and whenever that changes.
    Behind {
        /// Which, and why.
        replica: ReplicaStatus,
    },
    /// A replica does not follow any more, and is not waited for.
    Left {
        /// Which.
        replica: String,
    },
    /// What the master cannot read, and so neither publishes nor compares: replicas keep what they have of it. Told before
    /// all else.
    Unread {
        /// The share's name.
        share: String,
        /// What it is.
        unread: UnreadStatus,
    },
    /// An entry differs at a replica.
    Differs {
        /// Which replica.
        replica: String,
        /// rsync's eleven letters.
        code: String,
        /// The entry, escaped.
        path: String,
    },
    /// What came of comparing a replica.
    Verified {
        /// Which.
        replica: String,
        /// Whether it is identical, which was found out without an error.
        identical: bool,
        /// What went wrong, if something did.
        problems: Vec<String>,
    },
    /// It is done.
    Done {
        /// What was done, for a person; may be empty.
        text: String,
    },
    /// It could not be done.
    Failed {
        /// Why, and what to do, for a person.
        reason: String,
    },
}

/// How a daemon is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub daemon: String,
    /// Its configuration file, escaped, if it has one.
    pub config: Option<String>,
    /// Its shares by name: those that it is the master of, and those that it holds a replica of.
    pub shares: Vec<ShareStatus>,
}

/// How a share is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShareStatus {
    /// Its name.
    pub name: String,
    /// Its directory, escaped.
    pub path: String,
    /// What this machine is to it.
    pub role: Role,
    /// What is being done.
    pub state: ShareState,
    /// Why it is in that state, where there is more to say.
    pub reason: Option<String>,
    /// The newest version; on a replica, the one that it has.
    pub version: Option<VersionStatus>,
    /// Why changes are not heard of, if they are not: they are found by looking from time to time.
    pub unwatched: Option<String>,
    /// On a master, what cannot be read of the tree, if there is anything.
    #[serde(default)]
    pub unread: Option<UnreadStatus>,
    /// Changes that only a look found although the tree is watched, since the daemon began.
    pub missed: u64,
    /// On a replica, the id of the master that owns the share, if one does.
    #[serde(default)]
    pub owner: Option<String>,
    /// On a master, who follows.
    pub replicas: Vec<ReplicaStatus>,
    /// On a replica, how it fares.
    pub copy: Option<CopyStatus>,
}

/// What a machine is to a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Its tree is the truth.
    Master,
    /// It holds a copy.
    Replica,
}

/// What is being done with a share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShareState {
    /// The tree is looked at for the first time.
    #[default]
    Starting,
    /// Changes are published as they come; a replica receives them.
    Ready,
    /// Nothing is published until somebody says so.
    Held,
    /// The tree cannot be looked at; it is tried again.
    Failed,
}

/// A version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionStatus {
    /// Counts from 1; compares within one history only.
    pub number: u64,
    /// Its identity, in hex.
    pub id: String,
    /// When it was published. A replica knows it once a master has told it since the daemon began.
    pub time: Option<Time>,
    /// How many entries it has. The same.
    pub entries: Option<u64>,
}

/// How a share fares of which this machine holds a replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// What is being done.
    pub state: CopyState,
    /// The master that was heard last; `None` if none was since the daemon began.
    pub master: Option<MasterStatus>,
    /// What somebody else changed here and is not undone, if there is anything.
    pub drift: Option<DriftStatus>,
    /// What is done about that.
    pub heal: Heal,
    /// What went wrong last, until the tree is what a version says.
    pub problem: Option<String>,
}

/// What is being done with a replica, as it sees that itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyState {
    /// A master is connected, and the tree is what that wants.
    InSync,
    /// It is compared with a version, or brought to it.
    Receiving,
    /// No master is connected: what is there is served as it is.
    Away,
    /// A version would delete too much. It is not taken until somebody says so on the master.
    Held,
    /// Somebody else changed the tree, and that is not undone.
    Drifted,
}

/// The master of a replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MasterStatus {
    /// Its id, as `synccli id` prints it there.
    pub id: String,
    /// The address that it came from last.
    pub address: String,
    /// Whether it is connected.
    pub connected: bool,
    /// How many seconds ago it was heard last; 0 while it is connected.
    pub heard_seconds: f64,
    /// Whether it mirrors its tree; else it was a single push.
    pub follows: bool,
}

/// What somebody else changed in the tree of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftStatus {
    /// How many names.
    pub entries: u64,
    /// The first of them in the order of the tree, escaped.
    pub first: Option<String>,
}

/// What a master cannot read of its tree. Replicas keep what they have of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadStatus {
    /// How many entries; what is beneath a directory among them is not counted.
    pub entries: u64,
    /// The first of them in the order of the tree, escaped.
    pub first: String,
    /// Why that one cannot be read.
    pub reason: String,
}

/// How a replica is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// As in the configuration, `HOST[:PORT]/SHARE`.
    pub name: String,
    /// What is being done.
    pub state: ReplicaState,
    /// The last version that it acknowledged.
    pub version: Option<u64>,
    /// What it lacks, if that can be told.
    pub lag: Option<Lag>,
    /// What somebody else changed there, as it tells.
    pub drift: Option<DriftStatus>,
    /// What went wrong last, until a version is acknowledged.
    pub problem: Option<String>,
    /// Seconds until it is tried again, if it is waited for.
    pub retry_seconds: Option<f64>,
    /// The connection, if there is one.
    pub link: Option<LinkStatus>,
    /// The last version that was brought to it by this daemon.
    pub delivery: Option<DeliveryStatus>,
}

/// What is being done with a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// It has the newest version.
    InSync,
    /// It is being brought to it.
    CatchingUp,
    /// It cannot be reached, or a session with it failed.
    Offline,
    /// It is not brought to a version until somebody says so.
    Held,
    /// It is left alone, as was asked.
    Paused,
    /// It has the newest version, but somebody else changed its tree, and that is not undone.
    Drifted,
}

/// What a replica lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// Versions.
    pub versions: u64,
    /// Entries that changed.
    pub entries: u64,
    /// Bytes of the files among them; `None` if there are too many to add up.
    pub bytes: Option<u64>,
    /// For how long there has been a version that it does not have.
    pub seconds: f64,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The other end.
    pub address: String,
    /// Round trip in milliseconds.
    pub rtt_ms: f64,
    /// UDP payload bytes sent so far.
    pub sent: u64,
    /// UDP payload bytes received so far.
    pub received: u64,
}

/// What it took to bring a version to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeliveryStatus {
    /// The version.
    pub version: u64,
    /// UDP payload bytes in both directions.
    pub wire_bytes: u64,
    /// From when the version was told until it was acknowledged.
    pub seconds: f64,
}

impl DeliveryStatus {
    /// Bytes per second.
    pub fn rate(&self) -> f64 {
        self.wire_bytes as f64 / self.seconds.max(1e-6)
    }
}
