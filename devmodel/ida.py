# SPDX-License-Identifier: Apache-2.0
"""Ida: numbers for groups and minors, always the lowest free one, as the kernel's ida gives them.

State: the lab's, under ``Lab.lock``.
"""

from collections.abc import Collection
from heapq import heappop, heappush


class Ida:
    """Gives 0, 1, 2 and so on. A number that comes back is given again, the lowest first."""

    __slots__ = ("_free", "_kept", "_next")

    def __init__(self) -> None:
        self._free: list[int] = []
        self._kept: Collection[int] = ()
        self._next = 0

    def keep(self, numbers: Collection[int]) -> None:
        """Never give ``numbers``, of which none is taken. They are their user's, who does not return them."""
        self._kept = numbers

    def take(self) -> int:
        """The lowest free number, which is taken from now on."""
        if self._free:
            return heappop(self._free)
        while self._next in self._kept:
            self._next += 1
        self._next += 1
        return self._next - 1

    def give(self, number: int) -> None:
        """Return a number that was taken."""
        heappush(self._free, number)
