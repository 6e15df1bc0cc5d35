# SPDX-License-Identifier: Apache-2.0
"""The plain model: a PCI function as a lab file describes it, with no behaviour of its own.

It has an identity, BARs of memory or ports that keep what is written, perhaps a ROM, and capabilities; or it
has the configuration space of a real function, byte for byte, in which the registers that software writes are
live (devmodel.pci.image). The class is made from a :class:`PlainSpec`, so any number of functions with the
same description share it.

State: as every device's, under ``Device.lock``. Source: as of what it consists of (devmodel.pci).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

from devmodel.device.pci import PciDevice
from devmodel.pci import regs
from devmodel.pci.barkind import BarKind
from devmodel.pci.capability import Capability, ExtendedCapability, serial_number
from devmodel.pci.config import Aperture, ConfigSpace
from devmodel.pci.fields import MIN_IO_BAR, MIN_MEMORY_BAR, MIN_ROM, Bar, Identity
from devmodel.pci.image import Image, ImageSpace, with_virtual_functions
from devmodel.pci.regs import CapId, Command, ExtCapId
from devmodel.pci.rom import DATA_SIZE, HEADER_SIZE, LAST_IMAGE, LENGTH_UNIT
from devmodel.pci.words import Capabilities, MemoryBar, capabilities_of
from devmodel.region.region import Memory, Region, Rom, Storage

MAX_BAR, MAX_IO, MAX_ROM, MAX_VPD = 1 << 40, 1 << 16, 16 << 20, 1 << 15
"""Most bytes of a memory BAR (the room between regions in VFIO's file offsets), of ports, a ROM and VPD."""


@dataclass(frozen=True, slots=True)
class PlainBar:
    """BAR ``index`` (0 to 5) with ``size`` bytes.

    Without a ``kind`` it is as the configuration space's image says, or else mem32. ``address`` is where the
    host sees it, 0 for a place that the lab chooses; an image has an address already.
    """

    index: int
    size: int
    kind: BarKind | None = None
    address: int = 0


@dataclass(frozen=True, slots=True)
class PlainSpec:
    """A function of the plain model. ``bars`` have each index once.

    With a ``config`` (64, 256 or 4096 bytes of a real function's configuration space) the identity and the
    capabilities are the image's, and those here may be left out; the capabilities of an image of 64 bytes are
    not known, and may be given. The image of a virtual function has neither ids nor BARs, so those here
    count. ``rom`` is the content of the ROM, ``rom_size`` its size; a size alone makes
    a ROM with an image that does nothing. ``serial`` is the number in the capability of that name. ``vpd``
    are the vital product data.
    """

    vendor: int = 0x1B36
    device: int = 0x0005
    subsystem_vendor: int = 0x1AF4
    subsystem_device: int = 0x1100
    class_code: int = 0xFF0000
    revision: int = 0
    interrupt_pin: int = 0
    bars: tuple[PlainBar, ...] = ()
    rom: bytes = b""
    rom_size: int = 0
    capabilities: tuple[str, ...] = ()
    serial: int | None = None
    vpd: bytes = b""
    config: bytes | None = None


class PlainDevice(PciDevice):
    """A function of the plain model. :func:`plain_model` makes the class of a description."""

    __slots__ = ()
    SPEC: ClassVar[PlainSpec]
    IMAGE: ClassVar[Image | None]
    CAPABILITIES: ClassVar[Capabilities]
    BARS: ClassVar[tuple[PlainBar, ...]]
    """As in the spec, each with its kind."""

    def __init__(
        self,
        name: str,
        memory: int = 0,
        options: Mapping[str, int] | None = None,
        aperture: Aperture | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name, memory, options, aperture, texts)
        place = self.config.find(CapId.VPD)
        if place:
            self.config.watch(place + regs.VPD_ADDR, 2, self._vpd_address_written)

    def bars(self) -> Mapping[int, Bar]:
        bars = {bar.index: _bar(bar) for bar in self.BARS}
        rom = _rom(self.SPEC, self.identity)
        return bars if rom is None else {**bars, regs.ROM_BAR: rom}

    def capabilities(self) -> Sequence[Capability]:
        return self.CAPABILITIES.caps

    def extended_capabilities(self) -> Sequence[ExtendedCapability]:
        return self.CAPABILITIES.extended

    def enable_for_host(self, command: int = 0) -> None:
        """As :meth:`PciDevice.enable_for_host`. A driver sets up a captured function as it was when it was
        captured, if a driver had it then."""
        image = self.IMAGE
        driven = image is not None and image.command & (Command.IO | Command.MEMORY)
        if image is None or not driven or not command & Command.MASTER:
            super().enable_for_host(command)
            return
        with self.lock:
            self.config.store(regs.Reg.COMMAND, 2, image.command)
            self._command_written(image.command)
            for identity in (CapId.MSI, CapId.MSIX):
                place = self.config.find(identity)
                if place and self.config.size >= place + 4:
                    self.config.store(place + regs.MSI_FLAGS, 2, image.value(place + regs.MSI_FLAGS, 2))

    def clear_master(self) -> None:
        """As :meth:`PciDevice.clear_master`. The driver has let go of its interrupts, too."""
        super().clear_master()
        with self.lock:
            self._show_messages()

    def _config_space(self) -> ConfigSpace:
        if self.IMAGE is None:
            return super()._config_space()
        added = [cap for cap in self.extended_caps if cap not in self.IMAGE.extended]
        return ImageSpace(with_virtual_functions(self.IMAGE, added), self.bar_map)

    def _enable_from_reset(self, command: int) -> None:
        if self.IMAGE is None:
            super()._enable_from_reset(command)

    def wanted_address(self, index: int) -> int:
        """Where the BAR is wanted, or was captured."""
        described = next((each.address for each in self.BARS if each.index == index), 0)
        return described or _captured_address(self.IMAGE, index, self.bar_map[index])

    def _place_bars(self, aperture: Aperture) -> None:
        for index, bar in self.bar_map.items():
            captured = _captured_address(self.IMAGE, index, bar)
            wanted = self.wanted_address(index)
            self._places[index] = aperture.take(bar, wanted=wanted)
            if self._places[index] != wanted or not captured:
                self.config.place_bar(index, self._places[index])

    def _vpd_address_written(self, value: int) -> None:
        """A read has been asked for, which is done at once; or a write, which the function does not take."""
        place = self.config.find(CapId.VPD)
        if value & regs.VPD_ADDR_F:
            self.config.store(place + regs.VPD_ADDR, 2, value & ~regs.VPD_ADDR_F)
            return
        offset = value & regs.VPD_ADDR_MASK & ~3
        data = self.SPEC.vpd[offset : offset + 4].ljust(4, b"\0")
        self.config.store(place + regs.VPD_DATA, 4, int.from_bytes(data, "little"))
        self.config.store(place + regs.VPD_ADDR, 2, value | regs.VPD_ADDR_F)


@cache
def plain_model(spec: PlainSpec) -> type[PlainDevice]:
    """The model of such functions; the same class for the same spec. Any thread.

    Raises ValueError with the reason and the remedy for a description that no function can have.
    """
    config = _own_ids(spec)
    header = None if config is None else Image.of(config)
    bars = tuple(_with_kind(bar, header) for bar in spec.bars)
    _check_bars(bars, header)
    _check_rom(spec, header)
    if len(spec.vpd) > MAX_VPD:
        raise ValueError(f"VPD of {len(spec.vpd)} bytes is longer than {MAX_VPD} (make it shorter)")
    found = _capabilities(spec, bars)
    image = header
    if config is not None and (len(config) == regs.STD_HEADER_SIZEOF or spec.serial is not None):
        image = _image(config, spec.serial, found)
    if image is not None:
        found = Capabilities(image.caps, image.extended)
    if spec.vpd and not any(cap.id == CapId.VPD for cap in found.caps):
        raise ValueError('VPD are in the capability "vpd" (add it)')
    members = {
        "__slots__": (),
        "__doc__": "A function of the plain model.",
        "SPEC": spec,
        "IMAGE": image,
        "BARS": bars,
        "CAPABILITIES": found,
        "vpd": spec.vpd if any(cap.id == CapId.VPD for cap in found.caps) else None,
        "interrupt_line": 0 if image is None or not image.identity().irq_pin else image.interrupt_line,
        "vf_addresses": {} if image is None else image.vf_addresses(),
        "identity": _identity(spec) if image is None else image.identity(),
    }
    return type("Plain", (PlainDevice,), members)


def rom_image(identity: Identity, size: int) -> bytes:
    """An option ROM of one image that does nothing, for a ROM of ``size`` bytes: its header, its PCI data
    structure, and a return instruction as its entry."""
    length = min(size // LENGTH_UNIT, 4)
    data = struct.pack(
        "<4sHHHHB3sHHBBH",
        b"PCIR",
        identity.vendor,
        identity.device,
        0,
        DATA_SIZE,
        0,
        identity.class_code.to_bytes(3, "little"),
        length,
        0,
        0,
        LAST_IMAGE,
        0,
    )
    header = struct.pack("<HBB", 0xAA55, length, 0xCB).ljust(HEADER_SIZE - 2, b"\0")
    start = -(-HEADER_SIZE // 4) * 4
    image = (header + struct.pack("<H", start)).ljust(start, b"\0") + data
    image = image.ljust(length * LENGTH_UNIT - 1, b"\0")
    return image + bytes([-sum(image) & 0xFF])


def _own_ids(spec: PlainSpec) -> bytes | None:
    """The image, with the ids of a virtual function, whose registers do not have them."""
    config = spec.config
    if config is None or config[:4] != b"\xff" * 4 or config[8:64] == b"\xff" * 56:
        return config
    identity = _identity(spec)
    return struct.pack("<HH", identity.vendor, identity.device) + config[4:]


def _image(config: bytes, serial: int | None, found: Capabilities) -> Image:
    image = Image.of(config, found.caps, found.extended)
    if serial is None:
        return image
    if ExtCapId.DSN not in image.places:
        raise ValueError("the configuration space has no capability for a serial number (leave it out)")
    return image.changed(image.places[ExtCapId.DSN] + 4, struct.pack("<Q", serial))


def _identity(spec: PlainSpec) -> Identity:
    for name, value, bits in (
        ("vendor", spec.vendor, 16),
        ("device", spec.device, 16),
        ("subsystem_vendor", spec.subsystem_vendor, 16),
        ("subsystem_device", spec.subsystem_device, 16),
        ("class", spec.class_code, 24),
        ("revision", spec.revision, 8),
    ):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name} {value:#x} has more than {bits} bits")
    if not 0 <= spec.interrupt_pin <= 4:
        raise ValueError(f"interrupt pin {spec.interrupt_pin} is neither 0 (none) nor 1 to 4 (INTA to INTD)")
    return Identity(
        spec.vendor,
        spec.device,
        spec.subsystem_vendor,
        spec.subsystem_device,
        spec.class_code,
        spec.revision,
        spec.interrupt_pin,
    )


def _capabilities(spec: PlainSpec, bars: Sequence[PlainBar]) -> Capabilities:
    """Those that are not in an image."""
    if spec.config is not None and len(spec.config) > regs.STD_HEADER_SIZEOF:
        if spec.capabilities:
            raise ValueError("the configuration space has its capabilities in it (leave capabilities out)")
        return Capabilities((), ())
    memory = [MemoryBar(bar.index, bar.size) for bar in bars if bar.kind is not BarKind.IO]
    found = capabilities_of(spec.capabilities, memory)
    if spec.serial is None:
        return found
    if not any(cap.id == CapId.EXP for cap in found.caps):
        raise ValueError('a serial number is that of a PCI Express function (add the capability "express")')
    return replace(found, extended=(*found.extended, serial_number(spec.serial)))


def _with_kind(bar: PlainBar, image: Image | None) -> PlainBar:
    if image is None or not 0 <= bar.index < image.bar_count:
        return replace(bar, kind=bar.kind or BarKind.MEM32)
    if bar.kind is not None and not image.bar(bar.index):  # a virtual function has no such register
        return bar
    kind = BarKind.of(image.bar(bar.index))
    if bar.kind not in (None, kind):
        raise ValueError(f"BAR {bar.index} is {kind.value} in the configuration space (leave its kind out)")
    return replace(bar, kind=kind)


def _check_bars(bars: Sequence[PlainBar], image: Image | None) -> None:
    taken: set[int] = set()
    count = regs.STD_NUM_BARS if image is None else image.bar_count
    for bar in bars:
        assert bar.kind is not None
        indexes = {bar.index, bar.index + 1} if bar.kind.wide else {bar.index}
        if not indexes <= set(range(count)):
            raise ValueError(f"there is no room for a BAR of kind {bar.kind.value} at index {bar.index}")
        if indexes & taken:
            raise ValueError(f"BAR {max(indexes & taken)} is the upper half of a 64-bit BAR (leave it out)")
        taken |= indexes
        least, most = (MIN_IO_BAR, MAX_IO) if bar.kind.io else (MIN_MEMORY_BAR, MAX_BAR)
        if not least <= bar.size <= most or bar.size & (bar.size - 1):
            raise ValueError(f"BAR {bar.index} of {bar.size} bytes: not a power of two of {least} to {most}")
        if not bar.kind.wide and bar.size > 1 << 31:
            raise ValueError(f"BAR {bar.index} of {bar.size} bytes needs 64 bits (make it mem64)")
        if bar.address % bar.size or not 0 <= bar.address < 1 << 64:
            raise ValueError(f"BAR {bar.index} cannot be at {bar.address:#x}: not a multiple of its size")


def _check_rom(spec: PlainSpec, image: Image | None) -> None:
    size = _rom_size(spec)
    if not size:
        return
    if image is not None and image.is_bridge:
        raise ValueError("a bridge of the plain model has no ROM (leave it out)")
    if size > MAX_ROM or size < MIN_ROM or size & (size - 1):
        raise ValueError(f"a ROM of {size} bytes: not a power of two of {MIN_ROM} to {MAX_ROM}")
    if len(spec.rom) > size:
        raise ValueError(f"a ROM of {size} bytes has no room for its {len(spec.rom)} bytes (make it larger)")


def _rom_size(spec: PlainSpec) -> int:
    if spec.rom_size or not spec.rom:
        return spec.rom_size
    return max(1 << (len(spec.rom) - 1).bit_length(), MIN_ROM)


def _rom(spec: PlainSpec, identity: Identity) -> Bar | None:
    size = _rom_size(spec)
    return Bar(Rom(spec.rom or _made_rom(identity, size), size)) if size else None


@cache
def _made_rom(identity: Identity, size: int) -> bytes:
    return rom_image(identity, size)


def _bar(bar: PlainBar) -> Bar:
    assert bar.kind is not None
    mappable = not bar.kind.io and not bar.size % mmap.PAGESIZE
    region: Region = Memory(bar.size) if mappable else Storage(bar.size)
    return Bar(region, io=bar.kind.io, mem64=bar.kind.wide, prefetch=bar.kind.prefetch)


def _captured_address(image: Image | None, index: int, bar: Bar) -> int:
    """The address in the register of a BAR of an image, 0 without one."""
    register = 0 if image is None else image.bar(index)
    if index == regs.ROM_BAR:
        register &= regs.ROM_ADDRESS_MASK
    else:
        register &= ~3 if bar.io else ~0xF
    return 0 if register % bar.size else register
