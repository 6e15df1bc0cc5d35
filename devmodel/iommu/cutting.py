# SPDX-License-Identifier: Apache-2.0
"""How one mapping becomes two, for APIs whose unmap splits mappings.

The parts share the memory that the whole has pinned, and the pages that are charged for it.
State: under the lock of the :class:`devmodel.iommu.space.IoAddressSpace`, whose API calls this. Source:
Documentation/userspace-api/iommufd.rst (VFIO compatibility).
"""

from devmodel.iommu.api import PAGE_SIZE
from devmodel.iommu.mappings import Mapping, Mappings
from devmodel.iommu.sharing import part_of


def cut(mappings: Mappings, whole: Mapping, iova: int) -> None:
    """Replace ``whole`` by two mappings, of which the second begins at ``iova``. No mediated device has
    pinned any of it, and it is not being made. Both parts are of whole pages if anything of it is pinned.

    DMA that is under way goes on. A device that remembers the mapping has to look it up again.
    """
    size = iova - whole.iova
    first = Mapping(whole.client, whole.iova, whole.vaddr, size, whole.allows)
    second = Mapping(whole.client, iova, whole.vaddr + size, whole.size - size, whole.allows)
    if whole.pages is not None:
        first.pages, second.pages = whole.pages, part_of(whole.pages, size, second.size)
    if whole.charged:
        first.charged, second.charged = size // PAGE_SIZE, second.size // PAGE_SIZE
    mappings.remove(whole)
    mappings.add(first)
    mappings.add(second)
