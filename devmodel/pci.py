# SPDX-License-Identifier: Apache-2.0
"""PCI configuration space of a type 0 function, built from declarations: identity, BARs, capabilities.

State: a ConfigSpace belongs to one device and is touched under that device's lock; an Aperture belongs to the
lab and is touched on the lifecycle thread. Source: PCI 3.0 chapter 6, <linux/pci_regs.h>.
"""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from devmodel import pci_regs as regs
from devmodel.capability import Capability
from devmodel.pci_regs import BaseAddress, Command, Reg, Resource
from devmodel.region import Region

MIN_IO_BAR, MIN_MEMORY_BAR, MIN_ROM = 4, 16, 2048

Hook = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a function says it is; ``class_code`` is 24 bits, ``irq_pin`` 0 (none) or 1 to 4 (INTA to INTD)."""

    vendor: int
    device: int
    subsystem_vendor: int
    subsystem_device: int
    class_code: int
    revision: int = 0
    irq_pin: int = 0


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register and the region it decodes; the region's size must be a power of two."""

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
        flags = Resource.SIZEALIGN | (Resource.IO if self.io else Resource.MEM)
        flags |= Resource.PREFETCH if self.prefetch else 0
        flags |= Resource.MEM_64 if self.mem64 else 0
        return flags | self.flags

    def check(self, index: int) -> None:
        """Raise ValueError when this cannot be BAR ``index`` (6 is the ROM)."""
        least = MIN_ROM if index == regs.ROM_BAR else MIN_IO_BAR if self.io else MIN_MEMORY_BAR
        if self.size < least or self.size & (self.size - 1):
            raise ValueError(f"BAR {index} of {self.size} bytes: not a power of two of at least {least}")
        if not 0 <= index <= regs.ROM_BAR or (self.mem64 and index >= regs.STD_NUM_BARS - 1):
            raise ValueError(f"no room for a BAR of this kind at index {index}")


@dataclass(frozen=True, slots=True)
class Field:
    """``width`` bytes at ``offset`` of configuration space: power-on value, writable bits."""

    offset: int
    width: int
    value: int = 0
    mask: int = 0


class ConfigSpace(Region):
    """256 or 4096 bytes: a byte image and a write mask for each byte, with hooks on fields of interest."""

    __slots__ = ("_bars", "_data", "_hooks", "_mask", "_reset_image")

    def __init__(
        self,
        identity: Identity,
        bars: Mapping[int, Bar],
        capabilities: Sequence[Capability] = (),
        size: int = regs.CFG_SPACE_SIZE,
    ) -> None:
        """Raises ValueError when the declarations contradict each other or do not fit."""
        super().__init__(size)
        self._data, self._mask = bytearray(size), bytearray(size)
        self._bars = dict(bars)
        self._hooks: list[tuple[int, int, Hook]] = []
        for field in (*_header(identity, bars, capabilities), *_base_addresses(bars), *_chain(capabilities)):
            self._declare(field)
        self._reset_image = bytes(self._data)

    def clip(self, offset: int, size: int) -> int:
        """All of an access, or none: vfio-pci refuses one that leaves configuration space (``EFAULT``)."""
        if not 0 <= offset <= self.size - size:
            raise OSError(errno.EFAULT, f"{size} bytes at {offset:#x} of {self.size} of configuration space")
        return size

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        for position, byte in enumerate(data, offset):
            mask = self._mask[position]
            self._data[position] = (self._data[position] & ~mask) | (byte & mask)
        for first, width, hook in self._hooks:
            if first < offset + len(data) and offset < first + width:
                hook(self.value(first, width))

    def reset(self) -> None:
        self._data[:] = self._reset_image

    def watch(self, offset: int, width: int, hook: Hook) -> None:
        """Call ``hook`` with the field's new value after each write that touches any byte of it."""
        self._hooks.append((offset, width, hook))

    def value(self, offset: int, width: int) -> int:
        """The little-endian value of ``width`` bytes at ``offset``."""
        return int.from_bytes(self._data[offset : offset + width], "little")

    def store(self, offset: int, width: int, value: int) -> None:
        """Store a field whatever its mask, until the next reset; for the device itself."""
        self._data[offset : offset + width] = value.to_bytes(width, "little")

    def preset(self, offset: int, width: int, value: int) -> None:
        """Store a field whatever its mask, and make that its value after a reset; for the device itself."""
        self.store(offset, width, value)
        image = bytearray(self._reset_image)
        image[offset : offset + width] = value.to_bytes(width, "little")
        self._reset_image = bytes(image)

    @property
    def command(self) -> Command:
        """The command register."""
        return Command(self.value(Reg.COMMAND, 2))

    def bar_value(self, index: int) -> int:
        """The register of BAR ``index`` (6 is the ROM) as it reads, its flag bits included."""
        return self.value(*_bar_place(index, self._bars[index]))

    def bar_address(self, index: int) -> int:
        """The bus address that BAR ``index`` is programmed to."""
        return self.bar_value(index) & ~(self._bars[index].size - 1)

    def place_bar(self, index: int, address: int) -> None:
        """Give BAR ``index`` the address that firmware chose; it stays over a reset."""
        bar = self._bars[index]
        self.preset(*_bar_place(index, bar), address | bar.flags)

    def _declare(self, field: Field) -> None:
        end = field.offset + field.width
        self._data[field.offset : end] = field.value.to_bytes(field.width, "little")
        self._mask[field.offset : end] = field.mask.to_bytes(field.width, "little")


class Aperture:
    """The host's address windows, from which firmware gives the BARs of physical functions their places."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = {"io": 0xC000, "mem32": 0xE000_0000, "mem64": 0x38_0000_0000}

    def take(self, bar: Bar) -> int:
        """A naturally aligned address for ``bar``, never given twice."""
        window = "io" if bar.io else "mem64" if bar.mem64 else "mem32"
        address = -(-self._next[window] // bar.size) * bar.size
        self._next[window] = address + bar.size
        return address


def _bar_place(index: int, bar: Bar) -> tuple[int, int]:
    if index == regs.ROM_BAR:
        return Reg.ROM_ADDRESS, 4
    return Reg.BASE_ADDRESS_0 + 4 * index, 8 if bar.mem64 else 4


def _header(identity: Identity, bars: Mapping[int, Bar], caps: Sequence[Capability]) -> Iterator[Field]:
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


def _base_addresses(bars: Mapping[int, Bar]) -> Iterator[Field]:
    for index, bar in bars.items():
        bar.check(index)
        if bar.mem64 and index + 1 in bars:
            raise ValueError(f"BAR {index} is 64-bit and takes the register of BAR {index + 1}")
        offset, width = _bar_place(index, bar)
        mask = ~(bar.size - 1) & ((1 << 8 * width) - 1)
        if index == regs.ROM_BAR:
            mask = mask & regs.ROM_ADDRESS_MASK | regs.ROM_ADDRESS_ENABLE
        yield Field(offset, width, bar.flags, mask)


def _chain(capabilities: Sequence[Capability]) -> Iterator[Field]:
    offset = regs.STD_HEADER_SIZEOF
    for position, cap in enumerate(capabilities, 1):
        after = -(-(offset + cap.size) // 4) * 4
        if after > regs.CFG_SPACE_SIZE:
            raise ValueError(f"capability {cap.id:#x} does not fit in {regs.CFG_SPACE_SIZE} bytes")
        following = after if position < len(capabilities) else 0
        yield Field(offset, 2, cap.id | following << 8)
        value, mask = int.from_bytes(cap.body, "little"), int.from_bytes(cap.mask, "little")
        yield Field(offset + 2, len(cap.body), value, mask)
        offset = after
