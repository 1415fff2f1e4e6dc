#!/usr/bin/env python3
"""Compares a push to a paired `syncd` with `rsync --daemon` and with tar: same tree, same machine, same run, in turn.

    cargo build --release --workspace
    benches/compare.py --tree /some/real/tree
    benches/compare.py --tree /some/real/tree --dir /var/tmp --fsync      # on a disk, with durability
    benches/compare.py --big 1024 --dir /var/tmp --loop xfs               # where blocks can be shared

Each round copies the tree afresh and takes all peers through the same history, one workload after the other:

    initial   the tree into an empty destination
    noop      nothing has changed
    one       one small file was appended to
    touch     every file has a new mtime and the same content
    rename    the directory with the most files got another name
    deploy    the tree became that of --tree2 (left out without it)

and, each alone because of its size, with --big:

    big-initial, big-insert, big-scatter, big-append     one file of --big MiB; a byte inserted at its front; a hundred
                                                         edits of 22 bytes anywhere; a MiB appended

The peers:

    rsync            -aHAX, to a daemon in clear text; it flushes nothing
    rsync --fsync    the same, flushing what it wrote: with --fsync, to set beside what synccli does anyway
    tar              only for initial and big-initial: `tar -c` whose standard output is a TCP connection that is the
                     standard input of `tar -x`; in clear text, with mtimes of whole seconds, without ACLs and extended
                     attributes. Not with --compress
    synccli          over QUIC, encrypted, authenticated and durable

With --compress they compress what they send: `rsync -z`, `synccli push --compress=zstd`. With --loop (as root) all trees and
states are on a filesystem of its own, in a sparse image file below --dir which is gone in the end.

For every push: wall seconds; CPU seconds of both sides together; bytes over the loopback interface, headers and
acknowledgements included; peak resident memory of either side, of rsync's daemon without its children; with --loop what was
written to the device until all is flushed. After every push the destination is compared with the source by
`rsync --dry-run --checksum`, outside the measured time. The peers take turns in going first.

Written to benches/results/DATE-HOST.json: every single measurement, machine, versions and command; and a table of
medians and ratios beside it as .txt. A ratio below 1 means that synccli needed less. "least" is that of the shortest walls: a
virtual machine that must ask its host for memory takes seconds for a gibibyte now and then, whoever writes it.

All sides run as the caller; root keeps owners and devices. Nothing else should run meanwhile.
"""

import argparse
import contextlib
import os
import pathlib
import platform
import random
import shutil
import socket
import time

import common

# ---- the peers


class RsyncFsync(common.Rsync):
    name = "rsync --fsync"
    flags = ("--fsync",)


class Tar(common.Peer):
    name = "tar"

    def start(self):
        pass

    def jobs(self, src):
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sending:
            receiving, _ = server.accept()
            with receiving:
                send = ["tar", "-C", src, "-b", "256", "--numeric-owner", "-cf", "-", "."]
                # Whole records, to the last: with what fills it unread, the sender would be told that the connection broke.
                receive = ["tar", "-C", self.dst, "-b", "256", "-B", "--numeric-owner", "-pxf", "-"]
                return [
                    common.Job(send, self.work / "send.log", stdout=sending),
                    common.Job(receive, self.work / "receive.log", stdin=receiving),
                ]


def peers_of(args, work):
    """All that are compared; the last is ours."""
    rsync, synccli = common.Rsync(work, args), common.Synccli(work, args)
    if args.compress:
        rsync.flags, synccli.flags = ("-z",), ("--compress=zstd",)
    others = [rsync]
    if args.fsync:
        others.append(RsyncFsync(work, args))
    if not args.compress and shutil.which("tar"):
        others.append(Tar(work, args))
    return [*others, synccli]


# ---- the history of a tree


def edit_one(src, _args):
    small = sorted(p for p in common.files_below(src) if os.path.getsize(p) < 20_000)
    with open(random.Random(7).choice(small), "a") as f:
        f.write(f"\n{time.time()}\n")


