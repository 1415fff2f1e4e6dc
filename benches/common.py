"""What the measuring scripts share: processes and what they took, a paired `syncd`, trees, and how results are written."""

import contextlib
import datetime
import json
import os
import pathlib
import platform
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
TICK = os.sysconf("SC_CLK_TCK")

# Bytes of memory at either end.
MEMORY_GOAL = 100e6


def run(argv, **options):
    return subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True, **options)


def free_port(kind):
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def loopback_bytes():
    return int(pathlib.Path("/sys/class/net/lo/statistics/rx_bytes").read_text())


# ---- processes


class Daemon:
    """A background process whose CPU time and memory can be read while it runs."""

    def __init__(self, argv, log):
        self.log = pathlib.Path(log)
        with open(log, "w") as f:
            self.process = subprocess.Popen([str(a) for a in argv], stdout=f, stderr=f, stdin=subprocess.DEVNULL)

    def cpu(self):
        """Seconds of the process, with all threads that have ended, and of children that were waited for."""
        # What clock_getcpuclockid(3) gives: a pool of threads that come and go takes their schedstat with it.
        own = time.clock_gettime((~self.process.pid << 3) | 2)
        # Fields 16 and 17 of proc_pid_stat(5).
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return own + sum(int(f) for f in fields[13:15]) / TICK

    def reset_peak(self):
        try:
            pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        except OSError:
            pass  # The peak then counts from the start of the daemon.

    def memory(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return {k: int(re.search(rf"{k}:\s+(\d+)", status).group(1)) * 1024 for k in ("VmHWM", "VmRSS")}

    def peak(self):
        return self.memory()["VmHWM"]

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Sampler(threading.Thread):
    """The kernel's figure for the peak memory of a process that will end, read every 10 ms: what it takes in its last 10
    ms may be missed. ru_maxrss would count this script's own, which the process is a copy of until it runs its program."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.most, self.over = pid, 0, threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(0.01):
            try:
                status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
            except OSError:
                return
            # Not of the copy.
            found = re.search(r"^Name:\s+(?!python)(?s:.*)VmHWM:\s+(\d+)", status)
            if found:
                self.most = max(self.most, int(found.group(1)) * 1024)

    def end(self):
        self.over.set()
        self.join()
        return self.most


class Job:
    """A process that ends by itself, and what it took."""

    def __init__(self, argv, log, **streams):
        self.argv, self.log = [str(a) for a in argv], pathlib.Path(log)
        with open(log, "w") as f:
            self.process = subprocess.Popen(self.argv, **{"stdout": f, "stderr": f, **streams})
        self.memory = Sampler(self.process.pid)

    def end(self):
        """When it ended, CPU seconds, peak memory, and the bytes that all its calls of read(2) and the like returned."""
        pid = self.process.pid
        # It has ended and is not reaped: its counts can still be read.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        ended = time.monotonic()
        counts = pathlib.Path(f"/proc/{pid}/io").read_text()
        _, status, usage = os.wait4(pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode:
            said = self.log.read_text()[-500:]
            raise SystemExit(f"exit code {self.process.returncode}: {' '.join(self.argv)}\n{said}")
        return {
            "ended": ended,
            "cpu": usage.ru_utime + usage.ru_stime,
            "peak": self.memory.end(),
            "read": int(re.search(r"rchar: (\d+)", counts).group(1)),
        }

    def kill(self):
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()


class Replica(Daemon):
    """A `syncd` with a share `d`, on the loopback interface."""

    def __init__(self, binaries, work, dst, name="replica"):
        self.binaries, self.state = binaries, work / name
        self.address = f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
        argv = [binaries / "syncd", "--state-dir", self.state, "--listen", self.address, "--share", f"d={dst}"]
        super().__init__(argv, work / f"{name}.log")

    def pair(self, master):
        """Lets the one push whose state directory `master` is."""
        for _ in range(500):
            if "listening on" in self.log.read_text():
                break
            time.sleep(0.02)
        else:
            raise SystemExit(f"syncd does not listen: {self.log.read_text()[-500:]}")
        token = run([self.binaries / "syncd", "--state-dir", self.state, "invite"]).stdout.strip()
        run([self.binaries / "synccli", "--state-dir", master, "pair", self.address, token])


class Rsyncd(Daemon):
    """An `rsync --daemon` with a module `d`, on the loopback interface."""

    def __init__(self, work, dst):
        port = free_port(socket.SOCK_STREAM)
        config = work / "rsyncd.conf"
        user = "uid=0\ngid=0\n" if os.geteuid() == 0 else ""
        config.write_text(f"port={port}\naddress=127.0.0.1\nuse chroot=no\n{user}[d]\npath={dst}\nread only=no\n")
        self.url = f"rsync://127.0.0.1:{port}/d/"
        super().__init__(["rsync", "--daemon", "--no-detach", "--config", config], work / "rsyncd.log")
        for _ in range(500):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.02)
        self.stop()
        raise SystemExit("rsync --daemon does not listen")


# ---- peers: who takes a tree to a destination


class Peer:
    """A receiving side that runs, and pushes to it."""

    def __init__(self, work, args):
        self.work, self.args = work / self.name.replace(" ", ""), args
        self.dst = self.work / "dst"
        self.daemon = None

    def fresh(self):
        shutil.rmtree(self.work, ignore_errors=True)
        self.dst.mkdir(parents=True)
        self.start()

    def start(self):
        raise NotImplementedError

    def push(self, src):
        """The command."""
        raise NotImplementedError

    def jobs(self, src):
        return [Job(self.push(src), self.work / "push.log")]

    def stop(self):
        if self.daemon:
            self.daemon.stop()
            self.daemon = None

    def measured(self, src):
        """One push; what it took."""
        if self.daemon:
            self.daemon.reset_peak()
        os.sync()
        daemon_cpu, bytes_before = self.daemon.cpu() if self.daemon else 0, loopback_bytes()
        begun = time.monotonic()
        jobs = self.jobs(src)
        try:
            took = [job.end() for job in jobs]
        finally:
            for job in jobs:
                job.kill()
        cpu = sum(t["cpu"] for t in took) - daemon_cpu
        if self.daemon:
            time.sleep(0.2)  # A daemon's child is counted once it has been waited for.
            cpu += self.daemon.cpu()
        return {
            "wall": max(t["ended"] for t in took) - begun,
            "cpu": cpu,
            "bytes": loopback_bytes() - bytes_before,
            "peak_sender": took[0]["peak"],
            "peak_receiver": self.daemon.peak() if self.daemon else took[-1]["peak"],
        }


class Rsync(Peer):
    name = "rsync"
    flags = ()

    def start(self):
        self.daemon = Rsyncd(self.work, self.dst)

    def push(self, src):
        return ["rsync", "-aHAX", *self.flags, "--numeric-ids", "--delete", f"{src}/", self.daemon.url]


class Synccli(Peer):
    name = "synccli"
    flags = ()

    def start(self):
        self.master = self.work / "master"
        self.daemon = Replica(self.args.bin, self.work, self.dst)
        self.daemon.pair(self.master)

    def push(self, src):
        return [self.args.bin / "synccli", "--state-dir", self.master, "push", *self.flags, src, f"{self.daemon.address}/d"]


def same(src, dst):
    """What an independent tool finds different; empty if nothing."""
    argv = ["rsync", "-aHAXn", "--checksum", "--itemize-changes", "--numeric-ids", "--delete", f"{src}/", f"{dst}/"]
    return run(argv).stdout.strip()


# ---- trees


def files_below(src):
    for here, _, names in os.walk(src):
        for name in names:
            path = os.path.join(here, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield path


def tree_size(tree):
    sizes = [os.path.getsize(p) for p in files_below(tree)]
    return {"files": len(sizes), "bytes": sum(sizes)}


def synthetic(at, count):
    """A tree of many small text files and a few large ones, the same every time."""
    source = random.Random(1)
    words = [f"word{i}" for i in range(5000)]
    for i in range(count):
        path = at / f"part{i // 4000:02}" / f"dir{i // 40:04}"
        if i % 40 == 0:
            path.mkdir(parents=True, exist_ok=True)
        size = int(min(2_000_000, source.lognormvariate(7.2, 1.5))) + 1
        text = " ".join(source.choices(words, k=size // 8 + 1))[:size]
        (path / f"file{i}.txt").write_text(text)


def given_or_made(args, work):
    """Sets args.tree unless it was given; what it is."""
    what = f"made, {args.files} files"
    if args.tree is None:
        args.tree = work / "tree"
        synthetic(args.tree, args.files)
    else:
        what = args.tree.name
    return {"what": what, **tree_size(args.tree)}


def deploy(tree, src):
    """As a deploy tool that writes only what differs: other content gets new bytes and a new mtime, the rest stays."""
    run(["rsync", "-rlpc", "--delete", f"{tree}/", f"{src}/"])


# ---- where to work


def default_dir():
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()


def filesystem(path):
    return run(["stat", "-f", "-c", "%T", path]).stdout.strip()


@contextlib.contextmanager
def workplace(args, prefix):
    """A directory below --dir that is gone in the end, also after Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(dir=args.dir, prefix=prefix) as work:
        yield pathlib.Path(work)


MKFS = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"]}
IMAGE_BYTES = 64 << 30


@contextlib.contextmanager
def loop_filesystem(kind, work):
    """A filesystem of its own in a sparse image file: where it is mounted, and the loop device."""
    if os.geteuid() != 0:
        raise SystemExit(f"--loop {kind} mounts a filesystem, which takes root")
    if not shutil.which(MKFS[kind][0]):
        raise SystemExit(f"--loop {kind}: {MKFS[kind][0]} is not installed")
    image, mount = work / "image", work / "mount"
    mount.mkdir()
    image.touch()
    os.truncate(image, IMAGE_BYTES)
    try:
        run([*MKFS[kind], image])
        run(["mount", "-t", kind, "-o", "loop", image, mount])
    except subprocess.CalledProcessError as e:
        raise SystemExit(f"--loop {kind}: {' '.join(e.cmd)}: {e.stderr.strip()}")
    try:
        yield mount, run(["findmnt", "-n", "-o", "SOURCE", mount]).stdout.strip()
    finally:
        # A daemon that was just killed may hold it for a moment. What is left to the kernel goes with its last user.
        for flags in [[]] * 20 + [["-l"]]:
            if subprocess.run(["umount", *flags, mount], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)


# ---- options, facts and results


def options(parser, runs=None):
    """What all scripts take."""
    if runs:
        parser.add_argument("-n", "--runs", type=int, default=runs, help="rounds; medians are taken over them")
    parser.add_argument("--bin", type=pathlib.Path, default=HERE.parent / "target/release", help="where the binaries are")
    parser.add_argument("--dir", default=default_dir(), help="where trees and states are; a tmpfs keeps the disk out of it")
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results")


def check(args):
    """Ends unless all that is needed is there."""
    if not shutil.which("rsync"):
        raise SystemExit("rsync is not installed")
    for name in ("synccli", "syncd"):
        if not (args.bin / name).is_file():
            raise SystemExit(f"{args.bin / name} is not there: cargo build --release --workspace")
    args.bin = args.bin.resolve()


def machine():
    cpu = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())
    return {
        "host": platform.node(),
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory.group(1)) / 1048576, 1),
        "kernel": platform.release(),
    }


