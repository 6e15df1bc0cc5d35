# SPDX-License-Identifier: Apache-2.0
"""Start-time fair queueing: who gets the engine next, by the time that each used and its weight.

A share's virtual time grows by the engine time that it used, divided by its weight; the least virtual time is
next. So while two shares both have work, they get engine time in the ratio of their weights, but for a slice
of each at most. A share that had no work starts where the others are: it gets nothing for the time before.

State: none here that is shared; the scheduler has a queue under its lock. Times are nanoseconds.
Source: P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queuing" (SIGCOMM 1996).
"""

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")
_SCALE = 1 << 20
"""Units of virtual time for a nanosecond at weight 1: virtual time is an integer, and so many keep its
rounding small."""


class EngineShare:
    """One vGPU's part of an engine: its weight, and the engine time that it has used."""

    __slots__ = ("used", "virtual", "weight")

    def __init__(self, weight: int) -> None:
        """``weight`` is 1 or more, relative to those of others."""
        self.weight = weight
        self.used = 0
        """Engine time so far."""
        self.virtual = 0

    def charge(self, spent: int) -> None:
        """Add ``spent`` to the engine time that it has used."""
        self.used += spent
        self.virtual += spent * _SCALE // self.weight


class FairQueue(Generic[T]):
    """The turns that wait, each with its share. ``T`` is the type of a turn."""

    __slots__ = ("_heap", "_now", "_serial", "_waiting")

    def __init__(self) -> None:
        self._now = 0
        self._serial = 0
        self._heap: list[tuple[int, int, T]] = []
        self._waiting: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, share: EngineShare, turn: T) -> None:
        """Have ``turn``, which does not wait yet, wait from now on."""
        share.virtual = max(share.virtual, self._now)
        self._serial += 1
        self._waiting[turn] = self._serial
        heapq.heappush(self._heap, (share.virtual, self._serial, turn))

    def remove(self, turn: T) -> None:
        """Have ``turn`` wait no more."""
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
