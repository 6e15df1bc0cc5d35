# SPDX-License-Identifier: Apache-2.0
"""Functions for tests of configuration space: one with a bit of everything, one without any reset."""

import struct
from collections.abc import Sequence
from dataclasses import replace

from devmodel.sdk import (
    Bar,
    Capability,
    Identity,
    Layout,
    LinkSpeed,
    Memory,
    PciDevice,
    Register,
    Registers,
    Rom,
    express,
    msi,
    msix,
    power_management,
    vendor,
)

MEMORY, ROM = 1 << 20, 1 << 16
TABLE, VECTORS, MESSAGES = 0x800, 4, 8
PM_EVENTS = 0xF800


class Wired(PciDevice):
    """BAR 0 has registers and the MSI-X structures, BAR 1 ports, BAR 2 memory."""

    identity = Identity(0x1234, 0xC0F4, 0x1AF4, 0x1100, class_code=0x088000, irq_pin=1)

    def bars(self) -> dict[int, Bar]:
        self.registers, self.ports = Registers(LAYOUT, self), Registers(PORTS, self)
        return {
            0: Bar(self.registers),
            1: Bar(self.ports, io=True),
            2: Bar(Memory(MEMORY), prefetch=True),
            6: Bar(Rom(b"\x55\xaa\x02ROM", ROM)),
        }

    def capabilities(self) -> Sequence[Capability]:
        link = express(LinkSpeed.GT_8, 4)
        table = msix(VECTORS, (0, TABLE), (0, TABLE + 16 * VECTORS))
        return (power_management(), msi(MESSAGES), link, table, vendor(b"own"))

    def fire(self, value: int) -> None:
        self.interrupt(value)


class Fixed(PciDevice):
    """Without PCI Express, and so without a reset on a root bus; without INTx, and with power management
    events."""

    identity = Identity(0x1234, 0xC0F5, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self) -> dict[int, Bar]:
        return {0: Bar(Memory(MEMORY))}

    def capabilities(self) -> Sequence[Capability]:
        own = struct.pack("<HHH", PM_EVENTS | 0x0003, 0x0108, 0)  # version 3; PME enabled, NO_SOFT_RESET
        return (replace(power_management(), body=own, mask=struct.pack("<HHH", 0, 0x0103, 0)),)


LAYOUT = Layout(
    4096,
    [
        Register(0x00, 4, "PLAIN"),
        Register(0x04, 4, "FIRE", on_write=Wired.fire),
        *(Register(TABLE + 4 * word, 4, f"TABLE{word}") for word in range(4 * VECTORS)),
    ],
)
PORTS = Layout(8, [Register(0, 4, "PORT")])
