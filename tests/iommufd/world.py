# SPDX-License-Identifier: Apache-2.0
"""What tests/iommufd/test_machine.py expects: the memory of the process, and what its IOASes, HWPTs and pins
have of it."""

from __future__ import annotations

import mmap
import os
from collections import Counter
from dataclasses import dataclass, field

from tests.vfio.client import PAGE, Memory

FRAMES, VAS = 24, 12
"""How many pages there are of the memfd, and at addresses of the process."""


@dataclass(eq=False)
class Shared:
    """Memory that copies share: pages from ``base``, at addresses of the process or in the file."""

    of_file: bool
    base: int
    writable: bool
    holds: Counter[int] = field(default_factory=Counter)
    pinned: dict[int, int] = field(default_factory=dict)
    """The frame of each page that is held."""


@dataclass(eq=False)
class Area:
    """A mapping of ``count`` pages from iova page ``first``, which are pages ``index`` and so on of
    ``memory``."""

    first: int
    count: int
    memory: Shared
    index: int
    prot: int

    @property
    def end(self) -> int:
        return self.first + self.count


@dataclass(eq=False)
class Domain:
    """An HWPT of an IOAS. ``dirty`` has the pages that its devices wrote, if it tracks them now."""

    id: int
    ioas: Space
    automatic: bool
    can_track: bool = False
    dirty: set[int] | None = None


@dataclass(eq=False)
class Space:
    """An IOAS: its areas, and how many HWPTs it has."""

    id: int
    areas: list[Area] = field(default_factory=list)
    domains: list[Domain] = field(default_factory=list)

    def at(self, page: int) -> Area | None:
        return next((area for area in self.areas if area.first <= page < area.end), None)

    def touched(self, first: int, count: int) -> list[Area]:
        return [area for area in self.areas if area.first < first + count and first < area.end]


@dataclass(eq=False)
class Held:
    """A pin of the holder."""

    space: Space
    first: int
    pages: list[tuple[Shared, int]]


class World:
    """The process' memory, as it is and as it should be."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("frames")
        os.ftruncate(self.fd, FRAMES * PAGE)
        self.content = bytearray(os.urandom(FRAMES * PAGE))
        os.pwrite(self.fd, self.content, 0)
        room = Memory(2 * VAS * PAGE)
        self.address = -(-room.address // (VAS * PAGE)) * (VAS * PAGE)
        self.frames: list[int | None] = list(range(VAS))
        for page in range(VAS):
            self.remap(page, page)
        self.room = room

    def remap(self, page: int, frame: int | None) -> None:
        """Have another frame at the address, or nothing."""
        self.frames[page] = frame
        prot = mmap.PROT_READ | mmap.PROT_WRITE if frame is not None else 0
        at, offset = self.address + page * PAGE, (frame or 0) * PAGE
        Memory(PAGE, self.fd, prot=prot, address=at, offset=offset)

    def frame(self, memory: Shared, index: int) -> int | None:
        """What a page is now."""
        if memory.holds[index]:
            return memory.pinned[index]
        return memory.base + index if memory.of_file else self.frames[memory.base + index]

    def close(self) -> None:
        self.room.close()
        os.close(self.fd)
