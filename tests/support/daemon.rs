//! A `syncd` of the test's own.

use std::ffi::OsString;
use std::fs::File;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::{Ran, Run, Scratch, bin, signal_child, synccli, wait_for};

pub struct Daemon {
    child: Option<Child>,
    args: Vec<OsString>,
    /// The command that puts it where it runs, such as another network namespace.
    behind: Vec<OsString>,
    /// The address that it listens on.
    pub host: String,
    pub port: u16,
    pub state: PathBuf,
    pub log: PathBuf,
}

/// A replica of the share `www` at `SCRATCH/NAME`, its state at `SCRATCH/state-NAME`.
pub fn replica(scratch: &Scratch, name: &str) -> Daemon {
    Daemon::start(scratch, &format!("state-{name}"), &[("www", &scratch.dir(name))])
}

/// The share `www` as `synccli status --json` has it, once the daemon with this state directory answers.
pub fn status(state: &Path) -> Value {
    let mut share = Value::Null;
    wait_for("the daemon to answer", 60, || {
        let ran = synccli(state).args(&["status", "www", "--json"]).run();
        if ran.status.success() {
            share = ran.json()[0]["shares"][0].clone();
        }
        !share.is_null()
    });
    share
}

/// Waits until a master says so of the replica with this number.
pub fn waits_for_state(state: &Path, number: usize, wanted: &str) {
    wait_for(&format!("replica {number} to be {wanted}"), 60, || status(state)["replicas"][number]["state"] == wanted);
}

/// Waits until a replica says so of itself.
pub fn waits_for_copy(state: &Path, wanted: &str) {
    wait_for(&format!("the replica to be {wanted}"), 60, || status(state)["copy"]["state"] == wanted);
}

