# SPDX-License-Identifier: Apache-2.0
"""The IOMMU units of a lab, and which function is behind which: those of the lab file with their scopes, or
one for each PCI domain that has a function behind an IOMMU.

State: none that changes. Source: Documentation/ABI/testing/sysfs-class-iommu.
"""

from __future__ import annotations

from collections.abc import Iterable

from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.iommuunit import IommuUnit
from devmodel.lifecycle.physical import VirtualFunction
from devmodel.lifecycle.spec import LabSpec
from devmodel.topology.placement import Placement
from devmodel.topology.scopes import Scopes


class Units:
    """The units of a lab, ``all`` in the order of the lab file, or of the domains."""

    __slots__ = ("_by_domain", "_by_name", "_scopes", "all")

    def __init__(self, spec: LabSpec, buses: Placement, functions: Iterable[PciFunction]) -> None:
        """``functions`` are those that are there from the start."""
        self._scopes = Scopes({unit.name: unit.scope for unit in spec.units}, buses)
        self._by_name = {
            unit.name: IommuUnit(number, spec.iommu, unit.name) for number, unit in enumerate(spec.units)
        }
        behind = () if spec.units else (each for each in functions if not each.group.noiommu)
        domains = sorted({function.address.segment for function in behind})
        self._by_domain = {domain: IommuUnit(number, spec.iommu) for number, domain in enumerate(domains)}
        self.all = (*self._by_name.values(), *self._by_domain.values())

    def unit_of(self, function: PciFunction) -> IommuUnit | None:
        """The unit that a function is behind, None for one without an IOMMU. A virtual function is behind
        that of its physical one."""
        if function.group.noiommu:
            return None
        if isinstance(function, VirtualFunction):
            return function.physical.unit
        if not self._by_name:
            return self._by_domain.get(function.address.segment)
        name = self._scopes.unit_of(function.address)
        return None if name is None else self._by_name[name]
