# SPDX-License-Identifier: Apache-2.0
"""IOMMU units and IOMMU groups in sysfs: sys/class/iommu and sys/kernel/iommu_groups.

No state but what devmodel has.  Formats: Documentation/ABI/testing/sysfs-class-iommu,
sysfs-class-iommu-intel-iommu and sysfs-kernel-iommu_groups.
"""

from __future__ import annotations

import errno
from itertools import pairwise

from devmodel.iommu.backend import PinningBackend
from devmodel.lifecycle.iommugroup import IommuGroup
from devmodel.lifecycle.iommuunit import IommuUnit
from devmodel.lifecycle.lab import Lab
from devmodel.vfio.group import Group as VfioGroup
from vfsfuse.kernfs.groups import AttributeGroup, Group
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.kernfs.members import attribute
from vfsfuse.sysfs.uevent import ClassDeviceDir


class IntelIommuGroup(AttributeGroup):
    """sys/devices/virtual/iommu/<unit>/intel-iommu: what the unit can do and does."""

    __slots__ = ()

    @property
    def unit(self) -> IommuUnit:
        """The unit."""
        found: IommuUnit = self.owner.unit
        return found

    @attribute()
    def version(self) -> str:
        """The version of the architecture: `major:minor`."""
        major, minor = self.unit.version
        return f"{major}:{minor}"

    @attribute()
    def address(self) -> str:
        """The address of the unit's registers, in hexadecimal digits."""
        return f"{self.unit.address:x}"

    @attribute()
    def cap(self) -> str:
        """The capability register, in hexadecimal digits."""
        return f"{self.unit.capabilities:x}"

    @attribute()
    def ecap(self) -> str:
        """The extended capability register, in hexadecimal digits."""
        return f"{self.unit.extended_capabilities:x}"

    @attribute()
    def domains_supported(self) -> int:
        """How many domains the unit can have."""
        return self.unit.domains_supported

    @attribute()
    def domains_used(self) -> int:
        """How many domains the unit has now: one for each group, but one for all groups of a container, and
        one for each HWPT that a function is attached to."""
        lab: Lab = self.owner.lab
        return self.unit.domains_used(lab.behind(self.unit))


class AmdIommuGroup(AttributeGroup):
    """sys/devices/virtual/iommu/<unit>/amd-iommu: what the unit can do, for one that is called `ivhd<N>`."""

    __slots__ = ()

    @attribute()
    def cap(self) -> str:
        """The capability header, in hexadecimal digits."""
        unit: IommuUnit = self.owner.unit
        return f"{unit.amd_header:x}"

    @attribute()
    def features(self) -> str:
        """The two registers of extended features, in hexadecimal digits: `first:second`."""
        unit: IommuUnit = self.owner.unit
        first, second = unit.amd_features
        return f"{first:x}:{second:x}"


class IommuUnitDir(ClassDeviceDir):
    """sys/devices/virtual/iommu/<unit>: an IOMMU unit."""

    __slots__ = ("lab", "unit")
    intel_iommu = Group("intel-iommu", IntelIommuGroup, when=lambda own: not own.unit.is_amd)
    amd_iommu = Group("amd-iommu", AmdIommuGroup, when=lambda own: own.unit.is_amd)

    def __init__(self, unit: IommuUnit, lab: Lab, subsystem_dir: Kobject) -> None:
        super().__init__(unit.name, subsystem_dir)
        self.unit, self.lab = unit, lab


def _has_no_domain(self: IommuGroupDir) -> bool:
    return self.translated is None


class IommuGroupDir(Kobject):
    """sys/kernel/iommu_groups/<N>: an IOMMU group."""

    __slots__ = ("group",)

    def __init__(self, group: VfioGroup) -> None:
        super().__init__(str(group.number))
        self.group = group

    @property
    def translated(self) -> IommuGroup | None:
        """The group, None for one whose devices are not behind an IOMMU."""
        return self.group if isinstance(self.group, IommuGroup) else None

    @attribute(name="name", when=_has_no_domain)
    def vfio_name(self) -> str:
        """`vfio-noiommu`: VFIO has made the group, for a vGPU or a function without an IOMMU."""
        return "vfio-noiommu"

    @attribute()
    def reserved_regions(self) -> str:
        """The iovas that cannot be mapped for one of the members, a range and its type in each line."""
        ranges = PinningBackend.iova_ranges if self.translated is not None else ()
        return "\n".join(
            f"{last + 1:#018x} {first - 1:#018x} msi" for (_, last), (first, _) in pairwise(ranges)
        )

    @attribute(0o644, name="type")
    def domain_type(self) -> str:
        """The type of the default domain: `DMA-FQ`, `DMA` or `identity`; `unknown` for a group that VFIO has
        made."""
        found = self.translated
        return "unknown" if found is None else found.default_domain.type.value

    @domain_type.store
    def _store_type(self, text: str) -> None:
        """Sets it; `auto` is `DMA-FQ`. EINVAL: another text, or a group that VFIO has made; EPERM: the host
        driver of a member is bound, or a container or an iommufd has the group. `DMA` can always become
        `DMA-FQ`."""
        found = self.translated
        if found is None:
            raise OSError(errno.EINVAL, f"group {self.name} has no default domain")
        with found.lock:
            found.default_domain.choose(text, found.claimed)
