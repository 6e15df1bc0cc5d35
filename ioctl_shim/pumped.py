# SPDX-License-Identifier: Apache-2.0
"""What of a device the pump answers by itself (native/regions.c), and what it calls of Python.

Any thread makes, hides and revokes; the pump thread looks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ioctl_shim._native import ffi, lib

MOST_REGIONS: int = lib.LANE_REGIONS
"""Indexes of regions that the pump can answer."""


NativeRegister = tuple[int, int, int, int, Callable[[Any], int] | None, Callable[[Any, int], None] | None]
"""A register of 1, 2, 4 or 8 bytes, as devmodel.region.region.WholeAccess has it: offset, width, the bits
that a write changes, those that a written 1 clears, and the hooks."""


class PumpRegions:
    """What the pump answers of one device without Python: memory regions, and registers as they are stored.

    Any thread may make or revoke it.  Open files keep the mapping; `revoke` makes every later access go to
    Python, which knows that the device is gone.
    """

    __slots__ = ("_kept", "native")

    def __init__(self, lock: threading.Lock) -> None:
        """`lock` is the device's, under which registers are written and hooks run."""
        self.native: Any = ffi.gc(lib.lane_memory_new(), lib.lane_memory_put)
        self._kept: list[object] = [lock.acquire, lock.release]
        self.native.acquire, self.native.release = map(address, self._kept)

    def map(self, index: int, fd: int, offset: int, size: int) -> None:
        """Region `index` is memory: `size` bytes at `offset` of `fd`.  Raises OSError."""
        error = lib.lane_memory_map(self.native, index, fd, offset, size)
        if error:
            raise OSError(-error, f"region {index}: {os.strerror(-error)}")

    def show(
        self, index: int, stored: bytearray, plain: bytes, registers: Sequence[NativeRegister], owner: object
    ) -> None:
        """Region `index` is registers, in order of their offsets and on the bytes `stored`, which from now on
        keep their size; `plain` is not 0 for those that read so.  Hooks get the `owner`."""
        table = ffi.new("struct lane_register[]", [_packed_register(register) for register in registers])
        views = ffi.from_buffer(stored), ffi.from_buffer(plain)
        self._kept += (table, *views, registers, owner)
        fields = (ffi.NULL, *views, len(stored), table, len(registers), address(owner))
        lib.lane_memory_show(self.native, index, ffi.new("struct lane_region *", fields))

    def hide(self, indexes: Iterable[int]) -> None:
        """Let accesses to these regions, and no others, go to Python for now."""
        lib.lane_memory_hide(self.native, sum(1 << index for index in indexes))

    def revoke(self) -> None:
        lib.lane_memory_revoke(self.native)


def _packed_register(register: NativeRegister) -> tuple[Any, ...]:
    *numbers, on_read, on_write = register
    return (*numbers, *(address(hook) if hook else ffi.NULL for hook in (on_read, on_write)))


def address(what: object) -> Any:
    """Where CPython has an object, for native/call.c; who asks keeps it.  (bench/profiled.py puts a clock
    here.)"""
    return ffi.cast("void *", id(what))
