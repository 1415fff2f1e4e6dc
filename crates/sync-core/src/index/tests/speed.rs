//! Figures for the index alone; run with `--release -- --ignored --nocapture`.

use std::time::Instant;

use super::*;

#[test]
#[ignore = "a measurement, not a check"]
fn forty_four_thousand_rows() {
    let temp = tempfile::tempdir().unwrap();
    let opened = open(temp.path());
    let rows = tree(44, 1000);
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        println!("{what}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    };
    let index = opened.index;
    timed("insert tracked", &mut || upsert(&index, 1, &rows));
    timed("upsert unchanged", &mut || upsert(&index, 2, &rows));
    let mut touched = rows.clone();
    touched.iter_mut().for_each(|row| row.entry.mtime.sec += 1);
    timed("upsert all touched", &mut || upsert(&index, 3, &touched));
    timed("upsert all back, untracked", &mut || upsert(&index, 0, &rows));
    for _ in 0..3 {
        timed("stream", &mut || {
            let mut count = 0;
            index
                .rows(&mut |_| {
                    count += 1;
                    std::ops::ControlFlow::Continue(())
                })
                .unwrap();
            assert_eq!(count, rows.len());
        });
    }
    timed("tidy", &mut || index.tidy().unwrap());
    timed("count", &mut || assert_eq!(index.row_count().unwrap(), rows.len() as u64));
    timed("quick_check", &mut || {
        index.read(|conn| Ok(conn.query_row("PRAGMA quick_check(1)", [], |_| Ok(()))?)).unwrap();
    });
    let size = std::fs::metadata(temp.path().join("index.db")).unwrap().len();
    println!("{} bytes, {} a row", size, size / rows.len() as u64);
    let mut index = Some(index);
    timed("close", &mut || drop(index.take()));
    timed("open", &mut || drop(open(temp.path())));
    timed("scratch", &mut || drop(Index::scratch_copy(temp.path()).unwrap()));
    let fresh = tempfile::tempdir().unwrap();
    timed("open fresh", &mut || drop(open(fresh.path())));
    let index = open(fresh.path()).index;
    timed("insert untracked", &mut || upsert(&index, 0, &rows));
    timed("update untracked", &mut || upsert(&index, 0, &touched));
}
