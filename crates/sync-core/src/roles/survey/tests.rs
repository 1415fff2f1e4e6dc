use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;

use proptest::prelude::*;

use super::*;
use crate::hash::Digest;
use crate::roles::identify::{Early, IdentifyOptions, identify};
use crate::roles::tree::Remembered;

/// Nothing is left out, and every row is believed that can be.
fn plain(filter: &Filter) -> SurveyOptions<'_> {
    SurveyOptions {
        filter,
        one_file_system: false,
        leave_out: Vec::new(),
        checksum: false,
        takes_unmounted: false,
        reserved: Reserved::Hold,
        is_watched: false,
        reconsider_refused: false,
        ignore_extras: false,
    }
}

fn look(top: &std::path::Path) -> Survey {
    let filter = Filter::new(&[]).unwrap();
    let options = plain(&filter);
    let index = Index::in_memory().unwrap();
    survey(&Root::open(top).unwrap(), &index, &options, &|_| ControlFlow::Continue(()), &mut |_, _| {}).unwrap()
}

/// In the same tick of the kernel's clock it could change again without a trace, so the look waits for the next one.
#[test]
fn what_was_written_just_before_a_look_is_proven_by_it() {
    let top = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        fs::write(top.path().join(name), name).unwrap();
    }
    for round in 0..10 {
        for name in ["a", "c"] {
            File::options().append(true).open(top.path().join(name)).unwrap().write_all(b"more").unwrap();
        }
        let found = look(top.path());
        let sizes: Vec<_> = found.pending.iter().filter_map(|p| p.row.entry.content()).map(|(size, _)| size).collect();
        assert_eq!(sizes, [5 + 4 * round, 1, 5 + 4 * round]);
        let doubtful: Vec<_> = found.pending.iter().filter(|p| !p.row.proven).map(|p| &p.row.path).collect();
        assert!(doubtful.is_empty(), "round {round}: {doubtful:?}");
    }
}

/// With names of one file in the first portion, a later one and the last, and two in one.
#[test]
fn a_look_in_portions_finds_what_a_look_at_all_finds() {
    let top = tempfile::tempdir().unwrap();
    for dir in ["a", "b/c", "d"] {
        fs::create_dir_all(top.path().join(dir)).unwrap();
    }
    for i in 0..7 {
        fs::write(top.path().join(format!("b/{i}")), format!("content {i}")).unwrap();
    }
    fs::write(top.path().join("a/one"), "of several names").unwrap();
    for name in ["a/two", "b/c/three", "d/four"] {
        fs::hard_link(top.path().join("a/one"), top.path().join(name)).unwrap();
    }
    let root = Root::open(top.path()).unwrap();
    let rows = |survey: &Survey| -> Vec<_> { survey.pending.iter().map(|p| (p.row.clone(), p.needs_hash)).collect() };
    let mut whole = look(top.path());
    read_all(&root, &mut whole);
    let index = Index::in_memory().unwrap();
    let filter = Filter::new(&[]).unwrap();
    let go_on = |_| ControlFlow::Continue(());
    for most in 1..=whole.pending.len() + 1 {
        let mut found = Vec::new();
        let take: &mut Take<'_> = &mut |survey| {
            assert_eq!(survey.pending.len(), most);
            read_all(&root, survey);
            found.extend(rows(survey));
            Ok(ControlFlow::Continue(()))
        };
        let portions = Some(Portions { most, take });
        let mut last = survey_in_portions(&root, &index, &plain(&filter), &go_on, &mut |_, _| {}, portions).unwrap();
        read_all(&root, &mut last);
        found.extend(rows(&last));
        assert_eq!(found, rows(&whole), "{most} at a time");
        assert_eq!((last.entries, &last.names), (whole.entries, &whole.names));
        assert!(last.torn.is_empty() && last.failures.is_empty());
        // The rows are another tree by then.
        assert_eq!(last.before.is_some(), most > whole.pending.len());
    }
    // And it ends where it is told to.
    let take: &mut Take<'_> = &mut |_| Ok(ControlFlow::Break(()));
    let portions = Some(Portions { most: 4, take });
    let cut = survey_in_portions(&root, &index, &plain(&filter), &go_on, &mut |_, _| {}, portions).unwrap();
    assert_eq!((cut.is_cut, cut.pending.len()), (true, 4));
}

/// Something done to a tree: a name of three levels of three, and what.
fn deed() -> impl Strategy<Value = (Vec<u8>, u8)> {
    (prop::collection::vec(0..3u8, 1..4), 0..5u8)
}

