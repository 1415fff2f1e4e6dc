//! File systems of a test's own: ext4 and XFS on a loop device, small tmpfs, and a power cut.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

use super::{Scratch, has, skip, tool};

/// Gives this thread, and what it starts, a mount namespace of its own. False where the kernel says no.
#[allow(unsafe_code)]
pub fn own_mount_namespace() -> bool {
    // SAFETY: only mounts and the working directory stop being shared with other threads; no test relies on either.
    let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.is_ok();
    unshared && rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).is_ok()
}

/// Mounts a tmpfs with these options; the mount goes with the test's namespace.
pub fn mount_tmpfs(at: &Path, options: &str) {
    std::fs::create_dir_all(at).unwrap();
    let words = ["-t", "tmpfs", "-o", options, "test"];
    let mut args: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    args.push(at.as_os_str());
    tool("mount", &args);
}

pub fn remount(at: &Path, options: &str) {
    tool("mount", &[OsStr::new("-o"), OsStr::new(&format!("remount,{options}")), at.as_os_str()]);
}

pub fn bind(from: &Path, at: &Path) {
    tool("mount", &[OsStr::new("--bind"), from.as_os_str(), at.as_os_str()]);
}

pub fn unmount(at: &Path) {
    tool("umount", &[at.as_os_str()]);
}

/// A file system in an image file.
pub struct Disk {
    image: PathBuf,
    pub at: PathBuf,
    mounted: bool,
}

/// How the power goes: what `EXT4_IOC_SHUTDOWN` does with what was not yet written.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// Freeze first: everything is flushed (flag 0).
    Flushed = 0,
    /// The journal is flushed, data may be lost (flag 1).
    LogFlushed = 1,
    /// Nothing is flushed: what was not made durable is gone (flag 2).
    Sudden = 2,
}

impl Disk {
    /// Makes and mounts it, or says loudly why it cannot and returns nothing.
    pub fn ext4(test: &str, scratch: &Scratch, name: &str, mebibytes: u64) -> Option<Disk> {
        Disk::ext4_with(test, scratch, name, mebibytes, &["-b", "4096", "-I", "256"])
    }

    pub fn ext4_with(test: &str, scratch: &Scratch, name: &str, mebibytes: u64, mkfs: &[&str]) -> Option<Disk> {
        Disk::new(test, scratch, name, mebibytes, ("mkfs.ext4", &[&["-q", "-F"], mkfs].concat()))
    }

    /// The same with XFS, on which files can share blocks. Its image takes the room of what is written to it.
    pub fn xfs(test: &str, scratch: &Scratch, name: &str) -> Option<Disk> {
        Disk::new(test, scratch, name, 512, ("mkfs.xfs", &["-q", "-f", "-m", "reflink=1"]))
    }

    fn new(test: &str, scratch: &Scratch, name: &str, mebibytes: u64, mkfs: (&str, &[&str])) -> Option<Disk> {
        let (program, options) = mkfs;
        if !scratch.mounts || !has(program) {
            skip(test, &format!("needs root, a mount namespace and {program}"));
            return None;
        }
        // Beside what is tested, wherever the mount point is.
        let image = scratch.path(format!("{}.img", name.replace('/', "-")));
        std::fs::File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        let args: Vec<&OsStr> = options.iter().map(OsStr::new).chain([image.as_os_str()]).collect();
        tool(program, &args);
        let at = scratch.dir(name);
        let mut disk = Disk { image, at, mounted: false };
        match disk.try_mount() {
            Ok(()) => Some(disk),
            Err(why) => {
                skip(test, &format!("no loop mount here: {why}"));
                None
            }
        }
    }

    fn try_mount(&mut self) -> Result<(), String> {
        let output = Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at).output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_string());
        }
        self.mounted = true;
        Ok(())
    }

    pub fn mount(&mut self) {
        self.try_mount().unwrap_or_else(|e| panic!("cannot mount {}: {e}", self.image.display()));
    }

    pub fn unmount(&mut self) {
        // A process that was just killed may hold the mount for a moment.
        super::wait_for("the unmounting of a test disk", 10, || {
            Command::new("umount").arg(&self.at).output().unwrap().status.success()
        });
        self.mounted = false;
    }

    /// Cuts the power and brings the disk back as the next boot would.
    pub fn power_cut(&mut self, cut: Cut) {
        self.go_dark(cut);
        self.unmount();
        self.mount();
    }

    /// Cuts the power: from here on the file system writes nothing more.
    #[allow(unsafe_code)]
    pub fn go_dark(&self, cut: Cut) {
        const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
        let top = std::fs::File::open(&self.at).unwrap();
        // SAFETY: EXT4_IOC_SHUTDOWN reads one u32 through the pointer, and that is what Setter hands it.
        unsafe {
            let request = rustix::ioctl::Setter::<SHUTDOWN, u32>::new(cut as u32);
            rustix::ioctl::ioctl(top.as_fd(), request).expect("the file system can be shut down");
        }
    }

    /// Changes bytes on the medium itself: no inode hears of it. The disk must be unmounted.
    pub fn rot(&self, from: &[u8], to: &[u8]) {
        assert!(!self.mounted && from.len() == to.len());
        let mut bytes = std::fs::read(&self.image).unwrap();
        let mut found = 0;
        let mut at = 0;
        while at + from.len() <= bytes.len() {
            // File content starts at a block boundary.
            if bytes[at..].starts_with(from) {
                bytes[at..at + to.len()].copy_from_slice(to);
                found += 1;
            }
            at += 1024;
        }
        assert!(found > 0, "the content is not on the disk");
        std::fs::write(&self.image, bytes).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.at).output();
        }
    }
}
