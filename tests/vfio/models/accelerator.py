# SPDX-License-Identifier: Apache-2.0
"""An accelerator, a baseband device to DPDK's tools: registers, memory, and a ROM with an image."""

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
    Rom,
    express,
    msi,
    power_management,
)

MEMORY = 1 << 20
IMAGE = b"\x55\xaa\x02" + bytes(range(3, 200))


class Accelerator(PciDevice):
    identity = Identity(0x1234, 0xC0F6, 0x1AF4, 0x1100, class_code=0x120000, irq_pin=1)

    def bars(self) -> dict[int, Bar]:
        registers = Registers(LAYOUT, self)
        return {0: Bar(registers), 2: Bar(Memory(MEMORY), prefetch=True), 6: Bar(Rom(IMAGE, 0x10000))}

    def capabilities(self) -> Sequence[Capability]:
        return (power_management(), msi(1), express())


LAYOUT = Layout(4096, [Register(0x00, 4, "MAGIC", 0x41434331, rw_mask=0), Register(0x04, 4, "SCRATCH")])
