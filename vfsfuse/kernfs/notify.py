# SPDX-License-Identifier: Apache-2.0
"""Telling the kernel what has changed in the tree, so that it forgets what it has cached.

State: none.  Inodes are told in a worker thread, never on the trio or pump thread: the kernel takes the lock
of a directory to drop a name, and who holds it may wait for an answer of ours.  To forget a stat, without any
pages, it takes no lock that is held by who waits for us.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from ioctl_shim.fuse import pyfuse3
from vfsfuse.kernfs.tree import Changes

log = logging.getLogger(__name__)


def forget_stats(changes: Changes) -> None:
    """Make the kernel ask again for the stats that changed.  Any thread."""
    for inode in changes.touched:
        _notify(pyfuse3.invalidate_inode, inode, True)


def forget_names(changes: Changes) -> None:
    """Make the kernel forget the names that went; blocks on directory locks, so never on the trio or pump
    thread."""
    for parent, name in changes.gone:
        _notify(pyfuse3.invalidate_entry, parent, name)


def _notify(call: Callable[..., object], *arguments: object) -> None:
    try:
        call(*arguments)
    except OSError as error:
        # ENOENT, ENOTDIR: the kernel did not know it; ENODEV, EBADF, ENOTCONN: it is being unmounted
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.EBADF, errno.ENOTCONN):
            log.warning("invalidation failed: %s", error)
