# SPDX-License-Identifier: Apache-2.0
"""The calls of one lab that wait, because the listener has them delayed or hung, and the threads that have
something done later.

A call that waits keeps no thread, unless its caller has no other way to wait (:meth:`Waits.on_thread`).
Threads: any.  ``Waits`` has a lock of its own, which is held for no call of others.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
from collections.abc import Callable, Iterator

from devmodel.calls.injection import Wait
from devmodel.calls.latecalls import LateCalls

log = logging.getLogger(__name__)
MOST_THREADS = 256
"""Threads that wait at once for calls that are delayed or hang.  Calls on further threads fail with ENOMEM.
Only DMA needs a thread; a model has four of them (devmodel.device.tasks)."""


class Waits:
    """The waits of the calls of one lab, until it ends."""

    __slots__ = ("_closed", "_late", "_lock", "_soon", "_threads", "_waits")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._late, self._soon = LateCalls(), LateCalls("faults")
        self._waits: set[Wait] = set()
        self._threads = 0
        self._closed = False

    def __len__(self) -> int:
        """How many calls wait now."""
        return len(self._waits)

    def new(self) -> Wait:
        """A wait that :meth:`close` ends."""
        wait = Wait(self._late, self._waits.discard)
        with self._lock:
            self._waits.add(wait)
            closed = self._closed
        if closed:
            wait.end()
        return wait

    def close(self) -> None:
        """The lab ends: all calls that wait go on, and no other one waits."""
        with self._lock:
            self._closed = True
            waits = tuple(self._waits)
        for wait in waits:
            try:
                wait.end()
            except Exception:  # the others still end
                log.exception("a call that waited failed at the end of the lab")

    @contextlib.contextmanager
    def on_thread(self) -> Iterator[None]:
        """A call keeps its thread waiting in the block.

        Raises OSError(ENOMEM) when MOST_THREADS do so."""
        with self._lock:
            if self._threads >= MOST_THREADS:
                raise OSError(errno.ENOMEM, "too many threads wait")
            self._threads += 1
        try:
            yield
        finally:
            with self._lock:
                self._threads -= 1

    def call_late(self, seconds: float, call: Callable[[], None]) -> None:
        """Make a short call after ``seconds``, on the thread ``late-calls``.  Raises OSError(ENOMEM)."""
        self._late.add(seconds, call)

    def do_soon(self, action: Callable[[], None]) -> None:
        """Call it on the thread ``faults``, where it may wait.  Raises OSError(ENOMEM)."""
        self._soon.add(0, action)
