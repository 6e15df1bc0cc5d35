# SPDX-License-Identifier: Apache-2.0
"""The DMA that is under way in a container, and how an unmap waits for it.

State: under ``Inflight.lock``, the lock of the whole container (``Dma.lock``). Any thread.
"""

import errno
import threading
from collections.abc import Sequence

DRAIN_SECONDS = 2.0
"""How long an unmap waits for DMA in its range: longer only where a client stops its own memory."""

Span = tuple[int, int]
"""A range of iovas: the first, and the one behind the last."""


class Inflight:
    """Ranges that are being copied. ``lock`` is not held meanwhile; whoever copies enters its ranges under it
    and takes them out again when it is done."""

    __slots__ = ("_draining", "_idle", "_inflight", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._idle = threading.Condition(self.lock)
        self._inflight: list[Sequence[Span]] = []
        self._draining: list[Span] = []

    @property
    def busy(self) -> bool:
        """Whether a DMA is under way, so that an unmap may have to wait."""
        return bool(self._inflight)

    def _leave(self, spans: Sequence[Span]) -> None:
        """What was appended to ``_inflight`` is done. Under the lock."""
        self._inflight.remove(spans)
        if self._draining:
            self._idle.notify_all()

    def _is_draining(self, spans: Sequence[Span]) -> bool:
        """Whether an unmap waits in one of these ranges. Under the lock."""
        return any(_overlap(spans, drained) for drained in self._draining)

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


def _overlap(spans: Sequence[Span], span: Span) -> bool:
    first, end = span
    return any(one < end and first < behind for one, behind in spans)
