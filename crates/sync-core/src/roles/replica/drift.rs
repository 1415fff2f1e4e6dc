//! What somebody else changed in a replica's tree, as a look at it beside its rows has found.

use std::collections::{BTreeMap, HashSet};

use crate::path::{RelPath, escape};
use crate::roles::survey::{Names, Survey};

/// How many paths of one look are logged; the others are counted.
const NAMED: usize = 20;

/// How many paths that drifted are kept; the others are counted.
const KEPT: usize = 10_000;

/// Entries that are not what their rows say.
#[derive(Debug, Default)]
pub struct Drift {
    first: Vec<(RelPath, &'static str)>,
    /// Entries beneath a directory that came or went, which is told for all.
    beneath: u64,
    /// Up to [`KEPT`] of all.
    paths: Vec<RelPath>,
    count: u64,
}

impl Drift {
    /// What a look has found, after all of it was identified: beneath these names alone, if there are some. With
    /// `keeps_extras` what the master does not have is none. In the directories `ours` there is what we have left there.
    pub fn of(survey: &Survey, names: Option<&Names>, keeps_extras: bool, ours: &[RelPath]) -> Self {
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
            .chain(ours.iter().cloned())
            .collect();
        let mut drift = Self::default();
        let mut whole: Option<(&RelPath, &str)> = None;
        for (path, what, follows) in all {
            if (follows && explained.contains(path)) || !names.is_none_or(|names| names.covers(path)) {
                continue;
            }
            drift.count += 1;
            if drift.paths.len() < KEPT {
                drift.paths.push(path.clone());
            }
            if whole.is_some_and(|(top, with)| what == with && path.is_beneath(top)) {
                drift.beneath += 1;
                continue;
            }
            whole = Some((path, what)).filter(|_| what == "created" || what == "deleted");
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
        if let more @ 1.. = self.count - self.beneath - self.first.len() as u64 {
            tracing::warn!(share, "drift: and {more} more");
        }
    }
}

/// What drifted and was not undone, as far as the looks until now tell.
#[derive(Debug, Default)]
pub struct Unhealed {
    /// Up to [`KEPT`], and whether the rows have it, so that the next version that is reached undoes it.
    paths: BTreeMap<RelPath, bool>,
    /// Beyond those: what the rows do not have, and what they do.
    more: [u64; 2],
}

impl Unhealed {
    /// A look at these names, or at everything, has found all the drift that there is now; the rows have it from here on
    /// (`taken`), or not.
    pub fn looked(&mut self, names: Option<&Names>, found: &Drift, taken: bool) {
        match names {
            Some(names) => self.paths.retain(|path, _| !names.covers(path)),
            None => *self = Self::default(),
        }
        let mut known = 0;
        for path in &found.paths {
            if self.paths.len() < KEPT || self.paths.contains_key(path) {
                self.paths.insert(path.clone(), taken);
                known += 1;
            }
        }
        self.more[usize::from(taken)] += found.count - known;
    }

    /// The tree is what a version is, but for what the rows do not have.
    pub fn reached(&mut self) {
        self.paths.retain(|_, taken| !*taken);
        self.more[1] = 0;
    }

