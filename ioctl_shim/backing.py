# SPDX-License-Identifier: Apache-2.0
"""Backing files: the kernel maps them in place of a file of the mount (FUSE_PASSTHROUGH).

Threads: any, once mounted.  Source: <linux/fuse.h> (FUSE_DEV_IOC_BACKING_OPEN).
"""

from __future__ import annotations

import os

from ioctl_shim._native import lib


def open_backing(fd: int) -> int:
    """Register `fd` with the kernel as a backing file.  Returns an id above 0, or 0 when the kernel cannot do
    that (no CAP_SYS_ADMIN in the initial namespace, or a kernel before 6.9).  Raises OSError for a failure
    that may pass, such as ENOMEM.  Any thread, once mounted."""
    return _id_or_error(lib.lane_backing_open(fd))


def check_open() -> None:
    """Raise OSError if a file that must not be mapped cannot be opened now.  Any thread, once mounted."""
    _id_or_error(lib.lane_can_forbid())


def _id_or_error(result: int) -> int:
    if result < 0:
        raise OSError(-result, f"backing file: {os.strerror(-result)}")
    return result


def close_backing(backing_id: int) -> None:
    """Unregister the backing file.  Files that were opened with it keep it."""
    lib.lane_backing_close(backing_id)
