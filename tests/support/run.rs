//! Running the real binaries: found beside the test executable, built once per test process, never left hanging.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// The directory that holds `synccli` and `syncd`. `SYNC_TEST_BIN_DIR` points the tests at other builds.
pub fn bin_dir() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        if let Some(dir) = std::env::var_os("SYNC_TEST_BIN_DIR") {
            return PathBuf::from(dir);
        }
        let exe = std::env::current_exe().unwrap();
        let dir =
            exe.parent().and_then(Path::parent).expect("test executables live in target/PROFILE/deps").to_path_buf();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--workspace", "--bins"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        cargo.arg("--target-dir").arg(dir.parent().unwrap());
        if dir.ends_with("release") {
            cargo.arg("--release");
        }
        let status = cargo.status().expect("cargo runs");
        assert!(status.success(), "the binaries do not build");
        dir
    })
}

pub fn bin(name: &str) -> PathBuf {
    bin_dir().join(name)
}

/// A command line under construction.
pub struct Run {
    command: Command,
    line: String,
    timeout: Duration,
}

/// `synccli --state-dir STATE`.
pub fn synccli(state: &Path) -> Run {
    let mut run = Run::new(&bin("synccli"));
    run.arg("--state-dir").arg(state);
    run
}

impl Run {
    pub fn new(program: &Path) -> Run {
        let mut command = Command::new(program);
        // A test must not depend on, nor touch, what the caller has set up for himself.
        command.env_remove("RUST_LOG").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        Run { command, line: shown_word(program.as_os_str()), timeout: Duration::from_secs(120) }
    }

    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Run {
        let _ = write!(self.line, " {}", shown_word(arg.as_ref()));
        self.command.arg(arg);
        self
    }

    pub fn args<S: AsRef<OsStr>>(&mut self, args: &[S]) -> &mut Run {
        for arg in args {
            self.arg(arg);
        }
        self
    }

    pub fn env(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Run {
        self.command.env(name, value);
        self
    }

    pub fn current_dir(&mut self, dir: &Path) -> &mut Run {
        self.command.current_dir(dir);
        self
    }

    pub fn timeout(&mut self, seconds: u64) -> &mut Run {
        self.timeout = Duration::from_secs(seconds);
        self
    }

    /// Runs the same command line behind a wrapper such as `setpriv ... --` or `sh -c 'ulimit ...; exec "$@"' sh`.
    pub fn behind<S: AsRef<OsStr>>(&mut self, wrapper: &[S]) -> &mut Run {
        let mut outer = Command::new(wrapper[0].as_ref());
        outer.args(&wrapper[1..]).arg(self.command.get_program()).args(self.command.get_args());
        outer.env_remove("RUST_LOG").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        if let Some(dir) = self.command.get_current_dir() {
            outer.current_dir(dir);
        }
        let words: Vec<String> = wrapper.iter().map(|w| shown_word(w.as_ref())).collect();
        self.line = format!("{} {}", words.join(" "), self.line);
        self.command = outer;
        self
    }

    pub fn start(&mut self) -> Running {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("cannot run {}: {e}", self.line));
        let out = drain(child.stdout.take().unwrap());
        let err = drain(child.stderr.take().unwrap());
        Running { child, out: Some(out), err: Some(err), line: self.line.clone(), started, timeout: self.timeout }
    }

    /// Runs to the end, whatever the end is.
    pub fn run(&mut self) -> Ran {
        self.start().wait()
    }

    /// Runs and insists on exit code 0.
    pub fn ok(&mut self) -> Ran {
        self.run().code(0)
    }

    /// Runs and insists on this exit code.
    pub fn code(&mut self, code: i32) -> Ran {
        self.run().code(code)
    }
}

fn shown_word(word: &OsStr) -> String {
    word.as_encoded_bytes().escape_ascii().to_string()
}

fn drain(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}

/// A program that is running.
pub struct Running {
    child: Child,
    out: Option<JoinHandle<Vec<u8>>>,
    err: Option<JoinHandle<Vec<u8>>>,
    line: String,
    started: Instant,
    timeout: Duration,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn signal(&mut self, signal: Signal) {
        signal_child(&mut self.child, signal);
    }

