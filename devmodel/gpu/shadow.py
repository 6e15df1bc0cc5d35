# SPDX-License-Identifier: Apache-2.0
"""The shadow GTT: a cache that does both translations in one step, by runs of pages.

A run leads from a graphics address straight to a place in a mapping of the container. It stands for
contiguous entries of the GTT whose iovas lie in one mapping.

State: under ``Gtt.lock``. The device lane takes this lock, and a client can keep ``IoAddressSpace.lock``
busy, so nobody holds ``Gtt.lock`` while waiting for ``IoAddressSpace.lock``. The cache is never wrong:

- A write of the GTT takes ``Gtt.lock`` and drops the runs that it touches before it returns. A run that is
  being found meanwhile is not entered (``_version``).
- An unmap marks the mapping under ``IoAddressSpace.lock``. :meth:`DmaSpace.dma_pieces` checks the mark under
  the same lock, and enters its DMA among those that an unmap waits for. So a run that outlives its mapping is
  detected, and not used.

Source: docs/vgpu.md, "Translation".
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from devmodel.gpu.faults import EngineFault, ErrorCode
from devmodel.gpu.gtt import ENTRIES, PAGE_SHIFT, PAGE_SIZE, SYSTEM_BASE, SYSTEM_SIZE, Gtt
from devmodel.iommu.api import DmaFault, Prot
from devmodel.iommu.dmaspace import DmaSpace, Piece, StalePiece
from devmodel.iommu.mappings import Mapping

_READ, _WRITE = int(Prot.READ), int(Prot.WRITE)  # an IntFlag is slow to ask
ATTEMPTS = 16
"""How often a DMA translates again, if each time the mapping that it found is unmapped before its use."""


class Run(NamedTuple):
    """The pages of the GTT from ``first`` to before ``end``: a mapping's bytes from ``offset`` on."""

    first: int
    end: int
    mapping: Mapping
    offset: int
    writable: bool

    def cut(self, first: int, end: int) -> "Run":
        """The part of the run from page ``first`` to before ``end``."""
        return self._replace(first=first, end=end, offset=self.offset + (first - self.first) * PAGE_SIZE)

    def continues(self, before: "Run") -> bool:
        """Whether this run and the one ``before`` it make one run."""
        return before.end == self.first and before.cut(before.end, self.end) == self


