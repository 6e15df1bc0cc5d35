# SPDX-License-Identifier: Apache-2.0
"""Who is next: start-time fair queueing, by measured engine time and weight.

A share's virtual time grows by the time it used divided by its weight; the least is next. So over any time in
which two shares both have work, what they used differs from their weights by a slice of each at most. A share
that had nothing to do starts where the others are: it saves nothing up.

State: none here that is shared; the scheduler has a queue under its lock. Times are nanoseconds.
Source: P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queuing" (SIGCOMM 1996).
"""

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")
_SCALE = 1 << 20
"""Virtual time is in whole numbers, this many for a nanosecond at weight 1: no rounding adds up."""


class EngineShare:
    """One vGPU's part of an engine: its weight, and what it has used."""

    __slots__ = ("used", "virtual", "weight")

    def __init__(self, weight: int) -> None:
        """``weight`` is 1 or more, relative to those of others."""
        self.weight = weight
        self.used = 0
        """Engine time so far."""
        self.virtual = 0

    def charge(self, spent: int) -> None:
        """It has used the engine for so long."""
        self.used += spent
        self.virtual += spent * _SCALE // self.weight


class FairQueue(Generic[T]):
    """Those who wait, each with its share; ``T`` stands for one's turn."""

    __slots__ = ("_heap", "_now", "_serial", "_waiting")

    def __init__(self) -> None:
        self._now = 0
        self._serial = 0
        self._heap: list[tuple[int, int, T]] = []
        self._waiting: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, share: EngineShare, turn: T) -> None:
        """``turn`` waits from now on; it does not yet."""
        share.virtual = max(share.virtual, self._now)
        self._serial += 1
        self._waiting[turn] = self._serial
        heapq.heappush(self._heap, (share.virtual, self._serial, turn))

    def remove(self, turn: T) -> None:
        """``turn`` waits no more, if it did."""
        self._waiting.pop(turn, None)  # its place in the heap is passed over

    def pop(self) -> T | None:
        """The next one, None when nobody waits."""
        while self._heap:
            virtual, serial, turn = heapq.heappop(self._heap)
            if self._waiting.get(turn) == serial:
                del self._waiting[turn]
                self._now = virtual
                return turn
        return None
