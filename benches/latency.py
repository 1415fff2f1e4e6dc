#!/usr/bin/env python3
"""Measures a mirror: a `syncd` that watches a tree, and replicas that follow it, all on this machine.

    cargo build --release --workspace
    benches/latency.py --tree /some/real/tree
    benches/latency.py --tree /some/real/tree --dir /var/tmp --only latency    # on a disk

    latency   small files are written over at --rate changes a second, whatever becomes of those before: milliseconds from
              before the file is opened until the replica's file has the new content. Beside it `lsyncd` with a delay of 0 to an
              `rsync --daemon`, on the same tree with the same changes
    idle      nothing changes for --idle seconds: CPU time and wakeups of both daemons
    burst     --burst new files are copied into the tree: from the first write until all are at the replica. Beside it the same
              copy and then `rsync -a` by hand, to an `rsync --daemon`
    replicas  CPU time of the master for a change with 1 and with 8 replicas
    memory    a made tree of --many files: memory of both daemons, its peak in the first copy, and at rest

The observer looks every 0.2 ms. CPU times are of the process with all threads that have ended; wakeups are voluntary context
switches. After each workload the trees are compared by `rsync --checksum`. The state of the daemons is in --dir, too.
"""

import argparse
import json
import os
import pathlib
import random
import re
import shutil
import statistics
import sys
import threading
import time

import common

# Milliseconds; per cent of a core; ratios; bytes.
GOALS = {"p50": 5.0, "p99": 20.0, "idle": 0.1, "burst": 1.5, "replicas": 1.5, "memory": 100e6}

PATIENCE = 120


class Mirror:
    name = "syncd"

    def __init__(self, work, args, src, replicas=1):
        self.work, self.src, self.bin = work / "mirror", src, args.bin
        shutil.rmtree(self.work, ignore_errors=True)
        self.dsts = [self.work / f"dst{i}" for i in range(replicas)]
        for dst in self.dsts:
            dst.mkdir(parents=True)
        self.replicas = [common.Replica(self.bin, self.work, dst, f"replica{i}") for i, dst in enumerate(self.dsts)]
        for replica in self.replicas:
            replica.pair(self.work / "master")
        self.config = self.work / "master.toml"
        addresses = json.dumps([replica.address for replica in self.replicas])
        self.config.write_text(
            f'state_dir = "{self.work / "master"}"\n[shares.d]\npath = "{src}"\nreplicas = {addresses}\n'
        )
        self.start_master()

    def start_master(self):
        self.master = common.Daemon([self.bin / "syncd", "--config", self.config], self.work / "master.log")

    def processes(self):
        return {"master": self.master, "replica": self.replicas[0]}

    def stop(self):
        for process in [self.master, *self.replicas]:
            process.stop()


class Lsyncd:
    name = "lsyncd"

    def __init__(self, work, args, src):
        self.work, self.src = work / "lsyncd", src
        shutil.rmtree(self.work, ignore_errors=True)
        self.dsts = [self.work / "dst"]
        self.dsts[0].mkdir(parents=True)
        self.target = common.Rsyncd(self.work, self.dsts[0])
        config = self.work / "lsyncd.lua"
        config.write_text(
            f'settings {{ nodaemon = true, statusFile = "{self.work / "status"}" }}\n'
            f'sync {{ default.rsync, source = "{src}/", target = "{self.target.url}", delay = 0,\n'
            "       rsync = { archive = true, compress = false, whole_file = false } }\n"
        )
        self.master = common.Daemon(["lsyncd", config], self.work / "lsyncd.log")

    def processes(self):
        return {"master": self.master}

    def stop(self):
        self.master.stop()
        self.target.stop()


WAKEUPS = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)", re.M)


def wakeups(process):
    """Of the threads that there are."""
    count = 0
    for task in pathlib.Path(f"/proc/{process.process.pid}/task").iterdir():
        try:
            count += int(WAKEUPS.search((task / "status").read_text()).group(1))
        except OSError:
            pass
    return count


def wait_for(condition, what):
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > PATIENCE:
            raise SystemExit(f"{what}: not after {PATIENCE} s")
        time.sleep(0.02)


