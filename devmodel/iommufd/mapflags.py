# SPDX-License-Identifier: Apache-2.0
"""The flags of the ioctls that map: IOAS_MAP, IOAS_MAP_FILE and IOAS_COPY.

State: none. Any thread. Source: <linux/iommufd.h> (enum iommufd_ioas_map_flags).
"""

import errno
from enum import IntFlag

from devmodel.iommu.mappings import NO_ACCESS
from devmodel.iommufd.iovas import LAST


class MapFlags(IntFlag):
    """Flags of IOMMU_IOAS_MAP, MAP_FILE and COPY."""

    FIXED_IOVA = 1
    WRITEABLE = 2
    READABLE = 4


_KNOWN = int(MapFlags.FIXED_IOVA | MapFlags.WRITEABLE | MapFlags.READABLE)
_ACCESS = int(MapFlags.WRITEABLE | MapFlags.READABLE)


def access_of(flags: int) -> int:
    """What devices may do with a mapping that is made with ``flags`` (:attr:`Mapping.allows`)."""
    return flags & 2 | flags >> 2 & 1 or NO_ACCESS


def check_map(flags: int, reserved: int, iova: int, length: int) -> None:
    """The checks of IOAS_MAP that come before its IOAS is looked for. Raises ``OSError``: EOPNOTSUPP (unknown
    flag), EOVERFLOW (the largest number), EINVAL (no right)."""
    if flags & ~_KNOWN or reserved:
        raise OSError(errno.EOPNOTSUPP, f"flags {flags:#x} of a mapping")
    if LAST in (iova, length):
        raise OSError(errno.EOVERFLOW, f"iova {iova:#x}, length {length:#x}")
    if not flags & _ACCESS:
        raise OSError(errno.EINVAL, "a mapping must be readable or writable by the device")