def first_line(argv, **options):
    try:
        return run(argv, **options).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def versions(binaries):
    return {
        "rsync": first_line(["rsync", "--version"]),
        "synccli": first_line([binaries / "synccli", "--version"]),
        "commit": first_line(["git", "describe", "--always", "--dirty"], cwd=HERE),
    }


def without_places(command):
    """Directories of one machine say nothing on another."""
    return re.sub(r"\S*/(?=\S)", "", command)


def facts(args, **more):
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": without_places(" ".join(sys.argv)),
        "machine": machine(),
        "versions": versions(args.bin),
        "filesystem": filesystem(args.dir),
        **more,
    }


def write_results(args, about, name, samples, table, indent=1):
    """DATE-NAME.json with every sample, DATE-NAME.txt with the table; the path without its suffix."""
    args.results.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.fromisoformat(about["date"])
    stem = args.results / f"{date:%Y-%m-%d-%H%M%S}-{name}"
    text = f"{json.dumps(about, indent=1)}\n\n{table}"
    stem.with_suffix(".json").write_text(json.dumps({**about, "samples": samples}, indent=indent) + "\n")
    stem.with_suffix(".txt").write_text(text)
    print(text)
    print(f"written: {stem}.json, {stem}.txt", file=sys.stderr)
    return stem


def show(sample):
    """One measurement, while the rest goes on."""
    print("  " + json.dumps(sample), file=sys.stderr, flush=True)


def median(samples, what, **which):
    return statistics.median(s[what] for s in samples if all(s[k] == v for k, v in which.items()))


def verdict(value, goal, what=""):
    return f"{what + ' ' if what else ''}{goal:g}: {'met' if value <= goal else 'NOT MET'}"
