# SPDX-License-Identifier: Apache-2.0
"""PCI configuration space of a type 0 function, and the host's address windows, in which its BARs are placed.

State: a ConfigSpace belongs to one device and is touched under that device's lock. An Aperture belongs to the
lab and is touched on the lifecycle thread. Source: PCI 3.0 chapter 6, <linux/pci_regs.h>.
"""

import errno
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

from devmodel.memo import shared
from devmodel.pci import regs
from devmodel.pci.capability import Capability, ExtendedCapability
from devmodel.pci.fields import (
    Bar,
    Field,
    Identity,
    bar_place,
    base_addresses,
    chain,
    extended_chain,
    extended_places,
    header,
)
from devmodel.pci.names import names_of
from devmodel.pci.regs import Command, ExtCapId, Reg
from devmodel.region.names import RegisterNames
from devmodel.region.region import Region, StoredBytes

_NONE = bytes(regs.CFG_SPACE_EXP_SIZE)
_ADDRESSES = 1 << 64
"""The first number that is no address."""
Hook = Callable[[int], None]
Mirror = Callable[[int, int], None]
_BRIDGE_GRANULES = {"io": 1 << 12, "mem32": 1 << 20, "mem64": 1 << 20}
"""Windows of bridges begin and end at multiples of so many bytes (PCI-to-PCI Bridge Architecture 1.2, 3.2.5).
"""


