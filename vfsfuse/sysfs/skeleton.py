# SPDX-License-Identifier: Apache-2.0
"""The tree before any device is in it, as one literal; see docs/architecture.md for what each part is for.

`...` is an empty directory that `vfsfuse run` binds the machine's own directory over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import EllipsisType
from typing import Union

from devmodel.iommu import DMA_ENTRY_LIMIT
from devmodel.lifecycle.lab import Lab
from devmodel.uuids import parse_uuid
from vfsfuse.kernfs.kobject import Kobject, attribute, store_only
from vfsfuse.sysfs.drivers import MdevBusDir, PciBusDir
from vfsfuse.sysfs.kstrtox import parse_bool

Skeleton = Mapping[str, Union["Skeleton", EllipsisType, Callable[[str, Lab], Kobject]]]


class LabKobject(Kobject):
    """A directory whose attributes act on the whole lab."""

    __slots__ = ("lab",)

    def __init__(self, name: str, lab: Lab) -> None:
        super().__init__(name)
        self.lab = lab


class VgpuClass(LabKobject):
    """sys/class/vgpu: a VM's vGPUs, those of one UUID, are started and shut down together."""

    __slots__ = ()

    @store_only()
    def vgpu_start(self, text: str) -> None:
        self.lab.start(parse_uuid(text))

    @store_only()
    def vgpu_shutdown(self, text: str) -> None:
        self.lab.shutdown(parse_uuid(text))


class Type1Parameters(LabKobject):
    """sys/module/vfio_iommu_type1/parameters."""

    __slots__ = ()

    @attribute()
    def dma_entry_limit(self) -> int:
        return DMA_ENTRY_LIMIT


class VfioParameters(LabKobject):
    """sys/module/vfio/parameters."""

    __slots__ = ()

    @attribute(0o644)
    def enable_unsafe_noiommu_mode(self) -> str:
        return "Y" if self.lab.vfio.noiommu else "N"

    @enable_unsafe_noiommu_mode.store
    def _store_noiommu(self, text: str) -> None:
        self.lab.vfio.noiommu = parse_bool(text)


class VfioPciParameters(LabKobject):
    """sys/module/vfio_pci/parameters."""

    __slots__ = ()

    @attribute(0o644)
    def enable_sriov(self) -> str:
        return "Y" if self.lab.vfio.sriov else "N"

    @enable_sriov.store
    def _store_sriov(self, text: str) -> None:
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
