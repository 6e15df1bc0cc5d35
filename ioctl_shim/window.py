# SPDX-License-Identifier: Apache-2.0
"""Windows: shared file memory of a client (memfd, shmem, hugetlbfs, any shared mapping), mapped here as well.

A window belongs to the `Windows` of one process, under the lock of that.  Neither the making of a window nor
copying needs the lock.  A window is unmapped when the last reference to it is gone.
Source: proc_pid_maps(5), <linux/fs.h> (PROCMAP_QUERY).
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ioctl_shim._native import ffi, lib
from ioctl_shim.procfs import LiveTask
from ioctl_shim.sharedfile import is_familiar, open_shared

MAX_WINDOWS = 256
"""The most windows that are remembered for a process.  Pinned pages keep theirs beyond that."""
MAX_KEPT = 4096
"""The most windows of a process that exist.  A client may map files and pin them without end."""
MAX_BYTES = 1 << 40
"""The most bytes of address space for all windows of a process: a client may map sparse files of any size."""


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

    __slots__ = ("__weakref__", "native", "size", "writable")

    def __init__(self, fd: int, vma: Vma, native: Any) -> None:
        """`native` is the struct shim_vma of `vma`.  Raises OSError(ENOMEM) when it cannot be mapped."""
        self.size, self.writable = vma.end - vma.start, vma.writable
        base = lib.shim_window_open(fd, vma.offset, self.size, self.writable)
        if not base:
            raise OSError(errno.ENOMEM, f"a window of {self.size:#x} bytes")
        self.native: Any = ffi.gc(ffi.new("struct shim_window *", (native[0], base)), _close)
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
        self._kept: weakref.WeakSet[Window] = weakref.WeakSet()
        self._strange: set[int] = set()
        """st_dev of file systems that are not familiar. Should one be so later, its files are copied."""
        self.by_start: tuple[Sequence[int], Sequence[Any]] = ((), (ffi.NULL,))
        """The starts of the windows, sorted, and for each gap between starts the struct shim_window that may
        have an address there: NULL before the first start, then the window of each start.  The pair is
        replaced, never changed, so any thread may look at it."""

    def of(self, vma: Vma, look: Callable[[int], Vma]) -> Window | None:
        """The window on `vma`, None when it is not shared file memory or cannot be mapped.  Any thread.

        `look` finds the mapping that is at an address now.  It may raise OSError.
        """
        if not vma.shared or not vma.inode or vma.device == self._avoid:
            return None
        windows = self._windows
        with contextlib.suppress(KeyError):
            return windows[vma]
        made = self._open(vma, look)  # without the lock: the kernel may wait for the client's memory here
        with self._lock:
            if vma not in windows:
                self._make_room(vma)
                windows[vma] = made
                self._publish()
            return windows[vma]

    def _make_room(self, new: Vma) -> None:
        if len(self._windows) >= MAX_WINDOWS:
            self._windows.clear()
        for vma in [old for old in self._windows if old.start < new.end and new.start < old.end]:
            del self._windows[vma]  # the client's mapping has gone

    def _publish(self) -> None:
        natives = {vma.start: window.native for vma, window in self._windows.items() if window}
        starts = sorted(natives)
        self.by_start = starts, [ffi.NULL, *(natives[start] for start in starts)]

    def _open(self, vma: Vma, look: Callable[[int], Vma]) -> Window | None:
        if vma.device in self._strange or not self._have_room(vma):
            return None
        self._task.check()
        if not is_familiar(vma.device, self._task.tid):
            self._strange.add(vma.device)
            return None
        described = (*vma[:5], os.major(vma.device), os.minor(vma.device))
        native: Any = ffi.new("struct shim_vma *", described)
        flags = os.O_RDWR if vma.writable else os.O_RDONLY
        # `vma` is what was there: by now the client may have put another file there, which it may only read
        fd = open_shared(self._task.tid, native, flags, lambda: look(vma.start) == vma)
        if fd is None:
            return None
        try:
            window = Window(fd, vma, native)
        except OSError:
            return None  # such as a memfd that was sealed after the client had mapped it
        finally:
            os.close(fd)
        with self._lock:
            self._kept.add(window)
        return window

    def _have_room(self, vma: Vma) -> bool:
        with self._lock:
            used = sum(window.size for window in self._kept)
            return len(self._kept) < MAX_KEPT and used + vma.end - vma.start <= MAX_BYTES
