# SPDX-License-Identifier: Apache-2.0
"""Physical functions that copy (examples/copier.py), bound to an iommufd: what tests of HWPTs attach."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass

from tests.commands import ROOT
from tests.iommufd.client import Iommufd
from tests.iommufd.devices import Copier, cdev_of
from tests.labs import MountedLab
from tests.vfio.client import Memory
from tests.vfio.devices import bound

FIRST, SECOND, FAR, NO_IOMMU = "0000:86:00.0", "0000:87:00.0", "0001:88:00.0", "0000:89:00.0"
"""Functions behind one IOMMU, one behind another of the same kind, and one without."""
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

    cdev: Copier
    id: int

    def copy(self, source: int, target: int, size: int) -> int:
        """Have it copy. Returns DONE, or FAULT when a DMA was refused."""
        return self.cdev.copy(source, target, size)


@contextlib.contextmanager
def opened(machine: MountedLab, iommufd: Iommufd, name: str = FIRST) -> Iterator[Function]:
    """The function, taken by vfio-pci, opened by its own character device and bound."""
    with bound(machine, name), Copier(cdev_of(machine, name)) as cdev:
        yield Function(cdev, cdev.ready(iommufd))


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
