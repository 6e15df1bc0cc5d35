# SPDX-License-Identifier: Apache-2.0
"""Regions of a VFIO device, addressed from 0: the base class, memory and read-only images.

State: each region belongs to one device and is touched only under that device's lock.
Source: the region semantics of <linux/vfio.h> (VFIO_DEVICE_GET_REGION_INFO) and of vfio-pci's read and write.
"""

import errno
import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

from devmodel.region.backing import Backing
from devmodel.region.moving import Place
from devmodel.region.names import RegisterNames


def clip(limit: int, offset: int, size: int) -> int:
    """The bytes of an access of ``size`` at ``offset`` that lie within ``limit`` bytes, as vfio-pci counts.

    An access across the end is short. One that starts at the end or beyond raises ``OSError(EINVAL)``.
    """
    if not 0 <= offset < limit or size < 0:
        raise OSError(errno.EINVAL, f"offset {offset:#x} is outside a region of {limit:#x} bytes")
    return min(size, limit - offset)


class WholeAccess(NamedTuple):
    """What an access of all bytes of a register, and no others, does."""

    offset: int
    width: int
    changed: int
    """Bits that become what is written."""
    cleared: int
    """Bits that a written 1 clears."""
    on_read: Callable[[Any], int] | None
    on_write: Callable[[Any, int], None] | None


class StoredBytes(NamedTuple):
    """The bytes of a register region, for a front end that reads and writes some of them by itself."""

    data: bytearray
    """The region's bytes. They are changed in place, and never become more or fewer."""
    plain: bytes
    """One for each byte of ``data``: not 0 where a read may take that byte as it is, without a lock."""
    registers: Sequence[WholeAccess] = ()
    """Registers of which a whole access does just what is said there, under the device's lock."""
    owner: object = None
    """What the hooks of ``registers`` are called with."""


class Region:
    """A range of a device that a client reads, writes and perhaps maps.

    ``read`` and ``write`` do not check their range: :meth:`devmodel.device.base.Device.read` has clipped it.
    """

    __slots__ = ("size",)
    readable: ClassVar[bool] = True
    writable: ClassVar[bool] = True
    mappable: ClassVar[bool] = False
    direct: ClassVar[bool] = False
    """Whether a front end may read and write the backing's memory without calling :meth:`read` and
    :meth:`write`."""

    @property
    def areas(self) -> tuple[tuple[int, int], ...] | None:
        """The (offset, size) ranges that a client may map; None when it may map all of a mappable region."""
        return None

    @property
    def stored(self) -> StoredBytes | None:
        """What a front end may access without calling :meth:`read` and :meth:`write`; None for nothing."""
        return None

    @property
    def names(self) -> RegisterNames | None:
        """The names of its registers; None for a region that has none. Any thread."""
        return None

    def __init__(self, size: int) -> None:
        """``size`` in bytes."""
        self.size = size

    def clip(self, offset: int, size: int) -> int:
        """How many bytes of an access lie in the region. ``OSError`` as :func:`clip`."""
        if offset >= 0 and size >= 0 and offset + size <= self.size != offset:
            return size  # nearly every access lies wholly in it
        return clip(self.size, offset, size)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes at ``offset``."""
        raise NotImplementedError

    def write(self, offset: int, data: bytes) -> None:
        """Store the whole of ``data`` at ``offset``."""
        raise NotImplementedError

    def reset(self) -> None:
        """Return to the state after power-on, as far as a function reset does so."""

    def close(self) -> None:
        """Let go of what the region holds. No access follows."""


class Memory(Region):
    """Memory that a client may map. It survives a reset, as video memory does.

    Only its first ``backed`` bytes are memory. Nothing answers in the rest: reads are all ones and writes are
    dropped, as on a bus. An access raises ``OSError(EIO)`` when the host has no page left for it.
    """

    __slots__ = ("_backing", "_index", "backed")
    mappable: ClassVar[bool] = True
    direct: ClassVar[bool] = True

    def __init__(self, size: int, backed: int | None = None) -> None:
        """``size`` and how much of it is ``backed`` (all of it unless given) are in bytes.

        Raises ValueError when they are not whole pages.
        """
        self.backed = size if backed is None else backed
        if not 0 < self.backed <= size or (size | self.backed) % mmap.PAGESIZE:
            raise ValueError(
                f"a memory region of {size} bytes, {self.backed} of them memory, is not whole pages"
            )
        super().__init__(size)
        self._backing: Backing | None = None
        self._index = 0

    @property
    def areas(self) -> tuple[tuple[int, int], ...] | None:
        return None if self.backed == self.size else ((0, self.backed),)

    def bind(self, backing: Backing, index: int) -> None:
        """The memory is region ``index`` of ``backing``."""
        self._backing, self._index = backing, index

    def read(self, offset: int, size: int) -> bytes:
        if offset + size > self.backed:
            behind = self.read(offset, self.backed - offset) if offset < self.backed else b""
            return behind.ljust(size, b"\xff")
        places = self._bound().places(self._index, offset, size)
        parts = [os.pread(place.fd, count, place.offset) for place, count in places]
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if len(data) < size:
            raise OSError(errno.EIO, f"region {self._index} has become shorter than {offset + size:#x} bytes")
        return data

    def write(self, offset: int, data: bytes) -> None:
        rest = memoryview(data)[: max(self.backed - offset, 0)]
        places = self._bound().places(self._index, offset, len(rest))
        try:
            for place, count in places:
                _write_all(place, rest[:count])
                rest = rest[count:]
        except OSError as error:
            raise OSError(errno.EIO, f"region {self._index}: {os.strerror(error.errno or 0)}") from error

    def _bound(self) -> Backing:
        if self._backing is None:
            raise RuntimeError("memory region used before its device bound it")
        return self._backing


def _write_all(place: Place, data: memoryview) -> None:
    """Not by a mapping: an access of one would be a SIGBUS when the host has no page left, and a load would
    take a page."""
    while data:
        taken = os.pwrite(place.fd, data, place.offset)
        data, place = data[taken:], place.after(taken)


class Storage(Region):
    """Bytes that keep what is written and that a client cannot map: I/O ports, and BARs smaller than a page.
    They survive a reset. Only the bytes up to the last one that was written take memory."""

    __slots__ = ("_written",)

    def __init__(self, size: int) -> None:
        """``size`` in bytes."""
        super().__init__(size)
        self._written = b""

    def read(self, offset: int, size: int) -> bytes:
        return self._written[offset : offset + size].ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        before, behind = self._written[:offset], self._written[offset + len(data) :]
        self._written = before.ljust(offset, b"\0") + bytes(data) + behind


class Rom(Region):
    """A read-only image, padded with 0xff to ``size`` bytes."""

    __slots__ = ("_image",)
    writable: ClassVar[bool] = False

    def __init__(self, image: bytes, size: int) -> None:
        """``size`` in bytes, at least the image's; raises ValueError otherwise."""
        if len(image) > size:
            raise ValueError(f"an image of {len(image)} bytes does not fit in {size}")
        super().__init__(size)
        self._image = image

    def read(self, offset: int, size: int) -> bytes:
        return self._image[offset : offset + size].ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        raise OSError(errno.EINVAL, "a ROM cannot be written")
