//! Asked to stop between any two steps: what is visible is old or new and whole, nothing stays in staging but what a
//! resume can use, and the next push is exact.

use super::*;
use crate::fs::PART_MIN;

/// Raises the flag the first time that it is asked for the names of an inode: in the middle of a step on a hard link.
struct Raising {
    index: Index,
    stop: Arc<AtomicBool>,
}

impl Known for Raising {
    fn row(&self, path: &RelPath) -> Option<Row> {
        self.index.row(path)
    }
    fn names(&self, tuple: &Tuple) -> Cow<'_, [RelPath]> {
        self.stop.store(true, Ordering::Relaxed);
        self.index.names(tuple)
    }
}

impl Bed {
    /// A publisher that is stopped in its first step on a hard link.
    fn stopping(&self, moves: Moves<'_>) -> Publisher {
        let stop = Arc::new(AtomicBool::new(false));
        let mut publisher = self.publisher(moves);
        publisher.stop_on(Arc::clone(&stop));
        publisher.known = Box::new(Raising { index: Index(self.replica()), stop });
        publisher
    }

    /// Publishes until it is stopped, gives up as a session does, and tells what failed. Every entry is then the old or
    /// the new one.
    fn stopped(&self, mut publisher: Publisher) -> Vec<String> {
        let (want, have) = (self.source(), self.replica());
        publisher.publish();
        assert!(publisher.was_stopped());
        publisher.staging.keep_parts();
        assert_eq!(publisher.staging.take_problems().len(), 0);
        for (path, row) in self.replica() {
            let is = |tree: &Tree| tree.get(&path).is_some_and(|other| other.entry.kind == row.entry.kind);
            assert!(is(&want) || is(&have), "{path} is neither old nor new");
        }
        publisher.take_failures().iter().map(ToString::to_string).collect()
    }

    fn texts(&self, names: &[&str]) -> Vec<String> {
        names.iter().map(|name| fs::read_to_string(self.dst(name)).unwrap_or_else(|_| "-".to_owned())).collect()
    }
}

#[test]
fn while_names_are_given() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("b", "old"), ("c", "old"), ("gone", "old")]);
    fs::hard_link(bed.dst("b"), bed.dst("b2")).unwrap();
    Bed::write(|n| bed.src(n), &[("a", "new"), ("b", "new"), ("b2", "new"), ("c", "new"), ("d/e", "new")]);
    let mut publisher = bed.stopping(&[]);
    publisher.prepare();
    assert!(!publisher.was_stopped());
    assert_eq!(bed.stopped(publisher), Vec::<String>::new());
    assert_eq!(bed.texts(&["a", "b", "b2", "c", "d/e", "gone"]), ["new", "new", "old", "old", "-", "old"]);
    assert!(!bed.dst(STAGING_NAME).exists());
    bed.push(&[]);
}

#[test]
fn while_deleting() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("a", "old"), ("b", "old")]);
    fs::hard_link(bed.dst("b"), bed.dst("b2")).unwrap();
    Bed::write(|n| bed.src(n), &[("new", "new")]);
    let mut publisher = bed.stopping(&[]);
    publisher.prepare();
    assert_eq!(bed.stopped(publisher), Vec::<String>::new());
    assert_eq!(bed.texts(&["a", "b", "b2", "new"]), ["old", "old", "-", "new"]);
    bed.push(&[]);
}

#[test]
fn while_something_is_in_the_way() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("d/x", "x"), ("d/y", "y"), ("d/z", "z")]);
    Bed::write(|n| bed.src(n), &[("d", "a file"), ("w", "z")]);
    // Pinning `d/z` gives it another name, so that its deletion is the first step on a hard link.
    let mut publisher = bed.stopping(&[("w", "d/z")]);
    publisher.prepare();
    assert!(!publisher.was_stopped());
    let failures = bed.stopped(publisher);
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].contains("kept as d/z"), "{failures:?}");
    assert_eq!(bed.texts(&["d/x", "d/y", "d/z", "w"]), ["x", "y", "z", "-"], "what was moved is not lost");
    bed.push(&[("w", "d/z")]);
}

#[test]
fn while_metadata_is_set() {
    let bed = Bed::new();
    for side in ["src", "dst"] {
        let at = |name: &str| bed.top.path().join(side).join(name);
        Bed::write(at, &[("a", "1"), ("b", "2"), ("c", "3")]);
        fs::hard_link(at("b"), at("b2")).unwrap();
    }
    for name in ["a", "b", "c"] {
        mode(&bed.src(name), 0o640);
        mode(&bed.dst(name), 0o600);
        set_mtime(&bed.src(name), 9, 9);
        set_mtime(&bed.dst(name), 9, 9);
    }
    let mut publisher = bed.stopping(&[]);
    publisher.prepare();
    assert_eq!(bed.stopped(publisher), Vec::<String>::new());
    let modes = ["a", "b", "c"].map(|name| fs::metadata(bed.dst(name)).unwrap().mode() & 0o777);
    assert_eq!(modes, [0o640, 0o640, 0o600]);
    bed.push(&[]);
}

#[test]
fn while_preparing() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("b", "same"), ("c", "old")]);
    fs::hard_link(bed.dst("b"), bed.dst("b2")).unwrap();
    Bed::write(|n| bed.src(n), &[("a", "new"), ("b", "same"), ("c", "new")]);
    for link in ["b2", "b3"] {
        fs::hard_link(bed.src("b"), bed.src(link)).unwrap();
    }
    for name in [bed.src("b"), bed.dst("b")] {
        set_mtime(&name, 9, 9);
    }
    let before = bed.replica();
    let mut publisher = bed.stopping(&[]);
    publisher.prepare();
    assert!(publisher.was_stopped());
    let staged = |name: &str| publisher.step_of(&path(name)).map(|i| publisher.work[i].staged.is_some());
    assert_eq!([staged("a"), staged("b3"), staged("c")], [Some(true), Some(true), Some(false)]);
    publisher.staging.keep_parts();
    assert!(!bed.dst(STAGING_NAME).exists());
    compare(&before, &bed.replica());
    bed.push(&[]);
}

#[test]
fn before_anything() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("b", "old"), ("gone", "old")]);
    Bed::write(|n| bed.src(n), &[("a", "new"), ("b", "new")]);
    let before = bed.replica();
    let mut publisher = bed.publisher(&[]);
    publisher.prepare();
    publisher.stop_on(Arc::new(AtomicBool::new(true)));
    assert_eq!(bed.stopped(publisher), Vec::<String>::new());
    let names = bed.replica().into_keys().collect::<Vec<_>>();
    assert_eq!(names, before.into_keys().collect::<Vec<_>>());
    assert_eq!(bed.texts(&["b", "gone"]), ["old", "old"]);
    bed.push(&[]);
}

#[test]
fn a_whole_content_of_a_big_file_is_kept_for_the_next_push() {
    let bed = Bed::new();
    let bytes = vec![0; PART_MIN as usize + 1];
    fs::write(bed.src("big"), &bytes).unwrap();
    fs::write(bed.src("small"), "small").unwrap();
    let mut publisher = bed.publisher(&[]);
    publisher.prepare();
    publisher.stop_on(Arc::new(AtomicBool::new(true)));
    assert_eq!(bed.stopped(publisher), Vec::<String>::new());
    let staging = bed.staging();
    staging.adopt(&RelPath::root()).unwrap();
    assert!(staging.has(&Digest::of(&bytes)) && !staging.has(&Digest::of(b"small")));
    staging.remove();
}
