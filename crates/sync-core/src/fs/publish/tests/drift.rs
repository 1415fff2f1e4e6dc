//! Somebody changes the replica between the plan and its publication: nothing of theirs is lost.

use super::*;

/// Plans, lets `meddle` change the replica, publishes; gives the failures.
fn meddled(bed: &Bed, meddle: impl FnOnce()) -> Vec<String> {
    let mut publisher = bed.publisher(&[]);
    meddle();
    publisher.prepare();
    publisher.publish();
    let seen = publisher.observe();
    let failures: Vec<String> = publisher.take_failures().iter().map(ToString::to_string).collect();
    let now = bed.replica();
    for observed in &seen {
        assert_eq!(now.get(&observed.path).and_then(|row| row.tuple), observed.tuple, "at {}", observed.path);
    }
    assert!(!bed.dst(STAGING_NAME).exists());
    failures
}

fn read(bed: &Bed, name: &str) -> String {
    fs::read_to_string(bed.dst(name)).unwrap()
}

#[test]
fn what_somebody_does_before_it_is_observed_is_not_taken_for_ours() {
    let bed = Bed::new();
    let both =
        [("d/moved", "moved"), ("linked", "linked"), ("replaced", "old"), ("shared", "shared"), ("mode", "mode")];
    Bed::write(|n| bed.dst(n), &both);
    Bed::write(|n| bed.src(n), &both);
    both.iter().flat_map(|(name, _)| [bed.src(name), bed.dst(name)]).for_each(|file| set_mtime(&file, 1_000_000, 5));
    fs::rename(bed.src("d/moved"), bed.src("moved")).unwrap();
    fs::hard_link(bed.src("linked"), bed.src("linked too")).unwrap();
    fs::hard_link(bed.dst("shared"), bed.dst("shared, and to be deleted")).unwrap();
    fs::set_permissions(bed.src("mode"), fs::Permissions::from_mode(0o640)).unwrap();
    Bed::write(|n| bed.src(n), &[("replaced", "new"), ("new", "new"), ("made/new", "new")]);
    let mut publisher = bed.publisher(&[("d/moved", "moved")]);
    publisher.prepare();
    publisher.publish();
    // Only who looked when it was published can tell, so that the tick of the clock is another one.
    std::thread::sleep(Duration::from_millis(20));
    let touched = ["d", "linked", "made", "made/new", "mode", "moved", "new", "replaced", "shared"];
    for name in touched {
        rustix::fs::setxattr(bed.dst(name), "user.somebody", b"x", rustix::fs::XattrFlags::empty()).unwrap();
    }
    let seen = publisher.observe();
    assert_eq!(publisher.take_failures().len(), 0);
    let mut unproven: Vec<String> = seen.iter().filter(|seen| !seen.proven).map(|seen| seen.path.display()).collect();
    // Another name of what was touched.
    unproven.retain(|path| path != "linked too");
    assert_eq!(unproven, touched);
    let proven: Vec<String> = seen.iter().filter(|seen| seen.proven).map(|seen| seen.path.display()).collect();
    assert_eq!(proven, ["./", "d/moved", "shared, and to be deleted"]);
}

