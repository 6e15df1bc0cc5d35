# SPDX-License-Identifier: Apache-2.0
"""The memory of files that clients hand in: memfd, shmem and hugetlbfs (IOMMU_IOAS_MAP_FILE).

A client's descriptor is hostile. Its file may be on a FUSE mount of the client's, where even close(2) takes
as long as the client likes, or on our own, where we would wait for ourselves. So the kernel's tables tell the
kind of the file first, and only a file of memory is copied and mapped. Any other file can be mapped into an
IOAS, as in Linux, and is refused when it is to be pinned. It is not touched.

A file that is held keeps its memory after the client has closed it or has ended. Where it is shortened later,
access is a fault (native/guard.c).

State: the files of one context, under the lock of its `Files`, which is held only for calls that the kernel
answers by itself. Any thread; `Files.of` on threads that may wait.
Source: <linux/iommufd.h> (struct iommu_ioas_map_file), memfd_create(2), fcntl(2) (F_GET_SEALS).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import weakref
from collections.abc import Iterator, Sequence

from ioctl_shim._native import ffi, lib
from ioctl_shim.blank import new_bytes, view_of
from ioctl_shim.client import Caller
from ioctl_shim.sharedfile import is_memory
from ioctl_shim.window import Vma, Window

MAX_FILES = 256
"""The most files that one context holds.  Each takes a descriptor of ours."""
MAX_BYTES = 1 << 40
"""The most bytes of address space for the files of one context, which may be sparse."""
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_SEALED = fcntl.F_SEAL_WRITE | 0x10  # F_SEAL_FUTURE_WRITE: Linux 5.1
_Key = tuple[int, int, bool]
"""st_dev, st_ino, and whether it is held for writing."""


class HeldFile:
    """A regular file of memory, which is held, to be written to or not."""

    __slots__ = ("__weakref__", "_fd", "_key", "_unit", "window")

    def __init__(self, fd: int, key: _Key) -> None:
        """`fd` is ours from now on."""
        self._fd, self._key = fd, key
        weakref.finalize(self, os.close, fd)
        self._unit = max(os.fstat(fd).st_blksize, _PAGE_SIZE)  # of hugetlbfs: the size of its pages
        self.window: Window | None = None
        """The window on it from its start, if there is one yet."""

    @property
    def size(self) -> int:
        """Its size in bytes, as it is now."""
        return os.fstat(self._fd).st_size

    def open_window(self, size: int) -> Window:
        """Make the window on its first `size` bytes.  Raises OSError(ENOMEM)."""
        device, inode, writable = self._key
        flags = lib.SHIM_VMA_READ | lib.SHIM_VMA_SHARED | (lib.SHIM_VMA_WRITE if writable else 0)
        vma = Vma(0, -(-size // self._unit) * self._unit, flags, 0, inode, device)
        described = (*vma[:5], os.major(device), os.minor(device))
        native = ffi.new("struct shim_vma *", described)
        try:
            self.window = Window(self._fd, vma, native)
        except OSError:
            with _reopened(self._fd) as fd:  # before Linux 6.7: sealed against writes, and open for them
                self.window = Window(fd, vma, native)
        return self.window


class FileMemory:
    """The memory of a held file (devmodel.client.Memory).  Addresses are offsets of the file."""

    __slots__ = ("_file", "_files")

    def __init__(self, files: Files, file: HeldFile) -> None:
        self._files, self._file = files, file

    def read(self, vaddr: int, size: int) -> bytes:
        """`size` bytes at offset `vaddr`.  Raises OSError(EFAULT, ENOMEM)."""
        data: bytes = new_bytes(None, size)
        self.read_parts([(vaddr, size)], view_of(data))
        return data

    def write(self, vaddr: int, data: bytes) -> None:
        """Store `data` at offset `vaddr`.  Raises OSError(EFAULT, ENOMEM)."""
        self.write_parts([(vaddr, len(data))], memoryview(data))

    def gather(self, parts: Sequence[tuple[int, int]]) -> bytes:
        """The bytes of the (offset, size) parts.  Raises OSError(EFAULT, ENOMEM)."""
        data: bytes = new_bytes(None, sum(size for _, size in parts))
        self.read_parts(parts, view_of(data))
        return data

    def read_parts(self, parts: Sequence[tuple[int, int]], view: memoryview) -> None:
        """Fill `view` with the (offset, size) parts.  Raises OSError(EFAULT, ENOMEM)."""
        self._move(parts, view, write=False)

    def write_parts(self, parts: Sequence[tuple[int, int]], view: memoryview) -> None:
        """Store `view` in the (offset, size) parts.  Raises OSError(EFAULT, ENOMEM)."""
        self._move(parts, view, write=True)

    def pin(self, vaddr: int, size: int, write: bool) -> FilePages:
        """Hold whole pages.  Raises OSError(EINVAL) when the file does not go so far, and ENOMEM."""
        if vaddr + size > self._file.size:
            raise OSError(errno.EINVAL, "the file does not go so far")
        return FilePages(self._files.window(self._file, vaddr + size), vaddr)

    def _move(self, parts: Sequence[tuple[int, int]], view: memoryview, write: bool) -> None:
        window = self._files.window(self._file, max(vaddr + size for vaddr, size in parts))
        for vaddr, size in parts:
            window.move(vaddr, view[:size], write)
            view = view[size:]


class FilePages:
    """Pinned pages of a file, from offset `start` (devmodel.client.Pages).  Any thread."""

    __slots__ = ("_start", "_window")

    def __init__(self, window: Window, start: int) -> None:
        self._window, self._start = window, start

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`.  Raises OSError(EFAULT)."""
        data: bytes = new_bytes(None, size)
        self.read_into(offset, view_of(data))
        return data

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes at `offset`.  Raises OSError(EFAULT)."""
        self._window.move(self._start + offset, view, write=False)

    def write_from(self, offset: int, view: memoryview) -> None:
        """Store `view` at `offset`.  Raises OSError(EFAULT)."""
        self._window.move(self._start + offset, view, write=True)


class ForeignFile:
    """A file that is no memory (devmodel.client.Memory).  It is neither held nor touched: all is EINVAL."""

    __slots__ = ()

    def read(self, vaddr: int, size: int) -> bytes:
        raise _foreign()

    def write(self, vaddr: int, data: bytes) -> None:
        raise _foreign()

    def gather(self, parts: Sequence[tuple[int, int]]) -> bytes:
        raise _foreign()

    def read_parts(self, parts: Sequence[tuple[int, int]], view: memoryview) -> None:
        raise _foreign()

    def write_parts(self, parts: Sequence[tuple[int, int]], view: memoryview) -> None:
        raise _foreign()

    def pin(self, vaddr: int, size: int, write: bool) -> FilePages:
        raise _foreign()


class Files:
    """The files that clients of one context have handed in, each held once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: weakref.WeakValueDictionary[_Key, HeldFile] = weakref.WeakValueDictionary()

    def of(self, caller: Caller, fd: int, write: bool) -> FileMemory | ForeignFile:
        """The memory of the file behind the caller's descriptor `fd`, to be written to if `write`.  On a
        thread that may wait.

        Raises OSError: EBADF (no descriptor, O_PATH), EPERM (the file is not open so, or is sealed against
        writes), ENOMEM (too many files), EMFILE, ESRCH.
        """
        device = caller.device_of(fd)
        if not is_memory(device, caller.tid):
            device = _NOWHERE
        try:
            copy = caller.borrow_regular(fd, device)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return ForeignFile()
        found = os.fstat(copy) if is_memory(device, caller.tid) else None  # while we hold it, that stays true
        if found is None or not stat.S_ISREG(found.st_mode):
            lib.shim_close_stranger(copy)  # the client has put another file there since we looked
            return ForeignFile()
        try:
            _check_access(copy, write)
            return FileMemory(self, self._hold(copy, (found.st_dev, found.st_ino, write)))
        finally:
            os.close(copy)

    def window(self, file: HeldFile, end: int) -> Window:
        """A window on `file` from its start to `end`, or farther.  Raises OSError(ENOMEM)."""
        window = file.window
        if window is not None and window.size >= end:
            return window
        with self._lock:
            window = file.window
            if window is None or window.size < end:
                others = [one.window.size for one in self._held.values() if one.window and one is not file]
                size = max(end, min(file.size, MAX_BYTES - sum(others)))
                if size + sum(others) > MAX_BYTES:
                    raise OSError(errno.ENOMEM, f"a window of {size:#x} bytes on a file")
                window = file.open_window(size)
            return window

    def _hold(self, fd: int, key: _Key) -> HeldFile:
        with self._lock:
            held = self._held.get(key)
            if held is None:
                if len(self._held) >= MAX_FILES:
                    raise OSError(errno.ENOMEM, f"{MAX_FILES} files in one context")
                held = self._held[key] = HeldFile(os.dup(fd), key)
            return held


_NOWHERE = 2**64 - 1
"""st_dev of no file."""


@contextlib.contextmanager
def _reopened(fd: int) -> Iterator[int]:
    """Another open file of the same file, to be read.  Raises OSError."""
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        yield again
    finally:
        os.close(again)


def _check_access(fd: int, write: bool) -> None:
    """Raises OSError(EPERM) for a file that is not open to be read, and written to if `write`."""
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    if mode == os.O_WRONLY or (write and mode != os.O_RDWR):
        raise OSError(errno.EPERM, "the file is not open for the access that is asked for")
    if write and _seals(fd) & _SEALED:
        raise OSError(errno.EPERM, "the file is sealed against writes")


def _seals(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # a file that cannot be sealed
        return 0


def _foreign() -> OSError:
    return OSError(errno.EINVAL, "the file is no memory that can be pinned")
