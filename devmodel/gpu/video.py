# SPDX-License-Identifier: Apache-2.0
"""Video memory for a worker: a mapping of its own, which can be taken away from it.

A client can stop its memory, and a copy from there may then return at any time, even after the device was
reset or given to another client. So the code that stops a worker puts other pages at the worker's addresses,
and a late copy lands in those. Called from one worker; :meth:`VideoMemory.revoke` from any thread.
Source: mmap(2) (MAP_FIXED).
"""

import ctypes
import mmap

from devmodel.region.access import Access
from devmodel.region.backing import Backing

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value


class NoPage(Exception):
    """The host has no page left for video memory. A part may have been stored."""


class Bytes:
    """Memory of this process at a known address. The caller checks offsets and sizes.

    ``move`` and ``fill`` raise :class:`NoPage`.
    """

    __slots__ = ("_access", "_address", "_first", "_memory")

    def __init__(self, memory: mmap.mmap | bytearray, access: Access) -> None:
        self._memory, self._access = memory, access
        self._first = ctypes.c_char.from_buffer(memory)  # keeps the memory at its address
        self._address = ctypes.addressof(self._first)

    def view(self, offset: int, size: int) -> memoryview:
        """``size`` bytes at ``offset``, in place. The kernel and guarded functions may touch those of video
        memory; other code may not."""
        return memoryview(self._memory)[offset : offset + size]

    def load(self, offset: int, through: "Bytes", size: int) -> bytes:
        """``size`` bytes at ``offset``. The first bytes of ``through`` are overwritten."""
        _check(self._access.move(through._address, self._address + offset, size))
        return bytes(through._memory[:size])

    def store(self, offset: int, through: "Bytes", data: bytes) -> None:
        """Store ``data`` at ``offset``. The first bytes of ``through`` are overwritten."""
        through._memory[: len(data)] = data
        _check(self._access.move(self._address + offset, through._address, len(data)))

    def move(self, offset: int, source: "Bytes", source_offset: int, size: int) -> None:
        """Copy from ``source``, which may be this memory. The ranges may overlap."""
        _check(self._access.move(self._address + offset, source._address + source_offset, size))

    def fill(self, offset: int, size: int, pattern: int) -> None:
        """Fill the range with the 32-bit ``pattern``. ``offset`` and ``size`` are multiples of 4."""
        _check(self._access.fill(self._address + offset, pattern, size // 4))


def _check(result: int) -> None:
    if result:
        raise NoPage


class VideoMemory(Bytes):
    """Region 0 of a device."""

    __slots__ = ("_size",)

    def __init__(self, backing: Backing, size: int) -> None:
        """Raises ``OSError`` when the memory cannot be mapped, ENODEV when the device is gone."""
        self._size = size
        super().__init__(backing.map(0, size), backing.access)

    def revoke(self) -> None:
        """Replace the device's memory by pages that nobody uses, also for a copy that is under way.

        Raises ``OSError(ENOMEM)``; the mapping then still shows the device's memory.
        """
        prot, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        if _mmap(self._address, self._size, prot, flags | _MAP_FIXED, -1, 0) == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), f"{self._size} bytes of memory")
