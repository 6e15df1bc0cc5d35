# SPDX-License-Identifier: Apache-2.0
"""The interface of a VFIO container to the IOMMU that SET_IOMMU chose (struct vfio_iommu_driver_ops).

State: none. Called from the device lane. Source: <linux/vfio.h>, Documentation/driver-api/vfio.rst.
"""

from abc import ABC, abstractmethod

from devmodel.iommu.api import IommuGroup
from devmodel.iommu.space import IoAddressSpace


class Iommu(ABC):
    """The IOMMU of a container."""

    __slots__ = ()

    @property
    @abstractmethod
    def space(self) -> IoAddressSpace | None:
        """The addresses that devices reach through it. None for an IOMMU that maps nothing."""

    @abstractmethod
    def check_extension(self, extension: int) -> int:
        """The answer of CHECK_EXTENSION while this IOMMU is set: 1 or 0."""

    @abstractmethod
    def attach(self, group: IommuGroup) -> None:
        """Let the group's devices use it. Raises ``OSError`` when it cannot serve them, with nothing
        changed."""

    @abstractmethod
    def detach(self, group: IommuGroup) -> None:
        """The opposite of :meth:`attach`."""

    @abstractmethod
    def close(self) -> None:
        """Remove every mapping and pin, because the container is no longer in use."""