/// As many other bytes, with the time set back, and an attribute: only the change time tells. Some ticks of the clock after all that
/// was before, and before all that comes.
fn rewrite(file: &Path) {
    std::thread::sleep(Duration::from_millis(20));
    let meta = fs::metadata(file).unwrap();
    fs::write(file, "S".repeat(usize::try_from(meta.len()).unwrap())).unwrap();
    set_mtime(file, meta.mtime(), meta.mtime_nsec());
    rustix::fs::setxattr(file, "user.somebody", b"x", rustix::fs::XattrFlags::empty()).unwrap();
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn what_is_linked_to_must_be_what_it_was_when_the_link_gets_its_name() {
    let bed = Bed::new();
    for at in [&(|name: &str| bed.src(name)) as &dyn Fn(&str) -> PathBuf, &|name| bed.dst(name)] {
        Bed::write(at, &[("linked", "linked")]);
        set_mtime(&at("linked"), 1_000_000, 5);
    }
    fs::hard_link(bed.src("linked"), bed.src("too")).unwrap();
    let mut publisher = bed.publisher(&[]);
    publisher.prepare();
    rewrite(&bed.dst("linked"));
    publisher.publish();
    let seen = publisher.observe();
    let failures: Vec<String> = publisher.take_failures().iter().map(ToString::to_string).collect();
    assert!(
        matches!(&failures[..], [failure] if failure.starts_with("cannot link too: it was changed")),
        "{failures:?}"
    );
    assert!(seen.iter().all(|seen| !seen.proven || seen.path.is_root()), "{seen:?}");
}

#[test]
fn what_moves_must_be_what_it_was_when_it_is_linked_to() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("old", "moved")]);
    Bed::write(|n| bed.src(n), &[("a/moved", "moved")]);
    for file in [bed.dst("old"), bed.src("a/moved")] {
        set_mtime(&file, 1_000_000, 5);
    }
    fs::hard_link(bed.src("a/moved"), bed.src("z")).unwrap();
    let mut publisher = bed.publisher(&[("a/moved", "old")]);
    publisher.staging.begin_plan();
    let steps = Arc::clone(&publisher.steps);
    let step = |name: &str| steps.iter().position(|step| step.path == path(name)).unwrap();
    let (moves, links) = (step("a/moved"), step("z"));
    let mut prepare = |i: usize| publisher.prepare_step(i, &steps[i], &mut Default::default());
    prepare(step("a")).unwrap();
    let staged = prepare(moves).unwrap().map(Box::new);
    rewrite(&bed.dst("old"));
    publisher.work[moves].staged = staged;
    let error = publisher.prepare_step(links, &steps[links], &mut Default::default()).unwrap_err().to_string();
    assert!(error.starts_with("cannot link to a/moved: it was changed"), "{error}");
}

#[test]
fn what_became_visible_with_its_directory_is_proven_only_as_it_was_before() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("copied", "copied")]);
    let made =
        [("made/given nothing", "1"), ("made/given other", "22"), ("made/given that", "333"), ("made/xattr", "4444")];
    Bed::write(|n| bed.src(n), &[("copied", "copied"), ("made/copy", "copied")]);
    Bed::write(|n| bed.src(n), &made);
    rustix::fs::setxattr(bed.src("made/xattr"), "user.ours", b"x", rustix::fs::XattrFlags::empty()).unwrap();
    let files: Vec<&str> = std::iter::once("made/copy").chain(made.map(|(name, _)| name)).collect();
    files.iter().for_each(|name| set_mtime(&bed.src(name), 1_000_000, 5));
    let mut publisher = bed.publisher(&[]);
    publisher.prepare();
    publisher.publish();
    files.iter().for_each(|name| rewrite(&bed.dst(name)));
    let seen = publisher.observe();
    assert_eq!(publisher.take_failures().len(), 0);
    let unproven: Vec<String> = seen.iter().filter(|seen| !seen.proven).map(|seen| seen.path.display()).collect();
    assert_eq!(unproven, files);
}

#[test]
fn a_directory_with_attributes_of_somebody_else_is_not_proven_by_what_we_do_in_it() {
    let bed = Bed::new();
    for dir in ["plain", "somebodys", "both"] {
        Bed::write(|n| bed.dst(n), &[(&format!("{dir}/a"), "a")]);
        Bed::write(|n| bed.src(n), &[(&format!("{dir}/b"), "b")]);
    }
    fs::set_permissions(bed.src("both"), fs::Permissions::from_mode(0o750)).unwrap();
    let mut publisher = bed.publisher(&[]);
    for dir in ["somebodys", "both"] {
        rustix::fs::setxattr(bed.dst(dir), "user.somebody", b"x", rustix::fs::XattrFlags::empty()).unwrap();
    }
    publisher.prepare();
    publisher.publish();
    let seen = publisher.observe();
    assert_eq!(publisher.take_failures().len(), 0);
    let unproven: Vec<String> = seen.iter().filter(|seen| !seen.proven).map(|seen| seen.path.display()).collect();
    assert_eq!(unproven, ["both", "somebodys"]);
}

