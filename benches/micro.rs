//! How fast the parts of a push are by themselves, each on one thread: so that what a change costs or wins shows before a whole push
//! can tell, whose time has many parts.
//!
//! ```text
//! cargo bench --bench micro -- [FILTER] [--max-time SECONDS]
//! ```
//!
//! Everything is made in memory and is the same in every run; only the index is a file, in the directory for temporary files
//! (`TMPDIR`), and nothing waits for a flush. Where an item is counted, it is one entry of a made tree, a file or a directory. What is
//! measured drifts with the machine: compare runs of one hour, and there the columns `fastest` and `median`.
//!
//! | group | what |
//! |---|---|
//! | `chunk` | a large file is cut, its chunks are listed; the same where the list of the file before an edit is followed; small files are cut into pieces |
//! | `hash` | the digest of contents, of entries, and of a tree from those of its entries |
//! | `diff` | the listings of a directory are compared |
//! | `plan` | from rows and changes to steps: a first push, other contents, a directory that got another name |
//! | `wire` | a message of changes is encoded and decoded, packed or not |
//! | `index` | rows are written in one transaction; then they are read in order, found by their names, hashed |

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a bench may stop, and times what it runs"
)]

use std::sync::LazyLock;
use std::time::Duration;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use sync_core::hash::Digest;
use sync_core::manifest::{Entry, Kind, Refused, Row, Time, Tuple};
use sync_core::path::RelPath;

fn main() {
    divan::Divan::default().max_time(Duration::from_secs(2)).config_with_args().main();
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Files of the made tree, and those of each of its directories.
const FILES: usize = 50_000;
const IN_A_DIRECTORY: usize = 100;
/// One file of so many has changed.
const ONE_IN: usize = 100;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn digest(seed: usize) -> Digest {
    Digest::of(&seed.to_le_bytes())
}

fn path(text: impl Into<Vec<u8>>) -> RelPath {
    RelPath::new(text).unwrap()
}

fn entry(kind: Kind, mode: u32) -> Entry {
    let mtime = Time { sec: 1_700_000_000, nsec: 123_456_789 };
    Entry { kind, mode, uid: 1000, gid: 1000, mtime, xattrs: Box::default(), link: None }
}

fn file(content: usize) -> Entry {
    entry(Kind::File { size: 2000 + content as u64 % 5000, digest: digest(content) }, 0o644)
}

/// A tree beneath `top`, in its order. `content` numbers the content of a file.
fn tree_of(top: &str, content: impl Fn(usize) -> usize) -> Vec<(RelPath, Entry)> {
    let dir = |name: String| (path(name), entry(Kind::Dir, 0o755));
    let mut tree = vec![(RelPath::root(), entry(Kind::Dir, 0o755)), dir(top.to_owned())];
    for i in 0..FILES {
        let parent = format!("{top}/module-{:03}", i / IN_A_DIRECTORY);
        if i.is_multiple_of(IN_A_DIRECTORY) {
            tree.push(dir(parent.clone()));
        }
        tree.push((path(format!("{parent}/component-{:02}.js", i % IN_A_DIRECTORY)), file(content(i))));
    }
    tree
}

fn changed(i: usize) -> usize {
    if i.is_multiple_of(ONE_IN) { FILES + i } else { i }
}

/// A tree, and the same with one file of a hundred changed.
static TREE: LazyLock<Vec<(RelPath, Entry)>> = LazyLock::new(|| tree_of("release", |i| i));
static CHANGED: LazyLock<Vec<(RelPath, Entry)>> = LazyLock::new(|| tree_of("release", changed));

fn tuple(ino: usize) -> Tuple {
    let time = Time { sec: 1_700_000_000, nsec: 123_456_789 };
    Tuple { fs: 7, ino: ino as u64, size: 2000, mtime: time, ctime: time }
}

fn row(i: usize, (path, entry): &(RelPath, Entry)) -> Row {
    Row {
        path: path.clone(),
        entry: entry.clone(),
        tuple: Some(tuple(i)),
        proven: true,
        refused: Refused::default(),
        extra: false,
        mount: false,
    }
}

fn rows(tree: &[(RelPath, Entry)]) -> Vec<Row> {
    tree.iter().enumerate().map(|(i, named)| row(i, named)).collect()
}

mod chunk {
    use std::sync::Arc;

    use sync_core::chunk::pieces::{MAX_PIECES, each_small};
    use sync_core::chunk::{ChunkRef, Chunking, Lister, chunks_of, cut};

    use super::*;

    const SIZE: usize = 64 * MIB;
    static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| noise(1, SIZE));

    fn sizes() -> Chunking {
        Chunking::for_size(SIZE as u64)
    }

    #[divan::bench]
    fn boundaries(bencher: Bencher<'_, '_>) {
        let content = &**CONTENT;
        bencher.counter(BytesCount::new(SIZE)).bench(|| {
            let mut chunks = 0;
            cut(content, sizes(), &mut |_| chunks += 1);
            chunks
        });
    }

    #[divan::bench]
    fn list(bencher: Bencher<'_, '_>) {
        let content = &**CONTENT;
        bencher.counter(BytesCount::new(SIZE)).bench(|| chunks_of(content, sizes()));
    }

    /// A byte was inserted in the middle.
    #[divan::bench]
    fn list_following(bencher: Bencher<'_, '_>) {
        let content = &**CONTENT;
        let (left, right) = content.split_at(SIZE / 2);
        let old: Arc<[ChunkRef]> = chunks_of(&[left, right].concat(), sizes()).into();
        let new = [left, b"x", right].concat();
        bencher.counter(BytesCount::new(new.len())).bench(|| {
            let mut lister = Lister::following(sizes(), Arc::clone(&old));
            // As it comes from the disk.
            new.chunks(MIB).for_each(|bytes| lister.push(bytes));
            lister.finish()
        });
    }

    #[divan::bench]
    fn small_pieces(bencher: Bencher<'_, '_>) {
        let content = &CONTENT[..MAX_PIECES as usize];
        bencher.counter(BytesCount::new(content.len())).bench(|| {
            let mut sum = 0_u64;
            each_small(content, &mut |_, hash| sum += u64::from(hash));
            sum
        });
    }
}