    /// How many entries, and the first, if there are any.
    pub fn all(&self) -> Option<(u64, RelPath)> {
        let (first, _) = self.paths.first_key_value()?;
        Some((self.paths.len() as u64 + self.more.iter().sum::<u64>(), first.clone()))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the test changes the files that are looked at")]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::ops::ControlFlow;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::filter::Filter;
    use crate::fs::{Reserved, Root};
    use crate::index::Index;
    use crate::roles::identify::{Early, IdentifyOptions, identify};
    use crate::roles::survey::{SurveyOptions, survey};

    fn look(top: &Path, index: &Index) -> Survey {
        let (filter, root, stop) = (Filter::new(&[]).unwrap(), Root::open(top).unwrap(), AtomicBool::new(false));
        let options = SurveyOptions {
            filter: &filter,
            one_file_system: false,
            leave_out: Vec::new(),
            checksum: false,
            takes_unmounted: false,
            reserved: Reserved::Skip,
            is_watched: false,
            reconsider_refused: false,
            ignore_extras: false,
        };
        let mut found = survey(&root, index, &options, &|_| ControlFlow::Continue(()), &mut |_, _| {}).unwrap();
        let options = IdentifyOptions {
            keep: 0,
            chunked: &|_, _| false,
            follow: &|_, _| None,
            draft: &|_, _, _| {},
            stop: &stop,
            read: &|_| {},
        };
        identify(&root, &mut found, &options, Early::default(), &mut |_, _| {});
        found
    }

    fn names(drift: &Drift) -> Vec<(String, &'static str)> {
        drift.first.iter().map(|(path, what)| (path.display(), *what)).collect()
    }

    #[test]
    fn each_thing_that_somebody_did_is_named_once() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        for dir in ["a", "gone/deep", "mode"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        for file in ["a/edited", "a/same", "a/touched", "gone/deep/file"] {
            fs::write(at(file), file).unwrap();
        }
        let index = Index::in_memory().unwrap();
        let found = look(temp.path(), &index);
        index.write(0, |writer| found.pending.iter().try_for_each(|p| writer.upsert(&p.row))).unwrap();
        assert_eq!(Drift::of(&look(temp.path(), &index), None, false, &[]).count(), 0);

        fs::write(at("a/edited"), "edited otherwise").unwrap();
        fs::write(at("a/new"), "new").unwrap();
        fs::create_dir_all(at("made/in")).unwrap();
        fs::remove_dir_all(at("gone")).unwrap();
        fs::set_permissions(at("mode"), PermissionsExt::from_mode(0o700)).unwrap();
        // Another tuple, and nothing that a master would want otherwise.
        let time = fs::metadata(at("a/same")).unwrap().modified().unwrap();
        fs::File::options().write(true).open(at("a/same")).unwrap().set_modified(time).unwrap();
        let found = look(temp.path(), &index);
        let drift = Drift::of(&found, None, false, &[]);
        let all = [
            ("a/edited", "changed"),
            ("a/new", "created"),
            ("made", "created"),
            ("mode", "metadata changed"),
            ("gone", "deleted"),
        ];
        assert_eq!(names(&drift), all.map(|(path, what)| (path.to_owned(), what)));
        // With what lies in the directories that came and went, and without those whose time only follows.
        assert_eq!((drift.count(), drift.beneath), (8, 3));

        let asked = BTreeSet::from(["", "a/new", "gone"].map(|path| RelPath::new(path).unwrap()));
        let asked = Names { whole: asked, alone: BTreeSet::from([RelPath::new("a").unwrap()]) };
        let some = Drift::of(&found, Some(&asked), false, &[]);
        assert_eq!(names(&some), [("a/new".to_owned(), "created"), ("gone".to_owned(), "deleted")]);
        // What is not undone is what the looks have found since, each at its names.
        let mut unhealed = Unhealed::default();
        let all = |unhealed: &Unhealed| unhealed.all().map(|(count, first)| (count, first.display()));
        unhealed.looked(None, &drift, false);
        assert_eq!(all(&unhealed), Some((8, "a/edited".to_owned())));
        unhealed.reached();
        assert_eq!(all(&unhealed).map(|all| all.0), Some(8), "the rows know nothing of it");
        let edited = Names { whole: BTreeSet::from([RelPath::new("a/edited").unwrap()]), ..Names::default() };
        unhealed.looked(Some(&edited), &Drift::default(), false);
        assert_eq!(all(&unhealed), Some((7, "a/new".to_owned())));
        unhealed.looked(Some(&asked), &some, true);
        assert_eq!(all(&unhealed).map(|all| all.0), Some(7), "found again");
        unhealed.reached();
        assert_eq!(all(&unhealed), Some((3, "made".to_owned())));
        unhealed.looked(None, &Drift::default(), true);
        assert_eq!(all(&unhealed), None);
        // A replica that keeps what the master does not have may have more.
        let kept = names(&Drift::of(&found, None, true, &[]));
        assert!(!kept.iter().any(|(_, what)| *what == "created") && kept.len() == 3, "{kept:?}");
    }
}
