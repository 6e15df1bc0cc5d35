# SPDX-License-Identifier: Apache-2.0
"""Who is told when names come and go in folders: inotify(7), for the thread that looks for one file.

A :class:`FolderWatch` belongs to one thread; only :meth:`FolderWatch.wake` may be called by others.
Source: inotify(7), <linux/inotify.h>.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)
_EVENT = struct.Struct("=iIII")
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x40, 0x80, 0x100, 0x200, 0x400, 0x800
"""IN_* of <linux/inotify.h>."""
_NAMED = _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
"""Events that have a name."""
_MASK = _NAMED | _DELETE_SELF | _MOVE_SELF
_ROOM = 4096
"""Bytes of events that are read at once."""
SECONDS = 1.0
"""Seconds after which it is time to look again, whatever was told: a mount tells nobody."""
UNTOLD_SECONDS = 0.1
"""The same while a folder cannot be watched: the user may not read it, or watches too many already."""


class FolderWatch:
    """The folders through which a path leads, with the names that count there."""

    def __init__(self) -> None:
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._told = -1
        self._names: dict[int, set[bytes]] = {}
        self._complete = False

    def begin(self) -> None:
        """Forget all folders."""
        if self._told >= 0:
            os.close(self._told)
        self._names = {}
        self._told = int(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        self._complete = self._told >= 0

    def add(self, folder: int, name: str) -> None:
        """Watch a name in a folder, an open file.  Before anybody looks it up there."""
        if self._told < 0:
            return
        path = f"/proc/self/fd/{folder}".encode()
        watch = int(_libc.inotify_add_watch(self._told, path, _MASK))
        if watch < 0:
            self._complete = False
        else:
            self._names.setdefault(watch, set()).add(os.fsencode(name))

    def wait(self) -> None:
        """Wait until it is time to look again."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        if self._told >= 0:
            poll.register(self._told, select.POLLIN)
        seconds = SECONDS if self._complete else UNTOLD_SECONDS
        while poll.poll(seconds * 1000):
            if self._told < 0 or self._is_woken() or self._concerned():
                return

    def wake(self) -> None:
        """End the wait.  Any thread."""
        os.eventfd_write(self._woken, 1)

    def close(self) -> None:
        """Nobody waits or wakes any more."""
        for fd in (self._told, self._woken):
            if fd >= 0:
                os.close(fd)

    def _is_woken(self) -> bool:
        with suppress(BlockingIOError):
            os.eventfd_read(self._woken)
            return True
        return False

    def _concerned(self) -> bool:
        """Whether something was told that counts."""
        try:
            told = os.read(self._told, _ROOM)
        except BlockingIOError:
            return False
        place, concerned = 0, False
        while place < len(told):
            watch, mask, _, size = _EVENT.unpack_from(told, place)
            place += _EVENT.size
            name = told[place : place + size].rstrip(b"\0")
            place += size
            concerned |= not mask & _NAMED or name in self._names.get(watch, ())
        return concerned
