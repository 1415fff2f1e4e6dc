use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::filter::Rule;

/// What a walk met, in its order.
#[derive(Debug, Default, PartialEq)]
struct Met {
    entries: Vec<String>,
    held: Vec<String>,
    restless: Vec<String>,
    left_out: Vec<(String, LeftOut)>,
}

fn options(filter: &Filter) -> ScanOptions<'_> {
    ScanOptions { filter, one_file_system: false, leave_out: Vec::new(), reserved: Reserved::Hold }
}

fn filter(patterns: &[&str]) -> Filter {
    Filter::new(&patterns.iter().map(|p| Rule { pattern: (*p).to_owned() }).collect::<Vec<_>>()).unwrap()
}

fn walk(top: &Path, edit: impl FnOnce(&mut ScanOptions<'_>)) -> Met {
    let nothing = filter(&[]);
    let mut options = options(&nothing);
    edit(&mut options);
    walk_with(&Root::open(top).unwrap(), &options, &mut |_| {})
}

fn walk_with(root: &Root, options: &ScanOptions<'_>, also: &mut dyn FnMut(&Seen<'_>)) -> Met {
    let mut met = Met::default();
    let mut paths = Vec::new();
    let end = scan::<()>(root, options, &mut |scanned| {
        match scanned {
            Scanned::Entry(seen) => {
                also(&seen);
                met.entries.push(seen.path().display());
                paths.push(seen.path().clone());
            }
            Scanned::Held(error) => met.held.push(error.to_string()),
            Scanned::Restless(path) => met.restless.push(path.display()),
            Scanned::LeftOut { path, why } => met.left_out.push((path.display(), why)),
        }
        ControlFlow::Continue(())
    });
    assert!(end.unwrap().is_continue());
    assert!(paths.is_sorted(), "not in tree order: {paths:?}");
    met
}

/// Ends a thread's loop when the test ends, also when it fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn every_kind_in_tree_order_with_names_of_any_bytes() {
    let top = tempfile::tempdir().unwrap();
    let at = |name: &str| top.path().join(name);
    fs::create_dir(at("a")).unwrap();
    fs::write(at("a/z"), "z").unwrap();
    fs::write(at("a-"), "").unwrap();
    fs::write(at("a.b"), "").unwrap();
    symlink("/etc", at("link")).unwrap();
    fs::write(top.path().join(std::ffi::OsStr::from_bytes(b"\xff\n")), "").unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let met = walk(top.path(), |_| {});
    assert_eq!(met.entries, ["./", "a", "a/z", "a-", "a.b", "link", "pipe", "\\xff\\n"]);
    assert_eq!((met.held, met.left_out), (vec![], vec![]));
}

