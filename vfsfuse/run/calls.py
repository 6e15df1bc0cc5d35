# SPDX-License-Identifier: Apache-2.0
"""Threads that take the caught calls of a run and answer them: a call that its program holds up keeps no
other one waiting.

One thread waits for the next call (ioctl_shim.takers).  It answers a stat in C, and passes the wait on to
another thread before it answers anything else here.  A watchdog does that for a thread which is held up.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from ioctl_shim.seccomp import TrappedCall
from ioctl_shim.takers import Takers

PAUSE = 0.01
"""Seconds until the watchdog tries again to start a thread."""


class CallTakers:
    """The threads that call `answer` for each call of `takers` that is answered in Python.

    `failed_fd` is readable once a thread has failed in a way that no call explains: `failure` is why.
    """

    def __init__(self, takers: Takers, answer: Callable[[TrappedCall], None]) -> None:
        self._takers, self._answer = takers, answer
        self.failed_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Take calls from now on."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def end(self) -> None:
        """The last thread under the filter has ended: no call comes any more."""
        self._takers.end()

    def _watch(self) -> None:
        while self._takers.watch():
            try:
                threading.Thread(target=self._run, name="calls", daemon=True).start()
            except RuntimeError:  # no more threads
                self._takers.give_back()
                time.sleep(PAUSE)

    def _run(self) -> None:
        try:
            call = self._takers.take(has_turn=True)
            while call is not None:
                self._answer(call)
                call = self._takers.take(has_turn=False)
        except BaseException as error:
            self.failure = error
            os.eventfd_write(self.failed_fd, 1)
