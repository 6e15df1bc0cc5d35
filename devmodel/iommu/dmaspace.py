# SPDX-License-Identifier: Apache-2.0
"""The IOMMU as device models see it: addresses to read, to write and to pin, and the faults of refused DMA.

State: none here. DMA threads make all calls. The device lane and the trio thread never do, because a client
whose memory does not answer would stop them.
Source: Documentation/driver-api/vfio-mediated-device.rst (vfio_dma_rw, vfio_pin_pages, vfio_unpin_pages).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, NoReturn

from devmodel.iommu.api import PAGE_SIZE, DmaFault, Fault, PageRequest, PageResponse, Prot
from devmodel.iommu.mappings import Mapping
from devmodel.iommu.segments import Segment


class Piece(NamedTuple):
    """``size`` bytes at ``offset`` of a mapping that a device remembers from :meth:`DmaSpace.mapping_at`."""

    mapping: Mapping
    offset: int
    size: int


class StalePiece(Exception):
    """A mapping that a device remembers has been unmapped. The device has to look it up again."""


class DmaSpace(ABC):
    """I/O virtual addresses as devices see them. Sizes and offsets are bytes.

    :class:`devmodel.iommu.space.IoAddressSpace` is one. A wrapper that watches or refuses the DMA of a device
    is another; it passes the calls on. Every access of a device is exactly one of these calls.
    """

    __slots__ = ()

    @property
    def plain(self) -> "DmaSpace":
        """The address space itself, of a wrapper that only watches its calls. A device that remembers
        translations remembers them of that."""
        return self

    def refuse(self, iova: int, size: int, write: bool, reason: str) -> NoReturn:
        """Refuse an access that the device may not begin. Raises :class:`DmaFault`."""
        raise DmaFault(Fault(iova, size, write, reason))

    def asked_pages(self, request: PageRequest, response: PageResponse) -> None:
        """The device has asked for pages, and this was the answer: for a wrapper that watches. Trio
        thread."""
        return

    @abstractmethod
    def dma_read(self, iova: int, size: int) -> bytes:
        """``size`` bytes from ``iova``. Raises :class:`DmaFault`."""

    @abstractmethod
    def dma_write(self, iova: int, data: bytes) -> None:
        """Store ``data`` at ``iova``. Raises :class:`DmaFault`. A refused write stores no part of it."""

    @abstractmethod
    def dma_rw(self, iova: int, buffer: bytes | bytearray | memoryview, write: bool) -> None:
        """Store ``buffer`` at ``iova`` if ``write``, else fill it from there. Raises :class:`DmaFault`."""

    @abstractmethod
    def mapping_at(self, iova: int, write: bool) -> Mapping:
        """The mapping that has ``iova``, for a device that remembers translations for :meth:`dma_pieces`.
        Raises :class:`DmaFault`."""

    @abstractmethod
    def dma_pieces(self, pieces: Sequence[Piece], buffer: bytearray | memoryview, write: bool) -> None:
        """As :meth:`dma_rw`, for pieces of remembered mappings. Together they have the size of ``buffer``.

        No piece is accessed after its unmap has returned. Raises :class:`StalePiece`, with nothing moved, and
        :class:`DmaFault`.
        """

    @abstractmethod
    def pin_pages(self, iova: int, count: int, prot: Prot) -> "Pin":
        """Hold ``count`` pages from ``iova`` until they are unpinned, even if their mappings change.

        For devices that are told of unmaps (:meth:`IoAddressSpace.register`). Raises ``OSError``: EACCES on a
        type1 that is not v2, E2BIG above 512 pages, EINVAL (misaligned, being unmapped, no device
        registered), EINVAL (not mapped; ENOENT with iommufd), EPERM (protection), EFAULT (no such memory),
        ENODEV (memory of a process that has ended; EFAULT with iommufd), ENOMEM (RLIMIT_MEMLOCK).
        """

    @abstractmethod
    def unpin_pages(self, iova: int, count: int) -> None:
        """Undo one pin of each of ``count`` pages from ``iova``. Pages that are not pinned do not change. Any
        thread."""

    @abstractmethod
    def read_pinned(self, pin: "Pin", offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset`` of the pages of ``pin``. Raises :class:`DmaFault`."""

    @abstractmethod
    def write_pinned(self, pin: "Pin", offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset`` of the pages of ``pin``. Raises :class:`DmaFault`."""


Watch = Callable[[DmaSpace], DmaSpace]
"""Gives a wrapper of an address space that sees its calls."""


class Pin:
    """Pages that a device holds, from :meth:`DmaSpace.pin_pages`. After they are unpinned, access is a fault.

    ``segments`` is the memory of the pages, for the :class:`DmaSpace` that made the pin.
    """

    __slots__ = ("_released", "_space", "iova", "prot", "segments", "size", "within")

    def __init__(
        self, space: DmaSpace, iova: int, size: int, prot: Prot, segments: tuple[Segment, ...]
    ) -> None:
        self._space, self._released = space, False
        self.iova, self.size, self.prot = iova, size, prot
        self.segments = segments
        self.within: Callable[[], AbstractContextManager[Watch | None]] = nullcontext
        """Gives the block of each access, for the device that holds the pin."""

    @property
    def released(self) -> bool:
        """Whether the pages have been unpinned. Any thread."""
        return self._released

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset`` of the pages. Raises :class:`DmaFault`. DMA threads."""
        with self.within() as watch:
            space = self._space if watch is None else watch(self._space)
            return space.read_pinned(self, offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset`` of the pages. Raises :class:`DmaFault`. DMA threads."""
        with self.within() as watch:
            space = self._space if watch is None else watch(self._space)
            space.write_pinned(self, offset, data)

    def release(self) -> None:
        """Unpin the pages. Access is a fault from then on. Later calls do nothing. Any thread."""
        if not self._released:
            self._released = True
            self._space.unpin_pages(self.iova, self.size // PAGE_SIZE)

    def part(self, offset: int, size: int) -> list[Segment] | None:
        """The segments of ``size`` bytes at ``offset``. None for a range that is not inside the pin, and
        after the release."""
        if self._released or offset < 0 or offset + size > self.size:
            return None
        found, position = [], 0
        for segment in self.segments:
            low, high = max(offset, position), min(offset + size, position + segment.size)
            if low < high:
                found.append(segment.cut(low - position, high - position))
            position += segment.size
        return found
