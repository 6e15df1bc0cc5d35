# SPDX-License-Identifier: Apache-2.0
"""A device's side of a container: DMA, and the faults of what is not allowed.

State: under ``Dma.lock``, which is not held while bytes are copied: a client can make its memory
slow (userfaultfd, a mapping of this very mount), and must not stop the device lane with it. What is being
copied is registered instead, and an unmap waits for it. Called from DMA threads; never from the device lane,
which would wait for itself when the memory is a mapping of this mount.
Source: Documentation/driver-api/vfio-mediated-device.rst (vfio_dma_rw).
"""

import errno
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from devmodel.iommu.api import DmaFault, Fault, Prot
from devmodel.iommu.backend import MediatedBackend
from devmodel.iommu.mappings import Mapping, Mappings
from devmodel.iommu.parts import Part, copy, parts_of

DRAIN_SECONDS = 2.0
"""How long an unmap waits for DMA in its range: longer only where a client stops its own memory."""
FAULTS_KEPT = 64
MAX_DMA = 1 << 30
"""Bytes of one DMA at most."""


Span = tuple[int, int]
"""A range of iovas: the first, and the one behind the last."""


class Piece(NamedTuple):
    """``size`` bytes at ``offset`` of a mapping, as a device remembers them from :meth:`Dma.mapping_at`."""

    mapping: Mapping
    offset: int
    size: int


class StalePiece(Exception):
    """A mapping that a device remembers has been unmapped: it has to look again."""


class Dma:
    """DMA of the devices of one container. ``faults`` are the newest refused ones."""

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
        self._inflight: list[Sequence[Span]] = []
        self._draining: list[Span] = []

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
        span = (iova, iova + len(view))
        self._transfer((span,), view, write, lambda: self._find(iova, len(view), prot))

    def mapping_at(self, iova: int, write: bool) -> Mapping:
        """The mapping of ``iova``, for a device that remembers translations: :meth:`dma_pieces` is how it may
        use what it remembers. Raises :class:`DmaFault`."""
        with self.lock:
            mapping = self.mappings.covering(iova)
            if mapping is None:
                raise self._fault(iova, 1, write, "not mapped")
            return mapping

    def dma_pieces(self, pieces: Sequence[Piece], buffer: bytearray | memoryview, write: bool) -> None:
        """As :meth:`dma_rw`, for pieces that together have the size of ``buffer``, of mappings found before.

        Whether each is still mapped is checked under the lock that an unmap takes, together with the entry of
        this DMA among those that an unmap waits for: no piece is reached once its unmap has returned. Raises
        :class:`StalePiece`, with nothing moved, and :class:`DmaFault`.
        """
        spans = [
            (mapping.iova + offset, mapping.iova + offset + size) for mapping, offset, size in pieces if size
        ]
        if spans:
            self._transfer(spans, memoryview(buffer).cast("B"), write, lambda: self._recall(pieces, write))

    def _recall(self, pieces: Sequence[Piece], write: bool) -> list[Part]:
        for mapping, _, _ in pieces:
            if not mapping.live:
                raise StalePiece
        parts = [Part(mapping, offset, size, mapping.pages, offset) for mapping, offset, size in pieces]
        first = parts[0]
        iova, size = first.mapping.iova + first.offset, sum(part.size for part in parts)
        return self._permit(parts, iova, size, Prot.WRITE if write else Prot.READ)

    def _find(self, iova: int, size: int, prot: Prot) -> list[Part]:
        parts = parts_of(self.mappings, iova, size)
        if parts is None:
            raise self._fault(iova, size, prot is Prot.WRITE, "not mapped")
        return self._permit(parts, iova, size, prot)

    def _permit(self, parts: list[Part], iova: int, size: int, prot: Prot) -> list[Part]:
        wanted, write = int(prot), prot is Prot.WRITE
        for part in parts:
            if not part.mapping.allows & wanted:
                raise self._fault(iova, size, write, "not permitted")
            if not part.mapping.vaddr_valid and part.pages is None:
                raise self._fault(iova, size, write, "the client is moving its memory")
        return parts

    def _transfer(
        self, spans: Sequence[Span], view: memoryview, write: bool, find: Callable[[], list[Part]]
    ) -> None:
        iova = spans[0][0]
        with self.lock:
            parts = find()
            if self._draining and any(_overlap(spans, drained) for drained in self._draining):
                raise self._fault(iova, len(view), write, "being unmapped")
            self._inflight.append(spans)
        error: OSError | None = None
        try:
            copy(parts, view, write)
        except OSError as caught:
            error = caught
        finally:
            with self.lock:
                self._finish(spans, parts if write else [])
        if error is not None:
            with self.lock:
                raise self._fault(iova, len(view), write, error.strerror or str(error)) from error

    def _finish(self, spans: Sequence[Span], written: list[Part]) -> None:
        self._inflight.remove(spans)
        if self.tracking:
            for part in written:  # after a fault too: some of it may have been stored
                part.mapping.written(part.offset, part.size)
        if self._draining:
            self._idle.notify_all()

    def _drain(self, iova: int, end: int) -> None:
        """Wait, under the lock, until no DMA is under way in the range. ``OSError(EBUSY)``: one stays."""
        span = (iova, end)
        if not self._inflight or not any(_overlap(spans, span) for spans in self._inflight):
            return
        self._draining.append(span)
        try:
            if not self._idle.wait_for(
                lambda: not any(_overlap(spans, span) for spans in self._inflight), DRAIN_SECONDS
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


def _overlap(spans: Sequence[Span], span: Span) -> bool:
    first, end = span
    return any(one < end and first < behind for one, behind in spans)
