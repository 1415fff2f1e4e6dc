//! Which entries belong to a push: gitignore patterns in the order given, the last match wins.

use serde::{Deserialize, Serialize};

/// One `--exclude` or `--include`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// A gitignore pattern; a leading `!` includes again.
    pub pattern: String,
}
