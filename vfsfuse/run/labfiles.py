# SPDX-License-Identifier: Apache-2.0
"""The files of a lab in the descriptor table of a program of `vfsfuse run`: which they are, copies of them.

The program's descriptors are hostile: one may be a file whose server never answers, and another thread may
put another file under the number at any moment.  Any thread, several at once; no lock.
Source: statx(2), pidfd_getfd(2).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from ioctl_shim._native import lib
from ioctl_shim.procfs import comm_of
from ioctl_shim.seccomp import SeccompListener, TrappedCall, file_id


class LeftToKernel(Exception):
    """The kernel is to carry the call out: it is on no file of this lab, or the server knows best with which
    errno it fails."""


class PtraceRefused(LeftToKernel):
    """The supervisor has no ptrace access to the program, so the kernel carries the call out.  str() says
    why, and how to mend it, in one line."""

    def __init__(self, call: TrappedCall, error: OSError) -> None:
        super().__init__(
            f"{comm_of(call.tid)} cannot be looked into ({error.strerror}), so its VFIO_GROUP_GET_DEVICE_FD"
            " and the like fail: make its executable readable, or run it as root"
        )


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close `fd` after the block."""
    try:
        yield fd
    finally:
        os.close(fd)


class LabFiles:
    """The files of the lab whose root directory is `lab_fd`, which must stay open.  Calls are those of
    `listener`."""

    def __init__(self, listener: SeccompListener, lab_fd: int) -> None:
        self._listener = listener
        self._device = file_id(lab_fd).device
        self._root = lab_fd

    def has(self, file: int | str) -> bool:
        """Whether a file is of this lab.  Asks no file system: it may be one whose server never answers."""
        try:
            return file_id(file).device == self._device
        except OSError:
            return False

    def require(self, call: TrappedCall, fd: int) -> None:
        """Raise LeftToKernel unless the caller's descriptor `fd` is a file of this lab.  Waits for nobody."""
        try:
            found = file_id(f"/proc/{call.tid}/fd/{fd}")
        except PermissionError as error:
            raise self._refused(call, error) from None
        except OSError:
            raise LeftToKernel from None
        if found.device != self._device:
            raise LeftToKernel

    @contextlib.contextmanager
    def copy(self, call: TrappedCall, fd: int) -> Iterator[int]:
        """A copy of the caller's descriptor `fd`.  It keeps the file in use, also after the caller's death.
        Raises LeftToKernel for a file that is not of this lab, OSError(ENOENT) when the caller is dead."""
        with self.copy_if(call, fd, self.has) as copy:
            yield copy

    @contextlib.contextmanager
    def copy_if(self, call: TrappedCall, fd: int, wanted: Callable[[int], bool]) -> Iterator[int]:
        """As `copy`, of a file that is `wanted`, which asks no file system.

        Another thread of the program may have put another file under the number.  If that one is not wanted,
        close(2) may never return, and so is left to a thread that may be lost.
        """
        try:
            copy = self._listener.borrow(call, fd)
        except PermissionError as error:
            raise self._refused(call, error) from None
        if not wanted(copy):
            lib.shim_close_stranger(copy)
            raise LeftToKernel
        try:
            self._listener.check(call)
            yield copy
        finally:
            os.close(copy)

    def _refused(self, call: TrappedCall, error: PermissionError) -> LeftToKernel:
        """Why a look at the caller was refused.  One that was killed is root's for a moment, and nobody's."""
        try:
            self._listener.check(call)
        except OSError:
            return LeftToKernel()
        return PtraceRefused(call, error)

    def open(self, name: str) -> int:
        """Open the file `name` at the lab's root.  Raises OSError."""
        return os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=self._root)

    def settle(self) -> None:
        """Wait until the server has answered what it was asked before, also that a file was closed."""
        file_id(self._root, ask=True)
