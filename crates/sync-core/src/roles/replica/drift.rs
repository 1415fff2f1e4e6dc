//! What somebody else changed in a replica's tree, as a look at it beside its rows has found.

use std::collections::{BTreeSet, HashSet};

use crate::path::{RelPath, escape};
use crate::roles::survey::Survey;

/// How many paths of one look are logged; the others are counted.
const NAMED: usize = 20;

/// Entries that are not what their rows say.
#[derive(Debug, Default)]
pub struct Drift {
    first: Vec<(RelPath, &'static str)>,
    count: u64,
}

impl Drift {
    /// What a look has found, after all of it was identified: beneath these names alone, if there are some. With
    /// `keeps_extras` what the master does not have is none.
    pub fn of(survey: &Survey, names: Option<&BTreeSet<RelPath>>, keeps_extras: bool) -> Self {
        let changed = survey.pending.iter().filter(|pending| pending.changes_entry());
        let changed = changed.filter(|pending| !(keeps_extras && (pending.before.is_none() || pending.row.extra)));
        let changed = changed.map(|pending| {
            let what = match pending.before {
                None => "created",
                Some(_) if pending.changes_metadata() => "metadata changed",
                Some(_) => "changed",
            };
            // A name that comes or goes moves the time of its directory.
            let follows = pending.row.entry.is_dir() && what == "metadata changed";
            (&pending.row.path, what, follows)
        });
        // What the kernel refused to make was not there before.
        let gone = survey.gone.iter().filter(|row| row.tuple.is_some() && !(keeps_extras && row.extra));
        let all: Vec<_> = changed.chain(gone.map(|row| (&row.path, "deleted", false))).collect();
        let explained: HashSet<RelPath> = all
            .iter()
            .filter(|(_, what, _)| *what != "metadata changed")
            .filter_map(|(path, ..)| path.parent())
            .collect();
        let mut drift = Self::default();
        for (path, what, follows) in all {
            if (follows && explained.contains(path)) || !names.is_none_or(|names| is_within(path, names)) {
                continue;
            }
            drift.count += 1;
            if drift.first.len() < NAMED {
                drift.first.push((path.clone(), what));
            }
        }
        drift
    }

    /// How many entries.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// A line for each of the first entries, and one for the others.
    pub fn log(&self, share: &str) {
        for (path, what) in &self.first {
            let path = escape(path.as_bytes());
            tracing::warn!(share, %path, "drift: {what} here, and not by the master");
        }
        if let more @ 1.. = self.count - self.first.len() as u64 {
            tracing::warn!(share, "drift: and {more} more");
        }
    }
}

/// Whether the path is among the names, or a directory that it is in and that is not the top: that holds everything.
fn is_within(path: &RelPath, names: &BTreeSet<RelPath>) -> bool {
    let mut at = Some(path.clone());
    while let Some(above) = at {
        if names.contains(&above) && (!above.is_root() || path.is_root()) {
            return true;
        }
        at = above.parent();
    }
    false
}
