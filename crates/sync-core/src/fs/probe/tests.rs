use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, Mode, XattrFlags, lsetxattr, makedev, mknodat};

use super::*;
use crate::fs::{Reserved, ScanOptions, Scanned, scan};

fn probe_all(top: &Path) -> Vec<(String, Entry)> {
    let root = Root::open(top).unwrap();
    let filter = crate::filter::Filter::new(&[]).unwrap();
    let options =
        ScanOptions { filter: &filter, one_file_system: false, leave_out: Vec::new(), reserved: Reserved::Hold };
    let mut found = Vec::new();
    let end = scan::<()>(&root, &options, &mut |scanned| {
        let Scanned::Entry(seen) = scanned else { panic!("{scanned:?}") };
        let entry = probe(&root, &seen).unwrap();
        entry.validate().unwrap();
        found.push((seen.path().display(), entry));
        ControlFlow::Continue(())
    });
    assert!(end.unwrap().is_continue());
    found
}

#[test]
fn every_kind_with_its_xattrs() {
    let top = tempfile::tempdir().unwrap();
    let at = |name: &str| top.path().join(name);
    fs::write(at("file"), "abc").unwrap();
    symlink("no\u{e9}where/..", at("link")).unwrap();
    mknodat(CWD, at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    mknodat(CWD, at("sock"), FileType::Socket, Mode::from_raw_mode(0o600), 0).unwrap();
    mknodat(CWD, at("zero"), FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, 5)).unwrap();
    mknodat(CWD, at("zblk"), FileType::BlockDevice, Mode::from_raw_mode(0o600), makedev(7, 999)).unwrap();
    let long = vec![7; 3000];
    lsetxattr(at("file"), "user.z", b"", XattrFlags::empty()).unwrap();
    lsetxattr(at("file"), "user.a", &long, XattrFlags::empty()).unwrap();
    for name in ["link", "pipe", "sock", "zero", "zblk"] {
        lsetxattr(at(name), "trusted.t", name.as_bytes(), XattrFlags::empty()).unwrap();
    }
    let mut found = probe_all(top.path());
    assert_eq!(found.remove(0).1.kind, Kind::Dir);
    let kinds: Vec<_> = found.iter().map(|(name, entry)| (&**name, entry.kind.clone())).collect();
    assert_eq!(
        kinds,
        [
            ("file", Kind::File { size: 3, digest: Digest::empty() }),
            ("link", Kind::Symlink { target: "no\u{e9}where/..".as_bytes().into() }),
            ("pipe", Kind::Fifo),
            ("sock", Kind::Socket),
            ("zblk", Kind::BlockDev { major: 7, minor: 999 }),
            ("zero", Kind::CharDev { major: 1, minor: 5 }),
        ]
    );
    let names: Vec<_> = found[0].1.xattrs.iter().map(|(name, value)| (&**name, value.len())).collect();
    assert_eq!(names, [(&b"user.a"[..], 3000), (b"user.z", 0)]);
    for (name, entry) in &found[1..] {
        assert_eq!(*entry.xattrs, [(b"trusted.t"[..].into(), name.as_bytes().into())], "{name}");
    }
    assert_eq!(found[1].1.mode, 0o777);
    assert_eq!(found[2].1.mode & 0o777, 0o640 & !umask());
}

/// The mask that the process makes files with, without changing it for the other tests.
fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
    u32::from_str_radix(line.trim(), 8).unwrap()
}

#[test]
fn acls_are_xattrs() {
    let top = tempfile::tempdir().unwrap();
    // Version 2, then: owner rwx, user 1000 r, group r, mask r, others none (linux/posix_acl_xattr.h).
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1u16, 7u16, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    if lsetxattr(top.path(), "system.posix_acl_default", &acl, XattrFlags::empty()).is_err() {
        eprintln!("SKIPPED: acls_are_xattrs: no ACLs on {}", top.path().display());
        return;
    }
    let found = probe_all(top.path());
    assert_eq!(*found[0].1.xattrs, [(b"system.posix_acl_default"[..].into(), acl[..].into())]);
}

#[test]
fn what_changed_is_noticed() {
    let top = tempfile::tempdir().unwrap();
    let root = Root::open(top.path()).unwrap();
    let path = RelPath::new("x").unwrap();
    let probe_seen = |stat: &Stat| probe_at(&root, &path, root.fd(), c"x", stat);
    symlink("one", top.path().join("x")).unwrap();
    let seen = root.stat(&path).unwrap().unwrap();
    assert!(probe_seen(&seen).is_ok());
    fs::remove_file(top.path().join("x")).unwrap();
    assert!(matches!(probe_seen(&seen), Err(ReadError::Changed)));
    symlink("two", top.path().join("x")).unwrap();
    assert!(matches!(probe_seen(&seen), Err(ReadError::Changed)));
    fs::remove_file(top.path().join("x")).unwrap();
    fs::write(top.path().join("x"), "").unwrap();
    assert!(matches!(probe_seen(&seen), Err(ReadError::Changed)));
}
