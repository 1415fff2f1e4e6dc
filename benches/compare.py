#!/usr/bin/env python3
"""Compares a push to a paired `syncd` with `rsync --daemon`: same tree, same machine, same run, in turn.

    cargo build --release --workspace
    benches/compare.py --tree /some/real/tree

Each round copies the tree afresh and takes both peers through the same history, one workload after the other:

    initial   the tree into an empty destination
    noop      nothing has changed
    one       one small file was appended to
    touch     every file has a new mtime and the same content
    rename    the directory with the most files got another name
    deploy    the tree became that of --tree2 (left out without it)

and, each alone because of its size, with --big:

    big-initial, big-insert, big-scatter, big-append     one file of --big MiB; a byte inserted at its front; a hundred
                                                         edits of 22 bytes anywhere; a MiB appended

With --compress both compress what they send: `rsync -z`, `synccli push --compress=zstd`.

For every push: wall seconds; CPU seconds of both sides together; bytes over the loopback interface, headers and
acknowledgements included; peak resident memory of either side. After every push the destination is compared with the
source by `rsync --dry-run --checksum`, outside the measured time. The peers take turns in going first.

Written to benches/results/DATE-HOST.json: every single measurement, machine, versions and command; and a table of
medians and ratios beside it as .txt. A ratio below 1 means that synccli needed less. "least" is that of the shortest walls: a
virtual machine that must ask its host for memory takes seconds for a gibibyte now and then, whoever writes it.

Both sides of both peers run as the caller; root keeps owners and devices. rsync runs as a daemon in clear text, synccli
over QUIC, encrypted and authenticated. Nothing else should run meanwhile.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
TICK = os.sysconf("SC_CLK_TCK")


def run(argv, **options):
    return subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True, **options)


def free_port(kind):
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def loopback_bytes():
    return int(pathlib.Path("/sys/class/net/lo/statistics/rx_bytes").read_text())


class Daemon:
    """A background process whose CPU time and peak memory can be read while it runs."""

    def __init__(self, argv, log):
        self.process = subprocess.Popen([str(a) for a in argv], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def cpu(self):
        # Fields 14 to 17 of proc_pid_stat(5): own time and that of children that were waited for.
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(f) for f in fields[11:15]) / TICK

    def reset_peak(self):
        try:
            pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        except OSError:
            pass  # The peak then counts from the start of the daemon.

    def peak(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) * 1024

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


class Peer:
    def __init__(self, work, args):
        self.work, self.bin, self.compress = work / self.name, args.bin, args.compress
        self.dst = self.work / "dst"
        self.daemon = None

    def fresh(self):
        shutil.rmtree(self.work, ignore_errors=True)
        self.dst.mkdir(parents=True)
        self.start()

    def stop(self):
        if self.daemon:
            self.daemon.stop()
            self.daemon = None

    def measured(self, src):
        """One push; what it took."""
        argv = [str(a) for a in self.push(src)]
        self.daemon.reset_peak()
        os.sync()
        daemon_cpu, bytes_before = self.daemon.cpu(), loopback_bytes()
        begun = time.monotonic()
        with open(self.work / "push.log", "w") as log:
            child = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
            memory = Sampler(child.pid)
            _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said = (self.work / "push.log").read_text()[-500:]
            raise SystemExit(f"{self.name}: exit code {child.returncode}: {' '.join(argv)}\n{said}")
        time.sleep(0.2)  # A daemon's child is counted once it has been waited for.
        return {
            "wall": wall,
            "cpu": usage.ru_utime + usage.ru_stime + self.daemon.cpu() - daemon_cpu,
            "bytes": loopback_bytes() - bytes_before,
            "peak_sender": memory.end(),
            "peak_receiver": self.daemon.peak(),
        }


class Rsync(Peer):
    name = "rsync"

    def start(self):
        self.port = free_port(socket.SOCK_STREAM)
        config = self.work / "rsyncd.conf"
        user = "uid=0\ngid=0\n" if os.geteuid() == 0 else ""
        config.write_text(f"port={self.port}\naddress=127.0.0.1\nuse chroot=no\n{user}[d]\npath={self.dst}\nread only=no\n")
        log = open(self.work / "daemon.log", "w")
        self.daemon = Daemon(["rsync", "--daemon", "--no-detach", "--config", config], log)
        for _ in range(200):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise SystemExit("rsync --daemon does not listen")

    def push(self, src):
        flags = ["-z"] if self.compress else []
        return ["rsync", "-aHAX", *flags, "--numeric-ids", "--delete", f"{src}/", f"rsync://127.0.0.1:{self.port}/d/"]


class Synccli(Peer):
    name = "synccli"

    def start(self):
        self.port = free_port(socket.SOCK_DGRAM)
        master, replica = self.work / "master", self.work / "replica"
        self.master = master
        log = open(self.work / "daemon.log", "w")
        share = f"d={self.dst}"
        argv = [self.bin / "syncd", "--state-dir", replica, "--listen", f"127.0.0.1:{self.port}", "--share", share]
        self.daemon = Daemon(argv, log)
        time.sleep(0.5)
        token = run([self.bin / "syncd", "--state-dir", replica, "invite"]).stdout.strip()
        run([self.bin / "synccli", "--state-dir", master, "pair", f"127.0.0.1:{self.port}", token])

    def push(self, src):
        flags = ["--compress=zstd"] if self.compress else []
        return [self.bin / "synccli", "--state-dir", self.master, "push", *flags, src, f"127.0.0.1:{self.port}/d"]


def same(src, dst):
    """What an independent tool finds different; empty if nothing."""
    argv = ["rsync", "-aHAXn", "--checksum", "--itemize-changes", "--numeric-ids", "--delete", f"{src}/", f"{dst}/"]
    return run(argv).stdout.strip()


# ---- the history of a tree


def files_below(src):
    for here, _, names in os.walk(src):
        for name in names:
            path = os.path.join(here, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield path


def edit_one(src, _args):
    small = sorted(p for p in files_below(src) if os.path.getsize(p) < 20_000)
    with open(random.Random(7).choice(small), "a") as f:
        f.write(f"\n{time.time()}\n")


def edit_touch(src, _args):
    for path in files_below(src):
        os.utime(path)


def edit_rename(src, _args):
    count = {}
    for path in files_below(src):
        top = os.path.relpath(path, src).split(os.sep)[0]
        count[top] = count.get(top, 0) + 1
    fullest = max((n for n in count if os.path.isdir(os.path.join(src, n))), key=count.get)
    os.rename(os.path.join(src, fullest), os.path.join(src, fullest + ".renamed"))


def edit_deploy(src, args):
    # As a deploy tool that writes only what differs: other content gets new bytes and a new mtime.
    run(["rsync", "-rlpc", "--delete", f"{args.tree2}/", f"{src}/"])


def edit_insert(src, _args):
    path = src / "big"
    content = path.read_bytes()
    path.write_bytes(b"X" + content)


def edit_scatter(src, _args):
    path, random_place = src / "big", random.Random(7)
    size = path.stat().st_size
    with open(path, "r+b") as f:
        for _ in range(100):
            f.seek(random_place.randrange(size - 100))
            f.write(b"edited-here-now-%06d" % random_place.randrange(10**6))


def edit_append(src, _args):
    with open(src / "big", "ab") as f:
        f.write(os.urandom(1 << 20))


def nothing(_src, _args):
    pass


def histories(args):
    tree = [("initial", nothing), ("noop", nothing), ("one", edit_one), ("touch", edit_touch), ("rename", edit_rename)]
    if args.tree2:
        tree.append(("deploy", edit_deploy))
    all_ = [(lambda src: run(["cp", "-a", args.tree, src]), tree)]
    if args.big:

        def one_file(src):
            src.mkdir()
            with open(src / "big", "wb") as f:
                for _ in range(args.big):
                    f.write(os.urandom(1 << 20))

        edits = [("big-insert", edit_insert), ("big-scatter", edit_scatter), ("big-append", edit_append)]
        all_.append((one_file, [("big-initial", nothing), *edits]))
    return all_


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


# ---- the comparison


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


def versions(binaries):
    def first_line(argv, **options):
        try:
            return run(argv, **options).stdout.splitlines()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            return "unknown"

    return {
        "rsync": first_line(["rsync", "--version"]),
        "synccli": first_line([binaries / "synccli", "--version"]),
        "commit": first_line(["git", "describe", "--always", "--dirty"], cwd=HERE),
    }


def tree_size(tree):
    sizes = [os.path.getsize(p) for p in files_below(tree)]
    return {"files": len(sizes), "bytes": sum(sizes)}


def compare(args, work):
    samples = []
    peers = [Rsync(work, args), Synccli(work, args)]
    src = work / "src"
    for turn in range(args.runs):
        for make, history in histories(args):
            shutil.rmtree(src, ignore_errors=True)
            make(src)
            try:
                for peer in peers:
                    peer.fresh()
                for step, (workload, edit) in enumerate(history):
                    if args.only and workload not in args.only and step:
                        continue
                    # So that what the last push wrote is older than any clock tick of the edit.
                    time.sleep(1.1)
                    edit(src, args)
                    order = peers if (turn + step) % 2 == 0 else peers[::-1]
                    for peer in order:
                        sample = {"workload": workload, "peer": peer.name, "turn": turn, **peer.measured(src)}
                        sample["differences"] = same(src, peer.dst).splitlines()[:5] if not args.no_verify else None
                        samples.append(sample)
                        print("  " + json.dumps(sample), file=sys.stderr, flush=True)
            finally:
                for peer in peers:
                    peer.stop()
    return samples


def median(samples, workload, peer, what):
    return statistics.median(s[what] for s in samples if (s["workload"], s["peer"]) == (workload, peer))


# Most of rsync's wall time, and of that of `rsync -z` with --compress.
FLOORS = {
    "initial": 1.0,
    "noop": 0.3,
    "one": 0.3,
    "touch": 0.5,
    "rename": 0.4,
    "big-insert": 0.8,
    "big-scatter": 0.5,
    "big-append": 0.5,
}
FLOORS_COMPRESSED = {"deploy": 1.0}

# Bytes of memory at either end, for the first push of a made tree of 100,000 files.
MEMORY_FLOOR = 100e6


def table(samples, files=0, compress=False):
    floors = FLOORS_COMPRESSED if compress else FLOORS
    lines = [
        f"{'workload':12} {'peer':8} {'wall s':>8} {'cpu s':>8} {'MB':>9} {'sender MB':>10} {'receiver MB':>12}"
        f"   ratio: {'wall':>5} {'least':>5} {'cpu':>5} {'bytes':>6}"
    ]
    for workload in dict.fromkeys(s["workload"] for s in samples):
        for peer in ("rsync", "synccli"):
            m = {k: median(samples, workload, peer, k) for k in ("wall", "cpu", "bytes", "peak_sender", "peak_receiver")}
            line = (
                f"{workload:12} {peer:8} {m['wall']:8.3f} {m['cpu']:8.2f} {m['bytes'] / 1e6:9.3f} "
                f"{m['peak_sender'] / 1e6:10.1f} {m['peak_receiver'] / 1e6:12.1f}"
            )
            if peer == "synccli":
                base = {k: median(samples, workload, "rsync", k) for k in ("wall", "cpu", "bytes")}
                ratio = {k: m[k] / base[k] if base[k] else float("nan") for k in base}
                walls = {p: min(s["wall"] for s in samples if (s["workload"], s["peer"]) == (workload, p)) for p in ("rsync", peer)}
                least = walls[peer] / walls["rsync"]
                line += f"          {ratio['wall']:5.2f} {least:5.2f} {ratio['cpu']:5.2f} {ratio['bytes']:6.3f}"
                if workload in floors:
                    line += f"   floor {floors[workload]}: {'met' if ratio['wall'] <= floors[workload] else 'NOT MET'}"
                if workload == "initial" and files >= 100_000:
                    peak = max(m["peak_sender"], m["peak_receiver"])
                    line += f"   memory: {'met' if peak < MEMORY_FLOOR else 'NOT MET'}"
            lines.append(line)
    wrong = [s for s in samples if s["differences"]]
    lines += [f"DIFFERS: {s['peer']} {s['workload']} turn {s['turn']}: {s['differences']}" for s in wrong]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--runs", type=int, default=3, help="rounds; medians are taken over them")
    parser.add_argument("--tree", type=pathlib.Path, help="a real tree (default: a made one of --files files)")
    parser.add_argument("--tree2", type=pathlib.Path, help="what it becomes in the workload deploy")
    parser.add_argument("--files", type=int, default=40_000, help="size of the made tree; 100000 for the memory figure")
    parser.add_argument("--big", type=int, default=0, metavar="MIB", help="also with one file of this size")
    parser.add_argument("--only", action="append", help="only this workload (and the initial push before it)")
    parser.add_argument("--compress", action="store_true", help="both compress what they send")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the trees after each push")
    parser.add_argument("--bin", type=pathlib.Path, default=HERE.parent / "target/release", help="where the binaries are")
    default_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
    parser.add_argument("--dir", default=default_dir, help="where to work; a tmpfs keeps the disk out of the figures")
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results")
    args = parser.parse_args()
    if not shutil.which("rsync"):
        raise SystemExit("rsync is not installed")
    for name in ("synccli", "syncd"):
        if not (args.bin / name).is_file():
            raise SystemExit(f"{args.bin / name} is not there: cargo build --release --workspace")
    args.bin = args.bin.resolve()
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="compare-") as work:
        work = pathlib.Path(work)
        what = str(args.tree)
        if args.tree is None:
            what = f"made, {args.files} files"
            args.tree = work / "tree"
            synthetic(args.tree, args.files)
        begun = datetime.datetime.now(datetime.timezone.utc)
        facts = {
            "date": begun.isoformat(timespec="seconds"),
            "command": " ".join(sys.argv),
            "machine": machine(),
            "versions": versions(args.bin),
            "tree": {"what": what, **tree_size(args.tree)},
            "dir": args.dir,
            "runs": args.runs,
        }
        samples = compare(args, work)
    text = f"{json.dumps(facts, indent=1)}\n\n{table(samples, facts['tree']['files'], args.compress)}"
    print(text)
    args.results.mkdir(parents=True, exist_ok=True)
    stem = args.results / f"{begun.strftime('%Y-%m-%d-%H%M%S')}-{platform.node()}"
    stem.with_suffix(".json").write_text(json.dumps({**facts, "samples": samples}, indent=1) + "\n")
    stem.with_suffix(".txt").write_text(text)
    print(f"written: {stem}.json, {stem}.txt", file=sys.stderr)
    if any(s["differences"] for s in samples):
        raise SystemExit("a destination differs from its source")


if __name__ == "__main__":
    main()
