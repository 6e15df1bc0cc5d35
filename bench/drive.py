# SPDX-License-Identifier: Apache-2.0
"""Measurements that need no client in C, because each call takes milliseconds.

    python -m bench.drive create CALLS LAB      create and remove a vGPU
    python -m bench.drive mount CALLS FOLDER    from the start of `vfsfuse mount` until the tree answers
    python -m bench.drive mount-functions CALLS FOLDER  the same for a lab of 10,240 PCI functions
    python -m bench.drive mount.sh CALLS FOLDER the same through ./mount.sh, until it returns
    python -m bench.drive traced LAB CLIENT...  the command of a client, while this reads the trace of the lab
    python -m bench.drive ruled LAB CLIENT...   the same while the lab has a fault rule about another device

The command prints nanoseconds as bench/client.c does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.samples import show, timed
from bench.servers import FUNCTIONS, ROOT, start_lab


def create(calls: int, place: str) -> None:
    lab = Path(place)
    file = (lab / "sys/class/mdev_bus/bench/mdev_supported_types/bench-1/create").resolve()
    timed(partial(create_and_remove, file, lab / "sys/bus/mdev/devices"), calls)


def create_and_remove(file: Path, devices: Path) -> None:
    name = str(uuid.uuid4())
    file.write_text(name)
    (devices / name / "remove").write_text("1")


def mount(calls: int, place: str, *options: str | Path) -> None:
    spent = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        server = start_lab(Path(place) / "mounted", *options)
        spent.append(time.perf_counter_ns() - start)
        server.stop()
    show(spent[1:])


def mount_sh(calls: int, place: str) -> None:
    spent = []
    mountpoint, script = str(Path(place) / "mounted"), str(ROOT / "mount.sh")
    log = str(Path(place) / "mount.log")
    for _ in range(calls):
        start = time.perf_counter_ns()
        subprocess.run([script, "--log-file", log, mountpoint], check=True, stdout=subprocess.DEVNULL)
        spent.append(time.perf_counter_ns() - start)
        subprocess.run([script, "-u", mountpoint], check=True, stdout=subprocess.DEVNULL)
    show(spent[1:])


def traced(lab: str, client: Sequence[str]) -> None:
    with open(Path(lab) / "trace", "rb") as trace:
        reader = subprocess.Popen(["cat"], stdin=trace, stdout=subprocess.DEVNULL)
    try:
        subprocess.run(client, check=True)
    finally:
        reader.terminate()
        reader.wait()


def ruled(lab: str, client: Sequence[str]) -> None:
    faults = Path(lab) / "faults"
    faults.write_text("add name=elsewhere device=0000:ff:1f.7 call=any errno=EIO\n")
    try:
        subprocess.run(client, check=True)
    finally:
        faults.write_text("clear elsewhere\n")


def mount_functions(calls: int, place: str) -> None:
    mount(calls, place, "--config", FUNCTIONS)


DRIVERS: Mapping[str, Callable[[int, str], None]] = {
    "create": create,
    "mount": mount,
    "mount-functions": mount_functions,
    "mount.sh": mount_sh,
}

CLIENTS: Mapping[str, Callable[[str, Sequence[str]], None]] = {"traced": traced, "ruled": ruled}


def main() -> None:
    os.chdir(ROOT)
    if sys.argv[1] in CLIENTS:
        CLIENTS[sys.argv[1]](sys.argv[2], sys.argv[3:])
        return
    DRIVERS[sys.argv[1]](int(sys.argv[2]), sys.argv[3])


if __name__ == "__main__":
    main()
