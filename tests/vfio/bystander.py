# SPDX-License-Identifier: Apache-2.0
"""Another client of a lab, in a process of its own: it does the same few calls whenever it is told to.

`python -m tests.vfio.bystander LAB GROUP DEVICE` does them for each line of stdin, and prints a line then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

from tests.commands import ROOT
from tests.iommufd.bound import open_bound
from tests.labs import MountedLab, Vgpu
from tests.vfio.client import DEVICE_GET_INFO, Container, DeviceInfo, Group, ioctl

ROUNDS = 20


@contextmanager
def bystander(lab: MountedLab, vgpu: Vgpu) -> Iterator[Callable[[], None]]:
    """Run one while the block runs.  What is given lets it do its calls ROUNDS times, and waits for that."""
    command = [sys.executable, "-m", "tests.vfio.bystander", str(lab.path), vgpu.group, str(vgpu.cdev)]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        def work_on() -> None:
            assert process.stdin is not None and process.stdout is not None
            for _ in range(ROUNDS):
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == "done\n"

        yield work_on


def work(lab: Path, group_number: str, device: str) -> None:
    """Make calls until stdin ends."""
    with Container(lab) as container:
        calls: tuple[Callable[[], object], ...] = (
            (lab / "sys/bus/pci/devices/0000:86:00.0/vendor").read_text,
            lambda: use(device),
            lambda: join(lab, group_number, container),
        )
        print("ready", flush=True)
        while sys.stdin.readline():
            for call in calls:
                call()
            print("done", flush=True)


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
    work(Path(sys.argv[1]), *sys.argv[2:])
