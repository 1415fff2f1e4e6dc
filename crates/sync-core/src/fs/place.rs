//! Where paths of a request lead, before any root is open: canonical names, and whether two places are apart.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::mounts::{self, Mount};
use crate::region::{MAX_MARKS, Mark, Region};

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

/// Removes a directory that is empty; any other stays.
pub fn remove_empty(path: &Path) {
    let _ = std::fs::remove_dir(path);
}

/// Device and inode of a directory; `None` if there is none.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Whether two canonical places are apart: not the same directory and neither inside the other, also when one is
/// reached through a bind mount, or, unless mounts below them are left out, contains one.
///
/// # Errors
/// How `place` lies to `other`: `is the same as`, `lies inside`, `contains` and the like.
pub fn check_apart(other: &Path, place: &Path, with_mounts: bool) -> Result<(), &'static str> {
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
    let regions = region(place, with_mounts).zip(region(other, with_mounts));
    regions.and_then(|(place, other)| place.lies(&other)).map_or(Ok(()), Err)
}

/// Where a canonical place is, to be compared with others of this machine; `None` if the kernel does not tell. It need
/// not be there yet.
pub fn region(place: &Path, with_mounts: bool) -> Option<Region> {
    let mounts = mounts::all(&mut mounts::table().ok()?).ok()?;
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    let there = place.ancestors().find(|dir| std::fs::symlink_metadata(dir).is_ok())?;
    let is_over = |mount: &&Mount| there.starts_with(&mount.point);
    let own = match mount_id(there) {
        Some(id) => mounts.iter().find(|mount| mount.id == id).filter(is_over)?,
        None => mounts.iter().filter(is_over).max_by_key(|mount| mount.point.as_os_str().len())?,
    };
    let above = |mount: &Mount, beneath: &Path| -> Vec<Mark> {
        // Without a slash at its end.
        let place: PathBuf = mount.root.join(beneath).components().collect();
        let marks = place.ancestors().map(|dir| Mark::of(&boot, &mount.device, dir.as_os_str().as_encoded_bytes()));
        marks.take(MAX_MARKS).collect()
    };
    let mut region = Region { above: above(own, place.strip_prefix(&own.point).ok()?), ..Region::default() };
    for mount in mounts.iter().filter(|mount| with_mounts && mount.point != place && mount.point.starts_with(place)) {
        let mut marks = above(mount, Path::new("")).into_iter();
        region.mounts.extend(marks.next());
        region.above_mounts.extend(marks);
    }
    region.mounts.truncate(MAX_MARKS);
    region.above_mounts.truncate(MAX_MARKS);
    Some(region)
}

/// The mount that a directory is reached through; `None` before Linux 5.8.
fn mount_id(path: &Path) -> Option<u64> {
    let found = statx(CWD, path, AtFlags::NO_AUTOMOUNT, StatxFlags::MNT_ID).ok()?;
    StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID).then_some(found.stx_mnt_id)
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
        assert_eq!(check_apart(&a, &b, true), Ok(()));
        assert_eq!(check_apart(&a, &a, true), Err("is the same as"));
        assert_eq!(check_apart(&a, &resolve(&a.join("x/y")).unwrap(), true), Err("lies inside"));
        assert_eq!(check_apart(&a, &top, true), Err("contains"));
        std::os::unix::fs::symlink(&a, top.join("link")).unwrap();
        assert_eq!(resolve(&top.join("link/x")).unwrap(), a.join("x"));
    }

    #[test]
    fn a_place_that_is_not_there_yet_is_where_it_will_be() {
        let dir = tempfile::tempdir().unwrap();
        let top = resolve(dir.path()).unwrap();
        let (there, new) = (region(&top, true).unwrap(), region(&top.join("x/y"), true).unwrap());
        assert_eq!(new.above[2..], there.above);
        assert_eq!((new.lies(&there), there.lies(&new)), (Some("lies inside"), Some("contains")));
    }
}
