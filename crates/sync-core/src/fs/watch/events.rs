//! Which file systems tell of every change.

use std::io;
use std::path::Path;

use rustix::fs::statfs;

/// Whether the kernel of this machine hears of all that changes on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// It does: every change goes through it.
    Complete,
    /// Others write to it as well, or nobody knows: it has to be looked at from time to time.
    Incomplete {
        /// Its name, for people.
        file_system: &'static str,
    },
}

/// What is to be expected of watches on the file system that `path` leads to.
///
/// # Errors
/// Those of `statfs`.
pub fn events_at(path: &Path) -> io::Result<Events> {
    // The type of the field differs between architectures; a magic number has 32 bits.
    Ok(events_of(statfs(path)?.f_type as u32))
}

/// Local ones, from `statfs(2)` and `linux/magic.h`. An overlay tells of what is changed through it; that nobody changes
/// its layers behind its back is what it asks for itself.
const COMPLETE: &[(u32, &str)] = &[
    (0xef53, "ext2, ext3 or ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0x794c_7630, "overlay"),
    (0xf2f5_2010, "f2fs"),
    (0x2fc1_2fc1, "zfs"),
    (0xca45_1a4e, "bcachefs"),
    (0x3153_464a, "jfs"),
    (0x5265_4973, "reiserfs"),
    (0x3434, "nilfs"),
    (0x2405_1905, "ubifs"),
    (0x4d44, "vfat"),
    (0x2011_bab0, "exfat"),
    (0x7366_746e, "ntfs"),
    (0x482b, "hfsplus"),
    (0x1501_3346, "udf"),
    (0x9660, "iso9660"),
    (0x7371_7368, "squashfs"),
    (0xe0f5_e1e2, "erofs"),
];

/// Those that another machine or process changes, or that make their contents when they are asked.
const INCOMPLETE: &[(u32, &str)] = &[
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb"),
    (0x517b, "smb"),
    (0x564c, "ncp"),
    (0x6573_5546, "fuse"),
    (0x0102_1997, "9p"),
    (0x786f_4256, "vboxsf"),
    (0xbacb_acbc, "vmhgfs"),
    (0x00c3_6400, "ceph"),
    (0x5346_414f, "afs"),
    (0x6b41_4653, "afs"),
    (0x7375_7245, "coda"),
    (0x0bd0_0bd0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x7461_636f, "ocfs2"),
    (0x0116_1970, "gfs2"),
    (0x2003_0528, "orangefs"),
    (0x0187, "autofs"),
    (0xf15f, "ecryptfs"),
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x6367_7270, "cgroup2"),
];

fn events_of(magic: u32) -> Events {
    let name = |table: &[(u32, &'static str)]| table.iter().find(|(known, _)| *known == magic).map(|(_, name)| *name);
    match name(COMPLETE) {
        Some(_) => Events::Complete,
        None => Events::Incomplete { file_system: name(INCOMPLETE).unwrap_or("an unknown file system") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_tell_everything_is_trusted() {
        for magic in [0xef53, 0x0102_1994, 0x5846_5342, 0x794c_7630] {
            assert_eq!(events_of(magic), Events::Complete);
        }
        let unknown = "an unknown file system";
        for (magic, file_system) in [(0x6969, "nfs"), (0x6573_5546, "fuse"), (0x0102_1997, "9p"), (1, unknown)] {
            assert_eq!(events_of(magic), Events::Incomplete { file_system });
        }
        assert_eq!(events_at(Path::new("/proc")).unwrap(), Events::Incomplete { file_system: "proc" });
        assert!(events_at(Path::new("/absent")).is_err());
        let mut all: Vec<_> = COMPLETE.iter().chain(INCOMPLETE).map(|(magic, _)| magic).collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "a file system is in both tables");
    }
}
