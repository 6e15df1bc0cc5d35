# SPDX-License-Identifier: Apache-2.0
"""The namespace and mount system calls that Python 3.11 lacks, through ctypes.  Every failure is an OSError.

For single-threaded processes that are about to exec (`vfsfuse run` and its supervisor).  No state.
Source: unshare(2), mount(2), umount2(2), prctl(2), <linux/mount.h> (open_tree, move_mount, mount_setattr).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Callable

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REC = 0x4000
MS_SLAVE = 1 << 19

MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 0x1, 0x2, 0x8

AT_FDCWD = -100

_SYS_OPEN_TREE = 428  # these numbers are those of every architecture
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_MOUNT_ATTR_RDONLY = 0x1
_OPEN_TREE_CLONE = 0x1
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH = 0x4

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: Callable[..., int], what: str, *arguments: int | bytes | None) -> int:
    wide = [ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value) for value in arguments]
    result = function(*wide)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def unshare(flags: int) -> None:
    """Enter new namespaces of the kinds in `flags` (CLONE_NEW*).  CLONE_NEWUSER needs a process with one
    thread."""
    _call(_libc.unshare, "unshare", flags)


def setns(fd: int, kind: int) -> None:
    """Enter the namespace that `fd` is a file of.  `kind` is its kind, CLONE_NEW*."""
    _call(_libc.setns, "setns", fd, kind)


def mount(source: str, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    kind = fstype.encode() if fstype else None
    options = data.encode() if data else None
    _call(_libc.mount, f"mount {target}", os.fsencode(source), os.fsencode(target), kind, flags, options)


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2): remove the topmost mount at `target`.  MNT_DETACH hides it at once, and ends it when it is
    not in use any more."""
    _call(_libc.umount2, f"umount {target}", os.fsencode(target), flags)


def detach(target: str) -> None:
    """Remove the topmost mount at `target`, and all mounts below it, from this namespace."""
    umount2(target, MNT_DETACH)


def clone_tree(path: str, dir_fd: int | None = None) -> int:
    """Copy the mounts at and under `path`, for `attach_tree`.  Returns a descriptor, which the caller
    closes."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    at = AT_FDCWD if dir_fd is None else dir_fd
    return _call(_libc.syscall, f"open_tree {path}", _SYS_OPEN_TREE, at, os.fsencode(path), flags)


def attach_tree(tree: int, path: str, dir_fd: int | None = None) -> None:
    """Mount the tree of `clone_tree` over `path`.  Closes the descriptor."""
    at = AT_FDCWD if dir_fd is None else dir_fd
    try:
        _call(
            _libc.syscall,
            f"move_mount {path}",
            *(_SYS_MOVE_MOUNT, tree, b"", at, os.fsencode(path), _MOVE_MOUNT_F_EMPTY_PATH),
        )
    finally:
        os.close(tree)


def make_read_only(tree: int) -> None:
    """Let nobody write through the mounts of the tree of `clone_tree`.  Does nothing before Linux 5.12."""
    attributes = struct.pack("=4Q", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    flags = _AT_RECURSIVE | _AT_EMPTY_PATH
    try:
        _call(
            _libc.syscall,
            "mount_setattr",
            *(_SYS_MOUNT_SETATTR, tree, b"", flags, attributes, len(attributes)),
        )
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends.  Called in a child before it
    execs."""
    _call(_libc.prctl, "prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)


def become_subreaper() -> None:
    """Have descendants of this process that lose their parents become its children."""
    _call(_libc.prctl, "prctl", _PR_SET_CHILD_SUBREAPER, 1)
