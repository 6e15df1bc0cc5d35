# SPDX-License-Identifier: Apache-2.0
"""Checks of IOMMU units: whether their scopes name what is there, and whether each function is behind one.

State: none. Errors: see :mod:`vfsfuse.labfile.reading`.
"""

from collections.abc import Mapping

from devmodel.lifecycle.bridge import automatic_ports
from devmodel.lifecycle.iommugroup import bridge_nodes, node_of
from devmodel.lifecycle.spec import LabSpec
from devmodel.pci.address import PciAddress
from devmodel.topology.grouping import partition
from devmodel.topology.placement import Placement
from devmodel.topology.scopes import Scopes
from vfsfuse.labfile.reading import Reading

UNITS = ("iommu", "units")


def check_units(reading: Reading, lab: LabSpec, buses: Placement) -> None:
    """Note what is wrong with the units of a lab whose ``buses`` are placed."""
    if not lab.units:
        return
    scopes = Scopes({unit.name: unit.scope for unit in lab.units}, buses)
    specs = {spec.name: spec for spec in (*lab.all_functions, *automatic_ports(lab.all_functions, buses))}
    addresses = {name: PciAddress.parse(name) for name in specs}
    for unit, places in scopes.unknown(tuple(addresses.values())).items():
        for place in places:
            why = f"{place} is not there (name a root bus, a bridge or a function of the lab)"
            reading.note((*UNITS, unit, "scope"), why)
    units = {name: scopes.unit_of(addresses[name]) for name, spec in specs.items() if spec.iommu}
    outside = [name for name, unit in units.items() if unit is None]
    if outside:
        more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
        reading.note(UNITS, f"leave out {outside[0]}{more} (add a unit without `scope`, or `iommu = false`)")
        return
    bridges = bridge_nodes(specs, buses)
    nodes = [node_of(specs[name], buses, bridges) for name in units]
    _check_groups(reading, units, {str(one): str(first) for one, first in partition(nodes).items()})


def _check_groups(reading: Reading, units: Mapping[str, str | None], first: Mapping[str, str]) -> None:
    for name, leader in first.items():
        if units[name] != units[leader]:
            reading.note(
                UNITS,
                f"{leader} and {name} are in one IOMMU group, but behind {units[leader]} and {units[name]} "
                "(put both behind one unit)",
            )
            return
