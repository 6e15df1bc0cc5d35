# SPDX-License-Identifier: Apache-2.0
"""System calls of a program, caught by a seccomp filter and answered, also with a new descriptor there.

`install` runs in the only thread of a process that is about to exec the program.  Any thread of another
process may use the `SeccompListener`.  Source: seccomp_unotify(2), <linux/seccomp.h>, statx(2).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ioctl_shim._native import ffi, lib
from ioctl_shim.client import Caller


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def install(cmds: Sequence[int], stat_paths: bool = False) -> int:
    """Stop this thread, and all it starts, at each ioctl(fd, cmd, arg) with one of `cmds`, and at each stat
    of a descriptor: fstat, newfstatat and statx with AT_EMPTY_PATH.  With `stat_paths`, at stats by path,
    too.  Returns the listener's descriptor.

    It cannot be undone.  It sets NO_NEW_PRIVS when the caller lacks CAP_SYS_ADMIN.  Raises OSError(EBUSY)
    when a filter with a listener is already there (the kernel allows one) and OSError(EOPNOTSUPP) on an
    unknown architecture, and OSError(E2BIG) for more than MAX_TRAPPED numbers.
    """
    numbers = ffi.new("uint32_t[]", cmds)
    return _check(int(lib.shim_seccomp_install(numbers, len(cmds), stat_paths)), "seccomp filter")


class FileId(NamedTuple):
    """Which file something is, as stat(2) tells files apart."""

    device: int
    inode: int


def file_id(file: int | str, ask: bool = False) -> FileId:
    """The file behind our descriptor or at an absolute path.  Any thread.  Raises OSError as stat(2).

    Its file system is not asked unless `ask` is set, so this does not wait for the server of a FUSE mount."""
    found = ffi.new("struct shim_file_id *")
    fd, path = (file, b"") if isinstance(file, int) else (-1, os.fsencode(file))
    error = int(lib.shim_file_id(fd, path, ask, found))
    if error:
        raise OSError(-error, os.strerror(-error), file)
    return FileId(os.makedev(found.major, found.minor), found.inode)


@dataclass(frozen=True, slots=True)
class TrappedCall:
    """A caught system call of thread `tid`, which sleeps until the call is answered by its `id`."""

    id: int
    tid: int
    nr: int
    """The number of the system call on this architecture."""
    args: tuple[int, ...]
    """Six arguments, unsigned."""
    inode: int = 0
    """Not 0: a stat call, of this file of the lab, of which nobody has said yet what it stands for."""

    @property
    def fd(self) -> int:
        """The first argument as a descriptor."""
        return _signed32(self.args[0])

    @property
    def cmd(self) -> int:
        """The number of an ioctl."""
        return self.args[1] & 0xFFFFFFFF

    @property
    def arg(self) -> int:
        """The argument of an ioctl."""
        return self.args[2]


def _signed32(value: int) -> int:
    return (value & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)


class SeccompListener:
    """The end of a filter that receives its calls and answers them; owns the descriptor `fd`.

    POLLIN on `fd`: a call waits.  POLLHUP: the last thread under the filter has ended.
    Every answer raises OSError(ENOENT) once the caller is dead.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd
        lib.shim_seccomp_wake_here(fd)

    def borrow(self, call: TrappedCall, fd: int) -> int:
        """A duplicate of the caller's descriptor `fd`, for us to close.  Raises OSError(EBADF, ESRCH,
        EPERM)."""
        return Caller(call.tid).borrow(fd)

    def check(self, call: TrappedCall) -> None:
        """Return if `call.tid` still is the caller.  All that was taken from that thread before is then the
        caller's."""
        _check(lib.shim_seccomp_valid(self.fd, call.id), "checking a call")

    def proceed(self, call: TrappedCall) -> None:
        """Let the kernel carry `call` out as if there were no filter."""
        _check(lib.shim_seccomp_proceed(self.fd, call.id), "passing a call on")

    def fail(self, call: TrappedCall, error: int) -> None:
        """`call` returns -1 with errno `error`."""
        _check(lib.shim_seccomp_fail(self.fd, call.id, error), "failing a call")

    def succeed(self, call: TrappedCall, value: int) -> None:
        """`call` returns `value`, 0 or more."""
        _check(lib.shim_seccomp_succeed(self.fd, call.id, value), "answering a call")

    def install_fd(self, call: TrappedCall, fd: int) -> int:
        """Put a close-on-exec duplicate of our `fd` into the caller.  Returns its number there.  The call
        still waits for its answer.

        Raises OSError(EMFILE) when the caller's table is full.
        """
        return _check(int(lib.shim_seccomp_install_fd(self.fd, call.id, fd)), "giving a descriptor")

    def close(self) -> None:
        """Close the listener.  Calls that are caught from now on fail with ENOSYS."""
        os.close(self.fd)
