# SPDX-License-Identifier: Apache-2.0
"""Another client of a lab, in a process of its own: it does the same few calls until its stdin ends.

`python -m tests.vfio.bystander LAB GROUP DEVICE` prints a line for each round of them.  In the end it prints
how many there were, and the longest seconds of a call.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO

from tests.commands import ROOT
from tests.iommufd.bound import open_bound
from tests.labs import MountedLab, Vgpu
from tests.vfio.client import DEVICE_GET_INFO, Container, DeviceInfo, Group, ioctl


@dataclass
class Seen:
    """What a bystander saw: rounds of calls, and the seconds of the longest call."""

    rounds: int = 0
    longest: float = 0.0
    told: IO[str] | None = None
    """A line of each round."""

    def wait_for_rounds(self, count: int) -> None:
        """Wait until so many have passed in all."""
        assert self.told is not None
        while self.rounds < count:
            assert self.told.readline() == "round\n"
            self.rounds += 1


@contextmanager
def bystander(lab: MountedLab, vgpu: Vgpu) -> Iterator[Seen]:
    """Run one while the block runs.  The result is filled in at the end."""
    command = [sys.executable, "-m", "tests.vfio.bystander", str(lab.path), vgpu.group, str(vgpu.cdev)]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        seen = Seen(told=process.stdout)
        try:
            yield seen
        finally:
            rounds, longest = process.communicate(timeout=60)[0].splitlines()[-1].split()
            seen.rounds, seen.longest = int(rounds), float(longest)


def work(lab: Path, group_number: str, device: str) -> Seen:
    """Make calls until stdin ends."""
    seen = Seen()
    with Container(lab) as container:
        calls: tuple[Callable[[], object], ...] = (
            (lab / "sys/bus/pci/devices/0000:86:00.0/vendor").read_text,
            lambda: use(device),
            lambda: join(lab, group_number, container),
        )
        print("ready", flush=True)
        while not select.select([0], [], [], 0.002)[0]:
            for call in calls:
                began = time.monotonic()
                call()
                seen.longest = max(seen.longest, time.monotonic() - began)
            seen.rounds += 1
            print("round", flush=True)
    return seen


def join(lab: Path, number: str, container: Container) -> None:
    """Open a group, put it into a container, and take it out again."""
    with Group(lab, number) as group:
        group.set_container(container)
        group.unset_container()


def use(device: str) -> None:
    """Open a device, bind it, ask it, read its configuration space, and close it."""
    fd = open_bound(device)
    try:
        info = DeviceInfo()
        ioctl(fd, DEVICE_GET_INFO, info)
        assert info.num_regions
        os.pread(fd, 4, 7 << 40)
    finally:
        os.close(fd)


if __name__ == "__main__":
    found = work(Path(sys.argv[1]), *sys.argv[2:])
    print(found.rounds, found.longest)
