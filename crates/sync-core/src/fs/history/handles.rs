//! Packs that are open: a few, however many there are.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::pack::path_of;

/// Packs held open. A content that is in use keeps its own beyond that.
pub(super) const OPEN: usize = 16;

/// The packs used last, the one used last at the end.
#[derive(Default)]
pub(super) struct Handles(VecDeque<(u64, Arc<File>)>);

impl Handles {
    /// The pack of this number, opened if it is not.
    pub(super) fn open(&mut self, dir: &Path, number: u64) -> io::Result<Arc<File>> {
        let handle = match self.0.iter().position(|(open, _)| *open == number).and_then(|at| self.0.remove(at)) {
            Some((_, handle)) => handle,
            None => {
                // Before another is opened: descriptors may be short.
                self.0.drain(..(self.0.len() + 1).saturating_sub(OPEN));
                Arc::new(File::open(path_of(dir, number))?)
            }
        };
        self.0.push_back((number, Arc::clone(&handle)));
        Ok(handle)
    }

    /// Lets go of a pack, whose blocks are free only then.
    pub(super) fn close(&mut self, number: u64) {
        self.0.retain(|(open, _)| *open != number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_used_last_are_open() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..=OPEN as u64 {
            std::fs::write(path_of(dir.path(), number), b"pack").unwrap();
        }
        let mut handles = Handles::default();
        let first = Arc::downgrade(&handles.open(dir.path(), 0).unwrap());
        let second = Arc::downgrade(&handles.open(dir.path(), 1).unwrap());
        for number in 2..OPEN as u64 {
            handles.open(dir.path(), number).unwrap();
        }
        let in_use = handles.open(dir.path(), 0).unwrap();
        assert!(Arc::ptr_eq(&in_use, &first.upgrade().unwrap()), "it is not opened again");
        handles.open(dir.path(), OPEN as u64).unwrap();
        assert!(handles.0.len() == OPEN && second.upgrade().is_none(), "the one used longest ago is closed");
        handles.close(0);
        assert_eq!((handles.0.len(), Arc::strong_count(&in_use)), (OPEN - 1, 1));
        assert!(handles.open(dir.path(), 99).is_err());
    }
}
