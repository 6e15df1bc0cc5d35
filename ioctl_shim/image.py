# SPDX-License-Identifier: Apache-2.0
"""Which program a thread runs, to tell whether it has called exec since it was last seen.

Every exec lays out a new memory at random addresses, which /proc/TID/stat shows. Reading that file touches
no memory of the client and takes no lock that a client can hold. A program without address randomisation
(`setarch -R`, a debugger) is told from the one before only by its sizes and those of its arguments.
State: none that changes; any thread. Source: proc_pid_stat(5).
"""

from __future__ import annotations

import errno
import os
import weakref
from typing import Any

from ioctl_shim._native import ffi, lib


class Image:
    """The program that thread `tid` runs now."""

    def __init__(self, tid: int) -> None:
        """`tid` waits in a system call, so that it cannot call exec.  Raises OSError(ESRCH)."""
        try:
            stat = os.open(f"/proc/{tid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _ended(tid) from None
        weakref.finalize(self, os.close, stat)
        self._native: Any = ffi.new("struct shim_image *", (stat,))
        if lib.shim_image_read(self._native):
            raise _ended(tid)

    @property
    def layout(self) -> tuple[int, ...]:
        """The addresses of the program.  All threads of a process have the same, until it calls exec."""
        return tuple(self._native.words)[1:]

    def still_runs(self) -> bool:
        """Whether the same thread, not one that has its number now, still runs it."""
        return bool(lib.shim_image_same(self._native))


def _ended(tid: int) -> OSError:
    return OSError(errno.ESRCH, f"thread {tid} has ended")