#[test]
fn an_edited_file_is_not_replaced() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("a", "old"), ("b", "old")]);
    Bed::write(|n| bed.src(n), &[("a", "new"), ("b", "new")]);
    let failures = meddled(&bed, || fs::write(bed.dst("a"), "own").unwrap());
    assert_eq!(failures.len(), 1);
    assert!(failures[0].starts_with("cannot replace a: it was changed there"), "{failures:?}");
    assert_eq!((read(&bed, "a"), read(&bed, "b")), ("own".into(), "new".into()));
}

#[test]
fn an_edit_that_keeps_size_and_mtime_is_seen() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("a", "old")]);
    Bed::write(|n| bed.src(n), &[("a", "new")]);
    let meta = fs::metadata(bed.dst("a")).unwrap();
    let failures = meddled(&bed, || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(bed.dst("a"), "own").unwrap();
        set_mtime(&bed.dst("a"), meta.mtime(), meta.mtime_nsec());
    });
    assert_eq!(failures.len(), 1);
    assert_eq!(read(&bed, "a"), "own");
}

#[test]
fn what_appeared_is_not_replaced() {
    let bed = Bed::new();
    Bed::write(|n| bed.src(n), &[("a", "new"), ("d/b", "new"), ("e/f", "new")]);
    let failures = meddled(&bed, || {
        fs::write(bed.dst("a"), "own").unwrap();
        fs::write(bed.dst("d"), "own").unwrap();
    });
    assert_eq!(failures.len(), 3, "{failures:?}");
    assert!(failures.iter().any(|text| text == "cannot create d/b: the directory d could not be made"));
    assert_eq!((read(&bed, "a"), read(&bed, "d"), read(&bed, "e/f")), ("own".into(), "own".into(), "new".into()));
}

#[test]
fn what_vanished_comes_back() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("a", "old"), ("gone", "old")]);
    Bed::write(|n| bed.src(n), &[("a", "new")]);
    let failures = meddled(&bed, || {
        fs::remove_file(bed.dst("a")).unwrap();
        fs::remove_file(bed.dst("gone")).unwrap();
    });
    assert_eq!(failures, Vec::<String>::new());
    assert_eq!(read(&bed, "a"), "new");
}

#[test]
fn an_edited_file_is_not_deleted_and_keeps_its_directory() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("d/a", "old"), ("d/b", "old"), ("e/a", "old")]);
    let failures = meddled(&bed, || {
        fs::write(bed.dst("d/a"), "own").unwrap();
        fs::write(bed.dst("e/own"), "own").unwrap();
    });
    assert_eq!(failures.len(), 3, "{failures:?}");
    assert!(failures.iter().any(|text| text.starts_with("cannot delete e: not empty")), "{failures:?}");
    assert_eq!((read(&bed, "d/a"), read(&bed, "e/own")), ("own".into(), "own".into()));
    assert!(!bed.dst("d/b").exists() && !bed.dst("e/a").exists());
}

#[test]
fn a_directory_that_holds_more_does_not_become_a_file() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("d/a", "old")]);
    Bed::write(|n| bed.src(n), &[("d", "new")]);
    let failures = meddled(&bed, || fs::write(bed.dst("d/own"), "own").unwrap());
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert_eq!(read(&bed, "d/own"), "own");
}

#[test]
fn a_replaced_directory_is_left_alone() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("d/a", "old")]);
    Bed::write(|n| bed.src(n), &[("d/a", "old")]);
    let old = bed.replica();
    for name in ["d/a", "d", ""] {
        let row = &old[&path(name)].entry;
        set_mtime(&bed.src(name), row.mtime.sec, row.mtime.nsec.into());
    }
    mode(&bed.src("d"), 0o700);
    let failures = meddled(&bed, || {
        fs::rename(bed.dst("d"), bed.dst("kept")).unwrap();
        fs::create_dir(bed.dst("d")).unwrap();
        mode(&bed.dst("d"), 0o755);
    });
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert_eq!(fs::metadata(bed.dst("d")).unwrap().mode() & 0o777, 0o755);
}

