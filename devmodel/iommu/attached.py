# SPDX-License-Identifier: Apache-2.0
"""The groups of a container, and the implementations of type1 that serve them.

State: under ``Dma.lock``. Called from the device lane (and its worker).
Source: <linux/vfio.h>, "API for Type1 VFIO IOMMU"; the order of checks is vfio_iommu_type1's.
"""

import errno

from devmodel.iommu.api import PGSIZES, DmaUser, IommuGroup
from devmodel.iommu.backend import BACKENDS, Backend, LockedMemory, MediatedBackend
from devmodel.iommu.mappings import Mapping
from devmodel.iommu.pins import AddressSpace


class Attached(AddressSpace):
    """An address space with the backends that its groups need, at most one of each kind."""

    __slots__ = ("_backends", "_invalid", "_strict", "locked")

    def __init__(self, v2: bool, locked: LockedMemory) -> None:
        """``locked`` accounts for pinned pages."""
        super().__init__(v2)
        self.locked = locked
        self._backends: list[Backend] = []
        self._strict: list[Backend] = []  # those of them that may refuse a mapping, or have to be told of one
        self._invalid = 0  # mappings without a vaddr

    @property
    def pgsizes(self) -> int:
        """Bitmap of the supported page sizes."""
        pgsizes = PGSIZES
        for backend in self._backends:
            pgsizes &= backend.pgsizes
        return pgsizes

    @property
    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """Valid ranges as (first, last) iova, () when nothing limits them: with mediated devices only."""
        return next((backend.iova_ranges for backend in self._backends if backend.iova_ranges), ())

    def attach(self, group: IommuGroup) -> None:
        """Serve ``group`` with the first backend that accepts it.

        ``OSError``: EBUSY while a vaddr is invalid, EINVAL when no backend accepts it or a mapping is where
        it cannot be, ENOMEM and EFAULT when what is mapped cannot be pinned.
        """
        with self.lock:
            if self._invalid:
                raise OSError(errno.EBUSY, "a mapping has no vaddr at present")
            kind = next((kind for kind in BACKENDS if kind.accepts(group)), None)
            if kind is None or self._backend_of(group) is not None:
                raise OSError(errno.EINVAL, f"no IOMMU for group {group.number}, or it has one")
            backend = next((one for one in self._backends if isinstance(one, kind)), None)
            if backend is None:
                backend = kind(self.locked)
                backend.start(self.mappings)
                self._backends.append(backend)
                self._sort_backends()
                if isinstance(backend, MediatedBackend):
                    self.mediated = backend
            backend.groups[group.number] = group

    def detach(self, group: IommuGroup) -> None:
        with self.lock:
            backend = self._backend_of(group)
            if backend is None:
                return
            del backend.groups[group.number]
            if backend.groups:
                return
            self._backends.remove(backend)
            self._sort_backends()
            if isinstance(backend, MediatedBackend):
                self.mediated = None
            if self._backends:
                backend.stop(self.mappings)
            else:
                self._clear(backend)

    def register(self, user: DmaUser) -> None:
        """An open mediated device can pin pages from now on. Device lane.

        ``OSError(EINVAL)`` when the container has no mediated group."""
        with self.lock:
            if self.mediated is None:
                raise OSError(errno.EINVAL, "only mediated devices pin pages")
            self.mediated.users.append(user)

    def unregister(self, user: DmaUser) -> None:
        """The device is closed; it has unpinned what it pinned. Device lane."""
        with self.lock:
            if self.mediated is not None and user in self.mediated.users:
                self.mediated.users.remove(user)

    def clear(self) -> None:
        """Forget every mapping and pin."""
        with self.lock:
            self._clear(*self._backends)

    close = clear

    def _backend_of(self, group: IommuGroup) -> Backend | None:
        return next((one for one in self._backends if group.number in one.groups), None)

    def _sort_backends(self) -> None:
        self._strict = [backend for backend in self._backends if backend.strict]

    def _forget(self, mapping: Mapping, backends: list[Backend]) -> None:
        self._invalid -= not mapping.vaddr_valid
        mapping.pins = None
        for backend in backends:
            backend.unmap(mapping)
        self.locked.settle(mapping, 0)

    def _clear(self, *backends: Backend) -> None:
        for mapping in self.mappings:
            self._forget(mapping, list(backends))
        self.mappings.clear()
        self.tracking = False
