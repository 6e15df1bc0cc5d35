# SPDX-License-Identifier: Apache-2.0
"""The client processes of one container, found by the thread that a request comes from.

A `Processes` is made on the device lane, and used there and on its worker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ioctl_shim._native import lib
from ioctl_shim.client import Caller
from ioctl_shim.process import Process


class Processes:
    """The processes that use one container.  `avoid` returns the st_dev of our own mount."""

    def __init__(self, avoid: Callable[[], int]) -> None:
        self._avoid = avoid
        self._lock = threading.Lock()
        self._known: tuple[Process, ...] = ()

    def of(self, tid: int) -> Process:
        """The process of a thread that waits for an answer.  Raises OSError(ESRCH, EACCES)."""
        for process in self._known:
            if lib.shim_has_thread(process.native, tid):
                return process
        with self._lock:
            for process in self._known:  # another thread may have entered it meanwhile
                if process.has_thread(tid):
                    return process
            found = Process(Caller(tid).tgid, tid, self._avoid())
            self._known = (*(process for process in self._known if process.alive()), found)
            return found
