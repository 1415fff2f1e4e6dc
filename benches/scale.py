#!/usr/bin/env python3
"""Measures how time, memory and index grow with the number of files, beside `rsync --daemon`.

    cargo build --release --workspace
    benches/scale.py                                # 10,000, 100,000 and 1,000,000 files, a wide directory, a sparse file
    benches/scale.py --files 10000 100000 --only growth

    growth    made trees of --files small files each, of 200 to 3,000 random bytes, a hundred in a directory: each an inode and
              a content of its own
    wide      one directory of --wide files
    sparse    one file of --sparse GiB with a MiB of data at its start, its middle and its end, and holes between.
              `rsync -S` beside it with --rsync-sparse: it reads all of the holes

Each is pushed three times:

    initial   into an empty destination, by a master that has no index: the first scan is in it
    noop      nothing has changed
    one       one file was appended to; of the sparse one, 22 bytes in its middle were written over

For every push: wall seconds; CPU seconds of both sides together; bytes over the loopback interface; peak resident memory of
either side, of rsync's daemon without its children; the size of the index at either side, with its log, also for each file.
One peer after the other has the whole place: a million files, twice, take 8 GiB where a block is 4 KiB, and their inodes. After
the last push the trees are compared by `rsync --dry-run --checksum`, outside the measured time; of the sparse file what is not a
hole is compared, and what the two occupy.

Written to benches/results/DATE-scale.json: every single measurement; a table of medians as .txt, with the growth for ten times
the files, which is 10 where it is linear; and the curves as .svg.
"""

import argparse
import math
import os
import pathlib
import random
import shutil
import sys
import time

import common
import plot

MIB = 1 << 20
PUSHES = ("initial", "noop", "one")


# ---- the trees


def tree_of(src, count, in_directory):
    """Files with distinct contents, the same every time."""
    source = random.Random(count)
    for i in range(count):
        if i % in_directory == 0:
            here = src / f"part{i // 10_000:03}" / f"dir{i // in_directory:05}"
            here.mkdir(parents=True)
        with open(f"{here}/file{i:07}", "wb", buffering=0) as f:
            f.write(source.randbytes(source.randrange(200, 3001)))


def append_to_one(src):
    path = max(os.path.join(here, max(names)) for here, _, names in os.walk(src) if names)
    with open(path, "a") as f:
        f.write(f"\n{time.time()}\n")


