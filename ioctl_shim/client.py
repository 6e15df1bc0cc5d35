# SPDX-License-Identifier: Apache-2.0
"""A client of the mount: its memory by process_vm_readv/writev(2), its descriptors by pidfd_getfd(2).

A `Caller` belongs to one request. The thread that serves the request uses it. It keeps no descriptor open.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from ioctl_shim import procfs
from ioctl_shim._native import ffi, lib

MAX_TRANSFER = 1 << 30
"""The most bytes of client memory that one call moves. It bounds what a hostile size makes us allocate."""

CAP_IPC_LOCK, CAP_SYS_RAWIO, CAP_SYS_RESOURCE = 14, 17, 24
"""Numbers of capabilities (<linux/capability.h>)."""
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_PIDFD_THREAD = os.O_EXCL  # <linux/pidfd.h>, Linux 6.9


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")


def peek(tid: int, vaddr: int, size: int) -> bytes:
    """`size` bytes at `vaddr` of thread `tid`; empty if not all of them can be read."""
    buffer = bytearray(size)
    if not size or lib.shim_peek(tid, vaddr, ffi.from_buffer(buffer), size):
        return b""
    return bytes(buffer)


class Writes:
    """Tells whether this process has written to a client's memory meanwhile."""

    __slots__ = ("_numbers", "last")

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.last = 0
        """Another number after each write, on whichever thread."""

    def note(self) -> None:
        self.last = next(self._numbers)


writes = Writes()


class ClientProcess:
    """The process of thread `tid`, which waits for an answer now: whether it has ended is asked later.

    `leads` is whether the thread is the first one of its process, if that is known."""

    __slots__ = ("_tgid",)

    def __init__(self, tid: int, leads: bool = False) -> None:
        self._tgid = tid
        if not leads and tid and not lib.shim_leads_process(tid):
            with suppress(OSError):  # the thread has ended already, or is hidden from us
                self._tgid = procfs.tgid_of(tid)

    def ended(self) -> bool:
        """Whether all its threads have ended, and so all its descriptors are closed.  Does not wait.  False
        when the kernel does not tell."""
        try:
            pidfd = os.pidfd_open(self._tgid)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            return bool(poll.poll(0))
        finally:
            os.close(pidfd)