fn path_of(names: &[u8]) -> RelPath {
    let text: Vec<String> = names.iter().map(|name| format!("n{name}")).collect();
    RelPath::new(text.join("/")).unwrap()
}

/// Does it as far as it makes sense, and says which names it touched.
fn act(top: &std::path::Path, round: usize, (names, what): &(Vec<u8>, u8)) -> Vec<RelPath> {
    let path = path_of(names);
    let full = top.join(std::str::from_utf8(path.as_bytes()).unwrap());
    let elsewhere = path_of(&[names[0], 9]);
    let root = Root::open(top).unwrap();
    let beneath = with_what_is_beneath(&root, BTreeSet::from([path.clone()]));
    let done = match what {
        0 => fs::write(&full, format!("content of round {round}")).is_ok(),
        1 => fs::create_dir_all(&full).is_ok(),
        2 => fs::remove_file(&full).is_ok() || fs::remove_dir_all(&full).is_ok(),
        3 => fs::rename(&full, top.join(std::str::from_utf8(elsewhere.as_bytes()).unwrap())).is_ok(),
        _ => std::os::unix::fs::symlink(format!("/no/such/{round}"), &full).is_ok(),
    };
    match (done, what) {
        (false, _) => Vec::new(),
        // Each name that is removed is told; of what moves, only the top is.
        (true, 2) => beneath.into_iter().collect(),
        (true, 3) => vec![path, elsewhere],
        // All that was made on the way.
        (true, _) => (1..=names.len()).map(|n| path_of(&names[..n])).collect(),
    }
}

/// The names of all that is there beneath some, as whoever watches new directories finds them.
fn with_what_is_beneath(root: &Root, names: BTreeSet<RelPath>) -> BTreeSet<RelPath> {
    let mut all = BTreeSet::new();
    let mut open: Vec<RelPath> = names.into_iter().collect();
    while let Some(path) = open.pop() {
        let inside = root.names(&path).unwrap_or_default();
        open.extend(inside.iter().map(|(name, _)| path.join(name).unwrap()));
        all.insert(path);
    }
    all
}

fn read_all(root: &Root, survey: &mut Survey) {
    let stop = std::sync::atomic::AtomicBool::new(false);
    let options = IdentifyOptions {
        keep: 0,
        chunked: &|_, _| false,
        follow: &|_, _| None,
        draft: &|_, _, _| {},
        stop: &stop,
        read: &|_| {},
    };
    identify(root, survey, &options, Early::default(), &mut |_, _| {});
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Of the names that changed, a look at them alone makes the same tree as a look at everything.
    #[test]
    fn a_look_at_what_changed_finds_what_a_look_at_all_finds(
        before in prop::collection::vec(deed(), 0..12),
        after in prop::collection::vec(deed(), 1..8),
    ) {
        let top = tempfile::tempdir().unwrap();
        let root = Root::open(top.path()).unwrap();
        let index = Index::in_memory().unwrap();
        let filter = Filter::new(&[]).unwrap();
        let options = plain(&filter);
        let look = || survey(&root, &index, &options, &|_| ControlFlow::Continue(()), &mut |_, _| {}).unwrap();
        before.iter().enumerate().for_each(|(round, deed)| drop(act(top.path(), round, deed)));
        let mut first = look();
        read_all(&root, &mut first);
        let last = LastLook::of(&first).unwrap();
        let mut remembered = Remembered::default();
        let last = LastLook { tree: first.tree(&index, &mut remembered, false).unwrap(), ..last };
        index.write(1, |writer| first.pending.iter().try_for_each(|p| writer.upsert(&p.row))).unwrap();

        let names = after.iter().enumerate().flat_map(|(round, deed)| act(top.path(), 100 + round, deed)).collect();
        let names = Names { whole: with_what_is_beneath(&root, names), ..Names::default() };
        let Some(mut some) = survey_names(&root, &index, &options, &last, &names).unwrap() else { return Ok(()) };
        read_all(&root, &mut some);
        let mut all = look();
        read_all(&root, &mut all);
        prop_assert_eq!(some.entries, all.entries);
        let gone = |survey: &Survey| survey.gone.iter().map(|row| row.path.clone()).collect::<Vec<_>>();
        prop_assert_eq!(gone(&some), gone(&all));
        prop_assert_eq!(some.tree(&index, &mut remembered, false).unwrap().root, all.tree(&index, &mut remembered, false).unwrap().root);
    }
}

