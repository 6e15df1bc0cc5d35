# SPDX-License-Identifier: Apache-2.0
"""Files that ioctls give, besides devices: that of a fault queue, the state of a device.

They have no position, as the anonymous inodes of Linux.  Threads: the pump.
Source: <linux/iommufd.h>, <linux/vfio.h>.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

from devmodel.device.migration import StateStream
from devmodel.iommufd.faultqueue import FaultQueue
from ioctl_shim.abi import HANDED_OVER
from ioctl_shim.lane import (
    READABLE,
    WRITABLE,
    DeferringFile,
    Opened,
    OpenRequest,
    PendingRequest,
    PlainFile,
    SizedIoctl,
    wake_poll,
)


class FaultFile(DeferringFile):
    """The file of a fault queue.  `closed` is called when it is closed.  State: under a lock."""

    __slots__ = ("_closed", "_lock", "_poll_handle", "_queue")

    def __init__(self, queue: FaultQueue, closed: Callable[[], None]) -> None:
        self._queue, self._closed = queue, closed
        self._lock = threading.Lock()
        self._poll_handle = 0
        queue.wake = self._wake

    def begin_read(self, pending: PendingRequest) -> bytes:
        return self._queue.read(pending.size)

    def begin_write(self, pending: PendingRequest, data: bytes) -> int:
        return self._queue.write(data)

    def begin_poll(self, handle: int) -> int:
        with self._lock:
            if self._queue.ready:
                return READABLE | WRITABLE
            self._poll_handle = handle or self._poll_handle
            return WRITABLE

    def sized_ioctl(self, call: SizedIoctl) -> int:
        if call.cmd != HANDED_OVER:
            raise OSError(errno.ENOTTY, f"ioctl {call.cmd:#x}")
        self._queue.publish()
        return 0

    def release(self) -> None:
        self._queue.close()
        self._closed()

    def _wake(self) -> None:
        """There is something to read.  Any thread."""
        with self._lock:
            handle, self._poll_handle = self._poll_handle, 0
        if handle:
            wake_poll(handle)


class DeviceStateFile(PlainFile):
    """The state of a device that migrates, to be read or written.  `closed` is called when it is closed."""

    __slots__ = ("_closed", "_stream")

    def __init__(self, stream: StateStream, closed: Callable[[], None]) -> None:
        self._stream, self._closed = stream, closed

    def read(self, offset: int, size: int) -> bytes:
        return self._stream.read(size)

    def write(self, offset: int, data: bytes) -> int:
        return self._stream.write(data)

    def sized_ioctl(self, call: SizedIoctl) -> int:
        if call.cmd != HANDED_OVER:
            raise OSError(errno.ENOTTY, f"ioctl {call.cmd:#x}")
        return 0

    def release(self) -> None:
        self._closed()


def device_state_file(stream: StateStream, opening: OpenRequest, closed: Callable[[], None]) -> Opened:
    """The answer to the open of the file of `stream`."""
    return Opened(DeviceStateFile(stream, closed), stream=True)


def fault_file(queue: FaultQueue, closed: Callable[[], None]) -> Opened:
    """The answer to the open of the file of `queue`."""
    return Opened(FaultFile(queue, closed), stream=True)
