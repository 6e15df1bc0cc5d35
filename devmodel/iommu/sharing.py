# SPDX-License-Identifier: Apache-2.0
"""Memory that several mappings share: the copies of a mapping, and the memory of files.

A page of it is pinned once and charged once, however many mappings and devices hold it. As long as it is
pinned all of them reach the same page, even if the client has mapped other memory at its address.

State: under ``SharedMemory.lock``, the lock of the account (devmodel.iommu.accounts), which comes after that
of an address space. A client is never asked under it. Source: Documentation/userspace-api/iommufd.rst
(iopt_pages, IOMMU_IOAS_COPY).
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from contextlib import suppress

from devmodel.client import Memory, Pages, Payer
from devmodel.iommu.api import PAGE_SIZE
from devmodel.iommu.heldpages import HeldPages


class SharedMemory:
    """The memory behind several mappings, each of which has this as its :class:`Client`.

    ``payer`` is the process that pays for pinned pages. ``writable`` is whether the mapping that it was made
    for allows devices to write: copies may allow no more. ``of_file`` is whether it is memory of a file,
    which may have another payer later.
    """

    __slots__ = ("_memory", "checking", "held", "lock", "of_file", "payer", "writable")

    def __init__(
        self, memory: Memory, lock: threading.Lock, payer: Payer, writable: bool, of_file: bool = False
    ) -> None:
        """``lock`` is that of the account that the pages are charged to."""
        self._memory, self.lock, self.payer = memory, lock, payer
        self.writable, self.of_file = writable, of_file
        self.held = HeldPages()
        self.checking = 0
        """Charges of which it is not known yet whether the limit allows them."""

    @property
    def tgid(self) -> int:
        return self.payer.tgid

    @property
    def identity(self) -> Hashable:
        return self.payer.identity

    @property
    def user(self) -> int:
        return self.payer.user

    def memlock_limit(self) -> int:
        return self.payer.memlock_limit()

    def locked(self) -> int:
        return self.payer.locked()

    def may_lock_any(self) -> bool:
        return self.payer.may_lock_any()

    def read(self, vaddr: int, size: int) -> bytes:
        return self.gather([(vaddr, size)])

    def write(self, vaddr: int, data: bytes) -> None:
        self.write_parts([(vaddr, len(data))], memoryview(data))

    def gather(self, parts: Sequence[tuple[int, int]]) -> bytes:
        if not self.held.total:
            return self._memory.gather(parts)
        return b"".join(
            self._memory.read(vaddr, size) if pages is None else pages.read(vaddr, size)
            for pages, vaddr, size in self._split(parts)
        )

    def read_parts(self, parts: Sequence[tuple[int, int]], view: memoryview) -> None:
        for pages, vaddr, size in self._split(parts):
            here, view = view[:size], view[size:]
            if pages is None:
                self._memory.read_parts([(vaddr, size)], here)
            else:
                pages.read_into(vaddr, here)

    def write_parts(self, parts: Sequence[tuple[int, int]], view: memoryview) -> None:
        for pages, vaddr, size in self._split(parts):
            here, view = view[:size], view[size:]
            if pages is None:
                self._memory.write_parts([(vaddr, size)], here)
            else:
                pages.write_from(vaddr, here)

    def pin(self, vaddr: int, size: int, write: bool) -> SharedPages:
        """As :meth:`Client.pin`, of whole pages. Those that are pinned already are not pinned again."""
        parts = []
        for pages, at, length in self._split([(vaddr, size)]):
            fresh = self._memory.pin(at, length, self.writable) if pages is None else None
            parts.append((fresh, 0, length) if fresh is not None else (pages, at, length))
        return SharedPages(parts)

    def adopt(self, vaddr: int, pinned: SharedPages) -> SharedPages:
        """Others that share the memory get these pages too, which :meth:`pin` gave for ``vaddr`` and which
        are charged by now. Returns the pages to use: those of a pin that came first."""
        with self.lock:
            position = vaddr
            for pages, offset, length in pinned.parts:
                first, end = position // PAGE_SIZE, (position + length) // PAGE_SIZE
                self.held.keep(first, end, pages, first - offset // PAGE_SIZE)
                position += length
        return SharedPages(self._split([(vaddr, position - vaddr)]))

    def _split(self, parts: Sequence[tuple[int, int]]) -> list[tuple[Pages | None, int, int]]:
        """The parts, cut where what is pinned begins and ends: the offset and size of a piece of pinned
        pages, or None with the address and size of other memory."""
        found: list[tuple[Pages | None, int, int]] = []
        with self.lock:
            for vaddr, size in parts:
                end = vaddr + size
                for low, high, stretch in self.held.pinned(vaddr // PAGE_SIZE, -(-end // PAGE_SIZE)):
                    start, stop = max(low * PAGE_SIZE, vaddr), min(high * PAGE_SIZE, end)
                    offset = start - stretch.base * PAGE_SIZE  # base is 0 where nothing is pinned
                    found.append((stretch.pages, offset, stop - start))
        return found


class PayerOfFile:
    """The process that hands in a file, and pays for its memory even after it has ended.

    What counts for it is what it was when the file was mapped. Its limit is the one that it has now, or had
    last. Any thread.
    """

    __slots__ = ("_limit", "_process", "_unlimited", "user")

    def __init__(self, process: Payer) -> None:
        """``process`` waits for the answer to its call."""
        self._process = process
        self.user = process.user
        self._unlimited = process.may_lock_any()
        self._limit = process.memlock_limit()

    @property
    def tgid(self) -> int:
        return self._process.tgid

    @property
    def identity(self) -> Hashable:
        return self._process.identity

    def memlock_limit(self) -> int:
        with suppress(ProcessLookupError):
            self._limit = self._process.memlock_limit()
        return self._limit

    def locked(self) -> int:
        return self._process.locked()

    def may_lock_any(self) -> bool:
        return self._unlimited


class SharedPages:
    """Pinned pages that others hold, too, as pieces (pages, offset, size) one after the other."""

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[tuple[Pages | None, int, int]]) -> None:
        self.parts = [(pages, offset, size) for pages, offset, size in parts if pages is not None]

    def read(self, offset: int, size: int) -> bytes:
        found = [pages.read(start, length) for pages, start, length in self.cut(offset, size)]
        return found[0] if len(found) == 1 else b"".join(found)

    def read_into(self, offset: int, view: memoryview) -> None:
        for pages, start, length in self.cut(offset, len(view)):
            pages.read_into(start, view[:length])
            view = view[length:]

    def write_from(self, offset: int, view: memoryview) -> None:
        for pages, start, length in self.cut(offset, len(view)):
            pages.write_from(start, view[:length])
            view = view[length:]

    def cut(self, offset: int, size: int) -> list[tuple[Pages, int, int]]:
        """The pieces of ``size`` bytes at ``offset``."""
        found, position = [], 0
        for pages, start, length in self.parts:
            low, high = max(offset, position), min(offset + size, position + length)
            if low < high:
                found.append((pages, start + low - position, high - low))
            position += length
        return found


def part_of(pages: Pages, offset: int, size: int) -> SharedPages:
    """``size`` bytes at ``offset`` of pinned pages, as pages of their own. Parts of parts are no deeper."""
    return SharedPages(pages.cut(offset, size) if isinstance(pages, SharedPages) else [(pages, offset, size)])
