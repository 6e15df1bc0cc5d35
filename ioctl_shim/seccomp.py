# SPDX-License-Identifier: Apache-2.0
"""One ioctl of a program, caught by a seccomp filter and answered with a new descriptor in that program.

`install` runs in the only thread of a process that is about to exec the program.  Any thread of another
process may use the `SeccompListener`.  Source: seccomp_unotify(2), <linux/seccomp.h>, statx(2).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from ioctl_shim._native import ffi, lib
from ioctl_shim.client import Caller


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def install(cmd: int) -> int:
    """Stop this thread, and all it starts, at each ioctl(fd, `cmd`, arg).  Returns the listener's descriptor.

    It cannot be undone.  It sets NO_NEW_PRIVS when the caller lacks CAP_SYS_ADMIN.  Raises OSError(EBUSY)
    when a filter with a listener is already there (the kernel allows one) and OSError(EOPNOTSUPP) on an
    unknown architecture.
    """
    return _check(int(lib.shim_seccomp_install(cmd)), "seccomp filter")


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
    """A caught ioctl(`fd`, `cmd`, `arg`) of thread `tid`, which sleeps until the call is answered by its
    `id`."""

    id: int
    tid: int
    fd: int
    cmd: int
    arg: int


class SeccompListener:
    """The end of a filter that receives its calls and answers them; owns the descriptor `fd`.

    POLLIN on `fd`: a call waits.  POLLHUP: the last thread under the filter has ended.
    Every answer raises OSError(ENOENT) once the caller is dead.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd
        lib.shim_seccomp_wake_here(fd)

    def receive(self) -> TrappedCall:
        """The next call; blocks when there is none.

        Raises OSError(ENOENT) when its caller ended meanwhile, and from Linux 6.11 on when the last thread
        under the filter has ended.
        """
        row = ffi.new("struct shim_seccomp_call *")
        _check(lib.shim_seccomp_receive(self.fd, row), "receiving a call")
        return TrappedCall(row.id, row.tid, row.fd, row.cmd, row.arg)

    def borrow(self, call: TrappedCall) -> int:
        """A duplicate of the caller's `call.fd`, for us to close.  Raises OSError(EBADF, ESRCH, EPERM)."""
        return Caller(call.tid).borrow(call.fd)

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
