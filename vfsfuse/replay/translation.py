# SPDX-License-Identifier: Apache-2.0
"""Where the client of a replay has mapped what the recorded client had mapped elsewhere.

The client's maps are paired with the recorded ones in their order, each with the next one of the same size.
A pair translates the recorded addresses in it.  Addresses outside stay as they are.

State: a Translation belongs to the devices of one replay.  Any thread, under its lock.
Source: <linux/vfio.h> (vfio_iommu_type1_dma_map), <linux/iommufd.h> (iommu_ioas_map).
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable
from typing import NamedTuple

from vfsfuse.recording.recording import IOCTL, Recording

_TYPE1 = struct.Struct("<IIQQQ")
_IOAS = struct.Struct("<IIIIQQQ")
MAPS = ("VFIO_IOMMU_MAP_DMA", "IOMMU_IOAS_MAP")
UNMAPS = ("VFIO_IOMMU_UNMAP_DMA", "IOMMU_IOAS_UNMAP")
_TYPE1_UNMAP = struct.Struct("<IIQQ")
_UNMAP_ALL = 2
_AHEAD = 64
"""Recorded maps that are looked through for one of the same size."""
_MOST_COMPARED = 1 << 16
"""Bytes of a DMA in which addresses are looked for."""
_SHIFTS = (0, 12)
"""How far registers shift addresses that they take: not at all, or to page numbers."""


class Range(NamedTuple):
    """Addresses: the first, and how many."""

    iova: int
    size: int


class Pair(NamedTuple):
    """A recorded range, and where it is now."""

    recorded: int
    now: int
    size: int


def mapped(name: str, struct_after: bytes) -> Range | None:
    """The range that one of :data:`MAPS` has mapped, by its struct after the call."""
    if name == MAPS[0] and len(struct_after) >= _TYPE1.size:
        _, _, _, iova, size = _TYPE1.unpack_from(struct_after)
        return Range(iova, size)
    if name == MAPS[1] and len(struct_after) >= _IOAS.size:
        *_, size, iova = _IOAS.unpack_from(struct_after)
        return Range(iova, size)
    return None


def unmapped(name: str, struct_before: bytes) -> Range | None:
    """The range that one of :data:`UNMAPS` has unmapped, by its struct before the call."""
    if name in UNMAPS and len(struct_before) >= _TYPE1_UNMAP.size:
        _, flags, iova, size = _TYPE1_UNMAP.unpack_from(struct_before)
        is_all = name == UNMAPS[0] and flags & _UNMAP_ALL
        return Range(0, 1 << 64) if is_all else Range(iova, size)
    return None


def recorded_maps(recording: Recording) -> list[Range]:
    """The ranges that the recorded client has mapped, in order."""
    found = (
        mapped(event.name, event.after or event.before)
        for event in recording.events
        if event.kind == IOCTL and event.name in MAPS and not event.errno
    )
    return [each for each in found if each is not None]


class Translation:
    """The pairs of one replay."""

    __slots__ = ("_lock", "_next", "_pairs", "_recorded")

    def __init__(self, recorded: Iterable[Range] = ()) -> None:
        self._recorded = tuple(recorded)
        self._lock = threading.Lock()
        self._next = 0
        self._pairs: tuple[Pair, ...] = ()

    def map(self, now: Range) -> None:
        """The client has mapped this.  A client that maps more than was recorded begins again."""
        with self._lock:
            ahead = self._find(now.size, self._next)
            if ahead is None:
                ahead = self._find(now.size, 0)
            if ahead is not None:
                self._next = ahead + 1
                pair = Pair(self._recorded[ahead].iova, now.iova, now.size)
                kept = (
                    each
                    for each in self._pairs
                    if not _overlap(each.recorded, each.size, pair.recorded, pair.size)
                )
                self._pairs = (*kept, pair)

    def unmap(self, now: Range) -> None:
        """The client has unmapped this."""
        with self._lock:
            self._pairs = tuple(
                each for each in self._pairs if not now.iova <= each.now < now.iova + now.size
            )

    def iova(self, recorded: int) -> int:
        """Where a recorded address is now."""
        for pair in self._pairs:
            if pair.recorded <= recorded < pair.recorded + pair.size:
                return recorded - pair.recorded + pair.now
        return recorded

    def alike(self, recorded: bytes, now: bytes) -> bool:
        """Whether these bytes are the same, or both the same address in memory that is mapped elsewhere now:
        all 64 bits of it, or the lower or the upper half, or those of its page number."""
        if recorded == now:
            return True
        if len(recorded) != len(now) or len(now) not in (4, 8) or not self._pairs:
            return False
        before, after = int.from_bytes(recorded, "little"), int.from_bytes(now, "little")
        return any(_is_moved(pair, before, after, len(now)) for pair in self._pairs)

    def alike_data(self, recorded: bytes, now: bytes) -> bool:
        """As :meth:`alike`, for data of any size that have addresses at multiples of 8 bytes, or of 4."""
        if recorded == now:
            return True
        if len(recorded) != len(now) or not self._pairs:
            return False
        if recorded[_MOST_COMPARED:] != now[_MOST_COMPARED:]:
            return False
        words = (
            (recorded[at : at + 8], now[at : at + 8]) for at in range(0, min(len(now), _MOST_COMPARED), 8)
        )
        return all(self._is_word_alike(*word) for word in words)

    def _is_word_alike(self, recorded: bytes, now: bytes) -> bool:
        halves = ((recorded[:4], now[:4]), (recorded[4:], now[4:]))
        return self.alike(recorded, now) or all(self.alike(*half) for half in halves)

    def _find(self, size: int, start: int) -> int | None:
        for number in range(start, min(start + _AHEAD, len(self._recorded))):
            if self._recorded[number].size == size:
                return number
        return None


def _overlap(one: int, size: int, other: int, other_size: int) -> bool:
    return one < other + other_size and other < one + size


def _is_moved(pair: Pair, before: int, after: int, width: int) -> bool:
    for shift in _SHIFTS:
        first, last, moved = pair.recorded >> shift, pair.recorded + pair.size >> shift, pair.now >> shift
        if width == 8:
            if first <= before <= last and before - first == after - moved:
                return True
            continue
        step = (before - first) & 0xFFFFFFFF  # of the lower half
        if step <= last - first and (moved + step) & 0xFFFFFFFF == after:
            return True
        if before == first >> 32 and after == moved >> 32 and (first | moved) >> 32:
            return True
    return False
