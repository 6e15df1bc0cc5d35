# SPDX-License-Identifier: Apache-2.0
"""The tree before any device is in it, as one literal, and the directories in it that act on the whole lab.

`...` stands for an empty directory: `vfsfuse run` mounts the machine's own directory there.  Trio thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import EllipsisType
from typing import Union

from devmodel.lifecycle.lab import Lab
from devmodel.uuids import parse_uuid
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.kernfs.members import store_only
from vfsfuse.sysfs.chardev import CharDir, DevDir
from vfsfuse.sysfs.drivers import PciBusDir
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


SKELETON: Skeleton = {
    "sys": {
        "block": ...,
        "bus": {"pci": PciBusDir},
        "class": {
            "iommu": {},
            "misc": {},
            "net": ...,
            "vfio-dev": {},
            "vgpu": VgpuClass,
        },
        "dev": {"block": {}, "char": lambda name, lab: CharDir(name)},
        "devices": {"system": ..., "virtual": {"net": ...}},
        "firmware": ...,
        "fs": ...,
        "kernel": {"debug": ..., "iommu_groups": {}, "mm": ...},
        "module": {},
        "power": ...,
    },
    "dev": lambda name, lab: DevDir(name),
}
