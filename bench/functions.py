# SPDX-License-Identifier: Apache-2.0
"""The cost of a lab by the number of its PCI functions: to mount it, to keep them, to look one up and to list
all of them through the mount.

    python bench/functions.py

The command mounts labs of its own in a temporary folder, one after the other, and prints a table. Names are
not cached, so every lookup reaches the server. Run it in the project's root directory.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.lifecycle import each
from tests.labs import MountedLab

BUSES = (1, 4, 40)
"""Numbers of buses; each has 256 functions."""
CALLS = 200
LAB = """\
[mount]
cache = 0

[functions."0000:{{10-{last:02x}}}:{{00-1f}}.{{0-7}}"]
vendor = 0x8086
device = 0x18fe
class = 0x020000
driver = "ice"
bars.0 = {{ size = "4K" }}
capabilities = ["pm", "express"]
"""


def resident(lab: MountedLab) -> int:
    """KiB of memory of the server."""
    return int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{lab.pid}/status").read_text())[0])


def described(folder: Path, text: str) -> MountedLab:
    """A lab that is not mounted yet."""
    folder.mkdir()
    (folder / "lab.toml").write_text(text)
    return MountedLab(folder, "--config", str(folder / "lab.toml"), "--log-level", "warning")


def measure(folder: Path, buses: int, empty: int) -> None:
    """Mount a lab with so many full buses, and print its cost. `empty` are KiB of a server without them."""
    lab = described(folder, LAB.format(last=0x0F + buses))
    start = time.perf_counter()
    with lab:
        seconds = time.perf_counter() - start
        kib = resident(lab)
        devices = lab.path / "sys/bus/pci/devices"
        names = [
            f"0000:{0x10 + index // 256:02x}:{index // 8 % 32:02x}.{index % 8}"
            for index in range(buses * 256)
        ]
        known = (names * CALLS)[:: max(len(names) // CALLS, 1)][:CALLS]
        looking = each(lambda name: os.stat(devices / name), known)
        reading = each(lambda name: (devices / name / "vendor").read_bytes(), known)
        listing = each(lambda _: os.listdir(devices), names[:5]) / len(names)
    row = f"{len(names):>9} {seconds:>9.2f} {(kib - empty) / len(names):>10.2f}"
    print(f"{row} {looking:>12.0f} {reading:>9.0f} {listing:>13.1f}")


def main() -> None:
    print("functions  mount, s  each, KiB  look up, us  read, us  list, us/one")
    with tempfile.TemporaryDirectory() as folder:
        one = LAB.format(last=0x10).replace("{00-1f}.{0-7}", "00.0")
        with described(Path(folder) / "empty", one) as lab:
            empty = resident(lab)
        for buses in BUSES:
            measure(Path(folder) / str(buses), buses, empty)


if __name__ == "__main__":
    main()
