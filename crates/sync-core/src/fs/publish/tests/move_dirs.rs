//! Directories that are renamed whole, and what keeps them from it.

use super::unprivileged::{bed as bed_of_nobody, unprivileged};
use super::*;
use crate::manifest::Holds;
use crate::plan::{Changes, Situation, decide, find_renames, take_renamed};

/// What came of a plan that renames directories whole where it can.
struct Outcome {
    /// Which were.
    renamed: Vec<String>,
    /// Whether some had to be moved entry by entry.
    followed_up: bool,
    failures: Vec<String>,
}

impl Bed {
    /// A bed whose replica has what the source has.
    fn in_step(files: &[(&str, &str)]) -> Self {
        let bed = Self::new();
        bed.bring_in_step(files);
        bed
    }

    fn bring_in_step(&self, files: &[(&str, &str)]) {
        Self::write(|n| self.src(n), files);
        self.push(&[]);
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.src(from), self.src(to)).unwrap();
    }

    /// A publisher of the plan that a session would make.
    fn moving(&self) -> Publisher {
        self.moving_of(self.replica())
    }

    /// The same if these are the rows.
    fn moving_of(&self, have: Tree) -> Publisher {
        let want = self.source();
        let new = want.iter().filter(|(path, row)| have.get(*path).is_none_or(|old| old.entry != row.entry));
        let new = new.map(|(path, row)| (path.clone(), Some(Box::new(row.entry.clone()))));
        let gone = have.keys().filter(|path| !want.contains_key(*path)).map(|path| (path.clone(), None));
        let mut changes: Changes = new.chain(gone).collect();
        let touched = have.iter().filter(|(path, _)| changes.contains_key(*path));
        let mut rows: Tree = touched.map(|(path, row)| (path.clone(), row.clone())).collect();
        let mut sources: std::collections::HashMap<Digest, Vec<RelPath>> = Default::default();
        for (path, row) in &have {
            let digest = row.entry.content().map(|(_, digest)| digest);
            digest.into_iter().for_each(|digest| sources.entry(digest).or_default().push(path.clone()));
        }
        let staging = self.staging();
        for (path, row) in &want {
            let missing = row.entry.content().filter(|(_, digest)| !sources.contains_key(digest));
            if let Some((_, digest)) = missing {
                let bytes = fs::read(self.src(std::str::from_utf8(path.as_bytes()).unwrap())).unwrap();
                staging.store(&digest, &bytes, path, None).unwrap();
            }
        }
        let holds = Holds::default();
        let renames = find_renames(&changes, &rows, &holds);
        let moved = take_renamed(renames, &mut changes, &mut rows);
        let staged = |digest: &Digest| !sources.contains_key(digest);
        let situation = Situation { rows, sources: &sources, staged: &staged, holds: &holds, no_delete: false };
        let mut plan = decide(changes, situation);
        assert_eq!(plan.missing, []);
        plan.rename(moved);
        let mut publisher = Publisher::new(staging, plan.steps, Box::new(Index(have)));
        publisher.move_dirs(Arc::new(plan.moved));
        publisher
    }

    /// Carries the plan out as a session does; `before` happens first, and `between` after the preparation. If nothing
    /// failed, the replica is what the source is and the index would be true.
    fn move_with(&self, before: impl FnOnce(&Self), between: impl FnOnce(&Self)) -> Outcome {
        let have = self.replica();
        let mut publisher = self.moving();
        before(self);
        let ready: Arc<Mutex<Vec<Ready>>> = Arc::default();
        let told = Arc::clone(&ready);
        publisher.tell_every = 1;
        publisher.tell_ready(Box::new(move |some| told.lock().unwrap().extend(some)));
        publisher.prepare();
        between(self);
        publisher.publish();
        let mut seen = publisher.observe();
        let mut failures = publisher.take_failures();
        let mut index = have;
        let mut renamed = Vec::new();
        for dir in Arc::clone(&publisher.moved).iter().filter(|dir| publisher.has_renamed(dir)) {
            renamed.push(format!("{} -> {}", dir.from, dir.to));
            index.retain(|path, _| *path != dir.from && !path.is_beneath(&dir.from));
            index.extend(dir.entries.iter().map(|moved| (moved.path.clone(), moved.row())));
        }
        for Ready { step, tuple } in std::mem::take(&mut *ready.lock().unwrap()) {
            let (path, tuple, refused) = (publisher.steps[step].path.clone(), Some(tuple), Refused::default());
            seen.push(Observed { path, tuple, refused, proven: true, mount: false });
        }
        let next = publisher.follow_up();
        let followed_up = next.is_some();
        if let Some(mut next) = next {
            next.prepare();
            next.publish();
            let again = next.observe();
            seen.retain(|seen| !again.iter().any(|again| again.path == seen.path));
            seen.extend(again);
            failures.extend(next.take_failures());
        }
        let failures: Vec<String> = failures.iter().map(ToString::to_string).collect();
        if failures.is_empty() {
            self.check(index, &seen);
            assert!(!self.dst(STAGING_NAME).exists());
        }
        Outcome { renamed, followed_up, failures }
    }

    /// Carries it out with nobody in the way; returns what was renamed whole, which all came true.
    fn move_all(&self) -> Vec<String> {
        let Outcome { renamed, followed_up, failures } = self.move_with(|_| {}, |_| {});
        assert_eq!(failures, Vec::<String>::new());
        assert!(!followed_up);
        renamed
    }

    fn ino(&self, name: &str) -> u64 {
        fs::symlink_metadata(self.dst(name)).unwrap().ino()
    }
}

