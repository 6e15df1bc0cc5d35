# SPDX-License-Identifier: Apache-2.0
"""The account of pinned memory: who pays for it, and RLIMIT_MEMLOCK.

type1 charges the process that mapped the memory. A context of iommufd charges the user of that process, or
the process, as its option RLIMIT_MODE says; a process with CAP_IPC_LOCK is charged nothing there.

State: the counts, and the holds of shared memory, under :attr:`LockedMemory.lock`. It is one lock for a lab,
taken last, and a client is never asked under it. Source: Documentation/userspace-api/iommufd.rst,
<linux/iommufd.h> (IOMMU_OPTION_RLIMIT_MODE); what counts is as in vfio_iommu_type1 and iommufd.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Hashable, Iterable

from devmodel.client import Client, Pages, Payer
from devmodel.iommu.api import PAGE_SIZE
from devmodel.iommu.heldpages import Ranges
from devmodel.iommu.mappings import Mapping
from devmodel.iommu.sharing import SharedMemory


class MemoryLimit(OSError):
    """ENOMEM: whoever pays may not lock as many pages. ``room`` is how many more it may."""

    def __init__(self, payer: Payer, total: int, room: int) -> None:
        super().__init__(errno.ENOMEM, f"process {payer.tgid} may not lock {total} pages of memory")
        self.room = max(room, 0)


class LockedMemory:
    """The pinned pages of each process, counted over all address spaces of the lab, and limited by its
    RLIMIT_MEMLOCK."""

    __slots__ = ("_pages", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._pages: dict[Hashable, int] = {}

    def of(self, client: Payer) -> int:
        """Pages of the process that are pinned now. Any thread."""
        with self.lock:
            return self._pages.get(client.identity, 0)

    def charge(self, client: Client, ranges: Ranges) -> None:
        """Count these pages more for who pays for ``client``'s memory. Of shared memory only those count that
        nobody holds yet. Raises :class:`MemoryLimit`, with none counted.

        It asks the process for its limit, which may take as long as the process likes. So the caller holds no
        lock, and what it is about to pin is counted before it asks.
        """
        if not ranges:
            return
        shared = client if isinstance(client, SharedMemory) else None
        payer, pages, total = self._count(client, shared, ranges)
        try:
            if pages:
                self._check(payer, total, pages)
        except BaseException:
            self.discharge(client, ranges)
            raise
        finally:
            if shared is not None:
                with self.lock:
                    shared.checking -= 1

    def discharge(self, client: Client, ranges: Ranges) -> None:
        """Undo :meth:`charge`. Any thread, under any lock."""
        let_go: list[Pages | None] = []  # unmapped without our lock
        with self.lock:
            if isinstance(client, SharedMemory):
                self._add(client.payer, None, -client.held.remove(ranges, let_go))
            else:
                self._add(client, None, -number_of(ranges))

    def keep_pins(self, mapping: Mapping) -> None:
        """Charge for no more than the pages of ``mapping`` that mediated devices have pinned. Under the
        lock of the mapping."""
        pins = len(mapping.pins or ())
        if mapping.charged > pins:
            self.discharge(mapping.client, unpinned_pages(mapping))
            mapping.charged = pins

    def release(self, mapping: Mapping) -> None:
        """Charge nothing for ``mapping`` any more. Under the lock of the mapping."""
        if mapping.charged:
            self.keep_pins(mapping)
            if mapping.charged:
                self.discharge(mapping.client, pinned_pages(mapping))
                mapping.charged = 0

    def share(self, mapping: Mapping) -> SharedMemory:
        """The memory of ``mapping``, which copies of it may share from now on. Under the lock of the
        mapping."""
        if isinstance(mapping.client, SharedMemory):
            return mapping.client
        write = bool(mapping.allows & 2)
        shared = SharedMemory(mapping.client, self.lock, payer=mapping.client, writable=write)
        first = mapping.vaddr // PAGE_SIZE
        end = first + mapping.page_count
        if mapping.charged:  # what it holds has been counted
            all_of_it = mapping.charged == mapping.page_count
            shared.held.add([(first, end)] if all_of_it else pinned_pages(mapping))
        if mapping.pages is not None:
            shared.held.keep(first, end, mapping.pages, first)
        mapping.client = shared
        return shared

    def change_payer(self, memory: Iterable[SharedMemory], payer: Payer) -> None:
        """Have ``payer`` pay for this memory from now on. It is asked for its limit as by :meth:`charge`.
        Raises :class:`MemoryLimit`, with nothing changed."""
        moved = set(memory)
        key = self._key(payer)
        with self.lock:
            pages = sum(one.held.total for one in moved if self._paid_by(one.payer) != key)
            total = self._add(payer, key, pages)
        try:
            if pages:
                self._check(payer, total, pages)
            with self.lock:
                for one in moved:
                    self._add(one.payer, None, -one.held.total)
                    self._add(payer, key, one.held.total)
                    one.payer = payer
        finally:
            with self.lock:
                self._add(payer, key, -pages)

    def _count(self, client: Client, shared: SharedMemory | None, ranges: Ranges) -> tuple[Payer, int, int]:
        """Count the pages. Returns who pays, how many pages the limit has to be asked for, and the total."""
        while True:
            payer: Payer = client if shared is None else shared.payer
            key = self._key(payer)
            with self.lock:
                if shared is None:
                    pages = number_of(ranges)
                    return payer, pages, self._add(payer, key, pages)
                if shared.payer is not payer:
                    continue  # it has changed meanwhile
                new = shared.held.add(ranges)
                pages = new or int(shared.checking > 0)  # another charge may count pages that are these
                shared.checking += 1
                return payer, pages, self._add(payer, key, new)

    # ---- who pays, and how much: other accounts differ here ----

    def _key(self, payer: Payer) -> Hashable:
        """What the pages of ``payer`` are counted by, None if they do not count. Without a lock."""
        return payer.identity

    def _paid_by(self, payer: Payer) -> Hashable:
        """What the pages of ``payer``, which has some, are counted by. Under the lock."""
        return payer.identity

    def _add(self, payer: Payer, key: Hashable, pages: int) -> int:
        """Count ``pages`` more, or fewer, and return the total. ``key`` is what :meth:`_key` gave, which is
        not needed to count fewer. Under the lock."""
        return self._add_to(payer.identity, pages)

    def _add_to(self, key: Hashable, pages: int) -> int:
        total = self._pages.get(key, 0) + pages
        if total:
            self._pages[key] = total
        else:
            self._pages.pop(key, None)
        return total

    def _check(self, payer: Payer, total: int, pages: int) -> None:
        """Raises :class:`MemoryLimit` when ``total`` pages, ``pages`` of them new, exceed the limit."""
        limit, size = payer.memlock_limit(), total * PAGE_SIZE
        if (size > limit or size + payer.locked() > limit) and not payer.may_lock_any():
            room = (payer.memlock_limit() - payer.locked()) // PAGE_SIZE
            raise MemoryLimit(payer, total, room - (total - pages))


class _Paid:
    """Pages of a process that a context counts by ``key``, None if it does not."""

    __slots__ = ("key", "pages")

    def __init__(self, key: Hashable) -> None:
        self.key, self.pages = key, 0


class ContextMemory(LockedMemory):
    """The account of an iommufd context, which counts together with the other accounts of the lab.

    A process that has CAP_IPC_LOCK when it begins to pin memory is charged nothing, until it has none pinned.
    """

    __slots__ = ("_paid", "by_user")

    def __init__(self, lab: LockedMemory, by_user: bool = True) -> None:
        """``lab`` is the account of the lab's containers. ``by_user`` charges the user of a process, not the
        process."""
        self.lock, self._pages = lab.lock, lab._pages
        self.by_user = by_user
        """Change it only while the context has no object."""
        self._paid: dict[Payer, _Paid] = {}

    def of_user(self, user: int) -> int:
        """Pages of this user that are pinned now, over all contexts of the lab. Any thread."""
        with self.lock:
            return self._pages.get(_by_user(user), 0)

    def _key(self, payer: Payer) -> Hashable:
        with self.lock:
            known = self._paid.get(payer)
        if known is not None:
            return known.key
        if payer.may_lock_any():
            return None
        return _by_user(payer.user) if self.by_user else payer.identity

    def _paid_by(self, payer: Payer) -> Hashable:
        known = self._paid.get(payer)
        return None if known is None else known.key

    def _add(self, payer: Payer, key: Hashable, pages: int) -> int:
        known = self._paid.get(payer)
        if known is None:
            if not pages:
                return 0
            known = self._paid[payer] = _Paid(key)
        known.pages += pages
        if not known.pages:
            del self._paid[payer]
        return 0 if known.key is None else self._add_to(known.key, pages)

    def _check(self, payer: Payer, total: int, pages: int) -> None:
        if not self.by_user:
            super()._check(payer, total, pages)
        elif total * PAGE_SIZE > payer.memlock_limit():
            raise MemoryLimit(payer, total, payer.memlock_limit() // PAGE_SIZE - (total - pages))


def number_of(ranges: Ranges) -> int:
    """How many pages these are."""
    pages = 0
    for first, end in ranges:
        pages += end - first
    return pages


def merged(pages: Iterable[int]) -> Ranges:
    """Pages, in any order, as ranges."""
    ranges: list[tuple[int, int]] = []
    for page in sorted(pages):
        if ranges and ranges[-1][1] == page:
            ranges[-1] = ranges[-1][0], page + 1
        else:
            ranges.append((page, page + 1))
    return ranges


def unpinned_pages(mapping: Mapping) -> Ranges:
    """The pages of a mapping that no mediated device has pinned."""
    position = mapping.vaddr // PAGE_SIZE
    end = position + mapping.page_count
    if not mapping.pins:
        return ((position, end),)
    ranges = []
    for low, high in pinned_pages(mapping):
        if position < low:
            ranges.append((position, low))
        position = high
    if position < end:
        ranges.append((position, end))
    return ranges


def pinned_pages(mapping: Mapping) -> Ranges:
    """The pages of a mapping that mediated devices have pinned."""
    base = mapping.vaddr // PAGE_SIZE
    return merged(base + page for page in mapping.pins) if mapping.pins else ()


def _by_user(user: int) -> Hashable:
    return "user", user