#[test]
fn a_changed_move_source_is_not_moved() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("a", "old")]);
    Bed::write(|n| bed.src(n), &[("b", "old")]);
    let mut publisher = bed.publisher(&[("b", "a")]);
    fs::write(bed.dst("a"), "own").unwrap();
    publisher.prepare();
    publisher.publish();
    assert_eq!(publisher.take_failures().len(), 2);
    assert_eq!(read(&bed, "a"), "own");
    assert!(!bed.dst("b").exists());
}

#[test]
fn a_pinned_source_edited_later_is_kept_by_the_name_it_has() {
    // The pin moves the inode's ctime, so that only size and mtime can tell: they do.
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("a", "old")]);
    Bed::write(|n| bed.src(n), &[("b", "old")]);
    let mut publisher = bed.publisher(&[("b", "a")]);
    publisher.prepare();
    fs::write(bed.dst("a"), "own and longer").unwrap();
    publisher.publish();
    publisher.observe();
    assert_eq!(publisher.take_failures().len(), 2);
    assert_eq!(read(&bed, "a"), "own and longer");
    assert!(!bed.dst("b").exists());
}

#[test]
fn what_could_not_be_moved_stays() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("d/a", "old")]);
    Bed::write(|n| bed.src(n), &[("b", "old")]);
    let mut publisher = bed.publisher(&[("b", "d/a")]);
    fs::write(bed.dst("b"), "own").unwrap();
    run(&mut publisher);
    let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
    assert!(failures.iter().any(|text| text == "cannot delete d/a: moving it to b failed"), "{failures:?}");
    assert_eq!((read(&bed, "b"), read(&bed, "d/a")), ("own".into(), "old".into()));
}

#[test]
fn a_name_outside_does_not_change() {
    let bed = Bed::new();
    for (outside, name) in [("secret", "a"), ("secret2", "g1")] {
        let outside = bed.top.path().join(outside);
        fs::write(&outside, "x").unwrap();
        fs::hard_link(&outside, bed.dst(name)).unwrap();
        mode(&outside, 0o600);
    }
    fs::hard_link(bed.dst("g1"), bed.dst("g2")).unwrap();
    Bed::write(|n| bed.src(n), &[("a", "x"), ("g1", "x")]);
    fs::hard_link(bed.src("g1"), bed.src("g2")).unwrap();
    fs::hard_link(bed.src("g1"), bed.src("g3")).unwrap();
    for name in ["a", "g1"] {
        mode(&bed.src(name), 0o644);
        set_mtime(&bed.src(name), 3, 3);
    }
    bed.push(&[]);
    for outside in ["secret", "secret2"] {
        let meta = fs::metadata(bed.top.path().join(outside)).unwrap();
        assert_eq!((meta.mode() & 0o777, meta.nlink()), (0o600, 1));
        assert_ne!(meta.mtime(), 3);
    }
    assert!(bed.push(&[]).is_empty());
}

#[test]
fn the_same_without_a_new_link() {
    let bed = Bed::new();
    let outside = bed.top.path().join("secret");
    Bed::write(|n| bed.src(n), &[("g1", "x")]);
    fs::hard_link(bed.src("g1"), bed.src("g2")).unwrap();
    mode(&bed.src("g1"), 0o640);
    fs::write(&outside, "x").unwrap();
    for name in ["g1", "g2"] {
        fs::hard_link(&outside, bed.dst(name)).unwrap();
    }
    mode(&outside, 0o600);
    bed.push(&[]);
    assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o777, 0o600);
    assert!(bed.push(&[]).is_empty());
}

#[test]
fn a_content_that_never_came_fails_alone() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("a", "old")]);
    Bed::write(|n| bed.src(n), &[("a", "new"), ("b", "")]);
    let have = bed.replica();
    let steps = plan(&bed.source(), &have, &[]);
    let mut publisher = Publisher::new(bed.staging(), steps, Box::new(Index(have)));
    run(&mut publisher);
    let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
    assert_eq!(failures, ["cannot prepare a: its content was not received"]);
    assert_eq!((read(&bed, "a"), read(&bed, "b")), ("old".into(), String::new()));
}

