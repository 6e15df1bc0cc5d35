# SPDX-License-Identifier: Apache-2.0
"""The backends of an IOAS: one for its domains (HWPTs), and one for the accesses of mediated devices.

State: under the lock of the address space. Source: Documentation/userspace-api/iommufd.rst.
"""

import errno
from typing import ClassVar

from devmodel.client import Client
from devmodel.iommu.attachments import Backends
from devmodel.iommu.backend import PinningBackend
from devmodel.iommu.mappings import Mapping
from devmodel.iommu.pins import MediatedBackend


class DomainBackend(PinningBackend):
    """Pins for the domains of an IOAS, once for all of them. The IOAS itself reserves what they cannot
    reach."""

    __slots__ = ()
    iova_ranges: ClassVar[tuple[tuple[int, int], ...]] = ()


class AccessBackend(MediatedBackend):
    """Counts the pages that accesses pin. Copies of the memory share these pages."""

    __slots__ = ()
    not_mapped, process_ended = errno.ENOENT, errno.EFAULT

    def memory_of(self, mapping: Mapping) -> Client:
        return self.locked.share(mapping)


BACKENDS: Backends = (DomainBackend, AccessBackend)
