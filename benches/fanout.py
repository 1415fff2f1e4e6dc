#!/usr/bin/env python3
"""Measures what one more replica costs: one push to 1, 4 and 16 of them, all on this machine.

    cargo build --release --workspace
    benches/fanout.py --tree OLD --tree2 NEW
    benches/fanout.py --tree OLD --tree2 NEW --compress --floor 2.5

Each replica is a `syncd` of its own with its own state and tree; all are paired with one master, and one
`synccli push SRC DEST1 DEST2 ...` serves them at once. For each number of replicas everything begins anew:

    initial   the tree into empty destinations
    deploy    the tree became that of --tree2; without --tree2, of a made tree: each tenth file was edited in its middle,
              each fiftieth removed, and each fiftieth has a new one beside it

For every push: wall seconds; CPU seconds of the master, which is the process of the push, and of all replicas together; bytes
that the master's calls of read(2) and the like returned, which are the source, its index and its program, but not what came by
mmap(2) or from a socket by recvmsg(2); bytes over the loopback interface, headers and acknowledgements included; peak resident
memory of the master, and of the replica that had most. Afterwards each replica is compared with the source by
`rsync --dry-run --checksum`, outside the measured time.

"each more" is what a replica adds: the difference of the most and the fewest replicas, divided by the difference of their
numbers. The source is read and hashed once, and with --compress compressed once for each content that replicas have before, if
it adds no bytes read and no CPU time but that of encrypting and sending. What those cost is not measured here: --floor takes it
in nanoseconds of CPU for each byte on the wire, from `openssl speed -evp aes-128-gcm` and a sender of UDP packets of the same
size, say; where it is given, the CPU time of the master for each more is held against it.

Written to benches/results/DATE-fanout.json: every single measurement; and a table of medians beside it as .txt.
"""

import argparse
import os
import pathlib
import random
import shutil
import sys
import time

import common

WORKLOADS = ("initial", "deploy")


class Fanout:
    """One master's state and some replicas."""

    def __init__(self, work, args, count):
        self.work, self.args, self.replicas = work / f"fanout{count}", args, []
        self.dsts = [self.work / f"dst{i}" for i in range(count)]

    def start(self):
        for dst in self.dsts:
            dst.mkdir(parents=True)
        for i, dst in enumerate(self.dsts):
            self.replicas.append(common.Replica(self.args.bin, self.work, dst, f"replica{i}"))
        for replica in self.replicas:
            replica.pair(self.work / "master")

    def stop(self):
        for replica in self.replicas:
            replica.stop()
        shutil.rmtree(self.work, ignore_errors=True)

    def replicas_cpu(self):
        return sum(replica.cpu() for replica in self.replicas)

    def measured(self, src):
        flags = ["--compress=zstd"] if self.args.compress else []
        synccli = [self.args.bin / "synccli", "--state-dir", self.work / "master"]
        push = [*synccli, "push", *flags, src, *(f"{replica.address}/d" for replica in self.replicas)]
        for replica in self.replicas:
            replica.reset_peak()
        os.sync()
        cpu_before, bytes_before = self.replicas_cpu(), common.loopback_bytes()
        begun = time.monotonic()
        job = common.Job(push, self.work / "push.log")
        try:
            took = job.end()
        finally:
            job.kill()
        time.sleep(0.2)
        return {
            "wall": took["ended"] - begun,
            "cpu_master": took["cpu"],
            "cpu_replicas": self.replicas_cpu() - cpu_before,
            "read": took["read"],
            "bytes": common.loopback_bytes() - bytes_before,
            "peak_master": took["peak"],
            "peak_replica": max(replica.peak() for replica in self.replicas),
        }

    def differences(self, src):
        return [line for dst in self.dsts for line in common.same(src, dst).splitlines()[:5]]


def edit_deploy(src, args):
    if args.tree2:
        return common.deploy(args.tree2, src)
    source = random.Random(3)
    for i, path in enumerate(sorted(common.files_below(src))):
        content = pathlib.Path(path).read_bytes()
        middle = len(content) // 2
        if i % 10 == 0:
            edited = content[:middle] + b" edited %d " % source.randrange(10**9) + content[middle:]
            pathlib.Path(path).write_bytes(edited)
        elif i % 50 == 1:
            os.unlink(path)
        elif i % 50 == 2:
            pathlib.Path(f"{path}.new").write_bytes(b"new %d\n" % source.randrange(10**9) + content[::-1])