def edit_touch(src, _args):
    for path in common.files_below(src):
        os.utime(path)


def edit_rename(src, _args):
    count = {}
    for path in common.files_below(src):
        top = os.path.relpath(path, src).split(os.sep)[0]
        count[top] = count.get(top, 0) + 1
    fullest = max((n for n in count if os.path.isdir(os.path.join(src, n))), key=count.get)
    os.rename(os.path.join(src, fullest), os.path.join(src, fullest + ".renamed"))


def edit_deploy(src, args):
    common.deploy(args.tree2, src)


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
    # With bytes of its own, also where cp would share them: what is shared may not be in memory.
    all_ = [(lambda src: common.run(["cp", "-a", "--reflink=never", args.tree, src]), tree)]
    if args.big:

        def one_file(src):
            src.mkdir()
            with open(src / "big", "wb") as f:
                for _ in range(args.big):
                    f.write(os.urandom(1 << 20))

        edits = [("big-insert", edit_insert), ("big-scatter", edit_scatter), ("big-append", edit_append)]
        all_.append((one_file, [("big-initial", nothing), *edits]))
    if args.only:
        all_ = [(make, history) for make, history in all_ if any(workload in args.only for workload, _ in history)]
    return all_


# ---- the comparison


def written_to(device):
    """Bytes since it was made: field 7 of its stat, in sectors of 512."""
    return int(pathlib.Path(f"/sys/class/block/{os.path.basename(device)}/stat").read_text().split()[6]) * 512


def measured(peer, src, device):
    if not device:
        return peer.measured(src)
    os.sync()
    before = written_to(device)
    sample = peer.measured(src)
    os.sync()
    return {**sample, "written": written_to(device) - before}


def compare(args, work, device):
    samples = []
    peers = peers_of(args, work)
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
                    taking_part = [peer for peer in peers if step == 0 or peer.name != Tar.name]
                    first = (turn + step) % len(taking_part)
                    for peer in taking_part[first:] + taking_part[:first]:
                        sample = {"workload": workload, "peer": peer.name, "turn": turn, **measured(peer, src, device)}
                        sample["differences"] = common.same(src, peer.dst).splitlines()[:5] if not args.no_verify else None
                        samples.append(sample)
                        common.show(sample)
            finally:
                for peer in peers:
                    peer.stop()
    return samples


# ---- what is printed

# At most of what rsync takes: wall, CPU of both sides.
GOALS = {
    "initial": (0.5, 0.7),
    "noop": (0.15, 0.2),
    "one": (0.15, 0.2),
    "touch": (0.3, 0.4),
    "rename": (0.2, 0.3),
    "deploy": (0.6, 0.8),
    "big-initial": (0.8, 1.0),
    "big-insert": (0.6, 0.8),
    "big-scatter": (0.35, 0.5),
    "big-append": (0.3, 0.4),
}
# Where a file can share blocks with another, no byte that stays needs to be copied.
GOALS_LOOP = {"big-scatter": (0.2, None), "big-append": (0.2, None)}
# Of `rsync -z`, of tar, of `rsync --fsync`.
GOALS_COMPRESSED = {"deploy": (1.0, None)}
GOALS_TAR = {"initial": (0.8, None)}
GOALS_FSYNC = {"initial": (1.0, None)}


def goals_beside(other, args):
    if other == Tar.name:
        return {} if args.fsync or args.loop else GOALS_TAR
    if other == RsyncFsync.name:
        return GOALS_FSYNC
    if args.fsync:
        return {}
    return GOALS_LOOP if args.loop else GOALS_COMPRESSED if args.compress else GOALS


COLUMNS = {"wall": 1, "cpu": 1, "bytes": 1e6, "peak_sender": 1e6, "peak_receiver": 1e6, "written": 1e6}
TITLES = ("wall s", "cpu s", "MB", "sender MB", "receiver MB", "written MB")
FORMATS = ("9.3f", "8.2f", "10.3f", "10.1f", "12.1f", "11.1f")


