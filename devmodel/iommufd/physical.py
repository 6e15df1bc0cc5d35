# SPDX-License-Identifier: Apache-2.0
"""The addresses at which devices without an IOMMU reach the memory of an IOAS.

A device of the lab has no physical memory of the host. It reaches the memory of its IOAS, and finds each page
at its iova. So the iova is the address that IOAS_NOIOMMU_GET_PA gives: a client that has its device use it
reaches the page. Unlike on Linux, neighbours in a mapping always are neighbours there.

State: none. Any thread. Source: <linux/iommufd.h> (struct iommu_ioas_noiommu_get_pa).
"""

import errno

from devmodel.iommufd.hwpt import Hwpt
from devmodel.iommufd.ioas import Ioas
from devmodel.iommufd.objects import ObjectTable


def physical(objects: ObjectTable, ioas: Ioas, iova: int, length: int) -> tuple[int, int]:
    """IOAS_NOIOMMU_GET_PA: the address of ``iova``, and the bytes that follow there without a gap, at most
    ``length`` unless that is 0.

    Raises ``OSError``: ENOENT (nothing is mapped), EOPNOTSUPP (no device without an IOMMU is attached).
    """
    with ioas.space.lock:
        mapping = ioas.space.mappings.covering(iova)
        if mapping is None or not mapping.allows:
            raise OSError(errno.ENOENT, f"iova {iova:#x} is not mapped")
        found = mapping.end - iova
    if not any(isinstance(one, Hwpt) and one.ioas is ioas and one.unit is None for one in objects.all()):
        raise OSError(errno.EOPNOTSUPP, "no device without an IOMMU is attached")
    return iova, min(found, length or found)
