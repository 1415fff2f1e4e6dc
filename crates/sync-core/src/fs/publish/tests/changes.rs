//! Every kind of change, on trees where nobody interferes.

use super::*;

/// One of each kind that can be made here, by name.
const KINDS: [&str; 9] = ["none", "file", "dir", "full", "symlink", "fifo", "socket", "device", "linked"];

fn make(kind: &str, at: &Path, salt: &str) {
    match kind {
        "none" => return,
        "file" => fs::write(at, salt).unwrap(),
        "dir" => fs::create_dir(at).unwrap(),
        "full" => {
            fs::create_dir_all(at.join("sub")).unwrap();
            fs::write(at.join("sub/x"), salt).unwrap();
            fs::write(at.join("y"), salt).unwrap();
        }
        "symlink" => symlink(salt, at).unwrap(),
        "fifo" => mknodat(CWD, at, FileType::Fifo, Mode::RWXU, 0).unwrap(),
        "socket" => mknodat(CWD, at, FileType::Socket, Mode::RWXU, 0).unwrap(),
        "device" => mknodat(CWD, at, FileType::CharacterDevice, Mode::RWXU, rustix::fs::makedev(1, 3)).unwrap(),
        "linked" => {
            fs::write(at, salt).unwrap();
            fs::hard_link(at, at.with_extension("twin")).unwrap();
        }
        _ => unreachable!(),
    }
    set_mtime(at, 1_000_000_000, 5);
}

#[test]
fn every_kind_becomes_every_other() {
    for from in KINDS {
        for to in KINDS {
            if (from == "device" || to == "device") && !is_root() {
                skip("every_kind_becomes_every_other", "devices need root");
                continue;
            }
            let bed = Bed::new();
            make(from, &bed.dst("a"), "old");
            make(to, &bed.src("a"), "new and longer");
            bed.push(&[]);
            assert!(bed.push(&[]).is_empty(), "{from} to {to}: the second push finds something to do");
        }
    }
}

#[test]
fn new_files_are_proven_and_keep_their_times() {
    let bed = Bed::new();
    Bed::write(|n| bed.src(n), &[("a", "1"), ("d/b", "2"), ("d/e/c", ""), ("z", "same"), ("y", "same")]);
    for (name, sec, nsec) in [("a", 1, 999_999_999), ("d/b", -1_000_000_000, 1), ("d/e/c", 4_000_000_000, 7)] {
        set_mtime(&bed.src(name), sec, nsec);
    }
    for name in ["z", "y", "d/e", "d", ""] {
        set_mtime(&bed.src(name), 1_234_567_890, 123_456_789);
    }
    let seen = bed.push(&[]);
    assert_eq!(seen.len(), 8);
    assert!(seen.iter().all(|seen| seen.proven && seen.refused.is_empty()), "{seen:?}");
    assert!(!bed.dst(STAGING_NAME).exists());
}

#[test]
fn the_top_may_be_unknown_and_made() {
    let bed = Bed::new();
    Bed::write(|n| bed.src(n), &[("a", "1")]);
    mode(&bed.src(""), 0o711);
    set_mtime(&bed.src(""), 11, 11);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(bed.dst(""), "user.stale", b"x", flags).unwrap();
    let want = bed.source();
    let mut publisher = bed.publisher_of(&want, Tree::new(), &[]);
    assert_eq!(publisher.steps[0].action, Action::MakeDir);
    run(&mut publisher);
    assert!(publisher.take_failures().is_empty());
    compare(&want, &bed.replica());
}

