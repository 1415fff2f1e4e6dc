//! New directories take shape in staging and appear whole.

use super::*;

/// Every kind of entry in directories that are new.
fn varied(bed: &Bed) {
    Bed::write(
        |n| bed.src(n),
        &[("d/a", "one"), ("d/b/same", "one"), ("d/b/c/f", "two"), ("d/z", ""), ("e/f", "three")],
    );
    symlink("../a", bed.src("d/b/link")).unwrap();
    mknodat(CWD, bed.src("d/pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    fs::create_dir(bed.src("d/empty")).unwrap();
    mode(&bed.src("d/b/c"), 0o500);
    mode(&bed.src("d/empty"), 0o2751);
    mode(&bed.src("e/f"), 0o4711);
    for (i, name) in ["d/empty", "d/b/c", "d/b", "d", "e"].into_iter().enumerate() {
        set_mtime(&bed.src(name), 1_000_000_000 + i as i64, 42);
    }
}

#[test]
fn a_new_directory_appears_with_all_that_is_in_it() {
    let bed = Bed::new();
    varied(&bed);
    bed.push(&[]);
}

#[test]
fn most_of_it_is_told_before_it_is_visible() {
    let bed = Bed::new();
    varied(&bed);
    let mut publisher = bed.publisher(&[]);
    publisher.tell_every = 1;
    let told: Arc<Mutex<Vec<usize>>> = Arc::default();
    let ready = Arc::clone(&told);
    publisher.tell_ready(Box::new(move |some| ready.lock().unwrap().extend(some.iter().map(|ready| ready.step))));
    publisher.prepare();
    assert!(!bed.dst("d").exists() && !bed.dst("e").exists());
    let steps = Arc::clone(&publisher.steps);
    let told: BTreeSet<String> = told.lock().unwrap().iter().map(|step| steps[*step].path.display()).collect();
    // Of files those that had been dressed as they should be, and of directories those that are done.
    assert!(told.contains("d/a") && told.contains("d/empty") && told.contains("d/b/same"), "{told:?}");
    assert!(!told.contains("d") && !told.contains("e"), "{told:?}");
}

#[test]
fn what_no_plan_has_there_stays_out() {
    let bed = Bed::new();
    Bed::write(|n| bed.src(n), &[("d/a", "new"), ("d/sub/b", "sub"), ("d/was_file/c", "c")]);
    let (want, have) = (bed.source(), bed.replica());
    let staging = bed.staging();
    let store = |at: &str, text: &str| staging.store(&Digest::of(text.as_bytes()), text.as_bytes(), &path(at), None);
    // Files that changed, vanished, or became something else while the source was read.
    for (at, text) in [
        ("d/a", "old"),
        ("d/a", "new"),
        ("d/gone", "gone"),
        ("d/gone_dir/x", "x"),
        ("other/deep/y", "y"),
        ("d/was_file", "w"),
        ("d/sub/b", "sub"),
        ("d/elsewhere", "c"),
    ] {
        store(at, text).unwrap();
    }
    let mut publisher = Publisher::new(Arc::clone(&staging), plan(&want, &have, &[]), Box::new(Index(have.clone())));
    let seen = run(&mut publisher);
    assert_eq!(publisher.take_failures().iter().map(ToString::to_string).collect::<Vec<_>>(), Vec::<String>::new());
    bed.check(have, &seen);
}

#[test]
fn a_directory_that_appeared_meanwhile_is_left_alone() {
    let bed = Bed::new();
    Bed::write(|n| bed.src(n), &[("d/a", "new"), ("d/s/b", "new"), ("e/c", "new")]);
    let mut publisher = bed.publisher(&[]);
    publisher.tell_ready(Box::new(|_| {}));
    publisher.prepare();
    Bed::write(|n| bed.dst(n), &[("d/a", "own")]);
    publisher.publish();
    let seen = publisher.observe();
    let failures: Vec<String> = publisher.take_failures().iter().map(ToString::to_string).collect();
    assert_eq!(failures.len(), 4, "{failures:?}");
    assert!(failures[0].starts_with("cannot create d: it was changed there"), "{failures:?}");
    assert_eq!(fs::read_to_string(bed.dst("d/a")).unwrap(), "own");
    assert_eq!(fs::read_to_string(bed.dst("e/c")).unwrap(), "new");
    assert!(!bed.dst("d/s").exists() && !bed.dst(STAGING_NAME).exists());
    // What was told of it is taken back.
    let withdrawn: BTreeSet<String> = publisher.withdrawn().map(RelPath::display).collect();
    assert!(withdrawn.contains("d/a") && withdrawn.contains("d/s"), "{withdrawn:?}");
    assert!(seen.iter().all(|seen| !seen.path.is_beneath(&path("d"))));
}

#[test]
fn links_and_moves_lead_into_new_directories() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("old", "moved"), ("kept", "kept")]);
    Bed::write(|n| bed.src(n), &[("d/a", "linked"), ("d/moved", "moved"), ("d/sub/x", "x"), ("kept", "kept")]);
    fs::hard_link(bed.src("d/a"), bed.src("d/b")).unwrap();
    fs::hard_link(bed.src("d/a"), bed.src("d/sub/c")).unwrap();
    fs::hard_link(bed.src("d/a"), bed.src("z")).unwrap();
    let inode = fs::metadata(bed.dst("old")).unwrap().ino();
    for name in ["kept", ""] {
        let meta = fs::metadata(bed.src(name)).unwrap();
        set_mtime(&bed.dst(name), meta.mtime(), meta.mtime_nsec());
    }
    bed.push(&[("d/moved", "old")]);
    assert_eq!(fs::metadata(bed.dst("d/moved")).unwrap().ino(), inode);
    assert_eq!(fs::metadata(bed.dst("d/a")).unwrap().nlink(), 4);
}