const FILES: &[(&str, &str)] = &[("d/a", "1"), ("d/b/c", "2"), ("d/b/e", ""), ("keep", "3")];

/// Removes the old name of the source's directory.
fn renamed() -> Bed {
    let bed = Bed::in_step(FILES);
    bed.rename("d", "n");
    bed
}

#[test]
fn a_directory_keeps_its_inode_and_those_in_it() {
    let bed = Bed::in_step(FILES);
    symlink("../a", bed.src("d/b/link")).unwrap();
    fs::hard_link(bed.src("d/a"), bed.src("d/b/same")).unwrap();
    bed.push(&[]);
    let inodes =
        |top: &str| ["", "/a", "/b", "/b/c", "/b/e", "/b/link", "/b/same"].map(|n| bed.ino(&format!("{top}{n}")));
    let before = inodes("d");
    bed.rename("d", "n");
    assert_eq!(bed.move_all(), ["d -> n"]);
    assert_eq!(inodes("n"), before);
}

#[test]
fn into_new_directories_and_out_of_those_that_go() {
    let bed = Bed::in_step(&[("old/x", "1"), ("old/in/d/a", "2"), ("old/in/d/b/c", "3"), ("z", "4")]);
    let before = bed.ino("old/in/d");
    fs::create_dir_all(bed.src("new/deep")).unwrap();
    bed.rename("old/in/d", "new/deep/d");
    Bed::write(|n| bed.src(n), &[("new/fresh", "5"), ("new/deep/fresh", "6")]);
    fs::remove_dir_all(bed.src("old")).unwrap();
    for (i, name) in ["new/deep", "new"].into_iter().enumerate() {
        set_mtime(&bed.src(name), 1_000_000_000 + i as i64, 42);
    }
    assert_eq!(bed.move_all(), ["old/in/d -> new/deep/d"]);
    assert_eq!(bed.ino("new/deep/d"), before);
}

#[test]
fn one_into_the_other() {
    let bed = Bed::in_step(&[("a/x", "1"), ("a/s/y", "2"), ("c/z", "3")]);
    bed.rename("a", "b");
    bed.rename("c", "b/c");
    assert_eq!(bed.move_all(), ["c -> b/c", "a/s -> b/s"]);
}

#[test]
fn a_swap_and_a_rotation_go_entry_by_entry() {
    let bed = Bed::in_step(&[("a/x", "1"), ("b/y", "2"), ("c/z", "3")]);
    bed.rename("a", "t");
    bed.rename("b", "a");
    bed.rename("t", "b");
    assert_eq!(bed.move_all(), Vec::<String>::new());
    bed.rename("a", "t");
    bed.rename("c", "a");
    bed.rename("b", "c");
    bed.rename("t", "b");
    assert_eq!(bed.move_all(), Vec::<String>::new());
}

