# SPDX-License-Identifier: Apache-2.0
"""The IOMMU behind a device, as GET_HW_INFO describes it.

State: none. Any thread. Source: <linux/iommufd.h> (struct iommu_hw_info, enum iommufd_hw_capabilities).
"""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from typing import NamedTuple, Protocol

from devmodel.iommufd.context import Context
from devmodel.iommufd.objects import IommufdObject, ObjectType


class HwInfoType(IntEnum):
    """Types of the data (IOMMU_HW_INFO_TYPE_*)."""

    NONE = 0
    """No data. A client that asks for it gets the type that the IOMMU has."""
    INTEL_VTD = 1


class HwInfoFlag(IntFlag):
    """Flags of GET_HW_INFO (IOMMU_HW_INFO_FLAG_*)."""

    INPUT_TYPE = 1
    """The client asks for data of one type."""


class HwCapability(IntFlag):
    """What an IOMMU can do (IOMMU_HW_CAP_*)."""

    DIRTY_TRACKING = 1
    PCI_ATS_NOT_SUPPORTED = 8
    """The function cannot have translations cached (Linux 7.0)."""


class UnitFacts(Protocol):
    """An IOMMU unit, as far as its clients see it."""

    @property
    def capabilities(self) -> int:
        """The capability register of VT-d."""

    @property
    def extended_capabilities(self) -> int:
        """The extended capability register of VT-d."""

    @property
    def dirty_tracking(self) -> bool:
        """Whether it marks the pages that devices write."""

    @property
    def page_requests(self) -> bool:
        """Whether functions can have translations cached, and ask for pages."""

    @property
    def vtd_info(self) -> bool:
        """Whether its driver tells clients that it is VT-d, and its registers."""


class IommuDevice(IommufdObject):
    """A physical function that is bound to ``context``, as its IOMMU sees it."""

    __slots__ = ()
    type = ObjectType.DEVICE
    context: Context

    @property
    def unit(self) -> UnitFacts | None:
        """The IOMMU unit that it is behind, None for a function without an IOMMU."""
        raise NotImplementedError

    @property
    def ats(self) -> bool:
        """Whether it can have translations cached."""
        return False

    def check_page_requests(self) -> None:
        """Raise ``OSError`` for a function that cannot ask its IOMMU for pages: ENODEV, EINVAL for a virtual
        function that shares the ability with its physical one."""
        raise OSError(errno.ENODEV, f"device {self.id} cannot ask for pages")


class HwInfo(NamedTuple):
    """The answer of GET_HW_INFO: the type of the data, (flags, capability register, extended capability
    register) of VT-d or None, and the capabilities."""

    type: HwInfoType
    vtd: tuple[int, int, int] | None
    capabilities: HwCapability


def check_hw_info(flags: int, reserved: bytes) -> None:
    """Raises ``OSError(EOPNOTSUPP)`` for an unknown flag, and for a reserved byte that is not 0."""
    if flags & ~int(HwInfoFlag.INPUT_TYPE) or any(reserved):
        raise OSError(errno.EOPNOTSUPP, f"GET_HW_INFO with flags {flags:#x}, or reserved bytes are set")


def hw_info(device: IommuDevice, flags: int, wanted: int) -> HwInfo:
    """GET_HW_INFO. ``wanted`` is the type that the client asks for with INPUT_TYPE.

    Raises ``OSError(EOPNOTSUPP)`` when the IOMMU has data, but of another type.
    """
    unit = device.unit
    tracking = unit is not None and unit.dirty_tracking
    capabilities = HwCapability(0) if device.ats else HwCapability.PCI_ATS_NOT_SUPPORTED
    if tracking:
        capabilities |= HwCapability.DIRTY_TRACKING
    if unit is None or not unit.vtd_info:
        return HwInfo(HwInfoType.NONE, None, capabilities)
    if flags & HwInfoFlag.INPUT_TYPE and wanted not in (HwInfoType.NONE, HwInfoType.INTEL_VTD):
        raise OSError(errno.EOPNOTSUPP, f"an IOMMU without data of type {wanted}")
    registers = (0, unit.capabilities, unit.extended_capabilities)
    return HwInfo(HwInfoType.INTEL_VTD, registers, capabilities)
