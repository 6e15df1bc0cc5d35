# SPDX-License-Identifier: Apache-2.0
"""The memory BAR that holds a function's MSI-X structures.

A client sets interrupts up by SET_IRQS, and has no use for the table: as with vfio-pci, the table reads all
ones and drops writes. State: as any region's, under its device's lock.
"""

import mmap

from devmodel.pci import regs
from devmodel.pci.capability import Capability, msix
from devmodel.region.region import Memory


class MsixBar(Memory):
    """The MSI-X table at 0, the pending bits after it, and from the next page on memory for the model.

    With ``excluded`` a client cannot map the pages of the table and the pending bits, which a mediated device
    says in its sparse-mmap capability. Otherwise it can map all of the BAR, as vfio-pci allows
    (msix-mappable).
    """

    __slots__ = ("_excluded", "_pending", "_table", "vectors")
    direct = False

    def __init__(self, vectors: int, excluded: bool) -> None:
        """``vectors`` is 1 to 2048 (ValueError)."""
        self.vectors = vectors
        self._excluded = excluded
        self._table = vectors * regs.MSIX_ENTRY_SIZE
        self._pending = self._table + -(-vectors // 64) * 8
        super().__init__(1 << (self.own_memory + mmap.PAGESIZE - 1).bit_length())

    @property
    def own_memory(self) -> int:
        """Offset of the memory for the model, after the pages of the table and the pending bits."""
        return -(-self._pending // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def areas(self) -> tuple[tuple[int, int], ...] | None:
        return ((self.own_memory, self.size - self.own_memory),) if self._excluded else None

    def capability(self, bar: int) -> Capability:
        """The MSI-X capability of a function that has this as BAR ``bar``."""
        return msix(self.vectors, (bar, 0), (bar, self._table))

    def read(self, offset: int, size: int) -> bytes:
        hidden = min(max(self._table - offset, 0), size)
        return b"\xff" * hidden + (super().read(offset + hidden, size - hidden) if hidden < size else b"")

    def write(self, offset: int, data: bytes) -> None:
        hidden = min(max(self._table - offset, 0), len(data))
        if hidden < len(data):
            super().write(offset + hidden, data[hidden:])
