# SPDX-License-Identifier: Apache-2.0
"""msi_irqs/: the interrupts that a driver has by MSI or MSI-X, a file for each.

An IRQ number is made of the function's VFIO number and the vector, so no table has them: no two functions of
a lab have the same.  No interrupt of the host is behind it.  show() is called on the trio thread and on the
device lane.  Source: Documentation/ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from devmodel.lifecycle.function import PciFunction
from devmodel.pci.capability import MAX_MSIX_VECTORS
from vfsfuse.kernfs.kobject import MEMBER_BITS, PART_BITS, Kobject, Member, Numbered
from vfsfuse.kernfs.members import Attribute

FIRST_IRQ = 1024


def irq_of(function: PciFunction, vector: int) -> int:
    """The IRQ number of a vector of MSI or MSI-X."""
    return FIRST_IRQ + (function.vfio_minor or 0) * MAX_MSIX_VECTORS + vector


class VectorFile(Attribute):
    """The file of one vector, numbered by the vector.  Without a function it has no name."""

    __slots__ = ("vector",)

    def __init__(self, vector: int, function: PciFunction | None = None) -> None:
        name = "" if function is None else str(irq_of(function, vector))
        super().__init__(name, 0o444, _kind)
        self.vector = vector
        self.name_ns = 0

    def inode(self, owner: Kobject) -> int:
        return self.lane_bits | (owner.number << MEMBER_BITS | self.vector + 1) + 1

    def present(self, owner: MsiIrqsDir) -> bool:
        return self.vector in owner.vectors()


class VectorNumbers(Sequence[Numbered]):
    """What the numbers in a msi_irqs directory stand for."""

    def __len__(self) -> int:
        return MAX_MSIX_VECTORS

    def __getitem__(self, index: int) -> Numbered:  # type: ignore[override]  # nobody slices it
        return Numbered(None, VectorFile(index))


class MsiIrqsDir(Kobject):
    """<function>/msi_irqs: the interrupts by MSI or MSI-X. It is present from when a client of vfio-pci sets
    them up until the driver is unbound."""

    __slots__ = ("function",)

    member_mask = (1 << MEMBER_BITS + PART_BITS) - 1
    numbered = VectorNumbers()
    stat_ns = 0

    def __init__(self, directory: Kobject, function: PciFunction) -> None:
        super().__init__("msi_irqs")
        self.parent, self.function, self.name_ns = directory, function, 0

    def vectors(self) -> Sequence[int]:
        """The vectors that the driver has now."""
        device = self.function.made
        messages = None if device is None else device.messages
        return () if messages is None else messages.vectors

    def find(self, name: str) -> Member | None:
        vector = int(name) - irq_of(self.function, 0) if name.isdecimal() else -1
        found = VectorFile(vector, self.function) if 0 <= vector < MAX_MSIX_VECTORS else None
        return found if found is not None and found.name == name and found.present(self) else None

    def entries(self) -> Iterator[Member]:
        return (VectorFile(vector, self.function) for vector in self.vectors())


def _kind(directory: MsiIrqsDir) -> str:
    """`msi` or `msix`."""
    device = directory.function.made
    messages = None if device is None else device.messages
    return "msix" if messages is not None and messages.msix else "msi"