#[test]
fn an_immutable_file_keeps_its_content_and_names_the_way_out() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("a", "old"), ("b", "old")]);
    Bed::write(|n| bed.src(n), &[("a", "new"), ("b", "new")]);
    let file = fs::File::open(bed.dst("a")).unwrap();
    let flags = rustix::fs::ioctl_getflags(&file);
    let Ok(flags) = flags else { return skip("an_immutable_file", "the file system has no flags") };
    if rustix::fs::ioctl_setflags(&file, flags | rustix::fs::IFlags::IMMUTABLE).is_err() {
        return skip("an_immutable_file", "may not set the flag");
    }
    let failures = meddled(&bed, || {});
    rustix::fs::ioctl_setflags(&file, flags).unwrap();
    assert_eq!(failures.len(), 1);
    assert!(failures[0].contains("lsattr"), "{failures:?}");
    assert_eq!((read(&bed, "a"), read(&bed, "b")), ("old".into(), "new".into()));
}

/// A file system flag on a directory for the time of a test.
struct Fixed(fs::File, rustix::fs::IFlags);

impl Fixed {
    fn new(at: PathBuf) -> Option<Self> {
        let file = fs::File::open(at).unwrap();
        let flags = rustix::fs::ioctl_getflags(&file).ok()?;
        rustix::fs::ioctl_setflags(&file, flags | rustix::fs::IFlags::IMMUTABLE).ok()?;
        Some(Self(file, flags))
    }
}

impl Drop for Fixed {
    fn drop(&mut self) {
        let _ = rustix::fs::ioctl_setflags(&self.0, self.1);
    }
}

#[test]
fn what_could_not_be_staged_costs_nothing_of_what_it_replaces() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("d/a", "old"), ("d/e/b", "old")]);
    Bed::write(|n| bed.src(n), &[("d", "new")]);
    let have = bed.replica();
    let steps = plan(&bed.source(), &have, &[]);
    let mut publisher = Publisher::new(bed.staging(), steps, Box::new(Index(have)));
    let seen = run(&mut publisher);
    let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
    assert!(failures.iter().any(|text| text == "cannot delete d/a: replacing d failed"), "{failures:?}");
    assert_eq!((read(&bed, "d/a"), read(&bed, "d/e/b")), ("old".into(), "old".into()));
    assert!(seen.iter().all(|seen| !seen.path.is_beneath(&path("d"))));
}

#[test]
fn a_directory_that_cannot_be_replaced_keeps_what_it_holds() {
    for fixed in ["p", "p/d", "p/d/e", "p/d/a"] {
        let bed = Bed::new();
        Bed::write(|n| bed.dst(n), &[("p/d/a", "old"), ("p/d/e/b", "old"), ("p/d/z", "old")]);
        Bed::write(|n| bed.src(n), &[("p/d", "new")]);
        let mut held = None;
        let failures = meddled(&bed, || held = Fixed::new(bed.dst(fixed)));
        if held.is_none() {
            return skip("a_directory_that_cannot_be_replaced", "may not set the flag");
        }
        assert!(failures.iter().any(|text| text.starts_with("cannot replace p/d:")), "{failures:?}");
        for name in ["p/d/a", "p/d/e/b", "p/d/z"] {
            assert_eq!(read(&bed, name), "old", "{fixed}");
        }
    }
}

#[test]
fn what_moves_out_of_a_replaced_directory_is_not_lost() {
    // The target is in the way of the move: it was not there when the plan was made.
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("d/e/a", "old")]);
    Bed::write(|n| bed.src(n), &[("b", "old"), ("d", "new")]);
    let mut publisher = bed.publisher(&[("b", "d/e/a")]);
    publisher.prepare();
    fs::write(bed.dst("b"), "own").unwrap();
    publisher.publish();
    publisher.observe();
    let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
    let all: Vec<_> = bed.replica().into_values().filter_map(|row| row.entry.content()).collect();
    assert!(all.iter().any(|(_, digest)| *digest == Digest::of(b"old")), "{failures:?}");
    assert!(failures.iter().any(|text| text.contains("it is kept as")), "{failures:?}");
    assert_eq!((read(&bed, "b"), read(&bed, "d")), ("own".into(), "new".into()));
}

