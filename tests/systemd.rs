//! `syncd` as a service: what it tells the service manager, the units in `packaging/`, and the daemon under their restrictions.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test drives the disk itself, and its failure is its report"
)]

mod support;

use std::ffi::OsString;
use std::net::UdpSocket;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use support::daemon::free_port;
use support::*;

/// Long enough for a loaded machine.
const PATIENCE: u64 = 60;

/// The most that `systemd-analyze security` may find, in tenths.
const MASTER_EXPOSURE: u32 = 26;
const REPLICA_EXPOSURE: u32 = 30;

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

/// What systemd is to a service.
struct Manager {
    socket: UnixDatagram,
    name: String,
}

impl Manager {
    fn at_a_path(scratch: &Scratch) -> Manager {
        let path = scratch.path("notify");
        Manager::of(UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned())
    }

    fn at_an_abstract_name() -> Manager {
        let name = format!("sync-e2e/notify/{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        Manager::of(UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"))
    }

    fn of(socket: UnixDatagram, name: String) -> Manager {
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Manager { socket, name }
    }

    /// The command that starts a program as its service, which is to be heard of once a second.
    fn starts(&self) -> Vec<OsString> {
        vec!["env".into(), format!("NOTIFY_SOCKET={}", self.name).into(), "WATCHDOG_USEC=1000000".into()]
    }

    fn next(&self) -> Option<String> {
        let mut buffer = [0; 5000];
        let length = self.socket.recv(&mut buffer).ok()?;
        assert!(length <= 4096, "systemd ignores what is longer");
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    }

    /// The next message with such a line.
    fn hears(&self, line: &str) -> String {
        let (end, mut others) = (Instant::now() + Duration::from_secs(PATIENCE), Vec::new());
        while Instant::now() < end {
            let message = self.next();
            match message.filter(|message| !message.starts_with("WATCHDOG=1") || line == "WATCHDOG=1") {
                Some(message) if message.lines().any(|said| said == line) => return message,
                other => others.extend(other),
            }
        }
        panic!("never heard {line:?}, but {others:?}");
    }
}

fn now() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

#[test]
fn a_master_tells_the_service_manager_how_it_is() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 60, 1);
    let mut one = Daemon::start(&scratch, "r", &[("www", &scratch.dir("one"))]);
    let manager = Manager::at_a_path(&scratch);
    let mut master = Daemon::master_behind(&scratch, "m", &src, &[&one], "", manager.starts());
    let ready = manager.hears("READY=1");
    // At once: what waits for the service may use it.
    synccli(&master.state).arg("status").ok();
    assert!(ready.contains("\nSTATUS=1 share: www master"), "{ready}");
    manager.hears("STATUS=1 share: www master, 1 of 1 replica in sync");
    one.kill();
    manager.hears("STATUS=1 share: www master, 0 of 1 replica in sync");
    one.up();
    manager.hears("STATUS=1 share: www master, 1 of 1 replica in sync");

    // Twice in the time in which it is to be heard of, and not while it hangs.
    let began = Instant::now();
    (0..4).for_each(|_| drop(manager.hears("WATCHDOG=1")));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    master.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(100));
    while manager.next().is_some() {}
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(manager.next(), None, "of a daemon that is stopped");
    master.signal(Signal::CONT);
    manager.hears("WATCHDOG=1");

    // Whatever comes of it.
    let config = scratch.path("m.toml");
    let good = std::fs::read_to_string(&config).unwrap();
    for text in [good.as_str(), "this is no configuration"] {
        std::fs::write(&config, text).unwrap();
        let before = now();
        master.signal(Signal::HUP);
        let reloading = manager.hears("RELOADING=1");
        let of = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
        assert!((before..=now()).contains(&of.parse().unwrap()), "{reloading}");
        manager.hears("READY=1");
    }
    wait_for("the log to say so", PATIENCE, || master.logged().contains("nothing was changed"));

    let (_, status) = master.term();
    assert!(status.success());
    manager.hears("STOPPING=1");
    assert_eq!(manager.next(), None, "after its end was told");
}

#[test]
fn a_replica_is_ready_when_it_listens() {
    let scratch = Scratch::new();
    let dst = scratch.dir("one");
    let manager = Manager::at_an_abstract_name();
    let behind = manager.starts();
    let mut replica = Daemon::new_at(&scratch, "r", &[("www", &dst)], "127.0.0.1", behind.clone());
    replica.restart();
    let ready = manager.hears("READY=1");
    assert!(UdpSocket::bind(replica.address()).is_err(), "it listens by then");
    assert!(ready.contains("\nSTATUS=1 share: www replica"), "{ready}");
    replica.signal(Signal::INT);
    manager.hears("STOPPING=1");
    wait_for("its end", PATIENCE, || !replica.is_running());

    // One that cannot listen never is ready.
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut refused = Daemon::new_at(&scratch, "r", &[("www", &dst)], "127.0.0.1", behind);
    refused.listen_at(&format!("127.0.0.1:{}", other.local_addr().unwrap().port()));
    refused.restart();
    wait_for("its end", PATIENCE, || !refused.is_running());
    let said: Vec<_> = std::iter::from_fn(|| manager.next()).collect();
    assert!(said.iter().all(|said| !said.contains("READY=1")), "{said:?}");
}

