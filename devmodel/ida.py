# SPDX-License-Identifier: Apache-2.0
"""Ida for groups and minors: always the lowest free one, as the kernel's ida gives them.

State: owned by the lab, touched under its lock.
"""

from heapq import heappop, heappush


class Ida:
    """Hands out 0, 1, 2, ..., and again what was given back, lowest first."""

    __slots__ = ("_free", "_next")

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = 0

    def take(self) -> int:
        """The lowest number that is free; it no longer is."""
        if self._free:
            return heappop(self._free)
        self._next += 1
        return self._next - 1

    def give(self, number: int) -> None:
        """Return a number that was taken."""
        heappush(self._free, number)