mod hash {
    use sync_core::manifest::Merkle;

    use super::*;

    #[divan::bench(args = [2 * KIB, 64 * KIB, 64 * MIB])]
    fn content(bencher: Bencher<'_, '_>, bytes: usize) {
        let content = noise(2, bytes);
        bencher.counter(BytesCount::new(bytes)).bench(|| Digest::of(divan::black_box(&content)));
    }

    #[divan::bench]
    fn entries(bencher: Bencher<'_, '_>) {
        bencher
            .counter(ItemsCount::new(TREE.len()))
            .bench(|| TREE.iter().map(|(_, entry)| entry.hash().prefix()).fold(0, u64::wrapping_add));
    }

    #[divan::bench]
    fn tree(bencher: Bencher<'_, '_>) {
        let hashed: Vec<_> = TREE.iter().map(|(path, entry)| (path, entry.hash(), entry.is_dir())).collect();
        bencher.counter(ItemsCount::new(hashed.len())).bench(|| {
            let mut merkle = Merkle::new();
            hashed.iter().for_each(|(path, hash, is_dir)| merkle.push(path, *hash, *is_dir));
            merkle.finish().root
        });
    }
}

mod diff {
    use sync_core::diff::{Child, compare_children};

    use super::*;

    /// All files of the tree, in one directory.
    fn listing(content: impl Fn(usize) -> usize) -> Vec<Child> {
        let child = |i| {
            let hash = file(content(i)).hash();
            Child { name: format!("component-{i:05}.js").into_bytes().into(), hash, own: hash, is_dir: false }
        };
        (0..FILES).map(child).collect()
    }

    #[divan::bench]
    fn equal(bencher: Bencher<'_, '_>) {
        compare(bencher, &listing(|i| i), 0);
    }

    #[divan::bench]
    fn one_percent_changed(bencher: Bencher<'_, '_>) {
        compare(bencher, &listing(changed), FILES / ONE_IN);
    }

    /// Every other one is missing.
    #[divan::bench]
    fn half_missing(bencher: Bencher<'_, '_>) {
        let right: Vec<Child> = listing(|i| i).into_iter().step_by(2).collect();
        compare(bencher, &right, FILES / 2);
    }

