# SPDX-License-Identifier: Apache-2.0
"""The regions of a device that the pump answers by itself (native/regions.c), and the hooks that it calls.

Any thread makes, hides and revokes them; the pump thread looks them up.
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
that a write changes, the bits that a written 1 clears, and the hooks."""


class PumpRegions:
    """The regions of one device for the pump.  It answers memory and stored registers without Python.

    Any thread may make or revoke it.  Open files keep the mapping.  After `revoke`, every access goes to
    Python, which answers that the device is gone.
    """

    __slots__ = ("_hidden", "_kept", "_withheld", "native")

    def __init__(self, lock: threading.Lock) -> None:
        """`lock` is the device's lock.  The pump holds it to write registers and to run hooks."""
        self.native: Any = ffi.gc(lib.lane_memory_new(), lib.lane_memory_put)
        self._kept: list[object] = [lock.acquire, lock.release]
        self._hidden: frozenset[int] = frozenset()
        self._withheld: frozenset[int] = frozenset()
        self.native.acquire, self.native.release = map(address, self._kept)

    def map(self, index: int, fd: int, offset: int, size: int) -> None:
        """Region `index` is memory: `size` bytes at `offset` of `fd`.  Raises OSError.  A region that was
        mapped before has to be withheld."""
        error = lib.lane_memory_map(self.native, index, fd, offset, size)
        if error:
            raise OSError(-error, f"region {index}: {os.strerror(-error)}")

    def show(
        self, index: int, stored: bytearray, plain: bytes, registers: Sequence[NativeRegister], owner: object
    ) -> None:
        """Region `index` is the `registers`, sorted by offset, whose values are in `stored`.

        `stored` must keep its size from now on.  A byte of `plain` is not 0 where a read gives the stored
        byte, without a hook.  Hooks are called with `owner`."""
        table = ffi.new("struct lane_register[]", [_packed_register(register) for register in registers])
        views = ffi.from_buffer(stored), ffi.from_buffer(plain)
        self._kept += (table, *views, registers, owner)
        fields = (ffi.NULL, *views, len(stored), table, len(registers), address(owner))
        lib.lane_memory_show(self.native, index, ffi.new("struct lane_region *", fields))

    def leave_out(self, index: int, first: int, end: int) -> None:
        """Let accesses to any byte from `first` to `end` of region `index` go to Python.  Before the region
        is in use."""
        region = self.native.region[index]
        region.hole_first, region.hole_end = first, end

    def hide(self, indexes: Iterable[int]) -> None:
        """Let accesses to these regions, and to those that are withheld, go to Python for now.  Under the
        device's lock."""
        self._hidden = frozenset(indexes)
        self._hide()

    def withhold(self, index: int) -> None:
        """Let accesses to region `index` go to Python until `give_back`.  When this returns, the pump is in
        none.  Under the device's lock; any thread except a pump."""
        self._withheld |= {index}
        self._hide()
        lib.lane_memory_settle(self.native)

    def give_back(self, index: int) -> None:
        """The opposite of `withhold`.  Under the device's lock."""
        self._withheld -= {index}
        self._hide()

    def _hide(self) -> None:
        lib.lane_memory_hide(self.native, sum(1 << index for index in self._hidden | self._withheld))

    def revoke(self) -> None:
        lib.lane_memory_revoke(self.native)


def _packed_register(register: NativeRegister) -> tuple[Any, ...]:
    *numbers, on_read, on_write = register
    return (*numbers, *(address(hook) if hook else ffi.NULL for hook in (on_read, on_write)))


def address(what: object) -> Any:
    """The address of an object in CPython, for native/call.c.  The caller must keep the object alive.
    (bench/profiled.py replaces this function to measure calls.)"""
    return ffi.cast("void *", id(what))
