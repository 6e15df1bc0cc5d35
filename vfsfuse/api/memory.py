# SPDX-License-Identifier: Apache-2.0
"""Memory of this process that a device reaches by DMA.

For one thread at a time; the device writes at any time.  Source: <linux/iommufd.h> (IOMMU_IOAS_MAP).
"""

from __future__ import annotations

import ctypes
import mmap
from types import TracebackType

from vfsfuse.api.abi import (
    IOAS_MAP,
    IOAS_UNMAP,
    MAP_FIXED_IOVA,
    MAP_READABLE,
    MAP_WRITEABLE,
    call,
)
from vfsfuse.api.files import Files

PAGE = mmap.PAGESIZE
Buffer = bytearray | memoryview | mmap.mmap | ctypes.Array[ctypes.c_char]


class DmaMemory:
    """Memory that is mapped for DMA.  As a context manager it is unmapped at the end.

    `iova` is the address by which the device reaches the first byte of `buffer`.  The IOMMU maps pages, so
    the device also reaches what shares the first and the last page with a buffer that is not aligned."""

    def __init__(
        self,
        files: Files,
        path: str,
        place: tuple[int, int],
        what: int | Buffer,
        iova: int | None,
        flags: int,
    ) -> None:
        """`place` is the descriptor of the iommufd and the id of the IOAS.  See `Device.map`."""
        self._files, self._path, self._place = files, path, place
        self.size = what if isinstance(what, int) else memoryview(what).nbytes
        if self.size <= 0:
            raise ValueError(f"{self.size} bytes cannot be mapped (map one or more)")
        own = mmap.mmap(-1, _pages(what)) if isinstance(what, int) else None
        self._own = own
        self._export = (ctypes.c_char * self.size).from_buffer(what if own is None else own)  # type: ignore[arg-type]
        self._buffer: memoryview | None = memoryview(self._export).cast("B")
        address = ctypes.addressof(self._export)
        first = address % PAGE
        self._length = _pages(first + self.size)
        if iova is not None:
            flags |= MAP_FIXED_IOVA
        try:
            with files.explained(path):
                *_, self._iova = call(
                    place[0],
                    IOAS_MAP,
                    "IIIQQQ",
                    flags,
                    place[1],
                    0,
                    address - first,
                    self._length,
                    0 if iova is None else iova - first,
                )
        except BaseException:
            self.release()
            raise
        self.iova = self._iova + first

    def __repr__(self) -> str:
        return f"<DmaMemory {self.iova:#x}, {self.size} bytes>"

    @property
    def buffer(self) -> memoryview:
        """The bytes, to read and to write.  Raises ValueError when they are unmapped."""
        if self._buffer is None:
            raise ValueError("this memory is not mapped any more")
        return self._buffer

    def read(self, offset: int = 0, size: int | None = None) -> bytes:
        """A copy of `size` bytes from `offset`, by default of all.  Raises ValueError beyond the end."""
        return bytes(self.buffer[self._slice(offset, self.size - offset if size is None else size)])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data` at `offset`.  Raises ValueError beyond the end."""
        content = memoryview(data).cast("B")
        self.buffer[self._slice(offset, len(content))] = content

    def _slice(self, offset: int, size: int) -> slice:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"{size} bytes at {offset} are not within {self.size}")
        return slice(offset, offset + size)

    def unmap(self) -> None:
        """Unmap it, so that the device does not reach it any more.  May be called again.  Raises OSError."""
        if self._buffer is not None:
            with self._files.explained(self._path):
                call(self._place[0], IOAS_UNMAP, "IQQ", self._place[1], self._iova, self._length)
            self.release()

    def release(self) -> None:
        """Let the buffer go, when nothing is mapped."""
        if self._buffer is not None:
            self._buffer.release()
            self._buffer = None
            del self._export
            self._own = None

    def __enter__(self) -> DmaMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._files.is_ours:
            self.unmap()


def access(read: bool, write: bool) -> int:
    """The flags of IOMMU_IOAS_MAP for what a device may do."""
    return (MAP_READABLE if read else 0) | (MAP_WRITEABLE if write else 0)


def _pages(size: int) -> int:
    """The bytes of the pages that hold `size` bytes."""
    return -(-size // PAGE) * PAGE
