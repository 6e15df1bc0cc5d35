# SPDX-License-Identifier: Apache-2.0
"""Parameters of the iommufd, vfio, vfio_pci and vfio_iommu_type1 modules, as sys/module shows them.

Threads: the trio thread changes them, any thread reads.  Source: modinfo of iommufd, vfio, vfio-pci and
vfio_iommu_type1.
"""

from dataclasses import dataclass

from devmodel.iommu.api import DMA_ENTRY_LIMIT


@dataclass(slots=True)
class VfioModule:
    """The parameters by their names; changed on the lifecycle thread, read by any.

    ``dma_entry_limit`` is the most mappings of a container whose IOMMU is set from now on,
    ``iommufd_unsafe_interrupts`` iommufd's own ``allow_unsafe_interrupts``. ``ids`` are the functions that
    vfio-pci takes from when it is loaded (:func:`devmodel.pci.ids.parse_module_ids`).
    """

    enable_unsafe_noiommu_mode: bool = False
    allow_unsafe_interrupts: bool = False
    iommufd_unsafe_interrupts: bool = False
    disable_hugepages: bool = False
    enable_sriov: bool = False
    nointxmask: bool = False
    disable_idle_d3: bool = False
    disable_vga: bool = False
    disable_denylist: bool = False
    ids: str = ""
    dma_entry_limit: int = DMA_ENTRY_LIMIT
