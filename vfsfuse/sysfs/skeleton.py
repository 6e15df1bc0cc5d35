# SPDX-License-Identifier: Apache-2.0
"""The tree before any device is in it, as one literal, and the directories in it that act on the whole lab.

`...` stands for an empty directory: `vfsfuse run` mounts the machine's own directory there.  Trio thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import EllipsisType
from typing import Union

from devmodel.iommu.api import DMA_ENTRY_LIMIT
from devmodel.lifecycle.lab import Lab
from devmodel.uuids import parse_uuid
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.kernfs.members import attribute, store_only
from vfsfuse.sysfs.drivers import MdevBusDir, PciBusDir
from vfsfuse.sysfs.kstrtox import parse_bool
from vfsfuse.sysfs.lab import LabDir

Skeleton = Mapping[str, Union["Skeleton", EllipsisType, Callable[[str, Lab], Kobject]]]


class VgpuClass(LabDir):
    """sys/class/vgpu: all vGPUs of a UUID, which are those of one VM."""

    __slots__ = ()

    @store_only()
    def vgpu_start(self, text: str) -> None:
        """Starts all vGPUs of this UUID. EINVAL: no UUID; ENODEV: there are none."""
        self.lab.start(parse_uuid(text))

    @store_only()
    def vgpu_shutdown(self, text: str) -> None:
        """Shuts all vGPUs of this UUID down. EINVAL: no UUID; ENODEV: there are none."""
        self.lab.shutdown(parse_uuid(text))


class Type1Parameters(LabDir):
    """sys/module/vfio_iommu_type1/parameters: parameters of the type1 IOMMU."""

    __slots__ = ()

    @attribute()
    def dma_entry_limit(self) -> int:
        """How many mappings a container may have."""
        return DMA_ENTRY_LIMIT


class VfioParameters(LabDir):
    """sys/module/vfio/parameters: parameters of VFIO."""

    __slots__ = ()

    @attribute(0o644)
    def enable_unsafe_noiommu_mode(self) -> str:
        """Whether VFIO takes functions without an IOMMU: `Y` or `N`."""
        return "Y" if self.lab.vfio.noiommu else "N"

    @enable_unsafe_noiommu_mode.store
    def _store_noiommu(self, text: str) -> None:
        """Sets it. EINVAL: no truth value."""
        self.lab.vfio.noiommu = parse_bool(text)


class VfioPciParameters(LabDir):
    """sys/module/vfio_pci/parameters: parameters of vfio-pci."""

    __slots__ = ()

    @attribute(0o644)
    def enable_sriov(self) -> str:
        """Whether a function of vfio-pci may have virtual functions: `Y` or `N`."""
        return "Y" if self.lab.vfio.sriov else "N"

    @enable_sriov.store
    def _store_sriov(self, text: str) -> None:
        """Sets it. EINVAL: no truth value."""
        self.lab.vfio.sriov = parse_bool(text)


SKELETON: Skeleton = {
    "sys": {
        "block": ...,
        "bus": {
            "mdev": MdevBusDir,
            "pci": PciBusDir,
        },
        "class": {"iommu": {}, "mdev_bus": {}, "net": ..., "vfio": {}, "vfio-dev": {}, "vgpu": VgpuClass},
        "dev": {"block": {}, "char": {}},
        "devices": {"system": ..., "virtual": {"net": ..., "vfio": {}}},
        "firmware": ...,
        "fs": ...,
        "kernel": {"debug": ..., "iommu_groups": {}, "mm": ...},
        "module": {
            "mdev": {},
            "vfio": {"parameters": VfioParameters},
            "vfio-pci": {},
            "vfio_iommu_type1": {"parameters": Type1Parameters},
            "vfio_mdev": {},
            "vfio_pci": {"parameters": VfioPciParameters},
        },
        "power": ...,
    },
    "dev": {},
}