def table(samples, args, files=0):
    columns = [c for c in COLUMNS if c in samples[0]]
    lines = [f"{'workload':12} {'':18}" + "".join(f"{t:>{f.split('.')[0]}}" for t, f, _ in zip(TITLES, FORMATS, columns))]
    for workload in dict.fromkeys(s["workload"] for s in samples):
        found = {}
        for peer in dict.fromkeys(s["peer"] for s in sorted(samples, key=lambda s: s["peer"] == common.Synccli.name)):
            if any((s["workload"], s["peer"]) == (workload, peer) for s in samples):
                found[peer] = {c: common.median(samples, c, workload=workload, peer=peer) for c in columns}
        for peer, m in found.items():
            cells = "".join(f"{m[c] / COLUMNS[c]:{f}}" for f, c in zip(FORMATS, columns))
            lines.append(f"{workload:12} {peer:18}{cells}{memory(workload, peer, m, files)}")
        ours = found.pop(common.Synccli.name)
        for other, m in found.items():
            lines.append(ratios(samples, args, workload, other, {c: ours[c] / m[c] if m[c] else float("nan") for c in columns}))
    wrong = [s for s in samples if s["differences"]]
    lines += [f"DIFFERS: {s['peer']} {s['workload']} turn {s['turn']}: {s['differences']}" for s in wrong]
    return "\n".join(lines) + "\n"


def memory(workload, peer, m, files):
    if (workload, peer) != ("initial", common.Synccli.name) or files < 100_000:
        return ""
    return f"   memory {common.verdict(max(m['peak_sender'], m['peak_receiver']) / 1e6, common.MEMORY_GOAL / 1e6)}"


def ratios(samples, args, workload, other, ratio):
    cells = ""
    for width, column in ((f.split(".")[0], c) for f, c in zip(FORMATS, ratio)):
        cells += " " * int(width) if column.startswith("peak") else f"{ratio[column]:{width}.{3 if column == 'bytes' else 2}f}"
    least = [min(s["wall"] for s in samples if (s["workload"], s["peer"]) == (workload, p)) for p in (common.Synccli.name, other)]
    goals = zip(("wall", "cpu"), goals_beside(other, args).get(workload, ()))
    said = "".join(f"   {common.verdict(ratio[what], goal, what)}" for what, goal in goals if goal is not None)
    return f"{workload:12}   of {other:13}{cells}   least {least[0] / least[1]:.2f}{said}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.options(parser, runs=3)
    parser.add_argument("--tree", type=pathlib.Path, help="a real tree (default: a made one of --files files)")
    parser.add_argument("--tree2", type=pathlib.Path, help="what it becomes in the workload deploy")
    parser.add_argument("--files", type=int, default=40_000, help="size of the made tree; 100000 for the memory figure")
    parser.add_argument("--big", type=int, default=0, metavar="MIB", help="also with one file of this size")
    parser.add_argument("--only", action="append", choices=GOALS, help="only this workload (and the initial push before it)")
    parser.add_argument("--compress", action="store_true", help="all compress what they send")
    parser.add_argument("--fsync", action="store_true", help="also rsync with --fsync; with --dir on a disk")
    parser.add_argument("--loop", choices=common.MKFS, help="work on such a filesystem, in an image file below --dir; as root")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the trees after each push")
    args = parser.parse_args()
    common.check(args)
    if not histories(args):
        parser.error("what --only names takes --big or --tree2")
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(common.workplace(args, "compare-"))
        about = common.facts(args, tree=common.given_or_made(args, work), runs=args.runs)
        place, device = work, None
        if args.loop:
            place, device = stack.enter_context(common.loop_filesystem(args.loop, work))
            about["filesystem"] = f"{common.filesystem(place)} in an image on {about['filesystem']}"
        samples = compare(args, place, device)
    common.write_results(args, about, platform.node(), samples, table(samples, args, about["tree"]["files"]))
    if any(s["differences"] for s in samples):
        raise SystemExit("a destination differs from its source")


if __name__ == "__main__":
    main()
