# SPDX-License-Identifier: Apache-2.0
"""The context of one open of /dev/iommu: its objects, and what they have in common.

A context lives as long as its file is open or a device is bound to it. State: under ``Context.objects.lock``.
Any thread. Source: <linux/iommufd.h>, Documentation/userspace-api/iommufd.rst.
"""

from __future__ import annotations

import errno

from devmodel.iommu.accounts import ContextMemory, LockedMemory
from devmodel.iommufd.areas import Budget
from devmodel.iommufd.objects import ObjectTable


class Context:
    """One open of /dev/iommu. ``locked`` accounts for the memory that is pinned for it, ``budget`` for the
    mappings of all of its IOASes."""

    __slots__ = ("_holders", "budget", "locked", "objects")

    def __init__(self, locked: LockedMemory | None = None, by_user: bool = True) -> None:
        """``locked`` is the account of the lab's containers and other contexts, whose pages count too.
        ``by_user`` is as for :class:`ContextMemory`."""
        self.objects = ObjectTable()
        self.locked = ContextMemory(locked or LockedMemory(), by_user)
        self.budget = Budget()
        self._holders = 1

    def get(self) -> None:
        """Keep the context while a device is bound to it. Raises ``OSError(EBADFD)`` when it has ended."""
        with self.objects.lock:
            if not self._holders:
                raise OSError(errno.EBADFD, "the iommufd is closed")
            self._holders += 1

    def put(self) -> None:
        """The opposite of :meth:`get`. The file calls it, too, once, when it is closed. The last call
        destroys all objects. No device is bound then, so no DMA is under way."""
        with self.objects.lock:
            self._holders -= 1
            if self._holders:
                return
        for each in self.objects.all():
            with self.objects.lock:
                self.objects.remove(each)
            each.destroyed()
