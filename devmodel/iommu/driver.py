# SPDX-License-Identifier: Apache-2.0
"""What a VFIO container asks of its IOMMU driver, whichever SET_IOMMU chose (struct vfio_iommu_driver_ops).

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
        """The addresses that devices reach through it; None when it maps nothing."""

    @abstractmethod
    def check_extension(self, extension: int) -> int:
        """What CHECK_EXTENSION answers while this IOMMU is set: 1 or 0."""

    @abstractmethod
    def attach(self, group: IommuGroup) -> None:
        """Let the group's devices use it; ``OSError`` when it cannot, and then nothing has changed."""

    @abstractmethod
    def detach(self, group: IommuGroup) -> None:
        """The opposite of :meth:`attach`."""

    @abstractmethod
    def close(self) -> None:
        """Forget every mapping and pin: the container is no longer in use."""
