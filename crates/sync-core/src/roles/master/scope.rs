//! Of what the newest version speaks: a tree without what the rules left out, and without what could not be read.

use serde::{Deserialize, Serialize};

use crate::filter::Rule;
use crate::index::{Index, IndexError, Writer};
use crate::manifest::Holds;
use crate::options::Policy;

/// Under this key an index keeps it.
const KEY: &str = "version.scope";

/// What belongs to a version and what does not. Who tells it again without having looked at the tree needs to know: what was
/// not looked at then would seem to be gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    rules: Vec<Rule>,
    one_file_system: bool,
    holds: Holds,
}

impl Scope {
    /// Of a version that was found by this policy.
    pub fn new(policy: &Policy, holds: &Holds) -> Self {
        let Policy { rules, one_file_system, .. } = policy;
        Self { rules: rules.clone(), one_file_system: *one_file_system, holds: holds.clone() }
    }

    /// Whether it is that.
    pub fn is(&self, policy: &Policy, holds: &Holds) -> bool {
        self.holds == *holds && self.is_by(policy)
    }

    fn is_by(&self, policy: &Policy) -> bool {
        (&self.rules, self.one_file_system) == (&policy.rules, policy.one_file_system)
    }

    /// What could not be read of the newest version in an index; `None` if that was found by another policy, or by a program
    /// that did not write it down.
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be read.
    pub fn holds_in(index: &Index, policy: &Policy) -> Result<Option<Holds>, IndexError> {
        let scope = index.meta(KEY)?.and_then(|value| postcard::from_bytes::<Self>(&value).ok());
        Ok(scope.filter(|scope| scope.is_by(policy)).map(|scope| scope.holds))
    }

    /// Writes it down, with whatever else is written.
    ///
    /// # Errors
    /// [`IndexError`] if that cannot be done.
    pub fn write(&self, writer: &mut Writer<'_>) -> Result<(), IndexError> {
        // What cannot be told is not told.
        writer.set_meta(KEY, postcard::to_allocvec(self).ok().as_deref())
    }
}