    pub fn wait(mut self) -> Ran {
        let end = Instant::now() + self.timeout;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > end {
                let _ = self.child.kill();
                let _ = self.child.wait();
                let ran = self.collect(ExitStatus::from_raw(9));
                panic!("hung for {:?} and was killed\n{ran}", self.timeout);
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        self.collect(status)
    }

    fn collect(&mut self, status: ExitStatus) -> Ran {
        let took = self.started.elapsed();
        let out = self.out.take().unwrap().join().unwrap();
        let err = self.err.take().unwrap().join().unwrap();
        let ran = Ran { status, raw_out: out, raw_err: err, took, line: std::mem::take(&mut self.line) };
        assert!(!ran.err().contains("panicked at") && status.code() != Some(101), "a panic reached the user\n{ran}");
        ran
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal_child(child: &mut Child, signal: Signal) {
    // A child that was not reaped yet keeps its number, so the signal cannot hit a stranger.
    if child.try_wait().is_ok_and(|ended| ended.is_none()) {
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// A program that has ended.
pub struct Ran {
    pub status: ExitStatus,
    pub raw_out: Vec<u8>,
    pub raw_err: Vec<u8>,
    pub took: Duration,
    pub line: String,
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (out, err) = (clipped(&self.raw_out), clipped(&self.raw_err));
        write!(
            f,
            "command: {}\nended: {} after {:?}\nstdout:\n{out}\nstderr:\n{err}",
            self.line, self.status, self.took
        )
    }
}

fn clipped(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(3000) {
        Some((at, _)) => format!("{}... ({} bytes)", &text[..at], bytes.len()),
        None => text.into_owned(),
    }
}

impl Ran {
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.raw_out).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.raw_err).into_owned()
    }

    /// Everything the user saw.
    pub fn said(&self) -> String {
        self.out() + "\n" + &self.err()
    }

    #[track_caller]
    pub fn code(self, code: i32) -> Ran {
        assert!(self.status.code() == Some(code), "expected exit code {code}\n{self}");
        self
    }

    /// One of several codes, where the contract leaves the choice.
    #[track_caller]
    pub fn one_of(self, codes: &[i32]) -> Ran {
        let code = self.status.code();
        assert!(code.is_some_and(|c| codes.contains(&c)), "expected one of the exit codes {codes:?}\n{self}");
        self
    }

    /// Ended by this signal as a shell sees it: 128 + number, either as a code or by the signal itself.
    #[track_caller]
    pub fn by_signal(self, signal: i32) -> Ran {
        let as_code = self.status.code() == Some(128 + signal);
        assert!(as_code || self.status.signal() == Some(signal), "expected {} as exit code\n{self}", 128 + signal);
        self
    }

    /// Standard error names this.
    #[track_caller]
    pub fn names(self, what: &str) -> Ran {
        assert!(self.err().contains(what), "standard error does not name {what:?}\n{self}");
        self
    }

    /// Something the user sees contains this, whatever its case.
    #[track_caller]
    pub fn says(self, what: &str) -> Ran {
        assert!(self.said().to_lowercase().contains(&what.to_lowercase()), "nothing says {what:?}\n{self}");
        self
    }

    #[track_caller]
    pub fn does_not_say(self, what: &str) -> Ran {
        assert!(!self.said().to_lowercase().contains(&what.to_lowercase()), "something says {what:?}\n{self}");
        self
    }

    /// Standard output as JSON lines; every line must be an object with a type.
    #[track_caller]
    pub fn json(&self) -> Vec<serde_json::Value> {
        let mut objects = Vec::new();
        for line in self.out().lines() {
            let value: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("not a JSON line: {line:?}: {e}\n{self}"));
            assert!(value.is_object() && value["type"].is_string(), "no object with a type: {line}\n{self}");
            objects.push(value);
        }
        objects
    }

    #[track_caller]
    pub fn json_of(&self, kind: &str) -> Vec<serde_json::Value> {
        self.json().into_iter().filter(|v| v["type"] == kind).collect()
    }

    /// How the only destination ended.
    #[track_caller]
    pub fn summary(&self) -> Summary {
        let mut all = self.summaries();
        assert_eq!(all.len(), 1, "one destination expected\n{self}");
        all.remove(0)
    }

    #[track_caller]
    pub fn summaries(&self) -> Vec<Summary> {
        self.json_of("destination").into_iter().map(Summary).collect()
    }

    /// The itemized lines as (code, name). The name is what follows the code, up to an arrow; `dir/` loses its slash.
    #[track_caller]
    pub fn items(&self) -> Vec<(String, String)> {
        self.out().lines().filter_map(item).collect()
    }
}

/// Reads a line of itemized output; `None` for any other line.
pub fn item(line: &str) -> Option<(String, String)> {
    let (code, rest) = line.split_once(' ')?;
    let is_code = code == "*deleting" || (code.len() == 11 && code.starts_with(['<', '>', 'c', 'h', '.', '*']));
    if !is_code {
        return None;
    }
    let rest = rest.trim_start();
    let name = rest.split(" -> ").next().unwrap().split(" => ").next().unwrap();
    let name = match name.strip_suffix('/') {
        Some(bare) => bare,
        None => name,
    };
    let name = if name.is_empty() { "." } else { name };
    Some((code.to_string(), name.to_string()))
}

/// How one destination ended, as JSON.
#[derive(Debug)]
pub struct Summary(pub serde_json::Value);

impl Summary {
    /// A count of the statistics, wherever the object keeps them.
    #[track_caller]
    pub fn count(&self, name: &str) -> u64 {
        let value = if self.0["stats"].is_object() { &self.0["stats"][name] } else { &self.0[name] };
        value.as_u64().unwrap_or_else(|| panic!("no count {name} in {}", self.0))
    }

    pub fn exact(&self) -> bool {
        self.0["exact"].as_bool().expect("exact is a truth value")
    }

    pub fn changes(&self) -> u64 {
        ["created", "updated", "metadata_only", "moved", "deleted"].iter().map(|n| self.count(n)).sum()
    }
}

/// Runs a tool that is no part of the project; its failure is the test's failure.
#[track_caller]
pub fn tool(program: &str, args: &[&OsStr]) -> Vec<u8> {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}: {err}", output.status);
    output.stdout
}

/// Whether a program can be found.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
