# SPDX-License-Identifier: Apache-2.0
"""Ida: numbers for groups and minors, always the lowest free one, as the kernel's ida gives them.

State: the lab's, under ``Lab.lock``.
"""

from heapq import heappop, heappush


class Ida:
    """Gives 0, 1, 2 and so on. A number that comes back is given again, the lowest first."""

    __slots__ = ("_free", "_next")

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = 0

    def take(self) -> int:
        """The lowest free number, which is taken from now on."""
        if self._free:
            return heappop(self._free)
        self._next += 1
        return self._next - 1

    def give(self, number: int) -> None:
        """Return a number that was taken."""
        heappush(self._free, number)