    fn compare(bencher: Bencher<'_, '_>, right: &[Child], differences: usize) {
        let left = listing(|i| i);
        assert_eq!(compare_children(&left, right).count(), differences);
        bencher.counter(ItemsCount::new(FILES)).bench(|| compare_children(&left, divan::black_box(right)).count());
    }
}

mod plan {
    use std::collections::{BTreeMap, HashMap};

    use sync_core::manifest::Holds;
    use sync_core::plan::{Changes, Plan, Situation, decide, find_renames, take_renamed};

    use super::*;

    type Rows = BTreeMap<RelPath, Row>;

    fn by_path(tree: &[(RelPath, Entry)]) -> Rows {
        rows(tree).into_iter().map(|row| (row.path.clone(), row)).collect()
    }

    fn wanted(tree: &[(RelPath, Entry)]) -> Changes {
        tree.iter().map(|(path, entry)| (path.clone(), Some(Box::new(entry.clone())))).collect()
    }

    fn situation<'a>(rows: Rows, holds: &'a Holds, sources: &'a HashMap<Digest, Vec<RelPath>>) -> Situation<'a> {
        Situation { rows, sources, staged: &|_| true, holds, no_delete: false }
    }

    /// Everything is new, and staged.
    #[divan::bench]
    fn first(bencher: Bencher<'_, '_>) {
        let (changes, holds, sources) = (wanted(&TREE), Holds::default(), HashMap::new());
        bencher
            .counter(ItemsCount::new(changes.len()))
            .with_inputs(|| changes.clone())
            .bench_values(|changes| decide(changes, situation(Rows::new(), &holds, &sources)));
    }

    /// One file of a hundred has another content, and every one of them has a row.
    #[divan::bench]
    fn one_percent_changed(bencher: Bencher<'_, '_>) {
        let few: Vec<usize> = (0..TREE.len()).filter(|&i| TREE[i].1 != CHANGED[i].1).collect();
        let changes = wanted(&few.iter().map(|&i| CHANGED[i].clone()).collect::<Vec<_>>());
        let rows: Rows = few.iter().map(|&i| (TREE[i].0.clone(), row(i, &TREE[i]))).collect();
        let (holds, sources) = (Holds::default(), HashMap::new());
        bencher
            .counter(ItemsCount::new(few.len()))
            .with_inputs(|| (changes.clone(), rows.clone()))
            .bench_values(|(changes, rows)| decide(changes, situation(rows, &holds, &sources)));
    }

    /// The directory that holds everything got another name.
    #[divan::bench]
    fn renamed(bencher: Bencher<'_, '_>) {
        let rows: Rows = by_path(&TREE);
        let gone = TREE.iter().skip(1).map(|(path, _)| (path.clone(), None));
        let changes: Changes = wanted(&tree_of("next", |i| i)[1..]).into_iter().chain(gone).collect();
        let holds = Holds::default();
        let rename = |(mut changes, mut rows): (Changes, Rows)| -> Plan {
            let moved = take_renamed(find_renames(&changes, &rows, &holds), &mut changes, &mut rows);
            let mut plan = decide(changes, situation(rows, &holds, &HashMap::new()));
            plan.rename(moved);
            plan
        };
        assert_eq!(rename((changes.clone(), rows.clone())).steps.len(), 1);
        bencher
            .counter(ItemsCount::new(TREE.len()))
            .with_inputs(|| (changes.clone(), rows.clone()))
            .bench_values(rename);
    }
}

mod wire {
    use sync_core::wire::{Change, Envelope, Packer, ToReplica};

    use super::*;

    /// As many as one message has at most.
    const CHANGES: usize = 4096;

    fn message() -> ToReplica {
        let change = |(path, entry): &(RelPath, Entry)| Change { path: path.clone(), entry: Some(entry.clone()) };
        ToReplica::Changes(TREE.iter().take(CHANGES).map(change).collect())
    }

    fn decode(Envelope { kind, version, body }: &Envelope) -> ToReplica {
        ToReplica::decode(*kind, *version, body).unwrap().unwrap()
    }

    #[divan::bench]
    fn encode_changes(bencher: Bencher<'_, '_>) {
        let message = message();
        bencher.counter(ItemsCount::new(CHANGES)).bench(|| divan::black_box(&message).encode());
    }

