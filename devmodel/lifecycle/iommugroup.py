# SPDX-License-Identifier: Apache-2.0
"""IOMMU groups of PCI functions: where a function of a lab file is among the bridges, and the group with all
its members, whatever driver they have.

State: the members are the lifecycle thread's, under ``Lab.lock``; the rest is as the group's. Source:
Documentation/driver-api/vfio.rst, Documentation/ABI/testing/sysfs-kernel-iommu_groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from devmodel.device.traits import traits_of
from devmodel.lifecycle.iommuunit import DefaultDomain
from devmodel.lifecycle.spec import BridgeKind, FunctionSpec
from devmodel.pci.address import PciAddress
from devmodel.topology.grouping import Kind, Node
from devmodel.topology.placement import Placement
from devmodel.vfio.group import Assignable, Group

KINDS: Mapping[BridgeKind, Kind] = {
    BridgeKind.ROOT_PORT: Kind.ROOT_PORT,
    BridgeKind.UPSTREAM: Kind.UPSTREAM,
    BridgeKind.DOWNSTREAM: Kind.DOWNSTREAM,
    BridgeKind.PCI: Kind.PCI_BRIDGE,
}
_INTEL = 0x8086


class Place(NamedTuple):
    """A function that is to have a group. ``iommu`` is whether it is behind an IOMMU."""

    node: Node
    iommu: bool


class IommuGroup(Group):
    """A group of functions behind an IOMMU. ``members`` are all of them, ``default_domain`` is the domain in
    which their host drivers do DMA."""

    __slots__ = ("default_domain", "members")

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.members: tuple[Assignable, ...] = ()
        self.default_domain = DefaultDomain()


def has_acs(spec: FunctionSpec) -> bool:
    """Whether a function has ACS that is on: as the lab file says, or else if it is a port at the upper end
    of a link."""
    if spec.acs is not None:
        return spec.acs
    return spec.bridge is not None and spec.bridge.kind.is_downstream_port


def _of_root_complex(spec: FunctionSpec) -> bool:
    """Whether Linux knows of a function on a root bus that nothing reaches its peers around the IOMMU, though
    no ACS says so: those of Intel that have a PCI Express capability."""
    if spec.model is None or spec.bridge is not None or spec.model.identity.vendor != _INTEL:
        return False
    return traits_of(spec.model, spec.memory, spec.options, spec.texts).is_express


def bridge_nodes(specs: Mapping[str, FunctionSpec], buses: Placement) -> dict[str, Node]:
    """The bridges of a lab by the name of the bus right below each. ``specs`` has all functions by name, with
    the root ports that the lab file does not name."""
    found: dict[str, Node] = {}
    for bus, bridge in buses.bridges.items():  # those above others come first
        found[bus] = node_of(specs[str(bridge.address)], buses, found)
    return found


def node_of(spec: FunctionSpec, buses: Placement, bridges: Mapping[str, Node]) -> Node:
    """Where a function is among the ``bridges``, which are those of :func:`bridge_nodes`."""
    bridge, address = spec.bridge, PciAddress.parse(spec.address)
    above = bridges.get(address.bus_name)
    multifunction = buses.multifunction(address)
    acs = has_acs(spec)
    if multifunction and above is None and spec.acs is None:
        acs = acs or _of_root_complex(spec)
    return Node(
        address,
        Kind.ENDPOINT if bridge is None else KINDS[bridge.kind],
        above,
        acs,
        multifunction,
        express=above is None or above.kind is not Kind.PCI_BRIDGE,
        named=spec.group,
    )
