# SPDX-License-Identifier: Apache-2.0
"""The surroundings of a directory: the protocol `View`, by which a directory asks the lab that it is in.

Everything here belongs to the trio thread, except where a method says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import MdevType
from devmodel.vfio.group import Assignable, Group
from vfsfuse.kernfs.kobject import Entry, Kobject
from vfsfuse.sysfs.numa import Numa
from vfsfuse.vfio.port import Port


@dataclass(slots=True)
class Subsystems:
    """The directories of buses, drivers and classes, which links of devices point at.  `pci_drivers` and
    `classes` are by name.  A lab may have no bus of mediated devices, and no driver of it."""

    pci_bus: Kobject
    mdev_bus: Kobject | None = None
    vfio_mdev: Kobject | None = None
    pci_drivers: dict[str, Kobject] = field(default_factory=dict)
    classes: dict[str, Kobject] = field(default_factory=dict)


class View(Protocol):
    """A lab as a tree (vfsfuse.views.labview), as far as the directories in it need it."""

    lab: Lab
    subsystems: Subsystems
    numa: Numa

    def directory(self, device: Assignable) -> Kobject:
        """The directory of a device that is shown.  Any thread.  Raises LookupError when it is not."""

    def group_dir(self, group: Group) -> Entry | None:
        """The directory of an IOMMU group, while it is shown."""

    def iommu_dir(self, function: PciFunction) -> Entry | None:
        """The directory of the IOMMU unit that a function is behind, None without one."""

    def net_dir(self, function: PciFunction) -> Kobject | None:
        """The directory of a function's network interfaces, while its host driver has registered some.  Any
        thread."""

    def msi_dir(self, directory: Any) -> Kobject:
        """The directory of the interrupts by message of the function whose directory (PciFunctionDir) is
        `directory`.  Any thread."""

    def type_dir(self, type_: MdevType) -> Entry | None:
        """The directory of a type, while its parent has its host driver."""

    def module_dir(self, name: str) -> Entry | None:
        """The directory of a module, while it is shown."""

    def port(self, device: Assignable) -> Port:
        """The port by which clients reach a device.  Any thread.  Raises OSError(ENODEV) for a device that is
        gone."""

    def owned_by(self, uid: int) -> bool:
        """Whether `uid` mounted the lab, or is root.  Any thread."""


class LabDir(Kobject):
    """A directory whose attributes act on the whole lab."""

    __slots__ = ("lab",)

    def __init__(self, name: str, lab: Lab) -> None:
        super().__init__(name)
        self.lab = lab