#[test]
fn its_contents_are_copied_elsewhere_before_it_goes() {
    let bed = renamed();
    Bed::write(|n| bed.src(n), &[("copy", "2"), ("sub/copy", "1")]);
    assert_eq!(bed.move_all(), ["d -> n"]);
}

#[test]
fn what_somebody_put_there_or_changed_or_took_away_is_not_lost_and_the_rest_moves() {
    let lost = |bed: &Bed| fs::remove_file(bed.dst("d/b/c")).unwrap();
    let put = |bed: &Bed| Bed::write(|n| bed.dst(n), &[("d/b/foreign", "own")]);
    let changed = |bed: &Bed| Bed::write(|n| bed.dst(n), &[("d/b/c", "own")]);
    let cases: [(&str, &dyn Fn(&Bed), bool); 5] = [
        ("put before", &put, true),
        ("put between", &put, false),
        ("changed before", &changed, true),
        ("lost before", &lost, true),
        ("lost between", &lost, false),
    ];
    for (what, happens, is_before) in cases {
        let bed = renamed();
        let outcome = match is_before {
            true => bed.move_with(happens, |_| {}),
            false => bed.move_with(|_| {}, happens),
        };
        let Outcome { renamed, followed_up, failures } = outcome;
        assert!(renamed.is_empty() && followed_up, "{what}: {renamed:?}");
        assert_eq!(fs::read_to_string(bed.dst("n/a")).unwrap(), "1", "{what}");
        let left = ["d/b/foreign", "d/b/c"].map(|name| fs::read_to_string(bed.dst(name)).unwrap_or_default());
        match what {
            "put before" | "put between" => assert_eq!((&*left[0], failures.len()), ("own", 2), "{failures:?}"),
            "changed before" => assert_eq!((&*left[1], bed.dst("n/b/c").exists()), ("own", false), "{failures:?}"),
            _ => assert_eq!(failures.len(), 2, "{what}: {failures:?}"),
        }
    }
}

#[test]
fn what_no_row_tells_of_stays_where_it_is() {
    let bed = Bed::in_step(FILES);
    // As with a name that the push leaves out: it has been there all the time.
    Bed::write(|n| bed.dst(n), &[("d/b/private", "own")]);
    let time = fs::metadata(bed.src("d/b")).unwrap();
    set_mtime(&bed.dst("d/b"), time.mtime(), time.mtime_nsec());
    bed.rename("d", "n");
    let mut have = bed.replica();
    have.remove(&path("d/b/private"));
    let mut publisher = bed.moving_of(have);
    assert_eq!(publisher.moved.len(), 1);
    publisher.prepare();
    publisher.publish();
    let mut next = publisher.follow_up().unwrap();
    next.prepare();
    next.publish();
    assert_eq!(next.take_failures().len(), 2);
    assert_eq!(fs::read_to_string(bed.dst("d/b/private")).unwrap(), "own");
    assert_eq!(fs::read_to_string(bed.dst("n/b/c")).unwrap(), "2");
}

#[test]
fn what_changes_after_the_look_moves_along_and_shows_as_changed() {
    let bed = renamed();
    let mut publisher = bed.moving();
    publisher.prepare();
    Bed::write(|n| bed.dst(n), &[("d/b/c", "own")]);
    publisher.publish();
    assert!(publisher.has_renamed(&publisher.moved[0]) && publisher.take_failures().is_empty());
    assert_eq!(fs::read_to_string(bed.dst("n/b/c")).unwrap(), "own");
    let row = publisher.moved[0].entries.iter().find(|moved| moved.path == path("n/b/c")).unwrap().row();
    assert_ne!(bed.root.stat(&path("n/b/c")).unwrap().map(|stat| stat.tuple), row.tuple);
}

#[test]
fn what_has_names_outside_goes_entry_by_entry() {
    let bed = renamed();
    fs::hard_link(bed.dst("d/b/c"), bed.top.path().join("outside")).unwrap();
    let Outcome { renamed, followed_up, failures } = bed.move_with(|_| {}, |_| {});
    assert_eq!((renamed, followed_up, failures), (Vec::new(), true, Vec::new()));
}