class Caller:
    """The thread that issued a request; `tid` is its number in the pid namespace of this process."""

    __slots__ = ("_tgid", "tid")

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self._tgid = 0

    @property
    def tgid(self) -> int:
        """The process of `tid`.  Raises OSError(ESRCH) when it has ended."""
        if not self._tgid:
            self._tgid = procfs.tgid_of(self.tid)
        return self._tgid

    def capable(self, capability: int) -> bool:
        """Whether the thread has the capability in the initial user namespace, as the kernel's capable()."""
        return procfs.capable(self.tid, capability)

    def read_into(self, vaddr: int, buffer: Any, size: int) -> None:
        """Fill cffi `buffer` with `size` bytes at `vaddr`.  Raises OSError(EFAULT, ESRCH, EPERM)."""
        error = lib.shim_peek(self.tid, vaddr, buffer, size)
        if error:  # every ioctl comes through here, so the text is made only when it is needed
            raise OSError(-error, f"reading {size} bytes at {vaddr:#x}: {os.strerror(-error)}")

    def read(self, vaddr: int, size: int) -> bytes:
        """`size` bytes at `vaddr`.  Raises OSError(EINVAL) above MAX_TRANSFER, EFAULT, ESRCH, EPERM."""
        if not 0 <= size <= MAX_TRANSFER:
            raise OSError(errno.EINVAL, f"{size} bytes in one transfer")
        buffer = bytearray(size)
        self.read_into(vaddr, ffi.from_buffer(buffer), size)
        return bytes(buffer)

    def read_string(self, vaddr: int) -> bytes:
        """The string at `vaddr`, without its NUL, read as strndup_user(PAGE_SIZE) does.

        Raises OSError(EFAULT) when it runs into unreadable memory, EINVAL when it has PAGE_SIZE bytes or
        more.
        """
        text = b""
        while len(text) < PAGE_SIZE:
            at = vaddr + len(text)
            to_page_end = PAGE_SIZE - at % PAGE_SIZE  # the next page may be unmapped
            head, nul, _ = self.read(at, min(to_page_end, PAGE_SIZE - len(text))).partition(b"\0")
            text += head
            if nul:
                return text
        raise OSError(errno.EINVAL, f"no end of the string within {PAGE_SIZE} bytes")

    def write(self, vaddr: int, data: bytes) -> None:
        """Store `data` at `vaddr`.  Raises OSError(EFAULT, ESRCH, EPERM)."""
        self.write_from(vaddr, ffi.from_buffer(data), len(data))

    def write_from(self, vaddr: int, buffer: Any, size: int) -> None:
        """Store `size` bytes of cffi `buffer` at `vaddr`.  As `write`."""
        writes.note()
        error = lib.shim_poke(self.tid, vaddr, buffer, size)
        if error:
            raise OSError(-error, f"writing {size} bytes at {vaddr:#x}: {os.strerror(-error)}")

    @contextmanager
    def borrowed_of(self, fd: int, st_dev: int) -> Iterator[int | None]:
        """A duplicate of the client's descriptor `fd`, closed at the end, if it is a file of the mount
        `st_dev`.  None for any other file.  Asks no file system.  Raises OSError(EBADF, ESRCH, EPERM)."""
        copy: int | None
        with self._lending(lambda pidfd, fd: int(lib.shim_borrow_file(pidfd, self.tid, fd, st_dev))) as lend:
            try:
                copy = lend(fd)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                copy = None
        try:
            yield copy
        finally:
            if copy is not None:
                os.close(copy)

    def device_of(self, fd: int) -> int:
        """st_dev of the file behind the client's descriptor `fd`.  Asks no file system.  Raises
        OSError(EBADF, ESRCH)."""
        found: Any = ffi.new("uint64_t *")
        _check(lib.shim_device_of(self.tid, fd, found), f"descriptor {fd} of thread {self.tid}")
        return int(found[0])

    def borrow_regular(self, fd: int, st_dev: int) -> int:
        """A duplicate of the client's descriptor `fd`, if it is a regular file on the file system `st_dev`,
        which the kernel serves by itself.  The caller must close it.

        Raises OSError(EBADF, ESRCH, EPERM), and EINVAL for any other file, of which nothing is asked.
        """
        pidfd = self._pidfd()
        try:
            copy = int(lib.shim_borrow_regular(pidfd, self.tid, fd, st_dev))
        finally:
            os.close(pidfd)
        _check(copy, f"descriptor {fd} of thread {self.tid}")
        return copy

    def borrow_eventfd(self, fd: int) -> int:
        """A duplicate of the client's eventfd `fd`. The caller must close it.

        Raises OSError(EBADF, EINVAL, ESRCH, EPERM); EINVAL for a descriptor of another kind of file.  Such a
        file may have a file system that never answers, so it is not touched.
        """
        with self.lending_eventfds() as lend:
            return lend(fd)

    def lending_eventfds(self) -> AbstractContextManager[Callable[[int], int]]:
        """A function that borrows eventfds of the client, one a call.  It raises OSError as
        `borrow_eventfd`."""
        return self._lending(lambda pidfd, fd: int(lib.shim_borrow_eventfd(pidfd, self.tid, fd)))

    def borrow(self, fd: int) -> int:
        """A duplicate of the client's descriptor `fd`, whatever its kind. The caller must close it, which may
        wait for the file's file system.

        Raises OSError(EBADF, ESRCH, EPERM).
        """
        with self._lending(lib.shim_pidfd_getfd) as lend:
            return lend(fd)

    @contextmanager
    def _lending(self, take: Callable[[int, int], int]) -> Iterator[Callable[[int], int]]:
        """A function that calls `take` with a pidfd of the client and a descriptor number."""
        pidfd = self._pidfd()

        def lend(fd: int) -> int:
            copy = take(pidfd, fd)
            _check(copy, f"descriptor {fd} of thread {self.tid}")
            return copy

        try:
            yield lend
        finally:
            os.close(pidfd)

    def _pidfd(self) -> int:
        """A pidfd of the thread where the kernel has those (Linux 6.9), otherwise of the process. A pidfd of
        a process gives no descriptors after the first thread of the process has ended."""
        try:
            return os.pidfd_open(self.tid, _PIDFD_THREAD)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        return os.pidfd_open(self.tgid)
