# SPDX-License-Identifier: Apache-2.0
"""The cost of a vGPU by the number of vGPUs: to create, look up, list and remove one through the mount.

    python bench/lifecycle.py

The command mounts a lab of its own in a temporary folder and prints a table. Names are not cached, so every
lookup reaches the server. Run it in the project's root directory.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.labs import MountedLab

COUNTS = (10, 100, 1000, 5000)
CALLS = 200
LAB = """\
[mount]
cache = 0

[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "6G"
types.tiny = { memory = "1M", description = "a thousandth" }
"""


def each(call: Callable[[str], object], names: Iterable[str]) -> float:
    """The median of the microseconds of `call` with one name."""
    spent = []
    for name in names:
        start = time.perf_counter()
        call(name)
        spent.append((time.perf_counter() - start) * 1e6)
    return statistics.median(spent)


def write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, text.encode())
    os.close(fd)


def measure(lab: MountedLab, count: int, there: list[str]) -> None:
    """Bring the lab to `count` vGPUs, and print the cost of one more."""
    create = lab.gpu / "mdev_supported_types/tiny/create"
    while len(there) < count:
        there.append(str(uuid.uuid4()))
        write(create, there[-1])
    more = [str(uuid.uuid4()) for _ in range(CALLS)]
    known = (there * CALLS)[:: max(len(there) // CALLS, 1)][:CALLS]
    creating = each(partial(write, create), more)
    looking = each(lambda name: os.stat(lab.mdevs / name), known)
    removing = each(lambda name: write(lab.gpu / name / "remove", "1"), more)
    listing = each(lambda _: os.listdir(lab.mdevs), there[:10]) / count
    kib = int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{lab.pid}/status").read_text())[0])
    print(f"{count:>6} {creating:>12.0f} {looking:>12.0f} {listing:>12.1f} {removing:>12.0f} {kib >> 10:>10}")


def main() -> None:
    print(" vGPUs   create, us  look up, us  list, us/one   remove, us  server, MiB")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "lab.toml").write_text(LAB)
        with MountedLab(path, "--config", str(path / "lab.toml"), "--log-level", "warning") as lab:
            there: list[str] = []
            for count in COUNTS:
                measure(lab, count, there)


if __name__ == "__main__":
    main()
