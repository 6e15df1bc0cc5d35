# SPDX-License-Identifier: Apache-2.0
"""Which process makes a call: its number and its name, by the number of the thread.

An answer is kept until `forget`, which the trace calls once a second, or until `look`, which it calls for
opens and stores.  So another call costs one look-up in a dict.  An answer may be wrong for a second after a
process has called exec, or after a thread has got the number of one that has ended, as long as it opens and
stores nothing. /proc is asked while the client waits for its call, so a process that ends right afterwards is
known as well.

Any thread; the state is one dict.  Source: proc_pid_status(5), proc_pid_comm(5).
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

_MOST_KEPT = 4096
_STATUS_SIZE = 256
"""Bytes of a status that have its name and the number of its process: the first lines."""


class Client(NamedTuple):
    """A thread of a client, as /proc of the server shows it.  `comm` is the name of its process."""

    pid: int = 0
    tid: int = 0
    comm: str = ""


NOBODY = Client()
"""Of calls that no client waits for."""


class Clients:
    """The clients of a lab, as far as they have made a call lately."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, Client] = {}

    def of(self, tid: int) -> Client:
        """The client with thread `tid`, which waits for a call.  Without a process when it has ended."""
        if not tid:
            return NOBODY
        return self._known.get(tid) or self.look(tid)

    def look(self, tid: int) -> Client:
        """As `of`, without an answer that was kept."""
        if not tid:
            return NOBODY
        if len(self._known) >= _MOST_KEPT:
            self.forget()
        known = self._known[tid] = _look(tid)
        return known

    def forget(self) -> None:
        """Ask again from now on."""
        self._known = {}


def _look(tid: int) -> Client:
    pid, name = 0, b""
    with contextlib.suppress(OSError, ValueError):
        for line in _read(f"/proc/{tid}/status").splitlines():
            key, _, value = line.partition(b":\t")
            if key == b"Tgid":
                pid = int(value)
        name = _read(f"/proc/{pid or tid}/comm").removesuffix(b"\n")
    return Client(pid, tid, name.decode("utf-8", "replace"))


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _STATUS_SIZE)
    finally:
        os.close(fd)
