//! Other file systems below the top: each staged on its own, and what does not fit fails alone.

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;

/// A tmpfs for the time of a test.
struct Mounted(PathBuf);

impl Mounted {
    fn new(at: PathBuf, options: &str) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).ok()?;
        Some(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_mount_below_the_top_is_staged_on_its_own() {
    let bed = Bed::new();
    let Some(_mounted) = Mounted::new(bed.dst("m"), "size=1m,mode=755") else {
        return skip("a_mount_below_the_top_is_staged_on_its_own", "may not mount");
    };
    Bed::write(|n| bed.src(n), &[("a", "1"), ("m/a", "1"), ("m/d/e/b", "2"), ("m/same", "1"), ("n", "1")]);
    bed.push(&[]);
    assert!(!bed.dst("m").join(STAGING_NAME).exists());
    // A move across the mount is a copy.
    fs::remove_file(bed.src("a")).unwrap();
    Bed::write(|n| bed.src(n), &[("m/moved", "1")]);
    bed.push(&[("m/moved", "a")]);
    // So is a hard link across it, which counts as refused.
    fs::hard_link(bed.src("n"), bed.src("m/link")).unwrap();
    let have = bed.replica();
    let mut publisher = bed.publisher(&[]);
    let seen = run(&mut publisher);
    assert!(publisher.take_failures().is_empty());
    let link = seen.iter().find(|seen| seen.path == path("n")).unwrap();
    assert_eq!(link.refused, Refused::LINK, "{seen:?}");
    assert_eq!(fs::read(bed.dst("m/link")).unwrap(), fs::read(bed.dst("n")).unwrap());
    drop(have);
}

#[test]
fn a_mount_point_is_not_removed() {
    let bed = Bed::new();
    let Some(_mounted) = Mounted::new(bed.dst("m"), "size=1m") else {
        return skip("a_mount_point_is_not_removed", "may not mount");
    };
    Bed::write(|n| bed.dst(n), &[("m/a", "1")]);
    Bed::write(|n| bed.src(n), &[("b", "1")]);
    let mut publisher = bed.publisher(&[]);
    run(&mut publisher);
    let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].starts_with("cannot delete m: ") && failures[0].contains("busy"), "{failures:?}");
    assert_eq!(fs::read(bed.dst("b")).unwrap(), b"1");
}

#[test]
fn a_full_disk_fails_what_does_not_fit() {
    let bed = Bed::new();
    let Some(_mounted) = Mounted::new(bed.dst("m"), "size=400k,mode=755") else {
        return skip("a_full_disk_fails_what_does_not_fit", "may not mount");
    };
    fs::create_dir(bed.src("m")).unwrap();
    fs::write(bed.dst("m/big"), "old").unwrap();
    for name in ["m/big", "b"] {
        fs::write(bed.src(name), vec![1; 600_000]).unwrap();
    }
    fs::write(bed.src("m/small"), "small").unwrap();
    let have = bed.replica();
    let steps = plan(&bed.source(), &have, &[]);
    let staging = bed.staging();
    let mut full = 0;
    // One content for two names: near the first in the plan, `b`, it fits; on the mount its copy does not.
    for name in ["b", "m/small"] {
        let bytes = fs::read(bed.src(name)).unwrap();
        staging.store(&Digest::of(&bytes), &bytes, &path(name), None).unwrap();
    }
    let other = vec![2; 600_000];
    match staging.store(&Digest::of(&other), &other, &path("m/big"), None) {
        Err(crate::fs::IncomingError::Fs(error)) => {
            assert_eq!(error.errno(), Some(rustix::io::Errno::NOSPC));
            full += 1;
        }
        other => panic!("{other:?}"),
    }
    let mut publisher = Publisher::new(staging, steps, Box::new(Index(have)));
    run(&mut publisher);
    let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
    assert_eq!((failures.len(), full), (1, 1), "{failures:?}");
    assert!(failures[0].starts_with("cannot stage m/big: No space left"), "{failures:?}");
    assert_eq!(fs::read(bed.dst("m/big")).unwrap(), b"old");
    assert_eq!(fs::read(bed.dst("m/small")).unwrap(), b"small");
    assert_eq!(fs::read(bed.dst("b")).unwrap().len(), 600_000);
}

#[test]
fn a_big_file_that_does_not_fit_takes_the_room_of_nothing_else() {
    let bed = Bed::new();
    let Some(_mounted) = Mounted::new(bed.dst("m"), "size=2m,mode=755") else {
        return skip("a_big_file_that_does_not_fit_takes_the_room_of_nothing_else", "may not mount");
    };
    let staging = bed.staging();
    let digest = Digest::of(b"never whole");
    let mut big = staging.begin(&digest, crate::fs::PART_MIN + 1, &path("m/big")).unwrap().unwrap();
    big.write(&vec![1; 3 << 19]).unwrap();
    let refused = big.write(&vec![1; 3 << 19]).unwrap_err().to_string();
    assert!(refused.contains("No space left"), "{refused}");
    drop(big);
    staging.store(&Digest::of(&[2; 1 << 20]), &[2; 1 << 20], &path("m/other"), None).unwrap();
    staging.keep_parts();
    assert_eq!(fs::read_dir(bed.dst("m")).unwrap().count(), 0);
}

#[test]
fn a_read_only_mount_fails_by_name() {
    let bed = Bed::new();
    let Some(mounted) = Mounted::new(bed.dst("m"), "size=1m,mode=755") else {
        return skip("a_read_only_mount_fails_by_name", "may not mount");
    };
    Bed::write(|n| bed.dst(n), &[("m/a", "old")]);
    Bed::write(|n| bed.src(n), &[("m/a", "new"), ("b", "new")]);
    rustix::mount::mount_remount(&mounted.0, MountFlags::RDONLY, "").unwrap();
    let have = bed.replica();
    let steps = plan(&bed.source(), &have, &[]);
    let staging = bed.staging();
    let refused = staging.store(&Digest::of(b"new"), b"new", &path("m/a"), None).unwrap_err().to_string();
    assert!(refused.contains("read-only"), "{refused}");
    staging.store(&Digest::of(b"new"), b"new", &path("b"), None).unwrap();
    let mut publisher = Publisher::new(staging, steps, Box::new(Index(have)));
    run(&mut publisher);
    let failures: Vec<_> = publisher.take_failures().iter().map(ToString::to_string).collect();
    assert!(failures.iter().all(|text| text.contains(" m")), "{failures:?}");
    assert_eq!(fs::read(bed.dst("m/a")).unwrap(), b"old");
    assert_eq!(fs::read(bed.dst("b")).unwrap(), b"new");
}

#[test]
fn no_staging_directory_is_left_where_nothing_fits_into_it() {
    let name = "no_staging_directory_is_left_where_nothing_fits_into_it";
    let bed = Bed::new();
    // Room for the top, and one more inode.
    let Some(_mounted) = Mounted::new(bed.dst("m"), "size=1m,nr_inodes=2") else {
        return skip(name, "may not mount");
    };
    set_mtime(&bed.dst("m"), 5, 5);
    let staging = bed.staging();
    let refused = staging.store(&Digest::of(b"x"), b"x", &path("m/a"), None).unwrap_err().to_string();
    assert!(refused.contains("cannot write to m/"), "{refused}");
    staging.keep_parts();
    assert_eq!(fs::read_dir(bed.dst("m")).unwrap().count(), 0);
    assert_eq!(fs::metadata(bed.dst("m")).unwrap().mtime(), 5);
}
