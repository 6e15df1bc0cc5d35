# SPDX-License-Identifier: Apache-2.0
"""The bridges of a lab: those of the lab file, and a root port above each other bus that is no root bus.

State: as every PCI function's, the lifecycle thread's, under ``Lab.lock``. Source: PCI Express Base 4.0
chapter 1.3.1, the behaviour of the kernel's pcieport driver and of vfio-pci.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

from devmodel.device.bridge import Below, BridgeDevice, Wiring, bridge_model
from devmodel.device.pci import PciDevice, ResourceRow, show_multifunction
from devmodel.device.traits import make_device, traits_of
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.iommugroup import KINDS, has_acs
from devmodel.lifecycle.pcicore import DMA_BITS, NO_NODE
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.slots import Slot
from devmodel.lifecycle.spec import BridgeKind, BridgeSpec, FunctionSpec, RootSpec
from devmodel.lifecycle.vf import last_vf, place_vfs
from devmodel.pci.address import PciAddress, bus_name, parse_bus
from devmodel.pci.bridge import PortType
from devmodel.pci.config import Aperture, Decided
from devmodel.pci.express import ExpressRegisters
from devmodel.topology.placement import BridgePlace, Placement, Site, place
from devmodel.vfio.group import Group
from devmodel.vfio.vfio_pci import VfioPciFunction

PCIEPORT = "pcieport"
_TYPES: Mapping[BridgeKind, PortType] = {
    BridgeKind.ROOT_PORT: PortType.ROOT_PORT,
    BridgeKind.UPSTREAM: PortType.UPSTREAM,
    BridgeKind.DOWNSTREAM: PortType.DOWNSTREAM,
    BridgeKind.PCI: PortType.PCI_BRIDGE,
}


class Places(NamedTuple):
    """Where the functions of a lab are: how many routing ids behind each physical function its virtual ones
    begin, by name, and the buses."""

    offsets: Mapping[str, int]
    buses: Placement


def place_functions(specs: Sequence[FunctionSpec], roots: Sequence[RootSpec] = ()) -> Places:
    """Place the functions of a lab file. Raises ValueError, which names the address and the remedy, when that
    cannot be."""
    offsets = place_vfs(specs)
    sites = (_site(spec, last_vf(spec, offsets)) for spec in specs)
    return Places(offsets, place(tuple(sites), [parse_bus(root.bus) for root in roots]))


def _site(spec: FunctionSpec, last: PciAddress) -> Site:
    address, bridge = PciAddress.parse(spec.address), spec.bridge
    if bridge is None:
        return Site(address, last)
    return Site(address, last, KINDS[bridge.kind], bridge.secondary, bridge.subordinate)


def automatic_ports(specs: Sequence[FunctionSpec], buses: Placement) -> Iterator[FunctionSpec]:
    """The root ports that the lab file does not name. Such a port is behind an IOMMU when a function below
    it is, and near to the node of the first function that has one."""
    below: dict[str, list[FunctionSpec]] = {}
    for spec in specs:
        below.setdefault(PciAddress.parse(spec.address).bus_name, []).append(spec)
    for bus, port in buses.bridges.items():
        if port.automatic:
            yield _port_spec(port, below[bus])


def _port_spec(port: BridgePlace, below: Sequence[FunctionSpec]) -> FunctionSpec:
    numbers = port.buses
    return FunctionSpec(
        str(port.address),
        None,
        PCIEPORT,
        iommu=any(spec.iommu for spec in below),
        numa_node=next((spec.numa_node for spec in below if spec.numa_node is not None), None),
        bridge=BridgeSpec(BridgeKind.ROOT_PORT, numbers.secondary, numbers.subordinate),
    )


class Bridge(PciFunction):
    """A bridge. ``place`` has its bus numbers. Its host driver is pcieport, as a rule; vfio-pci refuses
    it."""

    __slots__ = ("_bus_below", "_multifunction", "_places", "_wiring", "place", "slot", "spec")
    driver_dma_bits = DMA_BITS

    def __init__(
        self,
        spec: FunctionSpec,
        place: BridgePlace,
        group: Group,
        below: Below,
        aperture: Aperture,
        bus: list[VfioPciFunction],
        bus_below: list[VfioPciFunction],
        multifunction: bool = False,
        slot: Slot | None = None,
    ) -> None:
        """``aperture`` gives the addresses of its BARs. ``bus_below`` has all functions on the bus right
        below it. ``slot`` is its slot, None without one. Raises ValueError for a model that no
        bridge can have."""
        assert spec.bridge is not None
        self.spec, self.place, self._bus_below = spec, place, bus_below
        kind, address = _TYPES[spec.bridge.kind], place.address
        model = bridge_model(spec.model, kind)
        self.slot, number = slot, None if slot is None else slot.number
        shown = model.shown(below)
        self._wiring = Wiring(kind, shown, address.devfn, has_acs(spec), spec.serial, number)
        traits = traits_of(model, spec.memory, spec.options, spec.texts)
        self._places, self._multifunction = traits.place(aperture), multifunction
        super().__init__(address, group, model, traits, bus)

    def _make(self) -> PciDevice:
        spec, places = self.spec, Decided(self._places)
        wiring = self._wiring
        device = make_device(
            self.model, spec.name, spec.memory, spec.options, spec.texts, places, wiring=wiring
        )
        assert isinstance(device, BridgeDevice)
        if self._multifunction:
            show_multifunction(device)
        device.bus_reset = self._reset_bus
        if self.slot is not None:
            self.slot.shown_by(device)
        return device

    def rows(self) -> Iterator[ResourceRow]:
        yield from self.traits.rows(self._places)
        yield from self._wiring.below.rows

    @property
    def link(self) -> ExpressRegisters | None:
        return ExpressRegisters.of(self._wiring.express())

    @property
    def host_driver(self) -> str | None:
        return self.spec.driver

    @property
    def secondary(self) -> int:
        """The number of the bus right below it."""
        return self.place.buses.secondary

    @property
    def subordinate(self) -> int:
        """The number of the last bus below it."""
        return self.place.buses.subordinate

    @property
    def bus_below(self) -> str:
        """The name of the bus right below it."""
        return self.place.bus_below

    @property
    def right_below(self) -> Sequence[VfioPciFunction]:
        return tuple(self._bus_below)

    @property
    def functions(self) -> Iterator[PciFunction]:
        """The functions below it, on all buses. Any thread."""
        for function in tuple(self._bus_below):
            if isinstance(function, PciFunction):
                yield function
            if isinstance(function, Bridge):
                yield from function.functions
            elif isinstance(function, PhysicalFunction):  # virtual ones on buses without a bridge
                yield from (vf for vf in tuple(function.vfs) if vf.address.bus != function.address.bus)

    def _reset_bus(self) -> None:
        """Reset the functions below, their configuration space too. A lock of theirs is taken under the
        bridge's, never before it."""
        for function in self.functions:
            if function.made is not None:
                with suppress(OSError):  # it goes at this moment
                    function.reset_whole()

    def check_token(self, token: UUID | None) -> None:
        """Nobody opens it: vfio-pci does not take it."""
        raise OSError(errno.ENODEV, f"{self.name} is a bridge")


def numa_nodes(
    specs: Iterable[FunctionSpec], buses: Placement, roots: Sequence[RootSpec]
) -> Mapping[str, int]:
    """The NUMA node of each function, by name: its own, or that of what is above it; -1 for none."""
    of_bus = {root.bus: root.numa_node for root in roots}
    found: dict[str, int] = {}
    for address, spec in sorted((PciAddress.parse(spec.address), spec) for spec in specs):
        node = of_bus.get(address.bus_name, NO_NODE) if spec.numa_node is None else spec.numa_node
        found[spec.name] = node
        if spec.bridge is not None:
            of_bus[bus_name(address.segment, spec.bridge.secondary)] = node
    return found