/// A UDP port that was free a moment ago.
pub fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Daemon {
    /// Starts it with these shares and waits until it listens. Its state is `SCRATCH/NAME`.
    pub fn start(scratch: &Scratch, name: &str, shares: &[(&str, &Path)]) -> Daemon {
        let mut daemon = Daemon::new(scratch, name, shares);
        daemon.up();
        daemon
    }

    /// Only sets it up.
    pub fn new(scratch: &Scratch, name: &str, shares: &[(&str, &Path)]) -> Daemon {
        Daemon::new_at(scratch, name, shares, "127.0.0.1", Vec::new())
    }

    /// The same at another address, started behind a command.
    pub fn new_at(
        scratch: &Scratch,
        name: &str,
        shares: &[(&str, &Path)],
        host: &str,
        behind: Vec<OsString>,
    ) -> Daemon {
        let state = scratch.path(name);
        let port = free_port();
        let mut args: Vec<OsString> = vec!["--state-dir".into(), state.clone().into()];
        args.extend(["--listen".into(), format!("{host}:{port}").into()]);
        for (share, path) in shares {
            let mut value = OsString::from(format!("{share}="));
            value.push(path);
            args.extend(["--share".into(), value]);
        }
        Daemon {
            child: None,
            args,
            behind,
            host: host.to_owned(),
            port,
            state,
            log: scratch.path(format!("{name}.log")),
        }
    }

    /// A replica of a share `www` at `path`, with more keys of its table. Starts it and waits until it listens.
    pub fn replica(scratch: &Scratch, name: &str, path: &Path, keys: &str) -> Daemon {
        let mut daemon = Daemon::replica_at(scratch, name, path, keys, "127.0.0.1", Vec::new());
        daemon.up();
        daemon
    }

    /// Only sets it up, at an address, to be started behind a command.
    pub fn replica_at(
        scratch: &Scratch,
        name: &str,
        path: &Path,
        keys: &str,
        host: &str,
        behind: Vec<OsString>,
    ) -> Daemon {
        let (state, port) = (scratch.path(name), free_port());
        // Not on a disk that a test fills or cuts.
        let aside = name.replace('/', "-");
        let (config, log) = (scratch.path(format!("{aside}.toml")), scratch.path(format!("{aside}.log")));
        let (dir, path) = (state.display(), path.display());
        let listen = format!("listen = ['{host}:{port}']");
        std::fs::write(&config, format!("state_dir = '{dir}'\n{listen}\n[shares.www]\npath = '{path}'\n{keys}\n"))
            .unwrap();
        let args = vec!["--config".into(), config.into()];
        Daemon { child: None, args, behind, host: host.to_owned(), port, state, log }
    }

    /// The master of a share `www` at `path`, for these replicas, with more keys of its table. Starts it.
    pub fn master(scratch: &Scratch, name: &str, path: &Path, replicas: &[&Daemon], keys: &str) -> Daemon {
        Daemon::master_behind(scratch, name, path, replicas, keys, Vec::new())
    }

    /// The same started behind a command.
    pub fn master_behind(
        scratch: &Scratch,
        name: &str,
        path: &Path,
        replicas: &[&Daemon],
        keys: &str,
        behind: Vec<OsString>,
    ) -> Daemon {
        let state = scratch.path(name);
        for replica in replicas {
            replica.pair(&state);
        }
        let config = scratch.path(format!("{name}.toml"));
        let replicas: Vec<String> = replicas.iter().map(|replica| replica.address()).collect();
        let (dir, path) = (state.display(), path.display());
        let text = format!("state_dir = '{dir}'\n[share.www]\npath = '{path}'\nreplicas = {replicas:?}\n{keys}\n");
        std::fs::write(&config, text).unwrap();
        let args = vec!["--config".into(), config.into()];
        let (host, log) = (String::new(), scratch.path(format!("{name}.log")));
        let mut daemon = Daemon { child: None, args, behind, host, port: 0, state, log };
        daemon.child = Some(daemon.spawn());
        daemon
    }

    /// It listens there, as its configuration says.
    pub fn listens_on(&mut self, host: &str, port: u16) {
        (self.host, self.port) = (host.to_owned(), port);
    }

    /// Has it listen at another address as well.
    pub fn listen_at(&mut self, address: &str) {
        self.args.extend(["--listen".into(), address.into()]);
    }

    /// Starts a master again, or a replica without waiting until it listens.
    pub fn restart(&mut self) {
        self.child = Some(self.spawn());
    }

    fn spawn(&self) -> Child {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let syncd = bin("syncd").into_os_string();
        let mut words = self.behind.iter().chain([&syncd]).chain(&self.args);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env_remove("RUST_LOG").stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap()
    }

    /// Starts it (again) and waits until it listens.
    pub fn up(&mut self) {
        let mut child = self.spawn();
        let end = Instant::now() + Duration::from_secs(20);
        while !self.listens(child.id()) {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < end, "syncd does not listen ({ended:?}):\n{}", self.logged());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child = Some(child);
    }

    /// Whether somebody in the network namespace of this process holds the port.
    fn listens(&self, pid: u32) -> bool {
        let port = format!(":{:04X} ", self.port);
        ["udp", "udp6"].iter().any(|table| {
            std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).is_ok_and(|sockets| sockets.contains(&port))
        })
    }

    pub fn logged(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// `HOST:PORT/SHARE`.
    pub fn dest(&self, share: &str) -> String {
        format!("{}/{share}", self.address())
    }

    /// `syncd --state-dir R invite`: the token.
    pub fn invite(&self) -> String {
        let ran = syncd(&self.state).arg("invite").ok();
        assert_eq!(ran.out().lines().count(), 1, "one line on standard output: the token\n{ran}");
        ran.out().trim().to_string()
    }

    /// Pairs the master whose state directory this is.
    pub fn pair(&self, master: &Path) -> Ran {
        let token = self.invite();
        synccli(master).args(&["pair", &self.address(), &token]).ok()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    pub fn signal(&mut self, signal: Signal) {
        signal_child(self.child.as_mut().unwrap(), signal);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM; the time it took to go.
    pub fn term(&mut self) -> (Duration, ExitStatus) {
        let mut child = self.child.take().unwrap();
        let start = Instant::now();
        signal_child(&mut child, Signal::TERM);
        let mut status = None;
        wait_for("syncd to end after SIGTERM", 20, || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        (start.elapsed(), status.unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // One that a test stopped would not hear anything else.
            let _ = child.kill();
            let _ = child.wait();
        }
        let logged = self.logged();
        if std::thread::panicking() {
            let lines: Vec<&str> = logged.lines().collect();
            let (head, tail) = lines.split_at(lines.len().min(20));
            let (middle, tail) = tail.split_at(tail.len().saturating_sub(40));
            // Of what is left out, what is not routine.
            let unusual: Vec<&str> = middle.iter().filter(|line| !line.contains(" INFO ")).take(40).copied().collect();
            let (head, unusual, tail) = (head.join("\n"), unusual.join("\n"), tail.join("\n"));
            eprintln!("log of syncd:\n{head}\n... {} lines, among them ...\n{unusual}\n...\n{tail}", middle.len());
        } else {
            assert!(!logged.contains("panicked at"), "syncd panicked:\n{logged}");
        }
    }
}

/// `syncd --state-dir R`.
pub fn syncd(state: &Path) -> Run {
    let mut run = Run::new(&bin("syncd"));
    run.arg("--state-dir").arg(state);
    run
}

/// `synccli --state-dir M pair 127.0.0.1:PORT TOKEN`.
pub fn pair(master: &Path, port: u16, token: &str) -> Run {
    let mut run = synccli(master);
    run.args(&["pair", &format!("127.0.0.1:{port}"), token]);
    run
}
