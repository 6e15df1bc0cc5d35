# SPDX-License-Identifier: Apache-2.0
"""Calls that are made at a later time: interrupts and other calls that a listener delays.

Any thread adds them.  One thread makes them, and is there while there are some.
"""

from __future__ import annotations

import errno
import heapq
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


Entry = list[Any]
"""A call that is to be made: when, its number, and what is to be called (None: nothing any more)."""
LEAST_FORGOTTEN = 64
"""So many entries are forgotten before it pays to look for them."""


class LateCalls:
    """Makes calls at a later time, on one thread of its own, which ends when there are none.  Any thread."""

    def __init__(self, name: str = "late-calls") -> None:
        self._name = name
        self._changed = threading.Condition()
        self._calls: list[Entry] = []
        self._added = self._forgotten = 0
        self._runs = False

    def add(self, seconds: float, call: Callable[[], None]) -> Entry:
        """Make the call after ``seconds``.  It is short if others are to come in time.  The result is for
        :meth:`forget`.

        Raises OSError(ENOMEM), with nothing done, when there can be no more threads."""
        entry: Entry = [time.monotonic() + seconds, 0, call]
        with self._changed:
            self._added += 1
            entry[1] = self._added
            if not self._runs:
                self._start()
            heapq.heappush(self._calls, entry)
            self._changed.notify()
        return entry

    def _start(self) -> None:
        """Start the thread.  With the lock, so that it finds the call that it is started for."""
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError:
            raise OSError(errno.ENOMEM, f"no thread for {self._name}") from None
        self._runs = True

    def forget(self, entry: Entry) -> None:
        """Do not make a call that was to come, if it has not begun."""
        with self._changed:
            if entry[2] is None:
                return
            entry[2] = None
            self._forgotten += 1
            if self._forgotten > max(LEAST_FORGOTTEN, len(self._calls) // 2):
                self._calls = [each for each in self._calls if each[2] is not None]
                heapq.heapify(self._calls)
                self._forgotten = 0

    def _run(self) -> None:
        while (call := self._next()) is not None:
            try:
                call()
            except BaseException:  # the calls after it are still made, whatever a model raises
                log.exception("a late call failed")

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while self._calls:
                entry = self._calls[0]
                left = entry[0] - time.monotonic()
                call: Callable[[], None] | None = entry[2]
                if call is not None and left > 0:
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
                    continue
                heapq.heappop(self._calls)
                if call is not None:
                    entry[2] = None
                    return call
                self._forgotten -= 1
            self._runs = False
            return None