/// Of the old directory only the top is told when it moves away, and a new one of that name tells nothing of what it held.
#[test]
fn a_directory_in_place_of_another_takes_a_look_at_all() {
    let (top, aside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir_all(top.path().join("d/inner")).unwrap();
    let root = Root::open(top.path()).unwrap();
    let index = Index::in_memory().unwrap();
    let first = look(top.path());
    let last = LastLook::of(&first).unwrap();
    index.write(1, |writer| first.pending.iter().try_for_each(|p| writer.upsert(&p.row))).unwrap();
    let filter = Filter::new(&[]).unwrap();
    let options = plain(&filter);
    let d = || BTreeSet::from([RelPath::new("d").unwrap()]);
    let names = Names { whole: d(), ..Names::default() };
    // Of what it held itself, if it may have had another name meanwhile.
    fs::remove_dir(top.path().join("d/inner")).unwrap();
    let gone = |names: &Names| survey_names(&root, &index, &options, &last, names).unwrap().unwrap().gone.len();
    assert_eq!((gone(&names), gone(&Names { alone: d(), ..Names::default() })), (1, 0));
    fs::rename(top.path().join("d"), aside.path().join("d")).unwrap();
    fs::create_dir(top.path().join("d")).unwrap();
    assert!(survey_names(&root, &index, &options, &last, &names).unwrap().is_none());
}

/// A look takes its time, and meanwhile a file may become a directory: what that holds is in no directory yet.
#[test]
fn nothing_is_found_in_what_was_no_directory_when_it_was_looked_at() {
    let top = tempfile::tempdir().unwrap();
    let [d, other] = ["d", "other"].map(|name| top.path().join(name));
    fs::write(&d, "d").unwrap();
    fs::create_dir(&other).unwrap();
    fs::write(other.join("x"), "x").unwrap();
    let root = Root::open(top.path()).unwrap();
    let index = Index::in_memory().unwrap();
    let mut first = look(top.path());
    read_all(&root, &mut first);
    let last = LastLook::of(&first).unwrap();
    first.pending.retain(|p| !p.row.path.as_bytes().starts_with(b"other"));
    index.write(1, |writer| first.pending.iter().try_for_each(|p| writer.upsert(&p.row))).unwrap();
    let filter = Filter::new(&[]).unwrap();
    let options = plain(&filter);
    let [d_path, x] = ["d", "d/x"].map(|name| RelPath::new(name).unwrap());
    let names = Names { whole: BTreeSet::from([d_path.clone(), x.clone()]), ..Names::default() };
    let stop = std::sync::atomic::AtomicBool::new(false);
    let found: Vec<Survey> = std::thread::scope(|scope| {
        scope.spawn(|| {
            // At every moment it is either a file or a directory.
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let (from, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
                let _ = rustix::fs::renameat_with(from, &d, from, &other, flags);
            }
        });
        let looks = (0..20_000).map(|_| survey_names(&root, &index, &options, &last, &names));
        let found = looks.filter_map(|found| found.ok().flatten()).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        found
    });
    let entry = |found: &Survey, path: &RelPath| {
        found.pending.iter().find(|p| p.row.path == *path).map(|p| p.row.entry.is_dir())
    };
    let with_x = found.iter().filter(|found| entry(found, &x).is_some());
    assert!(with_x.clone().count() > 0);
    assert_eq!(with_x.filter(|found| entry(found, &d_path) != Some(true)).count(), 0);
}

/// Others come and go in it all the time.
#[test]
fn of_a_directory_that_never_rests_all_that_does_is_found_and_nothing_is_gone() {
    let top = tempfile::tempdir().unwrap();
    let at = |name: &str| top.path().join(name);
    fs::create_dir(at("d")).unwrap();
    (0..5000).for_each(|i| fs::write(at(&format!("d/{i:04}")), "").unwrap());
    let root = Root::open(top.path()).unwrap();
    let index = Index::in_memory().unwrap();
    let mut first = look(top.path());
    read_all(&root, &mut first);
    index.write(1, |writer| first.pending.iter().try_for_each(|p| writer.upsert(&p.row))).unwrap();
    fs::write(at("d/0007"), "changed").unwrap();
    fs::remove_file(at("d/0008")).unwrap();
    fs::remove_file(at("d/4999")).unwrap();
    let filter = Filter::new(&[]).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    // Told of all that comes meanwhile, or not.
    let options = [false, true].map(|is_watched| SurveyOptions { is_watched, ..plain(&filter) });
    let looks: Vec<Survey> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = fs::write(at("d/passing"), "x").and_then(|()| fs::remove_file(at("d/passing")));
            }
        });
        // Whoever runs beside this may leave it at rest for a while.
        let looks = (0..1000).filter_map(|turn| {
            let look = survey(&root, &index, &options[turn % 2], &|_| ControlFlow::Continue(()), &mut |_, _| {});
            let mut found = look.ok().filter(|found| !found.restless.is_empty())?;
            read_all(&root, &mut found);
            Some(found)
        });
        let looks = looks.take(8).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        looks
    });
    assert_eq!(looks.len(), 8, "it was at rest");
    let passing = |path: &RelPath| path.as_bytes() == b"d/passing";
    for found in looks {
        let held = || found.failures.iter().map(|failure| &failure.path);
        let gone = || found.gone.iter().map(|row| &row.path);
        let (unsure, none) =
            if found.is_watched { (gone().collect(), held().count()) } else { (held().collect(), gone().count()) };
        let unsure: Vec<&RelPath> = unsure;
        let unsure: Vec<&[u8]> = unsure.into_iter().filter(|path| !passing(path)).map(RelPath::as_bytes).collect();
        assert_eq!(unsure, [&b"d/0008"[..], b"d/4999"]);
        assert!(none == 0 && found.vanished.is_empty(), "{:?} {:?} {:?}", found.failures, found.gone, found.vanished);
        let changed = found.pending.iter().find(|p| p.row.path.as_bytes() == b"d/0007").unwrap();
        assert_eq!(changed.row.entry.content().unwrap().1, Digest::of(b"changed"));
        let others =
            found.pending.iter().filter(|p| !["", "d", "d/0007", "d/passing"].contains(&&*p.row.path.display()));
        assert_eq!(others.count(), 0);
        let is_seen = found.pending.iter().map(|p| &p.row.path).chain(held()).any(passing);
        assert_eq!(found.entries, 1 + 1 + 4998 + u64::from(is_seen));
    }
}