#[test]
fn what_is_seen_is_what_stat_says() {
    use std::os::unix::fs::MetadataExt;
    let top = tempfile::tempdir().unwrap();
    fs::write(top.path().join("f"), "12345").unwrap();
    fs::set_permissions(top.path().join("f"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(top.path().join("f"), top.path().join("g")).unwrap();
    let nothing = filter(&[]);
    let root = Root::open(top.path()).unwrap();
    let mut stats = Vec::new();
    walk_with(&root, &options(&nothing), &mut |seen| {
        assert_eq!(root.stat_at(seen.dir, seen.name).unwrap(), seen.stat);
        stats.push(seen.stat);
    });
    let real = fs::symlink_metadata(top.path().join("g")).unwrap();
    let [_, f, g] = stats[..] else { panic!("{stats:?}") };
    assert_eq!(f, g);
    assert_eq!((g.tuple.size, g.mode, g.nlink, g.identity()), (5, 0o4751, 2, (real.dev(), real.ino())));
    assert_eq!((g.tuple.ctime.sec, i64::from(g.tuple.ctime.nsec)), (real.ctime(), real.ctime_nsec()));
    assert_ne!(g.tuple.fs, 0);
}

#[test]
fn excluded_directories_are_not_entered() {
    let top = tempfile::tempdir().unwrap();
    fs::create_dir_all(top.path().join("cache/deep")).unwrap();
    fs::create_dir_all(top.path().join("keep")).unwrap();
    fs::write(top.path().join("keep/cache"), "a file of that name stays").unwrap();
    let filter = filter(&["cache/"]);
    let met = walk_with(&Root::open(top.path()).unwrap(), &options(&filter), &mut |_| {});
    assert_eq!(met.entries, ["./", "keep", "keep/cache"]);
}

#[test]
fn the_reserved_name_and_the_state_directory() {
    let top = tempfile::tempdir().unwrap();
    fs::create_dir_all(top.path().join("d").join(STAGING_NAME).join("x")).unwrap();
    fs::create_dir_all(top.path().join("state/x")).unwrap();
    let state = Root::open(&top.path().join("state")).unwrap().identity();
    let met = walk(top.path(), |options| options.leave_out.push(state));
    assert_eq!(met.entries, ["./", "d"]);
    assert_eq!(met.left_out, [("state".to_owned(), LeftOut::Asked)]);
    assert_eq!(met.held.len(), 1);
    assert!(met.held[0].starts_with("cannot scan d/.synccli-staging: the name is reserved"), "{:?}", met.held);
    let met = walk(top.path(), |options| options.reserved = Reserved::Skip);
    assert_eq!(met.entries, ["./", "d", "state", "state/x"]);
    assert_eq!(met.held, [""; 0]);
}

#[test]
fn deep_beyond_path_max_with_few_descriptors() {
    let top = tempfile::tempdir().unwrap();
    let name = "n".repeat(30);
    let depth = 2000;
    let mut fd = OwnedFd::from(fs::File::open(top.path()).unwrap());
    for _ in 0..depth {
        // A file that sorts behind the directory brings the walk back to every level.
        openat(&fd, "z", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o600)).unwrap();
        rustix::fs::mkdirat(&fd, &*name, Mode::from_raw_mode(0o700)).unwrap();
        fd = openat(&fd, &*name, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    drop(fd);
    let before = open_descriptors();
    let nothing = filter(&[]);
    let root = Root::open(top.path()).unwrap();
    // Comparing and printing paths of this length would take longer than the walk.
    let count = |also: &mut dyn FnMut(u32, &Seen<'_>)| {
        let (mut count, mut held, mut last) = (0, Vec::new(), RelPath::root());
        let end = scan::<()>(&root, &options(&nothing), &mut |scanned| {
            match scanned {
                Scanned::Entry(seen) => {
                    also(count, &seen);
                    count += 1;
                    last = seen.path().clone();
                }
                Scanned::Held(error) => held.push(error.to_string()),
                Scanned::Restless(_) | Scanned::LeftOut { .. } => panic!("restless or left out"),
            }
            ControlFlow::Continue(())
        });
        assert!(end.unwrap().is_continue() && last.display() == "z");
        (count, held)
    };
    let mut most = 0;
    let (entries, held) = count(&mut |count, seen| {
        if count % 100 == 0 {
            most = most.max(open_descriptors());
            assert_eq!(root.stat(seen.path()).unwrap().unwrap().identity(), seen.stat.identity());
        }
    });
    assert_eq!((entries, held), (1 + 2 * depth, vec![]));
    // The walk's own and the cache's; other tests have some open too.
    assert!(most < before + OPEN + 128 + 100, "{most} descriptors");
    // Deeper than our own bound: held once, and the rest is still walked.
    let names = depth as usize;
    let mut dir = root.open_dir(&RelPath::new(vec![&*name; names].join("/")).unwrap()).unwrap();
    for _ in 0..(MAX_PATH / (name.len() + 1) + 5 - names) {
        rustix::fs::mkdirat(&dir, &*name, Mode::from_raw_mode(0o700)).unwrap();
        dir = openat(&dir, &*name, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let (entries, held) = count(&mut |_, _| {});
    assert!(entries > 1 + 2 * depth);
    assert_eq!(held.len(), 1);
    assert!(held[0].ends_with("is longer than 65535 bytes"), "{}", &held[0][held[0].len() - 100..]);
    // tempfile's own removal cannot be trusted with such a depth.
    std::process::Command::new("rm").arg("-rf").arg(top.path().join(&name)).status().unwrap();
}

#[test]
fn a_thousand_names_in_one_directory_come_sorted() {
    let top = tempfile::tempdir().unwrap();
    for i in 0..5000 {
        fs::write(top.path().join(format!("{}-{i}", "x".repeat(i % 200))), "").unwrap();
    }
    assert_eq!(walk(top.path(), |_| {}).entries.len(), 5001);
}

#[test]
fn a_break_ends_the_walk() {
    let top = tempfile::tempdir().unwrap();
    fs::create_dir_all(top.path().join("a/b")).unwrap();
    let nothing = filter(&[]);
    let root = Root::open(top.path()).unwrap();
    for stop in ["./", "a", "a/b"] {
        let end = scan(&root, &options(&nothing), &mut |scanned| match scanned {
            Scanned::Entry(seen) if seen.path().display() == stop => ControlFlow::Break(stop),
            _ => ControlFlow::Continue(()),
        });
        assert_eq!(end.unwrap(), ControlFlow::Break(stop));
    }
}

#[test]
fn mounts_are_marked_or_left_out() {
    let top = tempfile::tempdir().unwrap();
    fs::create_dir_all(top.path().join("m")).unwrap();
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "none"]).arg(top.path().join("m")).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounts_are_marked_or_left_out: cannot mount here");
        return;
    }
    fs::create_dir_all(top.path().join("m/inner")).unwrap();
    let nothing = filter(&[]);
    let root = Root::open(top.path()).unwrap();
    let mut mounts = Vec::new();
    let mut systems = Vec::new();
    walk_with(&root, &options(&nothing), &mut |seen| {
        mounts.push(seen.mount);
        systems.push(seen.stat.tuple.fs);
    });
    let met = walk(top.path(), |options| options.one_file_system = true);
    std::process::Command::new("umount").arg(top.path().join("m")).status().unwrap();
    assert_eq!(mounts, [false, true, false]);
    assert!(systems[0] != systems[1] && systems[1] == systems[2]);
    assert_eq!((met.entries, met.left_out), (vec!["./".to_owned()], vec![("m".to_owned(), LeftOut::Mount)]));
}

#[test]
fn a_directory_that_goes_or_becomes_a_link_is_never_left_through() {
    let top = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "").unwrap();
    for name in ["a", "gone", "link", "file"] {
        fs::create_dir_all(top.path().join(name)).unwrap();
        fs::write(top.path().join(name).join("x"), "").unwrap();
    }
    // More than are listed ahead of the walk.
    let between = || (0..100).map(|i| format!("b{i:02}"));
    between().for_each(|name| fs::create_dir(top.path().join(name)).unwrap());
    let nothing = filter(&[]);
    let root = Root::open(top.path()).unwrap();
    let mut met = walk_with(&root, &options(&nothing), &mut |seen| {
        // The top has been listed by now, these not.
        if seen.path().display() == "a" {
            for name in ["gone", "link", "file"] {
                fs::remove_dir_all(top.path().join(name)).unwrap();
            }
            symlink(outside.path(), top.path().join("link")).unwrap();
            fs::write(top.path().join("file"), "").unwrap();
        }
    });
    met.entries.retain(|name| !between().any(|between| between == *name));
    assert_eq!(met.entries, ["./", "a", "a/x", "file", "link"]);
    assert_eq!(met.held, ["cannot scan gone: it vanished while its tree was scanned"]);
}

#[test]
fn a_renamed_file_is_never_in_neither_place() {
    let top = tempfile::tempdir().unwrap();
    let dir = top.path().join("d");
    fs::create_dir(&dir).unwrap();
    for i in 0..300 {
        fs::write(dir.join(format!("{i:03}")), "").unwrap();
    }
    let (a, b) = (dir.join("100-a"), dir.join("200-b"));
    fs::write(&a, "").unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fs::rename(&a, &b).unwrap();
                std::thread::sleep(Duration::from_micros(700));
                fs::rename(&b, &a).unwrap();
                std::thread::sleep(Duration::from_millis(9));
            }
        });
        let _stop = StopAtEnd(&stop);
        let mut whole = 0;
        for _ in 0..60 {
            let met = walk(top.path(), |_| {});
            assert_eq!(met.held, [""; 0]);
            if met.restless.is_empty() {
                whole += 1;
                assert_eq!(met.entries.len(), 303, "a name was lost, or there twice");
            } else {
                assert_eq!(met.restless, ["d"]);
                assert!((302..=304).contains(&met.entries.len()), "what rests was lost");
            }
        }
        assert!(whole > 0, "no walk saw it at rest");
    });
}

