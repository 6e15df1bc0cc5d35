# SPDX-License-Identifier: Apache-2.0
"""All processes that have come from this one, also those that have left their parents and their sessions.

This process becomes their subreaper: one that loses its parent becomes its child.  So no process of a
program escapes.  For a process with one thread, which has no other children.  Source: prctl(2), proc(5).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterator

from vfsfuse.run import syscalls

AGAIN_SECONDS = 0.01


def gather() -> None:
    """From now on, orphans below this process become its children.  Raises OSError."""
    syscalls.become_subreaper()


def members(roots: Collection[int] = (), without: Collection[int] = ()) -> set[int]:
    """The processes below `roots` (this process itself when there are none), without those in `without` and
    those below them."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = list(roots) or [os.getpid()]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in without and pid not in found:
                found.add(pid)
                waiting.append(pid)
    return found


def _parents() -> Iterator[tuple[int, int]]:
    """Each process that has not ended, with its parent."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, ValueError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    yield int(name), int(parent)


def kill(without: Collection[int], seconds: float) -> bool:
    """SIGKILL the family, except `without` and what is below those, until nobody of it is left.  Returns
    False if somebody is still there after `seconds`."""
    end = time.monotonic() + seconds
    while left := members(without=without):
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            return False
        time.sleep(AGAIN_SECONDS)
    return True


def await_end(seconds: float) -> bool:
    """Reap the children, and wait until the family has ended.  Returns False if it has not after
    `seconds`."""
    end = time.monotonic() + seconds
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if not pid:
            if time.monotonic() > end:
                return False
            time.sleep(AGAIN_SECONDS)
