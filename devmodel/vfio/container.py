# SPDX-License-Identifier: Apache-2.0
"""VFIO containers: groups that share an IOMMU, and which extensions they have.

State: under ``Container.lock``, taken after a group's lock; called from the device lane.
Source: <linux/vfio.h> (VFIO_CHECK_EXTENSION, VFIO_SET_IOMMU), Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from devmodel.iommu import Extension, Iommu, LockedMemory, NoIommu, Type1

if TYPE_CHECKING:
    from devmodel.vfio.group import Group

__all__ = ["Container", "Extension"]

_TYPE1 = frozenset({Extension.TYPE1, Extension.TYPE1V2, Extension.UNMAP_ALL})
_IS_V2 = {Extension.TYPE1: False, Extension.TYPE1V2: True}


def _never() -> bool:
    return False


class Container:
    """One open of /dev/vfio/vfio. Its groups keep it and its mappings alive after it is closed.

    ``noiommu`` tells whether enable_unsafe_noiommu_mode is on now; ``locked`` accounts for pinned memory
    together with other containers.
    """

    __slots__ = ("closed", "groups", "iommu", "lock", "locked", "noiommu")

    def __init__(self, noiommu: Callable[[], bool] = _never, locked: LockedMemory | None = None) -> None:
        self.lock = threading.Lock()
        self.groups: dict[int, Group] = {}
        self.iommu: Iommu | None = None
        self.closed = False
        self.noiommu = noiommu
        self.locked = locked or LockedMemory()

    def check_extension(self, extension: int) -> int:
        """1 if the container supports ``extension`` in its present state, else 0."""
        iommu = self.iommu
        if iommu is not None:
            return iommu.check_extension(extension)
        return int(extension in self._offered())

    def set_iommu(self, kind: int, rawio: bool = False) -> None:
        """Choose the IOMMU; ``rawio`` says whether the client has CAP_SYS_RAWIO.

        ``OSError``: EINVAL without a group or when there is one, ENODEV if unknown, EPERM for NOIOMMU without
        CAP_SYS_RAWIO, whatever :meth:`Iommu.attach` raises for a group.
        """
        with self.lock:
            if not self.groups or self.iommu is not None:
                raise OSError(errno.EINVAL, "the container has no group, or an IOMMU already")
            if kind not in self._offered():
                raise OSError(errno.ENODEV, f"no IOMMU of kind {kind}")
            iommu = self._make(kind, rawio)
            try:
                for group in self.groups.values():
                    iommu.attach(group)
            except OSError:
                iommu.close()
                raise
            self.iommu = iommu

    def attach(self, group: Group) -> None:
        """Add a group; for :class:`GroupFile`.

        ``OSError``: EBADF once the container is closed, EPERM when its groups have IOMMUs and this one has
        none, or the other way round, whatever :meth:`Iommu.attach` raises.
        """
        with self.lock:
            if self.closed:
                raise OSError(errno.EBADF, "the container is closed")
            if any(other.noiommu is not group.noiommu for other in self.groups.values()):
                raise OSError(errno.EPERM, "groups with and without IOMMU do not mix")
            if self.iommu is not None:
                self.iommu.attach(group)
            self.groups[group.number] = group

    def detach(self, group: Group) -> None:
        """Remove a group; with the last one go the IOMMU and all mappings. For :class:`GroupFile`."""
        with self.lock:
            del self.groups[group.number]
            iommu = self.iommu
            if iommu is None:
                return
            iommu.detach(group)
            if self.groups:
                return
            self.iommu = None
        iommu.close()

    def close(self) -> None:
        """The file is closed; groups that are still attached go on using the container."""
        with self.lock:
            self.closed = True

    def _offered(self) -> frozenset[Extension]:
        """What can be asked of drivers before one is set: of either kind if no group has decided it."""
        kinds = {group.noiommu for group in self.groups.values()} or {False, True}
        offered = _TYPE1 if False in kinds else frozenset[Extension]()
        return offered | {Extension.NOIOMMU} if True in kinds and self.noiommu() else offered

    def _make(self, kind: int, rawio: bool) -> Iommu:
        if kind == Extension.NOIOMMU:
            if not rawio:
                raise OSError(errno.EPERM, "no IOMMU: it takes CAP_SYS_RAWIO")
            return NoIommu()
        if kind not in _IS_V2:
            raise OSError(errno.EINVAL, f"extension {kind} is not a kind of IOMMU")
        return Type1(v2=_IS_V2[Extension(kind)], locked=self.locked)
