//! Directories are flipped to links and back while a plan is carried out: nothing outside the top changes.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{RenameFlags, renameat_with};

use super::*;

/// What lies outside, as far as it can be seen: everything about each entry.
fn outside(bed: &Bed) -> Vec<(PathBuf, u32, i64, i64, u64, Vec<u8>)> {
    let mut all = Vec::new();
    let mut todo = vec![bed.top.path().join("outside")];
    while let Some(at) = todo.pop() {
        let meta = fs::symlink_metadata(&at).unwrap();
        let mut bytes = Vec::new();
        if meta.is_dir() {
            todo.extend(fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            bytes = fs::read(&at).unwrap();
        }
        all.push((at, meta.mode(), meta.ctime(), meta.ctime_nsec(), meta.ino(), bytes));
    }
    all.sort();
    all
}

/// Ends the flipping also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Publishes into a replica whose directory `d` somebody exchanges with a link to the outside, again and again; tells
/// how many steps failed for that.
fn one_round() -> usize {
    let bed = Bed::new();
    let out = bed.top.path().join("outside");
    for i in 0..12 {
        Bed::write(|n| out.join(n), &[(&format!("f{i}"), "precious"), (&format!("sub/g{i}"), "precious")]);
        Bed::write(|n| bed.dst(n), &[(&format!("d/f{i}"), "old"), (&format!("d/sub/g{i}"), "old")]);
        if i % 3 != 0 {
            Bed::write(|n| bed.src(n), &[(&format!("d/f{i}"), "old")]);
            mode(&bed.src(&format!("d/f{i}")), 0o600 + i % 8);
        }
        Bed::write(|n| bed.src(n), &[(&format!("d/new{i}/x"), "new"), (&format!("d/plain{i}"), "new")]);
    }
    symlink(&out, bed.dst("link")).unwrap();
    symlink(&out, bed.src("link")).unwrap();
    let before = outside(&bed);
    let mut publisher = bed.publisher(&[]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            // One exchange after the other: at every moment `d` is either the directory or a link to the outside.
            let (d, link) = (bed.dst("d"), bed.dst("link"));
            while !stop.load(Ordering::Relaxed) {
                let _ = renameat_with(CWD, &d, CWD, &link, RenameFlags::EXCHANGE);
            }
        });
        run(&mut publisher);
    });
    assert_eq!(outside(&bed), before);
    publisher.take_failures().len()
}

#[test]
fn flipping_directories_to_links_changes_nothing_outside() {
    let mut hit = 0;
    for _ in 0..40 {
        hit += usize::from(one_round() > 0);
    }
    assert!(hit > 0, "no flip ever came at the wrong moment: this test tested nothing");
}