def settle(mirror):
    """Until a new file has arrived everywhere: then all before it has, and the tree is watched. And until a history is filled."""
    time.sleep(2)
    marker = f".marker{time.time_ns()}"
    (mirror.src / marker).write_text(marker)
    wait_for(lambda: all((dst / marker).exists() for dst in mirror.dsts), f"{mirror.name} has copied the tree")
    (mirror.src / marker).unlink()
    wait_for(lambda: not any((dst / marker).exists() for dst in mirror.dsts), f"{mirror.name} has removed a file")
    time.sleep(3 if mirror.name != Mirror.name else 12)


def differences(mirror):
    time.sleep(1)
    return [line for dst in mirror.dsts for line in common.same(mirror.src, dst).splitlines()[:5]]


class Changes(threading.Thread):
    """Writes over one small file after the other, at a rate."""

    def __init__(self, src, count, rate, seed):
        super().__init__(daemon=True)
        files = sorted(os.path.relpath(p, src) for p in common.files_below(src))
        source = random.Random(seed)
        self.src, self.rate, self.source = src, rate, source
        self.files = source.sample(files, count)
        self.waiting, self.lock, self.done = {}, threading.Lock(), False

    def run(self):
        begun = time.perf_counter()
        for i, name in enumerate(self.files):
            time.sleep(max(0, begun + i / self.rate - time.perf_counter()))
            body = f"change {i} of {name}\n".encode() * 5 + os.urandom(16)
            at = time.perf_counter()
            with self.lock:
                self.waiting[name] = (at, body)
            with open(self.src / name, "wb") as f:
                f.write(body)
        self.done = True


def visible(path, body):
    try:
        return os.stat(path).st_size == len(body) and path.read_bytes() == body
    except FileNotFoundError:
        return False


def latencies(mirror, args, count, rate, seed):
    """Milliseconds until each change was at the last of the replicas."""
    changes = Changes(mirror.src, count, rate, seed)
    changes.start()
    took = []
    ended = time.monotonic() + count / rate + PATIENCE
    while not changes.done or changes.waiting:
        with changes.lock:
            waiting = list(changes.waiting.items())
        for name, (at, body) in waiting:
            if all(visible(dst / name, body) for dst in mirror.dsts):
                took.append((time.perf_counter() - at) * 1000)
                with changes.lock:
                    del changes.waiting[name]
        if time.monotonic() > ended:
            raise SystemExit(f"{mirror.name}: {len(waiting)} changes did not arrive")
        time.sleep(0.0002)
    return took


def quantiles(took):
    took = sorted(took)
    at = lambda part: took[min(len(took) - 1, int(part * len(took)))]
    return {"p50": statistics.median(took), "p90": at(0.9), "p99": at(0.99), "max": took[-1]}


def used(mirror):
    return {who: (process.cpu(), wakeups(process)) for who, process in mirror.processes().items()}


def used_since(mirror, before):
    now = used(mirror)
    return {who: [now[who][i] - before[who][i] for i in (0, 1)] for who in now}


def fresh(args, work):
    src = work / "src"
    shutil.rmtree(src, ignore_errors=True)
    common.run(["cp", "-a", args.tree, src])
    return src


# ---- the workloads: each a list of samples


def latency(args, work):
    kinds = [Mirror] + ([Lsyncd] if shutil.which("lsyncd") else [])
    if len(kinds) == 1:
        print("SKIPPED: lsyncd: it is not installed", file=sys.stderr)
    samples = []
    for turn in range(args.runs):
        for kind in kinds if turn % 2 == 0 else kinds[::-1]:
            mirror = kind(work, args, fresh(args, work))
            try:
                settle(mirror)
                before = used(mirror)
                took = latencies(mirror, args, args.changes, args.rate, turn)
                cost = {who: seconds for who, (seconds, _) in used_since(mirror, before).items()}
                sample = {"peer": mirror.name, "turn": turn, **quantiles(took), "cpu": cost, "ms": [round(t, 2) for t in took]}
                samples.append({**sample, "differences": differences(mirror)})
            finally:
                mirror.stop()
    return samples


