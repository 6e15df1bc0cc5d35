# SPDX-License-Identifier: Apache-2.0
"""The register BAR of a bochs-compatible display: the DISPI registers in memory space.

State: in the device, under its lock. Source: QEMU's docs/specs/standard-vga, "PCI spec" and "MMIO area":
DISPI registers are 16 bits wide at offset 0x500 + 2 * index.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from devmodel.device import PciDevice
from devmodel.pci import Bar, Identity
from devmodel.region import Memory
from devmodel.registers import Layout, Register, Registers

DISPI_BASE = 0x500
DISPI_ID5 = 0xB0C5
MIN_MEMORY = 1 << 20
MAX_MEMORY = 1 << 31
"""Largest 32-bit memory BAR."""

_VIDEO_MEMORY_UNIT = 1 << 16
_FIELDS: Sequence[str] = (
    "XRES",
    "YRES",
    "BPP",
    "ENABLE",
    "BANK",
    "VIRT_WIDTH",
    "VIRT_HEIGHT",
    "X_OFFSET",
    "Y_OFFSET",
)


def _video_memory(device: PciDevice) -> int:
    return min(device.memory // _VIDEO_MEMORY_UNIT, 0xFFFF)


def _dispi() -> Sequence[Register]:
    plain = [Register(DISPI_BASE + 2 * index, 2, name) for index, name in enumerate(_FIELDS, 1)]
    memory = Register(DISPI_BASE + 2 * 10, 2, "VIDEO_MEMORY_64K", rw_mask=0, on_read=_video_memory)
    return [Register(DISPI_BASE, 2, "ID", DISPI_ID5, rw_mask=0), *plain, memory]


class BochsDisplay(PciDevice):
    """BAR 0 is ``memory`` bytes of video memory, BAR 2 the registers."""

    __slots__ = ("registers",)
    identity = Identity(0x1234, 0x1111, 0x1AF4, 0x1100, class_code=0x038000, revision=2)
    LAYOUT: ClassVar[Layout] = Layout(4096, _dispi())

    @classmethod
    def validate(cls, memory: int, options: Mapping[str, int]) -> None:
        super().validate(memory, options)
        if not MIN_MEMORY <= memory <= MAX_MEMORY or memory & (memory - 1):
            raise ValueError(f"video memory is {memory} bytes, not a power of two from 1M to 2G")

    def bars(self) -> Mapping[int, Bar]:
        self.registers = Registers(self.LAYOUT, self)
        return {0: Bar(Memory(self.memory), prefetch=True), 2: Bar(self.registers)}
