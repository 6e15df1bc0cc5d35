# SPDX-License-Identifier: Apache-2.0
"""A PCI bridge as a device: configuration space with a type 1 header, and what it says of the buses below.

A root port, the ports of a switch and a bridge to conventional PCI differ in their PCI Express capability. A
bridge of a lab file may have the identity and the capabilities of a model besides.

State: as every device's, under ``Device.lock``. Source: devmodel.pci.bridge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from devmodel.device.pci import PciDevice, ResourceRow
from devmodel.memo import memoized
from devmodel.pci import regs
from devmodel.pci.bridge import (
    EXP_LNKCAP_LINK,
    BridgeControl,
    BridgeReg,
    BridgeSpace,
    BusNumbers,
    PortType,
    Window,
    Windows,
    port_express,
    subsystem,
)
from devmodel.pci.capability import (
    Capability,
    ExtendedCapability,
    access_control,
    power_management,
    serial_number,
)
from devmodel.pci.config import Aperture, ConfigSpace
from devmodel.pci.express import ExpressRegisters
from devmodel.pci.fields import Identity
from devmodel.pci.image import Image
from devmodel.pci.regs import CapId, Command, IoResource
from devmodel.pci.slot import with_slot

NO_LINK = ExpressRegisters(lnkcap=0x11, lnksta=0x11, lnkcap2=0x2, lnkctl2=0x1)
"""One lane at 2.5 GT/s, for a bridge above no PCI Express function."""
BRIDGE_CLASS = 0x060400
IDENTITIES: Mapping[PortType, Identity] = {
    PortType.ROOT_PORT: Identity(0x1B36, 0x000C, 0x1AF4, 0x1100, BRIDGE_CLASS),
    PortType.UPSTREAM: Identity(0x104C, 0x8232, 0x1AF4, 0x1100, BRIDGE_CLASS),
    PortType.DOWNSTREAM: Identity(0x104C, 0x8233, 0x1AF4, 0x1100, BRIDGE_CLASS),
    PortType.PCI_BRIDGE: Identity(0x1B36, 0x000E, 0x1AF4, 0x1100, BRIDGE_CLASS),
}
"""Those of bridges without a model: the bridges of virtual machines."""


@dataclass(frozen=True, slots=True)
class Below:
    """What is below a bridge: its bus numbers, what it forwards, and a link that it has."""

    buses: BusNumbers
    windows: Windows
    link: ExpressRegisters

    @classmethod
    def around(
        cls, buses: BusNumbers, rows: Iterable[ResourceRow], links: Iterable[ExpressRegisters | None]
    ) -> Below:
        """For a bridge above functions that have these lines of ``resource`` and these ends of links."""
        placed = [row for row in rows if row.flags and not row.flags & IoResource.UNSET]
        io = [Window(row.start, row.end) for row in placed if row.flags & IoResource.IO]
        memory = [Window(row.start, row.end) for row in placed if not row.flags & IoResource.IO]
        link = max(filter(None, links), key=lambda end: end.lnkcap & EXP_LNKCAP_LINK, default=NO_LINK)
        return cls(buses, Windows.around(io, memory), link)

    @property
    def rows(self) -> list[ResourceRow]:
        """The lines of the windows in sysfs ``resource``."""
        windows = self.windows
        kinds = (
            (windows.io, IoResource.IO | 1),
            (windows.memory, IoResource.MEM),
            (windows.prefetch, IoResource.MEM | IoResource.PREFETCH | IoResource.MEM_64 | 1),
            (None, 0),
        )
        return [ResourceRow(*window, flags) if window else ResourceRow(0, 0, 0) for window, flags in kinds]


NOTHING = Below(BusNumbers(0, 0, 0), Windows(None, None, None), NO_LINK)


@dataclass(frozen=True, slots=True)
class Wiring:
    """What a bridge is: its ``kind``, what is ``below`` it, its port ``number``, whether its ACS is on, its
    serial number, and the physical number of its slot, None without one."""

    kind: PortType = PortType.ROOT_PORT
    below: Below = NOTHING
    number: int = 0
    acs: bool = False
    serial: int | None = None
    slot: int | None = None

    def express(self) -> Capability:
        """The PCI Express capability."""
        express = port_express(self.kind, self.number, self.below.link)
        return express if self.slot is None else with_slot(express, self.slot)


class BridgeDevice(PciDevice):
    """A bridge. It passes on what its ``wiring`` says."""

    __slots__ = ("_resetting", "bus_reset", "wiring")
    identity = IDENTITIES[PortType.ROOT_PORT]
    CAPTURED: ClassVar[Image | None] = None
    """The configuration space of a captured bridge, windows included."""
    resettable: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        memory: int = 0,
        options: Mapping[str, int] | None = None,
        aperture: Aperture | None = None,
        *,
        wiring: Wiring | None = None,
        **more: Any,
    ) -> None:
        """``more`` are other arguments of its model."""
        self.wiring, self._resetting = wiring or Wiring(), False
        self.bus_reset: Callable[[], None] | None = None
        """Is called under :attr:`lock` when a client resets the secondary bus."""
        super().__init__(name, memory, options, aperture, **more)
        self.config.watch(BridgeReg.BRIDGE_CONTROL, 2, self._control_written)

    @classmethod
    def shown(cls, below: Below) -> Below:
        """What a bridge says to be below it: a captured one has the windows that it had then."""
        return below if cls.CAPTURED is None else replace(below, windows=cls.CAPTURED.windows())

    @property
    def below(self) -> Below:
        """What is below it."""
        return self.wiring.below

    def capabilities(self) -> Sequence[Capability]:
        if self.CAPTURED is not None:
            return super().capabilities()
        identity, ours = self.identity, (CapId.PM, CapId.EXP, CapId.SSVID)
        ids = identity.subsystem_vendor, identity.subsystem_device
        return (
            power_management(),
            self.wiring.express(),
            *([subsystem(*ids)] if any(ids) else []),
            *(cap for cap in super().capabilities() if cap.id not in ours),
        )

    def extended_capabilities(self) -> Sequence[ExtendedCapability]:
        theirs = super().extended_capabilities()
        if self.CAPTURED is not None:
            return theirs
        serial = self.wiring.serial
        ours = [access_control()] if self.wiring.acs else []
        ours += [serial_number(serial)] if serial is not None else []
        known = {cap.id for cap in ours}
        return *ours, *(cap for cap in theirs if cap.id not in known)

    def resource_rows(self) -> list[ResourceRow]:
        """The lines of sysfs ``resource``: the windows come behind those of other functions."""
        return [*super().resource_rows(), *self.below.rows]

    def _control_written(self, value: int) -> None:
        before, self._resetting = self._resetting, bool(value & BridgeControl.BUS_RESET)
        if self._resetting and not before and self.bus_reset is not None:
            self.bus_reset()

    def _config_space(self) -> ConfigSpace:
        below = self.below
        if self.CAPTURED is None:
            caps = self.caps, self.extended_caps
            return BridgeSpace(self.identity, self.bar_map, *caps, below.buses, below.windows)
        space = super()._config_space()
        for offset, number in enumerate(below.buses, BridgeReg.PRIMARY_BUS):
            space.preset(offset, 1, number)
        return space

    def _enable_from_reset(self, command: int) -> None:
        """It always forwards, as firmware and pcieport leave it; a captured one says what it said then."""
        if self.CAPTURED is None:
            self.config.preset(regs.Reg.COMMAND, 2, Command.IO | Command.MEMORY | Command.MASTER)


@memoized()
def bridge_model(model: type[PciDevice] | None, kind: PortType) -> type[BridgeDevice]:
    """A bridge that has the identity, BARs and further capabilities of ``model``, but the class of bridges;
    the built-in one of its kind for None. Raises ValueError for a captured model that is no bridge."""
    if model is None:
        return type("BridgeDevice", (BridgeDevice,), {"__slots__": (), "identity": IDENTITIES[kind]})
    captured = getattr(model, "IMAGE", None)
    if captured is not None and not captured.is_bridge:
        raise ValueError("its configuration space is not that of a bridge (leave `bridge` out)")
    identity = model.identity
    if captured is None and identity.class_code >> 8 != BRIDGE_CLASS >> 8:
        identity = replace(identity, class_code=BRIDGE_CLASS)
    members = {"__slots__": (), "identity": identity, "CAPTURED": captured}
    return type(model.__name__, (BridgeDevice, model), members)
