# SPDX-License-Identifier: Apache-2.0
"""The context of one open of /dev/iommu: its objects, and what they have in common.

A context lives as long as its file is open or a device is bound to it. State: under ``Context.objects.lock``.
Any thread. Source: <linux/iommufd.h>, Documentation/userspace-api/iommufd.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from devmodel.iommu.accounts import ContextMemory, LockedMemory
from devmodel.iommufd.areas import Budget
from devmodel.iommufd.devicegroup import DeviceGroups
from devmodel.iommufd.objects import ObjectTable

Later = Callable[[Callable[[], None]], None]
"""Calls a function, at once or on another thread."""


def at_once(end: Callable[[], None]) -> None:
    """Call ``end`` now."""
    end()


class Context:
    """One open of /dev/iommu. ``locked`` accounts for the memory that is pinned for it, ``budget`` for the
    mappings of all of its IOASes. ``groups`` are the IOMMU groups of the functions that are bound to it."""

    __slots__ = ("_holders", "_later", "budget", "groups", "locked", "objects")

    def __init__(
        self, locked: LockedMemory | None = None, by_user: bool = True, later: Later = at_once
    ) -> None:
        """``locked`` is the account of the lab's containers and other contexts, whose pages count too.
        ``by_user`` is as for :class:`ContextMemory`. ``later`` has a thread that may take long call a
        function."""
        self.objects = ObjectTable()
        self.locked = ContextMemory(locked or LockedMemory(), by_user)
        self.budget = Budget()
        self.groups = DeviceGroups()
        self._holders = 1
        self._later = later

    def get(self) -> None:
        """Keep the context while a device is bound to it. Raises ``OSError(EBADFD)`` when it has ended."""
        with self.objects.lock:
            if not self._holders:
                raise OSError(errno.EBADFD, "the iommufd is closed")
            self._holders += 1

    def put(self) -> None:
        """The opposite of :meth:`get`. The file calls it, too, once, when it is closed. After the last call
        all objects are destroyed, by a thread of their own. Does not wait. Any thread, under any lock but
        that of an address space."""
        with self.objects.lock:
            self._holders -= 1
            if self._holders:
                return
        if len(self.objects):
            self._later(self._end)

    def _end(self) -> None:
        """Destroy the objects. No device is bound, so no DMA is under way."""
        for each in self.objects.all():
            with self.objects.lock:
                self.objects.remove(each)
            each.destroyed()
