# SPDX-License-Identifier: Apache-2.0
"""Calls that go through as much memory as their client likes.

A client may make many of them at once, which cost it nothing.  They share the time of one processor, so that
the pump and the calls of others get theirs.  Threads that may wait; the state is under a lock of its own.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ioctl_shim._native import ffi
from ioctl_shim.client import PAGE_SIZE, Caller

PIECE = 64 * PAGE_SIZE
"""Bytes of client memory that are looked at at once."""
LONGEST_REST = 0.1
"""Seconds after which a call goes on, however many others there are."""


class LongCalls:
    """The calls under way.  Each rests, after some work, for as long as all others may work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = 0

    @contextmanager
    def one(self) -> Iterator[Callable[[], None]]:
        """One of the calls, while the block runs.  It calls the function that it gets after each piece of its
        work, with no lock held."""
        with self._lock:
            self._under_way += 1
        began = time.thread_time()

        def rest() -> None:
            nonlocal began
            worked, others = time.thread_time() - began, self._under_way - 1
            if others:
                time.sleep(min(worked * others, LONGEST_REST))
            began += worked

        try:
            yield rest
        finally:
            with self._lock:
                self._under_way -= 1


long_calls = LongCalls()
"""Those of this process."""


def has_zeros(caller: Caller, vaddr: int, size: int) -> bool:
    """Whether the `size` bytes at `vaddr` of a client are all 0.

    Raises OSError(EFAULT) when a byte cannot be read and all before it are 0, and ESRCH, EPERM."""
    with long_calls.one() as rest:
        return _has_zeros(caller, vaddr, size, PIECE, rest)


def _has_zeros(caller: Caller, vaddr: int, size: int, most: int, rest: Callable[[], None]) -> bool:
    end = vaddr + size
    buffer = bytearray(min(size, most))
    zeros, into = bytes(buffer), ffi.from_buffer(buffer)
    while vaddr < end:
        piece = min(most - vaddr % most, end - vaddr, len(buffer))
        try:
            caller.read_into(vaddr, into, piece)
        except OSError as error:
            if error.errno != errno.EFAULT or most == PAGE_SIZE:
                raise
            # what is before the page that is missing
            if not _has_zeros(caller, vaddr, piece, PAGE_SIZE, rest):
                return False
        if buffer != zeros:
            return False
        vaddr += piece
        if vaddr < end:
            rest()
    return True
