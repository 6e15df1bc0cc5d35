# SPDX-License-Identifier: Apache-2.0
"""Root ports: one above each bus of a lab other than bus 0, on bus 0 of the same domain.

State: as every PCI function's, the lifecycle thread's, under ``Lab.lock``. Source: PCI Express Base 4.0
chapter 1.3.1, the behaviour of the kernel's pcieport driver and of vfio-pci.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

from devmodel.device.bridge import Below, RootPortDevice
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.pcicore import DMA_BITS
from devmodel.lifecycle.spec import FunctionSpec
from devmodel.lifecycle.vf import last_vf
from devmodel.pci.address import PciAddress, bus_name
from devmodel.pci.bridge import BusNumbers
from devmodel.vfio.group import Group

PCIEPORT = "pcieport"
DEVICES, FUNCTIONS = 32, 8


class PortPlace(NamedTuple):
    """Where a root port is, and the buses below it."""

    address: PciAddress
    buses: BusNumbers
    multifunction: bool


def place_ports(specs: Sequence[FunctionSpec], offsets: Mapping[str, int]) -> Mapping[str, PortPlace]:
    """The root ports of a lab, by the name of the bus right below each, in the order of the addresses.

    ``offsets`` is what :func:`devmodel.lifecycle.vf.place_vfs` gives. Raises ValueError when bus 0 of a
    domain has no room for another port.
    """
    last: dict[tuple[int, int], int] = {}
    taken: set[PciAddress] = set()
    for spec in specs:
        address, end = PciAddress.parse(spec.name), last_vf(spec, offsets)
        taken.update(address.after(distance) for distance in range(end.rid - address.rid + 1))
        if address.bus:
            key = (address.segment, address.bus)
            last[key] = max(last.get(key, 0), end.bus)
    free = {segment: _free(segment, taken) for segment, _ in last}
    numbered: dict[PciAddress, BusNumbers] = {}
    for segment, bus in sorted(last):
        port = next(free[segment], None)
        if port is None:
            raise ValueError(f"no room on bus {bus_name(segment, 0)} for a root port above bus {bus:02x}")
        numbered[port] = BusNumbers(0, bus, last[segment, bus])
    devices = Counter(_device(each) for each in (*taken, *numbered))
    return {
        bus_name(port.segment, buses.secondary): PortPlace(port, buses, devices[_device(port)] > 1)
        for port, buses in numbered.items()
    }


def _device(address: PciAddress) -> tuple[int, int, int]:
    """What tells its device from others."""
    return address.segment, address.bus, address.devfn >> 3


def _free(segment: int, taken: Collection[PciAddress]) -> Iterator[PciAddress]:
    """The addresses for ports on bus 0: first function 0 of each device. Device 0 is the host bridge's."""
    for function in range(FUNCTIONS):
        for device in range(1, DEVICES):
            address = PciAddress(segment, 0, device << 3 | function)
            if address not in taken:
                yield address


class RootPort(PciFunction):
    """A root port. pcieport is its host driver; vfio-pci refuses it, as every bridge."""

    __slots__ = ("_functions", "buses")
    driver_dma_bits, host_driver_claims = DMA_BITS, False  # pcieport does no DMA

    def __init__(
        self,
        place: PortPlace,
        group: Group,
        below: Below,
        numa_node: int,
        functions: Mapping[str, PciFunction],
    ) -> None:
        """``functions`` are all that the lab has. It is on no list of a bus, because no hot reset reaches
        it."""
        address, self.buses, multifunction = place
        self._functions = functions
        device = RootPortDevice(str(address), below, address.devfn, multifunction)
        device.bus_reset = self._reset_bus
        super().__init__(address, group, device, [])
        self.core.numa_node = numa_node

    @property
    def host_driver(self) -> str:
        return PCIEPORT

    @property
    def bus_below(self) -> str:
        """The name of the bus right below it."""
        return bus_name(self.address.segment, self.buses.secondary)

    @property
    def functions(self) -> Iterator[PciFunction]:
        """The functions below it. Any thread."""
        return (each for each in tuple(self._functions.values()) if each.upstream is self)

    def _reset_bus(self) -> None:
        """Reset the functions below, their configuration space too. A lock of theirs is taken under the
        port's, never before it."""
        for function in self.functions:
            with suppress(OSError):  # it goes at this moment
                function.reset_whole()

    def check_token(self, token: UUID | None) -> None:
        """Nobody opens it: vfio-pci does not take it."""
        raise OSError(errno.ENODEV, f"{self.name} is a bridge")
