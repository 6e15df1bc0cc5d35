# SPDX-License-Identifier: Apache-2.0
"""What tests of groups and devices share: a lab with every kind of device, and devices opened through their
group."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.labs import MountedLab
from tests.vfio.client import (
    DEVICE_SET_IRQS,
    GROUP_GET_DEVICE_FD,
    TYPE1V2,
    Container,
    File,
    Group,
    IrqSet,
    buffer,
    ioctl,
)

LAB = """\
[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
options = { vectors = 2048 }
types.own = { memory = "1M", description = "of the first function" }

[parents."0000:86:01.0"]
kind = "gpu"
driver = "vgpu"
memory = "1M"
types.other = { memory = "1M", description = "of the same bus" }

[parents."0000:87:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "1M"
iommu = false
types.third = { memory = "1M", description = "without IOMMU" }

[parents.pool]
kind = "virtual"
driver = "pool"
model = "vgpu"
memory = "4M"
types.sparse = { memory = "1M", description = "MSI-X apart from its memory", options = { vectors = 64 } }

[parents.mtty]
kind = "virtual"
driver = "mtty"
slots = 8
types.mtty-2 = { description = "a serial card", options = { ports = 2 }, slots = 2 }
"""
GPU, NEIGHBOUR, UNPROTECTED = "0000:86:00.0", "0000:86:01.0", "0000:87:00.0"

INTX, MSI, MSIX, ERR, REQ = range(5)
NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32
HAND_OVER_FORMAT = struct.Struct("=IIQI260s")
HANDED_OVER = 1 << 30 | 4 << 16 | ord("V") << 8 | 0x44
HAND_OVER = 3 << 30 | HAND_OVER_FORMAT.size << 16 | ord("V") << 8 | 0x40


def group_device(root: Path, group: Group, name: str) -> int:
    """The device `name` through its group, asked for as the supervisor of `vfsfuse run` asks."""
    return os.open(prepared_device(root, group.fd, name, os.getpid()), os.O_RDWR | os.O_CLOEXEC)


def prepared_device(root: Path, group: int, name: str, tid: int) -> Path:
    """The file of the device `name` that the caller alone can open.  `group` is a descriptor of the group's
    file, `tid` the thread that is named as the client."""
    token, _ = handed_over(group, GROUP_GET_DEVICE_FD, name.encode(), tid)
    return root / f".device-{token}"


def handed_over(file: int, cmd: int, data: bytes, tid: int) -> tuple[int, bytes]:
    """The token and the data of an ioctl that the supervisor has carried out for thread `tid`."""
    ask = bytearray(HAND_OVER_FORMAT.pack(cmd, tid, 0, len(data), data))
    fcntl.ioctl(file, HAND_OVER, ask)
    _, _, token, size, answer = HAND_OVER_FORMAT.unpack(ask)
    return token, answer[:size]


class Device(File):
    """An open device."""

    def irqs(self, index: int, flags: int, start: int, count: int, data: bytes = b"", **fields: int) -> None:
        """SET_IRQS with an argsz that is right unless given."""
        head = IrqSet(flags=flags, index=index, start=start, count=count)
        head.argsz = ctypes.sizeof(head) + len(data)
        for name, value in fields.items():
            setattr(head, name, value)
        ioctl(self.fd, DEVICE_SET_IRQS, buffer(head, data))

    def eventfds(self, index: int, action: int, start: int, *numbers: int) -> None:
        """SET_IRQS with DATA_EVENTFD."""
        data = struct.pack(f"={len(numbers)}i", *numbers)
        self.irqs(index, EVENTFD | action, start, len(numbers), data)

    def tear_down(self, index: int) -> None:
        self.irqs(index, NONE | TRIGGER, 0, 0)

    def config(self, offset: int, size: int = 2) -> int:
        return int.from_bytes(os.pread(self.fd, size, (7 << 40) + offset), "little")

    def set_config(self, offset: int, value: int, size: int = 2) -> None:
        os.pwrite(self.fd, value.to_bytes(size, "little"), (7 << 40) + offset)


@dataclass
class Opened:
    """A device with what it was opened through."""

    container: Container
    group: Group
    device: Device
    name: str


@contextlib.contextmanager
def opened(
    lab: MountedLab,
    group: str,
    name: str,
    kind: int = TYPE1V2,
    container: type[Container] = Container,
) -> Iterator[Opened]:
    """The device `name` of `group`, opened in a container of its own."""
    with ExitStack() as stack:
        own = stack.enter_context(container(lab.path))
        file = stack.enter_context(Group(lab.path, group))
        file.set_container(own)
        own.set_iommu(kind)
        device = stack.enter_context(Device(group_device(lab.path, file, name)))
        yield Opened(own, file, device, name)


@contextlib.contextmanager
def opener(lab: MountedLab, group: str, name: str) -> Iterator[Callable[[], Device]]:
    """What opens the device `name` of `group` each time it is called. Its own file serves one client."""
    with Container(lab.path) as container, Group(lab.path, group) as file:
        file.set_container(container)
        container.set_iommu()
        yield lambda: Device(group_device(lab.path, file, name))


@contextlib.contextmanager
def mdev(lab: MountedLab, type_name: str, parent: str) -> Iterator[Opened]:
    """A new vGPU, opened."""
    with lab.create(type_name, parent) as vgpu, opened(lab, vgpu.group, vgpu.name) as device:
        yield device


def function_dir(lab: MountedLab, name: str) -> Path:
    return lab.path / "sys/bus/pci/devices" / name


def vfio_pci(lab: MountedLab, name: str) -> str:
    """Bind the function to vfio-pci; returns the number of its group."""
    function = function_dir(lab, name)
    (function / "driver_override").write_text("vfio-pci")
    (function / "driver/unbind").write_text(name)
    (lab.path / "sys/bus/pci/drivers/vfio-pci/bind").write_text(name)
    return os.readlink(function / "iommu_group").rsplit("/", 1)[1]


def give_back(lab: MountedLab, name: str) -> None:
    """Bind the function to its host driver again."""
    function = function_dir(lab, name)
    if (function / "driver").exists():
        (function / "driver/unbind").write_text(name)
    (function / "driver_override").write_text("\n")
    (lab.path / "sys/bus/pci/drivers_probe").write_text(name)


@contextlib.contextmanager
def bound(lab: MountedLab, *names: str) -> Iterator[list[str]]:
    """The functions bound to vfio-pci for a while; gives the numbers of their groups."""
    with ExitStack() as stack:
        groups = []
        for name in names:
            stack.callback(give_back, lab, name)
            groups.append(vfio_pci(lab, name))
        yield groups


def signals(eventfd: int, seconds: float = 60) -> int:
    """Wait for the eventfd; the count that it had, 0 when none came."""
    return os.eventfd_read(eventfd) if select.select([eventfd], [], [], seconds)[0] else 0


def silent(eventfd: int) -> bool:
    """Whether the eventfd has nothing now."""
    return not select.select([eventfd], [], [], 0)[0]


@contextlib.contextmanager
def eventfd(count: int = 0) -> Iterator[int]:
    fd = os.eventfd(count, os.EFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
