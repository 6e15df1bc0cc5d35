# SPDX-License-Identifier: Apache-2.0
"""Threads that take the caught calls of a run and answer them: a call that its program holds up keeps no
other one waiting.

One thread always waits for the next call, and so a call is answered on the thread that received it.  The
state is under a lock, which nobody holds while a call is received or answered.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

from ioctl_shim.seccomp import SeccompListener, TrappedCall

SPARE = 2
"""How many threads wait for a call when none is under way.  Others end."""


class CallTakers:
    """The threads that call `answer` for each call of `listener`.

    `failed_fd` is readable once a thread has failed in a way that no call explains: `failure` is why.
    """

    def __init__(self, listener: SeccompListener, answer: Callable[[TrappedCall], None]) -> None:
        self._listener, self._answer = listener, answer
        self._lock = threading.Lock()
        self._waiting = 0
        self._ended = False
        self.failed_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Take calls from now on."""
        with self._lock:
            self._add()

    def end(self) -> None:
        """The last thread under the filter has ended: no call comes any more."""
        self._ended = True

    def _add(self) -> None:
        """Start a thread.  Under the lock."""
        threading.Thread(target=self._run, name="calls", daemon=True).start()
        self._waiting += 1

    def _run(self) -> None:
        try:
            while not self._ended and self._take():
                pass
        except BaseException as error:
            self.failure = error
            os.eventfd_write(self.failed_fd, 1)

    def _take(self) -> bool:
        """Answer the next call.  False when there are threads enough without this one."""
        try:
            call = self._listener.receive()
        except FileNotFoundError:  # its caller has ended
            return True
        with self._lock:
            self._waiting -= 1
            if not self._waiting:
                with contextlib.suppress(RuntimeError):  # no more threads: later calls wait for this one
                    self._add()
        self._answer(call)
        with self._lock:
            if self._waiting >= SPARE:
                return False
            self._waiting += 1
            return True
