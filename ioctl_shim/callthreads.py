# SPDX-License-Identifier: Apache-2.0
"""Threads for calls that may wait: ioctls that wait for a client, and calls that a listener delays.

A call that is held up keeps no other one waiting, because each call under way has a thread of its own.
Any thread hands calls in; the state is under a lock of its own.
"""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Callable

IDLE_SECONDS = 5.0
"""How long a thread waits for another call before it ends."""


class CallThreads:
    """Threads that may wait: one for each call under way.  A thread that is idle is used again."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0

    def submit(self, call: Callable[[], None]) -> None:
        """Make the call soon, whatever other calls wait for.  Any thread.

        Raises OSError(ENOMEM), with nothing done, when there can be no more threads.
        """
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                self._start()
            self._calls.put(call)

    def _start(self) -> None:
        try:
            threading.Thread(target=self._work, name="waiting-call", daemon=True).start()
        except RuntimeError:
            raise OSError(errno.ENOMEM, "no thread for a call that may wait") from None

    def _work(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                if self._ends():
                    return
                continue
            call()
            with self._lock:
                self._idle += 1

    def _ends(self) -> bool:
        """Whether a thread that had nothing to do for a while may end.  A call may have just been put."""
        with self._lock:
            if not self._idle or not self._calls.empty():
                return False
            self._idle -= 1
            return True
