//! Where paths of a request lead, before any root is open: canonical names, and whether two places are apart.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The canonical path of a place that exists, or would exist once its missing last components are made.
///
/// # Errors
/// If a component above cannot be looked at, or a `..` follows one that does not exist.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && std::fs::symlink_metadata(path).is_err() => {
            let name = path.file_name().ok_or(error)?;
            let parent = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            Ok(resolve(parent)?.join(name))
        }
        other => other,
    }
}

/// Makes a directory; the one above it must be there, so that a mistyped path is noticed.
///
/// # Errors
/// As mkdir(2).
pub fn create(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(error.kind(), "the directory above it does not exist: make it first"),
        _ => error,
    })
}

/// Device and inode of a directory; `None` if there is none.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Whether two canonical places are apart: not the same directory and neither inside the other, also when one is
/// reached through a bind mount.
///
/// # Errors
/// How `place` lies to `other`: `is the same as`, `lies inside`, `contains`.
pub fn check_apart(other: &Path, place: &Path) -> Result<(), &'static str> {
    let same = |a: &Path, b: &Path| a == b || (identity(a).is_some() && identity(a) == identity(b));
    if same(other, place) {
        return Err("is the same as");
    }
    if place.ancestors().skip(1).any(|above| same(above, other)) {
        return Err("lies inside");
    }
    if other.ancestors().skip(1).any(|above| same(above, place)) {
        return Err("contains");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_how_places_overlap() {
        let dir = tempfile::tempdir().unwrap();
        let top = resolve(dir.path()).unwrap();
        let (a, b) = (top.join("a"), top.join("b"));
        std::fs::create_dir(&a).unwrap();
        assert_eq!(check_apart(&a, &b), Ok(()));
        assert_eq!(check_apart(&a, &a), Err("is the same as"));
        assert_eq!(check_apart(&a, &resolve(&a.join("x/y")).unwrap()), Err("lies inside"));
        assert_eq!(check_apart(&a, &top), Err("contains"));
        std::os::unix::fs::symlink(&a, top.join("link")).unwrap();
        assert_eq!(resolve(&top.join("link/x")).unwrap(), a.join("x"));
    }
}
