# SPDX-License-Identifier: Apache-2.0
"""Pages that mediated devices hold: pinning, unpinning, and access to what is pinned.

State: as in :mod:`devmodel.iommu.dma`. Called from DMA threads.
Source: Documentation/driver-api/vfio-mediated-device.rst (vfio_pin_pages, vfio_unpin_pages).
"""

import errno

from devmodel.iommu.api import MAX_PIN_PAGES, PAGE_SIZE, Prot
from devmodel.iommu.backend import MediatedBackend
from devmodel.iommu.dma import Dma
from devmodel.iommu.parts import Part, hold, is_pinned, parts_of


class AddressSpace(Dma):
    """I/O virtual addresses as devices see them: DMA, and pages to hold."""

    __slots__ = ()

    def pin_pages(self, iova: int, count: int, prot: Prot) -> "Pin":
        """Hold ``count`` pages from ``iova`` until they are unpinned, however their mappings change.

        For devices that registered with :meth:`Type1.register`. Raises ``OSError``: EACCES on a type1 that is
        not v2, E2BIG above 512 pages, EINVAL (misaligned, not mapped, no device registered), EPERM
        (protection), EFAULT (no such memory), ENOMEM (RLIMIT_MEMLOCK).
        """
        if count > MAX_PIN_PAGES:
            raise OSError(errno.E2BIG, f"{count} pages in one pin")
        if count < 1 or iova % PAGE_SIZE:
            raise OSError(errno.EINVAL, f"{count} pages at iova {iova:#x}")
        if not self.v2:
            raise OSError(errno.EACCES, "pages can be pinned in a type1v2 IOMMU only")
        with self.lock:
            return self._pin(iova, count, prot)

    def unpin_pages(self, iova: int, count: int) -> None:
        """Let go of ``count`` pages from ``iova``, once; those that are not pinned stay as they are."""
        with self.lock:
            if self.mediated is not None:
                self._unpin(self.mediated, iova, min(count, MAX_PIN_PAGES))

    def _pin(self, iova: int, count: int, prot: Prot) -> "Pin":
        mediated = self.mediated
        if mediated is None or not mediated.users:
            raise OSError(errno.EINVAL, "no device that can be told of an unmap")
        parts = parts_of(self.mappings, iova, count * PAGE_SIZE)
        if parts is None:
            raise OSError(errno.EINVAL, f"not all of {count} pages at iova {iova:#x} is mapped")
        if any(prot & ~part.mapping.prot for part in parts):
            raise OSError(errno.EPERM, f"iova {iova:#x} is not mapped for {prot.name}")
        held: list[Part] = []
        pinned = 0
        try:
            for part in parts:
                held.append(hold(part, prot))
                mediated.pin(part.mapping, part.offset // PAGE_SIZE, part.size // PAGE_SIZE)
                pinned += part.size // PAGE_SIZE
        except OSError:
            self._unpin(mediated, iova, pinned)
            raise
        return Pin(self, iova, count * PAGE_SIZE, prot, tuple(held))

    def _unpin(self, mediated: MediatedBackend, iova: int, count: int) -> None:
        for part in parts_of(self.mappings, iova, count * PAGE_SIZE, holes=True) or ():
            first = part.offset // PAGE_SIZE
            for page in range(first, first + part.size // PAGE_SIZE):
                mediated.unpin(part.mapping, page)


class Pin:
    """Pages a mediated device holds, from :meth:`AddressSpace.pin_pages`. Unpinned, all access is a fault."""

    __slots__ = ("_parts", "_released", "_space", "iova", "prot", "size")

    def __init__(
        self, space: AddressSpace, iova: int, size: int, prot: Prot, parts: tuple[Part, ...]
    ) -> None:
        self._space, self._parts, self._released = space, parts, False
        self.iova, self.size, self.prot = iova, size, prot

    @property
    def released(self) -> bool:
        """Whether they are held no more. Any thread."""
        return self._released

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset`` of the pages. Raises :class:`DmaFault`. DMA threads."""
        buffer = bytearray(min(size, self.size))
        self._rw(offset, memoryview(buffer), size, write=False)
        return bytes(buffer)

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset`` of the pages. Raises :class:`DmaFault`. DMA threads."""
        self._rw(offset, memoryview(data), len(data), write=True)

    def release(self) -> None:
        """Unpin them, once however often it is called; access is a fault from then on. Any thread."""
        if not self._released:
            self._released = True
            self._space.unpin_pages(self.iova, self.size // PAGE_SIZE)

    def _rw(self, offset: int, view: memoryview, size: int, write: bool) -> None:
        if size:
            span = (self.iova + offset, self.iova + offset + len(view))
            self._space._transfer((span,), view, write, lambda: self._find(offset, size, write))

    def _find(self, offset: int, size: int, write: bool) -> list[Part]:
        parts, position = [], 0
        for part in self._parts:
            low, high = max(offset, position), min(offset + size, position + part.size)
            if low < high:
                within = low - position
                parts.append(
                    Part(
                        part.mapping, part.offset + within, high - low, part.pages, part.pages_offset + within
                    )
                )
            position += part.size
        allowed = self.prot & (Prot.WRITE if write else Prot.READ)
        if (
            self._released
            or not allowed
            or offset < 0
            or offset + size > self.size
            or not all(map(is_pinned, parts))
        ):
            raise self._space._fault(self.iova + offset, size, write, "not pinned so")
        return parts