class ConfigSpace(Region):
    """256 or 4096 bytes, a mask of the writable bits and one of those that a written 1 clears, and hooks that
    are called when a field is written.

    ``mirror`` is called with offset and width after each change of the bytes, and before any hook.
    """

    __slots__ = (
        "_bars",
        "_data",
        "_extended",
        "_hooks",
        "_mask",
        "_names",
        "_ones",
        "_reset_image",
        "mirror",
    )

    def __init__(
        self,
        identity: Identity,
        bars: Mapping[int, Bar],
        capabilities: Sequence[Capability] = (),
        size: int = regs.CFG_SPACE_SIZE,
        extended: Sequence[ExtendedCapability] = (),
    ) -> None:
        """Raises ValueError when the declarations contradict each other or do not fit."""
        super().__init__(size)
        self._data = bytearray(size)
        self._mask: bytes | bytearray = bytearray(size)
        self._ones = _NONE
        self._bars = dict(bars)
        self._hooks: list[tuple[int, int, Hook]] = []
        self._names: RegisterNames | None = None
        self.mirror: Mirror | None = None
        self._extended = extended_places(extended, size)
        for field in (
            *header(identity, bars, capabilities),
            *base_addresses(bars),
            *chain(capabilities),
            *extended_chain(extended, self._extended),
        ):
            self._declare(field)
        self._reset_image = bytes(self._data)

    def clip(self, offset: int, size: int) -> int:
        """``size``, for an access that lies in configuration space. vfio-pci refuses any other:
        ``OSError(EFAULT)``."""
        if not 0 <= offset <= self.size - size:
            raise OSError(errno.EFAULT, f"{size} bytes at {offset:#x} of {self.size} of configuration space")
        return size

    @property
    def stored(self) -> StoredBytes | None:
        return StoredBytes(self._data, b"\1" * self.size) if type(self).read is ConfigSpace.read else None

    @property
    def names(self) -> RegisterNames | None:
        if self._names is None:  # two threads at once find the same names
            self._names = names_of(self._reset_image)
        return self._names

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        stored, writable, ones = self._data, self._mask, self._ones
        for position, byte in enumerate(data, offset):
            if cleared := byte & ones[position]:
                stored[position] &= ~cleared
            mask = writable[position]
            stored[position] = stored[position] & ~mask | byte & mask
        if self.mirror is not None:
            self.mirror(offset, len(data))
        for first, width, hook in self._hooks:
            if first < offset + len(data) and offset < first + width:
                hook(self.value(first, width))

    def reset(self) -> None:
        """The registers of Advanced Error Reporting stay as they are: they are sticky (PCI Express Base 4.0,
        7.8.4)."""
        image, place = self._reset_image, self._extended.get(ExtCapId.AER)
        if place is not None:
            first, end = place + regs.AER_UNCOR_STATUS, place + regs.AER_ROOT_COMMAND
            image = image[:first] + self._data[first:end] + image[end:]
        self.restore(image)

    def save(self) -> bytes:
        """All its bytes, for :meth:`restore`."""
        return bytes(self._data)

    def restore(self, image: bytes) -> None:
        """For the device itself: store all bytes. No hook is called."""
        self._data[:] = image
        if self.mirror is not None:
            self.mirror(0, self.size)

    def watch(self, offset: int, width: int, hook: Hook) -> None:
        """Call ``hook`` with the new value of a field after each write that touches any byte of the field."""
        self._hooks.append((offset, width, hook))

    def value(self, offset: int, width: int) -> int:
        """The little-endian value of ``width`` bytes at ``offset``."""
        return int.from_bytes(self._data[offset : offset + width], "little")

    def store(self, offset: int, width: int, value: int) -> None:
        """For the device itself: store a field whatever its mask says. A reset undoes it."""
        self._data[offset : offset + width] = value.to_bytes(width, "little")
        if self.mirror is not None:
            self.mirror(offset, width)

    def write_mask(self, offset: int, width: int) -> int:
        """The bits of a field that a write changes."""
        return int.from_bytes(self._mask[offset : offset + width], "little")

    def clear_mask(self, offset: int, width: int) -> int:
        """The bits of a field that a written 1 clears."""
        return int.from_bytes(self._ones[offset : offset + width], "little")

    def freeze(self, offset: int, width: int, bits: int) -> None:
        """For the device itself, while it is made: these bits of a field are 0, and no write changes them."""
        self.preset(offset, width, self.value(offset, width) & ~bits)
        mask = bytearray(self._mask)
        mask[offset : offset + width] = (self.write_mask(offset, width) & ~bits).to_bytes(width, "little")
        self._mask = mask

    def preset(self, offset: int, width: int, value: int) -> None:
        """For the device itself: store a field whatever its mask says. A reset sets the same value again."""
        self.store(offset, width, value)
        image = bytearray(self._reset_image)
        image[offset : offset + width] = value.to_bytes(width, "little")
        self._reset_image = bytes(image)

    def renew(self, offset: int, width: int) -> None:
        """For the device itself: give a field the value that a reset sets."""
        self.store(offset, width, int.from_bytes(self._reset_image[offset : offset + width], "little"))

    @property
    def command(self) -> Command:
        """The command register."""
        return Command(self.value(Reg.COMMAND, 2))

    def find(self, identity: int) -> int:
        """The offset of the first capability with this id, 0 when there is none."""
        offset = self.value(Reg.CAPABILITY_LIST, 1)
        while offset and self._data[offset] != identity:
            offset = self._data[offset + 1]
        return offset

    def has_extended(self, identity: int) -> bool:
        """Whether there is an extended capability with this id."""
        return identity in self._extended

    def extended(self, identity: int) -> int:
        """The offset of the extended capability with this id; ValueError when there is none."""
        if identity not in self._extended:
            raise ValueError(f"no extended capability {identity:#x}")
        return self._extended[identity]

    def bar_value(self, index: int) -> int:
        """What the register of BAR ``index`` (6 for the ROM) reads, with its flag bits."""
        return self.value(*bar_place(index, self._bars[index]))

    def place_bar(self, index: int, address: int) -> None:
        """Give BAR ``index`` the address that firmware chose. A reset keeps it. A register of 32 bits has the
        lower half: some machines have such BARs above 4 GiB."""
        offset, width = bar_place(index, self._bars[index])
        self.preset(offset, width, address & (1 << 8 * width) - 1 | self._beside_address(index))

    def _beside_address(self, index: int) -> int:
        """The bits of a BAR's register that are no address."""
        return self._bars[index].flags

    def _declare(self, field: Field) -> None:
        end = field.offset + field.width
        self._data[field.offset : end] = field.value.to_bytes(field.width, "little")
        mask = bytearray(self._mask) if isinstance(self._mask, bytes) else self._mask
        mask[field.offset : end] = field.mask.to_bytes(field.width, "little")
        self._mask = mask
        if field.ones:
            ones = bytearray(self._ones)
            ones[field.offset : end] = field.ones.to_bytes(field.width, "little")
            self._ones = shared(bytes(ones))