#[test]
fn flips_to_links_and_back_show_nothing_outside() {
    let top = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "").unwrap();
    fs::create_dir_all(top.path().join("d/sub")).unwrap();
    fs::write(top.path().join("d/sub/ours"), "").unwrap();
    symlink(outside.path(), top.path().join("l")).unwrap();
    let (d, l) = (top.path().join("d"), top.path().join("l"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(rustix::fs::CWD, &d, rustix::fs::CWD, &l, rustix::fs::RenameFlags::EXCHANGE)
                    .unwrap();
            }
        });
        let _stop = StopAtEnd(&stop);
        let nothing = filter(&[]);
        let root = Root::open(top.path()).unwrap();
        for _ in 0..100 {
            // Flipped without end, the top itself may never be seen at rest.
            let _ = scan::<()>(&root, &options(&nothing), &mut |scanned| {
                if let Scanned::Entry(seen) = scanned {
                    assert!(!seen.path().display().contains("secret"), "walked out of the tree");
                }
                ControlFlow::Continue(())
            });
            let path = RelPath::new("d/sub/ours").unwrap();
            if let Ok(Some(stat)) = root.stat(&path) {
                assert!(stat.is_file());
            }
            assert_eq!(root.stat(&RelPath::new("d/secret").unwrap()).unwrap(), None);
            root.forget(&RelPath::root());
        }
    });
}