#[test]
fn the_example_configuration_is_one() {
    let scratch = Scratch::new();
    let text = std::fs::read_to_string(packaging("syncd.toml")).unwrap();
    // A key that is commented out has no blank before it, a comment has.
    let key = |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned();
    let text = text.lines().map(key).collect::<Vec<_>>().join("\n");
    let www = scratch.dir("www").display().to_string();
    let img = scratch.dir("img").display().to_string();
    let listen = format!("127.0.0.1:{}", free_port());
    let mut used = text.clone();
    for (from, to) in [("/var/www", &www), ("/srv/img", &img), ("0.0.0.0:7373", &listen)] {
        assert!(used.contains(from), "{used}");
        used = used.replace(from, to);
    }
    // Nobody is asked who they are.
    used = used.replace("web1.example.org", "127.0.0.1:9").replace("web2.example.org:7373", "127.0.0.1:10");
    std::fs::write(scratch.path("syncd.toml"), used).unwrap();
    let manager = Manager::at_a_path(&scratch);
    let mut run = support::daemon::syncd(&scratch.dir("state"));
    let behind: Vec<String> = manager.starts().into_iter().map(|word| word.into_string().unwrap()).collect();
    run.behind(&behind.iter().map(String::as_str).collect::<Vec<_>>());
    let _running = run.arg("--config").arg(scratch.path("syncd.toml")).start();
    assert!(manager.hears("READY=1").contains("2 shares: img replica, no master connected; www master"));
}

/// The unit as it is installed, in a directory of its own, with the programs that were built; with or without what a replica
/// gets besides.
fn installed(scratch: &Scratch, name: &str, replica: bool) -> PathBuf {
    let dir = scratch.dir(name);
    let text = std::fs::read_to_string(packaging("syncd.service")).unwrap();
    let (syncd, synccli) = (bin("syncd"), bin("synccli"));
    let used = text
        .replace("ExecStart=syncd\n", &format!("ExecStart={}\n", syncd.display()))
        .replace("ExecReload=synccli ", &format!("ExecReload={} ", synccli.display()));
    assert_eq!(used.matches(bin_dir().to_str().unwrap()).count(), 2, "{used}");
    let unit = dir.join("syncd.service");
    std::fs::write(&unit, used).unwrap();
    if replica {
        mkdir(dir.join("syncd.service.d"));
        std::fs::copy(packaging("replica.conf"), dir.join("syncd.service.d/replica.conf")).unwrap();
    }
    unit
}

#[test]
fn systemd_understands_the_unit_and_finds_it_tight() {
    let name = "systemd_understands_the_unit_and_finds_it_tight";
    need!(name, has("systemd-analyze"), "needs systemd-analyze");
    let scratch = Scratch::new();
    for (name, replica, exposure) in [("master", false, MASTER_EXPOSURE), ("replica", true, REPLICA_EXPOSURE)] {
        let unit = installed(&scratch, name, replica);
        let analyze = |args: &[&str]| {
            let ran =
                Command::new("systemd-analyze").args(args).arg(&unit).env("SYSTEMD_COLORS", "0").output().unwrap();
            let text = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
            (ran.status.success(), text)
        };
        let (understood, text) = analyze(&["verify", "--man=no"]);
        assert!(understood && !text.contains("syncd.service") && !text.contains("replica.conf"), "{name}: {text}");
        let threshold = format!("--threshold={exposure}");
        let (tight, text) = analyze(&["security", "--offline=true", "--no-pager", &threshold]);
        assert!(tight && text.contains("Overall exposure level"), "{name}: {text}");
        // That what a replica gets besides was seen at all.
        let chowns = text.lines().find(|line| line.contains("CAP_(CHOWN|")).expect(&text);
        assert_eq!(chowns.contains('✗'), replica, "{chowns}");
    }
}

/// The capabilities that the unit leaves, without the prefix, as `setpriv` has them.
fn capabilities(replica: bool) -> Vec<String> {
    let mut text = std::fs::read_to_string(packaging("syncd.service")).unwrap();
    if replica {
        text += &std::fs::read_to_string(packaging("replica.conf")).unwrap();
    }
    let sets = text.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    sets.flat_map(str::split_whitespace).map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase()).collect()
}

/// The command that starts a program with these capabilities, everything read-only but these directories, and only the
/// system calls that the unit allows, if they can be `filtered` here.
fn restricted(scratch: &Scratch, capabilities: &[String], writable: &[&Path], filtered: bool) -> Vec<OsString> {
    let mut script = String::new();
    for dir in writable {
        let dir = dir.display();
        script += &format!("mount --bind {dir} {dir}\n");
    }
    script += &format!("mount -o remount,bind,ro {}\nmount -o remount,bind,ro /\n", scratch.path("").display());
    let set: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let restrict = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/restrict.py");
    let filter = if filtered {
        format!("python3 -B '{}' '{}' --", restrict.display(), packaging("syncd.service").display())
    } else {
        String::new()
    };
    script += &format!("exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all{set} -- {filter} \"$@\"\n");
    ["unshare", "--mount", "--propagation=private", "sh", "-ec", &script, "sh"].map(OsString::from).to_vec()
}

