# SPDX-License-Identifier: Apache-2.0
"""/dev/ptmx in a /dev that `vfsfuse run` has rebuilt.

Who opens ptmx gets a terminal of the devpts at `pts` in the same directory.  A mount of the file alone has no
such directory, and opening it fails with ENOENT.  So ptmx is made anew, beside the mount of devpts.  A user
namespace may not use mknod(2), so there ptmx leads to the directory that it is from.

Runs in the only thread of a process that is about to exec.  Source: Documentation/filesystems/devpts.rst.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection

from vfsfuse.run import syscalls

NAME = "ptmx"
MACHINE = ".machine"
"""The directory in /dev that is the machine's own /dev, where mknod(2) is refused."""

_PTMX = f"/dev/{NAME}"
_NUMBER = os.makedev(5, 2)


def node() -> os.stat_result | None:
    """/dev/ptmx, if it is a node beside the mount of devpts.  None if there is none, or if it is devpts'
    own, which may be mounted or linked anywhere."""
    try:
        found, terminals = os.lstat(_PTMX), os.stat("/dev/pts")
    except FileNotFoundError:
        return None
    return found if stat.S_ISCHR(found.st_mode) and found.st_dev != terminals.st_dev else None


def show(old: os.stat_result, machine: int, hidden: Collection[str]) -> None:
    """Put a ptmx like `old` into the rebuilt /dev.  `machine` is the tree of the machine's /dev, and is
    closed here.  Nobody sees the entries `hidden` of it.  Raises OSError."""
    try:
        os.mknod(_PTMX, old.st_mode, _NUMBER)
    except PermissionError:
        _lead_to(machine, hidden)
        return
    os.close(machine)
    os.chmod(_PTMX, stat.S_IMODE(old.st_mode))
    os.chown(_PTMX, old.st_uid, old.st_gid)


def _lead_to(machine: int, hidden: Collection[str]) -> None:
    place = f"/dev/{MACHINE}"
    os.mkdir(place, 0o755)
    syscalls.attach_tree(machine, place)
    for path in (f"{place}/{name}" for name in hidden):
        if os.path.isdir(path):
            syscalls.mount("vfsfuse", path, "tmpfs", syscalls.MS_NOSUID, "mode=755,size=4k")
        elif os.path.exists(path):
            syscalls.attach_tree(syscalls.clone_tree("/dev/null"), path)
    os.symlink(f"{MACHINE}/{NAME}", _PTMX)
