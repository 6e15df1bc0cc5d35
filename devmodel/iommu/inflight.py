# SPDX-License-Identifier: Apache-2.0
"""The DMA that is under way in an address space, the unmaps that wait for it, and the DMA that was refused.

State: under the lock of the :class:`devmodel.iommu.space.IoAddressSpace`, which is not held while bytes move.
DMA threads copy; whoever unmaps waits, on a thread that may.
Source: Documentation/driver-api/vfio-mediated-device.rst (vfio_dma_rw).
"""

import errno
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from devmodel.iommu.api import DmaFault, Fault
from devmodel.iommu.mappings import Mappings
from devmodel.iommu.segments import Segment

DRAIN_SECONDS = 2.0
"""Seconds that an unmap waits for DMA in its range. DMA takes longer only if a client stops its own
memory."""
FAULTS_KEPT = 64
MAX_DMA = 1 << 30
"""The most bytes of one DMA."""

Span = tuple[int, int]
"""A range of iovas: the first address, and the address behind the last."""
Find = Callable[[], list[Segment]]
"""Finds the segments of a DMA. Called under the lock. Raises :class:`DmaFault`."""
Mark = Callable[[list[Segment]], None]
"""Marks the segments of a DMA that wrote, under the lock, before an unmap can take their mappings away."""
T = TypeVar("T")


class Inflight:
    """``copying`` has the ranges of each DMA under way. ``draining`` has the ranges of unmaps, where no DMA
    may begin. ``idle`` is notified when a DMA ends while there are such ranges. ``faults`` has the newest
    refused DMA. ``lock`` and ``mappings`` are those of the address space."""

    __slots__ = ("copying", "draining", "fault_count", "faults", "idle", "lock", "mappings")

    def __init__(self, lock: threading.Lock, mappings: Mappings) -> None:
        self.lock, self.mappings = lock, mappings
        self.idle = threading.Condition(lock)
        self.copying: list[Sequence[Span]] = []
        self.draining: list[Span] = []
        self.faults: deque[Fault] = deque(maxlen=FAULTS_KEPT)
        self.fault_count = 0

    def transfer(
        self,
        spans: Sequence[Span],
        size: int,
        write: bool,
        find: Find,
        move: Callable[[list[Segment]], T],
        mark: Mark | None = None,
    ) -> T:
        """Do a DMA of any kind: call ``find`` and enter the DMA under the lock, ``move`` the bytes without
        the lock, and mark the written pages, also by ``mark``. Raises :class:`DmaFault`."""
        iova = spans[0][0]
        with self.lock:
            segments = find()
            if self.draining and self.is_draining(spans):
                raise self.fault(iova, size, write, "being unmapped")
            self.copying.append(spans)
        try:
            return move(segments)
        except OSError as error:
            raise self.failed(iova, size, write, error) from error
        finally:
            with self.lock:
                if write and self.mappings.tracked:  # after a fault too: some of it may have been stored
                    for segment in segments:
                        segment.mapping.written(segment.offset, segment.size)
                if mark is not None:
                    mark(segments)
                self.copying.remove(spans)
                if self.draining:
                    self.idle.notify_all()

    def failed(self, iova: int, size: int, write: bool, error: OSError) -> DmaFault:
        """The fault of a DMA whose copying failed. Without the lock."""
        with self.lock:
            return self.fault(iova, size, write, error.strerror or str(error))

    def refuse_size(self, iova: int, size: int, write: bool) -> bytes:
        """The result of a DMA of an invalid size: no bytes for size 0, else it raises :class:`DmaFault`.
        Without the lock."""
        if size == 0:
            return b""
        with self.lock:
            raise self.fault(iova, size, write, f"more than {MAX_DMA:#x} bytes in one DMA")

    # ---- under the lock ----

    def fault(self, iova: int, size: int, write: bool, reason: str) -> DmaFault:
        """Record a DMA that is refused."""
        fault = Fault(iova, size, write, reason)
        self.faults.append(fault)
        self.fault_count += 1
        return DmaFault(fault)

    def is_draining(self, spans: Sequence[Span]) -> bool:
        """Whether one of these ranges is being unmapped."""
        return any(_overlap((spans,), drained) for drained in self.draining)

    def is_used(self, span: Span) -> bool:
        """Whether DMA or an unmap is under way in the range. Another unmap then has to wait."""
        return _overlap(self.copying, span) or _overlap((self.draining,), span)

    def drain(self, span: Span) -> None:
        """Refuse new DMA in the range, and wait, without the lock, until no DMA is under way. Raises
        ``OSError(EBUSY)`` when one does not end."""
        if not _overlap(self.copying, span):
            return
        self.draining.append(span)
        try:
            if not self.idle.wait_for(lambda: not _overlap(self.copying, span), DRAIN_SECONDS):
                raise OSError(errno.EBUSY, f"a DMA at iova {span[0]:#x} does not end")
        finally:
            self.draining.remove(span)


def _overlap(ranges: Iterable[Sequence[Span]], span: Span) -> bool:
    first, end = span
    return any(one < end and first < behind for spans in ranges for one, behind in spans)