#[test]
fn a_file_gives_way_to_a_new_directory_that_is_whole_at_once() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("d", "a file")]);
    Bed::write(|n| bed.src(n), &[("d/a", "one"), ("d/b/c", "two")]);
    bed.push(&[]);
}

#[test]
fn nothing_is_left_of_new_directories_when_a_push_is_given_up() {
    let bed = Bed::new();
    varied(&bed);
    let mut publisher = bed.publisher(&[]);
    publisher.prepare();
    let staging = Arc::clone(&publisher.staging);
    drop(publisher);
    staging.keep_parts();
    assert!(!bed.dst(STAGING_NAME).exists());
    assert!(staging.take_problems().is_empty());
    assert_eq!(bed.replica().len(), 1);
}

#[test]
fn a_default_acl_of_a_new_directory_reaches_nothing_in_it() {
    let bed = Bed::new();
    Bed::write(|n| bed.src(n), &[("d/a", "one"), ("d/empty", "")]);
    fs::create_dir(bed.src("d/sub")).unwrap();
    let acl =
        [2u8, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 7, 0, 255, 255, 255, 255, 32, 0, 7, 0, 255, 255, 255, 255];
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(bed.src("d"), "system.posix_acl_default", &acl, flags).is_err() {
        return skip("a_default_acl_of_a_new_directory_reaches_nothing_in_it", "no ACLs here");
    }
    bed.push(&[]);
}

fn store(staging: &Staging, at: &str, text: &str) {
    staging.store(&Digest::of(text.as_bytes()), text.as_bytes(), &path(at), None).unwrap();
}

/// Pushes into an empty replica, with what is staged already.
fn push_with(bed: &Bed, staging: &Arc<Staging>) {
    let (want, mut have) = (bed.source(), bed.replica());
    have.retain(|path, _| path.is_root());
    let mut publisher = Publisher::new(Arc::clone(staging), plan(&want, &have, &[]), Box::new(Index(have.clone())));
    let seen = run(&mut publisher);
    assert_eq!(publisher.take_failures().iter().map(ToString::to_string).collect::<Vec<_>>(), Vec::<String>::new());
    bed.check(have, &seen);
}

#[test]
fn a_directory_that_became_a_file_while_the_source_was_read() {
    let bed = Bed::new();
    Bed::write(|n| bed.src(n), &[("d/a", "a"), ("d/was_dir", "now a file")]);
    let staging = bed.staging();
    for (at, text) in [("d/a", "a"), ("d/was_dir/x", "x"), ("d/was_dir", "now a file")] {
        store(&staging, at, text);
    }
    push_with(&bed, &staging);
}

#[test]
fn a_directory_that_became_a_link_while_the_source_was_read() {
    let bed = Bed::new();
    Bed::write(|n| bed.src(n), &[("d/a", "a")]);
    symlink("a", bed.src("d/was_dir")).unwrap();
    let staging = bed.staging();
    for (at, text) in [("d/a", "a"), ("d/was_dir/x", "x")] {
        store(&staging, at, text);
    }
    push_with(&bed, &staging);
}

#[test]
fn a_big_content_outlives_a_push_that_is_given_up_after_it_was_prepared() {
    for name in ["big", "new/big"] {
        let bed = Bed::new();
        fs::create_dir(bed.src("new")).unwrap();
        let size = crate::fs::PART_MIN + 1;
        fs::File::create(bed.src(name)).unwrap().set_len(size).unwrap();
        let (want, have) = (bed.source(), bed.replica());
        let staging = bed.staging();
        let steps = plan(&want, &have, &[]);
        let (_, digest) = want[&path(name)].entry.content().unwrap();
        let mut incoming = staging.begin(&digest, size, &path(name)).unwrap().unwrap();
        incoming.zeros(size).unwrap();
        incoming.finish(None).unwrap();
        let mut publisher = Publisher::new(Arc::clone(&staging), steps, Box::new(Index(have)));
        publisher.prepare();
        assert!(publisher.take_failures().is_empty());
        drop(publisher);
        staging.keep_parts();
        let next = bed.staging();
        next.adopt(&RelPath::root()).unwrap();
        assert!(next.has(&digest), "{name} has to be sent again");
    }
}

