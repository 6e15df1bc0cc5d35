# SPDX-License-Identifier: Apache-2.0
"""Parameters of the vfio and vfio-pci modules, as sys/module shows them.

Threads: the trio thread changes them, any thread reads.  Source: modinfo of vfio and vfio-pci.
"""


class VfioModule:
    """The parameters of the vfio and vfio-pci modules; changed on the lifecycle thread, read by any."""

    __slots__ = ("noiommu", "sriov")

    def __init__(self) -> None:
        self.noiommu = False
        """enable_unsafe_noiommu_mode"""
        self.sriov = False
        """vfio-pci's enable_sriov"""
