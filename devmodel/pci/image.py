# SPDX-License-Identifier: Apache-2.0
"""Configuration space as it was captured from a real function: every byte is that of the image, and the
registers that software writes are live.

State: an Image is a value, made once for all functions that have it. An ImageSpace belongs to one device and
is touched under that device's lock. Source: PCI 3.0 chapter 6, PCI-to-PCI Bridge Architecture 1.2 chapter
3.2, PCI Express Base 4.0 chapters 7.5.3 and 7.8, <linux/pci_regs.h>.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from devmodel.pci import regs
from devmodel.pci.bridge import (
    BRIDGE_BARS,
    IO_GRANULE,
    MEMORY_GRANULE,
    BridgeReg,
    BusNumbers,
    Window,
    Windows,
)
from devmodel.pci.capability import Capability, ExtendedCapability
from devmodel.pci.config import ConfigSpace
from devmodel.pci.fields import (
    Bar,
    Identity,
    base_addresses,
    chain,
    extended_chain,
    extended_places,
)
from devmodel.pci.live import live_bits
from devmodel.pci.regs import BaseAddress, CapId, Command, ExtCapId, Reg
from devmodel.region.region import Region

SIZES = (regs.STD_HEADER_SIZEOF, regs.CFG_SPACE_SIZE, regs.CFG_SPACE_EXP_SIZE)
"""Bytes that an image may have: the header, which is all that an ordinary user reads; conventional space; all
that PCI Express has."""
BRIDGE_ROM = 0x38
"""Where the register of the ROM of a bridge is."""
_EXP_VERSION, _EXP_V1, _EXP_V2 = 0x000F, 0x14, 0x3C
_MOST_EXTENDED = 0x60
"""Bytes of an extended capability that are known as its own, of all but a vendor's, which has its size in
it."""
_SIZES: Mapping[int, int] = MappingProxyType(
    {CapId.PM: 8, CapId.VPD: 8, CapId.SSVID: 8, CapId.MSIX: 12, 0x02: 12, 0x07: 8, 0x12: 8, 0x13: 6}
)
"""Bytes of the capabilities whose size does not vary, by id."""


@dataclass(frozen=True, slots=True)
class Image:
    """What was captured, and what follows from it. ``data`` has 64, 256 or 4096 bytes.

    ``mask`` has the bits that a write changes and ``cleared`` those that a written 1 clears, in all but the
    BARs. ``places`` has the offset of each extended capability by id.
    """

    data: bytes
    mask: bytes
    cleared: bytes
    caps: tuple[Capability, ...]
    offsets: Mapping[int, int]
    extended: tuple[ExtendedCapability, ...]
    places: Mapping[int, int]

    @classmethod
    def of(
        cls, data: bytes, caps: Sequence[Capability] = (), extended: Sequence[ExtendedCapability] = ()
    ) -> Image:
        """Parse an image. One of 64 bytes does not say which capabilities there are: it gets ``caps`` and
        ``extended``. The function is in D0. Raises ValueError for an image that no function has."""
        if len(data) not in SIZES:
            raise ValueError(f"a configuration space has 64, 256 or 4096 bytes, not {len(data)}")
        if len(data) == regs.STD_HEADER_SIZEOF:
            data = _with_capabilities(data, caps, extended)
        if data[:4] == b"\xff" * 4 and data[8:64] == b"\xff" * 56:
            raise ValueError("the configuration space is all ones: no function answered")
        header = data[Reg.HEADER_TYPE] & regs.HEADER_TYPE_MASK
        if header > 1:
            raise ValueError(f"header type {header} is neither that of a device nor of a bridge")
        offsets: dict[int, int] = {}
        places: dict[int, int] = {}
        listed: list[Capability] = []
        behind: list[ExtendedCapability] = []
        for offset in _chain(data):
            cap = _capability(data, offset)
            offsets.setdefault(cap.id, offset)
            listed.append(cap)
        for offset, cap_id, version, end in _extended_chain(data):
            if cap_id not in places:
                places[cap_id] = offset
                body = data[offset + 4 : end]
                behind.append(ExtendedCapability(cap_id, body, bytes(len(body)), version))
        mask, cleared = live_bits(data, offsets, places)
        return cls(_in_d0(data, offsets), mask, cleared, tuple(listed), offsets, tuple(behind), places)

    @property
    def is_bridge(self) -> bool:
        """Whether it has the header of a bridge."""
        return self.data[Reg.HEADER_TYPE] & regs.HEADER_TYPE_MASK == 1

    @property
    def bar_count(self) -> int:
        """How many registers of BARs the header has."""
        return BRIDGE_BARS if self.is_bridge else regs.STD_NUM_BARS

    @property
    def command(self) -> Command:
        """The command register."""
        return Command(self.value(Reg.COMMAND, 2))

    @property
    def interrupt_line(self) -> int:
        """The interrupt line register."""
        return self.data[Reg.INTERRUPT_LINE]

    def value(self, offset: int, width: int) -> int:
        """The little-endian value of ``width`` bytes at ``offset``."""
        return int.from_bytes(self.data[offset : offset + width], "little")

    def bar(self, index: int) -> int:
        """The register of BAR ``index`` (6 for the ROM), 64 bits wide for a BAR of 64 bits."""
        offset = Reg.BASE_ADDRESS_0 + 4 * index
        if index == regs.ROM_BAR:
            offset = BRIDGE_ROM if self.is_bridge else Reg.ROM_ADDRESS
        low = self.value(offset, 4)
        wide = index != regs.ROM_BAR and low & 7 == BaseAddress.MEM_TYPE_64 and index + 1 < self.bar_count
        return low | self.value(offset + 4, 4) << 32 if wide else low

    def vf_addresses(self) -> Mapping[int, int]:
        """Where the BARs of the first virtual function were captured, by index."""
        place = self.places.get(ExtCapId.SRIOV)
        found: dict[int, int] = {}
        index = 0
        while place is not None and index < regs.STD_NUM_BARS:
            low = self.value(place + regs.SRIOV_BAR + 4 * index, 4)
            wide = low & 7 == BaseAddress.MEM_TYPE_64 and index + 1 < regs.STD_NUM_BARS
            high = self.value(place + regs.SRIOV_BAR + 4 * index + 4, 4) if wide else 0
            found[index] = (low | high << 32) & ~0xF
            index += 1 + wide
        return found

    def identity(self) -> Identity:
        """The ids. Those of the subsystem of a bridge are in a capability."""
        place = int(Reg.SUBSYSTEM_VENDOR_ID)
        if self.is_bridge:
            place = self.offsets.get(CapId.SSVID, -4) + 4
        subsystem = (self.value(place, 2), self.value(place + 2, 2)) if place else (0, 0)
        class_revision = self.value(Reg.CLASS_REVISION, 4)
        pin = self.data[Reg.INTERRUPT_PIN]
        return Identity(
            self.value(Reg.VENDOR_ID, 2),
            self.value(Reg.DEVICE_ID, 2),
            *subsystem,
            class_revision >> 8,
            class_revision & 0xFF,
            pin if pin <= 4 else 0,
        )

    def changed(self, offset: int, data: bytes) -> Image:
        """The image with other bytes at ``offset``."""
        return Image.of(self.data[:offset] + data + self.data[offset + len(data) :])

    def buses(self) -> BusNumbers:
        """The bus numbers of a bridge."""
        return BusNumbers(*self.data[BridgeReg.PRIMARY_BUS : BridgeReg.SUBORDINATE_BUS + 1])

    def windows(self) -> Windows:
        """What a bridge forwards, as its registers say."""
        return _windows(self.value)


class ImageSpace(ConfigSpace):
    """The configuration space of a function with an image: 256 or 4096 bytes. A reset brings back the
    image, with the addresses that its BARs were given."""

    __slots__ = ("_captured", "_offsets")

    def __init__(self, image: Image, bars: Mapping[int, Bar] = MappingProxyType({})) -> None:
        """``bars`` are those that decode something, each of the kind that its register says; registers of
        others cannot be written. Raises ValueError as :func:`devmodel.pci.fields.base_addresses`."""
        Region.__init__(self, len(image.data))
        self._data, self._reset_image = bytearray(image.data), image.data
        self._bars, self._hooks, self._names, self.mirror = dict(bars), [], None, None
        self._extended = dict(image.places)
        self._captured, self._offsets, self._ones = image.data, image.offsets, image.cleared
        mask = bytearray(image.mask)
        for field in base_addresses(bars):
            mask[field.offset : field.offset + field.width] = field.mask.to_bytes(field.width, "little")
        decoding = sum({Command.IO if bar.io else Command.MEMORY for bar in bars.values()})
        mask[Reg.COMMAND] |= decoding
        self._mask = bytes(mask)

    def find(self, identity: int) -> int:
        return self._offsets.get(identity, 0)

    def captured(self, offset: int, width: int) -> int:
        """The value that a field had when it was captured."""
        return int.from_bytes(self._captured[offset : offset + width], "little")

    def _beside_address(self, index: int) -> int:
        """The ROM stays enabled or not, as it was captured."""
        flags = super()._beside_address(index)
        return self.bar_value(index) & regs.ROM_ADDRESS_ENABLE if index == regs.ROM_BAR else flags


def with_virtual_functions(image: Image, added: Sequence[ExtendedCapability]) -> Image:
    """The image of a physical function whose lab gives it virtual ones, with the extended capabilities
    ``added``; the one that has an SR-IOV capability already. Raises ValueError if there is no room."""
    if CapId.EXP not in image.offsets and any(cap.id == ExtCapId.SRIOV for cap in added):
        raise ValueError("virtual functions are those of a PCI Express function (leave vfs out)")
    if ExtCapId.SRIOV in image.places or not any(cap.id == ExtCapId.SRIOV for cap in added):
        return image
    return _appended(image, [cap for cap in added if cap.id not in image.places])


def _appended(image: Image, added: Sequence[ExtendedCapability]) -> Image:
    """The image with more extended capabilities, each where zeros are left behind all others."""
    data = bytearray(image.data.ljust(regs.CFG_SPACE_EXP_SIZE, b"\0"))
    last = max(image.places.values(), default=0)
    place = -(-max(len(data.rstrip(b"\0")), regs.CFG_SPACE_SIZE) // 16) * 16
    for cap in added:
        if place + cap.size > len(data):
            raise ValueError("the configuration space has no room for an SR-IOV capability (leave vfs out)")
        if last:
            data[last + 2 : last + 4] = struct.pack("<H", data[last + 2] & 0xF | place << 4)
        struct.pack_into("<I", data, place, cap.id | cap.version << 16)
        data[place + 4 : place + cap.size] = cap.body
        last, place = place, place + -(-cap.size // 16) * 16
    return Image.of(bytes(data))


def _with_capabilities(
    header: bytes, caps: Sequence[Capability], extended: Sequence[ExtendedCapability]
) -> bytes:
    """Configuration space that begins with a header and has these capabilities."""
    express = any(cap.id == CapId.EXP for cap in caps)
    whole = bytearray(header.ljust(regs.CFG_SPACE_EXP_SIZE if express else regs.CFG_SPACE_SIZE, b"\0"))
    whole[Reg.STATUS] = whole[Reg.STATUS] & ~regs.STATUS_CAP_LIST | (regs.STATUS_CAP_LIST if caps else 0)
    whole[Reg.CAPABILITY_LIST] = regs.STD_HEADER_SIZEOF if caps else 0
    places = extended_places(extended, len(whole))
    for field in (*chain(caps), *extended_chain(extended, places)):
        whole[field.offset : field.offset + field.width] = field.value.to_bytes(field.width, "little")
    return bytes(whole)


def _in_d0(data: bytes, offsets: Mapping[int, int]) -> bytes:
    place = offsets.get(CapId.PM, 0) + regs.PM_CTRL
    if (
        CapId.PM not in offsets
        or not int.from_bytes(data[place : place + 1], "little") & regs.PM_CTRL_STATE_MASK
    ):
        return data
    return data[:place] + bytes([data[place] & ~regs.PM_CTRL_STATE_MASK]) + data[place + 1 :]


def _chain(data: bytes) -> Iterator[int]:
    """The offsets of the capabilities. Raises ValueError for a list without an end."""
    if not data[Reg.STATUS] & regs.STATUS_CAP_LIST:
        return
    offset, seen = data[Reg.CAPABILITY_LIST] & ~3, set[int]()
    while offset >= regs.STD_HEADER_SIZEOF:
        if offset in seen or data[offset] == 0xFF:
            raise ValueError(f"the list of capabilities is broken at {offset:#x}")
        seen.add(offset)
        yield offset
        offset = data[offset + 1] & ~3


def _capability(data: bytes, offset: int) -> Capability:
    identity, vectors = data[offset], 0
    size = _SIZES.get(identity, 2)
    control = int.from_bytes(data[offset + 2 : offset + 4], "little")
    if identity == CapId.MSI:
        vectors = 1 << min(control >> 1 & 7, 5)
        size = _msi_size(control)
    elif identity == CapId.MSIX:
        vectors = (control & 0x7FF) + 1
    elif identity == CapId.VNDR:
        size = max(data[offset + 2], 3)
    elif identity == CapId.EXP:
        size = _EXP_V2 if control & _EXP_VERSION > 1 else _EXP_V1
    body = data[offset + 2 : min(offset + size, regs.CFG_SPACE_SIZE)]
    return Capability(identity, body, bytes(len(body)), vectors)


def _msi_size(control: int) -> int:
    """Bytes of an MSI capability: 10, 14, 20 or 24."""
    wide, masks = bool(control & regs.MSI_64BIT), bool(control & regs.MSI_MASKBIT)
    return 10 + 4 * wide + 10 * masks


def _extended_chain(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Offset, id, version and end of each extended capability. The list ends where it is broken, as Linux
    ends it."""
    if len(data) < regs.CFG_SPACE_EXP_SIZE:
        return
    found: list[tuple[int, int, int]] = []
    offset, seen = regs.CFG_SPACE_SIZE, set[int]()
    while offset >= regs.CFG_SPACE_SIZE and offset not in seen:
        seen.add(offset)
        (header,) = struct.unpack_from("<I", data, offset)
        if header in (0, 0xFFFFFFFF):
            break
        found.append((offset, header & 0xFFFF, header >> 16 & 0xF))
        offset = header >> 20 & ~3
    starts = sorted(each[0] for each in found)
    for offset, identity, version in found:
        size = _MOST_EXTENDED
        if identity in (ExtCapId.VNDR, ExtCapId.DVSEC):
            size = max(int.from_bytes(data[offset + 4 : offset + 8], "little") >> 20, 8)
        behind = [start for start in starts if start > offset]
        yield offset, identity, version, min(offset + size, *behind[:1], regs.CFG_SPACE_EXP_SIZE)


