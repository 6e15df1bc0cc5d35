# SPDX-License-Identifier: Apache-2.0
"""The client processes of one container or iommufd, found by the thread that a request comes from.

A `Processes` is made on the device lane, and used there and on threads that may wait.

An exec gives a process another memory under the same numbers, and the old memory may live on in a child of
clone(2) with CLONE_VM.  So each request has to show which memory its thread has now.  The thread waits for
an answer, so it cannot call exec meanwhile.  Requests that follow each other within EXEC_NS need no look: an
exec takes longer.  Other requests read /proc/TID/stat (ioctl_shim.image).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from time import monotonic_ns
from typing import NamedTuple

from ioctl_shim.client import Caller
from ioctl_shim.image import Image
from ioctl_shim.process import Process, identity_of

EXEC_NS = 40_000
"""Nanoseconds.  An exec, up to the first ioctl of the smallest program, takes more than twice as long."""
MAX_SEATS = 16
"""The most threads whose program is remembered, with a descriptor each."""


class Seat(NamedTuple):
    """A thread that has called, by the program that it ran then."""

    image: Image
    process: Process


class Latest:
    """The thread that called last, and when that was."""

    __slots__ = ("process", "seen", "tid")

    def __init__(self, tid: int, process: Process, seen: int) -> None:
        self.tid, self.process, self.seen = tid, process, seen


class Processes:
    """The processes that use one container or iommufd.  `avoid` returns the st_dev of our own mount.  DMA
    reaches the memory of its devices, mapped by a process, if `bars`."""

    def __init__(self, avoid: Callable[[], int], bars: bool = True) -> None:
        self._avoid, self._bars = avoid, bars
        self._lock = threading.Lock()
        self._seats: dict[int, Seat] = {}
        self._known: weakref.WeakValueDictionary[object, Process] = weakref.WeakValueDictionary()
        self._latest: Latest | None = None

    def of(self, tid: int) -> Process:
        """The process of a thread that waits for an answer, with the memory it has now.

        Raises OSError(ESRCH, EACCES).
        """
        now, latest = monotonic_ns(), self._latest
        if latest is not None and latest.tid == tid and now - latest.seen < EXEC_NS:
            latest.seen = now
            return latest.process
        process = self._of(tid)
        self._latest = Latest(tid, process, now)
        return process

    def _of(self, tid: int) -> Process:
        with self._lock:
            seat = self._seats.get(tid)
            if seat is None or not seat.image.still_runs():
                seat = self._seated(tid)
            return seat.process

    def _seated(self, tid: int) -> Seat:
        image, tgid = Image(tid), Caller(tid).tgid
        process = self._known.get(identity_of(tgid, image))
        if process is None:
            process = Process(tgid, tid, self._avoid(), self._bars)
            self._known[process.identity] = process
        self._seats.pop(tid, None)
        if len(self._seats) >= MAX_SEATS:
            del self._seats[next(iter(self._seats))]  # the one that has been there longest
        seat = self._seats[tid] = Seat(image, process)
        return seat
