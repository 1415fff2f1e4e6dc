//! Findings of a review.

use super::*;

fn store(staging: &Staging, at: &str, text: &str) {
    staging.store(&Digest::of(text.as_bytes()), text.as_bytes(), &path(at), None).unwrap();
}

fn push_with(bed: &Bed, staging: &Arc<Staging>) {
    let (want, have) = (bed.source(), bed.replica());
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
#[ignore = "takes long"]
fn a_very_deep_new_directory() {
    let bed = Bed::new();
    let deep = |n: usize| RelPath::new(vec!["a"; n].join("/")).unwrap();
    let depth: usize = std::env::var("DEPTH").unwrap().parse().unwrap();
    let staging = bed.staging();
    let now = std::time::Instant::now();
    staging.store(&Digest::of(b"x"), b"x", &deep(depth), None).unwrap();
    eprintln!("stored after {:?}", now.elapsed());
    staging.remove();
    eprintln!("removed after {:?}", now.elapsed());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    eprintln!("{}", status.lines().find(|l| l.starts_with("VmHWM")).unwrap());
    assert!(!bed.dst(STAGING_NAME).exists());
}

#[test]
fn a_file_that_is_linked_before_it_is_told() {
    let bed = Bed::new();
    Bed::write(|n| bed.src(n), &[("d/a", "one")]);
    fs::hard_link(bed.src("d/a"), bed.src("d/b")).unwrap();
    bed.push(&[]);
}