class NoRoom(ValueError):
    """There is no room for a BAR among the addresses of its kind. ``remedy`` is for the writer of a lab
    file."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.remedy = remedy


class Aperture:
    """The host's address windows, in which firmware places the BARs of physical functions."""

    __slots__ = ("_claims", "_next")
    STARTS: ClassVar[Mapping[str, int]] = {"io": 0x1000, "mem32": 0x8000_0000, "mem64": 0x38_0000_0000}
    ENDS: ClassVar[Mapping[str, int]] = {"io": 1 << 16, "mem32": 0xFEC0_0000, "mem64": 1 << 46}
    """The first address behind each window: of the I/O ports, of the room before the interrupt controllers,
    of what the processor addresses."""

    def __init__(self) -> None:
        self._next = dict(self.STARTS)
        self._claims: Mapping[bool, list[tuple[int, int]]] = {False: [], True: []}

    def fence(self) -> None:
        """Whatever is placed from now on is below another bridge: no window of a bridge covers what is on
        both sides of the fence."""
        for window, granule in _BRIDGE_GRANULES.items():
            self._next[window] = -(-self._next[window] // granule) * granule

    def take(self, bar: Bar, count: int = 1, wanted: int = 0) -> int:
        """A naturally aligned address for ``count`` BARs like ``bar``, one behind the other. No address is
        given twice. ``wanted`` is an address that is given if it is free; 0 is none. Raises ValueError when
        there is no room."""
        size = count * bar.size
        if wanted and self._claim(bar.io, wanted, wanted + size):
            return wanted
        window = "io" if bar.io else "mem64" if bar.mem64 else "mem32"
        address = _aligned(self._next[window], bar.size)
        while (behind := self._claimed(bar.io, address, address + size)) is not None:
            address = _aligned(behind, bar.size)
        if address + size > self.ENDS[window]:
            remedy = "make it smaller" if bar.mem64 else 'make it smaller, or its kind "mem64"'
            raise NoRoom(f"no room at {address:#x} for {count} BARs of {bar.size} bytes", remedy)
        self._next[window] = address + size
        return address

    def _claim(self, io: bool, start: int, end: int) -> bool:
        windows = ("io",) if io else ("mem32", "mem64")
        given = any(start < self._next[each] and self.STARTS[each] < end for each in windows)
        if given or end > _ADDRESSES or self._claimed(io, start, end) is not None:
            return False
        insort(self._claims[io], (start, end))
        return True

    def _claimed(self, io: bool, start: int, end: int) -> int | None:
        """The end of a claim that overlaps the range, None if there is none."""
        claims = self._claims[io]
        place = bisect_left(claims, (end,))
        return claims[place - 1][1] if place and claims[place - 1][1] > start else None


def _aligned(address: int, size: int) -> int:
    return -(-address // size) * size


class Assigned(Aperture):
    """The addresses of one function and its virtual functions: each time the function is made, those that it
    was given first."""

    __slots__ = ("_aperture", "_given", "_taken")

    def __init__(self, aperture: Aperture) -> None:
        """``aperture`` gives them at first. It has no windows of its own: a lab has one for each function."""
        self._aperture = aperture
        self._given: list[int] = []
        self._taken = 0

    def again(self) -> Aperture:
        """It, for another making of the function."""
        self._taken = 0
        return self

    @property
    def given(self) -> tuple[int, ...]:
        """The addresses, in the order in which they were given."""
        return tuple(self._given)

    def give(self, addresses: Iterable[int]) -> None:
        """Give these addresses from now on: the function has other BARs."""
        self._given = list(addresses)

    def take(self, bar: Bar, count: int = 1, wanted: int = 0) -> int:
        if self._taken == len(self._given):
            self._given.append(self._aperture.take(bar, count, wanted))
        self._taken += 1
        return self._given[self._taken - 1]


class Decided(Aperture):
    """Addresses that were decided before, in the order of the BARs."""

    __slots__ = ("_addresses",)

    def __init__(self, addresses: Iterable[int]) -> None:
        self._addresses = iter(addresses)

    def take(self, bar: Bar, count: int = 1, wanted: int = 0) -> int:
        return next(self._addresses)
