# SPDX-License-Identifier: Apache-2.0
"""The interrupts of recorded devices: signals of the eventfds that the program gives to SET_IRQS.

Each eventfd is copied and watched by an edge-triggered epoll, which takes nothing from its counter, so the
program gets every signal.  Signals that come before anybody has looked count as one.  KVM takes those of its
irqfds before any watcher.

`look` is called by the thread of the ptrace loop before each stop is handled, so what a program does because
of an interrupt comes after it.  A thread looks as soon as something comes.  The lock of the events
guards the lines.  Source: <linux/vfio.h>, eventfd(2), epoll(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

from ioctl_shim._native import lib
from ioctl_shim.client import Caller
from vfsfuse.recording.host.events import Events

_IRQ_SET = struct.Struct("=5I")
_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
_TRIGGER = lib.VFIO_IRQ_SET_DATA_EVENTFD | lib.VFIO_IRQ_SET_ACTION_TRIGGER
_NONE = lib.VFIO_IRQ_SET_DATA_NONE | lib.VFIO_IRQ_SET_ACTION_TRIGGER
MOST_VECTORS = 4096


@dataclass(slots=True)
class _Line:
    """A vector whose eventfd is watched by the copy `fd`."""

    device: int
    index: int
    vector: int
    fd: int
    unread: bool = False
    """Whether the last look has found a signal that the program had not read yet.  A signal that is read
    before the next look shows only as a counter that can be written to again."""


class Asked:
    """What one SET_IRQS asks for, with copies of its eventfds.  The call may fail yet."""

    def __init__(self, device: int, argument: bytes, tid: int, say: Callable[[str], None]) -> None:
        """`argument` is the struct with the data behind it.  The thread `tid` is stopped."""
        self.device, self.copies = device, list[tuple[int, int | None]]()
        self.index, self.whole = -1, False
        if len(argument) < _IRQ_SET.size:
            return
        _, flags, index, start, count = _IRQ_SET.unpack_from(argument)
        if flags == _NONE and not count:
            self.index, self.whole = index, True
        elif flags == _TRIGGER and start < MOST_VECTORS:
            self.index = index
            data = argument[_IRQ_SET.size :][: 4 * min(count, MOST_VECTORS)]
            fds = struct.unpack(f"={len(data) // 4}i", data[: len(data) // 4 * 4])
            self.copies = [(start + at, _copy(tid, fd, say)) for at, fd in enumerate(fds)]

    def drop(self) -> None:
        """The call has failed."""
        for _, copy in self.copies:
            if copy is not None:
                os.close(copy)


def _copy(tid: int, fd: int, say: Callable[[str], None]) -> int | None:
    """A copy of an eventfd; None for -1, and for one that cannot be copied."""
    if fd < 0:
        return None
    try:
        return Caller(tid).borrow_eventfd(fd)
    except OSError as error:
        if error.errno == errno.EMFILE:
            say("the limit of open files is reached: some interrupts are not recorded")
        return None


class Interrupts:
    """Watches the eventfds of all recorded devices.  `tell` gets the device, the interrupt index and the
    vector of each signal, while the lock of `events` is held, on whichever thread looks."""

    def __init__(self, tell: Callable[[int, int, int], None], events: Events) -> None:
        self._tell, self._lock = tell, events.lock
        self._epoll = select.epoll()
        self._lines: dict[int, _Line] = {}
        """By the number of the copy."""
        self._ended, self._end = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="interrupts", daemon=True)

    def start(self) -> None:
        """Look as soon as something comes, on another thread."""
        self._thread.start()

    def set_up(self, asked: Asked, succeeded: bool) -> None:
        """SET_IRQS is over."""
        if not succeeded:
            asked.drop()
            return
        with self._lock:
            vectors = {vector for vector, _ in asked.copies}
            for line in list(self._lines.values()):
                if (line.device, line.index) == (asked.device, asked.index) and (
                    asked.whole or line.vector in vectors
                ):
                    self._forget(line)
            for vector, copy in asked.copies:
                if copy is not None:
                    self._lines[copy] = _Line(asked.device, asked.index, vector, copy)
                    self._epoll.register(copy, _EVENTS)
            self._look(fresh={copy for _, copy in asked.copies if copy is not None})

    def close(self, device: int) -> None:
        """The program has closed the device."""
        with self._lock:
            self._look()
            for line in [line for line in self._lines.values() if line.device == device]:
                self._forget(line)

    def look(self) -> None:
        """Tell the signals that have come."""
        if self._lines:
            with self._lock:
                self._look()

    def end(self) -> None:
        """Watch no more."""
        with contextlib.suppress(OSError):
            os.close(self._end)
        self._thread.join()
        with self._lock:
            self._look()
            for line in list(self._lines.values()):
                self._forget(line)
            self._epoll.close()
        os.close(self._ended)

    def _forget(self, line: _Line) -> None:
        del self._lines[line.fd]
        self._epoll.unregister(line.fd)
        os.close(line.fd)

    def _look(self, fresh: set[int] | None = None) -> None:
        """Tell what has come.  `fresh` are copies of which only the state is wanted."""
        for fd, events in self._epoll.poll(0, max(1, len(self._lines))):
            line = self._lines.get(fd)
            if line is None:
                continue
            can_read, was_unread = bool(events & select.EPOLLIN), line.unread
            line.unread = can_read
            # a counter that is empty, after one that was not, was only read
            if (can_read or not was_unread) and not (fresh and fd in fresh):
                self._tell(line.device, line.index, line.vector)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._epoll.fileno(), select.POLLIN)
        poll.register(self._ended, 0)  # for POLLHUP
        while self._ended not in dict(poll.poll()):
            self.look()
