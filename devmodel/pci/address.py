# SPDX-License-Identifier: Apache-2.0
"""PCI addresses: where a function is, as sysfs spells it and as PCI Express numbers it.

State: none, they are values. Source: Documentation/ABI/testing/sysfs-bus-pci (the names of devices), PCI
Express Base 2.0 chapter 2.2.4.2 (routing ids).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

MAX_RID = 0xFFFF
"""The last routing id of a segment."""

_DOMAIN = r"([0-9a-f]{4}|[1-9a-f][0-9a-f]{4,7})"
_NAME = re.compile(_DOMAIN + r":([0-9a-f]{2}):([01][0-9a-f])\.([0-7])")
_BUS_NAME = re.compile(_DOMAIN + r":([0-9a-f]{2})")


class PciAddress(NamedTuple):
    """Segment (domain), bus, and device and function in one byte as PCI_DEVFN() packs them."""

    segment: int
    bus: int
    devfn: int

    @classmethod
    def parse(cls, name: str) -> PciAddress:
        """The address that sysfs spells ``name``, such as "0000:86:00.0". Raises ValueError for any other
        spelling."""
        return _parsed(name)

    @property
    def rid(self) -> int:
        """The routing id, 16 bits: bus, device and function."""
        return self.bus << 8 | self.devfn

    @property
    def bus_name(self) -> str:
        """The bus as sysfs spells it, such as "0000:86"."""
        return bus_name(self.segment, self.bus)

    def after(self, distance: int) -> PciAddress:
        """The address ``distance`` routing ids further. Raises ValueError behind the last of the segment."""
        rid = self.rid + distance
        if rid > MAX_RID:
            raise ValueError(f"{self} has no routing id {distance} further in its segment")
        return PciAddress(self.segment, rid >> 8, rid & 0xFF)

    def __str__(self) -> str:
        return f"{self.bus_name}:{self.devfn >> 3:02x}.{self.devfn & 7}"


@lru_cache(1 << 14)
def _parsed(name: str) -> PciAddress:
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is not a PCI address ({_likely(name)})")
    device, function = int(found[3], 16), int(found[4])
    return PciAddress(int(found[1], 16), int(found[2], 16), device << 3 | function)


def _likely(name: str) -> str:
    """What to write in place of a name that is no address."""
    for guess in (name.lower(), f"0000:{name.lower()}"):
        if _NAME.fullmatch(guess):
            return f'write "{guess}"'
    return 'such as "0000:86:00.0"'


def parse_bus(name: str) -> tuple[int, int]:
    """The segment and the number of a bus that sysfs spells ``name``, such as "0000:80". Raises ValueError
    for any other spelling."""
    found = _BUS_NAME.fullmatch(name)
    if found is None:
        raise ValueError(f'{name!r} is not a PCI bus (such as "0000:80")')
    return int(found[1], 16), int(found[2], 16)


def bus_name(segment: int, bus: int) -> str:
    """A bus as sysfs spells it, such as "0000:86"."""
    return f"{segment:04x}:{bus:02x}"
