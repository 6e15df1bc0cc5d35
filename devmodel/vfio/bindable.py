# SPDX-License-Identifier: Apache-2.0
"""What a device of VFIO is to iommufd: who has it open by its own character device, and where its DMA goes.

Threads: the device lane, and threads that may wait. State: under the lock of the device's group.
Source: <linux/vfio.h> (VFIO_DEVICE_BIND_IOMMUFD), Documentation/driver-api/vfio.rst ("VFIO device cdev").
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Set as AbstractSet
from typing import ClassVar, Protocol
from uuid import UUID

from devmodel.device.base import Device
from devmodel.iommu.api import AskPages, DmaUser
from devmodel.iommu.dmaspace import DmaSpace
from devmodel.iommufd.device import BoundDevice
from devmodel.iommufd.hwinfo import UnitFacts
from devmodel.vfio.lingering import LastClient


class OpenCdev(Protocol):
    """An open file of a device's own character device (:class:`devmodel.vfio.cdev.CdevFile`)."""

    client: LastClient
    bound: BoundDevice | None

    @property
    def blocks_group(self) -> bool:
        """Whether it is bound, or about to be: then nobody can open the group."""


_NOBODY: frozenset[OpenCdev] = frozenset()
"""Of the devices that nobody has open so: 10,000 empty sets would be two megabytes."""


class BindableDevice(ABC):
    """A device of a group, as far as iommufd is concerned: it is a :class:`devmodel.iommufd.device.Bindable`.

    ``users`` counts the files that use it: those that came from its group, and one that is bound.
    """

    __slots__ = ("_cdevs", "users")
    name: str
    emulated_iommu: ClassVar[bool] = True
    """Whether it is mediated: it reaches memory through its driver, not by DMA of its own."""
    takes_tokens: ClassVar[bool] = False
    """Whether its driver knows VF tokens."""

    def __init__(self) -> None:
        self._cdevs: set[OpenCdev] | frozenset[OpenCdev] = _NOBODY
        self.users = 0

    @property
    def cdevs(self) -> AbstractSet[OpenCdev]:
        """The open files of its own character device. Under the group's lock."""
        return self._cdevs

    @property
    @abstractmethod
    def device(self) -> Device:
        """The device itself, made at the first call. Raises ``OSError(ENODEV)`` when it is gone."""

    def check_token(self, token: UUID | None) -> None:
        """Check that a client with this VF token may open the device. Under the group's lock.

        Raises ``OSError``: EACCES for a missing or wrong token, EINVAL for a token that it does not ask for.
        """
        if token is not None:
            raise OSError(errno.EINVAL, f"{self.name} takes no VF token")

    def cdev_opened(self, file: OpenCdev) -> None:
        """Add ``file`` to :attr:`cdevs`. Under the group's lock."""
        if isinstance(self._cdevs, frozenset):
            self._cdevs = set()
        self._cdevs.add(file)

    def cdev_closed(self, file: OpenCdev) -> None:
        """Remove ``file`` from :attr:`cdevs`. Under the group's lock."""
        if not isinstance(self._cdevs, frozenset):
            self._cdevs.discard(file)

    @property
    def binding(self) -> OpenCdev | None:
        """The file by which it is bound to an iommufd, or about to be. Under the group's lock."""
        return next((each for each in self.cdevs if each.blocks_group), None)

    @property
    def bound_device(self) -> BoundDevice | None:
        """What it is in the context that it is bound to. Under the group's lock."""
        return next((each.bound for each in self.cdevs if each.bound is not None), None)

    # ---- devmodel.iommufd.device.Bindable: of a device that is open ----

    @property
    def unit(self) -> UnitFacts | None:
        """The IOMMU unit that it is behind. None for a mediated device and a function without an IOMMU."""
        return None

    @property
    def ats(self) -> bool:
        """Whether it can have translations cached by its IOMMU (PCI Express: Address Translation
        Services)."""
        return False

    def check_page_requests(self) -> None:
        """Raise ``OSError(ENODEV)``, as it cannot ask its IOMMU for pages."""
        raise OSError(errno.ENODEV, f"{self.name} cannot ask for pages")

    def ask_pages_by(self, ask: AskPages | None) -> None:
        """Ask for pages by ``ask`` from now on. Does not wait."""
        self.device.dma.ask_pages = ask

    @property
    def dma_user(self) -> DmaUser:
        """Who is told of unmaps of pages that are pinned for it."""
        return self.device.dma_user

    def connect(self, space: DmaSpace | None) -> None:
        """Do DMA through ``space`` from now on, through none with None. Does not wait."""
        self.device.connect(space)

    def settle(self) -> None:
        """Wait for the DMA that is under way. ``OSError(EBUSY)`` when it does not end."""
        self.device.dma.settle()

    def unpin_all(self) -> None:
        """Have the model unpin all its pages."""
        self.device.unpin_all()
