//! Puts the contents of a source into its history.

use std::sync::atomic::{AtomicBool, Ordering};

use super::difference::Difference;
use super::error::PushError;
use super::previous::{Previous, notice_not_kept, notice_removed};
use super::source::{KEEP, Source};
use crate::fs::{History, SourceFile};
use crate::manifest::Row;
use crate::monitor::Monitor;

/// Largest content that is kept of a tree that is mirrored: a log of a hundred megabytes that grows all day would be copied
/// with each version, and push out all else. What is larger is compared by its chunks.
const MIRRORED: u64 = 16 << 20;

impl Source {
    /// Keeps those contents of the committed version that were too large to keep when they were read; of a store that
    /// was empty, all.
    pub fn keep_contents(&self, difference: &Difference) -> Result<(), PushError> {
        match &self.history {
            Some(history) if history.is_to_be_filled() => self.fill_history(&AtomicBool::new(false)),
            Some(history) => {
                difference.pending.iter().for_each(|pending| self.keep_file(history, &pending.row));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Keeps the contents of all files, until it is to stop.
    pub fn fill_history(&self, stop: &AtomicBool) -> Result<(), PushError> {
        let Some(history) = &self.history else { return Ok(()) };
        history.begin_filling();
        let mut rows = self.index.cursor()?;
        while let Some(row) = rows.next()? {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.keep_file(history, &row);
        }
        history.filled();
        Ok(())
    }

    fn keep_file(&self, history: &History, row: &Row) {
        let fits = |size: u64| !self.is_mirrored || size <= MIRRORED;
        let content = row.entry.content().filter(|(size, digest)| fits(*size) && history.wants(digest, *size));
        let (Some((size, digest)), Some(tuple)) = (content, row.tuple) else { return };
        // A file that changed meanwhile is not what is to be kept.
        let Ok(file) = SourceFile::open(&self.root, &row.path, &tuple) else { return };
        if size > KEEP {
            history.put_file(digest, &file, size);
        } else if let Ok(content) = file.read_at(0, usize::try_from(size).unwrap_or(0)) {
            history.put(digest, &content);
        }
    }

    /// Removes what was kept, by who keeps nothing any more.
    pub fn remove_history(&self, monitor: &dyn Monitor) {
        let removed = self.previous.as_ref().map_or(0, Previous::remove_all);
        if removed > 0 {
            notice_removed(monitor, "none are to be kept", removed);
        }
    }

    /// Ends what was kept, and makes room in the history.
    pub fn tidy_history(&self, monitor: &dyn Monitor) {
        let Some(history) = &self.history else { return };
        let unkept = history.finish(|| {
            let mut current = foldhash::HashSet::default();
            let Ok(mut rows) = self.index.cursor() else { return current };
            while let Ok(Some(row)) = rows.next() {
                current.extend(row.entry.content().map(|(_, digest)| digest.prefix()));
            }
            current
        });
        if let Some(why) = unkept {
            notice_not_kept(monitor, &why.to_string());
        }
    }
}
