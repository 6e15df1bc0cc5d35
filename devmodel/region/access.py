# SPDX-License-Identifier: Apache-2.0
"""Loads and stores in mapped memory that may fail, for code that has device memory mapped.

A store to a hole of a memfd takes a page of the host, and so does a load. When the host has none left
(overcommit, the limit of a memory cgroup), the kernel raises SIGBUS, which Python cannot catch. A front end
has functions that return an error instead (ioctl_shim/native/guard.c), and gives them to each device that it
opens (:attr:`Backing.access`).

State: none. Any thread. Source: mmap(2), memmove(3), wmemset(3).
"""

import ctypes
from collections.abc import Callable
from typing import NamedTuple

_libc = ctypes.CDLL(None)
_wmemset = _libc.wmemset
_wmemset.restype = ctypes.c_void_p
_wmemset.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_size_t)


class Access(NamedTuple):
    """Functions of addresses in this process. They return 0, or an errno below 0 where there is no page: then
    a part may have moved. They release the GIL."""

    move: Callable[[int, int, int], int]
    """``move(to, source, size)``: copy ``size`` bytes. The ranges may overlap."""
    fill: Callable[[int, int, int], int]
    """``fill(to, pattern, count)``: store the 32-bit ``pattern`` ``count`` times."""


def _move(to: int, source: int, size: int) -> int:
    ctypes.memmove(to, source, size)
    return 0


def _fill(to: int, pattern: int, count: int) -> int:
    _wmemset(to, pattern, count)
    return 0


PLAIN = Access(_move, _fill)
"""Without a front end: a SIGBUS ends the process."""


def store_bytes(buffer: bytearray | memoryview, data: bytes, access: Access) -> None:
    """Store data at the beginning of a buffer that has room for them. Does nothing when the host has no page
    there."""
    view = memoryview(buffer).cast("B")[: len(data)]
    if isinstance(view.obj, bytearray):
        view[:] = data
    elif data:
        source = ctypes.create_string_buffer(data, len(data))
        access.move(ctypes.addressof(ctypes.c_char.from_buffer(view)), ctypes.addressof(source), len(data))


def first_bytes(buffer: bytes | bytearray | memoryview, most: int, access: Access) -> bytes:
    """A copy of the first bytes of a buffer, up to ``most``. Empty when the host has no page for them."""
    view = memoryview(buffer).cast("B")[:most]
    if isinstance(view.obj, bytes | bytearray):
        return bytes(view)
    if not view or view.readonly:
        return b""
    found = ctypes.create_string_buffer(len(view))
    source = ctypes.addressof(ctypes.c_char.from_buffer(view))
    return b"" if access.move(ctypes.addressof(found), source, len(view)) else found.raw
