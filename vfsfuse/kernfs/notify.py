# SPDX-License-Identifier: Apache-2.0
"""Notifications: tell the kernel what has changed in the tree, so that it drops what it has cached.

No state.  A worker thread tells it of names, never the trio or the pump thread: to drop a name, the kernel
takes the lock of the directory, and the process that holds this lock may be waiting for an answer of ours.
For a stat the kernel takes no such lock.  Source: FUSE_NOTIFY_INVAL_ENTRY and _INODE in <linux/fuse.h>.
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
    """Make the kernel forget the names that are gone.  Waits for directory locks: never on the trio or the
    pump thread."""
    for parent, name in changes.gone:
        _notify(pyfuse3.invalidate_entry, parent, name)


def _notify(call: Callable[..., object], *arguments: object) -> None:
    try:
        call(*arguments)
    except OSError as error:
        # ENOENT, ENOTDIR: the kernel did not know it; ENODEV, EBADF, ENOTCONN: it is being unmounted
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.EBADF, errno.ENOTCONN):
            log.warning("invalidation failed: %s", error)
