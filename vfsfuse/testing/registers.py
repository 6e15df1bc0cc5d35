# SPDX-License-Identifier: Apache-2.0
"""The registers of a device by name, in all of its regions.

State: :class:`NamedRegisters` belongs to a bench, and is constant. Source: the names that a trace has
(devmodel.region.names, devmodel.pci.names).
"""

from difflib import get_close_matches
from typing import NamedTuple

from devmodel.device.pci import PciDevice, PciRegion
from vfsfuse.testing.errors import BenchError


class Place(NamedTuple):
    """Where a register is: the index of its region, and its offset and width in bytes."""

    region: int
    offset: int
    width: int


_CONFIG = "CONFIG."
_LABELS = {**{bar: f"BAR{bar}" for bar in range(6)}, PciRegion.ROM: "ROM", PciRegion.CONFIG: "CONFIG"}


class NamedRegisters:
    """The registers of one device.

    A name such as "STATUS" is found wherever it is. It means a register of the model rather than one of
    configuration space. With the name of its region before it ("BAR2.STATUS", "CONFIG.STATUS",
    "REGION9.HEAD") it is the one in that region. Of two capabilities of a kind it is in the first one.
    """

    def __init__(self, device: PciDevice) -> None:
        self._device = device.name
        self._whole: dict[str, Place] = {}
        self._short: dict[str, list[str]] = {}
        for index, region in enumerate(device.regions):
            for register in (region and region.names) or ():
                whole = f"{_LABELS.get(index, f'REGION{index}')}.{register.name}"
                if whole not in self._whole:
                    self._whole[whole] = Place(index, register.offset, register.width)
                    self._short.setdefault(register.name, []).append(whole)

    def find(self, name: str) -> Place:
        """Where this register is. Raises :class:`BenchError` for a name that is unknown or ambiguous."""
        if name in self._whole:
            return self._whole[name]
        found = self._short.get(name, [])
        own = [whole for whole in found if not whole.startswith(_CONFIG)] or found
        if len(own) == 1:
            return self._whole[own[0]]
        if own:
            raise BenchError(f"{name} is in several regions: write {' or '.join(own)}")
        near = get_close_matches(str(name), [*self._short, *self._whole], 3)
        hint = f"there is {', '.join(near)}" if near else "bench.read and bench.write take offsets"
        raise BenchError(f"{self._device} has no register {name!r} ({hint})")
