# SPDX-License-Identifier: Apache-2.0
"""One stage of a dialogue while it is played: which of its reads the client has made, which deeds are due.

State: a StagePlay belongs to a Dialogue, and follows its rules.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from vfsfuse.recording.recording import DMA, READ, Event
from vfsfuse.replay.script import Place, Stage
from vfsfuse.replay.state import State

LONGEST_WAIT = 60.0
"""Seconds that a deed is waited for at most, whatever the recording says."""
_AT_ONCE = 0.001
"""Seconds: deeds that are no further apart come at once."""
MOST_OVERWRITTEN = 64
"""Places of a stage that are known to hold something else."""
EMPTY = Stage(0, None, 0.0)
"""A stage of nothing."""


class Answer(NamedTuple):
    """Of a read: the data, None if the stage has none for it now.  ``waits`` is whether it has some, behind a
    DMA that the device has not done yet."""

    data: bytes | None
    waits: bool = False


class Due(NamedTuple):
    """A deed that is due, no sooner than ``gap`` seconds after the one before.  ``item`` is its place in
    the stage of ``play``, which is None for a stage that was passed over."""

    deed: Event
    gap: float
    play: StagePlay | None
    item: int


class StagePlay:
    """``progressed`` is when it began, or a read was made that was not made before."""

    __slots__ = (
        "_cursors",
        "_floor",
        "_front",
        "_furthest",
        "_made",
        "_next",
        "_overwritten",
        "_undone",
        "progressed",
        "stage",
    )

    def __init__(self, stage: Stage, now: float) -> None:
        self.stage, self.progressed = stage, now
        self._cursors: dict[Place, int] = {}
        self._made = bytearray(len(stage.items))
        """By item: 1 for a read that was made or is past, and for a deed that was due."""
        self._front = 0
        """All items before this one are so."""
        self._floor = 0
        """Reads before this item are past: the device has done something since."""
        self._furthest = -1
        """The last item that the client has read."""
        self._next = 0
        """The number of the deed that is due next."""
        self._overwritten: list[Place] = []
        self._undone = deque(index for index in stage.deeds if stage.items[index].kind == DMA)

    def read(self, place: Place, state: State, now: float) -> Answer:
        """The client reads.  `state` learns what it has not read."""
        indexes = self.stage.reads.get(place)
        if indexes is None or any(each.overlaps(place) for each in self._overwritten):
            return Answer(None)
        cursor = self._cursors.get(place, 0)
        current = max(cursor, bisect_left(indexes, self._floor, cursor))
        if current > cursor:
            state.know(place, self.stage.items[indexes[current - 1]].data)
            self._cursors[place] = current
        if current == len(indexes):
            return Answer(None)
        index = indexes[current]
        if self._undone and index > self._undone[0]:
            return Answer(None, waits=True)
        self._cursors[place] = current + 1
        self._made[index] = 1
        self._furthest = max(self._furthest, index)
        self.progressed = now
        data = self.stage.items[index].data
        state.know(place, data)
        return Answer(data)

    def overwrite(self, place: Place) -> None:
        """The client has written what the recording has not: what was read here holds no more."""
        if len(self._overwritten) < MOST_OVERWRITTEN and place not in self._overwritten:
            self._overwritten.append(place)

    def due(self) -> Iterator[Due]:
        """The deeds that have become due: all reads before them are made, or one behind them."""
        while self._next < len(self.stage.deeds):
            index = self.stage.deeds[self._next]
            self._front = _first(self._made, self._front)
            if index > self._front and index > self._furthest:
                return
            yield self._make_due(index)

    def all_due(self) -> Iterator[Due]:
        """All deeds that were not due yet."""
        while self._next < len(self.stage.deeds):
            yield self._make_due(self.stage.deeds[self._next])

    def wait(self, now: float) -> float | None:
        """In how many seconds the next deed is due by time; None without one."""
        if self._next == len(self.stage.deeds):
            return None
        deed = self.stage.items[self.stage.deeds[self._next]]
        return self.progressed + min(max(deed.time - self.stage.begun, 0.0), LONGEST_WAIT) - now

    def expire(self) -> Due:
        """That time has come."""
        index = self.stage.deeds[self._next]
        self._pass(index)
        return self._make_due(index)

    def done(self, index: int, now: float) -> None:
        """A deed was done."""
        if self._undone and self._undone[0] == index:
            self._undone.popleft()
        self._pass(index + 1)
        self.progressed = now

    def abandon(self) -> None:
        """The device does nothing more of its own here."""
        self._undone.clear()
        self._next = len(self.stage.deeds)

    def leave(self, state: State) -> None:
        """The client goes on: what it has not read is what the device holds."""
        items, left = self.stage.items, list[tuple[int, Place]]()
        for place, indexes in self.stage.reads.items():
            if self._cursors.get(place, 0) < len(indexes):
                left.append((indexes[-1], place))
        for index, place in sorted(left):
            state.know(place, items[index].data)

    def next_item(self) -> Event | None:
        """The first item that has not come yet."""
        self._front = _first(self._made, self._front)
        return self.stage.items[self._front] if self._front < len(self.stage.items) else None

    def _pass(self, floor: int) -> None:
        if floor > self._floor:
            self._made[self._floor : floor] = b"\1" * (floor - self._floor)
            self._floor = floor

    def _make_due(self, index: int) -> Due:
        self._next += 1
        self._made[index] = 1
        items, gap = self.stage.items, 0.0
        if index and items[index - 1].kind != READ:
            gap = min(items[index].time - items[index - 1].time, LONGEST_WAIT)
        return Due(items[index], gap if gap > _AT_ONCE else 0.0, self, index)


def _first(made: bytearray, start: int) -> int:
    """The first item from `start` on that was not made."""
    found = made.find(0, start)
    return len(made) if found < 0 else found
