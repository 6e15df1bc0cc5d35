# SPDX-License-Identifier: Apache-2.0
"""A longer time slice for the main thread, through ctypes, so that a client that it wakes runs first.

A thread that wakes another one on the same processor runs on to the end of its own slice, unless the other
thread has a shorter slice (Linux 6.12).  Without a longer slice for the main thread, a client would get an
interrupt only when the task of its device goes to sleep.  No state; each call is about one thread.
Source: sched_setattr(2), <linux/sched/types.h>.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""Numbers of sched_setattr and sched_getattr. The GNU C library has functions for them only from 2.41 on."""


class SchedAttr(ctypes.Structure):
    """struct sched_attr, with the fields that every kernel has."""

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
    """Give the calling thread, and the threads that it starts, a slice that is longer by an eighth.

    The thread's share of the processor stays the same.  If the kernel has no slices, or refuses, this does
    nothing.
    """
    with contextlib.suppress(OSError):
        attributes = attributes_of(0)
        if attributes.policy in (os.SCHED_OTHER, os.SCHED_BATCH) and attributes.runtime:
            attributes.runtime += attributes.runtime // 8  # enough for the effect, without later turns for us
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
