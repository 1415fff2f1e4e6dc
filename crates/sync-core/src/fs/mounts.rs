//! What is mounted where, as the kernel tells it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// The table of what is mounted for this thread: it may have mounts of its own. Whoever polls it for `POLLPRI` hears of
/// each change after it was opened.
///
/// # Errors
/// Of the file system, where there is no such table.
pub fn table() -> io::Result<File> {
    File::open("/proc/thread-self/mountinfo")
}

/// All that is in it now.
///
/// # Errors
/// Of the file system.
pub fn all(table: &mut File) -> io::Result<Vec<Mount>> {
    let mut lines = Vec::new();
    table.rewind()?;
    table.read_to_end(&mut lines)?;
    Ok(lines.split(|&b| b == b'\n').filter_map(Mount::parse).collect())
}

/// Whether anything is mounted below a directory.
///
/// # Errors
/// Of the file system.
pub fn mounted_beneath(top: &Path) -> io::Result<bool> {
    let top = std::fs::canonicalize(top)?;
    Ok(all(&mut table()?)?.iter().any(|mount| mount.point != top && mount.point.starts_with(&top)))
}

/// A line of proc_pid_mountinfo(5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mount {
    /// Its own as long as it lasts; the next one gets it again.
    pub id: u64,
    /// What is mounted, as two numbers.
    pub device: String,
    /// What of the file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&b| b == b' ');
        let mut text = || std::str::from_utf8(fields.next()?).ok();
        let (id, _parent, device) = (text()?.parse().ok()?, text()?, text()?.to_owned());
        let mut path = || fields.next().map(unescape).filter(|path| path.is_absolute());
        Some(Self { id, device, root: path()?, point: path()? })
    }
}

/// Blanks, tabs, line feeds and backslashes are three octal digits behind a backslash.
fn unescape(mut field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    while let Some((&byte, rest)) = field.split_first() {
        let code = rest.get(..3).and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        match code.filter(|_| byte == b'\\') {
            Some(code) => {
                path.push(code);
                field = &rest[3..];
            }
            None => {
                path.push(byte);
                field = rest;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_mounts_is_read_as_the_kernel_writes_it() {
        let mount =
            Mount::parse(b"36 35 98:0 /mnt1\\040x /mnt2\\134\\012 rw,noatime master:1 - ext3 /dev/root rw").unwrap();
        assert_eq!((mount.id, &*mount.device), (36, "98:0"));
        assert_eq!((mount.root, mount.point), (PathBuf::from("/mnt1 x"), PathBuf::from("/mnt2\\\n")));
        assert!(Mount::parse(b"").is_none() && Mount::parse(b"1 2 0:4 net:[4026531840] /run/x rw").is_none());
    }
}
