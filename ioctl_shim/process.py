# SPDX-License-Identifier: Apache-2.0
"""A client process, whose memory the DMA of devices reaches, over the life of a container.

A `Process` is made on the device lane (ioctl_shim.processes) and used by any thread.

A client may change its mappings at any time. Pinned *shared* memory stays what it was when it was pinned, as
with the kernel's pins. All other access follows the address: each access asks the kernel (PROCMAP_QUERY,
Linux 6.11) what is mapped there now; on an older kernel process_vm_readv reads whatever is mapped. Access to
pinned memory that was private and is shared now is a fault, because the pinned pages cannot be reached any
more. Source: process_vm_readv(2), pidfd_open(2), proc_pid_maps(5).
"""

from __future__ import annotations

import errno
import os
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ioctl_shim import procfs
from ioctl_shim._native import ffi, lib
from ioctl_shim.blank import new_bytes, view_of
from ioctl_shim.client import CAP_IPC_LOCK
from ioctl_shim.pinned import Held, PinnedPages
from ioctl_shim.window import Vma, Window, Windows, too_short

_UINT64_MAX = 2**64 - 1


class Process:
    """One process with the memory it has now. After an exec it counts as another process."""

    def __init__(self, tgid: int, tid: int, avoid: int) -> None:
        """`tid` is a live thread of the process, `avoid` the st_dev of our own mount.

        Raises OSError(ESRCH, EACCES).
        """
        self.tgid = tgid
        opened: list[int] = []
        weakref.finalize(self, _close_all, opened)
        try:
            opened.append(os.pidfd_open(tgid))
            for name in ("mem", "maps"):
                opened.append(os.open(f"/proc/{tid}/{name}", os.O_RDONLY | os.O_CLOEXEC))
            self.identity = (tgid, procfs.start_time(tgid))
        except FileNotFoundError:
            raise OSError(errno.ESRCH, f"process {tgid} has ended") from None
        self.native: Any = ffi.new("struct shim_process *", (*opened, True, avoid & _UINT64_MAX, tgid))
        self.native.can_query = self._query(0) != -errno.ENOTTY
        self._avoid = avoid
        self._task = procfs.LiveTask(tgid)
        self._windows = Windows(self._task, avoid)

    def alive(self) -> bool:
        """Whether it still runs, with the same memory."""
        return bool(lib.shim_alive(self.native))

    def has_thread(self, tid: int) -> bool:
        """Whether the thread `tid`, which is waiting for us, is one of its threads."""
        return bool(lib.shim_has_thread(self.native, tid))

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
        return lib.shim_move(self.native, self._task.tid, window, vaddr, buffer, size, flags)

    def _check(self, result: int, vaddr: int, size: int) -> None:
        """Raises OSError(EFAULT, ESRCH) for a failure.  SHIM_MOVE_ASK is none: nothing has moved yet."""
        if result != lib.SHIM_MOVE_ASK:
            raise self._failed(result, vaddr, size)

    def _failed(self, result: int, vaddr: int, size: int) -> OSError:
        if result == lib.SHIM_MOVE_SHORT:
            return too_short()
        if result == lib.SHIM_MOVE_ENDED:
            return self._ended()
        return OSError(-result, f"{size} bytes at {vaddr:#x}: {os.strerror(-result)}")

    def _move_all(self, parts: Sequence[tuple[int, int]], view: memoryview, flags: int) -> None:
        """Copy any memory, piece by piece.  The slow way."""
        write, private = bool(flags & lib.SHIM_MOVE_WRITE), bool(flags & lib.SHIM_MOVE_PRIVATE)
        self.check_alive()  # before: another process may have the number now, and must not be written to
        batch: list[tuple[int, int]] = []
        start = position = 0
        for piece in (
            self._pieces(parts) if self.native.can_query else (_Piece(*part, None) for part in parts)
        ):
            window = None if piece.vma is None else self._usable(piece.vma, write, private)
            if window is None or piece.vma is None:
                batch.append((piece.vaddr, piece.size))
            else:
                self._move_batch(batch, view[start:position], write)
                batch, start = [], position + piece.size
                window.move(piece.vaddr - piece.vma.start, view[position:start], write)
            position += piece.size
        self._move_batch(batch, view[start:position], write)
        self.check_alive()  # after: it was this process that was read

    def pin(self, vaddr: int, size: int, write: bool) -> PinnedPages:
        """Pin memory (devmodel.client.Client.pin).  Raises OSError(EFAULT, ESRCH)."""
        pieces = []
        if self.native.can_query:
            for piece in self._pieces([(vaddr, size)]):
                assert piece.vma is not None
                window = self._usable(piece.vma, write, private=False)
                offset = piece.vaddr - piece.vma.start
                pieces.append(Held(piece.vaddr, piece.size, window, offset, not piece.vma.shared))
        else:
            pieces.append(Held(vaddr, size, None, 0, False))
        self.check_alive()
        return PinnedPages(self, tuple(pieces))

    def memlock_limit(self) -> int:
        """RLIMIT_MEMLOCK in bytes.  Raises OSError(ESRCH)."""
        return procfs.memlock_limit(self.tgid)

    def locked(self) -> int:
        """Bytes that the process itself has locked.  0 once it has ended."""
        return procfs.locked(self._task.tid)

    def may_lock_any(self) -> bool:
        """Whether it has CAP_IPC_LOCK in the initial user namespace."""
        return procfs.capable(self.tgid, CAP_IPC_LOCK)

    def check_alive(self) -> None:
        """Raises OSError(ESRCH) when it has ended."""
        if not self.alive():
            raise self._ended()

    def _ended(self) -> OSError:
        return OSError(errno.ESRCH, f"process {self.tgid} has ended")

    def _query(self, vaddr: int) -> Vma | int:
        native: Any = ffi.new("struct shim_vma *")
        error = int(lib.shim_query_vma(self.native.maps, vaddr, native))
        if error:
            return error
        return Vma(
            native.start,
            native.end,
            native.flags,
            native.offset,
            native.inode,
            os.makedev(native.major, native.minor),
        )

    def _pieces(self, parts: Sequence[tuple[int, int]]) -> Iterator[_Piece]:
        """The parts, split at the ends of the process' mappings.  Raises OSError(EFAULT, ESRCH)."""
        vma: Vma | None = None
        for vaddr, size in parts:
            end = vaddr + size
            while vaddr < end:
                if vma is None or not vma.start <= vaddr < vma.end:
                    found = self._query(vaddr)
                    if isinstance(found, int):
                        reason = errno.EFAULT if found == -errno.ENOENT else -found
                        raise OSError(reason, f"no memory at {vaddr:#x}")
                    vma = found
                length = min(end, vma.end) - vaddr
                yield _Piece(vaddr, length, vma)
                vaddr += length

    def _usable(self, vma: Vma, write: bool, private: bool) -> Window | None:
        """The window on `vma`, if there is one.  Raises OSError(EFAULT) when the access is not allowed.

        Access to a private mapping of our own mount is not allowed: this process provides its pages, and may
        be waiting for this copy. A shared mapping of it is a device's memory, mapped directly.
        """
        if not (vma.writable if write else vma.readable):
            raise OSError(errno.EFAULT, f"the memory at {vma.start:#x} is not accessible so")
        if vma.device == self._avoid and not vma.shared:
            raise OSError(errno.EFAULT, f"the memory at {vma.start:#x} is a private copy of a lab file")
        if private and vma.shared:
            raise OSError(errno.EFAULT, f"what was pinned at {vma.start:#x} is not there any more")
        return self._windows.of(vma)

    def _move_batch(self, parts: list[tuple[int, int]], view: memoryview, write: bool) -> None:
        if not parts:
            return
        native = ffi.new("struct shim_part[]", parts)
        # released before anything is raised: collecting a traceback that holds the buffer crashes
        with ffi.from_buffer(view) as buffer:
            error = lib.shim_move_parts(self._task.tid, write, buffer, native, len(parts))
            if error == -errno.ESRCH and self._task.find():  # the thread has ended, the process has not
                error = lib.shim_move_parts(self._task.tid, write, buffer, native, len(parts))
        if error:
            raise self._failed(error, parts[0][0], len(view))


class _Piece(NamedTuple):
    vaddr: int
    size: int
    vma: Vma | None


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
