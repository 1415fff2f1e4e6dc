#![allow(clippy::disallowed_methods, reason = "the tests make trees of their own")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;
use crate::chunk::{chunks_of, noise};
use crate::monitor::Silent;
use crate::options::Compress;
use crate::wire::ToReplica;

const M: u64 = 1 << 20;

/// What the file has when it is published.
const OLD: u64 = 70 * M;

struct Bed {
    _temp: tempfile::TempDir,
    file: PathBuf,
    source: Source,
    meter: Meter,
}

impl Bed {
    /// A source with one file whose version is known: mostly a hole, so that it costs little.
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().join("src");
        std::fs::create_dir(&top).unwrap();
        let file = top.join("f");
        std::fs::write(&file, noise(22 << 20, 3)).unwrap();
        let request = PushRequest {
            source: top,
            destinations: vec![Destination::Path(temp.path().join("dst"))],
            state_dir: temp.path().join("state"),
            policy: Policy::default(),
            adopt: false,
            bandwidth: None,
            compress: Compress::Never,
            history: None,
        };
        let source = Source::open(&request, &Silent).unwrap();
        let bed = Self { _temp: temp, file, source, meter: Meter::new(Arc::new(Silent), 1) };
        bed.is_now(OLD);
        let (survey, _) = bed.look(&|_| {});
        let (decided, difference) = bed.source.decide(survey, Duration::ZERO, Duration::ZERO).unwrap();
        bed.source.commit(&decided, &difference, None, &Silent).unwrap();
        bed
    }

    fn is_now(&self, size: u64) {
        OpenOptions::new().write(true).open(&self.file).unwrap().set_len(size).unwrap();
    }

    fn look(&self, draft: &(dyn Fn(Draft) + Sync)) -> (Survey, Duration) {
        let (known, stop) = (KnownContents::new(), AtomicBool::new(false));
        self.source.look(&known, &stop, &self.meter, &Silent, &mut |_, _| {}, draft).unwrap()
    }

    /// Changes a byte, and looks: what was told. At the first word the file gets another size, if one is named.
    fn told(&self, becomes: Option<u64>) -> Vec<Draft> {
        OpenOptions::new().write(true).open(&self.file).unwrap().write_all_at(b"X", 5).unwrap();
        let told = Mutex::new(Vec::new());
        let (survey, _) = self.look(&|draft| {
            let mut told = told.lock().unwrap();
            if let Some(size) = becomes.filter(|_| told.is_empty()) {
                self.is_now(size);
            }
            told.push(draft);
        });
        assert!(survey.failures.is_empty(), "{:?}", survey.failures);
        told.into_inner().unwrap()
    }
}

#[test]
fn what_stayed_the_same_is_told_while_a_file_is_read() {
    let told = Bed::new().told(None);
    let same = |draft: &Draft| draft.ranges.iter().all(|range| range.at == range.from);
    assert!(told.iter().all(|draft| draft.size == OLD && same(draft)), "{told:?}");
    let bytes: u64 = told.iter().flat_map(|draft| &draft.ranges).map(|range| range.len).sum();
    assert!(bytes > OLD - 2 * M, "{bytes} bytes: {told:?}");
}

/// It is read again then: what is told belongs to the file as it is by that time, and a replica takes all of it.
#[test]
fn of_a_file_that_changes_while_it_is_read_the_draft_has_the_size_of_the_moment() {
    for becomes in [110 * M, 66 * M] {
        let told = Bed::new().told(Some(becomes));
        for draft in &told {
            let message = ToReplica::Draft(draft.clone()).encode();
            let taken = ToReplica::decode(message.kind, message.version, &message.body);
            assert!(taken.is_ok(), "{becomes}: {taken:?}");
        }
        let again = told.iter().filter(|draft| draft.size == becomes);
        let bytes: u64 = again.flat_map(|draft| &draft.ranges).map(|range| range.len).sum();
        assert!(bytes > becomes - 2 * M, "{becomes}: {bytes} bytes: {told:?}");
    }
}

/// A smaller file is cut into smaller chunks, whatever the sizes were when it was first looked at.
#[test]
fn the_chunks_of_a_file_that_changes_while_it_is_read_are_those_for_its_size() {
    let bed = Bed::new();
    assert!(!bed.told(Some(20 * M)).is_empty());
    let content = std::fs::read(&bed.file).unwrap();
    assert_eq!(content.len() as u64, 20 * M);
    let chunks = bed.source.chunks(&Digest::of(&content)).unwrap().unwrap();
    assert!(chunks[..] == chunks_of(&content, Chunking::for_size(20 * M))[..]);
}
