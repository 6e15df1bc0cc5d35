# SPDX-License-Identifier: Apache-2.0
"""A file that gives messages as they come, one a read(2), to each open of it: `uevents` and `log`.

Opens, reads and polls come on the device lane, messages on any thread.  The state of an open file is under
its lock, which is held for a few statements.  Source: netlink(7), read(2) on O_NONBLOCK, poll(2).
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ioctl_shim.lane import READABLE, DeferringFile, Opened, OpenRequest, PendingRequest, wake_poll
from vfsfuse.kernfs.kobject import DeviceNode


class Messages(Protocol):
    """The messages of one reader."""

    @property
    def ready(self) -> bool:
        """Whether `take` would return a message or raise.  Any thread."""
        ...

    def take(self, room: int) -> bytes | None:
        """The oldest message, `room` bytes of it at most, None when there is none.  Any thread.

        Raises OSError when the reader is to be told of an error, once."""
        ...

    def put_back(self, message: bytes) -> None:
        """Undo a `take`.  Any thread."""
        ...

    def close(self) -> None:
        """Get no more messages.  Any thread."""
        ...


Listen = Callable[[Callable[[], None]], Messages]
"""Begins to listen for a reader.  What is given to it is called when there are new messages, on any thread
and with no lock held.  Raises OSError as open(2)."""


def stream_node(name: str, mode: int, listen: Listen) -> DeviceNode:
    """The file `name`: each open of it gets every message from then on."""

    def opener(request: OpenRequest) -> Opened:
        if request.flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EACCES, f"{name} is read-only")
        return Opened(StreamFile(listen), stream=True)

    return DeviceNode(name, mode, opener)


class StreamFile(DeferringFile):
    """One open."""

    __slots__ = ("_lock", "_messages", "_poll_handle", "_readers")

    def __init__(self, listen: Listen) -> None:
        self._lock = threading.Lock()
        self._poll_handle = 0
        self._readers: deque[PendingRequest] = deque()
        self._messages = listen(self._wake)

    def begin_read(self, pending: PendingRequest) -> bytes | None:
        with self._lock:
            message = None if self._readers else self._messages.take(pending.size)
            if message is not None:
                return message
            if pending.nonblocking:
                raise OSError(errno.EAGAIN, "no message")
            pending.when_interrupted(lambda: self._give_up(pending))
            self._readers.append(pending)
            return None

    def begin_poll(self, handle: int) -> int:
        with self._lock:
            if self._messages.ready:
                return READABLE
            self._poll_handle = handle or self._poll_handle
            return 0

    def release(self) -> None:
        self._messages.close()

    def _give_up(self, pending: PendingRequest) -> None:
        with self._lock:
            if pending in self._readers:
                self._readers.remove(pending)
                pending.fail(errno.EINTR)

    def _wake(self) -> None:
        """There are messages: answer the reads that wait, oldest first, and wake those who poll."""
        with self._lock:
            while self._readers and self._messages.ready:
                self._answer(self._readers.popleft())
            handle, self._poll_handle = self._poll_handle, 0
        if handle:
            wake_poll(handle)

    def _answer(self, pending: PendingRequest) -> None:
        try:
            message = self._messages.take(pending.size)
        except OSError as error:
            pending.fail(error.errno or errno.EIO)
            return
        if message is None:
            self._readers.appendleft(pending)
        elif not pending.read(message):
            self._messages.put_back(message)
