# SPDX-License-Identifier: Apache-2.0
"""The file `counters` at the root of a mount: how often each device was called, and how much DMA it did.

It counts while somebody has it open, and only what passes the call point: neither loads and stores through a
mapping, nor what a command engine moves by itself.  Each read(2) that begins after a whole line gives a new
line of JSON, with the totals since the open; a read with little room gets the rest of the line next.

`began` and `ended` run on whichever thread makes the call, under its locks; they take the lock of the counts
for a few statements.  Opens and closes are the device lane's, lines are made on a thread that may wait.
Source: devmodel.calls.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable

from devmodel.calls.call import Call, CallKind
from devmodel.calls.point import CallPoint
from ioctl_shim.callthreads import CallThreads
from ioctl_shim.lane import READABLE, DeferringFile, Opened, OpenRequest, PendingRequest
from vfsfuse.kernfs.kobject import DeviceNode

MODE = 0o400
"""It tells of the doings of all users, so it is for the lab's user alone."""
MOST_OPEN = 64
MOST_DEVICES = 100_000
"""So many devices are counted; what others do is counted together, with an empty name."""
NAMES = (
    *("reads", "read_bytes", "writes", "write_bytes", "ioctls", "dma_reads", "dma_read_bytes"),
    *("dma_writes", "dma_write_bytes", "interrupts", "dma_faults", "resets", "failed"),
)
"""What is counted.  `dma_faults` are accesses of DMA that failed, `failed` other calls with an error."""
READ, READ_BYTES, WRITE, WRITE_BYTES, IOCTL, DMA_READ, DMA_READ_BYTES = range(7)
DMA_WRITE, DMA_WRITE_BYTES, INTERRUPT, DMA_FAULT, RESET, FAILED = range(7, len(NAMES))


class Counts:
    """An observer that counts the calls on each device, by its name."""

    __slots__ = ("_counts", "_lock", "_since")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, list[int]] = {}
        self._since = time.monotonic()

    def began(self, call: Call) -> None:
        """A call counts when it ends."""

    def ended(self, call: Call) -> None:
        counter = _COUNTERS.get(call.kind)
        device = call.device
        if counter is None or device is None:
            return
        with self._lock:
            counts = self._counts.get(device.name)
            if counts is None:
                name = device.name if len(self._counts) < MOST_DEVICES else ""
                counts = self._counts.setdefault(name, [0] * len(NAMES))
            counter(counts, call)

    def line(self) -> bytes:
        """The totals as a line of JSON.  Any thread."""
        with self._lock:
            seconds = time.monotonic() - self._since
            copied = [(name, tuple(counts)) for name, counts in self._counts.items()]
        # device by device: json.dumps() of all would keep the GIL from the pump
        devices = ",".join(f"{json.dumps(name)}:{_said(counts)}" for name, counts in copied)
        return f'{{"seconds":{round(seconds, 6)},"devices":{{{devices}}}}}\n'.encode("ascii")


def _said(counts: tuple[int, ...]) -> str:
    return json.dumps(dict(zip(NAMES, counts, strict=True)), separators=(",", ":"))


def _region(counts: list[int], call: Call) -> None:
    if call.error is not None:
        counts[FAILED] += 1
    elif call.name == "read":
        counts[READ] += 1
        counts[READ_BYTES] += len(call.result)
    else:
        counts[WRITE] += 1
        counts[WRITE_BYTES] += call.result


def _ioctl(counts: list[int], call: Call) -> None:
    counts[IOCTL] += 1
    counts[FAILED] += call.error is not None


def _dma(counts: list[int], call: Call) -> None:
    if call.error is not None:
        counts[DMA_FAULT] += isinstance(call.error, OSError)  # an access that is made again is none
    elif call.name == "read":
        counts[DMA_READ] += 1
        counts[DMA_READ_BYTES] += call.arguments["size"]
    elif call.name == "write":
        counts[DMA_WRITE] += 1
        counts[DMA_WRITE_BYTES] += call.arguments["size"]


def _interrupt(counts: list[int], call: Call) -> None:
    counts[INTERRUPT] += call.error is None


def _reset(counts: list[int], call: Call) -> None:
    counts[RESET] += call.error is None


_COUNTERS: dict[CallKind, Callable[[list[int], Call], None]] = {
    CallKind.REGION: _region,
    CallKind.IOCTL: _ioctl,
    CallKind.DMA: _dma,
    CallKind.INTERRUPT: _interrupt,
    CallKind.RESET: _reset,
}


def counters_node(calls: CallPoint, threads: CallThreads) -> DeviceNode:
    """The file of one lab, whose lines are made on `threads`."""
    opened: set[CountersFile] = set()

    def opener(request: OpenRequest) -> Opened:
        if request.flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EACCES, "counters is read-only")
        if len(opened) >= MOST_OPEN:
            raise OSError(errno.EMFILE, f"{MOST_OPEN} readers of the counters")
        return Opened(CountersFile(calls, threads, opened), stream=True)

    return DeviceNode("counters", MODE, opener)


class CountersFile(DeferringFile):
    """One open of the file, which counts from then on.  It is in the set `opened` as long as it is."""

    __slots__ = ("_calls", "_counts", "_lock", "_opened", "_rest", "_threads")

    def __init__(self, calls: CallPoint, threads: CallThreads, opened: set[CountersFile]) -> None:
        self._calls, self._threads, self._counts, self._opened = calls, threads, Counts(), opened
        self._lock = threading.Lock()
        self._rest = b""
        opened.add(self)
        calls.observe(self._counts)

    def begin_read(self, pending: PendingRequest) -> None:
        self._threads.submit(lambda: self._answer(pending), pending.tid)

    def _answer(self, pending: PendingRequest) -> None:
        """A thread that may wait: the line of many devices takes long."""
        with self._lock:
            line = self._rest or self._counts.line()
            if pending.read(line):
                self._rest = line[pending.size :]

    def begin_poll(self, handle: int) -> int:
        return READABLE

    def release(self) -> None:
        self._calls.unobserve(self._counts)
        self._opened.discard(self)
