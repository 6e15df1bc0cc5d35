# SPDX-License-Identifier: Apache-2.0
"""The shape of a recorded device as code of the SDK: its ids, its capabilities, the kinds of its BARs.

Functions of a recording, which may be anybody's: what is not known becomes a generic capability, and what no
device can have is a RecordingError.  State: none.  Source: <linux/pci_regs.h>, <linux/vfio.h>.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from devmodel.pci import regs
from devmodel.pci.capability import Capability, ExtendedCapability
from devmodel.pci.express import ExpressRegisters, LinkSpeed
from devmodel.pci.image import Image
from devmodel.pci.msix import MsixBar
from devmodel.pci.regs import BaseAddress, CapId
from vfsfuse.recording import regioninfo
from vfsfuse.recording.layouting import Call, Expression, Text
from vfsfuse.recording.recording import (
    READ,
    WRITE,
    Event,
    RecordedDevice,
    RecordingError,
    Region,
    region_name,
)
from vfsfuse.recording.regioninfo import chain_of

BARS = 6
ROM = 6
OWN = 9
PAGE = 4096
MOST_LAYOUT = 16 << 20
"""Bytes of a BAR that a model has as registers; larger ones are memory."""
MOST_PLACES = 256
"""Places that a program has accessed in a BAR of registers that could be mapped, too."""
MOST_ROM = 4096
"""Bytes of a ROM that are written into the model."""
_DIGITS = 64
"""Digits of data in a line."""


@dataclass(slots=True)
class BarCode:
    """A BAR: the attribute of its region (bar0), the code that makes the region, and the further arguments of
    Bar.  `registers` is whether it has a Layout (BAR0)."""

    index: int
    attribute: str
    region: Call
    flags: list[str] = field(default_factory=list)
    registers: bool = False


@dataclass(slots=True)
class Shape:
    """The code of a device without its behaviour."""

    identity: list[str]
    bars: list[BarCode]
    capabilities: list[Expression]
    extended: list[Expression]
    own: list[Expression]
    """Regions from index 9 on."""


def shape_of(device: RecordedDevice, events: Sequence[Event]) -> Shape:
    """The shape of a device with these events.  Raises RecordingError."""
    try:
        image = Image.of(device.config)
    except ValueError as error:
        raise RecordingError(f"{device.name}: {error}") from None
    if image.is_bridge:
        raise RecordingError(f"{device.name} is a bridge, and no device of VFIO")
    table = _msix_bar(device, image)
    return Shape(
        _identity(image),
        list(_bars(device, image, events, table)),
        [_capability(cap, table) for cap in image.caps],
        [_extended(cap) for cap in image.extended],
        list(_own_regions(device)),
    )


def _identity(image: Image) -> list[str]:
    found = image.identity()
    ids = (found.vendor, found.device, found.subsystem_vendor, found.subsystem_device)
    more = [f"class_code=0x{found.class_code:06X}"]
    if found.revision:
        more.append(f"revision=0x{found.revision:X}")
    if found.irq_pin:
        more.append(f"irq_pin={found.irq_pin}")
    return [*(f"0x{each:04X}" for each in ids), *more]


# ---- BARs ----


def _msix_bar(device: RecordedDevice, image: Image) -> tuple[int, int] | None:
    """The BAR that an MsixBar is like, and its vectors; None if there is none."""
    for cap in image.caps:
        if cap.id != CapId.MSIX or len(cap.body) < 10:
            continue
        table, pending = (int.from_bytes(cap.body[at : at + 4], "little") for at in (2, 6))
        bar = device.regions.get(table & 7)
        like = MsixBar(cap.vectors, excluded=False)
        places = (table & ~7, pending & ~7, pending & 7)
        if bar is not None and bar.size == like.size and places == (0, cap.vectors * 16, table & 7):
            return table & 7, cap.vectors
    return None


def _bars(
    device: RecordedDevice, image: Image, events: Sequence[Event], table: tuple[int, int] | None
) -> Iterator[BarCode]:
    for index, region in sorted(device.regions.items()):
        if not region.size or index > ROM:
            continue
        if region.size & region.size - 1:
            raise RecordingError(
                f"{device.name}: {region_name(index)} has {region.size} bytes, no power of 2"
            )
        flags = list(_bar_flags(image.bar(index))) if index < BARS else []
        made = BarCode(index, region_name(index).lower(), _rom(region, events), flags)
        if table is not None and table[0] == index:
            made.region = Call("MsixBar(", [str(table[1]), f"excluded={_is_sparse(region)}"])
        elif index < BARS and _is_memory(device, region, events):
            made.region = Call("Memory(", [f"0x{region.size:X}"])
        elif index < BARS:
            made.registers, made.region = True, Call("Registers(", [region_name(index), "self"])
        yield made


def _is_sparse(region: Region) -> bool:
    """Whether the pages of the table cannot be mapped."""
    return any(each.id == regioninfo.SPARSE_MMAP for each in chain_of(region.capabilities).capabilities)


def _is_memory(device: RecordedDevice, region: Region, events: Iterable[Event]) -> bool:
    if region.size > MOST_LAYOUT:
        return True
    if region.size % PAGE or not region.flags & regioninfo.MMAP:
        return False
    if any(place[0] == region.index for place in device.names):
        return False
    places = {
        event.offset for event in events if event.kind in (READ, WRITE) and event.region == region.index
    }
    return not places or len(places) > MOST_PLACES


def _bar_flags(register: int) -> Iterator[str]:
    if register & BaseAddress.SPACE_IO:
        yield "io=True"
        return
    if register & BaseAddress.MEM_TYPE_64:
        yield "mem64=True"
    if register & BaseAddress.MEM_PREFETCH:
        yield "prefetch=True"


def _rom(region: Region, events: Iterable[Event]) -> Call:
    """A ROM with what the program has read of it, if that is little."""
    image = bytearray()
    for event in events:
        if event.kind == READ and event.region == ROM and event.offset <= len(image) and not event.errno:
            image[event.offset : event.offset + len(event.data)] = event.data
    content = bytes(image).rstrip(b"\xff")
    if not content or len(content) > MOST_ROM or len(content) > region.size:
        content = b""
    return Call("Rom(", [data_code(content), f"0x{region.size:X}"])


def _own_regions(device: RecordedDevice) -> Iterator[Expression]:
    """The regions of the device alone, without what is in them.  One without a type ends them, and one that
    is neither pages nor few enough registers."""
    index = OWN
    while (region := device.regions.get(index)) is not None and region.size:
        capabilities = chain_of(region.capabilities).capabilities
        found = [cap.content for cap in capabilities if cap.id == regioninfo.TYPE and len(cap.content) >= 8]
        if not found or (region.size % PAGE and region.size > MOST_LAYOUT):
            return
        numbers = (str(int.from_bytes(found[0][at : at + 4], "little")) for at in (0, 4))
        inside: Expression = Call("Memory(", [f"0x{region.size:X}"])
        if region.size % PAGE:
            inside = Call("Registers(", [Call("Layout(", [f"0x{region.size:X}", "[]"])])
        yield Call("DeviceRegion(", [inside, *numbers])
        index += 1


# ---- capabilities ----


def _capability(cap: Capability, table: tuple[int, int] | None) -> Expression:
    if cap.id == CapId.PM:
        return "power_management()"
    if cap.id == CapId.MSI and cap.vectors:
        return f"msi({cap.vectors})"
    if cap.id == CapId.MSIX and len(cap.body) >= 10:
        return _msix(cap, table)
    if cap.id == CapId.VNDR and cap.body:
        return Call("vendor(", [data_code(cap.body[1:])])
    if (express := ExpressRegisters.of(cap)) is not None and not express.flags & 0xF0:
        found = _express(express)
        if found:
            return found
    return Call("Capability(", [f"0x{cap.id:02X}", data_code(cap.body), f"bytes({len(cap.body)})"])


def _msix(cap: Capability, table: tuple[int, int] | None) -> str:
    where, pending = (int.from_bytes(cap.body[at : at + 4], "little") for at in (2, 6))
    if table is not None:
        return f"self.{region_name(table[0]).lower()}.capability({table[0]})"
    places = ", ".join(f"({each & 7}, 0x{each & ~7:X})" for each in (where, pending))
    return f"msix({cap.vectors}, {places})"


def _express(found: ExpressRegisters) -> str:
    """An endpoint with a link; empty if it has none that the SDK knows."""
    speed, width = found.lnkcap & 0xF, found.lnkcap >> 4 & 0x3F
    if speed not in tuple(LinkSpeed) or width not in (1, 2, 4, 8, 12, 16, 32):
        return ""
    flr = "" if found.devcap & regs.EXP_DEVCAP_FLR else ", flr=False"
    return f"express(LinkSpeed.{LinkSpeed(speed).name}, {width}{flr})"


def _extended(cap: ExtendedCapability) -> Expression:
    version = [str(cap.version)] if cap.version != 1 else []
    body = cap.body.rstrip(b"\0")
    body = body.ljust(max(-(-len(body) // 4) * 4, 4), b"\0")
    items = [f"0x{cap.id:02X}", data_code(body), f"bytes({len(body)})", *version]
    return Call("ExtendedCapability(", items)


def data_code(data: bytes) -> Expression:
    """Bytes as an expression."""
    if not data:
        return 'b""'
    if data.count(data[0]) == len(data) and len(data) > 1:
        if not data[0]:
            return f"bytes({len(data)})"
        return f'bytes.fromhex("{data[0]:02x}") * {len(data)}'
    digits = data.hex()
    return Call(
        "bytes.fromhex(", [Text([digits[at : at + _DIGITS] for at in range(0, len(digits), _DIGITS)])]
    )
