# SPDX-License-Identifier: Apache-2.0
"""Configuration space of a PCI-to-PCI bridge (a type 1 header), and the capabilities of its kinds.

State: a BridgeSpace belongs to one device and is touched under that device's lock. All else are values.
Source: PCI-to-PCI Bridge Architecture 1.2 chapter 3.2, PCI Express Base 4.0 chapter 7.5.3,
<linux/pci_regs.h>.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum, IntFlag
from typing import NamedTuple

from devmodel.pci import regs
from devmodel.pci.capability import Capability, ExtendedCapability
from devmodel.pci.config import ConfigSpace
from devmodel.pci.express import ExpressRegisters
from devmodel.pci.fields import Bar, Field, Identity
from devmodel.pci.regs import CapId, Command

HEADER_TYPE_BRIDGE = 0x01
BRIDGE_BARS = 2
"""A type 1 header has room for so many BARs."""
IO_GRANULE, MEMORY_GRANULE = 1 << 12, 1 << 20
"""Windows begin and end at multiples of so many bytes."""
_ABOVE_4G = 1 << 32
_IO_RANGE_TYPE_32, _PREF_RANGE_TYPE_64 = 0x1, 0x1


class BridgeReg(IntEnum):
    """Offsets in the type 1 header, where it differs from type 0."""

    PRIMARY_BUS = 0x18
    SECONDARY_BUS = 0x19
    SUBORDINATE_BUS = 0x1A
    SEC_LATENCY_TIMER = 0x1B
    IO_BASE = 0x1C
    SEC_STATUS = 0x1E
    MEMORY_BASE = 0x20
    PREF_MEMORY_BASE = 0x24
    PREF_BASE_UPPER32 = 0x28
    PREF_LIMIT_UPPER32 = 0x2C
    IO_BASE_UPPER16 = 0x30
    BRIDGE_CONTROL = 0x3E


class BridgeControl(IntFlag):
    """Bits of the bridge control register that a client can write."""

    PARITY = 0x01
    SERR = 0x02
    VGA = 0x08
    MASTER_ABORT = 0x20
    BUS_RESET = 0x40


EXP_DEVCAP_PAYLOAD, EXP_RTCTL_WRITABLE, EXP_ARI_FORWARDING = 0x0007, 0x001F, 0x0020
EXP_LNKCAP_LINK = regs.EXP_LNKCAP_SLS | regs.EXP_LNKCAP_MLW
EXP_LNKCAP_DLLLARC, EXP_LNKSTA_DLLLA = 0x10_0000, 0x2000


class Window(NamedTuple):
    """The addresses ``first`` to ``last``, both included, that a bridge forwards to its secondary bus."""

    first: int
    last: int


class Windows(NamedTuple):
    """What a bridge forwards: I/O ports, memory below 4 GiB, and prefetchable memory. None is a closed
    window."""

    io: Window | None
    memory: Window | None
    prefetch: Window | None

    @classmethod
    def around(cls, io: Iterable[Window], memory: Iterable[Window]) -> Windows:
        """The narrowest windows that cover all of ``io`` and ``memory``. Memory that lies above 4 GiB is in
        the prefetchable window, because only that one has 64-bit addresses."""
        below: list[Window] = []
        above: list[Window] = []
        for each in memory:
            (below if each.last < _ABOVE_4G else above).append(each)
        return cls(_cover(io, IO_GRANULE), _cover(below, MEMORY_GRANULE), _cover(above, MEMORY_GRANULE))


class BusNumbers(NamedTuple):
    """The bus that a bridge is on, the one right below it, and the last one below it."""

    primary: int
    secondary: int
    subordinate: int


class BridgeSpace(ConfigSpace):
    """4096 bytes with a type 1 header. It has two BARs at most, and no ROM."""

    __slots__ = ()

    def __init__(
        self,
        identity: Identity,
        bars: Mapping[int, Bar],
        capabilities: Sequence[Capability],
        extended: Sequence[ExtendedCapability],
        buses: BusNumbers,
        windows: Windows,
    ) -> None:
        """Raises ValueError for BARs that a bridge cannot have."""
        for index, bar in bars.items():
            if index + bar.mem64 >= BRIDGE_BARS:
                raise ValueError(f"a bridge has no BAR {index} of this kind: BARs 0 and 1, or one of 64 bits")
        super().__init__(identity, bars, capabilities, regs.CFG_SPACE_EXP_SIZE, extended)
        for field in (*_type1(buses), *_window_fields(windows)):
            self._declare(field)
        self._reset_image = bytes(self._data)


class PortType(IntEnum):
    """Kinds of bridges, as the PCI Express capability numbers them."""

    ROOT_PORT = regs.EXP_TYPE_ROOT_PORT
    UPSTREAM = regs.EXP_TYPE_UPSTREAM
    DOWNSTREAM = regs.EXP_TYPE_DOWNSTREAM
    PCI_BRIDGE = regs.EXP_TYPE_PCI_BRIDGE

    @property
    def is_downstream_port(self) -> bool:
        """Whether the bridge is at the upper end of a link: it knows whether the link is up, and forwards
        ARI."""
        return self in (PortType.ROOT_PORT, PortType.DOWNSTREAM)


def port_express(kind: PortType, port: int, link: ExpressRegisters) -> Capability:
    """The PCI Express capability of port number ``port`` (0 to 255).

    ``link`` are the registers of a function whose link has the speed, width and payload of the port: of that
    at the other end of a link that goes down, otherwise of one below the port.
    """
    speed_and_width, running = link.lnkcap & EXP_LNKCAP_LINK, link.lnksta & EXP_LNKCAP_LINK
    devcap = regs.EXP_DEVCAP_RBER | regs.EXP_DEVCAP_EXT_TAG | link.devcap & EXP_DEVCAP_PAYLOAD
    ari = EXP_ARI_FORWARDING if kind.is_downstream_port else 0
    reports, up = (EXP_LNKCAP_DLLLARC, EXP_LNKSTA_DLLLA) if kind.is_downstream_port else (0, 0)
    values = ExpressRegisters(
        flags=regs.EXP_FLAGS_VERS_2 | kind << 4,
        devcap=devcap,
        devctl=regs.EXP_DEVCTL_AS_LEFT,
        lnkcap=speed_and_width | reports | regs.EXP_LNKCAP_ASPM_OPT | port << 24,
        lnkctl=regs.EXP_LNKCTL_CCC,
        lnksta=running | regs.EXP_LNKSTA_SLC | up,
        devcap2=ari,
        devctl2=ari,
        lnkcap2=link.lnkcap2,
        lnkctl2=link.lnkctl2,
        lnksta2=link.lnksta2,
    )
    writable = ExpressRegisters(
        devctl=regs.EXP_DEVCTL_WRITABLE,
        lnkctl=regs.EXP_LNKCTL_WRITABLE,
        rtctl=EXP_RTCTL_WRITABLE if kind is PortType.ROOT_PORT else 0,
        devctl2=ari,
        lnkctl2=regs.EXP_LNKCTL2_TLS,
    )
    cleared = ExpressRegisters(devsta=regs.EXP_DEVSTA_ERRORS)
    return Capability(CapId.EXP, values.pack(), writable.pack(), ones=cleared.pack())


def subsystem(vendor: int, device: int) -> Capability:
    """The subsystem ids of a bridge, which its header has no room for."""
    body = struct.pack("<xxHH", vendor, device)
    return Capability(CapId.SSVID, body, bytes(len(body)))


def _cover(ranges: Iterable[Window], granule: int) -> Window | None:
    known = list(ranges)
    if not known:
        return None
    first, end = min(each.first for each in known), max(each.last for each in known) + 1
    return Window(first // granule * granule, -(-end // granule) * granule - 1)


def _type1(buses: BusNumbers) -> Iterator[Field]:
    """The fields of the header that are not windows."""
    command = Command.IO | Command.MEMORY | Command.MASTER
    yield Field(regs.Reg.COMMAND, 2, 0, command | Command.PARITY | Command.SERR | Command.INTX_DISABLE)
    yield Field(regs.Reg.HEADER_TYPE, 1, HEADER_TYPE_BRIDGE)
    for offset, number in enumerate(buses, BridgeReg.PRIMARY_BUS):
        yield Field(offset, 1, number, 0xFF)
    yield Field(BridgeReg.SEC_STATUS, 2)
    yield Field(BridgeReg.BRIDGE_CONTROL, 2, 0, sum(BridgeControl))


def _window_fields(windows: Windows) -> Iterator[Field]:
    """The base and limit registers. A closed window has a base above its limit."""
    io, memory, prefetch = windows
    first, last = io or Window(0xF000, 0)
    value = _pair(first >> 8 & 0xF0, last >> 8 & 0xF0, 8) | _pair(_IO_RANGE_TYPE_32, _IO_RANGE_TYPE_32, 8)
    yield Field(BridgeReg.IO_BASE, 2, value, 0xF0F0)
    yield Field(BridgeReg.IO_BASE_UPPER16, 4, _pair(first >> 16, last >> 16, 16), 0xFFFFFFFF)
    first, last = memory or Window(0xFFF00000, 0)
    yield Field(BridgeReg.MEMORY_BASE, 4, _pair(first >> 16 & 0xFFF0, last >> 16 & 0xFFF0, 16), 0xFFF0FFF0)
    first, last = prefetch or Window(0xFFF00000, 0)
    value = _pair(first >> 16 & 0xFFF0, last >> 16 & 0xFFF0, 16) | _pair(
        _PREF_RANGE_TYPE_64, _PREF_RANGE_TYPE_64, 16
    )
    yield Field(BridgeReg.PREF_MEMORY_BASE, 4, value, 0xFFF0FFF0)
    yield Field(BridgeReg.PREF_BASE_UPPER32, 8, _pair(first >> 32, last >> 32, 32), (1 << 64) - 1)


def _pair(base: int, limit: int, bits: int) -> int:
    """A base register with the limit register behind it, each of ``bits`` bits."""
    return base | limit << bits
