# SPDX-License-Identifier: Apache-2.0
"""A PCI Express card, which tells its client of errors: memory, a few registers, and a counter that runs."""

from collections.abc import Sequence

import trio

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

MEMORY = 1 << 20


class Card(PciDevice):
    identity = Identity(0x1234, 0xC0F3, 0x1AF4, 0x1100, class_code=0x088000, irq_pin=1)

    def bars(self) -> dict[int, Bar]:
        self.registers = Registers(LAYOUT, self)
        return {0: Bar(Memory(MEMORY), prefetch=True), 2: Bar(self.registers)}

    def capabilities(self) -> Sequence[Capability]:
        return (power_management(), msi(1), express())

    async def run(self) -> None:
        while True:
            with self.locked():
                self.registers["TICKS"] += 1
                self.interrupt()
            await trio.sleep(0.001)


LAYOUT = Layout(4096, [Register(0x00, 4, "SCRATCH", 0x5AFE), Register(0x04, 4, "TICKS", rw_mask=0)])
