# SPDX-License-Identifier: Apache-2.0
"""The file `uevents` at the root of a mount: a stream of events, one a read(2), as from a netlink socket.

Opens, reads and polls come on the device lane, events on the trio thread.  The state of an open file is under
its lock.  Source: netlink(7), and devmodel.lifecycle.uevents for the format.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections import deque

from devmodel.lifecycle.uevents import UeventListener, Uevents
from ioctl_shim.lane import DeferringFile, Opened, OpenRequest, PendingRequest, wake_poll
from vfsfuse.kernfs.kobject import DeviceNode

READABLE = select.POLLIN | select.POLLRDNORM


class UeventsFile(DeferringFile):
    """One open: it gets every event from then on.  A read with too little room loses the rest of one."""

    __slots__ = ("_listener", "_lock", "_poll_handle", "_readers")

    def __init__(self, hub: Uevents) -> None:
        self._lock = threading.Lock()
        self._readers: deque[PendingRequest] = deque()
        self._poll_handle = 0
        self._listener: UeventListener = hub.listen(self._wake)

    @classmethod
    def node(cls, hub: Uevents) -> DeviceNode:
        """The file: each open of it is a UeventsFile."""

        def opener(request: OpenRequest) -> Opened:
            if request.flags & os.O_ACCMODE != os.O_RDONLY:
                raise OSError(errno.EACCES, "uevents is read-only")
            return Opened(cls(hub), stream=True)

        return DeviceNode("uevents", 0o444, opener)

    def begin_read(self, pending: PendingRequest) -> bytes | None:
        with self._lock:
            event = None if self._readers else self._listener.take()
            if event is not None:
                return event[: pending.size]
            if pending.nonblocking:
                raise OSError(errno.EAGAIN, "no event")
            pending.when_interrupted(lambda: self._give_up(pending))
            self._readers.append(pending)
            return None

    def begin_poll(self, handle: int) -> int:
        with self._lock:
            if self._listener.ready:
                return READABLE
            self._poll_handle = handle or self._poll_handle
            return 0

    def release(self) -> None:
        self._listener.close()

    def _give_up(self, pending: PendingRequest) -> None:
        with self._lock:
            if pending in self._readers:
                self._readers.remove(pending)
                pending.fail(errno.EINTR)

    def _wake(self) -> None:
        """There are events: answer the reads that wait, oldest first, and wake those who poll."""
        with self._lock:
            while self._readers and self._listener.ready:
                self._answer(self._readers.popleft())
            handle, self._poll_handle = self._poll_handle, 0
        if handle:
            wake_poll(handle)

    def _answer(self, pending: PendingRequest) -> None:
        try:
            event = self._listener.take()
        except OSError as error:
            pending.fail(error.errno or errno.EIO)
            return
        if event is None:
            self._readers.appendleft(pending)
        elif not pending.read(event):
            self._listener.put_back(event)