def idle(args, work):
    mirror = Mirror(work, args, fresh(args, work))
    try:
        settle(mirror)
        time.sleep(10)
        before = used(mirror)
        time.sleep(args.idle)
        since = used_since(mirror, before)
        return [
            {"peer": who, "seconds": args.idle, "percent": 100 * cpu / args.idle, "wakeups": wakeups / args.idle}
            for who, (cpu, wakeups) in since.items()
        ]
    finally:
        mirror.stop()


def burst(args, work):
    new = work / "new"
    new.mkdir()
    for i in range(args.burst):
        if i % 500 == 0:
            (new / f"burst{i // 500:03}").mkdir()
        (new / f"burst{i // 500:03}" / f"file{i:06}.txt").write_bytes(f"line {i}\n".encode() * (20 + i % 300))
    wanted = {here.name: len(list(here.iterdir())) for here in new.iterdir()}

    def arrived(dst):
        def in_place(name, count):
            try:
                return sum(1 for _ in os.scandir(dst / name)) == count
            except FileNotFoundError:
                return False

        return lambda: all(in_place(name, count) for name, count in wanted.items())

    def copy(src):
        begun = time.monotonic()
        common.run(["cp", "-a", f"{new}/.", f"{src}/"])
        return time.monotonic() - begun

    samples = []
    for turn in range(args.runs):
        mirror = Mirror(work, args, fresh(args, work))
        try:
            settle(mirror)
            begun = time.monotonic()
            writing = copy(mirror.src)
            wait_for(arrived(mirror.dsts[0]), "the burst is at the replica")
            wall = time.monotonic() - begun
            samples.append({"peer": "syncd", "turn": turn, "write": writing, "wall": wall, "differences": differences(mirror)})
        finally:
            mirror.stop()
        src, dst = fresh(args, work), work / "by-hand"
        shutil.rmtree(dst, ignore_errors=True)
        (dst / "d").mkdir(parents=True)
        daemon = common.Rsyncd(dst, dst / "d")
        try:
            push = ["rsync", "-a", f"{src}/", daemon.url]
            common.run(push)
            time.sleep(1.1)
            begun = time.monotonic()
            writing = copy(src)
            common.run(push)
            samples.append({"peer": "rsync", "turn": turn, "write": writing, "wall": time.monotonic() - begun})
        finally:
            daemon.stop()
    return samples