/// A name that changes again and again waits longer than what it holds.
#[test]
fn what_is_in_a_new_directory_is_found_with_all_directories_above_it() {
    let top = tempfile::tempdir().unwrap();
    let index = Index::in_memory().unwrap();
    let first = look(top.path());
    let last = LastLook::of(&first).unwrap();
    index.write(1, |writer| first.pending.iter().try_for_each(|p| writer.upsert(&p.row))).unwrap();
    fs::create_dir_all(top.path().join("a/b/c")).unwrap();
    fs::write(top.path().join("a/b/c/x"), "x").unwrap();
    let root = Root::open(top.path()).unwrap();
    let filter = Filter::new(&[]).unwrap();
    let options = plain(&filter);
    let names = Names { whole: BTreeSet::from([RelPath::new("a/b/c/x").unwrap()]), ..Names::default() };
    let found = survey_names(&root, &index, &options, &last, &names).unwrap().unwrap();
    let paths: Vec<_> = found.pending.iter().map(|p| p.row.path.as_bytes()).collect();
    assert_eq!(paths, [&b""[..], b"a", b"a/b", b"a/b/c", b"a/b/c/x"]);
}

#[test]
fn what_single_names_cannot_tell_takes_a_look_at_all() {
    let top = tempfile::tempdir().unwrap();
    fs::write(top.path().join("a"), "a").unwrap();
    fs::hard_link(top.path().join("a"), top.path().join("b")).unwrap();
    fs::write(top.path().join("c"), "c").unwrap();
    fs::create_dir(top.path().join("e")).unwrap();
    fs::write(top.path().join("e/first"), "e").unwrap();
    fs::hard_link(top.path().join("e/first"), top.path().join("f")).unwrap();
    let root = Root::open(top.path()).unwrap();
    let index = Index::in_memory().unwrap();
    let filter = Filter::new(&[]).unwrap();
    let mut first = look(top.path());
    let last = LastLook::of(&first).unwrap();
    read_all(&root, &mut first);
    index.write(1, |writer| first.pending.iter().try_for_each(|p| writer.upsert(&p.row))).unwrap();
    let options = plain(&filter);
    let names = |name: &str| Names { whole: BTreeSet::from([RelPath::new(name).unwrap()]), ..Names::default() };
    let looked = |name: &str| survey_names(&root, &index, &options, &last, &names(name)).unwrap().is_some();
    assert!(looked("c") && !looked("a"));
    // The other name is alone now, and its row does not tell so.
    fs::remove_file(top.path().join("a")).unwrap();
    assert!(!looked("a"));
    fs::remove_dir_all(top.path().join("e")).unwrap();
    assert!(!looked("e"));
    fs::hard_link(top.path().join("c"), top.path().join("d")).unwrap();
    assert!(!looked("d") && !looked(crate::path::STAGING_NAME));
}

