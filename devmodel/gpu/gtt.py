# SPDX-License-Identifier: Apache-2.0
"""The graphics translation table: a BAR whose entries say which iova is behind a page of graphics address.

State: under ``Gtt.lock``, which is taken after the device's lock (a client's access holds that). Workers take
it alone, and wait for no other lock while they hold it. Source: docs/vgpu.md, "Translation".
"""

import struct
import threading
from collections.abc import Callable
from typing import NamedTuple

from devmodel.region.region import Region

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
ENTRIES = 16384
ENTRY_SIZE = 8
GTT_SIZE = ENTRIES * ENTRY_SIZE
SYSTEM_BASE = 1 << 40
"""Graphics address of the page behind entry 0. It lies beyond the largest video memory."""
SYSTEM_SIZE = ENTRIES * PAGE_SIZE
VALID, WRITABLE = 1, 2

_ENTRY = struct.Struct("<Q")
_ADDRESS = 2**64 - PAGE_SIZE
_LEAST_STEP, _MOST_STEP = 16, 4096
"""How many entries are compared at once: the first number at the start of a range, the last in a long one."""


class Entries(NamedTuple):
    """``pages`` entries that are one contiguous range of iovas, either all writable or all read-only."""

    iova: int
    pages: int
    writable: bool


class Gtt(Region):
    """The table: plain memory of 64-bit little-endian entries. A reset clears it.

    A write of any size reports the entries that it touched to the watcher, before it returns.
    """

    __slots__ = ("_changed", "_table", "lock")

    def __init__(self) -> None:
        super().__init__(GTT_SIZE)
        self.lock = threading.Lock()
        self._table = bytearray()  # until the first write: a lab may have a thousand idle vGPUs
        self._changed: Callable[[int, int], None] | None = None

    def watch(self, changed: Callable[[int, int], None]) -> None:
        """Call ``changed(first, end)`` with entry numbers, under :attr:`lock`, for each write."""
        self._changed = changed

    def read(self, offset: int, size: int) -> bytes:
        with self.lock:
            return bytes(self._table[offset : offset + size]) if self._table else bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        with self.lock:
            if not self._table:
                self._table = bytearray(GTT_SIZE)
            self._table[offset : offset + len(data)] = data
            self._touched(offset // ENTRY_SIZE, -(-(offset + len(data)) // ENTRY_SIZE))

    def reset(self) -> None:
        with self.lock:
            self._table = bytearray()
            self._touched(0, ENTRIES)

    def look(self, index: int, end: int) -> Entries | None:
        """The longest range that starts with entry ``index`` and ends before ``end``, None for an invalid
        entry. Under :attr:`lock`."""
        if not self._table:
            return None
        entry = self._entry(index)
        if not entry & VALID:
            return None
        end = min(end, index + ((2**64 - (entry & _ADDRESS)) >> PAGE_SHIFT))
        return Entries(entry & _ADDRESS, self._count(entry, index, end), bool(entry & WRITABLE))

    def _count(self, entry: int, index: int, end: int) -> int:
        """How many entries continue the range of the entry before. They are compared as bytes, many at
        once."""
        count, step = 1, _LEAST_STEP
        while (room := end - index - count) > 0:
            step = min(step, room)
            if self._continues(entry, index, count, step):
                count, step = count + step, min(step * 4, _MOST_STEP)
            elif step == 1:
                break
            else:
                step = max(step // 4, 1)
        return count

    def _continues(self, entry: int, index: int, count: int, step: int) -> bool:
        first = entry + count * PAGE_SIZE
        expected = struct.pack(f"<{step}Q", *range(first, first + step * PAGE_SIZE, PAGE_SIZE))
        offset = (index + count) * ENTRY_SIZE
        return self._table[offset : offset + len(expected)] == expected

    def _entry(self, index: int) -> int:
        entry: int = _ENTRY.unpack_from(self._table, index * ENTRY_SIZE)[0]
        return entry

    def _touched(self, first: int, end: int) -> None:
        if self._changed is not None:
            self._changed(first, end)