#[test]
fn a_directory_taken_out_of_the_tree_is_followed_by_nothing() {
    let bed = Bed::new();
    Bed::write(
        |n| bed.dst(n),
        &[("d/gone", "old"), ("d/mode", "old"), ("d/new", "old"), ("e/f", "old"), ("z/f", "old")],
    );
    Bed::write(|n| bed.src(n), &[("d/mode", "old"), ("d/new", "new"), ("e/f", "new"), ("z/f", "new")]);
    set_mtime(&bed.src("d/mode"), 7, 7);
    let mut publisher = bed.publisher(&[]);
    publisher.prepare();
    let steps = Arc::clone(&publisher.steps);
    let outside = bed.top.path().join("outside");
    let look = || {
        let all = scan(&outside).into_values();
        all.map(|row| (row.path, row.entry, row.tuple)).collect::<Vec<_>>()
    };
    // Everything is placed, `d` last, so that it is cached; then it goes while others are worked on.
    publisher.place_all(&steps);
    publisher.root.dir(&path("d")).unwrap();
    fs::rename(bed.dst("d"), &outside).unwrap();
    let before = look();
    for (i, step) in steps.iter().enumerate().filter(|(_, step)| is_delete(step)) {
        publisher.delete_step(i, step);
    }
    publisher.set_metadata(&steps);
    publisher.finish_dirs();
    publisher.observe();
    assert_eq!(look(), before);
    let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
    assert!(failures.iter().any(|text| text.starts_with("cannot look at d/mode: ")), "{failures:?}");
    assert!(failures.iter().any(|text| text.starts_with("cannot keep d/new: ")), "{failures:?}");
}

#[test]
fn nothing_is_placed_in_a_directory_taken_out_of_the_tree() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("d/a", "old"), ("e/f", "old")]);
    Bed::write(|n| bed.src(n), &[("d/a", "new"), ("d/b", "new"), ("e/f", "new")]);
    let mut publisher = bed.publisher(&[]);
    publisher.prepare();
    let steps = Arc::clone(&publisher.steps);
    publisher.root.dir(&path("d")).unwrap();
    let outside = bed.top.path().join("outside");
    fs::rename(bed.dst("d"), &outside).unwrap();
    publisher.place_all(&steps);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(outside.join("a")).unwrap(), "old");
    assert_eq!(read(&bed, "e/f"), "new");
    let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
    assert_eq!(failures.len(), 2, "{failures:?}");
}

#[test]
fn what_changed_right_before_an_exchange_comes_back() {
    for (name, was_dir) in [("f", false), ("d", true)] {
        let bed = Bed::new();
        Bed::write(|n| bed.dst(n), &[("f", "old")]);
        fs::create_dir(bed.dst("d")).unwrap();
        Bed::write(|n| bed.src(n), &[("f/x", "new"), ("d", "new")]);
        let mut publisher = bed.publisher(&[]);
        publisher.prepare();
        // Between the look and the exchange: another inode, which an empty directory shows by nothing else.
        let meta = fs::metadata(bed.dst(name)).unwrap();
        fs::rename(bed.dst(name), bed.dst("kept")).unwrap();
        if was_dir {
            fs::create_dir(bed.dst(name)).unwrap();
        } else {
            fs::write(bed.dst(name), "own").unwrap();
            set_mtime(&bed.dst(name), meta.mtime(), meta.mtime_nsec());
        }
        let theirs = fs::metadata(bed.dst(name)).unwrap().ino();
        let i = publisher.step_of(&path(name)).unwrap();
        let staged = publisher.work[i].staged.take().unwrap();
        let rename = |flags| {
            rustix::fs::renameat_with(staged.dir(), &*staged.name, publisher.root.fd(), path(name).name(), flags)
        };
        rename(rustix::fs::RenameFlags::EXCHANGE).unwrap();
        let error = publisher.remove_exchanged(&publisher.steps[i], &staged, &rename).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot replace {name}: it was changed there")), "{error}");
        assert_eq!(fs::metadata(bed.dst(name)).unwrap().ino(), theirs);
    }
}