#[test]
fn swaps_and_rotations_move_inodes() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("a", "A"), ("b", "B"), ("d/c", "C"), ("gone/x", "X")]);
    let inodes: Vec<u64> =
        ["a", "b", "d/c", "gone/x"].iter().map(|n| fs::metadata(bed.dst(n)).unwrap().ino()).collect();
    Bed::write(|n| bed.src(n), &[("a", "B"), ("b", "C"), ("d/c", "A"), ("new/y", "X")]);
    for (from, to) in [("b", "a"), ("d/c", "b"), ("a", "d/c"), ("gone/x", "new/y")] {
        let mtime = fs::metadata(bed.dst(from)).unwrap();
        set_mtime(&bed.src(to), mtime.mtime(), mtime.mtime_nsec());
    }
    let seen = bed.push(&[("a", "b"), ("b", "d/c"), ("d/c", "a"), ("new/y", "gone/x")]);
    let now: Vec<u64> = ["d/c", "a", "b", "new/y"].iter().map(|n| fs::metadata(bed.dst(n)).unwrap().ino()).collect();
    assert_eq!(now, inodes);
    assert!(seen.iter().all(|seen| seen.proven));
}

#[test]
fn a_file_moves_beneath_its_own_name() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("a", "A"), ("d/x/y", "Y")]);
    Bed::write(|n| bed.src(n), &[("a/a", "A"), ("d", "Y")]);
    bed.push(&[("a/a", "a"), ("d", "d/x/y")]);
}

#[test]
fn a_move_may_change_metadata() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("a", "A")]);
    Bed::write(|n| bed.src(n), &[("b", "A")]);
    mode(&bed.src("b"), 0o4711);
    set_mtime(&bed.src("b"), 77, 7);
    let ino = fs::metadata(bed.dst("a")).unwrap().ino();
    bed.push(&[("b", "a")]);
    assert_eq!(fs::metadata(bed.dst("b")).unwrap().ino(), ino);
}

#[test]
fn hard_link_groups_split_merge_and_move() {
    let bed = Bed::new();
    Bed::write(|n| bed.dst(n), &[("a", "1"), ("s", "9"), ("x/f", "5")]);
    for (old, new) in [("a", "b"), ("a", "c"), ("x/f", "x/g")] {
        fs::hard_link(bed.dst(old), bed.dst(new)).unwrap();
    }
    Bed::write(|n| bed.src(n), &[("a", "1"), ("c", "2"), ("x/f", "5"), ("y/f", "9")]);
    // b leaves the group of a, c gets a content of its own, x/g goes, x/h comes, s moves to y/f and gets a twin.
    fs::write(bed.src("b"), "1").unwrap();
    for (old, new) in [("x/f", "x/h"), ("x/f", "e"), ("y/f", "y/g")] {
        fs::hard_link(bed.src(old), bed.src(new)).unwrap();
    }
    for name in ["a", "x/f"] {
        let meta = fs::metadata(bed.dst(name)).unwrap();
        set_mtime(&bed.src(name), meta.mtime(), meta.mtime_nsec());
    }
    bed.push(&[("y/f", "s")]);
    assert!(bed.push(&[]).is_empty());
}

