# SPDX-License-Identifier: Apache-2.0
"""Video memory as a worker reaches it: a mapping of its own, which can be taken away from it.

A copy from memory that its client has stopped may come back at any time, long after the device was reset or
given to another client. So whoever stops a worker puts other pages at the addresses that the worker has: what
comes late lands there. Called from one worker; :meth:`VideoMemory.revoke` from any thread. Bytes move by
functions of the C library, through ctypes, which releases the GIL around them.
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
    """Memory of ours at a known address. Offsets and sizes are the caller's to check."""

    __slots__ = ("_address", "_first", "_memory")

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        self._memory = memory
        self._first = ctypes.c_char.from_buffer(memory)  # keeps it where it is
        self._address = ctypes.addressof(self._first)

    def view(self, offset: int, size: int) -> memoryview:
        """``size`` bytes at ``offset``, in place."""
        return memoryview(self._memory)[offset : offset + size]

    def move(self, offset: int, source: "Bytes", source_offset: int, size: int) -> None:
        """Copy, from itself too, whatever overlaps."""
        ctypes.memmove(self._address + offset, source._address + source_offset, size)

    def fill(self, offset: int, size: int, pattern: int) -> None:
        """Store the 32-bit ``pattern`` again and again; both numbers are multiples of 4."""
        _wmemset(self._address + offset, pattern, size // 4)


class VideoMemory(Bytes):
    """Region 0 of a device."""

    __slots__ = ("_size",)

    def __init__(self, backing: Backing, size: int) -> None:
        """``OSError`` when it cannot be mapped, ENODEV when the device is gone."""
        self._size = size
        super().__init__(backing.map(0, size))

    def revoke(self) -> None:
        """From now on it is memory of nobody's, also for a copy that is under way.

        ``OSError(ENOMEM)``, and then it is still the device's.
        """
        prot, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        if _mmap(self._address, self._size, prot, flags | _MAP_FIXED, -1, 0) == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), f"{self._size} bytes of memory")
