# SPDX-License-Identifier: Apache-2.0
"""The IOMMU of containers that have none (VFIO_NOIOMMU_IOMMU): it maps nothing and protects nothing.

State: none. Source: <linux/vfio.h>, Documentation/driver-api/vfio.rst.
"""

from devmodel.iommu.api import Extension, IommuGroup
from devmodel.iommu.driver import Iommu


class NoIommu(Iommu):
    """Devices use physical addresses, which their drivers find elsewhere. Every type1 ioctl is ENOTTY."""

    __slots__ = ()

    @property
    def space(self) -> None:
        """Nothing is mapped."""

    def check_extension(self, extension: int) -> int:
        return int(extension == Extension.NOIOMMU)

    def attach(self, group: IommuGroup) -> None:
        """Nothing to set up."""

    def detach(self, group: IommuGroup) -> None:
        """Nothing to undo."""

    def close(self) -> None:
        """Nothing was mapped."""