#[test]
fn what_was_left_out_goes_before_what_is_above_it() {
    let bed = Bed::in_step(&[("old/x", "1"), ("old/in/d/a", "2"), ("old/in/d/b/c", "3")]);
    fs::create_dir_all(bed.src("new")).unwrap();
    bed.rename("old/in/d", "new/d");
    Bed::write(|n| bed.src(n), &[("new/fresh", "5")]);
    fs::remove_dir_all(bed.src("old")).unwrap();
    set_mtime(&bed.src("new"), 1_000_000_000, 42);
    // For a moment something was there: the directory is another than it was.
    let touch = |bed: &Bed| {
        Bed::write(|n| bed.dst(n), &[("old/in/d/b/brief", "own")]);
        fs::remove_file(bed.dst("old/in/d/b/brief")).unwrap();
    };
    for is_before in [true, false] {
        let bed = match is_before {
            true => &bed,
            false => {
                fs::remove_dir_all(bed.dst("new")).unwrap();
                Bed::write(|n| bed.dst(n), &[("old/x", "1"), ("old/in/d/a", "2"), ("old/in/d/b/c", "3")]);
                for name in ["a", "b/c", "b", ""] {
                    let time = fs::metadata(bed.src("new/d").join(name)).unwrap();
                    set_mtime(&bed.dst("old/in/d").join(name), time.mtime(), time.mtime_nsec());
                }
                &bed
            }
        };
        let outcome = if is_before { bed.move_with(touch, |_| {}) } else { bed.move_with(|_| {}, touch) };
        assert_eq!(outcome.failures, Vec::<String>::new());
        assert!(outcome.followed_up && outcome.renamed.is_empty());
    }
}

#[test]
fn a_new_name_that_is_taken_meanwhile_is_left_alone() {
    let bed = renamed();
    let outcome = bed.move_with(|_| {}, |bed| Bed::write(|n| bed.dst(n), &[("n/own", "own")]));
    assert_eq!((outcome.failures.len(), outcome.followed_up), (1, false), "{:?}", outcome.failures);
    assert_eq!(fs::read_to_string(bed.dst("n/own")).unwrap(), "own");
    assert_eq!(fs::read_to_string(bed.dst("d/b/c")).unwrap(), "2");
}

#[test]
fn a_stop_before_or_after_leaves_it_whole() {
    let bed = renamed();
    let mut publisher = bed.moving();
    publisher.prepare();
    publisher.stop_on(Arc::new(AtomicBool::new(true)));
    publisher.publish();
    assert!(publisher.was_stopped() && bed.dst("d/b/c").exists() && !bed.dst("n").exists());
    publisher.staging.keep_parts();
    // And a kill just after it: what the next session sees is the new name with the old inodes.
    let mut publisher = bed.moving();
    publisher.prepare();
    let steps = Arc::clone(&publisher.steps);
    publisher.place_all(&steps);
    drop(publisher);
    assert!(!bed.dst("d").exists() && bed.dst("n/b/c").exists());
    bed.push(&[]);
}

#[test]
fn read_only_directories_move_too() {
    let bed = bed_of_nobody();
    unprivileged(|| {
        bed.bring_in_step(&[("from/d/a", "1"), ("from/d/b/c", "2"), ("to/x", "3"), ("s/d/a", "4")]);
        bed.rename("from/d", "to/d");
        bed.rename("s/d", "s/n");
        for side in [Bed::src, Bed::dst] {
            let top =
                |name: &str| if side(&bed, "to/d").exists() { name.replace("from/d", "to/d") } else { name.to_owned() };
            for name in ["from/d/b", "from/d", "from", "to", "s"] {
                mode(&side(&bed, &top(name)), 0o555);
            }
        }
        for (name, here) in [("to/d/b", "from/d/b"), ("to/d", "from/d"), ("from", "from"), ("to", "to"), ("s", "s")] {
            let time = fs::metadata(bed.dst(here)).unwrap();
            set_mtime(&bed.src(name), time.mtime(), time.mtime_nsec());
        }
        let before = [bed.ino("from/d"), bed.ino("s/d")];
        assert_eq!(bed.move_all(), ["s/d -> s/n", "from/d -> to/d"]);
        assert_eq!([bed.ino("to/d"), bed.ino("s/n")], before);
        // So that it can be removed.
        for name in ["from", "to/d/b", "to/d", "to", "s"] {
            [bed.src(name), bed.dst(name)].iter().for_each(|dir| mode(dir, 0o755));
        }
    });
}
