//! How long many small files take; run by hand: `cargo test --release -p sync-core --lib speed -- --ignored --nocapture`.

use super::*;

#[test]
#[ignore = "a measurement, not a test"]
fn forty_thousand_small_files() {
    let place = std::env::var_os("SPEED_DIR").unwrap_or_else(|| "/dev/shm".into());
    let bed = Bed::at(tempfile::tempdir_in(place).unwrap());
    let mut want = Vec::new();
    let bytes = vec![b'x'; 3000];
    for d in 0..430 {
        let dir = path(&format!("d{d:04}"));
        want.push((dir.clone(), None));
        for f in 0..100u32 {
            let mut bytes = bytes.clone();
            bytes.extend_from_slice(format!("{d} {f}").as_bytes());
            want.push((dir.join(format!("file{f:03}").as_bytes()).unwrap(), Some(bytes)));
        }
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let xattrs = Box::default();
    let entry = |kind| Entry { kind, mode: 0o644, uid, gid, mtime: Time { sec: 1, nsec: 1 }, xattrs, link: None };
    let entries: Vec<Step> = want
        .iter()
        .map(|(path, bytes)| {
            let (kind, action, mode) = match bytes {
                None => (Kind::Dir, Action::MakeDir, 0o755),
                Some(b) => (Kind::File { size: b.len() as u64, digest: Digest::of(b) }, Action::Content, 0o644),
            };
            let new = Some(Box::new(Entry { mode, ..entry.clone()(kind) }));
            Step { path: path.clone(), old: None, new, action }
        })
        .collect();
    let have = bed.replica();
    let start = std::time::Instant::now();
    let lap = |what: &str| eprintln!("{:8.1} ms {what}", start.elapsed().as_secs_f64() * 1000.0);
    let staging = bed.staging();
    for (step, (_, bytes)) in entries.iter().zip(&want) {
        if let (Some(bytes), Some((_, digest))) = (bytes, step.new.as_deref().unwrap().content()) {
            staging.store(&digest, bytes, &step.path, None).unwrap();
        }
    }
    lap("stored");
    let mut publisher = Publisher::new(Arc::clone(&staging), entries, Box::new(Index(have)));
    publisher.prepare();
    lap("prepared");
    staging.flush().unwrap();
    lap("flushed");
    publisher.publish();
    lap("published");
    staging.flush().unwrap();
    lap("flushed again");
    let seen = publisher.observe();
    lap("observed");
    assert_eq!((seen.len(), publisher.take_failures().len()), (430 * 101 + 1, 0));
}
