# SPDX-License-Identifier: Apache-2.0
"""Open snapshot files (vfsfuse.kernfs.members.SnapshotMember): what each of them reads.

Owner is the trio thread.  Contents are made in worker threads with a limit of their own, so that neither trio
nor the device lane waits, nor what else trio's worker threads do.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable

import trio

AT_ONCE = 2
"""Contents being made: a large picture takes a processor, and memory, for a while."""
MOST_WAITING = 64
"""Opens that wait for their content: each keeps one of pyfuse3's tasks, of which others need some, too."""


class Snapshots:
    """The contents by file handle; handles are small numbers, which no inode of an attribute is."""

    def __init__(self) -> None:
        self._contents: dict[int, bytes] = {}
        self._handles = itertools.count(1)
        self._waiting = 0
        self._limiter = trio.CapacityLimiter(AT_ONCE)

    async def open(self, make: Callable[[], bytes]) -> int:
        """The handle of a new snapshot.  Raises OSError as `make` does, EAGAIN when too many wait."""
        if self._waiting >= MOST_WAITING:
            raise OSError(errno.EAGAIN, "too many pictures are being taken")
        self._waiting += 1
        try:  # a content that nobody waits for any more is made to its end, and dropped
            content = await trio.to_thread.run_sync(make, abandon_on_cancel=True, limiter=self._limiter)
        finally:
            self._waiting -= 1
        handle = next(self._handles)
        self._contents[handle] = content
        return handle

    def get(self, handle: int) -> bytes | None:
        """The content of an open snapshot, None for a handle that is none."""
        return self._contents.get(handle)

    def release(self, handle: int) -> None:
        self._contents.pop(handle, None)