#[test]
fn links_of_symlinks_and_fifos() {
    let bed = Bed::new();
    symlink("there", bed.src("l")).unwrap();
    mknodat(CWD, bed.src("p"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    for (old, new) in [("l", "m"), ("p", "q")] {
        fs::hard_link(bed.src(old), bed.src(new)).unwrap();
    }
    bed.push(&[]);
    // An unchanged first name gets another one: its row moves as well.
    fs::hard_link(bed.src("l"), bed.src("n")).unwrap();
    bed.push(&[]);
}

#[test]
fn metadata_alone_keeps_the_inode() {
    let bed = Bed::new();
    for side in [|bed: &Bed, n: &str| bed.src(n), |bed: &Bed, n: &str| bed.dst(n)] {
        Bed::write(|n| side(&bed, n), &[("a", "1"), ("d/b", "2")]);
        symlink("x", side(&bed, "l")).unwrap();
        fs::hard_link(side(&bed, "a"), side(&bed, "a2")).unwrap();
    }
    mode(&bed.src("a"), 0o6555);
    mode(&bed.src("d"), 0o1777);
    for name in ["a", "l", "d", "d/b"] {
        set_mtime(&bed.src(name), 5, 5);
    }
    if is_root() {
        for (name, uid, gid) in [("a", 1, 2), ("l", 3, 4), ("d", 5, 6), ("d/b", 7, 8)] {
            std::os::unix::fs::lchown(bed.src(name), Some(uid), Some(gid)).unwrap();
        }
        mode(&bed.src("a"), 0o6555);
        mode(&bed.src("d"), 0o1777);
    }
    let inodes = |bed: &Bed| ["a", "l", "d/b"].map(|n| fs::symlink_metadata(bed.dst(n)).unwrap().ino());
    let before = inodes(&bed);
    bed.push(&[]);
    assert_eq!(inodes(&bed), before);
    assert!(bed.push(&[]).is_empty());
}

/// `user::rw-,user:1234:rwx,group::r--,mask::rwx,other::---`, as the kernel stores it.
fn acl() -> Vec<u8> {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1u16, 6u16, u32::MAX), (2, 7, 1234), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

#[test]
fn xattrs_acls_capabilities_and_setid_stand_together() {
    if !is_root() {
        return skip("xattrs_acls_capabilities_and_setid_stand_together", "needs root");
    }
    let bed = Bed::new();
    Bed::write(|n| bed.src(n), &[("new", "1"), ("d/old", "2"), ("read", "3")]);
    Bed::write(|n| bed.dst(n), &[("d/old", "2"), ("read", "3")]);
    // cap_net_bind_service=ep
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for name in ["new", "d/old"] {
        let file = bed.src(name);
        std::os::unix::fs::chown(&file, Some(1000), Some(1001)).unwrap();
        let set = |name: &str, value: &[u8]| {
            rustix::fs::lsetxattr(&file, name, value, rustix::fs::XattrFlags::empty()).unwrap();
        };
        mode(&file, 0o6750);
        set("user.note", b"hello");
        set("trusted.empty", b"");
        set("system.posix_acl_access", &acl());
        mode(&file, 0o6770);
        set("security.capability", &capability);
        set_mtime(&file, 9, 9);
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(bed.src("d"), "system.posix_acl_default", &acl(), flags).unwrap();
    // Unwanted ones go.
    rustix::fs::setxattr(bed.dst("d"), "user.stale", b"x", flags).unwrap();
    rustix::fs::setxattr(bed.dst("read"), "system.posix_acl_access", &acl(), flags).unwrap();
    rustix::fs::setxattr(bed.dst(""), "system.posix_acl_default", &acl(), flags).unwrap();
    let seen = bed.push(&[]);
    assert!(seen.iter().all(|seen| seen.refused.is_empty()), "{seen:?}");
    // Again with another owner, which takes setid bits and capabilities away for the moment.
    std::os::unix::fs::chown(bed.src("d/old"), Some(1), Some(1)).unwrap();
    mode(&bed.src("d/old"), 0o6770);
    rustix::fs::setxattr(bed.src("d/old"), "security.capability", &capability, flags).unwrap();
    bed.push(&[]);
}

#[test]
fn zero_runs_become_holes() {
    let bed = Bed::new();
    let mut bytes = vec![0; 1 << 20];
    bytes[500_000] = 1;
    fs::write(bed.src("a"), &bytes).unwrap();
    fs::write(bed.src("b"), vec![0; 70_000]).unwrap();
    fs::write(bed.src("c"), &bytes).unwrap();
    bed.push(&[]);
    for name in ["a", "b", "c"] {
        assert!(fs::metadata(bed.dst(name)).unwrap().blocks() <= 16, "{name}");
    }
}

#[test]
fn copies_and_second_users_of_a_content() {
    let bed = Bed::new();
    let mut bytes = vec![7; 300_000];
    bytes[8192..100_000].fill(0);
    fs::write(bed.dst("old"), &bytes).unwrap();
    for name in ["old", "copy", "third"] {
        fs::write(bed.src(name), &bytes).unwrap();
    }
    let meta = fs::metadata(bed.dst("old")).unwrap();
    set_mtime(&bed.src("old"), meta.mtime(), meta.mtime_nsec());
    let (want, have) = (bed.source(), bed.replica());
    let mut steps = plan(&want, &have, &[]);
    for step in steps.iter_mut().filter(|step| step.action == Action::Content) {
        step.action = Action::Copy { from: path("old") };
    }
    let mut publisher = Publisher::new(bed.staging(), steps, Box::new(Index(have.clone())));
    let seen = run(&mut publisher);
    assert!(publisher.take_failures().is_empty());
    bed.check(have, &seen);
    assert!(fs::metadata(bed.dst("copy")).unwrap().blocks() * 512 < 250_000);
}

#[test]
fn names_are_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let bed = Bed::new();
    let names: [&[u8]; 4] = [b"-rf", b"a\nb", b"\xff\xfe", &[b'x'; 255]];
    let staging = bed.staging();
    let mut steps = Vec::new();
    for name in names {
        staging.store(&Digest::of(name), name, &RelPath::new(name).unwrap(), None).unwrap();
        let entry = Entry { kind: Kind::File { size: name.len() as u64, digest: Digest::of(name) }, ..blank(0o640) };
        let path = RelPath::new(name).unwrap();
        steps.push(Step { path, old: None, new: Some(Box::new(entry)), action: Action::Content });
    }
    steps.sort_by(|a, b| a.path.cmp(&b.path));
    let mut publisher = Publisher::new(staging, steps, Box::new(Index(bed.replica())));
    run(&mut publisher);
    assert!(publisher.take_failures().is_empty());
    for name in names {
        assert_eq!(fs::read(bed.dst("").join(std::ffi::OsStr::from_bytes(name))).unwrap(), name);
    }
}

fn blank(mode: u32) -> Entry {
    Entry {
        kind: Kind::Dir,
        mode,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: Time { sec: 1, nsec: 1 },
        xattrs: Box::default(),
        link: None,
    }
}

#[test]
fn deeper_than_path_max() {
    let bed = Bed::new();
    let staging = bed.staging();
    let mut steps = Vec::new();
    let mut at = RelPath::root();
    for _ in 0..60 {
        at = at.join(&[b'd'; 200]).unwrap();
        steps.push(Step { path: at.clone(), old: None, new: Some(Box::new(blank(0o755))), action: Action::MakeDir });
    }
    let file = at.join(b"f").unwrap();
    staging.store(&Digest::of(b"deep"), b"deep", &file, None).unwrap();
    let entry = Entry { kind: Kind::File { size: 4, digest: Digest::of(b"deep") }, ..blank(0o600) };
    steps.push(Step { path: file.clone(), old: None, new: Some(Box::new(entry)), action: Action::Content });
    let index = || Box::new(Index(Tree::new()));
    let mut publisher = Publisher::new(staging, steps.clone(), index());
    let seen = run(&mut publisher);
    assert!(publisher.take_failures().is_empty());
    let tuples: BTreeMap<_, _> = seen.into_iter().map(|seen| (seen.path, seen.tuple)).collect();
    // And away again.
    for step in &mut steps {
        let entry = *step.new.take().unwrap();
        let tuple = tuples[&step.path];
        let (path, refused) = (step.path.clone(), Refused::default());
        step.old = Some(Box::new(Row { path, entry, tuple, proven: true, refused, extra: false, mount: false }));
        step.action = Action::Delete;
    }
    let mut publisher = Publisher::new(bed.staging(), steps, index());
    run(&mut publisher);
    assert!(publisher.take_failures().is_empty());
    assert_eq!(fs::read_dir(bed.dst("")).unwrap().count(), 0);
}

mod random {
    use super::*;
    use proptest::prelude::*;

    /// A small tree as instructions: (name, kind), applied where they can be.
    fn instructions() -> impl Strategy<Value = Vec<(usize, usize, u8)>> {
        proptest::collection::vec((0..9usize, 0..KINDS.len() - 2, 0..4u8), 0..14)
    }

    const NAMES: [&str; 9] = ["a", "b", "c", "a/a", "a/b", "b/a", "b/b", "a/a/a", "b/a/b"];

    fn build(instructions: &[(usize, usize, u8)], at: impl Fn(&str) -> PathBuf) {
        for &(name, kind, salt) in instructions {
            let file = at(NAMES[name]);
            let has_parent = file.parent().unwrap().is_dir();
            if has_parent && fs::symlink_metadata(&file).is_err() {
                make(KINDS[kind], &file, &format!("content {salt}"));
                // Some files are links of an earlier one.
                if salt == 3 && KINDS[kind] == "file" && at("a").is_file() && NAMES[name] != "a" {
                    fs::remove_file(&file).unwrap();
                    fs::hard_link(at("a"), &file).unwrap();
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
        #[test]
        fn any_tree_becomes_any_other(old in instructions(), new in instructions()) {
            let bed = Bed::new();
            build(&old, |name| bed.dst(name));
            build(&new, |name| bed.src(name));
            bed.push(&[]);
            prop_assert!(bed.push(&[]).is_empty());
        }
    }
}

#[test]
fn a_group_gets_a_name_and_metadata_at_once() {
    let bed = Bed::new();
    for dir in ["src", "dst"] {
        Bed::write(|n| bed.top.path().join(dir).join(n), &[("a", "1"), ("b", "2"), ("z", "3")]);
    }
    fs::hard_link(bed.dst("b"), bed.dst("gone")).unwrap();
    for (name, link) in [("a", "a2"), ("b", "b2")] {
        fs::hard_link(bed.src(name), bed.src(link)).unwrap();
        mode(&bed.src(name), 0o640);
    }
    let inodes = || ["a", "b"].map(|name| fs::metadata(bed.dst(name)).unwrap().ino());
    let before = inodes();
    bed.push(&[]);
    assert_eq!(inodes(), before, "nothing is outside, so nothing needs a copy");
}

#[test]
fn a_name_outside_shows_although_one_inside_goes() {
    let bed = Bed::new();
    for dir in ["src", "dst"] {
        Bed::write(|n| bed.top.path().join(dir).join(n), &[("a", "1"), ("over", "1"), ("keep", "2")]);
    }
    let outside = bed.top.path().join("outside");
    fs::hard_link(bed.dst("a"), bed.dst("gone")).unwrap();
    fs::hard_link(bed.dst("a"), &outside).unwrap();
    mode(&outside, 0o604);
    mode(&bed.src("a"), 0o640);
    // The same with a name that something else replaces.
    let outside2 = bed.top.path().join("outside2");
    fs::hard_link(bed.dst("keep"), bed.dst("replaced")).unwrap();
    fs::hard_link(bed.dst("keep"), &outside2).unwrap();
    mode(&outside2, 0o604);
    mode(&bed.src("keep"), 0o640);
    fs::write(bed.src("replaced"), "new").unwrap();
    bed.push(&[]);
    for outside in [outside, outside2] {
        assert_eq!(fs::metadata(outside).unwrap().mode() & 0o7777, 0o604);
    }
}

#[test]
fn an_empty_file_is_made_without_content() {
    let bed = Bed::new();
    Bed::write(|n| bed.src(n), &[("new", ""), ("shorter", ""), ("was/a/dir", "")]);
    Bed::write(|n| bed.dst(n), &[("shorter", "longer"), ("was/a/dir/file", "x")]);
    mode(&bed.src("new"), 0o4751);
    set_mtime(&bed.src("new"), 7, 8);
    let have = bed.replica();
    let mut steps = plan(&bed.source(), &have, &[]);
    for step in steps.iter_mut().filter(|step| step.action == Action::Content) {
        step.action = Action::Make;
    }
    let mut publisher = Publisher::new(bed.staging(), steps, Box::new(Index(bed.replica())));
    let seen = run(&mut publisher);
    let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
    assert_eq!(failures, Vec::<String>::new());
    bed.check(have, &seen);
}

#[test]
fn a_file_with_content_is_not_made_of_nothing() {
    let bed = Bed::new();
    Bed::write(|n| bed.src(n), &[("a", "content")]);
    let have = bed.replica();
    let mut steps = plan(&bed.source(), &have, &[]);
    for step in steps.iter_mut().filter(|step| step.action == Action::Content) {
        step.action = Action::Make;
    }
    let mut publisher = Publisher::new(bed.staging(), steps, Box::new(Index(have)));
    run(&mut publisher);
    assert_eq!(publisher.take_failures().len(), 1);
    assert!(!bed.dst("a").exists());
}
