//! What a mirror is told to do.

use std::sync::Arc;
use std::time::Duration;

use crate::guard::MaxDelete;
use crate::monitor::Monitor;
use crate::options::{Destination, PushRequest};

/// A tree and who follows it.
#[derive(Clone, Debug)]
pub struct MirrorConfig {
    /// As for a push: the tree, the replicas, the state directory and the rules.
    pub request: PushRequest,
    /// The longest that a file that is written all the time waits to be published.
    pub settle_max: Duration,
    /// How much of it a version may delete unless a person says so.
    pub max_delete: MaxDelete,
    /// How often the whole tree is looked at to prove that no change was missed. Each time it is up to a quarter sooner or
    /// later.
    pub rescan: Duration,
}

/// Makes what hears of a share, or of one of its replicas.
pub type Monitors = Arc<dyn Fn(Option<&Destination>) -> Arc<dyn Monitor> + Send + Sync>;
