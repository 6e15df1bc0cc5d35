# SPDX-License-Identifier: Apache-2.0
"""A longer time slice for the main thread, through ctypes: a client that it wakes runs first.

Linux lets a running thread finish its slice before one that it woke comes on the same processor, unless that
one's slice is the shorter (6.12).  Without that a client would hear of an interrupt only when its device's
task has gone to sleep.  Stateless; each call is about one thread.
Source: sched_setattr(2), <linux/sched/types.h>.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""Of sched_setattr and sched_getattr, for which a C library of before 2.41 has no functions."""


class SchedAttr(ctypes.Structure):
    """struct sched_attr, as far as every kernel has it."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def lengthen_time_slice() -> None:
    """Let whom this thread wakes come before the rest of its slice, here and in threads that it starts.

    Its share of the processor stays.  Nothing happens where the kernel knows or lets us have no such thing.
    """
    with contextlib.suppress(OSError):
        attributes = attributes_of(0)
        if attributes.policy in (os.SCHED_OTHER, os.SCHED_BATCH) and attributes.runtime:
            attributes.runtime += attributes.runtime // 8  # long enough to count, and no later in our turn
            _call(0, 0, ctypes.byref(attributes), 0)


def attributes_of(tid: int) -> SchedAttr:
    """The scheduling attributes of thread `tid`, 0 for the calling one.  Raises OSError.

    `runtime` is the thread's slice in nanoseconds, 0 where the kernel has none.
    """
    attributes = SchedAttr()
    _call(1, tid, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    return attributes


def _call(which: int, tid: int, *arguments: object) -> None:
    numbers = _NUMBERS.get(os.uname().machine)
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in (tid, *arguments)]
    if numbers is None or _libc.syscall(ctypes.c_long(numbers[which]), *wide) < 0:
        raise OSError(ctypes.get_errno(), "the scheduler's attributes")
