# SPDX-License-Identifier: Apache-2.0
"""Devices that tests bind to an iommufd: a lab with one of each kind, and the copier's registers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.iommufd.client import Cdev, Iommufd
from tests.labs import MountedLab
from tests.vfio.client import PAGE, Memory
from tests.vfio.copiers import COMMAND_REGISTER, DECODE, DONE, FAULT, MASTER
from tests.vfio.copiers import LAB as ONE_OF_EACH
from tests.vfio.devices import HANDED_OVER, function_dir, handed_over
from tests.waiting import wait_for

LAB = (
    ONE_OF_EACH
    + """
[parents."0000:86:01.0"]
kind = "gpu"
driver = "copier"
model = "copier"
types.none = { description = "none", model = "mtty", instances = 1 }

[parents."0000:87:00.0"]
kind = "gpu"
driver = "copier"
model = "copier"
iommu = false
types.none = { description = "none", model = "mtty", instances = 1 }
"""
)
IOMMU_FAULT_QUEUE_ALLOC = 0x3B8E
NEIGHBOUR, UNPROTECTED = "0000:86:01.0", "0000:87:00.0"
MSI_WINDOW = (0xFEE00000, 0xFEEFFFFF)
"""The iovas that a function with an IOMMU cannot use."""


def cdev_of(machine: MountedLab, function: str) -> Path:
    """The character device of a function that vfio-pci drives."""
    return machine.path / "dev/vfio/devices" / os.listdir(function_dir(machine, function) / "vfio-dev")[0]


@contextlib.contextmanager
def given_fault_queue(machine: MountedLab, iommufd: Iommufd) -> Iterator[tuple[int, int]]:
    """A fault queue, asked for as the supervisor of `vfsfuse run` asks: its id, and a descriptor of its
    file."""
    asked = struct.pack("=IIII", 16, 0, 0, 0)
    token, answer = handed_over(iommufd.fd, IOMMU_FAULT_QUEUE_ALLOC, asked, os.getpid())
    file = os.open(machine.path / f".fault-queue-{token}", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(file, HANDED_OVER, bytes(4))
        yield struct.unpack("=III", answer)[2], file
    finally:
        os.close(file)


def in_another_process(call: Callable[[], object]) -> None:
    """Make `call` in a forked process, which has ended then."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Copier(Cdev):
    """An open character device of a copier."""

    def ready(self, iommufd: Iommufd) -> int:
        """Bind it, forget what it did for others, and let it do DMA. Its id is returned."""
        number = self.bind(iommufd)
        self.set_config(COMMAND_REGISTER, DECODE | MASTER)
        self.acknowledge()
        return number

    def begin(self, source: int, target: int, size: int) -> None:
        """Have it copy."""
        os.pwrite(self.fd, struct.pack("<QQII", source, target, size, 1), 0)

    @property
    def status(self) -> int:
        return int.from_bytes(os.pread(self.fd, 4, 0x18), "little")

    def copy(self, source: int, target: int, size: int) -> int:
        """Have it copy, and wait; its status, which is cleared."""
        self.begin(source, target, size)
        wait_for(lambda: self.status)
        found = self.status
        self.acknowledge()
        return found

    def acknowledge(self) -> None:
        """Clear the status."""
        os.pwrite(self.fd, (DONE | FAULT).to_bytes(4, "little"), 0x18)

    def reaches(self, iova: int, memory: Memory) -> bool:
        """Whether it reaches `memory`, two pages or more, at `iova`."""
        memory.write(pattern := os.urandom(8))
        return self.copy(iova, iova + PAGE, 8) == DONE and memory.read(PAGE, 8) == pattern


class Holder(Cdev):
    """An open character device of a holder."""

    def ready(self, iommufd: Iommufd) -> int:
        """As `Copier.ready`."""
        number = self.bind(iommufd)
        self.set_config(COMMAND_REGISTER, DECODE | MASTER)
        return number

    def word(self, offset: int) -> int:
        return int.from_bytes(os.pread(self.fd, 4, offset), "little")

    def command(self, what: int, iova: int, pages: int = 1) -> int:
        """Have it do something; its error."""
        done = self.word(0x10)
        os.pwrite(self.fd, struct.pack("<QII", iova, pages, what), 0)
        wait_for(lambda: self.word(0x10) != done)
        return self.word(0x14)

    @property
    def let_go(self) -> int:
        """How many pins it has released."""
        return self.word(0x18)
