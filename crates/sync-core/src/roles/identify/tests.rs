#![allow(clippy::disallowed_methods, reason = "the tests make trees of their own")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use super::*;
use crate::filter::Filter;
use crate::fs::Reserved;
use crate::index::Index;
use crate::roles::survey::{SurveyOptions, survey};

/// Files in a tree: enough for several portions.
const FILES: usize = 200;

fn made_tree(top: &Path) -> BTreeMap<RelPath, Vec<u8>> {
    let file = |i: usize| {
        let (name, content) = (format!("f{i:03}"), format!("content {i}").into_bytes());
        std::fs::write(top.join(&name), &content).unwrap();
        (RelPath::new(name).unwrap(), content)
    };
    (0..FILES).map(file).collect()
}

fn look(top: &Path, found: &mut dyn FnMut(usize, &Pending)) -> Survey {
    let filter = Filter::new(&[]).unwrap();
    let options = SurveyOptions {
        filter: &filter,
        one_file_system: false,
        leave_out: Vec::new(),
        checksum: false,
        takes_unmounted: false,
        reserved: Reserved::Hold,
        is_watched: false,
        reconsider_refused: false,
        ignore_extras: false,
    };
    let (root, index) = (Root::open(top).unwrap(), Index::in_memory().unwrap());
    survey(&root, &index, &options, &|_| ControlFlow::Continue(()), found).unwrap()
}

/// Reads a tree as a first push does: `meanwhile` runs when something was read ahead and the look has not ended.
fn read_tree(top: &Path, meanwhile: impl FnOnce()) -> (Survey, BTreeMap<RelPath, Vec<u8>>, u64) {
    let (root, stop, bytes) = (Root::open(top).unwrap(), AtomicBool::new(false), AtomicU64::new(0));
    let count = |read| {
        bytes.fetch_add(read, Ordering::Relaxed);
    };
    let options = IdentifyOptions {
        keep: 1 << 20,
        chunked: &|_, _| false,
        follow: &|_, _| None,
        draft: &|_, _, _| {},
        stop: &stop,
        read: &count,
    };
    let mut contents = BTreeMap::new();
    let mut found = |pending: &Pending, identified: Identified| {
        let before = contents.insert(pending.row.path.clone(), identified.content.unwrap());
        assert_eq!(before, None, "{} was found twice", pending.row.path);
    };
    let (mut survey, early) = read_ahead(&root, &options, &mut found, |found| {
        let survey = look(top, found);
        let begun = Instant::now();
        while bytes.load(Ordering::Relaxed) == 0 && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
        meanwhile();
        survey
    });
    assert!(!early.done.is_empty() || !early.failed.is_empty(), "nothing was read ahead: this tests nothing");
    identify(&root, &mut survey, &options, early, &mut found);
    (survey, contents, bytes.into_inner())
}

#[test]
fn what_was_read_while_the_tree_was_looked_at_is_not_read_again() {
    let temp = tempfile::tempdir().unwrap();
    let tree = made_tree(temp.path());
    let (survey, contents, bytes) = read_tree(temp.path(), || {});
    assert_eq!(contents, tree);
    assert_eq!(bytes, tree.values().map(|content| content.len() as u64).sum::<u64>());
    assert!(survey.failures.is_empty() && survey.pending.iter().all(|pending| !pending.needs_hash));
    for pending in survey.pending.iter().filter(|pending| !pending.row.path.is_root()) {
        let content = &tree[&pending.row.path];
        assert_eq!(pending.row.entry.content(), Some((content.len() as u64, Digest::of(content))));
    }
}

/// Whether it was read ahead or is still to be read: what remains has the content, and the metadata, that its file had at
/// one moment.
#[test]
fn files_that_vanish_or_change_while_the_tree_is_read_ahead_are_told_as_they_were_or_not_at_all() {
    let temp = tempfile::tempdir().unwrap();
    let tree = made_tree(temp.path());
    let changed = |i: usize| format!("other content, {i}").into_bytes();
    let (survey, ..) = read_tree(temp.path(), || {
        for i in 0..FILES {
            let path = temp.path().join(format!("f{i:03}"));
            match i % 2 {
                0 => std::fs::remove_file(path).unwrap(),
                _ => {
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o751)).unwrap();
                    std::fs::write(path, changed(i)).unwrap();
                }
            }
        }
    });
    assert!(survey.failures.is_empty(), "{:?}", survey.failures);
    let mut left = 0;
    for (i, (path, content)) in tree.iter().enumerate() {
        let told = survey.pending.iter().find(|pending| pending.row.path == *path);
        if let Some(Pending { row, .. }) = told {
            // What is told with the later content has the later metadata too.
            let now = std::fs::metadata(temp.path().join(format!("f{i:03}"))).ok();
            if now.is_some() && row.entry.content().unwrap().1 == Digest::of(&changed(i)) {
                assert_eq!(row.entry.mode, 0o751, "{path}");
                assert_eq!(row.tuple.unwrap().mtime, row.entry.mtime, "{path}");
            }
        }
        let told = told.map(|pending| pending.row.entry.content().unwrap());
        let was = (content.len() as u64, Digest::of(content));
        let is = (changed(i).len() as u64, Digest::of(&changed(i)));
        assert!(told.is_none_or(|told| told == was || (i % 2 == 1 && told == is)), "{path}");
        left += usize::from(told.is_some());
    }
    assert!(left >= FILES / 2, "a file that is there is not told of");
    assert!(survey.vanished.len() + left == FILES);
}
