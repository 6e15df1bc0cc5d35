# SPDX-License-Identifier: Apache-2.0
"""A device's side of a container: DMA, and the faults of what is not allowed.

State: under ``Dma.lock``, which is not held while bytes are copied: a client can make its memory
slow (userfaultfd, a mapping of this very mount), and must not stop the device lane with it. What is being
copied is registered instead (:mod:`devmodel.iommu.inflight`), and an unmap waits for it. Called from DMA
threads; never from the device lane, which would wait for itself when the memory is a mapping of this mount.
Source: Documentation/driver-api/vfio-mediated-device.rst (vfio_dma_rw).
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from devmodel.iommu.api import DmaFault, Fault, Prot
from devmodel.iommu.backend import MediatedBackend
from devmodel.iommu.blank import blank
from devmodel.iommu.inflight import Inflight, Span
from devmodel.iommu.mappings import Mapping, Mappings
from devmodel.iommu.parts import Part, copy, parts_of

FAULTS_KEPT = 64
MAX_DMA = 1 << 30
"""Bytes of one DMA at most."""
_READ, _WRITE = int(Prot.READ), int(Prot.WRITE)


class Piece(NamedTuple):
    """``size`` bytes at ``offset`` of a mapping, as a device remembers them from :meth:`Dma.mapping_at`."""

    mapping: Mapping
    offset: int
    size: int


class StalePiece(Exception):
    """A mapping that a device remembers has been unmapped: it has to look again."""


class Dma(Inflight):
    """DMA of the devices of one container. ``faults`` are the newest refused ones."""

    __slots__ = ("fault_count", "faults", "mappings", "mediated", "tracking", "v2")

    def __init__(self, v2: bool) -> None:
        super().__init__()
        self.v2 = v2
        self.mappings = Mappings()
        self.mediated: MediatedBackend | None = None
        self.tracking = False
        self.faults: deque[Fault] = deque(maxlen=FAULTS_KEPT)
        self.fault_count = 0

    def dma_read(self, iova: int, size: int) -> bytes:
        """``size`` bytes, as a device reads them from ``iova``. Raises :class:`DmaFault`."""
        if not 0 < size <= MAX_DMA:
            return self._refuse_size(iova, size, write=False)
        span = ((iova, iova + size),)
        mapping = self._begin(span, _READ)
        if mapping is None:
            return self._read_parts(iova, size)
        try:
            return mapping.client.read(mapping.vaddr + iova - mapping.iova, size)
        except OSError as error:
            raise self._failed(iova, size, False, error) from error
        finally:
            self._end(span, mapping, False)

    def dma_write(self, iova: int, data: bytes) -> None:
        """A write of a device to ``iova``. Raises :class:`DmaFault`; nothing is written unless all may be."""
        size = len(data)
        span = ((iova, iova + size),)
        mapping = self._begin(span, _WRITE) if 0 < size <= MAX_DMA else None
        if mapping is None:
            self._rw(iova, memoryview(data), write=True)
            return
        try:
            mapping.client.write(mapping.vaddr + iova - mapping.iova, data)
        except OSError as error:
            raise self._failed(iova, size, True, error) from error
        finally:
            self._end(span, mapping, True)

    def dma_rw(self, iova: int, buffer: bytes | bytearray | memoryview, write: bool) -> None:
        """Write ``buffer`` to ``iova``, or fill it from there. Raises :class:`DmaFault`."""
        view = memoryview(buffer).cast("B")
        size = len(view)
        span = ((iova, iova + size),)
        mapping = self._begin(span, _WRITE if write else _READ) if 0 < size <= MAX_DMA else None
        if mapping is None:
            self._rw(iova, view, write)
            return
        client, part = mapping.client, (mapping.vaddr + iova - mapping.iova, size)
        try:
            (client.write_parts if write else client.read_parts)((part,), view)
        except OSError as error:
            raise self._failed(iova, size, write, error) from error
        finally:
            self._end(span, mapping, write)

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

    def _read_parts(self, iova: int, size: int) -> bytes:
        with self.lock:
            self._find(iova, size, Prot.READ)  # before taking memory for what cannot be
        data, view = blank(size)
        with view:
            self._rw(iova, view, write=False)
        return data

    def _rw(self, iova: int, view: memoryview, write: bool) -> None:
        """DMA of any kind."""
        if not 0 < len(view) <= MAX_DMA:
            self._refuse_size(iova, len(view), write)
            return
        prot = Prot.WRITE if write else Prot.READ
        span = (iova, iova + len(view))
        self._transfer((span,), view, write, lambda: self._find(iova, len(view), prot))

    def _begin(self, span: Sequence[Span], wanted: int) -> Mapping | None:
        """Enter a DMA whose range lies in one mapping, which is not pinned; None for what takes longer."""
        iova, end = span[0]
        with self.lock:
            mapping = self.mappings.covering(iova)
            if (
                mapping is None
                or end > mapping.end
                or not mapping.allows & wanted
                or mapping.pages is not None
                or not mapping.vaddr_valid
                or self._draining
            ):
                return None
            self._inflight.append(span)
            return mapping

    def _end(self, span: Sequence[Span], mapping: Mapping, write: bool) -> None:
        """The DMA that :meth:`_begin` entered is over."""
        with self.lock:
            if write and self.tracking:  # after a fault too: some of it may have been stored
                iova, end = span[0]
                mapping.written(iova - mapping.iova, end - iova)
            self._leave(span)

    def _failed(self, iova: int, size: int, write: bool, error: OSError) -> DmaFault:
        with self.lock:
            return self._fault(iova, size, write, error.strerror or str(error))

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
            if self._draining and self._is_draining(spans):
                raise self._fault(iova, len(view), write, "being unmapped")
            self._inflight.append(spans)
        try:
            copy(parts, view, write)
        except OSError as error:
            raise self._failed(iova, len(view), write, error) from error
        finally:
            with self.lock:
                if write and self.tracking:
                    for part in parts:
                        part.mapping.written(part.offset, part.size)
                self._leave(spans)

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
