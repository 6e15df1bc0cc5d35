# SPDX-License-Identifier: Apache-2.0
"""A device's side of a container: DMA, pinned pages, and the faults of what is not allowed.

State: under ``AddressSpace.lock``, which is not held while bytes are copied: a client can make its memory
slow (userfaultfd, a mapping of this very mount), and must not stop the device lane with it. What is being
copied is registered instead, and an unmap waits for it. Called from DMA threads; never from the device lane,
which would wait for itself when the memory is a mapping of this mount.
Source: Documentation/driver-api/vfio-mediated-device.rst (vfio_pin_pages, vfio_unpin_pages, vfio_dma_rw).
"""

import errno
import threading
from collections import deque
from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

from devmodel.client import Pages
from devmodel.iommu.api import MAX_PIN_PAGES, PAGE_SIZE, DmaFault, Fault, Prot
from devmodel.iommu.backend import MediatedBackend
from devmodel.iommu.mappings import Mapping, Mappings

DRAIN_SECONDS = 2.0
"""How long an unmap waits for DMA in its range: longer only where a client stops its own memory."""
FAULTS_KEPT = 64
MAX_DMA = 1 << 30
"""Bytes of one DMA at most."""


class Part(NamedTuple):
    """``size`` bytes at ``offset`` of a mapping; ``pages``, if there are, is where they are found."""

    mapping: Mapping
    offset: int
    size: int
    pages: Pages | None
    pages_offset: int = 0


