# SPDX-License-Identifier: Apache-2.0
"""Ids that a driver is given while it runs (new_id), and the functions that match them.

State: none. Source: Documentation/ABI/testing/sysfs-bus-pci (new_id, remove_id).
"""

import re
from dataclasses import dataclass

from devmodel.pci.fields import Identity

ANY = 0xFFFFFFFF
"""PCI_ANY_ID."""
FIELDS = 6
"""Numbers of a PciId: four ids, class and class mask. A seventh number of new_id is data for the driver. It
has to be that of an id that the driver has anyway: 0 for every driver here."""

_NUMBER = re.compile(r"(?:0[xX])?[0-9a-fA-F]{1,8}", re.ASCII)


@dataclass(frozen=True, slots=True)
class PciId:
    """Ids that a function must have, :data:`ANY` for no matter which, and the bits of its class that
    ``class_mask`` selects."""

    vendor: int
    device: int
    subvendor: int = ANY
    subdevice: int = ANY
    class_code: int = 0
    class_mask: int = 0

    def matches(self, identity: Identity) -> bool:
        """Whether a function with this identity matches."""
        ids = identity.vendor, identity.device, identity.subsystem_vendor, identity.subsystem_device
        return self.covers(PciId(*ids, identity.class_code))

    def covers(self, other: "PciId") -> bool:
        """Whether every function that matches ``other`` matches this too."""
        pairs = (
            (self.vendor, other.vendor),
            (self.device, other.device),
            (self.subvendor, other.subvendor),
            (self.subdevice, other.subdevice),
        )
        return all(own in (ANY, its) for own, its in pairs) and not (
            (self.class_code ^ other.class_code) & self.class_mask
        )

    def __str__(self) -> str:
        return f"{self.vendor:04x}:{self.device:04x}"


def parse_pci_id(text: str) -> PciId:
    """Hexadecimal numbers: vendor, device, then perhaps subvendor, subdevice, class and class mask.

    As with the kernel's sscanf(), the first word that is no number ends the line. Raises ValueError for fewer
    than two numbers.
    """
    return PciId(*_numbers(text)[:FIELDS])


def parse_new_id(text: str) -> PciId:
    """As :func:`parse_pci_id`, with data for the driver as a seventh number. Raises ValueError for data other
    than 0 as well."""
    numbers = _numbers(text)
    if any(numbers[FIELDS:]):
        raise ValueError(f"{text!r} has data that no id of the driver has")
    return PciId(*numbers[:FIELDS])


def parse_module_ids(text: str) -> tuple[PciId, ...]:
    """The ids of vfio-pci's module parameter of that name: "8086:1592,10de:2204:1458:4015". Each has vendor
    and device, then perhaps subvendor, subdevice, class and class mask. Raises ValueError for any other
    text."""
    found = []
    for part in filter(None, text.split(",")):
        words = part.split(":")
        if not 2 <= len(words) <= FIELDS or not all(map(_NUMBER.fullmatch, words)):
            raise ValueError(f"{part!r} is no id (write vendor:device, such as 8086:1592)")
        found.append(PciId(*(int(word, 16) for word in words)))
    return tuple(found)


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for word in text.split()[: FIELDS + 1]:
        if _NUMBER.fullmatch(word) is None:
            break
        numbers.append(int(word, 16))
    if len(numbers) < 2:
        raise ValueError(f"{text!r} is no vendor and device (two hexadecimal numbers)")
    return numbers