#[test]
fn what_a_user_left_is_cleared_by_root() {
    if !is_root() {
        return skip("what_a_user_left_is_cleared_by_root", "not root");
    }
    let bed = Bed::new();
    store(&bed.staging(), "d/a", "a");
    // As if a user had been killed here.
    for name in ["", "/tree", "/tree/d", "/tree/d/a"] {
        let at = bed.dst(&format!("{STAGING_NAME}{name}"));
        std::os::unix::fs::chown(&at, Some(65534), Some(65534)).unwrap();
    }
    bed.staging().adopt(&RelPath::root()).unwrap();
}

#[test]
fn what_is_linked_is_not_told_as_it_was_before() {
    for every in [1, 512] {
        let bed = Bed::new();
        Bed::write(|n| bed.src(n), &[("d/a", "one"), ("d/c", "two")]);
        fs::hard_link(bed.src("d/a"), bed.src("d/b")).unwrap();
        let have = bed.replica();
        let mut publisher = bed.publisher(&[]);
        publisher.tell_every = every;
        let seen = run(&mut publisher);
        assert!(publisher.take_failures().is_empty());
        bed.check(have, &seen);
    }
}

/// One level is one directory of a path that no kernel takes at once.
#[test]
fn a_deep_tree_of_new_directories_is_made_and_taken_apart() {
    let bed = Bed::new();
    let staging = bed.staging();
    let deep = |levels: usize| path(&vec!["a".repeat(100); levels].join("/"));
    for levels in [2, 60, 64, 65, 200] {
        store(&staging, &deep(levels).join(b"file").unwrap().display(), &format!("{levels}"));
    }
    let ahead = |levels: usize| staging.find(&Digest::of(format!("{levels}").as_bytes())).unwrap().in_place.is_some();
    // A hint tells of them, and no more is believed than makes sense.
    assert_eq!([2, 60, 64, 65, 200].map(ahead), [true, true, false, false, false]);
    staging.remove();
    assert!(!bed.dst(STAGING_NAME).exists() && staging.take_problems().is_empty());
}

/// The content that is in the way is the very one that belongs there.
#[test]
fn a_directory_that_became_the_file_that_was_in_it_while_the_source_was_read() {
    let bed = Bed::new();
    Bed::write(|n| bed.src(n), &[("n/a", "content")]);
    let staging = bed.staging();
    store(&staging, "n/a/b", "content");
    push_with(&bed, &staging);
}

/// The second of a content's names is made of the file in the place of the first, which fails.
#[test]
fn what_shares_a_content_does_not_fail_with_it() {
    for others in [&["d/b"][..], &["d/b", "d/c", "e"]] {
        let bed = Bed::new();
        Bed::write(|n| bed.src(n), &[("d/a", "content")]);
        others.iter().for_each(|n| Bed::write(|n| bed.src(n), &[(n, "content")]));
        let staging = bed.staging();
        store(&staging, "d/a", "content");
        let mut steps = plan(&bed.source(), &bed.replica(), &[]);
        let step = steps.iter_mut().find(|step| step.path == path("d/a")).unwrap();
        let entry = step.new.as_deref_mut().unwrap();
        // The owner and mode can be set, and then no clock has such a time.
        (entry.mode, entry.mtime) = (0o4755, Time { sec: 1, nsec: 2_000_000_000 });
        let mut publisher = Publisher::new(Arc::clone(&staging), steps, Box::new(Index(bed.replica())));
        run(&mut publisher);
        let failures: Vec<String> = publisher.take_failures().iter().map(ToString::to_string).collect();
        assert!(failures.len() == 1 && failures[0].starts_with("cannot set the time of d/a: "), "{failures:?}");
        assert!(!bed.dst("d/a").exists());
        let (want, now) = (bed.source(), bed.replica());
        for name in others {
            assert_eq!(now[&path(name)].entry, want[&path(name)].entry);
        }
    }
}

/// A plan that makes a directory in one that neither it nor the replica has.
#[test]
fn a_directory_in_one_that_is_nowhere_fails_without_a_trace() {
    let bed = Bed::new();
    fs::create_dir(bed.src("d")).unwrap();
    let staging = bed.staging();
    let mut steps = plan(&bed.source(), &bed.replica(), &[]);
    let step = steps.iter_mut().find(|step| step.path == path("d")).unwrap();
    step.path = path(&("a/".repeat(2000) + "d"));
    let mut publisher = Publisher::new(Arc::clone(&staging), steps, Box::new(Index(bed.replica())));
    publisher.prepare();
    assert!(!bed.dst(STAGING_NAME).join("tree/a").exists());
    publisher.publish();
    let failures: Vec<String> = publisher.take_failures().iter().map(ToString::to_string).collect();
    assert!(failures.len() == 1 && failures[0].starts_with("cannot create a/"), "{failures:?}");
    assert_eq!(fs::read_dir(bed.dst("")).unwrap().count(), 0);
}
