#!/usr/bin/env python3
"""Measures pushes over links of several rates: a deploy, with `--compress=auto` beside `never`, `zstd` and `rsync -z`; and one small file.

    cargo build --release --workspace
    benches/links.py --tree OLD --tree2 NEW --link 'LINKER --delay-ms {delay} --rate-mbit {rate}'
    benches/links.py --work one --tree TREE --ways auto 'rsync -z' --link ...
    benches/links.py --work one --tree TREE --ways standing --link ...

The link is not made here. The command after --link is run with the one-way delay in milliseconds and the rate in Mbit/s, both
directions alike; it makes two network namespaces, wan-a with the address 10.99.0.1 and wan-b with 10.99.0.2, prints `ready`, and
takes them away when it is ended. Needs root, ip(8) and rsync.

Each way has a destination and a state of its own. For each rate: the source is a copy of OLD, which each way sends over the
link; then what differs in NEW is written into the source, as a deploy does, and each way sends that, in turn. Wall
seconds and bytes on the device of wan-a, both ways, of the latter. With `--work one` a line is appended to a small file instead, ten
times in each run, with a second between; the way `standing` is a daemon that follows the tree over a connection that
is there already: seconds until its replica has the line. It is for a run of its own: it sends what others are to send. Afterwards the trees are compared by `rsync --dry-run --checksum`,
outside the measured time. Written to benches/results/DATE-links.json, with a table of medians as .txt.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time

import common

WAYS = ["never", "auto", "zstd", "rsync -z"]
STANDING = "standing"
CHANGES = 10


def inside(namespace, argv):
    return ["ip", "netns", "exec", namespace, *argv]


class Link:
    def __init__(self, command, rate, delay):
        argv = command.format(rate=rate, delay=delay).split()
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        if "ready" not in self.process.stdout.readline():
            raise SystemExit("the link was not made")

    def bytes(self):
        """Received and sent by the device of wan-a."""
        shown = common.run(inside("wan-a", ["cat", "/proc/net/dev"])).stdout
        fields = [line.split(":")[1].split() for line in shown.splitlines()[2:] if not line.strip().startswith("lo:")]
        return sum(int(device[0]) + int(device[8]) for device in fields)

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)


class Ends:
    """The receiving side of all ways, in wan-b, and what each keeps on the sending side."""

    def __init__(self, args, work):
        self.args, self.work, self.src = args, work, work / "src"
        modules = ""
        for way in args.ways:
            self.dst(way).mkdir()
            modules += f"[{self.share(way)}]\npath = {self.dst(way)}\nread only = no\nuid = {os.getuid()}\ngid = {os.getgid()}\n"
        (work / "rsyncd.conf").write_text(f"use chroot = no\nreverse lookup = no\n{modules}")

    def share(self, way):
        return "".join(c for c in way if c.isalnum())

    def dst(self, way):
        return self.work / f"dst-{self.share(way)}"

    def state(self, way):
        return self.work / f"master-{self.share(way)}"

    def start(self):
        self.src.mkdir(exist_ok=True)
        replica, ours = self.work / "replica", [way for way in self.args.ways if not way.startswith("rsync")]
        shares = [arg for way in ours for arg in ("--share", f"{self.share(way)}={self.dst(way)}")]
        syncd = [self.args.bin / "syncd", "--state-dir", replica, *shares]
        rsyncd = ["rsync", "--daemon", "--no-detach", f"--config={self.work / 'rsyncd.conf'}", "--port=8730"]
        commands = {"syncd.log": syncd, "rsyncd.log": rsyncd}
        self.daemons = [common.Daemon(inside("wan-b", argv), self.work / log) for log, argv in commands.items()]
        time.sleep(1)
        for way in ours:
            token = common.run([self.args.bin / "syncd", "--state-dir", replica, "invite"]).stdout.strip()
            pair = [self.args.bin / "synccli", "--state-dir", self.state(way), "pair", "10.99.0.2", token]
            common.run(inside("wan-a", pair))
        if STANDING in ours:
            config = self.work / "standing.toml"
            share = f'[shares.{self.share(STANDING)}]\npath = "{self.src}"\nreplicas = ["10.99.0.2"]\n'
            config.write_text(f'state_dir = "{self.state(STANDING)}"\n{share}')
            syncd = inside("wan-a", [self.args.bin / "syncd", "--config", config])
            self.daemons.append(common.Daemon(syncd, self.work / "standing.log"))

    def stop(self):
        for daemon in self.daemons:
            daemon.stop()

    def becomes(self, tree):
        common.deploy(tree, self.src)

    def command(self, way):
        if way.startswith("rsync"):
            return [*way.split(), "-a", "--delete", f"{self.src}/", f"rsync://10.99.0.2:8730/{self.share(way)}/"]
        synccli = [self.args.bin / "synccli", "--state-dir", self.state(way)]
        return [*synccli, "push", f"--compress={way}", self.src, f"10.99.0.2/{self.share(way)}"]


    def push(self, way):
        """To its end. Of the way that stands: until its replica has what is changed now."""
        if way != STANDING:
            common.run(inside("wan-a", self.command(way)))
            return
        self.append()
        there, until = self.dst(way) / self.changed.relative_to(self.src), time.monotonic() + 120
        while not (there.exists() and there.read_bytes() == self.changed.read_bytes()):
            if time.monotonic() > until:
                raise SystemExit(f"{there} does not come: {(self.work / 'standing.log').read_text()[-500:]}")
            time.sleep(0.001)

    def begin(self):
        """All ways have the tree."""
        self.becomes(self.args.tree)
        sizes = {path: path.lstat().st_size for path in sorted(self.src.rglob("*")) if path.is_file()}
        self.changed = next(path for path, size in sizes.items() if 1000 < size < 5000)
        for way in self.args.ways:
            self.push(way)
        # Times of files that were just written prove nothing yet.
        time.sleep(2)

    def append(self):
        with open(self.changed, "a") as f:
            f.write(f"{time.time()}\n")


def deploy(ends, turn):
    """Which ways are to be measured, when."""
    ends.begin()
    ends.becomes(ends.args.tree2)
    time.sleep(2)
    yield from ends.args.ways if turn % 2 == 0 else ends.args.ways[::-1]


def one(ends, turn):
    if turn == 0:
        ends.begin()
    for change in range(CHANGES):
        for way in ends.args.ways if change % 2 == 0 else ends.args.ways[::-1]:
            time.sleep(1)
            if way != STANDING:
                ends.append()
            yield way


def measure(args, work):
    samples = []
    ends = Ends(args, work)
    for rate in args.rates:
        link = Link(args.link, rate, args.delay)
        try:
            ends.start()
            for turn in range(args.runs):
                for way in {"deploy": deploy, "one": one}[args.work](ends, turn):
                    before, begun = link.bytes(), time.monotonic()
                    ends.push(way)
                    wall = time.monotonic() - begun
                    # What is acknowledged behind it.
                    time.sleep(0.5 if way == STANDING else 0)
                    sent = link.bytes() - before
                    same = common.same(ends.src, ends.dst(way))
                    samples.append({"rate": rate, "way": way, "turn": turn, "wall": wall, "bytes": sent, "differences": same})
                    print(f"{rate:5} Mbit/s  {way:9} {wall:7.3f} s {sent / 1e6:8.3f} MB {same[:60]}", flush=True)
            ends.stop()
        finally:
            link.end()
    return samples


def table(samples, ways):
    lines = ["Mbit/s   " + "".join(f"{way:>24}" for way in ways) + "   auto of the best of ours"]
    for rate in sorted({sample["rate"] for sample in samples}):
        cells, walls = "", {}
        for way in ways:
            ours = [sample for sample in samples if (sample["rate"], sample["way"]) == (rate, way)]
            walls[way] = statistics.median(sample["wall"] for sample in ours)
            cells += f"{walls[way]:>10.3f} s {statistics.median(sample['bytes'] for sample in ours) / 1e6:>7.3f} MB"
        ours = [wall for way, wall in walls.items() if way not in ("auto", STANDING) and not way.startswith("rsync")]
        ratio = f"{walls['auto'] / min(ours):.2f}" if ours and "auto" in walls else "-"
        lines.append(f"{rate:6}   {cells}   {ratio}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=pathlib.Path, required=True, help="what the destination has")
    parser.add_argument("--tree2", type=pathlib.Path, help="what is sent by a deploy")
    parser.add_argument("--work", choices=["deploy", "one"], default="deploy")
    parser.add_argument("--link", required=True, help="the command that makes a link, with {rate} and {delay}")
    parser.add_argument("--rates", type=int, nargs="+", default=[20, 100, 400, 1000], help="Mbit/s")
    parser.add_argument("--ways", nargs="+", default=WAYS, help="values of --compress, and `rsync -z`")
    parser.add_argument("--delay", type=int, default=10, help="milliseconds one way")
    parser.add_argument("-n", "--runs", type=int, default=2)
    parser.add_argument("--bin", type=pathlib.Path, default=common.HERE.parent / "target/release")
    parser.add_argument("--dir", type=pathlib.Path, default=None, help="where to work; a tmpfs")
    parser.add_argument("--results", type=pathlib.Path, default=common.HERE / "results")
    args = parser.parse_args()
    if args.work == "deploy" and not args.tree2:
        parser.error("a deploy needs --tree2")
    work = pathlib.Path(tempfile.mkdtemp(dir=args.dir))
    try:
        samples = measure(args, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    # The link's command names places of one machine, and no more.
    about = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": common.machine(),
        "versions": common.versions(args.bin),
        "link": re.sub(r"\S*/", "", args.link),
        "delay_ms": args.delay,
        "work": args.work,
        "trees": [common.tree_size(tree) for tree in (args.tree, args.tree2) if tree],
        "runs": args.runs,
    }
    name = args.results / f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d-%H%M%S}-links"
    args.results.mkdir(parents=True, exist_ok=True)
    name.with_suffix(".json").write_text(json.dumps({**about, "samples": samples}, indent=1) + "\n")
    text = json.dumps(about, indent=1) + "\n\n" + "\n".join(table(samples, args.ways)) + "\n"
    name.with_suffix(".txt").write_text(text)
    print("\n".join(table(samples, args.ways)))


if __name__ == "__main__":
    main()
