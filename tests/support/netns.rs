//! Network namespaces: the test's own, and one behind a cable for each replica. All of it goes with the test's processes.

use std::ffi::{OsStr, OsString};
use std::process::{Child, Command, Stdio};

use rustix::thread::UnshareFlags;

use super::{has, is_root, tool, wait_for};

/// How a cable is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The replica's end is down: it is told at once that nothing can be sent, while what is sent to it is lost.
    Down,
    /// Both ends seem well, and every packet is lost.
    Silent,
}

/// One namespace, and the cable between it and the test's.
pub struct Cable {
    /// Keeps the namespace while no replica runs in it.
    holder: Child,
    near: String,
    /// The address at the far end.
    pub host: String,
    cut: Option<Cut>,
}

/// A network namespace for this thread and what it starts, with as many cables to others. `None` where the kernel or the
/// tools do not allow it.
#[allow(unsafe_code)]
pub fn cables(count: usize) -> Option<Vec<Cable>> {
    if !is_root() || !["ip", "nsenter", "unshare"].iter().all(|program| has(program)) {
        return None;
    }
    // SAFETY: only this thread's network changes, and sockets that are open stay where they were made.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.ok()?;
    run("ip", &["link", "set", "lo", "up"]).ok()?;
    (0..count).map(Cable::new).collect()
}

impl Cable {
    fn new(number: usize) -> Option<Cable> {
        let (near, host) = (format!("sync{number}"), format!("10.77.{number}.2"));
        let here = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let holder = Command::new("unshare").args(["--net", "sleep", "86400"]).stdin(Stdio::null()).spawn().ok()?;
        let cable = Cable { holder, near, host, cut: None };
        let there = format!("/proc/{}/ns/net", cable.holder.id());
        wait_for("a network namespace", 10, || std::fs::read_link(&there).is_ok_and(|there| there != here));
        let pid = cable.holder.id().to_string();
        run("ip", &["link", "add", &cable.near, "type", "veth", "peer", "name", "far", "netns", &pid]).ok()?;
        run("ip", &["address", "add", &format!("10.77.{number}.1/24"), "dev", &cable.near]).ok()?;
        run("ip", &["link", "set", &cable.near, "up"]).ok()?;
        cable.far(&["ip", "link", "set", "lo", "up"]).ok()?;
        cable.far(&["ip", "address", "add", &format!("{}/24", cable.host), "dev", "far"]).ok()?;
        cable.far(&["ip", "link", "set", "far", "up"]).ok()?;
        Some(cable)
    }

    /// What starts a program at the far end.
    pub fn behind(&self) -> Vec<OsString> {
        vec!["nsenter".into(), format!("--net=/proc/{}/ns/net", self.holder.id()).into()]
    }

    fn far(&self, words: &[&str]) -> Result<(), String> {
        let net = format!("--net=/proc/{}/ns/net", self.holder.id());
        run("nsenter", &[&[net.as_str()], words].concat())
    }

    /// Cuts it, in another way where the kernel lacks the one that was asked for; the way it was done.
    pub fn cut(&mut self, how: Cut) -> Cut {
        assert!(self.cut.is_none());
        // A bucket that holds less than any packet: each that is sent is dropped, and nobody is told.
        let bucket = ["root", "tbf", "rate", "1kbit", "burst", "10", "limit", "10"];
        let silent = how == Cut::Silent
            && self.far(&[&["tc", "qdisc", "add", "dev", "far"][..], &bucket].concat()).is_ok()
            && run("tc", &[&["qdisc", "add", "dev", self.near.as_str()][..], &bucket].concat()).is_ok();
        if !silent {
            self.far(&["ip", "link", "set", "far", "down"]).unwrap();
        }
        let how = if silent { Cut::Silent } else { Cut::Down };
        self.cut = Some(how);
        how
    }

    /// Makes it as slow as this in both directions, or as fast as it can be; `false` where the kernel or the tools cannot.
    pub fn slow(&mut self, rate: Option<&str>) -> bool {
        // There may be none yet.
        let _ = self.far(&["tc", "qdisc", "del", "dev", "far", "root"]);
        let _ = run("tc", &["qdisc", "del", "dev", self.near.as_str(), "root"]);
        let Some(rate) = rate else { return true };
        let bucket = ["root", "tbf", "rate", rate, "burst", "64kb", "latency", "50ms"];
        self.far(&[&["tc", "qdisc", "add", "dev", "far"][..], &bucket].concat()).is_ok()
            && run("tc", &[&["qdisc", "add", "dev", self.near.as_str()][..], &bucket].concat()).is_ok()
    }

    /// Both ends take frames of so many bytes, one at a time.
    pub fn frames(&self, bytes: usize) {
        let mtu = bytes.to_string();
        let sized = ["mtu", &mtu, "gso_max_segs", "1"];
        run("ip", &[&["link", "set", "dev", &self.near], &sized[..]].concat()).unwrap();
        self.far(&[&["ip", "link", "set", "dev", "far"], &sized[..]].concat()).unwrap();
    }

    /// Bytes that were sent from the near end, and in how many packets.
    pub fn sent(&self) -> (u64, u64) {
        let shown = Command::new("ip").args(["-s", "-j", "link", "show", "dev", &self.near]).output().unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        let count = |what: &str| shown[0]["stats64"]["tx"][what].as_u64().unwrap();
        (count("bytes"), count("packets"))
    }

    pub fn mend(&mut self) {
        match self.cut.take() {
            Some(Cut::Silent) => {
                self.far(&["tc", "qdisc", "del", "dev", "far", "root"]).unwrap();
                let words = ["qdisc", "del", "dev", self.near.as_str(), "root"].map(OsStr::new);
                tool("tc", &words);
            }
            Some(Cut::Down) => self.far(&["ip", "link", "set", "far", "up"]).unwrap(),
            None => {}
        }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
