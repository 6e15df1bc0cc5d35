# SPDX-License-Identifier: Apache-2.0
"""The names of a region's registers, for those who tell of accesses.

State: none. Many devices share one object, which knows no device.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol


class Named(Protocol):
    """A register: where it is, in bytes, and its name."""

    @property
    def offset(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def name(self) -> str: ...


class Place(NamedTuple):
    """A register that has a name and nothing else."""

    offset: int
    width: int
    name: str


class RegisterNames:
    """The registers of a region by their places, which do not overlap."""

    __slots__ = ("_registers", "_starts")

    def __init__(self, registers: Iterable[Named]) -> None:
        self._registers = tuple(sorted(registers, key=lambda register: register.offset))
        self._starts = [register.offset for register in self._registers]

    def __iter__(self) -> Iterator[Named]:
        """The registers, in the order of their offsets. Any thread."""
        return iter(self._registers)

    def describe(self, offset: int, size: int) -> str:
        """What an access of ``size`` bytes at ``offset`` touches. Any thread.

        "CTRL" for a whole register, "CTRL+2" for a part of one that begins at its third byte, "A..C" for
        several, and nothing where there is none.
        """
        touched = self.touched(offset, size)
        if not touched:
            return ""
        begin = _from(touched[0], offset, size)
        return begin if len(touched) == 1 else f"{begin}..{touched[-1].name}"

    def touched(self, offset: int, size: int) -> Sequence[Named]:
        """The registers of which an access of ``size`` bytes at ``offset`` has a part, in the order of their
        offsets. Any thread."""
        if size <= 0:
            return ()
        first = max(bisect_right(self._starts, offset) - 1, 0)
        if self._registers and self._registers[first].offset + self._registers[first].width <= offset:
            first += 1
        return self._registers[first : bisect_right(self._starts, offset + size - 1)]


def _from(register: Named, offset: int, size: int) -> str:
    """The name of a register, with where in it an access begins if that is not all of it."""
    skipped = max(offset - register.offset, 0)
    if skipped or offset + size < register.offset + register.width:
        return f"{register.name}+{skipped}"
    return register.name
