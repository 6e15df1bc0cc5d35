# SPDX-License-Identifier: Apache-2.0
"""Physical functions that copy (examples/copier.py), bound to an iommufd: what tests of HWPTs attach."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.iommufd.client import Cdev, Iommufd
from tests.lab import ROOT, MountedLab
from tests.vfio.client import Memory
from tests.vfio.devices import bound, function_dir

FIRST, SECOND, FAR, NO_IOMMU = "0000:86:00.0", "0000:87:00.0", "0001:88:00.0", "0000:89:00.0"
"""Functions behind one IOMMU, one behind another of the same kind, and one without."""
COPY, DONE, FAULT = 1, 1, 2
COMMAND_REGISTER, DECODE, MASTER = 4, 3, 4
SECONDS = 10
UNSAFE = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode"


def _function(name: str, more: str = "") -> str:
    return f"""\
[parents."{name}"]
kind = "gpu"
driver = "copying"
model = "copier"
{more}
types.none = {{ description = "none", model = "mtty", instances = 1 }}
"""


LAB = f"""\
[models]
copier = "{ROOT}/examples/copier.py:Copier"

[parents.copiers]
kind = "virtual"
driver = "copier"
slots = 8
types.copier-1 = {{ description = "copies" }}

{_function(FIRST)}
{_function(SECOND)}
{_function(FAR)}
{_function(NO_IOMMU, "iommu = false")}
"""


@dataclass
class Function:
    """An open function, bound to an iommufd by `id`."""

    cdev: Cdev
    id: int

    def copy(self, source: int, target: int, size: int) -> int:
        """Have it copy. Returns DONE, or FAULT when a DMA was refused."""
        os.pwrite(self.cdev.fd, struct.pack("<QQII", source, target, size, COPY), 0)
        wait_for(lambda: self.status)
        found = self.status
        os.pwrite(self.cdev.fd, (DONE | FAULT).to_bytes(4, "little"), 0x18)
        return found

    @property
    def status(self) -> int:
        """DONE or FAULT, 0 while it copies."""
        return int.from_bytes(os.pread(self.cdev.fd, 4, 0x18), "little")


def wait_for(true: Callable[[], object]) -> None:
    """Until it is so. Fails after SECONDS."""
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.0005)


@contextlib.contextmanager
def opened(machine: MountedLab, iommufd: Iommufd, name: str = FIRST) -> Iterator[Function]:
    """The function, taken by vfio-pci, opened by its own character device and bound."""
    with bound(machine, name):
        (vfio,) = os.listdir(function_dir(machine, name) / "vfio-dev")
        with Cdev(machine.path / "dev/vfio/devices" / vfio) as cdev:
            function = Function(cdev, cdev.bind(iommufd))
            cdev.set_config(COMMAND_REGISTER, DECODE | MASTER)
            yield function


@contextlib.contextmanager
def memory(size: int, prot: int = mmap.PROT_READ | mmap.PROT_WRITE, address: int = 0) -> Iterator[Memory]:
    """Pages of this process, for a while."""
    made = Memory(size, prot=prot, address=address)
    yield made
    made.close()


@contextlib.contextmanager
def without_iommu(machine: MountedLab) -> Iterator[None]:
    """vfio-pci takes functions without an IOMMU."""
    (machine.path / UNSAFE).write_text("Y")
    try:
        yield
    finally:
        (machine.path / UNSAFE).write_text("N")
