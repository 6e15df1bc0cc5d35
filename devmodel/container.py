# SPDX-License-Identifier: Apache-2.0
"""VFIO containers: groups that share an IOMMU, and which extensions they have.

State: under ``Container.lock``, taken after a group's lock; called from the device lane.
Source: <linux/vfio.h> (VFIO_CHECK_EXTENSION, VFIO_SET_IOMMU).
"""

from __future__ import annotations

import errno
import threading
from enum import IntEnum
from typing import TYPE_CHECKING

from devmodel.iommu import Type1

if TYPE_CHECKING:
    from devmodel.vfio import Group


class Extension(IntEnum):
    """Numbers that CHECK_EXTENSION and SET_IOMMU take."""

    TYPE1 = 1
    TYPE1V2 = 3
    DMA_CC = 4
    NESTING = 6
    NOIOMMU = 8
    UNMAP_ALL = 9
    UPDATE_VADDR = 10


_ALWAYS = frozenset({Extension.TYPE1, Extension.TYPE1V2, Extension.UNMAP_ALL})
_WITH_IOMMU = _ALWAYS | {Extension.DMA_CC}
_IS_V2 = {Extension.TYPE1: False, Extension.TYPE1V2: True}


class Container:
    """One open of /dev/vfio/vfio. Its groups keep it and its mappings alive after it is closed."""

    __slots__ = ("closed", "groups", "iommu", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.groups: dict[int, Group] = {}
        self.iommu: Type1 | None = None
        self.closed = False

    def check_extension(self, ext: int) -> int:
        """1 if the container supports extension number ``ext`` in its present state, else 0."""
        return int(ext in (_ALWAYS if self.iommu is None else _WITH_IOMMU))

    def set_iommu(self, kind: int) -> None:
        """Choose the IOMMU. ``OSError``: EINVAL without a group or when there is one, ENODEV if unknown."""
        with self.lock:
            if not self.groups or self.iommu is not None:
                raise OSError(errno.EINVAL, "the container has no group, or an IOMMU already")
            if kind not in _ALWAYS:
                raise OSError(errno.ENODEV, f"no IOMMU of kind {kind}")
            if kind not in _IS_V2:
                raise OSError(errno.EINVAL, f"extension {kind} is not a kind of IOMMU")
            self.iommu = Type1(v2=_IS_V2[Extension(kind)])

    def attach(self, group: Group) -> None:
        """Add a group; for :class:`GroupFile`. ``OSError(EBADF)`` once the container is closed."""
        with self.lock:
            if self.closed:
                raise OSError(errno.EBADF, "the container is closed")
            self.groups[group.number] = group

    def detach(self, group: Group) -> None:
        """Remove a group; with the last one go the IOMMU and all mappings. For :class:`GroupFile`."""
        with self.lock:
            del self.groups[group.number]
            if self.groups or self.iommu is None:
                return
            iommu, self.iommu = self.iommu, None
        iommu.clear()

    def close(self) -> None:
        """The file is closed; groups that are still attached go on using the container."""
        with self.lock:
            self.closed = True
