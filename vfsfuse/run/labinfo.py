# SPDX-License-Identifier: Apache-2.0
"""What the supervisor of a `vfsfuse run` asks a lab by its unlisted file `.run` (vfsfuse.views.runfile): what
it has, and what its files stand for on Linux.

A file stands for a character device, with its number, or for an anonymous inode.  An inode number is never
used twice, so an answer stays right.  Any thread, several at once; no state.
"""

from __future__ import annotations

import fcntl
import os
from typing import NamedTuple

from ioctl_shim._native import ffi
from ioctl_shim.abi import RUN_LAB, RUN_NODE, LabFlag, NodeKind


class Node(NamedTuple):
    """What a file stands for: `kind` is CHARACTER or ANONYMOUS.  `major` and `minor` are the number of the
    character device that sysfs shows in `dev`, otherwise 0."""

    kind: NodeKind
    major: int
    minor: int


class LabInfo:
    """Asks the lab whose root directory is `lab_fd`, by a descriptor that it keeps open."""

    def __init__(self, lab_fd: int) -> None:
        """Raises OSError: ENOENT for a lab whose server is older than this file."""
        self._fd = os.open(".run", os.O_RDWR | os.O_CLOEXEC, dir_fd=lab_fd)

    def __enter__(self) -> LabInfo:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def flags(self) -> LabFlag:
        """What the lab has.  Raises OSError as `node_of`."""
        flags = bytearray(4)
        fcntl.ioctl(self._fd, RUN_LAB, flags)
        return LabFlag(int.from_bytes(flags, "little"))

    def node_of(self, inode: int) -> Node | None:
        """What the file with this inode number (st_ino) stands for, None for a file that is what it is, or
        that is gone.  The lab's server answers soon; a server that is stopped does not.  Raises OSError when
        it has ended."""
        asked = ffi.new("struct vfsfuse_run_node *", {"inode": inode})
        fcntl.ioctl(self._fd, RUN_NODE, ffi.buffer(asked))
        kind = NodeKind(asked.kind)
        return None if kind is NodeKind.FILE else Node(kind, asked.major, asked.minor)
