use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::*;

/// How long a hint may take on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// A watched tree.
struct World {
    _place: tempfile::TempDir,
    top: PathBuf,
    watch: Watch,
    hints: Receiver<Hint>,
    /// How many ends there were: each leaves a name of its own.
    ends: usize,
}

fn path(path: impl AsRef<[u8]>) -> RelPath {
    RelPath::new(path.as_ref()).unwrap()
}

fn ear() -> (impl Fn(Hint) + Send + Sync, Receiver<Hint>) {
    let (tell, hints): (Sender<Hint>, _) = channel();
    (move |hint| drop(tell.send(hint)), hints)
}

/// Adds the directory and what it holds, as a caller does; how many directories were new.
fn add(watch: &Watch, dir: &RelPath) -> usize {
    if watch.add(dir).unwrap() != Added::New {
        return 0;
    }
    let Ok(names) = fs::read_dir(hear::join(watch.top(), dir)) else { return 1 };
    1 + names.map(|name| add(watch, &dir.join(name.unwrap().file_name().as_bytes()).unwrap())).sum::<usize>()
}

impl World {
    /// A tree with these directories and files (all but the last component), watched.
    fn new(files: &[&str]) -> Self {
        let place = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(place.path()).unwrap().join("top");
        fs::create_dir(&top).unwrap();
        for file in files {
            fs::create_dir_all(top.join(file).parent().unwrap()).unwrap();
            fs::write(top.join(file), "old").unwrap();
        }
        let (tell, hints) = ear();
        let watch = Watch::new(&top, tell).unwrap();
        add(&watch, &RelPath::root());
        Self { _place: place, top, watch, hints, ends: 0 }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.top.join(path)
    }

    /// All that was hinted at so far, known to be all by a change that comes after it; adding what is new.
    fn hints(&mut self) -> Vec<Hint> {
        self.ends += 1;
        let end = path(format!("end{}", self.ends));
        fs::create_dir(hear::join(&self.top, &end)).unwrap();
        let mut seen = Vec::new();
        loop {
            let hint = self.hints.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no end after {seen:?}"));
            if let Hint::AtRest(path) | Hint::Changed(path) = &hint {
                // Its thread takes this up when it has worked off what it read, and forgotten what it was told is gone.
                let new = add(&self.watch, path);
                if *path == end {
                    assert_eq!(new, 1);
                    return seen;
                }
            }
            if seen.last() != Some(&hint) {
                seen.push(hint);
            }
        }
    }

