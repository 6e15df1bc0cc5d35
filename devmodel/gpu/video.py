# SPDX-License-Identifier: Apache-2.0
"""Video memory for a worker: a mapping of its own, which can be taken away from it.

A client can stop its memory, and a copy from there may then return at any time, even after the device was
reset or given to another client. So the code that stops a worker puts other pages at the worker's addresses,
and a late copy lands in those. Called from one worker; :meth:`VideoMemory.revoke` from any thread. Functions
of the C library move the bytes, through ctypes, which releases the GIL around them.
Source: mmap(2) (MAP_FIXED), wmemset(3).
"""

import ctypes
import mmap

from devmodel.region.backing import Backing

_libc = ctypes.CDLL(None, use_errno=True)
_wmemset = _libc.wmemset
_wmemset.restype = ctypes.c_void_p
_wmemset.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_size_t)
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


class Bytes:
    """Memory of this process at a known address. The caller checks offsets and sizes."""

    __slots__ = ("_address", "_first", "_memory")

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        self._memory = memory
        self._first = ctypes.c_char.from_buffer(memory)  # keeps the memory at its address
        self._address = ctypes.addressof(self._first)

    def view(self, offset: int, size: int) -> memoryview:
        """``size`` bytes at ``offset``, in place."""
        return memoryview(self._memory)[offset : offset + size]

    def move(self, offset: int, source: "Bytes", source_offset: int, size: int) -> None:
        """Copy from ``source``, which may be this memory. The ranges may overlap."""
        ctypes.memmove(self._address + offset, source._address + source_offset, size)

    def fill(self, offset: int, size: int, pattern: int) -> None:
        """Fill the range with the 32-bit ``pattern``. ``offset`` and ``size`` are multiples of 4."""
        _wmemset(self._address + offset, pattern, size // 4)


class VideoMemory(Bytes):
    """Region 0 of a device."""

    __slots__ = ("_size",)

    def __init__(self, backing: Backing, size: int) -> None:
        """Raises ``OSError`` when the memory cannot be mapped, ENODEV when the device is gone."""
        self._size = size
        super().__init__(backing.map(0, size))

    def revoke(self) -> None:
        """Replace the device's memory by pages that nobody uses, also for a copy that is under way.

        Raises ``OSError(ENOMEM)``; the mapping then still shows the device's memory.
        """
        prot, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        if _mmap(self._address, self._size, prot, flags | _MAP_FIXED, -1, 0) == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), f"{self._size} bytes of memory")