def replicas(args, work):
    samples = []
    # In turn, for the machine is not as fast in each minute.
    for count in (1, 8) * args.runs:
        mirror = Mirror(work, args, fresh(args, work), count)
        try:
            settle(mirror)
            before = mirror.master.cpu()
            took = latencies(mirror, args, args.changes // 2, 5, 0)
            cpu = (mirror.master.cpu() - before) / len(took)
            sample = {"peer": f"{count} replicas", "cpu_ms": cpu * 1000, **quantiles(took)}
            samples.append({**sample, "differences": differences(mirror)})
        finally:
            mirror.stop()
    return samples


def memory(args, work):
    tree = work / "many"
    common.synthetic(tree, args.many)
    mirror = Mirror(work, args, tree)
    try:
        settle(mirror)
        time.sleep(10)
        first = {who: process.memory() for who, process in mirror.processes().items()}
        mirror.master.stop()
        mirror.start_master()
        settle(mirror)
        latencies(mirror, args, 100, 10, 0)
        later = mirror.master.memory()
        samples = [
            {"peer": who, "when": "first copy", "peak": m["VmHWM"], "at_rest": m["VmRSS"]} for who, m in first.items()
        ]
        when = "started again, 100 changes"
        samples.append({"peer": "master", "when": when, "peak": later["VmHWM"], "at_rest": later["VmRSS"]})
        later = mirror.replicas[0].memory()
        samples.append({"peer": "replica", "when": "100 changes", "peak": later["VmHWM"], "at_rest": later["VmRSS"]})
        samples[0]["differences"] = differences(mirror)
        return samples
    finally:
        mirror.stop()


WORKLOADS = {"latency": latency, "idle": idle, "burst": burst, "replicas": replicas, "memory": memory}


# ---- what is printed


def verdict(what, value):
    return f"   goal {GOALS[what] / 1e6 if what == 'memory' else GOALS[what]:g}: {'met' if value <= GOALS[what] else 'NOT MET'}"


def medians(samples, peer, keys):
    return {key: statistics.median(s[key] for s in samples if s["peer"] == peer) for key in keys}


def table(workload, samples):
    peers = dict.fromkeys(s["peer"] for s in samples)
    lines = []
    if workload == "latency":
        keys = ("p50", "p90", "p99", "max")
        found = {peer: medians(samples, peer, keys) for peer in peers}
        for peer, m in found.items():
            line = f"latency   {peer:10} " + " ".join(f"{key} {m[key]:8.2f} ms" for key in keys)
            if peer == "syncd":
                line += f"   p50{verdict('p50', m['p50'])}   p99{verdict('p99', m['p99'])}"
            lines.append(line)
        if "lsyncd" in found:
            ratio = " ".join(f"{key} {found['syncd'][key] / found['lsyncd'][key]:.3f}" for key in keys)
            lines.append(f"latency   of lsyncd   {ratio}")
    elif workload == "idle":
        for s in samples:
            lines.append(
                f"idle      {s['peer']:10} {s['percent']:.3f} % of a core, {s['wakeups']:.1f} wakeups a second"
                f"{verdict('idle', s['percent'])}"
            )
    elif workload == "burst":
        ours, theirs = (medians(samples, peer, ("write", "wall")) for peer in ("syncd", "rsync"))
        ratio = ours["wall"] / theirs["wall"]
        lines.append(f"burst     syncd      {ours['wall']:.2f} s, of which {ours['write']:.2f} s were writing")
        lines.append(f"burst     rsync      {theirs['wall']:.2f} s, of which {theirs['write']:.2f} s were writing")
        lines.append(f"burst     of rsync   {ratio:.2f}{verdict('burst', ratio)}")
    elif workload == "replicas":
        found = {peer: medians(samples, peer, ("cpu_ms", "p50")) for peer in peers}
        for peer, m in found.items():
            cost = f"{m['cpu_ms']:.2f} ms of the master's CPU a change"
            lines.append(f"replicas  {peer:10} {cost}; p50 {m['p50']:.2f} ms at the last")
        ratio = found["8 replicas"]["cpu_ms"] / found["1 replicas"]["cpu_ms"]
        lines.append(f"replicas  8 of 1     {ratio:.2f}{verdict('replicas', ratio)}")
    else:
        for s in samples:
            lines.append(
                f"memory    {s['peer']:10} {s['when']}: peak {s['peak'] / 1e6:.1f} MB, at rest {s['at_rest'] / 1e6:.1f} MB"
                f"{verdict('memory', s['peak'])}"
            )
    wrong = [s for s in samples if s.get("differences")]
    lines += [f"DIFFERS: {workload} {s['peer']}: {s['differences']}" for s in wrong]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.options(parser, runs=1)
    parser.add_argument("--tree", type=pathlib.Path, help="a real tree (default: a made one of --files files)")
    parser.add_argument("--files", type=int, default=43_000, help="size of the made tree")
    parser.add_argument("--changes", type=int, default=400, help="changes of latency; half as many for replicas")
    parser.add_argument("--rate", type=float, default=20, help="changes a second")
    parser.add_argument("--burst", type=int, default=10_000, help="files of the burst")
    parser.add_argument("--idle", type=int, default=60, help="seconds without a change")
    parser.add_argument("--many", type=int, default=200_000, help="files of the tree for the memory figure")
    parser.add_argument("--only", action="append", choices=WORKLOADS, help="only this workload")
    args = parser.parse_args()
    common.check(args)
    with common.workplace(args, "latency-") as work:
        about = common.facts(args, tree=common.given_or_made(args, work), runs=args.runs)
        about["versions"]["lsyncd"] = common.first_line(["lsyncd", "--version"])
        samples, tables = {}, ""
        for workload in args.only or WORKLOADS:
            here = work / workload
            here.mkdir()
            samples[workload] = WORKLOADS[workload](args, here)
            tables += table(workload, samples[workload])
            print(table(workload, samples[workload]), file=sys.stderr, flush=True)
            shutil.rmtree(here)
    kind = about["filesystem"].replace("/", "-")
    common.write_results(args, about, f"mirror-{kind}", samples, tables, indent=None)
    if "DIFFERS" in tables:
        raise SystemExit("a replica differs from its source")


if __name__ == "__main__":
    main()
