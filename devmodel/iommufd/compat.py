# SPDX-License-Identifier: Apache-2.0
"""A context as a container of VFIO: its compat IOAS, VFIO_IOAS, and the meaning of the container's ioctls.

The compat IOAS is an ordinary object, which a client can destroy; then the container has none. Each call here
that needs it and finds none is ENODEV, after the checks of its arguments.

State: under ``ObjectTable.lock`` of the context. Called by the device lane and by threads that may wait.
Source: <linux/vfio.h>, <linux/iommufd.h> (IOMMU_VFIO_IOAS), Documentation/userspace-api/iommufd.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from devmodel.client import Client
from devmodel.iommu.api import ADDRESSES, Extension
from devmodel.iommu.cutting import cut
from devmodel.iommufd.context import Context
from devmodel.iommufd.ioas import Ioas
from devmodel.iommufd.mapflags import MapFlags

DMA_AVAIL = 2**32 - 1
"""The number of mappings that GET_INFO says can still be made: there is no limit."""
_KINDS = frozenset({Extension.TYPE1, Extension.TYPE1V2})
_ALWAYS = _KINDS | {Extension.UNMAP_ALL}
"""What a container without noiommu groups supports."""
_READ, _WRITE, _FIXED = int(MapFlags.READABLE), int(MapFlags.WRITEABLE), int(MapFlags.FIXED_IOVA)
_FLAGS = (_FIXED, _FIXED | _READ, _FIXED | _WRITE, _FIXED | _READ | _WRITE)
"""The flags of IOAS_MAP, by the protection of MAP_DMA."""


class IoasOp:
    """Operations of VFIO_IOAS."""

    GET: Final = 0
    SET: Final = 1
    CLEAR: Final = 2


class CompatInfo(NamedTuple):
    """The answer of IOMMU_GET_INFO. ``pgsizes`` is a bitmap; ``iova_ranges`` are (first, last)."""

    pgsizes: int
    iova_ranges: list[tuple[int, int]]


class Compat:
    """The container that ``context`` is. ``noiommu`` is whether a group without IOMMU has joined it, which
    excludes a compat IOAS."""

    __slots__ = ("_ioas", "context", "noiommu")

    def __init__(self, context: Context) -> None:
        self.context = context
        self.noiommu = False
        self._ioas: Ioas | None = None

    # ---- VFIO_IOAS ----

    def ioas_id(self) -> int:
        """VFIO_IOAS with GET: the id of the compat IOAS. Raises ``OSError(ENODEV)``."""
        with self.context.objects.lock:
            return self._found().id

    def set_ioas(self, number: int) -> None:
        """VFIO_IOAS with SET. Raises ``OSError(ENOENT)`` when there is no IOAS ``number``."""
        objects = self.context.objects
        with objects.lock:
            self._ioas = objects.find(number, Ioas)

    def clear_ioas(self) -> None:
        """VFIO_IOAS with CLEAR."""
        with self.context.objects.lock:
            self._ioas = None

    # ---- groups: VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_GET_DEVICE_FD ----

    def join(self, noiommu: bool) -> None:
        """A group joins, and keeps the context until :meth:`leave`. A group with an IOMMU makes the compat
        IOAS if there is none.

        Raises ``OSError``: EINVAL when groups with and without IOMMU would mix, ENOMEM for too many objects,
        EBADFD once the iommufd is closed.
        """
        with self.context.objects.lock:
            found = self._present()
            if (found is not None) if noiommu else self.noiommu:
                raise OSError(errno.EINVAL, "groups with and without IOMMU do not mix")
            self.context.get()
            if noiommu:
                self.noiommu = True
            elif found is None:
                try:
                    made = Ioas(self.context.locked, self.context.budget)
                    self.context.objects.add(made)
                except BaseException:
                    self.context.put()
                    raise
                self._ioas = made

    def leave(self) -> None:
        """The opposite of :meth:`join`. The compat IOAS stays."""
        self.context.put()

    @property
    def has_ioas(self) -> bool:
        """Whether there is a compat IOAS now."""
        with self.context.objects.lock:
            return self._present() is not None

    # ---- the container's ioctls ----

    def check_extension(self, extension: int) -> int:
        """1 if the container supports ``extension``, else 0. Raises ``OSError(ENODEV)`` for DMA_CC without a
        compat IOAS."""
        if extension == Extension.NOIOMMU:
            return 1
        if extension == Extension.DMA_CC:
            self.ioas_id()
            return 1
        return int(extension in _ALWAYS and not self.noiommu)

    def set_iommu(self, kind: int, rawio: bool) -> None:
        """SET_IOMMU. It need not come before the other calls, and may be repeated. TYPE1 turns large pages
        off, which lets UNMAP_DMA split mappings; TYPE1v2 changes nothing. ``rawio`` is whether the client
        has CAP_SYS_RAWIO.

        Raises ``OSError``: EPERM for NOIOMMU without CAP_SYS_RAWIO, EINVAL for a kind that the groups do not
        allow, ENODEV, otherwise as :meth:`Ioas.set_huge_pages`.
        """
        if self.noiommu and kind == Extension.NOIOMMU:
            if not rawio:
                raise OSError(errno.EPERM, "no IOMMU: it takes CAP_SYS_RAWIO")
            return
        if self.noiommu or kind not in _KINDS:
            raise OSError(errno.EINVAL, f"no IOMMU of kind {kind}")
        with self._using() as ioas:
            if kind == Extension.TYPE1:
                ioas.set_huge_pages(0)

    def info(self) -> CompatInfo:
        """IOMMU_GET_INFO. Raises ``OSError(ENODEV)``."""
        with self._using() as ioas:
            return CompatInfo(ioas.space.attachments.pgsizes, ioas.iova_ranges())

    def map_dma(
        self, client: Client, prot: int, iova: int, vaddr: int, size: int, may_wait: bool = True
    ) -> None:
        """MAP_DMA. ``prot`` is the number of a Prot; 0 makes a mapping that takes its range and that no
        device can use. Raises ``OSError``: ENODEV, otherwise as :meth:`Ioas.map`, also :class:`MustWait`."""
        if not may_wait:  # a DESTROY meanwhile comes before or after it
            self._found().map(client, _FLAGS[prot], vaddr, size, iova, may_wait)
            return
        with self._using() as ioas:
            ioas.map(client, _FLAGS[prot], vaddr, size, iova)

    def unmap_dma(
        self, iova: int, size: int, everything: bool = False, may_wait: bool = True
    ) -> tuple[int, OSError | None]:
        """UNMAP_DMA. Returns the bytes unmapped, 0 when nothing is mapped there, and the error that ended it
        early. With large pages off (TYPE1) the mappings at both edges are cut first.

        Raises ``OSError``, with nothing unmapped: ENODEV; EINVAL for ``everything`` with a range; EINVAL when
        a mapping cannot be cut, because the edge is misaligned or a mediated device has pinned some of it;
        EBUSY while it is being pinned; ENOMEM for too many mappings; otherwise as :meth:`Ioas.unmap_until`,
        also :class:`MustWait`.
        """
        if not may_wait:  # as map_dma()
            return _unmap(self._found(), iova, size, everything, may_wait)
        with self._using() as ioas:
            return _unmap(ioas, iova, size, everything, may_wait)

    # ---- under the lock, or by calls that look once ----

    def _present(self) -> Ioas | None:
        ioas = self._ioas
        if ioas is not None and not self.context.objects.has(ioas):
            self._ioas = ioas = None  # it was destroyed
        return ioas

    def _found(self) -> Ioas:
        ioas = self._present()
        if ioas is None:
            raise OSError(errno.ENODEV, "the container has no IOAS")
        return ioas

    # ---- without it ----

    @contextmanager
    def _using(self) -> Iterator[Ioas]:
        """The compat IOAS, as :meth:`ObjectTable.using`."""
        objects = self.context.objects
        with objects.lock:
            ioas = objects.take(self._found().id, Ioas)
        try:
            yield ioas
        finally:
            objects.put(ioas)


def _unmap(ioas: Ioas, iova: int, size: int, everything: bool, may_wait: bool) -> tuple[int, OSError | None]:
    if everything:
        if iova or size:
            raise OSError(errno.EINVAL, "unmapping all takes neither iova nor size")
        size = ADDRESSES - 1
    elif ioas.space.unmap_exact(iova, size):
        return size, None
    elif not ioas.huge_pages:
        _cut(ioas, (iova + size) % ADDRESSES)
        _cut(ioas, iova)
    return ioas.unmap_until(iova, size, may_wait)


def _cut(ioas: Ioas, iova: int) -> None:
    """Cut the mapping that ``iova`` is inside of. Raises ``OSError`` as :meth:`Compat.unmap_dma`."""
    space = ioas.space
    with space.lock:
        whole = space.mappings.covering(iova)
        if whole is None or whole.iova == iova:
            return
        if iova % ioas.alignment:
            raise OSError(errno.EINVAL, f"iova {iova:#x} is not aligned to {ioas.alignment}")
        if not whole.allows or (space.attachments.strict and whole.pages is None):
            raise OSError(errno.EBUSY, f"iova {iova:#x} is being mapped")
        if whole.pins:
            raise OSError(errno.EINVAL, f"a device has pinned pages around iova {iova:#x}")
        ioas.make_room(1)
        cut(space.mappings, whole, iova)