def _windows(value: Callable[[int, int], int]) -> Windows:
    """The windows that the registers of a bridge say; ``value(offset, width)`` reads them."""
    io, upper = value(BridgeReg.IO_BASE, 2), value(BridgeReg.IO_BASE_UPPER16, 4)
    wide = io & 0xF == 1
    first = (io & 0xF0) << 8 | ((upper & 0xFFFF) << 16 if wide else 0)
    last = (io & 0xF000) | ((upper >> 16) << 16 if wide else 0)
    ports = _window(first, last, IO_GRANULE) if io else None
    memory = value(BridgeReg.MEMORY_BASE, 4)
    below = _window((memory & 0xFFF0) << 16, memory & 0xFFF00000, MEMORY_GRANULE)
    register, high = value(BridgeReg.PREF_MEMORY_BASE, 4), value(BridgeReg.PREF_BASE_UPPER32, 8)
    wide = register & 0xF == 1
    first = (register & 0xFFF0) << 16 | ((high & 0xFFFFFFFF) << 32 if wide else 0)
    last = register & 0xFFF00000 | ((high >> 32) << 32 if wide else 0)
    prefetch = _window(first, last, MEMORY_GRANULE) if register else None
    return Windows(ports, below, prefetch)


def _window(first: int, last: int, granule: int) -> Window | None:
    return Window(first, last | granule - 1) if first <= last else None
