//! Without root: what the kernel refuses is told and is no failure, and read-only directories are no obstacle.

use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

use super::*;

const NOBODY: u32 = 65534;

/// Runs `test` in a thread of its own that has given up root for good.
pub(super) fn unprivileged(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if is_root() {
                let (uid, gid) = (rustix::process::Uid::from_raw(NOBODY), rustix::process::Gid::from_raw(NOBODY));
                rustix::thread::set_thread_groups(&[]).unwrap();
                set_thread_res_gid(gid, gid, gid).unwrap();
                set_thread_res_uid(uid, uid, uid).unwrap();
            }
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A bed that the unprivileged user owns.
pub(super) fn bed() -> Bed {
    let top = tempfile::tempdir().unwrap();
    mode(top.path(), 0o777);
    let bed = Bed::at(top);
    if is_root() {
        for name in ["src", "dst"] {
            std::os::unix::fs::chown(bed.top.path().join(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    bed
}

#[test]
fn read_only_directories_of_ones_own_are_no_obstacle() {
    let bed = bed();
    unprivileged(|| {
        Bed::write(|n| bed.dst(n), &[("d/e/old", "1"), ("d/e/keep", "2"), ("d/gone/x", "3"), ("shut/in/a", "4")]);
        Bed::write(|n| bed.src(n), &[("d/e/new", "1"), ("d/e/keep", "2"), ("fresh/x", "3"), ("shut/in/a", "5")]);
        mode(&bed.src("fresh"), 0o500);
        for name in ["d/e", "d/gone", "d"] {
            mode(&bed.dst(name), 0o555);
        }
        for name in ["d/e", "d"] {
            mode(&bed.src(name), 0o555);
        }
        let want = bed.source();
        let have = bed.replica();
        // The scan of this test must be able to look; the publisher need not.
        for name in ["shut/in", "shut", ""] {
            mode(&bed.dst(name), 0o000);
        }
        mode(&bed.dst(""), 0o555);
        let mut publisher = bed.publisher_of(&want, have, &[]);
        run(&mut publisher);
        let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
        assert_eq!(failures, Vec::<String>::new());
        compare(&want, &bed.replica());
        for name in ["d/e", "d", "fresh"] {
            mode(&bed.dst(name), 0o755);
            mode(&bed.src(name), 0o755);
        }
    });
}

#[test]
fn an_interrupted_push_gives_modes_back() {
    let bed = bed();
    unprivileged(|| {
        mode(&bed.dst(""), 0o555);
        let staging = bed.staging();
        staging.store(&Digest::of(b"x"), b"x", &path("a"), None).unwrap();
        assert_eq!(fs::read_dir(bed.dst("")).unwrap().count(), 1);
        staging.keep_parts();
        assert_eq!(fs::metadata(bed.dst("")).unwrap().mode() & 0o777, 0o555);
        assert_eq!(fs::read_dir(bed.dst("")).unwrap().count(), 0);
        mode(&bed.dst(""), 0o755);
    });
}

#[test]
fn owners_devices_and_xattrs_are_refused_and_counted() {
    if !is_root() {
        return skip("owners_devices_and_xattrs_are_refused_and_counted", "needs root to make the source");
    }
    let bed = bed();
    Bed::write(|n| bed.src(n), &[("own", "1"), ("setid", "2"), ("trusted", "3")]);
    mknodat(CWD, bed.src("dev"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3)).unwrap();
    fs::hard_link(bed.src("dev"), bed.src("dev2")).unwrap();
    fs::write(bed.dst("dev"), "a file before").unwrap();
    std::os::unix::fs::chown(bed.dst("dev"), Some(NOBODY), Some(NOBODY)).unwrap();
    std::os::unix::fs::chown(bed.src("setid"), Some(1), Some(1)).unwrap();
    mode(&bed.src("setid"), 0o6755);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(bed.src("trusted"), "trusted.x", b"1", flags).unwrap();
    rustix::fs::setxattr(bed.src("trusted"), "user.x", b"1", flags).unwrap();
    for name in ["own", "trusted", ""] {
        std::os::unix::fs::chown(bed.src(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    mode(&bed.src("trusted"), 0o444);
    let (want, have) = (bed.source(), bed.replica());
    let publisher = bed.publisher_of(&want, have, &[]);
    // What was staged as root would not be the user's: let the user do all of it.
    publisher.staging.remove();
    let steps = publisher.steps.to_vec();
    let (index, top) = (Index(bed.replica()), bed.top.path().join("dst"));
    unprivileged(|| {
        let staging = Arc::new(Staging::new(Arc::new(Root::open(&top).unwrap())));
        for text in ["1", "2", "3"] {
            staging.store(&Digest::of(text.as_bytes()), text.as_bytes(), &path("own"), None).unwrap();
        }
        let mut publisher = Publisher::new(staging, steps, Box::new(index));
        let seen = run(&mut publisher);
        let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
        assert_eq!(failures, Vec::<String>::new());
        let refused: BTreeMap<String, Refused> = seen.iter().map(|s| (s.path.display(), s.refused)).collect();
        let both = Refused(Refused::OWNER.0 | Refused::MODE.0);
        for (name, wanted) in [
            ("own", Refused::default()),
            ("setid", both),
            ("trusted", Refused::XATTR),
            ("dev", Refused::DEVICE),
            ("dev2", Refused::DEVICE),
        ] {
            assert_eq!(refused[name], wanted, "{name}");
        }
    });
    assert!(!bed.dst("dev").exists());
    let meta = fs::metadata(bed.dst("setid")).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (NOBODY, 0o755));
    assert_eq!(xattrs(&bed.dst("trusted")).len(), 1);
}

#[test]
fn user_attributes_of_a_read_only_file_change() {
    let bed = bed();
    unprivileged(|| {
        Bed::write(|n| bed.dst(n), &[("a", "1")]);
        Bed::write(|n| bed.src(n), &[("a", "1")]);
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(bed.src("a"), "user.x", b"new", flags).unwrap();
        rustix::fs::setxattr(bed.dst("a"), "user.stale", b"old", flags).unwrap();
        for file in [bed.src("a"), bed.dst("a")] {
            mode(&file, 0o444);
            set_mtime(&file, 4, 4);
        }
        bed.push(&[]);
    });
}

#[test]
fn a_staging_directory_of_somebody_else_is_not_trusted() {
    if !is_root() {
        return skip("a_staging_directory_of_somebody_else_is_not_trusted", "needs root");
    }
    let bed = bed();
    let planted = bed.dst(STAGING_NAME);
    unprivileged(|| {
        fs::create_dir(&planted).unwrap();
        mode(&planted, 0o777);
        fs::write(planted.join(Digest::of(b"x").to_hex()), "evil").unwrap();
    });
    let staging = bed.staging();
    staging.adopt(&RelPath::root()).unwrap();
    assert!(!staging.has(&Digest::of(b"x")));
    let meta = fs::metadata(&planted).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o700));
    staging.remove();
    assert!(!planted.exists());
    // What we cannot have made is not ours to remove.
    fs::create_dir(&planted).unwrap();
    fs::write(planted.join("thesis"), "x").unwrap();
    mode(&planted, 0o755);
    let refused = bed.staging().adopt(&RelPath::root()).unwrap_err().to_string();
    assert!(refused.contains("reserved"), "{refused}");
    assert!(planted.join("thesis").exists());
}

#[test]
fn names_of_one_inode_share_what_was_refused() {
    let name = "names_of_one_inode_share_what_was_refused";
    if !is_root() {
        return skip(name, "needs root to make the source");
    }
    let bed = bed();
    let own = |path: PathBuf| std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    // One group is new, one gets a further name, one a new owner and a further name, one has a name outside.
    Bed::write(|n| bed.src(n), &[("file", "1"), ("known", "2"), ("given", "3"), ("shared", "4")]);
    symlink("to", bed.src("link")).unwrap();
    for (special, kind) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
        mknodat(CWD, bed.src(special), kind, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }
    Bed::write(|n| bed.dst(n), &[("known", "2"), ("given", "3"), ("shared", "4")]);
    fs::hard_link(bed.dst("shared"), bed.dst("shared2")).unwrap();
    fs::hard_link(bed.dst("shared"), bed.top.path().join("outside")).unwrap();
    for group in ["file", "known", "given", "shared", "link", "fifo", "socket"] {
        fs::hard_link(bed.src(group), bed.src(&format!("{group}2"))).unwrap();
        set_mtime(&bed.src(group), 9, 9);
    }
    set_mtime(&bed.dst("known"), 9, 9);
    own(bed.src(""));
    let (want, mut have) = (bed.source(), bed.replica());
    for kept in ["known", "given", "shared"] {
        own(bed.dst(kept));
    }
    let now = bed.replica();
    for row in have.values_mut() {
        row.tuple = now[&row.path].tuple;
        row.entry.uid = now[&row.path].entry.uid;
        row.entry.gid = now[&row.path].entry.gid;
    }
    // An earlier push wanted this owner and did not get it.
    let known = have.get_mut(&path("known")).unwrap();
    (known.entry.uid, known.entry.gid, known.refused) = (0, 0, Refused::OWNER);
    let steps = plan(&want, &have, &[]);
    let top = bed.top.path().join("dst");
    unprivileged(|| {
        let staging = Arc::new(Staging::new(Arc::new(Root::open(&top).unwrap())));
        staging.store(&Digest::of(b"1"), b"1", &path("file"), None).unwrap();
        let mut publisher = Publisher::new(staging, steps, Box::new(Index(have)));
        let seen = run(&mut publisher);
        let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
        assert_eq!(failures, Vec::<String>::new());
        let refused: BTreeMap<String, Refused> = seen.iter().map(|s| (s.path.display(), s.refused)).collect();
        for group in ["file", "known", "given", "shared", "link", "fifo", "socket"] {
            assert_eq!(refused[group], Refused::OWNER, "{group}");
            assert_eq!(refused[&format!("{group}2")], Refused::OWNER, "{group}2");
        }
    });
    let now = bed.replica();
    for (path, row) in &want {
        assert_eq!(now[path].entry.link, row.entry.link, "{path}");
        assert_eq!(now[path].entry.mtime, row.entry.mtime, "{path}");
    }
    assert_eq!(fs::metadata(bed.top.path().join("outside")).unwrap().nlink(), 1);
}

#[test]
fn a_directory_of_somebody_else_keeps_what_only_its_owner_may_set() {
    let name = "a_directory_of_somebody_else_keeps_what_only_its_owner_may_set";
    if !is_root() {
        return skip(name, "needs root to give the replica to somebody else");
    }
    let bed = bed();
    let dirs = ["", "mine", "mine/theirs"];
    for dir in dirs {
        fs::create_dir_all(bed.src(dir)).unwrap();
        fs::create_dir_all(bed.dst(dir)).unwrap();
    }
    for dir in ["", "mine/theirs"] {
        mode(&bed.dst(dir), 0o777);
        std::os::unix::fs::chown(bed.dst(dir), Some(1), Some(1)).unwrap();
    }
    std::os::unix::fs::chown(bed.dst("mine"), Some(NOBODY), Some(NOBODY)).unwrap();
    Bed::write(|n| bed.src(n), &[("a", "1"), ("mine/theirs/b", "1")]);
    let top = bed.top.path().join("dst");
    // The first push wants other attributes, the second only changes what the directories hold.
    let push = |have: Tree, steps: Vec<Step>, expected: Refused| {
        unprivileged(|| {
            let staging = Arc::new(Staging::new(Arc::new(Root::open(&top).unwrap())));
            staging.store(&Digest::of(b"1"), b"1", &path("a"), None).unwrap();
            let mut publisher = Publisher::new(staging, steps, Box::new(Index(have)));
            let seen = run(&mut publisher);
            let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
            assert_eq!(failures, Vec::<String>::new());
            for dir in ["", "mine/theirs"] {
                let seen = seen.iter().find(|seen| seen.path == path(dir)).unwrap();
                assert_eq!(seen.refused, expected, "{dir}");
            }
        });
    };
    let (want, have) = (bed.source(), bed.replica());
    let steps = plan(&want, &have, &[]);
    push(have, steps, Refused(Refused::OWNER.0 | Refused::MODE.0 | Refused::TIME.0));
    assert_eq!(fs::read(bed.dst("mine/theirs/b")).unwrap(), b"1");
    Bed::write(|n| bed.src(n), &[("a2", "1"), ("mine/theirs/b2", "1")]);
    let mut steps = plan(&bed.source(), &bed.replica(), &[]);
    steps.retain(|step| step.new.as_deref().is_some_and(|new| new.content().is_some()));
    push(bed.replica(), steps, Refused::TIME);
    assert_eq!(fs::read(bed.dst("mine/theirs/b2")).unwrap(), b"1");
}

#[test]
fn a_content_is_copied_from_a_file_that_may_not_be_read_itself() {
    let bed = bed();
    unprivileged(|| {
        Bed::write(|n| bed.src(n), &[("d/a", "same"), ("d/b", "same")]);
        let mut want = bed.source();
        // As root's tree would be.
        want.get_mut(&path("d/a")).unwrap().entry.mode = 0;
        let have = bed.replica();
        let mut publisher = bed.publisher_of(&want, have, &[]);
        publisher.prepare();
        let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
        assert_eq!(failures, Vec::<String>::new());
    });
}
