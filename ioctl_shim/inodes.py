# SPDX-License-Identifier: Apache-2.0
"""What the lane knows of the inodes of a mount, and what the kernel is told of them.

Threads: any.  Source: <linux/fuse.h> (FUSE_NOTIFY_INVAL_INODE).
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Collection

from ioctl_shim._native import lib

log = logging.getLogger(__name__)
_UNMOUNTING = (errno.ENODEV, errno.EBADF, errno.ENOTCONN)
"""A notification fails so when nobody is left to be told."""


def is_being_written(inode: int) -> bool:
    """Whether a client has the attribute of this inode open for writing.  It may be true for another
    attribute's client, too.  Any thread."""
    return bool(lib.lane_is_being_written(inode))


def files_are_gone(block: int) -> None:
    """No attribute of this block (kernfs.tree) exists any more: an open of one is ESTALE.  Any thread."""
    lib.lane_files_are_gone(block)


def forget_stats(inodes: Collection[int]) -> None:
    """Make the kernel ask again for the stat of these inodes (FUSE_NOTIFY_INVAL_INODE), which waits for
    nobody.  Any thread.  Names are never forgotten in this way: docs/architecture.md, "The tree"."""
    if inodes:
        error = lib.lane_forget_stats(list(inodes), len(inodes))
        if error and -error not in _UNMOUNTING:
            log.warning("invalidation failed: %s", os.strerror(-error))
