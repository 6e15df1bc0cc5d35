# SPDX-License-Identifier: Apache-2.0
"""inotify(7) for tests: what a program hears that watches files."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CREATE, DELETE, DELETE_SELF, MOVED = 0x100, 0x200, 0x400, 0xC0
NAMES = {CREATE: "IN_CREATE", DELETE: "IN_DELETE", DELETE_SELF: "IN_DELETE_SELF", 0x40: "IN_MOVED_FROM"}
NAMES |= {0x80: "IN_MOVED_TO", 0x4000: "IN_Q_OVERFLOW"}
IN_NONBLOCK = 0o4000
HEADER = struct.Struct("iIII")
SECONDS = 60

Heard = tuple[str, str, str]
"""The watched path, the event, and the name in it."""


class Watch:
    """Watches paths for names that come and go."""

    def __init__(self, fd: int, paths: tuple[Path, ...]) -> None:
        self._fd = fd
        self._paths: dict[int, str] = {}
        libc = ctypes.CDLL(None, use_errno=True)
        for path in paths:
            found = libc.inotify_add_watch(fd, os.fsencode(path), CREATE | DELETE | DELETE_SELF | MOVED)
            if found < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
            self._paths[found] = str(path)

    def hear(self, count: int, seconds: float = SECONDS) -> list[Heard]:
        """The next events: at least `count`, or those of so many seconds."""
        heard: list[Heard] = []
        end = time.monotonic() + seconds
        while len(heard) < count and (left := end - time.monotonic()) > 0:
            if select.select([self._fd], [], [], left)[0]:
                heard += self._events(os.read(self._fd, 1 << 16))
        return heard

    def silent(self, seconds: float = 0.5) -> bool:
        """Whether nothing is heard for so long."""
        return self.hear(1, seconds) == []

    def _events(self, data: bytes) -> Iterator[Heard]:
        at = 0
        while at < len(data):
            watch, mask, _, size = HEADER.unpack_from(data, at)
            name = data[at + HEADER.size : at + HEADER.size + size].rstrip(b"\0").decode()
            at += HEADER.size + size
            yield from ((self._paths[watch], event, name) for bit, event in NAMES.items() if mask & bit)


@contextmanager
def watching(*paths: Path) -> Iterator[Watch]:
    fd = ctypes.CDLL(None).inotify_init1(IN_NONBLOCK)
    try:
        yield Watch(fd, paths)
    finally:
        os.close(fd)
