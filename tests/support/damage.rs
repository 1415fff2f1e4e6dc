//! What happens to index files: every way the issue names, applied to each `*.db` below a state directory.

use std::path::{Path, PathBuf};

use super::{noise, write};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    Deleted,
    Empty,
    Truncated,
    OneBit,
    Noise,
    /// An older copy with the write-ahead log it had.
    OldWithLog,
    /// An older copy, its log lost.
    OldWithoutLog,
    /// An older copy beside the log of the newer one.
    OldBesideNewLog,
    /// The newest database whose log is lost.
    LogLost,
}

pub const ALL: [Damage; 9] = [
    Damage::Deleted,
    Damage::Empty,
    Damage::Truncated,
    Damage::OneBit,
    Damage::Noise,
    Damage::OldWithLog,
    Damage::OldWithoutLog,
    Damage::OldBesideNewLog,
    Damage::LogLost,
];

/// Every file of every index below a state directory: databases and their logs.
pub fn index_files(state: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![state.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("cannot list {}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                todo.push(path);
            } else if [".db", ".db-wal", ".db-shm", ".db-journal"].iter().any(|end| name.ends_with(end)) {
                found.push(path);
            }
        }
    }
    assert!(found.iter().any(|p| is_database(p)), "no index below {}", state.display());
    found.sort();
    found
}

fn is_database(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "db")
}

/// The content of the index files at one moment.
pub struct Copy(Vec<(PathBuf, Vec<u8>)>);

pub fn copy(state: &Path) -> Copy {
    Copy(index_files(state).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect())
}

/// Nobody may have the index open. `seed` picks which bit, and where it is cut.
pub fn apply(damage: Damage, state: &Path, old: &Copy, seed: u64) {
    for path in index_files(state) {
        let database = is_database(&path);
        match damage {
            Damage::Deleted => std::fs::remove_file(&path).unwrap(),
            Damage::Empty if database => write(&path, b""),
            Damage::Truncated if database => {
                let length = std::fs::metadata(&path).unwrap().len();
                // At least a page: a byte less of the last one may be one that nothing is in.
                let cut = if seed.is_multiple_of(2) { length / 2 + 100 } else { length - 4097 };
                std::fs::File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
            }
            Damage::OneBit => {
                let mut bytes = std::fs::read(&path).unwrap();
                if !bytes.is_empty() {
                    let at = usize::try_from(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) % bytes.len() as u64).unwrap();
                    bytes[at] ^= 1 << (seed % 8);
                    write(&path, bytes);
                }
            }
            Damage::Noise if database => {
                let length = usize::try_from(std::fs::metadata(&path).unwrap().len()).unwrap();
                write(&path, noise(seed + 77, length));
            }
            Damage::OldWithLog | Damage::OldWithoutLog => std::fs::remove_file(&path).unwrap(),
            Damage::LogLost if !database => std::fs::remove_file(&path).unwrap(),
            _ => {}
        }
    }
    let restored = |path: &Path| match damage {
        Damage::OldWithLog => true,
        Damage::OldWithoutLog | Damage::OldBesideNewLog => is_database(path),
        _ => false,
    };
    for (path, bytes) in old.0.iter().filter(|(path, _)| restored(path)) {
        write(path, bytes);
    }
}
