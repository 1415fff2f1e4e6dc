//! Rows of a directory that gets another name.

use super::*;

fn renamed(row: &Row, from: &str, to: &str) -> Row {
    let rename = |path: &RelPath| RelPath::new(path.display().replacen(from, to, 1)).unwrap();
    let link = row.entry.link.as_ref().map(rename);
    Row { path: rename(&row.path), entry: Entry { link, ..row.entry.clone() }, ..row.clone() }
}

#[test]
fn all_beneath_get_the_new_name_and_sums_of_their_own() {
    let temp = tempfile::tempdir().unwrap();
    let index = open(temp.path()).index;
    // More than are copied at once, with neighbours whose names begin alike.
    let mut rows = tree(3, 1500);
    rows.extend([dir("package-0001-"), file("package-0001-/x", 1), file("package-00010", 2)]);
    let mut linked = file("package-0001/zz", 5);
    linked.entry.link = Some(path("package-0001/some-file-name-00001.js"));
    linked.refused = Refused::OWNER;
    linked.entry.xattrs = vec![(b"user.a".as_slice().into(), b"b".as_slice().into())].into();
    rows.push(linked);
    upsert(&index, 0, &rows);
    let (from, to) = (path("package-0001"), path("a/new"));
    index
        .commit_with(0, |commit| -> Result<(), IndexError> {
            commit.copy_beneath(&from, &to)?;
            commit.delete_beneath(&from)
        })
        .unwrap();
    let moves = |row: &Row| row.path == from || row.path.is_beneath(&from);
    let mut want: Vec<Row> = rows.iter().filter(|row| !moves(row)).cloned().collect();
    want.extend(rows.iter().filter(|row| moves(row)).map(|row| renamed(row, "package-0001", "a/new")));
    want.sort_by(|a, b| a.path.cmp(&b.path));
    // Every row is read with its sum, and every hash is that of its entry.
    assert_eq!(all(&index), want);
    let mut cursor = index.cursor().unwrap();
    while let Some(stored) = cursor.next_stored().unwrap() {
        assert_eq!(stored.hash, stored.row.entry.hash(), "{}", stored.row.path);
    }
    assert!(index.row(&path("package-0001/zz")).unwrap().is_none());
}

#[test]
fn a_row_that_is_damaged_is_not_made_good_by_a_new_sum() {
    let temp = tempfile::tempdir().unwrap();
    let index = open(temp.path()).index;
    upsert(&index, 0, &[dir(""), dir("d"), file("d/x", 1)]);
    index
        .read(|conn| Ok(conn.execute("UPDATE entries SET sum = x'0001020304050607' WHERE length(path) = 3", [])?))
        .unwrap();
    let copied = index.commit_with(0, |commit| commit.copy_beneath(&path("d"), &path("n")));
    assert!(matches!(copied, Err(IndexError::Damaged(_))), "{copied:?}");
    assert!(index.row(&path("n")).unwrap().is_none());
}

/// A directory of 60 files, tracked since version 1, and what follows it.
fn tracked(temp: &tempfile::TempDir) -> (Index, Vec<Row>) {
    let index = open(temp.path()).index;
    let mut rows = tree(1, 60);
    rows.push(file("z", 1));
    upsert(&index, 1, &rows);
    (index, rows)
}

#[test]
fn many_that_go_at_once_are_buried_one_by_one() {
    let temp = tempfile::tempdir().unwrap();
    let (index, rows) = tracked(&temp);
    let gone = &rows[1..rows.len() - 1];
    index.commit_with(2, |commit| commit.delete_all(gone)).unwrap();
    assert_eq!(all(&index), [rows[0].clone(), rows[rows.len() - 1].clone()]);
    let buried =
        index.read(|conn| Ok(conn.query_row("SELECT count(*) FROM tombstones", [], |row| row.get::<_, i64>(0))?));
    assert_eq!(buried.unwrap(), gone.len() as i64);
    // What comes back is buried no more.
    index.commit_with(3, |commit| gone.iter().try_for_each(|row| commit.insert(row))).unwrap();
    assert_eq!(all(&index), rows);
    let buried =
        index.read(|conn| Ok(conn.query_row("SELECT count(*) FROM tombstones", [], |row| row.get::<_, i64>(0))?));
    assert_eq!(buried.unwrap(), 0);
}

#[test]
fn what_is_not_among_those_that_go_stays() {
    let temp = tempfile::tempdir().unwrap();
    let (index, rows) = tracked(&temp);
    let mut gone = rows[1..rows.len() - 1].to_vec();
    let kept = gone.remove(30);
    index.commit_with(2, |commit| commit.delete_all(&gone)).unwrap();
    assert_eq!(all(&index), [rows[0].clone(), kept, rows[rows.len() - 1].clone()]);
}
