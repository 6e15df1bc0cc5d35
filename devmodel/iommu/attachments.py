# SPDX-License-Identifier: Apache-2.0
"""The groups that are attached to an address space, and their backends, at most one of each kind.

State: under the lock of the :class:`devmodel.iommu.space.IoAddressSpace`, which calls everything here;
nothing here locks. Source: <linux/vfio.h>, "API for Type1 VFIO IOMMU".
"""

import errno

from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.api import PGSIZES, IommuGroup
from devmodel.iommu.backend import Backend, PinningBackend
from devmodel.iommu.mappings import Mapping, Mappings
from devmodel.iommu.pins import MediatedBackend

# To add one: CONTRIBUTING.md, "Adding an IOMMU API or backend".
Backends = tuple[type[PinningBackend] | type[MediatedBackend], ...]
"""Kinds of backend. The first one that accepts a group serves it."""
BACKENDS: Backends = (PinningBackend, MediatedBackend)
"""Those of type1."""


class Attachments:
    """Groups and their backends. ``strict`` has the backends that refuse iovas and hold the memory of
    mappings; the list object never changes. ``mediated`` is the backend of mediated devices, while one is
    attached."""

    __slots__ = ("_backends", "_kinds", "_locked", "mediated", "strict")

    def __init__(self, locked: LockedMemory, kinds: Backends = BACKENDS) -> None:
        self._locked = locked
        self._kinds = kinds
        self._backends: list[Backend] = []
        self.strict: list[Backend] = []
        self.mediated: MediatedBackend | None = None

    @property
    def pgsizes(self) -> int:
        """Bitmap of the page sizes that all groups can use."""
        pgsizes = PGSIZES
        for backend in self._backends:
            pgsizes &= backend.pgsizes
        return pgsizes

    @property
    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """Valid ranges as (first, last) iova. () means no limit: all groups are of mediated devices."""
        return next((backend.iova_ranges for backend in self._backends if backend.iova_ranges), ())

    @property
    def writes_unseen(self) -> bool:
        """Whether a physical function can write to what is pinned for it, which nobody sees."""
        return any(backend.ready for backend in self.strict)

    def add(self, group: IommuGroup, mappings: Mappings) -> Backend:
        """Serve ``group`` with the first backend that accepts it, and return that.

        If it is not ready, the caller then has the memory of all mappings held for it. Raises
        ``OSError(EINVAL)``, with nothing changed, when no backend accepts the group or a mapping has an iova
        that is not valid for it.
        """
        kind = next((kind for kind in self._kinds if kind.accepts(group)), None)
        if kind is None or self._backend_of(group) is not None:
            raise OSError(errno.EINVAL, f"no IOMMU for group {group.number}, or it has one")
        backend = next((one for one in self._backends if isinstance(one, kind)), None)
        if backend is None:
            backend = kind(self._locked)
            for mapping in mappings:
                backend.check(mapping)
            self._change([*self._backends, backend])
        backend.groups[group.number] = group
        return backend

    def remove(self, group: IommuGroup, mappings: Mappings) -> bool:
        """The opposite of :meth:`add`. True when the last group has gone, False otherwise and for an unknown
        group."""
        backend = self._backend_of(group)
        if backend is None:
            return False
        del backend.groups[group.number]
        if not backend.groups:
            backend.stop(mappings)
            self._change([one for one in self._backends if one is not backend])
        return not self._backends

    def check(self, mapping: Mapping) -> None:
        """Raises ``OSError(EINVAL)`` for a mapping that some attached device cannot reach."""
        for backend in self.strict:
            backend.check(mapping)

    def serves(self, backend: Backend, group: IommuGroup) -> bool:
        """Whether ``backend`` still serves ``group``."""
        return backend in self._backends and backend.groups.get(group.number) is group

    def forget(self, mapping: Mapping) -> None:
        """Tell the backends that ``mapping`` is removed. No device pins it any more."""
        self._locked.release(mapping)
        mapping.pins = None
        for backend in self._backends:
            backend.unmap(mapping)

    def _backend_of(self, group: IommuGroup) -> Backend | None:
        return next((one for one in self._backends if group.number in one.groups), None)

    def _change(self, backends: list[Backend]) -> None:
        self._backends = backends
        self.strict[:] = [backend for backend in backends if backend.strict]
        self.mediated = next((one for one in backends if isinstance(one, MediatedBackend)), None)
