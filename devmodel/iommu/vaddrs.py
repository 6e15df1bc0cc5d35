# SPDX-License-Identifier: Apache-2.0
"""Mappings without a vaddr: their memory moves to another address, or to another process (live update).

State: of the mappings, under ``IoAddressSpace.lock``. Pinned memory is pinned anew at the new vaddr, and the
client may take as long as it likes for that. So it is asked without the lock, by a thread that may wait.
Source: <linux/vfio.h> (VFIO_DMA_UNMAP_FLAG_VADDR, VFIO_DMA_MAP_FLAG_VADDR).
"""

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from devmodel.client import Client, Pages
from devmodel.iommu.api import MustWait, Prot
from devmodel.iommu.mappings import Mapping
from devmodel.iommu.space import Choice, IoAddressSpace


class _Seen(NamedTuple):
    """A mapping without a vaddr as it was seen: whose memory it is, and what is pinned of it."""

    mapping: Mapping
    client: Client
    pages: Pages | None
    charged: int


class Vaddrs:
    """The vaddrs of one address space, for an API that lets clients replace them."""

    __slots__ = ("_space",)

    def __init__(self, space: IoAddressSpace) -> None:
        self._space = space

    def invalidate(self, choose: Choice) -> int:
        """Take the vaddr of the mappings from ``choose`` away. Returns their bytes. Device lane too.

        Raises ``OSError``, with nothing changed: EBUSY while a mediated group is attached or one of them is
        being made, EINVAL when one has no vaddr already, otherwise as ``choose``.
        """
        space = self._space
        with space.lock:
            if space.mediated is not None:
                raise OSError(errno.EBUSY, "mediated devices use vaddrs at any time")
            found = choose()
            if any(not mapping.vaddr_valid for mapping in found):
                raise OSError(errno.EINVAL, "a mapping of the range has no vaddr already")
            if not all(mapping.allows for mapping in found):
                raise OSError(errno.EBUSY, "a mapping of the range is being made")
            for mapping in found:
                mapping.vaddr_valid = False
            space.invalid_vaddrs += len(found)
            return sum(mapping.size for mapping in found)

    def update(self, client: Client, vaddr: int, choose: Callable[[], Mapping], may_wait: bool) -> None:
        """Give the mapping from ``choose``, which has no vaddr, a new one. Pages that are charged for it are
        charged to ``client`` from then on.

        Raises ``OSError``, with nothing changed: ENOMEM (RLIMIT_MEMLOCK of another process), otherwise as
        ``choose``. Raises :class:`MustWait` if it has to ask the client and ``may_wait`` is False.
        """
        done = False
        while not done:  # what changes while the client is asked is looked at again
            done = self._update(client, vaddr, choose, may_wait)

    def _update(self, client: Client, vaddr: int, choose: Callable[[], Mapping], may_wait: bool) -> bool:
        space = self._space
        with space.lock:
            seen = _look(choose())
            moved = [(0, seen.charged)] if seen.charged and seen.client.identity != client.identity else []
            if not moved and seen.pages is None:
                self._commit(seen.mapping, client, vaddr, None)
                return True
            if not may_wait:
                raise MustWait
        space.locked.charge(client, moved)
        relieved = client  # whose charge ends
        try:
            pages = seen.pages
            with suppress(OSError):  # as the kernel, which does not check: without memory the old pages stay
                if pages is not None:
                    pages = client.pin(vaddr, seen.mapping.size, bool(seen.mapping.prot & Prot.WRITE))
            with space.lock:
                same = seen.mapping.live and not seen.mapping.vaddr_valid and _look(seen.mapping) == seen
                if same:
                    self._commit(seen.mapping, client, vaddr, pages)
                    relieved = seen.client
        finally:  # whatever the client's memory does
            space.locked.discharge(relieved, moved)
        return same

    def _commit(self, mapping: Mapping, client: Client, vaddr: int, pages: Pages | None) -> None:
        mapping.client, mapping.vaddr, mapping.pages, mapping.vaddr_valid = client, vaddr, pages, True
        self._space.invalid_vaddrs -= 1


def _look(mapping: Mapping) -> _Seen:
    return _Seen(mapping, mapping.client, mapping.pages, mapping.charged)
