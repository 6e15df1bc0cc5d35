# SPDX-License-Identifier: Apache-2.0
"""Signals that come as bytes of a pipe, so that no number of them disturbs the process (native/signals.c).

Threads: the main thread, once a process.  Any thread may get the signals.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence

from ioctl_shim._native import lib


class NotedSignals:
    """From now on each signal of `numbers` puts its number, one byte, into a pipe.  An exec gives the signals
    back to their default action.  A signal that comes in a fork has its default action there.

    Raises OSError: EINVAL for a signal that cannot be caught."""

    def __init__(self, numbers: Sequence[signal.Signals]) -> None:
        self._numbers = list(numbers)
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """Both stay open: a signal may come at any time.  A read does not wait."""
        for number in numbers:
            signal.signal(number, self._note)
        self.resume()

    def resume(self) -> None:
        """Note them here again, after somebody has given a signal the handler that Python knows for it.
        trio.run() does so with SIGINT."""
        result = lib.shim_note_signals(self._writer, self._numbers, len(self._numbers))
        if result < 0:
            raise OSError(-result, f"signals: {os.strerror(-result)}")

    def ignore(self) -> None:
        """Ignore them from now on, also while Python ends: it gives any other signal its default action."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, _frame: object) -> None:
        """The handler that Python knows: for the moments before `resume`."""
        with contextlib.suppress(BlockingIOError):  # full: enough have come
            os.write(self._writer, bytes([number]))
