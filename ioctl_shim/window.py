# SPDX-License-Identifier: Apache-2.0
"""Windows: shared file memory of a client (memfd, shmem, hugetlbfs, any shared mapping), mapped here as well.

A window belongs to the `Windows` of one process, under the lock of that.  Copying needs no lock.  A window is
unmapped when the last reference to it is gone.
Source: proc_pid_maps(5), proc_pid_map_files(5), proc_pid_mountinfo(5), <linux/fs.h> (PROCMAP_QUERY).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ioctl_shim._native import ffi, lib
from ioctl_shim.procfs import LiveTask

MAX_WINDOWS = 256
MAX_BYTES = 1 << 40
"""The most bytes of address space for all windows of a process: a client may map sparse files of any size."""
MAX_DESCRIPTORS = 4096
"""The most descriptors of a client that are looked at to find a file that map_files does not give us."""


class Vma(NamedTuple):
    """One mapping in a process' memory: addresses, SHIM_VMA_* flags, and the file at `offset` behind it."""

    start: int
    end: int
    flags: int
    offset: int
    inode: int
    device: int

    @property
    def readable(self) -> bool:
        return bool(self.flags & lib.SHIM_VMA_READ)

    @property
    def writable(self) -> bool:
        return bool(self.flags & lib.SHIM_VMA_WRITE)

    @property
    def shared(self) -> bool:
        return bool(self.flags & lib.SHIM_VMA_SHARED)


class Window:
    """The pages behind `vma` at an address of ours.  Any thread."""

    __slots__ = ("native", "size", "writable")

    def __init__(self, fd: int, vma: Vma) -> None:
        """Raises OSError(ENOMEM) when the pages cannot be mapped."""
        self.size, self.writable = vma.end - vma.start, vma.writable
        base = lib.shim_window_open(fd, vma.offset, self.size, self.writable)
        if not base:
            raise OSError(errno.ENOMEM, f"a window of {self.size:#x} bytes")
        described = (*vma[:5], os.major(vma.device), os.minor(vma.device))
        self.native: Any = ffi.gc(ffi.new("struct shim_window *", (described, base)), _close)
        """struct shim_window.  The pages stay mapped as long as there is a reference to this."""

    def move(self, offset: int, view: memoryview, write: bool) -> None:
        """Copy between `view` and the window from `offset`.  Raises OSError(EFAULT) for a window that is not
        writable, and beyond the file's end."""
        if offset + len(view) > self.size or (write and not self.writable):
            raise OSError(errno.EFAULT, "beyond the window, or not writable")
        at = ffi.cast("char *", self.native.base) + offset
        error = lib.shim_window_move(at, ffi.from_buffer(view), len(view), write)
        if error:
            raise too_short()


def too_short() -> OSError:
    return OSError(errno.EFAULT, "the file behind the memory has become too short")


def _close(native: Any) -> None:
    lib.shim_window_close(native.base, native.vma.end - native.vma.start)


class Windows:
    """The windows of the process of `task`.  A window is made when it is first asked for.

    `avoid` is the st_dev of our own mount.  A thread that serves those files must not open or touch them.
    """

    def __init__(self, task: LiveTask, avoid: int) -> None:
        self._task, self._avoid = task, avoid
        self._lock = threading.Lock()
        self._windows: dict[Vma, Window | None] = {}
        self.by_start: tuple[Sequence[int], Sequence[Any]] = ((), (ffi.NULL,))
        """The starts of the windows, sorted, and for each gap between starts the struct shim_window that may
        have an address there: NULL before the first start, then the window of each start.  The pair is
        replaced, never changed, so any thread may look at it."""

    def of(self, vma: Vma) -> Window | None:
        """The window on `vma`, None when it is not shared file memory or cannot be mapped.  Any thread."""
        if not vma.shared or not vma.inode or vma.device == self._avoid:
            return None
        with self._lock:
            if vma not in self._windows:
                self._task.check()
                self._make_room(vma)
                self._windows[vma] = self._open(vma)
                self._publish()
            return self._windows[vma]

    def _make_room(self, new: Vma) -> None:
        if len(self._windows) >= MAX_WINDOWS:
            self._windows.clear()
        for vma in [old for old in self._windows if old.start < new.end and new.start < old.end]:
            del self._windows[vma]  # the client's mapping has gone

    def _publish(self) -> None:
        natives = {vma.start: window.native for vma, window in self._windows.items() if window}
        starts = sorted(natives)
        self.by_start = starts, [ffi.NULL, *(natives[start] for start in starts)]

    def _open(self, vma: Vma) -> Window | None:
        used = sum(window.size for window in self._windows.values() if window)
        if used + vma.end - vma.start > MAX_BYTES or vma.device in _fuse_devices(self._task.tid):
            return None
        flags = (os.O_RDWR if vma.writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        for path in self._paths(vma):
            with contextlib.suppress(OSError):
                found = os.stat(path)
                if (found.st_dev, found.st_ino) != (vma.device, vma.inode) or not stat.S_ISREG(found.st_mode):
                    continue
                fd = os.open(path, flags)
                try:
                    return Window(fd, vma)
                finally:
                    os.close(fd)
        return None

    def _paths(self, vma: Vma) -> Iterator[str]:
        # map_files takes a capability; without it, the right to read the memory covers the descriptors too
        yield f"/proc/{self._task.tid}/map_files/{vma.start:x}-{vma.end:x}"
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{self._task.tid}/fd")[:MAX_DESCRIPTORS]:
                path = f"/proc/{self._task.tid}/fd/{name}"
                with contextlib.suppress(OSError):
                    if _is_file_of(os.readlink(path)):
                        yield path


def _is_file_of(target: str) -> bool:
    """Whether a descriptor's link is a path (memfds have one, too), and not that of a socket or a pipe."""
    return target.startswith("/")


def _fuse_devices(tid: int) -> set[int]:
    """st_dev of each FUSE file system that this process or `tid` sees: to open a file there may take
    forever."""
    devices = set()
    for pid in ("self", tid):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/mountinfo", encoding="utf-8") as table:
            for line in table:
                before, _, behind = line.partition(" - ")
                if behind.startswith("fuse"):
                    major, minor = before.split()[2].split(":")
                    devices.add(os.makedev(int(major), int(minor)))
    return devices
