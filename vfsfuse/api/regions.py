# SPDX-License-Identifier: Apache-2.0
"""The regions of an open device: BARs, ROM, configuration space, and those of its model.

For one thread at a time.  Source: <linux/vfio.h> (VFIO_DEVICE_GET_REGION_INFO), the kernel's
Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator, Sequence

from vfsfuse.api.abi import (
    DEVICE_GET_REGION_INFO,
    REGION_MMAP,
    REGION_READ,
    REGION_WRITE,
    call,
    checked,
)
from vfsfuse.api.files import Files


class Region:
    """One region.  Offsets and sizes are in bytes, numbers little-endian."""

    __slots__ = ("_device", "_files", "_maps", "_path", "_start", "flags", "index", "size")

    def __init__(self, files: Files, path: str, device: int, index: int) -> None:
        """Raises OSError as VFIO_DEVICE_GET_REGION_INFO does."""
        self._files, self._path, self._device = files, path, device
        self._maps: list[mmap.mmap] = []
        with files.explained(path):
            self.flags, self.index, _, self.size, self._start = call(
                device, DEVICE_GET_REGION_INFO, "IIIQQ", 0, index, 0, 0, 0
            )

    def __repr__(self) -> str:
        return f"<Region {self.index}, {self.size} bytes>"

    @property
    def can_read(self) -> bool:
        """Whether it can be read."""
        return bool(self.flags & REGION_READ)

    @property
    def can_write(self) -> bool:
        """Whether it can be written."""
        return bool(self.flags & REGION_WRITE)

    @property
    def can_map(self) -> bool:
        """Whether `map` can map it, or a part of it."""
        return bool(self.flags & REGION_MMAP)

    def read(self, offset: int, size: int) -> bytes:
        """Read, by one pread(2) as far as the device goes.  Raises OSError: EINVAL beyond the end, ENODEV
        when the device is gone, and what its model raises."""
        with self._files.explained(self._path):
            start = self._at(offset)
            content = os.pread(self._device, size, start)
            while len(content) < size:
                more = os.pread(self._device, size - len(content), start + len(content))
                if not more:
                    break
                content += more
        return content

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write, by one pwrite(2) as far as the device goes.  Raises OSError as `read` does."""
        left = memoryview(data).cast("B")
        with self._files.explained(self._path):
            while left:
                done = os.pwrite(self._device, left, self._at(offset))
                offset, left = offset + done, left[done:]

    def _at(self, offset: int) -> int:
        """The place of `offset` in the device's file, where the other regions are as well.  Raises OSError:
        EINVAL for one that is not in this region."""
        if not 0 <= offset <= self.size:
            why = f"offset {offset:#x} is not in region {self.index}, which has {self.size:#x} bytes"
            raise OSError(errno.EINVAL, why, self._path)
        return self._start + offset

    def read_int(self, offset: int, width: int = 4) -> int:
        """The number of `width` bytes, by one access if `width` is 1, 2, 4 or 8."""
        return int.from_bytes(self.read(offset, width), "little")

    def write_int(self, offset: int, value: int, width: int = 4) -> None:
        """Write a number of `width` bytes, by one access if `width` is 1, 2, 4 or 8.  Raises OverflowError
        for a number that does not fit."""
        self.write(offset, value.to_bytes(width, "little"))

    def map(self, offset: int = 0, size: int | None = None) -> mmap.mmap:
        """Map the region, or `size` bytes from `offset`, both multiples of the page size.  It is unmapped
        when the device is closed.

        Raises OSError: EINVAL for a part that cannot be mapped, as that with the table of MSI-X, ENODEV if
        the kernel or the user of the server cannot map (docs/vfio.md)."""
        with self._files.explained(self._path):
            if not self.can_map:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            start = self._at(offset)
            length = self.size - offset if size is None else size
            if not 0 < length <= self.size - offset:
                why = f"{length:#x} bytes at {offset:#x} are not in region {self.index}"
                raise OSError(errno.EINVAL, why, self._path)
            mapped = mmap.mmap(checked(self._device), length, offset=start)
        self._maps.append(mapped)
        return mapped

    def close(self) -> None:
        """Unmap what `map` has mapped, except where somebody still has a memoryview of it.  The device is
        closed then: EBADF."""
        self._device = -1
        for mapped in self._maps:
            with contextlib.suppress(BufferError):
                mapped.close()
        self._maps.clear()


class Regions(Sequence[Region]):
    """The regions of a device by index: 0 to 5 are BARs, 6 the ROM, 7 configuration space, 8 VGA, the rest
    those of the model.  Each is asked for when it is first used."""

    def __init__(self, files: Files, path: str, device: int, count: int) -> None:
        self._files, self._path, self._device, self._count = files, path, device, count
        self._known: dict[int, Region] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Region:  # type: ignore[override]
        if not 0 <= index < self._count:
            raise IndexError(f"there is no region {index} (there are {self._count})")
        if index not in self._known:
            self._known[index] = Region(self._files, self._path, self._device, index)
        return self._known[index]

    def __iter__(self) -> Iterator[Region]:
        """Those that the device has; the others have no size or are refused."""
        for index in range(self._count):
            with contextlib.suppress(OSError):
                if self[index].size:
                    yield self[index]

    def close(self) -> None:
        """Unmap all that is mapped of them.  The device is closed then."""
        self._device = -1
        for region in self._known.values():
            region.close()
