# SPDX-License-Identifier: Apache-2.0
"""IOMMUs of containers. ``Type1`` is the API; ``PinningBackend`` and ``MediatedBackend`` implement it.

Device models use what :class:`devmodel.iommu.pins.AddressSpace` offers (``dma_rw``, ``pin_pages``), the VFIO
files what :class:`devmodel.iommu.type1.Type1` adds to it.
"""

from devmodel.iommu.api import (
    DMA_ENTRY_LIMIT,
    MAX_BITMAP_SIZE,
    PAGE_SIZE,
    PGSIZES,
    ClientBitmap,
    DmaFault,
    DmaUser,
    Extension,
    Fault,
    Iommu,
    IommuGroup,
    Prot,
)
from devmodel.iommu.backend import Backend, LockedMemory, MediatedBackend, PinningBackend
from devmodel.iommu.dma import Piece, StalePiece
from devmodel.iommu.mappings import Mapping, Mappings
from devmodel.iommu.noiommu import NoIommu
from devmodel.iommu.pins import AddressSpace, Pin
from devmodel.iommu.type1 import Type1

__all__ = [
    "DMA_ENTRY_LIMIT",
    "MAX_BITMAP_SIZE",
    "PAGE_SIZE",
    "PGSIZES",
    "AddressSpace",
    "Backend",
    "ClientBitmap",
    "DmaFault",
    "DmaUser",
    "Extension",
    "Fault",
    "Iommu",
    "IommuGroup",
    "LockedMemory",
    "Mapping",
    "Mappings",
    "MediatedBackend",
    "NoIommu",
    "Piece",
    "Pin",
    "PinningBackend",
    "Prot",
    "StalePiece",
    "Type1",
]
