# SPDX-License-Identifier: Apache-2.0
"""The numbers of <linux/vfio.h> that VFIO's rules use: flags, actions, features.

They are values of the interface, and do not depend on the decoder.  tests/test_abi.py compares each with the
header.  The name there is ``VFIO_``, the class name in capitals, and the attribute (``DmaMap.FLAG_READ`` is
VFIO_DMA_MAP_FLAG_READ).  State: none, constant.  Plain integers, because an IntFlag is slow to test.
"""

from typing import Final


class DmaMap:
    """Flags of MAP_DMA."""

    FLAG_READ: Final = 1
    FLAG_WRITE: Final = 2
    FLAG_VADDR: Final = 4


class DmaUnmap:
    """Flags of UNMAP_DMA."""

    FLAG_GET_DIRTY_BITMAP: Final = 1
    FLAG_ALL: Final = 2
    FLAG_VADDR: Final = 4


class IommuDirtyPages:
    """Flags of DIRTY_PAGES."""

    FLAG_START: Final = 1
    FLAG_STOP: Final = 2
    FLAG_GET_BITMAP: Final = 4


class IrqSet:
    """Flags of SET_IRQS: the kind of its data, and the action."""

    DATA_NONE: Final = 1
    DATA_BOOL: Final = 2
    DATA_EVENTFD: Final = 4
    ACTION_MASK: Final = 8
    ACTION_UNMASK: Final = 16
    ACTION_TRIGGER: Final = 32
    DATA_TYPE_MASK: Final = 7
    ACTION_TYPE_MASK: Final = 56


class DeviceFeature:
    """Flags of DEVICE_FEATURE, and the features that a device here may have."""

    MASK: Final = 0xFFFF
    GET: Final = 1 << 16
    SET: Final = 1 << 17
    PROBE: Final = 1 << 18
    PCI_VF_TOKEN: Final = 0
    MIGRATION: Final = 1
    MIG_DEVICE_STATE: Final = 2
    LOW_POWER_ENTRY: Final = 3
    LOW_POWER_ENTRY_WITH_WAKEUP: Final = 4
    LOW_POWER_EXIT: Final = 5


class GfxPlane:
    """Flags of QUERY_GFX_PLANE."""

    TYPE_PROBE: Final = 1
    TYPE_REGION: Final = 4


IOEVENTFD_SIZES: Final = (1, 2, 4, 8)
"""VFIO_DEVICE_IOEVENTFD_8, _16, _32 and _64: the number of bytes is the flag."""
