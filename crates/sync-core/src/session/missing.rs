//! Contents that did not come, or were believed to be there and are not: where else the master has them, and what to
//! say of those that stay away.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::BuildHasher;

use foldhash::quality::RandomState;

use crate::hash::Digest;
use crate::monitor::Problem;
use crate::path::RelPath;
use crate::plan::Changes;
use crate::wire::Offered;

/// One content under all names that it can still be asked for by, with their numbers.
pub(super) type Names = VecDeque<(u64, Offered)>;

#[derive(Debug, Default)]
pub(super) struct Missing {
    /// The numbers of the changes' contents, each with the hash of its path: whole paths would take several times as
    /// much. Salted, so that nobody can make two paths meet.
    numbers: Vec<(u64, u64)>,
    salt: RandomState,
    /// By the path they were asked for; with the reason, unless the master tells it.
    failed: HashMap<RelPath, Option<Problem>>,
    /// For a content that was asked for because it is missing: its other names.
    elsewhere: HashMap<u64, Names>,
    /// Whether a plan's missing contents were asked for. Once: another plan would not know better.
    asked: bool,
}

impl Missing {
    /// These contents of changes are numbered from `first` on.
    pub fn number(&mut self, first: u64, files: &[Offered]) {
        let salt = &self.salt;
        // By an eighth rather than twofold.
        if self.numbers.len() + files.len() > self.numbers.capacity() {
            self.numbers.reserve_exact(files.len() + self.numbers.len() / 8);
        }
        self.numbers.extend(files.iter().map(|file| salt.hash_one(&file.path)).zip(first..));
    }

    /// All changes will come again, with other numbers.
    pub fn restart(&mut self) {
        self.numbers.clear();
    }

    /// The plan is accepted: nothing is asked for any more.
    pub fn end(&mut self) {
        *self = Self { salt: self.salt.clone(), asked: self.asked, ..Self::default() };
    }

    /// It was asked for by this name of several.
    pub fn asked_for(&mut self, seq: u64, others: Names) {
        self.elsewhere.insert(seq, others);
    }

    /// It came.
    pub fn came(&mut self, seq: u64) {
        self.elsewhere.remove(&seq);
    }

    /// It did not come by this path; returns its other names. Only a plan shows whether that matters, so the problem
    /// is told with it.
    pub fn did_not_come(&mut self, seq: u64, path: RelPath, problem: Option<Problem>) -> Option<Names> {
        self.failed.insert(path, problem);
        self.elsewhere.remove(&seq)
    }

    /// The contents that a plan misses, if they can be asked for by a name that was not tried yet.
    pub fn untried(&mut self, missing: &[RelPath], changes: &Changes) -> Vec<Names> {
        if std::mem::replace(&mut self.asked, true) {
            return Vec::new();
        }
        let files = missing.iter().filter(|path| !self.failed.contains_key(*path)).filter_map(|path| {
            let entry = changes.get(path)?.as_ref().filter(|entry| entry.needs_content())?;
            let (size, digest) = entry.content()?;
            let likely = entry.metadata();
            Some((self.salt.hash_one(path), Offered { path: path.clone(), digest, size, likely }))
        });
        let mut files: HashMap<u64, Offered> = files.collect();
        let mut contents: BTreeMap<Digest, Names> = BTreeMap::new();
        // From behind: if a path came twice, its last change counts.
        for (path, seq) in self.numbers.iter().rev() {
            if let Some(file) = files.remove(path) {
                contents.entry(file.digest).or_default().push_front((*seq, file));
            }
        }
        contents.into_values().collect()
    }

    /// What there is to say of paths that stay as they are: of each once, unless the master does.
    pub fn problems(&self, missing: &[RelPath]) -> Vec<Problem> {
        let problem = |path: &RelPath| match self.failed.get(path) {
            Some(known) => known.clone(),
            None => {
                let reason = "cannot update: its content could not be had; the next push tries again".to_owned();
                Some(Problem { path: Some(path.clone()), reason })
            }
        };
        missing.iter().filter_map(problem).collect()
    }
}
