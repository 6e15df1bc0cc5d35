# SPDX-License-Identifier: Apache-2.0
"""Calls that are made at a later time: interrupts that a listener delays.

Any thread adds them.  One thread, `late-calls`, makes them, and is there while there are some.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class LateCalls:
    """Makes calls at a later time, on one thread of its own, which ends when there are none.  Any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._added = 0
        self._runs = False

    def add(self, seconds: float, call: Callable[[], None]) -> None:
        """Make the call in so many seconds."""
        with self._changed:
            self._added += 1
            heapq.heappush(self._calls, (time.monotonic() + seconds, self._added, call))
            if not self._runs:
                threading.Thread(target=self._run, name="late-calls", daemon=True).start()
                self._runs = True
            self._changed.notify()

    def _run(self) -> None:
        while (call := self._next()) is not None:
            try:
                call()
            except BaseException:  # the calls after it are still made, whatever a model raises
                log.exception("a late call failed")

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while self._calls:
                left = self._calls[0][0] - time.monotonic()
                if left <= 0:
                    return heapq.heappop(self._calls)[2]
                self._changed.wait(left)
            self._runs = False
            return None