    #[divan::bench]
    fn decode_changes(bencher: Bencher<'_, '_>) {
        let envelope = message().encode();
        bencher.counter(ItemsCount::new(CHANGES)).bench(|| decode(divan::black_box(&envelope)));
    }

    #[divan::bench]
    fn encode_and_pack_changes(bencher: Bencher<'_, '_>) {
        let message = message();
        let mut packer = Packer::default();
        bencher.counter(ItemsCount::new(CHANGES)).bench_local(|| packer.pack(divan::black_box(&message).encode()));
    }

    #[divan::bench]
    fn decode_packed_changes(bencher: Bencher<'_, '_>) {
        let plain = message().encode();
        let packed = Packer::default().pack(plain.clone());
        assert!(packed.body.len() < plain.body.len());
        bencher.counter(ItemsCount::new(CHANGES)).bench(|| decode(divan::black_box(&packed)));
    }
}

mod index {
    use sync_core::index::{Index, IndexError};
    use sync_core::manifest::Merkle;
    use tempfile::TempDir;

    use super::*;

    /// An index of a replica, which does not track versions, and where it is.
    struct Made {
        index: Index,
        /// Goes away after it.
        _dir: TempDir,
    }

    fn empty() -> Made {
        let dir = tempfile::tempdir().unwrap();
        Made { index: Index::open(dir.path(), Duration::ZERO).unwrap().index, _dir: dir }
    }

    fn filled() -> Made {
        let made = empty();
        write(&made.index, &rows(&TREE));
        made
    }

    /// In one transaction.
    fn write(index: &Index, rows: &[Row]) {
        index.write::<(), IndexError>(0, |writer| rows.iter().try_for_each(|row| writer.upsert(row))).unwrap();
    }

    #[divan::bench]
    fn write_new(bencher: Bencher<'_, '_>) {
        let rows = rows(&TREE);
        bencher.counter(ItemsCount::new(rows.len())).with_inputs(empty).bench_refs(|made| write(&made.index, &rows));
    }

    /// All of them have a row already: the inode is another.
    #[divan::bench]
    fn write_over(bencher: Bencher<'_, '_>) {
        let made = filled();
        let mut rows = rows(&TREE);
        let mut ino = rows.len();
        bencher.counter(ItemsCount::new(rows.len())).bench_local(|| {
            rows.iter_mut().for_each(|row| row.tuple = Some(tuple(ino)));
            ino += 1;
            write(&made.index, &rows);
        });
    }

    /// As a look at a tree goes along the rows of it, of which the disk shows every one.
    #[divan::bench]
    fn read_in_order(bencher: Bencher<'_, '_>) {
        let made = filled();
        bencher.counter(ItemsCount::new(TREE.len())).bench(|| {
            let (mut cursor, mut shown) = (made.index.cursor().unwrap(), 0);
            while let Some(row) = cursor.peek().unwrap() {
                assert!(row.shown_by(&tuple(shown), false).is_some());
                shown += 1;
                cursor.pass();
            }
            assert_eq!(shown, TREE.len());
        });
    }

    /// The same, where every row is needed as a whole.
    #[divan::bench]
    fn decode_in_order(bencher: Bencher<'_, '_>) {
        let made = filled();
        bencher.counter(ItemsCount::new(TREE.len())).bench(|| {
            let mut cursor = made.index.cursor().unwrap();
            std::iter::from_fn(|| cursor.next().unwrap()).count()
        });
    }

    /// One name of a hundred, in order.
    #[divan::bench]
    fn find(bencher: Bencher<'_, '_>) {
        let made = filled();
        let paths: Vec<RelPath> = TREE.iter().step_by(ONE_IN).map(|(path, _)| path.clone()).collect();
        bencher.counter(ItemsCount::new(paths.len())).bench(|| made.index.rows_for(&paths).unwrap());
    }

    /// The root, from the hash that each row has.
    #[divan::bench]
    fn hash_tree(bencher: Bencher<'_, '_>) {
        let made = filled();
        bencher.counter(ItemsCount::new(TREE.len())).bench(|| {
            let mut merkle = Merkle::new();
            made.index.leaves(&mut |leaf| merkle.push_key(leaf.key, leaf.hash, leaf.is_dir)).unwrap();
            merkle.finish().root
        });
    }
}
