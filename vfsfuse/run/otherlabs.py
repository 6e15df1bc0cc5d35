# SPDX-License-Identifier: Apache-2.0
"""Takes the mounts of other labs out of the outer namespace of a run, so that it keeps none of them alive.

In a user namespace the mounts that were there before are locked.  Each is covered by an empty directory
there, and its server ends by itself when its lab is unmounted outside (vfsfuse.unmounted).

Runs in the only thread of a process that is about to exec.  Source: mount_namespaces(7), umount2(2).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection

from ioctl_shim.seccomp import file_id
from vfsfuse import mounts
from vfsfuse.asking import NoAnswer, Patience
from vfsfuse.mounts import Mount
from vfsfuse.run import syscalls

SECONDS = 1.0
"""For all of them.  The path to a mountpoint may lead through a file system that does not answer."""


def leave_out(lab: str | None) -> None:
    """Take away all labs but the one mounted at `lab`, and the one that the current directory is in."""
    keep = {_minor(path) for path in (lab, ".") if path}
    found = _in_sight(mounts.table(), keep)
    if found:
        with contextlib.suppress(NoAnswer):
            Patience(SECONDS).ask(lambda: _take_away(found))


def _minor(path: str) -> int:
    """The minor number of the device that `path` is on, -1 when it is not there.  Asks no file system."""
    try:
        return os.minor(file_id(os.path.abspath(path)).device)
    except OSError:
        return -1


def _in_sight(table: list[Mount], keep: Collection[int]) -> list[Mount]:
    """The mounts of labs that a path leads to, the last one first."""
    found: list[Mount] = []
    later: list[Mount] = []
    for mount in reversed(table):
        if mount.is_of_lab and mount.minor not in keep and not mount.is_covered(later):
            found.append(mount)
        else:
            later.append(mount)
    return found


def _take_away(found: list[Mount]) -> None:
    for mount in found:
        try:
            syscalls.umount2(mount.path, syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_DETACH)
        except OSError:
            _cover(mount.path)


def _cover(path: str) -> None:
    """Put an empty directory over a mount that cannot be removed.  One that this user does not reach is left:
    the program does not reach it either."""
    flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    with contextlib.suppress(OSError):
        syscalls.mount("vfsfuse", path, "tmpfs", flags, "mode=755,size=4k")