    /// The same as names.
    fn names(&mut self) -> BTreeSet<String> {
        let name = |hint| match hint {
            Hint::AtRest(path) => path.to_string(),
            Hint::Changed(path) => format!("{path} changes"),
            other => format!("{other:?}"),
        };
        self.hints().into_iter().map(name).collect()
    }
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

#[test]
fn writing_changes_and_closing_rests() {
    let mut world = World::new(&["d/f"]);
    assert_eq!(world.watch.len(), 2);
    let mut file = fs::OpenOptions::new().append(true).open(world.at("d/f")).unwrap();
    file.write_all(b"new").unwrap();
    assert_eq!(world.hints(), [Hint::Changed(path("d/f"))]);
    file.set_len(1).unwrap();
    assert_eq!(world.hints(), [Hint::Changed(path("d/f"))]);
    drop(file);
    assert_eq!(world.hints(), [Hint::AtRest(path("d/f"))]);
    fs::write(world.at("d/g"), "new").unwrap();
    let seen = world.hints();
    // The file may be gone from its writer's hands before we look whether it is one.
    assert_eq!(seen.last(), Some(&Hint::AtRest(path("d/g"))), "{seen:?}");
    assert!(seen.contains(&Hint::Changed(path("d/g"))), "{seen:?}");
}

#[test]
fn who_catches_up_has_been_told_of_all_that_came_before() {
    let world = World::new(&["d/f"]);
    for i in 0..500 {
        fs::write(world.at("d/f"), format!("{i}")).unwrap();
        world.watch.catch_up().unwrap();
        let told: Vec<_> = world.hints.try_iter().collect();
        assert_eq!(told.last(), Some(&Hint::AtRest(path("d/f"))), "{i}: {told:?}");
    }
}

#[test]
fn what_is_only_read_is_not_told() {
    let mut world = World::new(&["d/f"]);
    for _ in 0..3 {
        let mut read = String::new();
        fs::File::open(world.at("d/f")).unwrap().read_to_string(&mut read).unwrap();
        fs::read_dir(world.at("d")).unwrap().for_each(drop);
        fs::metadata(world.at("d/f")).unwrap();
    }
    assert_eq!(world.hints(), []);
}

#[test]
fn names_and_attributes_are_at_rest() {
    let mut world = World::new(&["d/f", "d/g", "d/h"]);
    fs::set_permissions(world.at("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(world.names(), set(["d/f"]));
    fs::rename(world.at("d/f"), world.at("d/g")).unwrap();
    assert_eq!(world.names(), set(["d/f", "d/g"]));
    fs::remove_file(world.at("d/h")).unwrap();
    assert_eq!(world.names(), set(["d/h"]));
    // Nobody opens these to write them.
    symlink("nowhere", world.at("d/link")).unwrap();
    fs::hard_link(world.at("d/g"), world.at("d/also")).unwrap();
    assert_eq!(world.names(), set(["d/link", "d/also"]));
    fs::set_permissions(world.at("d"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(world.names(), set(["d"]));
    let odd = hear::join(&world.top, &path(b"d/\xff\n"));
    fs::write(odd, "x").unwrap();
    assert!(world.hints().contains(&Hint::AtRest(path(b"d/\xff\n"))));
}

#[test]
fn a_tree_made_at_once_is_watched_to_its_leaves() {
    let mut world = World::new(&["f"]);
    for turn in 0..20 {
        let deep = world.at(&format!("{turn}/a/b/c"));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("early"), "x").unwrap();
        // Whatever was told by then: what was not watched in time was listed, and after that all is told.
        world.hints();
        assert_eq!(world.watch.add(&path(format!("{turn}/a/b/c"))).unwrap(), Added::Known);
        fs::write(deep.join("late"), "x").unwrap();
        assert!(world.hints().contains(&Hint::AtRest(path(format!("{turn}/a/b/c/late")))));
    }
}

#[test]
fn a_renamed_directory_is_told_of_under_its_new_name() {
    let mut world = World::new(&["a/sub/f"]);
    for (from, to) in [("a", "b"), ("b", "c"), ("c", "a"), ("a", "b")] {
        fs::rename(world.at(from), world.at(to)).unwrap();
        assert_eq!(world.names(), set([from, to]));
        fs::write(world.at(to).join("sub/f"), "x").unwrap();
        let name = format!("{to}/sub/f");
        assert_eq!(world.names(), set([&format!("{name} changes"), &name]));
        // The old name is nothing to us, and forgetting it does not touch the new one.
        assert_eq!(world.watch.add(&path(from)).unwrap(), Added::NotADirectory);
        world.watch.forget_beneath(&path(from));
        fs::remove_file(world.at(to).join("sub/f")).unwrap();
        assert_eq!(world.names(), set([&name]));
    }
}

/// The look comes before the event here: the same directory is watched under two names for a moment.
#[test]
fn a_renamed_directory_may_be_found_before_its_event() {
    let mut world = World::new(&["a/sub/f"]);
    for _ in 0..50 {
        fs::rename(world.at("a"), world.at("b")).unwrap();
        add(&world.watch, &path("b"));
        fs::create_dir_all(world.at("a/sub")).unwrap();
        add(&world.watch, &path("a"));
        world.hints();
        for at in ["a/sub/f", "b/sub/f"] {
            fs::write(world.at(at), "x").unwrap();
        }
        let seen = world.names();
        assert!(["a/sub/f", "b/sub/f"].iter().all(|name| seen.contains(*name)), "{seen:?}");
        fs::remove_dir_all(world.at("b")).unwrap();
        world.hints();
    }
}

#[test]
fn a_directory_replaced_by_another_is_new() {
    let mut world = World::new(&["a/sub/f", "b/sub/f", "e/f"]);
    // Both at once.
    rustix::fs::renameat_with(CWD, world.at("a"), CWD, world.at("b"), rustix::fs::RenameFlags::EXCHANGE).unwrap();
    world.hints();
    fs::write(world.at("a/sub/f"), "x").unwrap();
    assert_eq!(world.names(), set(["a/sub/f changes", "a/sub/f"]));
    // Removed and made again, possibly with the same inode.
    fs::remove_dir_all(world.at("a")).unwrap();
    fs::create_dir_all(world.at("a/sub")).unwrap();
    world.hints();
    fs::write(world.at("a/sub/f"), "x").unwrap();
    assert!(world.names().contains("a/sub/f"));
    // For a link, and back.
    fs::remove_dir_all(world.at("a")).unwrap();
    symlink("b", world.at("a")).unwrap();
    world.hints();
    assert_eq!(world.watch.add(&path("a")).unwrap(), Added::NotADirectory);
    fs::write(world.at("a/sub/f"), "x").unwrap();
    let seen = world.names();
    assert!(seen.contains("b/sub/f") && !seen.contains("a/sub/f"), "{seen:?}");
    // Nothing is watched through a link.
    assert_eq!(world.watch.add(&path("a/sub")).unwrap(), Added::NotADirectory);
    // Over an empty one.
    fs::create_dir(world.at("empty")).unwrap();
    world.hints();
    fs::rename(world.at("e"), world.at("empty")).unwrap();
    world.hints();
    fs::write(world.at("empty/f"), "x").unwrap();
    assert!(world.names().contains("empty/f"));
}

#[test]
fn adding_again_says_what_is_known() {
    let world = World::new(&["a/sub/f", "b"]);
    assert_eq!(world.watch.add(&RelPath::root()).unwrap(), Added::Known);
    assert_eq!(world.watch.add(&path("a/sub")).unwrap(), Added::Known);
    for not in ["b", "a/absent", "b/beneath"] {
        assert_eq!(world.watch.add(&path(not)).unwrap(), Added::NotADirectory);
    }
    world.watch.forget_beneath(&path("a"));
    assert_eq!((world.watch.len(), add(&world.watch, &path("a"))), (1, 2));
}

#[test]
fn what_is_forgotten_is_not_told() {
    let mut world = World::new(&["a/sub/f", "b/f"]);
    world.watch.forget_beneath(&path("a"));
    fs::write(world.at("a/sub/f"), "x").unwrap();
    fs::write(world.at("b/f"), "x").unwrap();
    assert_eq!(world.names(), set(["b/f changes", "b/f"]));
}

#[test]
fn a_tree_moved_away_or_removed_leaves_nothing_watched() {
    let mut world = World::new(&["a/b/c/f", "d/e/f"]);
    let away = world.top.parent().unwrap().join("away");
    fs::rename(world.at("a"), &away).unwrap();
    assert_eq!(world.names(), set(["a"]));
    fs::write(away.join("b/c/f"), "x").unwrap();
    assert_eq!(world.names(), set([]));
    fs::remove_dir_all(world.at("d")).unwrap();
    assert_eq!(world.names(), set(["d", "d/e", "d/e/f"]));
    // The top, and the ends that the test made.
    let dirs: Vec<_> = world.watch.instance().shared.dirs().keys().cloned().collect();
    assert!(dirs.iter().all(|dir| dir.is_root() || dir.name().starts_with(b"end")), "{dirs:?}");
    // And moved in again it is new.
    fs::rename(&away, world.at("a")).unwrap();
    assert_eq!(world.names(), set(["a"]));
    fs::write(world.at("a/b/c/f"), "x").unwrap();
    assert_eq!(world.names(), set(["a/b/c/f changes", "a/b/c/f"]));
}

fn wait_for(hints: &Receiver<Hint>, wanted: &Hint) {
    let until = Instant::now() + PATIENCE;
    while hints.recv_timeout(until.saturating_duration_since(Instant::now())).expect("the hint comes") != *wanted {}
}

#[test]
fn a_top_that_goes_is_told() {
    for turn in 0..3 {
        let world = World::new(&["a/f"]);
        let away = world.top.parent().unwrap().join("away");
        match turn {
            0 => fs::remove_dir_all(&world.top).unwrap(),
            1 => fs::rename(&world.top, &away).unwrap(),
            _ => {
                fs::create_dir(&away).unwrap();
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(CWD, &away, CWD, &world.top, flags).unwrap();
            }
        }
        wait_for(&world.hints, &Hint::RootGone);
        assert!(!world.watch.is_in_place());
        assert!(matches!(world.watch.add(&RelPath::root()), Err(WatchError::RootGone)));
    }
}

#[test]
fn a_link_to_the_top_is_followed_and_turning_it_is_told() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    for dir in ["releases/1", "releases/2"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    symlink("releases/1", at("stable")).unwrap();
    symlink(at("stable"), at("current")).unwrap();
    // In either of the two ways that people have, at either of the links.
    let turns: [&dyn Fn(); 2] = [
        &|| {
            symlink("releases/2", at("new")).unwrap();
            fs::rename(at("new"), at("stable")).unwrap();
        },
        &|| {
            fs::remove_file(at("current")).unwrap();
            symlink("releases/1", at("current")).unwrap();
        },
    ];
    for (turn, release) in turns.into_iter().zip(["releases/1", "releases/2"]) {
        let (tell, hints) = ear();
        let watch = Watch::new(&at("current"), tell).unwrap();
        assert_eq!(watch.top(), fs::canonicalize(at(release)).unwrap());
        assert_eq!((watch.add(&RelPath::root()).unwrap(), watch.is_in_place()), (Added::New, true));
        fs::write(at("current/f"), "x").unwrap();
        wait_for(&hints, &Hint::AtRest(path("f")));
        turn();
        wait_for(&hints, &Hint::RootGone);
        assert!(!watch.is_in_place());
    }
    symlink("loop", at("loop")).unwrap();
    fs::write(at("file"), "").unwrap();
    for not in ["loop", "file", "absent"] {
        assert!(matches!(Watch::new(&at(not), |_| {}), Err(WatchError::Fs(_))), "{not}");
    }
}

/// A real overflow: nobody takes events out of the queue until more were made than fit.
#[test]
fn a_full_queue_is_told_and_after_a_restart_all_is_well() {
    let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    if most > 1 << 20 {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir_all(at("a/sub")).unwrap();
    let gate = Arc::new(Mutex::new(()));
    let (tell, hints) = ear();
    let closed = Arc::clone(&gate);
    let watch = Watch::new(place.path(), move |hint| {
        drop(closed.lock().unwrap());
        tell(hint);
    })
    .unwrap();
    assert_eq!(add(&watch, &RelPath::root()), 3);
    let shut = gate.lock().unwrap();
    fs::write(at("0"), "").unwrap();
    // Two events each, so twice as many as fit: some were taken out already.
    for i in 0..most {
        fs::rename(at(&i.to_string()), at(&(i + 1).to_string())).unwrap();
    }
    // Nobody hears that this is another directory now.
    fs::rename(at("a"), at("b")).unwrap();
    fs::create_dir_all(at("a/sub")).unwrap();
    drop(shut);
    wait_for(&hints, &Hint::Overflow);

    watch.restart().unwrap();
    assert_eq!((watch.is_empty(), add(&watch, &RelPath::root())), (true, 5));
    for name in ["a/sub/f", "b/sub/f"] {
        fs::write(at(name), "x").unwrap();
        wait_for(&hints, &Hint::AtRest(path(name)));
    }
}

#[test]
fn a_path_that_is_too_long_for_the_kernel_is_said_to_be() {
    let world = World::new(&["f"]);
    let long = path(vec![vec![b'x'; 255]; 17].join(&b'/'));
    let error = world.watch.add(&long).unwrap_err();
    assert!(matches!(&error, WatchError::TooLong(path) if *path == long) && error.is_local());
}

#[test]
fn errors_say_what_to_raise() {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").unwrap();
    let error = error::of_directory(notify::Error::new(notify::ErrorKind::MaxFilesWatch), &path("a")).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("fs.inotify.max_user_watches") && text.contains(limit.trim()), "{text}");
    assert!(!error.is_local());
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap();
    let text = error::of_instance(notify::Error::io(Errno::MFILE.into())).to_string();
    assert!(text.contains("fs.inotify.max_user_instances") && text.contains(limit.trim()), "{text}");
    let refused = error::of_directory(notify::Error::io(Errno::ACCESS.into()), &path("a")).unwrap_err();
    assert!(refused.is_local() && refused.to_string().contains("cannot watch a: Permission denied"), "{refused}");
    for gone in [notify::Error::path_not_found(), notify::Error::io(Errno::LOOP.into())] {
        assert_eq!(error::of_directory(gone, &path("a")).unwrap(), Added::NotADirectory);
    }
}

#[test]
fn an_event_that_nobody_expects_is_no_less_a_hint() {
    use notify::EventHandler;
    use notify::event::{Event, EventKind, Flag, ModifyKind};
    let (tell, hints) = ear();
    let shared = Arc::new(Shared::default());
    shared.is_open.store(true, Ordering::Release);
    let mut ear = Ear::new("/top".into(), Arc::from([]), Arc::clone(&shared), Arc::new(tell));
    let event = |kind| Event::new(kind);
    for (event, hint) in [
        (event(EventKind::Any).add_path("/top/a".into()), Hint::Changed(path("a"))),
        (event(EventKind::Modify(ModifyKind::Other)).add_path("/top/a".into()), Hint::Changed(path("a"))),
        (event(EventKind::Other), Hint::Overflow),
        (event(EventKind::Any).add_path("/elsewhere".into()), Hint::Overflow),
        (event(EventKind::Any).add_path("/top/a".into()).set_flag(Flag::Rescan), Hint::Overflow),
    ] {
        ear.handle_event(Ok(event));
        assert_eq!(hints.try_recv().unwrap(), hint);
    }
    ear.handle_event(Err(notify::Error::generic("unreadable")));
    assert_eq!(hints.try_recv().unwrap(), Hint::Overflow);
    // A thread that ends by itself leaves a tree that nobody watches.
    drop(ear);
    assert_eq!(hints.try_recv().unwrap(), Hint::Overflow);
    assert!(shared.has_ended.load(Ordering::Acquire));
}

#[test]
fn nothing_is_told_after_the_end() {
    let world = World::new(&["f"]);
    let World { _place, top, watch, hints, .. } = world;
    drop(watch);
    fs::write(top.join("f"), "x").unwrap();
    // The ear goes with its thread.
    assert!(hints.recv_timeout(PATIENCE).is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Disconnected));
}

/// Nobody tells of a mount: only a look finds it, and from then on what is beneath is heard.
#[test]
fn a_directory_that_was_mounted_over_is_new() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let mut world = World::new(&["a/sub/f"]);
    let over = world.at("a");
    if mount("tmpfs", &over, "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>).is_err() {
        eprintln!("SKIPPED: a_directory_that_was_mounted_over_is_new: may not mount");
        return;
    }
    fs::create_dir(world.at("a/sub")).unwrap();
    fs::write(world.at("a/sub/f"), "x").unwrap();
    let found = add(&world.watch, &path("a"));
    fs::write(world.at("a/sub/f"), "y").unwrap();
    let seen = world.names();
    unmount(&over, UnmountFlags::empty()).unwrap();
    assert_eq!(found, 2);
    assert!(seen.contains("a/sub/f"), "{seen:?}");
    // The kernel ends the watches of a file system that goes.
    assert!(world.names().contains("a"));
    fs::write(world.at("a/sub/f"), "z").unwrap();
    assert!(world.names().contains("a/sub/f"));
}

#[test]
fn a_directory_is_found_without_openat2_too() {
    let world = World::new(&["a/b/f"]);
    symlink("a", world.at("link")).unwrap();
    for name in ["a/b", "a/b/f", "link", "link/b", "absent"] {
        let stepwise = Identity::stepwise(&world.at(name)).ok().flatten();
        assert_eq!(
            (stepwise.is_some(), stepwise),
            (name == "a/b", Identity::of_dir(&world.at(name)).unwrap()),
            "{name}"
        );
    }
}

/// `cargo test --release -p sync-core watch::tests::speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed() {
    for count in [6000, 20_000] {
        let world = World::new(&[]);
        let dirs: Vec<_> = (0..count).map(|i| path(format!("{}/{}/{i}", i % 10, i % 100))).collect();
        dirs.iter().for_each(|dir| fs::create_dir_all(hear::join(&world.top, dir)).unwrap());
        let begin = Instant::now();
        dirs.iter().for_each(|dir| assert_eq!(world.watch.add(dir).unwrap(), Added::New));
        let new = begin.elapsed();
        let begin = Instant::now();
        dirs.iter().for_each(|dir| assert_eq!(world.watch.add(dir).unwrap(), Added::Known));
        let known = begin.elapsed();
        let begin = Instant::now();
        for dir in dirs.iter().take(500) {
            fs::remove_dir(hear::join(&world.top, dir)).unwrap();
        }
        let wait = Instant::now();
        // Something behind the removals, which notify takes one by one.
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(world.watch.add(&path("0")).unwrap(), Added::New);
        println!(
            "{count} directories: added in {new:?}, again in {known:?}; after 500 removed in {:?} the next add waits {:?}",
            wait - begin,
            wait.elapsed()
        );
    }
}
