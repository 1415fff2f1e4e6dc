//! Which file stands in for the old one where a new file has none: one of a similar name beside it, or the file of the
//! same name in the directory beside the one that is new with it, such as the last release.

use crate::chunk::pieces::MIN_PIECES;
use crate::index::{Index, Rows as _};
use crate::manifest::Row;
use crate::path::RelPath;
use crate::similar::likeness;
use crate::wire::Offered;

/// Names before and after that of a new file that are compared with it: similar names are close in their order.
const NEAR: usize = 4;

/// Directories before and after a new one that are looked into: versions are close in the order of names.
const NEAR_DIRS: usize = 2;

/// Files of more than this many times the size of the other are taken for another kind of thing.
const MOST_GROWTH: u64 = 4;

/// Searches that a session may make in vain. Each costs some look-ups in the index, and a guess that was wrong costs
/// what is told of the old file.
const CREDIT: u64 = 256;

/// Further searches for each that has paid.
const EARNED: u64 = 16;

/// The searches of one session.
#[derive(Default)]
pub struct StandIns {
    searched: u64,
    /// Where the last search looked, for the next file of that directory.
    last: Option<(RelPath, Place)>,
}

/// Where the old version of a new file may be.
enum Place {
    /// In its own directory, which is there already.
    Here,
    /// In one of these instead of the directory with as many bytes in its path, which is new.
    Beside(usize, Vec<RelPath>),
}

impl StandIns {
    /// The file that probably resembles `file`, of which there is none yet. `paid` is how many of those that were found
    /// before have saved something.
    pub fn find(&mut self, index: &Index, file: &Offered, paid: u64) -> Option<Row> {
        if file.size < MIN_PIECES || self.searched >= CREDIT.saturating_add(paid.saturating_mul(EARNED)) {
            return None;
        }
        self.searched += 1;
        // What cannot be read saves nothing; damage is found and mended where it matters.
        let found = self.candidates(index, &file.path)?;
        found.iter().filter_map(|path| index.row(path).ok().flatten()).find(|row| fits(row, file.size))
    }

    /// Likeliest first.
    fn candidates(&mut self, index: &Index, path: &RelPath) -> Option<Vec<RelPath>> {
        match self.place(index, path.parent()?)? {
            Place::Here => {
                let near = index.neighbours(path, NEAR).ok()?.into_iter();
                let scored = near.map(|other| (likeness(path.name(), other.name()), other));
                let mut alike: Vec<_> = scored.filter(|(likeness, _)| *likeness > 0).collect();
                alike.sort_by_key(|(likeness, _)| std::cmp::Reverse(*likeness));
                Some(alike.into_iter().map(|(_, path)| path).collect())
            }
            Place::Beside(new, dirs) => {
                let below = path.as_bytes().get(*new..)?;
                Some(dirs.iter().filter_map(|dir| RelPath::new([dir.as_bytes(), below].concat()).ok()).collect())
            }
        }
    }

    fn place(&mut self, index: &Index, parent: RelPath) -> Option<&Place> {
        if self.last.as_ref().is_none_or(|(dir, _)| *dir != parent) {
            let new = parent.way_from(&RelPath::root()).find(|dir| matches!(index.row(dir), Ok(None)));
            let place = match new {
                Some(top) => Place::Beside(top.as_bytes().len(), index.neighbours(&top, NEAR_DIRS).ok()?),
                None => Place::Here,
            };
            self.last = Some((parent, place));
        }
        self.last.as_ref().map(|(_, place)| place)
    }
}

fn fits(row: &Row, size: u64) -> bool {
    let old = row.entry.content().map(|(size, _)| size);
    old.is_some_and(|old| old / MOST_GROWTH <= size && size / MOST_GROWTH <= old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Digest;
    use crate::manifest::{Entry, Kind, Metadata, Refused, Time};

    const SIZE: u64 = 10_000;

    fn metadata() -> Metadata {
        entry(Kind::Fifo).metadata()
    }

    fn entry(kind: Kind) -> Entry {
        Entry { kind, mode: 0o600, uid: 0, gid: 0, mtime: Time::default(), xattrs: Box::default(), link: None }
    }

    fn path(path: &str) -> RelPath {
        RelPath::new(path).unwrap()
    }

    /// An index of files with their sizes, and of the directories that they are in.
    fn index(files: &[(&str, u64)]) -> Index {
        let index = Index::in_memory().unwrap();
        let row = |path, kind| Row {
            path,
            entry: entry(kind),
            tuple: None,
            proven: true,
            refused: Refused::default(),
            extra: false,
            mount: false,
        };
        index
            .write(1, |writer| {
                for (name, size) in files {
                    let path = path(name);
                    for dir in path.parent().unwrap().way_from(&RelPath::root()) {
                        writer.upsert(&row(dir, Kind::Dir))?;
                    }
                    let kind = Kind::File { size: *size, digest: Digest::of(name.as_bytes()) };
                    writer.upsert(&row(path, kind))?;
                }
                Ok::<_, crate::index::IndexError>(())
            })
            .unwrap();
        index
    }

    fn find(stand_ins: &mut StandIns, index: &Index, name: &str) -> Option<String> {
        let file = Offered { path: path(name), digest: Digest::of(b"new"), size: SIZE, likely: metadata() };
        stand_ins.find(index, &file, 0).map(|row| row.path.display())
    }

    fn found(files: &[(&str, u64)], name: &str) -> Option<String> {
        find(&mut StandIns::default(), &index(files), name)
    }

    #[test]
    fn a_file_of_a_similar_name_stands_in() {
        let files =
            [("log/app.log", SIZE), ("log/app.log.2.gz", SIZE), ("log/db.log", SIZE), ("log/z/app.log.0", SIZE)];
        assert_eq!(found(&files, "log/app.log.1").as_deref(), Some("log/app.log"));
        assert_eq!(found(&files, "log/mail"), None);
        assert_eq!(found(&files, "app.log.1"), None, "another directory");
    }

    #[test]
    fn the_most_similar_name_of_a_similar_size_stands_in() {
        let files = [("dump-01.sql", SIZE), ("dump-02.sql", 5 * SIZE), ("dump-1.sql", SIZE), ("dump-3.sql/x", SIZE)];
        assert_eq!(found(&files, "dump-03.sql").as_deref(), Some("dump-01.sql"));
    }

    #[test]
    fn the_same_file_of_the_release_before_stands_in() {
        let files = [
            ("releases/40/lib/a.php", SIZE),
            ("releases/41/lib/a.php", SIZE),
            ("releases/41/lib/b.php", SIZE),
            ("releases/old/lib/a.php", SIZE),
            ("releases/readme", SIZE),
        ];
        assert_eq!(found(&files, "releases/42/lib/a.php").as_deref(), Some("releases/41/lib/a.php"));
        assert_eq!(found(&files, "releases/405/lib/b.php").as_deref(), Some("releases/41/lib/b.php"));
        assert_eq!(found(&files, "releases/42/lib/c.php"), None);
    }

    #[test]
    fn searches_in_vain_end() {
        let index = index(&[("photo1000.jpg", SIZE)]);
        let mut stand_ins = StandIns::default();
        let searched = (1001..2000).take_while(|i| find(&mut stand_ins, &index, &format!("photo{i}.jpg")).is_some());
        assert_eq!(searched.count() as u64, CREDIT);
        let file = Offered { path: path("photo1001.jpg"), digest: Digest::of(b"new"), size: SIZE, likely: metadata() };
        assert!(stand_ins.find(&index, &file, 0).is_none());
        assert!(stand_ins.find(&index, &file, 1).is_some(), "one has paid");
    }
}
