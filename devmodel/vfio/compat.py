# SPDX-License-Identifier: Apache-2.0
"""An iommufd as the container of groups.

A group that has joined an iommufd claims nothing. The first open of one of its devices binds the device to
the context and attaches it to the compat IOAS; the last close undoes both.

State: of a device, under ``Group.lock`` and a lock of its own. Threads: the device lane, and threads that may
wait. Source: <linux/vfio.h> (VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_GET_DEVICE_FD),
Documentation/userspace-api/iommufd.rst.
"""

from __future__ import annotations

import errno
import threading
from typing import ClassVar

from devmodel.iommufd.compat import Compat
from devmodel.iommufd.device import BoundDevice, bind
from devmodel.vfio.container import ContainerGroup
from devmodel.vfio.group import Assignable


class CompatContainer:
    """What groups join when they are given an iommufd (a :class:`devmodel.vfio.group.GroupContainer`)."""

    __slots__ = ("_compat",)
    claims: ClassVar[bool] = False
    iommu: ClassVar[None] = None

    def __init__(self, compat: Compat) -> None:
        self._compat = compat

    def attach(self, group: ContainerGroup) -> None:
        """Raises ``OSError`` as :meth:`Compat.join`."""
        self._compat.join(group.noiommu)

    def detach(self, group: ContainerGroup) -> None:
        """The opposite of :meth:`attach`. Devices that are open stay bound."""
        self._compat.leave()

    def check_ready(self) -> None:
        """No SET_IOMMU is needed."""

    def link(self, device: Assignable) -> CompatLink | None:
        """Bind a device, whose first open this is.

        A device without an IOMMU is not bound. Raises ``OSError``: EPERM for such a device when there is a
        compat IOAS; as :meth:`Group.check_owner` and :func:`devmodel.iommufd.device.bind`.
        """
        if device.group.noiommu:
            if self._compat.has_ioas:
                raise OSError(errno.EPERM, f"{device.name} has no IOMMU, and the iommufd has an IOAS")
            return None
        if not device.emulated_iommu:
            device.group.check_owner(self._compat.context)
        return CompatLink(self._compat, bind(self._compat.context, device))


class CompatLink:
    """An open device of a group, as ``bound`` to the context of ``compat``."""

    __slots__ = ("_attached", "_compat", "_turn", "bound")

    def __init__(self, compat: Compat, bound: BoundDevice) -> None:
        self._compat, self.bound = compat, bound
        self._turn = threading.Lock()
        self._attached = False

    def attach(self) -> None:
        """Attach the device to the compat IOAS, unless another open of it has done so. Waits for clients,
        whose memory may have to be pinned.

        Raises ``OSError``: ENODEV when there is no compat IOAS any more, otherwise as
        :meth:`BoundDevice.attach`.
        """
        with self._turn:
            if not self._attached:
                self.bound.attach(self._compat.ioas_id())
                self._attached = True

    def end(self) -> None:
        """The last file of the device is closed: detach and unbind it."""
        self.bound.unbind()