/// Only the second name shows what was written between the looks at both: the content of the first is not its content.
#[test]
fn a_file_written_between_the_looks_at_its_names_is_known_by_none_of_its_old_contents() {
    let top = tempfile::tempdir().unwrap();
    fs::write(top.path().join("a"), "old").unwrap();
    // As many as it takes until the look tells how far it is.
    (0..2048).for_each(|i| fs::write(top.path().join(format!("b{i:04}")), "").unwrap());
    // More directories than are listed ahead of the walk, which looks at each as a whole.
    (0..100).for_each(|i| fs::create_dir(top.path().join(format!("c{i:02}"))).unwrap());
    fs::create_dir(top.path().join("d")).unwrap();
    fs::hard_link(top.path().join("a"), top.path().join("d/a")).unwrap();
    let root = Root::open(top.path()).unwrap();
    let index = Index::in_memory().unwrap();
    let filter = Filter::new(&[]).unwrap();
    let options = plain(&filter);
    let mut first = look(top.path());
    read_all(&root, &mut first);
    assert_eq!(first.torn, []);
    index.write(1, |writer| first.pending.iter().try_for_each(|p| writer.upsert(&p.row))).unwrap();

    let write = |entries| {
        if entries > 1 {
            fs::write(top.path().join("a"), "new").unwrap();
        }
        ControlFlow::Continue(())
    };
    let mut torn = survey(&root, &index, &options, &write, &mut |_, _| {}).unwrap();
    read_all(&root, &mut torn);
    assert!(torn.torn.iter().all(|path| path.as_bytes() == b"d/a") && !torn.torn.is_empty());
    assert!(!torn.pending.iter().any(|pending| pending.row.path.as_bytes() == b"d/a"), "{:?}", torn.pending);
    assert_eq!(torn.failures.iter().map(|failure| failure.path.as_bytes()).collect::<Vec<_>>(), [b"d/a"]);

    let again = |_| ControlFlow::Continue(());
    let mut rest = survey(&root, &index, &options, &again, &mut |_, _| {}).unwrap();
    read_all(&root, &mut rest);
    torn.torn.extend([RelPath::new("x").unwrap(), RelPath::new("x").unwrap()]);
    torn.hold_what_is_torn();
    let held: Vec<_> = torn.failures.iter().map(|failure| failure.path.as_bytes()).collect();
    assert_eq!(held, [&b"d/a"[..], b"x"], "each once");
    let digests: Vec<_> = rest.pending.iter().filter_map(|p| p.row.entry.content()).collect();
    assert!(rest.torn.is_empty() && digests == vec![(3, Digest::of(b"new")); 2], "{:?}", rest.pending);
}

/// Of what is in it nobody tells when it is closed, and then it is not only the mode that changed.
#[test]
fn a_directory_that_is_closed_takes_a_look_at_all() {
    use std::os::unix::fs::PermissionsExt as _;
    let top = tempfile::tempdir().unwrap();
    fs::create_dir(top.path().join("d")).unwrap();
    fs::write(top.path().join("d/f"), "f").unwrap();
    let nobody = Some(65534);
    for path in ["", "d", "d/f"] {
        std::os::unix::fs::chown(top.path().join(path), nobody, nobody).unwrap_or_default();
    }
    let root = Root::open(top.path()).unwrap();
    let index = Index::in_memory().unwrap();
    let mut first = look(top.path());
    let last = LastLook::of(&first).unwrap();
    read_all(&root, &mut first);
    index.write(1, |writer| first.pending.iter().try_for_each(|p| writer.upsert(&p.row))).unwrap();
    let filter = Filter::new(&[]).unwrap();
    let options = plain(&filter);
    let names = Names { alone: BTreeSet::from([RelPath::new("d").unwrap()]), ..Names::default() };
    let looked = || survey_names(&root, &index, &options, &last, &names).unwrap().is_some();
    for (mode, is_enough) in [(0o700, true), (0o000, false), (0o300, false), (0o600, false), (0o500, true)] {
        fs::set_permissions(top.path().join("d"), fs::Permissions::from_mode(mode)).unwrap();
        std::thread::scope(|scope| {
            let look = || {
                if rustix::process::geteuid().is_root() {
                    // Of this thread alone, and for good.
                    let (uid, gid) = (rustix::process::Uid::from_raw(65534), rustix::process::Gid::from_raw(65534));
                    rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
                    rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                }
                assert_eq!(looked(), is_enough, "{mode:o}");
            };
            scope.spawn(look).join().unwrap();
        });
    }
}
