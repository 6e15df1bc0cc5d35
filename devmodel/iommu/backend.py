# SPDX-License-Identifier: Apache-2.0
"""The backends by which an address space serves its groups.

State: under the lock of the :class:`devmodel.iommu.space.IoAddressSpace` they belong to. Nothing here asks a
client anything. Source: <linux/vfio.h>, "API for Type1 VFIO IOMMU".
"""

import errno
from abc import ABC, abstractmethod
from typing import ClassVar

from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.api import PGSIZES, IommuGroup
from devmodel.iommu.dirty import DirtyPages
from devmodel.iommu.mappings import Mapping, Mappings


class Backend(ABC):
    """Serves the groups that it accepts. ``iova_ranges`` are (first, last), () for no limit."""

    __slots__ = ("groups", "locked", "ready")
    emulated: ClassVar[bool]
    strict: ClassVar[bool] = True
    """Whether it refuses iovas that it cannot reach, and holds the memory of each mapping
    (:mod:`devmodel.iommu.holding`)."""
    pgsizes: ClassVar[int] = PGSIZES
    iova_ranges: ClassVar[tuple[tuple[int, int], ...]] = ()

    def __init__(self, locked: LockedMemory) -> None:
        self.groups: dict[int, IommuGroup] = {}
        self.locked = locked
        self.ready = not self.strict
        """Whether it holds the memory of all mappings that it has to hold."""

    @classmethod
    def accepts(cls, group: IommuGroup) -> bool:
        """Whether it can serve the devices of ``group``."""
        return group.emulated is cls.emulated

    @classmethod
    def valid(cls, iova: int, end: int) -> bool:
        """Whether its devices can use all addresses from ``iova`` to before ``end``."""
        ranges = cls.iova_ranges
        return not ranges or any(first <= iova and end - 1 <= last for first, last in ranges)

    @abstractmethod
    def unmap(self, mapping: Mapping) -> None:
        """``mapping`` is removed, or this backend stops."""

    def check(self, mapping: Mapping) -> None:
        """Raises ``OSError(EINVAL)`` for a mapping that its devices cannot reach."""
        if not self.valid(mapping.iova, mapping.end):
            raise OSError(errno.EINVAL, f"iova {mapping.iova:#x} is reserved or beyond what the IOMMU can")

    def stop(self, mappings: Mappings) -> None:
        """The last group is detached, while other backends still serve the mappings."""
        for mapping in mappings:
            self.unmap(mapping)


class PinningBackend(Backend):
    """For a physical function, which does DMA of its own: every mapping is pinned as long as it is there.

    Page sizes and addresses are those of an x86 IOMMU: interrupts take the megabyte from 0xfee00000. Its
    devices write by themselves, which nobody sees: so when they leave, all of the memory is dirty.
    """

    __slots__ = ()
    emulated = False
    pgsizes = 1 << 12 | 1 << 21 | 1 << 30
    iova_ranges: ClassVar[tuple[tuple[int, int], ...]] = ((0, 0xFEDFFFFF), (0xFEF00000, 2**48 - 1))

    def stop(self, mappings: Mappings) -> None:
        if mappings.tracked and self.ready:
            for mapping in mappings:
                mapping.dirty = DirtyPages(mapping.page_count, whole=True)
        super().stop(mappings)

    def unmap(self, mapping: Mapping) -> None:
        mapping.pages = None
        self.locked.keep_pins(mapping)