/// Whether `restrict.py` finds what it needs.
fn filters_calls() -> bool {
    let loads = "import ctypes; ctypes.CDLL('libseccomp.so.2')";
    has("systemd-analyze") && Command::new("python3").args(["-c", loads]).output().is_ok_and(|ran| ran.status.success())
}

/// That the kernel holds the process to it.
fn is_held_to(daemon: &Daemon, count: usize, filtered: bool) {
    let proc = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", daemon.pid())).unwrap();
    let status = proc("status");
    let of = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
    for set in ["CapBnd:", "CapEff:", "CapPrm:"] {
        assert_eq!(u64::from_str_radix(&of(set), 16).unwrap().count_ones() as usize, count, "{status}");
    }
    assert_eq!(of("NoNewPrivs:"), "1");
    assert!(!filtered || of("Seccomp:") == "2", "{status}");
    let mounts = proc("mountinfo");
    let top = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(top.split(' ').nth(5).unwrap().starts_with("ro"), "{top}");
}

/// What only some capability reads or makes.
fn privileged(dir: &Path) {
    for (name, owner, mode) in
        [("secret", 12345, 0o600), ("none", 0, 0), ("setuid", 12345, 0o4755), ("setgid", 12346, 0o2755)]
    {
        let path = dir.join(name);
        write(&path, format!("content of {name}"));
        set_owner(&path, owner, owner);
        set_mode(&path, mode);
    }
    let closed = dir.join("closed");
    write(closed.join("in it"), b"x");
    set_owner(closed.join("in it"), 12345, 12345);
    set_xattr(closed.join("in it"), "user.colour", b"blue");
    set_owner(&closed, 12345, 12345);
    set_mode(&closed, 0o500);
    write(dir.join("able"), b"x");
    set_xattr(dir.join("able"), "security.capability", &capability());
    set_xattr(dir.join("able"), "system.posix_acl_access", &acl(12345, 6, 4, 0));
    hard_link(dir.join("secret"), dir.join("secret too"));
    fifo(dir.join("fifo"));
    node_of(FileType::CharacterDevice, dir.join("device"), (1, 3));
}

#[test]
fn both_roles_work_under_the_restrictions_of_the_unit() {
    let name = "both_roles_work_under_the_restrictions_of_the_unit";
    let scratch = Scratch::new();
    need!(name, scratch.mounts && has("setpriv") && has("unshare"), "needs root, mounts, setpriv and unshare");
    let filtered = filters_calls();
    if !filtered {
        skip(name, "the filter of system calls needs systemd-analyze, python3 and libseccomp; all else is tested");
    }
    let (src, dst) = (scratch.src(), scratch.dst());
    many(&src, 60, 1);
    privileged(&src);
    mkdir(&dst);
    let (r, m) = (scratch.dir("r"), scratch.dir("m"));
    set_mode(&r, 0o700);
    set_mode(&m, 0o700);

    let of_replica = capabilities(true);
    let behind = restricted(&scratch, &of_replica, &[&r, &dst], filtered);
    let mut replica = Daemon::new_at(&scratch, "r", &[("www", &dst)], "127.0.0.1", behind);
    replica.up();
    is_held_to(&replica, of_replica.len(), filtered);
    let of_master = capabilities(false);
    let behind = restricted(&scratch, &of_master, &[&m], filtered);
    let mut master = Daemon::master_behind(&scratch, "m", &src, &[&replica], "", behind);
    wait_for("the master", PATIENCE, || synccli(&master.state).arg("status").run().status.success());
    is_held_to(&master, of_master.len(), filtered);
    if let Some(line) = master.logged().lines().find_map(|line| line.strip_prefix("SKIPPED: ")) {
        skip(name, line);
    }
    let reaches = |what: &str| {
        let ran = synccli(&m).args(&["push", "www"]).ok();
        assert!(ran.out().contains("identical and durable"), "{what}: {ran}");
        assert_exact(&src, &dst);
    };
    reaches("the first");

    std::fs::remove_file(src.join("device")).unwrap();
    node_of(FileType::BlockDevice, src.join("device"), (7, 1));
    std::fs::rename(src.join("closed"), src.join("renamed")).unwrap();
    privileged(&src.join("more"));
    set_mode(src.join("setuid"), 0o6711);
    append(src.join("secret"), b", and more");
    reaches("changes");
    // It watches as well, and mends.
    write(dst.join("nobody's"), b"x");
    set_owner(dst.join("able"), 12347, 0);
    wait_for("drift to be undone", PATIENCE, || {
        !dst.join("nobody's").exists() && differences(&snapshot(&src), &snapshot(&dst)).is_empty()
    });
    synccli(&m).arg("reload").ok();
    assert!(master.term().1.success(), "{}", master.logged());
    assert!(replica.term().1.success(), "{}", replica.logged());
}