class AddressSpace:
    """I/O virtual addresses as devices see them. ``faults`` are the newest refused DMAs."""

    __slots__ = (
        "_draining",
        "_idle",
        "_inflight",
        "fault_count",
        "faults",
        "lock",
        "mappings",
        "mediated",
        "tracking",
        "v2",
    )

    def __init__(self, v2: bool) -> None:
        self.v2 = v2
        self.lock = threading.Lock()
        self.mappings = Mappings()
        self.mediated: MediatedBackend | None = None
        self.tracking = False
        self.faults: deque[Fault] = deque(maxlen=FAULTS_KEPT)
        self.fault_count = 0
        self._idle = threading.Condition(self.lock)
        self._inflight: list[tuple[int, int]] = []
        self._draining: list[tuple[int, int]] = []

    @property
    def busy(self) -> bool:
        """Whether a DMA is under way, so that an unmap may have to wait."""
        return bool(self._inflight)

    def dma_read(self, iova: int, size: int) -> bytes:
        """``size`` bytes, as a device reads them from ``iova``. Raises :class:`DmaFault`."""
        if not 0 < size <= MAX_DMA:
            return self._refuse_size(iova, size, write=False)
        with self.lock:
            self._find(iova, size, Prot.READ)  # before taking memory for what cannot be
        buffer = bytearray(size)
        self.dma_rw(iova, buffer, write=False)
        return bytes(buffer)

    def dma_write(self, iova: int, data: bytes) -> None:
        """A write of a device to ``iova``. Raises :class:`DmaFault`; nothing is written unless all may be."""
        self.dma_rw(iova, data, write=True)

    def dma_rw(self, iova: int, buffer: bytes | bytearray | memoryview, write: bool) -> None:
        """Write ``buffer`` to ``iova``, or fill it from there. Raises :class:`DmaFault`."""
        view = memoryview(buffer).cast("B")
        if not 0 < len(view) <= MAX_DMA:
            self._refuse_size(iova, len(view), write)
            return
        prot = Prot.WRITE if write else Prot.READ
        self._transfer(iova, view, write, lambda: self._find(iova, len(view), prot))

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
        parts = self._parts(iova, count * PAGE_SIZE)
        if parts is None:
            raise OSError(errno.EINVAL, f"not all of {count} pages at iova {iova:#x} is mapped")
        if any(prot & ~part.mapping.prot for part in parts):
            raise OSError(errno.EPERM, f"iova {iova:#x} is not mapped for {prot.name}")
        held: list[Part] = []
        pinned = 0
        try:
            for part in parts:
                held.append(_hold(part, prot))
                mediated.pin(part.mapping, part.offset // PAGE_SIZE, part.size // PAGE_SIZE)
                pinned += part.size // PAGE_SIZE
        except OSError:
            self._unpin(mediated, iova, pinned)
            raise
        return Pin(self, iova, count * PAGE_SIZE, prot, tuple(held))

    def _unpin(self, mediated: MediatedBackend, iova: int, count: int) -> None:
        for part in self._parts(iova, count * PAGE_SIZE, holes=True) or ():
            first = part.offset // PAGE_SIZE
            for page in range(first, first + part.size // PAGE_SIZE):
                mediated.unpin(part.mapping, page)

    def _parts(self, iova: int, size: int, holes: bool = False) -> list[Part] | None:
        """The mapped parts of a range, in order; None for a hole unless ``holes`` are allowed."""
        end, position = iova + size, iova
        one = self.mappings.covering(iova)
        if one is not None and end <= one.end:
            return [Part(one, iova - one.iova, size, one.pages, iova - one.iova)]
        found = self.mappings.within(iova, end)
        parts = []
        for mapping in found:
            if mapping.iova > position and not holes:
                return None
            position = max(position, mapping.iova)
            offset, length = position - mapping.iova, min(end, mapping.end) - position
            parts.append(Part(mapping, offset, length, mapping.pages, offset))
            position += length
        return parts if holes or position == end else None

    def _find(self, iova: int, size: int, prot: Prot) -> list[Part]:
        parts = self._parts(iova, size)
        write = prot is Prot.WRITE
        if parts is None:
            raise self._fault(iova, size, write, "not mapped")
        wanted = int(prot)
        for part in parts:
            if not part.mapping.allows & wanted:
                raise self._fault(iova, size, write, "not permitted")
            if not part.mapping.vaddr_valid and part.pages is None:
                raise self._fault(iova, size, write, "the client is moving its memory")
        return parts

    def _transfer(self, iova: int, view: memoryview, write: bool, find: Callable[[], list[Part]]) -> None:
        span = (iova, iova + len(view))
        with self.lock:
            parts = find()
            if self._draining and any(_overlap(span, drained) for drained in self._draining):
                raise self._fault(iova, len(view), write, "being unmapped")
            self._inflight.append(span)
        error: OSError | None = None
        try:
            _copy(parts, view, write)
        except OSError as caught:
            error = caught
        finally:
            with self.lock:
                self._finish(span, parts if write else [])
        if error is not None:
            with self.lock:
                raise self._fault(iova, len(view), write, error.strerror or str(error)) from error

    def _finish(self, span: tuple[int, int], written: list[Part]) -> None:
        self._inflight.remove(span)
        if self.tracking:
            for part in written:  # after a fault too: some of it may have been stored
                part.mapping.written(part.offset, part.size)
        if self._draining:
            self._idle.notify_all()

    def _drain(self, iova: int, end: int) -> None:
        """Wait, under the lock, until no DMA is under way in the range. ``OSError(EBUSY)``: one stays."""
        span = (iova, end)
        if not self._inflight or not any(_overlap(span, one) for one in self._inflight):
            return
        self._draining.append(span)
        try:
            if not self._idle.wait_for(
                lambda: not any(_overlap(span, one) for one in self._inflight), DRAIN_SECONDS
            ):
                raise OSError(errno.EBUSY, f"a DMA at iova {iova:#x} does not end")
        finally:
            self._draining.remove(span)

    def _fault(self, iova: int, size: int, write: bool, reason: str) -> DmaFault:
        fault = Fault(iova, size, write, reason)
        self.faults.append(fault)
        self.fault_count += 1
        return DmaFault(fault)

    def _refuse_size(self, iova: int, size: int, write: bool) -> bytes:
        if size == 0:
            return b""
        with self.lock:
            raise self._fault(iova, size, write, f"more than {MAX_DMA:#x} bytes in one DMA")


class Pin:
    """Pages a mediated device holds, from :meth:`AddressSpace.pin_pages`. Unpinned, all access is a fault."""

    __slots__ = ("_parts", "_space", "iova", "prot", "size")

    def __init__(
        self, space: AddressSpace, iova: int, size: int, prot: Prot, parts: tuple[Part, ...]
    ) -> None:
        self._space, self._parts = space, parts
        self.iova, self.size, self.prot = iova, size, prot

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset`` of the pages. Raises :class:`DmaFault`. DMA threads."""
        buffer = bytearray(min(size, self.size))
        self._rw(offset, memoryview(buffer), size, write=False)
        return bytes(buffer)

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset`` of the pages. Raises :class:`DmaFault`. DMA threads."""
        self._rw(offset, memoryview(data), len(data), write=True)

    def _rw(self, offset: int, view: memoryview, size: int, write: bool) -> None:
        if size:
            self._space._transfer(self.iova + offset, view, write, lambda: self._find(offset, size, write))

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
        if not allowed or offset < 0 or offset + size > self.size or not all(map(_is_pinned, parts)):
            raise self._space._fault(self.iova + offset, size, write, "not pinned so")
        return parts


def _hold(part: Part, prot: Prot) -> Part:
    """The part with pages of its own, if a pinning backend does not hold the mapping's already."""
    if part.pages is not None:
        return part
    mapping = part.mapping
    pages = mapping.client.pin(mapping.vaddr + part.offset, part.size, bool(prot & Prot.WRITE))
    return Part(mapping, part.offset, part.size, pages, 0)


def _is_pinned(part: Part) -> bool:
    first, last = part.offset // PAGE_SIZE, (part.offset + part.size - 1) // PAGE_SIZE
    pins = part.mapping.pins
    return pins is not None and all(page in pins for page in range(first, last + 1))


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _copy(parts: list[Part], view: memoryview, write: bool) -> None:
    """Move bytes between ``view`` and the parts: held pages one by one, other memory of a client at once."""
    if len(parts) == 1 and parts[0].pages is None:
        mapping, offset, size = parts[0][:3]
        vector = [(mapping.vaddr + offset, size)]
        (mapping.client.write_parts if write else mapping.client.read_parts)(vector, view)
        return
    for (client, pages), run in groupby(parts, key=lambda part: (part.mapping.client, part.pages)):
        pieces = list(run)
        size = sum(part.size for part in pieces)
        here, view = view[:size], view[size:]
        if pages is not None:
            move = pages.write_from if write else pages.read_into
            move(pieces[0].pages_offset, here)
            continue
        vector = [(part.mapping.vaddr + part.offset, part.size) for part in pieces]
        (client.write_parts if write else client.read_parts)(vector, here)
