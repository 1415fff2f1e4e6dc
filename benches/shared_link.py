#!/usr/bin/env python3
"""Measures how a push and a TCP connection share a link, for as long as neither comes to an end.

    cargo build --release --workspace
    benches/shared_link.py --link 'LINKER --delay-ms {delay} --rate-mbit {rate}'

The link is made as for links.py, which tells how. A program in wan-a sends to one in wan-b as much as TCP takes, with the congestion
control that the kernel is set to; three seconds later a push of one file that does not shrink begins, and five seconds after
that the measurement. Shown is, for each of several runs, what of the rate was content of either in --seconds: of TCP by what
its receiver read, of the push by what else came over the device, less 4 % for headers. Who gets less than a quarter starves. Written to
benches/results/DATE-shared-link.json and .txt.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

import common
import links

GOAL = 0.25
SENDER = "import socket;s=socket.create_connection(('10.99.0.2',8731));b=bytes(65536)\nwhile 1:s.sendall(b)"
RECEIVER = """
import socket, sys, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('10.99.0.2', 8731)); s.listen()
c, total, told = s.accept()[0], 0, 0
while True:
    total += len(c.recv(1 << 16))
    if time.monotonic() - told > 0.05:
        told = time.monotonic()
        print(total, flush=True)
"""


def far_bytes():
    """Received by the device of wan-b."""
    shown = common.run(links.inside("wan-b", ["cat", "/proc/net/dev"])).stdout
    fields = [line.split(":")[1].split() for line in shown.splitlines()[2:] if not line.strip().startswith("lo:")]
    return sum(int(device[0]) for device in fields)


def counts(log):
    """When, bytes that TCP's receiver has read, and all that came over the link."""
    return time.monotonic(), int(log.read_text().splitlines()[-1]), far_bytes()


def once(args, ends, work, turn):
    (ends.src / "noise").write_bytes(os.urandom(int(args.rate * 125_000 * (args.seconds + 15))))
    log = work / f"tcp{turn}.log"
    with open(log, "w") as out:
        receiver = subprocess.Popen(links.inside("wan-b", ["python3", "-c", RECEIVER]), stdout=out)
    time.sleep(0.5)
    sender = subprocess.Popen(links.inside("wan-a", ["python3", "-c", SENDER]), stderr=subprocess.DEVNULL)
    time.sleep(3)
    argv = [str(word) for word in links.inside("wan-a", ends.command("never"))]
    push = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(5)
        begun = counts(log)
        time.sleep(args.seconds)
        ended = counts(log)
        if push.poll() is not None:
            raise SystemExit("the push was over too early")
    finally:
        for process in (push, sender, receiver):
            process.terminate()
            process.wait()
    took, tcp, all_ = (after - before for before, after in zip(begun, ended))
    of_rate = took * args.rate * 125_000
    return {"turn": turn, "tcp": tcp / of_rate, "push": (all_ - tcp * 1.035) * 0.96 / of_rate}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--link", required=True, help="the command that makes a link, with {rate} and {delay}")
    parser.add_argument("--rate", type=int, default=20, help="Mbit/s")
    parser.add_argument("--delay", type=int, default=25, help="milliseconds one way")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("-n", "--runs", type=int, default=3)
    parser.add_argument("--bin", type=pathlib.Path, default=common.HERE.parent / "target/release")
    parser.add_argument("--dir", type=pathlib.Path, default=common.default_dir(), help="where to work; a tmpfs")
    parser.add_argument("--results", type=pathlib.Path, default=common.HERE / "results")
    args = parser.parse_args()
    args.ways = ["never"]
    now = datetime.datetime.now(datetime.timezone.utc)
    work = pathlib.Path(tempfile.mkdtemp(dir=args.dir))
    link = links.Link(args.link, args.rate, args.delay)
    try:
        ends = links.Ends(args, work)
        ends.start()
        samples = [once(args, ends, work, turn) for turn in range(args.runs)]
        ends.stop()
    finally:
        link.end()
        shutil.rmtree(work, ignore_errors=True)
    control = pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    about = {
        "date": now.isoformat(timespec="seconds"),
        "machine": common.machine(),
        "versions": common.versions(args.bin),
        "link": re.sub(r"\S*/", "", args.link),
        "rate_mbit": args.rate,
        "delay_ms": args.delay,
        "seconds": args.seconds,
        "tcp": control,
    }
    lines = [f"share of {args.rate} Mbit/s   push   tcp ({control})"]
    lines += [f"run {s['turn']}             {s['push']:8.2f} {s['tcp']:6.2f}" for s in samples]
    least = min(min(s["push"], s["tcp"]) for s in samples)
    lines.append(f"least {least:.2f}, goal {GOAL}: {'met' if least >= GOAL else 'NOT MET'}")
    name = args.results / f"{now:%Y-%m-%d-%H%M%S}-shared-link"
    args.results.mkdir(parents=True, exist_ok=True)
    name.with_suffix(".json").write_text(json.dumps({**about, "samples": samples}, indent=1) + "\n")
    name.with_suffix(".txt").write_text(json.dumps(about, indent=1) + "\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
