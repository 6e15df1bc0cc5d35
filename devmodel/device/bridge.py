# SPDX-License-Identifier: Apache-2.0
"""A PCI Express root port as a device: configuration space with a type 1 header, and no regions besides.

State: as every device's, under ``Device.lock``. Source: devmodel.pci.bridge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from devmodel.device.pci import PciDevice, ResourceRow
from devmodel.pci import regs
from devmodel.pci.bridge import (
    EXP_LNKCAP_LINK,
    HEADER_TYPE,
    HEADER_TYPE_BRIDGE,
    HEADER_TYPE_MULTIFUNCTION,
    BridgeControl,
    BridgeReg,
    BridgeSpace,
    BusNumbers,
    Window,
    Windows,
    access_control,
    root_port_express,
    subsystem,
)
from devmodel.pci.capability import Capability, ExtendedCapability, power_management
from devmodel.pci.config import ConfigSpace
from devmodel.pci.express import ExpressRegisters
from devmodel.pci.fields import Identity
from devmodel.pci.regs import Command, IoResource

NO_LINK = ExpressRegisters(lnkcap=0x11, lnksta=0x11, lnkcap2=0x2, lnkctl2=0x1)
"""One lane at 2.5 GT/s, for a port above no PCI Express function."""


@dataclass(frozen=True, slots=True)
class Below:
    """What is below a root port: its bus numbers, what it forwards, and the other end of its link."""

    buses: BusNumbers
    windows: Windows
    link: ExpressRegisters

    @classmethod
    def around(cls, buses: BusNumbers, devices: Iterable[PciDevice]) -> Below:
        """For a port above ``devices``, which are placed."""
        found = tuple(devices)
        rows = [row for device in found for row in device.resource_rows() if row.flags]
        placed = [row for row in rows if not row.flags & IoResource.UNSET]
        io = [Window(row.start, row.end) for row in placed if row.flags & IoResource.IO]
        memory = [Window(row.start, row.end) for row in placed if not row.flags & IoResource.IO]
        ends = filter(None, (ExpressRegisters.of(cap) for device in found for cap in device.caps))
        link = max(ends, key=lambda end: end.lnkcap & EXP_LNKCAP_LINK, default=NO_LINK)
        return cls(buses, Windows.around(io, memory), link)


class RootPortDevice(PciDevice):
    """The root port called ``name``. It passes on what ``below`` says.

    ``number`` is its port number, and ``multifunction`` is whether its device has other functions as well.
    """

    __slots__ = ("_number", "_resetting", "below", "bus_reset")
    identity = Identity(0x1B36, 0x000C, 0x1AF4, 0x1100, 0x060400)
    resettable: ClassVar[bool] = False

    def __init__(self, name: str, below: Below, number: int, multifunction: bool) -> None:
        self.below, self._number, self._resetting = below, number, False
        self.bus_reset: Callable[[], None] | None = None
        """Is called under :attr:`lock` when a client resets the secondary bus."""
        super().__init__(name)
        self.config.watch(BridgeReg.BRIDGE_CONTROL, 2, self._control_written)
        if multifunction:
            self.config.preset(HEADER_TYPE, 1, HEADER_TYPE_BRIDGE | HEADER_TYPE_MULTIFUNCTION)

    def capabilities(self) -> Sequence[Capability]:
        express = root_port_express(self._number, self.below.link)
        return power_management(), express, subsystem(0x1AF4, 0x1100)

    def extended_capabilities(self) -> Sequence[ExtendedCapability]:
        return (access_control(),)

    def resource_rows(self) -> list[ResourceRow]:
        """The lines of sysfs ``resource``: the windows come behind those of other functions."""
        windows = self.below.windows
        kinds = (
            (windows.io, IoResource.IO | 1),
            (windows.memory, IoResource.MEM),
            (windows.prefetch, IoResource.MEM | IoResource.PREFETCH | IoResource.MEM_64 | 1),
            (None, 0),
        )
        shown = [ResourceRow(*window, flags) if window else ResourceRow(0, 0, 0) for window, flags in kinds]
        return [*super().resource_rows(), *shown]

    def _control_written(self, value: int) -> None:
        before, self._resetting = self._resetting, bool(value & BridgeControl.BUS_RESET)
        if self._resetting and not before and self.bus_reset is not None:
            self.bus_reset()

    def _config_space(self) -> ConfigSpace:
        below = self.below
        return BridgeSpace(self.identity, self.caps, self.extended_caps, below.buses, below.windows)

    def _enable_from_reset(self, command: int) -> None:
        """It always forwards, as firmware and pcieport leave it."""
        self.config.preset(regs.Reg.COMMAND, 2, Command.IO | Command.MEMORY | Command.MASTER)
