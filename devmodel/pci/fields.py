# SPDX-License-Identifier: Apache-2.0
"""What a model declares of its configuration space (identity and BARs), and the fields that follow from it.

State: none, all are values. Source: PCI 3.0 chapter 6, PCI Express 2.0 chapter 7.9, <linux/pci_regs.h>.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from devmodel.pci import regs
from devmodel.pci.capability import Capability, ExtendedCapability
from devmodel.pci.regs import BaseAddress, Command, IoResource, Reg
from devmodel.region.region import Region

MIN_IO_BAR, MIN_MEMORY_BAR, MIN_ROM = 4, 16, 2048


@dataclass(frozen=True, slots=True)
class Identity:
    """The ids of a function. ``class_code`` has 24 bits; ``irq_pin`` is 0 (none) or 1 to 4 (INTA to INTD)."""

    vendor: int
    device: int
    subsystem_vendor: int
    subsystem_device: int
    class_code: int
    revision: int = 0
    irq_pin: int = 0


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register and the region that it decodes. The region's size is a power of two."""

    region: Region
    io: bool = False
    mem64: bool = False
    prefetch: bool = False

    @property
    def size(self) -> int:
        """Decoded size in bytes."""
        return self.region.size

    @property
    def flags(self) -> int:
        """The read-only low bits of the register."""
        if self.io:
            return BaseAddress.SPACE_IO
        return (BaseAddress.MEM_TYPE_64 if self.mem64 else 0) | (
            BaseAddress.MEM_PREFETCH if self.prefetch else 0
        )

    @property
    def resource_flags(self) -> int:
        """The flags of this BAR in sysfs ``resource``."""
        flags = IoResource.SIZEALIGN | (IoResource.IO if self.io else IoResource.MEM)
        flags |= IoResource.PREFETCH if self.prefetch else 0
        flags |= IoResource.MEM_64 if self.mem64 else 0
        return flags | self.flags

    def check(self, index: int) -> None:
        """Raise ValueError when this cannot be BAR ``index`` (6 for the ROM)."""
        least = MIN_ROM if index == regs.ROM_BAR else MIN_IO_BAR if self.io else MIN_MEMORY_BAR
        if self.size < least or self.size & (self.size - 1):
            raise ValueError(f"BAR {index} of {self.size} bytes: not a power of two of at least {least}")
        if not 0 <= index <= regs.ROM_BAR or (self.mem64 and index >= regs.STD_NUM_BARS - 1):
            raise ValueError(f"no room for a BAR of this kind at index {index}")


@dataclass(frozen=True, slots=True)
class Field:
    """``width`` bytes at ``offset``: ``value`` is theirs at power-on, ``mask`` has the writable bits,
    ``ones`` those that a written 1 clears."""

    offset: int
    width: int
    value: int = 0
    mask: int = 0
    ones: int = 0


def bar_place(index: int, bar: Bar) -> tuple[int, int]:
    """Offset and width of the register of BAR ``index`` (6 is the ROM)."""
    if index == regs.ROM_BAR:
        return Reg.ROM_ADDRESS, 4
    return Reg.BASE_ADDRESS_0 + 4 * index, 8 if bar.mem64 else 4


def header(identity: Identity, bars: Mapping[int, Bar], caps: Sequence[Capability]) -> Iterator[Field]:
    """The first 64 bytes, without the BARs."""
    status = regs.STATUS_CAP_LIST if caps else 0
    first = regs.STD_HEADER_SIZEOF if caps else 0
    yield Field(Reg.VENDOR_ID, 2, identity.vendor)
    yield Field(Reg.DEVICE_ID, 2, identity.device)
    yield Field(Reg.COMMAND, 2, 0, _command_mask(identity, bars))
    yield Field(Reg.STATUS, 2, status)
    yield Field(Reg.CLASS_REVISION, 4, identity.class_code << 8 | identity.revision)
    yield Field(Reg.CACHE_LINE_SIZE, 1, 0, 0xFF)
    yield Field(Reg.LATENCY_TIMER, 1, 0, 0xFF)
    yield Field(Reg.SUBSYSTEM_VENDOR_ID, 2, identity.subsystem_vendor)
    yield Field(Reg.SUBSYSTEM_ID, 2, identity.subsystem_device)
    yield Field(Reg.CAPABILITY_LIST, 1, first)
    yield Field(Reg.INTERRUPT_LINE, 1, 0, 0xFF)
    yield Field(Reg.INTERRUPT_PIN, 1, identity.irq_pin)


def _command_mask(identity: Identity, bars: Mapping[int, Bar]) -> int:
    mask = Command.MASTER | Command.PARITY | Command.SERR
    mask |= Command.INTX_DISABLE if identity.irq_pin else 0
    for bar in bars.values():
        mask |= Command.IO if bar.io else Command.MEMORY
    return mask


def base_addresses(bars: Mapping[int, Bar]) -> Iterator[Field]:
    """The registers of the BARs. Raises ValueError for BARs that cannot be."""
    for index, bar in bars.items():
        bar.check(index)
        if bar.mem64 and index + 1 in bars:
            raise ValueError(f"BAR {index} is 64-bit and takes the register of BAR {index + 1}")
        offset, width = bar_place(index, bar)
        mask = ~(bar.size - 1) & ((1 << 8 * width) - 1)
        if index == regs.ROM_BAR:
            mask = mask & regs.ROM_ADDRESS_MASK | regs.ROM_ADDRESS_ENABLE
        yield Field(offset, width, bar.flags, mask)


def chain(capabilities: Sequence[Capability]) -> Iterator[Field]:
    """The list of capabilities, each placed behind the one before. Raises ValueError when they do not fit."""
    offset = regs.STD_HEADER_SIZEOF
    for position, cap in enumerate(capabilities, 1):
        after = -(-(offset + cap.size) // 4) * 4
        if after > regs.CFG_SPACE_SIZE:
            raise ValueError(f"capability {cap.id:#x} does not fit in {regs.CFG_SPACE_SIZE} bytes")
        following = after if position < len(capabilities) else 0
        yield Field(offset, 2, cap.id | following << 8)
        yield Field(offset + 2, len(cap.body), *_numbers(cap))
        offset = after


def extended_places(capabilities: Sequence[ExtendedCapability], size: int) -> dict[int, int]:
    """Where each extended capability is, by id. Raises ValueError when they do not fit."""
    places, offset = {}, regs.CFG_SPACE_SIZE
    for cap in capabilities:
        places[cap.id] = offset
        offset += -(-cap.size // 4) * 4
        if offset > size:
            raise ValueError(f"extended capability {cap.id:#x} does not fit in {size} bytes")
    if len(places) < len(capabilities):
        raise ValueError("an extended capability is declared twice")
    return places


def extended_chain(capabilities: Sequence[ExtendedCapability], places: Mapping[int, int]) -> Iterator[Field]:
    """The extended capabilities at their ``places``."""
    following = [*places.values(), 0][1:]
    for cap, after in zip(capabilities, following, strict=False):
        offset = places[cap.id]
        yield Field(offset, 4, cap.id | cap.version << 16 | after << 20)
        yield Field(offset + 4, len(cap.body), *_numbers(cap))


def _numbers(cap: Capability | ExtendedCapability) -> tuple[int, int, int]:
    """Value, mask and ones of the field behind the header of a capability."""
    body, mask, ones = (int.from_bytes(each, "little") for each in (cap.body, cap.mask, cap.ones))
    return body, mask, ones
