//! Where a tree is, told so that another process on the same machine can find out whether its own tree overlaps with it,
//! whatever either is called and however it is mounted, and nobody else learns anything.

use serde::{Deserialize, Serialize};

use crate::hash::Digest;

/// Most marks in each list of a region: a path of 4095 bytes has fewer names, and mounts beyond are not told.
pub const MAX_MARKS: usize = 4096;

/// A directory of a mounted file system, while that machine is up: a digest that only who knows the directory can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark(pub [u8; 16]);

impl Mark {
    /// The mark of the directory at `path`, counted from the top of the file system on that device. `boot` names the
    /// machine and the time since it was started.
    pub fn of(boot: &[u8], device: &str, path: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(boot.len() + device.len() + path.len() + 2);
        for part in [boot, device.as_bytes(), path] {
            bytes.extend_from_slice(part);
            // None of them has this byte.
            bytes.push(0);
        }
        let mut mark = [0; 16];
        mark.copy_from_slice(&Digest::of(&bytes).0[..16]);
        Self(mark)
    }
}

/// The place of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its top directory, then those above it up to the top of their file system.
    pub above: Vec<Mark>,
    /// What is mounted below it and belongs to it.
    pub mounts: Vec<Mark>,
    /// The directories above those.
    pub above_mounts: Vec<Mark>,
}

impl Region {
    /// How this tree lies to `other`, if they are not apart: `is the same as`, `lies inside` and so on. What both have
    /// mounted below them is not compared.
    pub fn lies(&self, other: &Self) -> Option<&'static str> {
        let (mine, others) = (self.above.first()?, other.above.first()?);
        let any_in = |some: &[Mark], all: &[Mark]| some.iter().any(|mark| all.contains(mark));
        if mine == others {
            Some("is the same as")
        } else if self.above.contains(others) || any_in(&other.mounts, &self.above) {
            Some("lies inside")
        } else if other.above.contains(mine) || any_in(&self.mounts, &other.above) {
            Some("contains")
        } else if other.above_mounts.contains(mine) {
            Some("has a part that is mounted inside")
        } else if self.above_mounts.contains(others) {
            Some("has mounted inside it a part of")
        } else {
            None
        }
    }

    /// Whether it is as long as it may be at most.
    pub fn is_bounded(&self) -> bool {
        [&self.above, &self.mounts, &self.above_mounts].iter().all(|marks| marks.len() <= MAX_MARKS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn above(path: &str) -> Vec<Mark> {
        let (device, path) = path.rsplit_once(':').unwrap();
        let all = std::path::Path::new(path).ancestors();
        all.map(|dir| Mark::of(b"boot", device, dir.as_os_str().as_encoded_bytes())).collect()
    }

    fn region(path: &str, mounts: &[&str]) -> Region {
        let all: Vec<_> = mounts.iter().map(|mount| above(mount)).collect();
        let mounts = all.iter().map(|above| above[0]).collect();
        let above_mounts = all.iter().flat_map(|above| &above[1..]).copied().collect();
        Region { above: above(path), mounts, above_mounts }
    }

    #[test]
    fn trees_overlap_whatever_they_are_called() {
        let a = region("8:1:/srv/www", &["8:2:/", "8:3:/x/y"]);
        let table = [
            (region("8:1:/srv/www", &[]), Some("is the same as")),
            (region("8:1:/srv/www/in", &[]), Some("lies inside")),
            (region("8:1:/srv", &[]), Some("contains")),
            (region("8:1:/srv/www2", &[]), None),
            (region("8:4:/srv/www/in", &[]), None),
            (region("8:2:/anything", &[]), Some("lies inside")),
            (region("8:3:/x/y/z", &[]), Some("lies inside")),
            (region("8:3:/x", &[]), Some("has a part that is mounted inside")),
            (region("8:3:/x/z", &[]), None),
            (region("8:9:/b", &["8:1:/srv"]), Some("contains")),
            (region("8:9:/b", &["8:1:/srv/www"]), Some("contains")),
            (region("8:9:/b", &["8:1:/srv/www/in"]), Some("has mounted inside it a part of")),
            // The same file system below both, such as /proc: nobody's tree is the other's.
            (region("8:9:/b", &["8:2:/"]), None),
        ];
        for (b, how) in table {
            assert_eq!(b.lies(&a), how, "{b:?}");
            assert_eq!(a.lies(&b).is_some(), how.is_some(), "{b:?}");
        }
        assert_eq!(Region::default().lies(&a), None);
        assert_ne!(Mark::of(b"boot", "8:1", b"/"), Mark::of(b"other", "8:1", b"/"));
    }
}