/// Runs `f` on a thread of its own without root's powers; the ids of threads are their own.
fn unprivileged<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let nobody = rustix::thread::Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            f()
        });
        thread.join().unwrap()
    })
}

#[test]
fn what_may_not_be_read_is_held_and_the_rest_walked() {
    let top = tempfile::tempdir().unwrap();
    let chmod =
        |name: &str, mode| fs::set_permissions(top.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    for name in ["closed/x", "listed/x", "open/x"] {
        fs::create_dir_all(top.path().join(name)).unwrap();
    }
    chmod("", 0o755);
    chmod("closed", 0o711);
    chmod("listed", 0o744);
    let met = unprivileged(|| walk(top.path(), |_| {}));
    assert_eq!(met.entries, ["./", "closed", "listed", "open", "open/x"]);
    assert_eq!(
        met.held,
        [
            "cannot open the directory closed: Permission denied (os error 13)",
            "cannot look at listed/x: Permission denied (os error 13)",
        ]
    );
    chmod("", 0o711);
    let error = unprivileged(|| Root::open(top.path()).map(|_| ())).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(13));
}

#[test]
fn a_walked_directory_that_moves_away_holds_what_is_left_of_it() {
    let top = tempfile::tempdir().unwrap();
    let deep: String = (0..OPEN + 20).map(|i| format!("/{i}")).collect();
    fs::create_dir_all(top.path().join(format!("a{deep}"))).unwrap();
    fs::write(top.path().join("a/z"), "").unwrap();
    fs::write(top.path().join("b"), "").unwrap();
    let bottom = deep.rsplit('/').next().unwrap().to_owned();
    let nothing = filter(&[]);
    let root = Root::open(top.path()).unwrap();
    let met = walk_with(&root, &options(&nothing), &mut |seen| {
        if seen.name.to_bytes() == bottom.as_bytes() {
            fs::rename(top.path().join("a"), top.path().join("elsewhere")).unwrap();
            fs::create_dir(top.path().join("a")).unwrap();
        }
    });
    assert_eq!(met.held, ["cannot scan a: it was moved or replaced while its tree was scanned"]);
    assert_eq!(met.entries.last().unwrap(), "b");
}

/// Some file systems list a name twice that went and came again meanwhile.
#[test]
fn a_name_that_was_listed_twice_is_what_it_was_the_second_time() {
    let mut children = Children::default();
    for (name, errno) in [(c"b", 1), (c"a", 2), (c"b", 3), (c"c", 4), (c"a", 5), (c"b", 6)] {
        children.push(name, Found::Failed(Errno::from_raw_os_error(errno)));
    }
    children.sort_changed();
    let mut found = Vec::new();
    while let Some((name, Found::Failed(errno))) = children.take() {
        found.push((name.to_owned(), errno.raw_os_error()));
    }
    assert_eq!(found, [(c"a".to_owned(), 5), (c"b".to_owned(), 6), (c"c".to_owned(), 4)]);
}