class Shadow:
    """The runs of one GTT; ``hits``, ``misses`` and ``invalidations`` count runs."""

    __slots__ = ("_gtt", "_runs", "_space", "_starts", "_version", "hits", "invalidations", "misses")

    def __init__(self, gtt: Gtt) -> None:
        self._gtt = gtt
        self._space: DmaSpace | None = None
        self._starts: list[int] = []
        self._runs: list[Run] = []
        self._version = 0
        self.hits = self.misses = self.invalidations = 0
        gtt.watch(self._invalidate)

    def __len__(self) -> int:
        return len(self._runs)

    def stats(self) -> str:
        """The text of the attribute ``gtt_stats``. Any thread."""
        self.sweep()
        counts = f"hits {self.hits} misses {self.misses} invalidations {self.invalidations}"
        return f"{counts} ranges {len(self._runs)}"

    def forget(self) -> None:
        """Drop all runs, and with them the mappings of a client that has gone. Any thread that does not hold
        ``Gtt.lock``."""
        with self._gtt.lock:
            self._attach(None)

    def sweep(self) -> None:
        """Drop the runs whose mapping is unmapped. Any thread, as :meth:`forget`."""
        with self._gtt.lock:
            dead = [run for run in self._runs if not run.mapping.live]
            for run in dead:
                self._remove(bisect_left(self._starts, run.first))
            self.invalidations += len(dead)

    def transfer(
        self,
        space: DmaSpace,
        ranges: Sequence[tuple[int, int]],
        buffer: bytearray | memoryview,
        write: bool,
    ) -> None:
        """DMA between ``buffer`` and ranges (graphics address, size) of system memory, one after the other.

        Workers only. Raises :class:`EngineFault`.
        """
        plain = space.plain
        for _ in range(ATTEMPTS):
            pieces: list[Piece] = []
            for address, size in ranges:
                self._find(plain, address, size, write, pieces)
            try:
                space.dma_pieces(pieces, buffer, write)
                return
            except StalePiece:
                self.sweep()
            except DmaFault as fault:
                raise EngineFault(ErrorCode.DMA, ranges[0][0]) from fault
        raise EngineFault(ErrorCode.DMA, ranges[0][0])

    def _find(self, space: DmaSpace, address: int, size: int, write: bool, pieces: list[Piece]) -> None:
        position, end = address - SYSTEM_BASE, address - SYSTEM_BASE + size
        if not 0 <= position <= end <= SYSTEM_SIZE:
            raise EngineFault(ErrorCode.BAD_ADDRESS, address)
        while position < end:
            position = self._recall(space, position, end, write, pieces)
            if position < end:
                run = self._walk(space, position, write)
                position = _take(run, position, end, write, pieces)

    def _recall(self, space: DmaSpace, position: int, end: int, write: bool, pieces: list[Piece]) -> int:
        """Use the known runs from ``position`` on, as long as each follows the last without a gap."""
        with self._gtt.lock:
            self._attach(space)
            place = max(bisect_right(self._starts, position >> PAGE_SHIFT) - 1, 0)
            while position < end and place < len(self._runs):
                run = self._runs[place]
                if not run.first <= position >> PAGE_SHIFT < run.end:
                    break
                position = _take(run, position, end, write, pieces)
                self.hits += 1
                place += 1
            return position

    def _walk(self, space: DmaSpace, position: int, write: bool) -> Run:
        """Look up GTT and mappings, and enter the run unless something changed meanwhile."""
        self.misses += 1
        index = position >> PAGE_SHIFT
        with self._gtt.lock:
            self._attach(space)
            version, found = self._version, self._gtt.look(index, index + 1)
        if found is None:
            raise EngineFault(ErrorCode.NOT_PRESENT, SYSTEM_BASE + position)
        try:
            mapping = space.mapping_at(found.iova, write)
        except DmaFault as fault:
            raise EngineFault(ErrorCode.DMA, SYSTEM_BASE + position) from fault
        run = Run(index, index + 1, mapping, found.iova - mapping.iova, found.writable)
        with self._gtt.lock:
            return self._insert(run) if version == self._version else run

    def _insert(self, run: Run) -> Run:
        """Enter a run, extended by the entries that continue it, and merged with neighbours that fit."""
        self._version += 1
        place = bisect_right(self._starts, run.first)
        if place and self._runs[place - 1].end > run.first:
            return run  # a stopped worker that still runs has just entered it
        limit = self._starts[place] if place < len(self._starts) else ENTRIES
        limit = min(limit, run.first + ((run.mapping.size - run.offset) >> PAGE_SHIFT))
        whole = self._gtt.look(run.first, limit)
        if whole is not None:
            run = run._replace(end=run.first + whole.pages)
        if place < len(self._runs) and self._runs[place].continues(run):
            run = run._replace(end=self._remove(place).end)
        if place and run.continues(self._runs[place - 1]):
            place -= 1
            run = self._remove(place)._replace(end=run.end)
        self._starts.insert(place, run.first)
        self._runs.insert(place, run)
        return run

    def _remove(self, place: int) -> Run:
        del self._starts[place]
        return self._runs.pop(place)

    def _invalidate(self, first: int, end: int) -> None:
        """Entries changed: drop their part of each run, and keep the parts before and behind them. Under
        ``Gtt.lock``."""
        self._version += 1
        place = max(bisect_right(self._starts, first) - 1, 0)
        while place < len(self._runs) and self._runs[place].first < end:
            run = self._runs[place]
            if run.end <= first:
                place += 1
                continue
            self._remove(place)
            self.invalidations += 1
            for one, behind in ((run.first, first), (end, run.end)):
                if one < behind:
                    self._starts.insert(place, one)
                    self._runs.insert(place, run.cut(one, behind))
                    place += 1

    def _attach(self, space: DmaSpace | None) -> None:
        if space is not self._space:
            self.invalidations += len(self._runs)
            self._starts.clear()
            self._runs.clear()
            self._space = space
            self._version += 1


def _take(run: Run, position: int, end: int, write: bool, pieces: list[Piece]) -> int:
    """Add the part of ``run`` from ``position`` to ``end``. Returns the position behind that part."""
    if write and not run.writable:
        raise EngineFault(ErrorCode.READ_ONLY, SYSTEM_BASE + position)
    if not run.mapping.allows & (_WRITE if write else _READ):
        raise EngineFault(ErrorCode.DMA, SYSTEM_BASE + position)
    behind = min(end, run.end * PAGE_SIZE)
    pieces.append(Piece(run.mapping, run.offset + position - run.first * PAGE_SIZE, behind - position))
    return behind
