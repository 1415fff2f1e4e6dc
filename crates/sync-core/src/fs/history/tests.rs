use super::*;
use crate::chunk::noise;

const K: usize = 1 << 10;
const M: u64 = 1 << 20;

fn open(dir: &tempfile::TempDir, most: u64) -> History {
    History::open(dir.path().join("history"), most).unwrap()
}

/// A content of its own for each number.
fn content(number: u64) -> Vec<u8> {
    noise(10 * K, number)
}

fn put(history: &History, numbers: impl IntoIterator<Item = u64>) {
    numbers.into_iter().for_each(|number| history.put(Digest::of(&content(number)), &content(number)));
}

fn has(history: &History, number: u64) -> bool {
    let kept = history.find(Digest::of(&content(number)).prefix());
    kept.is_some_and(|kept| kept.read() == Some(content(number)) && kept.verify(&mut |_| {}))
}

fn current(numbers: impl IntoIterator<Item = u64>) -> HashSet<u64> {
    numbers.into_iter().map(|number| Digest::of(&content(number)).prefix()).collect()
}

fn on_disk(dir: &tempfile::TempDir) -> u64 {
    let items = fs::read_dir(dir.path().join("history")).unwrap();
    items.map(|item| item.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn what_is_put_in_is_there_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(&dir, M);
    assert!(history.was_empty());
    put(&history, 1..20);
    history.finish(HashSet::default);
    drop(history);
    let history = open(&dir, M);
    assert!(!history.was_empty() && (1..20).all(|number| has(&history, number)) && !has(&history, 20));
    assert!(!history.wants(&Digest::of(&content(3)), 10 * K as u64));
}

#[test]
fn small_and_very_large_contents_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(&dir, M);
    let sizes = [0, 1023, 1024, 256 * K, 256 * K + 1];
    for size in sizes {
        history.put(Digest::of(&noise(size, 77)), &noise(size, 77));
    }
    history.finish(HashSet::default);
    let kept = sizes.map(|size| history.find(Digest::of(&noise(size, 77)).prefix()).is_some());
    assert_eq!(kept, [false, false, true, true, false]);
}

#[test]
fn it_keeps_within_its_bound_and_first_loses_what_no_file_has() {
    let dir = tempfile::tempdir().unwrap();
    // Forty contents of ten kilobytes, then thirty of them replaced, five at a time.
    let mut now: Vec<u64> = (1..=40).collect();
    let history = open(&dir, M);
    put(&history, now.clone());
    history.finish(|| current(now.clone()));
    drop(history);
    let mut next = 41;
    for _ in 0..30 {
        let history = open(&dir, M);
        for place in &mut now[..5] {
            *place = next;
            put(&history, [next]);
            next += 1;
        }
        history.finish(|| current(now.clone()));
        assert!(on_disk(&dir) <= M, "{}", on_disk(&dir));
        assert!(now.iter().all(|number| has(&history, *number)), "what files have stays");
    }
    let history = open(&dir, M);
    assert!(!has(&history, 1) && has(&history, next - 1) && has(&history, next - 6), "the oldest is gone first");
}

#[test]
fn a_source_larger_than_the_store_leaves_what_came_last() {
    let dir = tempfile::tempdir().unwrap();
    for begin in [1, 91, 181] {
        let history = open(&dir, M);
        put(&history, begin..begin + 90);
        history.finish(|| current(1..271));
        assert!(on_disk(&dir) <= M);
    }
    let history = open(&dir, M);
    assert!(!has(&history, 1) && has(&history, 270));
}

#[test]
fn damage_costs_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(&dir, M);
    put(&history, 1..=30);
    history.finish(HashSet::default);
    drop(history);
    let mut packs: Vec<PathBuf> =
        fs::read_dir(dir.path().join("history")).unwrap().map(|item| item.unwrap().path()).collect();
    packs.sort();
    assert!(packs.len() > 3);
    // One byte of a content, a table, and a pack cut short.
    let flip = |path: &Path, at: u64| {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    flip(&packs[0], 5);
    flip(&packs[1], fs::metadata(&packs[1]).unwrap().len() - 60);
    let short = OpenOptions::new().write(true).open(&packs[2]).unwrap();
    short.set_len(5000).unwrap();
    fs::write(dir.path().join("history/writing"), b"half a pack").unwrap();
    let history = open(&dir, M);
    let damaged = history.find(Digest::of(&content(1)).prefix()).unwrap();
    assert!(damaged.read().is_none() && !damaged.verify(&mut |_| {}));
    assert!(has(&history, 2) && has(&history, 30));
    assert!((1..=30).filter(|number| has(&history, *number)).count() < 30 - 2 * 5);
    assert!(!packs[1].exists() && !packs[2].exists() && !dir.path().join("history/writing").exists());
}

#[test]
fn a_store_that_cannot_be_written_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(&dir, M);
    fs::remove_dir_all(dir.path().join("history")).unwrap();
    put(&history, 1..200);
    history.finish(HashSet::default);
    assert!(!has(&history, 1) && !history.wants(&Digest::of(&content(1)), 10 * K as u64));
}
