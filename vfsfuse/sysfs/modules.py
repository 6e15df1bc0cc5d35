# SPDX-License-Identifier: Apache-2.0
"""sys/module: the kernel modules that a machine with such devices has loaded, and their parameters.

The values of parameters are the lab's (devmodel.vfio.module).  Trio thread; the device lane calls show() too.
Source: Documentation/ABI/stable/sysfs-module, Documentation/ABI/testing/sysfs-module, modinfo(8) of iommufd,
vfio, vfio-pci and vfio_iommu_type1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from devmodel.lifecycle.bridge import PCIEPORT
from devmodel.lifecycle.lab import Lab
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.kernfs.members import Attribute, attribute
from vfsfuse.sysfs.kstrtox import parse_bool, parse_uint
from vfsfuse.sysfs.lab import LabDir
from vfsfuse.sysfs.uevent import UeventStoreDir


def _parameter(name: str, mode: int, doc: str, member: str = "") -> Attribute:
    """A boolean parameter: the attribute `member` of the lab's VfioModule, by default that of its name."""
    member = member or name

    def show(self: LabDir) -> str:
        return "Y" if getattr(self.lab.vfio, member) else "N"

    def store(self: LabDir, text: str) -> None:
        """Sets it. EINVAL: no truth value."""
        setattr(self.lab.vfio, member, parse_bool(text))

    return Attribute(name, mode, show, store if mode & 0o222 else None, doc=f"{doc}: `Y` or `N`.")


class IommufdParameters(LabDir):
    """sys/module/iommufd/parameters: parameters of iommufd."""

    __slots__ = ()
    allow_unsafe_interrupts = _parameter(
        "allow_unsafe_interrupts",
        0o644,
        "Whether a function may be bound whose interrupts are not isolated; those of a lab are",
        "iommufd_unsafe_interrupts",
    )


class VfioParameters(LabDir):
    """sys/module/vfio/parameters: parameters of VFIO."""

    __slots__ = ()
    enable_unsafe_noiommu_mode = _parameter(
        "enable_unsafe_noiommu_mode", 0o644, "Whether VFIO takes functions without an IOMMU"
    )


class Type1Parameters(LabDir):
    """sys/module/vfio_iommu_type1/parameters: parameters of the type1 IOMMU."""

    __slots__ = ()
    allow_unsafe_interrupts = _parameter(
        "allow_unsafe_interrupts",
        0o644,
        "Whether a group may be used whose interrupts are not isolated; those of a lab are",
    )
    disable_hugepages = _parameter(
        "disable_hugepages", 0o644, "Whether the IOMMU uses no huge pages; clients see no difference"
    )

    @attribute(0o644)
    def dma_entry_limit(self) -> int:
        """How many mappings a container may have whose IOMMU is set from now on."""
        return self.lab.vfio.dma_entry_limit

    @dma_entry_limit.store
    def _store_dma_entry_limit(self, text: str) -> None:
        """Sets it. EINVAL: no number; ERANGE: more than 32 bits."""
        self.lab.vfio.dma_entry_limit = parse_uint(text)


class VfioPciParameters(LabDir):
    """sys/module/vfio_pci/parameters: parameters of vfio-pci, but `ids`, which Linux does not show.

    vfio-pci reads most of them when it is loaded, so that a write has no effect until it is loaded again.
    """

    __slots__ = ()
    enable_sriov = _parameter(
        "enable_sriov", 0o644, "Whether a function of vfio-pci may have virtual functions"
    )
    nointxmask = _parameter(
        "nointxmask", 0o644, "Whether INTx is masked outside the function, once the module is loaded again"
    )
    disable_idle_d3 = _parameter(
        "disable_idle_d3", 0o644, "Whether unused functions stay in D0; those of a lab always do"
    )
    disable_vga = _parameter("disable_vga", 0o444, "Whether there is no VGA region")
    disable_denylist = _parameter(
        "disable_denylist", 0o444, "Whether functions with known errata are taken; no model is one"
    )


@dataclass(frozen=True, slots=True)
class Module:
    """A module: the modules that it uses, the class of its `parameters`, and whether it is a part of the
    kernel and not loaded."""

    uses: tuple[str, ...] = ()
    parameters: Callable[[str, Lab], Kobject] | None = None
    built_in: bool = False


TYPE1 = "vfio_iommu_type1"
"""It is not there when dev/vfio/vfio opens iommufds, or there are no groups."""
PCIEHP = "pciehp"
"""It is there when the machine has slots."""
MODULES: Mapping[str, Module] = {
    "iommufd": Module(parameters=IommufdParameters),
    "mdev": Module(),
    PCIEHP: Module(built_in=True),
    "pcieportdrv": Module(built_in=True),
    "vfio": Module(uses=("iommufd",), parameters=VfioParameters),
    TYPE1: Module(uses=("vfio",), parameters=Type1Parameters),
    "vfio_mdev": Module(uses=("mdev", "vfio")),
    "vfio_pci": Module(uses=("vfio_pci_core",), parameters=VfioPciParameters),
    "vfio_pci_core": Module(uses=("vfio",)),
}
"""The modules of every lab, but for :data:`TYPE1` and :data:`PCIEHP`.  The host driver of each parent has a
module, too."""
OF_MDEV = ("mdev", "vfio_mdev")
"""Modules that are not there in a lab without the bus of mediated devices."""
HOST_DRIVER, OF_PARENT = Module(), Module(uses=("mdev",))
"""The module of a host driver, and that of one whose parents make mediated devices."""


def module_name(driver: str) -> str:
    """The name of the module of a driver: modules have underscores where drivers have dashes."""
    return "pcieportdrv" if driver == PCIEPORT else driver.replace("-", "_")


class ModuleDir(UeventStoreDir):
    """sys/module/<module>: a kernel module."""

    __slots__ = ()
    uevent_subsystem = "module"


class LoadedModuleDir(ModuleDir):
    """sys/module/<module>: a kernel module that was loaded."""

    __slots__ = ()

    @attribute()
    def initstate(self) -> str:
        """The state of the module: `live`, loaded."""
        return "live"

    @attribute()
    def taint(self) -> str:
        """An empty line: the module taints nothing."""
        return "\n"
