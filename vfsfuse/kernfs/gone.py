# SPDX-License-Identifier: Apache-2.0
"""Directories that are gone, as whoever still has them open sees them.

As in sysfs, fstat(2) of such a directory works, its listing is empty, and a name in it is ENOENT. But the
kernel may have cached names of its files, and cannot be told to forget them (kernfs.operations). So a call
that comes by such a name is answered with ESTALE: then the kernel looks the name up anew, and finds nothing.
For this it has to ask, so it is made to forget what stat(2) showed of the files.

The trio thread adds directories; both lanes look. Source: Documentation/filesystems/path-lookup.rst
(revalidation), fs/kernfs.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator

from ioctl_shim.lane import files_are_gone
from vfsfuse.kernfs.kobject import MEMBER_BITS, Kobject

MOST = 4096
"""Directories that are remembered. Whoever has an older one open finds nothing at all."""


class Gone:
    """The directories of one mount that were removed last.

    ``kept_ns`` is for how many nanoseconds the kernel may cache a name.
    """

    __slots__ = ("_blocks", "_directories", "kept_ns")

    def __init__(self) -> None:
        self.kept_ns = 0
        self._directories: dict[int, int] = {}
        self._blocks: dict[int, int] = {}

    def add(self, block: int, inode: int, ctime_ns: int) -> None:
        """The directory `inode` is gone, and all of `block` with it."""
        _keep(self._directories, inode, ctime_ns)
        if block not in self._blocks:
            _keep(self._blocks, block, time.monotonic_ns())
            files_are_gone(block)

    def ctime_ns(self, inode: int) -> int | None:
        """The time of a directory that is gone, None for any other inode."""
        return self._directories.get(inode)

    def check_name(self, block: int) -> None:
        """Raises OSError(ESTALE) if the kernel may still have names of files of `block`, which is gone."""
        since = self._blocks.get(block)
        if since is not None and time.monotonic_ns() < since + self.kept_ns:
            raise OSError(errno.ESTALE, "removed")


def _keep(table: dict[int, int], key: int, value: int) -> None:
    if len(table) >= MOST:
        del table[next(iter(table))]
    table[key] = value


def files_of(directory: Kobject) -> Iterator[tuple[int, bool]]:
    """The inode numbers of the files and attribute groups that a directory can have, and whether it is a
    group."""
    base = directory.number << MEMBER_BITS
    for index, (_, member) in enumerate(directory.numbered, start=1):
        yield (base | index) + 1 | (member.lane_bits if member is not None else 0), member is None
