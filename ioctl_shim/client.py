# SPDX-License-Identifier: Apache-2.0
"""A client of the mount: its memory by process_vm_readv/writev(2), its descriptors by pidfd_getfd(2).

A `Client` belongs to one request and is used by the thread that serves it; it keeps nothing open.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ioctl_shim._native import ffi, lib

MAX_TRANSFER = 1 << 30
"""Bytes of client memory moved by one call at most: what a hostile size can make us allocate."""

CAP_IPC_LOCK, CAP_SYS_RAWIO = 14, 17
"""Numbers of capabilities (<linux/capability.h>)."""
_INITIAL_USER_NAMESPACE = "user:[4026531837]"


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")


class Client:
    """The thread `tid` (as this process numbers it) that issued a request."""

    __slots__ = ("_tgid", "tid")

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self._tgid = 0

    @property
    def tgid(self) -> int:
        """The process of `tid`, from /proc/<tid>/status.  Raises OSError(ESRCH) when it has ended."""
        if not self._tgid:
            self._tgid = _tgid_of(self.tid)
        return self._tgid

    def capable(self, capability: int) -> bool:
        """Whether the thread has it in the initial user namespace, as the kernel's capable()."""
        try:
            with open(f"/proc/{self.tid}/status", "rb") as status:
                effective = next(int(line.split()[1], 16) for line in status if line.startswith(b"CapEff:"))
            return bool(effective >> capability & 1) and self._in_initial_namespace()
        except (OSError, StopIteration):
            return False

    def _in_initial_namespace(self) -> bool:
        return os.readlink(f"/proc/{self.tid}/ns/user") == _INITIAL_USER_NAMESPACE

    def read_into(self, vaddr: int, buffer: Any, size: int) -> None:
        """Fill cffi `buffer` with `size` bytes at `vaddr`.  Raises OSError(EFAULT, ESRCH, EPERM)."""
        _check(lib.shim_peek(self.tid, vaddr, buffer, size), f"reading {size} bytes at {vaddr:#x}")

    def read(self, vaddr: int, size: int) -> bytes:
        """`size` bytes at `vaddr`.  Raises OSError(EINVAL) above MAX_TRANSFER, EFAULT, ESRCH, EPERM."""
        if not 0 <= size <= MAX_TRANSFER:
            raise OSError(errno.EINVAL, f"{size} bytes in one transfer")
        buffer = bytearray(size)
        self.read_into(vaddr, ffi.from_buffer(buffer), size)
        return bytes(buffer)

    def write(self, vaddr: int, data: bytes) -> None:
        """Store `data` at `vaddr`.  Raises OSError(EFAULT, ESRCH, EPERM)."""
        source = ffi.from_buffer(data)
        _check(lib.shim_poke(self.tid, vaddr, source, len(data)), f"writing {len(data)} bytes at {vaddr:#x}")

    @contextmanager
    def borrowed(self, fd: int) -> Iterator[int]:
        """A duplicate of the client's descriptor `fd` for a while.  Raises OSError as `borrow`."""
        copy = self.borrow(fd)
        try:
            yield copy
        finally:
            os.close(copy)

    def borrow(self, fd: int) -> int:
        """A duplicate of the client's descriptor `fd`, the caller's to close.

        Raises OSError(EBADF, ESRCH, EPERM)."""
        pidfd = os.pidfd_open(self.tgid)
        try:
            copy = int(lib.shim_pidfd_getfd(pidfd, fd))
        finally:
            os.close(pidfd)
        _check(copy, f"descriptor {fd} of process {self.tgid}")
        return copy


def _tgid_of(tid: int) -> int:
    try:
        with open(f"/proc/{tid}/status", "rb") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(b"Tgid:"))
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        raise OSError(errno.ESRCH, f"thread {tid} has ended") from None
