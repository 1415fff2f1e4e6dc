//! A failed operation on one entry: what was being done, where, and why it failed.

use std::io;

use rustix::io::Errno;

use crate::monitor::Problem;
use crate::path::RelPath;

/// One operation that failed on one entry. It never stops the others.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}: {}", explain(source))]
pub struct FsError {
    /// What was being done, as the words after "cannot": `read`, `list the directory`.
    pub doing: &'static str,
    /// The entry.
    pub path: RelPath,
    /// Why it failed.
    pub source: io::Error,
}

impl FsError {
    /// An operation that the kernel refused.
    pub fn new(doing: &'static str, path: &RelPath, source: impl Into<io::Error>) -> Self {
        Self { doing, path: path.clone(), source: source.into() }
    }

    /// An operation that we refuse or give up, with the reason in words.
    pub fn because(doing: &'static str, path: &RelPath, reason: impl Into<String>) -> Self {
        Self { doing, path: path.clone(), source: io::Error::other(reason.into()) }
    }

    /// The kernel's error number, if the kernel refused.
    pub fn errno(&self) -> Option<Errno> {
        Errno::from_io_error(&self.source)
    }

    /// Whether the name is gone or leads to something else than it did: absent, no directory any more, or a link.
    pub fn is_gone(&self) -> bool {
        self.errno().is_some_and(is_gone)
    }

    /// The problem as the monitor and the peer see it: the path beside the reason, not in it.
    pub fn into_problem(self) -> Problem {
        self.to_problem()
    }

    /// The same, for an error that is still needed.
    pub fn to_problem(&self) -> Problem {
        let reason = format!("cannot {}: {}", self.doing, explain(&self.source));
        Problem { path: Some(self.path.clone()), reason }
    }
}

/// Why a content could not be staged.
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    /// The bytes are not what the digest and size say, or what they were to be taken from cannot be read.
    #[error("the content does not match its digest")]
    Mismatch,
    /// Somebody else is receiving it, and may never come to its end.
    #[error("the content is on its way in another stream")]
    Elsewhere,
    /// The disk refused.
    #[error(transparent)]
    Fs(#[from] FsError),
}

/// Whether `errno` tells that a name is absent or has become something that cannot be walked through.
pub(crate) fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

/// Whether `errno` tells that there is no room left, or none that this user may take.
pub(crate) fn is_full(errno: Errno) -> bool {
    matches!(errno, Errno::NOSPC | Errno::DQUOT)
}

/// The error in the system's words, and where those leave a person alone, what to do next.
pub(crate) fn explain(error: &io::Error) -> String {
    match Errno::from_io_error(error).and_then(hint) {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

fn hint(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::MFILE => "raise the limit of open files (ulimit -n)",
        Errno::NFILE => "the whole system is out of open files: raise fs.file-max",
        Errno::NOSPC => "free space or inodes there (df, df -i) and push again",
        Errno::DQUOT => "the disk quota there is used up: raise it or free space, and push again",
        Errno::ROFS => "the file system is mounted read-only: remount it writable",
        Errno::PERM => "not the owner, or the file is immutable or append-only (lsattr; chattr -i -a)",
        _ => return None,
    })
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not what was seen before, or did not stay so: look again.
    #[error("it changed")]
    Changed,
    /// The caller gave it up.
    #[error("cancelled")]
    Cancelled,
    /// It cannot be read.
    #[error(transparent)]
    Fs(#[from] FsError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_action_the_escaped_path_and_the_way_out() {
        let path = RelPath::new("a\n\u{1b}b").unwrap();
        let error = FsError::new("write", &path, Errno::NOSPC);
        let text = error.to_string();
        assert!(
            text.starts_with("cannot write a\\n\\x1bb: No space left on device (os error 28); free space"),
            "{text}"
        );
        assert_eq!(error.errno(), Some(Errno::NOSPC));
        let problem = FsError::new("read", &path, Errno::ACCESS).into_problem();
        assert_eq!(problem.reason, "cannot read: Permission denied (os error 13)");
        assert_eq!(problem.path, Some(path.clone()));
        assert_eq!(
            FsError::because("scan", &path, "keeps changing").into_problem().reason,
            "cannot scan: keeps changing"
        );
        assert_eq!(FsError::because("scan", &path, "x").errno(), None);
    }
}
