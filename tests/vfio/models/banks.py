# SPDX-License-Identifier: Apache-2.0
"""A card with several banks of memory, one of them very large, and a register by which the card itself reads
and writes that one."""

from __future__ import annotations

from collections.abc import Sequence

from devmodel.sdk import (
    Bar,
    Capability,
    Identity,
    Layout,
    Memory,
    PciDevice,
    Register,
    Registers,
    express,
    msi,
    power_management,
)

SMALL, LARGE, OTHER = 64 << 10, 64 << 30, 1 << 20


class Banks(PciDevice):
    identity = Identity(0x1234, 0xC0F5, 0x1AF4, 0x1100, class_code=0x058000, irq_pin=1)

    def bars(self) -> dict[int, Bar]:
        self.registers = Registers(LAYOUT, self)
        return {
            0: Bar(self.registers),
            1: Bar(Memory(SMALL)),
            2: Bar(Memory(LARGE), mem64=True, prefetch=True),
            4: Bar(Memory(OTHER)),
        }

    def capabilities(self) -> Sequence[Capability]:
        return power_management(), msi(1), express()

    def peek(self) -> int:
        return int.from_bytes(self.region(2).read(self.registers["OFFSET"], 8), "little")

    def poke(self, value: int) -> None:
        self.region(2).write(self.registers["OFFSET"], value.to_bytes(8, "little"))


LAYOUT = Layout(
    4096,
    [
        Register(0, 8, "OFFSET"),
        Register(8, 8, "DATA", on_read=Banks.peek, on_write=Banks.poke),
    ],
)
