# SPDX-License-Identifier: Apache-2.0
"""What captured bytes of configuration space say of a function: its bridge, SR-IOV, its kind of port.

State: none. Source: <linux/pci_regs.h>.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from devmodel.pci import regs
from devmodel.pci.image import Image
from devmodel.pci.regs import CapId, ExtCapId

_EXP_TYPE = 0xF0
_ACS_WANTED, _ACS_EGRESS = 0x1D, 0x20
KINDS: Mapping[int, str] = {
    regs.EXP_TYPE_ROOT_PORT: "root-port",
    regs.EXP_TYPE_UPSTREAM: "switch-upstream",
    regs.EXP_TYPE_DOWNSTREAM: "switch-downstream",
}
"""Kinds of bridges in a lab file, by the type in the PCI Express capability. All others are "pci"."""


class Sriov(NamedTuple):
    """The registers of SR-IOV."""

    total: int
    enabled: int
    offset: int
    stride: int
    device: int


class Space:
    """Configuration space of 0, 64, 256 or 4096 bytes."""

    __slots__ = ("data", "image")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.image: Image | None = None
        if len(data) > regs.STD_HEADER_SIZEOF:
            try:
                self.image = Image.of(data)
            except ValueError:
                self.image = None  # the writer finds out, and says why

    def value(self, offset: int, width: int) -> int:
        """The little-endian value of ``width`` bytes at ``offset``, 0 for bytes that are not there."""
        return int.from_bytes(self.data[offset : offset + width], "little")

    @property
    def class_code(self) -> int:
        """24 bits."""
        return self.value(regs.Reg.CLASS_REVISION + 1, 3)

    @property
    def revision(self) -> int:
        """The revision id."""
        return self.value(regs.Reg.CLASS_REVISION, 1)

    @property
    def pin(self) -> int:
        """The interrupt pin, 0 without one."""
        pin = self.value(regs.Reg.INTERRUPT_PIN, 1)
        return pin if pin <= 4 else 0

    @property
    def header_type(self) -> int:
        """0 for a function, 1 for a bridge, 2 for a CardBus bridge."""
        return self.value(regs.Reg.HEADER_TYPE, 1) & regs.HEADER_TYPE_MASK

    @property
    def buses(self) -> tuple[int, int] | None:
        """The secondary and the subordinate bus of a bridge that has some."""
        if self.header_type != 1 or not self.value(0x19, 1):
            return None
        return self.value(0x19, 1), self.value(0x1A, 1)

    @property
    def cardbus(self) -> range:
        """The numbers of the buses below a CardBus bridge."""
        first, last = self.value(0x19, 1), self.value(0x1A, 1)
        return range(first, last + 1) if self.header_type == 2 and first else range(0)

    @property
    def bridge_kind(self) -> str | None:
        """The kind of a bridge, None if its capabilities are not known."""
        if self.image is None:
            return None
        place = self.image.offsets.get(CapId.EXP)
        if place is None:
            return "pci"
        return KINDS.get((self.image.value(place + 2, 2) & _EXP_TYPE) >> 4, "pci")

    @property
    def is_express(self) -> bool:
        """Whether it is known to be a PCI Express function."""
        return self.image is not None and CapId.EXP in self.image.offsets

    @property
    def sriov(self) -> Sriov | None:
        """The registers of SR-IOV, None without them."""
        place = None if self.image is None else self.image.places.get(ExtCapId.SRIOV)
        if place is None:
            return None
        total, enabled, offset, stride, device = (
            self.value(place + at, 2) for at in (0x0E, 0x10, 0x14, 0x16, 0x1A)
        )
        on = self.value(place + regs.SRIOV_CTRL, 2) & regs.SRIOV_CTRL_VFE
        return Sriov(total, enabled if on else 0, offset, stride, device)

    @property
    def serial_place(self) -> int | None:
        """Where the 8 bytes of the serial number are."""
        place = None if self.image is None else self.image.places.get(ExtCapId.DSN)
        return None if place is None else place + 4

    @property
    def isolated(self) -> bool | None:
        """Whether ACS isolates what is below a port, None if that is not known. What the port can do counts
        if nothing has been switched on: Linux does that only where there is an IOMMU."""
        if self.image is None or len(self.data) < regs.CFG_SPACE_EXP_SIZE:
            return None
        place = self.image.places.get(ExtCapId.ACS)
        if place is None:
            return False
        able, control = self.value(place + 4, 2), self.value(place + 6, 2)
        needed = _ACS_WANTED & (able | _ACS_EGRESS)
        return (control or able) & needed == needed

    def places_of(self, data: bytes) -> Iterator[int]:
        """Where these bytes are."""
        place = self.data.find(data)
        while place >= 0:
            yield place
            place = self.data.find(data, place + 1)


def serial_bytes(serial: int) -> bytes:
    """A serial number as its registers have it."""
    return struct.pack("<Q", serial)
