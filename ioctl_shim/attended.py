# SPDX-License-Identifier: Apache-2.0
"""The calls on the lane's open files while somebody attends to them: native/call.c calls these methods.

An observed call is made by the file's `Observed`, which tells of it.  A steered one may be held up: then it
is a `PendingRequest` until it goes on (ioctl_shim.heldcalls).
Threads: the pump.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from ioctl_shim.heldcalls import Submit, hold_request
from ioctl_shim.lanefile import Later, Observed, PendingRequest, Transfer
from ioctl_shim.opening import Opened, OpenFile

Observing = Callable[[Opened, int], Observed | None]
"""Gives the calls of an open file, with the number of its inode, for those who observe it.  None for a file
of which nothing is told."""


SteerStore = Callable[[int, bytes, int], Callable[[PendingRequest], None] | None]
"""Is asked on a pump for each store of an attribute while somebody steers calls: its inode, the data, the
client's thread.  Gives what begins a store that is steered, and None for any other."""


class AttendedFiles:
    """The open files that somebody attends to.  `files` are all open files by their tokens, `pending` the
    requests that are answered later; both belong to the Lane.  `submit` has a thread make a call."""

    def __init__(
        self,
        files: Mapping[int, OpenFile],
        pending: dict[int, PendingRequest],
        submit: Submit,
        observing: Observing,
    ) -> None:
        self._files, self._pending, self._submit, self._observing = files, pending, submit, observing
        self.steer_store: SteerStore | None = None
        self._observed: dict[int, Observed | None] = {}
        """By token, for files with calls that were observed."""
        self._left: dict[int, Later[int] | Callable[[], int]] = {}
        """By the pump's thread, the ioctl that it has begun and is about to leave to another one."""
        self.called = (
            *(self.observed_read, self.observed_write, self.observed_ioctl),
            *(self.steered_read, self.steered_write, self.steered_store),
        )
        """The end of `struct lane_python`."""

    def steered_read(
        self, token: int, unique: int, offset: int, size: int, flags: int, tid: int
    ) -> bool | None:
        """Whether the read is answered here.  None leaves it to the pump."""
        observed = self.of(token)
        later = None if observed is None else observed.steer_read(offset, size, tid)
        if later is None:
            return None
        pending = PendingRequest(Transfer(unique, offset, size, flags, tid), self._pending)
        hold_request(pending, later, pending.read, self._submit)
        return True

    def steered_write(
        self, token: int, unique: int, offset: int, flags: int, tid: int, data: bytes
    ) -> bool | None:
        """The same for a write."""
        observed = self.of(token)
        later = None if observed is None else observed.steer_write(offset, data, tid)
        if later is None:
            return None
        pending = PendingRequest(Transfer(unique, offset, len(data), flags, tid), self._pending)
        hold_request(pending, later, pending.written, self._submit)
        return True

    def steered_store(self, unique: int, inode: int, tid: int, data: bytes) -> bool | None:
        """The same for a store of an attribute."""
        begin = None if self.steer_store is None else self.steer_store(inode, data, tid)
        if begin is None:
            return None
        pending = PendingRequest(Transfer(unique, 0, len(data), 0, tid), self._pending)
        try:
            begin(pending)
        except BaseException:
            pending.close()
            raise
        return True

    def of(self, token: int) -> Observed | None:
        """The calls of an open file to attend to; None for a file of which nothing is told."""
        try:
            return self._observed[token]
        except KeyError:
            found = self._files[token]
            return self._observed.setdefault(token, self._observing(found.opened, found.nodeid))

    def observed_read(
        self, made: bytes | int | None, token: int, offset: int, size: int, tid: int
    ) -> bytes | None:
        """None leaves it to the pump."""
        observed = self.of(token)
        return None if observed is None else observed.read(offset, size, tid, made)

    def observed_write(self, made: int | None, token: int, offset: int, tid: int, data: bytes) -> int | None:
        """None leaves it to the pump."""
        observed = self.of(token)
        return None if observed is None else observed.write(offset, data, tid, made)

    def observed_ioctl(self, token: int, cmd: int, arg: int, tid: int, slot: int) -> int | None:
        """As LaneFile.ioctl on a pump."""
        observed = self.of(token)
        if observed is None:
            return self._files[token].opened.file.ioctl(cmd, arg, tid, slot)
        result = observed.begin_ioctl(cmd, arg, tid, slot)
        if result is None or isinstance(result, int):
            return result
        self._left[threading.get_ident()] = result  # the pump asks Lane for it next
        return None

    def take_left(self) -> Later[int] | Callable[[], int] | None:
        """The ioctl that this pump has begun and leaves to another thread: what holds it up, or what
        finishes it.  None for one that has not begun."""
        return self._left.pop(threading.get_ident(), None)

    def forget(self, token: int) -> None:
        """The file is no longer open."""
        self._observed.pop(token, None)
