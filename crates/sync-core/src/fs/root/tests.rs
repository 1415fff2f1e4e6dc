use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn identity(root: &Root, fd: impl AsFd) -> (u64, u64) {
    root.stat_fd(fd).unwrap().identity()
}

#[test]
fn opened_through_a_link_and_noticed_when_replaced() {
    let top = tempfile::tempdir().unwrap();
    let (real, link) = (top.path().join("real"), top.path().join("link"));
    fs::create_dir(&real).unwrap();
    symlink(&real, &link).unwrap();
    let root = Root::open(&link).unwrap();
    assert!(root.still_there());
    assert_eq!(root.identity(), Root::open(&real).unwrap().identity());
    fs::rename(&real, top.path().join("moved")).unwrap();
    assert!(!root.still_there());
    fs::create_dir(&real).unwrap();
    assert!(!root.still_there());
    fs::write(top.path().join("file"), "").unwrap();
    assert_eq!(Root::open(&top.path().join("file")).unwrap_err().raw_os_error(), Some(Errno::NOTDIR.raw_os_error()));
}

#[test]
fn one_lock_for_one_inode() {
    let top = tempfile::tempdir().unwrap();
    let (one, two) = (Root::open(top.path()).unwrap(), Root::open(top.path()).unwrap());
    let lock = one.lock().unwrap();
    assert!(lock.is_some());
    assert!(two.lock().unwrap().is_none() && one.lock().unwrap().is_none());
    drop(lock);
    assert!(two.lock().unwrap().is_some());
}

#[test]
fn nothing_outside_is_reached() {
    let top = tempfile::tempdir().unwrap();
    let root_dir = top.path().join("root");
    fs::create_dir_all(root_dir.join("a/b")).unwrap();
    fs::create_dir_all(top.path().join("outside/b")).unwrap();
    symlink("../outside", root_dir.join("out")).unwrap();
    symlink("a", root_dir.join("inner")).unwrap();
    symlink("/proc/self/root", root_dir.join("magic")).unwrap();
    fs::write(root_dir.join("file"), "").unwrap();
    let root = Root::open(&root_dir).unwrap();
    for stepwise in [false, true] {
        root.stepwise.store(stepwise, Ordering::Relaxed);
        root.forget(&RelPath::root());
        let fd = root.dir(&path("a/b")).unwrap();
        assert_eq!(identity(&root, &*fd), root.stat(&path("a/b")).unwrap().unwrap().identity());
        for bad in ["out", "out/b", "inner", "inner/b", "magic", "magic/etc", "file", "file/x", "none", "none/x"] {
            let error = root.dir(&path(bad)).unwrap_err();
            assert!(error.is_gone(), "{bad}: {error}");
            assert_eq!(error.path, path(bad));
        }
        assert_eq!(root.stat(&path("out/b")).unwrap(), None);
        assert_eq!(root.stat(&path("out")).unwrap().unwrap().kind, crate::fs::FileType::Symlink);
        assert!(root.stat(&RelPath::root()).unwrap().unwrap().is_dir());
    }
}

#[test]
fn the_cache_is_bounded_and_can_be_told_to_forget() {
    let top = tempfile::tempdir().unwrap();
    for i in 0..CACHED * 2 {
        fs::create_dir_all(top.path().join(format!("{i}/x"))).unwrap();
    }
    let root = Root::open(top.path()).unwrap();
    let first = identity(&root, &*root.dir(&path("0")).unwrap());
    for i in 1..CACHED * 2 {
        root.dir(&path(&format!("{i}/x"))).unwrap();
        // Used again and again, it is never the oldest.
        root.dir(&path("0")).unwrap();
    }
    assert_eq!(root.cache().dirs.len(), CACHED);
    assert!(root.cache().find(&path("0")).is_some() && root.cache().find(&path("1/x")).is_none());
    fs::rename(top.path().join("0"), top.path().join("moved")).unwrap();
    fs::create_dir(top.path().join("0")).unwrap();
    assert_eq!(identity(&root, &*root.dir(&path("0")).unwrap()), first, "cached");
    assert_ne!(identity(&root, &*root.dir_now(&path("0")).unwrap()), first, "past the cache");
    assert_ne!(identity(&root, &*root.dir(&path("0")).unwrap()), first, "and cached then");
    root.dir(&path("255/x")).unwrap();
    root.forget(&path("255"));
    assert!(root.cache().find(&path("255/x")).is_none() && root.cache().find(&path("0")).is_some());
}

#[test]
fn pieces_are_whole_names_that_the_kernel_accepts() {
    for len in [1, 7, 254, 255] {
        let long = vec!["n".repeat(len); 12_000 / (len + 1)].join("/");
        let (mut rest, mut joined) = (long.as_bytes(), Vec::new());
        while !rest.is_empty() {
            let (piece, left) = cut(rest);
            assert!(!piece.is_empty() && piece.len() <= PIECE);
            joined.push(piece);
            rest = left;
        }
        assert_eq!(joined.join(&b'/'), long.as_bytes(), "{len}");
    }
}
