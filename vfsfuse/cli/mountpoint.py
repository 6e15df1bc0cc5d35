# SPDX-License-Identifier: Apache-2.0
"""Looks at mountpoints and unmounts them, for `mount` and `umount`.  Single-threaded callers."""

from __future__ import annotations

import enum
import errno
import os
import select
import shutil
import subprocess
from dataclasses import dataclass

from vfsfuse.kernfs.xattr import XATTR_PID
from vfsfuse.run import syscalls

FSTYPE = "fuse.vfsfuse"


class State(enum.Enum):
    """The state of a path as a mountpoint."""

    FREE = "nothing is mounted there"
    LIVE = "a lab is mounted there"
    STALE = "a lab whose server is gone"
    FOREIGN = "another filesystem is mounted there"


@dataclass(frozen=True, slots=True)
class Mountpoint:
    """A path, its state, and the pid of the server of a LIVE lab (0: we cannot find it out)."""

    path: str
    state: State
    pid: int = 0


def inspect(path: str) -> Mountpoint:
    """Look at `path`, made absolute.  If a lab is mounted there, this asks its server."""
    path = os.path.realpath(path)
    kinds = [kind for where, kind in _mounts() if where == path]
    if not kinds:
        return Mountpoint(path, State.FREE)
    if kinds[-1] != FSTYPE:
        return Mountpoint(path, State.FOREIGN)
    try:
        return Mountpoint(path, State.LIVE, int(os.getxattr(path, XATTR_PID)))
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return Mountpoint(path, State.STALE)
        if error.errno == errno.EACCES:  # another user's mount: even root may only unmount it
            return Mountpoint(path, State.LIVE)
        raise


def labs() -> list[str]:
    """The mountpoints of labs, in mount order, without the parts of a lab that `vfsfuse run` shows."""
    shown = dict(_mounts())  # only the last mount on a path is visible
    return [
        path for path, kind in shown.items() if kind == FSTYPE and os.path.isdir(f"{path}/sys/class/vgpu")
    ]


def unmount(path: str, lazy: bool = False) -> None:
    """Unmount `path`, by fusermount3 if this process may not.  Raises OSError(EBUSY, EPERM, …)."""
    try:
        syscalls.umount2(path, syscalls.MNT_DETACH if lazy else 0)
    except PermissionError:
        _fusermount(path, lazy)


def wait_for_end(pid: int, seconds: float) -> bool:
    """Whether process `pid` has ended within `seconds`."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)


def _fusermount(path: str, lazy: bool) -> None:
    helper = shutil.which("fusermount3")
    if helper is None:
        raise OSError(errno.EPERM, "fusermount3 is not installed (apt-get install fuse3)")
    done = subprocess.run(
        [helper, "-u", *(["-z"] if lazy else []), "--", path], capture_output=True, text=True, check=False
    )
    if done.returncode:
        busy = "busy" in done.stderr
        raise OSError(errno.EBUSY if busy else errno.EPERM, done.stderr.strip() or "fusermount3 failed")


def _mounts() -> list[tuple[str, str]]:
    """(mountpoint, type) of every mount of this namespace, in mount order."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as table:
        rows = [line.split(" ") for line in table]
    return [(_unescape(row[1]), row[2]) for row in rows]


def _unescape(field: str) -> str:
    """Undo the octal escapes of proc(5)'s mounts."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
