# SPDX-License-Identifier: Apache-2.0
"""Reserves a mountpoint for one server: its directory is made, checked and locked.

Runs in the only thread of a process that is about to serve a lab.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys

from vfsfuse.asking import Patience
from vfsfuse.cli.locking import take
from vfsfuse.cli.mountpoint import State, inspect, unmount
from vfsfuse.sticky import refuse_foreign

MENDING = {
    errno.ENOTEMPTY: " (it would be covered; give an empty one, or one that is not there yet)",
    errno.EBUSY: " (another filesystem is mounted there)",
}


def claim(path: str) -> int | None:
    """Reserve the mountpoint `path`, which `inspect` has resolved.  Returns a descriptor that the caller
    closes when the lab answers, or None when another server was quicker.

    The descriptor locks the directory that the lab will cover.  Another `mount` on the same path waits for
    it; one elsewhere does not.  Raises OSError with the path, Refusal and NoAnswer.
    """
    found = inspect(path, Patience())
    if found.state is State.STALE:
        _recover(path)
    elif found.state is not State.FREE:
        return None
    lock = _open(path)
    take(lock, path, Patience())
    if inspect(path, Patience()).state is not State.FREE:
        os.close(lock)
        return None
    if os.listdir(lock):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
    if os.geteuid() and not os.access(path, os.W_OK):  # fusermount3 has a longer error
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
    return lock


def _recover(path: str) -> None:
    """Unmount a lab whose server is gone.  The folder above is locked, so that nobody unmounts what another
    process has just mounted."""
    above = os.path.dirname(path)
    try:
        lock = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return _unmount_stale(path)
    try:
        take(lock, above, Patience())
        _unmount_stale(path)
    finally:
        os.close(lock)


def _unmount_stale(path: str) -> None:
    if inspect(path, Patience()).state is State.STALE:
        print(f"{path}: recovering a mount whose server is gone.", file=sys.stderr)
        unmount(path, Patience(), lazy=True)


def _open(path: str) -> int:
    """Open the directory `path`, which is made if it is not there.  Raises OSError with the path."""
    above = os.path.dirname(path)
    with contextlib.suppress(FileExistsError):
        os.makedirs(above)
    if os.path.exists(above) and not os.path.isdir(above):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), above)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        refuse_foreign(path, os.fstat(lock))
    except OSError:
        os.close(lock)
        raise
    return lock
