# SPDX-License-Identifier: Apache-2.0
"""A client process, whose memory the DMA of devices reaches, over the life of a container.

A `Process` is made on the device lane (ioctl_shim.processes) and used by any thread.

Its memory is reached by descriptors of /proc/PID/mem and maps, which are opened while a thread of the client
waits in an ioctl. They stay with that memory: after an exec, or when another process has the number, they
reach the old memory if something keeps it alive (a child of clone(2) with CLONE_VM), and nothing otherwise.

A client may change its mappings at any time. Pinned *shared* memory stays what it was when it was pinned, as
with the kernel's pins. All other access follows the address: each access asks the kernel what is mapped there
now (PROCMAP_QUERY; before Linux 6.11 the text of maps), because /proc/PID/mem takes no notice of protections.
Access to pinned memory that was private and is shared now is a fault, because the pinned pages cannot be
reached any more. Source: proc_pid_mem(5), proc_pid_maps(5).
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from bisect import bisect_right
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from ioctl_shim import procfs
from ioctl_shim._native import ffi, lib
from ioctl_shim.blank import new_bytes, view_of
from ioctl_shim.client import CAP_IPC_LOCK
from ioctl_shim.image import Image
from ioctl_shim.pinned import Held, PinnedPages
from ioctl_shim.sharedfile import is_written_back
from ioctl_shim.window import Vma, Window, Windows, too_short

_UINT64_MAX = 2**64 - 1
_READ = os.O_RDONLY | os.O_CLOEXEC
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


class Process:
    """One process with the memory that it has now. After an exec it counts as another process."""

    def __init__(self, tgid: int, tid: int, avoid: int, bars: bool = True) -> None:
        """`tid` is a thread of the process that cannot call exec now, `avoid` the st_dev of our own mount,
        whose memory may be used if `bars`.

        Raises OSError(ESRCH, EACCES).
        """
        self.tgid = tgid
        opened: list[int] = []
        weakref.finalize(self, _close_all, opened)
        self._task = procfs.LiveTask(tgid)
        try:
            self.identity = identity_of(tgid, Image(tid))
            # before Linux 6.11 maps cannot be read after its thread has ended: the first one lives longest
            shown = tgid if not CAN_QUERY and procfs.runs(tgid) else tid
            opened.append(os.open(f"/proc/{shown}/mem", os.O_RDWR | os.O_CLOEXEC))
            opened.append(os.open(f"/proc/{shown}/maps", _READ))
        except FileNotFoundError:
            raise self._ended() from None
        self.native: Any = ffi.new("struct shim_memory *", (*opened, CAN_QUERY, avoid & _UINT64_MAX))
        self._avoid, self._bars = avoid, bars
        self._windows = Windows(self._task, avoid)
        self._scanning = threading.Lock()
        self._lasting: set[int] = set()
        """st_dev of file systems whose pages are memory alone, as far as they were looked at."""

    @property
    def user(self) -> int:
        """Its real user id.  Raises OSError(ESRCH)."""
        return procfs.user_of(self.tgid)

    def read(self, vaddr: int, size: int) -> bytes:
        """`size` bytes at `vaddr`.  Raises OSError(EFAULT, ESRCH)."""
        data: bytes = new_bytes(None, size)
        result = self._move_one(vaddr, data, size, 0)
        if result:
            self._check(result, vaddr, size)
            self._move_all([(vaddr, size)], view_of(data), 0)
        return data

    def write(self, vaddr: int, data: bytes) -> None:
        """Store `data` at `vaddr`.  Raises OSError(EFAULT, ESRCH)."""
        result = self._move_one(vaddr, data, len(data), lib.SHIM_MOVE_WRITE)
        if result:
            self._check(result, vaddr, len(data))
            self._move_all([(vaddr, len(data))], memoryview(data), lib.SHIM_MOVE_WRITE)

    def gather(self, parts: Sequence[tuple[int, int]]) -> bytes:
        """The bytes of the (vaddr, size) parts, one part after the other.  Raises OSError(EFAULT, ESRCH)."""
        data: bytes = new_bytes(None, sum(size for _, size in parts))
        self.move(parts, view_of(data), 0)
        return data

    def read_parts(self, parts: Sequence[tuple[int, int]], view: memoryview) -> None:
        """Fill `view` with the (vaddr, size) parts.  Raises OSError(EFAULT, ESRCH)."""
        self.move(parts, view, 0)

    def write_parts(self, parts: Sequence[tuple[int, int]], view: memoryview) -> None:
        """Store `view` in the (vaddr, size) parts.  Raises OSError(EFAULT, ESRCH)."""
        self.move(parts, view, lib.SHIM_MOVE_WRITE)

    def move(self, parts: Sequence[tuple[int, int]], view: memoryview, flags: int) -> None:
        """Copy between `view` and the parts; `flags` are SHIM_MOVE_*.  Raises OSError(EFAULT, ESRCH)."""
        if len(parts) == 1:
            # released before anything is raised: collecting a traceback that holds the buffer crashes
            with ffi.from_buffer(view) as buffer:
                result = self._move_one(parts[0][0], buffer, len(view), flags)
            if not result:
                return
            self._check(result, parts[0][0], len(view))
        self._move_all(parts, view, flags)

    def _move_one(self, vaddr: int, buffer: Any, size: int, flags: int) -> Any:
        """Copy memory that lies in one mapping, as most memory does.  Returns the result of shim_move."""
        starts, windows = self._windows.by_start
        window = windows[bisect_right(starts, vaddr)]
        return lib.shim_move(self.native, window, vaddr, buffer, size, flags)

    def _check(self, result: int, vaddr: int, size: int) -> None:
        """Raises OSError(EFAULT, ESRCH) for a failure that the slow way has no answer to."""
        if result not in (lib.SHIM_MOVE_ASK, lib.SHIM_MOVE_ABSENT):
            raise self._failed(result, vaddr, size)

    def _failed(self, result: int, vaddr: int, size: int) -> OSError:
        if result == lib.SHIM_MOVE_SHORT:
            return too_short()
        if result in (lib.SHIM_MOVE_ENDED, -errno.ESRCH):
            return self._ended()
        if result == lib.SHIM_MOVE_ABSENT:
            result = -errno.EFAULT
        return OSError(-result, f"{size} bytes at {vaddr:#x}: {os.strerror(-result)}")

    def _move_all(self, parts: Sequence[tuple[int, int]], view: memoryview, flags: int) -> None:
        """Copy any memory, piece by piece, after a look at all of it.  The slow way."""
        write, private = bool(flags & lib.SHIM_MOVE_WRITE), bool(flags & lib.SHIM_MOVE_PRIVATE)
        found = [(piece, self._usable(piece.vma, write, private)) for piece in self._pieces(parts)]
        batch: list[tuple[int, int]] = []
        start = position = 0
        for piece, window in found:
            if window is None:
                batch.append((piece.vaddr, piece.size))
            else:
                self._move_batch(batch, view[start:position], write)
                batch, start = [], position + piece.size
                window.move(piece.vaddr - piece.vma.start, view[position:start], write)
            position += piece.size
        self._move_batch(batch, view[start:position], write)

    def pin(self, vaddr: int, size: int, write: bool) -> PinnedPages:
        """Pin memory (devmodel.client.Client.pin).  Raises OSError(EFAULT, ESRCH)."""
        pieces = []
        for piece in self._pieces([(vaddr, size)]):
            window = self._usable(piece.vma, write, private=False)
            if piece.vma.inode and piece.vma.device != self._avoid:
                self._check_file(piece, write)
            offset = piece.vaddr - piece.vma.start
            pieces.append(Held(piece.vaddr, piece.size, window, offset, not piece.vma.shared))
        return PinnedPages(self, tuple(pieces))

    def _check_file(self, piece: _Piece, write: bool) -> None:
        """Raises OSError(EFAULT) for pages of a file that the kernel does not pin: beyond the file's end, of
        memfd_secret(2), or to be written and then written back to a disk."""
        vma = piece.vma
        if write and vma.shared and vma.device not in self._lasting:
            if is_written_back(vma.device, self._task.tid):
                raise OSError(errno.EFAULT, f"the file at {vma.start:#x} is not pinned for writes")
            self._lasting.add(vma.device)
        last = piece.vaddr + piece.size - 1  # if its page is there, so are those before
        error = lib.shim_reach(self.native.mem, last)
        if error and not (error == lib.SHIM_MOVE_ABSENT and self._touch([(last, 1)])):
            raise self._failed(error, last, 1)

    def memlock_limit(self) -> int:
        """RLIMIT_MEMLOCK in bytes.  Raises OSError(ESRCH)."""
        return procfs.memlock_limit(self.tgid)

    def locked(self) -> int:
        """Bytes that the process itself has locked.  0 once it has ended."""
        self._task.check()
        return procfs.locked(self._task.tid)

    def may_lock_any(self) -> bool:
        """Whether it has CAP_IPC_LOCK in the initial user namespace."""
        return procfs.capable(self.tgid, CAP_IPC_LOCK)

    def _ended(self) -> OSError:
        return OSError(errno.ESRCH, f"process {self.tgid} has ended, or called exec")

    def _vma_at(self, vaddr: int) -> Vma:
        """The mapping at `vaddr`.  Raises OSError(EFAULT, ESRCH)."""
        native: Any = ffi.new("struct shim_vma *")
        if self.native.can_query:
            error = lib.shim_query_vma(self.native.maps, vaddr, native)
        else:
            with self._scanning:
                error = lib.shim_scan_vma(self.native.maps, vaddr, native)
        if error == -errno.ENOENT:
            raise OSError(errno.EFAULT, f"no memory at {vaddr:#x}")
        if error:
            raise self._failed(error, vaddr, 1)
        device = os.makedev(native.major, native.minor)
        return Vma(native.start, native.end, native.flags, native.offset, native.inode, device)

    def _pieces(self, parts: Sequence[tuple[int, int]]) -> Iterator[_Piece]:
        """The parts, split at the ends of the process' mappings.  Raises OSError(EFAULT, ESRCH)."""
        vma: Vma | None = None
        for vaddr, size in parts:
            end = vaddr + size
            while vaddr < end:
                if vma is None or not vma.start <= vaddr < vma.end:
                    vma = self._vma_at(vaddr)
                length = min(end, vma.end) - vaddr
                yield _Piece(vaddr, length, vma)
                vaddr += length

    def _usable(self, vma: Vma, write: bool, private: bool) -> Window | None:
        """The window on `vma`, if there is one.  Raises OSError(EFAULT) when the access is not allowed.

        Access to a private mapping of our own mount is not allowed: this process provides its pages, and may
        be waiting for this copy. A shared mapping of it is a device's memory, mapped directly, which not
        every IOMMU takes.
        """
        if not (vma.writable if write else vma.readable):
            raise OSError(errno.EFAULT, f"the memory at {vma.start:#x} is not accessible so")
        if vma.device == self._avoid and not vma.shared:
            raise OSError(errno.EFAULT, f"the memory at {vma.start:#x} is a private copy of a lab file")
        if vma.device == self._avoid and not self._bars:
            raise OSError(errno.EFAULT, f"the memory at {vma.start:#x} is a device's")
        if private and vma.shared:
            raise OSError(errno.EFAULT, f"what was pinned at {vma.start:#x} is not there any more")
        return self._windows.of(vma, self._vma_at)

    def _move_batch(self, parts: list[tuple[int, int]], view: memoryview, write: bool) -> None:
        if not parts:
            return
        native = ffi.new("struct shim_part[]", parts)
        # released before anything is raised: collecting a traceback that holds the buffer crashes
        with ffi.from_buffer(view) as buffer:
            error = lib.shim_move_parts(self.native.mem, write, buffer, native, len(parts))
            if error == lib.SHIM_MOVE_ABSENT and self._touch(parts):
                error = lib.shim_move_parts(self.native.mem, write, buffer, native, len(parts))
        if error:
            raise self._failed(error, parts[0][0], len(view))

    def _touch(self, parts: list[tuple[int, int]]) -> bool:
        """Wait until each page of the parts is there.  False when one cannot be.

        /proc/PID/mem fails where any other access waits for userfaultfd(2).  So a byte of each page is read
        by the number of a thread, and thrown away: it does not matter which memory the thread has now.
        """
        self._task.check()
        byte: Any = ffi.new("char[1]")
        return not any(
            lib.shim_peek(self._task.tid, page, byte, 1)
            for vaddr, size in parts
            for page in (vaddr, *range(vaddr - vaddr % PAGE_SIZE + PAGE_SIZE, vaddr + size, PAGE_SIZE))
        )


class _Piece(NamedTuple):
    vaddr: int
    size: int
    vma: Vma


def identity_of(tgid: int, image: Image) -> Hashable:
    """What tells a process, with the memory of `image`, from every other one.

    Raises FileNotFoundError when it has ended.
    """
    return (tgid, procfs.start_time(tgid), image.layout)


def _can_query() -> bool:
    """Whether the kernel has PROCMAP_QUERY."""
    maps = os.open("/proc/self/maps", _READ)
    try:
        return bool(lib.shim_query_vma(maps, 0, ffi.new("struct shim_vma *")) != -errno.ENOTTY)
    finally:
        os.close(maps)


CAN_QUERY = _can_query()


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