def measure(args, work):
    samples = []
    src = work / "src"
    for turn in range(args.runs):
        for count in args.replicas if turn % 2 == 0 else args.replicas[::-1]:
            shutil.rmtree(src, ignore_errors=True)
            common.run(["cp", "-a", "--reflink=never", args.tree, src])
            fanout = Fanout(work, args, count)
            try:
                fanout.start()
                for workload in WORKLOADS:
                    # So that what the last push wrote is older than any clock tick of the edit.
                    time.sleep(1.1)
                    if workload == "deploy":
                        edit_deploy(src, args)
                    sample = {"workload": workload, "replicas": count, "turn": turn, **fanout.measured(src)}
                    sample["source_bytes"] = common.tree_size(src)["bytes"]
                    sample["differences"] = fanout.differences(src) if not args.no_verify else None
                    samples.append(sample)
                    common.show(sample)
            finally:
                fanout.stop()
    return samples


# ---- what is printed

FIGURES = {
    "wall": ("wall s", 1, "10.3f"),
    "cpu_master": ("master cpu s", 1, "14.3f"),
    "cpu_replicas": ("replicas cpu s", 1, "16.3f"),
    "read": ("MB read", 1e6, "12.3f"),
    "bytes": ("MB on the wire", 1e6, "16.3f"),
    "peak_master": ("master MB", 1e6, "11.1f"),
    "peak_replica": ("replica MB", 1e6, "12.1f"),
}


def cells(m):
    return "".join(f"{m[what] / unit:{form}}" for what, (_, unit, form) in FIGURES.items())


def table(samples, floor):
    titles = "".join(f"{title:>{form.split('.')[0]}}" for title, _, form in FIGURES.values())
    lines = [f"{'workload':9} {'replicas':>9}{titles}   read, of the source"]
    for workload in WORKLOADS:
        found = {}
        for count in sorted({s["replicas"] for s in samples}):
            which = {"workload": workload, "replicas": count}
            m = {what: common.median(samples, what, **which) for what in (*FIGURES, "source_bytes")}
            lines.append(f"{workload:9} {count:9}{cells(m)}   {m['read'] / m['source_bytes']:.2f}")
            found[count] = m
        fewest, most = min(found), max(found)
        if most > fewest:
            added = {what: (found[most][what] - found[fewest][what]) / (most - fewest) for what in FIGURES}
            lines.append(each_more(workload, added, floor))
    wrong = [s for s in samples if s["differences"]]
    lines += [f"DIFFERS: {s['workload']}, {s['replicas']} replicas, turn {s['turn']}: {s['differences']}" for s in wrong]
    return "\n".join(lines) + "\n"


def each_more(workload, added, floor):
    a_byte = added["cpu_master"] / added["bytes"] * 1e9
    line = f"{workload:9} each more{cells(added)}   master cpu: {a_byte:.2f} ns for each byte on the wire"
    return f"{line}   {common.verdict(a_byte, floor, 'floor')}" if floor else line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.options(parser, runs=1)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4, 16], help="how many; each of these numbers in turn")
    parser.add_argument("--tree", type=pathlib.Path, help="a real tree (default: a made one of --files files)")
    parser.add_argument("--tree2", type=pathlib.Path, help="what it becomes in the workload deploy")
    parser.add_argument("--files", type=int, default=40_000, help="size of the made tree")
    parser.add_argument("--compress", action="store_true", help="push with --compress=zstd")
    parser.add_argument("--floor", type=float, metavar="NS_PER_BYTE", help="CPU time of encrypting and sending a byte")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the trees after each push")
    args = parser.parse_args()
    common.check(args)
    with common.workplace(args, "fanout-") as work:
        tree = common.given_or_made(args, work)
        about = common.facts(args, tree=tree, runs=args.runs)
        samples = measure(args, work)
    common.write_results(args, about, "fanout", samples, table(samples, args.floor))
    if any(s["differences"] for s in samples):
        raise SystemExit("a replica differs from its source")


if __name__ == "__main__":
    main()