def sparse_file(src, gib):
    src.mkdir()
    source = random.Random(gib)
    with open(src / "sparse", "wb") as f:
        for at in (0, (gib << 29) - MIB // 2, (gib << 30) - MIB):
            f.seek(at)
            f.write(source.randbytes(MIB))


def edit_sparse(src):
    """In the data at the middle."""
    with open(src / "sparse", "r+b") as f:
        f.seek(os.path.getsize(src / "sparse") // 2)
        f.write(b"edited-here-now-%06d" % random.randrange(10**6))


def data_of(path):
    """Where a file is not a hole: pairs of start and end."""
    with open(path, "rb", buffering=0) as f:
        end = os.fstat(f.fileno()).st_size
        at = 0
        while at < end:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: no more data.
                return
            hole = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            yield at, hole
            at = hole


def sparse_differences(src, dst):
    """Compares what is data in either; the rest is a hole in both."""
    paths = (src / "sparse", dst / "sparse")
    if os.path.getsize(paths[0]) != os.path.getsize(paths[1]):
        return ["sizes differ"]
    with open(paths[0], "rb", buffering=0) as a, open(paths[1], "rb", buffering=0) as b:
        for start, end in (extent for path in paths for extent in data_of(path)):
            for at in range(start, end, MIB):
                size = min(MIB, end - at)
                if os.pread(a.fileno(), size, at) != os.pread(b.fileno(), size, at):
                    return [f"contents differ at {at}"]
    return []


# ---- the measurement


class Synccli(common.Synccli):
    def indexes(self):
        """Bytes of what is in either index: of the master, of the replica."""
        states = {"index_master": self.master, "index_replica": self.daemon.state}
        return {who: common.tree_size(state / "index")["bytes"] for who, state in states.items()}


class RsyncSparse(common.Rsync):
    flags = ("-S",)


def room_for(work, files):
    """Ends if the place is too small for two trees."""
    stat = os.statvfs(work)
    blocks, inodes = stat.f_bavail * stat.f_frsize, stat.f_favail
    needed = 2.1 * files
    if blocks < needed * 4096 or (stat.f_files and inodes < needed):
        raise SystemExit(f"{files} files twice do not fit below --dir: {blocks >> 20} MiB and {inodes} inodes are free")


def history_of(peer, src, edit, differences, sample, verify):
    """Samples of the three pushes of one peer."""
    try:
        peer.fresh()
        for step in PUSHES:
            # So that what the last push wrote is older than any clock tick of the edit.
            time.sleep(1.1)
            if step == "one":
                edit(src)
            took = {**sample, "step": step, "peer": peer.name, **peer.measured(src)}
            if isinstance(peer, Synccli):
                took |= peer.indexes()
            if sample["workload"] == "sparse":
                took |= {f"blocks_{who}": os.stat(at / "sparse").st_blocks for who, at in (("src", src), ("dst", peer.dst))}
            if step == "one" and verify:
                took["differences"] = differences(src, peer.dst)
            common.show(took)
            yield took
    finally:
        peer.stop()
        shutil.rmtree(peer.work, ignore_errors=True)


def tree_differences(src, dst):
    return common.same(src, dst).splitlines()[:5]


def measure(args, work, workload, files, turn, make, edit, differences=tree_differences, rsync=common.Rsync):
    src = work / "src"
    room_for(work, files)
    print(f"{workload}: making {files} files", file=sys.stderr)
    make(src)
    peers = [Synccli(work, args)] + ([rsync(work, args)] if rsync else [])
    sample = {"workload": workload, "files": files, "turn": turn}
    samples = []
    for peer in peers if turn % 2 == 0 else peers[::-1]:
        samples += history_of(peer, src, edit, differences, sample, not args.no_verify)
    shutil.rmtree(src)
    return samples


def growth(args, work, turn):
    rsync = None if args.no_rsync else common.Rsync
    samples = []
    for count in args.files:
        samples += measure(args, work, "growth", count, turn, lambda src: tree_of(src, count, 100), append_to_one, rsync=rsync)
    return samples


def wide(args, work, turn):
    rsync = None if args.no_rsync else common.Rsync
    count = args.wide
    return measure(args, work, "wide", count, turn, lambda src: tree_of(src, count, count), append_to_one, rsync=rsync)


def sparse(args, work, turn):
    rsync = RsyncSparse if args.rsync_sparse else None
    make = lambda src: sparse_file(src, args.sparse)
    return measure(args, work, "sparse", 1, turn, make, edit_sparse, sparse_differences, rsync)


WORKLOADS = {"growth": growth, "wide": wide, "sparse": sparse}


# ---- what is printed


def medians(samples, what):
    """{(workload, files, step, peer): median} of those that were measured so."""
    keys = ("workload", "files", "step", "peer")
    found = dict.fromkeys(tuple(s[k] for k in keys) for s in samples if what in s)
    return {key: common.median(samples, what, **dict(zip(keys, key))) for key in found}


FIGURES = ("wall", "cpu", "bytes", "peak_sender", "peak_receiver", "index_master", "index_replica", "blocks_src", "blocks_dst")


def table(samples):
    found = {what: medians(samples, what) for what in FIGURES}
    lines = [
        f"{'workload':8} {'files':>8} {'push':8} {'peer':8} {'wall s':>9} {'cpu s':>8} {'MB':>10} "
        f"{'sender MB':>10} {'receiver MB':>12}"
        f"   of rsync: {'wall':>5} {'cpu':>5}   index, bytes a file: {'master':>7} {'replica':>7}"
    ]
    for key in sorted(found["wall"], key=lambda key: (list(WORKLOADS).index(key[0]), key[1], PUSHES.index(key[2]), key[3])):
        lines.append(row(key, {what: values[key] for what, values in found.items() if key in values}, found))
    wrong = [s for s in samples if s.get("differences")]
    lines += [f"DIFFERS: {s['peer']} {s['workload']} {s['files']} turn {s['turn']}: {s['differences']}" for s in wrong]
    return "\n".join([*lines, *growth_table(samples)]) + "\n"


def row(key, m, found):
    workload, files, push, peer = key
    line = (
        f"{workload:8} {files:8} {push:8} {peer:8} {m['wall']:9.3f} {m['cpu']:8.2f} {m['bytes'] / 1e6:10.3f} "
        f"{m['peak_sender'] / 1e6:10.1f} {m['peak_receiver'] / 1e6:12.1f}"
    )
    if peer == Synccli.name:
        beside = (workload, files, push, "rsync")
        ratios = [f"{m[what] / found[what][beside]:5.2f}" if beside in found[what] else "    -" for what in ("wall", "cpu")]
        peak = max(m["peak_sender"], m["peak_receiver"])
        line += f"             {' '.join(ratios)}                        "
        line += f"{m['index_master'] / files:7.0f} {m['index_replica'] / files:7.0f}"
        line += f"   memory {common.verdict(peak / 1e6, common.MEMORY_GOAL / 1e6)}"
    if "blocks_dst" in m:
        # A block at the edge of each extent may be one's own.
        kept = m["blocks_dst"] * 512 <= m["blocks_src"] * 512 + MIB
        line += f"   occupied {m['blocks_src'] // 2:.0f} KiB, there {m['blocks_dst'] // 2:.0f}: "
        line += f"holes {'kept' if kept else 'FILLED'}"
    return line


def curves(samples, what, unit=1.0, steps=PUSHES, called=None):
    """{peer and push: [(files, value)]} of the growth; values of nothing have no place on a logarithmic axis."""
    found = {}
    for (workload, files, step, peer), value in medians(samples, what).items():
        if workload == "growth" and step in steps and value > 0:
            found.setdefault(f"{peer} {called or step}", []).append((files, value / unit))
    return {name: sorted(points) for name, points in sorted(found.items(), key=lambda item: item[0].startswith("rsync"))}


def memory_curves(samples):
    ends = {"sender": "peak_sender", "receiver": "peak_receiver"}
    found = {}
    for end, what in ends.items():
        found |= curves(samples, what, 1e6, ("initial",), end)
    # The figure is that of the daemon that listens; its children received.
    found.pop("rsync receiver", None)
    return dict(sorted(found.items(), key=lambda item: item[0].startswith("rsync")))


def all_curves(samples):
    index = {}
    for who in ("master", "replica"):
        index |= curves(samples, f"index_{who}", 1e6, ("initial",), who)
    return [
        ("Wall time of a push", "files", "seconds", curves(samples, "wall")),
        ("CPU time of both sides", "files", "seconds", curves(samples, "cpu")),
        ("Peak memory, first push", "files", "MB", memory_curves(samples)),
        ("Index, after the first push", "files", "MB", index),
    ]


def growth_table(samples):
    """By how much each curve grows for ten times the files."""
    counts = sorted({s["files"] for s in samples if s["workload"] == "growth"})
    if len(counts) < 2:
        return []
    pairs = list(zip(counts, counts[1:]))
    lines = ["", f"{'growth for ten times the files; linear is 10':56}" + "".join(f"{f'{a} to {b}':>20}" for a, b in pairs)]
    for title, _, _, found in all_curves(samples):
        for name, points in found.items():
            at = dict(points)
            cells = ""
            for a, b in pairs:
                known = a in at and b in at
                cells += f"{(at[b] / at[a]) ** (1 / math.log10(b / a)):20.2f}" if known else f"{'-':>20}"
            lines.append(f"{title:32}{name:24}{cells}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.options(parser, runs=1)
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="sizes of the trees of growth")
    parser.add_argument("--wide", type=int, default=200_000, help="files of the wide directory")
    parser.add_argument("--sparse", type=int, default=64, metavar="GIB", help="size of the sparse file")
    parser.add_argument("--only", action="append", choices=WORKLOADS, help="only this workload")
    parser.add_argument("--no-rsync", action="store_true", help="synccli alone")
    parser.add_argument("--rsync-sparse", action="store_true", help="`rsync -S` beside the sparse file; takes long")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the trees after the last push")
    args = parser.parse_args()
    common.check(args)
    about = common.facts(args, runs=args.runs)
    samples = []
    with common.workplace(args, "scale-") as work:
        for turn in range(args.runs):
            for workload in args.only or WORKLOADS:
                samples += WORKLOADS[workload](args, work, turn)
    stem = common.write_results(args, about, "scale", samples, table(samples))
    if len({s["files"] for s in samples if s["workload"] == "growth"}) > 1:
        plot.write(stem.with_suffix(".svg"), all_curves(samples))
        print(f"written: {stem}.svg", file=sys.stderr)
    if any(s.get("differences") for s in samples):
        raise SystemExit("a destination differs from its source")


if __name__ == "__main__":
    main()
