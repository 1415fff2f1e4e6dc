use std::fs::{self, File};
use std::io::Write as _;

use super::*;

fn look(top: &std::path::Path) -> Survey {
    let filter = Filter::new(&[]).unwrap();
    let options = SurveyOptions {
        filter: &filter,
        one_file_system: false,
        leave_out: Vec::new(),
        checksum: false,
        reserved: Reserved::Hold,
        reconsider_refused: false,
        ignore_extras: false,
    };
    let index = Index::in_memory().unwrap();
    survey(&Root::open(top).unwrap(), &index, &options, &|_| ControlFlow::Continue(()), &mut |_, _| {}).unwrap()
}

/// In the same tick of the kernel's clock it could change again without a trace, so the look waits for the next one.
#[test]
fn what_was_written_just_before_a_look_is_proven_by_it() {
    let top = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        fs::write(top.path().join(name), name).unwrap();
    }
    for round in 0..10 {
        for name in ["a", "c"] {
            File::options().append(true).open(top.path().join(name)).unwrap().write_all(b"more").unwrap();
        }
        let found = look(top.path());
        let sizes: Vec<_> = found.pending.iter().filter_map(|p| p.row.entry.content()).map(|(size, _)| size).collect();
        assert_eq!(sizes, [5 + 4 * round, 1, 5 + 4 * round]);
        let doubtful: Vec<_> = found.pending.iter().filter(|p| !p.row.proven).map(|p| &p.row.path).collect();
        assert!(doubtful.is_empty(), "round {round}: {doubtful:?}");
    }
}
