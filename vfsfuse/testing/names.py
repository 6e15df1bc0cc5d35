# SPDX-License-Identifier: Apache-2.0
"""The registers of a device by name: those that its model declares, and those of configuration space.

State: none here; :class:`RegisterNames` belongs to a bench, and is constant. Source: <linux/pci_regs.h> (the
names in configuration space, without their prefix PCI_).
"""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import NamedTuple

from devmodel.device.pci import PciDevice, PciRegion
from devmodel.pci.regs import Reg
from devmodel.region.registers import Registers
from vfsfuse.testing.errors import BenchError


class Place(NamedTuple):
    """Where a register is: the index of its region, and its offset and width in bytes."""

    region: int
    offset: int
    width: int


CONFIG = "CONFIG"
_WIDTHS = {Reg.CLASS_REVISION: 4, Reg.BASE_ADDRESS_0: 4, Reg.ROM_ADDRESS: 4}
_BYTES = (
    Reg.CACHE_LINE_SIZE,
    Reg.LATENCY_TIMER,
    Reg.HEADER_TYPE,
    Reg.CAPABILITY_LIST,
    Reg.INTERRUPT_LINE,
    Reg.INTERRUPT_PIN,
)


_LABELS = {**{bar: f"BAR{bar}" for bar in range(6)}, PciRegion.ROM: "ROM", PciRegion.CONFIG: CONFIG}


def label(region: int) -> str:
    """The name of a region: BAR0 to BAR5, ROM, CONFIG, or REGION9 and so on."""
    return _LABELS.get(region, f"REGION{region}")


class RegisterNames:
    """The registers of one device.

    A name such as "STATUS" is found wherever it is. It means a register of the model rather than one of
    configuration space. With the name of its region before it ("BAR2.STATUS", "CONFIG.STATUS") it is the one
    in that region.
    """

    def __init__(self, device: PciDevice) -> None:
        self._device = device.name
        self._whole = {f"{label(place.region)}.{name}": place for name, place in _registers(device)}
        self._short: dict[str, list[str]] = {}
        for whole in self._whole:
            self._short.setdefault(whole.partition(".")[2], []).append(whole)

    def find(self, name: str) -> Place:
        """Where this register is. Raises :class:`BenchError` for a name that is unknown or ambiguous."""
        if not isinstance(name, str):
            raise BenchError(f"{name!r} is no name of a register (bench.read and bench.write take offsets)")
        if name in self._whole:
            return self._whole[name]
        found = self._short.get(name, [])
        own = [whole for whole in found if not whole.startswith(f"{CONFIG}.")] or found
        if len(own) == 1:
            return self._whole[own[0]]
        if own:
            raise BenchError(f"{name} is in several regions: write {' or '.join(own)}")
        near = get_close_matches(name, [*self._short, *self._whole], 3)
        hint = f" (there is {', '.join(near)})" if near else ""
        raise BenchError(f"{self._device} has no register {name!r}{hint}")


def _registers(device: PciDevice) -> Iterator[tuple[str, Place]]:
    for index, region in enumerate(device.regions):
        if isinstance(region, Registers):
            for register in region.layout.registers:
                yield register.name, Place(index, register.offset, register.width)
    for field in Reg:
        if field is not Reg.BASE_ADDRESS_0:
            width = 1 if field in _BYTES else _WIDTHS.get(field, 2)
            yield field.name, Place(PciRegion.CONFIG, field, width)
    for bar in range(6):
        yield f"BASE_ADDRESS_{bar}", Place(PciRegion.CONFIG, Reg.BASE_ADDRESS_0 + 4 * bar, 4)
